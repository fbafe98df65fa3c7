/* A row is a stream or a launcher thread. Groups of rows (one GPU, one node) stand apart by a gap and carry their name once, beside the group's
 * middle. */
#include "rows.h"
#include "model/error.h"

#include <string.h>

#define GROUP_COLUMN_GAP 10.0
#define GROUP_COLUMN_MOST 140.0
#define LABEL_GAP 5.0
#define BAND 0xF4F4F4

static const char *const gpu_labels[GPU_STREAMS] = {[STREAM_COMPUTE] = "compute",
                                                    [STREAM_UPLOAD] = "upload",
                                                    [STREAM_DOWNLOAD] = "download",
                                                    [STREAM_COLLECTIVE] = "collective",
                                                    [STREAM_REDUCTION] = "reduction"};
static const char *const node_labels[NODE_STREAMS] = {
    [STREAM_OPTIMIZER] = "optimizer", [STREAM_SSD_READ] = "SSD read", [STREAM_SSD_WRITE] = "SSD write"};

static bool choice_check(const struct trace *trace, const struct gpu_choice *choice, GError **error)
{
	for (int i = 0; i < choice->n; i++)
		if (choice->gpus[i] < 0 || choice->gpus[i] >= trace->gpus) {
			g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_USAGE, "GPU %d: the trace has GPUs 0 to %d", choice->gpus[i], trace->gpus - 1);
			return false;
		}
	return true;
}

static void row_clear(void *row)
{
	g_free(((struct row *)row)->group);
}

GArray *rows_array(void)
{
	GArray *rows = g_array_new(FALSE, FALSE, sizeof(struct row));

	g_array_set_clear_func(rows, row_clear);
	return rows;
}

/* Most policies have no reductions apart from other collectives. */
static bool reduces_apart(const struct trace *trace)
{
	for (guint i = 0; i < trace->spans->len; i++) {
		stream_id s = g_array_index(trace->spans, struct span, i).stream;
		if (trace_stream_gpu(trace, s) >= 0 && s % GPU_STREAMS == STREAM_REDUCTION)
			return true;
	}
	return false;
}

static void gpu_rows(GArray *rows, int gpu, bool launcher, bool reduction)
{
	for (int s = launcher ? -1 : 0; s < (reduction ? GPU_STREAMS : STREAM_REDUCTION); s++) {
		struct row row = {.launcher = s < 0 ? gpu : -1, .gpu = gpu, .node = -1, .label = s < 0 ? "launch" : gpu_labels[s]};

		row.stream = s < 0 ? 0 : stream_of_gpu(gpu, (enum gpu_stream)s);
		row.group = g_strdup_printf("GPU %d", gpu);
		g_array_append_val(rows, row);
	}
}

static void node_rows(GArray *rows, const struct trace *trace, int node)
{
	for (int s = 0; s < NODE_STREAMS; s++) {
		struct row row = {.launcher = -1, .gpu = -1, .node = node, .label = node_labels[s]};

		row.stream = (stream_id)(trace->gpus * GPU_STREAMS + node * NODE_STREAMS + s);
		row.group = trace->gpus > trace->gpus_per_node ? g_strdup_printf("node %d", node) : g_strdup("host");
		g_array_append_val(rows, row);
	}
}

GArray *rows_new(const struct trace *trace, const struct gpu_choice *choice, GError **error)
{
	int nodes = trace->gpus_per_node > 0 ? (trace->gpus + trace->gpus_per_node - 1) / trace->gpus_per_node : 0;
	int n_gpus = choice->n ? choice->n : MIN(trace->gpus, ROWS_DEFAULT_GPUS);
	g_autofree bool *node_seen = g_new0(bool, nodes);
	GArray *rows;
	bool reduction = reduces_apart(trace);

	if (!choice_check(trace, choice, error))
		return NULL;
	rows = rows_array();
	for (int i = 0; i < n_gpus; i++) {
		int gpu = choice->n ? choice->gpus[i] : i;

		gpu_rows(rows, gpu, choice->launchers, reduction);
		if (nodes)
			node_seen[gpu / trace->gpus_per_node] = true;
	}
	for (int node = 0; node < nodes; node++)
		if (node_seen[node])
			node_rows(rows, trace, node);
	return rows;
}

