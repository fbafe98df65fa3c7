/* Tensor, expert and data parallelism together: volumes of DeepSpeed-TED's duplicate-token dropping and passes of its checkpointing, ZeRO's memory
 * and traffic, all against formulas typed in here. */
#include "steps.h"

/* Two layers of 8 experts in nodes of four GPUs; uniform routing sends each expert exactly as many tokens. */
#define NETWORK                                                                                                                                      \
	"[network]\nlayers = 2\nd_model = 1024\nheads = 8\nvocab = 1024\nseq_len = 64\nsequences = 4\nactivation = gelu\nd_ff = 4096\n"              \
	"experts = 8\ntop_k = 2\ntied = true\n"
#define ROW "[policy]\ndispatch = exact\n"
enum { LAYERS = 2, D = 1024, F = 4096, E = 8, K = 2, TOKENS = 4 * 64, BYTES = 2 };
enum { DENSE_OF_LAYER = 4 * D * D, GATE = D * E, EXPERT = 2 * D * F, EMBEDDING = 1024 * D };

static void record(struct steps *t, int gpus, const char *const *set)
{
	struct scenario_options o = {
	    .model = NETWORK, .machine = ROUND_MACHINE, .policy = ROW, .gpus = gpus, .set = set, .routing = "uniform", .microbatches = 1};
	steps_record(t, &o, 1);
}

/* Of one kind over all passes, and only tensor groups' of them, or only others. */
static struct sum exchanged(const struct steps *t, int kind, int pass, bool partial)
{
	struct sum sum = {0};
	EACH_STAGE(t, 0, st)
	if (st->kind == kind && (pass < 0 || st->pass == pass) && (kind == STAGE_ALL_TO_ALL || (st->part == REDUCED_PARTIAL) == partial)) {
		sum.n++;
		sum.bytes += st->bytes;
		sum.cost_ns += st->cost_ns;
	}
	return sum;
}

/* arXiv 2303.06318, section 5: all G_t GPUs of a group send the same T tokens; dropping leaves each a share, which the group gathers. */
Test(parallel, dropping_duplicates_divides_all_to_alls_by_the_tensor_group)
{
	struct steps cut, dropped;
	int gpus = 16, tensor = 4, units = gpus / tensor;
	uint64_t group_tokens = (uint64_t)TOKENS * (uint64_t)tensor;
	record(&cut, gpus, SETS("policy.tensor_parallel=4"));
	record(&dropped, gpus, SETS("policy.tensor_parallel=4", "policy.all_to_all=dropped"));
	struct sum all = exchanged(&cut, STAGE_ALL_TO_ALL, PASS_FORWARD, false), share = exchanged(&dropped, STAGE_ALL_TO_ALL, PASS_FORWARD, false);
	cr_assert_eq(all.n, 2 * LAYERS * gpus);
	cr_assert_eq(share.n, all.n);
	/* what stays in the unit is not sent */
	uint64_t each_way = group_tokens * K * D * BYTES * (uint64_t)(units - 1) / (uint64_t)units;
	cr_assert_eq(all.bytes, all.n * each_way, "%lu for %lu", all.bytes / all.n, each_way);
	cr_assert_eq(share.bytes, share.n * each_way / (uint64_t)tensor);
	steps_clear(&cut);
	steps_clear(&dropped);
}

/* The ring brings each GPU (t - 1) / t of the group's rows, at the machine's 1000 GB/s without latency. */
Test(parallel, dropped_tokens_are_gathered_once_each_way)
{
	struct steps cut, dropped;
	int gpus = 16, tensor = 4;
	uint64_t rows = (uint64_t)TOKENS * (uint64_t)tensor * K;
	record(&cut, gpus, SETS("policy.tensor_parallel=4"));
	record(&dropped, gpus, SETS("policy.tensor_parallel=4", "policy.all_to_all=dropped"));
	struct sum gathers = exchanged(&dropped, STAGE_ALL_GATHER, PASS_FORWARD, true);
	cr_assert_eq(exchanged(&cut, STAGE_ALL_GATHER, -1, true).n, 0);
	cr_assert_eq(gathers.n, 2 * LAYERS * gpus);
	cr_assert_eq(gathers.bytes, gathers.n * rows * D * BYTES);
	double ring_ns = (double)(tensor - 1) / tensor * (double)(rows * D * BYTES) / 1000;
	cr_assert_float_eq((double)gathers.cost_ns / (double)gathers.n, ring_ns, 1);
	steps_clear(&cut);
	steps_clear(&dropped);
}

