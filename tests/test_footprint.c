/* What the plan says that our own executor takes, against what the executor asks for and, in runs of a few steps, takes. */
#include "exec/engine.h"
#include "exec/run.h"
#include "exec/store.h"
#include "model/footprint.h"
#include "sim/used.h"
#include "sim/validate.h"
#include "steps.h"

#include <glib/gstdio.h>

#define TINY "[network]\nlayers = 4\nd_model = 64\nheads = 4\nvocab = 301\nseq_len = 40\nsequences = 8\nd_ff = 200\nexperts = 8\n"
#define ES_MOE "[policy]\nexpert_home = dram\nplacement = lpt\noptimizer = cpu-expert\n"
#define FIXED "[policy]\nexpert_home = dram\nplacement = fixed\noptimizer = cpu-expert\n"
#define STATIC "[policy]\nexpert_home = hbm\nexpert_compute = grouped\n"

static const struct device_info fp32 = {"host", 4, FOOTPRINT_ALIGNMENT, FOOTPRINT_WEIGHT_FP32, FOOTPRINT_HEAD_FP32};
static const struct device_info bf16 = {"cuda", 2, FOOTPRINT_ALIGNMENT, FOOTPRINT_WEIGHT_BF16, FOOTPRINT_HEAD_BF16, .packs_exchanges = true};

static const char *const networks[] = {
    TINY "tied = true\n",
    TINY "top_k = 2\nactivation = swiglu\nkv_heads = 2\n",
    TINY "top_k = 2\nshared = 2\nd_shared = 33\nd_expert = 50\nmoe_every = 2\n",
    TINY "parallel_dense = true\nd_expert = 77\nactivation = geglu\n",
    "[network]\nlayers = 3\nd_model = 32\nheads = 2\nvocab = 5000\nseq_len = 20\nsequences = 8\nd_ff = 64\nexperts = 12\npyramid = 1,1,2\n",
    "[network]\nlayers = 2\nd_model = 2048\nheads = 16\nvocab = 999\nseq_len = 16\nsequences = 8\nd_ff = 8192\nexperts = 4\n",
    "[network]\nlayers = 2\nd_model = 64\nheads = 4\nvocab = 100\nseq_len = 40\nsequences = 8\nd_ff = 200\nexperts = 0\n",
};
static const char *const policies[] = {
    STATIC,
    ES_MOE,
    STATIC "checkpoint = full\n",
    STATIC "checkpoint = keep-collectives\n",
    STATIC "checkpoint = none\n",
    ES_MOE "checkpoint = full\npinned_share = 0.5\nupload_ahead = 3\n",
    FIXED "checkpoint = none\nupload_ahead_layers = 1\nupload_scope = next-layer\n",
    ES_MOE "checkpoint = keep-collectives\ngradient_bytes = 2\n",
    STATIC "dispatch = padded\n",
    STATIC "dispatch = padded\ncapacity_factor = 1.3\n",
    FIXED "dispatch = padded\ncapacity_factor = 1\n",
    STATIC "expert_parallel = 1\n",
    FIXED "expert_parallel = 1\ngradient_bytes = 4\n",
    "[policy]\nexpert_home = hbm\nexpert_compute = sequential\n",
};

static struct scenario *scenario_for(const char *network, const char *policy, int gpus, int microbatches, const struct device_info *device)
{
	g_autofree char *element = g_strdup_printf("software.element_bytes=%d", device->element_bytes);
	return scenario_made(&(struct scenario_options){.model = network,
	                                                .machine = "host",
	                                                .policy = policy,
	                                                .gpus = gpus,
	                                                .microbatches = microbatches,
	                                                .set = SETS(element, "gpu.hbm_gib=1000", "host.dram_gib=1000", "software.runtime=esmoe")});
}

static void plan_is_what_the_engine_asks(const char *network, const char *policy, int gpus, int microbatches, const struct device_info *device)
{
	g_autoptr(scenario) s = scenario_for(network, policy, gpus, microbatches, device);
	g_autoptr(schedule) schedule = schedule_made(s);
	const struct plan *plan = schedule_plan(schedule);
	uint64_t planned = memory_total(&plan->memory, TIER_HBM), asked = engine_bytes(device, s, schedule);
	cr_assert_eq(planned, asked, "%d GPUs, %d micro-batches, %d bytes: %lu planned, %lu asked for\n%s%s", gpus, microbatches,
	             device->element_bytes, planned, asked, network, policy);
}

