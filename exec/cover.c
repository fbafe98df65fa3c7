#include "cover.h"

static GPtrArray **chosen_by_rank(const struct trace *t, cover_choice by, int what)
{
	GPtrArray **chosen = g_new(GPtrArray *, t->gpus);
	for (int rank = 0; rank < t->gpus; rank++)
		chosen[rank] = g_ptr_array_new();
	for (guint i = 0; i < t->spans->len; i++) {
		const struct span *s = trace_span(t, i);
		if (s->rank >= 0 && s->rank < t->gpus && by(s, what))
			g_ptr_array_add(chosen[s->rank], (gpointer)s);
	}
	return chosen;
}

double *cover_of(const struct trace *t, cover_choice covered, cover_choice by, int what)
{
	double *cover = g_new0(double, t->spans->len + 1);
	g_autofree GPtrArray **chosen = chosen_by_rank(t, by, what);
	g_autofree guint *first = g_new0(guint, t->gpus); /* of those that may still be beside */
	for (guint i = 0; i < t->spans->len; i++) {
		const struct span *s = trace_span(t, i), *x;
		if (s->rank < 0 || s->rank >= t->gpus || !covered(s, what) || s->end_ns <= s->start_ns)
			continue;
		const GPtrArray *others = chosen[s->rank];
		guint *from = &first[s->rank];
		while (*from < others->len && ((const struct span *)others->pdata[*from])->end_ns <= s->start_ns)
			(*from)++;
		for (guint k = *from; k < others->len && (x = others->pdata[k])->start_ns < s->end_ns; k++)
			cover[i] += (double)(MIN(x->end_ns, s->end_ns) - MAX(x->start_ns, s->start_ns)) / (double)(s->end_ns - s->start_ns);
	}
	for (int rank = 0; rank < t->gpus; rank++)
		g_ptr_array_unref(chosen[rank]);
	return cover;
}
