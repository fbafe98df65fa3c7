/* Learning curves: the loss of each run over its steps. */
#pragma once

#include "csv.h"

struct losses_input {
	const char *name;
	const struct csv *csv;
};

/* Rows as a run's losses.csv has them (columns step and loss; steps ascend; others are not looked at). Later runs are drawn narrower over earlier
 * ones, so that equal curves all show. */
bool plot_losses(const struct losses_input *runs, int n, const char *out, GError **error) G_GNUC_WARN_UNUSED_RESULT;
