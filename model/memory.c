/* Memory follows from the schedule's own rules: dense parameters with their optimizer live in HBM; experts where their home is; activations are the
 * checkpoints of every layer plus the workspace of the stage that runs; buffers are the expert slots, gradient slots and the all-to-all's two ends.
 */
#include "memory.h"

#include "cost.h"
#include "footprint.h"

#define SLOTS_MOST 16384 /* a stage's slot has 15 bits, which pinned experts share */

static const char *const tier_names[N_TIERS] = {"HBM", "pinned DRAM", "DRAM", "SSD"};
static const char *const class_names[N_CLASSES] = {"parameters", "gradients", "optimizer", "activations", "buffers", "workspace", "kv_cache"};

const char *memory_tier_name(int tier)
{
	return tier_names[tier];
}

const char *memory_class_name(int class)
{
	return class_names[class];
}

uint64_t memory_total(const struct memory *m, int tier)
{
	uint64_t sum = 0;
	for (int i = 0; i < N_CLASSES; i++)
		sum += m->bytes[tier][i];
	return sum;
}

uint64_t memory_need(const struct memory *m, int tier)
{
	return memory_total(m, tier) + (tier == TIER_DRAM ? memory_total(m, TIER_PINNED) : 0);
}

int memory_overflow(const struct memory *m)
{
	for (int tier = 0; tier < N_TIERS; tier++)
		if (tier != TIER_PINNED && memory_need(m, tier) > m->room[tier])
			return tier;
	return -1;
}

static uint64_t pinned_block(const struct machine *m, uint64_t bytes)
{
	uint64_t block = 1;
	if (!m->pinned_pow2)
		return bytes;
	while (block < bytes)
		block *= 2;
	return block;
}

struct expert_bytes memory_expert(const struct network *n, const struct machine *m, const struct policy *p, const struct layer *l)
{
	if (m->runtime == RUNTIME_ESMOE)
		return footprint_expert(n, m, p, l);
	/* with its biases: they lift a block over the power of two */
	uint64_t bias = (uint64_t)n->d_model + (uint64_t)(activation_matrices(n->activation) - 1) * l->d_expert;
	uint64_t params = network_expert_params(n, l) + bias;
	uint64_t gradient = pinned_block(m, params * p->gradient_bytes), half = pinned_block(m, params * (uint64_t)m->element_bytes);
	uint64_t master = m->pinned_master ? pinned_block(m, params * 4) : params * 4;
	return (struct expert_bytes){
	    .pinned = half + gradient + (m->pinned_master ? master : 0),
	    .pageable = params * 8 + (m->pinned_master ? 0 : master),
	    .parameter_block = half + gradient,
	    .gradient = gradient,
	    .state_block = master + params * 8,
	};
}

struct expert_bytes memory_expert_inference(const struct network *n, const struct machine *m, const struct layer *l)
{
	uint64_t block = pinned_block(m, network_expert_params(n, l) * (uint64_t)m->element_bytes);
	return (struct expert_bytes){.pinned = block, .parameter_block = block};
}

#define TILE_PARAMS 1800000 /* of a tiled optimizer (arXiv 2303.06318, section 5) */

static int tensor_of(const struct machine *m, const struct policy *p)
{
	return policy_tensor_parallel(p, m->gpus);
}

struct memory_share memory_dense_share(const struct network *n, const struct machine *m, const struct policy *p)
{
	int tensor = tensor_of(m, p);
	struct memory_share share = {p->embedding == EMBEDDING_CUT ? 0 : network_embedding_params(n) / (uint64_t)tensor, m->gpus / tensor};
	for (int i = 0; i < n->layers; i++)
		share.params += network_dense_share(n, &n->layer[i], tensor);
	return share;
}

/* The part of an embedding that is cut whatever ZeRO's stage. */
static struct memory_share embedding_share(const struct network *n, const struct machine *m, const struct policy *p)
{
	int copies = m->gpus / tensor_of(m, p);
	uint64_t params = network_embedding_params(n) / (uint64_t)tensor_of(m, p);
	return (struct memory_share){p->embedding == EMBEDDING_CUT ? (params + (uint64_t)copies - 1) / (uint64_t)copies : 0, 1};
}

