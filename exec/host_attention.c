/* Causal attention, a block of queries of one head at a time: its scores against all keys before it are one product, kept only in the stream's
 * scratch. The backward makes them again from lse (FlashAttention-2, arXiv 2307.08691, with whole rows: on a CPU they stay in the cache).
 *
 *              keys 0 .. i1
 *      i0   [ . . . . . . |\       ]      scores (rows, i1) of a block of queries; right of the diagonal they become 0
 *      i1   [ . . . . . . |.\      ]
 */
#include "host.h"

#include <cblas.h>
#include <math.h>
#include <string.h>

#define QUERIES 64 /* of a block */
#define LANES 16   /* the widest vector: rows are worked on in whole ones, as the triangle's are short */

struct attention {
	float *o, *lse, *dqkv;
	const float *qkv, *d_o, *out, *kept;
	int B, T, H, K, C;
};

/* One head of one sequence. */
struct head {
	const float *q, *k, *v; /* (T, C), `row` apart */
	float *dq, *dk, *dv;
	int row, out_row, T, C;
	float scale;
};

static struct head head_of(const struct attention *c, int b, int h)
{
	int row = (c->H + 2 * c->K) * c->C, shared = h / (c->H / c->K);
	size_t base = (size_t)b * (size_t)c->T * (size_t)row, q = base + (size_t)(h * c->C), k = base + (size_t)((c->H + shared) * c->C);
	size_t v = k + (size_t)(c->K * c->C);
	struct head x = {.q = c->qkv + q, .k = c->qkv + k, .v = c->qkv + v, .row = row, .out_row = c->H * c->C, .T = c->T, .C = c->C};
	x.scale = 1 / sqrtf((float)c->C);
	if (c->dqkv) {
		x.dq = c->dqkv + q;
		x.dk = c->dqkv + k;
		x.dv = c->dqkv + v;
	}
	return x;
}

/* scores (rows, keys) of queries i0 .. */
static void make_scores(const struct head *x, float *scores, int i0, int rows, int keys)
{
	const float *q = x->q + (size_t)i0 * (size_t)x->row;
	cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, rows, keys, x->C, x->scale, q, x->row, x->k, x->row, 0, scores, keys);
}

static int whole_lanes(int seen, int keys)
{
	return MIN(keys, (seen + LANES - 1) / LANES * LANES);
}

/* o (T, C), lse (T) of one head. */
static void forward(const struct host_loops *loops, const struct head *x, float *scores, float *o, float *lse)
{
	for (int i0 = 0; i0 < x->T; i0 += QUERIES) {
		int rows = MIN(QUERIES, x->T - i0), keys = i0 + rows;
		make_scores(x, scores, i0, rows, keys);
		for (int r = 0; r < rows; r++) {
			float *p = scores + (size_t)r * (size_t)keys, most;
			int seen = i0 + r + 1, whole = whole_lanes(seen, keys);
			for (int j = seen; j < whole; j++)
				p[j] = -INFINITY; /* adds 1e-38 to the sum */
			float sum = loops->exp_row(p, whole, &most), share = 1 / sum;
#pragma omp simd
			for (int j = 0; j < whole; j++)
				p[j] *= share;
			memset(p + seen, 0, sizeof(float) * (size_t)(keys - seen));
			lse[i0 + r] = most + logf(sum);
		}
		cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, rows, x->C, keys, 1, scores, keys, x->v, x->row, 0,
		            o + (size_t)i0 * (size_t)x->out_row, x->out_row);
	}
}

static void run_attention(struct host_stream *s, const void *args)
{
	const struct attention *c = args;
	float *scores = host_scratch(s, QUERIES * (size_t)c->T);
	for (int b = 0; b < c->B; b++)
		for (int h = 0; h < c->H; h++) {
			struct head x = head_of(c, b, h);
			forward(s->device->group->loops, &x, scores, c->o + (size_t)b * (size_t)c->T * (size_t)x.out_row + (size_t)(h * c->C),
			        c->lse + ((size_t)b * (size_t)c->H + (size_t)h) * (size_t)c->T);
		}
}

