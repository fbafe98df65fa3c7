/* What launching and waiting cost the host and streams, as a run's spans show it. */
#pragma once

#include "traces/trace.h"

#include <stdbool.h>

struct waits {
	GArray *sync_us;                      /* double: from a gate's end to the host launching what it launches with its counts, CPU Adam at rest */
	GArray *sync_all_us;                  /* double: the same after the exchange of counts of several GPUs */
	GArray *first_us;                     /* double: so much longer than its like took that launch after a gate */
	GArray *sync_adam_us, *first_adam_us; /* double: while CPU Adam works */
	GArray *event_us;                     /* double: from a predecessor's end on another stream to the start of what waited for it alone */
	GArray *wake_us; /* double: from the end of a stage to the next one of its stream, which waited for nothing else, over the streams that the
	                  * first one's end woke */
	GArray *next_us; /* double: the same between computations, the first of which woke nobody */
	GArray *launch_us[2][N_STAGE_KINDS]; /* double: launches of computations of a forward pass, CPU Adam at rest and at work */
};
void waits_init(struct waits *w);
void waits_clear(struct waits *w);

/* Of a run of one GPU what streams wait for each other, and the launches. Not the former of one whose steps overlap: there streams wait for more than
 * their predecessors. */
void waits_add_streams(struct waits *w, const struct trace *trace);
void waits_add_launches(struct waits *w, const struct trace *trace);
/* What the host waits for gates, or for the counts of several GPUs. */
void waits_add_syncs(struct waits *w, const struct trace *trace);
/* Of launches beside CPU Adam over those without: the middle over the kinds of stages that have both; 1: none has. */
double waits_adam_slowdown(const struct waits *w);