Test(footprint, plan_is_what_the_engine_asks_of_hbm)
{
	int cases = 0;
	for (size_t n = 0; n < G_N_ELEMENTS(networks); n++)
		for (size_t p = 0; p < G_N_ELEMENTS(policies); p++)
			for (int gpus = 1; gpus <= 4; gpus *= 2)
				for (int microbatches = 1; microbatches <= 4; microbatches *= 2, cases++) {
					plan_is_what_the_engine_asks(networks[n], policies[p], gpus, microbatches, &fp32);
					plan_is_what_the_engine_asks(networks[n], policies[p], gpus, microbatches, &bf16);
				}
	cr_assert_eq(cases, 7 * 14 * 3 * 3);
}

/* 33 tokens, one layer, no experts, D 8, V 19, by hand. */
Test(footprint, a_dense_layer_by_hand)
{
	const char *network = "[network]\nlayers = 1\nd_model = 8\nheads = 2\nvocab = 19\nseq_len = 33\nsequences = 1\nd_ff = 12\nexperts = 0\n"
	                      "tied = true\n";
	g_autoptr(scenario) s = scenario_for(network, STATIC "checkpoint = full\n", 1, 1, &fp32);
	struct plan plan;
	cr_assert(plan_make(s, &plan, NULL));
	/* norms 4 x 8, qkv 192, out 64, FFN 96 + 96; embedding 152, positions 264, norm 16: 912 elements */
	cr_assert_eq(plan.memory.bytes[TIER_HBM][CLASS_PARAMETERS], 3840); /* 3648 to 256 */
	cr_assert_eq(plan.memory.bytes[TIER_HBM][CLASS_GRADIENTS], 3840);
	cr_assert_eq(plan.memory.bytes[TIER_HBM][CLASS_OPTIMIZER], 2 * 3840);
	/* rows of 8 floats: 1056 to 1280; x twice, n1, o, h, u; qkv 3168 to 3328; lse 264, statistics 528; FFN 1584 to 1792 twice */
	cr_assert_eq(plan.memory.bytes[TIER_HBM][CLASS_ACTIVATIONS], 6 * 1280 + 3328 + 512 + 768 + 2 * 1792);
	/* FFN 4 x 1792 is more than mixer and head (2 x 1280, 33 x 19 floats to 2560, 2 x 256); d, du; two losses */
	cr_assert_eq(plan.memory.bytes[TIER_HBM][CLASS_WORKSPACE], 4 * 1792 + 2 * 1280 + 2 * 256);
	cr_assert_eq(plan.memory.bytes[TIER_HBM][CLASS_BUFFERS], 2 * 256);
}

static uint64_t buffers(const char *policy, const struct device_info *device)
{
	const char *network = "[network]\nlayers = 1\nd_model = 8\nheads = 2\nvocab = 19\nseq_len = 32\nsequences = 1\nexperts = 4\ntop_k = 2\n"
	                      "d_expert = 16\n";
	g_autoptr(scenario) s = scenario_for(network, policy, 2, 1, device);
	struct plan plan;
	cr_assert(plan_make(s, &plan, NULL));
	return plan.memory.bytes[TIER_HBM][CLASS_BUFFERS];
}

/* 32 tokens a GPU for 2 of 4 experts each, by hand: 64 rows are sent and 2 x 64 may arrive, 8 elements wide or, with their weights, 16 (fp32: 9). A
 * device of bf16 packs what goes to or comes from the other GPU: 64 rows each way. */
Test(footprint, rows_on_their_way_by_hand)
{
	/* order, row and weight of the 64 pairs; counts of the gate thrice; tokens and targets */
	const uint64_t lists = 3 * 256 + 3 * 256 + 2 * 256;
	const uint64_t plain = (64 + 128) * 8, weighted = (64 + 128) * 16;
	cr_assert_eq(buffers(STATIC "checkpoint = full\n", &bf16), lists + 2 * (plain + weighted) + 2 * (64 + 64) * 16);
	cr_assert_eq(buffers(STATIC "checkpoint = full\n", &fp32), lists + 4 * ((64 + 128) * 8 + (64 + 128) * 9));
	/* every expert on every GPU: one buffer is both ends */
	cr_assert_eq(buffers(STATIC "checkpoint = full\nexpert_parallel = 1\n", &bf16), lists + 2 * (64 * 8 + 64 * 16));
}

