/* Paths become files, files become one trace. Files of our own agree on the run they belong to and are joined by stage id; launches find their stages
 * the same way, also those of a node's stages, which stand in another file. Foreign files share nothing but a clock: their earliest event becomes
 * time 0, GPU events are numbered by their start, and launches are found by correlation within each file. */
#include "kineto.h"

#include "kineto_form.h"
#include "kineto_parse.h"
#include "model/error.h"

#include <errno.h>
#include <string.h>

static bool is_trace_name(const char *name)
{
	return g_str_has_suffix(name, ".json") || g_str_has_suffix(name, ".json.gz");
}

/* PREFIX.rank<N>.json, PREFIX.host.json, PREFIX.host<N>.json, any with .gz. */
static bool has_prefix(const char *name, const char *prefix)
{
	const char *rest = name + strlen(prefix);
	bool host;

	if (!g_str_has_prefix(name, prefix) || !is_trace_name(rest))
		return false;
	host = g_str_has_prefix(rest, ".host");
	if (!host && !g_str_has_prefix(rest, ".rank"))
		return false;
	rest += strlen(".rank");
	return (host || g_ascii_isdigit(*rest)) && g_str_has_prefix(rest + strspn(rest, "0123456789"), ".json");
}

static int by_name(gconstpointer a, gconstpointer b)
{
	return strcmp(*(char *const *)a, *(char *const *)b);
}

/* Adds the trace files of a folder, those of one prefix or all (NULL); false with *error only when the folder cannot be read. */
static bool add_folder(const char *folder, const char *prefix, GPtrArray *to, GError **error)
{
	g_autoptr(GDir) dir = NULL;
	GError *cause = NULL;
	const char *name;

	dir = g_dir_open(folder, 0, &cause);
	if (!dir) {
		g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_INPUT, "%s: %s", folder, cause->message);
		g_error_free(cause);
		return false;
	}
	while ((name = g_dir_read_name(dir)))
		if (prefix ? has_prefix(name, prefix) : is_trace_name(name))
			g_ptr_array_add(to, g_build_filename(folder, name, NULL));
	return true;
}

static bool add_path(const char *path, GPtrArray *to, GError **error)
{
	guint before = to->len;

	if (g_file_test(path, G_FILE_TEST_IS_DIR)) {
		if (!add_folder(path, NULL, to, error))
			return false;
	} else if (g_file_test(path, G_FILE_TEST_EXISTS)) {
		g_ptr_array_add(to, g_strdup(path));
	} else {
		g_autofree char *folder = g_path_get_dirname(path);
		g_autofree char *prefix = g_path_get_basename(path);

		if (g_file_test(folder, G_FILE_TEST_IS_DIR) && !add_folder(folder, prefix, to, error))
			return false;
	}
	if (to->len > before)
		return true;
	g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_INPUT,
	            "%s: no trace there: a file, a folder of .json files, or the prefix of PREFIX.rank<N>.json is expected", path);
	return false;
}

static struct kineto_file *read_file(const char *path, GError **error)
{
	g_autoptr(GFile) file = g_file_new_for_path(path);
	g_autoptr(GInputStream) in = NULL;
	GError *cause = NULL;

	in = G_INPUT_STREAM(g_file_read(file, NULL, &cause));
	if (!in) {
		g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_INPUT, "%s: cannot be read: %s", path, cause->message);
		g_error_free(cause);
		return NULL;
	}
	return kineto_parse(path, in, error);
}

static int by_rank(gconstpointer a, gconstpointer b)
{
	const struct kineto_file *x = *(struct kineto_file *const *)a, *y = *(struct kineto_file *const *)b;

	return x->rank != y->rank ? (x->rank > y->rank) - (x->rank < y->rank) : strcmp(x->name, y->name);
}

static bool disagree(const struct kineto_file *a, const struct kineto_file *b, const char *what, GError **error)
{
	g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_INPUT, "%s: does not belong with %s: %s", b->name, a->name, what);
	return false;
}

