/* One panel. Runs that compute the same lie on top of each other, which is what the figure is to show: each line is narrower than the one below it.
 */
#include "losses.h"

#include "legend.h"
#include "model/error.h"
#include "palette.h"

#define WIDTH 460.0
#define PANEL_HEIGHT 170.0
#define AXIS_LEFT 48.0
#define AXIS_BELOW 36.0
#define THINNEST 1.4
#define WIDER 2.4
#define STEPS_MOST 1e15
#define LOSS_MOST 1e9

struct range {
	double from, to, most;
};

/* One index a run. */
static bool append_curve(const struct csv *csv, GString *rows, struct range *range, GError **error)
{
	int step_column = csv_column(csv, "step", error), loss_column = step_column < 0 ? -1 : csv_column(csv, "loss", error);
	double step, loss, last = -1;

	if (loss_column < 0)
		return false;
	for (int row = 0; row < csv_rows(csv); row++) {
		if (!csv_number(csv, row, step_column, 0, STEPS_MOST, &step, error) || !csv_number(csv, row, loss_column, 0, LOSS_MOST, &loss, error))
			return false;
		if (step <= last)
			return csv_complain(csv, row, step_column, "a step after the one above is expected", error);
		last = step;
		range->from = MIN(range->from, step);
		range->to = MAX(range->to, step);
		range->most = MAX(range->most, loss);
		g_string_append_printf(rows, "%.15g\t%.9g\n", step, loss);
	}
	if (last < 0)
		g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_INPUT, "there are no steps to draw");
	g_string_append(rows, "\n\n");
	return last >= 0;
}

static bool draw(const struct losses_input *runs, int n, const GString *rows, const struct range *range, const char *out, GError **error)
{
	double width = WIDTH - 2 * FIGURE_MARGIN, key, most = range->most > 0 ? range->most : 1;
	g_autofree double *colours = g_new(double, (size_t)n), *widths = g_new(double, (size_t)n);
	g_autoptr(legend) legend = legend_new();
	g_autoptr(figure) f = NULL;
	struct panel_place place;

	for (int i = 0; i < n; i++) {
		legend_add_line(legend, runs[i].name, palette_series(i));
		colours[i] = palette_series(i);
		widths[i] = THINNEST + WIDER * (n - 1 - i) / MAX(n - 1, 1);
	}
	key = FIGURE_MARGIN + legend_height(legend, width);
	f = figure_new(WIDTH, key + AXIS_BELOW + PANEL_HEIGHT + FIGURE_MARGIN);
	place = (struct panel_place){.left = FIGURE_MARGIN + AXIS_LEFT,
	                             .right = WIDTH - FIGURE_TICK_MARGIN,
	                             .bottom = key + AXIS_BELOW,
	                             .top = key + AXIS_BELOW + PANEL_HEIGHT};
	figure_panels(f, &place, 1);
	figure_number(f, "series", n);
	figure_array(f, "colour", colours, n);
	figure_array(f, "width", widths, n);
	figure_number(f, "x_from", range->from);
	figure_number(f, "x_to", MAX(range->to, range->from + 1));
	figure_number(f, "y_to", most * 1.06);
	figure_number(f, "y_step", tick_step(most, 5));
	figure_data(f, "curves", rows->str);
	legend_draw(legend, f, FIGURE_MARGIN, key, width);
	return figure_write(f, "losses", out, error);
}

bool plot_losses(const struct losses_input *runs, int n, const char *out, GError **error)
{
	g_autoptr(GString) rows = g_string_new(NULL);
	struct range range = {.from = STEPS_MOST};

	g_assert(n > 0);
	if (!figure_name_check(out, error))
		return false;
	for (int i = 0; i < n; i++)
		if (!append_curve(runs[i].csv, rows, &range, error))
			return false;
	return draw(runs, n, rows, &range, out, error);
}