static void nothing(const struct run_step *step, void *user) {}

static void remove_folder(const char *folder)
{
	g_autoptr(GDir) dir = g_dir_open(folder, 0, NULL);
	for (const char *name; (name = g_dir_read_name(dir));) {
		g_autofree char *path = g_build_filename(folder, name, NULL);
		g_unlink(path);
	}
	g_rmdir(folder);
}

static void run_takes_what_was_planned(const char *policy, int gpus, int microbatches, const char *tiers)
{
	g_autoptr(GError) error = NULL;
	g_autofree char *folder = g_dir_make_tmp("esmoe-footprint-XXXXXX", NULL);
	g_autoptr(scenario) s = scenario_made(&(struct scenario_options){.model = networks[1],
	                                                                 .machine = "host",
	                                                                 .policy = policy,
	                                                                 .gpus = gpus,
	                                                                 .microbatches = microbatches,
	                                                                 .set = SETS("policy.gradient_bytes=4")});
	g_autoptr(GString) seen = g_string_new(NULL);
	struct recorded r;
	cr_assert(run_train(s,
	                    &(struct run_options){
	                        .device = "host", .steps = 2, .lr = 0.001f, .trace = folder, .trace_steps = 2, .command = "test", .report = nothing},
	                    &error),
	          "%s", error ? error->message : "");
	cr_assert(recorded_read(folder, &r, &error), "%s", error ? error->message : "");
	g_autoptr(GArray) rows = recorded_memory(folder, &r, &error);
	cr_assert(rows, "%s", error ? error->message : "");
	for (guint i = 0; i < rows->len; i++) {
		const struct used *u = &g_array_index(rows, struct used, i);
		g_string_append_printf(seen, "%s;", memory_tier_name(u->tier));
		cr_expect_eq(u->measured_bytes, u->predicted_bytes, "%s on %d GPUs: %lu taken, %lu planned\n%s", memory_tier_name(u->tier), gpus,
		             u->measured_bytes, u->predicted_bytes, policy);
	}
	cr_expect_str_eq(seen->str, tiers);
	recorded_clear(&r);
	remove_folder(folder);
}

Test(footprint, a_run_takes_what_was_planned)
{
	run_takes_what_was_planned(STATIC, 1, 1, "HBM;pinned DRAM;");
	run_takes_what_was_planned(STATIC "checkpoint = full\n", 2, 2, "HBM;pinned DRAM;");
	run_takes_what_was_planned(ES_MOE, 1, 1, "HBM;pinned DRAM;DRAM;");
	run_takes_what_was_planned(ES_MOE "pinned_share = 0.5\n", 2, 2, "HBM;pinned DRAM;DRAM;");
	run_takes_what_was_planned("[policy]\nexpert_home = ssd\noptimizer = cpu-expert\n", 1, 1, "HBM;pinned DRAM;SSD;");
	run_takes_what_was_planned("[policy]\nexpert_home = ssd\noptimizer = cpu-step\nssd_cache = belady\n", 2, 1, "HBM;pinned DRAM;SSD;");
	run_takes_what_was_planned("[policy]\nexpert_home = ssd\noptimizer = cpu-expert\n", 1, 2, "HBM;pinned DRAM;DRAM;SSD;");
}

