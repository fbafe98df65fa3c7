/* A what-if grid: every model x machine x GPU count x expert count x policy, simulated on all cores and delivered in that order. */
#pragma once

#include "model/whatif.h"
#include "predict.h"

enum status { STATUS_OK, STATUS_OOM_HBM, STATUS_OOM_DRAM, STATUS_OOM_SSD, STATUS_INVALID, N_STATUSES };
const char *status_name(int status); /* "ok", "oom_hbm", ... */

#define DIGEST_CHARS 12

/* One point of the grid and what came of it. */
struct row {
	const char *policy, *model, *machine; /* names without folder and .ini, borrowed */
	int gpus, experts;
	int status;                    /* enum status */
	char digest[DIGEST_CHARS + 1]; /* of every input of the prediction; "" when they do not make a scenario */
	struct prediction prediction;  /* STATUS_OK only */
	char *why;                     /* otherwise: the error in words, owned */
};
void row_clear(struct row *row);

/* How predictions are made: options of predict, compare and sweep alike. */
struct how {
	char *steps_given, *threads_given;
	gboolean no_launch, no_sync, no_event, no_sharing;
	int steps, threads; /* filled by how_check */
};
void how_add(struct how *how, GOptionContext *context);
bool how_check(struct how *how, const struct whatif *w, GError **error) G_GNUC_WARN_UNUSED_RESULT;
void how_clear(struct how *how);

/* Simulates one scenario as `how` says: fills the row's digest, status and prediction. False with the reason unless the status is ok. `trace` may be
 * NULL; otherwise it receives all steps and their description. */
bool row_predict(struct row *row, const struct scenario *s, const struct how *how, struct trace *trace, GError **error) G_GNUC_WARN_UNUSED_RESULT;

struct grid;

/* Checks every model, machine and policy with at least one of the asked GPU and expert counts, so that a misspelt name or key is an error at once; a
 * single impossible point is a row with STATUS_INVALID. Borrows `w` and `how`. NULL on error. Owned by the caller. */
struct grid *grid_new(const struct whatif *w, const struct how *how, GError **error) G_GNUC_WARN_UNUSED_RESULT;
void grid_free(struct grid *grid);
AUTOPTR(grid)

int grid_rows(const struct grid *grid);
int grid_policies(const struct grid *grid); /* rows that differ in the policy only follow each other */

/* Names, counts and digest of row `i`, without predicting it. */
void grid_identify(const struct grid *grid, int i, struct row *row);

/* Predicts rows first..last and hands each to `deliver`, in order and in the calling thread; deliver may keep *row by copying and zeroing it. Shows
 * progress when stderr is a terminal. On SIGINT or SIGTERM finishes the rows under way, delivers those in order, and fails with ESMOE_ERROR_SIGNAL +
 * the signal; a second signal kills. */
bool grid_run(const struct grid *grid, int first, bool (*deliver)(struct row *row, void *user, GError **error), void *user,
              GError **error) G_GNUC_WARN_UNUSED_RESULT;
