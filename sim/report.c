/* One list of columns serves CSV and JSON; numbers are printed once, by the same function, so the two never differ. A row that is not ok has no
 * numbers: empty cells, null in JSON. */
#include "report.h"

#include "model/error.h"

#include <string.h>

enum { WIDTH = 80, TEXT_CHARS = 256 };

struct column {
	const char *name;
	bool is_text, always; /* always: also in rows that are not ok */
	void (*print)(const struct row *row, char text[TEXT_CHARS]);
};

static const char *home_name(int home)
{
	static const char *const names[] = {"hbm", "dram", "ssd"};
	g_assert(home >= 0 && home < (int)G_N_ELEMENTS(names));
	return names[home];
}

#define TEXT(field, ...)                                                                                                                             \
	static void print_##field(const struct row *row, char text[TEXT_CHARS])                                                                      \
	{                                                                                                                                            \
		g_snprintf(text, TEXT_CHARS, __VA_ARGS__);                                                                                           \
	}
TEXT(policy, "%s", row->policy)
TEXT(model, "%s", row->model)
TEXT(machine, "%s", row->machine)
TEXT(gpus, "%d", row->gpus)
TEXT(experts, "%d", row->experts)
TEXT(tokens_per_s, "%.2f", row->prediction.tokens_per_s)
TEXT(step_ms, "%.6f", row->prediction.step_ms)
TEXT(bound_by, "%s", row->prediction.bound_by)
TEXT(hbm_gib, "%.3f", row->prediction.hbm_gib)
TEXT(dram_gib, "%.3f", row->prediction.dram_gib)
TEXT(ssd_gib, "%.3f", row->prediction.ssd_gib)
TEXT(status, "%s", status_name(row->status))
TEXT(speed_of_light_ms, "%.6f", row->prediction.speed_of_light_ms)
TEXT(expert_home, "%s", home_name(row->prediction.expert_home))
TEXT(microbatches, "%d", row->prediction.microbatches)
TEXT(dropped_share, "%.6f", row->prediction.dropped_share)
TEXT(inputs, "%s", row->digest)

/* Of inference only. */
#define LATENCY(field)                                                                                                                               \
	static void print_##field(const struct row *row, char text[TEXT_CHARS])                                                                      \
	{                                                                                                                                            \
		if (row->prediction.prefill_ms > 0)                                                                                                  \
			g_snprintf(text, TEXT_CHARS, "%.6f", row->prediction.field);                                                                 \
	}
LATENCY(prefill_ms)
LATENCY(decode_ms)

#define COLUMN(field, is_text, always)                                                                                                               \
	{                                                                                                                                            \
#field, is_text, always, print_##field                                                                                               \
	}
static const struct column columns[] = {
    COLUMN(policy, true, true),
    COLUMN(model, true, true),
    COLUMN(machine, true, true),
    COLUMN(gpus, false, true),
    COLUMN(experts, false, true),
    COLUMN(tokens_per_s, false, false),
    COLUMN(step_ms, false, false),
    COLUMN(bound_by, true, false),
    COLUMN(hbm_gib, false, false),
    COLUMN(dram_gib, false, false),
    COLUMN(ssd_gib, false, false),
    COLUMN(status, true, true),
    COLUMN(speed_of_light_ms, false, false),
    COLUMN(expert_home, true, false),
    COLUMN(microbatches, false, false),
    COLUMN(dropped_share, false, false),
    COLUMN(prefill_ms, false, false),
    COLUMN(decode_ms, false, false),
    COLUMN(inputs, true, true),
};

bool format_parse(const char *word, enum format *format, GError **error)
{
	static const char *const words[] = {"table", "csv", "json", NULL};
	*format = FORMAT_TABLE;
	for (int i = 0; word && words[i]; i++)
		if (g_str_equal(word, words[i])) {
			*format = i;
			return true;
		}
	if (word)
		g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_USAGE, "--format '%s': expected table, csv or json", word);
	return !word;
}

const char *report_csv_header(void)
{
	return "policy,model,machine,gpus,experts,tokens_per_s,step_ms,bound_by,hbm_gib,dram_gib,ssd_gib,status,speed_of_light_ms,expert_home,"
	       "microbatches,dropped_share,prefill_ms,decode_ms,inputs\n";
}

