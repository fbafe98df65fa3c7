/* Figures of results that have just been made: what `esmoe plot` would draw from their files. */
#pragma once

#include "traces/trace.h"

#include <stdbool.h>

/* The trace as `esmoe plot timeline -o out`. */
bool figure_timeline(const struct trace *trace, const char *out, GError **error) G_GNUC_WARN_UNUSED_RESULT;
/* The CSV of a sweep as `esmoe plot throughput -o out`. */
bool figure_throughput(const char *csv_path, const char *out, GError **error) G_GNUC_WARN_UNUSED_RESULT;
/* The same for a CSV that is not in a file. */
bool figure_throughput_text(const char *csv, const char *out, GError **error) G_GNUC_WARN_UNUSED_RESULT;
