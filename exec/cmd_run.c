/* esmoe run: one configuration, trained for real. Results, a line a step, go to stdout; the bar to stderr. */
#include "device.h"
#include "model/command.h"
#include "model/error.h"
#include "model/whatif.h"
#include "run.h"
#include "traces/progress.h"

#include <math.h>
#include <stdio.h>

enum { STEPS_MOST = 1 << 30, TRACE_STEPS_MOST = 4096, RENDEZVOUS_MOST_S = 86400 };

struct options {
	struct whatif whatif;
	char *device, *data, *trace, *save, *resume, *ssd, *rendezvous;
	char *steps, *save_every, *trace_steps, *rendezvous_timeout;
	struct launched launched;
	double lr, balance, z;
	gboolean synthetic, apart;
};

static void options_clear(struct options *o)
{
	char **texts[] = {&o->device,
	                  &o->data,
	                  &o->trace,
	                  &o->save,
	                  &o->resume,
	                  &o->ssd,
	                  &o->steps,
	                  &o->save_every,
	                  &o->trace_steps,
	                  &o->rendezvous,
	                  &o->rendezvous_timeout};
	whatif_clear(&o->whatif);
	launched_clear(&o->launched);
	for (size_t i = 0; i < G_N_ELEMENTS(texts); i++)
		g_free(*texts[i]);
}

static bool wrong(GError **error, const char *what)
{
	g_set_error_literal(error, ESMOE_ERROR, ESMOE_ERROR_USAGE, what);
	return false;
}

static bool check_weight(const char *option, double value, double most, GError **error)
{
	if (isfinite(value) && value >= 0 && value <= most)
		return true;
	g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_USAGE, "--%s: expected a number from 0 to %g", option, most);
	return false;
}

static bool check(struct options *o, struct run_options *run, GError **error)
{
	int steps = 100, save_every = 100, trace_steps = 20, rendezvous_s = 120;
	if (!whatif_count("steps", o->steps, 1, STEPS_MOST, &steps, error) ||
	    !whatif_count("save-every", o->save_every, 1, STEPS_MOST, &save_every, error) ||
	    !whatif_count("trace-steps", o->trace_steps, 1, TRACE_STEPS_MOST, &trace_steps, error) ||
	    !whatif_count("rendezvous-timeout", o->rendezvous_timeout, 1, RENDEZVOUS_MOST_S, &rendezvous_s, error) ||
	    !check_weight("lr", o->lr, 10, error) || !check_weight("balance", o->balance, 100, error) || !check_weight("z", o->z, 100, error))
		return false;
	if (!o->data == !o->synthetic)
		return wrong(error, "give --data FILE or --synthetic, one of them");
	if (o->save_every && !o->save)
		return wrong(error, "--save-every goes with --save DIR");
	if (!launched_find(g_getenv, o->rendezvous, &o->launched, error))
		return false;
	*run = (struct run_options){.device = o->device ? o->device : "host",
	                            .data = o->data,
	                            .steps = (uint64_t)steps,
	                            .lr = (float)o->lr,
	                            .balance = (float)o->balance,
	                            .z = (float)o->z,
	                            .trace = o->trace,
	                            .trace_steps = trace_steps,
	                            .save = o->save,
	                            .save_every = (uint64_t)save_every,
	                            .resume = o->resume,
	                            .impose = o->whatif.routing != NULL,
	                            .ssd = o->ssd,
	                            .launched = &o->launched,
	                            .apart = o->apart,
	                            .rendezvous_s = rendezvous_s};
	return true;
}

