/* How late an exchange is that only its launch keeps waiting, from runs of several GPUs. */
#pragma once

#include "traces/trace.h"

/* Adds the exchanges of forward passes whose rows were there before they were launched (struct timing of MEASURED_LATE, by a GPU's tokens): from the
 * launch to the end, longer than the middle one of those that waited for nothing takes. `cover` as of streamed_cover; the trace's first step has this
 * number. Nothing when no exchange of the run was alone. */
void late_add(const struct trace *trace, const double *cover, uint32_t first_step, GArray *samples);