/* Per MoE layer and pass two all-reduces and two all-to-alls; keeping the outputs of the first forward's leaves two passes of three. The all-reduces
 * of embedding and head, which nothing recomputes, come on top. */
Test(parallel, keeping_collectives_leaves_two_passes_of_three)
{
	static const char *const ways[] = {"policy.all_to_all=linear", "policy.all_to_all=dropped"};
	for (size_t i = 0; i < G_N_ELEMENTS(ways); i++) {
		struct steps layer, kept;
		uint64_t gpus = 16;
		record(&layer, (int)gpus, SETS("policy.tensor_parallel=4", ways[i], "policy.checkpoint=layer"));
		record(&kept, (int)gpus, SETS("policy.tensor_parallel=4", ways[i], "policy.checkpoint=keep-collectives"));
		struct sum to_all = exchanged(&layer, STAGE_ALL_TO_ALL, -1, false), reduced = exchanged(&layer, STAGE_ALL_REDUCE, -1, true);
		cr_assert_eq(to_all.n, 3 * 2 * LAYERS * gpus);
		cr_assert_eq(reduced.n, (3 * 2 * LAYERS + 2) * gpus);
		struct sum to_all_kept = exchanged(&kept, STAGE_ALL_TO_ALL, -1, false), reduced_kept = exchanged(&kept, STAGE_ALL_REDUCE, -1, true);
		cr_assert_eq(to_all_kept.n, 2 * 2 * LAYERS * gpus);
		cr_assert_eq(reduced_kept.n, (2 * 2 * LAYERS + 2) * gpus);
		cr_assert_eq(3 * to_all_kept.bytes, 2 * to_all.bytes);
		cr_assert_eq(3 * exchanged(&kept, STAGE_ALL_GATHER, -1, true).bytes, 2 * exchanged(&layer, STAGE_ALL_GATHER, -1, true).bytes);
		uint64_t ends = 2 * gpus * TOKENS * 4 * D * BYTES;
		cr_assert_eq(3 * (reduced_kept.bytes - ends), 2 * (reduced.bytes - ends));
		/* what is computed again is the same */
		cr_assert_eq(exchanged(&kept, STAGE_ALL_TO_ALL, PASS_RECOMPUTE, false).n, 0);
		cr_assert_eq(exchanged(&kept, STAGE_ALL_REDUCE, PASS_RECOMPUTE, true).n, 0);
		steps_clear(&layer);
		steps_clear(&kept);
	}
}

/* A tensor group works on the sequences of all its GPUs, each with its part: the products of all GPUs together stay as many. */
Test(parallel, a_tensor_group_has_the_sequences_of_its_gpus)
{
	struct steps t;
	record(&t, 16, SETS("policy.tensor_parallel=4"));
	cr_assert_eq(schedule_plan(t.schedule)->tokens, TOKENS * 4);
	struct sum mixers = stage_sum(&t, 0, STAGE_MIXER, PASS_FORWARD), experts = stage_sum(&t, 0, STAGE_EXPERT, PASS_FORWARD);
	cr_assert_eq(mixers.tokens, (uint64_t)LAYERS * 16 * TOKENS * 4);
	cr_assert_eq(experts.tokens, (uint64_t)LAYERS * 16 * TOKENS * 4 * K);
	steps_clear(&t);
	record(&t, 16, SETS("policy.tensor_parallel=4", "policy.tensor_experts=whole", "policy.expert_split=data"));
	cr_assert_eq(stage_sum(&t, 0, STAGE_EXPERT, PASS_FORWARD).tokens, (uint64_t)LAYERS * 16 * TOKENS * K);
	/* two GPUs to an expert: of the rows of each GPU an eighth is for itself */
	struct sum sent = stage_sum(&t, 0, STAGE_ALL_TO_ALL, PASS_FORWARD);
	cr_assert_eq(sent.n, 2 * LAYERS * 16);
	cr_assert_eq(sent.bytes, sent.n * TOKENS * K * D * BYTES * 7 / 8);
	steps_clear(&t);
}

