/* Two traces side by side, per stream and stage kind. */
#pragma once

#include "trace.h"

/* One stream and stage kind that occurs in A or B. A stage is the same in both when kind, pass, step (counted from the trace's first), layer,
 * micro-batch, expert and stream are; only_a and only_b count those without a partner. */
struct diff_row {
	int gpu, node; /* the other is -1 */
	int stream_kind, kind;
	uint32_t n_a, n_b, only_a, only_b;
	nsec_t a_ns, b_ns; /* sums of durations */
};

/* struct diff_row: GPUs' streams first, then nodes', by stage kind within. Owned by the caller. */
GArray *trace_diff(const struct trace *a, const struct trace *b);
