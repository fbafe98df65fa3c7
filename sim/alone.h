/* CPU Adam in a trace where nothing is copied beside it. */
#pragma once

#include "traces/trace.h"

/* Milliseconds (double, ascending) of the updates beside which no GPU of their node uploads or downloads for more than a twentieth of their time.
 * Owned by the caller. */
GArray *alone_adam_ms(const struct trace *trace);
