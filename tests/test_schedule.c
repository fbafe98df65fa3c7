/* What a schedule launches, counted on the do-nothing backend: copies, updates, collectives, and what waits for what. */
#include "sim/sim.h"
#include "steps.h"
#include "traces/trace.h"

static const struct scenario_options testbed = {.model = "gpt-moe-l", .machine = "a100-40g-x4", .policy = "es-moe", .experts = 16};
#define IN_DRAM "policy.expert_home=dram"

static uint64_t expert_params(const struct steps *t, int layer)
{
	return network_expert_params(t->s->network, &t->s->network->layer[layer]);
}

static uint64_t moe_layers(const struct steps *t)
{
	return (uint64_t)network_moe_layers(t->s->network);
}

/* Stages of kind and pass for one expert in one micro-batch, their bytes all `bytes`. */
static void expect_copies(const struct steps *t, int step, int kind, int pass, uint64_t bytes, uint64_t each)
{
	int experts = network_experts(t->s->network), layers = t->s->network->layers, microbatches = schedule_microbatches(t->schedule);
	g_autofree uint64_t *count = g_new0(uint64_t, layers * experts * microbatches);
	EACH_STAGE(t, step, st)
	if (st->kind == kind && st->pass == pass) {
		cr_assert_eq(st->bytes, bytes);
		count[((int)st->layer * experts + st->expert) * microbatches + st->microbatch]++;
	}
	for (int i = 0; i < layers * experts * microbatches; i++)
		cr_assert_eq(count[i], each, "%s %s: %lu copies in place %d, not %lu", stage_pass_name(pass), stage_kind_name(kind), count[i], i,
		             each);
}

Test(schedule, each_expert_goes_up_twice_and_its_gradient_down_once_a_microbatch)
{
	for (int gradient = 2; gradient <= 4; gradient += 2) {
		struct steps t;
		struct scenario_options o = testbed;
		g_autofree char *width = g_strdup_printf("policy.gradient_bytes=%d", gradient);
		o.microbatches = 2;
		o.set = SETS(IN_DRAM, "policy.pinned_share=0", width);
		steps_record(&t, &o, 2);
		uint64_t params = 2 * 1536 * 6144;
		for (int step = 0; step < 2; step++) {
			expect_copies(&t, step, STAGE_UPLOAD, PASS_FORWARD, 2 * params, 1);
			expect_copies(&t, step, STAGE_UPLOAD, PASS_BACKWARD, 2 * params, 1);
			expect_copies(&t, step, STAGE_DOWNLOAD, PASS_BACKWARD, (uint64_t)gradient * params, 1);
			/* nothing else crosses: the optimizer's state stays */
			cr_assert_eq(stage_sum(&t, step, STAGE_UPLOAD, PASS_UPDATE).n, 0);
			cr_assert_eq(stage_sum(&t, step, STAGE_DOWNLOAD, PASS_UPDATE).n, 0);
			/* one update a step, one addition for each micro-batch before the last */
			cr_assert_eq(stage_sum(&t, step, STAGE_ADAM, PASS_UPDATE).n, 24 * 16);
			cr_assert_eq(stage_sum(&t, step, STAGE_ACCUMULATE, PASS_BACKWARD).n, 24 * 16);
		}
		steps_clear(&t);
	}
}

static void check_pinning(int gpus, int experts, int per_gpu)
{
	struct steps t;
	struct scenario_options o = testbed;
	g_autofree int *refreshed = g_new0(int, 24 * experts);
	o.gpus = gpus;
	o.experts = experts;
	o.routing = "zipf:1";
	o.microbatches = 2;
	o.set = SETS(IN_DRAM, "gpu.hbm_gib=1000", "host.dram_gib=4000");
	steps_record(&t, &o, 2);
	uint64_t pinned = (uint64_t)(gpus * per_gpu);
	cr_assert_eq(stage_sum(&t, 0, STAGE_UPLOAD, PASS_FORWARD).n, 2 * 24 * (uint64_t)experts);
	cr_assert_eq(stage_sum(&t, 0, STAGE_UPLOAD, PASS_UPDATE).n, 24 * pinned, "%lu refreshes", stage_sum(&t, 0, STAGE_UPLOAD, PASS_UPDATE).n);
	EACH_STAGE(&t, 0, st)
	if (st->kind == STAGE_UPLOAD && st->pass == PASS_UPDATE)
		refreshed[st->layer * experts + st->expert]++;
	EACH_STAGE(&t, 1, st)
	if (st->kind == STAGE_UPLOAD && st->pass != PASS_UPDATE)
		cr_assert_eq(refreshed[st->layer * experts + st->expert], 0, "expert %d of layer %d is pinned", st->expert, st->layer);
	cr_assert_eq(stage_sum(&t, 1, STAGE_UPLOAD, PASS_FORWARD).n, 2 * 24 * ((uint64_t)experts - pinned));
	cr_assert_eq(stage_sum(&t, 1, STAGE_UPLOAD, PASS_BACKWARD).n, 2 * 24 * ((uint64_t)experts - pinned));
	cr_assert_eq(stage_sum(&t, 1, STAGE_DOWNLOAD, PASS_BACKWARD).n, 2 * 24 * (uint64_t)experts);
	steps_clear(&t);
}

