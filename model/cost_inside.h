/* Inside of the costs, shared by their files. */
#pragma once

#include "cost.h"
#include "measured.h"

#include <math.h>

/* Bytes through HBM per token where elements have two: per element of D, per element of the inner size F, per attention score of a head, per logit;
 * and launches. */
struct traffic {
	double d, f, score, logit;
	int kernels;
};
/* Of a network on a machine's software: its kernels, its activation, its dropout. */
void cost_traffic(const struct network *n, const struct machine *m, struct traffic traffic[N_STAGE_KINDS][2]);

#define MEMO 4096 /* costs remembered; a power of two */

struct memo {
	uint64_t key;
	nsec_t ns;
	uint32_t kernels;
};

struct cost {
	const struct network *n;
	const struct machine *m;
	const struct policy *p;
	int seq_len;
	double tensor;          /* GPUs that cut every matrix among them: heads, inner sizes and vocabulary are divided by it */
	double experts_tensor;  /* those of an expert */
	double sources;         /* matrices that an expert's rows come as */
	double flops_per_ns_sm; /* one SM, large tiles */
	double hbm;             /* bytes per ns reached */
	double halves;          /* the same in bytes counted as if elements had two */
	double kernel_ns;
	double adam_params_per_ns;
	double adam_slowdown;                     /* of the threads and memory in use against all and that, which were measured */
	const struct measured *own;               /* tables of computation: NULL unless of this network */
	uint8_t (*basis)[N_STAGE_PASSES];         /* enum cost_basis */
	int *shape;                               /* (L) the first layer of the same shape */
	struct traffic traffic[N_STAGE_KINDS][2]; /* [kind][backward] */
	struct memo memo[MEMO];
};

static inline nsec_t cost_whole(double ns)
{
	return (nsec_t)ceil(ns);
}

/* The time of a stage of that size from `tables`, if there are any; notes what it stands on. */
bool cost_look_up(const struct cost *c, const struct measured *tables, int kind, int pass, double size, double *ns);

/* A linear layer: forward one GEMM, backward one for the input's and one for the weight's gradient. */
double cost_linear_ns(const struct cost *c, bool backward, double tokens, double in, double out);