struct memory_share memory_expert_share(const struct network *n, const struct machine *m, const struct policy *p, const struct layer *l,
                                        int expert_parallel, int split)
{
	int unit = p->tensor_experts == TENSOR_EXPERTS_CUT ? tensor_of(m, p) : 1, units = expert_parallel / unit;
	if (!l->experts)
		return (struct memory_share){0, 1};
	struct memory_share share = {network_expert_params(n, l) / (uint64_t)unit * (uint64_t)((l->experts + units - 1) / units),
	                             m->gpus / expert_parallel};
	int spread = MAX(1, units / l->experts);
	if (split == SPLIT_MODEL || split == SPLIT_ADAPTIVE) /* a part of one */
		share.params = (share.params + (uint64_t)spread - 1) / (uint64_t)spread;
	else
		share.copies *= spread;
	return share;
}

uint64_t memory_cast(const struct policy *p, uint64_t params)
{
	if (p->gradient_cast == CAST_NONE)
		return 0;
	return p->gradient_cast == CAST_TILED ? MIN(params, TILE_PARAMS) : params;
}

static uint64_t part(uint64_t params, int copies)
{
	return (params + (uint64_t)copies - 1) / (uint64_t)copies;
}

/* Parameters, gradients and optimizer state under the GPU's Adam: 2 + 2 + 12 bytes, 2 + 6 + 12 where an fp32 gradient is kept too; ZeRO's stages cut
 * the last, the last two, or all of them into parts. Returns the parameters that this GPU updates. */
static uint64_t add_resident(struct memory *out, const struct machine *m, const struct policy *p, struct memory_share share)
{
	int optimizer = m->element_bytes == 4 ? 8 : 12, stage = p->zero_stage;
	uint64_t cut = part(share.params, share.copies);
	out->bytes[TIER_HBM][CLASS_PARAMETERS] += (uint64_t)m->element_bytes * (stage >= 3 ? cut : share.params);
	out->bytes[TIER_HBM][CLASS_GRADIENTS] += (uint64_t)(m->state_bytes_gpu - optimizer - m->element_bytes) * (stage >= 2 ? cut : share.params);
	out->bytes[TIER_HBM][CLASS_OPTIMIZER] += (uint64_t)optimizer * (stage >= 1 ? cut : share.params);
	return stage >= 1 ? cut : share.params;
}

/* ZeRO-Offload (arXiv 2101.06840, section 4): gradients leave the GPU as they come, they and the optimizer's state live in DRAM. */
static void add_dense_on_host(struct memory *out, const struct machine *m, const struct policy *p, struct memory_share share)
{
	uint64_t cut = part(share.params, share.copies), here = cut * (uint64_t)machine_node_gpus(m, 0);
	out->bytes[TIER_HBM][CLASS_PARAMETERS] += (uint64_t)m->element_bytes * (p->zero_stage >= 3 ? cut : share.params);
	out->bytes[TIER_PINNED][CLASS_GRADIENTS] += (uint64_t)m->element_bytes * here;
	out->bytes[m->pinned_master ? TIER_PINNED : TIER_DRAM][CLASS_OPTIMIZER] += 4 * here;
	out->bytes[TIER_DRAM][CLASS_OPTIMIZER] += 8 * here;
}

/* Of what is cut into parts, two layers are whole in HBM: with gradients cut, those that wait for their reduction; with parameters cut, those in use
 * and the next. The embedding is whole from its use to the head's. */
static void add_whole_layers(const struct network *n, const struct machine *m, const struct policy *p, const struct memory_case *k,
                             struct memory *out)
{
	int tensor = tensor_of(m, p), copies = m->gpus / tensor;
	uint64_t widest = 0, element = (uint64_t)m->element_bytes;
	bool offloaded = p->dense_optimizer == DENSE_OPTIMIZER_CPU, cut = p->embedding == EMBEDDING_CUT;
	if (cut && copies > 1) /* the head's, with its gradients */
		out->bytes[TIER_HBM][CLASS_BUFFERS] += 2 * element * network_embedding_params(n) / (uint64_t)tensor;
	if (copies == 1 || (p->zero_stage < 2 && !offloaded))
		return;
	for (int i = 0; i < n->layers; i++) {
		uint64_t params = network_dense_share(n, &n->layer[i], tensor);
		struct memory_share experts = memory_expert_share(n, m, p, &n->layer[i], k->expert_parallel, k->split);
		if (k->home == HOME_HBM && experts.copies > 1)
			params += experts.params;
		widest = MAX(widest, params);
	}
	out->bytes[TIER_HBM][CLASS_BUFFERS] += 2 * element * widest;
	if (p->zero_stage >= 3)
		out->bytes[TIER_HBM][CLASS_BUFFERS] += 2 * element * widest + (cut ? 0 : element * network_embedding_params(n) / (uint64_t)tensor);
}

