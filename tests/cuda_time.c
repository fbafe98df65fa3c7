/* How long the kernels take at large sizes, against the bytes that must move: each input read once, each output written once, `+=` both. A figure is
 * the median of launches that each begin with other data in the L2 cache; its bytes a second beside a copy's, which counts what it reads and writes.
 */
#include "cuda_bed.h"

#include <cuda_runtime_api.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define N 32768
#define D 1024
#define F 4096
#define W (D + 8)
#define V 51200
#define TOKENS 4096 /* of a cross entropy */
#define ADAM ((size_t)1 << 28)
#define LAUNCHES 15
#define FLUSH ((size_t)256 << 20)
#define STUFF ((size_t)16 << 20) /* random numbers, repeated */

struct clock {
	cudaEvent_t from, to;
	void *flush;
	float ms[LAUNCHES];
	int n;
	double copy_per_s;
};

static void must(cudaError_t status)
{
	if (status != cudaSuccess) {
		printf("CUDA: %s\n", cudaGetErrorString(status));
		exit(1);
	}
}

static int by_value(const void *a, const void *b)
{
	float x = *(const float *)a, y = *(const float *)b;
	return (x > y) - (x < y);
}

/* Between these two, a launch; again until enough. */
static bool clock_run(struct clock *c)
{
	if (c->n == LAUNCHES + 2)
		return false;
	must(cudaMemsetAsync(c->flush, c->n, FLUSH, NULL));
	must(cudaEventRecord(c->from, NULL));
	return true;
}

static void clock_stop(struct clock *c)
{
	float ms;
	must(cudaGetLastError());
	must(cudaEventRecord(c->to, NULL));
	must(cudaEventSynchronize(c->to));
	must(cudaEventElapsedTime(&ms, c->from, c->to));
	if (c->n >= 2) /* the first load the kernel */
		c->ms[c->n - 2] = ms;
	c->n++;
}

static void clock_print(struct clock *c, const char *what, double bytes)
{
	qsort(c->ms, LAUNCHES, sizeof(float), by_value);
	double s = (double)c->ms[LAUNCHES / 2] * 1e-3;
	if (c->copy_per_s == 0)
		c->copy_per_s = bytes / s;
	printf("%-44s %9.1f us %8.0f GB/s %6.2f of a copy\n", what, s * 1e6, bytes / s * 1e-9, bytes / s / c->copy_per_s);
	c->n = 0;
}

#define TIME(c, what, bytes, launch)                                                                                                                 \
	do {                                                                                                                                         \
		for (; clock_run(c); clock_stop(c))                                                                                                  \
			launch;                                                                                                                      \
		clock_print(c, what, bytes);                                                                                                         \
	} while (0)

/* Device memory full of random numbers (repeated), as bf16 or as fp32, in [-1, 1]. */
static void *fill(size_t n, bool narrow)
{
	size_t width = narrow ? sizeof(bf16) : sizeof(float), bytes = n * width, chunk = STUFF * width;
	char *p;
	void *stuff = narrow ? (void *)bed_bf16s(STUFF, 1) : (void *)bed_floats(STUFF, 1);
	must(cudaMalloc((void **)&p, bytes));
	for (size_t at = 0; at < bytes; at += chunk)
		must(cudaMemcpy(p + at, stuff, bytes - at < chunk ? bytes - at : chunk, cudaMemcpyHostToDevice));
	free(stuff);
	return p;
}

static int32_t *fill_numbers(size_t n, int below)
{
	int32_t *host = bed_zeros(n * sizeof(*host)), *p;
	for (size_t i = 0; i < n; i++)
		host[i] = bed_random_below(below);
	must(cudaMalloc((void **)&p, n * sizeof(*p)));
	must(cudaMemcpy(p, host, n * sizeof(*p), cudaMemcpyHostToDevice));
	free(host);
	return p;
}

static void drop(void **p, size_t n)
{
	for (size_t i = 0; i < n; i++)
		must(cudaFree(p[i]));
}

