/* A policy is read by one table of keys, a knob each; the words of a knob stand in the order of its enum. A row states only what makes its system
 * itself: the fallbacks describe the plainest training, everything in HBM, exact token counts, nothing overlapped beyond what any framework does. */
#include "policy.h"

#include "error.h"
#include "ini.h"

#define FIELD(field) offsetof(struct policy, field)
#define KNOB(field, fallback, words, help)                                                                                                           \
	{                                                                                                                                            \
		"policy", #field, INI_CHOICE, FIELD(field), fallback, 0, 0, words, help                                                              \
	}
#define WHOLE(field, fallback, min, max, help)                                                                                                       \
	{                                                                                                                                            \
		"policy", #field, INI_INT, FIELD(field), fallback, min, max, NULL, help                                                              \
	}
#define FLAG(field, fallback, help)                                                                                                                  \
	{                                                                                                                                            \
		"policy", #field, INI_BOOL, FIELD(field), fallback, 0, 0, NULL, help                                                                 \
	}
/* A number whose 0 leaves the choice to the planner. */
#define COUNT(field, fallback, max, help)                                                                                                            \
	{                                                                                                                                            \
		"policy", #field, INI_INT, FIELD(field), fallback, 0, max, auto_word, help                                                           \
	}
#define NUMBER(field, fallback, min, max, help)                                                                                                      \
	{                                                                                                                                            \
		"policy", #field, INI_DOUBLE, FIELD(field), fallback, min, max, NULL, help                                                           \
	}

static const char *const home_words[] = {[HOME_HBM] = "hbm", [HOME_DRAM] = "dram", [HOME_SSD] = "ssd", [HOME_AUTO] = "auto", NULL};
static const char *const placement_words[] = {[PLACEMENT_FIXED] = "fixed", [PLACEMENT_LPT] = "lpt", [PLACEMENT_STICKY] = "sticky", NULL};
static const char *const dispatch_words[] = {[DISPATCH_EXACT] = "exact", [DISPATCH_PADDED] = "padded", [DISPATCH_MASK] = "mask", NULL};
static const char *const compute_words[] = {[EXPERTS_SEQUENTIAL] = "sequential", [EXPERTS_GROUPED] = "grouped", NULL};
static const char *const rows_words[] = {[ROWS_TOGETHER] = "together", [ROWS_BY_SOURCE] = "by-source", NULL};
static const char *const stream_words[] = {[REDUCTIONS_SHARED] = "shared", [REDUCTIONS_OWN] = "own", NULL};
static const char *const scope_words[] = {[UPLOAD_LAYER] = "layer", [UPLOAD_NEXT_LAYER] = "next-layer", NULL};
static const char *const optimizer_words[] = {
    [OPTIMIZER_GPU] = "gpu", [OPTIMIZER_CPU_STEP] = "cpu-step", [OPTIMIZER_CPU_LAYER] = "cpu-layer", [OPTIMIZER_CPU_EXPERT] = "cpu-expert", NULL};
static const char *const update_words[] = {[UPDATE_ARRIVAL] = "arrival", [UPDATE_NEXT_FORWARD] = "next-forward", NULL};
static const char *const all_to_all_words[] = {
    [ALL_TO_ALL_LINEAR] = "linear", [ALL_TO_ALL_HIERARCHICAL] = "hierarchical", [ALL_TO_ALL_AUTO] = "auto", [ALL_TO_ALL_DROPPED] = "dropped", NULL};
static const char *const checkpoint_words[] = {
    [CHECKPOINT_NONE] = "none", [CHECKPOINT_FULL] = "full", [CHECKPOINT_KEEP_COLLECTIVES] = "keep-collectives", [CHECKPOINT_LAYER] = "layer", NULL};
