/* exec/cuda/elements.cu against plain loops. */
#include "cuda_bed.h"

#include "exec/start.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- flat ---- */

static void check_add(size_t n, size_t skip)
{
	struct bed b = {0};
	bf16 *p = bed_bf16s(n, 4), *q = bed_bf16s(n, 4), *want = bed_zeros(n * sizeof(bf16));
	for (size_t i = 0; i < n; i++)
		want[i] = bed_narrow(bed_widen(p[i]) + bed_widen(q[i]));
	bf16 *y = bed_block(&b, "y", NULL, n * sizeof(bf16)), *a = bed_block_skewed(&b, "a", p, n * sizeof(bf16), skip);
	const bf16 *x = bed_block(&b, "b", q, n * sizeof(bf16));
	while (bed_run(&b)) {
		cuda_add(NULL, y, a, x, n);
		cuda_add(NULL, a, a, x, n); /* in place */
	}
	bed_equal(&b, y, want, n * sizeof(bf16));
	bed_equal(&b, a, want, n * sizeof(bf16));
	bed_end(&b, "add, n = %zu, %zu bytes off", n, skip);
	free(p);
	free(q);
	free(want);
}

static void check_accumulate_and_cast(size_t n, size_t skip)
{
	struct bed b = {0};
	float *p = bed_floats(n, 4), *q = bed_floats(n, 4), *sum = bed_zeros(n * sizeof(float));
	bf16 *rounded = bed_zeros(n * sizeof(bf16));
	for (size_t i = 0; i < n; i++) {
		sum[i] = p[i] + q[i];
		rounded[i] = bed_narrow(q[i]);
	}
	float *to = bed_block(&b, "to", p, n * sizeof(float)), *from = bed_block_skewed(&b, "from", q, n * sizeof(float), skip);
	bf16 *narrow = bed_block(&b, "narrow", NULL, n * sizeof(bf16));
	while (bed_run(&b)) {
		cuda_accumulate(NULL, to, from, n);
		cuda_cast(NULL, narrow, from, n);
	}
	bed_equal(&b, to, sum, n * sizeof(float));
	bed_equal(&b, narrow, rounded, n * sizeof(bf16));
	bed_end(&b, "accumulate and cast, n = %zu, %zu bytes off", n, skip);
	free(p);
	free(q);
	free(sum);
	free(rounded);
}

struct moments {
	float *p, *m, *v, *g;
	double *want;
};

/* One step in the order that exec/adam_loop.h states, nothing fused: the same bits; and in double: the same number. */
__attribute__((optimize("fp-contract=off"))) static void step(const struct moments *x, size_t n, float lr, float beta1, float beta2, float eps,
                                                              float decay, int t)
{
	float take_m = (float)(1 - (double)beta1), take_v = (float)(1 - (double)beta2), rate = (float)(lr / (1 - pow((double)beta1, t)));
	float correct = (float)(1 / sqrt(1 - pow((double)beta2, t))), keep = (float)(1 - (double)lr * (double)decay);
	for (size_t i = 0; i < n; i++) {
		double g = (double)x->g[i], m = beta1 * (double)x->m[i] + (1 - (double)beta1) * g,
		       v = beta2 * (double)x->v[i] + (1 - (double)beta2) * g * g;
		x->want[i] =
		    x->p[i] - lr * (m / (1 - pow((double)beta1, t)) / (sqrt(v / (1 - pow((double)beta2, t))) + eps) + decay * (double)x->p[i]);
		x->m[i] = x->m[i] * beta1 + x->g[i] * take_m;
		x->v[i] = x->v[i] * beta2 + x->g[i] * x->g[i] * take_v;
		x->p[i] = x->p[i] * keep - x->m[i] / (sqrtf(x->v[i]) * correct + eps) * rate;
		x->g[i] = 0;
	}
}

static float *copy_of(const float *x, size_t n)
{
	return memcpy(bed_zeros(n * sizeof(float)), x, n * sizeof(float));
}

