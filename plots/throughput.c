/* Small multiples: panels in a grid, each with its own vertical scale, because models differ tenfold; the horizontal axis doubles. What ran out of
 * memory has no height on that scale, so it stands in a band of its own under the axis, each policy on its own line, and hides nobody's cross:
 *
 *     tokens/s |  o--o
 *              |       \o
 *            0 +-----------
 *          OOM |       x  x    policy A
 *              |          x    policy B
 *                8 16 32 64 */
#include "throughput.h"
#include "legend.h"
#include "model/error.h"
#include "palette.h"
#include "sweep_row.h"

#include <math.h>
#include <string.h>

#define MOST_PANELS 36
#define MOST_POLICIES 24
#define PANEL_COLUMNS 3
#define PANEL_HEIGHT 150.0
#define COLUMN_GAP 44.0
#define AXIS_LEFT 48.0
#define AXIS_BELOW 36.0
#define TITLE_HEIGHT 22.0
#define OOM_PITCH 9.0
#define OOM_MOST 45.0 /* height of the crosses of all policies */
#define LONE_WIDTH 460.0
#define OOM_EDGE 4.0
#define THOUSANDS_FROM 10000.0
#define TICK_SIZE 8.0 /* of style.gp */

struct point {
	int policy, panel, x;
	double tokens_per_s;
	enum sweep_status status;
};

struct throughput {
	GPtrArray *policies, *panels; /* names, in order of first appearance, owned */
	GArray *points;               /* struct point, by panel, policy, x */
	bool over_gpus;
	double unit;                /* tokens/s in one step of the vertical axis' numbers */
	int *oom_line, n_oom_lines; /* the band's line of each policy, -1: none */
	double oom_pitch, band;     /* points: from line to line, and the band's height */
};

struct variety {
	bool model, machine, gpus, experts;
};

static struct variety variety_of(const GArray *records)
{
	struct variety v = {0};
	const struct sweep_row *first = &g_array_index(records, struct sweep_row, 0);

	for (guint i = 1; i < records->len; i++) {
		const struct sweep_row *r = &g_array_index(records, struct sweep_row, i);

		v.model |= strcmp(r->model, first->model) != 0;
		v.machine |= strcmp(r->machine, first->machine) != 0;
		v.gpus |= r->gpus != first->gpus;
		v.experts |= r->experts != first->experts;
	}
	return v;
}

static char *panel_name(const struct sweep_row *r, struct variety v, bool over_gpus)
{
	GString *name = g_string_new(r->model);

	if (v.machine)
		g_string_append_printf(name, ", %s", r->machine);
	if (over_gpus && v.experts)
		g_string_append_printf(name, ", %d experts", (int)r->experts);
	if (!over_gpus && v.gpus)
		g_string_append_printf(name, ", %d GPU%s", (int)r->gpus, r->gpus > 1 ? "s" : "");
	return g_string_free(name, FALSE);
}

static int compare_points(gconstpointer a, gconstpointer b)
{
	const struct point *p = a, *q = b;

	if (p->panel != q->panel)
		return p->panel - q->panel;
	if (p->policy != q->policy)
		return p->policy - q->policy;
	return (p->x > q->x) - (p->x < q->x);
}

static bool sizes_check(const struct throughput *chart, GError **error)
{
	if (chart->panels->len > MOST_PANELS)
		g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_INPUT,
		            "more than %d panels: too much varies beside policy and %s; draw a part of the rows", MOST_PANELS,
		            chart->over_gpus ? "GPUs" : "experts");
	else if (chart->policies->len > MOST_POLICIES)
		g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_INPUT, "more than %d policies: lines could not be told apart", MOST_POLICIES);
	return chart->panels->len <= MOST_PANELS && chart->policies->len <= MOST_POLICIES;
}

static bool points_check(const struct throughput *chart, GError **error)
{
	for (guint i = 1; i < chart->points->len; i++) {
		const struct point *p = &g_array_index(chart->points, struct point, i);

		if (compare_points(p - 1, p) == 0) {
			g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_INPUT, "two rows for policy '%s', %s, %d %s: a figure shows one",
			            (char *)g_ptr_array_index(chart->policies, p->policy), (char *)g_ptr_array_index(chart->panels, p->panel), p->x,
			            chart->over_gpus ? "GPUs" : "experts");
			return false;
		}
	}
	return true;
}

