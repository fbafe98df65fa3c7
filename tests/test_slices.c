/* Fewer experts than GPUs: what slices, replicas and experts that travel cost each GPU (Tutel, section 4.1), and that the choice follows the load. */
#include "steps.h"

#include <math.h>

enum { GPUS = 16, EXPERTS = 4, SPREAD = GPUS / EXPERTS };

static const char *const sequence_lengths[] = {"16", "64", "256", "1024", "4096", "32768"};

static struct scenario_options tutel_on(int i, const char *const *set)
{
	return (struct scenario_options){.model = "gpt-moe-l",
	                                 .machine = "h200-x8",
	                                 .policy = "tutel",
	                                 .gpus = GPUS,
	                                 .experts = EXPERTS,
	                                 .sequences = 1,
	                                 .seq_len = atoi(sequence_lengths[i]),
	                                 .routing = "expert-choice",
	                                 .set = set};
}

static const struct block *block_of(const struct steps *t, int layer)
{
	EACH_STAGE(t, 0, st)
	if (st->kind == STAGE_EXPERT && st->layer == layer)
		return st->block;
	cr_assert_fail("no expert in layer %d", layer);
	return NULL;
}

/* Rows that leave their GPU, from the layout alone: expert e has GPUs e W/E ..; replica g mod R serves GPU g with r slices side by side. */
static uint64_t rows_away(const uint32_t *loads, int r)
{
	uint64_t rows = 0;
	for (int g = 0; g < GPUS; g++)
		for (int e = 0; e < EXPERTS; e++)
			for (int slice = 0; slice < r; slice++)
				rows += e * SPREAD + g % (SPREAD / r) * r + slice == g ? 0 : loads[g * EXPERTS + e];
	return rows;
}

/* C_g r bytes a GPU each way, P / r parameters gathered for each of two passes and scattered once by the W / E / r replicas, or three times E P. */
Test(slices, bytes_are_those_of_the_papers_table)
{
	static const char *const set[] = {"policy.dispatch=exact", "policy.pipeline_degree=1", "policy.all_to_all=linear", NULL};
	int seen[SPREAD + 1] = {0};
	for (size_t i = 0; i < G_N_ELEMENTS(sequence_lengths); i++) {
		struct steps t;
		struct scenario_options o = tutel_on((int)i, set);
		steps_record(&t, &o, 1);
		const struct block *b = block_of(&t, 0);
		uint64_t params = 2ul * 1536 * 6144, layers = 24, gathered = 0, sent = 0;
		int r = b->travels ? 0 : b->slices;
		uint32_t loads[GPUS * EXPERTS];
		cr_assert(routing_loads(t.s->routing, 0, 0, 0, GPUS, EXPERTS, 1, (uint32_t)o.seq_len, loads, NULL));
		seen[r]++;
		if (r) {
			sent = rows_away(loads, r) * 1536 * 2;
			gathered = r < SPREAD ? GPUS * params / (uint64_t)r * 2 : 0;
		} else {
			gathered = GPUS * EXPERTS * params * 2;
		}
		cr_assert_eq(stage_sum(&t, 0, STAGE_ALL_TO_ALL, PASS_FORWARD).bytes, 2 * layers * sent, "%s tokens, r = %d", sequence_lengths[i], r);
		for (int pass = PASS_FORWARD; pass <= PASS_BACKWARD; pass += PASS_BACKWARD - PASS_FORWARD)
			cr_assert_eq(stage_sum(&t, 0, STAGE_ALL_GATHER, pass).bytes, layers * gathered, "%s tokens, r = %d", sequence_lengths[i], r);
		cr_assert_eq(stage_sum(&t, 0, STAGE_REDUCE_SCATTER, PASS_BACKWARD).bytes, layers * gathered);
		steps_clear(&t);
	}
	/* few tokens travel to many slices, many tokens stay and their experts come */
	cr_assert(seen[0] && seen[1] + seen[2] + seen[4] > seen[0] && (seen[2] || seen[4]), "DP %d, r = 1 %d, 2 %d, 4 %d", seen[0], seen[1], seen[2],
	          seen[4]);
}

static double step_ns(int i, const char *const *set)
{
	struct steps t;
	struct sim_options sim = {0};
	struct scenario_options o = tutel_on(i, set);
	steps_simulate(&t, &o, 1, &sim);
	double ns = (double)sim_now_ns(t.b);
	steps_clear(&t);
	return ns;
}

/* No choice made once and for all is as good everywhere; the adaptive one is, up to what it does not know (what overlaps). */
Test(slices, the_choice_follows_the_load)
{
	static const char *const choices[][2] = {
	    {"policy.expert_split=adaptive"}, {"policy.expert_split=data"}, {"policy.expert_split=model"}, {"policy.exchange=experts"}};
	double worst[4] = {0};
	for (size_t i = 0; i < G_N_ELEMENTS(sequence_lengths); i++) {
		double ns[4], best = INFINITY;
		for (int c = 0; c < 4; c++) {
			ns[c] = step_ns((int)i, choices[c]);
			best = fmin(best, ns[c]);
		}
		for (int c = 0; c < 4; c++)
			worst[c] = fmax(worst[c], ns[c] / best);
	}
	for (int c = 1; c < 4; c++)
		cr_assert_gt(worst[c], worst[0], "%s: at worst %.3f of the best, adaptive %.3f", choices[c][0], worst[c], worst[0]);
	cr_assert_lt(worst[0], 1.1, "adaptive at worst %.3f of the best", worst[0]);
}

/* Whatever r is, a GPU keeps E P / W parameters of each layer with 16 bytes each. */
Test(slices, state_is_cut_whatever_the_split)
{
	static const char *const set[] = {"policy.expert_split=model", NULL};
	for (int i = 0; i < 2; i++) {
		struct scenario_options o = tutel_on(0, i ? set : NULL);
		g_autoptr(scenario) s = scenario_made(&o);
		g_autoptr(schedule) schedule = schedule_made(s);
		uint64_t optimizer = schedule_memory(schedule)->bytes[TIER_HBM][CLASS_OPTIMIZER];
		uint64_t dense = 24ul * (4 * 1536 * 1536 + 1536 * EXPERTS) + 51200ul * 1536;
		cr_assert_eq(optimizer, 12 * (dense + 24ul * 2 * 1536 * 6144 / SPREAD));
	}
}

/* Without a fixed factor the capacity is the largest load of the layer and micro-batch, so that nobody's tokens are dropped and no more are padded.
 */
Test(slices, capacity_follows_the_load)
{
	struct steps t;
	struct scenario_options o = {.model = "gpt-moe-m", .machine = "h200-x8", .policy = "tutel", .experts = 16, .routing = "hash"};
	o.microbatches = 2;
	steps_record(&t, &o, 2);
	uint32_t loads[8 * 16], least = UINT32_MAX, most = 0;
	EACH_STAGE(&t, 1, st)
	{
		if (st->kind != STAGE_EXPERT || st->pass != PASS_FORWARD || st->rank || st->part)
			continue;
		uint32_t largest = 0;
		cr_assert(routing_loads(t.s->routing, 1, st->microbatch, st->layer, 8, 16, 1, schedule_plan(t.schedule)->tokens, loads, NULL));
		for (size_t i = 0; i < G_N_ELEMENTS(loads); i++)
			largest = MAX(largest, loads[i]);
		cr_assert_eq(st->block->capacity, largest);
		least = MIN(least, largest);
		most = MAX(most, largest);
	}
	cr_assert_lt(least, most);
	steps_clear(&t);
}
