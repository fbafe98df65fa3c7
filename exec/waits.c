/* A stage hangs on what ended last: its predecessors, the one before it on its stream, its launch. When that was a predecessor elsewhere, its end
 * woke this stage's stream, and that took time on both sides:
 *
 *     compute   [   stage   ]--wake--[  next  ]
 *     download               `---event---[  copy  ]
 */
#include "waits.h"

#include <stdbool.h>

/* The predecessor that ended last, by its place among the spans; STAGE_NONE: none. */
static uint32_t last_before(const struct trace *trace, const struct span *s)
{
	uint32_t last = STAGE_NONE;
	for (int p = 0; p < s->n_preds; p++) {
		uint32_t at = trace_find(trace, s->preds[p]);
		if (at != STAGE_NONE && (last == STAGE_NONE || trace_span(trace, at)->end_ns > trace_span(trace, last)->end_ns))
			last = at;
	}
	return last;
}

static void add(GArray *list, nsec_t ns, double over)
{
	double us = (double)ns / 1e3 / over;
	g_array_append_val(list, us);
}

/* Who waited for whom: woken (spans) counts the streams that slept until a stage's end. */
static void add_events(struct waits *w, const struct trace *trace, uint8_t *woken)
{
	g_autofree nsec_t *free_ns = g_new0(nsec_t, trace_streams(trace));
	for (guint i = 0; i < trace->spans->len; i++) {
		const struct span *s = trace_span(trace, i);
		const uint32_t at = last_before(trace, s);
		const struct span *before = at == STAGE_NONE ? NULL : trace_span(trace, at);
		if (before && before->stream != s->stream && before->end_ns > free_ns[s->stream] && before->end_ns > s->launch_end_ns &&
		    s->start_ns >= before->end_ns) {
			add(w->event_us, s->start_ns - before->end_ns, 1);
			woken[at]++;
		}
		free_ns[s->stream] = MAX(free_ns[s->stream], s->end_ns);
	}
}

static void add_wakes(struct waits *w, const struct trace *trace, const uint8_t *woken)
{
	g_autofree uint32_t *last = g_new(uint32_t, trace_streams(trace));
	for (int i = 0; i < trace_streams(trace); i++)
		last[i] = STAGE_NONE;
	for (guint i = 0; i < trace->spans->len; i++) {
		const struct span *s = trace_span(trace, i);
		const uint32_t before = last[s->stream], at = last_before(trace, s);
		last[s->stream] = i;
		if (before == STAGE_NONE)
			continue;
		const nsec_t free_ns = trace_span(trace, before)->end_ns;
		if (s->launch_end_ns >= free_ns || s->start_ns < free_ns || (at != STAGE_NONE && trace_span(trace, at)->end_ns > free_ns))
			continue;
		if (woken[before])
			add(w->wake_us, s->start_ns - free_ns, woken[before]);
		else if (s->stream % GPU_STREAMS == STREAM_COMPUTE && s->stream < (stream_id)trace->gpus * GPU_STREAMS)
			add(w->next_us, s->start_ns - free_ns, 1);
	}
}

/* Of GPU 0: behind a gate, or the exchange of counts of several GPUs. */
static void add_syncs(const struct trace *trace, int kind, GArray *list)
{
	const struct span *asked = NULL;
	for (guint i = 0; i < trace->spans->len; i++) {
		const struct span *s = trace_span(trace, i);
		if (s->rank == 0 && s->kind == kind && s->pass == PASS_FORWARD) {
			asked = s;
		} else if (s->rank == 0 && asked && s->kind == STAGE_PERMUTE) {
			if (s->launch_ns > asked->end_ns)
				add(list, s->start_ns - asked->end_ns, 1);
			asked = NULL;
		}
	}
}

void waits_add(struct waits *w, const struct trace *trace)
{
	if (trace->gpus > 1) {
		add_syncs(trace, STAGE_COUNTS, w->sync_all_us);
		return;
	}
	g_autofree uint8_t *woken = g_new0(uint8_t, trace->spans->len + 1);
	add_events(w, trace, woken);
	add_wakes(w, trace, woken);
	add_syncs(trace, STAGE_GATE, w->sync_us);
}
