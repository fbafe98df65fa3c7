/* From loads to work: tokens of every expert and bytes of every exchange, for every way of placing experts, added up from the loads alone. */
#include "model/error.h"
#include "steps.h"

#include <glib/gstdio.h>

#define IN_DRAM "policy.expert_home=dram"

/* Tokens and bytes of one layer and micro-batch against its loads. Placement is read off the expert stages. */
static void check_exchange(const struct scenario_options *o, int n_steps)
{
	struct steps t;
	steps_record(&t, o, n_steps);
	const struct network *n = t.s->network;
	int gpus = t.s->machine->gpus, experts = network_experts(n), step = n_steps - 1, microbatches = schedule_microbatches(t.schedule);
	uint32_t per_gpu = (uint32_t)(t.s->sequences / microbatches * t.s->seq_len);
	g_autofree uint32_t *loads = g_new0(uint32_t, gpus * experts);
	g_autofree int *at = g_new0(int, n->layers *experts *microbatches);
	EACH_STAGE(&t, step, st)
	if (st->kind == STAGE_EXPERT && st->expert >= 0)
		at[(st->layer * experts + st->expert) * microbatches + st->microbatch] = st->rank;
	uint64_t expected = 0;
	for (int layer = 0; layer < n->layers; layer++)
		for (int mb = 0; mb < microbatches && n->layer[layer].experts; mb++) {
			cr_assert(routing_loads(t.s->routing, step, mb, layer, gpus, experts, n->layer[layer].top_k, per_gpu, loads, NULL));
			for (int g = 0; g < gpus; g++)
				for (int e = 0; e < experts; e++)
					if (at[(layer * experts + e) * microbatches + mb] != g)
						expected += (uint64_t)loads[g * experts + e] * (uint64_t)n->d_model * 2;
		}
	/* forward out and back, once again for the recomputation, gradients out and back */
	for (int pass = PASS_FORWARD; pass <= PASS_BACKWARD; pass++) {
		uint64_t carried = stage_sum(&t, step, STAGE_ALL_TO_ALL, pass).bytes;
		cr_assert_eq(carried, expected * (pass == PASS_RECOMPUTE ? 1 : 2), "%s %s: %lu of %lu bytes", o->policy, stage_pass_name(pass),
		             carried, expected);
	}
	steps_clear(&t);
}

Test(route, all_to_alls_carry_what_the_loads_say)
{
	struct scenario_options o = {.model = "gpt-moe-l", .machine = "a100-40g-x4", .policy = "es-moe", .experts = 16};
	o.routing = "zipf:0.8";
	o.microbatches = 4;
	o.set = SETS(IN_DRAM);
	check_exchange(&o, 2);
	o.experts = 13;
	o.gpus = 3;
	check_exchange(&o, 1);
	o = (struct scenario_options){
	    .model = "mixtral-8x7b", .machine = "h200-x8", .policy = "es-moe", .routing = "zipf:0.8", .sequences = 2, .set = SETS(IN_DRAM)};
	check_exchange(&o, 1);
	o = (struct scenario_options){
	    .model = "gpt-moe-m", .machine = "v100-x16", .policy = "es-moe", .routing = "hash", .experts = 48, .sequences = 2};
	o.set = SETS(IN_DRAM);
	check_exchange(&o, 2);
	o = (struct scenario_options){
	    .model = "gpt-moe-s", .machine = "h200-x8", .policy = "static", .routing = "zipf:0.8", .set = SETS("policy.expert_compute=sequential")};
	check_exchange(&o, 1);
}

