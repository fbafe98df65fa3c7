/* The schedule in virtual time: an event-driven backend over shared resources. One simulation is one object; many run in one process. */
#pragma once

#include "model/backend.h"
#include "model/resource.h"
#include "model/routing.h"
#include "traces/trace.h"

struct sim_options {
	bool no_launch;   /* launching costs the host nothing */
	bool no_sync;     /* loads() costs the host nothing beyond the gate's own end */
	bool no_event;    /* a stream waits for another's event for free */
	bool no_sharing;  /* every stage runs at its solo speed */
};

/* All arguments are borrowed and must outlive the backend. */
struct backend *sim_new(const struct machine *m, const struct resources *r, const struct routing *routing, const struct sim_options *o);

/* After backend_wait: when a stage started and ended. */
nsec_t sim_start_ns(const struct backend *b, stage_id id);
nsec_t sim_end_ns(const struct backend *b, stage_id id);
nsec_t sim_now_ns(const struct backend *b);

/* Busy time of each stream (sum of its spans) over stages whose end lies in (from, to]. busy_ns (stream_count). */
void sim_busy(const struct backend *b, nsec_t from_ns, nsec_t to_ns, nsec_t *busy_ns);

/* Copies the spans of all completed stages into a trace, with counters of PCIe, DRAM and rates over time if asked. */
void sim_trace(const struct backend *b, bool counters, struct trace *trace);