static bool parse(struct options *o, int argc, char **argv, GError **error)
{
	const GOptionEntry entries[] = {
	    {"device", 0, 0, G_OPTION_ARG_STRING, &o->device, "host: CPU threads as virtual GPUs (default); cuda: real ones", "NAME"},
	    {"data", 0, 0, G_OPTION_ARG_FILENAME, &o->data, "train on a text (bytes are tokens), or on a .bin of uint16 tokens", "FILE"},
	    {"synthetic", 0, 0, G_OPTION_ARG_NONE, &o->synthetic, "train on tokens of a Markov chain drawn from the seed", NULL},
	    {"steps", 0, 0, G_OPTION_ARG_STRING, &o->steps, "steps in all, resumed ones counted (default 100)", "N"},
	    {"lr", 0, 0, G_OPTION_ARG_DOUBLE, &o->lr, "learning rate of AdamW (default 0.001)", "X"},
	    {"balance", 0, 0, G_OPTION_ARG_DOUBLE, &o->balance, "weight of the load-balancing loss (default 0.01)", "X"},
	    {"z", 0, 0, G_OPTION_ARG_DOUBLE, &o->z, "weight of the gate's z-loss (default 0.001)", "X"},
	    {"trace", 0, 0, G_OPTION_ARG_FILENAME, &o->trace, "write run.ini, trace, loads, losses and memory into this folder", "DIR"},
	    {"trace-steps", 0, 0, G_OPTION_ARG_STRING, &o->trace_steps, "of how many of the last steps (default 20)", "N"},
	    {"save", 0, 0, G_OPTION_ARG_FILENAME, &o->save, "write checkpoints into this folder", "DIR"},
	    {"save-every", 0, 0, G_OPTION_ARG_STRING, &o->save_every, "steps between them (default 100); one more at the end", "N"},
	    {"resume", 0, 0, G_OPTION_ARG_FILENAME, &o->resume, "go on from the newest checkpoint of a folder, or from a file", "DIR"},
	    {"ssd", 0, 0, G_OPTION_ARG_FILENAME, &o->ssd, "folder for experts on SSD (default: a temporary one)", "DIR"},
	    {"apart", 0, 0, G_OPTION_ARG_NONE, &o->apart, "end each step before the next begins", NULL},
	    {"rendezvous", 0, 0, G_OPTION_ARG_STRING, &o->rendezvous,
	     "where the processes of mpirun or srun find each other: a file in a folder that all see", "FILE|HOST:PORT"},
	    {"rendezvous-timeout", 0, 0, G_OPTION_ARG_STRING, &o->rendezvous_timeout,
	     "seconds after which a process that has not come is missing (default 120)", "N"},
	    {NULL},
	};
	g_autoptr(GOptionContext) context = g_option_context_new(NULL);
	whatif_add(&o->whatif, context);
	g_option_context_add_main_entries(context, entries, NULL);
	g_option_context_set_summary(context, "Trains one configuration for real and prints step, loss, tokens/s and what bounded the step.\n"
	                                      "The gate decides where tokens go; with --routing the rule does, as in a prediction.");
	g_option_context_set_description(
	    context, "Example:\n  esmoe run -m tiny-moe -M host -p es-moe --data book.txt --steps 300 --lr 0.003 --trace out/run\n\n"
	             "On several nodes, one process each:\n  torchrun --nnodes 2 --nproc-per-node 1 ... --no-python esmoe run ... --gpus 16\n"
	             "  srun -N 2 --ntasks-per-node 1 esmoe run ... --gpus 16 --rendezvous /shared/meet");
	return whatif_parse(context, argc, argv, error);
}

/* Memory is this program's, and the host device computes in fp32 and hands its gradients down as they are, whatever machine and policy say of a GPU.
 */
static char **overrides(const struct options *o, const char *device)
{
	g_autoptr(GStrvBuilder) set = g_strv_builder_new();
	g_strv_builder_add(set, "software.runtime=esmoe");
	if (g_str_equal(device, "host"))
		g_strv_builder_add_many(set, "software.element_bytes=4", "policy.gradient_bytes=4", NULL);
	if (o->whatif.set)
		g_strv_builder_addv(set, (const char **)o->whatif.set);
	return g_strv_builder_end(set);
}

struct output {
	struct progress progress;
	int steps;
	bool begun;
};

static void report(const struct run_step *s, void *user)
{
	struct output *out = user;
	if (!out->begun) {
		out->begun = true;
		progress_init(&out->progress, (int)s->step, out->steps);
		printf("%8s  %9s  %9s  %9s  %s\n", "step", "loss", "tokens/s", "ms", "bound by");
	}
	progress_clear(&out->progress);
	printf("%8" G_GUINT64_FORMAT "  %9.5f  %9.0f  %9.1f  %s\n", s->step, s->loss, s->tokens_per_s, s->step_ms, s->bound_by);
	fflush(stdout);
	progress_step(&out->progress);
}

static void note(const char *line, void *user)
{
	fprintf(stderr, "esmoe: %s\n", line);
}

bool cmd_run(int argc, char **argv, GError **error)
{
	autoclear(options) o = {.lr = 0.001, .balance = 0.01, .z = 0.001};
	struct scenario_options asked;
	struct run_options run;
	g_autofree char *words = g_strjoinv(" ", argv), *command = g_strdelimit(g_strdup_printf("esmoe %s", words), "\n\r", ' ');
	if (!parse(&o, argc, argv, error) || !check(&o, &run, error) || !whatif_scenario(&o.whatif, &asked, error))
		return false;
	if (!device_find(run.device, error))
		return false;
	g_auto(GStrv) set = overrides(&o, run.device);
	asked.set = (const char *const *)set;
	g_autoptr(scenario) sc = scenario_new(&asked, error);
	if (!sc)
		return false;
	struct output out = {.steps = (int)run.steps};
	run.command = command;
	run.report = report;
	run.note = note;
	run.user = &out;
	bool ok = run_train(sc, &run, error);
	progress_clear(&out.progress);
	return ok;
}