int memory_pinned_experts(double share, int experts, int gpus)
{
	return (int)(share * (experts / gpus));
}

uint64_t memory_node_experts(const struct machine *m, const struct memory_case *k, const struct layer *l)
{
	uint64_t experts = (uint64_t)l->experts, gpus = (uint64_t)m->gpus, local = (uint64_t)machine_node_gpus(m, 0);
	return k->expert_parallel > 1 ? (experts * local + gpus - 1) / gpus : experts;
}

int memory_slots(const struct network *n, const struct machine *m, const struct policy *p, const struct memory_case *k)
{
	int widest = 0, all = 0;
	for (int i = 0; i < n->layers; i++) {
		int experts = n->layer[i].experts;
		int own =
		    (k->expert_parallel > 1 ? (experts + m->gpus - 1) / m->gpus : experts) - memory_pinned_experts(k->pinned_share, experts, m->gpus);
		widest = MAX(widest, own);
		all += own;
	}
	if (!p->upload_ahead_layers)
		return 1 + p->upload_ahead;
	int most = MIN(MAX(1, all), SLOTS_MOST);
	return MIN(most, MAX(1 + p->upload_ahead, widest * (1 + p->upload_ahead_layers)));
}

static void add_offloaded(const struct network *n, const struct machine *m, const struct policy *p, const struct memory_case *k, struct memory *out)
{
	uint64_t widest = 0;
	for (int i = 0; i < n->layers; i++) {
		const struct layer *l = &n->layer[i];
		if (!l->experts)
			continue;
		uint64_t experts = memory_node_experts(m, k, l), params = network_expert_params(n, l);
		struct expert_bytes e = memory_expert(n, m, p, l);
		widest = MAX(widest, params);
		uint64_t pinned = (uint64_t)memory_pinned_experts(k->pinned_share, l->experts, m->gpus);
		out->bytes[TIER_HBM][CLASS_PARAMETERS] += pinned * params * (uint64_t)m->element_bytes;
		if (k->home == HOME_SSD) {
			out->bytes[TIER_SSD][CLASS_OPTIMIZER] += experts * params * SSD_STATE_BYTES;
			continue;
		}
		uint64_t copies = MIN(e.parameter_block, e.pinned);
		out->bytes[TIER_PINNED][CLASS_GRADIENTS] += experts * e.gradient;
		out->bytes[TIER_PINNED][CLASS_PARAMETERS] += experts * (copies - e.gradient);
		out->bytes[TIER_PINNED][CLASS_OPTIMIZER] += experts * (e.pinned - copies);
		out->bytes[TIER_DRAM][CLASS_OPTIMIZER] += experts * e.pageable;
	}
	out->bytes[TIER_HBM][CLASS_BUFFERS] +=
	    (uint64_t)memory_slots(n, m, p, k) * widest * (uint64_t)m->element_bytes + 2 * widest * (uint64_t)p->gradient_bytes;
	if (k->home == HOME_SSD) {
		out->cache_bytes = out->room[TIER_DRAM];
		out->bytes[TIER_PINNED][CLASS_BUFFERS] = out->cache_bytes;
	}
}

/* Copies of other GPUs' experts: shadows stay from their forward to their backward, with the gradients of one layer's; experts that travel go through
 * the slots, with two gradients under way; so do
 * those whose split adapts, whole at most. */
static void add_copies(const struct network *n, const struct machine *m, const struct policy *p, const struct memory_case *k, struct memory *out)
{
	uint64_t widest = 0, element = (uint64_t)m->element_bytes, shadowed = 0, widest_shadows = 0;
	bool adapts = false;
	for (int i = 0; i < n->layers; i++) {
		const struct layer *l = &n->layer[i];
		uint64_t params = network_expert_params(n, l), copies = (uint64_t)MIN(k->shadowed, l->experts) * params;
		widest = MAX(widest, params);
		shadowed += copies;
		adapts = adapts || (k->split == SPLIT_ADAPTIVE && l->experts && l->experts < m->gpus);
		widest_shadows = MAX(widest_shadows, copies);
	}
	out->bytes[TIER_HBM][CLASS_BUFFERS] += (shadowed + widest_shadows) * element;
	if (adapts || p->exchange != EXCHANGE_TOKENS)
		out->bytes[TIER_HBM][CLASS_BUFFERS] += (uint64_t)(1 + p->upload_ahead + 2) * widest * element;
}

