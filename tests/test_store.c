/* What DRAM as a cache over the SSD asks of the SSD: rule by rule, against a least-recently-used list kept by hand, and in time. */
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
		reads += stage->kind == STAGE_SSD_READ && stage->bytes > 0 && (!state_only || stage->part == 1);
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

static const struct sim_options all_on = {0};

enum { LAYERS = 6, N_EXPERTS = 5, BLOCKS = 2 * LAYERS * N_EXPERTS };
/* Pinned blocks are sized with the biases, D + F. */
static const uint64_t block_bytes[2] = {4 * (ROUND_EXPERT_PARAMS + 1024 + 4096), 12 * (ROUND_EXPERT_PARAMS + 1024 + 4096)};

struct list {
	int id[BLOCKS], n; /* the least recent first */
	uint64_t used, room;
	uint64_t reads[2], writes[2]; /* of parameters, of state */
};

static void drop(struct list *l, int at)
{
	l->used -= block_bytes[l->id[at] % 2];
	l->n--;
	memmove(l->id + at, l->id + at + 1, sizeof(int) * (size_t)(l->n - at));
}

static void ask(struct list *l, int layer, int expert, int state)
{
	int id = 2 * (layer * N_EXPERTS + expert) + state, at = 0;
	while (at < l->n && l->id[at] != id)
		at++;
	if (at < l->n)
		drop(l, at);
	else
		l->reads[state]++;
	while (l->used + block_bytes[state] > l->room) {
		l->writes[l->id[0] % 2]++;
		drop(l, 0);
	}
	l->id[l->n++] = id;
	l->used += block_bytes[state];
}

static void ask_for_a_step(struct list *l)
{
	memset(l->reads, 0, sizeof l->reads);
	memset(l->writes, 0, sizeof l->writes);
	for (int layer = 0; layer < LAYERS; layer++)
		for (int e = 0; e < N_EXPERTS; e++)
			ask(l, layer, e, 0);
	for (int layer = LAYERS - 1; layer >= 0; layer--)
		for (int e = 0; e < N_EXPERTS; e++) {
			ask(l, layer, e, 0);
			ask(l, layer, e, 1);
		}
}

static const struct scenario_options round_options = {.model = ROUND_NETWORK, .machine = ROUND_MACHINE, .policy = ROUND_POLICY, .experts = N_EXPERTS};

static void record(struct steps *t, double dram_gib, const char *cache)
{
	struct scenario_options o = round_options;
	g_autofree char *room = g_strdup_printf("host.dram_gib=%g", dram_gib), *rule = g_strdup_printf("policy.ssd_cache=%s", cache);
	o.set = SETS("network.layers=6", "policy.expert_home=ssd", room, rule);
	steps_record(t, &o, 3);
}

Test(store, reads_and_writes_are_those_of_a_least_recently_used_list)
{
	static const double rooms[] = {0.3, 0.7, 1.5, 2.5, 3.5, 10};
	for (size_t i = 0; i < G_N_ELEMENTS(rooms); i++) {
		struct steps t;
		struct list list = {.room = (uint64_t)(rooms[i] * 1073741824.0)};
		record(&t, rooms[i], "lru");
		for (int step = 0; step < 3; step++) {
			ask_for_a_step(&list);
			cr_assert_eq(stage_sum(&t, step, STAGE_SSD_READ, PASS_UPDATE).n, list.reads[1]);
			cr_assert_eq(stage_sum(&t, step, STAGE_SSD_READ, PASS_UPDATE).bytes, list.reads[1] * 12 * ROUND_EXPERT_PARAMS);
			cr_assert_eq(stage_sum(&t, step, STAGE_SSD_READ, PASS_FORWARD).n + stage_sum(&t, step, STAGE_SSD_READ, PASS_BACKWARD).n,
			             list.reads[0]);
			/* parameters are cast from the master again: only state goes back */
			cr_assert_eq(stage_sum(&t, step, STAGE_SSD_WRITE, PASS_UPDATE).bytes, list.writes[1] * 12 * ROUND_EXPERT_PARAMS);
		}
		steps_clear(&t);
	}
}

