/* Networks against the literature: parameter counts of every preset beside the printed ones, uneven layers against the papers' descriptions, and the
 * refusal of what does not fit together. */
#include "model/error.h"
#include "model/ini.h"
#include "model/network.h"

#include <criterion/criterion.h>
#include <math.h>
#include <string.h>

static struct network *load(const char *source, ...) G_GNUC_NULL_TERMINATED;
static struct network *load(const char *source, ...)
{
	const char *overrides[8] = {NULL};
	va_list args;
	va_start(args, source);
	for (int i = 0; i < 7 && (overrides[i] = va_arg(args, const char *)); i++)
		;
	va_end(args);
	g_autoptr(GError) error = NULL;
	struct network *n = network_load(source, overrides, &error);
	cr_assert_not_null(n, "%s: %s", source, error ? error->message : "no error set");
	return n;
}

/* The overrides make a preset inconsistent: the error is of the input and its message holds each of the words. */
static void assert_refused(const char *source, const char *override, const char *key, const char *value, const char *accepted)
{
	const char *overrides[] = {override, NULL};
	g_autoptr(GError) error = NULL;
	g_autoptr(network) n = network_load(source, overrides, &error);
	cr_assert_null(n, "%s accepted", override);
	cr_assert(g_error_matches(error, ESMOE_ERROR, ESMOE_ERROR_INPUT), "%s", override);
	cr_assert_not_null(strstr(error->message, key), "%s not in '%s'", key, error->message);
	cr_assert_not_null(strstr(error->message, value), "%s not in '%s'", value, error->message);
	cr_assert_not_null(strstr(error->message, accepted), "%s not in '%s'", accepted, error->message);
}

static void assert_near(double value, double expected, double tolerance, const char *what)
{
	cr_assert(fabs(value - expected) <= tolerance * expected, "%s: %g, expected %g", what, value, expected);
}

/* Parameters in billions as printed, rows of the survey of MoE networks (2020-2024); 0: not printed. */
static const struct {
	const char *name;
	double total, active;
} printed[] = {
    {"gshard-600b", 600, 0},
    {"gshard-200b", 200, 0},
    {"gshard-150b", 150, 0},
    {"gshard-37b", 37, 0},
    {"switch-7b", 7, 0},
    {"switch-26b", 26, 0},
    {"switch-395b", 395, 0},
    {"switch-1571b", 1571, 0},
    {"glam-0.1b-1.9b", 1.9, 0.1},
    {"glam-1.7b-27b", 27, 1.7},
    {"glam-8b-143b", 143, 8},
    {"glam-64b-1.2t", 1200, 64},
    {"ds-350m-13b", 13, 0.35},
    {"ds-1.3b-52b", 52, 1.3},
    {"ds-pr-350m-4b", 4, 0.35},
    {"ds-pr-1.3b-31b", 31, 1.3},
    {"st-moe-0.8b-4.1b", 4.1, 0.8},
    {"st-moe-32b-269b", 269, 32},
    {"mixtral-8x7b", 47, 13},
    {"mixtral-8x22b", 141, 39},
    {"llama-moe-3.0b", 6.7, 3.0},
    {"llama-moe-3.5b-4of16", 6.7, 3.5},
    {"llama-moe-3.5b-2of8", 6.7, 3.5},
    {"deepseekmoe-2b", 1.89, 0.24},
    {"deepseekmoe-16b", 16.4, 2.8},
    {"deepseekmoe-145b", 145, 22},
    {"openmoe-339m-650m", 0.65, 0.339},
    {"openmoe-2.6b-8.7b", 8.7, 2.6},
    {"openmoe-6.8b-34b", 34, 6.8},
    {"qwen1.5-moe-a2.7b", 14.3, 2.7},
    {"dbrx", 132, 36},
    {"jamba", 52, 12},
    {"skywork-moe", 146, 22},
    {"yuan2.0-m32", 40, 3.7},
    {"snowflake-arctic", 480, 17},
    {"gpt-moe-s", 0.521, 0},
    {"gpt-moe-m", 1.76, 0},
    {"gpt-moe-l", 3.93, 0},
    {"gpt-moe-xl", 0, 0},
};

