/* exec/cuda/tokens.cu and norm.cu against plain loops. */
#include "cuda_bed.h"

#include <math.h>
#include <stdlib.h>

#define COUNT(array) (sizeof(array) / sizeof(*(array)))

static void free_all(void **p, size_t n)
{
	for (size_t i = 0; i < n; i++)
		free(p[i]);
}

static int32_t *numbers_below(size_t n, int below)
{
	int32_t *x = bed_zeros(n * sizeof(*x));
	for (size_t i = 0; i < n; i++)
		x[i] = bed_random_below(below);
	return x;
}

/* ---- embedding ---- */

#define V 50

static void check_embed(int B, int T, int D)
{
	struct bed b = {0};
	size_t N = (size_t)B * (size_t)T, d = (size_t)D, n = N * d;
	int32_t *tokens0 = numbers_below(N, V);
	bf16 *wte0 = bed_bf16s(V * d, 1), *wpe0 = bed_bf16s((size_t)T * d, 1), *want = bed_zeros(n * sizeof(bf16)), *dx0 = bed_eighths(n);
	float *dwte0 = bed_zeros(V * d * sizeof(float)), *dwpe0 = bed_zeros((size_t)T * d * sizeof(float)),
	      *dwte_want = bed_zeros(V * d * sizeof(float)), *dwpe_want = bed_zeros((size_t)T * d * sizeof(float));
	for (size_t i = 0; i < V * d; i++)
		dwte_want[i] = dwte0[i] = (float)bed_random_below(9);
	for (size_t i = 0; i < (size_t)T * d; i++)
		dwpe_want[i] = dwpe0[i] = (float)bed_random_below(9);
	for (size_t i = 0; i < n; i++) {
		size_t token = (size_t)tokens0[i / d] * d + i % d, place = i / d % (size_t)T * d + i % d;
		want[i] = bed_narrow(bed_widen(wte0[token]) + bed_widen(wpe0[place]));
		dwte_want[token] += bed_widen(dx0[i]);
		dwpe_want[place] += bed_widen(dx0[i]);
	}
	bf16 *x = bed_block(&b, "x", NULL, n * sizeof(bf16));
	const int32_t *tokens = bed_block(&b, "tokens", tokens0, N * sizeof(int32_t));
	const bf16 *wte = bed_block(&b, "wte", wte0, V * d * sizeof(bf16)), *wpe = bed_block(&b, "wpe", wpe0, (size_t)T * d * sizeof(bf16));
	const bf16 *dx = bed_block(&b, "dx", dx0, n * sizeof(bf16));
	float *dwte = bed_block(&b, "dwte", dwte0, V * d * sizeof(float)), *dwpe = bed_block(&b, "dwpe", dwpe0, (size_t)T * d * sizeof(float));
	while (bed_run(&b)) {
		cuda_embed(NULL, x, tokens, wte, wpe, B, T, D);
		cuda_embed_backward(NULL, dwte, dwpe, dx, tokens, B, T, D);
	}
	bed_equal(&b, x, want, n * sizeof(bf16));
	bed_equal(&b, dwte, dwte_want, V * d * sizeof(float));
	bed_equal(&b, dwpe, dwpe_want, (size_t)T * d * sizeof(float));
	bed_end(&b, "embed, forward and backward, B = %d, T = %d, D = %d", B, T, D);
	free_all((void *[]){tokens0, wte0, wpe0, want, dx0, dwte0, dwpe0, dwte_want, dwpe_want}, 9);
}

#undef V

/* ---- norm ---- */

struct norm_case {
	bf16 *x, *gain, *bias, *dy, *dx;
	float *dgain, *dbias;
	double *y, *mean, *rstd, *dx_want, *dgain_want, *dbias_want;
};

