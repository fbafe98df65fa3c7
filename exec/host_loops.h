/* The host device's loops over exponentials, which take longer than the products around them unless a whole vector unit works on them: one set per
 * unit, compiled from one source. Sums differ in their last bits from unit to unit, never on one. */
#pragma once

#include <stddef.h>

struct activation_args {
	float *a, *dh;
	const float *da, *h;
	int N, F, kind;
};

struct host_loops {
	const char *name;
	/* x (n) <- e^(x - max), and their sum: a row of a softmax before it is divided. *max becomes the largest. */
	float (*exp_row)(float *x, int n, float *max);
	/* A row of attention scores p (n) <- e^(p - lse), and their gradient ds <- scale p (ds - along). */
	void (*differentiate)(float *p, float *ds, int n, float lse, float along, float scale);
	void (*activate)(const struct activation_args *c);
	void (*activate_backward)(const struct activation_args *c);
};

extern const struct host_loops host_plain, host_avx2, host_avx512;
