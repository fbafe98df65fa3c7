/* `esmoe plot FIGURE -o FILE INPUT...`: a table of figures, each with its own options, its help and what it makes of its inputs. */
#include "accuracy.h"
#include "best.h"
#include "breakdown.h"
#include "losses.h"
#include "memory.h"
#include "model/command.h"
#include "model/error.h"
#include "throughput.h"
#include "timeline.h"
#include "traces/kineto.h"

#include <math.h>
#include <string.h>

/* The options of all figures; each figure offers those it has. */
struct request {
	char *out, *pass, *x, *gpus;
	int layer;
	double from_ms, to_ms;
	gboolean all, host, over_time;
	char **inputs;
	int n_inputs;
};

struct figure_command {
	const char *name, *summary, *inputs, *description;
	void (*offer)(struct request *r, GOptionContext *context);
	bool (*run)(const struct request *r, GError **error);
};

static bool usage(GError **error, const char *format, ...) G_GNUC_PRINTF(2, 3);
static bool usage(GError **error, const char *format, ...)
{
	va_list arguments;
	g_autofree char *text = NULL;

	va_start(arguments, format);
	text = g_strdup_vprintf(format, arguments);
	va_end(arguments);
	g_set_error_literal(error, ESMOE_ERROR, ESMOE_ERROR_USAGE, text);
	return false;
}

/* "0,2,3" into GPU numbers; NULL leaves the choice to the figure. */
static bool gpus_parse(const char *list, GArray *gpus, GError **error)
{
	g_auto(GStrv) words = g_strsplit(list ? list : "", ",", -1);

	for (int i = 0; words[i]; i++) {
		guint64 gpu;
		int value;

		if (!g_ascii_string_to_unsigned(words[i], 10, 0, G_MAXINT32, &gpu, NULL))
			return usage(error, "--gpu '%s': GPU numbers separated by commas are expected, for example 0,3", list);
		value = (int)gpu;
		for (guint j = 0; j < gpus->len; j++)
			if (g_array_index(gpus, int, j) == value)
				return usage(error, "--gpu '%s': GPU %d is named twice", list, value);
		g_array_append_val(gpus, value);
	}
	return true;
}

/* What the files of one trace share: PREFIX of PREFIX.rank<N>.json, PREFIX.host.json and PREFIX.host<N>.json, with or without .gz. Owned by
 * the caller. */
static char *trace_stem(const char *path)
{
	g_autoptr(GRegex) ending = g_regex_new("(\\.rank[0-9]+|\\.host[0-9]*)\\.json(\\.gz)?$", G_REGEX_RAW, 0, NULL);

	return g_regex_replace_literal(ending, path, -1, 0, "", 0, NULL);
}

static void timeline_offer(struct request *r, GOptionContext *context)
{
	const GOptionEntry entries[] = {{"layer", 0, 0, G_OPTION_ARG_INT, &r->layer, "zoom to this MoE layer (default: the middle one)", "N"},
	                                {"pass", 0, 0, G_OPTION_ARG_STRING, &r->pass, "forward or backward (default: both, if they fit)", "PASS"},
	                                {"from", 0, 0, G_OPTION_ARG_DOUBLE, &r->from_ms, "show the period from here", "MS"},
	                                {"to", 0, 0, G_OPTION_ARG_DOUBLE, &r->to_ms, "to here", "MS"},
	                                {"all", 0, 0, G_OPTION_ARG_NONE, &r->all, "show the whole last step", NULL},
	                                {"gpu", 0, 0, G_OPTION_ARG_STRING, &r->gpus, "the GPUs shown (default: the first four)", "N[,N...]"},
	                                {"host", 0, 0, G_OPTION_ARG_NONE, &r->host, "also the host threads that launch", NULL},
	                                G_OPTION_ENTRY_NULL};

	g_option_context_add_main_entries(context, entries, NULL);
}

