/* The schedule in virtual time: an event-driven backend over shared resources. One simulation is one object; many run in one process.
 *
 * What is modelled besides the stages' own cost, each with its switch: every GPU has a launcher thread that needs launch_us a kernel; a stage may
 * start when its first kernel is launched, and cannot end before its last one is and has run its part (cost / kernels): until then it keeps its
 * stream, though no resources. An all-to-all, which needs several kernels, the first of which pack its rows, has its whole time before it after
 * what measured_all_to_all_late says. Predecessors on another stream cost event_us after their end, and their own stream wake_us for each that waited
 * for them; a compute stream goes on no earlier than next_us after a stage. wait() and loads() let every launcher go on sync_us after the end of what
 * was waited for, not before; the first launch after that takes first_us longer; while CPU Adam works on the node these take launch_adam_us,
 * sync_adam_us and first_adam_us. Members of a group start when all are ready and end together when the slowest is done. */
#pragma once

#include "model/backend.h"
#include "model/resource.h"
#include "model/routing.h"
#include "traces/trace.h"

struct sim_options {
	bool no_launch;       /* launching costs the host nothing */
	bool no_sync;         /* waiting costs the host nothing beyond the stage's own end */
	bool no_event;        /* a stream waits for another's event for free */
	bool no_sharing;      /* every stage runs at its solo speed */
	bool record_counters; /* keep what sim_trace needs for its counters */
};

/* All arguments but the options are borrowed and must outlive the backend; `routing` may be NULL when no gate will be asked. */
struct backend *sim_new(const struct machine *m, const struct resources *r, const struct routing *routing, const struct sim_options *o);

/* After backend_wait: when a stage started and ended. */
nsec_t sim_start_ns(const struct backend *b, stage_id id);
nsec_t sim_end_ns(const struct backend *b, stage_id id);
nsec_t sim_now_ns(const struct backend *b);

/* Busy time of each stream (sum of its spans) over stages whose end lies in (from, to]. busy_ns (stream_count). */
void sim_busy(const struct backend *b, nsec_t from_ns, nsec_t to_ns, nsec_t *busy_ns);

/* Copies the spans of all completed stages into a trace, with the ends of the steps and the machine's description; `counters` (needs record_counters)
 * adds GB/s of each GPU's PCIe directions and of each node's DRAM over time. */
void sim_trace(const struct backend *b, bool counters, struct trace *trace);