/* At 1000 GB/s and without latency: 2 (n - 1) / n of the bytes in each direction. */
Test(parallel, all_reduces_of_a_tensor_group_take_the_ring_s_time)
{
	struct steps t;
	record(&t, 8, SETS("policy.tensor_parallel=2"));
	const struct stage *st = stage_find(&t, 0, STAGE_ALL_REDUCE, PASS_FORWARD, 0);
	cr_assert_eq(st->bytes, TOKENS * 2 * D * BYTES);
	cr_assert_eq(st->group_size, 2);
	cr_assert_float_eq((double)st->cost_ns, 2.0 * 1 / 2 * TOKENS * 2 * D * BYTES / 1000, 1);
	steps_clear(&t);
}

static struct memory memory_of(int gpus, const char *const *set)
{
	struct scenario_options o = {.model = NETWORK, .machine = ROUND_MACHINE, .policy = ROW, .gpus = gpus, .set = set};
	g_autoptr(scenario) s = scenario_made(&o);
	g_autoptr(GError) error = NULL;
	struct plan plan;
	cr_assert(plan_make(s, &plan, &error), "%s", error ? error->message : "");
	return plan.memory;
}

static uint64_t state_bytes(const struct memory *m)
{
	return m->bytes[TIER_HBM][CLASS_PARAMETERS] + m->bytes[TIER_HBM][CLASS_GRADIENTS] + m->bytes[TIER_HBM][CLASS_OPTIMIZER];
}

/* arXiv 1910.02054, section 5: 16, 4 + 12/N, 2 + 14/N and 16/N bytes a parameter. Experts with one copy are not cut. */
Test(parallel, zero_keeps_the_papers_bytes_a_parameter)
{
	static const char *const stages[] = {"policy.zero_stage=0", "policy.zero_stage=1", "policy.zero_stage=2", "policy.zero_stage=3"};
	uint64_t dense = EMBEDDING + LAYERS * (DENSE_OF_LAYER + GATE), experts = (uint64_t)LAYERS * EXPERT;
	for (int n = 2; n <= 8; n *= 2) {
		uint64_t held = experts * (uint64_t)(E / n), part = dense / (uint64_t)n;
		const uint64_t expected[] = {16 * dense, 4 * dense + 12 * part, 2 * dense + 14 * part, 16 * part};
		for (int stage = 0; stage <= 3; stage++) {
			struct memory m = memory_of(n, SETS(stages[stage]));
			cr_assert_eq(state_bytes(&m) - 16 * held, expected[stage], "stage %d, %d copies", stage, n);
		}
	}
}

/* From stage 2 on two layers' gradients are whole until they are reduced, in stage 3 two layers' parameters and the embedding while they are used. */
Test(parallel, what_is_cut_is_whole_while_it_is_used)
{
	uint64_t layer = DENSE_OF_LAYER + GATE;
	struct memory none = memory_of(8, SETS("policy.zero_stage=1")), second = memory_of(8, SETS("policy.zero_stage=2")),
	              third = memory_of(8, SETS("policy.zero_stage=3"));
	cr_assert_eq(second.bytes[TIER_HBM][CLASS_BUFFERS] - none.bytes[TIER_HBM][CLASS_BUFFERS], 2 * BYTES * layer);
	cr_assert_eq(third.bytes[TIER_HBM][CLASS_BUFFERS] - second.bytes[TIER_HBM][CLASS_BUFFERS], 2 * BYTES * layer + BYTES * EMBEDDING);
}

/* Sets of 2 GPUs among 8: four copies of each expert. */
Test(parallel, zero_cuts_experts_over_their_copies)
{
	uint64_t dense = EMBEDDING + LAYERS * (DENSE_OF_LAYER + GATE), held = (uint64_t)LAYERS * EXPERT * (E / 2);
	struct memory whole = memory_of(8, SETS("policy.expert_parallel=2")),
	              first = memory_of(8, SETS("policy.expert_parallel=2", "policy.zero_stage=1"));
	cr_assert_eq(state_bytes(&whole), 16 * (dense + held));
	cr_assert_eq(state_bytes(&first), 4 * (dense + held) + 12 * (dense / 8 + held / 4));
}

/* A tensor group divides everything but the gate; copies are fewer. */
Test(parallel, tensor_and_zero_divide_one_after_the_other)
{
	uint64_t dense = (EMBEDDING + LAYERS * DENSE_OF_LAYER) / 4 + LAYERS * GATE, held = (uint64_t)LAYERS * EXPERT / 4 * (E / 2);
	struct memory m = memory_of(8, SETS("policy.tensor_parallel=4", "policy.zero_stage=1"));
	cr_assert_eq(state_bytes(&m), 4 * dense + 12 * (dense / 2) + 16 * held);
}