static void add_activations(const struct network *n, const struct machine *m, const struct policy *p, const struct memory_case *k, uint64_t updated,
                            struct memory *out)
{
	g_autoptr(cost) c = cost_new(n, m, p, k->seq_len, 0);
	uint32_t tokens = (uint32_t)(k->sequences * k->seq_len);
	uint64_t hidden = (uint64_t)tokens * n->d_model * (uint64_t)m->element_bytes, saved = 0, widest_moe = 0;
	int most_k = 0;
	for (int i = 0; i < n->layers; i++) {
		const struct layer *l = &n->layer[i];
		uint64_t layer_saved = 0;
		static const int kinds[] = {STAGE_MIXER, STAGE_EXPERT, STAGE_FFN, STAGE_SHARED};
		for (size_t j = 0; j < G_N_ELEMENTS(kinds); j++) {
			if (kinds[j] == STAGE_EXPERT && !l->experts)
				continue;
			uint64_t w = cost_workspace(c, kinds[j], l, kinds[j] == STAGE_EXPERT ? tokens * (uint32_t)l->top_k : tokens);
			out->workspace[kinds[j]] = MAX(out->workspace[kinds[j]], w);
			layer_saved += w;
		}
		if (l->experts)
			most_k = MAX(most_k, l->top_k);
		saved = MAX(saved, layer_saved);
	}
	int tensor = tensor_of(m, p);
	bool cut = p->tensor_experts == TENSOR_EXPERTS_CUT;
	widest_moe = hidden * (uint64_t)most_k / (cut ? 1 : (uint64_t)tensor);
	out->workspace[STAGE_HEAD] = cost_workspace(c, STAGE_HEAD, NULL, tokens);
	double capacity = p->dispatch == DISPATCH_EXACT ? 1 : MAX(1.0, p->capacity_factor);
	if (p->dispatch == DISPATCH_MASK) /* tokens x (experts x capacity): fp32 weights, their half copy, the boolean and its half copy, gradients of
	                                     both: 15 bytes */
		out->workspace[STAGE_PERMUTE] = (uint64_t)(15.0 * tokens * tokens * capacity * most_k);
	bool keeps_all = p->checkpoint == CHECKPOINT_NONE;
	out->checkpoint_bytes = keeps_all ? saved : hidden;
	if (p->checkpoint == CHECKPOINT_KEEP_COLLECTIVES)
		out->checkpoint_bytes += 2 * widest_moe;
	if (p->checkpoint == CHECKPOINT_KEEP_COLLECTIVES &&
	    tensor > 1) /* and what the tensor group added up: behind the mixer, behind FFN or experts */
		out->checkpoint_bytes += hidden + MAX(hidden, cut ? widest_moe : 0);
	uint64_t together = (uint64_t)MAX(1, k->together);
	out->bytes[TIER_HBM][CLASS_ACTIVATIONS] = together * ((uint64_t)n->layers * out->checkpoint_bytes + hidden);
	if (!keeps_all) /* what each of the others recomputed up to its experts waits for its backward behind them */
		out->bytes[TIER_HBM][CLASS_ACTIVATIONS] +=
		    (together - 1) * (out->workspace[STAGE_MIXER] + out->workspace[STAGE_FFN] + out->workspace[STAGE_SHARED]);
	uint64_t most = 0;
	for (int kind = 0; kind < N_STAGE_KINDS; kind++)
		most = MAX(most, out->workspace[kind]);
	/* the optimizer's gradients in fp32 come when the activations have gone */
	uint64_t activations = out->bytes[TIER_HBM][CLASS_ACTIVATIONS];
	out->workspace[STAGE_ADAM_GPU] = 4 * memory_cast(p, updated);
	out->bytes[TIER_HBM][CLASS_WORKSPACE] = MAX(most + activations, out->workspace[STAGE_ADAM_GPU]) - activations;
	out->bytes[TIER_HBM][CLASS_BUFFERS] += together * (uint64_t)(2 * capacity * (double)widest_moe);
}

static void rooms_fill(const struct machine *m, struct memory *out)
{
	out->room[TIER_HBM] = (uint64_t)((m->hbm_gib - m->reserved_gib) * GIB);
	out->room[TIER_DRAM] = out->room[TIER_PINNED] = (uint64_t)((m->dram_gib - m->dram_reserved_gib) * GIB);
	out->room[TIER_SSD] = (uint64_t)(m->ssd_gb * GB);
}

