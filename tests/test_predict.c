/* Laws of whole predictions: nothing below the speed of light, more of anything never slower, mechanisms never in the way, HBM as planned. */
#include "model/error.h"
#include "model/preset.h"
#include "sim/predict.h"
#include "steps.h"

#include <math.h>

static const struct sim_options all_on = {0};

/* False when it does not fit or has no meaning. */
static bool predicted(const struct scenario_options *o, struct prediction *p, struct trace *trace)
{
	g_autoptr(scenario) s = scenario_made(o);
	g_autoptr(GError) error = NULL;
	bool ok = predict(s, &all_on, 2, p, trace, &error);
	cr_assert(ok || g_error_matches(error, ESMOE_ERROR, ESMOE_ERROR_FIT) || g_error_matches(error, ESMOE_ERROR, ESMOE_ERROR_INPUT), "%s",
	          error->message);
	return ok;
}

static double step_ms(const struct scenario_options *o)
{
	struct prediction p;
	cr_assert(predicted(o, &p, NULL), "does not fit");
	return p.step_ms;
}

static const char *const policies[] = {"es-moe", "static", "fairseq", "tutel", "zero-offload-e"};

static void check_light(const struct scenario_options *o, int *n)
{
	struct prediction p;
	if (!predicted(o, &p, NULL))
		return;
	++*n;
	cr_assert_geq(p.step_ms, p.speed_of_light_ms * (1 - 1e-9), "%s of %d experts on %s with %s: %.6f ms, light %.6f", o->model, o->experts,
	              o->machine, o->policy, p.step_ms, p.speed_of_light_ms);
	cr_assert_gt(p.speed_of_light_ms, 0);
	double tokens = p.tokens_per_s * p.step_ms / 1e3;
	cr_assert_float_eq(tokens, round(tokens), 1e-3);
}

Test(predict, no_step_is_below_its_speed_of_light)
{
	static const char *const models[] = {"gpt-moe-s", "gpt-moe-m", "gpt-moe-l", "mixtral-8x7b", "deepseekmoe-16b", "jamba", "ds-pr-1.3b-31b"};
	g_auto(GStrv) machines = preset_names("machines");
	int n = 0;
	for (size_t i = 0; i < G_N_ELEMENTS(models); i++)
		for (char **machine = machines; *machine; machine++)
			for (size_t p = 0; p < G_N_ELEMENTS(policies); p++)
				for (int experts = 8; experts <= 32; experts *= 2) {
					struct scenario_options o = {.model = models[i], .machine = *machine, .policy = policies[p], .sequences = 4};
					o.experts = i < 3 ? experts : 0;
					if (i < 3 || experts == 8)
						check_light(&o, &n);
				}
	cr_assert_gt(n, 150, "%d fit", n);
}

/* Present-day settings: fused kernels, flash attention, one node. `value` of `key` doubles twice. */
static void check_faster(const char *policy, const char *machine, const char *model, const char *key, double value)
{
	double before = INFINITY;
	for (int i = 0; i < 3; i++, value *= 2) {
		g_autofree char *set = g_strdup_printf("%s=%g", key, value);
		struct scenario_options o = {.model = model, .machine = machine, .policy = policy, .experts = 16, .sequences = 8};
		o.set = SETS(set, strcmp(policy, "es-moe") ? set : "policy.expert_home=dram", "contention.rule=max-min", "pcie.duplex_gbps=110",
		             "gpu.hbm_gib=200", "host.dram_gib=2000");
		double ms = step_ms(&o);
		cr_assert_leq(ms, before * (1 + 1e-9), "%s on %s with %s = %g: %.6f ms after %.6f", policy, machine, key, value, ms, before);
		before = ms;
	}
}

Test(predict, more_bandwidth_is_never_slower)
{
	static const char *const rows[] = {"es-moe", "static", "tutel", "zero-offload-e"};
	for (size_t i = 0; i < G_N_ELEMENTS(rows); i++)
		for (int m = 0; m < 2; m++) {
			const char *model = m ? "gpt-moe-l" : "gpt-moe-s";
			check_faster(rows[i], "h200-x8", model, "gpu.bf16_tflops", 250);
			check_faster(rows[i], "h200-x8", model, "gpu.hbm_gbps", 2400);
			check_faster(rows[i], "h200-x8", model, "nvlink.gbps", 225);
			check_faster(rows[i], "h200-x8", model, "host.adam_gparams_per_s", 2);
			check_faster(rows[i], "h200-x8", model, "host.dram_gbps", 200);
		}
}

