/* What calibration's runs tell about a GPU in company: how its clock follows its work (model/heat.h), and how much slower it computes while copies
 * read and write its memory. */
#pragma once

#include "model/machine.h"
#include "traces/trace.h"

/* A run of one GPU. `waits`: for long parts of each step, and its experts, all with as many tokens, come and go. */
struct warm_run {
	const struct trace *trace;
	bool waits;
};

/* Fills cool_speedup, cool_share and heat_ms from the mixers of `tokens` tokens that no copy accompanies: the law that leaves the least of their
 * variance. Without runs that wait nothing is known, and speedup is 1. */
void warmth_fit(const struct warm_run *runs, int n, uint32_t tokens, struct machine *m);
/* Fills copy_gemm_slowdown from the experts that copies accompany, beside their like without; keeps it where there are none. */
void warmth_fit_copies(const struct warm_run *runs, int n, struct machine *m);

/* By index of span: what a hot GPU's time would be over the time that was measured, 1 for what is no matrix product. cover: how many copies went on
 * meanwhile, 0 to 2. Both owned by the caller. */
double *warmth_hot(const struct trace *trace, const struct machine *m);
double *warmth_cover(const struct trace *trace);
