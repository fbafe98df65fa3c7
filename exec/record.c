/* Steps wait in a queue, the oldest leaves when a new one comes. Times, steps and stage ids start at 0 only when a trace is asked for:
 *
 *     run     | step 7 |checkpoint| step 8 | step 9 |
 *     trace   | step 0 | step 1 | step 2 |
 *
 * A step lasts from the end of the one before, under which its first stages may have run. */
#include "record.h"

struct record {
	const struct scenario *sc;
	int microbatches, keep;
	GQueue steps; /* struct recorded_step * */
};

static void recorded_step_free(void *step)
{
	struct recorded_step *s = step;
	g_array_unref(s->spans);
	g_free(s->tokens);
	g_free(s->hbm_bytes);
	g_free(s->places);
	g_free(s);
}

struct record *record_new(const struct scenario *sc, int microbatches, int keep)
{
	struct record *r = g_new0(struct record, 1);
	*r = (struct record){.sc = sc, .microbatches = microbatches, .keep = keep};
	g_queue_init(&r->steps);
	return r;
}

void record_free(struct record *r)
{
	if (!r)
		return;
	g_queue_clear_full(&r->steps, recorded_step_free);
	g_free(r);
}

static int by_id(gconstpointer a, gconstpointer b)
{
	const struct span *x = a, *y = b;
	return (x->id > y->id) - (x->id < y->id);
}

void record_step(struct record *r, const struct recorded_step *step)
{
	g_array_sort(step->spans, by_id);
	g_queue_push_tail(&r->steps, g_memdup2(step, sizeof *step));
	while (g_queue_get_length(&r->steps) > (guint)r->keep)
		recorded_step_free(g_queue_pop_head(&r->steps));
}

void record_exact(struct record *r, const GArray *spans)
{
	GList *item = r->steps.head;
	guint at = 0;
	for (guint i = 0; i < spans->len; i++) {
		const struct span *exact = &g_array_index(spans, struct span, i);
		for (; item; item = item->next, at = 0) {
			GArray *kept = ((struct recorded_step *)item->data)->spans;
			while (at < kept->len && g_array_index(kept, struct span, at).id < exact->id)
				at++;
			if (at == kept->len)
				continue;
			if (g_array_index(kept, struct span, at).id == exact->id)
				g_array_index(kept, struct span, at) = *exact;
			break;
		}
	}
}

int record_steps(const struct record *r)
{
	return (int)r->steps.length;
}

/* Predecessors of steps that are not kept have ended before; they are left out. */
static struct span moved(const struct span *from, uint16_t step, stage_id first, nsec_t by_ns)
{
	struct span span = *from;
	span.step = step;
	span.id -= first;
	span.start_ns += by_ns;
	span.end_ns += by_ns;
	if (span.launch_ns != -1) {
		span.launch_ns += by_ns;
		span.launch_end_ns += by_ns;
	}
	span.n_preds = 0;
	for (int i = 0; i < from->n_preds; i++)
		if (from->preds[i] >= first)
			span.preds[span.n_preds++] = from->preds[i] - first;
	return span;
}

/* A run takes its part of the arena once: a sample at the start and at the end of each step. */
static void add_hbm(const struct record *r, struct trace *trace)
{
	for (int gpu = 0; gpu < trace->gpus && r->steps.head; gpu++) {
		struct counter *counter = counter_new("HBM bytes", gpu, -1);
		struct sample sample = {0, (double)((const struct recorded_step *)r->steps.head->data)->hbm_bytes[gpu]};
		g_array_append_val(counter->samples, sample);
		guint step = 0;
		for (const GList *item = r->steps.head; item; item = item->next, step++) {
			sample = (struct sample){g_array_index(trace->step_end_ns, nsec_t, step),
			                         (double)((const struct recorded_step *)item->data)->hbm_bytes[gpu]};
			g_array_append_val(counter->samples, sample);
		}
		g_ptr_array_add(trace->counters, counter);
	}
}

/* The first stages of the oldest step may have run, or been launched, before its time. */
static nsec_t begin_ns(const struct recorded_step *s)
{
	nsec_t begin_ns = s->start_ns;
	for (guint i = 0; i < s->spans->len; i++) {
		const struct span *span = &g_array_index(s->spans, struct span, i);
		begin_ns = MIN(begin_ns, span->launch_ns == -1 ? span->start_ns : MIN(span->launch_ns, span->start_ns));
	}
	return begin_ns;
}

struct trace *record_trace(const struct record *r)
{
	struct trace *trace = trace_new();
	const struct machine *m = r->sc->machine;
	const struct recorded_step *oldest = r->steps.head ? r->steps.head->data : NULL;
	stage_id first = oldest ? oldest->first : 0;
	nsec_t end_ns = oldest ? oldest->start_ns - begin_ns(oldest) : 0;
	uint16_t step = 0;
	trace->gpus = m->gpus;
	trace->gpus_per_node = m->gpus_per_node;
	trace->gpu_name = g_strdup(m->gpu_name);
	trace->hbm_bytes = (uint64_t)(m->hbm_gib * GIB);
	trace->sms = m->sms;
	trace->description = scenario_ini(r->sc);
	for (const GList *item = r->steps.head; item; item = item->next, step++) {
		const struct recorded_step *s = item->data;
		for (guint i = 0; i < s->spans->len; i++) {
			struct span span = moved(&g_array_index(s->spans, struct span, i), step, first, end_ns - s->start_ns);
			g_array_append_val(trace->spans, span);
		}
		end_ns += s->end_ns - s->start_ns;
		g_array_append_val(trace->step_end_ns, end_ns);
	}
	add_hbm(r, trace);
	return trace;
}

void record_loads(const struct record *r, GString *out)
{
	const struct network *n = r->sc->network;
	int microbatch = 0;
	g_string_append(out, "microbatch,layer,gpu,expert,tokens\n");
	for (const GList *item = r->steps.head; item; item = item->next) {
		const uint32_t *tokens = ((const struct recorded_step *)item->data)->tokens;
		for (int mb = 0; mb < r->microbatches; mb++, microbatch++)
			for (int layer = 0; layer < n->layers; layer++)
				for (int i = 0; i < r->sc->machine->gpus * n->layer[layer].experts; i++)
					g_string_append_printf(out, "%d,%d,%d,%d,%u\n", microbatch, layer, i / n->layer[layer].experts,
					                       i % n->layer[layer].experts, *tokens++);
	}
}

bool record_places(const struct record *r, GString *out)
{
	const struct network *n = r->sc->network;
	const struct recorded_step *oldest = r->steps.head ? r->steps.head->data : NULL;
	const struct expert_place *place = oldest ? oldest->places : NULL;
	if (!place)
		return false;
	g_string_append(out, "layer,expert,last,pinned\n");
	for (int layer = 0; layer < n->layers; layer++)
		for (int e = 0; e < n->layer[layer].experts; e++, place++)
			g_string_append_printf(out, "%d,%d,%d,%d\n", layer, e, place->last, place->pinned);
	return true;
}
