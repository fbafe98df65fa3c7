/* Scenarios and the what-if options they are made from: each option is the override of a key, and a scenario's text gives the same scenario. */
#include "model/error.h"
#include "model/scenario.h"
#include "model/whatif.h"

#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <string.h>

static const struct scenario_options plain = {.model = "gpt-moe-s", .machine = "a100-40g-x4", .policy = "es-moe"};

static struct scenario *make(const struct scenario_options *o)
{
	g_autoptr(GError) error = NULL;
	struct scenario *s = scenario_new(o, &error);
	cr_assert(s != NULL, "%s", error ? error->message : "");
	return s;
}

static void expect_error(const struct scenario_options *o, int code, const char *words)
{
	g_autoptr(GError) error = NULL;
	g_autoptr(scenario) s = scenario_new(o, &error);
	cr_assert(s == NULL);
	cr_expect(g_error_matches(error, ESMOE_ERROR, code), "code %d of: %s", error->code, error->message);
	cr_expect(strstr(error->message, words) != NULL, "no '%s' in: %s", words, error->message);
}

Test(scenario, without_options_is_as_the_files_say)
{
	g_autoptr(scenario) s = make(&plain);
	cr_expect(eq(int, s->machine->gpus, 4));
	cr_expect(eq(int, network_experts(s->network), 8));
	cr_expect(eq(int, s->sequences, 32)); /* the paper's batch: 32 sequences of 1024 tokens a GPU */
	cr_expect(eq(int, s->seq_len, 1024));
	cr_expect(eq(int, s->microbatches, 0));
	cr_expect(eq(u64, s->seed, 0));
	cr_expect(eq(str, s->routing_spec, s->machine->routing));
	cr_expect(eq(str, s->network->name, "gpt-moe-s"));
}

/* A core for each launcher and one for the schedule, but only under this program's own run, on real GPUs, and when nobody says otherwise. */
Test(scenario, run_leaves_cores_to_the_launchers)
{
	const struct {
		const char *machine, *set;
		int threads;
	} cases[] = {{"h200-x1", "software.runtime=esmoe", 14},    {"h200-x2", "software.runtime=esmoe", 27},
	             {"h200-x2", "software.runtime=framework", 0}, {"h200-x1", "policy.adam_threads=16", 16},
	             {"h200-x1", "host.adam_threads=5", 5},        {"h200-x1", "host.stream_cores=1", 16}};
	for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
		const char *set[] = {cases[i].set, i == 2 ? NULL : "software.runtime=esmoe", NULL};
		struct scenario_options o = {.model = "gpt-moe-s", .machine = cases[i].machine, .policy = "es-moe", .set = set};
		g_autoptr(scenario) s = make(&o);
		cr_expect(eq(int, s->policy->adam_threads, cases[i].threads), "%s, %s", cases[i].machine, cases[i].set);
	}
}

Test(scenario, options_override_the_files)
{
	struct scenario_options o = plain;
	o.gpus = 3;
	o.experts = 13;
	o.top_k = 2;
	o.sequences = 6;
	o.seq_len = 100;
	o.microbatches = 2;
	o.routing = "zipf:1.5";
	o.seed = 7;
	g_autoptr(scenario) s = make(&o);
	cr_expect(eq(int, s->machine->gpus, 3));
	for (int i = 0; i < s->network->layers; i++) {
		cr_expect(eq(int, s->network->layer[i].experts, 13));
		cr_expect(eq(int, s->network->layer[i].top_k, 2));
	}
	cr_expect(eq(int, s->sequences, 6));
	cr_expect(eq(int, s->seq_len, 100));
	cr_expect(eq(int, s->microbatches, 2));
	cr_expect(eq(str, s->routing_spec, "zipf:1.5"));
	cr_expect(eq(u64, s->seed, 7));
}

