/* Points near the diagonal are good; on logarithmic axes 5 % is the same distance everywhere, for a step of seconds and a stage of microseconds.
 *
 *     predicted |        . '/.'        timelines  measured   [mixer][gate] [expert]...
 *               |    . '/.'                       predicted  [mixer][gate][expert]...
 *               |. '/.'
 *               +-----------
 *                  measured
 */
#include "accuracy.h"

#include "legend.h"
#include "model/error.h"
#include "palette.h"
#include "rows.h"

#include <math.h>
#include <string.h>

#define WIDTH 400.0
#define PANEL 320.0
#define AXIS_LEFT 52.0
#define AXIS_BELOW 36.0
#define BAND_SHARE 0.05
#define BAND_COLOUR 0xDDE8F3u
#define PITCH 12.0
#define GROUP_GAP 6.0
#define TITLE_HEIGHT 20.0

enum { CLASSES = 3 };
static const char *const words[CLASSES] = {"stage", "stream", "step"};
static const char *const titles[CLASSES] = {"kinds of stages", "streams", "steps"};

struct scatter {
	GString *points[CLASSES];
	double from, to;
};

static bool read_points(const struct csv *csv, struct scatter *s, GError **error)
{
	static const char *const names[] = {"of", "measured_ms", "predicted_ms"};
	int column[G_N_ELEMENTS(names)];
	for (size_t i = 0; i < G_N_ELEMENTS(names); i++) {
		column[i] = csv_column(csv, names[i], error);
		if (column[i] < 0)
			return false;
	}
	for (int row = 0; row < csv_rows(csv); row++) {
		double measured, predicted;
		int class = 0;
		if (!strcmp(csv_text(csv, row, column[0]), "memory")) /* bytes, not times */
			continue;
		while (class < CLASSES && strcmp(csv_text(csv, row, column[0]), words[class]) != 0)
			class ++;
		if (class == CLASSES)
			return csv_complain(csv, row, column[0], "step, stream or stage is expected", error);
		if (!csv_number(csv, row, column[1], 0, 1e12, &measured, error) || !csv_number(csv, row, column[2], 0, 1e12, &predicted, error))
			return false;
		if (measured <= 0 || predicted <= 0)
			continue;
		s->from = fmin(s->from, fmin(measured, predicted));
		s->to = fmax(s->to, fmax(measured, predicted));
		g_string_append_printf(s->points[class], "%.9g\t%.9g\n", measured, predicted);
	}
	return true;
}

static bool draw_scatter(const struct scatter *s, const char *out, GError **error)
{
	const double width = WIDTH - 2 * FIGURE_MARGIN;
	const double from = pow(10, floor(log10(s->from))), to = pow(10, ceil(log10(s->to * 1.0001)));
	double colours[CLASSES], markers[CLASSES];
	g_autoptr(GString) points = g_string_new(NULL), band = g_string_new(NULL);
	g_autoptr(legend) legend = legend_new();
	const uint32_t band_rgb = BAND_COLOUR;
	for (int i = 0; i < CLASSES; i++) {
		colours[i] = palette_series(i);
		markers[i] = palette_marker(i);
		g_string_append_printf(points, "NaN\tNaN\n%s\n\n", s->points[i]->str);
		if (s->points[i]->len)
			legend_add_marker(legend, titles[i], palette_marker(i), palette_series(i));
	}
	legend_add(legend, "within 5 %", &band_rgb, 1);
	g_string_append_printf(band, "%.9g\n%.9g\n", from, to);
	const double key = FIGURE_MARGIN + legend_height(legend, width);
	g_autoptr(figure) f = figure_new(WIDTH, key + AXIS_BELOW + PANEL + FIGURE_MARGIN);
	const struct panel_place place = {.left = FIGURE_MARGIN + AXIS_LEFT,
	                                  .right = FIGURE_MARGIN + AXIS_LEFT + PANEL,
	                                  .bottom = key + AXIS_BELOW,
	                                  .top = key + AXIS_BELOW + PANEL};
	figure_panels(f, &place, 1);
	figure_number(f, "from", from);
	figure_number(f, "to", to);
	figure_number(f, "share", BAND_SHARE);
	figure_number(f, "band_colour", BAND_COLOUR);
	figure_number(f, "series", CLASSES);
	figure_array(f, "colour", colours, CLASSES);
	figure_array(f, "marker", markers, CLASSES);
	figure_data(f, "points", points->str);
	figure_data(f, "band", band->str);
	legend_draw(legend, f, FIGURE_MARGIN, key, width);
	return figure_write(f, "accuracy", out, error);
}

bool plot_accuracy(struct csv *const *files, int n, const char *out, GError **error)
{
	struct scatter s = {.from = HUGE_VAL};
	bool ok = figure_name_check(out, error);
	for (int i = 0; i < CLASSES; i++)
		s.points[i] = g_string_new(NULL);
	for (int i = 0; i < n && ok; i++)
		ok = read_points(files[i], &s, error);
	if (ok && s.to <= 0) {
		g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_INPUT, "there are no times to draw");
		ok = false;
	}
	ok = ok && draw_scatter(&s, out, error);
	for (int i = 0; i < CLASSES; i++)
		g_string_free(s.points[i], TRUE);
	return ok;
}

struct period {
	nsec_t from, to;
};

static struct period step_of(const struct trace *trace, guint step)
{
	const GArray *ends = trace->step_end_ns;
	if (step >= ends->len)
		return (struct period){0, trace_end_ns(trace)};
	return (struct period){step ? g_array_index(ends, nsec_t, step - 1) : 0, g_array_index(ends, nsec_t, step)};
}