static bool timeline_zoom(const struct request *r, struct timeline_options *o, GError **error)
{
	bool period = !isnan(r->from_ms) || !isnan(r->to_ms);

	if ((r->all ? 1 : 0) + (period ? 1 : 0) + (r->layer >= 0 || r->pass ? 1 : 0) > 1)
		return usage(error, "--all, --from/--to and --layer/--pass choose differently: give one of them");
	if (period && !(r->from_ms >= 0 && r->to_ms > r->from_ms && r->to_ms < 1e12))
		return usage(error, "--from and --to: two times in ms are expected, the first before the second");
	if (r->layer < -1)
		return usage(error, "--layer %d: layers count from 0", r->layer);
	if (r->pass && strcmp(r->pass, "forward") && strcmp(r->pass, "backward"))
		return usage(error, "--pass '%s': forward or backward is expected", r->pass);
	*o = (struct timeline_options){.zoom = r->all ? TIMELINE_ALL : period ? TIMELINE_PERIOD : TIMELINE_LAYER, .layer = r->layer, .pass = -1};
	if (r->pass)
		o->pass = stage_pass_parse(r->pass);
	if (period) {
		o->from_ns = (nsec_t)llround(r->from_ms * (double)NSEC_PER_MSEC);
		o->to_ns = (nsec_t)llround(r->to_ms * (double)NSEC_PER_MSEC);
	}
	return true;
}

static bool timeline_run(const struct request *r, GError **error)
{
	g_autoptr(GArray) gpus = g_array_new(FALSE, FALSE, sizeof(int));
	g_autoptr(trace) trace = NULL;
	struct timeline_options o;

	if (!timeline_zoom(r, &o, error) || !gpus_parse(r->gpus, gpus, error))
		return false;
	trace = kineto_read((const char *const *)r->inputs, error);
	if (!trace)
		return false;
	o.gpus = (struct gpu_choice){.gpus = (const int *)(const void *)gpus->data, .n = (int)gpus->len, .launchers = r->host};
	return plot_timeline(trace, &o, r->out, error);
}

static void throughput_offer(struct request *r, GOptionContext *context)
{
	const GOptionEntry entries[] = {{"x", 0, 0, G_OPTION_ARG_STRING, &r->x, "experts or gpus (default: whichever varies)", "COLUMN"},
	                                G_OPTION_ENTRY_NULL};

	g_option_context_add_main_entries(context, entries, NULL);
}

static void csv_free_element(void *csv)
{
	csv_free(csv);
}

/* All inputs as CSV files. NULL on error. Owned by the caller. */
static GPtrArray *csvs_read(const struct request *r, GError **error)
{
	g_autoptr(GPtrArray) files = g_ptr_array_new_with_free_func(csv_free_element);

	for (int i = 0; i < r->n_inputs; i++) {
		struct csv *csv = csv_read(r->inputs[i], error);

		if (!csv)
			return NULL;
		g_ptr_array_add(files, csv);
	}
	return g_steal_pointer(&files);
}

static bool throughput_run(const struct request *r, GError **error)
{
	g_autoptr(GPtrArray) files = NULL;
	enum throughput_x x = THROUGHPUT_X_AUTO;

	if (r->x && strcmp(r->x, "experts") && strcmp(r->x, "gpus"))
		return usage(error, "--x '%s': experts or gpus is expected", r->x);
	if (r->x)
		x = strcmp(r->x, "gpus") ? THROUGHPUT_X_EXPERTS : THROUGHPUT_X_GPUS;
	files = csvs_read(r, error);
	return files && plot_throughput((struct csv *const *)files->pdata, (int)files->len, x, r->out, error);
}

static void best_offer(struct request *r, GOptionContext *context) {}

static bool best_run(const struct request *r, GError **error)
{
	g_autoptr(GPtrArray) files = csvs_read(r, error);

	return files && plot_best((struct csv *const *)files->pdata, (int)files->len, r->out, error);
}

static void breakdown_offer(struct request *r, GOptionContext *context)
{
	const GOptionEntry entries[] = {
	    {"gpu", 0, 0, G_OPTION_ARG_STRING, &r->gpus, "of one trace: the GPUs shown (default: the first four)", "N[,N...]"}, G_OPTION_ENTRY_NULL};

	g_option_context_add_main_entries(context, entries, NULL);
}

static void trace_free_element(void *trace)
{
	trace_free(trace);
}

