/* The end of a step, at which all processes of a run tell each other what each of them knows. */
#pragma once

#include "model/autoptr.h"
#include "model/units.h"

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

struct ranks;

/* Of this process at first; then of all of them together. */
struct round {
	float *loss;                                                  /* (G) what each GPU adds to the mean loss */
	uint64_t *hbm_bytes;                                          /* (G) */
	uint64_t host_bytes, ssd_bytes, pinned_bytes, pageable_bytes; /* sums */
	nsec_t step_ns;                                               /* the longest */
	nsec_t busy_ns;                                               /* the longest that anything was busy in the step */
	int busiest;                                                  /* which, as the caller counts */
	int signal;                                                   /* that someone was sent; 0: none */
};
void round_init(struct round *r, int gpus);
void round_clear(struct round *r);
/* Bytes of this process and of the files in folder `ssd` (NULL: none); 0 where the system does not tell. */
void round_used(struct round *r, const char *ssd);

/* A collective begins for all its members when the last one has come, perhaps in another process: spans (struct span, by id) of this process's
 * members of the step's collectives, each of all GPUs, begin then. Clocks are compared by the collectives' ends, which all members see together. */
bool round_align(GArray *spans, struct ranks *ranks, GError **error) G_GNUC_WARN_UNUSED_RESULT;

/* This process has the GPUs first .. end - 1 of `gpus`. ranks NULL: there is no other, and nothing to do. */
bool round_meet(struct round *r, struct ranks *ranks, int gpus, int first, int end, GError **error) G_GNUC_WARN_UNUSED_RESULT;
