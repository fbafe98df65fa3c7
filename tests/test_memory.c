/* Bytes by tier and class against formulas typed in here, for a network small enough to add up by hand. */
#include "model/memory.h"
#include "steps.h"

/* Two layers, both MoE: 4 x 64^2 of attention, a gate of 64 x 8, experts of 2 x 64 x 256, one embedding of 100 x 64. */
#define SMALL                                                                                                                                        \
	"[network]\nlayers = 2\nd_model = 64\nheads = 4\nvocab = 100\nseq_len = 128\nsequences = 4\nactivation = gelu\nd_ff = 256\n"                 \
	"experts = 8\ntop_k = 2\ntied = true\n"
enum {
	DENSE = 100 * 64 + 2 * (4 * 64 * 64 + 64 * 8),
	EXPERT = 2 * 64 * 256,
	WITH_BIAS = EXPERT + 64 + 256,
	TOKENS = 4 * 128,
	HIDDEN = TOKENS * 64 * 2,
};

static void plan_small(const char *const *set, int gpus, const struct memory_case *k, struct memory *m)
{
	struct scenario_options o = {.model = SMALL, .machine = ROUND_MACHINE, .policy = ROUND_POLICY, .gpus = gpus, .set = set};
	g_autoptr(scenario) s = scenario_made(&o);
	memory_plan(s->network, s->machine, s->policy, k, m);
}

static const struct memory_case in_hbm = {.home = HOME_HBM, .expert_parallel = 4, .sequences = 4, .seq_len = 128};
static const struct memory_case in_dram = {.home = HOME_DRAM, .expert_parallel = 4, .sequences = 4, .seq_len = 128};

Test(memory, resident_parameters_take_sixteen_bytes_or_twenty)
{
	struct memory m;
	uint64_t params = DENSE + 2 * 2 * EXPERT; /* two of eight experts a GPU and layer */
	plan_small(SETS("software.state_bytes_gpu=16"), 4, &in_hbm, &m);
	cr_assert_eq(m.bytes[TIER_HBM][CLASS_PARAMETERS], 2 * params);
	cr_assert_eq(m.bytes[TIER_HBM][CLASS_GRADIENTS], 2 * params);
	cr_assert_eq(m.bytes[TIER_HBM][CLASS_OPTIMIZER], 12 * params);
	plan_small(SETS("software.state_bytes_gpu=20"), 4, &in_hbm, &m);
	cr_assert_eq(m.bytes[TIER_HBM][CLASS_GRADIENTS], 6 * params);
	cr_assert_eq(memory_need(&m, TIER_DRAM), 0);
	cr_assert_eq(memory_need(&m, TIER_SSD), 0);
}

Test(memory, experts_that_do_not_divide_fill_the_fullest_gpu)
{
	struct memory m;
	plan_small(SETS("network.experts=9"), 4, &in_hbm, &m);
	cr_assert_eq(m.bytes[TIER_HBM][CLASS_PARAMETERS], 2 * (DENSE + 2 * 64 + 2 * 3 * EXPERT));
}

Test(memory, dram_keeps_parameters_gradient_and_state_of_every_expert)
{
	struct memory m;
	plan_small(SETS("policy.gradient_bytes=4"), 4, &in_dram, &m);
	cr_assert_eq(m.bytes[TIER_PINNED][CLASS_PARAMETERS], 2 * 8 * 2 * WITH_BIAS);
	cr_assert_eq(m.bytes[TIER_PINNED][CLASS_GRADIENTS], 2 * 8 * 4 * WITH_BIAS);
	cr_assert_eq(m.bytes[TIER_DRAM][CLASS_OPTIMIZER], 2 * 8 * 12 * WITH_BIAS);
	cr_assert_eq(m.bytes[TIER_HBM][CLASS_PARAMETERS], 2 * DENSE);
	cr_assert_eq(memory_need(&m, TIER_DRAM), memory_total(&m, TIER_PINNED) + memory_total(&m, TIER_DRAM));
}

