/* Time by stream and stage kind, summed over the spans of the last step. A bar is the step: coloured where the stream was busy, grey where it idled,
 * so the longest coloured bar names the bottleneck:
 *
 *     GPU 0   compute   [mixer|expert|combine|......idle......]  61 %
 *             upload    [upload                      |..idle..]  84 %
 */
#include "breakdown.h"
#include "model/error.h"
#include "palette.h"

#include <string.h>

#define PITCH 16.0
#define GROUP_GAP 8.0
#define AXIS_HEIGHT 36.0
#define TITLE_HEIGHT 16.0
#define SHARE_WIDTH 44.0 /* "100 %" beside the bars */

struct bar {
	struct stream_time sum;
	int streams;
	nsec_t step;
};

struct drawing {
	GArray *rows, *bars; /* struct row, struct bar: side by side */
	double *y;
	nsec_t longest; /* step */
	struct palette_use use;
	GString *boxes;
};

void stream_times(const struct trace *trace, nsec_t from, nsec_t to, struct stream_time *times)
{
	memset(times, 0, sizeof *times * (size_t)trace_streams(trace));
	for (guint i = 0; i < trace->spans->len; i++) {
		const struct span *span = trace_span(trace, i);
		nsec_t start = MAX(span->start_ns, from), end = MIN(span->end_ns, to);

		if (end > start && span->stream < (stream_id)trace_streams(trace))
			times[span->stream].busy[span->kind][span->pass] += end - start;
	}
}

static nsec_t busy_time(const struct stream_time *time)
{
	nsec_t busy = 0;

	for (int kind = 0; kind < N_STAGE_KINDS; kind++)
		for (int pass = 0; pass < N_STAGE_PASSES; pass++)
			busy += time->busy[kind][pass];
	return busy;
}

static void add_time(struct stream_time *sum, const struct stream_time *time)
{
	for (int kind = 0; kind < N_STAGE_KINDS; kind++)
		for (int pass = 0; pass < N_STAGE_PASSES; pass++)
			sum->busy[kind][pass] += time->busy[kind][pass];
}

static bool is_compute(const struct row *row)
{
	return row->gpu >= 0 && row->launcher < 0 && row->stream % GPU_STREAMS == STREAM_COMPUTE;
}

static void add_bar(struct drawing *d, const struct row *row, const char *group, const struct bar *bar)
{
	struct row copy = *row;

	copy.group = g_strdup(group);
	g_array_append_val(d->rows, copy);
	g_array_append_val(d->bars, *bar);
	d->longest = MAX(d->longest, bar->step);
}

/* A bar for each stream of the choice. */
static bool bars_of_streams(struct drawing *d, const struct trace *trace, const struct gpu_choice *choice, GError **error)
{
	struct gpu_choice streams = {.gpus = choice->gpus, .n = choice->n};
	g_autofree struct stream_time *times = g_new(struct stream_time, trace_streams(trace));
	g_autoptr(GArray) rows = rows_new(trace, &streams, error);
	nsec_t from, to;

	if (!rows)
		return false;
	trace_last_step(trace, &from, &to);
	stream_times(trace, from, to, times);
	for (guint i = 0; i < rows->len; i++) {
		const struct row *row = &g_array_index(rows, struct row, i);
		struct bar bar = {.sum = times[row->stream], .streams = 1, .step = to - from};

		if (is_compute(row) || busy_time(&bar.sum) > 0)
			add_bar(d, row, row->group, &bar);
	}
	return true;
}

/* A bar for each kind of stream: rows with the same label are one. */
static bool bars_of_kinds(struct drawing *d, const struct named_trace *named, GError **error)
{
	const struct trace *trace = named->trace;
	g_autofree int *all = g_new(int, MAX(1, trace->gpus));
	struct gpu_choice choice = {.gpus = all, .n = trace->gpus};
	g_autofree struct stream_time *times = g_new(struct stream_time, trace_streams(trace));
	g_autoptr(GArray) rows = NULL;
	nsec_t from, to;

	for (int gpu = 0; gpu < trace->gpus; gpu++)
		all[gpu] = gpu;
	rows = rows_new(trace, &choice, error);
	if (!rows)
		return false;
	trace_last_step(trace, &from, &to);
	stream_times(trace, from, to, times);
	for (guint i = 0; i < rows->len; i++) {
		const struct row *row = &g_array_index(rows, struct row, i);
		struct bar bar = {.step = to - from};

		if (row->gpu > 0 || row->node > 0)
			continue; /* its kind was summed up at the first GPU's or node's row */
		for (guint j = i; j < rows->len; j++)
			if (!strcmp(g_array_index(rows, struct row, j).label, row->label)) {
				add_time(&bar.sum, &times[g_array_index(rows, struct row, j).stream]);
				bar.streams++;
			}
		if (is_compute(row) || busy_time(&bar.sum) > 0)
			add_bar(d, row, named->name, &bar);
	}
	return true;
}