static void time_tokens(struct clock *c)
{
	const double nd = (double)N * D;
	bf16 *x = fill((size_t)N * D, true), *wte = fill((size_t)V * D, true), *wpe = fill((size_t)1024 * D, true);
	bf16 *logits = fill((size_t)TOKENS * V, true);
	float *dwte = fill((size_t)V * D, false), *dwpe = fill((size_t)1024 * D, false), *loss = fill(TOKENS + 1, false);
	int32_t *tokens = fill_numbers(N, V);
	TIME(c, "embed, tokens all over V = 51200", nd * 4, cuda_embed(NULL, x, tokens, wte, wpe, 32, 1024, D));
	TIME(c, "embed_backward (atomics: N D 8 bytes)", nd * 10, cuda_embed_backward(NULL, dwte, dwpe, x, tokens, 32, 1024, D));
	TIME(c, "cross entropy, n = 4096, V = 51200", (double)TOKENS * V * 4, cuda_cross_entropy(NULL, loss, logits, tokens, loss + 1, TOKENS, V, N));
	TIME(c, "cross entropy, n = 4096, V = 50257", (double)TOKENS * 50257 * 4,
	     cuda_cross_entropy(NULL, loss, logits, tokens + N / 2, loss + 1, TOKENS, 50257, N));
	drop((void *[]){x, wte, wpe, logits, dwte, dwpe, loss, tokens}, 8);
}

static void time_norm(struct clock *c, int n, int width)
{
	const double nd = (double)n * width;
	size_t all = (size_t)n * (size_t)width, d = (size_t)width;
	char what[64];
	bf16 *x = fill(all, true), *y = fill(all, true), *dy = fill(all, true), *gain = fill(d, true), *bias = fill(d, true);
	float *mean = fill((size_t)n, false), *rstd = fill((size_t)n, false), *dgain = fill(d, false), *dbias = fill(d, false);
	float *scratch = fill(cuda_norm_scratch_floats(n, width), false);
	snprintf(what, sizeof(what), "norm, N = %d, D = %d", n, width);
	TIME(c, what, nd * 4, cuda_norm(NULL, y, mean, rstd, x, gain, bias, n, width));
	snprintf(what, sizeof(what), "norm_backward, N = %d, D = %d", n, width);
	TIME(c, what, nd * 8, cuda_norm_backward(NULL, y, dgain, dbias, dy, x, gain, mean, rstd, scratch, n, width));
	drop((void *[]){x, y, dy, gain, bias, mean, rstd, dgain, dbias, scratch}, 10);
}

static void time_elements(struct clock *c)
{
	const double nf = (double)N * F;
	size_t all = (size_t)N * F;
	bf16 *h = fill(2 * all, true), *a = fill(all, true), *da = fill(all, true), *dh = fill(2 * all, true), *rows = fill((size_t)N * W, true);
	TIME(c, "add, n = N F", nf * 6, cuda_add(NULL, a, da, h, all));
	TIME(c, "activation GELU", nf * 4, cuda_activation(NULL, a, h, N, F, 1));
	TIME(c, "activation SwiGLU", nf * 6, cuda_activation(NULL, a, h, N, F, 3));
	TIME(c, "activation_backward GELU", nf * 6, cuda_activation_backward(NULL, dh, da, h, N, F, 1));
	TIME(c, "activation_backward SwiGLU", nf * 10, cuda_activation_backward(NULL, dh, da, h, N, F, 3));
	TIME(c, "expert_backward GELU", nf * 8, cuda_expert_backward(NULL, dh, a, rows, da, h, N, F, W, D, 1));
	TIME(c, "expert_backward SwiGLU", nf * 12, cuda_expert_backward(NULL, dh, a, rows, da, h, N, F, W, D, 3));
	drop((void *[]){h, a, da, dh, rows}, 5);
}

static void time_parameters(struct clock *c)
{
	const double n = (double)ADAM;
	bf16 *param = fill(ADAM, true);
	float *master = fill(ADAM, false), *m = fill(ADAM, false), *v, *gradient = fill(ADAM, false);
	must(cudaMalloc((void **)&v, ADAM * sizeof(*v)));
	must(cudaMemset(v, 0x3c, ADAM * sizeof(*v))); /* small and positive */
	TIME(c, "accumulate, n = 2^28", n * 12, cuda_accumulate(NULL, m, master, ADAM));
	TIME(c, "cast, n = 2^28", n * 6, cuda_cast(NULL, param, master, ADAM));
	TIME(c, "adam, n = 2^28", n * 34, cuda_adam(NULL, param, master, m, v, gradient, ADAM, 1e-4f, 0.9f, 0.95f, 1e-8f, 0.1f, 3));
	TIME(c, "start, n = 2^28", n * 6, cuda_start(NULL, param, master, ADAM, 7, 0, 0.02, 0));
	drop((void *[]){param, master, m, v, gradient}, 5);
}

