/* Inference: a batch of prompts is read, then continued one token a step.
 *
 *     step 0, prefill:      for each micro-batch:  embed, layers forward, head         tokens of the prompts, each sequence's first new token
 *     step i, decode:       embed, layers forward, head                                one token of each sequence, which looks at context + i
 *
 * Experts beyond HBM come as in training's forward: each when the gate has chosen it, one upload under the computation of another (on demand); or,
 * with upload_scope = next-layer, through a ring of slots (SE-MoE, arXiv 2205.10034, section 3.2): a GPU's experts in the order of its layers, round
 * and round, ahead of every gate. What is computed, or passed over because no token wants it, frees its slot for the expert one ring further on:
 *
 *     slots    [l0 e0][l0 e1][l1 e0][l1 e1]          compute  l0 e0, l0 e1, ...
 *     upload                                [l2 e0 -> slot 0][l2 e1 -> slot 1] ...
 *
 * The ring is empty when the batch comes; nothing is uploaded that no step will use. Pinned experts are no part of it: without a gate's counts they
 * are a layer's first; on demand they are the busiest of the prefill, uploaded once after it. */
#include "infer.h"

#include "build.h"
#include "placement.h"

static int forwards(const struct schedule *s)
{
	return s->plan.microbatches + s->sc->generate - 1;
}

void ring_load(struct schedule *s, int gpu)
{
	struct gpu_state *g = &s->gpu[gpu];
	struct ring *r = &g->ring;
	int slot;
	bool all_there = r->n <= s->slots && r->loaded == (uint64_t)r->n;
	if (all_there || r->loaded == (uint64_t)r->n * (uint64_t)forwards(s))
		return;
	const struct ring_expert *x = &r->expert[r->loaded % (uint64_t)r->n];
	r->loaded++;
	stage_id id = experts_upload(s, PASS_FORWARD, x->layer, 0, x->expert, gpu, &slot);
	g->slot_upload[slot] = id;
}

stage_id ring_next(const struct schedule *s, int gpu, int *slot)
{
	const struct gpu_state *g = &s->gpu[gpu];
	*slot = (int)(g->ring.passed % (uint64_t)MIN(s->slots, g->ring.n));
	return g->slot_upload[*slot];
}

void ring_pass(struct schedule *s, int gpu, stage_id user)
{
	int slot;
	ring_next(s, gpu, &slot);
	s->gpu[gpu].slot_user[slot] = user;
	s->gpu[gpu].ring.passed++;
	ring_load(s, gpu);
}

static void ring_add_layer(struct schedule *s, int layer)
{
	struct moe_layer *moe = &s->moe[layer];
	placement_fixed(moe->experts, s->plan.expert_parallel, s->place);
	for (int g = 0; g < s->gpus; g++) {
		struct ring *r = &s->gpu[g].ring;
		int pinned = 0;
		for (int e = 0; e < moe->experts; e++) {
			if (s->place[e] != g && !expert_data_parallel(s))
				continue;
			if (pinned < moe->pinned_slots && !expert_data_parallel(s)) {
				moe->expert[e].pinned = g;
				moe->expert[e].pinned_slot = moe->first_pinned_slot + pinned++;
				continue;
			}
			r->expert[r->n++] = (struct ring_expert){layer, e};
		}
	}
}

static void ring_begin(struct schedule *s)
{
	size_t most = 0;
	for (int layer = 0; layer < s->n->layers; layer++)
		most += (size_t)s->moe[layer].experts;
	for (int g = 0; g < s->gpus; g++) {
		s->gpu[g].ring.expert = g_new(struct ring_expert, most + 1);
		s->gpu[g].slot_upload = g_new(stage_id, s->slots);
	}
	for (int layer = 0; layer < s->n->layers; layer++)
		if (s->moe[layer].experts)
			ring_add_layer(s, layer);
	for (int i = 0; i < s->slots; i++)
		for (int g = 0; g < s->gpus; g++)
			if (i < s->gpu[g].ring.n)
				ring_load(s, g);
}

static void forward(struct schedule *s, int microbatch)
{
	compute_everywhere(s, STAGE_EMBED, PASS_FORWARD, 0, microbatch, NULL);
	tensor_reduce(s, PASS_FORWARD, 0, microbatch, true);
	for (int layer = 0; layer < s->n->layers && !s->failed; layer++)
		forward_layer(s, layer, (struct batches){microbatch, microbatch + 1});
	if (!s->failed)
		compute_everywhere(s, STAGE_HEAD, PASS_FORWARD, 0, microbatch, NULL);
}

/* On demand: those that the prefill used most come to stay. */
static void pin(struct schedule *s)
{
	if (ring_of_slots(s) || !offloaded(s) || expert_data_parallel(s))
		return;
	for (int layer = 0; layer < s->n->layers; layer++)
		if (s->moe[layer].pinned_slots)
			experts_pin(s, layer);
	updates_refresh(s);
}

/* A capacity that was fixed for the prefill is not one decode step's. */
static void begin_decode(struct schedule *s)
{
	pin(s);
	s->tokens = (uint32_t)(s->sc->sequences * s->plan.tensor_parallel);
	for (int layer = 0; layer < s->n->layers; layer++)
		if (s->moe[layer].experts)
			s->moe[layer].block[0].capacity = 0;
}

void infer_step(struct schedule *s)
{
	g_assert(s->step < s->sc->generate);
	if (s->step == 0 && ring_of_slots(s))
		ring_begin(s);
	if (s->step == 1)
		begin_decode(s);
	s->cached = s->step ? s->sc->seq_len + s->step : 0;
	for (int mb = 0; mb < (s->step ? 1 : s->plan.microbatches) && !s->failed; mb++)
		forward(s, mb);
}
