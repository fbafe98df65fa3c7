/* The router and the rows that it sends: softmax and choice, the order of rows by expert, gathering them for the experts and bringing them back. A
 * token's k choices are pairs n k + i; a row is a pair's place in the order of experts:
 *
 *     index   token 0: {2, 0}  token 1: {0, 1}             pairs 0 1 2 3
 *     order   [ 1 2 | 3 | 0 ]  expert 0: tokens 0, 1; expert 1: token 1; expert 2: token 0
 *     row     [ 3 0 1 2 ]      where each pair went
 */
#include "host.h"

#include <math.h>
#include <string.h>

/* ---- gate ---- */

struct gate {
	float *prob, *aux;
	int32_t *index;
	uint32_t *counts;
	const float *logits;
	int N, E, k;
};

/* The most likely expert that is not among the `n` chosen; the first of equals. */
static int32_t choose(const float *prob, int E, const int32_t *chosen, int n)
{
	int32_t best = -1;
	for (int32_t e = 0; e < E; e++) {
		bool taken = best >= 0 && !(prob[e] > prob[best]);
		for (int i = 0; i < n && !taken; i++)
			taken = chosen[i] == e;
		if (!taken)
			best = e;
	}
	return best;
}

static void run_gate(struct host_stream *s, const void *args)
{
	const struct gate *c = args;
	size_t E = (size_t)c->E, k = (size_t)c->k;
	double squares = 0, balance = 0, *mass = (double *)host_scratch(s, 2 * E);
	memset(mass, 0, sizeof(double) * E);
	memset(c->counts, 0, sizeof(uint32_t) * E);
	for (size_t n = 0; n < (size_t)c->N; n++) {
		float *p = c->prob + n * E, most;
		int32_t *chosen = c->index + n * k;
		memcpy(p, c->logits + n * E, sizeof(float) * E);
		float sum = s->device->group->loops->exp_row(p, c->E, &most), share = 1 / sum;
		double lse = (double)most + log((double)sum);
		squares += lse * lse;
		for (size_t e = 0; e < E; e++) {
			p[e] *= share;
			mass[e] += (double)p[e];
		}
		for (int i = 0; i < c->k; i++) {
			chosen[i] = choose(p, c->E, chosen, i);
			c->counts[chosen[i]]++;
		}
	}
	for (size_t e = 0; c->N && e < E; e++)
		balance += (double)c->counts[e] / ((double)c->N * c->k) * mass[e] / c->N;
	c->aux[0] = (float)squares;
	c->aux[1] = (float)(balance * c->E);
}

static void host_gate(struct device_stream *s, float *prob, int32_t *index, uint32_t *counts, float *aux, const elem *logits, int N, int E, int k)
{
	struct gate c = {prob, aux, index, counts, logits, N, E, k};
	g_assert(k <= E);
	host_push(s, run_gate, &c, sizeof(c));
}

struct gate_backward {
	float *dlogits;
	const float *dweight, *prob, *logits;
	const int32_t *index;
	const uint32_t *counts;
	float balance, z;
	int N, total, E, k;
};

static float log_sum_exp(const float *x, int n)
{
	float most = x[0];
	double sum = 0;
	for (int i = 1; i < n; i++)
		most = MAX(most, x[i]);
	for (int i = 0; i < n; i++)
		sum += exp((double)(x[i] - most));
	return most + (float)log(sum);
}

/* With g the gradient of the probabilities: dlogit = p (g - <p, g>), and 2 z lse p / N of the z-loss. Which experts are chosen has no gradient. */
static void run_gate_backward(struct host_stream *s, const void *args)
{
	const struct gate_backward *c = args;
	size_t E = (size_t)c->E, k = (size_t)c->k;
	float *push = host_scratch(s, E); /* of the balance */
	for (size_t e = 0; e < E; e++)
		push[e] = (float)((double)c->balance * c->E * c->counts[e] / ((double)c->total * c->k) / c->N);
	for (size_t n = 0; n < (size_t)c->N; n++) {
		const float *p = c->prob + n * E;
		float *d = c->dlogits + n * E, along = 0, z = 0;
		memcpy(d, push, sizeof(float) * E);
		for (size_t i = n * k; i < (n + 1) * k; i++)
			d[c->index[i]] += c->dweight[i];
		for (size_t e = 0; e < E; e++)
			along += p[e] * d[e];
		if (c->z != 0)
			z = 2 * c->z * log_sum_exp(c->logits + n * E, c->E) / (float)c->N;
		for (size_t e = 0; e < E; e++)
			d[e] = p[e] * (d[e] - along + z);
	}
}

