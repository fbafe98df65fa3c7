/* An exchange beside which such kernels run for a share c of its time t does the work of
 *
 *     t (1 - share c)                  (model/resource.c)
 *
 * A recomputation's rows travel while the gradients of its combination are made, those of the backward alone. */
#include "streamed.h"

#include "model/quantile.h"
#include "model/stage.h"

#include <math.h>
#include <stdlib.h>

#define ALONE 0.02      /* of a span beside others, and less */
#define ACCOMPANIED 0.1 /* and more */
#define MOST 0.9

static bool streams(const struct span *s)
{
	return s->kind == STAGE_PERMUTE || s->kind == STAGE_COMBINE;
}

bool streamed_alone(double cover)
{
	return cover <= ALONE;
}

double *streamed_cover(const struct trace *t)
{
	double *cover = g_new0(double, t->spans->len + 1);
	g_autofree guint *first = g_new0(guint, t->gpus);
	g_autoptr(GPtrArray) all = g_ptr_array_new_with_free_func((GDestroyNotify)g_ptr_array_unref);
	for (int gpu = 0; gpu < t->gpus; gpu++)
		g_ptr_array_add(all, g_ptr_array_new());
	for (guint i = 0; i < t->spans->len; i++)
		if (streams(trace_span(t, i)) && trace_span(t, i)->rank < t->gpus)
			g_ptr_array_add(all->pdata[trace_span(t, i)->rank], (gpointer)trace_span(t, i));
	for (guint i = 0; i < t->spans->len; i++) {
		const struct span *s = trace_span(t, i), *x;
		if (s->kind != STAGE_ALL_TO_ALL || s->rank >= t->gpus || s->end_ns <= s->start_ns)
			continue;
		const GPtrArray *mine = all->pdata[s->rank];
		guint *from = &first[s->rank];
		while (*from < mine->len && ((const struct span *)mine->pdata[*from])->end_ns <= s->start_ns)
			(*from)++;
		for (guint k = *from; k < mine->len && (x = mine->pdata[k])->start_ns < s->end_ns; k++)
			cover[i] += (double)(MIN(x->end_ns, s->end_ns) - MAX(x->start_ns, s->start_ns)) / (double)(s->end_ns - s->start_ns);
	}
	return cover;
}

static bool same_exchange(const struct span *a, const struct span *b)
{
	return b->kind == STAGE_ALL_TO_ALL && a->step == b->step && a->layer == b->layer && a->pass == b->pass && a->microbatch == b->microbatch &&
	       b->rank != a->rank && a->bytes == b->bytes;
}

void streamed_add(const struct trace *trace, const double *cover, GArray *exchanges)
{
	for (guint i = 0; trace->gpus == 2 && i + 1 < trace->spans->len; i++) {
		const struct span *a = trace_span(trace, i), *b = trace_span(trace, i + 1);
		if (a->kind != STAGE_ALL_TO_ALL || a->pass == PASS_FORWARD || !same_exchange(a, b))
			continue;
		const bool first = a->end_ns - a->start_ns < b->end_ns - b->start_ns; /* who began earlier waited for the other */
		const struct span *s = first ? a : b;
		struct streamed x = {(double)s->bytes, (double)(s->end_ns - s->start_ns) / 1e3, cover[first ? i : i + 1]};
		if (!span_waited_for_launches(a) && !span_waited_for_launches(b))
			g_array_append_val(exchanges, x);
		i++;
	}
}

static gint by_bytes(gconstpointer a, gconstpointer b)
{
	const struct streamed *x = a, *y = b;
	return (x->bytes > y->bytes) - (x->bytes < y->bytes);
}

/* Of exchanges of one size. */
static void add_shares(const struct streamed *x, guint n, GArray *shares)
{
	g_autoptr(GArray) alone = g_array_new(FALSE, FALSE, sizeof(double));
	for (guint i = 0; i < n; i++)
		if (streamed_alone(x[i].cover))
			g_array_append_val(alone, x[i].us);
	if (!alone->len)
		return;
	const double base = quantile_median((double *)(void *)alone->data, (int)alone->len);
	for (guint i = 0; i < n; i++) {
		const double share = (1 - base / x[i].us) / x[i].cover;
		if (x[i].cover >= ACCOMPANIED)
			g_array_append_val(shares, share);
	}
}

double streamed_share(const GArray *exchanges)
{
	g_autoptr(GArray) sorted = g_array_copy((GArray *)exchanges);
	g_autoptr(GArray) shares = g_array_new(FALSE, FALSE, sizeof(double));
	g_array_sort(sorted, by_bytes);
	const struct streamed *x = (const struct streamed *)(const void *)sorted->data;
	for (guint first = 0, end; first < sorted->len; first = end) {
		for (end = first; end < sorted->len && x[end].bytes == x[first].bytes; end++)
			continue;
		add_shares(x + first, end - first, shares);
	}
	return shares->len ? CLAMP(quantile_median((double *)(void *)shares->data, (int)shares->len), 0, MOST) : 0;
}
