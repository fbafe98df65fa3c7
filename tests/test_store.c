/* What DRAM as a cache over the SSD asks of the SSD, rule by rule, on the do-nothing backend. */
#include "steps.h"

enum { STEPS = 3, EXPERTS = 120 };

/* More than the 60 experts of MoE-L that the testbed's DRAM holds. */
static uint64_t reads_of_last_step(const char *rule, bool state_only, uint64_t *updates)
{
	g_autofree char *set = g_strdup_printf("policy.ssd_cache=%s", rule);
	struct scenario_options o = {
	    .model = "gpt-moe-l", .machine = "a100-40g-x4", .policy = "es-moe", .experts = EXPERTS, .routing = "uniform", .set = SETS(set)};
	struct steps t;
	uint64_t reads = 0;
	steps_record(&t, &o, STEPS);
	cr_assert_eq(schedule_expert_home(t.schedule), HOME_SSD);
	*updates = 0;
	for (stage_id id = t.first[STEPS - 1]; id < t.first[STEPS]; id++) {
		const struct stage *stage = &g_array_index(t.stages, struct stage, id);
		reads += stage->kind == STAGE_SSD_READ && stage->bytes > 0 && (!state_only || stage->pass == PASS_UPDATE);
		*updates += stage->kind == STAGE_ADAM;
	}
	steps_clear(&t);
	return reads;
}

/* A step updates each expert once, so the state of each is asked for again after that of all others, which together do not fit. */
Test(store, lru_misses_the_whole_of_a_cycle_that_does_not_fit)
{
	uint64_t updates, reads = reads_of_last_step("lru", true, &updates);
	cr_assert_gt(updates, 0);
	cr_assert_eq(updates % EXPERTS, 0);
	cr_assert_eq(reads, updates, "%lu of %lu", reads, updates);
}

Test(store, belady_knows_the_coming_step)
{
	uint64_t updates, same, lru = reads_of_last_step("lru", false, &updates), belady = reads_of_last_step("belady", false, &same);
	cr_assert_eq(updates, same);
	cr_assert_lt(belady, lru, "%lu reads, and %lu with lru", belady, lru);
	cr_assert_lt(reads_of_last_step("belady", true, &same), updates);
	cr_assert_leq(belady, reads_of_last_step("lfu-decay", false, &same));
}