static bool within(double value, double printed_value)
{
	return printed_value == 0 || fabs(value / printed_value - 1) <= 0.03;
}

Test(network, every_preset_has_its_printed_parameters_or_says_why_not)
{
	for (size_t i = 0; i < G_N_ELEMENTS(printed); i++) {
		g_autoptr(network) n = load(printed[i].name, NULL);
		double total = (double)network_params(n) / 1e9, active = (double)network_params_active(n) / 1e9;
		g_autofree char *text = preset_text("networks", printed[i].name, NULL);
		cr_expect_eq(n->params_b, printed[i].total, "%s states %g", n->name, n->params_b);
		cr_expect_eq(n->params_active_b, printed[i].active, "%s states %g", n->name, n->params_active_b);
		bool agrees = within(total, printed[i].total) && within(active, printed[i].active);
		bool explained = strstr(text, "\n# differs: ") != NULL;
		cr_expect(agrees || explained, "%s: total %.4g, printed %g; active %.4g, printed %g", n->name, total, printed[i].total, active,
		          printed[i].active);
		cr_expect(!agrees || !explained, "%s: agrees, and explains a difference", n->name);
	}
}

/* ES-MoE (ICML 2024), table of throughput: parameters of MoE-S, M and L over the experts. */
Test(network, gpt_moe_totals_follow_the_paper_over_the_experts)
{
	static const struct {
		const char *name, *experts;
		double total;
	} rows[] = {{"gpt-moe-s", "8", 0.521}, {"gpt-moe-m", "8", 1.76},  {"gpt-moe-l", "8", 3.93},
	            {"gpt-moe-l", "16", 7.56}, {"gpt-moe-s", "32", 1.88}, {"gpt-moe-m", "32", 6.60},
	            {"gpt-moe-l", "32", 14.8}, {"gpt-moe-s", "64", 3.70}, {"gpt-moe-l", "64", 29.3}};
	for (size_t i = 0; i < G_N_ELEMENTS(rows); i++) {
		g_autofree char *experts = g_strconcat("network.experts=", rows[i].experts, NULL);
		g_autoptr(network) n = load(rows[i].name, experts, NULL);
		assert_near((double)network_params(n) / 1e9, rows[i].total, 0.005, experts);
		cr_assert_eq(n->seq_len * n->sequences, 32 * 1024);
	}
}

/* 2 d f E + 4 d^2 + d E a layer, V d in all, by hand for d 768, f 3072, E 8, 12 layers, V 51200. */
Test(network, parameters_of_moe_s_are_exact)
{
	g_autoptr(network) n = load("gpt-moe-s", NULL);
	const struct layer *l = &n->layer[5];
	cr_assert_eq(network_expert_params(n, l), 4718592);
	cr_assert_eq(network_mixer_params(n, l), 2359296);
	cr_assert_eq(network_dense_params(n, l), 2359296 + 6144);
	cr_assert_eq(network_embedding_params(n), 39321600);
	cr_assert_eq(network_params(n), 39321600 + 12 * (8 * 4718592 + 2359296 + 6144));
	cr_assert_eq(network_params_active(n), 39321600 + 12 * (4718592 + 2359296 + 6144));
}

Test(network, untied_head_has_its_own_matrix)
{
	g_autoptr(network) n = load("gpt-moe-s", "network.tied=false", NULL);
	cr_assert_eq(network_embedding_params(n), 2 * 39321600);
}

/* Mixtral's published tensors: q and o 4096 x 4096, k and v 4096 x 1024; three of 4096 x 14336 an expert. */
Test(network, grouped_query_heads_shrink_keys_and_values)
{
	g_autoptr(network) n = load("mixtral-8x7b", NULL);
	cr_assert_eq(network_mixer_params(n, &n->layer[0]), 2 * 4096 * 4096 + 2 * 4096 * 1024);
	cr_assert_eq(network_expert_params(n, &n->layer[0]), 3 * 4096 * 14336);
}

