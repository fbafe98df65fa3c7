/* The rows that sweep and compare write, as far as figures look at them. */
#pragma once

#include "csv.h"

enum sweep_status { SWEEP_OK, SWEEP_OOM, SWEEP_INVALID };

/* Texts are borrowed from the file. */
struct sweep_row {
	const char *policy, *model, *machine;
	guint64 gpus, experts;
	double tokens_per_s; /* SWEEP_OK only */
	enum sweep_status status;
	double dropped; /* share of routed tokens that no expert saw; 0 where the file does not say */
};

/* Appends a file's rows (struct sweep_row), by the names of its columns; others are not looked at. */
bool sweep_rows_read(const struct csv *csv, GArray *rows, GError **error) G_GNUC_WARN_UNUSED_RESULT;

/* Where a name stands in an array of owned names, to which it is added when it is new. */
int name_index(GPtrArray *names, const char *name);