/* arXiv 2303.06318, section 5: the gradients of what a GPU updates, in fp32, or those of one tile. */
Test(parallel, the_tiled_optimizer_bounds_the_spike)
{
	uint64_t updated = EMBEDDING / 8 + LAYERS * (DENSE_OF_LAYER + GATE) / 8 + (uint64_t)LAYERS * EXPERT * (E / 2) / 4;
	struct memory whole = memory_of(8, SETS("policy.expert_parallel=2", "policy.zero_stage=1", "policy.gradient_cast=whole")),
	              tiled = memory_of(8, SETS("policy.expert_parallel=2", "policy.zero_stage=1", "policy.gradient_cast=tiled")),
	              none = memory_of(8, SETS("policy.expert_parallel=2", "policy.zero_stage=1"));
	cr_assert_eq(whole.workspace[STAGE_ADAM_GPU], 4 * updated);
	cr_assert_eq(tiled.workspace[STAGE_ADAM_GPU], 4 * 1800000);
	cr_assert_eq(none.workspace[STAGE_ADAM_GPU], 0);
	/* it comes when the activations have gone, so the peak is the larger of the two */
	uint64_t activations = none.bytes[TIER_HBM][CLASS_ACTIVATIONS];
	cr_assert_eq(whole.bytes[TIER_HBM][CLASS_WORKSPACE], MAX(none.bytes[TIER_HBM][CLASS_WORKSPACE], 4 * updated - activations));
	cr_assert_gt(4 * updated, activations + none.bytes[TIER_HBM][CLASS_WORKSPACE]);
}

static const struct stage *reduction_of(const struct steps *t, enum reduced what, int gpu)
{
	EACH_STAGE(t, 0, st)
	if (st->kind == STAGE_REDUCE_SCATTER && st->part == (int)what && st->rank == gpu)
		return st;
	cr_assert_fail("no reduction of GPU %d", gpu);
	return NULL;
}

/* arXiv 2303.06318, section 4: copies of all else are as many as expert-parallel ranks times copies of an expert. Members of a group hold the same
 * parameters: GPUs of equal place in their tensor groups, and of equal expert. */
Test(parallel, copies_of_the_rest_are_expert_ranks_times_copies_of_experts)
{
	static const char *const ways[] = {"policy.expert_parallel=0", "policy.expert_parallel=8"}; /* spread in one set, or in two sets */
	for (int i = 0; i < 2; i++) {
		struct steps t;
		const int gpus = 16, tensor = 2, experts = 4;
		record(&t, gpus, SETS("network.experts=4", "policy.tensor_parallel=2", "policy.zero_stage=1", "policy.expert_split=data", ways[i]));
		const struct stage *dense = reduction_of(&t, REDUCED_DENSE, 5), *expert = reduction_of(&t, REDUCED_EXPERTS, 5);
		cr_assert_eq(dense->group_size, gpus / tensor);
		cr_assert_eq(dense->group_size, experts * expert->group_size);
		int peer = i == 0 ? 7 : 13; /* the next unit, which has the other half of the expert's tokens; the same unit of the other set */
		for (int g = 0; g < gpus; g++) {
			cr_assert_eq(reduction_of(&t, REDUCED_DENSE, g)->group == dense->group, g % tensor == 1);
			cr_assert_eq(reduction_of(&t, REDUCED_EXPERTS, g)->group == expert->group, g == 5 || g == peer, "GPU %d", g);
		}
		steps_clear(&t);
	}
}

/* Gradients of GPU 0's collectives among copies, and the parameters gathered. */
static struct sum among_copies(const struct steps *t, int kind)
{
	struct sum sum = {0};
	EACH_STAGE(t, 0, st)
	if (st->kind == kind && st->rank == 0 && st->part != REDUCED_PARTIAL)
		sum.bytes += st->bytes, sum.n++;
	return sum;
}

/* Section 7: reduce-scatter and all-gather carry what the all-reduce carried; stage 3 gathers twice, half as much again. The embedding stays whole
 * between its two uses, so it is gathered once. */
