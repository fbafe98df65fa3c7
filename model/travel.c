/* Experts that go to the tokens, instead of tokens to the experts.
 *
 * exchange = experts (Janus, SIGCOMM 2023; Tutel's DP, slices.c): every GPU computes every expert on its own tokens. Each expert
 * comes from its owner to all GPUs, through a ring of slots, under the computation of the one before; its gradients are summed on the way back.
 *
 *     collective   [fetch e0][fetch e1]        [sum e0][fetch e2][sum e1]...        a fetch waits for its slot, a sum for its gradients
 *     compute                [e0      ][e1      ]      [e2      ]...
 *
 * What is fetched does not depend on the gate: with upload_scope = next-layer the first experts of the next layer come ahead of it.
 *
 * shadowed_experts (FasterMoE, PPoPP 2022): only the busiest are copied to all GPUs, as many as shorten the layer; their tokens stay
 * where they are and everybody else's travel. A copy stays until its backward; then its gradients are summed at its owner. */
#include "build.h"
#include "placement.h"

#include <string.h>

const char *travel_refusal(const struct scenario *s)
{
	const struct policy *p = s->policy;
	bool alone = policy_tensor_parallel(p, s->machine->gpus) == 1 && (!p->expert_parallel || p->expert_parallel >= s->machine->gpus);
	if (p->expert_split == SPLIT_ADAPTIVE && (p->zero_stage || !alone))
		return "policy.expert_split = adaptive needs policy.expert_parallel = auto, policy.tensor_parallel = 1 and policy.zero_stage = 0: "
		       "each "
		       "GPU keeps a part of one expert";
	if (p->exchange == EXCHANGE_TOKENS && !p->shadowed_experts)
		return NULL;
	if (policy_tensor_parallel(p, s->machine->gpus) > 1)
		return "policy.exchange = experts or auto and policy.shadowed_experts need policy.tensor_parallel = 1: whole experts go to GPUs";
	if (s->workload == WORKLOAD_INFERENCE && (p->exchange == EXCHANGE_EXPERTS || p->shadowed_experts))
		return "--workload inference needs policy.exchange = tokens and policy.shadowed_experts = 0";
	if (p->expert_home != HOME_HBM)
		return "policy.exchange = experts or auto and policy.shadowed_experts need policy.expert_home = hbm: other homes upload experts "
		       "anyway";
	if (p->expert_parallel && p->expert_parallel < s->machine->gpus)
		return "policy.exchange = experts or auto and policy.shadowed_experts need policy.expert_parallel = auto: experts go to all GPUs";
	if (p->shadowed_experts && (p->exchange != EXCHANGE_TOKENS || p->dispatch != DISPATCH_EXACT))
		return "policy.shadowed_experts needs policy.exchange = tokens and policy.dispatch = exact";
	if (p->dispatch == DISPATCH_MASK)
		return "policy.exchange = experts or auto needs policy.dispatch = exact or padded";
	if (p->exchange == EXCHANGE_EXPERTS && p->expert_compute == EXPERTS_GROUPED)
		return "policy.exchange = experts needs policy.expert_compute = sequential: experts arrive one after another";
	return NULL;
}

/* Forward and backward of one expert on so many tokens. */
static nsec_t both_ns(struct schedule *s, const struct layer *l, uint32_t tokens)
{
	uint32_t kernels;
	if (!tokens)
		return 0;
	return cost_compute(s->cost, STAGE_EXPERT, PASS_FORWARD, l, tokens, &kernels) +
	       cost_compute(s->cost, STAGE_EXPERT, PASS_BACKWARD, l, tokens, &kernels);
}

/* All-to-alls of a layer and micro-batch: out and back in each direction, and out, or both, where the backward recomputes. */
static int exchanges_of_layer(const struct schedule *s)
{
	return s->p->checkpoint == CHECKPOINT_LAYER ? 6 : s->p->checkpoint == CHECKPOINT_FULL ? 5 : 4;
}

static uint32_t load_of(const struct schedule *s, const struct block *b, int experts, int g, int e)
{
	return b->capacity ? b->capacity : s->loads[(size_t)g * (size_t)experts + (size_t)e];
}

