/* The executor with the engine: whole training steps keep the backend's promises, and where experts live does not change a bit of the losses. */
#include "exec/exec.h"
#include "model/error.h"
#include "steps.h"

#include <glib/gstdio.h>
#include <string.h>

#define TINY                                                                                                                                         \
	"[network]\nlayers = 3\nd_model = 16\nheads = 2\nvocab = 23\nseq_len = 8\nsequences = 4\nd_ff = 24\nexperts = 6\ntop_k = 2\nmoe_every = 2\n"
#define ON_HBM "[policy]\nexpert_home = hbm\ngradient_bytes = 4\n"
#define ON_DRAM "[policy]\nexpert_home = dram\nplacement = lpt\npinned_share = 0.4\nupload_ahead = 1\noptimizer = cpu-expert\ngradient_bytes = 4\n"
#define ON_SSD "[policy]\nexpert_home = ssd\nplacement = lpt\noptimizer = cpu-expert\ngradient_bytes = 4\n"
#define PINNED_OVER_SSD                                                                                                                              \
	"[policy]\nexpert_home = ssd\nplacement = sticky\npinned_share = 0.4\nupload_scope = next-layer\noptimizer = cpu-layer\ngradient_bytes = "   \
	"4\n"
enum { TRAINED = 3 };

/* A training run: its schedule as the do-nothing backend has it with the loads that the gates gave, its trace and its losses. */
struct training {
	struct scenario *sc;
	struct trace *trace;
	double loss[TRAINED];
	int microbatches;
};

static void training_clear(struct training *t)
{
	trace_free(t->trace);
	scenario_free(t->sc);
}

static void train_on(struct training *t, struct device **devices, struct device_group *group, struct schedule *schedule, const char *folder)
{
	g_autoptr(GError) error = NULL;
	const struct engine_options o = {.seed = 5, .lr = 0.01f, .balance = 0.01f, .z = 0.001f, .ssd_folder = folder};
	g_autoptr(data) data = data_open(NULL, t->sc->network->vocab, 7, &error);
	g_autoptr(engine) engine = engine_new(devices, group, t->sc, schedule, data, &o, &error);
	cr_assert(engine, "%s", error ? error->message : "");
	g_autoptr(backend) b = exec_new(devices, t->sc->machine->gpus, engine, t->sc->machine, &error);
	cr_assert(b, "%s", error ? error->message : "");
	for (int i = 0; i < TRAINED; i++) {
		engine_begin(engine, (uint64_t)i);
		cr_assert(schedule_step(schedule, b, &error), "%s", error ? error->message : "");
		cr_assert(schedule_wait(schedule, b, &error), "%s", error ? error->message : "");
		t->loss[i] = engine_loss(engine);
		exec_trace(b, b->n_launched, t->trace);
	}
	cr_assert_eq(t->trace->spans->len, b->n_launched);
	t->microbatches = schedule_microbatches(schedule);
}

static struct training trained(const char *policy, const char *const *set, int gpus, int microbatches)
{
	g_autoptr(GError) error = NULL;
	struct device *device[4];
	struct device_group *group;
	g_autofree char *folder = g_dir_make_tmp("esmoe-test-XXXXXX", &error);
	cr_assert(folder, "%s", error ? error->message : "");
	struct training t = {.sc = scenario_made(&(struct scenario_options){
	                         .model = TINY, .machine = "host", .policy = policy, .gpus = gpus, .microbatches = microbatches, .set = set}),
	                     .trace = trace_new()};
	struct schedule *schedule = schedule_made(t.sc);
	cr_assert(device_open("host", gpus, UINT64_C(1) << 26, device, &group, &error), "%s", error ? error->message : "");
	train_on(&t, device, group, schedule, folder);
	device_close(device, gpus, group);
	schedule_free(schedule);
	cr_assert_eq(g_rmdir(folder), 0);
	return t;
}

/* Every stage once and in order, streams without overlap, predecessors first, steps one after another. */
static void check_trace(const struct training *t)
{
	const struct trace *trace = t->trace;
	g_autofree nsec_t *stream_end = g_new0(nsec_t, trace_streams(trace));
	for (guint i = 0; i < trace->spans->len; i++) {
		const struct span *span = &g_array_index(trace->spans, struct span, i);
		cr_assert_eq(span->id, i);
		cr_assert_leq(span->launch_ns, span->start_ns);
		cr_assert_leq(span->start_ns, span->end_ns);
		cr_assert_geq(span->start_ns, stream_end[span->stream], "stage %u overlaps an earlier one of its stream", i);
		stream_end[span->stream] = span->end_ns;
		for (int p = 0; p < span->n_preds; p++)
			cr_assert_geq(span->start_ns, g_array_index(trace->spans, struct span, span->preds[p]).end_ns,
			              "stage %u starts before its predecessor %u ends", i, span->preds[p]);
		cr_assert_geq(g_array_index(trace->step_end_ns, nsec_t, span->step), span->end_ns);
	}
	cr_assert_eq(trace->step_end_ns->len, TRAINED);
}