Test(memory, pinned_blocks_are_rounded_up_to_a_power_of_two)
{
	struct memory m;
	plan_small(SETS("software.pinned_pow2=true", "software.pinned_master=true"), 4, &in_dram, &m);
	/* 33088 parameters with their biases: half precision past 64 KiB takes 128 KiB, the master past 128 KiB takes 256 KiB */
	cr_assert_eq(m.bytes[TIER_PINNED][CLASS_PARAMETERS] + m.bytes[TIER_PINNED][CLASS_GRADIENTS], 2 * 8 * 2 * 131072);
	cr_assert_eq(m.bytes[TIER_PINNED][CLASS_OPTIMIZER], 2 * 8 * 262144);
	cr_assert_eq(m.bytes[TIER_DRAM][CLASS_OPTIMIZER], 2 * 8 * 8 * WITH_BIAS);
}

Test(memory, hbm_holds_slots_gradients_and_pinned_experts_of_an_offloaded_layer)
{
	struct memory without, with;
	struct memory_case k = in_dram;
	plan_small(SETS("policy.upload_ahead=3", "policy.gradient_bytes=4"), 4, &k, &without);
	/* four slots of 2 bytes, two gradients of 4, both ends of an exchange of top-2 tokens */
	cr_assert_eq(without.bytes[TIER_HBM][CLASS_BUFFERS], 4 * 2 * EXPERT + 2 * 4 * EXPERT + 2 * 2 * HIDDEN);
	k.pinned_share = 0.5;
	plan_small(SETS("policy.upload_ahead=3", "policy.gradient_bytes=4"), 4, &k, &with);
	cr_assert_eq(with.bytes[TIER_HBM][CLASS_PARAMETERS] - without.bytes[TIER_HBM][CLASS_PARAMETERS], 2 * 1 * 2 * EXPERT);
}

Test(memory, ssd_keeps_twelve_bytes_and_dram_is_its_cache)
{
	struct memory m;
	struct memory_case k = in_dram;
	k.home = HOME_SSD;
	plan_small(NULL, 4, &k, &m);
	cr_assert_eq(memory_total(&m, TIER_SSD), 2 * 8 * 12 * EXPERT);
	cr_assert_eq(m.cache_bytes, (uint64_t)(4000 * 1073741824.0));
	cr_assert_eq(memory_need(&m, TIER_DRAM), m.cache_bytes);
}

Test(memory, nodes_share_the_experts_unless_every_gpu_computes_all)
{
	struct memory m;
	struct memory_case k = in_dram;
	k.expert_parallel = 8;
	plan_small(NULL, 8, &k, &m);
	cr_assert_eq(m.bytes[TIER_DRAM][CLASS_OPTIMIZER], 2 * 4 * 12 * WITH_BIAS);
	k.expert_parallel = 1;
	plan_small(NULL, 8, &k, &m);
	cr_assert_eq(m.bytes[TIER_DRAM][CLASS_OPTIMIZER], 2 * 8 * 12 * WITH_BIAS);
	/* six GPUs: four of them in the first node, and two thirds of the experts */
	k.expert_parallel = 6;
	plan_small(NULL, 6, &k, &m);
	cr_assert_eq(m.bytes[TIER_DRAM][CLASS_OPTIMIZER], 2 * 6 * 12 * WITH_BIAS);
}

Test(memory, checkpoints_keep_the_input_of_each_layer)
{
	struct memory m;
	plan_small(NULL, 4, &in_hbm, &m);
	cr_assert_eq(m.checkpoint_bytes, HIDDEN);
	cr_assert_eq(m.bytes[TIER_HBM][CLASS_ACTIVATIONS], 2 * HIDDEN + HIDDEN);
	plan_small(SETS("policy.checkpoint=keep-collectives"), 4, &in_hbm, &m);
	cr_assert_eq(m.checkpoint_bytes, HIDDEN + 2 * 2 * HIDDEN);
}

/* A mask of tokens x experts x capacity elements of 15 bytes; the capacity of all experts together is top_k times the tokens. */
Test(memory, the_dispatch_mask_grows_with_tokens_squared_and_top_k)
{
	struct memory m;
	plan_small(SETS("policy.dispatch=mask", "policy.expert_home=hbm"), 4, &in_hbm, &m);
	cr_assert_eq(m.workspace[STAGE_PERMUTE], 15 * 2 * TOKENS * TOKENS);
	plan_small(SETS("policy.dispatch=mask", "policy.expert_home=hbm", "policy.capacity_factor=1.5"), 4, &in_hbm, &m);
	cr_assert_eq(m.workspace[STAGE_PERMUTE], 15 * 3 * TOKENS * TOKENS);
}

