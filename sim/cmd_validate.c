/* esmoe validate: recorded runs beside their own simulation. Nothing here judges, unless a gate is asked for. */
#include "model/command.h"
#include "model/error.h"
#include "traces/kineto.h"
#include "traces/table.h"
#include "used.h"
#include "validate.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

struct options {
	char *format, *trace;
	double max_error; /* percent; NAN: none */
	char **folders;
};

static void options_clear(struct options *o)
{
	g_free(o->format);
	g_free(o->trace);
	g_strfreev(o->folders);
}

static bool parse(struct options *o, enum table_form *form, int argc, char **argv, GError **error)
{
	const GOptionEntry entries[] = {
	    {"format", 0, 0, G_OPTION_ARG_STRING, &o->format, "table, csv or json", "WORD"},
	    {"max-error", 0, 0, G_OPTION_ARG_DOUBLE, &o->max_error, "fail when the step time of a run is further off than this", "PERCENT"},
	    {"trace", 0, 0, G_OPTION_ARG_FILENAME, &o->trace, "of one run: write the simulated steps as PREFIX.rank<N>.json", "PREFIX"},
	    {G_OPTION_REMAINING, 0, 0, G_OPTION_ARG_FILENAME_ARRAY, &o->folders, NULL, NULL},
	    {NULL},
	};
	g_autoptr(GOptionContext) context = g_option_context_new("DIR...");
	g_option_context_add_main_entries(context, entries, NULL);
	g_option_context_set_summary(context,
	                             "Simulates recorded runs again, each on its own machine with its own loads: measured, predicted and error of\n"
	                             "the step, of each stream's busy time and of each kind of stage, medians over the recorded steps;\n"
	                             "and of each tier's memory the most that was taken.");
	g_option_context_set_description(context,
	                                 "A DIR is what 'esmoe run --trace DIR' wrote.\n\nExample:\n  esmoe validate --max-error 15 runs/a runs/b");
	if (!g_option_context_parse(context, &argc, &argv, error) || !table_form_parse(o->format, form, error))
		return false;
	const char *wrong = !o->folders                                    ? "no run given: expected the folders that run --trace wrote"
	                    : !isnan(o->max_error) && !(o->max_error >= 0) ? "--max-error: a percentage from 0 is expected"
	                    : o->trace && g_strv_length(o->folders) > 1    ? "--trace goes with one run"
	                                                                   : NULL;
	if (wrong)
		g_set_error_literal(error, ESMOE_ERROR, ESMOE_ERROR_USAGE, wrong);
	return !wrong;
}

static nsec_t ns_of(double ms)
{
	return (nsec_t)llround(ms * 1e6);
}

/* Three simulations of a run: with CPU Adam as calibrated, and as in the slowest and fastest of its rounds, NULL where those are not known. */
enum { USUAL, SLOWEST, FASTEST, N_PACES };

static void add_rows(struct table *table, const char *run, GArray *const paces[N_PACES])
{
	const GArray *rows = paces[USUAL];
	static const char *const words[] = {[ACCURACY_STEP] = "step", [ACCURACY_STREAM] = "stream", [ACCURACY_STAGE] = "stage"};
	for (guint i = 0; i < rows->len; i++) {
		const struct accuracy *a = &g_array_index(rows, struct accuracy, i);
		table_text(table, run);
		table_text(table, words[a->of]);
		table_text(table, a->name);
		table_ms(table, ns_of(a->measured_ms));
		table_percent(table, ns_of(a->measured_spread * 1e3), ns_of(1e3));
		table_ms(table, ns_of(a->predicted_ms));
		if (a->measured_ms > 0)
			table_percent(table, ns_of(accuracy_error(a) * 1e3), ns_of(1e3));
		else
			table_nothing(table);
		table_nothing(table);
		table_nothing(table);
		for (int pace = SLOWEST; pace <= FASTEST; pace++)
			if (paces[pace])
				table_ms(table, ns_of(g_array_index(paces[pace], struct accuracy, i).predicted_ms));
			else
				table_nothing(table);
	}
}

