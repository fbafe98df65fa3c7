/* Solo durations against measurements and closed formulas. */
#include "model/cost.h"
#include "steps.h"

#include <math.h>

static void cost_made(const struct scenario_options *o, struct scenario **s, struct cost **c)
{
	*s = scenario_made(o);
	*c = cost_new((*s)->network, (*s)->machine, (*s)->policy, (*s)->seq_len, 0);
}

/* Measured with cuBLAS on H200, bf16, d_model x d_ff, us by tokens. */
static const struct {
	int d, f;
	double us[2]; /* 2048 and 8192 tokens */
} measured[] = {{768, 3072, {18.2, 58.5}}, {1024, 4096, {26.2, 94.5}}, {2048, 8192, {89.8, 354.5}}, {4096, 14336, {297.8, 1196.4}}};

/* The forward of an expert with ReLU is two GEMMs of that size, D x F and F x D, and 4 F bytes a token of traffic through HBM. */
static double gemm_us(int d, int f, uint32_t tokens)
{
	struct scenario *s;
	struct cost *c;
	uint32_t kernels;
	g_autofree char *network = g_strdup_printf("[network]\nlayers=1\nd_model=%d\nheads=8\nactivation=relu\nd_ff=%d\nexperts=2\n", d, f);
	struct scenario_options o = {.model = network, .machine = "h200-x1", .policy = "es-moe"};
	cost_made(&o, &s, &c);
	double ns = (double)cost_compute(c, STAGE_EXPERT, PASS_FORWARD, &s->network->layer[0], tokens, &kernels);
	double traffic = 4.0 * f * tokens / (s->machine->hbm_gbps * s->machine->hbm_efficiency);
	cost_free(c);
	scenario_free(s);
	return (ns - traffic) / 2e3;
}

Test(cost, a_gemm_of_2048_tokens_or_more_is_within_20_percent_of_the_measured_one)
{
	double worst = 0, sum = 0;
	for (size_t i = 0; i < G_N_ELEMENTS(measured); i++)
		for (int j = 0; j < 2; j++) {
			double us = gemm_us(measured[i].d, measured[i].f, j ? 8192 : 2048), error = us / measured[i].us[j] - 1;
			cr_log_info("%d x %d, %d tokens: %.1f us, measured %.1f (%+.0f %%)", measured[i].d, measured[i].f, j ? 8192 : 2048, us,
			            measured[i].us[j], 100 * error);
			cr_expect_leq(fabs(error), 0.20, "%d x %d, %d tokens: %.1f us, measured %.1f", measured[i].d, measured[i].f, j ? 8192 : 2048,
			              us, measured[i].us[j]);
			worst = MAX(worst, fabs(error));
			sum += fabs(error);
		}
	cr_log_info("mean %.0f %%, worst %.0f %%", 100 * sum / 8, 100 * worst);
}

/* A GEMM that fills its waves of tiles runs at the rate that is stated. */
Test(cost, a_gemm_of_whole_waves_runs_at_the_stated_rate)
{
	struct scenario *s;
	struct cost *c;
	uint32_t kernels;
	struct scenario_options o = {.model = ROUND_NETWORK, .machine = ROUND_MACHINE, .policy = ROUND_POLICY};
	/* D = 1024, F = 4096, 25600 tokens: 100 x 32 and 100 x 8 tiles over 100 SMs */
	o.set = SETS("gpu.bf16_tflops=1", "gpu.kernel_us=0");
	cost_made(&o, &s, &c);
	nsec_t ns = cost_compute(c, STAGE_EXPERT, PASS_FORWARD, &s->network->layer[0], 25600, &kernels);
	double products = 2.0 * 2 * 25600 * 1024 * 4096 / 1e3, traffic = 4.0 * 4096 * 25600 / 50000;
	cr_assert_eq(ns, (nsec_t)ceil(products + traffic));
	cr_assert_eq(kernels, 3);
	cost_free(c);
	scenario_free(s);
}

/* One kernel an operator: bytes of F and of D a token beside the products, by hand. ReLU reads and writes halves; GELU in fp32 between two casts is
 * 6 + 8 + 6; dropout reads and writes halves and writes a byte of mask, 5 of F, and 10 of D behind it; SiLU and the product with the gate are 4 + 6.
 */
