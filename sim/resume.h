/* What a sweep that was interrupted left in its CSV. */
#pragma once

#include "grid.h"

/* Counts in *rows the whole rows of `grid` that the text holds from the grid's first on, and in *whole_bytes the bytes up to the end of the last;
 * what follows is a torn line. Both are 0 for an empty text and for a torn header. False with `path` and the line when the text is no such CSV. */
bool resume_rows(const char *path, const char *text, gsize length, const struct grid *grid, int *rows, gsize *whole_bytes,
                 GError **error) G_GNUC_WARN_UNUSED_RESULT;
