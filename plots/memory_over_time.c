/* HBM in use as the trace's counters recorded it: a panel for each GPU, because GPUs that do the same would cover each other, all on the same scales.
 */
#include "legend.h"
#include "memory.h"
#include "model/error.h"
#include "palette.h"

#include <string.h>

#define PANEL_HEIGHT 64.0
#define PANEL_GAP 10.0
#define AXIS_LEFT 74.0 /* "GPU 12" and the numbers of the axis */
#define AXIS_HEIGHT 36.0

static const struct counter *hbm_counter(const struct trace *trace, int gpu)
{
	for (guint i = 0; i < trace->counters->len; i++) {
		const struct counter *counter = g_ptr_array_index(trace->counters, i);

		if (counter->gpu == gpu && !strcmp(counter->name, "HBM bytes") && counter->samples->len > 0)
			return counter;
	}
	return NULL;
}

/* The counters of the chosen GPUs; empty on error. */
static GPtrArray *chosen_counters(const struct trace *trace, const struct gpu_choice *choice, GError **error)
{
	int n = choice->n ? choice->n : MIN(trace->gpus, ROWS_DEFAULT_GPUS);
	g_autoptr(GArray) rows = rows_new(trace, choice, error); /* knows which GPUs there are */
	GPtrArray *counters = g_ptr_array_new();

	if (!rows)
		return counters;
	for (int i = 0; i < n; i++) {
		const struct counter *counter = hbm_counter(trace, choice->n ? choice->gpus[i] : i);

		if (counter)
			g_ptr_array_add(counters, (gpointer)counter);
	}
	if (!counters->len)
		g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_INPUT, "the trace has no counters \"HBM bytes\" to draw over time");
	return counters;
}

static void append_step(GString *rows, nsec_t ns, double bytes)
{
	g_string_append_printf(rows, "%.6f\t%.9g\n", (double)ns / (double)NSEC_PER_MSEC, bytes / GIB);
}

/* One index a counter: the corners of its staircase between from and to; returns the highest. */
static double append_steps(GString *rows, const struct counter *counter, nsec_t from, nsec_t to)
{
	double now = 0, most = 0;
	bool begun = false;

	for (guint i = 0; i < counter->samples->len; i++) {
		const struct sample *sample = &g_array_index(counter->samples, struct sample, i);

		if (sample->ns >= to)
			break;
		if (sample->ns > from) {
			if (!begun)
				append_step(rows, from, now);
			begun = true;
			append_step(rows, sample->ns, sample->value);
			most = MAX(most, MAX(now, sample->value));
		}
		now = sample->value;
	}
	if (!begun)
		append_step(rows, from, now);
	append_step(rows, to, now);
	g_string_append(rows, "\n\n");
	return MAX(most, now);
}

static bool draw(const struct trace *trace, const GPtrArray *counters, const char *out, GError **error)
{
	double width = FIGURE_WIDTH - 2 * FIGURE_MARGIN, most = (double)trace->hbm_bytes, bottom;
	g_autofree struct panel_place *places = g_new(struct panel_place, counters->len);
	g_autoptr(GString) rows = g_string_new(NULL);
	g_autoptr(legend) legend = legend_new();
	g_autoptr(figure) f = NULL;
	uint32_t rgb = palette_series(0);
	nsec_t from, to;

	legend_add(legend, "HBM in use", &rgb, 1);
	if (trace->hbm_bytes)
		legend_add_line(legend, "capacity", 0);
	bottom = FIGURE_MARGIN + legend_height(legend, width) + AXIS_HEIGHT;
	f = figure_new(FIGURE_WIDTH, bottom + counters->len * (PANEL_HEIGHT + PANEL_GAP) + FIGURE_MARGIN);
	trace_last_step(trace, &from, &to);
	for (guint i = 0; i < counters->len; i++) {
		const struct counter *counter = g_ptr_array_index(counters, i);
		g_autofree char *name = g_strdup_printf("GPU %d", counter->gpu);

		places[i] = (struct panel_place){.left = FIGURE_MARGIN + AXIS_LEFT, .right = FIGURE_WIDTH - FIGURE_TICK_MARGIN};
		places[i].bottom = bottom + (counters->len - 1 - i) * (PANEL_HEIGHT + PANEL_GAP);
		places[i].top = places[i].bottom + PANEL_HEIGHT;
		figure_text(f, FIGURE_MARGIN, (places[i].bottom + places[i].top) / 2, TEXT_LEFT, TEXT_SIZE, 0, name);
		most = MAX(most, append_steps(rows, counter, from, to));
	}
	figure_panels(f, places, (int)counters->len);
	figure_number(f, "from", (double)from / (double)NSEC_PER_MSEC);
	figure_number(f, "to", (double)MAX(to, from + 1) / (double)NSEC_PER_MSEC);
	figure_number(f, "most", most > 0 ? most / GIB * 1.06 : 1);
	figure_number(f, "step", tick_step(most > 0 ? most / GIB : 1, 3));
	figure_number(f, "capacity", (double)trace->hbm_bytes / GIB);
	figure_number(f, "colour", rgb);
	figure_data(f, "steps", rows->str);
	legend_draw(legend, f, FIGURE_MARGIN, bottom - AXIS_HEIGHT, width);
	return figure_write(f, "memory_over_time", out, error);
}

bool plot_memory_over_time(const struct trace *trace, const struct gpu_choice *choice, const char *out, GError **error)
{
	g_autoptr(GPtrArray) counters = NULL;

	if (!figure_name_check(out, error))
		return false;
	counters = chosen_counters(trace, choice, error);
	return counters->len && draw(trace, counters, out, error);
}
