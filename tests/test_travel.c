/* Experts that go to the tokens, all of them or the busiest: what crosses the links, by the loads alone; what waits for what; when it pays. */
#include "model/error.h"
#include "steps.h"

#define TRAVEL "policy.exchange=experts"

static uint64_t params_of(const struct steps *t)
{
	return network_expert_params(t->s->network, &t->s->network->layer[0]);
}

static int owner_of(int e, int gpus, int experts)
{
	return (int)((int64_t)e * gpus / experts);
}

Test(travel, every_expert_crosses_the_links_three_times_and_no_token_does)
{
	struct steps t;
	struct scenario_options o = {.model = "gpt-moe-s", .machine = "h200-x8", .policy = "janus", .experts = 24, .routing = "zipf:0.9"};
	o.gpus = 6;
	o.microbatches = 2;
	steps_record(&t, &o, 2);
	uint64_t n = 12 * 2 * 24 * 6, bytes = 2 * params_of(&t);
	for (int pass = PASS_FORWARD; pass <= PASS_BACKWARD; pass += PASS_BACKWARD - PASS_FORWARD) {
		struct sum fetched = stage_sum(&t, 1, STAGE_ALL_GATHER, pass);
		cr_assert_eq(fetched.n, n);
		cr_assert_eq(fetched.bytes, n * bytes);
	}
	cr_assert_eq(stage_sum(&t, 1, STAGE_REDUCE_SCATTER, PASS_BACKWARD).bytes, n * bytes);
	for (int pass = 0; pass < N_STAGE_PASSES; pass++)
		cr_assert_eq(stage_sum(&t, 1, STAGE_ALL_TO_ALL, pass).n, 0);
	steps_clear(&t);
}

Test(travel, each_gpu_computes_its_own_tokens)
{
	struct steps t;
	struct scenario_options o = {.model = "gpt-moe-s", .machine = "h200-x8", .policy = "janus", .experts = 10, .top_k = 2, .routing = "zipf:1.1"};
	o.gpus = 4;
	o.sequences = 2;
	steps_record(&t, &o, 1);
	uint32_t loads[4 * 10];
	EACH_STAGE(&t, 0, st)
	{
		if (st->kind != STAGE_EXPERT)
			continue;
		cr_assert(routing_loads(t.s->routing, 0, 0, st->layer, 4, 10, 2, (uint32_t)(2 * t.s->seq_len), loads, NULL));
		cr_assert_eq(st->tokens, loads[st->rank * 10 + st->expert]);
	}
	cr_assert_eq(stage_sum(&t, 0, STAGE_EXPERT, PASS_FORWARD).tokens, 12ul * 4 * 2 * 2 * (uint64_t)t.s->seq_len);
	steps_clear(&t);
}

static bool waits_for(const struct stage *st, stage_id id)
{
	for (int i = 0; i < st->n_preds; i++)
		if (st->preds[i] == id)
			return true;
	return false;
}

/* Each computation has its expert in its slot, from a fetch that it waits for and that itself waited for the slot's last user. */
Test(travel, a_slot_is_filled_behind_its_last_user_and_read_behind_its_fetch)
{
	enum { GPUS = 4, SLOTS = 3 };
	struct steps t;
	struct scenario_options o = {.model = "gpt-moe-s", .machine = "h200-x8", .policy = "janus", .experts = 8, .routing = "zipf:0.5"};
	o.gpus = GPUS;
	o.set = SETS("policy.upload_ahead=2");
	steps_record(&t, &o, 2);
	const struct stage *held[GPUS][SLOTS] = {{0}}, *user[GPUS][SLOTS] = {{0}};
	guint computed = 0;
	for (guint i = 0; i < t.stages->len; i++) {
		const struct stage *st = stage_at(&t, i);
		if (st->kind == STAGE_ALL_GATHER) {
			const struct stage *last = user[st->rank][st->part];
			cr_assert(!last || waits_for(st, last->id));
			held[st->rank][st->part] = st;
		} else if (st->kind == STAGE_EXPERT) {
			const struct stage *copy = held[st->rank][st->slot];
			cr_assert(copy->expert == st->expert && copy->layer == st->layer && copy->pass == st->pass);
			cr_assert(waits_for(st, copy->id));
			user[st->rank][st->slot] = st;
			computed++;
		}
	}
	cr_assert_gt(computed, 2u * 2 * 12 * 8 * GPUS / 2);
	steps_clear(&t);
}

