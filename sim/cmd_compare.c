/* esmoe compare: a small grid as a table to read: one configuration with a line a policy, or several with a column a policy. */
#include "figure.h"
#include "grid.h"
#include "model/command.h"
#include "report.h"

#include <stdio.h>

struct options {
	struct whatif whatif;
	struct how how;
	char *format, *plot;
};

static void options_clear(struct options *o)
{
	whatif_clear(&o->whatif);
	how_clear(&o->how);
	g_free(o->format);
	g_free(o->plot);
}

static bool parse(struct options *o, int argc, char **argv, GError **error)
{
	const GOptionEntry entries[] = {
	    {"format", 0, 0, G_OPTION_ARG_STRING, &o->format, "table, csv or json", "WORD"},
	    {"plot", 0, 0, G_OPTION_ARG_FILENAME, &o->plot, "draw the throughput, .png, .svg or .pdf", "FILE"},
	    {NULL},
	};
	g_autoptr(GOptionContext) context = g_option_context_new(NULL);
	whatif_add(&o->whatif, context);
	how_add(&o->how, context);
	g_option_context_add_main_entries(context, entries, NULL);
	g_option_context_set_summary(context, "Predicts several policies side by side. -m, -M and -p take several names with\n"
	                                      "commas between, --gpus and --experts lists and ranges: 1,2,4 or 8:64:x2.");
	g_option_context_set_description(context, "Example:\n  esmoe compare -m gpt-moe-l -M a100-40g-x4 -p es-moe,tutel --experts 8:64:x2");
	return whatif_parse(context, argc, argv, error) && how_check(&o->how, &o->whatif, error);
}

static bool keep(struct row *row, void *user, GError **error)
{
	g_array_append_val((GArray *)user, *row);
	row->why = NULL;
	return true;
}

static char *csv_of(const GArray *rows)
{
	GString *out = g_string_new(report_csv_header());
	for (guint i = 0; i < rows->len; i++)
		report_csv(out, &g_array_index(rows, struct row, i));
	return g_string_free(out, FALSE);
}

static char *json_of(const GArray *rows)
{
	GString *out = g_string_new("[\n");
	for (guint i = 0; i < rows->len; i++) {
		report_json(out, &g_array_index(rows, struct row, i));
		g_string_append(out, i + 1 < rows->len ? ",\n" : "\n");
	}
	g_string_append(out, "]\n");
	return g_string_free(out, FALSE);
}

static char *table_of(const GArray *rows, int policies)
{
	GString *out = g_string_new(NULL);
	const struct row *first = &g_array_index(rows, struct row, 0);
	if ((int)rows->len == policies)
		report_policies(out, first, policies);
	else
		report_matrix(out, first, (int)rows->len, policies);
	return g_string_free(out, FALSE);
}

/* A matrix tells what does not fit by itself; what is invalid is always explained. */
static void print_reasons(const GArray *rows, bool all)
{
	for (guint i = 0; i < rows->len; i++) {
		const struct row *row = &g_array_index(rows, struct row, i);
		if (row->status == STATUS_INVALID || (all && row->why))
			fprintf(stderr, "%s, %s on %s, gpus %d, experts %d: %s\n", row->policy, row->model, row->machine, row->gpus, row->experts,
			        row->why);
	}
}

bool cmd_compare(int argc, char **argv, GError **error)
{
	autoclear(options) o = {0};
	enum format format;
	if (!parse(&o, argc, argv, error) || !format_parse(o.format, &format, error))
		return false;
	g_autoptr(grid) grid = grid_new(&o.whatif, &o.how, error);
	if (!grid)
		return false;
	g_autoptr(GArray) rows = g_array_new(FALSE, FALSE, sizeof(struct row));
	g_array_set_clear_func(rows, (GDestroyNotify)row_clear);
	if (!grid_run(grid, 0, keep, rows, error))
		return false;
	g_autofree char *csv = csv_of(rows);
	g_autofree char *text = format == FORMAT_CSV ? g_strdup(csv) : format == FORMAT_JSON ? json_of(rows) : table_of(rows, grid_policies(grid));
	fputs(text, stdout);
	if (format == FORMAT_TABLE)
		print_reasons(rows, (int)rows->len == grid_policies(grid));
	return !o.plot || figure_throughput_text(csv, o.plot, error);
}