void report_csv(GString *out, const struct row *row)
{
	for (size_t i = 0; i < G_N_ELEMENTS(columns); i++) {
		char text[TEXT_CHARS] = "";
		if (columns[i].always || row->status == STATUS_OK)
			columns[i].print(row, text);
		g_string_append_printf(out, "%s%s", text, i + 1 < G_N_ELEMENTS(columns) ? "," : "\n");
	}
}

static void append_json_string(GString *out, const char *text)
{
	g_autofree char *valid = g_utf8_make_valid(text, -1);
	g_string_append_c(out, '"');
	for (const char *c = valid; *c; c++) {
		if (*c == '"' || *c == '\\')
			g_string_append_c(out, '\\');
		if ((unsigned char)*c < ' ')
			g_string_append_printf(out, "\\u%04x", *c);
		else
			g_string_append_c(out, *c);
	}
	g_string_append_c(out, '"');
}

void report_json(GString *out, const struct row *row)
{
	for (size_t i = 0; i < G_N_ELEMENTS(columns); i++) {
		char text[TEXT_CHARS] = "null"; /* what has no value leaves it */
		bool there = columns[i].always || row->status == STATUS_OK;
		if (there)
			columns[i].print(row, text);
		g_string_append_printf(out, "%s\"%s\": ", i ? ", " : "{", columns[i].name);
		if (there && columns[i].is_text)
			append_json_string(out, text);
		else
			g_string_append(out, text);
	}
	if (row->why) {
		g_string_append(out, ", \"why\": ");
		append_json_string(out, row->why);
	}
	g_string_append_c(out, '}');
}

/* The fastest row's tokens/s, 0 when none is ok. */
static double fastest(const struct row *rows, int n)
{
	double best = 0;
	for (int i = 0; i < n; i++)
		if (rows[i].status == STATUS_OK)
			best = MAX(best, rows[i].prediction.tokens_per_s);
	return best;
}

/* Latencies instead of the step's time. */
static void append_inference(GString *out, const struct row *rows, int n, double best)
{
	g_string_append_printf(out, "  %-14s %8s %5s %8s %8s %-11s %5s %6s %5s\n", "policy", "tokens/s", "ratio", "prefill", "decode", "decode's",
	                       "hbm", "dram", "ssd");
	g_string_append_printf(out, "  %-14s %8s %5s %8s %8s %-11s %5s %6s %5s\n", "", "", "", "ms", "ms/token", "bound", "GiB", "GiB", "GiB");
	for (int i = 0; i < n; i++) {
		const struct prediction *p = &rows[i].prediction;
		if (rows[i].status != STATUS_OK) {
			g_string_append_printf(out, "  %-14s %9s\n", rows[i].policy, status_name(rows[i].status));
			continue;
		}
		int digits = p->tokens_per_s < 100 ? 2 : 0;
		g_string_append_printf(out, "%c %-14s %8.*f %5.2f %8.2f %8.2f %-11s %5.1f %6.1f %5.0f\n", p->tokens_per_s == best ? '*' : ' ',
		                       rows[i].policy, digits, p->tokens_per_s, p->tokens_per_s / best, p->prefill_ms, p->decode_ms,
		                       p->decode_bound_by, p->hbm_gib, p->dram_gib, p->ssd_gib);
	}
}

static bool any_inference(const struct row *rows, int n)
{
	for (int i = 0; i < n; i++)
		if (rows[i].status == STATUS_OK && rows[i].prediction.prefill_ms > 0)
			return true;
	return false;
}

void report_policies(GString *out, const struct row *rows, int n)
{
	double best = fastest(rows, n);
	g_string_append_printf(out, "%s on %s, GPUs: %d, experts: %d; * the fastest\n\n", rows->model, rows->machine, rows->gpus, rows->experts);
	if (any_inference(rows, n)) {
		append_inference(out, rows, n, best);
		return;
	}
	g_string_append_printf(out, "  %-14s %9s %5s %9s %-17s %6s %6s %5s\n", "policy", "tokens/s", "ratio", "step ms", "bound by", "hbm", "dram",
	                       "ssd");
	g_string_append_printf(out, "  %-14s %9s %5s %9s %-17s %6s %6s %5s\n", "", "", "", "", "", "GiB", "GiB", "GiB");
	for (int i = 0; i < n; i++) {
		const struct prediction *p = &rows[i].prediction;
		if (rows[i].status != STATUS_OK) {
			g_string_append_printf(out, "  %-14s %9s\n", rows[i].policy, status_name(rows[i].status));
			continue;
		}
		g_string_append_printf(out, "%c %-14s %9.0f %5.2f %9.2f %-17s %6.1f %6.1f %5.0f\n", p->tokens_per_s == best ? '*' : ' ',
		                       rows[i].policy, p->tokens_per_s, p->tokens_per_s / best, p->step_ms, p->bound_by, p->hbm_gib, p->dram_gib,
		                       p->ssd_gib);
	}
}

