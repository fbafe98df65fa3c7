/* The rows of a figure about a trace: one a stream, GPU by GPU, then node by node. */
#pragma once

#include "figure.h"
#include "traces/trace.h"

#define ROWS_DEFAULT_GPUS 4

struct row {
	stream_id stream;
	int launcher;      /* the GPU whose launcher thread it shows; -1: it shows the stream */
	int gpu, node;     /* the other is -1 */
	const char *label; /* "compute", "SSD read" */
	char *group;       /* "GPU 3", "host", "node 1", ...: what it belongs to, written once beside a run of rows; owned */
};

/* Which GPUs' rows; none given: the first ROWS_DEFAULT_GPUS. */
struct gpu_choice {
	const int *gpus;
	int n;
	bool launchers;
};

/* Rows (struct row) in the order they are drawn: per GPU its launcher thread (if wanted), compute, upload, download, collective; then the nodes of
 * these GPUs with optimizer and SSD. Freed with g_array_unref. ESMOE_ERROR_USAGE: a GPU that the trace has not. */
GArray *rows_new(const struct trace *trace, const struct gpu_choice *choice, GError **error) G_GNUC_WARN_UNUSED_RESULT;

/* When a span occupies its row; false: it is not of that row. */
bool row_holds(const struct row *row, const struct span *span, nsec_t *start, nsec_t *end);

/* An empty array of rows that frees their groups. */
GArray *rows_array(void);

/* The period of the trace's last step that holds spans: from the step before's end to its own. The whole trace when it knows no steps. */
void trace_last_step(const struct trace *trace, nsec_t *from, nsec_t *to);

/* Heights: rows under each other from 0 down with a gap between groups. Fills y (n), each row's middle above the lowest edge, and returns the total.
 */
double rows_layout(const GArray *rows, double pitch, double gap, double *y);
/* Points to the left of the panels that the labels take. */
double rows_label_width(const GArray *rows);
bool rows_same_group(const struct row *a, const struct row *b);
/* Every other row of a group on grey between left and right, so that the eye keeps to its row. */
void rows_bands(const GArray *rows, struct figure *f, double left, double right, double bottom, double pitch, const double *y);
/* Writes row labels right-aligned at x and group labels left of them; y as rows_layout gave it, raised by `bottom`. */
void rows_label(const GArray *rows, struct figure *f, double x, double bottom, const double *y);
