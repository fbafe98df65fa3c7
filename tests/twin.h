/* The whole network in plain fp64, written from its formulas alone: the loss of a batch from named tensors, for central differences. Letters as in
 * exec/device.h. A part is what one GPU has of one micro-batch: the capacity is its own, the
 * balance that of the micro-batch on all GPUs. */
#pragma once

#include "model/scenario.h"

#include <math.h>
#include <string.h>

struct twin {
	const struct network *n;
	GHashTable *tensors; /* name -> double array */
	int T;
	int capacity; /* of an expert in one part; 0: all */
	double balance, z;
	double ce_sum, aux_sum, z_sum; /* of the last loss: over tokens; over parts, each as balanced as it is alone, z a mean over its tokens */
	int microbatch;                /* of the part that is added */
	double asked[8][8][256], mass[8][8][256]; /* layer, micro-batch, expert: shares of the parts' tokens, and mean probabilities */
	int dropped;
};

static inline double *twin_tensor(const struct twin *t, const char *format, ...) G_GNUC_PRINTF(2, 3);
static inline double *twin_tensor(const struct twin *t, const char *format, ...)
{
	va_list args;
	va_start(args, format);
	g_autofree char *name = g_strdup_vprintf(format, args);
	va_end(args);
	double *x = g_hash_table_lookup(t->tensors, name);
	g_assert(x);
	return x;
}

/* y (O) += x (I) w (I, O). */
static inline void twin_linear(double *y, const double *x, const double *w, int I, int O)
{
	for (int i = 0; i < I; i++)
		for (int o = 0; o < O; o++)
			y[o] += x[i] * w[i * O + o];
}

static inline void twin_norm(double *y, const double *x, const double *gain, const double *bias, int D)
{
	double mean = 0, var = 0;
	for (int d = 0; d < D; d++)
		mean += x[d] / D;
	for (int d = 0; d < D; d++)
		var += (x[d] - mean) * (x[d] - mean) / D;
	for (int d = 0; d < D; d++)
		y[d] = (x[d] - mean) / sqrt(var + 1e-5) * gain[d] + bias[d];
}

static inline double twin_gelu(double x)
{
	return 0.5 * x * (1 + tanh(sqrt(2 / G_PI) * (x + 0.044715 * x * x * x)));
}

/* out (D) += weight * FFN(u). up (D, F or 2 F), gate half first; down (F, D). */
static inline void twin_ffn(const struct twin *t, double *out, const double *u, const double *up, const double *down, int F, double weight)
{
	int D = t->n->d_model, gated = activation_matrices(t->n->activation) == 3, wide = gated ? 2 * F : F;
	double h[wide], a[F], y[D];
	memset(h, 0, sizeof(h));
	memset(y, 0, sizeof(y));
	twin_linear(h, u, up, D, wide);
	for (int f = 0; f < F; f++) {
		enum activation kind = t->n->activation;
		a[f] = kind == ACTIVATION_RELU ? fmax(0, h[f]) : kind == ACTIVATION_SWIGLU ? h[f] / (1 + exp(-h[f])) : twin_gelu(h[f]);
		a[f] *= gated ? h[F + f] : 1;
	}
	twin_linear(y, a, down, F, D);
	for (int d = 0; d < D; d++)
		out[d] += weight * y[d];
}

/* h (T, D) += attention of one sequence. */
static inline void twin_attention(const struct twin *t, int layer, double *h, const double *x)
{
	int D = t->n->d_model, H = t->n->heads, K = t->n->kv_heads, C = t->n->d_head, wide = (H + 2 * K) * C, T = t->T;
	g_autofree double *qkv = g_new0(double, T *wide);
	for (int i = 0; i < T; i++) {
		double n1[D], o[H * C], p[T];
		twin_norm(n1, x + i * D, twin_tensor(t, "layer%d.norm1.gain", layer), twin_tensor(t, "layer%d.norm1.bias", layer), D);
		twin_linear(qkv + i * wide, n1, twin_tensor(t, "layer%d.attention.qkv", layer), D, wide);
		memset(o, 0, sizeof(o));
		for (int head = 0; head < H; head++) {
			const double *q = qkv + i * wide + head * C;
			int kv = head / (H / K);
			double sum = 0;
			for (int j = 0; j <= i; j++) {
				const double *k = qkv + j * wide + (H + kv) * C;
				double score = 0;
				for (int c = 0; c < C; c++)
					score += q[c] * k[c] / sqrt(C);
				sum += p[j] = exp(score);
			}
			for (int j = 0; j <= i; j++)
				for (int c = 0; c < C; c++)
					o[head * C + c] += p[j] / sum * qkv[j * wide + (H + K + kv) * C + c];
		}
		twin_linear(h + i * D, o, twin_tensor(t, "layer%d.attention.out", layer), H * C, D);
	}
}

struct twin_part {
	int taken[256]; /* tokens of each expert so far */
	int asked[256];
	double mass[256], squares;
	int tokens;
};