/* What comes packed from another GPU, and where its experts have it. */
static void time_moves(struct clock *c, int n)
{
	char what[64];
	bf16 *from = fill((size_t)N * D, true), *to = fill((size_t)N * D, true);
	struct cuda_rows *runs = bed_zeros((size_t)n * sizeof(*runs));
	for (int i = 0; i < n; i++)
		runs[i] = (struct cuda_rows){from + (size_t)(N / n * i) * D, to + (size_t)(N / n * (n - 1 - i)) * D, N / n};
	snprintf(what, sizeof(what), "move_rows, %d runs", n);
	TIME(c, what, (double)(N / n * n) * D * 4, cuda_move_rows(NULL, runs, n, D));
	free(runs);
	drop((void *[]){from, to}, 2);
}

static void time_gate(struct clock *c, int E, int k)
{
	const double ne = (double)N * E, pairs = (double)N * k, nd = (double)N * D;
	size_t all = (size_t)N * (size_t)E, p = (size_t)N * (size_t)k;
	char what[64];
	bf16 *logits = fill(all, true), *x = fill((size_t)N * D, true), *y = fill((size_t)N * D, true), *rows = fill(p * W, true);
	float *prob = fill(all, false), *weight = fill(p, false), *aux = fill(2, false), *scratch = fill(cuda_gate_scratch_floats(N, E), false);
	int32_t *index = fill_numbers(p, E), *order = fill_numbers(p, 1), *row = fill_numbers(p, 1);
	int32_t *room = fill_numbers(cuda_route_scratch_ints(N, E, k), 1);
	uint32_t *counts = (uint32_t *)fill_numbers((size_t)E, 1);
	printf("E = %d, k = %d\n", E, k);
	TIME(c, "gate", ne * 6 + pairs * 4, cuda_gate(NULL, prob, index, counts, aux, logits, scratch, N, E, k));
	TIME(c, "gate_backward, z-loss", ne * 8 + pairs * 8,
	     cuda_gate_backward(NULL, logits, weight, prob, index, counts, logits, 0.01f, 0.001f, N, N, E, k));
	TIME(c, "route", pairs * 12, cuda_route(NULL, order, row, index, room, N, E, k, 0));
	TIME(c, "pick", pairs * 12, cuda_pick(NULL, weight, prob, index, N, E, k));
	snprintf(what, sizeof(what), "gather, D = %d", D);
	TIME(c, what, nd * 2 + pairs * (2 * D + 4), cuda_gather(NULL, rows, x, order, NULL, (int)p, D, k, D));
	TIME(c, "gather with weights", nd * 2 + pairs * (2 * W + 8), cuda_gather(NULL, rows, x, order, weight, (int)p, D, k, W));
	TIME(c, "scatter", nd * 4 + pairs * (2 * D + 8), cuda_scatter(NULL, y, rows, row, weight, N, D, k, D));
	TIME(c, "column", pairs * 12, cuda_column(NULL, weight, rows, row, (int)p, D, W));
	drop((void *[]){logits, x, y, rows, prob, weight, aux, scratch, index, order, row, room, counts}, 13);
}

void time_kernels(void)
{
	struct clock c = {0};
	void *from = fill(ADAM, false), *to = fill(ADAM, false);
	must(cudaEventCreate(&c.from));
	must(cudaEventCreate(&c.to));
	must(cudaMalloc(&c.flush, FLUSH));
	TIME(&c, "copy of 1 GiB", (double)ADAM * 8, must(cudaMemcpyAsync(to, from, ADAM * 4, cudaMemcpyDeviceToDevice, NULL)));
	drop((void *[]){from, to}, 2);
	printf("N = %d, D = %d, F = %d\n", N, D, F);
	time_tokens(&c);
	time_norm(&c, N, 768);
	time_norm(&c, N, D);
	time_norm(&c, N, 4096);
	time_elements(&c);
	time_parameters(&c);
	time_gate(&c, 8, 2);
	time_gate(&c, 64, 2);
	time_gate(&c, 64, 1);
	time_gate(&c, 64, 8);
	time_gate(&c, 1024, 2);
	time_moves(&c, 4);
	time_moves(&c, 64);
	time_moves(&c, 512);
}
