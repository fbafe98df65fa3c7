/* The what-if options. Numbers come as texts and are parsed here, strictly, so that a wrong one is told with its option, its value and what would be
 * accepted; one list syntax serves every option that spans a grid. */
#include "whatif.h"

#include "error.h"

#include <string.h>

enum { COUNT_MOST = 1 << 20, LIST_MOST = 1 << 16 };

void whatif_add(struct whatif *w, GOptionContext *context)
{
	const GOptionEntry entries[] = {
	    {"model", 'm', 0, G_OPTION_ARG_FILENAME, &w->model, "network: a name of `esmoe models` or a path", "MODEL"},
	    {"machine", 'M', 0, G_OPTION_ARG_FILENAME, &w->machine, "machine: a name of `esmoe machines` or a path", "MACHINE"},
	    {"policy", 'p', 0, G_OPTION_ARG_FILENAME, &w->policy, "system: a name of `esmoe policies` or a path", "POLICY"},
	    {"gpus", 0, 0, G_OPTION_ARG_STRING, &w->gpus, "GPUs instead of the machine's", "N"},
	    {"experts", 0, 0, G_OPTION_ARG_STRING, &w->experts, "experts a layer instead of the model's", "E"},
	    {"top-k", 0, 0, G_OPTION_ARG_STRING, &w->top_k, "experts a token instead of the model's", "K"},
	    {"sequences", 0, 0, G_OPTION_ARG_STRING, &w->sequences, "sequences a GPU and step", "N"},
	    {"seq-len", 0, 0, G_OPTION_ARG_STRING, &w->seq_len, "tokens a sequence", "N"},
	    {"microbatches", 0, 0, G_OPTION_ARG_STRING, &w->microbatches, "micro-batches a step, not the fewest that fit", "N"},
	    {"workload", 0, 0, G_OPTION_ARG_STRING, &w->workload, "training or inference", "WORD"},
	    {"batch", 0, 0, G_OPTION_ARG_STRING, &w->batch, "inference: sequences a GPU (--sequences)", "N"},
	    {"context", 0, 0, G_OPTION_ARG_STRING, &w->context, "inference: tokens of a prompt (--seq-len)", "N"},
	    {"generate", 0, 0, G_OPTION_ARG_STRING, &w->generate, "inference: tokens generated of each sequence (32)", "N"},
	    {"routing", 0, 0, G_OPTION_ARG_FILENAME, &w->routing, "uniform, zipf:S[:DRIFT], hash, or a CSV of loads", "SPEC"},
	    {"seed", 0, 0, G_OPTION_ARG_STRING, &w->seed, "seed of the routing", "N"},
	    {"set", 0, 0, G_OPTION_ARG_STRING_ARRAY, &w->set, "a key of any .ini, as section.key; repeatable", "KEY=VALUE"},
	    {NULL},
	};
	g_option_context_add_main_entries(context, entries, NULL);
}

void whatif_clear(struct whatif *w)
{
	char **texts[] = {&w->model,        &w->machine, &w->policy, &w->gpus,     &w->experts, &w->top_k,   &w->sequences, &w->seq_len,
	                  &w->microbatches, &w->routing, &w->seed,   &w->workload, &w->batch,   &w->context, &w->generate};
	for (size_t i = 0; i < G_N_ELEMENTS(texts); i++)
		g_clear_pointer(texts[i], g_free);
	g_clear_pointer(&w->set, g_strfreev);
}

G_GNUC_PRINTF(2, 3) static bool wrong(GError **error, const char *format, ...)
{
	va_list args;
	va_start(args, format);
	g_autofree char *message = g_strdup_vprintf(format, args);
	va_end(args);
	g_set_error_literal(error, ESMOE_ERROR, ESMOE_ERROR_USAGE, message);
	return false;
}

bool whatif_parse(GOptionContext *context, int argc, char **argv, GError **error)
{
	/* GOption moves the words of argv about, so it gets a copy of the array. */
	g_autofree char **words = g_memdup2(argv, ((gsize)argc + 1) * sizeof(*argv));
	if (!g_option_context_parse(context, &argc, &words, error))
		return false;
	return argc == 1 || wrong(error, "unexpected word '%s': %s takes options only, see --help", words[1], words[0]);
}

bool whatif_count(const char *option, const char *text, int min, int max, int *value, GError **error)
{
	gint64 number;
	if (!text)
		return true;
	if (!g_ascii_string_to_signed(text, 10, min, max, &number, NULL))
		return wrong(error, "--%s '%s': expected a whole number from %d to %d", option, text, min, max);
	*value = (int)number;
	return true;
}

static bool parse_seed(const char *text, uint64_t *seed, GError **error)
{
	guint64 number;
	if (!text)
		return true;
	if (!g_ascii_string_to_unsigned(text, 10, 0, G_MAXUINT64, &number, NULL))
		return wrong(error, "--seed '%s': expected a whole number from 0 to %" G_GUINT64_FORMAT, text, G_MAXUINT64);
	*seed = number;
	return true;
}