static void host_attention(struct device_stream *s, elem *o, float *lse, const elem *qkv, int B, int T, int H, int K, int C)
{
	struct attention c = {.o = o, .lse = lse, .qkv = qkv, .B = B, .T = T, .H = H, .K = K, .C = C};
	host_push(s, run_attention, &c, sizeof(c));
}

static float inner(const float *a, const float *b, int n)
{
	float sum = 0;
#pragma omp simd reduction(+ : sum)
	for (int i = 0; i < n; i++)
		sum += a[i] * b[i];
	return sum;
}

static void backward(const struct host_loops *loops, const struct head *x, float *p, float *ds, const float *d_o, const float *o, const float *lse)
{
	int C = x->C, row = x->row, out_row = x->out_row;
	for (int i0 = 0; i0 < x->T; i0 += QUERIES) {
		int rows = MIN(QUERIES, x->T - i0), keys = i0 + rows;
		const float *block_do = d_o + (size_t)i0 * (size_t)out_row, *block_o = o + (size_t)i0 * (size_t)out_row;
		make_scores(x, p, i0, rows, keys);
		cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, rows, keys, C, 1, block_do, out_row, x->v, row, 0, ds, keys);
		for (int r = 0; r < rows; r++) {
			size_t at = (size_t)r * (size_t)keys, out = (size_t)r * (size_t)out_row;
			int seen = i0 + r + 1;
			loops->differentiate(p + at, ds + at, whole_lanes(seen, keys), lse[i0 + r], inner(block_do + out, block_o + out, C),
			                     x->scale);
			memset(p + at + seen, 0, sizeof(float) * (size_t)(keys - seen));
			memset(ds + at + seen, 0, sizeof(float) * (size_t)(keys - seen));
		}
		cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, rows, C, keys, 1, ds, keys, x->k, row, 0, x->dq + (size_t)i0 * (size_t)row,
		            row);
		cblas_sgemm(CblasRowMajor, CblasTrans, CblasNoTrans, keys, C, rows, 1, ds, keys, x->q + (size_t)i0 * (size_t)row, row, 1, x->dk, row);
		cblas_sgemm(CblasRowMajor, CblasTrans, CblasNoTrans, keys, C, rows, 1, p, keys, block_do, out_row, 1, x->dv, row);
	}
}

static void run_attention_backward(struct host_stream *s, const void *args)
{
	const struct attention *c = args;
	size_t block = QUERIES * (size_t)c->T;
	float *p = host_scratch(s, 2 * block), *ds = p + block;
	memset(c->dqkv, 0, sizeof(float) * (size_t)c->B * (size_t)c->T * (size_t)((c->H + 2 * c->K) * c->C));
	for (int b = 0; b < c->B; b++)
		for (int h = 0; h < c->H; h++) {
			struct head x = head_of(c, b, h);
			size_t out = (size_t)b * (size_t)c->T * (size_t)x.out_row + (size_t)(h * c->C);
			backward(s->device->group->loops, &x, p, ds, c->d_o + out, c->out + out,
			         c->kept + ((size_t)b * (size_t)c->H + (size_t)h) * (size_t)c->T);
		}
}

static void host_attention_backward(struct device_stream *s, elem *dqkv, const elem *d_o, const elem *qkv, const elem *o, const float *lse, int B,
                                    int T, int H, int K, int C)
{
	struct attention c = {.dqkv = dqkv, .d_o = d_o, .qkv = qkv, .out = o, .kept = lse, .B = B, .T = T, .H = H, .K = K, .C = C};
	if (B && T)
		host_push(s, run_attention_backward, &c, sizeof(c));
}

const struct device_attention host_attention_table = {
    .attention = host_attention,
    .attention_backward = host_attention_backward,
};
