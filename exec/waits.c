/* A stage hangs on what ended last: its predecessors, the one before it on its stream, its launch. When that was a predecessor elsewhere, its end
 * woke this stage's stream, and that took time on both sides:
 *
 *     compute   [   stage   ]--wake--[  next  ]
 *     download               `---event---[  copy  ]
 */
#include "waits.h"

#include "model/quantile.h"

#include <math.h>

enum { LIKE_LEAST = 8 /* launches of a kind */ };

static GArray **lists(struct waits *w, size_t i)
{
	GArray **named[] = {&w->sync_us, &w->sync_all_us, &w->sync_adam_us, &w->first_us, &w->first_adam_us, &w->event_us, &w->wake_us, &w->next_us};
	const size_t n = G_N_ELEMENTS(named);
	return i < n ? named[i] : i < n + 2 * N_STAGE_KINDS ? &w->launch_us[(i - n) / N_STAGE_KINDS][(i - n) % N_STAGE_KINDS] : NULL;
}

void waits_init(struct waits *w)
{
	GArray **list;
	for (size_t i = 0; (list = lists(w, i)); i++)
		*list = g_array_new(FALSE, FALSE, sizeof(double));
}

void waits_clear(struct waits *w)
{
	GArray **list;
	for (size_t i = 0; (list = lists(w, i)); i++)
		g_clear_pointer(list, g_array_unref);
}

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

/* ---- beside CPU Adam ---- */

/* Updates of a node follow each other. Owned by the caller. */
static GPtrArray *updates_of(const struct trace *trace)
{
	GPtrArray *updates = g_ptr_array_new();
	for (guint i = 0; i < trace->spans->len; i++)
		if (trace_span(trace, i)->kind == STAGE_ADAM && trace_stream_node(trace, trace_span(trace, i)->stream) == 0)
			g_ptr_array_add(updates, (gpointer)trace_span(trace, i));
	return updates;
}

static bool any_at(const GPtrArray *updates, nsec_t ns)
{
	guint low = 0, high = updates->len; /* the first that begins later */
	while (low < high) {
		const guint middle = (low + high) / 2;
		if (((const struct span *)updates->pdata[middle])->start_ns <= ns)
			low = middle + 1;
		else
			high = middle;
	}
	return low > 0 && ((const struct span *)updates->pdata[low - 1])->end_ns > ns;
}

/* What the host launched next on GPU 0, but for the permutation, for which it need not wait. */
static const struct span *launched_next(const struct trace *trace, guint asked)
{
	const nsec_t end_ns = trace_span(trace, asked)->end_ns;
	for (guint i = asked + 1; i < trace->spans->len; i++) {
		const struct span *s = trace_span(trace, i);
		if (s->rank == 0 && s->launch_ns >= 0 && s->kind != STAGE_COUNTS && (s->kind != STAGE_PERMUTE || s->launch_ns > end_ns))
			return s;
	}
	return NULL;
}

/* The middle of what launching stages of each kind took, outside of the backward, where launchers are far ahead; -1: nothing did. */
static void usual_launches(const struct trace *trace, const GPtrArray *updates, bool adam, nsec_t usual[N_STAGE_KINDS])
{
	GArray *list[N_STAGE_KINDS];
	for (int kind = 0; kind < N_STAGE_KINDS; kind++)
		list[kind] = g_array_new(FALSE, FALSE, sizeof(double));
	for (guint i = 0; i < trace->spans->len; i++) {
		const struct span *s = trace_span(trace, i);
		if (s->rank == 0 && s->launch_ns >= 0 && s->kind < N_STAGE_KINDS && s->pass != PASS_BACKWARD && s->pass != PASS_RECOMPUTE &&
		    any_at(updates, s->launch_ns) == adam)
			add(list[s->kind], s->launch_end_ns - s->launch_ns, 1e-3);
	}
	for (int kind = 0; kind < N_STAGE_KINDS; kind++) {
		usual[kind] = list[kind]->len ? (nsec_t)quantile_median((double *)(void *)list[kind]->data, (int)list[kind]->len) : -1;
		g_array_unref(list[kind]);
	}
}

/* Of GPU 0: behind a gate, or the exchange of counts of several GPUs, whose launch an exchange is, with a rule of its own. */
void waits_add_syncs(struct waits *w, const struct trace *trace)
{
	const int kind = trace->gpus > 1 ? STAGE_COUNTS : STAGE_GATE;
	g_autoptr(GPtrArray) updates = updates_of(trace);
	nsec_t usual[2][N_STAGE_KINDS];
	for (int adam = 0; adam < 2; adam++)
		usual_launches(trace, updates, adam, usual[adam]);
	for (guint i = 0; i < trace->spans->len; i++) {
		const struct span *s = trace_span(trace, i), *next;
		if (s->rank != 0 || s->kind != kind || s->pass != PASS_FORWARD || !(next = launched_next(trace, i)) || next->launch_ns <= s->end_ns)
			continue;
		const bool adam = any_at(updates, s->end_ns);
		if (trace->gpus == 1) {
			const nsec_t like = usual[any_at(updates, next->launch_ns)][next->kind];
			add(adam ? w->sync_adam_us : w->sync_us, next->launch_ns - s->end_ns, 1);
			add(adam ? w->first_adam_us : w->first_us, next->launch_end_ns - next->launch_ns - MAX(0, like), 1);
		} else if (!adam) {
			add(w->sync_all_us, next->launch_ns - s->end_ns, 1);
		}
	}
}

double waits_adam_slowdown(const struct waits *w)
{
	double slowdown[N_STAGE_KINDS];
	int n = 0;
	for (int kind = 0; kind < N_STAGE_KINDS; kind++) {
		GArray *alone = w->launch_us[0][kind], *beside = w->launch_us[1][kind];
		if (alone->len >= LIKE_LEAST && beside->len >= LIKE_LEAST)
			slowdown[n++] = quantile_median((double *)(void *)beside->data, (int)beside->len) /
			                quantile_median((double *)(void *)alone->data, (int)alone->len);
	}
	return n ? fmax(quantile_median(slowdown, n), 1) : 1;
}

void waits_add_streams(struct waits *w, const struct trace *trace)
{
	g_autofree uint8_t *woken = g_new0(uint8_t, trace->spans->len + 1);
	add_events(w, trace, woken);
	add_wakes(w, trace, woken);
}

void waits_add_launches(struct waits *w, const struct trace *trace)
{
	g_autoptr(GPtrArray) updates = updates_of(trace);
	for (guint i = 0; i < trace->spans->len; i++) {
		const struct span *s = trace_span(trace, i);
		if (s->stream == STREAM_COMPUTE && s->pass == PASS_FORWARD && s->kind < N_STAGE_KINDS && s->launch_ns >= 0)
			add(w->launch_us[any_at(updates, s->launch_ns)][s->kind], s->launch_end_ns - s->launch_ns, 1);
	}
}
