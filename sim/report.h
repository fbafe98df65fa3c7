/* Rows as text: the CSV and JSON of predict, compare and sweep, with the same names in both, and the tables for people. GiB are of the fullest GPU or
 * node. */
#pragma once

#include "grid.h"

/* A word for --format. */
enum format { FORMAT_TABLE, FORMAT_CSV, FORMAT_JSON };
/* NULL is a table. */
bool format_parse(const char *word, enum format *format, GError **error) G_GNUC_WARN_UNUSED_RESULT;

/* Columns of a row, the line end included. */
const char *report_csv_header(void);
void report_csv(GString *out, const struct row *row);
/* The row as one object, without a line end. */
void report_json(GString *out, const struct row *row);

/* n rows that differ in the policy only: one line each, the fastest marked with * and the ratio to it. At most 80 columns wide for names of presets.
 */
void report_policies(GString *out, const struct row *rows, int n);
/* n rows in grid order, policies as columns, each with tokens/s and the ratio to the fastest, marked with *. At most 80 columns wide for names of
 * presets. */
void report_matrix(GString *out, const struct row *rows, int n, int policies);

/* Bytes by tier and class: "tier,class,bytes,room", room on each line of a tier. */
void report_memory_csv(GString *out, const struct memory *m);
