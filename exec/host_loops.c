/* What host_loops.h promises, written for the compiler's vectoriser: compiled once for each vector unit, with LOOPS as the name of the set and UNIT
 * as the unit's. Nothing here branches on a value. */
#include "host_loops.h"
#include "host_math.h"
#include "model/network.h"

#include <stdbool.h>

static float exp_row(float *x, int n, float *max)
{
	float most = x[0], sum = 0;
#pragma omp simd reduction(max : most)
	for (int i = 0; i < n; i++)
		most = x[i] > most ? x[i] : most;
#pragma omp simd reduction(+ : sum)
	for (int i = 0; i < n; i++) {
		x[i] = fast_exp(x[i] - most);
		sum += x[i];
	}
	*max = most;
	return sum;
}

static void differentiate(float *p, float *ds, int n, float lse, float along, float scale)
{
#pragma omp simd
	for (int j = 0; j < n; j++) {
		p[j] = fast_exp(p[j] - lse);
		ds[j] = scale * p[j] * (ds[j] - along);
	}
}

#define GELU_SCALE 1.5957691216057308f /* 2 sqrt(2 / pi): 0.5 (1 + tanh u) = sigmoid(2 u) */
#define GELU_CUBE 0.044715f

#define SPECIALISED static inline __attribute__((always_inline))

SPECIALISED float gelu_inner(float x)
{
	return GELU_SCALE * (x + GELU_CUBE * x * x * x);
}

SPECIALISED float value(float x, int kind)
{
	if (kind == ACTIVATION_RELU)
		return x > 0 ? x : 0;
	return x / (1 + fast_exp(kind == ACTIVATION_SWIGLU ? -x : -gelu_inner(x)));
}

/* f(x) = x sigmoid(u(x)), so f' = s + x s (1 - s) u', where s (1 - s) = s (e^-u s) has no cancellation. */
SPECIALISED float slope(float x, int kind)
{
	if (kind == ACTIVATION_RELU)
		return x > 0 ? 1 : 0;
	float u = kind == ACTIVATION_SWIGLU ? x : gelu_inner(x), du = kind == ACTIVATION_SWIGLU ? 1 : GELU_SCALE * (1 + 3 * GELU_CUBE * x * x);
	float e = fast_exp(-u), sigmoid = 1 / (1 + e);
	return sigmoid + x * sigmoid * (e * sigmoid) * du;
}

SPECIALISED void forward(const struct activation_args *c, int kind, bool gated)
{
	size_t F = (size_t)c->F;
	for (int n = 0; n < c->N; n++) {
		const float *h = c->h + (size_t)n * (gated ? 2 * F : F);
		float *a = c->a + (size_t)n * F;
#pragma omp simd
		for (size_t f = 0; f < F; f++)
			a[f] = gated ? value(h[f], kind) * h[F + f] : value(h[f], kind);
	}
}

SPECIALISED void backward(const struct activation_args *c, int kind, bool gated)
{
	size_t F = (size_t)c->F;
	for (int n = 0; n < c->N; n++) {
		size_t row = (size_t)n * (gated ? 2 * F : F);
		const float *h = c->h + row, *da = c->da + (size_t)n * F;
		float *dh = c->dh + row;
#pragma omp simd
		for (size_t f = 0; f < F; f++) {
			float x = h[f], up = gated ? h[F + f] : 1, d = da[f];
			if (gated)
				dh[F + f] = d * value(x, kind);
			dh[f] = d * up * slope(x, kind);
		}
	}
}

/* One loop for each, with the choice outside. */
#define CHOOSE(loop, c)                                                                                                                              \
	switch ((c)->kind) {                                                                                                                         \
	case ACTIVATION_RELU:                                                                                                                        \
		loop(c, ACTIVATION_RELU, false);                                                                                                     \
		break;                                                                                                                               \
	case ACTIVATION_GELU:                                                                                                                        \
		loop(c, ACTIVATION_GELU, false);                                                                                                     \
		break;                                                                                                                               \
	case ACTIVATION_GEGLU:                                                                                                                       \
		loop(c, ACTIVATION_GEGLU, true);                                                                                                     \
		break;                                                                                                                               \
	case ACTIVATION_SWIGLU:                                                                                                                      \
		loop(c, ACTIVATION_SWIGLU, true);                                                                                                    \
		break;                                                                                                                               \
	}

static void activate(const struct activation_args *c)
{
	CHOOSE(forward, c)
}

static void activate_backward(const struct activation_args *c)
{
	CHOOSE(backward, c)
}

const struct host_loops LOOPS = {UNIT, exp_row, differentiate, activate, activate_backward};
