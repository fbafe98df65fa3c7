/* CPU Adam in a trace where nothing is copied beside it. */
#pragma once

#include "traces/trace.h"

/* Milliseconds (double, ascending) of an update beside which no GPU of its node uploads or downloads for more than a twentieth of its time: the mean
 * of each step that has some, since a step takes as long as all of them, those that were held up included. Owned by the caller. */
GArray *alone_adam_ms(const struct trace *trace);