void memory_plan(const struct network *n, const struct machine *m, const struct policy *p, const struct memory_case *k, struct memory *out)
{
	*out = (struct memory){0};
	rooms_fill(m, out);
	if (m->runtime == RUNTIME_ESMOE && footprint_known(n, m, p, k)) {
		footprint_plan(n, m, p, k, out);
		return;
	}
	uint64_t updated = 0;
	if (p->dense_optimizer == DENSE_OPTIMIZER_CPU)
		add_dense_on_host(out, m, p, memory_dense_share(n, m, p));
	else
		updated = add_resident(out, m, p, memory_dense_share(n, m, p)) + add_resident(out, m, p, embedding_share(n, m, p));
	for (int i = 0; i < n->layers && k->home == HOME_HBM; i++)
		updated += add_resident(out, m, p, memory_expert_share(n, m, p, &n->layer[i], k->expert_parallel, k->split));
	add_whole_layers(n, m, p, k, out);
	if (k->home != HOME_HBM)
		add_offloaded(n, m, p, k, out);
	else if (m->gpus > 1)
		add_copies(n, m, p, k, out);
	add_activations(n, m, p, k, updated, out);
}

/* Each GPU of a tensor group has the keys of one head at least. */
uint64_t memory_kv_bytes(const struct network *n, const struct machine *m, const struct policy *p)
{
	uint64_t bytes = 0, heads = (uint64_t)MAX(1, n->kv_heads / tensor_of(m, p));
	for (int i = 0; i < n->layers; i++)
		if (n->layer[i].mixer == MIXER_ATTENTION)
			bytes += 2 * heads * (uint64_t)n->d_head * (uint64_t)m->element_bytes;
	return bytes;
}

/* Of each channel: the state in fp32 and the tokens that the convolution still looks at. */
uint64_t memory_state_bytes(const struct network *n, const struct machine *m, const struct policy *p)
{
	uint64_t bytes = 0, channels = (uint64_t)(n->mamba_expand * n->d_model / tensor_of(m, p));
	for (int i = 0; i < n->layers; i++)
		if (n->layer[i].mixer == MIXER_MAMBA)
			bytes += channels * (4 * (uint64_t)n->mamba_state + (uint64_t)n->mamba_conv * (uint64_t)m->element_bytes);
	return bytes;
}

static void add_offloaded_inference(const struct network *n, const struct machine *m, const struct policy *p, const struct memory_case *k,
                                    struct memory *out)
{
	uint64_t widest = 0;
	for (int i = 0; i < n->layers; i++) {
		const struct layer *l = &n->layer[i];
		if (!l->experts)
			continue;
		uint64_t bytes = network_expert_params(n, l) * (uint64_t)m->element_bytes;
		widest = MAX(widest, bytes);
		out->bytes[TIER_HBM][CLASS_PARAMETERS] += bytes * (uint64_t)memory_pinned_experts(k->pinned_share, l->experts, m->gpus);
		if (k->home == HOME_SSD)
			out->bytes[TIER_SSD][CLASS_PARAMETERS] += memory_node_experts(m, k, l) * bytes;
		else
			out->bytes[TIER_PINNED][CLASS_PARAMETERS] += memory_node_experts(m, k, l) * memory_expert_inference(n, m, l).pinned;
	}
	out->bytes[TIER_HBM][CLASS_BUFFERS] += (uint64_t)memory_slots(n, m, p, k) * widest;
	if (k->home == HOME_SSD)
		out->bytes[TIER_PINNED][CLASS_BUFFERS] = out->cache_bytes = out->room[TIER_DRAM];
}

/* Inputs, outputs and what lies between them of a forward stage, elements and fp32 bytes a token: mixer q, k, v, context and norm, with half and fp32
 * scores unless the kernel is fused; FFN its products and the input, GELU in fp32 where each operator is a kernel; head logits in both. */