/* Experts of bf16 with bf16 gradients, small and past 32 MiB, where places are cut in huge pages. */
Test(footprint, bf16_experts_take_their_places_in_dram)
{
	for (size_t i = 0; i < 6; i++) {
		g_autoptr(GError) error = NULL;
		g_autoptr(scenario) s = scenario_for(networks[i], ES_MOE "gradient_bytes = 2\n", 1, 1, &bf16);
		struct plan plan;
		struct device *device;
		struct device_group *group;
		struct store_layer layers[4];
		int n = 0;
		cr_assert(plan_make(s, &plan, &error));
		cr_assert(device_open("host", 1, 1 << 20, &device, &group, &error));
		for (int l = 0; l < s->network->layers; l++)
			if (s->network->layer[l].experts)
				layers[n++] =
				    (struct store_layer){s->network->layer[l].experts, network_expert_params(s->network, &s->network->layer[l])};
		const struct store_options o = {.home = HOME_DRAM, .element_bytes = 2, .gradient_bytes = 2};
		struct store *store = store_new(device, layers, n, &o, &error);
		cr_assert(store, "%s", error ? error->message : "");
		const uint64_t *pinned = plan.memory.bytes[TIER_PINNED];
		cr_expect_eq(pinned[CLASS_PARAMETERS] + pinned[CLASS_GRADIENTS], store_pinned_bytes(store));
		cr_expect_eq(memory_total(&plan.memory, TIER_DRAM), store_pageable_bytes(store));
		store_free(store);
		device_close(&device, 1, group);
	}
}

/* Pinned buffers beyond those of a run from DRAM, in frames of the widest expert's fp32 numbers in pages. */
static uint64_t frames_planned(const char *network, const char *policy, int gradient_bytes, double frames, uint64_t *bytes, uint64_t *cache_bytes)
{
	g_autofree char *over = g_strdup_printf("[policy]\nexpert_home = ssd\ngradient_bytes = %d\n%s", gradient_bytes, policy);
	g_autofree char *in_dram = g_strdup_printf("[policy]\nexpert_home = dram\ngradient_bytes = %d\n%s", gradient_bytes, policy);
	g_autoptr(scenario) s = scenario_for(network, over, 1, 1, &bf16), dram = scenario_for(network, in_dram, 1, 1, &bf16);
	struct plan plan, other;
	uint64_t widest = 0;
	cr_assert(plan_make(dram, &other, NULL));
	for (int i = 0; i < s->network->layers; i++)
		widest = MAX(widest, network_expert_params(s->network, &s->network->layer[i]));
	*bytes = (widest * 4 + 4095) / 4096 * 4096;
	s->machine->dram_gib =
	    s->machine->dram_reserved_gib + ((double)other.memory.bytes[TIER_PINNED][CLASS_BUFFERS] + (frames + 0.5) * (double)*bytes) / GIB;
	cr_assert(plan_make(s, &plan, NULL));
	*cache_bytes = plan.memory.cache_bytes;
	uint64_t pinned = plan.memory.bytes[TIER_PINNED][CLASS_BUFFERS] - other.memory.bytes[TIER_PINNED][CLASS_BUFFERS];
	cr_assert_eq(pinned % *bytes, 0);
	return pinned / *bytes;
}

/* Room for n frames: blocks that may stay behind for their gradient have theirs, the cache the others; nobody takes more than all blocks fill. */
Test(footprint, frames_over_the_ssd_by_hand)
{
	static const struct {
		const char *policy;
		int experts; /* of networks[2], two layers of eight, that may stay behind at once */
	} rows[] = {{"optimizer = cpu-expert\n", 1},
	            {"optimizer = cpu-expert\nupdate_order = next-forward\n", 16},
	            {"optimizer = cpu-layer\n", 8},
	            {"optimizer = cpu-step\n", 16}};
	for (size_t i = 0; i < G_N_ELEMENTS(rows); i++)
		for (int gradient = 2; gradient <= 4; gradient += 2) {
			const uint64_t copies = (uint64_t)gradient / 2, behind = (uint64_t)rows[i].experts * copies, all = 16 * (copies + 3);
			uint64_t bytes, cache;
			cr_expect_eq(frames_planned(networks[2], rows[i].policy, gradient, 40, &bytes, &cache), 40);
			cr_expect_eq(cache, (40 - behind) * bytes);
			cr_expect_eq(frames_planned(networks[2], rows[i].policy, gradient, 500, &bytes, &cache), all);
			cr_expect_eq(cache, all * bytes);
			cr_expect_eq(frames_planned(networks[2], rows[i].policy, gradient, (double)all - 1, &bytes, &cache), all - 1);
			cr_expect_eq(cache, (all - 1 - behind) * bytes);
		}
}

