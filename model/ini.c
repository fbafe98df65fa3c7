/* Reading .ini files by a table of keys. GKeyFile reads the values; a scan of the same text before it does what GKeyFile cannot: it remembers the
 * line of every section and key, so that each error names one, and it refuses what GKeyFile would pass over - repeated, unknown and malformed lines.
 *
 *     source --> text --> scan: lines, unknown names --> GKeyFile: values --> fields of the struct, by the table
 *
 * One file may hold a whole scenario, so sections of the project's other readers are let through unread. */
#include "ini.h"

#include "error.h"
#include "preset.h"

#include <math.h>
#include <string.h>

enum { WORD_MOST_CHARS = 60 };

/* Every section any reader of the project knows. */
static const char *const all_sections[] = {"network", "machine",  "gpu",        "pcie",   "nvlink",   "nic", "host", "fabric",
                                           "ssd",     "software", "contention", "policy", "scenario", "run", NULL};

struct reader {
	const char *file; /* as errors name it; NULL: a text without a file */
	const struct ini_key *keys;
	size_t n_keys;
	const char *const *overrides;
	GHashTable *lines; /* "section" and "section.key" -> line, by look-up only */
	GKeyFile *values;
};

static void reader_clear(struct reader *r)
{
	g_clear_pointer(&r->lines, g_hash_table_unref);
	g_clear_pointer(&r->values, g_key_file_free);
}

/* What a user wrote, fit for one line of an error. */
static char *quoted(const char *text)
{
	GString *s = g_string_new("'");
	int n = 0;

	for (const char *p = text; *p && n < WORD_MOST_CHARS; p = g_utf8_next_char(p), n++)
		g_string_append_unichar(s, g_unichar_isprint(g_utf8_get_char(p)) ? g_utf8_get_char(p) : '?');
	g_string_append(s, n == WORD_MOST_CHARS ? "...'" : "'");
	return g_string_free(s, FALSE);
}

G_GNUC_PRINTF(4, 5) static bool fail(GError **error, const char *file, int line, const char *format, ...)
{
	g_autofree char *message = NULL;
	va_list args;

	va_start(args, format);
	message = g_strdup_vprintf(format, args);
	va_end(args);
	if (file && line)
		g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_INPUT, "%s:%d: %s", file, line, message);
	else if (file)
		g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_INPUT, "%s: %s", file, message);
	else if (line)
		g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_INPUT, "line %d: %s", line, message);
	else
		g_set_error_literal(error, ESMOE_ERROR, ESMOE_ERROR_INPUT, message);
	return false;
}

/* "; did you mean 'x'?" or "; known: x, y, z". */
static char *suggestion(const char *word, const char *const *known)
{
	const char *nearest = nearest_word(word, known);
	g_autofree char *list = g_strjoinv(", ", (char **)known);

	return nearest ? g_strdup_printf("; did you mean '%s'?", nearest) : g_strdup_printf("; known: %s", list);
}

static bool is_own_section(const struct reader *r, const char *section)
{
	for (size_t i = 0; i < r->n_keys; i++)
		if (g_str_equal(r->keys[i].section, section))
			return true;
	return false;
}

/* [measured] and [measured_KIND_PASS] have one reader, which knows them all. */
static bool is_measured_of_others(const struct reader *r, const char *section)
{
	return g_str_has_prefix(section, "measured") && !is_own_section(r, "measured");
}

static char *suggested_section(const struct reader *r, const char *section)
{
	g_autoptr(GPtrArray) known = g_ptr_array_new();

	for (size_t i = 0; i < r->n_keys; i++)
		if (!i || !g_str_equal(r->keys[i].section, r->keys[i - 1].section))
			g_ptr_array_add(known, (char *)r->keys[i].section);
	for (const char *const *s = all_sections; *s; s++)
		if (!is_own_section(r, *s))
			g_ptr_array_add(known, (char *)*s);
	g_ptr_array_add(known, NULL);
	return suggestion(section, (const char *const *)known->pdata);
}

static const struct ini_key *find_key(const struct reader *r, const char *section, const char *key)
{
	for (size_t i = 0; i < r->n_keys; i++)
		if (g_str_equal(r->keys[i].section, section) && g_str_equal(r->keys[i].key, key))
			return &r->keys[i];
	return NULL;
}

