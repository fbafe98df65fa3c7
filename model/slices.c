/* Fewer experts than GPUs (Tutel, arXiv 2206.03382, section 4.1): each of E experts has W / E of W GPUs, as R replicas of r slices.
 *
 *     r = 1            EP+DP       replicas share an expert's tokens         tokens travel once
 *     1 < r < W / E    EP+DP+MP
 *     r = W / E        EP+MP       every slice sees all of them              tokens travel r times
 *     r = 0            DP          experts travel instead (travel.c)
 *
 * expert_split = adaptive chooses r for each load. So that a switch moves nothing, a GPU keeps the same part of its expert whatever r is, P E / W
 * parameters with their optimizer, as in ZeRO: the replicas of a slice gather it ahead of the forward and of the backward, and scatter the sum of its
 * gradients: three times P / r bytes among R. */
#include "build.h"

bool slices_adapt(const struct schedule *s, int experts)
{
	return s->plan.split == SPLIT_ADAPTIVE && spread_of(s, experts) > 1;
}

void slices_init(struct schedule *s)
{
	const struct moe_layer *last = NULL;
	for (int i = 0; i < s->n->layers; i++) {
		struct moe_layer *moe = &s->moe[i];
		if (!moe->experts || !slices_adapt(s, moe->experts))
			continue;
		int spread = spread_of(s, moe->experts);
		moe->replicas = g_new0(struct group, spread + 1);
		for (int r = 1; r <= spread; r++)
			if (spread % r == 0)
				moe->replicas[r] = last && last->experts == moe->experts ? last->replicas[r] : group_of(s, r, spread / r);
		last = moe;
	}
}

static nsec_t gather_ns(const struct schedule *s, int layer, int slices)
{
	const struct moe_layer *moe = &s->moe[layer];
	uint64_t bytes = moe->params / (uint64_t)slices * element_bytes(s);
	const struct ranks *ranks = &moe->replicas[slices].ranks;
	return ranks->size > 1 ? cost_collective(s->cost, STAGE_ALL_GATHER, ranks, bytes) : 0;
}

nsec_t slices_choose(struct schedule *s, int layer, struct block *b)
{
	const struct layer *l = &s->n->layer[layer];
	int spread = spread_of(s, l->experts), best = 1;
	nsec_t best_ns = G_MAXINT64;
	b->slices = s->plan.split == SPLIT_MODEL ? spread : 1;
	if (!slices_adapt(s, l->experts))
		return 0;
	for (int r = 1; r <= spread; r++) {
		if (spread % r)
			continue;
		b->slices = r;
		nsec_t ns = travel_tokens_ns(s, l, b) + 3 * gather_ns(s, layer, r);
		if (ns < best_ns) {
			best = r;
			best_ns = ns;
		}
	}
	b->slices = best;
	return best_ns;
}

static void run(struct schedule *s, int kind, int pass, int layer, int microbatch)
{
	const struct moe_layer *moe = &s->moe[layer];
	const struct block *b = &moe->block[microbatch];
	struct collective c = {.kind = kind, .pass = pass, .layer = layer, .microbatch = microbatch, .expert = -1, .part = REDUCED_EXPERTS};
	if (!moe->experts || !slices_adapt(s, moe->experts) || b->travels || moe->replicas[b->slices].ranks.size == 1)
		return;
	c.group = &moe->replicas[b->slices];
	c.bytes = moe->params / (uint64_t)b->slices * element_bytes(s);
	c.cost_ns = gather_ns(s, layer, b->slices);
	emit_collective(s, &c, NULL, NULL);
}

void slices_gather(struct schedule *s, int pass, int layer, int microbatch)
{
	run(s, STAGE_ALL_GATHER, pass, layer, microbatch);
}

void slices_reduce(struct schedule *s, int layer, int microbatch)
{
	run(s, STAGE_REDUCE_SCATTER, PASS_BACKWARD, layer, microbatch);
}