/* Reads the traces among the inputs, each from all of its files, in the order of their first file. */
static bool traces_read(const struct request *r, GPtrArray *traces, GPtrArray *stems, GError **error)
{
	for (int i = 0; i < r->n_inputs; i++) {
		g_autofree char *stem = trace_stem(r->inputs[i]);
		g_autoptr(GPtrArray) paths = g_ptr_array_new();
		struct trace *trace;

		if (g_ptr_array_find_with_equal_func(stems, stem, g_str_equal, NULL))
			continue;
		for (int j = i; j < r->n_inputs; j++) {
			g_autofree char *other = trace_stem(r->inputs[j]);

			if (!strcmp(stem, other))
				g_ptr_array_add(paths, r->inputs[j]);
		}
		g_ptr_array_add(paths, NULL);
		trace = kineto_read((const char *const *)paths->pdata, error);
		if (!trace)
			return false;
		g_ptr_array_add(traces, trace);
		g_ptr_array_add(stems, g_steal_pointer(&stem));
	}
	return true;
}

static bool breakdown_run(const struct request *r, GError **error)
{
	g_autoptr(GPtrArray) traces = g_ptr_array_new_with_free_func(trace_free_element), stems = g_ptr_array_new_with_free_func(g_free);
	g_autoptr(GPtrArray) names = g_ptr_array_new_with_free_func(g_free);
	g_autoptr(GArray) gpus = g_array_new(FALSE, FALSE, sizeof(int));
	g_autofree struct named_trace *named = NULL;
	struct gpu_choice choice;

	if (!gpus_parse(r->gpus, gpus, error) || !traces_read(r, traces, stems, error))
		return false;
	if (traces->len > 1 && gpus->len)
		return usage(error, "--gpu chooses within one trace; %u traces show the mean over all GPUs", traces->len);
	named = g_new(struct named_trace, traces->len);
	for (guint i = 0; i < traces->len; i++) {
		g_ptr_array_add(names, g_path_get_basename(g_ptr_array_index(stems, i)));
		named[i] = (struct named_trace){.name = g_ptr_array_index(names, i), .trace = g_ptr_array_index(traces, i)};
	}
	choice = (struct gpu_choice){.gpus = (const int *)(const void *)gpus->data, .n = (int)gpus->len};
	return plot_breakdown(named, (int)traces->len, &choice, r->out, error);
}

static void memory_offer(struct request *r, GOptionContext *context)
{
	const GOptionEntry entries[] = {
	    {"over-time", 0, 0, G_OPTION_ARG_NONE, &r->over_time, "of one trace: the HBM in use over the last step", NULL},
	    {"gpu", 0, 0, G_OPTION_ARG_STRING, &r->gpus, "with --over-time: the GPUs shown (default: first four)", "N[,N...]"},
	    G_OPTION_ENTRY_NULL};

	g_option_context_add_main_entries(context, entries, NULL);
}

static bool memory_over_time_run(const struct request *r, GError **error)
{
	g_autoptr(GArray) gpus = g_array_new(FALSE, FALSE, sizeof(int));
	g_autoptr(trace) trace = NULL;
	struct gpu_choice choice;

	if (!gpus_parse(r->gpus, gpus, error))
		return false;
	trace = kineto_read((const char *const *)r->inputs, error);
	choice = (struct gpu_choice){.gpus = (const int *)(const void *)gpus->data, .n = (int)gpus->len};
	return trace && plot_memory_over_time(trace, &choice, r->out, error);
}

static bool memory_bar_read(const char *input, struct memory_bar *bar, GError **error)
{
	if (g_str_has_suffix(input, ".csv")) {
		g_autoptr(csv) csv = csv_read(input, error);

		bar->name = g_path_get_basename(input);
		bar->name[strlen(bar->name) - strlen(".csv")] = '\0';
		return csv && memory_read(csv, &bar->memory, error);
	} else {
		const char *const paths[] = {input, NULL};
		g_autofree char *stem = trace_stem(input);
		g_autoptr(trace) trace = kineto_read(paths, error);

		bar->name = g_path_get_basename(stem);
		return trace && memory_of_trace(trace, input, &bar->memory, error);
	}
}

/* Whether an input before this one is of the same trace, whose bar then is there already. */
static bool seen_before(const struct request *r, int input)
{
	g_autofree char *stem = trace_stem(r->inputs[input]);

	for (int i = 0; i < input; i++) {
		g_autofree char *other = trace_stem(r->inputs[i]);

		if (!strcmp(stem, other))
			return true;
	}
	return false;
}

