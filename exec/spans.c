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

void spans_add(struct exec *x, const struct record *r)
{
	struct traced traced = {span_of(x, r), r->group};
	g_array_append_val(x->spans, traced);
}

/* When their work really ran, where the device knows; and when the last member of a group began. Its clock is not that of the events, so all of a
 * group's come from it. */
static void take_times(struct exec *x)
{
	for (guint i = 0; i < x->spans->len; i++) {
		struct traced *traced = &g_array_index(x->spans, struct traced, i);
		struct span *span = &traced->span;
		if (on_gpu(x, span->stream))
			(void)device_stage_times(x->devices[span->rank], span->id, &span->start_ns, &span->end_ns);
		if (traced->group)
			traced->group->start_ns = MAX(traced->group->start_ns, span->start_ns);
	}
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

void exec_trace(struct backend *b, struct trace *trace)
{
	struct exec *x = exec_of(b);
	g_assert(!b->failed);
	for (int i = 0; i < x->n_streams; i++)
		if (x->last[i] != STAGE_NONE && !b->impl->wait(b, x->last[i], NULL))
			return; /* the next call says why */
	device_stages_ended(x->devices[x->first]);
	trace->gpus = x->m->gpus;
	trace->gpus_per_node = x->m->gpus_per_node;
	g_free(trace->gpu_name);
	trace->gpu_name = g_strdup(x->m->gpu_name);
	trace->hbm_bytes = (uint64_t)(x->m->hbm_gib * GIB);
	trace->sms = x->m->sms;
	take_times(x);
	for (guint i = 0; i < x->spans->len; i++) {
		struct traced *traced = &g_array_index(x->spans, struct traced, i);
		if (traced->group) /* clocks of GPUs differ by microseconds */
			traced->span.start_ns = MIN(traced->group->start_ns, traced->span.end_ns);
		group_unref(traced->group);
		step_end(x, trace, traced->span.step, traced->span.end_ns);
		g_array_append_val(trace->spans, traced->span);
	}
	g_array_set_size(x->spans, 0);
}
