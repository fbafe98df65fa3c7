#include "alone.h"

#include "model/quantile.h"

#include <stdbool.h>

#define BESIDE 0.05 /* of an update */

struct interval {
	nsec_t start_ns, end_ns;
};

static int by_start(gconstpointer a, gconstpointer b)
{
	const struct interval *x = a, *y = b;
	return (x->start_ns > y->start_ns) - (x->start_ns < y->start_ns);
}

static int node_of(const struct trace *trace, const struct span *s)
{
	return s->rank / trace->gpus_per_node;
}

/* When something is copied between a node's GPUs and its host, apart from each other. */
static GArray *copies_of(const struct trace *trace, int node)
{
	GArray *copies = g_array_new(FALSE, FALSE, sizeof(struct interval));
	for (guint i = 0; i < trace->spans->len; i++) {
		const struct span *s = &g_array_index(trace->spans, struct span, i);
		struct interval x = {s->start_ns, s->end_ns};
		if ((s->kind == STAGE_UPLOAD || s->kind == STAGE_DOWNLOAD) && node_of(trace, s) == node)
			g_array_append_val(copies, x);
	}
	g_array_sort(copies, by_start);
	guint kept = 0;
	for (guint i = 0; i < copies->len; i++) {
		struct interval *last = kept ? &g_array_index(copies, struct interval, kept - 1) : NULL,
		                x = g_array_index(copies, struct interval, i);
		if (last && x.start_ns <= last->end_ns)
			last->end_ns = MAX(last->end_ns, x.end_ns);
		else
			g_array_index(copies, struct interval, kept++) = x;
	}
	return g_array_set_size(copies, kept);
}

static bool alone(const GArray *copies, const struct span *s)
{
	guint low = 0, high = copies->len;
	nsec_t beside_ns = 0;
	while (low < high) { /* the first that ends after the update has begun */
		guint middle = (low + high) / 2;
		if (g_array_index(copies, struct interval, middle).end_ns > s->start_ns)
			high = middle;
		else
			low = middle + 1;
	}
	for (; low < copies->len && g_array_index(copies, struct interval, low).start_ns < s->end_ns; low++) {
		const struct interval *x = &g_array_index(copies, struct interval, low);
		beside_ns += MIN(x->end_ns, s->end_ns) - MAX(x->start_ns, s->start_ns);
	}
	return (double)beside_ns <= BESIDE * (double)(s->end_ns - s->start_ns);
}

GArray *alone_adam_ms(const struct trace *trace)
{
	GArray *ms = g_array_new(FALSE, FALSE, sizeof(double));
	const guint steps = trace->step_end_ns->len;
	g_autofree double *sum = g_new0(double, steps + 1), *n = g_new0(double, steps + 1);
	const int nodes = (trace->gpus + trace->gpus_per_node - 1) / trace->gpus_per_node;
	for (int node = 0; node < nodes; node++) {
		g_autoptr(GArray) copies = copies_of(trace, node);
		for (guint i = 0; i < trace->spans->len; i++) {
			const struct span *s = &g_array_index(trace->spans, struct span, i);
			if (s->kind != STAGE_ADAM || s->step >= steps || node_of(trace, s) != node || !alone(copies, s))
				continue;
			sum[s->step] += (double)(s->end_ns - s->start_ns) / 1e6;
			n[s->step]++;
		}
	}
	for (guint i = 0; i < steps; i++) {
		double mean = n[i] ? sum[i] / n[i] : 0;
		if (n[i])
			g_array_append_val(ms, mean);
	}
	if (ms->len)
		quantile_sort((double *)(void *)ms->data, (int)ms->len);
	return ms;
}
