/* What waiting costs, as a run's spans show it. */
#pragma once

#include "traces/trace.h"

struct waits {
	GArray *sync_us;     /* double: from a gate's end to the start of what was launched with its counts */
	GArray *sync_all_us; /* double: the same after the exchange of counts of several GPUs */
	GArray *event_us;    /* double: from a predecessor's end on another stream to the start of what waited for it alone */
	GArray *wake_us; /* double: from the end of a stage to the next one of its stream, which waited for nothing else, over the streams that the
	                  * first one's end woke */
	GArray *next_us; /* double: the same between computations, the first of which woke nobody */
};

/* Of a run of one GPU all but sync_all_us; of one of several GPUs, which wait for each other, that alone. */
void waits_add(struct waits *w, const struct trace *trace);