Test(store, state_asked_for_in_a_cycle_misses_every_time_until_all_of_it_fits)
{
	struct steps t;
	record(&t, 2.5, "lru");
	for (int step = 0; step < 3; step++)
		cr_assert_eq(stage_sum(&t, step, STAGE_SSD_READ, PASS_UPDATE).n, LAYERS * N_EXPERTS);
	steps_clear(&t);
	record(&t, 10, "lru");
	cr_assert_eq(stage_sum(&t, 1, STAGE_SSD_READ, PASS_UPDATE).n, 0);
	steps_clear(&t);
}

/* Whoever brought a block to DRAM, its users wait for it: with every GPU uploading every expert, the first one's read serves all. */
static void check_reads_come_first(const struct scenario_options *o)
{
	struct steps t;
	steps_simulate(&t, o, 2, &all_on);
	int experts = network_experts(t.s->network);
	g_autofree nsec_t *read_ns = g_new0(nsec_t, 2 * t.s->network->layers * experts);
	for (guint i = 0; i < t.stages->len; i++) {
		const struct stage *st = stage_at(&t, i);
		nsec_t *parameters = &read_ns[2 * (st->layer * experts + MAX(0, st->expert))], *state = parameters + 1;
		if (st->kind == STAGE_SSD_READ)
			*(st->pass == PASS_UPDATE ? state : parameters) = end_of(&t, st);
		if (st->kind == STAGE_UPLOAD && st->pass != PASS_UPDATE)
			cr_assert_geq(start_of(&t, st), *parameters, "gpu %d uploads what is still being read", st->rank);
		if (st->kind == STAGE_ADAM)
			cr_assert_geq(start_of(&t, st), *state, "Adam runs on what is still being read");
	}
	steps_clear(&t);
}

Test(store, nobody_uses_a_block_before_it_has_been_read)
{
	struct scenario_options o = round_options;
	o.set = SETS("network.layers=6", "policy.expert_home=ssd", "host.dram_gib=1.5", "machine.gpus=4");
	check_reads_come_first(&o);
	o.set = SETS("network.layers=6", "policy.expert_home=ssd", "host.dram_gib=1.5", "machine.gpus=4", "policy.expert_parallel=1");
	check_reads_come_first(&o);
}

/* Two nodes, each with an SSD of its own: an expert's blocks stay on the node that computes it. */
Test(store, every_node_reads_its_own_experts)
{
	static const int counts[] = {8, 5, 3, 1};
	for (size_t i = 0; i < G_N_ELEMENTS(counts); i++) {
		struct steps t;
		struct scenario_options o = round_options;
		o.experts = counts[i];
		o.gpus = 8;
		o.set = SETS("network.layers=6", "policy.expert_home=ssd", "host.dram_gib=0.3", "policy.placement=lpt");
		steps_record(&t, &o, 2);
		int gpus = t.s->machine->gpus_per_node;
		int *node = g_new0(int, LAYERS *counts[i]);
		EACH_STAGE(&t, 0, st)
		if (st->kind == STAGE_SSD_READ && st->pass == PASS_FORWARD)
			node[st->layer * counts[i] + st->expert] = st->rank / gpus;
		for (guint j = 0; j < t.stages->len; j++) {
			const struct stage *st = stage_at(&t, j);
			if (st->kind == STAGE_UPLOAD || st->kind == STAGE_ADAM || st->kind == STAGE_SSD_READ || st->kind == STAGE_SSD_WRITE)
				cr_assert_eq(st->rank / gpus, node[st->layer * counts[i] + st->expert], "%s of expert %d of %d",
				             stage_kind_name(st->kind), st->expert, counts[i]);
		}
		cr_assert_eq(stage_sum(&t, 1, STAGE_SSD_READ, PASS_UPDATE).n, LAYERS * (uint64_t)counts[i]);
		g_free(node);
		steps_clear(&t);
	}
}