/* One run, each rank once. */
static bool check_own(const GPtrArray *files, GError **error)
{
	const struct kineto_file *a = g_ptr_array_index(files, 0);

	for (guint i = 1; i < files->len; i++) {
		const struct kineto_file *b = g_ptr_array_index(files, i), *last = g_ptr_array_index(files, i - 1);

		if (b->gpus != a->gpus || b->gpus_per_node != a->gpus_per_node)
			return disagree(a, b, "other GPUs", error);
		if (g_strcmp0(a->description, b->description) != 0)
			return disagree(a, b, "another run's description", error);
		if (b->rank == last->rank)
			return disagree(last, b, "the same rank", error);
	}
	return true;
}

static int span_by_id(gconstpointer a, gconstpointer b)
{
	stage_id x = ((const struct span *)a)->id, y = ((const struct span *)b)->id;

	return (x > y) - (x < y);
}

static void place_launches(struct trace *trace, const struct kineto_file *f)
{
	for (guint i = 0; i < f->launches->len; i++) {
		const struct kineto_interval *launch = &g_array_index(f->launches, struct kineto_interval, i);
		uint32_t at = launch->key >= 0 && launch->key < STAGE_NONE ? trace_find(trace, (stage_id)launch->key) : STAGE_NONE;
		struct span *s;

		if (at == STAGE_NONE)
			continue;
		s = &g_array_index(trace->spans, struct span, at);
		s->launch_ns = launch->start_ns;
		s->launch_end_ns = launch->end_ns;
	}
}

static int interval_by_key(gconstpointer a, gconstpointer b)
{
	const struct kineto_interval *x = a, *y = b;

	return x->key != y->key ? (x->key > y->key) - (x->key < y->key) : (x->end_ns > y->end_ns) - (x->end_ns < y->end_ns);
}

/* The steps as one file has them; the writer's last, of no length, is not one. */
static bool take_steps(struct trace *trace, const struct kineto_file *f, nsec_t shift_ns, GError **error)
{
	guint n = f->steps->len;
	nsec_t last = INT64_MIN;

	g_array_sort(f->steps, interval_by_key);
	if (f->own && n > 0) {
		const struct kineto_interval *step = &g_array_index(f->steps, struct kineto_interval, n - 1);

		n -= step->start_ns == step->end_ns;
	}
	for (guint i = 0; i < n; i++) {
		nsec_t end = g_array_index(f->steps, struct kineto_interval, i).end_ns + shift_ns;

		if (end < last || end > KINETO_MOST_NS || end < -KINETO_MOST_NS) {
			g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_INPUT, "%s: step %u ends before the one before it or far from the run", f->name,
			            i);
			return false;
		}
		g_array_append_val(trace->step_end_ns, end);
		last = end;
	}
	return true;
}

static bool join_spans(struct trace *trace, const GPtrArray *files, GError **error)
{
	bool sorted = true;
	guint n = 0;

	for (guint i = 0; i < files->len; i++)
		n += ((struct kineto_file *)g_ptr_array_index(files, i))->spans->len;
	g_array_unref(trace->spans);
	trace->spans = g_array_sized_new(FALSE, FALSE, sizeof(struct span), n);
	for (guint i = 0; i < files->len; i++) {
		struct kineto_file *f = g_ptr_array_index(files, i);

		if (f->spans->len > 0)
			g_array_append_vals(trace->spans, f->spans->data, f->spans->len);
		g_array_set_size(f->spans, 0);
	}
	for (guint i = 1; i < trace->spans->len && sorted; i++)
		sorted = g_array_index(trace->spans, struct span, i - 1).id < g_array_index(trace->spans, struct span, i).id;
	if (!sorted)
		g_array_sort(trace->spans, span_by_id);
	for (guint i = 1; i < trace->spans->len; i++) {
		stage_id id = g_array_index(trace->spans, struct span, i).id;

		if (g_array_index(trace->spans, struct span, i - 1).id == id) {
			g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_INPUT, "%s: stage %u comes twice",
			            ((struct kineto_file *)g_ptr_array_index(files, 0))->name, id);
			return false;
		}
	}
	return true;
}