static void check_adam(size_t n, size_t skip, int t)
{
	struct bed b = {0};
	struct moments x = {bed_floats(n, 1), bed_floats(n, 0.1), bed_floats(n, 0.01), bed_floats(n, 1), bed_zeros(n * sizeof(double))};
	bf16 *rounded = bed_zeros(n * sizeof(bf16));
	for (size_t i = 0; i < n; i++)
		x.v[i] = fabsf(x.v[i]);
	float *p0 = copy_of(x.p, n), *m0 = copy_of(x.m, n), *v0 = copy_of(x.v, n), *g0 = copy_of(x.g, n);
	bf16 *param = bed_block(&b, "param", NULL, n * sizeof(bf16));
	float *p = bed_block(&b, "master", p0, n * sizeof(float)), *m = bed_block(&b, "m", m0, n * sizeof(float));
	float *v = bed_block_skewed(&b, "v", v0, n * sizeof(float), skip), *g = bed_block(&b, "gradient", g0, n * sizeof(float));
	while (bed_run(&b))
		cuda_adam(NULL, param, p, m, v, g, n, 3e-4f, 0.9f, 0.95f, 1e-8f, 0.1f, t);
	step(&x, n, 3e-4f, 0.9f, 0.95f, 1e-8f, 0.1f, t);
	for (size_t i = 0; i < n; i++)
		rounded[i] = bed_narrow(x.p[i]);
	bed_close_float(&b, p, x.want, n, 1e-6, 1e-9);
	bed_equal(&b, p, x.p, n * sizeof(float));
	bed_equal(&b, m, x.m, n * sizeof(float));
	bed_equal(&b, v, x.v, n * sizeof(float));
	bed_equal(&b, g, x.g, n * sizeof(float));
	bed_equal(&b, param, rounded, n * sizeof(bf16));
	bed_end(&b, "adam, n = %zu, %zu bytes off, t = %d: the CPU's bits", n, skip, t);
	void *all[] = {x.p, x.m, x.v, x.g, x.want, rounded, p0, m0, v0, g0};
	for (size_t i = 0; i < sizeof(all) / sizeof(*all); i++)
		free(all[i]);
}

static void check_start(size_t n, int start)
{
	struct bed b = {0};
	struct start s = {bed_random(), 0.02, start};
	uint64_t from = bed_random() % 1000000;
	double *want = bed_zeros(n * sizeof(double));
	bf16 *param = bed_block(&b, "param", NULL, n * sizeof(bf16));
	float *master = bed_block(&b, "master", NULL, n * sizeof(float));
	while (bed_run(&b))
		cuda_start(NULL, param, master, n, s.key, from, s.deviation, s.start);
	for (size_t i = 0; i < n; i++)
		want[i] = (double)start_value(&s, from + i);
	bed_close_float(&b, master, want, n, 1.2e-7, 0); /* one unit of the last place: log and cos may differ by theirs */
	const float *got = bed_result(&b, master);
	const bf16 *rounded = bed_result(&b, param);
	for (size_t i = 0; i < n; i++)
		if (rounded[i] != bed_narrow(got[i]))
			bed_fail(&b, "param[%zu] is not master rounded", i);
	bed_end(&b, "start, n = %zu, kind %d", n, start);
	free(want);
}

/* ---- activations ---- */

enum { RELU, GELU, GEGLU, SWIGLU, KINDS }; /* enum activation of model/network.h */

static bool gated(int kind)
{
	return kind >= GEGLU;
}