/* A layer's experts and exchanges as the block stands, one after the other; load_ns (G) becomes the GPUs' computations. */
nsec_t travel_tokens_ns(struct schedule *s, const struct layer *l, struct block *b)
{
	struct exchange_times times;
	int spread = spread_of(s, l->experts), replicas = spread / b->slices;
	nsec_t most = 0;
	memset(s->load_ns, 0, sizeof(nsec_t) * (size_t)s->gpus);
	for (int e = 0; e < l->experts; e++) {
		uint32_t tokens = b->capacity ? b->capacity * (uint32_t)s->gpus : s->totals[e];
		if (s->shadow[e])
			for (int g = 0; g < s->gpus; g++)
				s->load_ns[g] += both_ns(s, l, load_of(s, b, l->experts, g, e));
		else
			s->load_ns[spread == 1 ? s->place[e] : e * spread] += both_ns(s, l, tokens / (uint32_t)replicas) / b->slices;
	}
	for (int g = 0; g < s->gpus; g++)
		most = MAX(most, s->load_ns[g]);
	count_bytes(s, b, l);
	return most + exchanges_of_layer(s) * exchange_ns(s, b, 1, &times);
}

/* The busiest expert that is not yet copied. */
static int busiest(const struct schedule *s, int experts)
{
	int most = -1;
	for (int e = 0; e < experts; e++)
		if (!s->shadow[e] && (most < 0 || s->totals[e] > s->totals[most]))
			most = e;
	return most;
}

static nsec_t shadows_ns(const struct schedule *s, int layer, int shadows)
{
	return shadows ? cost_all_gather(s->cost, (uint64_t)shadows * s->moe[layer].params * element_bytes(s), s->gpus) : 0;
}

/* The busiest first, as many as give the shortest layer: copied once, summed once. */
static void choose_shadows(struct schedule *s, int layer, struct block *b)
{
	const struct layer *l = &s->n->layer[layer];
	int most = MIN(s->plan.shadowed, l->experts), best = 0;
	memset(s->shadow, 0, (size_t)l->experts);
	b->shadows = 0;
	if (!most || s->gpus == 1 || spread_of(s, l->experts) > 1)
		return;
	g_autofree int *order = g_new(int, most);
	nsec_t best_ns = travel_tokens_ns(s, l, b);
	for (int n = 1; n <= most; n++) {
		s->shadow[order[n - 1] = busiest(s, l->experts)] = 1;
		b->shadows = n;
		nsec_t ns = travel_tokens_ns(s, l, b) + 2 * shadows_ns(s, layer, n);
		if (ns < best_ns) {
			best_ns = ns;
			best = n;
		}
	}
	for (int n = best; n < most; n++)
		s->shadow[order[n]] = 0;
	b->shadows = best;
	block_room(s, b, (size_t)(l->experts + s->gpus * best));
}

/* Experts cross the links three times, out for the forward and for the backward and back as gradients, under the computation of all of them on one
 * GPU's tokens. */
static bool experts_are_faster(struct schedule *s, int layer, struct block *b, nsec_t tokens)
{
	const struct layer *l = &s->n->layer[layer];
	nsec_t links = 3 * l->experts * s->moe[layer].travel_ns;
	for (int g = 0; links < tokens && g < s->gpus; g++) {
		nsec_t compute = 0;
		for (int e = 0; e < l->experts; e++)
			compute += both_ns(s, l, load_of(s, b, l->experts, g, e));
		links = MAX(links, compute);
	}
	return links < tokens;
}

void travel_choose(struct schedule *s, int layer, struct block *b)
{
	const struct layer *l = &s->n->layer[layer];
	nsec_t tokens = slices_choose(s, layer, b);
	bool adapts = slices_adapt(s, l->experts);
	choose_shadows(s, layer, b);
	b->travels = s->p->exchange == EXCHANGE_EXPERTS && s->gpus > 1;
	if ((s->p->exchange != EXCHANGE_AUTO && !adapts) || s->gpus == 1 || inference(s) || b->travels)
		return;
	b->travels = experts_are_faster(s, layer, b, adapts ? tokens : travel_tokens_ns(s, l, b));
}

void travel_list(struct schedule *s, int layer, struct block *b)
{
	int experts = s->moe[layer].experts;
	block_room(s, b, (size_t)experts * (size_t)s->gpus);
	for (int g = 0; g < s->gpus; g++) {
		b->first[g] = g * experts;
		b->sent[g] = 0;
		for (int e = 0; e < experts; e++)
			b->work[g * experts + e] = (struct expert_work){.expert = e, .tokens = load_of(s, b, experts, g, e)};
	}
	b->first[s->gpus] = s->gpus * experts;
	b->chunks = 1;
	b->exchange = (struct exchange){0};
	b->times = (struct exchange_times){0};
}

static stage_id *ids_of(const struct schedule *s, stage_id *ids, int slot)
{
	return ids + (size_t)slot * (size_t)s->gpus;
}