static bool join_own(struct trace *trace, const GPtrArray *files, GError **error)
{
	const struct kineto_file *first = g_ptr_array_index(files, 0);

	if (!check_own(files, error) || !join_spans(trace, files, error) || !take_steps(trace, first, 0, error))
		return false;
	trace->gpus = (int)first->gpus;
	trace->gpus_per_node = (int)first->gpus_per_node;
	trace->description = g_strdup(first->description);
	for (guint i = 0; i < files->len; i++) {
		struct kineto_file *f = g_ptr_array_index(files, i);

		place_launches(trace, f);
		while (f->counters->len > 0)
			g_ptr_array_add(trace->counters, g_ptr_array_steal_index(f->counters, 0));
	}
	return true;
}

/* Gives each span of a foreign file its launch, found by correlation, and the GPU its file stands for. */
static void place_foreign(struct kineto_file *f, int gpus)
{
	g_array_sort(f->launches, interval_by_key);
	for (guint i = 0; i < f->spans->len; i++) {
		struct span *s = &g_array_index(f->spans, struct span, i);
		int64_t correlation = g_array_index(f->correlations, int64_t, i);
		guint low = 0, high = f->launches->len;

		s->rank = f->rank >= 0 ? (int32_t)f->rank : s->rank;
		s->rank = MIN(s->rank, gpus - 1);
		s->stream = stream_of_gpu(s->rank, (enum gpu_stream)s->stream);
		s->start_ns += f->base_ns;
		s->end_ns += f->base_ns;
		while (low < high) {
			guint middle = low + (high - low) / 2;

			if (g_array_index(f->launches, struct kineto_interval, middle).key < correlation)
				low = middle + 1;
			else
				high = middle;
		}
		if (correlation > 0 && low < f->launches->len && g_array_index(f->launches, struct kineto_interval, low).key == correlation) {
			s->launch_ns = g_array_index(f->launches, struct kineto_interval, low).start_ns + f->base_ns;
			s->launch_end_ns = g_array_index(f->launches, struct kineto_interval, low).end_ns + f->base_ns;
		}
	}
}

static int span_by_start(gconstpointer a, gconstpointer b)
{
	const struct span *x = a, *y = b;

	if (x->start_ns != y->start_ns)
		return (x->start_ns > y->start_ns) - (x->start_ns < y->start_ns);
	return x->stream != y->stream ? (x->stream > y->stream) - (x->stream < y->stream) : span_by_id(a, b);
}

/* How many GPUs a set of foreign files is about; a file without a rank is the GPU its events name when alone, else the next. */
static int foreign_gpus(const GPtrArray *files)
{
	int64_t gpus = 1;

	for (guint i = 0; i < files->len; i++) {
		struct kineto_file *f = g_ptr_array_index(files, i);

		if (f->rank < 0 && files->len > 1)
			f->rank = i;
		gpus = MAX(gpus, MAX(f->gpus, f->rank + 1));
		for (guint k = 0; k < f->spans->len && f->rank < 0; k++)
			gpus = MAX(gpus, g_array_index(f->spans, struct span, k).rank + 1);
	}
	return (int)MIN(gpus, KINETO_MOST_GPUS);
}

static nsec_t earliest(const struct trace *trace)
{
	nsec_t ns = INT64_MAX;

	for (guint i = 0; i < trace->spans->len; i++) {
		const struct span *s = trace_span(trace, i);

		ns = MIN(ns, s->launch_ns == -1 ? s->start_ns : MIN(s->start_ns, s->launch_ns));
	}
	return ns;
}