/* The schedule counts blocks in frames, its room is a whole number of them, and the store takes as many. */
Test(footprint, the_store_takes_the_frames_that_were_planned)
{
	for (size_t i = 0; i < 5; i++)
		for (int gradient = 2; gradient <= 4; gradient += 2) {
			g_autofree char *folder = g_dir_make_tmp("esmoe-footprint-XXXXXX", NULL);
			g_autofree char *policy =
			    g_strdup_printf("[policy]\nexpert_home = ssd\noptimizer = cpu-expert\ngradient_bytes = %d\n", gradient);
			g_autoptr(scenario) s = scenario_for(networks[i], policy, 1, 1, &bf16);
			const struct memory_case k = {.home = HOME_SSD, .expert_parallel = 1};
			uint64_t bytes, cache, planned = frames_planned(networks[i], "optimizer = cpu-expert\n", gradient, 23, &bytes, &cache);
			struct footprint_frames f = footprint_frames(s->network, s->machine, s->policy, &k);
			struct store_layer layers[4];
			struct device *device;
			struct device_group *group;
			int n = 0;
			cr_assert(device_open("host", 1, 1 << 20, &device, &group, NULL));
			for (int l = 0; l < s->network->layers; l++) {
				const struct layer *layer = &s->network->layer[l];
				struct expert_bytes e = memory_expert(s->network, s->machine, s->policy, layer);
				if (!layer->experts)
					continue;
				layers[n++] = (struct store_layer){layer->experts, network_expert_params(s->network, layer)};
				cr_expect(e.parameter_block == (uint64_t)gradient / 2 * bytes && e.state_block == 3 * bytes);
			}
			uint64_t cached = footprint_cached_frames(s->network, s->machine, s->policy, cache);
			cr_expect_eq(cached, 23 - (uint64_t)gradient / 2);
			const struct store_options o = {
			    .home = HOME_SSD, .element_bytes = 2, .gradient_bytes = gradient, .ssd_folder = folder, .frames = cached + f.behind};
			struct store *store = store_new(device, layers, n, &o, NULL);
			cr_assert(store);
			cr_expect_eq(store_pinned_bytes(store), planned * bytes);
			store_free(store);
			device_close(&device, 1, group);
			cr_assert_eq(g_rmdir(folder), 0);
		}
}

/* What the executor refuses is planned by the framework's rules, whoever runs it. */
Test(footprint, what_cannot_be_run_is_planned_as_a_frameworks)
{
	const char *const other[] = {"policy.zero_stage=1", "policy.tensor_parallel=2", "policy.gradient_bucket_mib=8", "network.attention_every=2"};
	for (size_t i = 0; i < G_N_ELEMENTS(other); i++) {
		struct plan ours, theirs;
		struct scenario_options o = {.model = TINY, .machine = "h200-x2", .policy = STATIC, .set = SETS(other[i], "software.runtime=esmoe")};
		g_autoptr(scenario) a = scenario_made(&o);
		o.set = SETS(other[i]);
		g_autoptr(scenario) b = scenario_made(&o);
		cr_assert(plan_make(a, &ours, NULL) && plan_make(b, &theirs, NULL));
		cr_assert_eq(memory_total(&ours.memory, TIER_HBM), memory_total(&theirs.memory, TIER_HBM), "%s", other[i]);
	}
}

/* The plan chooses by what is really taken: an arena that just holds a run holds it, a byte of GiB less does not, or in more micro-batches. */
Test(footprint, an_arena_that_just_holds_a_run_is_chosen_for_it)
{
	g_autoptr(scenario) s = scenario_for(networks[0], STATIC, 2, 0, &fp32);
	struct plan all, less;
	cr_assert(plan_make(s, &all, NULL));
	cr_assert_eq(all.microbatches, 1);
	s->machine->hbm_gib = ((double)memory_total(&all.memory, TIER_HBM) + 1) / GIB;
	cr_assert(plan_make(s, &less, NULL));
	cr_assert_eq(less.microbatches, 1);
	s->machine->hbm_gib = ((double)memory_total(&all.memory, TIER_HBM) - 256) / GIB;
	cr_assert(plan_make(s, &less, NULL));
	cr_assert_eq(less.microbatches, 2);
	cr_assert_leq(memory_total(&less.memory, TIER_HBM), memory_total(&all.memory, TIER_HBM) - 256);
}