Test(cost, activation_and_dropout_are_passes_where_each_operator_is_a_kernel)
{
	static const struct {
		const char *activation, *dropout;
		int matrices, f, d;
		uint32_t kernels;
	} cases[] = {{"relu", "false", 2, 4, 0, 3},  {"relu", "true", 2, 9, 10, 5},    {"gelu", "false", 2, 20, 0, 5},
	             {"gelu", "true", 2, 25, 10, 7}, {"swiglu", "false", 3, 10, 0, 4}, {"geglu", "true", 3, 31, 10, 8}};
	for (size_t i = 0; i < G_N_ELEMENTS(cases); i++) {
		struct scenario *s;
		struct cost *c;
		uint32_t kernels;
		g_autofree char *activation = g_strdup_printf("network.activation=%s", cases[i].activation);
		g_autofree char *dropout = g_strdup_printf("network.dropout=%s", cases[i].dropout);
		struct scenario_options o = {.model = ROUND_NETWORK, .machine = ROUND_MACHINE, .policy = ROUND_POLICY};
		o.set = SETS("gpu.bf16_tflops=1", "gpu.kernel_us=0", "software.kernels=eager", activation, dropout);
		cost_made(&o, &s, &c);
		nsec_t ns = cost_compute(c, STAGE_EXPERT, PASS_FORWARD, &s->network->layer[0], 25600, &kernels);
		double products = cases[i].matrices * 2.0 * 25600 * 1024 * 4096 / 1e3;
		double traffic = (cases[i].f * 4096.0 + cases[i].d * 1024.0) * 25600 / 50000;
		cr_expect_eq(ns, (nsec_t)ceil(products + traffic), "%s, dropout %s", cases[i].activation, cases[i].dropout);
		cr_expect_eq(kernels, cases[i].kernels, "%s, dropout %s: %u kernels", cases[i].activation, cases[i].dropout, kernels);
		cost_free(c);
		scenario_free(s);
	}
}

/* 64 tokens on 25600 slots: the einsums fill whole waves; passes over the mask's 64 x 25600 elements beside them, by hand. */
Test(cost, a_dispatch_mask_is_einsums_and_passes_over_it)
{
	static const struct {
		int kind, pass, top_k, einsums, bytes;
		uint32_t kernels;
	} cases[] = {
	    {STAGE_PERMUTE, PASS_FORWARD, 1, 1, 4 + 5 + 3, 7}, {STAGE_PERMUTE, PASS_FORWARD, 2, 1, 4 + 4 + 12 + 5 + 3, 12},
	    {STAGE_PERMUTE, PASS_BACKWARD, 2, 1, 0, 1},        {STAGE_COMBINE, PASS_FORWARD, 2, 1, 6, 2},
	    {STAGE_COMBINE, PASS_BACKWARD, 1, 2, 6 + 4, 4},    {STAGE_COMBINE, PASS_BACKWARD, 2, 2, 6 + 4 + 4, 5},
	};
	for (size_t i = 0; i < G_N_ELEMENTS(cases); i++) {
		struct scenario *s;
		struct cost *c;
		uint32_t kernels;
		g_autofree char *top_k = g_strdup_printf("network.top_k=%d", cases[i].top_k);
		struct scenario_options o = {.model = ROUND_NETWORK, .machine = ROUND_MACHINE, .policy = ROUND_POLICY};
		o.set = SETS("gpu.bf16_tflops=1", "gpu.kernel_us=0", "network.experts=2", top_k);
		cost_made(&o, &s, &c);
		nsec_t ns = cost_mask(c, cases[i].kind, cases[i].pass, &s->network->layer[0], 64, 25600, &kernels);
		double einsum = 2.0 * 64 * 25600 * 1024 / 1e3, passes = 64.0 * 25600 * cases[i].bytes / 50000;
		cr_expect_eq(ns, (nsec_t)ceil(cases[i].einsums * einsum + passes), "case %zu: %ld ns", i, (long)ns);
		cr_expect_eq(kernels, cases[i].kernels, "case %zu: %u kernels", i, kernels);
		cost_free(c);
		scenario_free(s);
	}
}