static void oom_lines(struct throughput *chart)
{
	chart->oom_line = g_new(int, chart->policies->len);
	for (guint policy = 0; policy < chart->policies->len; policy++) {
		bool any = false;

		for (guint i = 0; i < chart->points->len; i++) {
			const struct point *p = &g_array_index(chart->points, struct point, i);

			any |= p->policy == (int)policy && p->status == SWEEP_OOM;
		}
		chart->oom_line[policy] = any ? chart->n_oom_lines++ : -1;
	}
	if (chart->n_oom_lines) {
		chart->oom_pitch = MIN(OOM_PITCH, OOM_MOST / chart->n_oom_lines);
		chart->band = chart->n_oom_lines * chart->oom_pitch + 2 * OOM_EDGE;
	}
}

static bool chart_fill(struct throughput *chart, const GArray *records, enum throughput_x x, GError **error)
{
	struct variety v;

	if (!records->len) {
		g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_INPUT, "there are no rows to draw");
		return false;
	}
	v = variety_of(records);
	chart->over_gpus = x == THROUGHPUT_X_GPUS || (x == THROUGHPUT_X_AUTO && v.gpus && !v.experts);
	for (guint i = 0; i < records->len; i++) {
		const struct sweep_row *r = &g_array_index(records, struct sweep_row, i);
		g_autofree char *panel = panel_name(r, v, chart->over_gpus);
		struct point p = {.x = (int)(chart->over_gpus ? r->gpus : r->experts), .tokens_per_s = r->tokens_per_s, .status = r->status};

		p.policy = name_index(chart->policies, r->policy);
		p.panel = name_index(chart->panels, panel);
		g_array_append_val(chart->points, p);
		if (!sizes_check(chart, error))
			return false;
	}
	g_array_sort(chart->points, compare_points);
	oom_lines(chart);
	return points_check(chart, error);
}

/* The scales of one panel. */
struct scale {
	double x_from, x_to, y_to, y_step, band;
	GString *ticks;
};

static int compare_ints(gconstpointer a, gconstpointer b)
{
	return *(const int *)a - *(const int *)b;
}

/* Ticks stand at the values that were tried, except where their numbers would touch. */
static void scale_ticks(struct scale *scale, GArray *xs, double width)
{
	double taken = -HUGE_VAL;

	g_array_sort(xs, compare_ints);
	for (guint i = 0; i < xs->len; i++) {
		int x = g_array_index(xs, int, i);
		g_autofree char *word = g_strdup_printf("%d", x);
		double at = (log2(x) - scale->x_from) / (scale->x_to - scale->x_from) * width, half = text_width(word, TICK_SIZE) / 2 + 2;
		char number[G_ASCII_DTOSTR_BUF_SIZE];

		if (at - half < taken)
			continue;
		taken = at + half;
		g_string_append_printf(scale->ticks, "%s\"%s\" %s", scale->ticks->len ? ", " : "", word,
		                       g_ascii_formatd(number, sizeof number, "%.8f", log2(x)));
	}
}

static void scale_fit(const struct throughput *chart, int panel, double width, struct scale *scale)
{
	g_autoptr(GArray) xs = g_array_new(FALSE, FALSE, sizeof(int));
	double most = 0, least_x = HUGE_VAL, most_x = -HUGE_VAL, edge;

	for (guint i = 0; i < chart->points->len; i++) {
		const struct point *p = &g_array_index(chart->points, struct point, i);

		if (p->panel != panel)
			continue;
		most = MAX(most, p->tokens_per_s / chart->unit);
		least_x = MIN(least_x, log2(p->x));
		most_x = MAX(most_x, log2(p->x));
		g_array_append_val(xs, p->x);
	}
	most = most > 0 ? most : 1;
	edge = MAX(0.25, (most_x - least_x) * 0.06);
	*scale = (struct scale){
	    .x_from = least_x - edge, .x_to = most_x + edge, .y_to = most * 1.06, .y_step = tick_step(most, 5), .ticks = g_string_new(NULL)};
	scale->band = scale->y_to * chart->band / PANEL_HEIGHT;
	scale_ticks(scale, xs, width);
}

