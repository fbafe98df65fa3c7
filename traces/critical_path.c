/* The walk starts at the span that ends last and asks of each span why it did not start earlier: the latest of its predecessors, the span before it
 * on its stream, and its launch. The answer is where the walk goes on; a launch leads along the launcher's own thread, to the launch before it or,
 * where the thread waited for the counts of a gate, to the stage that gathered them:
 *
 *     launcher   |launch|launch|   sync    |launch|
 *                              \          /        \
 *     streams                   |  counts |         |  expert  |  <- end of the step
 *
 * The time between two marks is given to what runs there, once, so that the parts add up to the step. Every step goes to a smaller stage id: the walk
 * ends. */
#include "critical_path.h"

#include "model/error.h"

struct walk {
	const struct trace *trace;
	const struct span *spans;
	uint32_t *before_on_stream, *before_by_rank, *counts_of_rank; /* (spans): index of the nearest earlier one, STAGE_NONE */
	nsec_t from_ns, at_ns;
	nsec_t ns[PATH_RESOURCES][N_SPAN_KINDS + 1]; /* the last: no stage */
	uint32_t n[PATH_RESOURCES][N_SPAN_KINDS + 1];
};

const char *path_resource_name(int resource)
{
	static const char *const names[] = {[PATH_LAUNCH] = "host launch", [PATH_SYNC] = "host sync", [PATH_IDLE] = "idle"};

	return resource < STREAM_KINDS ? stream_kind_name(resource) : names[resource];
}

/* Gives the time back to `ns` (not before the step's beginning) to a resource. */
static void spend(struct walk *w, nsec_t ns, int resource, int kind)
{
	nsec_t to = MAX(ns, w->from_ns);

	if (to >= w->at_ns)
		return;
	w->ns[resource][kind] += w->at_ns - to;
	w->n[resource][kind]++;
	w->at_ns = to;
}

static void link_spans(struct walk *w)
{
	uint32_t n = w->trace->spans->len;
	int streams = trace_streams(w->trace), gpus = w->trace->gpus;
	g_autofree uint32_t *on_stream = g_new(uint32_t, streams);
	g_autofree uint32_t *by_rank = g_new(uint32_t, gpus);
	g_autofree uint32_t *counts = g_new(uint32_t, gpus);

	w->before_on_stream = g_new(uint32_t, n);
	w->before_by_rank = g_new(uint32_t, n);
	w->counts_of_rank = g_new(uint32_t, n);
	for (int s = 0; s < streams; s++)
		on_stream[s] = STAGE_NONE;
	for (int r = 0; r < gpus; r++)
		by_rank[r] = counts[r] = STAGE_NONE;
	for (uint32_t i = 0; i < n; i++) {
		const struct span *s = &w->spans[i];

		w->before_on_stream[i] = on_stream[s->stream];
		w->before_by_rank[i] = by_rank[s->rank];
		w->counts_of_rank[i] = counts[s->rank];
		on_stream[s->stream] = i;
		if (s->launch_ns != -1)
			by_rank[s->rank] = i;
		if (s->kind == STAGE_COUNTS)
			counts[s->rank] = i;
	}
}

/* From the end of a launch back along its thread; returns the span that the thread waited for, or STAGE_NONE at the beginning. */
static uint32_t along_launcher(struct walk *w, uint32_t i)
{
	while (w->at_ns > w->from_ns) {
		uint32_t before = w->before_by_rank[i], counts = w->counts_of_rank[i];
		nsec_t before_ns, counts_ns;

		spend(w, w->spans[i].launch_ns, PATH_LAUNCH, N_SPAN_KINDS);
		before_ns = before != STAGE_NONE ? w->spans[before].launch_end_ns : INT64_MIN;
		counts_ns = counts != STAGE_NONE ? w->spans[counts].end_ns : INT64_MIN;
		if (counts_ns <= w->at_ns && counts_ns > before_ns) {
			spend(w, counts_ns, PATH_SYNC, N_SPAN_KINDS);
			return counts;
		}
		spend(w, before_ns, PATH_IDLE, N_SPAN_KINDS);
		i = before;
	}
	return STAGE_NONE;
}

