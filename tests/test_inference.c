/* Inference against closed forms: what is read from HBM over its bandwidth, what is multiplied over the GEMM rate, what is uploaded over the link;
 * and the ring of slots and on-demand loading against counts. */
#include "sim/predict.h"
#include "steps.h"

#include <math.h>

/* No latencies, no launches; HBM of 1000 GB/s that kernels reach in full, GEMMs 100 TFLOP/s, uploads 10 GB/s. One byte read takes as long as 50 flop
 * each way: few tokens are bound by HBM, many by the tensor cores. */
#define MACHINE                                                                                                                                      \
	"[machine]\ngpus = 1\ngpus_per_node = 8\n"                                                                                                   \
	"[gpu]\nsms = 100\nhbm_gib = 1000\nreserved_gib = 0\nbf16_tflops = 100\nhbm_gbps = 1000\ngemm_efficiency = 1\n"                              \
	"hbm_efficiency = 1\nkernel_us = 0.001\nnccl_sm_share = 0\ncopy_gemm_slowdown = 1\n"                                                         \
	"[pcie]\nh2d_gbps = 10\nd2h_gbps = 10\nduplex_gbps = 20\nlatency_us = 0\n"                                                                   \
	"[nvlink]\ngbps = 1000\nefficiency = 1\nlatency_us = 0\n[nic]\ngbps = 100\nlatency_us = 0\n"                                                 \
	"[host]\ncores = 8\ndram_gib = 4000\ndram_reserved_gib = 0\ndram_gbps = 90000\nadam_gparams_per_s = 8\nadam_threads = 8\n"                   \
	"adam_bytes_per_param = 28\n"                                                                                                                \
	"[software]\nlaunch_us = 0\nsync_us = 0\nevent_us = 0\n"
/* Matrices that tiles of 256 x 128 cut without a rest, in whole waves over 100 SMs. */
#define DENSE                                                                                                                                        \
	"[network]\nlayers = 2\nd_model = 6400\nheads = 50\nkv_heads = 10\nd_head = 128\nvocab = 12800\nseq_len = 256\nsequences = 1\n"              \
	"activation = gelu\nd_ff = 25600\nexperts = 0\ntied = false\n"
#define MOE                                                                                                                                          \
	"[network]\nlayers = 6\nd_model = 1024\nheads = 8\nvocab = 1024\nseq_len = 64\nsequences = 4\nactivation = gelu\nd_ff = 4096\n"              \
	"experts = 8\ntop_k = 2\ntied = true\n"
#define STATIC "[policy]\nexpert_home = hbm\n"
#define RING "[policy]\nexpert_home = dram\nupload_scope = next-layer\nupload_ahead_layers = 1\n"
#define ON_DEMAND "[policy]\nexpert_home = dram\n"
enum { LAYERS = 6, EXPERTS = 8 };
static const uint64_t expert_bytes = 2 * 2 * 1024 * 4096;

static struct prediction predicted(const struct scenario_options *o)
{
	const struct sim_options bare = {.no_launch = true, .no_sync = true, .no_event = true};
	g_autoptr(GError) error = NULL;
	g_autoptr(scenario) s = scenario_made(o);
	struct prediction p;
	bool ok = predict(s, &bare, 1, &p, NULL, &error);
	cr_assert(ok, "%s", error ? error->message : "");
	return p;
}

static struct scenario_options asked(const char *model, const char *policy, int batch, int context, int generate)
{
	return (struct scenario_options){.model = model,
	                                 .machine = MACHINE,
	                                 .policy = policy,
	                                 .sequences = batch,
	                                 .seq_len = context,
	                                 .workload = "inference",
	                                 .generate = generate};
}