Test(schedule, pinned_experts_skip_their_uploads_for_one_refresh_a_step)
{
	check_pinning(4, 16, 1);
	check_pinning(4, 32, 2);
	check_pinning(1, 8, 2);
	check_pinning(2, 6, 0);
}

Test(schedule, pinned_are_the_busiest_of_their_gpu)
{
	enum { E = 32, L = 24 };
	struct steps t;
	struct scenario_options o = testbed;
	static uint32_t tokens[L][E], least[L][4], most[L][4];
	static int gpu[L][E], refreshed[L][E];
	o.experts = E;
	o.routing = "zipf:1";
	o.set = SETS(IN_DRAM, "gpu.hbm_gib=1000");
	steps_record(&t, &o, 1);
	EACH_STAGE(&t, 0, st)
	{
		if (st->kind == STAGE_EXPERT && st->pass == PASS_FORWARD) {
			tokens[st->layer][st->expert] += st->tokens;
			gpu[st->layer][st->expert] = st->rank;
		}
		if (st->kind == STAGE_UPLOAD && st->pass == PASS_UPDATE)
			refreshed[st->layer][st->expert] = 1;
	}
	memset(least, 0xff, sizeof least);
	for (int l = 0; l < L; l++)
		for (int e = 0; e < E; e++) {
			uint32_t *best = refreshed[l][e] ? &least[l][gpu[l][e]] : &most[l][gpu[l][e]];
			*best = refreshed[l][e] ? MIN(*best, tokens[l][e]) : MAX(*best, tokens[l][e]);
		}
	for (int l = 0; l < L; l++)
		for (int g = 0; g < 4; g++)
			cr_assert_geq(least[l][g], most[l][g]);
	steps_clear(&t);
}

Test(schedule, experts_beyond_hbm_are_updated_once_a_step_whatever_their_number)
{
	static const int counts[][2] = {{4, 16}, {4, 13}, {4, 3}, {4, 2}, {4, 1}, {1, 5}, {16, 48}, {16, 3}, {12, 7}};
	for (size_t i = 0; i < G_N_ELEMENTS(counts); i++) {
		struct steps t;
		struct scenario_options o = {
		    .model = "gpt-moe-s", .machine = "v100-x16", .policy = "es-moe", .gpus = counts[i][0], .experts = counts[i][1]};
		o.sequences = 2;
		o.set = SETS(IN_DRAM, "policy.pinned_share=0");
		steps_record(&t, &o, 2);
		uint64_t params = expert_params(&t, 0) * (uint64_t)counts[i][1] * moe_layers(&t);
		uint64_t traffic = (uint64_t)t.s->machine->adam_bytes_per_param;
		cr_assert_eq(stage_sum(&t, 1, STAGE_ADAM, PASS_UPDATE).bytes, traffic * params, "%d experts on %d GPUs", counts[i][1], counts[i][0]);
		cr_assert_eq(stage_sum(&t, 1, STAGE_UPLOAD, PASS_FORWARD).bytes, 2 * params);
		cr_assert_eq(stage_sum(&t, 1, STAGE_UPLOAD, PASS_BACKWARD).bytes, 2 * params);
		cr_assert_eq(stage_sum(&t, 1, STAGE_DOWNLOAD, PASS_BACKWARD).bytes, 2 * params);
		steps_clear(&t);
	}
}

/* Each node brings every expert up to date for itself; the GPUs of one node share that work. */
static void check_everywhere(const char *machine, uint64_t gpus, uint64_t nodes)
{
	struct steps t;
	struct scenario_options o = {
	    .model = "gpt-moe-s", .machine = machine, .policy = "zero-offload-e", .experts = 6, .sequences = 2, .microbatches = 1};
	steps_record(&t, &o, 2);
	uint64_t params = expert_params(&t, 0), all = params * 6 * 12, traffic = (uint64_t)t.s->machine->adam_bytes_per_param;
	expect_copies(&t, 1, STAGE_UPLOAD, PASS_FORWARD, 2 * params, gpus);
	expect_copies(&t, 1, STAGE_UPLOAD, PASS_BACKWARD, 2 * params, gpus);
	expect_copies(&t, 1, STAGE_DOWNLOAD, PASS_BACKWARD, 2 * params / (gpus / nodes), gpus);
	cr_assert_eq(stage_sum(&t, 1, STAGE_ADAM, PASS_UPDATE).bytes, traffic * all * nodes);
	cr_assert_eq(stage_sum(&t, 1, STAGE_ALL_TO_ALL, PASS_FORWARD).n, 0);
	cr_assert_eq(stage_sum(&t, 1, nodes > 1 ? STAGE_ALL_REDUCE : STAGE_REDUCE_SCATTER, PASS_BACKWARD).n,
	             gpus * 12 * (nodes > 1 ? 6 + 1 : 6) + (nodes > 1 ? gpus : 0));
	steps_clear(&t);
}

