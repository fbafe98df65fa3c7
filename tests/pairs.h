/* What each pair of GPUs exchanges under fixed placement, counted one by one. */
#pragma once

#include "steps.h"

#define STATIC "[policy]\nexpert_home = hbm\nexpert_compute = grouped\n"

/* Bytes from each GPU to each other of one layer's exchange, itself included: (G, G). Owned by the caller. */
static inline uint64_t *pairs_of(const struct steps *t, int layer)
{
	int gpus = t->s->machine->gpus, experts = t->s->network->layer[layer].experts;
	uint64_t *pairs = g_new0(uint64_t, (size_t)gpus * (size_t)gpus);
	g_autofree uint32_t *loads = g_new(uint32_t, (size_t)gpus * (size_t)experts);
	uint32_t tokens = (uint32_t)(t->s->sequences * t->s->seq_len);
	cr_assert(routing_loads(t->s->routing, 0, 0, layer, gpus, experts, t->s->network->layer[layer].top_k, tokens, loads, NULL));
	for (int g = 0; g < gpus; g++)
		for (int e = 0; e < experts; e++) /* fixed placement: as many experts on each GPU, in order */
			pairs[g * gpus + e * gpus / experts] += (uint64_t)loads[g * experts + e] * (uint64_t)t->s->network->d_model * 2;
	return pairs;
}