Test(network, moe_stands_in_the_last_layer_of_each_group)
{
	g_autoptr(network) n = load("openmoe-2.6b-8.7b", NULL);
	for (int i = 0; i < n->layers; i++) {
		bool moe = i == 5 || i == 11 || i == 17 || i == 23;
		cr_expect_eq(n->layer[i].experts, moe ? 32 : 0, "layer %d", i);
		cr_expect_eq(n->layer[i].d_ff, moe ? 0 : 8192, "layer %d", i);
		cr_expect_eq(n->layer[i].shared, moe ? 1 : 0, "layer %d", i);
	}
	cr_assert_eq(network_moe_layers(n), 4);
	cr_assert_eq(network_experts(n), 32);
}

Test(network, moe_offset_moves_the_moe_in_its_group)
{
	g_autoptr(network) n = load("openmoe-2.6b-8.7b", "network.moe_offset=1", NULL);
	cr_assert_eq(n->layer[1].experts, 32);
	cr_assert_eq(n->layer[5].experts, 0);
	cr_assert_eq(n->layer[19].experts, 32);
}

Test(network, first_layers_are_dense)
{
	g_autoptr(network) n = load("deepseekmoe-16b", NULL);
	cr_assert_eq(n->layer[0].experts, 0);
	cr_assert_eq(n->layer[0].d_ff, 10944);
	cr_assert_eq(n->layer[1].experts, 64);
	cr_assert_eq(n->layer[1].shared, 2);
	cr_assert_eq(n->layer[1].d_shared, 1408);
	cr_assert_eq(n->layer[1].d_ff, 0);
	cr_assert_eq(network_moe_layers(n), 27);
}

/* DeepSpeed-MoE: 10 MoE layers of 32 experts, then 2 of 64. */
Test(network, pyramid_has_more_experts_in_the_last_layers)
{
	g_autoptr(network) n = load("ds-pr-350m-4b", NULL);
	for (int i = 0; i < 24; i++)
		cr_expect_eq(n->layer[i].experts, i % 2 == 0 ? 0 : i < 20 ? 32 : 64, "layer %d", i);
	cr_assert_eq(network_experts(n), 64);
}

Test(network, experts_override_scales_a_pyramid)
{
	g_autoptr(network) n = load("ds-pr-350m-4b", "network.experts=12", NULL);
	cr_assert_eq(n->layer[1].experts, 12);
	cr_assert_eq(n->layer[23].experts, 24);
}

Test(network, dense_ffn_stands_beside_the_moe)
{
	g_autoptr(network) n = load("snowflake-arctic", NULL);
	cr_assert_eq(n->layer[34].d_ff, 7168);
	cr_assert_eq(n->layer[34].d_expert, 4864);
	cr_assert_eq(network_dense_params(n, &n->layer[0]), network_mixer_params(n, &n->layer[0]) + 7168 * 128 + 3 * 7168 * 7168);
}

/* Jamba (arXiv 2403.19887): blocks of eight layers, one attention to seven Mamba, MoE in every second layer. */
Test(network, one_layer_in_eight_is_attention)
{
	g_autoptr(network) n = load("jamba", NULL);
	int attention = 0;
	for (int i = 0; i < n->layers; i++)
		attention += n->layer[i].mixer == MIXER_ATTENTION;
	cr_assert_eq(attention, 4);
	cr_assert_eq(n->layer[4].mixer, MIXER_ATTENTION);
	cr_assert_eq(n->layer[3].mixer, MIXER_MAMBA);
	cr_assert_eq(network_moe_layers(n), 16);
}