Test(parallel, zero_moves_two_then_three_times_the_parameters)
{
	uint64_t layers = LAYERS * (uint64_t)(DENSE_OF_LAYER + GATE) * BYTES, embedding = (uint64_t)EMBEDDING * BYTES;
	const uint64_t reduced[] = {layers + embedding, 0, 0, 0}, scattered[] = {0, layers + embedding, layers + embedding, layers + embedding},
	               gathered[] = {0, layers + embedding, layers + embedding, 2 * layers + embedding};
	static const char *const stages[] = {"policy.zero_stage=0", "policy.zero_stage=1", "policy.zero_stage=2", "policy.zero_stage=3"};
	for (int stage = 0; stage <= 3; stage++) {
		struct steps t;
		record(&t, 8, SETS(stages[stage]));
		cr_assert_eq(among_copies(&t, STAGE_ALL_REDUCE).bytes, reduced[stage], "stage %d", stage);
		cr_assert_eq(among_copies(&t, STAGE_REDUCE_SCATTER).bytes, scattered[stage], "stage %d", stage);
		cr_assert_eq(among_copies(&t, STAGE_ALL_GATHER).bytes, gathered[stage], "stage %d", stage);
		steps_clear(&t);
	}
}

/* Nobody keeps whole gradients from stage 2 on. */
Test(parallel, from_stage_two_on_each_microbatch_reduces)
{
	struct scenario_options o = {.model = NETWORK, .machine = ROUND_MACHINE, .policy = ROW, .gpus = 4, .microbatches = 4};
	struct steps t;
	o.set = SETS("policy.zero_stage=1");
	steps_record(&t, &o, 1);
	cr_assert_eq(among_copies(&t, STAGE_REDUCE_SCATTER).n, LAYERS + 1);
	steps_clear(&t);
	o.set = SETS("policy.zero_stage=2");
	steps_record(&t, &o, 1);
	cr_assert_eq(among_copies(&t, STAGE_REDUCE_SCATTER).n, 4 * (LAYERS + 1));
	steps_clear(&t);
}

static bool waits_for(const struct steps *t, const struct stage *st, int kind)
{
	for (int i = 0; i < st->n_preds; i++)
		if (stage_at(t, st->preds[i])->kind == kind)
			return true;
	return false;
}

/* Gradients come down behind their reduction, Adam behind the last, parameters go up and are gathered, and the next step begins behind that. */
Test(parallel, parameters_updated_on_the_host_are_back_before_the_next_step)
{
	struct scenario_options o = {.model = NETWORK, .machine = ROUND_MACHINE, .policy = ROW, .gpus = 4, .microbatches = 1};
	struct steps t;
	o.set = SETS("policy.zero_stage=2", "policy.dense_optimizer=cpu");
	steps_record(&t, &o, 2);
	cr_assert(waits_for(&t, stage_find(&t, 0, STAGE_DOWNLOAD, PASS_BACKWARD, 0), STAGE_REDUCE_SCATTER));
	cr_assert(waits_for(&t, stage_find(&t, 0, STAGE_ADAM, PASS_UPDATE, 0), STAGE_DOWNLOAD));
	cr_assert(waits_for(&t, stage_find(&t, 0, STAGE_UPLOAD, PASS_UPDATE, 0), STAGE_ADAM));
	cr_assert(waits_for(&t, stage_find(&t, 0, STAGE_ALL_GATHER, PASS_UPDATE, 0), STAGE_UPLOAD));
	cr_assert(waits_for(&t, stage_find(&t, 1, STAGE_EMBED, PASS_FORWARD, 0), STAGE_ALL_GATHER));
	uint64_t part = (EMBEDDING + LAYERS * (DENSE_OF_LAYER + GATE)) / 4;
	struct sum down = stage_sum(&t, 0, STAGE_DOWNLOAD, PASS_BACKWARD), up = stage_sum(&t, 0, STAGE_UPLOAD, PASS_UPDATE);
	cr_assert_eq(down.bytes, 4 * part * BYTES);
	cr_assert_eq(up.bytes, 4 * part * BYTES);
	const struct memory *m = schedule_memory(t.schedule);
	cr_assert_eq(m->bytes[TIER_DRAM][CLASS_OPTIMIZER], 4 * 12 * part);
	cr_assert_eq(m->bytes[TIER_PINNED][CLASS_GRADIENTS], 4 * 2 * part);
	steps_clear(&t);
}

/* With parameters cut too, the first gather of the next step is what waits for them. */
Test(parallel, gathers_ahead_wait_for_parameters_updated_on_the_host)
{
	struct scenario_options o = {.model = NETWORK, .machine = ROUND_MACHINE, .policy = ROW, .gpus = 4, .microbatches = 1};
	struct steps t;
	o.set = SETS("policy.zero_stage=3", "policy.dense_optimizer=cpu");
	steps_record(&t, &o, 2);
	cr_assert(waits_for(&t, stage_find(&t, 1, STAGE_ALL_GATHER, PASS_FORWARD, 0), STAGE_UPLOAD));
	cr_assert(waits_for(&t, stage_find(&t, 1, STAGE_EMBED, PASS_FORWARD, 0), STAGE_ALL_GATHER));
	steps_clear(&t);
}