static void work_out(const struct norm_case *c, size_t N, size_t D)
{
	for (size_t d = 0; d < D; d++) {
		c->dgain_want[d] = (double)c->dgain[d];
		c->dbias_want[d] = (double)c->dbias[d];
	}
	for (size_t n = 0; n < N; n++) {
		double mean = 0, squares = 0, sum = 0, along = 0;
		for (size_t d = 0; d < D; d++)
			mean += (double)bed_widen(c->x[n * D + d]) / (double)D;
		for (size_t d = 0; d < D; d++)
			squares += pow((double)bed_widen(c->x[n * D + d]) - mean, 2);
		double rstd = 1 / sqrt(squares / (double)D + 1e-5);
		c->mean[n] = mean;
		c->rstd[n] = rstd;
		for (size_t d = 0; d < D; d++) {
			double z = ((double)bed_widen(c->x[n * D + d]) - mean) * rstd, dy = (double)bed_widen(c->dy[n * D + d]);
			double gain = (double)bed_widen(c->gain[d]);
			c->y[n * D + d] = z * gain + (double)bed_widen(c->bias[d]);
			sum += dy * gain / (double)D;
			along += dy * gain * z / (double)D;
			c->dgain_want[d] += dy * z;
			c->dbias_want[d] += dy;
		}
		for (size_t d = 0; d < D; d++) {
			double z = ((double)bed_widen(c->x[n * D + d]) - mean) * rstd;
			double dz = (double)bed_widen(c->dy[n * D + d]) * (double)bed_widen(c->gain[d]);
			c->dx_want[n * D + d] = (double)bed_widen(c->dx[n * D + d]) + rstd * (dz - sum - z * along);
		}
	}
}

static void check_norm(int N, int D)
{
	struct bed b = {0};
	size_t n = (size_t)N, d = (size_t)D, all = n * d;
	struct norm_case c = {bed_bf16s(all, 3),
	                      bed_bf16s(d, 2),
	                      bed_bf16s(d, 2),
	                      bed_bf16s(all, 1),
	                      bed_bf16s(all, 1),
	                      bed_floats(d, 1),
	                      bed_floats(d, 1),
	                      bed_zeros(all * sizeof(double)),
	                      bed_zeros(n * sizeof(double)),
	                      bed_zeros(n * sizeof(double)),
	                      bed_zeros(all * sizeof(double)),
	                      bed_zeros(d * sizeof(double)),
	                      bed_zeros(d * sizeof(double))};
	work_out(&c, n, d);
	bf16 *y = bed_block(&b, "y", NULL, all * sizeof(bf16)), *dx = bed_block(&b, "dx", c.dx, all * sizeof(bf16));
	float *mean = bed_block(&b, "mean", NULL, n * sizeof(float)), *rstd = bed_block(&b, "rstd", NULL, n * sizeof(float));
	const bf16 *x = bed_block(&b, "x", c.x, all * sizeof(bf16)), *gain = bed_block(&b, "gain", c.gain, d * sizeof(bf16));
	const bf16 *bias = bed_block(&b, "bias", c.bias, d * sizeof(bf16)), *dy = bed_block(&b, "dy", c.dy, all * sizeof(bf16));
	float *dgain = bed_block(&b, "dgain", c.dgain, d * sizeof(float)), *dbias = bed_block(&b, "dbias", c.dbias, d * sizeof(float));
	float *scratch = bed_block(&b, "(scratch)", NULL, cuda_norm_scratch_floats(N, D) * sizeof(float));
	while (bed_run(&b)) {
		cuda_norm(NULL, y, mean, rstd, x, gain, bias, N, D);
		cuda_norm_backward(NULL, dx, dgain, dbias, dy, x, gain, mean, rstd, scratch, N, D);
	}
	bed_close_float(&b, mean, c.mean, n, 1e-5, 1e-5);
	bed_close_float(&b, rstd, c.rstd, n, 1e-5, 0);
	bed_close_bf16(&b, y, c.y, all, BED_BF16, 1e-4);
	bed_close_bf16(&b, dx, c.dx_want, all, BED_BF16, 1e-4);
	bed_close_float(&b, dgain, c.dgain_want, d, 1e-5, 1e-5 * (1 + sqrt(N)));
	bed_close_float(&b, dbias, c.dbias_want, d, 1e-5, 1e-5 * (1 + sqrt(N)));
	bed_end(&b, "norm, forward and backward, N = %d, D = %d", N, D);
	free_all((void *[]){c.x, c.gain, c.bias, c.dy, c.dx, c.dgain, c.dbias, c.y, c.mean, c.rstd, c.dx_want, c.dgain_want, c.dbias_want}, 13);
}

