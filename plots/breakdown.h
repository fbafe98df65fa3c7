/* The breakdown: what each stream did with the last step's time, stacked by stage kind, with what is left as idle. */
#pragma once

#include "rows.h"

/* One trace and what the figure calls it. */
struct named_trace {
	const char *name;
	const struct trace *trace;
};

/* Draws one bar a stream, as long as the step (see trace_last_step): the spans of each kind and pass, clipped to the step, then the idle rest; the
 * share of the step that is busy stands beside it. One trace: a bar for each stream of the chosen GPUs and their nodes. Several traces: a bar for
 * each kind of stream, the mean over all GPUs or nodes, trace by trace; `choice` is not looked at. Bars of streams that a trace never uses are left
 * out. */
bool plot_breakdown(const struct named_trace *traces, int n, const struct gpu_choice *choice, const char *out,
                    GError **error) G_GNUC_WARN_UNUSED_RESULT;

/* What streams did in a period. */
struct stream_time {
	nsec_t busy[N_STAGE_KINDS][N_STAGE_PASSES];
};
/* The time that spans of each stream spend in from..to. times (trace_streams). */
void stream_times(const struct trace *trace, nsec_t from, nsec_t to, struct stream_time *times);
