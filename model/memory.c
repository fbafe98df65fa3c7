/* Memory follows from the schedule's own rules: dense parameters with their optimizer live in HBM; experts where their home is; activations are the
 * checkpoints of every layer plus the workspace of the stage that runs; buffers are the expert slots, gradient slots and the all-to-all's two ends.
 */
#include "memory.h"

#include "cost.h"

static const char *const tier_names[N_TIERS] = {"HBM", "pinned DRAM", "DRAM", "SSD"};
static const char *const class_names[N_CLASSES] = {"parameters", "gradients", "optimizer", "activations", "buffers", "workspace"};

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

/* Parameters, gradients and optimizer state of `params` parameters under the GPU's Adam: 2 + 2 + 12 bytes, 2 + 6 + 12 where an fp32 gradient is kept
 * too. */
static void add_resident(struct memory *out, const struct machine *m, uint64_t params)
{
	int optimizer = m->element_bytes == 4 ? 8 : 12;
	out->bytes[TIER_HBM][CLASS_PARAMETERS] += (uint64_t)m->element_bytes * params;
	out->bytes[TIER_HBM][CLASS_GRADIENTS] += (uint64_t)(m->state_bytes_gpu - optimizer - m->element_bytes) * params;
	out->bytes[TIER_HBM][CLASS_OPTIMIZER] += (uint64_t)optimizer * params;
}

int memory_pinned_experts(double share, int experts, int gpus)
{
	return (int)(share * (experts / gpus));
}

static void add_offloaded(const struct network *n, const struct machine *m, const struct policy *p, const struct memory_case *k, struct memory *out)
{
	uint64_t widest = 0;
	uint64_t gpus = (uint64_t)m->gpus, local = (uint64_t)machine_node_gpus(m, 0);
	for (int i = 0; i < n->layers; i++) {
		const struct layer *l = &n->layer[i];
		if (!l->experts)
			continue;
		uint64_t experts = (uint64_t)l->experts, params = network_expert_params(n, l);
		if (k->expert_parallel > 1) /* otherwise every node computes every expert */
			experts = (experts * local + gpus - 1) / gpus;
		struct expert_bytes e = memory_expert(n, m, p, l);
		widest = MAX(widest, params);
		uint64_t pinned = (uint64_t)memory_pinned_experts(k->pinned_share, l->experts, m->gpus);
		out->bytes[TIER_HBM][CLASS_PARAMETERS] += pinned * params * (uint64_t)m->element_bytes;
		if (k->home == HOME_SSD) {
			out->bytes[TIER_SSD][CLASS_OPTIMIZER] += experts * params * SSD_STATE_BYTES;
			continue;
		}
		out->bytes[TIER_PINNED][CLASS_GRADIENTS] += experts * e.gradient;
		out->bytes[TIER_PINNED][CLASS_PARAMETERS] += experts * (e.parameter_block - e.gradient);
		out->bytes[TIER_PINNED][CLASS_OPTIMIZER] += experts * (e.pinned - e.parameter_block);
		out->bytes[TIER_DRAM][CLASS_OPTIMIZER] += experts * e.pageable;
	}
	out->bytes[TIER_HBM][CLASS_BUFFERS] +=
	    (uint64_t)(1 + p->upload_ahead) * widest * (uint64_t)m->element_bytes + 2 * widest * (uint64_t)p->gradient_bytes;
	if (k->home == HOME_SSD) {
		out->cache_bytes = out->room[TIER_DRAM];
		out->bytes[TIER_PINNED][CLASS_BUFFERS] = out->cache_bytes;
	}
}

static void add_activations(const struct network *n, const struct machine *m, const struct policy *p, const struct memory_case *k, struct memory *out)
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
	widest_moe = hidden * (uint64_t)most_k;
	out->workspace[STAGE_HEAD] = cost_workspace(c, STAGE_HEAD, NULL, tokens);
	double capacity = p->dispatch == DISPATCH_EXACT ? 1 : MAX(1.0, p->capacity_factor);
	if (p->dispatch == DISPATCH_MASK) /* tokens x (experts x capacity): fp32 weights, their half copy, the boolean and its half copy, gradients of
	                                     both: 15 bytes */
		out->workspace[STAGE_PERMUTE] = (uint64_t)(15.0 * tokens * tokens * capacity * most_k);
	bool keeps_all = p->checkpoint == CHECKPOINT_NONE;
	out->checkpoint_bytes = keeps_all ? saved : hidden;
	if (p->checkpoint == CHECKPOINT_KEEP_COLLECTIVES)
		out->checkpoint_bytes += 2 * widest_moe;
	out->bytes[TIER_HBM][CLASS_ACTIVATIONS] = (uint64_t)n->layers * out->checkpoint_bytes + hidden;
	uint64_t most = 0;
	for (int kind = 0; kind < N_STAGE_KINDS; kind++)
		most = MAX(most, out->workspace[kind]);
	out->bytes[TIER_HBM][CLASS_WORKSPACE] = most;
	out->bytes[TIER_HBM][CLASS_BUFFERS] += (uint64_t)(2 * capacity * (double)widest_moe);
}

void memory_plan(const struct network *n, const struct machine *m, const struct policy *p, const struct memory_case *k, struct memory *out)
{
	*out = (struct memory){
	    .room =
	        {
	            [TIER_HBM] = (uint64_t)((m->hbm_gib - m->reserved_gib) * GIB),
	            [TIER_DRAM] = (uint64_t)((m->dram_gib - m->dram_reserved_gib) * GIB),
	            [TIER_SSD] = (uint64_t)(m->ssd_gb * GB),
	        },
	};
	out->room[TIER_PINNED] = out->room[TIER_DRAM];
	uint64_t resident = network_embedding_params(n);
	for (int i = 0; i < n->layers; i++) {
		const struct layer *l = &n->layer[i];
		resident += network_dense_params(n, l);
		if (l->experts && k->home == HOME_HBM)
			resident += network_expert_params(n, l) * (uint64_t)((l->experts + k->expert_parallel - 1) / k->expert_parallel);
	}
	add_resident(out, m, resident);
	if (k->home != HOME_HBM)
		add_offloaded(n, m, p, k, out);
	add_activations(n, m, p, k, out);
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
