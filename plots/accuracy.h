/* How well runs were predicted: measured against predicted times, and the two timelines one above the other. */
#pragma once

#include "csv.h"
#include "traces/trace.h"

/* Rows of `esmoe validate --format csv` (columns of, name, measured_ms, predicted_ms) as points on two logarithmic axes, with a band of 5 % around
 * equality. Rows without a measured or a predicted time are left out; no row at all is ESMOE_ERROR_INPUT. */
bool plot_accuracy(struct csv *const *files, int n, const char *out, GError **error) G_GNUC_WARN_UNUSED_RESULT;

/* The same step of both traces, the one whose measured time is the median, a row a stream, on one scale of time. ESMOE_ERROR_INPUT: of different
 * GPUs. */
bool plot_accuracy_timelines(const struct trace *measured, const struct trace *predicted, const char *out, GError **error) G_GNUC_WARN_UNUSED_RESULT;
