/* Steps of a real run, one after another or each begun before the one before it has ended: what its trace and its losses show of it. */
#include "exec/run.h"
#include "model/error.h"
#include "steps.h"
#include "traces/kineto.h"

#include <glib/gstdio.h>

enum { STEPS = 8, KEPT = 5 };

/* Adam of 2 layers of 16 experts takes as long as all else on the host. */
#define NETWORK                                                                                                                                      \
	"[network]\nlayers = 2\nd_model = 64\nheads = 2\nvocab = 64\nseq_len = 16\nsequences = 1\nactivation = gelu\nd_ff = 512\nexperts = 16\n"     \
	"top_k = 1\ntied = true\n"

struct told {
	struct run_step step[STEPS];
	int n;
};

static void hear(const struct run_step *step, void *user)
{
	struct told *t = user;
	cr_assert_lt(t->n, STEPS);
	t->step[t->n++] = *step;
}

static void remove_folder(const char *folder)
{
	g_autoptr(GDir) dir = g_dir_open(folder, 0, NULL);
	for (const char *name; (name = g_dir_read_name(dir));) {
		g_autofree char *path = g_build_filename(folder, name, NULL);
		g_unlink(path);
	}
	g_rmdir(folder);
}

static struct trace *ran(const char *policy, bool apart, struct told *told)
{
	g_autoptr(GError) error = NULL;
	g_autofree char *folder = g_dir_make_tmp("esmoe-overlap-XXXXXX", NULL);
	g_autoptr(scenario) s = scenario_made(&(struct scenario_options){
	    .model = NETWORK,
	    .machine = "host",
	    .policy = policy,
	    .set = SETS("software.runtime=esmoe", "software.element_bytes=4", "host.adam_gparams_per_s=0.001", "host.adam_threads=1"),
	});
	const struct run_options o = {.device = "host",
	                              .steps = STEPS,
	                              .lr = 1e-2f,
	                              .trace = folder,
	                              .trace_steps = KEPT,
	                              .save_every = 1,
	                              .apart = apart,
	                              .command = "test",
	                              .report = hear,
	                              .user = told};
	const char *const paths[] = {folder, NULL};
	cr_assert(run_train(s, &o, &error), "%s", error ? error->message : "");
	struct trace *trace = kineto_read(paths, &error);
	cr_assert(trace, "%s", error ? error->message : "");
	remove_folder(folder);
	cr_assert_eq(told->n, STEPS);
	cr_assert_eq(trace->step_end_ns->len, KEPT);
	return trace;
}

/* Steps whose first stage was launched before the last one of the step before had ended. */
static int overlaps_of(const struct trace *trace)
{
	nsec_t first[KEPT], last[KEPT] = {0};
	int n = 0;
	for (int i = 0; i < KEPT; i++)
		first[i] = G_MAXINT64;
	for (guint i = 0; i < trace->spans->len; i++) {
		const struct span *s = &g_array_index(trace->spans, struct span, i);
		first[s->step] = MIN(first[s->step], s->launch_ns);
		last[s->step] = MAX(last[s->step], s->end_ns);
	}
	for (int i = 1; i < KEPT; i++)
		n += first[i] < last[i - 1];
	return n;
}

/* Whether a tail is still running when the next step begins is up to the machine; in some of so many runs it is. */
enum { TRIES = 30 };

#define ES_MOE "[policy]\nexpert_home = dram\noptimizer = cpu-expert\npinned_share = 0.25\nplacement = lpt\ngradient_bytes = 4\n"

Test(overlap, steps_apart_wait_for_the_last_stage_of_the_one_before)
{
	struct told told = {0};
	g_autoptr(trace) trace = ran(ES_MOE, true, &told);
	cr_assert_eq(overlaps_of(trace), 0);
}

Test(overlap, a_step_begins_before_the_one_before_has_ended_whatever_the_policy)
{
	static const char *const policies[] = {ES_MOE, ES_MOE "update_order = next-forward\n",
	                                       "[policy]\nexpert_compute = sequential\ngradient_bytes = 4\n"};
	struct told apart = {0};
	g_autoptr(trace) alone = ran(ES_MOE, true, &apart);
	for (size_t i = 0; i < G_N_ELEMENTS(policies); i++) {
		int overlapping = 0;
		for (int try = 0; try < TRIES && !overlapping; try++) {
			struct told told = {0};
			g_autoptr(trace) trace = ran(policies[i], false, &told);
			overlapping = overlaps_of(trace);
			for (int step = 0; step < STEPS; step++) {
				cr_assert_eq(told.step[step].step, step);
				cr_assert_eq(told.step[step].loss, apart.step[step].loss, "step %d of %s", step, policies[i]);
			}
		}
		cr_assert_gt(overlapping, 0, "%s", policies[i]);
	}
}

/* The distance of two ends: of the trace, to its last digit of microseconds, and of what was told. */
Test(overlap, a_step_lasts_from_the_end_of_the_one_before)
{
	struct told told = {0};
	g_autoptr(trace) trace = ran(ES_MOE "update_order = next-forward\n", false, &told);
	nsec_t last[KEPT] = {0};
	for (guint i = 0; i < trace->spans->len; i++) {
		const struct span *s = &g_array_index(trace->spans, struct span, i);
		last[s->step] = MAX(last[s->step], s->end_ns);
	}
	for (int i = 1; i < KEPT; i++) {
		const double ms = (double)(last[i] - last[i - 1]) / 1e6;
		cr_assert_float_eq(told.step[STEPS - KEPT + i].step_ms, ms, 2e-3, "step %d", STEPS - KEPT + i);
		cr_assert_eq(g_array_index(trace->step_end_ns, nsec_t, i), last[i]);
	}
}

static int updates_beside_the_next_step(void)
{
	struct told told = {0};
	g_autoptr(trace) trace = ran(ES_MOE "update_order = next-forward\n", false, &told);
	nsec_t embedded[KEPT] = {0};
	int beside = 0;
	for (guint i = 0; i < trace->spans->len; i++) {
		const struct span *s = &g_array_index(trace->spans, struct span, i);
		if (s->kind == STAGE_EMBED && s->pass == PASS_FORWARD)
			embedded[s->step] = s->end_ns;
	}
	for (guint i = 0; i < trace->spans->len; i++) {
		const struct span *s = &g_array_index(trace->spans, struct span, i);
		beside += s->kind == STAGE_ADAM && s->step + 1 < KEPT && s->end_ns > embedded[s->step + 1];
	}
	return beside;
}

/* Adam of the first layer waits behind nothing of the last one: in the trace of a run as in the schedule. */
Test(overlap, updates_that_are_put_off_run_under_the_next_step)
{
	int beside = 0;
	for (int try = 0; try < TRIES && !beside; try++)
		beside = updates_beside_the_next_step();
	cr_assert_gt(beside, 0);
}