Test(scenario, set_reaches_every_reader)
{
	const char *const set[] = {"network.layers=2", "gpu.hbm_gib=11.5", "policy.placement=fixed", "scenario.sequences=5", NULL};
	struct scenario_options o = plain;
	o.set = set;
	g_autoptr(scenario) s = make(&o);
	cr_expect(eq(int, s->network->layers, 2));
	cr_expect(eq(dbl, s->machine->hbm_gib, 11.5));
	cr_expect(eq(int, s->policy->placement, PLACEMENT_FIXED));
	cr_expect(eq(int, s->sequences, 5));
}

Test(scenario, an_option_goes_before_set)
{
	const char *const set[] = {"network.experts=16", NULL};
	struct scenario_options o = plain;
	o.set = set;
	o.experts = 32;
	g_autoptr(scenario) s = make(&o);
	cr_expect(eq(int, network_experts(s->network), 32));
}

Test(scenario, set_of_an_unknown_section_names_the_nearest)
{
	const char *const set[] = {"gpuu.hbm_gib=1", NULL};
	struct scenario_options o = plain;
	o.set = set;
	expect_error(&o, ESMOE_ERROR_USAGE, "did you mean gpu");
}

Test(scenario, set_of_an_unknown_key_names_the_nearest)
{
	const char *const set[] = {"scenario.sequence=1", NULL};
	struct scenario_options o = plain;
	o.set = set;
	expect_error(&o, ESMOE_ERROR_INPUT, "sequences");
}

Test(scenario, more_microbatches_than_sequences_are_refused)
{
	struct scenario_options o = plain;
	o.sequences = 4;
	o.microbatches = 5;
	expect_error(&o, ESMOE_ERROR_INPUT, "1 to 4");
}

Test(scenario, more_tokens_than_a_count_holds_are_refused)
{
	struct scenario_options o = plain;
	o.sequences = 1 << 16;
	o.seq_len = 1 << 15;
	expect_error(&o, ESMOE_ERROR_INPUT, "seq_len");
}

Test(scenario, a_seed_that_is_no_number_is_refused)
{
	const char *const set[] = {"scenario.seed=-1", NULL};
	struct scenario_options o = plain;
	o.set = set;
	expect_error(&o, ESMOE_ERROR_INPUT, "seed");
}

Test(scenario, text_gives_the_same_scenario)
{
	const char *const set[] = {"host.dram_gib=123.25", "policy.pinned_share=0.125", NULL};
	struct scenario_options o = plain;
	g_autoptr(GError) error = NULL;
	o.gpus = 3;
	o.experts = 24;
	o.sequences = 12;
	o.microbatches = 3;
	o.routing = "zipf:1.25:0.5";
	o.seed = G_MAXUINT64;
	o.set = set;
	g_autoptr(scenario) s = make(&o);
	g_autofree char *text = scenario_ini(s);
	g_autoptr(scenario) back = scenario_from_ini(text, "run.ini", NULL, &error);
	cr_assert(back != NULL, "%s", error ? error->message : "");
	g_autofree char *again = scenario_ini(back);
	cr_expect(eq(str, again, text));
	cr_expect(eq(str, back->machine->name, "a100-40g-x4"));
	cr_expect(eq(int, back->machine->gpus, 3));
	cr_expect(eq(dbl, back->machine->dram_gib, 123.25));
	cr_expect(eq(dbl, back->policy->pinned_share, 0.125));
	cr_expect(eq(int, back->sequences, 12));
	cr_expect(eq(u64, back->seed, G_MAXUINT64));
}

Test(scenario, every_preset_comes_back_from_its_text)
{
	g_auto(GStrv) models = preset_names("networks");
	g_auto(GStrv) machines = preset_names("machines");
	g_auto(GStrv) policies = preset_names("policies");
	guint n_machines = g_strv_length(machines), n_policies = g_strv_length(policies);
	for (guint i = 0; models[i] || i < n_machines || i < n_policies; i++) {
		struct scenario_options o = {models[i] ? models[i] : models[0], machines[i % n_machines], policies[i % n_policies]};
		g_autoptr(GError) error = NULL;
		g_autoptr(scenario) s = make(&o);
		g_autofree char *text = scenario_ini(s);
		g_autoptr(scenario) back = scenario_from_ini(text, "run.ini", NULL, &error);
		cr_assert(back != NULL, "%s", error ? error->message : "");
		g_autofree char *again = scenario_ini(back);
		cr_expect(eq(str, again, text));
		if (!models[i])
			break;
	}
}

