/* Trace files in the form PyTorch's profiler writes: PREFIX.rank<N>.json for each GPU and PREFIX.host.json for the optimizer workers and SSDs. */
#pragma once

#include "trace.h"

#include <stdbool.h>

/* Writes all files of a trace, each to a temporary name renamed at the end; ".gz" appended to the names and content when `gzip`.
 * `prefix` may hold folders, which must exist. */
bool kineto_write(const struct trace *trace, const char *prefix, bool gzip, GError **error) G_GNUC_WARN_UNUSED_RESULT;

/* Reads files written by kineto_write back into one trace: `paths` are files, or one prefix or folder for all of them. Files of PyTorch's own
 * profiler are read as far as they go: GPU events and streams, without predecessors or description. */
struct trace *kineto_read(const char *const *paths, GError **error) G_GNUC_WARN_UNUSED_RESULT;
