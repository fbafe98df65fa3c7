/* Policies: fallbacks, every knob's words, and what does not go together. */
#include "model/policy.h"

#include "model/error.h"
#include "model/ini.h"

#include <criterion/criterion.h>
#include <string.h>

static struct policy *policy_of(const char *text)
{
	g_autoptr(GError) error = NULL;
	struct policy *p = policy_load(text, NULL, &error);

	cr_assert_not_null(p, "%s", error ? error->message : "");
	return p;
}

Test(policy, an_empty_row_is_plain_training_in_hbm)
{
	g_autoptr(policy) p = policy_of("[policy]\n");

	cr_assert_str_eq(p->name, "unnamed");
	cr_assert_eq(p->expert_home, HOME_HBM);
	cr_assert_eq(p->placement, PLACEMENT_FIXED);
	cr_assert_eq(p->dispatch, DISPATCH_EXACT);
	cr_assert_eq(p->optimizer, OPTIMIZER_GPU);
	cr_assert_eq(p->pipeline_degree, 1);
	cr_assert_eq(p->microbatch, 0);
	cr_assert_eq(p->pinned_share, 0);
	cr_assert_eq(p->capacity_factor, 0);
	cr_assert_eq(p->gradient_bytes, 2);
}

/* A knob set to a word, and the field that must then hold a value. */
struct knob {
	const char *text;
	size_t offset;
	int value;
};
#define KNOB(key, word, field, value)                                                                                                                \
	{                                                                                                                                            \
		key "=" word, offsetof(struct policy, field), value                                                                                  \
	}

static const struct knob knobs[] = {
    KNOB("expert_home", "hbm", expert_home, HOME_HBM),
    KNOB("expert_home", "dram", expert_home, HOME_DRAM),
    KNOB("expert_home", "ssd", expert_home, HOME_SSD),
    KNOB("expert_home", "auto", expert_home, HOME_AUTO),
    KNOB("placement", "fixed", placement, PLACEMENT_FIXED),
    KNOB("placement", "lpt", placement, PLACEMENT_LPT),
    KNOB("placement", "sticky", placement, PLACEMENT_STICKY),
    KNOB("dispatch", "exact", dispatch, DISPATCH_EXACT),
    KNOB("dispatch", "padded", dispatch, DISPATCH_PADDED),
    KNOB("dispatch", "mask", dispatch, DISPATCH_MASK),
    KNOB("expert_compute", "sequential", expert_compute, EXPERTS_SEQUENTIAL),
    KNOB("expert_compute", "grouped", expert_compute, EXPERTS_GROUPED),
    KNOB("upload_ahead", "3", upload_ahead, 3),
    KNOB("upload_scope", "layer", upload_scope, UPLOAD_LAYER),
    KNOB("upload_scope", "next-layer", upload_scope, UPLOAD_NEXT_LAYER),
    KNOB("optimizer", "gpu", optimizer, OPTIMIZER_GPU),
    KNOB("optimizer", "cpu-step", optimizer, OPTIMIZER_CPU_STEP),
    KNOB("optimizer", "cpu-layer", optimizer, OPTIMIZER_CPU_LAYER),
    KNOB("optimizer", "cpu-expert", optimizer, OPTIMIZER_CPU_EXPERT),
    KNOB("all_to_all", "linear", all_to_all, ALL_TO_ALL_LINEAR),
    KNOB("all_to_all", "hierarchical", all_to_all, ALL_TO_ALL_HIERARCHICAL),
    KNOB("all_to_all", "auto", all_to_all, ALL_TO_ALL_AUTO),
    KNOB("pipeline_degree", "auto", pipeline_degree, 0),
    KNOB("pipeline_degree", "8", pipeline_degree, 8),
    KNOB("checkpoint", "none", checkpoint, CHECKPOINT_NONE),
    KNOB("checkpoint", "full", checkpoint, CHECKPOINT_FULL),
    KNOB("checkpoint", "keep-collectives", checkpoint, CHECKPOINT_KEEP_COLLECTIVES),
    KNOB("microbatch", "auto", microbatch, 0),
    KNOB("microbatch", "4", microbatch, 4),
    KNOB("expert_parallel", "0", expert_parallel, 0),
    KNOB("expert_parallel", "4", expert_parallel, 4),
    KNOB("expert_split", "auto", expert_split, SPLIT_AUTO),
    KNOB("expert_split", "data", expert_split, SPLIT_DATA),
    KNOB("expert_split", "model", expert_split, SPLIT_MODEL),
    KNOB("expert_split", "adaptive", expert_split, SPLIT_ADAPTIVE),
    KNOB("exchange", "tokens", exchange, EXCHANGE_TOKENS),
    KNOB("exchange", "experts", exchange, EXCHANGE_EXPERTS),
    KNOB("exchange", "auto", exchange, EXCHANGE_AUTO),
    KNOB("shadowed_experts", "3", shadowed_experts, 3),
    KNOB("ssd_cache", "lru", ssd_cache, CACHE_LRU),
    KNOB("ssd_cache", "lfu-decay", ssd_cache, CACHE_LFU_DECAY),
    KNOB("ssd_cache", "belady", ssd_cache, CACHE_BELADY),
    KNOB("gradient_bytes", "4", gradient_bytes, 4),
    KNOB("checkpoint", "layer", checkpoint, CHECKPOINT_LAYER),
    KNOB("all_to_all", "dropped", all_to_all, ALL_TO_ALL_DROPPED),
    KNOB("tensor_parallel", "8", tensor_parallel, 8),
    KNOB("data_parallel", "auto", data_parallel, 0),
    KNOB("data_parallel", "4", data_parallel, 4),
    KNOB("tensor_experts", "cut", tensor_experts, TENSOR_EXPERTS_CUT),
    KNOB("tensor_experts", "whole", tensor_experts, TENSOR_EXPERTS_WHOLE),
    KNOB("zero_stage", "3", zero_stage, 3),
    KNOB("dense_optimizer", "gpu", dense_optimizer, DENSE_OPTIMIZER_GPU),
    KNOB("dense_optimizer", "cpu", dense_optimizer, DENSE_OPTIMIZER_CPU),
    KNOB("gradient_cast", "none", gradient_cast, CAST_NONE),
    KNOB("gradient_cast", "whole", gradient_cast, CAST_WHOLE),
    KNOB("gradient_cast", "tiled", gradient_cast, CAST_TILED),
    KNOB("microbatch_order", "vertical", microbatch_order, ORDER_VERTICAL),
    KNOB("adam_threads", "16", adam_threads, 16),
};

