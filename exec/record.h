/* The last steps of a run as they were: spans, loads, ends. A long run keeps a bounded number of them. */
#pragma once

#include "model/schedule.h"
#include "traces/trace.h"

struct record;

/* Keeps the last `keep` steps of `microbatches` each. The scenario is borrowed. Owned by the caller. */
struct record *record_new(const struct scenario *sc, int microbatches, int keep);
void record_free(struct record *r);
AUTOPTR(record)

/* One step from start_ns, where the one before ended or later, to end_ns, whose first stage is `first`: its spans, of all GPUs or of those of this
 * process (struct span). What is in it is taken over. */
struct recorded_step {
	stage_id first;
	nsec_t start_ns, end_ns;
	GArray *spans;
	uint32_t *tokens;            /* (microbatches, MoE layers, G, E of the layer) of its gates; g_free */
	uint64_t *hbm_bytes;         /* (G) used of each arena at its end; g_free */
	struct expert_place *places; /* (all experts), as schedule_places gave them before it; NULL: unknown; g_free */
};
void record_step(struct record *r, const struct recorded_step *step);

/* Better times of stages, as far as their steps are kept. */
void record_exact(struct record *r, const GArray *spans);

int record_steps(const struct record *r); /* kept */

/* The kept steps as one trace from time 0, where the first stage of them was launched or, before that, the step before ended; step 0 and stage 0;
 * what a run did between two steps (checkpoints) is left out. Owned by the caller. */
struct trace *record_trace(const struct record *r);

/* Where experts were before the first of them, as "layer,expert,last,pinned"; false: nobody knows. */
bool record_places(const struct record *r, GString *out);

/* Appends their loads as "microbatch,layer,gpu,expert,tokens"; micro-batches count through: step * microbatches + micro-batch. */
void record_loads(const struct record *r, GString *out);
