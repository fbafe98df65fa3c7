/* What bounds a step: the chain of spans, launches and waits that ends it, from its end back to its beginning. */
#pragma once

#include "trace.h"

/* Beside the streams: launch, a launcher thread is launching; sync, it waits for the counts of a gate and goes on after them; idle, nothing on the
 * chain runs (the delay between a cause and its effect, or a beginning that has no cause in the trace). */
enum path_resource { PATH_LAUNCH = STREAM_KINDS, PATH_SYNC, PATH_IDLE, PATH_RESOURCES };
const char *path_resource_name(int resource);

struct path_part {
	int resource; /* stream kind or enum path_resource */
	int kind;     /* of the stage, -1: none */
	uint32_t n;   /* pieces of the chain */
	nsec_t ns;
};

struct critical_path {
	int step;       /* index in trace->step_end_ns; 0 when the trace has no steps: the whole run */
	nsec_t step_ns; /* exactly the sum of the parts */
	GArray *parts;  /* struct path_part, longest first */
	int bound_by;   /* the resource with the longest sum of parts */
	nsec_t bound_ns;
};

/* `step` -1 is the last. ESMOE_ERROR_USAGE when there is no such step. Owned by the caller. */
struct critical_path *critical_path_new(const struct trace *trace, int step, GError **error) G_GNUC_WARN_UNUSED_RESULT;
void critical_path_free(struct critical_path *path);
AUTOPTR(critical_path)