Test(policy, every_word_of_every_knob_is_read_and_written_back)
{
	for (size_t i = 0; i < G_N_ELEMENTS(knobs); i++) {
		g_autofree char *text = g_strdup_printf("[policy]\n%s\n", knobs[i].text), *written = NULL, *again = NULL;
		g_autoptr(policy) p = policy_of(text), back = NULL;

		cr_assert_eq(*(const int *)((const char *)p + knobs[i].offset), knobs[i].value, "%s", knobs[i].text);
		written = policy_ini(p);
		back = policy_of(written);
		again = policy_ini(back);
		cr_assert_eq(*(const int *)((const char *)back + knobs[i].offset), knobs[i].value, "%s", knobs[i].text);
		cr_assert_str_eq(again, written);
	}
}

Test(policy, name_in_the_file_wins_over_the_files_name)
{
	g_autoptr(policy) p = policy_of("[policy]\nname = my row\n");

	cr_assert_str_eq(p->name, "my row");
}

static void refused(const char *text, const char *const *overrides, const char *message)
{
	g_autoptr(GError) error = NULL;

	cr_assert_null(policy_load(text, overrides, &error), "accepted: %s", text);
	cr_assert(g_error_matches(error, ESMOE_ERROR, ESMOE_ERROR_INPUT));
	cr_assert_str_eq(error->message, message);
}

Test(policy, knobs_that_contradict_each_other_are_refused)
{
	const char *const next[] = {"policy.upload_scope=next-layer", NULL};

	refused("[policy]\nplacement = lpt\nupload_scope = next-layer\n", NULL,
	        "line 3: policy.upload_scope: next-layer needs to know the placement before the gate; expected layer, or placement = fixed | sticky");
	refused("[policy]\nplacement = lpt\n", next,
	        "--set policy.upload_scope: next-layer needs to know the placement before the gate; expected layer, or placement = fixed | sticky");
	refused("[policy]\ngradient_bytes = 3\n", NULL, "line 2: policy.gradient_bytes: 3; expected 2 or 4");
}

Test(policy, values_out_of_range_are_refused)
{
	refused("[policy]\npinned_share = 1.01\n", NULL, "line 2: policy.pinned_share = '1.01'; expected a number from 0 to 1");
	refused("[policy]\noptimizer = cpu\n", NULL, "line 2: policy.optimizer = 'cpu'; expected gpu | cpu-step | cpu-layer | cpu-expert");
	refused("[policy]\npipeline_degree = -1\n", NULL, "line 2: policy.pipeline_degree = '-1'; expected auto | a whole number from 0 to 8");
}

Test(policy, every_preset_reads_and_round_trips)
{
	g_auto(GStrv) names = preset_names("policies");

	for (int i = 0; names[i]; i++) {
		g_autoptr(GError) error = NULL;
		g_autoptr(policy) p = policy_load(names[i], NULL, &error), back = NULL;
		g_autofree char *written = NULL, *again = NULL;

		cr_assert_not_null(p, "%s", error ? error->message : "");
		written = policy_ini(p);
		back = policy_of(written);
		again = policy_ini(back);
		cr_assert_str_eq(again, written);
	}
}

Test(policy, knobs_by_number_are_those_of_the_ini)
{
	g_autoptr(policy) p = policy_of("[policy]\nplacement = sticky\npinned_share = 0.125\npipeline_degree = auto\nadam_threads = 3\n");
	g_autoptr(GKeyFile) written = g_key_file_new();
	g_autofree char *ini = policy_ini(p);
	int n = 0;

	cr_assert(g_key_file_load_from_data(written, ini, (gsize)-1, G_KEY_FILE_NONE, NULL));
	for (; policy_knob(n); n++) {
		g_autofree char *value = policy_knob_value(p, n), *theirs = g_key_file_get_value(written, "policy", policy_knob(n), NULL);
		cr_assert_str_eq(value, theirs);
	}
	g_auto(GStrv) all = g_key_file_get_keys(written, "policy", NULL, NULL);
	cr_assert_eq(n + 1, (int)g_strv_length(all), "all but the name");
}
