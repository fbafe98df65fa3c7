/* The loops of adam.c, one set per vector unit. All give the same bits: adam_loop.h states the rounding. */
#pragma once

#include "adam.h"

/* What one update multiplies with, rounded once from double. */
struct adam_factors {
	float scale;
	float keep_m, take_m; /* beta1, 1 - beta1 */
	float keep_v, take_v; /* beta2, 1 - beta2 */
	float correct_v;      /* 1 / sqrt(1 - beta2^t) */
	float eps, rate;      /* rate: lr / (1 - beta1^t) */
	float keep;           /* 1 - lr decay */
};

/* Each works on the elements [from, to). */
struct adam_loops {
	const char *name;
	void (*update)(const struct adam_args *a, const struct adam_factors *f, size_t from, size_t to);
	void (*accumulate)(float *sum, const void *gradient, int format, size_t from, size_t to);
	void (*cast)(void *out, int format, const float *in, size_t from, size_t to);
};

extern const struct adam_loops adam_plain, adam_avx2, adam_avx512;
