/* Trace files in the form PyTorch's profiler writes: PREFIX.rank<N>.json for each GPU and PREFIX.host.json for the optimizer workers and SSDs; where
 * each node's process writes its own, PREFIX.host<N>.json for those of node N > 0. */
#pragma once

#include "trace.h"

#include <gio/gio.h>
#include <stdbool.h>

/* Writes all files of a trace, each to a temporary name, renamed when all are complete; ".gz" appended to the names and content when `gzip`.
 * `prefix` may hold folders, which must exist. Spans are in the order of their ids, lie in the trace's GPUs, and predecessors have smaller ids.
 * Same trace, same bytes. */
bool kineto_write(const struct trace *trace, const char *prefix, bool gzip, GError **error) G_GNUC_WARN_UNUSED_RESULT;

/* The same for the nodes of GPUs first .. end - 1 alone, of which the trace holds the spans. */
bool kineto_write_part(const struct trace *trace, const char *prefix, bool gzip, int first, int end, GError **error) G_GNUC_WARN_UNUSED_RESULT;

/* Reads files written by kineto_write back into one trace: `paths` (at least one, NULL-terminated) are files, or a prefix or folder for all of them.
 * What is written comes back exactly. Files of PyTorch's own profiler are read as far as they go: GPU events and streams, without predecessors or
 * description. ESMOE_ERROR_INPUT names the file and the byte. NULL on error; owned by the caller. */
struct trace *kineto_read(const char *const *paths, GError **error) G_GNUC_WARN_UNUSED_RESULT;
/* One file's content from a stream, plain or gzip; `name` is for errors. */
struct trace *kineto_read_stream(const char *name, GInputStream *in, GError **error) G_GNUC_WARN_UNUSED_RESULT;