static void add_memory(struct table *table, const char *run, const GArray *rows)
{
	for (guint i = 0; i < rows->len; i++) {
		const struct used *u = &g_array_index(rows, struct used, i);
		table_text(table, run);
		table_text(table, "memory");
		table_text(table, memory_tier_name(u->tier));
		for (int j = 0; j < 3; j++)
			table_nothing(table);
		if (u->measured_bytes)
			table_percent(table, ns_of(used_error(u) * 1e3), ns_of(1e3));
		else
			table_nothing(table);
		table_count(table, u->measured_bytes);
		table_count(table, u->predicted_bytes);
		table_nothing(table);
		table_nothing(table);
	}
}

static void paces_clear(GArray *paces[N_PACES])
{
	for (int i = 0; i < N_PACES; i++)
		if (paces[i])
			g_array_unref(paces[i]);
}

/* Adds those beside the usual one; the streams and kinds of stages are the same, since the schedule is. */
static bool add_paces(const struct recorded *r, GArray *paces[N_PACES], GError **error)
{
	const struct machine *m = r->scenario->machine;
	const double speed[N_PACES] = {1, m->adam_slowest, m->adam_fastest};
	if (speed[SLOWEST] == 1 && speed[FASTEST] == 1)
		return true;
	for (int pace = SLOWEST; pace <= FASTEST; pace++) {
		g_autoptr(trace) predicted = recorded_simulate(r, speed[pace], error);
		if (!predicted)
			return false;
		paces[pace] = accuracy_of_traces(r->trace, predicted);
	}
	return true;
}

/* The step's error of one run, with its rows in the table. */
static bool validate(const struct options *o, const char *folder, struct table *table, double *step_error, GError **error)
{
	struct recorded r;
	if (!recorded_read(folder, &r, error))
		return false;
	g_autofree char *name = g_path_get_basename(folder);
	g_autoptr(trace) predicted = recorded_simulate(&r, 1, error);
	g_autoptr(GArray) memory = predicted ? recorded_memory(folder, &r, error) : NULL;
	GArray *paces[N_PACES] = {memory ? accuracy_of_traces(r.trace, predicted) : NULL};
	bool ok = memory && (!o->trace || kineto_write(predicted, o->trace, false, error)) && add_paces(&r, paces, error);
	if (ok) {
		*step_error = accuracy_error(&g_array_index(paces[USUAL], struct accuracy, 0));
		add_rows(table, name, paces);
		add_memory(table, name, memory);
		if (!r.scenario->machine->measured)
			fprintf(stderr, "%s: its machine was not calibrated, so costs are the roofline's\n", folder);
	} else {
		g_prefix_error(error, "%s: ", folder);
	}
	paces_clear(paces);
	recorded_clear(&r);
	return ok;
}

static bool gate(const struct options *o, const double *errors, int n, GError **error)
{
	double sum = 0;
	int worst = 0;
	for (int i = 0; i < n; i++) {
		sum += fabs(errors[i]);
		worst = fabs(errors[i]) > fabs(errors[worst]) ? i : worst;
	}
	fprintf(stderr, "step time of %d run%s: mean error %.1f %%, largest %.1f %% (%s)\n", n, n > 1 ? "s" : "", 100 * sum / n,
	        100 * fabs(errors[worst]), o->folders[worst]);
	if (isnan(o->max_error) || 100 * fabs(errors[worst]) <= o->max_error)
		return true;
	g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_INPUT, "%s: the step's prediction is %.1f %% off; --max-error allows %g %%", o->folders[worst],
	            100 * errors[worst], o->max_error);
	return false;
}

bool cmd_validate(int argc, char **argv, GError **error)
{
	static const char *const columns[] = {"run",
	                                      "of",
	                                      "name",
	                                      "measured_ms",
	                                      "spread_percent",
	                                      "predicted_ms",
	                                      "error_percent",
	                                      "measured_bytes",
	                                      "predicted_bytes",
	                                      ".slowest_ms",
	                                      ".fastest_ms",
	                                      NULL};
	autoclear(options) o = {.max_error = NAN};
	enum table_form form = TABLE_TEXT;
	if (!parse(&o, &form, argc, argv, error))
		return false;
	int n = (int)g_strv_length(o.folders);
	g_autofree double *errors = g_new0(double, n);
	g_autoptr(table) table = table_new(columns);
	for (int i = 0; i < n; i++)
		if (!validate(&o, o.folders[i], table, &errors[i], error))
			return false;
	g_autoptr(GString) out = g_string_new(NULL);
	table_print(table, form, out);
	if (form == TABLE_JSON)
		g_string_append_c(out, '\n');
	fputs(out->str, stdout);
	return gate(&o, errors, n, error);
}