static char *suggested_key(const struct reader *r, const char *section, const char *key)
{
	g_autoptr(GPtrArray) known = g_ptr_array_new();

	for (size_t i = 0; i < r->n_keys; i++)
		if (g_str_equal(r->keys[i].section, section))
			g_ptr_array_add(known, (char *)r->keys[i].key);
	g_ptr_array_add(known, NULL);
	return suggestion(key, (const char *const *)known->pdata);
}

static int line_of(const struct reader *r, const char *section, const char *key)
{
	g_autofree char *name = key ? g_strdup_printf("%s.%s", section, key) : g_strdup(section);

	return GPOINTER_TO_INT(g_hash_table_lookup(r->lines, name));
}

/* Enters a section or "section.key" at a line; false when it was there. */
static bool remember(struct reader *r, char *name_owned, int line, int *first)
{
	*first = GPOINTER_TO_INT(g_hash_table_lookup(r->lines, name_owned));
	if (*first) {
		g_free(name_owned);
		return false;
	}
	return g_hash_table_insert(r->lines, name_owned, GINT_TO_POINTER(line));
}

static bool scan_section(struct reader *r, char *text, int line, char **section, GError **error)
{
	size_t length = strlen(text);
	int first;

	if (text[length - 1] != ']') {
		g_autofree char *word = quoted(text);

		return fail(error, r->file, line, "%s does not end with ]", word);
	}
	text[length - 1] = '\0';
	g_free(*section);
	*section = g_strdup(text + 1);
	if (!is_own_section(r, *section) && !g_strv_contains(all_sections, *section) && !is_measured_of_others(r, *section)) {
		g_autofree char *word = quoted(*section), *advice = suggested_section(r, *section);

		return fail(error, r->file, line, "unknown section %s%s", word, advice);
	}
	if (!remember(r, g_strdup(*section), line, &first))
		return fail(error, r->file, line, "section [%s] again, first on line %d; one section of a name is accepted", *section, first);
	return true;
}

static bool scan_key(struct reader *r, char *text, int line, const char *section, GError **error)
{
	g_autofree char *word = quoted(text);
	char *equals = strchr(text, '=');
	int first;

	if (!equals || equals == text)
		return fail(error, r->file, line, "%s is not a [section], a 'key = value' or a # comment", word);
	if (!section)
		return fail(error, r->file, line, "%s stands before the first [section]", word);
	if (!is_own_section(r, section))
		return true;
	*equals = '\0';
	g_strchomp(text);
	if (!find_key(r, section, text)) {
		g_autofree char *key = quoted(text), *advice = suggested_key(r, section, text);

		return fail(error, r->file, line, "unknown key %s in [%s]%s", key, section, advice);
	}
	if (!remember(r, g_strdup_printf("%s.%s", section, text), line, &first))
		return fail(error, r->file, line, "%s.%s again, first on line %d; one value is accepted", section, text, first);
	return true;
}

static bool scan(struct reader *r, const char *text, GError **error)
{
	g_auto(GStrv) lines = g_strsplit(text, "\n", -1);
	g_autofree char *section = NULL;

	for (int i = 0; lines[i]; i++) {
		char *line = g_strstrip(lines[i]);

		if (*line == '\0' || *line == '#')
			continue;
		if (*line == '[' ? !scan_section(r, line, i + 1, &section, error) : !scan_key(r, line, i + 1, section, error))
			return false;
	}
	return true;
}

static bool is_number_text(const char *text)
{
	return *text && strspn(text, "+-.eE0123456789") == strlen(text);
}

static bool parse_number(const struct ini_key *k, const char *text, double *value)
{
	char *end;

	*value = g_ascii_strtod(text, &end);
	return is_number_text(text) && !*end && isfinite(*value) && *value >= k->min && *value <= k->max;
}

static bool parse_whole(const struct ini_key *k, const char *text, int *value)
{
	char *end;
	gint64 whole = g_ascii_strtoll(text, &end, 10);

	*value = (int)whole;
	return is_number_text(text) && !*end && whole >= G_MININT && whole <= G_MAXINT && whole >= k->min && whole <= k->max;
}

/* Parts of a list, comma or semicolon between them; an empty text is an empty list. */
static char **list_parts(const char *text)
{
	char **parts = *text ? g_strsplit_set(text, ",;", -1) : g_new0(char *, 1);

	for (char **p = parts; *p; p++)
		g_strstrip(*p);
	return parts;
}

static bool parse_whole_list(const struct ini_key *k, const char *text, struct ini_ints *list)
{
	g_auto(GStrv) parts = list_parts(text);
	bool ok = true;

	list->n = (int)g_strv_length(parts);
	list->v = g_new(int, list->n);
	for (int i = 0; i < list->n && ok; i++)
		ok = parse_whole(k, parts[i], &list->v[i]);
	return ok;
}