/* With DRAM enough for all: where it is saturated, a faster upload may take from Adam what Adam needs more. */
Test(predict, a_wider_link_to_the_host_is_never_slower)
{
	static const char *const rows[] = {"es-moe", "zero-offload-e"};
	for (size_t i = 0; i < G_N_ELEMENTS(rows); i++) {
		double before = INFINITY;
		for (int gbps = 8; gbps <= 128; gbps *= 2) {
			g_autofree char *up = g_strdup_printf("pcie.h2d_gbps=%d", gbps), *down = g_strdup_printf("pcie.d2h_gbps=%d", gbps);
			g_autofree char *both = g_strdup_printf("pcie.duplex_gbps=%d", 2 * gbps);
			struct scenario_options o = {.model = "gpt-moe-m", .machine = "h200-x8", .policy = rows[i], .experts = 32, .sequences = 4};
			o.set = SETS(up, down, both, "policy.expert_home=dram", "pcie.root_gbps=0", "contention.rule=max-min", "host.dram_gbps=5000");
			double ms = step_ms(&o);
			cr_assert_leq(ms, before * (1 + 1e-9), "%s at %d GB/s: %.6f ms after %.6f", rows[i], gbps, ms, before);
			before = ms;
		}
	}
}

/* At a fixed batch of each GPU; loads are uniform. */
Test(predict, fewer_experts_are_never_slower)
{
	static const char *const rows[] = {"es-moe", "static", "zero-offload-e"};
	for (size_t i = 0; i < G_N_ELEMENTS(rows); i++) {
		double before = 0;
		for (int experts = 8; experts <= 64; experts *= 2) {
			struct scenario_options o = {
			    .model = "gpt-moe-m", .machine = "h200-x8", .policy = rows[i], .experts = experts, .routing = "uniform"};
			o.set =
			    SETS("contention.rule=max-min", i == 0 ? "policy.expert_home=dram" : "contention.rule=max-min", "policy.pinned_share=0");
			double ms = step_ms(&o);
			cr_assert_geq(ms, before * (1 - 1e-9), "%s: %d experts take %.6f ms, half of them %.6f", rows[i], experts, ms, before);
			before = ms;
		}
	}
}

Test(predict, more_gpus_of_a_node_never_train_fewer_tokens_a_second)
{
	static const char *const rows[] = {"es-moe", "static", "tutel"};
	for (size_t i = 0; i < G_N_ELEMENTS(rows); i++) {
		double before = 0;
		for (int gpus = 1; gpus <= 8; gpus *= 2) {
			struct scenario_options o = {
			    .model = "gpt-moe-m", .machine = "h200-x8", .policy = rows[i], .gpus = gpus, .experts = 32, .routing = "uniform"};
			struct prediction p;
			o.set = SETS("gpu.hbm_gib=1000", i == 0 ? "policy.expert_home=dram" : "gpu.hbm_gib=1000");
			cr_assert(predicted(&o, &p, NULL));
			cr_assert_geq(p.tokens_per_s, before, "%s on %d GPUs: %.0f tokens/s after %.0f", rows[i], gpus, p.tokens_per_s, before);
			before = p.tokens_per_s;
		}
	}
}

/* The paper's ablation on its offloaded rows: a mechanism turned off never helps. */
Test(predict, mechanisms_turned_off_never_make_the_testbed_faster)
{
	static const char *const off[] = {"policy.pinned_share=0",  "policy.optimizer=cpu-step", "policy.optimizer=cpu-layer", "policy.microbatch=2",
	                                  "policy.placement=fixed", "policy.upload_ahead=0",     "policy.gradient_bytes=4"};
	for (int experts = 16; experts <= 32; experts += 16) {
		struct scenario_options o = {.model = "gpt-moe-l", .machine = "a100-40g-x4", .policy = "es-moe", .experts = experts};
		double whole = step_ms(&o);
		for (size_t i = 0; i < G_N_ELEMENTS(off); i++) {
			o.set = SETS(off[i]);
			double ms = step_ms(&o);
			cr_assert_geq(ms, whole, "%d experts, %s: %.3f ms, with it %.3f", experts, off[i], ms, whole);
		}
		o.set = SETS("policy.dispatch=padded", "policy.placement=fixed");
		double padded = step_ms(&o);
		cr_assert_geq(padded, whole, "%d experts padded: %.3f ms, exact %.3f", experts, padded, whole);
	}
}