Test(scenario, broken_text_is_refused_with_its_file)
{
	const char *const texts[] = {"", "[scenario]", "[network]\nlayers = 2\n", "garbage", "[scenario]\nseed = x\n", "\n\n[no such]\n"};
	for (size_t i = 0; i < G_N_ELEMENTS(texts); i++) {
		g_autoptr(GError) error = NULL;
		g_autoptr(scenario) s = scenario_from_ini(texts[i], "trace.rank0.json", NULL, &error);
		cr_assert(s == NULL);
		bool named = g_str_has_prefix(error->message, "trace.rank0.json: "); /* a macro in newer GLib, which Criterion's macros do not take */
		cr_expect(named, "%s", error->message);
		cr_expect(g_error_matches(error, ESMOE_ERROR, ESMOE_ERROR_INPUT));
	}
}

Test(scenario, a_control_character_is_named_and_not_repeated)
{
	const char *const texts[] = {"[scenario]\nrouting = zipf\r:1\n", "[scenario]\nseed = 1\\n2\n", "[scenario]\nmodel = a\\tb\n"};
	g_autoptr(scenario) s = make(&plain);
	g_autofree char *parts = scenario_ini(s);
	char *network = strstr(parts, "[network]");
	for (size_t i = 0; i < G_N_ELEMENTS(texts); i++) {
		g_autofree char *text = g_strconcat(texts[i], network, NULL);
		g_autoptr(GError) error = NULL;
		g_autoptr(scenario) none = scenario_from_ini(text, "run.ini", NULL, &error);
		cr_assert(none == NULL);
		cr_expect(strstr(error->message, "control character 0x") != NULL, "%s", error->message);
		cr_expect(strpbrk(error->message, "\r\n\t") == NULL, "%s", error->message);
	}
}

static void expect_counts(const char *text, const int *numbers, int n)
{
	g_autoptr(GError) error = NULL;
	struct ini_ints list = {0};
	cr_assert(whatif_counts("experts", text, &list, &error), "%s", error ? error->message : "");
	cr_assert(eq(int, list.n, n), "%s", text);
	for (int i = 0; i < n; i++)
		cr_expect(eq(int, list.v[i], numbers[i]), "%s", text);
	g_free(list.v);
}

Test(whatif, lists_and_ranges)
{
	expect_counts("8", (int[]){8}, 1);
	expect_counts("1,2,4", (int[]){1, 2, 4}, 3);
	expect_counts("8:64:x2", (int[]){8, 16, 32, 64}, 4);
	expect_counts("8:100:x3", (int[]){8, 24, 72}, 3);
	expect_counts("8:24:+8", (int[]){8, 16, 24}, 3);
	expect_counts("3:5", (int[]){3, 4, 5}, 3);
	expect_counts("1,8:16:x2,5", (int[]){1, 8, 16, 5}, 4);
	expect_counts("7:7", (int[]){7}, 1);
}

Test(whatif, wrong_lists_are_refused)
{
	const char *const texts[] = {"",       ",",       "1,",      "0",         "-1",  "x",  "8:",        ":8",         "8:4",
	                             "8:64:2", "8:64:x1", "8:64:+0", "8:64:x2:1", "1e3", " 8", "1:1000000", "99999999999"};
	for (size_t i = 0; i < G_N_ELEMENTS(texts); i++) {
		g_autoptr(GError) error = NULL;
		struct ini_ints list = {0};
		cr_expect_not(whatif_counts("experts", texts[i], &list, &error), "'%s'", texts[i]);
		cr_expect(g_error_matches(error, ESMOE_ERROR, ESMOE_ERROR_USAGE), "'%s'", texts[i]);
	}
}
