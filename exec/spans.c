/* Ended stages as spans of a trace. A collective begins for all its members when the last one has come: until then they only wait for each other. Its
 * start is known when all members are, so spans stay here until the trace is asked for. */
#include "world.h"

#include <string.h>

struct traced {
	struct span span;
	struct group *group;
};

void group_unref(struct group *g)
{
	if (g && --g->holders == 0)
		g_free(g);
}

void spans_init(struct exec *x)
{
	x->spans = g_array_new(FALSE, FALSE, sizeof(struct traced));
}

void spans_clear(struct exec *x)
{
	for (guint i = 0; i < x->spans->len; i++)
		group_unref(g_array_index(x->spans, struct traced, i).group);
	g_array_unref(x->spans);
}

static struct span span_of(const struct exec *x, const struct record *r)
{
	struct span span = {
	    .id = r->stage.id,
	    .kind = r->stage.kind,
	    .pass = r->stage.pass,
	    .step = r->step,
	    .layer = r->stage.layer,
	    .microbatch = r->stage.microbatch,
	    .expert = r->stage.expert,
	    .rank = r->stage.rank,
	    .stream = r->stage.stream,
	    .tokens = r->stage.tokens,
	    .bytes = r->stage.bytes,
	    .launch_ns = r->launch_ns,
	    .launch_end_ns = r->launch_end_ns,
	    .start_ns = r->start_ns,
	    .end_ns = r->end_ns,
	    .n_preds = r->stage.n_preds,
	};
	memcpy(span.preds, r->stage.preds, sizeof span.preds);
	return span;
}

void spans_add(struct exec *x, struct record *r)
{
	struct traced traced = {span_of(x, r), r->group};
	if (r->noted)
		return;
	r->noted = true;
	r->group = NULL;
	g_array_append_val(x->spans, traced);
}

/* Stages that have ended and still have users are not retired, and those behind them neither. */
static void note_before(struct exec *x, stage_id before)
{
	exec_note(x);
	for (stage_id id = x->oldest; id < before; id++) {
		struct record *r = x->live[id & (x->ring - 1)];
		g_assert(r->ended);
		if (r->end)
			spans_add(x, r);
	}
}

static struct traced *traced_at(const struct exec *x, guint i)
{
	return &g_array_index(x->spans, struct traced, i);
}

/* They are noted in the order of their ids. */
static guint first_from(const struct exec *x, stage_id id)
{
	guint low = 0, high = x->spans->len;
	while (low < high) {
		guint middle = low + (high - low) / 2;
		if (traced_at(x, middle)->span.id < id)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

/* When their work really ran, where the device knows. Its clock is not that of the events, so all of a group's come from it. */
static void take_times(struct exec *x)
{
	device_stages_ended(x->devices[x->first]);
	for (guint i = 0; i < x->spans->len; i++) {
		struct span *span = &traced_at(x, i)->span;
		if (on_gpu(x, span->stream))
			(void)device_stage_times(x->devices[span->rank], span->id, &span->start_ns, &span->end_ns);
	}
}

/* When the last member of each group began. */
static void start_groups(struct exec *x, guint from, guint to)
{
	for (guint i = from; i < to; i++)
		if (traced_at(x, i)->group)
			traced_at(x, i)->group->start_ns = 0;
	for (guint i = from; i < to; i++) {
		struct traced *traced = traced_at(x, i);
		if (traced->group)
			traced->group->start_ns = MAX(traced->group->start_ns, traced->span.start_ns);
	}
}

/* Clocks of GPUs differ by microseconds. */
static struct span started(const struct traced *traced)
{
	struct span span = traced->span;
	if (traced->group)
		span.start_ns = MIN(traced->group->start_ns, span.end_ns);
	return span;
}

static void step_end(struct exec *x, struct trace *trace, uint16_t step, nsec_t end_ns)
{
	GArray *ends = trace->step_end_ns;
	x->traced_end_ns = MAX(x->traced_end_ns, end_ns);
	if (!ends->len || step != x->traced_step)
		g_array_append_val(ends, x->traced_end_ns);
	g_array_index(ends, nsec_t, ends->len - 1) = x->traced_end_ns;
	x->traced_step = step;
}

void exec_spans(struct backend *b, stage_id from, stage_id to, GArray *spans)
{
	struct exec *x = exec_of(b);
	note_before(x, to);
	guint first = first_from(x, from), end = first_from(x, to);
	start_groups(x, first, end);
	for (guint i = first; i < end; i++) {
		struct span span = started(traced_at(x, i));
		g_array_append_val(spans, span);
	}
}

void exec_trace(struct backend *b, stage_id before, struct trace *trace)
{
	struct exec *x = exec_of(b);
	g_assert(!b->failed);
	for (int i = 0; i < x->n_streams && before == b->n_launched; i++)
		if (x->last[i] != STAGE_NONE && !b->impl->wait(b, x->last[i], NULL))
			return; /* the next call says why */
	note_before(x, before);
	trace->gpus = x->m->gpus;
	trace->gpus_per_node = x->m->gpus_per_node;
	g_free(trace->gpu_name);
	trace->gpu_name = g_strdup(x->m->gpu_name);
	trace->hbm_bytes = (uint64_t)(x->m->hbm_gib * GIB);
	trace->sms = x->m->sms;
	if (before == b->n_launched)
		take_times(x);
	guint n = first_from(x, before);
	start_groups(x, 0, n);
	for (guint i = 0; i < n; i++) {
		struct span span = started(traced_at(x, i));
		step_end(x, trace, span.step, span.end_ns);
		g_array_append_val(trace->spans, span);
	}
	for (guint i = 0; i < n; i++)
		group_unref(traced_at(x, i)->group);
	g_array_remove_range(x->spans, 0, n);
}