/* What is asked of experts in DRAM; and updates that are put off are never the slower ones where Adam bounds the step. */
Test(predict, updates_under_the_next_forward_bring_a_step_near_its_speed_of_light)
{
	static const struct {
		const char *model, *machine;
		int experts;
	} rows[] = {{"gpt-moe-m", "h200-x1", 8}, {"gpt-moe-m", "h200-x2", 8},      {"gpt-moe-m", "h200-x1", 32},
	            {"gpt-moe-l", "h200-x1", 8}, {"gpt-moe-l", "a100-40g-x4", 16}, {"gpt-moe-m", "h200-x8", 32}};
	for (size_t i = 0; i < G_N_ELEMENTS(rows); i++) {
		struct scenario_options o = {.model = rows[i].model, .machine = rows[i].machine, .policy = "es-moe", .experts = rows[i].experts};
		struct prediction p;
		o.sequences = 32;
		o.set = SETS("policy.expert_home=dram");
		double arrival = step_ms(&o);
		o.set = SETS("policy.expert_home=dram", "policy.update_order=next-forward");
		cr_assert(predicted(&o, &p, NULL));
		cr_assert_str_eq(p.bound_by, "optimizer");
		cr_assert_leq(p.step_ms, arrival, "%s on %s", o.model, o.machine);
		cr_assert_geq(p.step_ms, p.speed_of_light_ms);
		cr_assert_leq(p.step_ms, 1.15 * p.speed_of_light_ms, "%s on %s: %.1f ms, light %.1f", o.model, o.machine, p.step_ms,
		              p.speed_of_light_ms);
	}
}

static double peak(const struct trace *trace, int gpu)
{
	double most = 0;
	for (guint i = 0; i < trace->counters->len; i++) {
		const struct counter *c = g_ptr_array_index(trace->counters, i);
		for (guint j = 0; c->gpu == gpu && strcmp(c->name, "HBM bytes") == 0 && j < c->samples->len; j++)
			most = MAX(most, g_array_index(c->samples, struct sample, j).value);
	}
	return most;
}

/* The plan counts one more hidden state than the checkpoints, that of the layer which runs; with all checkpoints held and the largest workspace in
 * use the counter lacks just that. */
Test(predict, hbm_in_use_peaks_at_the_plan_less_the_hidden_state_under_way)
{
	static const struct {
		const char *model, *policy;
	} rows[] = {
	    {"gpt-moe-s", "es-moe"}, {"gpt-moe-s", "static"}, {"gpt-moe-m", "fairseq"}, {"gpt-moe-m", "zero-offload-e"}, {"gpt-moe-l", "tutel"}};
	for (size_t i = 0; i < G_N_ELEMENTS(rows); i++)
		for (int microbatches = 1; microbatches <= 4; microbatches *= 2) {
			struct scenario_options o = {.model = rows[i].model, .machine = "h200-x8", .policy = rows[i].policy, .sequences = 4};
			struct prediction p;
			o.microbatches = microbatches;
			g_autoptr(trace) trace = trace_new();
			g_autoptr(scenario) s = scenario_made(&o);
			cr_assert(predicted(&o, &p, trace));
			double hidden = 4.0 / microbatches * s->seq_len * s->network->d_model * 2, plan = (double)memory_total(&p.memory, TIER_HBM);
			for (int gpu = 0; gpu < 8; gpu++)
				cr_assert_float_eq(peak(trace, gpu), plan - hidden, 0.5, "%s %s: %f of %f", rows[i].model, rows[i].policy,
				                   peak(trace, gpu), plan);
		}
}