static void host_gate_backward(struct device_stream *s, elem *dlogits, const float *dweight, const float *prob, const int32_t *index,
                               const uint32_t *counts, const elem *logits, float balance, float z, int N, int total, int E, int k)
{
	struct gate_backward c = {dlogits, dweight, prob, logits, index, counts, balance, z, N, total, E, k};
	if (N)
		host_push(s, run_gate_backward, &c, sizeof(c));
}

struct assign {
	int32_t *index;
	const uint32_t *counts;
	int N, E, k;
};

/* Choices in the order of experts, dealt out: places N apart are a token's, and no expert's places are that many. */
static void run_assign(struct host_stream *s, const void *args)
{
	const struct assign *c = args;
	size_t N = (size_t)c->N, place = 0;
	size_t stride = (size_t)assign_stride(c->N);
	g_autofree size_t *token_at = g_new(size_t, N + 1);
	for (size_t n = 0; n < N; n++)
		token_at[n * stride % N] = n;
	for (int32_t e = 0; e < c->E; e++)
		for (uint32_t i = 0; i < c->counts[e] && place < N * (size_t)c->k; i++, place++)
			c->index[token_at[place % N] * (size_t)c->k + place / N] = e;
}

static void host_assign(struct device_stream *s, int32_t *index, const uint32_t *counts, int N, int E, int k)
{
	host_push(s, run_assign, &(struct assign){index, counts, N, E, k}, sizeof(struct assign));
}

struct sum_counts {
	uint32_t *sum;
	const uint32_t *counts;
	int G, E;
};

static void run_sum_counts(struct host_stream *s, const void *args)
{
	const struct sum_counts *c = args;
	memset(c->sum, 0, sizeof(uint32_t) * (size_t)c->E);
	for (size_t i = 0; i < (size_t)c->G * (size_t)c->E; i++)
		c->sum[i % (size_t)c->E] += c->counts[i];
}

static void host_sum_counts(struct device_stream *s, uint32_t *sum, const uint32_t *counts, int G, int E)
{
	host_push(s, run_sum_counts, &(struct sum_counts){sum, counts, G, E}, sizeof(struct sum_counts));
}

/* ---- routes ---- */

struct route {
	int32_t *order, *row;
	const int32_t *index;
	int N, E, k;
	uint32_t capacity;
};

/* A counting sort keeps tokens in their order. next (E + 1): the row that expert e takes next. */
static void run_route(struct host_stream *s, const void *args)
{
	const struct route *c = args;
	size_t E = (size_t)c->E, pairs = (size_t)c->N * (size_t)c->k, capacity = c->capacity;
	int32_t *next = (int32_t *)host_scratch(s, E + 1);
	memset(next, 0, sizeof(int32_t) * (E + 1));
	for (size_t pair = 0; pair < pairs && !capacity; pair++)
		next[c->index[pair] + 1]++;
	for (size_t e = 0; e < E; e++)
		next[e + 1] = capacity ? (int32_t)((e + 1) * capacity) : next[e + 1] + next[e];
	for (size_t r = 0; r < E * capacity; r++)
		c->order[r] = -1;
	for (size_t pair = 0; pair < pairs; pair++) {
		int32_t e = c->index[pair];
		bool fits = !capacity || next[e] < (int32_t)((size_t)(e + 1) * capacity);
		c->row[pair] = fits ? next[e]++ : -1;
		if (fits)
			c->order[c->row[pair]] = (int32_t)pair;
	}
}

