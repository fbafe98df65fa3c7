/* The schedule in real time: the backend over devices. One launcher thread a GPU, streams as in-order queues ordered by events, workers for optimizer
 * and SSD. */
#pragma once

#include "engine.h"
#include "model/backend.h"
#include "traces/trace.h"

/* devices (gpus): NULL where another process has it, which launches its stages; the order between processes is kept by collectives, of which every
 * process has members. All arguments are borrowed and must outlive the backend. */
struct backend *exec_new(struct device **devices, int count, struct engine *engine, const struct machine *m,
                         GError **error) G_GNUC_WARN_UNUSED_RESULT;

/* Spans of the stages since the last call up to `before`, all of which have ended, on the clock of exec_now_ns, appended to the trace; call it every
 * few steps: until then the backend keeps them. A collective starts for all its members when the last one of this process has come. With before =
 * b->n_launched it waits until nothing runs any more; only then devices that know when the work of a stage really ran are asked, otherwise times are
 * those of events. */
void exec_trace(struct backend *b, stage_id before, struct trace *trace);
/* A copy (struct span) of those of the stages from .. to - 1, which have ended and were not taken yet, by the times of events. */
void exec_spans(struct backend *b, stage_id from, stage_id to, GArray *spans);