Test(schedule, without_expert_parallelism_every_gpu_uploads_every_expert_and_brings_its_shard_down)
{
	check_everywhere("a100-40g-x4", 4, 1);
	check_everywhere("v100-x16", 16, 2);
}

static bool depends_on(const struct stage *st, stage_id id)
{
	for (int i = 0; i < st->n_preds; i++)
		if (st->preds[i] == id)
			return true;
	return false;
}

Test(schedule, an_expert_goes_up_again_only_after_its_last_update)
{
	static const char *const when[] = {"policy.optimizer=cpu-expert", "policy.optimizer=cpu-layer", "policy.optimizer=cpu-step"};
	for (size_t i = 0; i < G_N_ELEMENTS(when); i++) {
		struct steps t;
		struct scenario_options o = testbed;
		stage_id updated[24][16];
		o.set = SETS(IN_DRAM, when[i]);
		steps_record(&t, &o, 2);
		EACH_STAGE(&t, 0, st)
		if (st->kind == STAGE_ADAM)
			updated[st->layer][st->expert] = st->id;
		EACH_STAGE(&t, 0, st)
		if (st->kind == STAGE_UPLOAD && st->pass == PASS_UPDATE)
			cr_assert(depends_on(st, updated[st->layer][st->expert]), "%s: a refresh does not wait", when[i]);
		EACH_STAGE(&t, 1, st)
		if (st->kind == STAGE_UPLOAD && st->pass == PASS_FORWARD)
			cr_assert(depends_on(st, updated[st->layer][st->expert]), "%s: an upload does not wait", when[i]);
		steps_clear(&t);
	}
}

/* Layers of the updates in launch order, against the backward of layer 0, the last. */
Test(schedule, the_optimizer_knob_says_when_updates_begin)
{
	static const struct {
		const char *set;
		bool before_own_layer_ends, before_backward_ends;
	} rows[] = {
	    {"policy.optimizer=cpu-expert", true, true}, {"policy.optimizer=cpu-layer", false, true}, {"policy.optimizer=cpu-step", false, false}};
	for (size_t i = 0; i < G_N_ELEMENTS(rows); i++) {
		struct steps t;
		struct scenario_options o = testbed;
		o.set = SETS(IN_DRAM, rows[i].set);
		steps_record(&t, &o, 1);
		const struct stage *first = stage_find(&t, 0, STAGE_ADAM, PASS_UPDATE, 0),
		                   *mixer = stage_find(&t, 0, STAGE_MIXER, PASS_BACKWARD, 24 * 4 - 1);
		stage_id last_of_layer = 0;
		EACH_STAGE(&t, 0, st)
		if (st->kind == STAGE_EXPERT && st->pass == PASS_BACKWARD && st->layer == first->layer)
			last_of_layer = st->id;
		cr_assert_eq(first->layer, 23);
		cr_assert_eq(first->id < last_of_layer, rows[i].before_own_layer_ends, "%s", rows[i].set);
		cr_assert_eq(first->id < mixer->id, rows[i].before_backward_ends, "%s", rows[i].set);
		steps_clear(&t);
	}
}

Test(schedule, checkpointing_decides_what_is_done_again)
{
	static const struct {
		const char *set;
		uint64_t mixers, exchanges;
	} rows[] = {{"policy.checkpoint=none", 0, 0}, {"policy.checkpoint=keep-collectives", 24 * 4, 0}, {"policy.checkpoint=full", 24 * 4, 24 * 4}};
	for (size_t i = 0; i < G_N_ELEMENTS(rows); i++) {
		struct steps t;
		struct scenario_options o = testbed;
		o.sequences = 1;
		o.set = SETS(IN_DRAM, rows[i].set);
		steps_record(&t, &o, 1);
		cr_assert_eq(stage_sum(&t, 0, STAGE_MIXER, PASS_RECOMPUTE).n, rows[i].mixers);
		cr_assert_eq(stage_sum(&t, 0, STAGE_ALL_TO_ALL, PASS_RECOMPUTE).n, rows[i].exchanges);
		steps_clear(&t);
	}
}