/* Races would show as other losses; so would a stage that runs before what it needs. */
static void check_training(const char *policy, const char *const *set, int gpus, int microbatches, const double *expected)
{
	struct training t = trained(policy, set, gpus, microbatches);
	check_trace(&t);
	for (int i = 0; i < TRAINED; i++)
		cr_assert(t.loss[i] == expected[i], "%s: step %d has loss %.9g, not %.9g", policy, i, t.loss[i], expected[i]);
	training_clear(&t);
}

Test(training, keeps_the_contract_and_its_bits_wherever_experts_live)
{
	for (int microbatches = 1; microbatches <= 2; microbatches++)
		for (int gpus = 1; gpus <= 2; gpus++) {
			struct training t = trained(ON_HBM, NULL, gpus, microbatches);
			check_trace(&t);
			cr_assert(t.loss[0] > 2 && t.loss[0] < 4 && t.loss[TRAINED - 1] < t.loss[0], "losses %g to %g", t.loss[0],
			          t.loss[TRAINED - 1]); /* ln 23 is 3.1 */
			for (int again = 0; again < 3; again++) {
				check_training(ON_HBM, NULL, gpus, microbatches, t.loss);
				check_training(ON_DRAM, NULL, gpus, microbatches, t.loss);
				check_training(ON_SSD, NULL, gpus, microbatches, t.loss);
			}
			training_clear(&t);
		}
}

/* Of six experts with blocks of 6 and 9 KB, DRAM (for blocks alone) holds one to a few, so that they are read, changed and written back in every
 * step. */
Test(training, experts_that_come_and_go_over_the_ssd_keep_their_bits)
{
	static const char *const policies[] = {ON_SSD, PINNED_OVER_SSD};
	const char *const *const sets[] = {
	    SETS("software.runtime=framework", "host.dram_gib=4.000018", "policy.ssd_cache=lru"),
	    SETS("software.runtime=framework", "host.dram_gib=4.00003", "policy.ssd_cache=belady"),
	    SETS("software.runtime=framework", "host.dram_gib=4.00006", "policy.ssd_cache=lfu-decay"),
	};
	struct training t = trained(ON_HBM, NULL, 2, 2);
	for (size_t i = 0; i < G_N_ELEMENTS(policies); i++)
		for (size_t j = 0; j < G_N_ELEMENTS(sets); j++)
			check_training(policies[i], sets[j], 2, 2, t.loss);
	training_clear(&t);
}

struct failure {
	struct device *device;
	gulong after_us;
};

static gpointer fail_later(gpointer data)
{
	const struct failure *f = data;
	g_autoptr(GError) why = g_error_new_literal(ESMOE_ERROR, ESMOE_ERROR_DEVICE, "gpu1 fell off the bus");
	g_usleep(f->after_us);
	device_fail(f->device, why);
	return NULL;
}

/* Steps until one fails; the error that the caller gets. */
static GError *train_until_failure(const struct scenario *sc, struct schedule *schedule, struct device **devices, struct device_group *group,
                                   gulong after_us, const char *folder)
{
	g_autoptr(GError) error = NULL;
	const struct engine_options o = {.seed = 5, .lr = 0.01f, .ssd_folder = folder};
	g_autoptr(data) data = data_open(NULL, sc->network->vocab, 7, &error);
	g_autoptr(engine) engine = engine_new(devices, group, sc, schedule, data, &o, &error);
	cr_assert(engine, "%s", error ? error->message : "");
	g_autoptr(backend) b = exec_new(devices, sc->machine->gpus, engine, sc->machine, &error);
	cr_assert(b, "%s", error ? error->message : "");
	struct failure f = {devices[1], after_us};
	GThread *thread = g_thread_new("failure", fail_later, &f);
	bool ok = true;
	for (uint64_t i = 0; ok; i++) {
		engine_begin(engine, i);
		ok = schedule_step(schedule, b, &error) && schedule_wait(schedule, b, &error);
	}
	g_thread_join(thread);
	return g_steal_pointer(&error);
}

/* Whatever is under way then - copies, collectives with one member there, Adam, the SSD - everybody is let go, and everything can be freed. */
Test(training, a_device_that_fails_at_any_moment_ends_training_with_its_reason)
{
	static const char *const policies[] = {ON_HBM, ON_DRAM, ON_SSD};
	for (int i = 0; i < 24; i++) {
		GError *opened = NULL;
		struct device *device[2];
		struct device_group *group;
		g_autofree char *folder = g_dir_make_tmp("esmoe-test-XXXXXX", NULL);
		g_autoptr(scenario) sc = scenario_made(
		    &(struct scenario_options){.model = TINY,
		                               .machine = "host",
		                               .policy = policies[i % 3],
		                               .gpus = 2,
		                               .set = SETS("software.runtime=framework", i % 3 == 2 ? "host.dram_gib=4.00003" : "host.dram_gib=8")});
		struct schedule *schedule = schedule_made(sc);
		cr_assert(device_open("host", 2, UINT64_C(1) << 26, device, &group, &opened), "%s", opened ? opened->message : "");
		g_autoptr(GError) error = train_until_failure(sc, schedule, device, group, (gulong)(500 + 1700 * i), folder);
		cr_assert_eq(error->code, ESMOE_ERROR_DEVICE);
		cr_assert(strstr(error->message, "gpu1 fell off the bus"), "%s", error->message);
		device_close(device, 2, group);
		schedule_free(schedule);
		cr_assert_eq(g_rmdir(folder), 0);
	}
}
