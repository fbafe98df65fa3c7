/* esmoe trace: four questions to ask of trace files. Each parses its options, reads, computes with its module and fills tables; results are put
 * together in full before anything is printed. */
#include "critical_path.h"
#include "csv.h"
#include "diff.h"
#include "info.h"
#include "kineto.h"
#include "model/command.h"
#include "model/error.h"
#include "outfile.h"
#include "table.h"

#include <stdio.h>
#include <string.h>

struct ask {
	char **files;
	char *format, *output;
	int step;
};

struct question {
	const char *name, *files, *summary, *example;
	bool (*show)(struct ask *ask, enum table_form form, GString *out, GError **error);
};

static void ask_clear(struct ask *ask)
{
	g_strfreev(ask->files);
	g_free(ask->format);
	g_free(ask->output);
}

static bool wrong(GError **error, const char *what)
{
	g_set_error_literal(error, ESMOE_ERROR, ESMOE_ERROR_USAGE, what);
	return false;
}

static struct trace *read_one(const char *path, GError **error)
{
	const char *const paths[] = {path, NULL};

	return kineto_read(paths, error);
}

static void print_streams(const struct trace *trace, const struct trace_info *info, enum table_form form, GString *out)
{
	static const char *const columns[] = {"stream", "spans", "busy_ms", "idle_ms", "busy_pct", "hidden_ms", "hidden_pct", NULL};
	g_autoptr(table) table = table_new(columns);

	for (int s = 0; s < info->n_streams; s++) {
		const struct stream_info *stream = &info->streams[s];
		g_autofree char *name = trace_stream_name(trace, (stream_id)s);

		if (stream->n_spans == 0)
			continue;
		table_text(table, name);
		table_count(table, stream->n_spans);
		table_ms(table, stream->busy_ns);
		table_ms(table, stream->idle_ns);
		table_percent(table, stream->busy_ns, info->run_ns);
		/* Compute is what hides the others. */
		if (trace_stream_kind(trace, (stream_id)s) == STREAM_COMPUTE) {
			table_nothing(table);
			table_nothing(table);
			continue;
		}
		table_ms(table, stream->under_compute_ns);
		table_percent(table, stream->under_compute_ns, stream->busy_ns);
	}
	table_print(table, form, out);
}

static void print_gpus(const struct trace_info *info, enum table_form form, GString *out)
{
	static const char *const columns[] = {
	    "gpu", ".window_ms", "compute_ms", "other_ms", "idle_ms", ".collective_ms", "collective_hidden_pct", ".copy_ms", "copy_hidden_pct", NULL};
	g_autoptr(table) table = table_new(columns);

	for (int gpu = 0; gpu < info->n_gpus; gpu++) {
		const struct gpu_info *g = &info->gpus[gpu];

		table_count(table, (uint64_t)gpu);
		table_ms(table, g->window_ns);
		table_ms(table, g->compute_ns);
		table_ms(table, g->other_ns);
		table_ms(table, g->idle_ns);
		table_ms(table, g->collective_ns);
		table_percent(table, g->collective_hidden_ns, g->collective_ns);
		table_ms(table, g->copy_ns);
		table_percent(table, g->copy_hidden_ns, g->copy_ns);
	}
	table_print(table, form, out);
}

static bool show_info(struct ask *ask, enum table_form form, GString *out, GError **error)
{
	g_autoptr(trace) trace = kineto_read((const char *const *)ask->files, error);
	g_autoptr(trace_info) info = NULL;

	if (!trace)
		return false;
	info = trace_info_new(trace);
	if (form == TABLE_CSV) {
		print_streams(trace, info, form, out);
		return true;
	}
	if (form == TABLE_TEXT) {
		g_string_append_printf(out, "%u spans, %u steps, %d GPUs; run ", trace->spans->len, trace->step_end_ns->len, trace->gpus);
		table_print_ms(out, info->run_ns);
		g_string_append(out, " ms\n\n");
		print_streams(trace, info, form, out);
		g_string_append_c(out, '\n');
		print_gpus(info, form, out);
		if (info->copy_ns > 0)
			g_string_append_printf(out, "\n%d %% of the copies' time is hidden under compute.\n",
			                       (int)(100 * (double)info->copy_hidden_ns / (double)info->copy_ns + 0.5));
		return true;
	}
	g_string_append_printf(out, "{\"spans\": %u, \"steps\": %u, \"run_ms\": ", trace->spans->len, trace->step_end_ns->len);
	table_print_ms(out, info->run_ns);
	g_string_append(out, ", \"copy_ms\": ");
	table_print_ms(out, info->copy_ns);
	g_string_append(out, ", \"copy_hidden_ms\": ");
	table_print_ms(out, info->copy_hidden_ns);
	g_string_append(out, ",\n\"streams\": ");
	print_streams(trace, info, form, out);
	g_string_append(out, ",\n\"gpus\": ");
	print_gpus(info, form, out);
	g_string_append(out, "}\n");
	return true;
}

