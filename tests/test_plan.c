/* What a policy leaves open: the paper's limits on the number of experts, homes in the order of their price, micro-batches, and what is refused. */
#include "model/error.h"
#include "model/plan.h"
#include "steps.h"

static int most_experts(const char *model, const char *policy, const char *home)
{
	struct scenario_options o = {.model = model, .machine = "a100-40g-x4", .policy = policy};
	g_autofree char *set = g_strdup_printf("policy.expert_home=%s", home);
	o.set = SETS(set);
	g_autoptr(scenario) s = scenario_made(&o);
	return plan_most_experts(s);
}

static void within_a_tenth(int experts, double paper, const char *what)
{
	cr_assert(experts >= 0.9 * paper && experts <= 1.1 * paper, "%s: %d experts fit, %g in the paper", what, experts, paper);
}

/* ES-MoE, section 5: MoE-L on four A100 of 40 GB trains with 12 experts in static systems, 60 with DRAM, about 800 with a 4 TB SSD; MoE-M needs no
 * offloading up to 32 experts and the SSD past 104. */
Test(plan, the_papers_limits_of_moe_l)
{
	within_a_tenth(most_experts("gpt-moe-l", "fairseq", "hbm"), 12, "FairSeq");
	within_a_tenth(most_experts("gpt-moe-l", "tutel", "hbm"), 12, "Tutel");
	within_a_tenth(most_experts("gpt-moe-l", "es-moe", "dram"), 60, "DRAM");
	within_a_tenth(most_experts("gpt-moe-l", "es-moe", "auto"), 800, "SSD");
}

Test(plan, the_papers_limits_of_moe_m)
{
	within_a_tenth(most_experts("gpt-moe-m", "es-moe", "hbm"), 32, "HBM");
	within_a_tenth(most_experts("gpt-moe-m", "es-moe", "dram"), 104, "DRAM");
}

static bool planned(const struct scenario_options *o, struct plan *plan, GError **error)
{
	g_autoptr(scenario) s = scenario_made(o);
	return plan_make(s, plan, error);
}

Test(plan, the_most_that_fit_fit_and_one_more_does_not)
{
	static const char *const policies[] = {"es-moe", "fairseq", "tutel", "static", "zero-offload-e"};
	for (size_t i = 0; i < G_N_ELEMENTS(policies); i++) {
		struct scenario_options o = {.model = "gpt-moe-m", .machine = "a100-40g-x4", .policy = policies[i]};
		struct plan plan;
		g_autoptr(scenario) s = scenario_made(&o);
		g_autoptr(GError) error = NULL;
		o.experts = plan_most_experts(s);
		cr_assert_gt(o.experts, 0);
		cr_assert(planned(&o, &plan, &error), "%s: %d experts: %s", policies[i], o.experts, error ? error->message : "");
		cr_assert_eq(plan.overflow, -1);
		o.experts++;
		cr_assert_not(planned(&o, &plan, &error), "%s: %d experts", policies[i], o.experts);
		cr_assert(g_error_matches(error, ESMOE_ERROR, ESMOE_ERROR_FIT));
		cr_assert_geq(plan.overflow, 0);
		g_autofree char *advice = g_strdup_printf("at most %d experts", o.experts - 1);
		cr_assert(strstr(error->message, advice), "no '%s' in: %s", advice, error->message);
	}
}

Test(plan, auto_takes_hbm_before_dram_before_ssd)
{
	int home = HOME_HBM;
	for (int experts = 4; experts <= 1024; experts *= 2) {
		struct scenario_options o = {.model = "gpt-moe-l", .machine = "a100-40g-x4", .policy = "es-moe", .experts = experts};
		struct plan plan;
		bool fits = planned(&o, &plan, NULL);
		cr_assert_eq(fits, experts <= 512);
		cr_assert_geq(plan.home, home, "%d experts go back to a nearer home", experts);
		home = plan.home;
		for (int nearer = HOME_HBM; fits && nearer < home; nearer++) {
			static const char *const words[] = {"policy.expert_home=hbm", "policy.expert_home=dram", "policy.expert_home=ssd"};
			struct plan other;
			o.set = SETS(words[nearer]);
			cr_assert_not(planned(&o, &other, NULL), "%d experts would fit nearer", experts);
		}
	}
	cr_assert_eq(home, HOME_SSD);
}