static bool memory_run(const struct request *r, GError **error)
{
	g_autofree struct memory_bar *bars = NULL;
	bool ok = true;
	int n = 0;

	if (r->over_time)
		return memory_over_time_run(r, error);
	if (r->gpus)
		return usage(error, "--gpu goes with --over-time: the bars show the fullest GPU");
	bars = g_new0(struct memory_bar, r->n_inputs);
	for (int i = 0; i < r->n_inputs && ok; i++)
		if (!seen_before(r, i))
			ok = memory_bar_read(r->inputs[i], &bars[n++], error);
	ok = ok && plot_memory(bars, n, r->out, error);
	for (int i = 0; i < n; i++)
		g_free(bars[i].name);
	return ok;
}

static void losses_offer(struct request *r, GOptionContext *context) {}

/* A run is named after its folder. */
static bool losses_run(const struct request *r, GError **error)
{
	g_autoptr(GPtrArray) files = g_ptr_array_new_with_free_func(csv_free_element), names = g_ptr_array_new_with_free_func(g_free);
	g_autofree struct losses_input *runs = g_new(struct losses_input, r->n_inputs);

	for (int i = 0; i < r->n_inputs; i++) {
		bool folder = g_file_test(r->inputs[i], G_FILE_TEST_IS_DIR);
		g_autofree char *path = folder ? g_build_filename(r->inputs[i], "losses.csv", NULL) : g_strdup(r->inputs[i]);
		g_autofree char *parent = g_path_get_dirname(path);
		struct csv *csv = csv_read(path, error);

		if (!csv)
			return false;
		g_ptr_array_add(files, csv);
		g_ptr_array_add(names, g_path_get_basename(parent));
		runs[i] = (struct losses_input){.name = g_ptr_array_index(names, (guint)i), .csv = csv};
	}
	return plot_losses(runs, r->n_inputs, r->out, error);
}

static void accuracy_offer(struct request *r, GOptionContext *context) {}

/* Two traces are a run and its prediction; anything else is what validate printed. */
static bool accuracy_run(const struct request *r, GError **error)
{
	g_autoptr(GPtrArray) files = g_ptr_array_new_with_free_func(csv_free_element), traces = g_ptr_array_new_with_free_func(trace_free_element);
	for (int i = 0; i < r->n_inputs; i++) {
		const char *const paths[] = {r->inputs[i], NULL};
		bool is_csv = g_str_has_suffix(r->inputs[i], ".csv");
		void *read = is_csv ? (void *)csv_read(r->inputs[i], error) : kineto_read(paths, error);

		if (!read)
			return false;
		g_ptr_array_add(is_csv ? files : traces, read);
	}
	if (traces->len && (files->len || traces->len != 2))
		return usage(error, "plot accuracy: CSV files of validate are expected, or two traces: the run's and the predicted one");
	if (traces->len)
		return plot_accuracy_timelines(g_ptr_array_index(traces, 0), g_ptr_array_index(traces, 1), r->out, error);
	return plot_accuracy((struct csv *const *)files->pdata, (int)files->len, r->out, error);
}

static const struct figure_command figures[] = {
    {"timeline", "when each stream did what, zoomed to one MoE layer", "TRACE...",
     "TRACE is the files of one trace, their common prefix, or their folder.\n\nExample:\n  esmoe plot timeline --layer 12 -o timeline.png out/trace",
     timeline_offer, timeline_run},
    {"throughput", "tokens/s over experts or GPUs, a line a policy, a panel a model", "CSV...",
     "CSV is what sweep or compare --format csv wrote.\n\nExample:\n  esmoe plot throughput -o throughput.pdf sweep.csv", throughput_offer,
     throughput_run},
    {"best", "which system is fastest where, over GPUs and experts", "CSV...",
     "CSV is what sweep or compare --format csv wrote.\n\nExample:\n  esmoe sweep -m gpt-moe-l -M h200-x8 -p es-moe,static,tutel --gpus 1:64:x2 \\\n "
     "   "
     "--experts 8:512:x2 -o sweep.csv\n  esmoe plot best -o best.png sweep.csv",
     best_offer, best_run},
    {"breakdown", "what each stream did with the step's time", "TRACE...",
     "One trace: a bar for each stream. Several: the mean over their GPUs.\n\nExample:\n  esmoe plot breakdown -o breakdown.svg "
     "out/es-moe out/tutel",
     breakdown_offer, breakdown_run},
    {"memory", "bytes per tier against its capacity", "INPUT...",
     "INPUT is a trace, or a CSV file of tier,class,bytes,room.\n\nExample:\n  esmoe plot memory -o memory.png out/es-moe out/tutel", memory_offer,
     memory_run},
    {"losses", "the loss of runs over their steps", "RUN...",
     "RUN is the folder that `esmoe run --trace` wrote, or its losses.csv.\n\nExample:\n  esmoe plot losses -o losses.png out/es-moe out/static",
     losses_offer, losses_run},
    {"accuracy", "measured against predicted times, or both timelines", "INPUT...",
     "INPUT is CSV that `esmoe validate --format csv` printed; or two traces, the run's and the one of `esmoe validate --trace`, which are drawn one "
     "above the other.\n\nExample:\n  esmoe plot accuracy -o accuracy.png validated.csv",
     accuracy_offer, accuracy_run},
};