/* Whole run per step, for the heading of a diff. */
static nsec_t step_ns(const struct trace *trace)
{
	return trace_end_ns(trace) / MAX(trace->step_end_ns->len, 1);
}

static bool show_diff(struct ask *ask, enum table_form form, GString *out, GError **error)
{
	static const char *const columns[] = {"stream", "stage", "n_a", "n_b", ".only_a", ".only_b", "ms_a", "ms_b", ".diff_ms", "ratio", NULL};
	g_autoptr(trace) a = NULL, b = NULL;
	g_autoptr(table) table = table_new(columns);
	g_autoptr(GArray) rows = NULL;
	uint64_t only_a = 0, only_b = 0;

	if (g_strv_length(ask->files) != 2)
		return wrong(error, "trace diff compares two traces: give a file, folder or prefix for each");
	if (!(a = read_one(ask->files[0], error)) || !(b = read_one(ask->files[1], error)))
		return false;
	rows = trace_diff(a, b);
	for (guint i = 0; i < rows->len; i++) {
		const struct diff_row *row = &g_array_index(rows, struct diff_row, i);
		g_autofree char *stream = g_strdup_printf("%s%d %s", row->gpu >= 0 ? "gpu" : "node", row->gpu >= 0 ? row->gpu : row->node,
		                                          stream_kind_name(row->stream_kind));

		table_text(table, stream);
		table_text(table, span_kind_name(row->kind));
		table_count(table, row->n_a);
		table_count(table, row->n_b);
		table_count(table, row->only_a);
		table_count(table, row->only_b);
		table_ms(table, row->a_ns);
		table_ms(table, row->b_ns);
		table_ms(table, row->b_ns - row->a_ns);
		table_ratio(table, row->b_ns, row->a_ns);
		only_a += row->only_a;
		only_b += row->only_b;
	}
	table_print(table, form, out);
	if (form == TABLE_JSON)
		g_string_append_c(out, '\n');
	if (form != TABLE_TEXT)
		return true;
	g_string_append_printf(out, "\nStages in A only: %" G_GUINT64_FORMAT ", in B only: %" G_GUINT64_FORMAT ".\nA step takes ", only_a, only_b);
	table_print_ms(out, step_ns(a));
	g_string_append(out, " ms in A, ");
	table_print_ms(out, step_ns(b));
	g_string_append(out, " ms in B.\n");
	return true;
}

static void print_bound(const struct critical_path *path, enum table_form form, GString *out)
{
	const char *bound = path_resource_name(path->bound_by);

	if (form == TABLE_CSV)
		return;
	if (form == TABLE_JSON) {
		g_string_append_printf(out, "{\"step\": %d, \"step_ms\": ", path->step);
		table_print_ms(out, path->step_ns);
		g_string_append_printf(out, ", \"bound_by\": \"%s\", \"bound_ms\": ", bound);
		table_print_ms(out, path->bound_ns);
		g_string_append(out, ",\n\"parts\": ");
		return;
	}
	g_string_append_printf(out, "Step %d is bound by %s: ", path->step, bound);
	table_print_ms(out, path->bound_ns);
	g_string_append(out, " of ");
	table_print_ms(out, path->step_ns);
	g_string_append(out, " ms.\n\n");
}

static bool show_critical_path(struct ask *ask, enum table_form form, GString *out, GError **error)
{
	static const char *const columns[] = {"resource", "stage", "pieces", "ms", "pct", NULL};
	g_autoptr(trace) trace = kineto_read((const char *const *)ask->files, error);
	g_autoptr(critical_path) path = NULL;
	g_autoptr(table) table = table_new(columns);

	if (!trace || !(path = critical_path_new(trace, ask->step, error)))
		return false;
	for (guint i = 0; i < path->parts->len; i++) {
		const struct path_part *part = &g_array_index(path->parts, struct path_part, i);

		table_text(table, path_resource_name(part->resource));
		table_text(table, part->kind >= 0 ? span_kind_name(part->kind) : "");
		table_count(table, part->n);
		table_ms(table, part->ns);
		table_percent(table, part->ns, path->step_ns);
	}
	print_bound(path, form, out);
	table_print(table, form, out);
	if (form == TABLE_JSON)
		g_string_append(out, "}\n");
	return true;
}

static bool print_rows(const char *text, gsize n, struct outfile *to, GError **error)
{
	if (to)
		return outfile_write(to, text, n, error);
	/* A failure stays in stdout, where the door finds it. */
	(void)!fwrite(text, 1, n, stdout);
	return true;
}

