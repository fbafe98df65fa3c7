/* How busy a run's streams were, and what ran beside compute. Every figure of `trace info` is defined here. */
#pragma once

#include "trace.h"

/* Over the run: from time 0, or the first span if that is earlier, to trace_end_ns.
 *   busy           time in which at least one span of the stream runs
 *   idle           the run minus busy
 *   under_compute  time in which the stream and the compute stream of its GPU both run; for a node's stream, the compute stream of any of its GPUs */
struct stream_info {
	uint32_t n_spans;
	nsec_t busy_ns, idle_ns, under_compute_ns;
};

/* Of one GPU, as Holistic Trace Analysis counts, except the copies, which it does not count as communication:
 *   window             from the GPU's first span to the end of its last
 *   compute            its compute stream is busy
 *   other              any other of its streams is busy, compute is not
 *   idle               window minus compute minus other
 *   collective_hidden  collective and compute streams both busy, of the collective's busy time
 *   copy               its upload or download stream is busy; copy_hidden: and compute is too */
struct gpu_info {
	nsec_t window_ns, compute_ns, other_ns, idle_ns;
	nsec_t collective_ns, collective_hidden_ns;
	nsec_t copy_ns, copy_hidden_ns;
};

struct trace_info {
	nsec_t run_ns;
	int n_streams, n_gpus;
	struct stream_info *streams;
	struct gpu_info *gpus;
	nsec_t copy_ns, copy_hidden_ns; /* sums over the GPUs: the share of copies hidden under compute */
};

struct trace_info *trace_info_new(const struct trace *trace);
void trace_info_free(struct trace_info *info);
AUTOPTR(trace_info)