/* A span belongs to the step in whose time it starts; both are sorted by time. */
static void number_steps(struct trace *trace)
{
	guint step = 0, steps = MIN(trace->step_end_ns->len, UINT16_MAX);

	for (guint i = 0; i < trace->spans->len; i++) {
		struct span *s = &g_array_index(trace->spans, struct span, i);

		while (step + 1 < steps && s->start_ns >= g_array_index(trace->step_end_ns, nsec_t, step))
			step++;
		s->step = (uint16_t)step;
	}
}

static bool join_foreign(struct trace *trace, const GPtrArray *files, GError **error)
{
	const struct kineto_file *first = g_ptr_array_index(files, 0);
	nsec_t zero;

	trace->gpus = trace->gpus_per_node = foreign_gpus(files);
	g_array_set_size(trace->spans, 0);
	for (guint i = 0; i < files->len; i++) {
		struct kineto_file *f = g_ptr_array_index(files, i);

		place_foreign(f, trace->gpus);
		if (f->spans->len > 0)
			g_array_append_vals(trace->spans, f->spans->data, f->spans->len);
	}
	g_array_sort(trace->spans, span_by_start);
	zero = trace->spans->len > 0 ? earliest(trace) : first->base_ns;
	for (guint i = 0; i < trace->spans->len; i++) {
		struct span *s = &g_array_index(trace->spans, struct span, i);

		if (s->start_ns - zero > KINETO_MOST_NS || (s->launch_ns != -1 && s->launch_ns - zero > KINETO_MOST_NS)) {
			g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_INPUT, "%s: events of different clocks", first->name);
			return false;
		}
		if (s->launch_ns != -1) {
			s->launch_ns -= zero;
			s->launch_end_ns -= zero;
		}
		s->id = i;
		s->start_ns -= zero;
		s->end_ns -= zero;
	}
	if (!take_steps(trace, first, first->base_ns - zero, error))
		return false;
	number_steps(trace);
	return true;
}

static struct trace *join(GPtrArray *files, GError **error)
{
	g_autoptr(trace) trace = trace_new();
	const struct kineto_file *first;

	g_ptr_array_sort(files, by_rank);
	first = g_ptr_array_index(files, 0);
	for (guint i = 1; i < files->len; i++) {
		const struct kineto_file *f = g_ptr_array_index(files, i);

		if (f->own != first->own) {
			disagree(first, f, "only one of them is a trace of esmoe", error);
			return NULL;
		}
	}
	if (!(first->own ? join_own : join_foreign)(trace, files, error))
		return NULL;
	trace->gpu_name = g_strdup(first->gpu_name);
	trace->hbm_bytes = (uint64_t)MAX(first->hbm_bytes, 0);
	trace->sms = (int)first->sms;
	return g_steal_pointer(&trace);
}

struct trace *kineto_read(const char *const *paths, GError **error)
{
	g_autoptr(GPtrArray) names = g_ptr_array_new_with_free_func(g_free);
	g_autoptr(GPtrArray) files = g_ptr_array_new_with_free_func((GDestroyNotify)kineto_file_free);

	for (; *paths; paths++)
		if (!add_path(*paths, names, error))
			return NULL;
	g_return_val_if_fail(names->len > 0, NULL);
	g_ptr_array_sort(names, by_name);
	for (guint i = 0; i < names->len; i++) {
		struct kineto_file *f = read_file(g_ptr_array_index(names, i), error);

		if (!f)
			return NULL;
		g_ptr_array_add(files, f);
	}
	return join(files, error);
}

struct trace *kineto_read_stream(const char *name, GInputStream *in, GError **error)
{
	g_autoptr(GPtrArray) files = g_ptr_array_new_with_free_func((GDestroyNotify)kineto_file_free);
	struct kineto_file *f = kineto_parse(name, in, error);

	if (!f)
		return NULL;
	g_ptr_array_add(files, f);
	return join(files, error);
}