static void expect_same(const struct stage *a, const struct stage *b)
{
	cr_assert(a->id == b->id && a->kind == b->kind && a->pass == b->pass && a->layer == b->layer && a->microbatch == b->microbatch &&
	              a->expert == b->expert && a->rank == b->rank && a->stream == b->stream && a->tokens == b->tokens && a->bytes == b->bytes &&
	              a->n_preds == b->n_preds,
	          "stage %u differs", a->id);
	for (int i = 0; i < a->n_preds; i++)
		cr_assert_eq(a->preds[i], b->preds[i]);
}

static const char *const all_policies[] = {"es-moe", "static", "fairseq", "tutel", "zero-offload-e"};

Test(schedule, two_runs_launch_the_same_stages)
{
	for (size_t p = 0; p < G_N_ELEMENTS(all_policies); p++) {
		struct steps a, b;
		struct scenario_options o = {
		    .model = "gpt-moe-s", .machine = "h200-x8", .policy = all_policies[p], .experts = 20, .routing = "zipf:1:0.3", .seed = 5};
		steps_record(&a, &o, 2);
		steps_record(&b, &o, 2);
		cr_assert_eq(a.stages->len, b.stages->len);
		for (guint i = 0; i < a.stages->len; i++) {
			const struct stage *x = stage_at(&a, i), *y = stage_at(&b, i);
			expect_same(x, y);
			cr_assert(x->cost_ns == y->cost_ns && x->n_kernels == y->n_kernels && x->profile == y->profile && x->group == y->group);
		}
		steps_clear(&a);
		steps_clear(&b);
	}
}

Test(schedule, the_simulator_runs_the_stages_that_the_do_nothing_backend_saw)
{
	static const struct sim_options all_on = {0};
	for (size_t p = 0; p < G_N_ELEMENTS(all_policies); p++) {
		struct steps t;
		struct scenario_options o = {
		    .model = "gpt-moe-s", .machine = "a100-40g-x4", .policy = all_policies[p], .experts = 12, .routing = "zipf:0.7"};
		steps_simulate(&t, &o, 2, &all_on);
		g_autoptr(trace) trace = trace_new();
		sim_trace(t.b, false, trace);
		cr_assert_eq(trace->spans->len, t.stages->len);
		for (guint i = 0; i < trace->spans->len; i++) {
			const struct span *x = &g_array_index(trace->spans, struct span, i);
			struct stage y = {
			    .id = x->id, .kind = x->kind, .pass = x->pass, .layer = x->layer, .microbatch = x->microbatch, .expert = x->expert};
			y.rank = x->rank;
			y.stream = x->stream;
			y.tokens = x->tokens;
			y.bytes = x->bytes;
			y.n_preds = x->n_preds;
			memcpy(y.preds, x->preds, sizeof y.preds);
			expect_same(&y, stage_at(&t, i));
		}
		steps_clear(&t);
	}
}

Test(schedule, collectives_have_one_member_a_gpu_and_cross_nodes_where_there_are_two)
{
	struct steps t;
	struct scenario_options o = {.model = "gpt-moe-s", .machine = "v100-x16", .policy = "static", .experts = 32, .sequences = 2};
	steps_record(&t, &o, 1);
	g_autoptr(GHashTable) members = g_hash_table_new(NULL, NULL);
	EACH_STAGE(&t, 0, st)
	{
		if (!st->group)
			continue;
		cr_assert_eq(st->group_size, 16);
		const struct resources *r = schedule_resources(t.schedule);
		const struct profile *p = &r->profile[st->profile];
		uint32_t adapters = (uint32_t)(r->n_resources - (2 - st->rank / 8) * NODE_RESOURCES + RES_NIC);
		bool crosses = false;
		cr_assert_eq(p->gpu, st->rank);
		for (int i = 0; i < p->n_demands; i++)
			crosses |= p->demand[i].resource == adapters;
		cr_assert(crosses);
		guint seen = GPOINTER_TO_UINT(g_hash_table_lookup(members, GUINT_TO_POINTER(st->group)));
		cr_assert_eq(seen & (1u << st->rank), 0);
		g_hash_table_insert(members, GUINT_TO_POINTER(st->group), GUINT_TO_POINTER(seen | 1u << st->rank));
	}
	GHashTableIter iter;
	gpointer seen;
	g_hash_table_iter_init(&iter, members);
	while (g_hash_table_iter_next(&iter, NULL, &seen))
		cr_assert_eq(GPOINTER_TO_UINT(seen), 0xffff);
	steps_clear(&t);
}
