/* The training systems: what each is, and the knobs of all side by side. A knob that no system moves is not worth a line, and a value that is the
 * plainest training's is a dot, so that what makes a system itself stands out; systems stand in as many blocks of columns as a line of 80 holds. */
#include "command.h"
#include "policy.h"
#include "preset.h"
#include "whatif.h"

#include <stdio.h>
#include <string.h>

enum { LINE_CHARS = 80, NAME_CHARS = 20, WHAT_CHARS = 58 }; /* of what it is, with the dots */

/* The plainest training first, then the presets; text[row][knob], NULL-terminated by knob. */
struct table {
	char **name; /* (rows) */
	char ***text;
	int rows, knobs;
};

static void table_clear(struct table *t)
{
	for (int i = 0; t->text && i < t->rows; i++)
		g_strfreev(t->text[i]);
	g_free(t->text);
	g_strfreev(t->name);
}

static char **values_of(const struct policy *p, int knobs)
{
	char **values = g_new0(char *, knobs + 1);
	for (int i = 0; i < knobs; i++)
		values[i] = policy_knob_value(p, i);
	return values;
}

static bool fill(struct table *t, GError **error)
{
	g_auto(GStrv) names = preset_names("policies");
	g_autoptr(GStrvBuilder) all = g_strv_builder_new();
	while (policy_knob(t->knobs))
		t->knobs++;
	t->rows = 1 + (int)g_strv_length(names);
	g_strv_builder_add(all, "plain");
	g_strv_builder_addv(all, (const char **)names);
	t->name = g_strv_builder_end(all);
	t->text = g_new0(char **, t->rows);
	for (int i = 0; i < t->rows; i++) {
		g_autoptr(policy) p = policy_load(i ? t->name[i] : "[policy]\n", NULL, error);
		if (!p)
			return false;
		t->text[i] = values_of(p, t->knobs);
	}
	return true;
}

static bool is_plain(const struct table *t, int row, int knob)
{
	return g_str_equal(t->text[row][knob], t->text[0][knob]);
}

static bool is_moved(const struct table *t, int knob)
{
	for (int i = 1; i < t->rows; i++)
		if (!is_plain(t, i, knob))
			return true;
	return false;
}

/* The opening comment of the preset says what the system is. */
static char *what_it_is(const char *name, GError **error)
{
	g_autofree char *text = preset_text("policies", name, error);
	if (!text)
		return NULL;
	g_auto(GStrv) lines = g_strsplit(text, "\n", 2);
	return g_strdup(lines[0] && lines[0][0] == '#' ? g_strchug(lines[0] + 1) : "");
}

static bool print_list(const struct table *t, GError **error)
{
	printf("%-*s what it is\n", NAME_CHARS, "POLICY");
	for (int i = 1; i < t->rows; i++) {
		g_autofree char *words = what_it_is(t->name[i], error);
		if (!words)
			return false;
		char *end = strlen(words) > WHAT_CHARS ? g_strrstr_len(words, WHAT_CHARS - 2, " ") : NULL;
		printf("%-*s %.*s%s\n", NAME_CHARS, t->name[i], (int)(end ? end - words : WHAT_CHARS), words, end ? "..." : "");
	}
	return true;
}

static int width_of(const struct table *t, int row)
{
	int width = (int)strlen(t->name[row]);
	for (int k = 0; k < t->knobs; k++)
		if (is_moved(t, k) && (!row || !is_plain(t, row, k)))
			width = MAX(width, (int)strlen(t->text[row][k]));
	return width;
}

/* Rows from..to of the table as columns. */
static void print_block(const struct table *t, int from, int to, int knob_width)
{
	printf("\n%-*s  %-*s", knob_width, "KNOB", width_of(t, 0), t->name[0]);
	for (int i = from; i < to; i++)
		printf("  %-*s", i + 1 < to ? width_of(t, i) : 0, t->name[i]);
	putchar('\n');
	for (int k = 0; k < t->knobs; k++) {
		if (!is_moved(t, k))
			continue;
		printf("%-*s  %-*s", knob_width, policy_knob(k), width_of(t, 0), t->text[0][k]);
		for (int i = from; i < to; i++)
			printf("  %-*s", i + 1 < to ? width_of(t, i) : 0, is_plain(t, i, k) ? "." : t->text[i][k]);
		putchar('\n');
	}
}

static void print_side_by_side(const struct table *t)
{
	int knob_width = (int)strlen("KNOB");
	for (int k = 0; k < t->knobs; k++)
		if (is_moved(t, k))
			knob_width = MAX(knob_width, (int)strlen(policy_knob(k)));
	for (int from = 1, to; from < t->rows; from = to) {
		int used = knob_width + 2 + width_of(t, 0);
		for (to = from; to < t->rows && (to == from || used + 2 + width_of(t, to) <= LINE_CHARS); to++)
			used += 2 + width_of(t, to);
		print_block(t, from, to, knob_width);
	}
}

/* Systems as rows: a knob is named where it is moved, so that no line has thirty cells. */
static void print_markdown(const struct table *t)
{
	puts("| system | knobs beside the plainest training's |\n|--|--|");
	for (int i = 1; i < t->rows; i++) {
		const char *between = "";
		printf("| `%s` | ", t->name[i]);
		for (int k = 0; k < t->knobs; k++) {
			if (is_plain(t, i, k))
				continue;
			printf("%s`%s` %s", between, policy_knob(k), t->text[i][k]);
			between = ", ";
		}
		puts(*between ? " |" : "none |");
	}
}

bool cmd_policies(int argc, char **argv, GError **error)
{
	gboolean markdown = FALSE;
	autoclear(table) t = {0};
	const GOptionEntry entries[] = {{"markdown", 0, 0, G_OPTION_ARG_NONE, &markdown, "the knobs as a table for a README", NULL}, {NULL}};
	g_autoptr(GOptionContext) context = g_option_context_new(NULL);
	g_option_context_add_main_entries(context, entries, NULL);
	g_option_context_set_summary(context, "Lists the training systems, then the knobs in which they differ: a dot is the\n"
	                                      "plainest training's value. esmoe show policy NAME says why.");
	g_option_context_set_description(context, "Example:\n  esmoe policies --markdown");
	if (!whatif_parse(context, argc, argv, error) || !fill(&t, error))
		return false;
	if (markdown) {
		print_markdown(&t);
		return true;
	}
	if (!print_list(&t, error))
		return false;
	print_side_by_side(&t);
	return true;
}