/* One index a panel and policy: the line's points, broken where memory ran out; and the crosses. Never empty, because gnuplot refuses that. */
static void series_rows(const struct throughput *chart, int panel, int policy, const struct scale *scale, GString *lines, GString *crosses)
{
	double per_point = scale->y_to / PANEL_HEIGHT;

	g_string_append(lines, "NaN\tNaN\n");
	g_string_append(crosses, "NaN\tNaN\n");
	for (guint i = 0; i < chart->points->len; i++) {
		const struct point *p = &g_array_index(chart->points, struct point, i);

		if (p->panel != panel || p->policy != policy)
			continue;
		if (p->status == SWEEP_OK)
			g_string_append_printf(lines, "%.8f\t%.8g\n", log2(p->x), p->tokens_per_s / chart->unit);
		else
			g_string_append(lines, "NaN\tNaN\n");
		if (p->status == SWEEP_OOM)
			g_string_append_printf(crosses, "%.8f\t%.8g\n", log2(p->x),
			                       -(OOM_EDGE + (chart->oom_line[policy] + 0.5) * chart->oom_pitch) * per_point);
	}
	g_string_append(lines, "\n\n");
	g_string_append(crosses, "\n\n");
}

/* Thousands when every panel has them, so that all panels share one unit. */
static double unit_of(const struct throughput *chart)
{
	for (guint panel = 0; panel < chart->panels->len; panel++) {
		double most = 0;

		for (guint i = 0; i < chart->points->len; i++) {
			const struct point *p = &g_array_index(chart->points, struct point, i);

			if (p->panel == (int)panel)
				most = MAX(most, p->tokens_per_s);
		}
		if (most > 0 && most < THOUSANDS_FROM)
			return 1;
	}
	return 1000;
}

static void panels_write(const struct throughput *chart, struct figure *f, const struct panel_place *places)
{
	int n = (int)chart->panels->len;
	g_autofree double *x_from = g_new(double, n), *x_to = g_new(double, n), *y_to = g_new(double, n), *y_step = g_new(double, n),
	                  *band = g_new(double, n);
	g_auto(GStrv) ticks = g_new0(char *, n + 1);
	g_autoptr(GString) lines = g_string_new(NULL), crosses = g_string_new(NULL);

	for (int i = 0; i < n; i++) {
		double width = places[i].right - places[i].left;
		g_autofree char *title = text_fit(g_ptr_array_index(chart->panels, i), TEXT_SIZE, width);
		struct scale scale;

		scale_fit(chart, i, width, &scale);
		x_from[i] = scale.x_from;
		x_to[i] = scale.x_to;
		y_to[i] = scale.y_to;
		y_step[i] = scale.y_step;
		band[i] = scale.band;
		ticks[i] = g_string_free(scale.ticks, FALSE);
		for (guint policy = 0; policy < chart->policies->len; policy++)
			series_rows(chart, i, (int)policy, &scale, lines, crosses);
		figure_text(f, (places[i].left + places[i].right) / 2, places[i].top + TITLE_HEIGHT / 2, TEXT_CENTRE, TEXT_SIZE, 0, title);
		if (chart->n_oom_lines) {
			figure_box(f, places[i].left, places[i].bottom, width, chart->band, 0xF0F0F0);
			figure_text(f, places[i].left - 5, places[i].bottom + chart->band / 2, TEXT_RIGHT, TICK_SIZE, 0, "OOM");
		}
	}
	figure_array(f, "x_from", x_from, n);
	figure_array(f, "x_to", x_to, n);
	figure_array(f, "y_to", y_to, n);
	figure_array(f, "y_step", y_step, n);
	figure_array(f, "band", band, n);
	figure_strings(f, "ticks", ticks, n);
	figure_data(f, "lines", lines->str);
	figure_data(f, "crosses", crosses->str);
}