/* On streams of their own neither says that the other has ended. */
Test(parallel, a_layer_waits_for_its_parameters_and_for_the_sums_before_it)
{
	static const char *const streams[] = {"policy.reduction_stream=shared", "policy.reduction_stream=own"};
	for (int i = 0; i < 2; i++) {
		struct steps t;
		record(&t, 8, SETS("policy.tensor_parallel=2", "policy.zero_stage=3", streams[i]));
		const struct stage *mixer = stage_find(&t, 0, STAGE_MIXER, PASS_FORWARD, 0);
		cr_assert(waits_for(&t, mixer, STAGE_ALL_GATHER));
		cr_assert(waits_for(&t, mixer, STAGE_ALL_REDUCE));
		steps_clear(&t);
	}
}

/* Every row of groups ends, on the simulator, whatever the nodes. */
Test(parallel, groups_of_all_shapes_come_together)
{
	static const char *const rows[][5] = {
	    {"policy.tensor_parallel=2", "policy.zero_stage=1", NULL},
	    {"policy.tensor_parallel=4", "policy.all_to_all=dropped", "policy.zero_stage=3", "policy.reduction_stream=own", NULL},
	    {"policy.tensor_parallel=8", "policy.tensor_experts=whole", "policy.zero_stage=2", NULL},
	    {"policy.tensor_parallel=2", "policy.tensor_experts=whole", "policy.expert_home=dram", "policy.optimizer=cpu-step", NULL},
	    {"policy.tensor_parallel=8", "policy.checkpoint=layer", "policy.dispatch=padded", "policy.capacity_factor=1", NULL},
	    {"policy.tensor_parallel=4", "policy.dispatch=mask", "policy.checkpoint=keep-collectives", "policy.pipeline_degree=2", NULL},
	    {"network.experts=2", "policy.tensor_parallel=2", "policy.expert_split=model", "policy.zero_stage=1", NULL},
	    {"policy.tensor_parallel=8", "policy.all_to_all=auto", NULL},
	    {"policy.tensor_parallel=4", "policy.all_to_all=hierarchical", "machine.gpus_per_node=6", NULL},
	    {"network.experts=3", "policy.tensor_parallel=2", "policy.expert_split=data", "policy.zero_stage=3", NULL},
	};
	static const struct sim_options options = {0};
	for (size_t i = 0; i < G_N_ELEMENTS(rows); i++)
		for (int gpus = 8; gpus <= 24; gpus += 8) {
			struct scenario_options o = {
			    .model = NETWORK, .machine = ROUND_MACHINE, .policy = ROW, .gpus = gpus, .set = rows[i], .microbatches = 2};
			struct steps t;
			steps_simulate(&t, &o, 2, &options);
			steps_clear(&t);
		}
}

/* What the paper adds up, dropping and keeping, each shortens a step that exchanges bound. */
Test(parallel, dropping_and_keeping_each_shorten_a_step_bound_by_exchanges)
{
	static const char *const rows[][3] = {{"policy.checkpoint=layer", "policy.all_to_all=linear"},
	                                      {"policy.checkpoint=keep-collectives", "policy.all_to_all=linear"},
	                                      {"policy.checkpoint=layer", "policy.all_to_all=dropped"},
	                                      {"policy.checkpoint=keep-collectives", "policy.all_to_all=dropped"}};
	nsec_t ends[4];
	for (size_t i = 0; i < G_N_ELEMENTS(rows); i++) {
		struct scenario_options o = {.model = NETWORK, .machine = ROUND_MACHINE, .policy = ROW, .gpus = 16, .microbatches = 1};
		struct steps t;
		o.set = SETS("policy.tensor_parallel=4", "nic.gbps=10", rows[i][0], rows[i][1]);
		steps_simulate(&t, &o, 1, &(struct sim_options){0});
		ends[i] = end_of(&t, stage_find(&t, 0, STAGE_ADAM_GPU, PASS_UPDATE, 0));
		steps_clear(&t);
	}
	cr_assert(ends[1] < ends[0] && ends[2] < ends[0] && ends[3] < ends[1] && ends[3] < ends[2]);
}
