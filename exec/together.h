/* What processes that train together settle before the first step, and that the end of one is the end of all. ranks NULL: there is no other, and
 * nothing to do. */
#pragma once

#include "ranks.h"
#include "run.h"

/* Of this process: GPUs first .. end - 1. */
struct together {
	struct ranks *ranks; /* owned by the caller (ranks_free); NULL: alone */
	int first, end;
};
/* ESMOE_ERROR_USAGE: as many processes as were started are not one a node. */
bool together_join(const struct scenario *sc, const struct run_options *o, struct together *out, GError **error) G_GNUC_WARN_UNUSED_RESULT;

/* Whether *flag is set in all of them: all let nothing run at the same steps. */
bool together_all(struct ranks *ranks, bool *flag, GError **error) G_GNUC_WARN_UNUSED_RESULT;
/* Each looks for the checkpoint itself, in the folder or file `resume`: all must have found that of the same step. */
bool together_same_step(struct ranks *ranks, uint64_t step, const char *resume, GError **error) G_GNUC_WARN_UNUSED_RESULT;

/* What ended this process ends the others; what ended them is this one's error. */
void together_fail(struct ranks *ranks, GError **error);