Test(plan, the_microbatch_is_the_largest_that_fits)
{
	struct scenario_options o = {
	    .model = "gpt-moe-m", .machine = "a100-40g-x4", .policy = "es-moe", .experts = 64, .set = SETS("gpu.hbm_gib=16")};
	struct plan plan, larger;
	cr_assert(planned(&o, &plan, NULL));
	cr_assert_gt(plan.microbatches, 1);
	cr_assert_eq(plan.microbatches * plan.microbatch, 32);
	cr_assert_eq(plan.tokens, (uint32_t)plan.microbatch * 1024);
	for (int count = 1; count < plan.microbatches; count++) {
		if (32 % count)
			continue;
		o.microbatches = count;
		cr_assert_not(planned(&o, &larger, NULL), "%d micro-batches fit too", count);
		cr_assert_eq(larger.overflow, TIER_HBM);
	}
}

static void refuse(const char *const *set, int gpus, const char *words)
{
	struct scenario_options o = {.model = "gpt-moe-s", .machine = "h200-x8", .policy = "static", .gpus = gpus, .set = set};
	struct plan plan;
	g_autoptr(GError) error = NULL;
	cr_assert_not(planned(&o, &plan, &error), "%s", words);
	cr_assert(g_error_matches(error, ESMOE_ERROR, ESMOE_ERROR_INPUT), "%s", error->message);
	cr_assert(strstr(error->message, words), "no '%s' in: %s", words, error->message);
}

Test(plan, knobs_without_a_meaning_together_are_refused_by_name)
{
	refuse(SETS("policy.expert_parallel=3"), 8, "expert_parallel");
	refuse(SETS("policy.expert_parallel=2", "policy.expert_home=dram"), 8, "expert_parallel");
	refuse(SETS("policy.placement=lpt", "policy.dispatch=padded"), 8, "dispatch");
	refuse(SETS("policy.capacity_factor=1"), 8, "capacity_factor");
	refuse(SETS("policy.expert_home=ssd", "ssd.gb=0"), 8, "ssd");
	refuse(SETS("policy.pipeline_degree=2", "policy.expert_home=dram"), 8, "pipeline_degree");
	refuse(SETS("policy.tensor_parallel=3"), 8, "policy.tensor_parallel must divide the number of GPUs");
	refuse(SETS("policy.tensor_parallel=5"), 5, "must divide network.heads");
	refuse(SETS("policy.tensor_parallel=4", "network.d_expert=1022"), 8, "inner sizes");
	refuse(SETS("policy.tensor_parallel=2", "policy.data_parallel=2"), 8, "data_parallel");
	refuse(SETS("policy.data_parallel=3"), 8, "data_parallel");
	refuse(SETS("policy.tensor_parallel=4", "policy.expert_parallel=2"), 8, "policy.expert_parallel must be a multiple");
	refuse(SETS("policy.tensor_parallel=2", "policy.expert_home=dram"), 8, "tensor_experts = whole");
	refuse(SETS("policy.tensor_parallel=2", "policy.tensor_experts=whole", "policy.all_to_all=dropped"), 8, "dropped");
	refuse(SETS("policy.dense_optimizer=cpu"), 8, "zero_stage");
}

Test(plan, tensor_groups_follow_from_data_parallel_and_the_machine)
{
	struct scenario_options o = {.model = "gpt-moe-s", .machine = "h200-x8", .policy = "static", .gpus = 8};
	struct plan plan;
	o.set = SETS("policy.data_parallel=2");
	cr_assert(planned(&o, &plan, NULL));
	cr_assert_eq(plan.tensor_parallel, 4);
	cr_assert_eq(plan.unit, 4);
	o.set = SETS("policy.tensor_parallel=8");
	o.gpus = 2; /* at most all of them */
	cr_assert(planned(&o, &plan, NULL));
	cr_assert_eq(plan.tensor_parallel, 2);
	cr_assert_eq(plan.microbatches * plan.microbatch, 2 * 32);
}