static void host_route(struct device_stream *s, int32_t *order, int32_t *row, const int32_t *index, int N, int E, int k, uint32_t capacity)
{
	struct route c = {order, row, index, N, E, k, capacity};
	host_push(s, run_route, &c, sizeof(c));
}

/* ---- rows ---- */

struct rows {
	float *to, *to2;
	const float *from, *from2;
	const int32_t *map; /* order or row */
	int n, D, k, width;
};

static void run_gather(struct host_stream *s, const void *args)
{
	const struct rows *c = args;
	size_t D = (size_t)c->D, width = (size_t)c->width;
	for (int r = 0; r < c->n; r++) {
		float *row = c->to + (size_t)r * width;
		int32_t pair = c->map[r];
		size_t filled = pair < 0 ? 0 : D;
		if (pair >= 0)
			memcpy(row, c->from + (size_t)(pair / c->k) * D, sizeof(float) * D);
		if (pair >= 0 && width > D)
			row[filled++] = c->from2[pair];
		memset(row + filled, 0, sizeof(float) * (width - filled));
	}
}

static void host_gather(struct device_stream *s, elem *rows, const elem *x, const int32_t *order, const float *weight, int R, int D, int k, int width)
{
	struct rows c = {.to = rows, .from = x, .from2 = weight, .map = order, .n = R, .D = D, .k = k, .width = width};
	host_push(s, run_gather, &c, sizeof(c));
}

static void run_scatter(struct host_stream *s, const void *args)
{
	const struct rows *c = args;
	size_t D = (size_t)c->D, pair = 0;
	for (int n = 0; n < c->n; n++) {
		float *y = c->to + (size_t)n * D;
		for (int i = 0; i < c->k; i++, pair++) {
			if (c->map[pair] < 0)
				continue;
			const float *row = c->from + (size_t)c->map[pair] * (size_t)c->width;
			float weight = c->from2 ? c->from2[pair] : 1;
#pragma omp simd
			for (size_t d = 0; d < D; d++)
				y[d] += weight * row[d];
		}
	}
}

static void host_scatter(struct device_stream *s, elem *y, const elem *rows, const int32_t *row, const float *weight, int N, int D, int k, int width)
{
	struct rows c = {.to = y, .from = rows, .from2 = weight, .map = row, .n = N, .D = D, .k = k, .width = width};
	host_push(s, run_scatter, &c, sizeof(c));
}

static void run_pick(struct host_stream *s, const void *args)
{
	const struct rows *c = args;
	for (int n = 0, pair = 0; n < c->n; n++)
		for (int i = 0; i < c->k; i++, pair++)
			c->to[pair] = c->from[(size_t)n * (size_t)c->width + (size_t)c->map[pair]];
}

static void host_pick(struct device_stream *s, float *weight, const float *prob, const int32_t *index, int N, int E, int k)
{
	struct rows c = {.to = weight, .from = prob, .map = index, .n = N, .k = k, .width = E};
	host_push(s, run_pick, &c, sizeof(c));
}

static void run_column(struct host_stream *s, const void *args)
{
	const struct rows *c = args;
	for (int pair = 0; pair < c->n; pair++)
		c->to[pair] = c->map[pair] < 0 ? 0 : c->from[(size_t)c->map[pair] * (size_t)c->width + (size_t)c->D];
}

static void host_column(struct device_stream *s, float *dweight, const elem *rows, const int32_t *row, int pairs, int D, int width)
{
	struct rows c = {.to = dweight, .from = rows, .map = row, .n = pairs, .D = D, .width = width};
	host_push(s, run_column, &c, sizeof(c));
}

const struct device_gate host_gate_table = {
    .gate = host_gate,
    .gate_backward = host_gate_backward,
    .assign = host_assign,
    .sum_counts = host_sum_counts,
    .route = host_route,
    .gather = host_gather,
    .scatter = host_scatter,
    .pick = host_pick,
    .column = host_column,
};