Test(cost, more_tokens_never_take_less_time)
{
	static const int kinds[] = {STAGE_MIXER, STAGE_GATE, STAGE_PERMUTE, STAGE_EXPERT, STAGE_COMBINE, STAGE_HEAD, STAGE_EMBED};
	static const char *const machines[] = {"h200-x8", "a100-40g-x4"};
	for (size_t m = 0; m < G_N_ELEMENTS(machines); m++) {
		struct scenario *s;
		struct cost *c;
		struct scenario_options o = {.model = "gpt-moe-m", .machine = machines[m], .policy = "es-moe"};
		cost_made(&o, &s, &c);
		for (size_t k = 0; k < G_N_ELEMENTS(kinds); k++)
			for (int pass = PASS_FORWARD; pass <= PASS_BACKWARD; pass++) {
				nsec_t before = 0;
				const struct layer *l = kinds[k] == STAGE_HEAD || kinds[k] == STAGE_EMBED ? NULL : &s->network->layer[0];
				for (uint32_t tokens = 0; tokens <= 65536; tokens = tokens ? tokens * 2 : 1) {
					uint32_t kernels;
					nsec_t ns = cost_compute(c, kinds[k], pass, l, tokens, &kernels);
					cr_assert_geq(ns, before, "%s %s: %u tokens", stage_pass_name(pass), stage_kind_name(kinds[k]), tokens);
					before = ns;
				}
			}
		cost_free(c);
		scenario_free(s);
	}
}

Test(cost, a_cost_does_not_depend_on_what_was_asked_before)
{
	struct scenario *s;
	struct cost *warm, *cold;
	struct scenario_options o = {.model = "gpt-moe-m", .machine = "h200-x8", .policy = "es-moe"};
	cost_made(&o, &s, &warm);
	for (uint32_t tokens = 0; tokens < 20000; tokens++) {
		uint32_t kernels;
		cost_compute(warm, STAGE_EXPERT, PASS_BACKWARD, &s->network->layer[tokens % 24], tokens, &kernels);
	}
	for (uint32_t tokens = 0; tokens < 20000; tokens += 997) {
		uint32_t a, b;
		cold = cost_new(s->network, s->machine, s->policy, s->seq_len, 0);
		const struct layer *l = &s->network->layer[3];
		cr_assert_eq(cost_compute(warm, STAGE_EXPERT, PASS_BACKWARD, l, tokens, &a),
		             cost_compute(cold, STAGE_EXPERT, PASS_BACKWARD, l, tokens, &b));
		cr_assert_eq(a, b);
		cost_free(cold);
	}
	cost_free(warm);
	scenario_free(s);
}

Test(cost, links_are_latency_and_bytes_over_the_rate)
{
	struct scenario *s;
	struct cost *c;
	struct scenario_options o = {.model = ROUND_NETWORK, .machine = ROUND_MACHINE, .policy = ROUND_POLICY};
	o.set = SETS("pcie.latency_us=5", "ssd.latency_us=100", "ssd.write_gbps=2", "ssd.mixed_gbps=5", "machine.gpus=4", "nvlink.gbps=100",
	             "nvlink.efficiency=0.5", "nvlink.latency_us=20");
	cost_made(&o, &s, &c);
	cr_assert_eq(cost_upload(c, 1 << 24), 5000 + (1 << 20));
	cr_assert_eq(cost_download(c, 1 << 24), 5000 + (1 << 20));
	cr_assert_eq(cost_ssd(c, false, 1 << 24), 100000 + (1 << 22));
	cr_assert_eq(cost_ssd(c, true, 1 << 24), 100000 + (1 << 23));
	cr_assert_eq(cost_adam(c, 1 << 23, true), 1 << 20);
	/* two bytes of gradient less than the machine's bytes a parameter */
	cr_assert_float_eq((double)cost_adam(c, 1 << 23, false), (1 << 20) * (1 - 2 / s->machine->adam_bytes_per_param), 1);
	cr_assert_eq(cost_accumulate(c, 28 << 20), 10 << 17);
	/* ring: (n - 1) / n of the bytes at 50 GB/s, twice for an all-reduce */
	cr_assert_eq(cost_all_gather(c, 200 << 20, 4), 20000 + 3 * (1 << 20));
	cr_assert_eq(cost_all_reduce(c, 200 << 20, 4), 20000 + 6 * (1 << 20));
	cr_assert_eq(cost_all_reduce(c, 200 << 20, 1), 0);
	cr_assert_eq(cost_exchange(c, &(struct exchange){.intra_bytes = 50 << 20}, &(struct ranks){.stride = 1, .size = 4}, ALGORITHM_PAIRWISE),
	             20000 + (1 << 20));
	cost_free(c);
	scenario_free(s);
}

