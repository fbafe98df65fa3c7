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

/* Spans of all stages launched since the last call, on the clock of exec_now_ns, appended to the trace; call when all have
 * ended, every few steps: until then the backend keeps them. A collective starts for all its members when the last one of this process has come. */
void exec_trace(struct backend *b, struct trace *trace);
