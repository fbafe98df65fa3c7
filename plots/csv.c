/* One pass over the text: fields are unquoted in place into one buffer, rows are equal stretches of one array of pointers into it. */
#include "csv.h"
#include "model/error.h"

#include <math.h>
#include <string.h>

#define SHOWN_LETTERS 32 /* of a wrong value, in an error */

struct csv {
	char *file, *text;
	int n_columns;
	GPtrArray *fields; /* (rows + 1, n_columns), the header first; into text */
	GArray *lines;     /* guint, the line of each row */
};

struct reader {
	struct csv *csv;
	char *at, *end;
	guint line;
	int column; /* of the field being read, from 0 */
};

void csv_free(struct csv *csv)
{
	if (!csv)
		return;
	g_free(csv->file);
	g_free(csv->text);
	g_ptr_array_unref(csv->fields);
	g_array_unref(csv->lines);
	g_free(csv);
}

static bool fail(const struct reader *r, const char *what, GError **error)
{
	g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_INPUT, "%s:%u: field %d: %s", r->csv->file, r->line, r->column + 1, what);
	return false;
}

/* Moves a quoted field's letters over its quotes; at ends behind the closing quote. */
static bool quoted_field(struct reader *r, char **field_end, GError **error)
{
	char *to = r->at++;

	for (;;) {
		if (r->at == r->end || *r->at == '\n')
			return fail(r, "a quoted field does not end on its line", error);
		if (*r->at == '"') {
			r->at++;
			if (r->at == r->end || *r->at != '"')
				break;
		}
		*to++ = *r->at++;
	}
	*field_end = to;
	return true;
}

static bool plain_field(struct reader *r, char **field_end, GError **error)
{
	while (r->at < r->end && *r->at != ',' && *r->at != '\n' && *r->at != '\r') {
		if (*r->at == '"')
			return fail(r, "a quote inside a field that does not begin with one", error);
		r->at++;
	}
	*field_end = r->at;
	return true;
}

/* Reads a field with what ends it; *last says whether it ended the line. */
static bool field_read(struct reader *r, bool *last, GError **error)
{
	char *field = r->at, *field_end = field;
	bool ok = r->at < r->end && *r->at == '"' ? quoted_field(r, &field_end, error) : plain_field(r, &field_end, error);
	bool carriage_return;

	if (!ok)
		return false;
	carriage_return = r->at < r->end && *r->at == '\r';
	r->at += carriage_return;
	if (r->at == r->end)
		return fail(r, "the file is cut off: its last line has no end", error);
	*last = *r->at == '\n';
	if (!*last && (*r->at != ',' || carriage_return))
		return fail(r, "something stands between the end of the field and the comma", error);
	r->at++;
	*field_end = '\0';
	g_ptr_array_add(r->csv->fields, field);
	return true;
}

static bool row_read(struct reader *r, GError **error)
{
	bool last = false;

	for (r->column = 0; !last; r->column++) {
		if (r->csv->n_columns && r->column == r->csv->n_columns)
			return fail(r, "more fields than the header has", error);
		if (!field_read(r, &last, error))
			return false;
	}
	if (r->csv->n_columns && r->column < r->csv->n_columns) {
		r->column--;
		return fail(r, "the line ends here: fewer fields than the header has", error);
	}
	return true;
}

static bool header_read(struct reader *r, GError **error)
{
	g_autoptr(GHashTable) seen = g_hash_table_new(g_str_hash, g_str_equal);

	if (!row_read(r, error))
		return false;
	r->csv->n_columns = (int)r->csv->fields->len;
	for (r->column = 0; r->column < r->csv->n_columns; r->column++) {
		char *name = g_ptr_array_index(r->csv->fields, r->column);

		if (!*name)
			return fail(r, "the header has a column without a name", error);
		if (!g_hash_table_add(seen, name))
			return fail(r, "the header names this column twice", error);
	}
	return true;
}

static bool text_check(const char *text, size_t length, const char *file, GError **error)
{
	const char *bad;
	guint line = 1;

	if (length > 0 && g_utf8_validate_len(text, length, &bad))
		return true;
	for (const char *c = text; length > 0 && c < bad; c++)
		line += *c == '\n';
	g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_INPUT,
	            length ? "%s:%u: not text: CSV in UTF-8 is expected" : "%s: an empty file: CSV with a header line is expected", file, line);
	return false;
}