static bool parse_number_list(const struct ini_key *k, const char *text, struct ini_doubles *list)
{
	g_auto(GStrv) parts = list_parts(text);
	bool ok = true;

	list->n = (int)g_strv_length(parts);
	list->v = g_new(double, list->n);
	for (int i = 0; i < list->n && ok; i++)
		ok = parse_number(k, parts[i], &list->v[i]);
	return ok;
}

static bool parse_choice(const struct ini_key *k, const char *text, int *value)
{
	for (*value = 0; k->choices[*value]; ++*value)
		if (g_str_equal(k->choices[*value], text))
			return true;
	return false;
}

/* Fills the field; false when the text is not accepted. What the field then holds is still ini_clear's to free. */
static bool parse(const struct ini_key *k, const char *text, void *out)
{
	void *field = (char *)out + k->offset;

	switch (k->type) {
	case INI_STRING:
		*(char **)field = g_strdup(text);
		return true;
	case INI_INT:
		if (!k->choices || !parse_choice(k, text, field))
			return parse_whole(k, text, field);
		*(int *)field += (int)k->min;
		return true;
	case INI_DOUBLE:
		return parse_number(k, text, field);
	case INI_BOOL:
		*(bool *)field = g_str_equal(text, "true");
		return *(bool *)field || g_str_equal(text, "false");
	case INI_CHOICE:
		return parse_choice(k, text, field);
	case INI_INT_LIST:
		return parse_whole_list(k, text, field);
	case INI_DOUBLE_LIST:
		return parse_number_list(k, text, field);
	}
	g_assert_not_reached();
}

static char *accepted(const struct ini_key *k)
{
	g_autofree char *words = k->choices ? g_strjoinv(" | ", (char **)k->choices) : NULL;

	switch (k->type) {
	case INI_STRING:
		return g_strdup("a text");
	case INI_INT:
		return g_strdup_printf("%s%sa whole number from %.0f to %.0f", words ? words : "", words ? " | " : "", k->min, k->max);
	case INI_DOUBLE:
		return g_strdup_printf("a number from %.6g to %.6g", k->min, k->max);
	case INI_BOOL:
		return g_strdup("true | false");
	case INI_CHOICE:
		return g_steal_pointer(&words);
	case INI_INT_LIST:
		return g_strdup_printf("whole numbers from %.0f to %.0f with commas between", k->min, k->max);
	case INI_DOUBLE_LIST:
		return g_strdup_printf("numbers from %.6g to %.6g with commas between", k->min, k->max);
	}
	g_assert_not_reached();
}

/* The value that the last override gives to a key, or NULL. Borrowed. */
static const char *overridden(const char *const *overrides, const char *section, const char *key)
{
	g_autofree char *prefix = g_strdup_printf("%s.%s=", section, key);
	const char *value = NULL;

	for (; overrides && *overrides; overrides++)
		if (g_str_has_prefix(*overrides, prefix))
			value = *overrides + strlen(prefix);
	return value;
}

static bool check_overrides(const struct reader *r, GError **error)
{
	for (const char *const *o = r->overrides; o && *o; o++) {
		const char *dot = strchr(*o, '.'), *equals = strchr(*o, '=');
		g_autofree char *section = NULL, *key = NULL, *advice = NULL;

		if (!dot || !equals || dot > equals || !g_utf8_validate(*o, -1, NULL)) {
			g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_USAGE, "--set: expected section.key=value, for example gpu.hbm_gib=80");
			return false;
		}
		section = g_strndup(*o, dot - *o);
		key = g_strndup(dot + 1, equals - dot - 1);
		if (!is_own_section(r, section) || find_key(r, section, key))
			continue;
		advice = suggested_key(r, section, key);
		return fail(error, NULL, 0, "--set %s.%s: unknown key in [%s]%s", section, key, section, advice);
	}
	return true;
}