static bool figure_run(const struct figure_command *figure, int argc, char **argv, GError **error)
{
	g_autofree char *parameters = g_strdup_printf("-o FILE %s", figure->inputs), *summary = g_strdup_printf("Draws %s.", figure->summary);
	g_autoptr(GOptionContext) context = g_option_context_new(parameters);
	struct request r = {.layer = -1, .from_ms = NAN, .to_ms = NAN};
	const GOptionEntry entries[] = {{"output", 'o', 0, G_OPTION_ARG_FILENAME, &r.out, "the figure: .png, .svg or .pdf", "FILE"},
	                                G_OPTION_ENTRY_NULL};
	g_autofree char *program = g_strconcat("esmoe plot ", figure->name, NULL);
	g_auto(GStrv) words = g_new0(char *, argc + 1);
	bool ok;

	g_set_prgname(program);
	for (int i = 0; i < argc; i++)
		words[i] = g_strdup(argv[i]);
	g_option_context_set_summary(context, summary);
	g_option_context_set_description(context, figure->description);
	g_option_context_add_main_entries(context, entries, NULL);
	figure->offer(&r, context);
	ok = g_option_context_parse_strv(context, &words, error);
	if (ok) {
		r.inputs = words + 1;
		r.n_inputs = (int)g_strv_length(words) - 1;
		if (!r.out)
			ok = usage(error, "plot %s: -o FILE is missing", figure->name);
		else if (!r.n_inputs)
			ok = usage(error, "plot %s: no input; %s is expected", figure->name, figure->inputs);
		else
			ok = figure_name_check(r.out, error) && figure->run(&r, error);
	}
	g_free(r.out);
	g_free(r.pass);
	g_free(r.x);
	g_free(r.gpus);
	return ok;
}

static void print_help(void)
{
	g_print("Usage:\n  esmoe plot FIGURE -o FILE INPUT...\n\nFigures:\n");
	for (size_t i = 0; i < G_N_ELEMENTS(figures); i++)
		g_print("  %-12s%s\n", figures[i].name, figures[i].summary);
	g_print("\n`esmoe plot FIGURE --help` tells each figure's options.\n\nExample:\n  esmoe plot timeline -o timeline.png out/trace\n");
}

bool cmd_plot(int argc, char **argv, GError **error)
{
	const char *names[G_N_ELEMENTS(figures) + 1] = {NULL}, *near;

	if (argc < 2)
		return usage(error, "plot: which figure? timeline, throughput, best, breakdown, memory, losses or accuracy");
	if (!strcmp(argv[1], "--help") || !strcmp(argv[1], "-h")) {
		print_help();
		return true;
	}
	for (size_t i = 0; i < G_N_ELEMENTS(figures); i++) {
		names[i] = figures[i].name;
		if (!strcmp(argv[1], figures[i].name))
			return figure_run(&figures[i], argc - 1, argv + 1, error);
	}
	near = nearest_word(argv[1], names);
	return usage(error,
	             near ? "plot: no figure '%s'; did you mean %s?"
	                  : "plot: no figure '%s': timeline, throughput, best, breakdown, memory, losses or accuracy",
	             argv[1], near);
}
