/* Vertical order: all micro-batches of a layer before the next. What it saves is counted; with one micro-batch nothing changes. */
#include "steps.h"

#define NETWORK                                                                                                                                      \
	"[network]\nlayers = 3\nd_model = 256\nheads = 4\nvocab = 512\nseq_len = 32\nsequences = 4\nactivation = gelu\nd_ff = 1024\n"                \
	"experts = 8\ntop_k = 2\ntied = true\n"
#define ROW "[policy]\nexpert_home = dram\noptimizer = cpu-expert\n"
enum { LAYERS = 3, EXPERTS = 8, GPUS = 2, BATCHES = 4, D = 256, TOKENS = 32, BYTES = 2 };

static void record(struct steps *t, int microbatches, const char *const *set)
{
	struct scenario_options o = {
	    .model = NETWORK, .machine = ROUND_MACHINE, .policy = ROW, .gpus = GPUS, .microbatches = microbatches, .routing = "uniform", .set = set};
	steps_record(t, &o, 1);
}

Test(vertical, one_microbatch_is_the_same_either_way)
{
	struct steps across, down;
	record(&across, 1, SETS("policy.microbatch_order=horizontal"));
	record(&down, 1, SETS("policy.microbatch_order=vertical"));
	cr_assert_eq(across.stages->len, down.stages->len);
	for (stage_id id = 0; id < across.stages->len; id++) {
		struct stage a = *stage_at(&across, id), b = *stage_at(&down, id);
		a.block = b.block = NULL; /* of different schedules */
		cr_assert_arr_eq(&a, &b, sizeof a, "stage %u", id);
	}
	steps_clear(&across);
	steps_clear(&down);
}

/* Every expert has tokens in every micro-batch: one upload for the forward and one for the backward, one gradient, one update, whatever the number.
 */
Test(vertical, an_upload_and_a_download_serve_all_microbatches)
{
	struct steps across, down;
	uint64_t all = LAYERS * EXPERTS;
	record(&across, BATCHES, SETS("policy.microbatch_order=horizontal"));
	record(&down, BATCHES, SETS("policy.microbatch_order=vertical"));
	for (int pass = PASS_FORWARD; pass <= PASS_BACKWARD; pass += PASS_BACKWARD - PASS_FORWARD) {
		cr_assert_eq(stage_sum(&across, 0, STAGE_UPLOAD, pass).n, BATCHES * all);
		cr_assert_eq(stage_sum(&down, 0, STAGE_UPLOAD, pass).n, all);
		struct sum before = stage_sum(&across, 0, STAGE_EXPERT, pass), after = stage_sum(&down, 0, STAGE_EXPERT, pass);
		cr_assert_eq(before.n, BATCHES * all);
		cr_assert_eq(after.n, before.n);
		cr_assert_eq(after.tokens, before.tokens);
	}
	cr_assert_eq(stage_sum(&across, 0, STAGE_DOWNLOAD, PASS_BACKWARD).n, BATCHES * all);
	cr_assert_eq(stage_sum(&down, 0, STAGE_DOWNLOAD, PASS_BACKWARD).n, all);
	cr_assert_eq(stage_sum(&across, 0, STAGE_ACCUMULATE, PASS_BACKWARD).n, (BATCHES - 1) * all);
	cr_assert_eq(stage_sum(&down, 0, STAGE_ACCUMULATE, PASS_BACKWARD).n, 0);
	cr_assert_eq(stage_sum(&down, 0, STAGE_ADAM, PASS_UPDATE).n, all);
	steps_clear(&across);
	steps_clear(&down);
}

/* Of GPU 0, in the order in which they are launched. */
Test(vertical, all_microbatches_of_a_layer_come_before_the_next)
{
	struct steps t;
	int layer = 0, microbatch = 0;
	record(&t, BATCHES, SETS("policy.microbatch_order=vertical"));
	EACH_STAGE(&t, 0, st)
	if (st->kind == STAGE_MIXER && st->pass == PASS_FORWARD && st->rank == 0) {
		cr_assert_eq(st->layer, layer);
		cr_assert_eq(st->microbatch, microbatch);
		layer += (microbatch = (microbatch + 1) % BATCHES) == 0;
	}
	cr_assert_eq(layer, LAYERS);
	steps_clear(&t);
}

