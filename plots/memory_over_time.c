/* HBM in use as the trace's counters recorded it: a staircase for each GPU, and the capacity above them. */
#include "memory.h"
#include "model/error.h"
#include "palette.h"
#include "rows.h"

#include <string.h>

#define PANEL_HEIGHT 200.0
#define AXIS_LEFT 48.0
#define AXIS_HEIGHT 36.0
#define MOST_LINES 24

static GPtrArray *hbm_counters(const struct trace *trace)
{
	GPtrArray *found = g_ptr_array_new();

	for (guint i = 0; i < trace->counters->len && found->len < MOST_LINES; i++) {
		struct counter *counter = g_ptr_array_index(trace->counters, i);

		if (!strcmp(counter->name, "HBM bytes") && counter->samples->len > 0)
			g_ptr_array_add(found, counter);
	}
	return found;
}

/* One index a counter: the corners of its staircase; returns the last sample's time. */
static nsec_t append_steps(GString *rows, const struct counter *counter, nsec_t end)
{
	for (guint i = 0; i < counter->samples->len; i++) {
		const struct sample *sample = &g_array_index(counter->samples, struct sample, i);

		g_string_append_printf(rows, "%.6f\t%.9g\n", (double)sample->ns / (double)NSEC_PER_MSEC, sample->value / GIB);
		if (i + 1 == counter->samples->len && sample->ns < end)
			g_string_append_printf(rows, "%.6f\t%.9g\n", (double)end / (double)NSEC_PER_MSEC, sample->value / GIB);
	}
	g_string_append(rows, "\n\n");
	return g_array_index(counter->samples, struct sample, counter->samples->len - 1).ns;
}

static double most_gib(const GPtrArray *counters, const struct trace *trace)
{
	double most = (double)trace->hbm_bytes / GIB;

	for (guint c = 0; c < counters->len; c++) {
		const struct counter *counter = g_ptr_array_index(counters, c);

		for (guint i = 0; i < counter->samples->len; i++)
			most = MAX(most, g_array_index(counter->samples, struct sample, i).value / GIB);
	}
	return most > 0 ? most : 1;
}

bool plot_memory_over_time(const struct trace *trace, const char *out, GError **error)
{
	double width = FIGURE_WIDTH - 2 * FIGURE_MARGIN, bottom;
	g_autoptr(GPtrArray) counters = hbm_counters(trace);
	g_autoptr(GString) rows = g_string_new(NULL);
	g_autoptr(legend) legend = legend_new();
	g_autoptr(figure) f = NULL;
	double colour[MOST_LINES];
	struct panel_place place;
	nsec_t from, to;

	if (!figure_name_check(out, error))
		return false;
	if (!counters->len) {
		g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_INPUT, "the trace has no counters \"HBM bytes\" to draw over time");
		return false;
	}
	trace_last_step(trace, &from, &to);
	for (guint i = 0; i < counters->len; i++) {
		const struct counter *counter = g_ptr_array_index(counters, i);
		g_autofree char *name = g_strdup_printf("GPU %d", counter->gpu);

		colour[i] = palette_series((int)i);
		legend_add_line(legend, name, palette_series((int)i));
		to = MAX(to, append_steps(rows, counter, to));
	}
	if (trace->hbm_bytes)
		legend_add_line(legend, "capacity, dashed", 0);
	bottom = FIGURE_MARGIN + legend_height(legend, width) + AXIS_HEIGHT;
	f = figure_new(FIGURE_WIDTH, bottom + PANEL_HEIGHT + 2 * FIGURE_MARGIN);
	place = (struct panel_place){FIGURE_MARGIN + AXIS_LEFT, FIGURE_WIDTH - FIGURE_MARGIN, bottom, bottom + PANEL_HEIGHT};
	figure_panels(f, &place, 1);
	figure_array(f, "colour", colour, (int)counters->len);
	figure_number(f, "lines", counters->len);
	figure_number(f, "to", (double)MAX(to, 1) / (double)NSEC_PER_MSEC);
	figure_number(f, "most", most_gib(counters, trace) * 1.05);
	figure_number(f, "capacity", (double)trace->hbm_bytes / GIB);
	figure_data(f, "steps", rows->str);
	legend_draw(legend, f, FIGURE_MARGIN, bottom - AXIS_HEIGHT, width);
	return figure_write(f, "memory_over_time", out, error);
}