/* No copy from before an update is computed with after it: each fetch of a step is launched in it. */
Test(travel, the_next_layers_experts_come_ahead_of_its_gate_but_not_of_an_update)
{
	static const char *const scopes[] = {"policy.upload_scope=layer", "policy.upload_scope=next-layer"};
	for (int i = 0; i < 2; i++) {
		struct steps t;
		struct scenario_options o = {
		    .model = "gpt-moe-s", .machine = "h200-x8", .policy = "janus", .experts = 8, .gpus = 4, .set = SETS(scopes[i])};
		steps_record(&t, &o, 2);
		guint ahead = 0;
		int gated = -1;
		EACH_STAGE(&t, 1, st)
		{
			if (st->kind == STAGE_COUNTS)
				gated = st->layer;
			if (st->kind == STAGE_ALL_GATHER && st->pass == PASS_FORWARD)
				ahead += (int)st->layer > gated;
		}
		cr_assert_eq(ahead, i ? 11u * 4 * 4 : 0, "%u", ahead); /* four slots on four GPUs, of all layers but the first */
		cr_assert_eq(stage_sum(&t, 1, STAGE_ALL_GATHER, PASS_FORWARD).n, 12ul * 8 * 4);
		cr_assert_eq(stage_sum(&t, 1, STAGE_ALL_GATHER, PASS_BACKWARD).n, 12ul * 8 * 4);
		steps_clear(&t);
	}
}

/* Where computation is nearly free, tokens cost five all-to-alls of T D 2 (G - 1) / G bytes, experts three passes of E P 2 (G - 1) / G. */
Test(travel, auto_takes_what_has_fewer_bytes_when_only_links_cost)
{
	for (int sequences = 32; sequences <= 4096; sequences *= 2) {
		struct steps t;
		g_autofree char *count = g_strdup_printf("network.sequences=%d", sequences);
		struct scenario_options o = {
		    .model = ROUND_NETWORK, .machine = ROUND_MACHINE, .policy = "janus", .experts = 4, .gpus = 4, .routing = "expert-choice"};
		o.set = SETS("policy.exchange=auto", "gpu.bf16_tflops=1000000", "gpu.kernel_us=0", "gpu.hbm_gbps=1000000", "nvlink.gbps=0.1", count);
		steps_record(&t, &o, 1);
		double tokens = 5.0 * sequences * 64 * 1024, experts = 3.0 * 4 * ROUND_EXPERT_PARAMS;
		cr_assert_eq(stage_sum(&t, 0, STAGE_ALL_GATHER, PASS_FORWARD).n > 0, experts < tokens, "%d sequences", sequences);
		cr_assert_eq(stage_sum(&t, 0, STAGE_ALL_TO_ALL, PASS_FORWARD).n > 0, experts > tokens, "%d sequences", sequences);
		steps_clear(&t);
	}
}

/* Shadowed experts are read off the stages: those that several GPUs compute. Their tokens do not travel; everybody else's do. */
Test(travel, tokens_of_shadowed_experts_stay)
{
	enum { GPUS = 8, EXPERTS = 16 };
	struct steps t;
	struct scenario_options o = {.model = "gpt-moe-m", .machine = "h200-x8", .policy = "fastermoe", .experts = EXPERTS, .routing = "zipf:1.2"};
	o.set = SETS("policy.pipeline_degree=1");
	o.sequences = 8;
	steps_record(&t, &o, 1);
	bool computes[24][EXPERTS][GPUS] = {{{0}}};
	EACH_STAGE(&t, 0, st)
	if (st->kind == STAGE_EXPERT)
		computes[st->layer][st->expert][st->rank] = true;
	uint64_t expected = 0, copies = 0;
	uint32_t loads[GPUS * EXPERTS], per_gpu = (uint32_t)(8 * t.s->seq_len);
	for (int layer = 0; layer < 24; layer++) {
		cr_assert(routing_loads(t.s->routing, 0, 0, layer, GPUS, EXPERTS, 1, per_gpu, loads, NULL));
		for (int e = 0; e < EXPERTS; e++) {
			int n = 0;
			for (int g = 0; g < GPUS; g++)
				n += computes[layer][e][g];
			copies += n > 1;
			for (int g = 0; g < GPUS; g++)
				expected += n > 1 || g == owner_of(e, GPUS, EXPERTS) ? 0 : (uint64_t)loads[g * EXPERTS + e] * 1024 * 2;
		}
	}
	cr_assert_gt(copies, 0);
	cr_assert_eq(stage_sum(&t, 0, STAGE_ALL_TO_ALL, PASS_FORWARD).bytes, 2 * expected);
	cr_assert_eq(stage_sum(&t, 0, STAGE_ALL_TO_ALL, PASS_RECOMPUTE).bytes, expected);
	cr_assert_eq(stage_sum(&t, 0, STAGE_ALL_GATHER, PASS_FORWARD).bytes, copies * 2 * params_of(&t) * GPUS);
	cr_assert_eq(stage_sum(&t, 0, STAGE_REDUCE_SCATTER, PASS_BACKWARD).bytes, copies * 2 * params_of(&t) * GPUS);
	cr_assert_eq(stage_sum(&t, 0, STAGE_EXPERT, PASS_FORWARD).tokens, 24ul * GPUS * per_gpu);
	steps_clear(&t);
}