/* Parts that ZeRO cut are gathered once a pass for all micro-batches, and whole gradients of a layer are reduced once. */
Test(vertical, copies_gather_and_reduce_once_a_step)
{
	struct steps across, down;
	record(&across, BATCHES, SETS("policy.microbatch_order=horizontal", "policy.zero_stage=3"));
	record(&down, BATCHES, SETS("policy.microbatch_order=vertical", "policy.zero_stage=3"));
	for (int kind = STAGE_REDUCE_SCATTER; kind <= STAGE_ALL_GATHER; kind++) {
		uint64_t before = 0, after = 0;
		for (int pass = 0; pass < N_STAGE_PASSES; pass++) {
			before += stage_sum(&across, 0, kind, pass).n;
			after += stage_sum(&down, 0, kind, pass).n;
		}
		uint64_t once = kind == STAGE_ALL_GATHER ? 2 * LAYERS + 1 : LAYERS + 1;
		cr_assert_eq(after, once * GPUS, "%s: %lu", stage_kind_name(kind), after);
		cr_assert_eq(before, BATCHES * once * GPUS);
	}
	steps_clear(&across);
	steps_clear(&down);
}

/* Checkpoints of all, and the layer's input that each works on. */
Test(vertical, checkpoints_of_all_microbatches_are_kept)
{
	struct steps t;
	uint64_t hidden = TOKENS * D * BYTES;
	record(&t, BATCHES, SETS("policy.microbatch_order=vertical", "policy.checkpoint=none"));
	const struct memory *m = schedule_memory(t.schedule);
	cr_assert_eq(m->bytes[TIER_HBM][CLASS_ACTIVATIONS], BATCHES * (LAYERS * m->checkpoint_bytes + hidden));
	steps_clear(&t);
	record(&t, BATCHES, SETS("policy.microbatch_order=vertical", "policy.checkpoint=full"));
	m = schedule_memory(t.schedule);
	cr_assert_eq(m->bytes[TIER_HBM][CLASS_ACTIVATIONS],
	             BATCHES * (LAYERS + 1) * hidden +
	                 (BATCHES - 1) * (m->workspace[STAGE_MIXER] + m->workspace[STAGE_FFN] + m->workspace[STAGE_SHARED]));
	steps_clear(&t);
}

/* Where uploads bound the step, four micro-batches take no longer than one of all sequences, nearly; in horizontal order four times as long. */
Test(vertical, small_microbatches_cost_no_uploads)
{
	static const char *const orders[] = {"policy.microbatch_order=horizontal", "policy.microbatch_order=vertical"};
	nsec_t end[2][2];
	for (int order = 0; order < 2; order++)
		for (int many = 0; many < 2; many++) {
			struct scenario_options o = {
			    .model = NETWORK, .machine = ROUND_MACHINE, .policy = ROW, .gpus = GPUS, .microbatches = many ? BATCHES : 1};
			struct steps t;
			o.set = SETS(orders[order], "pcie.h2d_gbps=0.1", "pcie.duplex_gbps=16");
			steps_simulate(&t, &o, 1, &(struct sim_options){0});
			end[order][many] = end_of(&t, stage_find(&t, 0, STAGE_ADAM_GPU, PASS_UPDATE, 0));
			steps_clear(&t);
		}
	cr_assert_eq(end[0][0], end[1][0]);
	cr_assert_float_eq((double)end[0][1] / (double)end[0][0], BATCHES, 0.2);
	cr_assert_float_eq((double)end[1][1] / (double)end[1][0], 1, 0.05);
}

Test(vertical, what_has_no_meaning_is_refused)
{
	struct scenario_options o = {
	    .model = NETWORK, .machine = ROUND_MACHINE, .policy = "[policy]\nmicrobatch_order = vertical\nexchange = experts\n"};
	g_autoptr(scenario) s = scenario_made(&o);
	g_autoptr(GError) error = NULL;
	struct plan plan;
	cr_assert_not(plan_make(s, &plan, &error));
	cr_assert(strstr(error->message, "policy.microbatch_order"), "%s", error->message);
}