#define NEAR(value, expected, tolerance)                                                                                                             \
	cr_assert(fabs((value) / (expected)-1) <= (tolerance), "%s is %g, not %g", #value, (double)(value), (double)(expected))

Test(inference, a_decode_step_of_a_dense_network_reads_its_weights_once)
{
	struct scenario_options o = asked(DENSE, STATIC, 1, 16, 2);
	const double d = 6400, f = 25600, v = 12800, kv = 2.0 * 10 * 128, width = 50 * 128;
	double bytes = 2 * (2 * (d * (width + kv) + width * d + 2 * d * f) + v * d);
	struct prediction p = predicted(&o);
	NEAR(p.decode_ms, bytes / 1000 / 1e6, 0.01);
	cr_assert_str_eq(p.decode_bound_by, "compute");
	o.sequences = 8; /* as many bytes of weights for eight tokens */
	NEAR(predicted(&o).decode_ms, bytes / 1000 / 1e6, 0.02);
}

Test(inference, a_decode_step_reads_keys_and_values_of_all_tokens_so_far)
{
	struct scenario_options near = asked(DENSE, STATIC, 16, 16, 2), far = asked(DENSE, STATIC, 16, 16 + 10000, 2);
	/* two layers, keys and values of ten heads of 128, two bytes */
	double more = 16 * 10000.0 * 2 * 2 * 10 * 128 * 2;
	NEAR(predicted(&far).decode_ms - predicted(&near).decode_ms, more / 1000 / 1e6, 0.001);
}

Test(inference, a_prefill_multiplies_at_the_gemm_rate)
{
	struct scenario_options o = asked(DENSE, STATIC, 50, 256, 1);
	const double d = 6400, f = 25600, kv = 2.0 * 10 * 128, width = 50 * 128, tokens = 50 * 256;
	o.set = SETS("gpu.hbm_gbps=100000"); /* so that passes over the activations do not count */
	double flops = 2 * 2 * tokens * (d * (width + kv) + width * d + 2 * d * f);
	struct prediction p = predicted(&o);
	/* beside them: scores of 256 tokens at 60 % of the rate, 0.7 % */
	NEAR(p.prefill_ms, flops / 100e12 * 1e3, 0.02);
	cr_assert(p.prefill_ms > flops / 100e12 * 1e3);
	cr_assert_eq(p.decode_ms, 0);
	cr_assert_str_eq(p.prefill_bound_by, "compute");
}

Test(inference, a_token_costs_less_in_a_larger_batch_and_a_step_never_does)
{
	double step = 0, token = INFINITY;
	for (int batch = 1; batch <= 1024; batch *= 2) {
		struct scenario_options o = asked(DENSE, STATIC, batch, 16, 4);
		struct prediction p = predicted(&o);
		cr_assert(p.decode_ms >= step * 0.999, "batch %d", batch);
		cr_assert(p.decode_ms / batch <= token, "batch %d", batch);
		step = p.decode_ms;
		token = p.decode_ms / batch;
	}
}

Test(inference, a_tensor_group_reads_its_weights_and_keys_together)
{
	/* two GPUs: each half of the weights for twice the tokens of one, and half of the keys of twice the sequences */
	struct scenario_options one = asked(DENSE, STATIC, 2, 8000, 2), two = asked(DENSE, STATIC, 1, 8000, 2);
	two.gpus = 2;
	two.set = SETS("policy.tensor_parallel=2", "nvlink.gbps=100000");
	NEAR(predicted(&two).decode_ms, predicted(&one).decode_ms / 2, 0.01);
	g_autoptr(scenario) whole = scenario_made(&one), half = scenario_made(&two);
	g_autoptr(schedule) w = schedule_made(whole), h = schedule_made(half);
	const uint64_t *all = schedule_memory(w)->bytes[TIER_HBM], *part = schedule_memory(h)->bytes[TIER_HBM];
	cr_assert_eq(2 * part[CLASS_PARAMETERS], all[CLASS_PARAMETERS]);
	cr_assert_eq(2 * part[CLASS_KV_CACHE], all[CLASS_KV_CACHE]);
}

Test(inference, throughput_counts_generated_tokens_over_the_whole_time)
{
	struct scenario_options o = asked(DENSE, STATIC, 8, 128, 5);
	struct prediction p = predicted(&o);
	double all_ms = p.prefill_ms + 4 * p.decode_ms;
	NEAR(p.tokens_per_s, 8 * 5 / (all_ms / 1e3), 1e-6);
	NEAR(p.step_ms, all_ms / 5, 1e-6);
	cr_assert(p.speed_of_light_ms <= p.step_ms);
}

Test(inference, memory_is_parameters_and_the_cache_of_keys_and_values)
{
	struct scenario_options o = {.model = "mixtral-8x7b", .machine = "h200-x8", .policy = "static", .gpus = 1, .workload = "inference"};
	o.sequences = 16;
	o.seq_len = 4000;
	o.generate = 97;
	g_autoptr(scenario) s = scenario_made(&o);
	g_autoptr(schedule) schedule = schedule_made(s);
	const struct memory *m = schedule_memory(schedule);
	/* 32 layers, eight heads of 128 for keys and for values, two bytes; the 97th token is not read again */
	cr_assert_eq(m->bytes[TIER_HBM][CLASS_KV_CACHE], UINT64_C(16) * 4096 * 32 * 2 * 8 * 128 * 2);
	cr_assert_eq(m->bytes[TIER_HBM][CLASS_PARAMETERS], 2 * network_params(s->network));
	cr_assert_eq(m->bytes[TIER_HBM][CLASS_GRADIENTS] + m->bytes[TIER_HBM][CLASS_OPTIMIZER], 0);
	cr_assert_eq(memory_need(m, TIER_DRAM) + memory_need(m, TIER_SSD), 0);
}

static uint64_t hbm_of(const char *policy)
{
	struct scenario_options o = asked(MOE, policy, 4, 64, 4);
	g_autoptr(scenario) s = scenario_made(&o);
	g_autoptr(schedule) schedule = schedule_made(s);
	return memory_total(schedule_memory(schedule), TIER_HBM);
}

Test(inference, a_ring_of_k_layers_saves_the_memory_of_the_others)
{
	cr_assert_eq(hbm_of(STATIC) - hbm_of(RING), (LAYERS - 2) * EXPERTS * expert_bytes);
	cr_assert_eq(hbm_of(STATIC), hbm_of("[policy]\nexpert_home = dram\nupload_scope = next-layer\nupload_ahead_layers = 100\n"));
	cr_assert_eq(hbm_of(STATIC) - hbm_of(ON_DEMAND), (LAYERS * EXPERTS - 2) * expert_bytes);
}

static uint64_t uploads(const struct scenario_options *o, int steps)
{
	struct steps t;
	uint64_t n = 0;
	steps_record(&t, o, steps);
	for (int i = 0; i < steps; i++)
		n += stage_sum(&t, i, STAGE_UPLOAD, PASS_FORWARD).n;
	steps_clear(&t);
	return n;
}

Test(inference, a_ring_brings_every_expert_once_a_forward_and_none_for_nobody)
{
	struct scenario_options o = asked(MOE, RING, 4, 64, 4);
	cr_assert_eq(uploads(&o, 4), 4 * LAYERS * EXPERTS);
	o.microbatches = 2;
	cr_assert_eq(uploads(&o, 4), 5 * LAYERS * EXPERTS);
	o.gpus = 4;
	cr_assert_eq(uploads(&o, 4), 5 * LAYERS * EXPERTS);
	/* room for all: each comes once and stays */
	o.set = SETS("policy.upload_ahead_layers=100");
	cr_assert_eq(uploads(&o, 4), LAYERS * EXPERTS);
	/* a quarter of each GPU's stays from the beginning: of two experts a GPU none, of eight two */
	o.set = SETS("policy.pinned_share=0.25");
	o.gpus = 1;
	cr_assert_eq(uploads(&o, 4), 5 * LAYERS * (EXPERTS - 2));
}

/* The experts with tokens, asked of the routing itself. */
static uint64_t chosen(const struct scenario_options *o, int steps)
{
	g_autoptr(scenario) s = scenario_made(o);
	g_autoptr(GError) error = NULL;
	uint64_t n = 0;
	for (int step = 0; step < steps; step++)
		for (int layer = 0; layer < LAYERS; layer++) {
			uint32_t loads[EXPERTS];
			uint32_t tokens = (uint32_t)(step ? s->sequences : s->sequences * s->seq_len);
			cr_assert(routing_loads(s->routing, step, 0, layer, 1, EXPERTS, 2, tokens, loads, &error));
			for (int e = 0; e < EXPERTS; e++)
				n += loads[e] > 0;
		}
	return n;
}

Test(inference, on_demand_only_what_the_gate_chose_is_uploaded)
{
	struct scenario_options o = asked(MOE, ON_DEMAND, 2, 64, 4);
	o.routing = "zipf:1";
	uint64_t n = chosen(&o, 4);
	cr_assert_eq(uploads(&o, 4), n);
	cr_assert_lt(n, 4 * LAYERS * EXPERTS); /* two tokens of two experts choose four of eight at most */
}

Test(inference, a_step_that_is_bound_by_uploads_takes_their_bytes_over_the_link)
{
	struct scenario_options o = asked(MOE, RING, 4, 64, 9);
	double pass_ms = LAYERS * EXPERTS * (double)expert_bytes / 10 / 1e6;
	struct prediction p = predicted(&o);
	NEAR(p.decode_ms, pass_ms, 0.03); /* the last step's first uploads ran under the one before */
	cr_assert_str_eq(p.decode_bound_by, "upload");
	cr_assert(p.speed_of_light_ms <= p.step_ms && p.speed_of_light_ms > 0.9 * p.step_ms);
}

Test(inference, a_ring_hides_its_uploads_under_a_long_prefill)
{
	/* an expert's upload takes 1.68 ms, its products 2 x 2^23 x tokens / 100 TFLOP/s: as long with 10 000 tokens */
	struct scenario_options ring = asked(MOE, RING, 1000, 100, 1), resident = asked(MOE, STATIC, 1000, 100, 1);
	ring.microbatches = resident.microbatches = 1;
	double hidden = predicted(&ring).prefill_ms - predicted(&resident).prefill_ms;
	double first_ms = expert_bytes / 10 / 1e6;
	cr_assert(hidden >= 0 && hidden <= 1.01 * first_ms, "%g ms more than without uploads", hidden);
	struct scenario_options late = asked(MOE, ON_DEMAND, 1000, 100, 1);
	late.microbatches = 1;
	double shown = predicted(&late).prefill_ms - predicted(&resident).prefill_ms;
	/* each layer's first expert is asked for when its gate has chosen; only the permutation, which reads and writes the tokens, hides it */
	double permute_ms = 4.0 * 1024 * 100000 / 1000 / 1e6;
	NEAR(shown, LAYERS * (first_ms - permute_ms), 0.02);
}

Test(inference, pinned_experts_are_the_busiest_of_the_prefill)
{
	struct scenario_options o = asked(MOE, ON_DEMAND, 4, 64, 3);
	struct steps t;
	o.routing = "zipf:2:0";
	o.set = SETS("policy.pinned_share=0.5");
	steps_record(&t, &o, 3);
	cr_assert_eq(stage_sum(&t, 1, STAGE_UPLOAD, PASS_UPDATE).n, LAYERS * EXPERTS / 2);
	cr_assert_eq(stage_sum(&t, 2, STAGE_UPLOAD, PASS_UPDATE).n, 0);
	uint64_t decode = stage_sum(&t, 1, STAGE_UPLOAD, PASS_FORWARD).n + stage_sum(&t, 2, STAGE_UPLOAD, PASS_FORWARD).n;
	uint64_t computed = stage_sum(&t, 1, STAGE_EXPERT, PASS_FORWARD).n + stage_sum(&t, 2, STAGE_EXPERT, PASS_FORWARD).n;
	cr_assert_lt(decode, computed);
	steps_clear(&t);
}

Test(inference, the_plan_counts_the_stages_of_all_steps)
{
	const char *const policies[] = {STATIC, RING, ON_DEMAND, "static", "tutel"};
	for (size_t i = 0; i < G_N_ELEMENTS(policies); i++)
		for (int gpus = 1; gpus <= 4; gpus *= 2) {
			struct scenario_options o = asked(MOE, policies[i], 16, 64, STEPS_MOST);
			o.gpus = gpus;
			o.set = SETS("policy.pipeline_degree=1");
			struct steps t;
			steps_record(&t, &o, STEPS_MOST);
			/* an expert that is over in the ring, or at home, takes a stage only with tokens */
			NEAR((double)t.stages->len, plan_stages(t.s, schedule_plan(t.schedule)), 0.1);
			steps_clear(&t);
		}
}

static void expect_refusal(const struct scenario_options *o, const char *words)
{
	g_autoptr(scenario) s = scenario_made(o);
	g_autoptr(GError) error = NULL;
	g_autoptr(schedule) schedule = schedule_new(s, NULL, &error);
	cr_assert(!schedule && strstr(error->message, words), "%s", error ? error->message : "no error");
}

Test(inference, what_has_no_meaning_is_refused)
{
	struct scenario_options o = asked(MOE, RING, 4, 64, 4);
	o.set = SETS("policy.placement=sticky");
	expect_refusal(&o, "placement = fixed");
	o = (struct scenario_options){.model = "switch-26b", .machine = "h200-x8", .policy = "static", .workload = "inference"};
	expect_refusal(&o, "encoder-decoder");
}