static void series_write(const struct throughput *chart, struct figure *f)
{
	int n = (int)chart->policies->len;
	g_autofree double *colours = g_new(double, n), *markers = g_new(double, n);

	for (int i = 0; i < n; i++) {
		colours[i] = palette_series(i);
		markers[i] = palette_marker(i);
	}
	figure_number(f, "series", n);
	figure_array(f, "colour", colours, n);
	figure_array(f, "marker", markers, n);
	figure_string(f, "x_label", chart->over_gpus ? "GPUs" : "experts");
	figure_string(f, "y_label", chart->unit > 1 ? "thousand tokens/s" : "tokens/s");
}

static bool chart_draw(const struct throughput *chart, const char *out, GError **error)
{
	int n = (int)chart->panels->len, columns = n == 4 ? 2 : MIN(n, PANEL_COLUMNS), rows = (n + columns - 1) / columns;
	double whole = n > 1 ? FIGURE_WIDTH : LONE_WIDTH, width = whole - 2 * FIGURE_MARGIN,
	       plot_width = (width - AXIS_LEFT - (FIGURE_TICK_MARGIN - FIGURE_MARGIN) - (columns - 1) * COLUMN_GAP) / columns;
	double plot_height = PANEL_HEIGHT + chart->band, key;
	g_autofree struct panel_place *places = g_new(struct panel_place, n);
	g_autoptr(legend) legend = legend_new();
	g_autoptr(figure) f = NULL;

	for (guint i = 0; i < chart->policies->len; i++)
		legend_add_marker(legend, g_ptr_array_index(chart->policies, i), palette_marker((int)i), palette_series((int)i));
	if (chart->n_oom_lines)
		legend_add_cross(legend, "out of memory", PALETTE_FAINT);
	key = FIGURE_MARGIN + legend_height(legend, width);
	f = figure_new(whole, key + rows * (plot_height + AXIS_BELOW + TITLE_HEIGHT));
	for (int i = 0; i < n; i++) {
		places[i].left = FIGURE_MARGIN + AXIS_LEFT + i % columns * (plot_width + COLUMN_GAP);
		places[i].right = places[i].left + plot_width;
		places[i].bottom = key + (rows - 1 - i / columns) * (plot_height + AXIS_BELOW + TITLE_HEIGHT) + AXIS_BELOW;
		places[i].top = places[i].bottom + plot_height;
	}
	figure_panels(f, places, n);
	figure_number(f, "columns", columns);
	panels_write(chart, f, places);
	series_write(chart, f);
	legend_draw(legend, f, FIGURE_MARGIN, key, width);
	return figure_write(f, "throughput", out, error);
}

struct throughput *throughput_new(struct csv *const *files, int n_files, enum throughput_x x, GError **error)
{
	g_autoptr(GArray) records = g_array_new(FALSE, FALSE, sizeof(struct sweep_row));
	g_autoptr(throughput) chart = g_new0(struct throughput, 1);

	chart->policies = g_ptr_array_new_with_free_func(g_free);
	chart->panels = g_ptr_array_new_with_free_func(g_free);
	chart->points = g_array_new(FALSE, FALSE, sizeof(struct point));
	for (int i = 0; i < n_files; i++)
		if (!sweep_rows_read(files[i], records, error))
			return NULL;
	if (!chart_fill(chart, records, x, error))
		return NULL;
	chart->unit = unit_of(chart);
	return g_steal_pointer(&chart);
}

void throughput_free(struct throughput *chart)
{
	if (!chart)
		return;
	g_ptr_array_unref(chart->policies);
	g_ptr_array_unref(chart->panels);
	g_array_unref(chart->points);
	g_free(chart->oom_line);
	g_free(chart);
}

bool plot_throughput(struct csv *const *files, int n_files, enum throughput_x x, const char *out, GError **error)
{
	g_autoptr(throughput) chart = NULL;

	if (!figure_name_check(out, error))
		return false;
	chart = throughput_new(files, n_files, x, error);
	return chart && chart_draw(chart, out, error);
}