static double value(int kind, double x)
{
	if (kind == RELU)
		return x > 0 ? x : 0;
	if (kind == SWIGLU)
		return x / (1 + exp(-x));
	return 0.5 * x * (1 + tanh(sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
}

static double slope(int kind, double x)
{
	if (kind == RELU)
		return x > 0;
	if (kind == SWIGLU) {
		double s = 1 / (1 + exp(-x));
		return s + x * s * (1 - s);
	}
	double c = sqrt(2 / M_PI), t = tanh(c * (x + 0.044715 * x * x * x));
	return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * c * (1 + 3 * 0.044715 * x * x);
}

/* dh of a row of h for da, both times c; the row's active, and <da, act(h)>. */
static double differentiate(double *dh, double *active, const bf16 *da, const bf16 *h, int F, int kind, double c)
{
	double along = 0;
	for (int f = 0; f < F; f++) {
		double x = (double)bed_widen(h[f]), up = gated(kind) ? (double)bed_widen(h[F + f]) : 1, d = (double)bed_widen(da[f]);
		active[f] = c * value(kind, x) * up;
		dh[f] = c * d * up * slope(kind, x);
		if (gated(kind))
			dh[F + f] = c * d * value(kind, x);
		along += d * value(kind, x) * up;
	}
	return along;
}

static void check_activation(int N, int F, int kind)
{
	struct bed b = {0};
	size_t n = (size_t)N * (size_t)F, wide = gated(kind) ? 2 * n : n, row = wide / (size_t)(N ? N : 1);
	bf16 *h0 = bed_bf16s(wide, 8), *d0 = bed_bf16s(n, 2);
	double *active = bed_zeros(n * sizeof(double)), *dh_want = bed_zeros(wide * sizeof(double));
	for (size_t r = 0; r < (size_t)N; r++)
		differentiate(dh_want + r * row, active + r * (size_t)F, d0 + r * (size_t)F, h0 + r * row, F, kind, 1);
	bf16 *a = bed_block(&b, "a", NULL, n * sizeof(bf16)), *dh = bed_block(&b, "dh", NULL, wide * sizeof(bf16));
	const bf16 *h = bed_block(&b, "h", h0, wide * sizeof(bf16)), *da = bed_block(&b, "da", d0, n * sizeof(bf16));
	while (bed_run(&b)) {
		cuda_activation(NULL, a, h, N, F, kind);
		cuda_activation_backward(NULL, dh, da, h, N, F, kind);
	}
	bed_close_bf16(&b, a, active, n, BED_BF16, 1e-5);
	bed_close_bf16(&b, dh, dh_want, wide, BED_BF16, 1e-4);
	bed_end(&b, "activation %d, forward and backward, N = %d, F = %d", kind, N, F);
	void *all[] = {h0, d0, active, dh_want};
	for (size_t i = 0; i < sizeof(all) / sizeof(*all); i++)
		free(all[i]);
}

static float weight_of(const bf16 *row, int D)
{
	uint32_t bits = row[weight_at(D)] | (uint32_t)row[weight_at(D) + 1] << 16;
	float weight;
	memcpy(&weight, &bits, sizeof(weight));
	return weight;
}

static void check_expert_backward(int R, int F, int D, int kind)
{
	struct bed b = {0};
	size_t n = (size_t)R * (size_t)F, row = (size_t)F * (gated(kind) ? 2 : 1), W = (size_t)D + 8, all_rows = (size_t)R * W;
	bf16 *h0 = bed_bf16s((size_t)R * row, 4), *d0 = bed_bf16s(n, 2), *rows0 = bed_bf16s(all_rows, 1);
	double *active_want = bed_zeros(n * sizeof(double)), *dh_want = bed_zeros((size_t)R * row * sizeof(double));
	double *along = bed_zeros((size_t)R * sizeof(double));
	for (size_t r = 0; r < (size_t)R; r++)
		along[r] = differentiate(dh_want + r * row, active_want + r * (size_t)F, d0 + r * (size_t)F, h0 + r * row, F, kind,
		                         (double)weight_of(rows0 + r * W, D));
	bf16 *dh = bed_block(&b, "dh", NULL, (size_t)R * row * sizeof(bf16)), *active = bed_block(&b, "active", NULL, n * sizeof(bf16));
	bf16 *rows = bed_block(&b, "rows", rows0, all_rows * sizeof(bf16));
	const bf16 *da = bed_block(&b, "da", d0, n * sizeof(bf16)), *h = bed_block(&b, "h", h0, (size_t)R * row * sizeof(bf16));
	while (bed_run(&b))
		cuda_expert_backward(NULL, dh, active, rows, da, h, R, F, (int)W, D, kind);
	bed_close_bf16(&b, dh, dh_want, (size_t)R * row, BED_BF16, 1e-4);
	bed_close_bf16(&b, active, active_want, n, BED_BF16, 1e-5);
	const bf16 *got = bed_result(&b, rows);
	for (size_t r = 0; r < (size_t)R; r++) {
		if (fabs((double)weight_of(got + r * W, D) - along[r]) > 1e-5 * F + 1e-5 * fabs(along[r]))
			bed_fail(&b, "the weight of row %zu became %g, not %g", r, (double)weight_of(got + r * W, D), along[r]);
		for (size_t d = 0; d < W; d++)
			if (d != (size_t)weight_at(D) && d != (size_t)weight_at(D) + 1 && got[r * W + d] != rows0[r * W + d])
				bed_fail(&b, "element %zu of row %zu was touched", d, r);
	}
	bed_end(&b, "expert_backward %d, R = %d, F = %d, D = %d", kind, R, F, D);
	void *all[] = {h0, d0, rows0, active_want, dh_want, along};
	for (size_t i = 0; i < sizeof(all) / sizeof(*all); i++)
		free(all[i]);
}

void check_elements(int rows)
{
	static const size_t n[] = {0, 1, 7, 8, 9, 1000, 100003};
	static const int N[] = {0, 1, 3, 127, 1000}, F[] = {8, 40, 1023, 1024, 3000};
	for (size_t i = 0; i < sizeof(n) / sizeof(*n); i++)
		for (size_t skip = 0; skip <= 16; skip += 4) {
			check_add(n[i], skip);
			check_accumulate_and_cast(n[i], skip);
			check_adam(n[i], skip, 1 + (int)skip * 100);
		}
	for (int start = START_WEIGHT; start <= START_BIAS; start++) {
		check_start(0, start);
		check_start(10007, start);
	}
	for (size_t i = 0; i < sizeof(N) / sizeof(*N) && N[i] <= rows; i++)
		for (size_t j = 0; j < sizeof(F) / sizeof(*F); j++)
			for (int kind = 0; kind < KINDS; kind++) {
				check_activation(N[i], F[j], kind);
				check_expert_backward(N[i], F[j], j % 2 ? 40 : 39, kind);
			}
}