/* Jamba's released tensors: in_proj 16384 x 4096, conv1d 8192 x 4, x_proj 288 x 8192, dt_proj 8192 x 256, A_log 8192 x 16, out_proj 4096 x 8192. */
Test(network, mamba_layer_counts_its_tensors)
{
	g_autoptr(network) n = load("jamba", NULL);
	cr_assert_eq(network_mixer_params(n, &n->layer[0]), 16384 * 4096 + 8192 * 4 + 288 * 8192 + 8192 * 256 + 8192 * 16 + 4096 * 8192);
}

Test(network, decoder_follows_the_encoder_with_cross_attention)
{
	g_autoptr(network) n = load("switch-7b", NULL);
	cr_assert_eq(n->layers, 24);
	cr_assert(!n->layer[11].cross);
	cr_assert(n->layer[12].cross);
	cr_assert_eq(n->layer[12].experts, 0);
	cr_assert_eq(n->layer[13].experts, 128);
	cr_assert_eq(network_mixer_params(n, &n->layer[13]), 8 * 768 * 768);
}

Test(network, short_file_has_natural_defaults)
{
	g_autoptr(network) n = load("[network]\nlayers = 2\nd_model = 64\nheads = 4\nexperts = 4\n", NULL);
	cr_assert_eq(n->d_head, 16);
	cr_assert_eq(n->kv_heads, 4);
	cr_assert_eq(n->layer[1].d_expert, 256);
	cr_assert_eq(n->layer[1].top_k, 1);
	cr_assert_eq(n->layer[1].shared, 0);
	cr_assert_eq(n->layer[1].d_shared, 0);
	cr_assert_eq(network_moe_layers(n), 2);
}

Test(network, no_experts_make_a_dense_network)
{
	g_autoptr(network) n = load("ds-pr-350m-4b", "network.experts=0", NULL);
	cr_assert_eq(network_experts(n), 0);
	cr_assert_eq(network_moe_layers(n), 0);
	cr_assert_eq(network_params(n), network_params_active(n));
	cr_assert_eq(n->layer[23].d_ff, 4096);
	cr_assert_eq(n->layer[23].shared, 0);
}

static void assert_same(const struct network *a, const struct network *b)
{
	g_autofree char *text_a = network_ini(a), *text_b = network_ini(b);
	cr_assert_str_eq(text_a, text_b);
	cr_assert_eq(a->layers, b->layers);
	cr_assert_eq(a->d_head, b->d_head);
	cr_assert_eq(a->kv_heads, b->kv_heads);
	cr_assert_eq(a->seq_len, b->seq_len);
	cr_assert_eq(a->params_b, b->params_b);
	cr_assert_eq(network_params(a), network_params(b));
	cr_assert_eq(network_params_active(a), network_params_active(b));
	for (int i = 0; i < a->layers; i++) {
		const struct layer *x = &a->layer[i], *y = &b->layer[i];
		cr_assert(x->mixer == y->mixer && x->cross == y->cross && x->experts == y->experts && x->top_k == y->top_k &&
		              x->d_expert == y->d_expert && x->shared == y->shared && x->d_shared == y->d_shared && x->d_ff == y->d_ff,
		          "%s: layer %d", a->name, i);
	}
}

Test(network, every_preset_loads_and_its_text_reads_back_the_same)
{
	g_auto(GStrv) names = preset_names("networks");
	cr_assert_geq(g_strv_length(names), G_N_ELEMENTS(printed));
	for (char **name = names; *name; name++) {
		g_autoptr(network) n = load(*name, NULL);
		g_autofree char *text = network_ini(n);
		g_autoptr(network) again = load(text, NULL);
		assert_same(n, again);
	}
}

Test(network, written_network_keeps_its_overrides)
{
	g_autoptr(network) n = load("ds-pr-350m-4b", "network.experts=48", "network.top_k=3", "network.layers=12", "network.seq_len=77", NULL);
	g_autofree char *text = network_ini(n);
	g_autoptr(network) again = load(text, NULL);
	assert_same(n, again);
	cr_assert_eq(again->layers, 12);
	cr_assert_eq(again->layer[11].experts, 96);
	cr_assert_eq(again->layer[11].top_k, 3);
	cr_assert_eq(again->seq_len, 77);
}