static uint64_t forward_workspace(const struct network *n, const struct machine *m, int kind, const struct layer *l, uint64_t tokens, int seq_len,
                                  double tensor)
{
	double el = m->element_bytes, d = n->d_model, wide = kind == STAGE_HEAD ? 4 : m->kernels == KERNELS_EAGER ? 4 : 0, bytes = 0;
	double inner = kind == STAGE_EXPERT ? l->d_expert : kind == STAGE_FFN ? l->d_ff : kind == STAGE_SHARED ? l->shared * l->d_shared : 0;
	inner /= tensor;
	if (kind == STAGE_MIXER) {
		bytes = el * (l->mixer == MIXER_MAMBA ? 3.0 * n->mamba_expand * d / tensor : 2.0 * (n->heads + n->kv_heads) / tensor * n->d_head + d);
		if (m->attention == ATTENTION_MATERIALISED && l->mixer == MIXER_ATTENTION)
			bytes += (2 * el + 4) * n->heads / tensor * seq_len;
	} else if (kind == STAGE_HEAD) {
		bytes = (el + wide) * n->vocab / tensor;
	} else if (inner > 0) {
		bytes = el * (activation_matrices(n->activation) * inner + d) + wide * inner;
	}
	return (uint64_t)(bytes * (double)tokens);
}

static void add_activations_inference(const struct network *n, const struct machine *m, const struct policy *p, const struct memory_case *k,
                                      struct memory *out)
{
	uint64_t tokens = (uint64_t)k->sequences * (uint64_t)k->seq_len, hidden = tokens * (uint64_t)n->d_model * (uint64_t)m->element_bytes;
	uint64_t most_k = 0, most = 0;
	double tensor = tensor_of(m, p);
	for (int i = 0; i < n->layers; i++) {
		const struct layer *l = &n->layer[i];
		most_k = MAX(most_k, l->experts ? (uint64_t)l->top_k : 0);
		for (int kind = 0; kind < STAGE_HEAD; kind++) {
			uint64_t rows = kind == STAGE_EXPERT ? tokens * (uint64_t)l->top_k : tokens;
			out->workspace[kind] = MAX(out->workspace[kind], forward_workspace(n, m, kind, l, rows, k->seq_len, tensor));
		}
	}
	out->workspace[STAGE_HEAD] = forward_workspace(n, m, STAGE_HEAD, NULL, (uint64_t)k->batch, k->seq_len, tensor);
	double capacity = p->dispatch == DISPATCH_EXACT ? 1 : MAX(1.0, p->capacity_factor);
	if (p->dispatch == DISPATCH_MASK) /* fp32 weights, their half copy, the boolean and its half copy */
		out->workspace[STAGE_PERMUTE] = (uint64_t)(9.0 * (double)tokens * (double)tokens * capacity * (double)most_k);
	for (int kind = 0; kind < N_STAGE_KINDS; kind++)
		most = MAX(most, out->workspace[kind]);
	out->bytes[TIER_HBM][CLASS_ACTIVATIONS] = 2 * hidden; /* a layer's input and its sum with what the layer adds */
	out->bytes[TIER_HBM][CLASS_WORKSPACE] = most;
	out->bytes[TIER_HBM][CLASS_BUFFERS] += (uint64_t)(2 * capacity * (double)(hidden * most_k));
}

void memory_plan_inference(const struct network *n, const struct machine *m, const struct policy *p, const struct memory_case *k, struct memory *out)
{
	*out = (struct memory){0};
	rooms_fill(m, out);
	uint64_t resident = memory_dense_share(n, m, p).params;
	for (int j = 0; j < n->layers && k->home == HOME_HBM; j++)
		resident += memory_expert_share(n, m, p, &n->layer[j], k->expert_parallel, k->split).params;
	out->bytes[TIER_HBM][CLASS_PARAMETERS] = resident * (uint64_t)m->element_bytes;
	if (k->home != HOME_HBM)
		add_offloaded_inference(n, m, p, k, out);
	add_activations_inference(n, m, p, k, out);
	out->bytes[TIER_HBM][CLASS_KV_CACHE] = (uint64_t)k->batch * (memory_kv_bytes(n, m, p) * (uint64_t)k->cached + memory_state_bytes(n, m, p));
}

uint64_t memory_always(const struct memory *m)
{
	const uint64_t *hbm = m->bytes[TIER_HBM];
	return memory_total(m, TIER_HBM) - (m->all_along ? 0 : hbm[CLASS_ACTIVATIONS] + hbm[CLASS_WORKSPACE]);
}

struct memory_change memory_of_stage(const struct memory *m, const struct stage *s)
{
	struct memory_change change = {.while_running = m->workspace[s->kind]};
	/* the layer's input is kept from its first forward stage to the end of its last backward stage: both are the mixer's */
	if (s->kind == STAGE_MIXER && s->pass == PASS_FORWARD)
		change.at_end = (int64_t)m->checkpoint_bytes;
	if (s->kind == STAGE_MIXER && s->pass == PASS_BACKWARD)
		change.at_end = -(int64_t)m->checkpoint_bytes;
	return change;
}