struct csv *csv_parse(const char *text, size_t length, const char *file, GError **error)
{
	g_autoptr(csv) csv = NULL;
	struct reader r;

	if (!text_check(text, length, file, error))
		return NULL;
	csv = g_new0(struct csv, 1);
	csv->file = g_strdup(file);
	csv->text = g_strndup(text, length);
	csv->fields = g_ptr_array_new();
	csv->lines = g_array_new(FALSE, FALSE, sizeof(guint));
	r = (struct reader){.csv = csv, .at = csv->text, .end = csv->text + length, .line = 1};
	if (g_str_has_prefix(r.at, "\xEF\xBB\xBF")) /* the mark that spreadsheets put first */
		r.at += 3;
	if (!header_read(&r, error))
		return NULL;
	while (r.at < r.end) {
		r.line++;
		if (!row_read(&r, error))
			return NULL;
		g_array_append_val(csv->lines, r.line);
	}
	return g_steal_pointer(&csv);
}

struct csv *csv_read(const char *file, GError **error)
{
	g_autofree char *text = NULL;
	g_autoptr(GError) cause = NULL;
	gsize length;

	if (!g_file_get_contents(file, &text, &length, &cause)) {
		g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_INPUT, "%s", cause->message);
		return NULL;
	}
	return csv_parse(text, length, file, error);
}

int csv_rows(const struct csv *csv)
{
	return (int)csv->lines->len;
}

int csv_column(const struct csv *csv, const char *name, GError **error)
{
	g_autoptr(GString) has = g_string_new(NULL);

	for (int i = 0; i < csv->n_columns; i++) {
		const char *column = g_ptr_array_index(csv->fields, i);

		if (!strcmp(column, name))
			return i;
		if (i < 16)
			g_string_append_printf(has, "%s%s", i ? ", " : "", column);
	}
	if (g_utf8_strlen(has->str, -1) > 200)
		*g_utf8_offset_to_pointer(has->str, 200) = '\0';
	g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_INPUT, "%s:1: no column '%s': the file has %s", csv->file, name, has->str);
	return -1;
}

const char *csv_text(const struct csv *csv, int row, int column)
{
	return g_ptr_array_index(csv->fields, (row + 1) * csv->n_columns + column);
}

bool csv_complain(const struct csv *csv, int row, int column, const char *what, GError **error)
{
	const char *value = csv_text(csv, row, column);
	g_autofree char *shown = g_utf8_strlen(value, -1) > SHOWN_LETTERS ? g_utf8_substring(value, 0, SHOWN_LETTERS) : g_strdup(value);

	for (char *c = shown; *c; c++)
		if (g_ascii_iscntrl(*c))
			*c = '?';
	g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_INPUT, "%s:%u: %s '%s': %s", csv->file, g_array_index(csv->lines, guint, row),
	            csv_text(csv, -1, column), shown, what);
	return false;
}

bool csv_number(const struct csv *csv, int row, int column, double min, double max, double *value, GError **error)
{
	const char *text = csv_text(csv, row, column);
	g_autofree char *what = NULL;
	char *end;

	/* strtod also takes blanks, hexadecimal, nan and inf; none of them is a number here */
	*value = g_ascii_strtod(text, &end);
	if (*text && strspn(text, "+-.0123456789eE") == strlen(text) && !*end && isfinite(*value) && *value >= min && *value <= max)
		return true;
	what = max < G_MAXDOUBLE ? g_strdup_printf("a number from %g to %g is expected", min, max)
	                         : g_strdup_printf("a number of %g or more is expected", min);
	return csv_complain(csv, row, column, what, error);
}

bool csv_whole(const struct csv *csv, int row, int column, guint64 min, guint64 max, guint64 *value, GError **error)
{
	g_autofree char *what = NULL;

	if (g_ascii_string_to_unsigned(csv_text(csv, row, column), 10, min, max, value, NULL))
		return true;
	what = g_strdup_printf("a whole number from %" G_GUINT64_FORMAT " to %" G_GUINT64_FORMAT " is expected", min, max);
	return csv_complain(csv, row, column, what, error);
}