/* By rate, and by a measured table. */
Test(cost, memory_half_as_fast_takes_adam_twice_as_long)
{
	const char *const machines[] = {ROUND_MACHINE, "h200-x1-l"}, *const halves[] = {"host.adam_share=0.5", "host.adam_pace=0.5"};
	for (size_t i = 0; i < G_N_ELEMENTS(machines) * G_N_ELEMENTS(halves); i++) {
		struct scenario *s[2];
		struct cost *c[2];
		for (int half = 0; half < 2; half++)
			cost_made(&(struct scenario_options){.model = "gpt-moe-l",
			                                     .machine = machines[i / 2],
			                                     .policy = "es-moe",
			                                     .gpus = 1,
			                                     .set = SETS(half ? halves[i % 2] : "host.adam_share=1")},
			          &s[half], &c[half]);
		cr_assert_leq(ABS(cost_adam(c[1], 18874368, true) - 2 * cost_adam(c[0], 18874368, true)), 1);
		cr_assert_leq(ABS(cost_accumulate(c[1], 18874368) - 2 * cost_accumulate(c[0], 18874368)), 1);
		for (int half = 0; half < 2; half++) {
			cost_free(c[half]);
			scenario_free(s[half]);
		}
	}
}

/* Eight rows of each of 2048 GPUs fill an eighth of the smallest tile, which runs at 0.65 of the rate: 4 d F 64 2048 / (0.65 x 100 TFLOP/s), where
 * all rows together need 4 d F 8 2048 / 100 TFLOP/s. The weights' gradient is one product either way. */
Test(cost, rows_kept_by_source_fill_tiles_of_their_own)
{
	const double flops = 4.0 * 1024 * 4096 * 8 * 2048, rate = 1e5;
	const char *const words[] = {"policy.expert_rows=together", "policy.expert_rows=by-source"};
	for (int by_source = 0; by_source < 2; by_source++) {
		struct scenario *s;
		struct cost *c;
		uint32_t kernels;
		struct scenario_options o = {
		    .model = ROUND_NETWORK, .machine = ROUND_MACHINE, .policy = "[policy]\nexpert_home = hbm\n", .gpus = 2048};
		o.set = SETS(words[by_source], "gpu.bf16_tflops=100", "gpu.sms=128", "gpu.hbm_gbps=1000000", "policy.checkpoint=none");
		cost_made(&o, &s, &c);
		double forward = (double)cost_compute(c, STAGE_EXPERT, PASS_FORWARD, &s->network->layer[0], 8 * 2048, &kernels);
		double backward = (double)cost_compute(c, STAGE_EXPERT, PASS_BACKWARD, &s->network->layer[0], 8 * 2048, &kernels);
		double apart = by_source ? 8 / 0.65 : 1;
		cr_assert_float_eq(forward / (flops / rate * apart), 1, 0.03, "%g", forward * rate / flops);
		cr_assert_float_eq(backward / (flops / rate * (1 + apart)), 1, 0.03, "%g", backward * rate / flops);
		cost_free(c);
		scenario_free(s);
	}
}

/* NCCL between two H200, bytes a peer: 64 KiB 22.7 us, 1 MiB 23.1, 16 MiB 80.9, 256 MiB 909 us; all-reduce of the same 20.2, 21.6, 75.8, 894. */
Test(cost, collectives_of_two_h200_are_within_25_percent_of_the_measured_ones)
{
	static const double all_to_all_us[] = {22.7, 23.1, 80.9, 909}, all_reduce_us[] = {20.2, 21.6, 75.8, 894};
	struct scenario *s;
	struct cost *c;
	struct scenario_options o = {.model = "gpt-moe-s", .machine = "h200-x2", .policy = "static"};
	cost_made(&o, &s, &c);
	for (int i = 0; i < 4; i++) {
		uint64_t bytes = (uint64_t)1 << (16 + 4 * i);
		double a = (double)cost_exchange(c, &(struct exchange){.intra_bytes = bytes}, &(struct ranks){.stride = 1, .size = 2},
		                                 ALGORITHM_PAIRWISE) /
		           1e3,
		       r = (double)cost_all_reduce(c, bytes, 2) / 1e3;
		cr_expect_float_eq(a / all_to_all_us[i], 1, 0.25, "all-to-all of %lu bytes: %.1f us, measured %.1f", bytes, a, all_to_all_us[i]);
		cr_expect_float_eq(r / all_reduce_us[i], 1, 0.25, "all-reduce of %lu bytes: %.1f us, measured %.1f", bytes, r, all_reduce_us[i]);
	}
	cost_free(c);
	scenario_free(s);
}
