/* Writing a struct as an .ini by its table of keys: what ini_read takes back as the same struct, so numbers keep every digit that matters. */
#include "ini.h"

#include <string.h>

/* The shortest of 15 or 17 digits that reads back as the same number. */
static void append_number(GString *s, double value)
{
	char text[G_ASCII_DTOSTR_BUF_SIZE];

	g_ascii_formatd(text, sizeof text, "%.15g", value);
	if (g_ascii_strtod(text, NULL) != value)
		g_ascii_dtostr(text, sizeof text, value);
	g_string_append(s, text);
}

static void append_value(GString *s, const struct ini_key *k, const void *field)
{
	const struct ini_doubles *numbers = field;
	const struct ini_ints *whole = field;
	int word;

	switch (k->type) {
	case INI_STRING:
		g_string_append(s, *(char *const *)field);
		return;
	case INI_INT:
		word = *(const int *)field - (int)k->min;
		if (k->choices && word < (int)g_strv_length((char **)k->choices))
			g_string_append(s, k->choices[word]);
		else
			g_string_append_printf(s, "%d", *(const int *)field);
		return;
	case INI_DOUBLE:
		append_number(s, *(const double *)field);
		return;
	case INI_BOOL:
		g_string_append(s, *(const bool *)field ? "true" : "false");
		return;
	case INI_CHOICE:
		g_string_append(s, k->choices[*(const int *)field]);
		return;
	case INI_INT_LIST:
		for (int i = 0; i < whole->n; i++)
			g_string_append_printf(s, "%s%d", i ? ", " : "", whole->v[i]);
		return;
	case INI_DOUBLE_LIST:
		for (int i = 0; i < numbers->n; i++) {
			g_string_append(s, i ? ", " : "");
			append_number(s, numbers->v[i]);
		}
		return;
	}
}

char *ini_text(const struct ini_key *key, const void *in)
{
	GString *text = g_string_new(NULL);
	append_value(text, key, (const char *)in + key->offset);
	return g_string_free(text, FALSE);
}

char *ini_write(const struct ini_key *keys, size_t n_keys, const void *in)
{
	g_autoptr(GKeyFile) values = g_key_file_new();

	for (size_t i = 0; i < n_keys; i++) {
		const struct ini_key *k = &keys[i];
		g_autofree char *words = k->choices ? g_strjoinv(" | ", (char **)k->choices) : NULL;
		g_autofree char *comment = g_strconcat(" ", k->help, words ? (k->type == INI_INT ? "; or " : ": ") : NULL, words, NULL);
		g_autofree char *text = ini_text(k, in);

		if (k->type == INI_STRING)
			g_key_file_set_string(values, k->section, k->key, text);
		else
			g_key_file_set_value(values, k->section, k->key, text);
		g_key_file_set_comment(values, k->section, k->key, comment, NULL);
	}
	return g_key_file_to_data(values, NULL, NULL);
}
