/* The folder of a run: run.ini, losses.csv and memory.csv from the first step on; at its end trace.rank<N>.json, trace.host.json, loads.csv
 * and places.csv. Of several processes, which share the folder, each writes the traces of its GPUs and of its host, and the first one the rest. */
#pragma once

#include "record.h"

#include <stdbool.h>

struct folder;

/* What came of one step. */
struct run_step {
	uint64_t step;                /* from 0 */
	double loss;                  /* mean cross entropy of the step's tokens, nats */
	double tokens_per_s, step_ms; /* from the end of the step before, or from its beginning where that had ended by then */
	const char *bound_by;         /* the stream that was busiest, "host_launch" where that is launching; borrowed, static */
};

/* Bytes in use at a step's end: of each GPU's arena, of the processes, and of the expert files. */
struct run_memory {
	const uint64_t *hbm_bytes; /* (G) */
	uint64_t host_bytes, ssd_bytes, pinned_bytes, pageable_bytes;
};

/* Makes the folder with its run.ini, which starts with `head`, whole lines. This process has the GPUs first .. end - 1. The scenario is borrowed and
 * must outlive the folder. ESMOE_ERROR_INPUT: cannot be written. Owned by the caller. */
struct folder *folder_new(const char *path, const struct scenario *sc, const char *head, int first, int end,
                          GError **error) G_GNUC_WARN_UNUSED_RESULT;
void folder_free(struct folder *f);
AUTOPTR(folder)

/* Appends a step's rows: "step,loss,tokens_per_s,step_ms" and, a row a GPU, "step,gpu,hbm_bytes,host_bytes,ssd_bytes,pinned_bytes,pageable_bytes". */
bool folder_step(struct folder *f, const struct run_step *s, const struct run_memory *m, GError **error) G_GNUC_WARN_UNUSED_RESULT;

/* Writes the trace and the loads of the recorded steps, where experts were before, and run.ini as the scenario is now: how fast CPU Adam was is known
 * at the end. */
bool folder_finish(struct folder *f, const struct record *r, GError **error) G_GNUC_WARN_UNUSED_RESULT;