static const char *const split_words[] = {[SPLIT_AUTO] = "auto", [SPLIT_DATA] = "data", [SPLIT_MODEL] = "model", [SPLIT_ADAPTIVE] = "adaptive", NULL};
static const char *const tensor_words[] = {[TENSOR_EXPERTS_CUT] = "cut", [TENSOR_EXPERTS_WHOLE] = "whole", NULL};
static const char *const cast_words[] = {[CAST_NONE] = "none", [CAST_WHOLE] = "whole", [CAST_TILED] = "tiled", NULL};
static const char *const embedding_words[] = {[EMBEDDING_COPIED] = "copied", [EMBEDDING_CUT] = "cut", NULL};
static const char *const dense_words[] = {[DENSE_OPTIMIZER_GPU] = "gpu", [DENSE_OPTIMIZER_CPU] = "cpu", NULL};
static const char *const exchange_words[] = {[EXCHANGE_TOKENS] = "tokens", [EXCHANGE_EXPERTS] = "experts", [EXCHANGE_AUTO] = "auto", NULL};
static const char *const order_words[] = {[ORDER_HORIZONTAL] = "horizontal", [ORDER_VERTICAL] = "vertical", NULL};
static const char *const cache_words[] = {[CACHE_LRU] = "lru", [CACHE_LFU_DECAY] = "lfu-decay", [CACHE_BELADY] = "belady", NULL};

static const char *const auto_word[] = {"auto", NULL};

static const struct ini_key keys[] = {
    {"policy", "name", INI_STRING, FIELD(name), "", 0, 0, NULL, "name in tables; empty: the file's"},
    KNOB(expert_home, "hbm", home_words, "where idle experts live; auto: the cheapest that fits"),
    NUMBER(pinned_share, "0", 0, 1, "share of a GPU's experts kept in HBM: the busiest of the last step"),
    KNOB(placement, "fixed", placement_words, "which GPU computes which expert"),
    KNOB(dispatch, "exact", dispatch_words, "tokens to experts: exact counts, zero padding, padding and a dense mask"),
    NUMBER(capacity_factor, "0", 0, 1e4, "capacity of an expert over the mean load, overflow dropped; 0: dropless"),
    KNOB(expert_compute, "sequential", compute_words, "experts of a layer one after another or in one grouped GEMM"),
    KNOB(expert_rows, "together", rows_words, "an expert's rows as one matrix, or one for each GPU that sent some"),
    WHOLE(upload_ahead, "1", 0, 4096, "expert slots in HBM beyond the one in use"),
    WHOLE(upload_ahead_layers, "0", 0, 4096, "the same in layers of experts beyond the one in use; the larger counts"),
    KNOB(upload_scope, "layer", scope_words, "how far uploads run ahead; next-layer needs fixed or sticky placement"),
    KNOB(optimizer, "gpu", optimizer_words, "where Adam of the experts runs, and when it may start"),
    KNOB(update_order, "arrival", update_words, "updates of experts as gradients come, or those that the next forward needs first after it"),
    KNOB(all_to_all, "linear", all_to_all_words, "exchange of tokens between GPUs; dropped: duplicates in a tensor group sent once"),
    COUNT(pipeline_degree, "1", 8, "chunks of tokens, all-to-all of one under the experts of another"),
    KNOB(checkpoint, "full", checkpoint_words, "activation checkpointing; layer: the whole forward again; keep-collectives: without its collectives"),
    KNOB(microbatch_order, "horizontal", order_words, "vertical: all micro-batches of a layer before the next, experts uploaded once for all"),
    COUNT(microbatch, "auto", 65536, "sequences a micro-batch; auto: the largest that fits"),
    COUNT(expert_parallel, "auto", 16384, "GPUs that share one set of experts; 1: each GPU computes every expert on its own tokens"),
    KNOB(expert_split, "auto", split_words, "fewer experts than GPUs: replicate them, cut them, or any mixture for each load"),
    COUNT(tensor_parallel, "auto", 1024, "GPUs side by side that cut every matrix among them; auto: by data_parallel, or 1"),
    COUNT(data_parallel, "auto", 65536, "copies of the non-expert parameters; auto: GPUs over tensor_parallel"),
    KNOB(tensor_experts, "cut", tensor_words, "experts in a tensor group: cut as all else, or whole, each GPU with its share of the tokens"),
    WHOLE(zero_stage, "0", 0, 3, "what copies hold one part each of: 1 optimizer state, 2 and gradients, 3 and parameters"),
    KNOB(dense_optimizer, "gpu", dense_words, "where Adam of the non-expert parameters runs, and its state lives"),
    KNOB(embedding, "copied", embedding_words, "the embedding on data-parallel GPUs: a copy each, or a part each that all look up in"),
    FLAG(fused_communication, "true", "one collective a layer for parameters and for gradients, not one a tensor"),
    COUNT(gradient_bucket_mib, "auto", 65536, "MiB of gradients reduced at a time, across layers; auto: a layer's"),
    KNOB(gradient_cast, "none", cast_words, "gradients cast to fp32 before the GPU's Adam: not at all, all at once, tile by tile"),
    KNOB(reduction_stream, "shared", stream_words, "collectives of data-parallel copies in line with all others, or beside them"),
    KNOB(exchange, "tokens", exchange_words, "what travels between GPUs; auto: the faster for each load"),
    WHOLE(shadowed_experts, "0", 0, 4096, "busiest experts, at most, that all GPUs copy and compute on their own tokens"),
    KNOB(ssd_cache, "lru", cache_words, "which experts leave DRAM for the SSD"),
    NUMBER(cache_threshold, "0", 0, 1e9, "lfu-decay: hits from which an expert stays in DRAM; 0: none"),
    NUMBER(cache_decay, "0.5", 0.001, 1, "lfu-decay: factor of all hits once in a while"),
    COUNT(cache_decay_steps, "auto", 65536, "lfu-decay: steps until the next; auto: as many touches as there are blocks"),
    WHOLE(gradient_bytes, "2", 2, 4, "bytes of an expert gradient element on its way down, 2 or 4"),
    WHOLE(adam_threads, "0", 0, 65536, "CPU threads of one node's optimizer; 0: the machine's, but run leaves launchers a core each"),
};