/* The columns that tell one line of the matrix from another; one that never changes goes into the heading instead. */
enum { FIRST_LABEL = 1, END_LABEL = 5 };

/* The label's width, 0 when it is the same in all rows. */
static int label_width(int label, const struct row *rows, int n)
{
	char first[TEXT_CHARS], text[TEXT_CHARS];
	size_t width = strlen(columns[label].name);
	bool varies = false;
	columns[label].print(&rows[0], first);
	for (int i = 0; i < n; i++) {
		columns[label].print(&rows[i], text);
		width = MAX(width, strlen(text));
		varies = varies || !g_str_equal(text, first);
	}
	return varies ? (int)width : 0;
}

static void append_labels(GString *out, const struct row *row, const int width[END_LABEL])
{
	for (int l = FIRST_LABEL; l < END_LABEL; l++) {
		char text[TEXT_CHARS];
		if (!width[l])
			continue;
		if (row)
			columns[l].print(row, text);
		g_string_append_printf(out, columns[l].is_text ? "%-*s " : "%*s ", width[l], row ? text : columns[l].name);
	}
}

/* The policies from..to of the matrix, under their headings. */
static void append_columns(GString *out, const struct row *rows, int n, int policies, int from, int to, const int width[END_LABEL])
{
	append_labels(out, NULL, width);
	for (int p = from; p < to; p++)
		g_string_append_printf(out, " %14s", rows[p].policy);
	g_string_append_c(out, '\n');
	for (int first = 0; first < n; first += policies) {
		const struct row *line = &rows[first];
		double best = fastest(line, policies);
		append_labels(out, line, width);
		for (int p = from; p < to; p++)
			if (line[p].status == STATUS_OK)
				g_string_append_printf(out, " %8.0f%c %.2f", line[p].prediction.tokens_per_s,
				                       line[p].prediction.tokens_per_s == best ? '*' : ' ', line[p].prediction.tokens_per_s / best);
			else
				g_string_append_printf(out, " %14s", status_name(line[p].status));
		g_string_append_c(out, '\n');
	}
}

void report_matrix(GString *out, const struct row *rows, int n, int policies)
{
	enum { POLICY_WIDTH = 15 };
	int width[END_LABEL] = {0}, used = 0;
	g_string_append(out, "tokens/s, and the ratio to the fastest (*)");
	for (int l = FIRST_LABEL; l < END_LABEL; l++) {
		char text[TEXT_CHARS];
		width[l] = label_width(l, rows, n);
		used += width[l] ? width[l] + 1 : 0;
		columns[l].print(&rows[0], text);
		if (!width[l])
			g_string_append_printf(out, "; %s %s", columns[l].name, text);
	}
	g_string_append_c(out, '\n');
	int at_a_time = MAX(1, (WIDTH - used) / POLICY_WIDTH);
	for (int from = 0; from < policies; from += at_a_time) {
		g_string_append_c(out, '\n');
		append_columns(out, rows, n, policies, from, MIN(policies, from + at_a_time), width);
	}
}

void report_memory_csv(GString *out, const struct memory *m)
{
	g_string_append(out, "tier,class,bytes,room\n");
	for (int tier = 0; tier < N_TIERS; tier++)
		for (int class = 0; class < N_CLASSES; class ++)
			g_string_append_printf(out, "%s,%s,%" G_GUINT64_FORMAT ",%" G_GUINT64_FORMAT "\n", memory_tier_name(tier),
			                       memory_class_name(class), (guint64)m->bytes[tier][class], (guint64)m->room[tier]);
}