/* ---- cross entropy ---- */

static void check_cross_entropy(int n, int V)
{
	struct bed b = {0};
	size_t v = (size_t)V, all = (size_t)n * v;
	double total = 32, loss_want = 0.5;
	float loss0 = 0.5f;
	bf16 *logits0 = bed_bf16s(all, 12);
	int32_t *targets0 = numbers_below((size_t)n, V);
	double *want = bed_zeros(all * sizeof(double));
	for (size_t r = 0; r < (size_t)n; r++) {
		double most = -INFINITY, sum = 0;
		if (r < 4) /* the row's first and last elements, which may lie outside of its pieces */
			targets0[r] = r % 2 ? V - 1 : 0;
		for (size_t i = 0; i < v; i++)
			most = fmax(most, (double)bed_widen(logits0[r * v + i]));
		for (size_t i = 0; i < v; i++)
			sum += exp((double)bed_widen(logits0[r * v + i]) - most);
		for (size_t i = 0; i < v; i++)
			want[r * v + i] = (exp((double)bed_widen(logits0[r * v + i]) - most) / sum - (i == (size_t)targets0[r])) / total;
		loss_want += (log(sum) + most - (double)bed_widen(logits0[r * v + (size_t)targets0[r]])) / total;
	}
	bf16 *logits = bed_block(&b, "logits", logits0, all * sizeof(bf16));
	float *loss = bed_block(&b, "loss", &loss0, sizeof(float)), *scratch = bed_block(&b, "(scratch)", NULL, (size_t)n * sizeof(float));
	const int32_t *targets = bed_block(&b, "targets", targets0, (size_t)n * sizeof(int32_t));
	while (bed_run(&b))
		cuda_cross_entropy(NULL, loss, logits, targets, scratch, n, V, total);
	bed_close_float(&b, loss, &loss_want, 1, 1e-5, 0);
	bed_close_bf16(&b, logits, want, all, BED_BF16 + 1e-4, 2e-6 / total); /* a sure target: its share, good to a few units of fp32, less 1 */
	bed_end(&b, "cross entropy, n = %d, V = %d", n, V);
	free_all((void *[]){logits0, targets0, want}, 3);
}

void check_rows(int rows)
{
	static const int N[] = {0, 1, 3, 127, 1000}, D[] = {8, 40, 768, 1000, 1023, 1024, 2056}, wide[] = {3000, 4096, 5000};
	static const int vocabularies[] = {1, 5, 8, 100, 1000, 4097, 50257}, large[] = {51200, 70001, 130000};
	for (size_t i = 0; i < COUNT(N) && N[i] <= rows; i++)
		for (size_t j = 0; j < COUNT(D); j++) {
			check_norm(N[i], D[j]);
			check_embed(3, N[i] / 3, D[j]);
		}
	check_embed(7, 5, 64);
	for (size_t j = 0; j < COUNT(wide); j++)
		check_norm(rows < 100 ? 3 : 100, wide[j]);
	for (size_t j = 0; j < COUNT(vocabularies); j++) {
		check_cross_entropy(0, vocabularies[j]);
		check_cross_entropy(7, vocabularies[j]);
	}
	for (size_t j = 0; j < COUNT(large) && rows >= 100; j++)
		check_cross_entropy(5, large[j]);
	if (rows >= 1000)
		check_cross_entropy(1030, 1000);
}