Test(plan, any_number_of_experts_and_gpus_works)
{
	for (int gpus = 1; gpus <= 8; gpus++)
		for (int experts = 1; experts <= 17; experts += 2) {
			static const char *const policies[] = {"es-moe", "static", "fairseq", "tutel", "zero-offload-e"};
			for (size_t i = 0; i < G_N_ELEMENTS(policies); i++) {
				struct steps t;
				struct scenario_options o = {
				    .model = "gpt-moe-s", .machine = "h200-x8", .policy = policies[i], .gpus = gpus, .experts = experts};
				o.sequences = 2;
				o.set = SETS("network.layers=2", i == 0 ? "policy.expert_home=dram" : "network.layers=2");
				steps_record(&t, &o, 2);
				cr_assert_gt(t.stages->len, 0);
				steps_clear(&t);
			}
		}
}

/* Counted by building the steps: experts without tokens and pinned ones may be fewer, copies from the SSD and refreshed pins are more. */
Test(plan, stages_are_nearly_as_many_as_are_built)
{
	static const char *const rows[][2] = {{"es-moe", "policy.expert_home=hbm"},
	                                      {"es-moe", "policy.expert_home=dram"},
	                                      {"static", "network.moe_every=2"},
	                                      {"fairseq", "network.top_k=2"},
	                                      {"tutel", "policy.pipeline_degree=2"},
	                                      {"zero-offload-e", "network.shared=1"},
	                                      {"zero-offload-e", "policy.microbatch_order=vertical"},
	                                      {"deepspeed-moe", "network.shared=1"},
	                                      {"ds-moe-ez3", "network.top_k=2"},
	                                      {"ds-moe-ezoffm", "network.top_k=1"},
	                                      {"ds-moe-edm", "network.moe_every=2"},
	                                      {"deepspeed-ted", "network.shared=1"},
	                                      {"deepspeed-ted", "policy.checkpoint=layer"},
	                                      {"deepspeed-ted", "policy.all_to_all=linear"}};
	for (size_t i = 0; i < G_N_ELEMENTS(rows); i++)
		for (int variant = 0; variant < 4; variant++) {
			struct steps t;
			struct scenario_options o = {.model = "gpt-moe-s", .machine = "h200-x8", .policy = rows[i][0], .experts = 16};
			o.microbatches = variant % 2 ? 2 : 0;
			o.gpus = variant / 2 ? 1 : 4;
			o.set = SETS(rows[i][1], "network.layers=3");
			steps_record(&t, &o, 1);
			struct plan plan;
			g_autoptr(scenario) s = scenario_made(&o);
			cr_assert(plan_make(s, &plan, NULL));
			double ratio = plan_stages(s, &plan) / t.stages->len;
			cr_expect(ratio > 0.9 && ratio < 1.15, "%s, variant %d: %.0f of %u", rows[i][0], variant, plan_stages(s, &plan),
			          t.stages->len);
			steps_clear(&t);
		}
}

/* Every GPU computes every expert: 2048 x 2048 x 24 layers of seven stages are 700 million. */
Test(plan, a_step_of_more_stages_than_memory_holds_is_refused)
{
	struct scenario_options o = {.model = "gpt-moe-l", .machine = "h200-x8", .policy = "zero-offload-e", .gpus = 2048, .experts = 2048};
	struct plan plan;
	g_autoptr(GError) error = NULL;
	o.set = SETS("host.dram_gib=100000");
	cr_assert_not(planned(&o, &plan, &error));
	cr_expect(g_error_matches(error, ESMOE_ERROR, ESMOE_ERROR_INPUT), "%s", error->message);
	cr_expect(strstr(error->message, "million stages"), "%s", error->message);
	o.policy = "es-moe";
	cr_expect(planned(&o, &plan, NULL), "2048 GPUs and experts are asked of es-moe");
}