/* out (D) += the experts of one token. */
static inline void twin_moe(struct twin *t, int layer, double *out, const double *u, struct twin_part *part)
{
	const struct layer *l = &t->n->layer[layer];
	int D = t->n->d_model, E = l->experts, F = l->d_expert;
	double p[256] = {0}, sum = 0;
	twin_linear(p, u, twin_tensor(t, "layer%d.gate", layer), D, E);
	for (int e = 0; e < E; e++)
		sum += p[e] = exp(p[e]);
	part->squares += log(sum) * log(sum);
	part->tokens++;
	bool chosen[256] = {false};
	for (int e = 0; e < E; e++)
		part->mass[e] += p[e] /= sum;
	for (int i = 0; i < l->top_k; i++) {
		int best = -1;
		for (int e = 0; e < E; e++)
			if (!chosen[e] && (best < 0 || p[e] > p[best]))
				best = e;
		chosen[best] = true;
		part->asked[best]++;
		if (t->capacity && part->taken[best] == t->capacity) {
			t->dropped++;
			continue;
		}
		part->taken[best]++;
		const double *w = twin_tensor(t, "layer%d.expert%d", layer, best);
		twin_ffn(t, out, u, w, w + D * F * (activation_matrices(t->n->activation) - 1), F, p[best]);
	}
}

static inline void twin_layer(struct twin *t, int layer, double *x, int sequences)
{
	const struct layer *l = &t->n->layer[layer];
	int D = t->n->d_model, N = sequences * t->T;
	struct twin_part part = {0};
	g_autofree double *h = g_memdup2(x, sizeof(double) * (size_t)(N * D));
	for (int b = 0; b < sequences; b++)
		twin_attention(t, layer, h + b * t->T * D, x + b * t->T * D);
	for (int i = 0; i < N; i++) {
		double u[D], *out = x + i * D;
		twin_norm(u, h + i * D, twin_tensor(t, "layer%d.norm2.gain", layer), twin_tensor(t, "layer%d.norm2.bias", layer), D);
		memcpy(out, h + i * D, sizeof(u));
		if (l->d_ff)
			twin_ffn(t, out, u, twin_tensor(t, "layer%d.ffn.up", layer), twin_tensor(t, "layer%d.ffn.down", layer), l->d_ff, 1);
		for (int j = 0; j < l->shared; j++)
			twin_ffn(t, out, u, twin_tensor(t, "layer%d.shared%d.up", layer, j), twin_tensor(t, "layer%d.shared%d.down", layer, j),
			         l->d_shared, 1);
		if (l->experts)
			twin_moe(t, layer, out, u, &part);
	}
	for (int e = 0; e < l->experts; e++) {
		t->asked[layer][t->microbatch][e] += part.asked[e] / (double)(N * l->top_k);
		t->mass[layer][t->microbatch][e] += part.mass[e] / N;
	}
	for (int e = 0; e < l->experts; e++)
		t->aux_sum += l->experts * (part.asked[e] / (double)(N * l->top_k)) * (part.mass[e] / N);
	t->z_sum += l->experts ? part.squares / N : 0;
}

/* The load balance (Switch, arXiv 2101.03961, eq. 4) of the parts added so far, over the tokens of all GPUs, mean over the micro-batches. */
static inline double twin_balance(const struct twin *t, int gpus, int microbatches)
{
	double sum = 0;
	for (int layer = 0; layer < t->n->layers; layer++)
		for (int mb = 0; mb < microbatches; mb++)
			for (int e = 0; e < t->n->layer[layer].experts; e++)
				sum += t->n->layer[layer].experts * t->asked[layer][mb][e] / gpus * t->mass[layer][mb][e] / gpus;
	return sum / microbatches;
}

/* Adds a part to the sums. */
static inline void twin_part(struct twin *t, const int32_t *tokens, const int32_t *targets, int sequences)
{
	int D = t->n->d_model, V = t->n->vocab, N = sequences * t->T;
	g_autofree double *x = g_new(double, N *D);
	const double *wte = twin_tensor(t, "wte"), *wpe = twin_tensor(t, "wpe");
	for (int i = 0; i < N * D; i++)
		x[i] = wte[tokens[i / D] * D + i % D] + wpe[i / D % t->T * D + i % D];
	for (int layer = 0; layer < t->n->layers; layer++)
		twin_layer(t, layer, x, sequences);
	for (int i = 0; i < N; i++) {
		double y[D], logits[V], sum = 0;
		twin_norm(y, x + i * D, twin_tensor(t, "norm.gain"), twin_tensor(t, "norm.bias"), D);
		for (int v = 0; v < V; v++) {
			logits[v] = 0;
			for (int d = 0; d < D; d++)
				logits[v] += y[d] * (t->n->tied ? wte[v * D + d] : twin_tensor(t, "head")[d * V + v]);
			sum += exp(logits[v]);
		}
		t->ce_sum += log(sum) - logits[targets[i]];
	}
}