Test(memory, the_first_tier_past_its_room_is_named)
{
	struct memory m = {0};
	for (int tier = 0; tier < N_TIERS; tier++)
		m.room[tier] = 100;
	cr_assert_eq(memory_overflow(&m), -1);
	m.bytes[TIER_PINNED][CLASS_PARAMETERS] = 60;
	m.bytes[TIER_DRAM][CLASS_OPTIMIZER] = 40;
	cr_assert_eq(memory_overflow(&m), -1);
	m.bytes[TIER_DRAM][CLASS_OPTIMIZER] = 41;
	cr_assert_eq(memory_overflow(&m), TIER_DRAM);
	m.bytes[TIER_SSD][CLASS_OPTIMIZER] = 101;
	cr_assert_eq(memory_overflow(&m), TIER_DRAM);
	m.bytes[TIER_HBM][CLASS_BUFFERS] = 101;
	cr_assert_eq(memory_overflow(&m), TIER_HBM);
}

/* SE-MoE's capacities (arXiv 2205.10034) for D dense and S sparse parameters in L layers on N GPUs, a share a of a layer's experts in
 * use: GPU memory 16 D + 4 a S / L, DRAM 16 a S, SSD 12 S. Two slots here and two gradients: the experts of one GPU in one layer, all of them in use.
 */
Test(memory, of_experts_on_the_ssd_is_as_se_moe_counts_it)
{
	static const char *const set[] = {"policy.expert_home=ssd",     "policy.upload_ahead_layers=0",
	                                  "policy.upload_ahead=1",      "policy.embedding=copied",
	                                  "host.dram_gib=100000",       "gpu.hbm_gib=1000",
	                                  "software.pinned_pow2=false", NULL};
	const struct scenario_options o = {.model = "gpt-moe-m", .machine = "h200-x8", .policy = "se-moe", .gpus = 16, .experts = 32, .set = set};
	g_autoptr(GError) error = NULL;
	g_autoptr(scenario) s = scenario_new(&o, &error);
	cr_assert_not_null(s, "%s", error ? error->message : "");
	const struct network *n = s->network;
	struct memory_case k = {.home = HOME_SSD, .expert_parallel = 16, .sequences = 1, .seq_len = s->seq_len};
	struct memory m;
	memory_plan(n, s->machine, s->policy, &k, &m);
	uint64_t sparse = 24ul * 32 * 2 * 1024 * 4096, dense = 24ul * (4 * 1024 * 1024 + 1024 * 32) + 51200ul * 1024, gpus = 16, nodes = 2;
	uint64_t state = m.bytes[TIER_HBM][CLASS_PARAMETERS] + m.bytes[TIER_HBM][CLASS_GRADIENTS] + m.bytes[TIER_HBM][CLASS_OPTIMIZER];
	cr_assert_eq(network_params(n), sparse + dense);
	cr_assert_eq(state * gpus, 16 * dense);
	cr_assert_eq(m.bytes[TIER_SSD][CLASS_OPTIMIZER] * nodes, 12 * sparse);
	/* slots and gradients, beside what the dense layers and the exchange have there */
	k.home = HOME_HBM;
	struct memory without;
	memory_plan(n, s->machine, s->policy, &k, &without);
	uint64_t slots = m.bytes[TIER_HBM][CLASS_BUFFERS] - without.bytes[TIER_HBM][CLASS_BUFFERS];
	cr_assert_eq(slots * gpus, 4 * sparse / 24);
	/* an expert in DRAM, without the biases that the blocks count too: 16 bytes a parameter */
	struct expert_bytes e = memory_expert(n, s->machine, s->policy, &n->layer[0]);
	uint64_t expert = 2ul * 1024 * 4096 + 1024 + 4096;
	cr_assert_eq(e.parameter_block + e.state_block, 16 * expert);
}
