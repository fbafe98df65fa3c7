/* Reading CSV (RFC 4180: commas, optional double quotes, one header line) as the project's own commands write it. Strict: what is not understood is
 * an error that names file, line, column and value. */
#pragma once

#include "model/autoptr.h"

#include <glib.h>
#include <stdbool.h>

struct csv;

/* Every row has as many fields as the header, which is not empty and names no column twice; text is UTF-8 without NUL; a field is on one line; the
 * last line ends (a torn file does not). NULL on error (ESMOE_ERROR_INPUT). Owned by the caller. */
struct csv *csv_read(const char *file, GError **error) G_GNUC_WARN_UNUSED_RESULT;
/* The same from memory; `file` is what errors call it. */
struct csv *csv_parse(const char *text, size_t length, const char *file, GError **error) G_GNUC_WARN_UNUSED_RESULT;
void csv_free(struct csv *csv);
AUTOPTR(csv)

int csv_rows(const struct csv *csv);
/* The column of that name, or -1 with an error that lists the file's columns. */
int csv_column(const struct csv *csv, const char *name, GError **error) G_GNUC_WARN_UNUSED_RESULT;
/* A field, row from 0 without the header. Borrowed. */
const char *csv_text(const struct csv *csv, int row, int column);
/* A finite decimal number of min..max, or false with an error. */
bool csv_number(const struct csv *csv, int row, int column, double min, double max, double *value, GError **error) G_GNUC_WARN_UNUSED_RESULT;
/* The same for whole numbers. */
bool csv_whole(const struct csv *csv, int row, int column, guint64 min, guint64 max, guint64 *value, GError **error) G_GNUC_WARN_UNUSED_RESULT;
/* Sets an error about one field, worded "FILE:LINE: COLUMN 'VALUE': WHAT"; returns false. */
bool csv_complain(const struct csv *csv, int row, int column, const char *what, GError **error);