/* Every token is computed by each of its top_k experts once a pass: slices of an expert (EP+MP) all see it. */
static void check_tokens(const struct scenario_options *o, uint64_t slices)
{
	struct steps t;
	steps_record(&t, o, 2);
	const struct network *n = t.s->network;
	uint64_t tokens = (uint64_t)t.s->machine->gpus * (uint64_t)t.s->sequences * (uint64_t)t.s->seq_len;
	for (int pass = PASS_FORWARD; pass <= PASS_BACKWARD; pass += PASS_BACKWARD - PASS_FORWARD) {
		g_autofree uint64_t *seen = g_new0(uint64_t, n->layers);
		EACH_STAGE(&t, 1, st)
		if (st->kind == STAGE_EXPERT && st->pass == pass)
			seen[st->layer] += st->tokens;
		for (int i = 0; i < n->layers; i++)
			cr_assert_eq(seen[i], n->layer[i].experts ? tokens * (uint64_t)n->layer[i].top_k * slices : 0,
			             "%s layer %d: %lu of %lu tokens", o->policy, i, seen[i], tokens);
	}
	steps_clear(&t);
}

Test(route, every_token_is_computed_once_by_each_of_its_experts)
{
	static const struct {
		const char *model, *machine, *policy, *home;
		int gpus, experts, top_k;
	} rows[] = {
	    {"gpt-moe-m", "a100-40g-x4", "es-moe", "dram", 4, 16, 1},     {"gpt-moe-m", "a100-40g-x4", "es-moe", "dram", 1, 16, 1},
	    {"gpt-moe-m", "a100-40g-x4", "es-moe", "dram", 3, 13, 2},     {"gpt-moe-m", "a100-40g-x4", "es-moe", "dram", 4, 2, 1},
	    {"gpt-moe-m", "a100-40g-x4", "es-moe", "dram", 4, 3, 1},      {"gpt-moe-m", "h200-x8", "es-moe", "dram", 8, 64, 8},
	    {"gpt-moe-m", "h200-x8", "static", "hbm", 8, 64, 8},          {"gpt-moe-m", "h200-x8", "static", "hbm", 8, 3, 1},
	    {"gpt-moe-m", "h200-x8", "static", "hbm", 5, 7, 2},           {"gpt-moe-m", "h200-x8", "static", "hbm", 1, 7, 2},
	    {"gpt-moe-m", "v100-x16", "static", "hbm", 16, 16, 2},        {"gpt-moe-m", "v100-x16", "es-moe", "dram", 16, 48, 1},
	    {"gpt-moe-m", "v100-x16", "es-moe", "dram", 12, 7, 1},        {"deepseekmoe-16b", "h200-x8", "es-moe", "dram", 8, 0, 0},
	    {"ds-pr-1.3b-31b", "a100-80g-x8", "es-moe", "dram", 8, 0, 0}, {"jamba", "h200-x8", "es-moe", "dram", 8, 0, 0},
	};
	for (size_t i = 0; i < G_N_ELEMENTS(rows); i++) {
		g_autofree char *home = g_strdup_printf("policy.expert_home=%s", rows[i].home);
		struct scenario_options o = {.model = rows[i].model, .machine = rows[i].machine, .policy = rows[i].policy, .gpus = rows[i].gpus};
		o.experts = rows[i].experts;
		o.top_k = rows[i].top_k;
		o.routing = "zipf:0.9";
		o.sequences = 4;
		o.set = SETS(home, "gpu.hbm_gib=2000", "host.dram_gib=8000", "policy.expert_split=data");
		check_tokens(&o, 1);
	}
	const struct scenario_options o = {
	    .model = "gpt-moe-m", .machine = "h200-x8", .policy = "static", .gpus = 8, .experts = 2, .set = SETS("policy.expert_split=model")};
	check_tokens(&o, 4);
}

Test(route, every_pipeline_degree_computes_and_sends_everything_once)
{
	for (int degree = 1; degree <= 8; degree++) {
		struct steps t;
		g_autofree char *set = g_strdup_printf("policy.pipeline_degree=%d", degree);
		struct scenario_options o = {
		    .model = "gpt-moe-s", .machine = "h200-x8", .policy = "static", .gpus = 4, .experts = 10, .sequences = 1, .routing = "hash"};
		o.set = SETS(set);
		check_tokens(&o, 1);
		steps_record(&t, &o, 1);
		cr_assert_eq(stage_sum(&t, 0, STAGE_ALL_TO_ALL, PASS_FORWARD).n, 2 * 4 * 12 * (uint64_t)degree);
		steps_clear(&t);
	}
}

