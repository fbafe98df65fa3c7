/* An exchange beside which such kernels run for a share c of its time t does the work of
 *
 *     t (1 - share c)                  (model/resource.c)
 *
 * A recomputation's rows travel while the gradients of its combination are made, those of the backward alone. */
#include "streamed.h"

#include "cover.h"
#include "model/quantile.h"
#include "model/stage.h"
#include "one_way.h"

#include <math.h>

#define ALONE 0.02      /* of a span beside others, and less */
#define ACCOMPANIED 0.1 /* and more */
#define MOST 0.9

static bool exchanges(const struct span *s, int what)
{
	return s->kind == STAGE_ALL_TO_ALL || s->kind == STAGE_ALL_REDUCE;
}

static bool streams(const struct span *s, int what)
{
	return s->kind == STAGE_PERMUTE || s->kind == STAGE_COMBINE || s->kind == STAGE_EMBED;
}

bool streamed_alone(double cover)
{
	return cover <= ALONE;
}

double *streamed_cover(const struct trace *t)
{
	return cover_of(t, exchanges, streams, 0);
}

void streamed_add(const struct trace *trace, const double *cover, GArray *exchanges)
{
	for (guint i = 0; i < trace->spans->len; i++) {
		if (!exchange_pair(trace, i))
			continue;
		const struct span *a = trace_span(trace, i), *b = trace_span(trace, i + 1);
		const bool first = a->end_ns - a->start_ns < b->end_ns - b->start_ns; /* who began earlier waited for the other */
		const struct span *s = first ? a : b;
		struct streamed x = {(double)s->bytes, (double)(s->end_ns - s->start_ns) / 1e3, cover[first ? i : i + 1]};
		if (a->pass != PASS_FORWARD && a->bytes == b->bytes && !span_waited_for_launches(a) && !span_waited_for_launches(b))
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
