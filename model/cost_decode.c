/* Costs of inference that training has not: a token that looks back at all others, and the head that draws the next. Few tokens leave the tensor
 * cores idle: weights, keys and values come through HBM once, and that is the time. */
#include "cost_inside.h"

/* Every token's keys and values so far are read once. */
static double decode_attention_ns(const struct cost *c, double sequences, double cached)
{
	const struct network *n = c->n;
	double heads = n->heads / c->tensor, width = heads * n->d_head, kv = 2.0 * fmax(1, n->kv_heads / c->tensor) * n->d_head;
	double ns = cost_linear_ns(c, false, sequences, n->d_model, width + kv) + cost_linear_ns(c, false, sequences, width, n->d_model);
	double memory_ns = sequences * cached * kv * 2 / c->halves, flops = 4.0 * sequences * cached * width;
	if (c->m->attention == ATTENTION_MATERIALISED)
		memory_ns += sequences * cached * heads * c->traffic[STAGE_MIXER][false].score / c->halves;
	return ns + fmax(fmax(memory_ns, flops / (c->flops_per_ns_sm * c->m->sms * 0.6)), c->kernel_ns);
}

/* The state of every channel, fp32, is read and written. */
static double decode_mamba_ns(const struct cost *c, double sequences)
{
	const struct network *n = c->n;
	double inner = n->mamba_expand * n->d_model / c->tensor;
	return cost_linear_ns(c, false, sequences, n->d_model, 2 * inner) + cost_linear_ns(c, false, sequences, inner, n->d_model) +
	       fmax(sequences * inner * n->mamba_state * 8 / c->hbm, c->kernel_ns);
}

nsec_t cost_decode_mixer(const struct cost *c, const struct layer *l, uint32_t sequences, int cached, uint32_t *n_kernels)
{
	const struct traffic *t = &c->traffic[STAGE_MIXER][false];
	double ns = l->mixer == MIXER_MAMBA ? decode_mamba_ns(c, sequences) : decode_attention_ns(c, sequences, cached);
	*n_kernels = (uint32_t)t->kernels;
	cost_look_up(c, NULL, STAGE_MIXER, PASS_FORWARD, sequences, &ns);
	return cost_whole(fmax(ns + t->d * c->n->d_model * sequences / c->halves, t->kernels * c->kernel_ns));
}

/* Logits, and a softmax over them in fp32 (eager: cast, softmax, draw; fused: one pass). */
nsec_t cost_next_token(const struct cost *c, uint32_t sequences, uint32_t *n_kernels)
{
	bool eager = c->m->kernels == KERNELS_EAGER;
	double vocab = c->n->vocab / c->tensor, logits = sequences * vocab, ns = cost_linear_ns(c, false, sequences, c->n->d_model, vocab);
	*n_kernels = eager ? 8 : 3;
	cost_look_up(c, NULL, STAGE_HEAD, PASS_FORWARD, sequences, &ns);
	return cost_whole(fmax(ns + logits * (eager ? 18 : 4) / c->halves, *n_kernels * c->kernel_ns));
}