/* With skewed loads shadowing shortens the step; with equal ones nothing is copied. */
Test(travel, shadows_pay_where_loads_are_skewed_and_stay_away_where_they_are_not)
{
	struct sim_options sim = {0};
	static const char *const sets[] = {"policy.shadowed_experts=0", "policy.shadowed_experts=4"};
	nsec_t end[2];
	for (int i = 0; i < 2; i++) {
		struct steps t;
		struct scenario_options o = {
		    .model = "gpt-moe-s", .machine = "h200-x8", .policy = "fastermoe", .experts = 16, .routing = "zipf:1.2", .set = SETS(sets[i])};
		steps_simulate(&t, &o, 1, &sim);
		end[i] = sim_now_ns(t.b);
		steps_clear(&t);
		o.routing = "expert-choice";
		steps_record(&t, &o, 1);
		cr_assert_eq(stage_sum(&t, 0, STAGE_ALL_GATHER, PASS_FORWARD).n, 0);
		steps_clear(&t);
	}
	cr_assert_lt((double)end[1], 0.9 * (double)end[0], "%ld, %ld without", (long)end[1], (long)end[0]);
}

static uint64_t hbm_buffers(const char *policy, const char *set)
{
	struct scenario_options o = {.model = "gpt-moe-s", .machine = "h200-x8", .policy = policy, .experts = 16, .set = SETS(set)};
	g_autoptr(scenario) s = scenario_made(&o);
	g_autoptr(schedule) schedule = schedule_made(s);
	return schedule_memory(schedule)->bytes[TIER_HBM][CLASS_BUFFERS];
}

/* MoE-S: 12 layers, experts of 2 x 768 x 3072 parameters. */
Test(travel, copies_take_memory)
{
	uint64_t expert = 2ul * 2 * 768 * 3072;
	cr_assert_eq(hbm_buffers("fastermoe", "policy.shadowed_experts=3") - hbm_buffers("fastermoe", "policy.shadowed_experts=0"),
	             (12 + 1) * 3 * expert);
	cr_assert_eq(hbm_buffers("janus", "policy.upload_ahead=5") - hbm_buffers("janus", "policy.exchange=tokens"), (6 + 2) * expert);
}

Test(travel, copies_yield_to_activations)
{
	/* in a larger memory, the larger of both: eight copies in 25 layers' worth of buffers are 7 GiB */
	static const char *const sets[] = {"gpu.hbm_gib=60", "gpu.hbm_gib=32"};
	for (int i = 0; i < 2; i++) {
		struct scenario_options o = {
		    .model = "gpt-moe-l", .machine = "a100-40g-x4", .policy = "fastermoe", .experts = 8, .set = SETS(sets[i])};
		g_autoptr(scenario) s = scenario_made(&o);
		g_autoptr(schedule) schedule = schedule_made(s);
		cr_assert_eq(schedule_plan(schedule)->shadowed < 8, i);
	}
}

static void refused(const char *policy, const char *set, const char *what)
{
	struct scenario_options o = {.model = "gpt-moe-s", .machine = "h200-x8", .policy = policy, .set = SETS(set)};
	g_autoptr(scenario) s = scenario_made(&o);
	g_autoptr(GError) error = NULL;
	cr_assert_null(schedule_new(s, NULL, &error));
	cr_assert(g_error_matches(error, ESMOE_ERROR, ESMOE_ERROR_INPUT));
	cr_assert(strstr(error->message, what), "%s", error->message);
}

Test(travel, what_has_no_meaning_is_refused)
{
	refused("es-moe", TRAVEL, "need policy.expert_home = hbm");
	refused("static", TRAVEL, "needs policy.expert_compute = sequential");
	refused("fairseq", TRAVEL, "needs policy.dispatch = exact or padded");
	refused("tutel", "policy.shadowed_experts=1", "policy.shadowed_experts needs");
	refused("janus", "policy.expert_parallel=4", "need policy.expert_parallel = auto");
}