/* Why span i did not start before at_ns: the next span of the walk, or STAGE_NONE at the beginning. */
static uint32_t cause(struct walk *w, uint32_t i)
{
	const struct span *s = &w->spans[i];
	uint32_t best = STAGE_NONE, before = w->before_on_stream[i];
	nsec_t best_ns = INT64_MIN;

	/* Clocks of measured traces may let a predecessor end a little late: it is the cause none the less. */
	for (int k = 0; k < s->n_preds; k++) {
		uint32_t pred = trace_find(w->trace, s->preds[k]);

		if (pred != STAGE_NONE && MIN(w->spans[pred].end_ns, w->at_ns) > best_ns) {
			best = pred;
			best_ns = MIN(w->spans[pred].end_ns, w->at_ns);
		}
	}
	if (before != STAGE_NONE && w->spans[before].end_ns <= w->at_ns && w->spans[before].end_ns > best_ns) {
		best = before;
		best_ns = w->spans[before].end_ns;
	}
	if (s->launch_ns != -1 && s->launch_end_ns <= w->at_ns && s->launch_end_ns > best_ns) {
		spend(w, s->launch_end_ns, PATH_IDLE, N_SPAN_KINDS);
		return along_launcher(w, i);
	}
	spend(w, best_ns, PATH_IDLE, N_SPAN_KINDS);
	return best;
}

static uint32_t last_span(const struct walk *w)
{
	uint32_t last = STAGE_NONE;

	for (uint32_t i = 0; i < w->trace->spans->len; i++) {
		nsec_t end = w->spans[i].end_ns;

		if (end > w->from_ns && end <= w->at_ns && (last == STAGE_NONE || end >= w->spans[last].end_ns))
			last = i;
	}
	return last;
}

static void walk_back(struct walk *w)
{
	uint32_t i = last_span(w);

	if (i != STAGE_NONE)
		spend(w, w->spans[i].end_ns, PATH_IDLE, N_SPAN_KINDS);
	while (i != STAGE_NONE && w->at_ns > w->from_ns) {
		spend(w, w->spans[i].start_ns, trace_stream_kind(w->trace, w->spans[i].stream), w->spans[i].kind);
		i = w->at_ns > w->from_ns ? cause(w, i) : STAGE_NONE;
	}
	spend(w, w->from_ns, PATH_IDLE, N_SPAN_KINDS);
}

static int by_length(gconstpointer a, gconstpointer b)
{
	const struct path_part *x = a, *y = b;

	if (x->ns != y->ns)
		return (x->ns < y->ns) - (x->ns > y->ns);
	return x->resource != y->resource ? x->resource - y->resource : x->kind - y->kind;
}

static void collect(const struct walk *w, struct critical_path *path)
{
	for (int resource = 0; resource < PATH_RESOURCES; resource++) {
		nsec_t sum = 0;

		for (int kind = 0; kind <= N_SPAN_KINDS; kind++) {
			struct path_part part = {resource, kind < N_SPAN_KINDS ? kind : -1, w->n[resource][kind], w->ns[resource][kind]};

			sum += part.ns;
			if (part.ns > 0)
				g_array_append_val(path->parts, part);
		}
		if (sum > path->bound_ns) {
			path->bound_ns = sum;
			path->bound_by = resource;
		}
	}
	g_array_sort(path->parts, by_length);
}

struct critical_path *critical_path_new(const struct trace *trace, int step, GError **error)
{
	int steps = (int)trace->step_end_ns->len;
	g_autofree struct walk *w = g_new0(struct walk, 1);
	struct critical_path *path;

	if (step >= MAX(steps, 1) || step < -1) {
		g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_USAGE, "--step: %d is not one of the trace's steps, 0 to %d", step, MAX(steps, 1) - 1);
		return NULL;
	}
	path = g_new0(struct critical_path, 1);
	path->parts = g_array_new(FALSE, FALSE, sizeof(struct path_part));
	path->bound_by = PATH_IDLE;
	path->step = step >= 0 ? step : MAX(steps, 1) - 1;
	w->trace = trace;
	w->spans = (const struct span *)trace->spans->data;
	w->from_ns = path->step > 0 ? g_array_index(trace->step_end_ns, nsec_t, path->step - 1) : 0;
	w->at_ns = steps > 0 ? g_array_index(trace->step_end_ns, nsec_t, path->step) : trace_end_ns(trace);
	path->step_ns = MAX(w->at_ns - w->from_ns, 0);
	link_spans(w);
	walk_back(w);
	collect(w, path);
	g_free(w->before_on_stream);
	g_free(w->before_by_rank);
	g_free(w->counts_of_rank);
	return path;
}

void critical_path_free(struct critical_path *path)
{
	if (!path)
		return;
	g_array_unref(path->parts);
	g_free(path);
}
