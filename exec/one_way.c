/* NCCL's kernels copy what a GPU sends and what it receives with one and the same set of SMs, so links that are full duplex are not used as such.
 * With t(n) the time for n bytes both ways, one of `most` and `least` bytes takes t(least + share (most - least)), where as much is moved
 * within a GPU. */
#include "one_way.h"

#include "model/quantile.h"

#include <math.h>

#define LEAST_SHARE 0.5 /* both directions one after the other take no longer than at once */

bool exchange_pair(const struct trace *trace, guint i)
{
	if (trace->gpus != 2 || i + 1 >= trace->spans->len)
		return false;
	const struct span *a = trace_span(trace, i), *b = trace_span(trace, i + 1);
	return a->kind == STAGE_ALL_TO_ALL && b->kind == STAGE_ALL_TO_ALL && a->step == b->step && a->layer == b->layer && a->pass == b->pass &&
	       a->microbatch == b->microbatch && b->rank != a->rank;
}

void one_way_add(const struct trace *trace, const struct unequal_rows *rows, GArray *exchanges)
{
	for (guint i = 0; i < trace->spans->len; i++) {
		if (!exchange_pair(trace, i))
			continue;
		const struct span *a = trace_span(trace, i), *b = trace_span(trace, i + 1);
		nsec_t ns = MIN(a->end_ns - a->start_ns, b->end_ns - b->start_ns); /* who began first waited for the other */
		struct unequal u = {.us = (double)ns / 1e3, .most = (double)MAX(a->bytes, b->bytes), .least = (double)MIN(a->bytes, b->bytes)};
		u.moved = rows->bytes - u.least + (rows->apart ? u.most : 0); /* who sends less has more that stays, and that comes */
		if (!span_waited_for_launches(a) && !span_waited_for_launches(b))
			g_array_append_val(exchanges, u);
		i++;
	}
}

/* How many bytes both ways take so long; from least to most. */
static double bytes_of(const struct measured_table *table, const struct unequal *u, double move_ns)
{
	double least = u->least, most = u->most;
	for (int i = 0; i < 40; i++) {
		double middle = (least + most) / 2, ns = 0;
		if (measured_ns(table, middle, &ns) != MEASURED_NONE && ns + (u->moved - 2 * middle) * move_ns < u->us * 1e3)
			least = middle;
		else
			most = middle;
	}
	return (least + most) / 2;
}

double one_way_share(const GArray *exchanges, const struct measured_table *table, double move_ns, double otherwise)
{
	g_autoptr(GArray) shares = g_array_new(FALSE, FALSE, sizeof(double));
	for (guint i = 0; table->sizes.n && i < exchanges->len; i++) {
		const struct unequal *u = &g_array_index(exchanges, struct unequal, i);
		double more = u->most - u->least;
		if (more < u->most / 3)
			continue;
		double share = (bytes_of(table, u, move_ns) - u->least) / more;
		g_array_append_val(shares, share);
	}
	if (!shares->len)
		return otherwise;
	return fmax(LEAST_SHARE, quantile_median((double *)(void *)shares->data, (int)shares->len));
}