static bool check(const struct policy *p, const char *source, const char *const *overrides, GError **error)
{
	if (p->gradient_bytes == 3)
		return ini_refuse("policies", source, overrides, "policy", "gradient_bytes", error, "3; expected 2 or 4");
	if (p->upload_scope == UPLOAD_NEXT_LAYER && p->placement == PLACEMENT_LPT)
		return ini_refuse("policies", source, overrides, "policy", "upload_scope", error,
		                  "next-layer needs to know the placement before the gate; expected layer, or placement = fixed | sticky");
	if (p->update_order == UPDATE_NEXT_FORWARD && p->optimizer != OPTIMIZER_CPU_EXPERT)
		return ini_refuse("policies", source, overrides, "policy", "update_order", error,
		                  "next-forward puts off the updates of single experts; expected arrival, or optimizer = cpu-expert");
	return true;
}

int policy_expert_parallel(const struct policy *p, int gpus)
{
	return p->expert_parallel ? MIN(p->expert_parallel, gpus) : gpus;
}

int policy_tensor_parallel(const struct policy *p, int gpus)
{
	if (p->tensor_parallel)
		return MIN(p->tensor_parallel, gpus);
	return p->data_parallel ? gpus / MIN(p->data_parallel, gpus) : 1;
}

struct policy *policy_load(const char *source, const char *const *overrides, GError **error)
{
	g_autofree struct policy *read = g_new0(struct policy, 1);
	g_autofree char *name = NULL;
	g_autoptr(policy) p = NULL;

	if (!ini_read("policies", source, keys, G_N_ELEMENTS(keys), overrides, read, &name, error))
		return NULL;
	p = g_steal_pointer(&read);
	if (!*p->name) {
		g_free(p->name);
		p->name = g_steal_pointer(&name);
	}
	return check(p, source, overrides, error) ? g_steal_pointer(&p) : NULL;
}

void policy_free(struct policy *policy)
{
	if (!policy)
		return;
	ini_clear(keys, G_N_ELEMENTS(keys), policy);
	g_free(policy);
}

char *policy_ini(const struct policy *policy)
{
	return ini_write(keys, G_N_ELEMENTS(keys), policy);
}

/* The first key is the name. */
const char *policy_knob(int i)
{
	return i + 1 < (int)G_N_ELEMENTS(keys) ? keys[i + 1].key : NULL;
}

char *policy_knob_value(const struct policy *policy, int i)
{
	return ini_text(&keys[i + 1], policy);
}