static bool read_key(const struct reader *r, const struct ini_key *k, void *out, GError **error)
{
	const char *override = overridden(r->overrides, k->section, k->key);
	int line = line_of(r, k->section, k->key);
	g_autofree char *text = NULL, *word = NULL, *expected = NULL;
	g_autoptr(GError) escape = NULL;

	if (override)
		text = g_strdup(override);
	else if (!line && !k->fallback)
		return fail(error, r->file, line_of(r, k->section, NULL), "%s.%s is missing: %s", k->section, k->key, k->help);
	else if (!line)
		text = g_strdup(k->fallback);
	else if (k->type == INI_STRING)
		text = g_key_file_get_string(r->values, k->section, k->key, &escape);
	else
		text = g_key_file_get_value(r->values, k->section, k->key, NULL);
	if (escape)
		return fail(error, r->file, line, "%s.%s: unknown escape after a backslash; \\s \\n \\t \\r \\\\ are accepted", k->section, k->key);
	if (parse(k, g_strstrip(text), out))
		return true;
	g_assert(override || line); /* a fallback that its own key refuses */
	expected = accepted(k);
	word = quoted(text);
	if (override)
		return fail(error, NULL, 0, "--set %s.%s: %s; expected %s", k->section, k->key, word, expected);
	return fail(error, r->file, line, "%s.%s = %s; expected %s", k->section, k->key, word, expected);
}

/* Strings and lists start out empty, so that ini_clear may follow whatever was filled. */
static void empty_owned(const struct ini_key *keys, size_t n_keys, void *out)
{
	for (size_t i = 0; i < n_keys; i++) {
		void *field = (char *)out + keys[i].offset;

		if (keys[i].type == INI_STRING)
			*(char **)field = NULL;
		else if (keys[i].type == INI_INT_LIST)
			*(struct ini_ints *)field = (struct ini_ints){0};
		else if (keys[i].type == INI_DOUBLE_LIST)
			*(struct ini_doubles *)field = (struct ini_doubles){0};
	}
}

bool ini_read(const char *kind, const char *source, const struct ini_key *keys, size_t n_keys, const char *const *overrides, void *out, char **name,
              GError **error)
{
	g_autofree char *file = NULL, *base = NULL, *text = NULL;
	g_autoptr(GError) cause = NULL;
	_GLIB_CLEANUP(reader_clear) struct reader r = {0};

	empty_owned(keys, n_keys, out);
	text = source_text(kind, source, &file, &base, error);
	if (!text)
		return false;
	r.file = file;
	r.keys = keys;
	r.n_keys = n_keys;
	r.overrides = overrides;
	r.lines = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, NULL);
	r.values = g_key_file_new();
	if (!check_overrides(&r, error) || !scan(&r, text, error))
		return false;
	if (*text && !g_key_file_load_from_data(r.values, text, strlen(text), G_KEY_FILE_NONE, &cause)) {
		g_autofree char *word = quoted(cause->message);

		return fail(error, file, 0, "%s", word);
	}
	for (size_t i = 0; i < n_keys; i++)
		if (!read_key(&r, &keys[i], out, error)) {
			ini_clear(keys, n_keys, out);
			return false;
		}
	if (name)
		*name = g_steal_pointer(&base);
	return true;
}

bool ini_refuse(const char *kind, const char *source, const char *const *overrides, const char *section, const char *key, GError **error,
                const char *format, ...)
{
	g_autofree char *file = NULL, *base = NULL, *text = source_text(kind, source, &file, &base, NULL), *message = NULL, *current = NULL;
	g_auto(GStrv) lines = g_strsplit(text ? text : "", "\n", -1);
	int line = 0;
	va_list args;

	va_start(args, format);
	message = g_strdup_vprintf(format, args);
	va_end(args);
	if (overridden(overrides, section, key))
		return fail(error, NULL, 0, "--set %s.%s: %s", section, key, message);
	for (int i = 0; lines[i] && !line; i++) {
		char *start = g_strstrip(lines[i]), *equals = strchr(start, '=');

		if (*start == '[' && start[1]) {
			g_free(current);
			current = g_strndup(start + 1, strlen(start) - 2);
		} else if (equals && current && g_str_equal(current, section)) {
			*equals = '\0';
			line = g_str_equal(g_strchomp(start), key) ? i + 1 : 0;
		}
	}
	return fail(error, file, line, "%s.%s: %s", section, key, message);
}

void ini_clear(const struct ini_key *keys, size_t n_keys, void *out)
{
	for (size_t i = 0; i < n_keys; i++) {
		void *field = (char *)out + keys[i].offset;

		if (keys[i].type == INI_STRING)
			g_free(*(char **)field);
		else if (keys[i].type == INI_INT_LIST)
			g_free(((struct ini_ints *)field)->v);
		else if (keys[i].type == INI_DOUBLE_LIST)
			g_free(((struct ini_doubles *)field)->v);
	}
	empty_owned(keys, n_keys, out);
}