Test(network, overrides_of_other_sections_are_left_alone)
{
	g_autoptr(network) n = load("gpt-moe-s", "gpu.hbm_gib=80", NULL);
	cr_assert_eq(n->layers, 12);
}

Test(network, gated_activations_have_three_matrices)
{
	cr_assert_eq(activation_matrices(ACTIVATION_RELU), 2);
	cr_assert_eq(activation_matrices(ACTIVATION_GELU), 2);
	cr_assert_eq(activation_matrices(ACTIVATION_GEGLU), 3);
	cr_assert_eq(activation_matrices(ACTIVATION_SWIGLU), 3);
	cr_assert_str_eq(activation_name(ACTIVATION_SWIGLU), "swiglu");
}

Test(network, inconsistent_shapes_are_refused)
{
	assert_refused("gpt-moe-s", "network.heads=7", "heads", "7", "768");
	assert_refused("gpt-moe-s", "network.kv_heads=5", "kv_heads", "5", "12");
	assert_refused("gpt-moe-s", "network.top_k=9", "top_k", "9", "8");
	assert_refused("ds-pr-350m-4b", "network.top_k=33", "top_k", "33", "32");
	assert_refused("gpt-moe-s", "network.moe_every=13", "moe_every", "13", "12");
	assert_refused("jamba", "network.moe_offset=2", "moe_offset", "2", "1");
	assert_refused("jamba", "network.attention_every=33", "attention_every", "33", "32");
	assert_refused("jamba", "network.attention_offset=8", "attention_offset", "8", "7");
	assert_refused("gpt-moe-s", "network.dense_first=12", "dense_first", "12", "12");
	assert_refused("ds-pr-350m-4b", "network.pyramid=1,1,1,1,2", "pyramid", "5", "12");
	assert_refused("ds-pr-350m-4b", "network.pyramid=", "pyramid", "0", "12");
}

Test(network, absurd_sizes_are_refused)
{
	assert_refused("gpt-moe-s", "network.layers=0", "layers", "0", "4096");
	assert_refused("gpt-moe-s", "network.layers=4097", "layers", "4097", "4096");
	assert_refused("switch-7b", "network.layers=2049", "layers", "2049", "2048");
	assert_refused("gpt-moe-s", "network.d_model=-768", "d_model", "-768", "1");
	assert_refused("gpt-moe-s", "network.experts=65537", "experts", "65537", "65536");
	assert_refused("gpt-moe-s", "network.experts=99999999999999999999", "experts", "99999999999999999999", "65536");
	assert_refused("gpt-moe-s", "network.d_ff=nan", "d_ff", "nan", "1048576");
	assert_refused("ds-pr-350m-4b", "network.pyramid=1,nan", "pyramid", "nan", "1024");
	assert_refused("ds-pr-350m-4b", "network.experts=65536", "pyramid", "65536", "65536");
	assert_refused("gpt-moe-s", "network.sequences=16777216", "sequences", "16777216", "2147483647");
	assert_refused("[network]\nlayers = 4096\nd_model = 1048576\nheads = 8\nexperts = 65536\n", "network.d_ff=1048576", "layers", "4096",
	               "1e+15");
}

Test(network, refusal_names_the_line)
{
	g_autoptr(GError) error = NULL;
	g_autoptr(network) n = network_load("[network]\nlayers = 2\nd_model = 64\nheads = 4\nexperts = 4\ntop_k = 5\n", NULL, &error);
	cr_assert_null(n);
	cr_assert_not_null(strstr(error->message, "line 6"), "%s", error->message);
	cr_assert_not_null(strstr(error->message, "top_k"), "%s", error->message);
}

Test(network, unknown_preset_is_refused_with_the_nearest)
{
	assert_refused("mixtral-8x7", "network.top_k=1", "mixtral-8x7", "no such", "mixtral-8x7b");
}