Test(predict, hbm_in_use_never_passes_the_plan)
{
	static const char *const models[] = {"jamba", "deepseekmoe-16b", "ds-pr-1.3b-31b", "mixtral-8x7b"};
	for (size_t i = 0; i < G_N_ELEMENTS(models); i++) {
		struct scenario_options o = {.model = models[i], .machine = "h200-x8", .policy = "es-moe", .sequences = 2, .routing = "zipf:1"};
		struct prediction p;
		g_autoptr(trace) trace = trace_new();
		cr_assert(predicted(&o, &p, trace));
		for (int gpu = 0; gpu < 8; gpu++) {
			cr_assert_leq(peak(trace, gpu), (double)memory_total(&p.memory, TIER_HBM));
			cr_assert_leq(memory_total(&p.memory, TIER_HBM), p.memory.room[TIER_HBM]);
		}
	}
}

Test(predict, what_does_not_fit_says_which_tier)
{
	struct scenario_options o = {.model = "gpt-moe-l", .machine = "a100-40g-x4", .policy = "fairseq", .experts = 64};
	struct prediction p;
	cr_assert_not(predicted(&o, &p, NULL));
	cr_assert_eq(p.oom_tier, TIER_HBM);
	o.policy = "zero-offload-e";
	o.experts = 128;
	cr_assert_not(predicted(&o, &p, NULL));
	cr_assert_eq(p.oom_tier, TIER_DRAM);
}

/* Hot experts overflow a capacity of the mean: with counts known, the share is arithmetic. */
Test(predict, dropped_tokens_are_those_past_the_capacity)
{
	struct scenario_options o = {
	    .model = "gpt-moe-s", .machine = "h200-x8", .policy = "fairseq", .experts = 16, .routing = "zipf:1", .sequences = 2};
	o.set = SETS("policy.capacity_factor=1.25", "network.layers=2");
	struct prediction p;
	g_autoptr(scenario) s = scenario_made(&o);
	uint32_t loads[8 * 16], capacity = (uint32_t)ceil(1.25 * 2048 / 16);
	double dropped = 0;
	for (int layer = 0; layer < 2; layer++) {
		cr_assert(routing_loads(s->routing, 2, 0, layer, 8, 16, 1, 2048, loads, NULL));
		for (int i = 0; i < 8 * 16; i++)
			dropped += loads[i] > capacity ? loads[i] - capacity : 0;
	}
	cr_assert(predicted(&o, &p, NULL));
	cr_assert_eq(p.microbatches, 1);
	cr_assert_float_eq(p.dropped_share, dropped / (2 * 8 * 2048), 1e-12);
}

/* What the last step leaves to upload, write or update has ended too: a layer that is not the last keeps its node's SSD and the links of both GPUs
 * busy past the last computation. */
Test(predict, a_step_ends_with_its_last_write_to_the_ssd)
{
	g_autoptr(GError) error = NULL;
	struct prediction p;
	struct scenario_options o = {.model = "ds-1.3b-52b", .machine = "a100-40g-x4", .policy = "es-moe", .gpus = 2};
	g_autoptr(scenario) s = scenario_new(&o, &error);
	cr_assert(s != NULL, "%s", error ? error->message : "");
	cr_assert(predict(s, &(struct sim_options){0}, 0, &p, NULL, &error), "%s", error ? error->message : "");
	cr_assert_eq(p.expert_home, HOME_SSD);
}

/* State that DRAM does not keep is written back under the next step; the last step has none behind it. */
Test(predict, no_step_is_shorter_than_its_work)
{
	static const char *const set[] = {"policy.expert_home=ssd", "host.dram_gib=120", NULL};
	for (int warmup = 1; warmup < 7; warmup++) {
		g_autoptr(GError) error = NULL;
		struct prediction p;
		struct scenario_options o = {
		    .model = "gpt-moe-l", .machine = "a100-80g-x8", .policy = "se-moe", .experts = 32, .routing = "zipf:1", .set = set};
		g_autoptr(scenario) s = scenario_new(&o, &error);
		cr_assert(s && predict(s, &(struct sim_options){0}, warmup, &p, NULL, &error), "%s", error ? error->message : "");
		cr_assert_geq(p.step_ms, p.speed_of_light_ms * (1 - 1e-9), "%d steps before: %.3f ms, %.3f of work", warmup, p.step_ms,
		              p.speed_of_light_ms);
	}
}