static nsec_t length_of(const struct trace *trace, guint step)
{
	struct period p = step_of(trace, step);
	return p.to - p.from;
}

/* The step that takes the median time: others may be outliers. Of equals the first. */
static guint typical_step(const struct trace *trace)
{
	guint n = trace->step_end_ns->len;
	for (guint step = 0; step < n; step++) {
		guint shorter = 0, equal = 0;
		for (guint other = 0; other < n; other++) {
			shorter += length_of(trace, other) < length_of(trace, step);
			equal += length_of(trace, other) == length_of(trace, step);
		}
		if (shorter <= n / 2 && n / 2 < shorter + equal)
			return step;
	}
	return 0;
}

static bool holds(const struct row *row, const struct span *span, struct period p, nsec_t *start, nsec_t *end)
{
	if (!row_holds(row, span, start, end))
		return false;
	*start = MAX(*start, p.from);
	*end = MIN(*end, p.to);
	return *end > *start;
}

static void append_boxes(const struct trace *trace, struct period p, GArray *rows, const double *y, struct palette_use *use, GString *boxes)
{
	for (guint row = 0; row < rows->len; row++)
		for (guint i = 0; i < trace->spans->len; i++) {
			const struct span *span = trace_span(trace, i);
			nsec_t start, end;
			if (!holds(&g_array_index(rows, struct row, row), span, p, &start, &end))
				continue;
			use->stage[span->kind][span->pass] = true;
			g_string_append_printf(boxes, "%.7f\t%.7f\t%.3f\t%.3f\t%u\n", (double)(start - p.from) / 1e6, (double)(end - p.from) / 1e6,
			                       y[row] - PITCH * 0.41, y[row] + PITCH * 0.41, palette_stage(span->kind, span->pass));
		}
	g_string_append(boxes, "0\t0\t0\t0\t0\n\n\n"); /* gnuplot refuses an index without rows */
}

/* Streams that are idle in both are left out of both. */
static void drop_idle(GArray *rows, const struct trace *const traces[2], guint step)
{
	for (guint row = rows->len; row-- > 0;) {
		bool used = false;
		for (int t = 0; t < 2; t++)
			for (guint i = 0; i < traces[t]->spans->len && !used; i++) {
				nsec_t start, end;
				used = holds(&g_array_index(rows, struct row, row), &g_array_index(traces[t]->spans, struct span, i),
				             step_of(traces[t], step), &start, &end);
			}
		if (!used)
			g_array_remove_index(rows, row);
	}
}

bool plot_accuracy_timelines(const struct trace *measured, const struct trace *predicted, const char *out, GError **error)
{
	const struct trace *const traces[] = {predicted, measured}; /* from the bottom */
	static const char *const captions[] = {"predicted", "measured"};
	const struct gpu_choice all = {0};
	const double width = FIGURE_WIDTH - 2 * FIGURE_MARGIN, from[] = {0, 0};
	if (!figure_name_check(out, error))
		return false;
	if (measured->gpus != predicted->gpus || measured->gpus_per_node != predicted->gpus_per_node) {
		g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_INPUT, "a trace of %d GPUs beside one of %d: expected a run and its own prediction",
		            measured->gpus, predicted->gpus);
		return false;
	}
	g_autoptr(GArray) rows = rows_new(measured, &all, error);
	if (!rows)
		return false;
	const guint step = typical_step(measured);
	drop_idle(rows, traces, step);
	g_autofree double *y = g_new(double, rows->len + 1);
	const double height = rows_layout(rows, PITCH, GROUP_GAP, y), left = FIGURE_MARGIN + rows_label_width(rows);
	g_autoptr(GString) boxes = g_string_new(NULL), texts = g_string_new(NULL);
	struct palette_use use = {0};
	const double length = (double)MAX(length_of(measured, step), length_of(predicted, step)) / 1e6;
	for (int i = 0; i < 2; i++) {
		append_boxes(traces[i], step_of(traces[i], step), rows, y, &use, boxes);
		g_string_append(texts, "0\t0\t\"\"\t0\n\n\n");
	}
	g_autoptr(legend) legend = legend_new();
	palette_legend(&use, legend);
	const double key = FIGURE_MARGIN + legend_height(legend, width), each = AXIS_BELOW + height + TITLE_HEIGHT, to[] = {length, length};
	g_autoptr(figure) f = figure_new(FIGURE_WIDTH, key + 2 * each);
	struct panel_place places[2];
	for (int i = 0; i < 2; i++) {
		places[i] = (struct panel_place){.left = left, .right = FIGURE_WIDTH - FIGURE_TICK_MARGIN, .bottom = key + i * each + AXIS_BELOW};
		places[i].top = places[i].bottom + height;
		figure_text(f, (places[i].left + places[i].right) / 2, places[i].top + TITLE_HEIGHT / 2, TEXT_CENTRE, TEXT_SIZE, 0, captions[i]);
		rows_bands(rows, f, places[i].left, places[i].right, places[i].bottom, PITCH, y);
		rows_label(rows, f, left, places[i].bottom, y);
	}
	figure_panels(f, places, 2);
	figure_array(f, "from", from, 2);
	figure_array(f, "to", to, 2);
	figure_number(f, "height", height);
	figure_data(f, "boxes", boxes->str);
	figure_data(f, "texts", texts->str);
	figure_data(f, "small_texts", texts->str);
	legend_draw(legend, f, FIGURE_MARGIN, key, width);
	return figure_write(f, "timeline", out, error);
}
