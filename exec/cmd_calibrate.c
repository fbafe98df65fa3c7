/* esmoe calibrate: the machine it runs on, measured, as an .ini to predict with. */
#include "calibrate.h"
#include "model/command.h"
#include "model/error.h"
#include "model/whatif.h"
#include "traces/outfile.h"
#include "traces/progress.h"

#include <stdio.h>
#include <string.h>

enum { STEPS_MOST = 1000 };

struct options {
	struct whatif whatif;
	char *device, *output, *ssd, *steps;
};

static void options_clear(struct options *o)
{
	whatif_clear(&o->whatif);
	g_free(o->device);
	g_free(o->output);
	g_free(o->ssd);
	g_free(o->steps);
}

static bool parse(struct options *o, int *steps, int argc, char **argv, GError **error)
{
	const GOptionEntry entries[] = {
	    {"device", 0, 0, G_OPTION_ARG_STRING, &o->device, "host: CPU threads as virtual GPUs (default); cuda: real ones", "NAME"},
	    {"output", 'o', 0, G_OPTION_ARG_FILENAME, &o->output, "the measured machine (default: printed)", "FILE.ini"},
	    {"ssd", 0, 0, G_OPTION_ARG_FILENAME, &o->ssd, "its disk is measured (default: a temporary folder)", "DIR"},
	    {"steps", 0, 0, G_OPTION_ARG_STRING, &o->steps, "measured in each run (default 8)", "N"},
	    {NULL},
	};
	g_autoptr(GOptionContext) context = g_option_context_new(NULL);
	whatif_add(&o->whatif, context);
	g_option_context_add_main_entries(context, entries, NULL);
	g_option_context_set_summary(context, "Measures this machine with short runs of a network: each kind of stage over its range of sizes,\n"
	                                      "copies and Adam alone and together, collectives, the SSD, launches and waits. -M is the\n"
	                                      "machine whose other values stay as they are; no policy is needed.");
	g_option_context_set_description(
	    context, "Example:\n  esmoe calibrate -m tiny-moe -M host -o here.ini\n  esmoe predict -m tiny-moe -M here.ini -p es-moe");
	if (!whatif_parse(context, argc, argv, error) || !whatif_count("steps", o->steps, 1, STEPS_MOST, steps, error))
		return false;
	if (o->whatif.policy) {
		g_set_error_literal(error, ESMOE_ERROR, ESMOE_ERROR_USAGE, "-p: calibrate chooses its own policies");
		return false;
	}
	o->whatif.policy = g_strdup("static");
	if (!o->device)
		o->device = g_strdup("host");
	return true;
}

/* Memory is this program's, and the host device computes in fp32, whatever the machine says of a GPU. */
static char **overrides(const struct options *o)
{
	g_autoptr(GStrvBuilder) set = g_strv_builder_new();
	g_strv_builder_add(set, "software.runtime=esmoe");
	if (g_str_equal(o->device, "host"))
		g_strv_builder_add_many(set, "software.element_bytes=4", "policy.gradient_bytes=4", NULL);
	if (o->whatif.set)
		g_strv_builder_addv(set, (const char **)o->whatif.set);
	return g_strv_builder_end(set);
}

/* A bar, or lines for a log. */
static void show(int done, int total, const char *what, void *user)
{
	struct progress *p = user;
	p->total = total;
	progress_step(p);
	if (!p->shown)
		fprintf(stderr, "%3d/%d  %5.1f s  %s\n", done, total, progress_seconds(p), what);
}

/* NULL: printed. */
static bool deliver(const struct machine *m, struct outfile *file, GError **error)
{
	g_autofree char *text = machine_ini(m);
	if (!file) {
		fputs(text, stdout);
		return true;
	}
	return outfile_write(file, text, strlen(text), error) && outfile_finish(file, error) && outfile_commit(file, error);
}

bool cmd_calibrate(int argc, char **argv, GError **error)
{
	autoclear(options) o = {0};
	struct scenario_options asked;
	struct progress progress = {0};
	struct calibrate_options how = {.steps = 8, .progress = show, .user = &progress};
	if (!parse(&o, &how.steps, argc, argv, error) || !whatif_scenario(&o.whatif, &asked, error))
		return false;
	g_auto(GStrv) set = overrides(&o);
	asked.set = (const char *const *)set;
	g_autoptr(machine) m = machine_load(asked.machine, asked.set, error);
	how.device = o.device;
	how.ssd = o.ssd;
	/* opened before the work, so that it is not in vain */
	g_autoptr(outfile) file = m && o.output ? outfile_new(o.output, false, error) : NULL;
	progress_init(&progress, 0, 1);
	bool ok = m && (file || !o.output) && calibrate(&asked, &how, m, error);
	progress_clear(&progress);
	return ok && deliver(m, file, error);
}