/* The one form is CSV; it goes out piece by piece. */
static bool convert(struct ask *ask, enum table_form form, GString *out, GError **error)
{
	enum { PIECE = 4096 };
	g_autoptr(trace) trace = kineto_read((const char *const *)ask->files, error);
	g_autoptr(outfile) to = NULL;
	g_autoptr(GString) piece = g_string_new(csv_header());

	if (!trace || (ask->output && !(to = outfile_new(ask->output, g_str_has_suffix(ask->output, ".gz"), error))))
		return false;
	for (guint i = 0; i < trace->spans->len; i += PIECE) {
		csv_spans(trace, i, MIN(i + PIECE, trace->spans->len), piece);
		if (!print_rows(piece->str, piece->len, to, error))
			return false;
		g_string_truncate(piece, 0);
	}
	if (!print_rows(piece->str, piece->len, to, error))
		return false;
	return !to || (outfile_finish(to, error) && outfile_commit(to, error));
}

static const struct question questions[] = {
    {"info", "FILE...", "Busy and idle time per stream, and what is hidden under compute.", "esmoe trace info runs/a", show_info},
    {"convert", "FILE...", "The spans as CSV, one a line.", "esmoe trace convert runs/a -o spans.csv", convert},
    {"diff", "A B", "Two traces per stream and stage kind: B against A.", "esmoe trace diff runs/a runs/b", show_diff},
    {"critical-path", "FILE...", "Which resource bounds a step, and by how much.", "esmoe trace critical-path runs/a --step 0", show_critical_path},
};

static bool parse(const struct question *q, struct ask *ask, enum table_form *form, int argc, char **argv, GError **error)
{
	const GOptionEntry common[] = {
	    {"format", 0, 0, G_OPTION_ARG_STRING, &ask->format, "table, csv or json", "WORD"},
	    {G_OPTION_REMAINING, 0, 0, G_OPTION_ARG_FILENAME_ARRAY, &ask->files, NULL, NULL},
	    {NULL},
	};
	const GOptionEntry output[] = {{"output", 'o', 0, G_OPTION_ARG_FILENAME, &ask->output, "write there instead of printing", "FILE.csv"},
	                               {NULL}};
	const GOptionEntry step[] = {{"step", 0, 0, G_OPTION_ARG_INT, &ask->step, "which step, from 0 (default: the last)", "N"}, {NULL}};
	g_autoptr(GOptionContext) context = g_option_context_new(q->files);
	g_autofree char *program = g_strconcat("esmoe trace ", q->name, NULL);
	g_autofree char *example = g_strdup_printf(
	    "A FILE is a trace file, the prefix of PREFIX.rank<N>.json, or a folder of one\nrun's files.\n\nExample:\n  %s", q->example);
	/* GOption moves the words of argv about, so it gets a copy of the array. */
	g_autofree char **words = g_memdup2(argv, ((gsize)argc + 1) * sizeof(*argv));

	g_set_prgname(program);
	g_option_context_set_summary(context, q->summary);
	g_option_context_set_description(context, example);
	g_option_context_add_main_entries(context, q->show == convert ? common + 1 : common, NULL);
	if (q->show == convert)
		g_option_context_add_main_entries(context, output, NULL);
	if (q->show == show_critical_path)
		g_option_context_add_main_entries(context, step, NULL);
	if (!g_option_context_parse(context, &argc, &words, error) || !table_form_parse(ask->format, form, error))
		return false;
	return ask->files || wrong(error, "no trace given: a file, a folder of one run's files, or their prefix");
}

static bool ask_question(const struct question *q, int argc, char **argv, GError **error)
{
	struct ask ask = {.step = -1};
	enum table_form form = TABLE_TEXT;
	g_autoptr(GString) out = g_string_new(NULL);
	bool ok = parse(q, &ask, &form, argc, argv, error) && q->show(&ask, form, out, error);

	if (ok)
		(void)!fwrite(out->str, 1, out->len, stdout);
	ask_clear(&ask);
	return ok;
}

static void print_help(void)
{
	printf("Usage: esmoe trace QUESTION [OPTION...] FILE...\n\nQuestions:\n");
	for (size_t i = 0; i < G_N_ELEMENTS(questions); i++)
		printf("  %-14s%s\n", questions[i].name, questions[i].summary);
	printf("\nEach has its own --help. Example:\n  esmoe trace info runs/a\n");
}

bool cmd_trace(int argc, char **argv, GError **error)
{
	const char *names[G_N_ELEMENTS(questions) + 1] = {0};
	const char *name = argc > 1 ? argv[1] : NULL, *nearest;

	if (!name)
		return wrong(error, "trace: one of info, convert, diff, critical-path is expected");
	if (strcmp(name, "--help") == 0 || strcmp(name, "-h") == 0) {
		print_help();
		return true;
	}
	for (size_t i = 0; i < G_N_ELEMENTS(questions); i++) {
		names[i] = questions[i].name;
		if (strcmp(name, questions[i].name) == 0)
			return ask_question(&questions[i], argc - 1, argv + 1, error);
	}
	nearest = nearest_word(name, names);
	g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_USAGE, "trace: '%s' is not one of info, convert, diff, critical-path%s%s%s", name,
	            nearest ? ": did you mean '" : "", nearest ?: "", nearest ? "'?" : "");
	return false;
}