static void append_box(struct drawing *d, guint row, double from, double to, uint32_t rgb)
{
	double half = PITCH * 0.41;

	g_string_append_printf(d->boxes, "%.7f\t%.7f\t%.3f\t%.3f\t%u\n", from, to, d->y[row] - half, d->y[row] + half, rgb);
}

/* What a bar did in stages of one family and pass; marks what the legend has to name. */
static nsec_t family_time(struct drawing *d, const struct bar *bar, int family, int pass)
{
	nsec_t sum = 0;

	for (int kind = 0; kind < N_STAGE_KINDS; kind++)
		if (palette_family(kind) == family && bar->sum.busy[kind][pass] > 0) {
			d->use.stage[kind][pass] = true;
			sum += bar->sum.busy[kind][pass];
		}
	return sum;
}

/* Stacks family by family and pass by pass, in the legend's order; returns the busy share. */
static double stack_bar(struct drawing *d, guint row)
{
	const struct bar *bar = &g_array_index(d->bars, struct bar, row);
	double unit = 1.0 / (bar->streams * (double)NSEC_PER_MSEC), at = 0, step = (double)bar->step / (double)NSEC_PER_MSEC;

	for (int family = 0; family < PALETTE_FAMILIES; family++)
		for (int pass = 0; pass < N_STAGE_PASSES; pass++) {
			double width = (double)family_time(d, bar, family, pass) * unit;

			if (width > 0)
				append_box(d, row, at, at + width, palette_family_rgb(family, pass));
			at += width;
		}
	if (at < step)
		append_box(d, row, at, step, PALETTE_IDLE);
	return step > 0 ? at / step : 0;
}

static bool draw(struct drawing *d, const char *out, GError **error)
{
	double left = FIGURE_MARGIN + rows_label_width(d->rows), right = FIGURE_WIDTH - FIGURE_MARGIN - SHARE_WIDTH,
	       width = FIGURE_WIDTH - 2 * FIGURE_MARGIN;
	double height = rows_layout(d->rows, PITCH, GROUP_GAP, d->y), bottom;
	g_autofree double *share = g_new(double, d->rows->len);
	g_autoptr(legend) legend = legend_new();
	g_autoptr(figure) f = NULL;
	struct panel_place place;
	uint32_t idle = PALETTE_IDLE;

	for (guint i = 0; i < d->rows->len; i++)
		share[i] = stack_bar(d, i);
	palette_legend(&d->use, legend);
	legend_add(legend, "idle", &idle, 1);
	bottom = FIGURE_MARGIN + legend_height(legend, width) + AXIS_HEIGHT;
	f = figure_new(FIGURE_WIDTH, bottom + height + TITLE_HEIGHT);
	place = (struct panel_place){.left = left, .right = right, .bottom = bottom, .top = bottom + height};
	figure_panels(f, &place, 1);
	figure_number(f, "height", height);
	figure_number(f, "to", (double)d->longest / (double)NSEC_PER_MSEC);
	figure_data(f, "boxes", d->boxes->str);
	rows_label(d->rows, f, left, bottom, d->y);
	for (guint i = 0; i < d->rows->len; i++) {
		g_autofree char *text = g_strdup_printf("%.0f %%", 100 * share[i]);

		figure_text(f, FIGURE_WIDTH - FIGURE_MARGIN, bottom + d->y[i], TEXT_RIGHT, TEXT_SIZE, 0, text);
	}
	figure_text(f, FIGURE_WIDTH - FIGURE_MARGIN, bottom + height + TITLE_HEIGHT / 2, TEXT_RIGHT, TEXT_SIZE, 0, "busy");
	legend_draw(legend, f, FIGURE_MARGIN, bottom - AXIS_HEIGHT, width);
	return figure_write(f, "breakdown", out, error);
}

bool plot_breakdown(const struct named_trace *traces, int n, const struct gpu_choice *choice, const char *out, GError **error)
{
	struct drawing d = {0};
	bool ok = figure_name_check(out, error);

	d.rows = rows_array();
	d.bars = g_array_new(FALSE, FALSE, sizeof(struct bar));
	d.boxes = g_string_new(NULL);
	if (ok && n == 1)
		ok = bars_of_streams(&d, traces[0].trace, choice, error);
	for (int i = 0; i < n && n > 1 && ok; i++)
		ok = bars_of_kinds(&d, &traces[i], error);
	if (ok && d.longest <= 0) {
		g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_INPUT, "the trace has no spans to draw");
		ok = false;
	}
	if (ok) {
		d.y = g_new(double, d.rows->len);
		ok = draw(&d, out, error);
	}
	g_array_unref(d.rows);
	g_array_unref(d.bars);
	g_string_free(d.boxes, TRUE);
	g_free(d.y);
	return ok;
}