/* Two experts on four GPUs: each slice computes all tokens in half the time. */
Test(route, slices_of_an_expert_share_its_time)
{
	static const char *const compute[] = {"policy.expert_compute=sequential", "policy.expert_compute=grouped"};
	for (int i = 0; i < 2; i++) {
		struct steps whole, sliced;
		struct scenario_options o = {.model = "gpt-moe-m", .machine = "h200-x8", .policy = "static", .gpus = 2, .experts = 2, .sequences = 8};
		o.set = SETS(compute[i]);
		steps_record(&whole, &o, 1);
		o.gpus = 4;
		o.sequences = 4;
		o.set = SETS(compute[i], "policy.expert_split=model");
		steps_record(&sliced, &o, 1);
		const struct stage *a = stage_find(&whole, 0, STAGE_EXPERT, PASS_FORWARD, 0),
		                   *b = stage_find(&sliced, 0, STAGE_EXPERT, PASS_FORWARD, 0);
		cr_assert_eq(a->tokens, b->tokens);
		cr_assert_leq(labs(a->cost_ns - 2 * b->cost_ns), 2, "%s: %ld ns whole, %ld sliced", compute[i], (long)a->cost_ns, (long)b->cost_ns);
		steps_clear(&whole);
		steps_clear(&sliced);
	}
}

static char *csv_written(const char *text)
{
	GError *error = NULL;
	char *path = NULL;
	int fd = g_file_open_tmp("loads-XXXXXX.csv", &path, &error);
	cr_assert(fd >= 0);
	cr_assert(g_file_set_contents(path, text, -1, &error));
	cr_assert(g_close(fd, &error));
	return path;
}

/* Its gradient is zero, but its moments decay: the update stays, all else goes. */
Test(route, an_expert_without_tokens_is_only_updated)
{
	struct steps t;
	g_autofree char *path = csv_written("microbatch,layer,gpu,expert,tokens\n0,0,0,0,40\n0,0,0,1,24\n0,0,0,2,0\n");
	struct scenario_options o = {.model = ROUND_NETWORK, .machine = ROUND_MACHINE, .policy = ROUND_POLICY, .experts = 3, .routing = path};
	steps_record(&t, &o, 1);
	EACH_STAGE(&t, 0, st)
	cr_assert(st->expert != 2 || st->kind == STAGE_ADAM);
	cr_assert_eq(stage_sum(&t, 0, STAGE_ADAM, PASS_UPDATE).n, 3);
	cr_assert_eq(stage_sum(&t, 0, STAGE_EXPERT, PASS_FORWARD).tokens, 64);
	g_unlink(path);
	steps_clear(&t);
}

Test(route, loads_that_lack_a_layer_are_an_error_on_every_policy)
{
	g_autofree char *path = csv_written("microbatch,layer,gpu,expert,tokens\n0,0,0,0,40\n0,0,0,1,24\n0,0,1,0,40\n0,0,1,1,24\n");
	static const char *const homes[] = {"policy.expert_home=dram", "policy.expert_home=hbm", "policy.expert_home=ssd"};
	for (size_t i = 0; i < 2 * G_N_ELEMENTS(homes); i++) {
		struct scenario_options o = {
		    .model = ROUND_NETWORK, .machine = ROUND_MACHINE, .policy = ROUND_POLICY, .gpus = i % 2 ? 2 : 1, .experts = 2, .routing = path};
		g_autoptr(GError) error = NULL;
		o.set = SETS("network.layers=2", homes[i / 2]);
		g_autoptr(scenario) s = scenario_made(&o);
		g_autoptr(schedule) schedule = schedule_made(s);
		g_autoptr(backend) b = backend_null_new(s->routing, s->machine->gpus);
		cr_assert_not(schedule_step(schedule, b, &error));
		cr_assert(g_error_matches(error, ESMOE_ERROR, ESMOE_ERROR_INPUT), "%s", error->message);
	}
	g_unlink(path);
}
