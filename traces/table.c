/* Each cell is kept twice: as it is shown and as it is exact. Times are written from their integers, so that CSV and JSON lose nothing. */
#include "table.h"

#include "model/error.h"

#include <string.h>

struct cell {
	char *shown, *exact; /* NULL: no value */
	bool is_text;
};

struct table {
	const char *const *columns;
	guint n_columns;
	GArray *cells;
};

static void cell_clear(gpointer data)
{
	struct cell *cell = data;

	g_free(cell->shown);
	g_free(cell->exact);
}

bool table_form_parse(const char *word, enum table_form *form, GError **error)
{
	static const char *const words[] = {"table", "csv", "json", NULL};

	for (int i = 0; words[i]; i++)
		if (!word || strcmp(word, words[i]) == 0) {
			*form = (enum table_form)i;
			return true;
		}
	g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_USAGE, "--format: '%s' is not one of table, csv, json", word);
	return false;
}

struct table *table_new(const char *const *columns)
{
	struct table *table = g_new0(struct table, 1);

	table->columns = columns;
	while (columns[table->n_columns])
		table->n_columns++;
	table->cells = g_array_new(FALSE, FALSE, sizeof(struct cell));
	g_array_set_clear_func(table->cells, cell_clear);
	return table;
}

void table_free(struct table *table)
{
	if (!table)
		return;
	g_array_unref(table->cells);
	g_free(table);
}

static void add(struct table *table, char *shown, char *exact, bool is_text)
{
	struct cell cell = {shown, exact, is_text};

	g_array_append_val(table->cells, cell);
}

void table_text(struct table *table, const char *text)
{
	add(table, g_strdup(text), g_strdup(text), true);
}

void table_count(struct table *table, uint64_t n)
{
	add(table, g_strdup_printf("%" G_GUINT64_FORMAT, n), g_strdup_printf("%" G_GUINT64_FORMAT, n), false);
}

/* `v` in units of 10^-decimals. */
static char *fixed(int64_t v, int decimals)
{
	uint64_t u = v < 0 ? -(uint64_t)v : (uint64_t)v, unit = 1;

	for (int i = 0; i < decimals; i++)
		unit *= 10;
	return g_strdup_printf("%s%" G_GUINT64_FORMAT ".%0*" G_GUINT64_FORMAT, v < 0 ? "-" : "", u / unit, decimals, u % unit);
}

void table_ms(struct table *table, nsec_t ns)
{
	add(table, fixed((ns + (ns < 0 ? -500 : 500)) / 1000, 3), fixed(ns, 6), false);
}

void table_print_ms(GString *out, nsec_t ns)
{
	g_autofree char *text = fixed(ns, 6);

	g_string_append(out, text);
}

static char *quotient(double part, double whole, int decimals)
{
	char format[16], number[G_ASCII_DTOSTR_BUF_SIZE];

	g_snprintf(format, sizeof(format), "%%.%df", decimals);
	return g_strdup(g_ascii_formatd(number, sizeof(number), format, part / whole));
}

void table_nothing(struct table *table)
{
	add(table, g_strdup("-"), NULL, false);
}

void table_percent(struct table *table, nsec_t part, nsec_t whole)
{
	if (whole == 0)
		table_nothing(table);
	else
		add(table, quotient(100.0 * (double)part, (double)whole, 1), quotient(100.0 * (double)part, (double)whole, 4), false);
}

void table_ratio(struct table *table, nsec_t part, nsec_t whole)
{
	if (whole == 0)
		table_nothing(table);
	else
		add(table, quotient((double)part, (double)whole, 3), quotient((double)part, (double)whole, 6), false);
}

static const struct cell *cell_at(const struct table *table, guint row, guint column)
{
	return &g_array_index(table->cells, struct cell, row * table->n_columns + column);
}

static guint rows_of(const struct table *table)
{
	g_assert(table->cells->len % table->n_columns == 0);
	return table->cells->len / table->n_columns;
}

static void append_aligned(GString *out, const char *text, int width, bool left)
{
	g_string_append_printf(out, left ? "%-*s" : "%*s", width, text);
}

static void print_column(const struct table *table, guint column, GPtrArray *lines)
{
	g_autofree char *title = g_strdelimit(g_strdup(table->columns[column]), "_", ' ');
	bool left = rows_of(table) > 0 && cell_at(table, 0, column)->is_text;
	int width = (int)strlen(title);

	for (guint row = 0; row < rows_of(table); row++)
		width = MAX(width, (int)strlen(cell_at(table, row, column)->shown));
	for (guint line = 0; line < lines->len; line++) {
		GString *to = g_ptr_array_index(lines, line);

		if (to->len > 0)
			g_string_append(to, "  ");
		append_aligned(to, line == 0 ? title : cell_at(table, line - 1, column)->shown, width, left);
	}
}

static void free_line(gpointer line)
{
	g_string_free(line, TRUE);
}

static void print_text(const struct table *table, GString *out)
{
	g_autoptr(GPtrArray) lines = g_ptr_array_new_with_free_func(free_line);

	for (guint line = 0; line <= rows_of(table); line++)
		g_ptr_array_add(lines, g_string_new(NULL));
	for (guint column = 0; column < table->n_columns; column++)
		if (table->columns[column][0] != '.')
			print_column(table, column, lines);
	for (guint line = 0; line < lines->len; line++) {
		g_string_append(out, g_strchomp(((GString *)g_ptr_array_index(lines, line))->str));
		g_string_append_c(out, '\n');
	}
}

static const char *key_of(const struct table *table, guint column)
{
	return table->columns[column] + (table->columns[column][0] == '.');
}

static void print_csv(const struct table *table, GString *out)
{
	for (guint column = 0; column < table->n_columns; column++)
		g_string_append_printf(out, "%s%s", column > 0 ? "," : "", key_of(table, column));
	g_string_append_c(out, '\n');
	for (guint row = 0; row < rows_of(table); row++) {
		for (guint column = 0; column < table->n_columns; column++)
			g_string_append_printf(out, "%s%s", column > 0 ? "," : "", cell_at(table, row, column)->exact ?: "");
		g_string_append_c(out, '\n');
	}
}

/* Texts are our own words: nothing to escape. */
static void print_json(const struct table *table, GString *out)
{
	g_string_append_c(out, '[');
	for (guint row = 0; row < rows_of(table); row++) {
		g_string_append(out, row > 0 ? ",\n  {" : "\n  {");
		for (guint column = 0; column < table->n_columns; column++) {
			const struct cell *cell = cell_at(table, row, column);
			const char *quote = cell->is_text ? "\"" : "";

			g_string_append_printf(out, "%s\"%s\": %s%s%s", column > 0 ? ", " : "", key_of(table, column), quote, cell->exact ?: "null",
			                       quote);
		}
		g_string_append_c(out, '}');
	}
	g_string_append(out, "\n]");
}

void table_print(const struct table *table, enum table_form form, GString *out)
{
	static void (*const forms[])(const struct table *, GString *) = {print_text, print_csv, print_json};

	forms[form](table, out);
}