static void fetch(struct schedule *s, int pass, int layer, int microbatch, int e)
{
	const struct moe_layer *moe = &s->moe[layer];
	int slot = s->travel_slot;
	struct collective c = {.kind = STAGE_ALL_GATHER, .pass = pass, .layer = layer, .microbatch = microbatch, .expert = e, .part = slot};
	c.bytes = moe->params * element_bytes(s);
	c.cost_ns = moe->travel_ns;
	c.also = s->begun; /* behind the last update */
	emit_collective(s, &c, ids_of(s, s->slot_user, slot), ids_of(s, s->fetched, slot));
	s->travel_slot = (slot + 1) % s->slots;
}

/* A layer that has fewer experts than GPUs keeps each on several: all of them get the sum. */
static void sum(struct schedule *s, int layer, int microbatch, int e)
{
	const struct moe_layer *moe = &s->moe[layer];
	struct collective c = {.pass = PASS_BACKWARD, .layer = layer, .microbatch = microbatch, .expert = e, .part = e % GRADIENT_SLOTS};
	bool copies = spread_of(s, moe->experts) > 1 && !slices_adapt(s, moe->experts);
	c.kind = copies ? STAGE_ALL_REDUCE : STAGE_REDUCE_SCATTER;
	c.bytes = moe->params * element_bytes(s);
	c.cost_ns = copies ? cost_all_reduce(s->cost, c.bytes, s->gpus) : moe->travel_ns;
	emit_collective(s, &c, NULL, ids_of(s, s->sums, c.part));
}

void travel_experts(struct schedule *s, int pass, int layer, int microbatch)
{
	const struct block *b = &s->moe[layer].block[microbatch];
	int experts = s->moe[layer].experts, n_fetched = s->ahead_layer == layer && s->ahead_pass == pass ? s->n_ahead : 0;
	int slot = (s->travel_slot + s->slots - n_fetched) % s->slots;
	s->n_ahead = 0;
	for (int e = 0; e < experts; e++) {
		while (n_fetched < experts && n_fetched < e + s->slots)
			fetch(s, pass, layer, microbatch, n_fetched++);
		for (int g = 0; g < s->gpus; g++) {
			const struct expert_work *w = &b->work[b->first[g] + e];
			stage_id preds[] = {ids_of(s, s->fetched, slot)[g],
			                    pass == PASS_BACKWARD ? ids_of(s, s->sums, e % GRADIENT_SLOTS)[g] : STAGE_NONE};
			if (w->tokens)
				ids_of(s, s->slot_user, slot)[g] =
				    expert_compute(s, pass, layer, microbatch, e, g, w->tokens, (struct at){slot, e % GRADIENT_SLOTS}, preds, 2);
		}
		if (pass == PASS_BACKWARD)
			sum(s, layer, microbatch, e);
		slot = (slot + 1) % s->slots;
	}
}

/* The first experts of the next layer in this pass; after the forward's last those of its own backward, after a micro-batch the next one's. */
void travel_prefetch(struct schedule *s, int pass, int from_layer, bool last)
{
	int step = pass == PASS_FORWARD ? 1 : -1, layer = from_layer + step;
	if (s->p->upload_scope != UPLOAD_NEXT_LAYER || s->p->exchange != EXCHANGE_EXPERTS || s->gpus == 1)
		return;
	while (layer >= 0 && layer < s->n->layers && !s->moe[layer].experts)
		layer += step;
	if (layer < 0 || layer == s->n->layers) {
		layer = from_layer;
		pass = pass == PASS_FORWARD ? PASS_BACKWARD : PASS_FORWARD;
		if (last) /* they will have changed */
			return;
	}
	s->ahead_layer = layer;
	s->ahead_pass = pass;
	for (s->n_ahead = 0; s->n_ahead < MIN(s->slots, s->moe[layer].experts); s->n_ahead++)
		fetch(s, pass, layer, 0, s->n_ahead);
}

void shadows_fetch(struct schedule *s, int layer, int microbatch)
{
	const struct block *b = &s->moe[layer].block[microbatch];
	struct collective c = {.kind = STAGE_ALL_GATHER, .pass = PASS_FORWARD, .layer = layer, .microbatch = microbatch, .expert = -1};
	if (!b->shadows)
		return;
	c.bytes = (uint64_t)b->shadows * s->moe[layer].params * element_bytes(s);
	c.cost_ns = shadows_ns(s, layer, b->shadows);
	emit_collective(s, &c, NULL, s->arrived);
}

void shadows_reduce(struct schedule *s, int layer, int microbatch)
{
	const struct block *b = &s->moe[layer].block[microbatch];
	struct collective c = {.kind = STAGE_REDUCE_SCATTER, .pass = PASS_BACKWARD, .layer = layer, .microbatch = microbatch, .expert = -1};
	c.bytes = (uint64_t)b->shadows * s->moe[layer].params * element_bytes(s);
	c.cost_ns = shadows_ns(s, layer, b->shadows);
	emit_collective(s, &c, NULL, NULL);
}