/* The words of inference for sequences and their length, which it has no others for. */
static bool parse_inference(const struct whatif *w, struct scenario_options *o, GError **error)
{
	const char *option = w->batch ? "batch" : w->context ? "context" : w->generate ? "generate" : NULL;
	o->workload = w->workload;
	if (w->workload && !g_str_equal(w->workload, "training") && !g_str_equal(w->workload, "inference"))
		return wrong(error, "--workload '%s': expected training or inference", w->workload);
	if (option && (!w->workload || !g_str_equal(w->workload, "inference")))
		return wrong(error, "--%s needs --workload inference", option);
	if ((w->batch && w->sequences) || (w->context && w->seq_len))
		return wrong(error, "--%s and --%s say the same: give one of them", w->batch && w->sequences ? "batch" : "context",
		             w->batch && w->sequences ? "sequences" : "seq-len");
	return whatif_count("batch", w->batch, 1, COUNT_MOST, &o->sequences, error) &&
	       whatif_count("context", w->context, 1, COUNT_MOST, &o->seq_len, error) &&
	       whatif_count("generate", w->generate, 1, COUNT_MOST, &o->generate, error);
}

bool whatif_rest(const struct whatif *w, struct scenario_options *o, GError **error)
{
	*o = (struct scenario_options){.routing = w->routing, .set = (const char *const *)w->set};
	if (!parse_inference(w, o, error))
		return false;
	return whatif_count("top-k", w->top_k, 1, COUNT_MOST, &o->top_k, error) &&
	       whatif_count("sequences", w->sequences, 1, COUNT_MOST, &o->sequences, error) &&
	       whatif_count("seq-len", w->seq_len, 1, COUNT_MOST, &o->seq_len, error) &&
	       whatif_count("microbatches", w->microbatches, 1, COUNT_MOST, &o->microbatches, error) && parse_seed(w->seed, &o->seed, error);
}

bool whatif_scenario(const struct whatif *w, struct scenario_options *o, GError **error)
{
	if (!w->model || !w->machine || !w->policy)
		return wrong(error, "%s is missing: see --help", !w->model ? "-m MODEL" : !w->machine ? "-M MACHINE" : "-p POLICY");
	if (!whatif_rest(w, o, error))
		return false;
	o->model = w->model;
	o->machine = w->machine;
	o->policy = w->policy;
	return whatif_count("gpus", w->gpus, 1, COUNT_MOST, &o->gpus, error) &&
	       whatif_count("experts", w->experts, 1, COUNT_MOST, &o->experts, error);
}

/* One part of a list: NUMBER, FIRST:LAST, FIRST:LAST:+STEP or FIRST:LAST:xFACTOR. */
static bool parse_range(const char *text, gint64 *first, gint64 *last, gint64 *step, bool *multiply)
{
	g_auto(GStrv) parts = g_strsplit(text, ":", -1);
	guint n = g_strv_length(parts);
	*step = 1;
	*multiply = false;
	if (n < 1 || n > 3 || !g_ascii_string_to_signed(parts[0], 10, 1, COUNT_MOST, first, NULL))
		return false;
	*last = *first;
	if (n > 1 && !g_ascii_string_to_signed(parts[1], 10, *first, COUNT_MOST, last, NULL))
		return false;
	if (n < 3)
		return true;
	*multiply = parts[2][0] == 'x';
	return (*multiply || parts[2][0] == '+') && g_ascii_string_to_signed(parts[2] + 1, 10, *multiply ? 2 : 1, COUNT_MOST, step, NULL);
}

bool whatif_counts(const char *option, const char *text, struct ini_ints *list, GError **error)
{
	g_autoptr(GArray) numbers = g_array_new(FALSE, FALSE, sizeof(int));
	g_auto(GStrv) parts = text ? g_strsplit(text, ",", -1) : NULL;
	if (text && !*text)
		return wrong(error, "--%s is empty: expected numbers and ranges, such as 1,2,4 or 8:512:x2", option);
	for (char **part = parts; part && *part; part++) {
		gint64 first, last, step;
		bool multiply;
		if (!parse_range(*part, &first, &last, &step, &multiply))
			return wrong(error, "--%s '%s': expected whole numbers from 1 to %d and ranges, such as 1,2,4 or 8:512:x2 or 8:64:+8", option,
			             *part, COUNT_MOST);
		for (gint64 i = first; i <= last; i = multiply ? i * step : i + step) {
			int number = (int)i;
			g_array_append_val(numbers, number);
			if (numbers->len > LIST_MOST)
				return wrong(error, "--%s '%s': more than %d numbers", option, text, LIST_MOST);
		}
	}
	list->n = (int)numbers->len;
	list->v = (int *)(void *)g_array_free(g_steal_pointer(&numbers), FALSE);
	return true;
}

char **whatif_names(const char *option, const char *text, GError **error)
{
	if (!text) {
		wrong(error, "%s is missing: see --help", option);
		return NULL;
	}
	g_auto(GStrv) names = g_strsplit(text, ",", -1);
	for (char **name = names; *name; name++) {
		if (!**name) {
			wrong(error, "%s '%s': a name is empty", option, text);
			return NULL;
		}
		for (char **earlier = names; earlier < name; earlier++)
			if (g_str_equal(*earlier, *name)) {
				wrong(error, "%s '%s': '%s' stands there twice", option, text, *name);
				return NULL;
			}
	}
	return g_steal_pointer(&names);
}
