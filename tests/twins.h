/* The operations once more, in double and as plain as their formulas: what device operations are compared with, and what central differences run
 * on. Letters and shapes as in exec/device.h. */
#pragma once

#include "model/network.h"

#include <criterion/criterion.h>
#include <glib.h>
#include <math.h>
#include <stdint.h>

/* ---- numbers ---- */

static inline double *twin_new(size_t n)
{
	return g_new0(double, MAX(n, 1));
}

/* Normal numbers, rounded to float so that both sides start from the same. */
static inline double *twin_random(GRand *r, size_t n, double scale)
{
	double *x = twin_new(n);
	for (size_t i = 0; i < n; i++) {
		double radius = sqrt(-2 * log(1 - g_rand_double(r)));
		x[i] = (double)(float)(scale * radius * cos(2 * G_PI * g_rand_double(r)));
	}
	return x;
}

/* Exactly n floats: what reads past them is found by the address sanitizer. */
static inline float *twin_floats(const double *x, size_t n)
{
	float *f = g_new(float, n);
	for (size_t i = 0; i < n; i++)
		f[i] = (float)x[i];
	return f;
}

/* Within `tolerance` of the largest of the expected, and of 1. */
static inline void twin_compare(const char *what, const float *got, const double *expected, size_t n, double tolerance)
{
	double most = 1;
	for (size_t i = 0; i < n; i++)
		most = MAX(most, fabs(expected[i]));
	for (size_t i = 0; i < n; i++)
		cr_assert(fabs((double)got[i] - expected[i]) <= tolerance * most, "%s[%zu] of %zu: %.9g instead of %.9g", what, i, n, (double)got[i],
		          expected[i]);
}

static inline double twin_dot(const double *a, const double *b, size_t n)
{
	double sum = 0;
	for (size_t i = 0; i < n; i++)
		sum += a[i] * b[i];
	return sum;
}

/* df/dx (n) by central differences; owned by the caller. */
static inline double *twin_differences(double (*f)(void *user), void *user, double *x, size_t n)
{
	const double h = 1e-5;
	double *d = twin_new(n);
	for (size_t i = 0; i < n; i++) {
		double here = x[i];
		x[i] = here + h;
		double above = f(user);
		x[i] = here - h;
		d[i] = (above - f(user)) / (2 * h);
		x[i] = here;
	}
	return d;
}

/* ---- operations ---- */

static inline void twin_embed(double *x, const int32_t *tokens, const double *wte, const double *wpe, int B, int T, int D)
{
	for (int b = 0; b < B; b++)
		for (int t = 0; t < T; t++)
			for (int d = 0; d < D; d++)
				x[(b * T + t) * D + d] = wte[tokens[b * T + t] * D + d] + wpe[t * D + d];
}

static inline void twin_norm(double *y, const double *x, const double *gain, const double *bias, int N, int D)
{
	for (int n = 0; n < N; n++) {
		double mean = 0, variance = 0;
		for (int d = 0; d < D; d++)
			mean += x[n * D + d] / D;
		for (int d = 0; d < D; d++)
			variance += pow(x[n * D + d] - mean, 2) / D;
		for (int d = 0; d < D; d++)
			y[n * D + d] = (x[n * D + d] - mean) / sqrt(variance + 1e-5) * gain[d] + bias[d];
	}
}

static inline void twin_linear(double *y, const double *x, const double *w, int N, int I_, int O)
{
	for (int n = 0; n < N; n++)
		for (int o = 0; o < O; o++) {
			y[n * O + o] = 0;
			for (int i = 0; i < I_; i++)
				y[n * O + o] += x[n * I_ + i] * w[i * O + o];
		}
}

static inline double twin_logsumexp(const double *x, int n)
{
	double most = -INFINITY, sum = 0;
	for (int i = 0; i < n; i++)
		most = MAX(most, x[i]);
	for (int i = 0; i < n; i++)
		sum += exp(x[i] - most);
	return most + log(sum);
}

static inline void twin_attention(double *o, double *lse, const double *qkv, int B, int T, int H, int K, int C)
{
	int W = (H + 2 * K) * C;
	double *score = twin_new((size_t)T);
	for (int b = 0; b < B; b++)
		for (int h = 0; h < H; h++)
			for (int t = 0; t < T; t++) {
				const double *q = qkv + (b * T + t) * W + h * C;
				int key = (H + h / (H / K)) * C;
				for (int j = 0; j <= t; j++)
					score[j] = twin_dot(q, qkv + (b * T + j) * W + key, (size_t)C) / sqrt(C);
				lse[(b * H + h) * T + t] = twin_logsumexp(score, t + 1);
				for (int c = 0; c < C; c++) {
					double sum = 0;
					for (int j = 0; j <= t; j++)
						sum += exp(score[j] - lse[(b * H + h) * T + t]) * qkv[(b * T + j) * W + key + K * C + c];
					o[(b * T + t) * H * C + h * C + c] = sum;
				}
			}
	g_free(score);
}

static inline double twin_activate(double x, int kind)
{
	switch (kind) {
	case ACTIVATION_RELU:
		return x > 0 ? x : 0;
	case ACTIVATION_SWIGLU:
		return x / (1 + exp(-x));
	default:
		return 0.5 * x * (1 + tanh(sqrt(2 / G_PI) * (x + 0.044715 * x * x * x)));
	}
}

static inline int twin_gated(int kind)
{
	return kind == ACTIVATION_GEGLU || kind == ACTIVATION_SWIGLU;
}

static inline void twin_activation(double *a, const double *h, int N, int F, int kind)
{
	int W = twin_gated(kind) ? 2 * F : F;
	for (int n = 0; n < N; n++)
		for (int f = 0; f < F; f++)
			a[n * F + f] = twin_activate(h[n * W + f], kind) * (twin_gated(kind) ? h[n * W + F + f] : 1);
}

static inline void twin_softmax(double *prob, const double *logits, int N, int E)
{
	for (int n = 0; n < N; n++) {
		double lse = twin_logsumexp(logits + n * E, E);
		for (int e = 0; e < E; e++)
			prob[n * E + e] = exp(logits[n * E + e] - lse);
	}
}

/* aux (2) with given counts: what has a gradient. */
static inline void twin_aux(double *aux, const double *logits, const uint32_t *counts, int N, int E, int k)
{
	double *prob = twin_new((size_t)(N * E));
	twin_softmax(prob, logits, N, E);
	aux[0] = aux[1] = 0;
	for (int n = 0; n < N; n++)
		aux[0] += pow(twin_logsumexp(logits + n * E, E), 2);
	for (int n = 0; n < N; n++)
		for (int e = 0; e < E; e++)
			aux[1] += E * (counts[e] / ((double)N * k)) * prob[n * E + e] / N;
	g_free(prob);
}

/* Mean cross entropy of N tokens times N / total. */
static inline double twin_head(const double *x, const double *w, const int32_t *targets, int N, int D, int V, double total, int tied)
{
	double sum = 0, *logits = twin_new((size_t)V);
	for (int n = 0; n < N; n++) {
		for (int v = 0; v < V; v++) {
			logits[v] = 0;
			for (int d = 0; d < D; d++)
				logits[v] += x[n * D + d] * w[tied ? v * D + d : d * V + v];
		}
		sum += twin_logsumexp(logits, V) - logits[targets[n]];
	}
	g_free(logits);
	return sum / total;
}
