/* What calibration's runs tell about how a GPU's clock follows its work (model/heat.h). */
#pragma once

#include "model/machine.h"
#include "traces/trace.h"

/* A run of one GPU. `waits`: for long parts of each step, and its experts, all with as many tokens, come and go. `company`: copies and CPU Adam work
 * beside it all along. */
struct warm_run {
	const struct trace *trace;
	bool waits, company;
	int d_expert;    /* inner size of its experts */
	int products[2]; /* of matrices, in an expert's forward pass and in its backward */
};

/* Fills cool_speedup, cool_share and heat_ms from the mixers of `tokens` tokens that no copy accompanies: the law that leaves the least of their
 * variance. Without runs that wait nothing is known, and speedup is 1. */
void warmth_fit(const struct warm_run *runs, int n, uint32_t tokens, struct machine *m);

/* By index of span: what a hot GPU's time would be over the time that was measured, 1 for what is no matrix product. Owned by the caller. */
double *warmth_hot(const struct trace *trace, const struct machine *m);
