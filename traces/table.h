/* Rows for people, spreadsheets and programs: one filling, three forms. Columns are keys such as busy_ms; a table shows them with spaces. */
#pragma once

#include "model/autoptr.h"
#include "model/units.h"

#include <glib.h>
#include <stdbool.h>

struct table;
enum table_form { TABLE_TEXT, TABLE_CSV, TABLE_JSON };

/* "table", "csv", "json"; NULL is a table. ESMOE_ERROR_USAGE names the three. */
bool table_form_parse(const char *word, enum table_form *form, GError **error) G_GNUC_WARN_UNUSED_RESULT;

/* `columns` is borrowed and NULL-terminated. A column whose key begins with '.' is left out of the text form. Owned by the caller. */
struct table *table_new(const char *const *columns);
void table_free(struct table *table);
AUTOPTR(table)

/* Cells, row by row. Milliseconds have three decimals for people and six, exact to the nanosecond, elsewhere. A percentage or ratio of nothing is
 * '-', empty or null. */
void table_text(struct table *table, const char *text);
void table_count(struct table *table, uint64_t n);
void table_ms(struct table *table, nsec_t ns);
void table_percent(struct table *table, nsec_t part, nsec_t whole);
void table_nothing(struct table *table);
void table_ratio(struct table *table, nsec_t part, nsec_t whole);

/* Appends the whole; JSON is an array of objects without a line end. */
void table_print(const struct table *table, enum table_form form, GString *out);
/* Milliseconds with six decimals. */
void table_print_ms(GString *out, nsec_t ns);