bool row_holds(const struct row *row, const struct span *span, nsec_t *start, nsec_t *end)
{
	*start = row->launcher < 0 ? span->start_ns : span->launch_ns;
	*end = row->launcher < 0 ? span->end_ns : span->launch_end_ns;
	if (row->launcher >= 0)
		return span->rank == row->launcher && span->launch_ns >= 0;
	return span->stream == row->stream;
}

void trace_last_step(const struct trace *trace, nsec_t *from, nsec_t *to)
{
	nsec_t last = INT64_MIN, first = INT64_MAX;

	for (guint i = 0; i < trace->spans->len; i++) {
		const struct span *span = trace_span(trace, i);

		first = MIN(first, span->start_ns);
		last = MAX(last, span->end_ns);
	}
	*from = trace->spans->len ? first : 0;
	*to = trace->spans->len ? last : 0;
	for (guint i = 0; i < trace->step_end_ns->len; i++) {
		nsec_t end = g_array_index(trace->step_end_ns, nsec_t, i), start = i ? g_array_index(trace->step_end_ns, nsec_t, i - 1) : 0;

		if (end > start && start < last) {
			*from = start;
			*to = end;
		}
	}
}

bool rows_same_group(const struct row *a, const struct row *b)
{
	return !strcmp(a->group, b->group);
}

double rows_layout(const GArray *rows, double pitch, double gap, double *y)
{
	double total = 0;

	for (guint i = rows->len; i-- > 0;) {
		y[i] = total + pitch / 2;
		total += pitch;
		if (i > 0 && !rows_same_group(&g_array_index(rows, struct row, i), &g_array_index(rows, struct row, i - 1)))
			total += gap;
	}
	return total;
}

static void label_columns(const GArray *rows, double *row_column, double *group_column)
{
	*row_column = *group_column = 0;
	for (guint i = 0; i < rows->len; i++) {
		const struct row *row = &g_array_index(rows, struct row, i);

		*row_column = MAX(*row_column, text_width(row->label, TEXT_SIZE));
		*group_column = MAX(*group_column, MIN(GROUP_COLUMN_MOST, text_width(row->group, TEXT_SIZE)));
	}
}

double rows_label_width(const GArray *rows)
{
	double row_column, group_column;

	label_columns(rows, &row_column, &group_column);
	return group_column + GROUP_COLUMN_GAP + row_column + LABEL_GAP;
}

void rows_label(const GArray *rows, struct figure *f, double x, double bottom, const double *y)
{
	double row_column, group_column;

	label_columns(rows, &row_column, &group_column);
	for (guint i = 0, first = 0; i < rows->len; i++) {
		const struct row *row = &g_array_index(rows, struct row, i);

		figure_text(f, x - LABEL_GAP, bottom + y[i], TEXT_RIGHT, TEXT_SIZE, 0, row->label);
		if (i + 1 == rows->len || !rows_same_group(row, row + 1)) {
			g_autofree char *group = text_fit(row->group, TEXT_SIZE, GROUP_COLUMN_MOST);

			figure_text(f, x - LABEL_GAP - row_column - GROUP_COLUMN_GAP, bottom + (y[first] + y[i]) / 2, TEXT_RIGHT, TEXT_SIZE, 0,
			            group);
			first = i + 1;
		}
	}
}

void rows_bands(const GArray *rows, struct figure *f, double left, double right, double bottom, double pitch, const double *y)
{
	for (guint i = 0, in_group = 0; i < rows->len; i++, in_group++) {
		const struct row *row = &g_array_index(rows, struct row, i);

		if (i > 0 && !rows_same_group(row - 1, row))
			in_group = 0;
		if (in_group % 2 == 0)
			figure_box(f, left, bottom + y[i] - pitch / 2, right - left, pitch, BAND);
	}
}
