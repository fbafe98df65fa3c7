#include "cover.h"

/* Of one rank, in the order of their time. */
typedef GArray *intervals; /* struct interval */
struct interval {
	nsec_t start_ns, end_ns;
};

bool cover_computes(const struct span *s, int what)
{
	return cover_on_stream(s, STREAM_COMPUTE);
}

bool cover_on_stream(const struct span *s, int stream)
{
	return s->stream == stream_of_gpu(s->rank, (enum gpu_stream)stream);
}

static intervals *intervals_new(const struct trace *t)
{
	intervals *of = g_new(intervals, t->gpus);
	for (int rank = 0; rank < t->gpus; rank++)
		of[rank] = g_array_new(FALSE, FALSE, sizeof(struct interval));
	return of;
}

static void intervals_free(const struct trace *t, intervals *of)
{
	for (int rank = 0; rank < t->gpus; rank++)
		g_array_unref(of[rank]);
	g_free(of);
}

static intervals *chosen_by_rank(const struct trace *t, cover_choice by, int what)
{
	intervals *chosen = intervals_new(t);
	for (guint i = 0; i < t->spans->len; i++) {
		const struct span *s = trace_span(t, i);
		const struct interval x = {s->start_ns, s->end_ns};
		if (s->rank >= 0 && s->rank < t->gpus && by(s, what))
			g_array_append_val(chosen[s->rank], x);
	}
	return chosen;
}

/* In which both are; each of them one behind the other. */
static void intersect(const GArray *one, const GArray *other, GArray *out)
{
	for (guint i = 0, j = 0; i < one->len && j < other->len;) {
		const struct interval a = g_array_index(one, struct interval, i), b = g_array_index(other, struct interval, j);
		const struct interval x = {MAX(a.start_ns, b.start_ns), MIN(a.end_ns, b.end_ns)};
		if (x.start_ns < x.end_ns)
			g_array_append_val(out, x);
		i += a.end_ns <= b.end_ns;
		j += a.end_ns > b.end_ns;
	}
}

static double *cover(const struct trace *t, cover_choice covered, int what, const intervals *others)
{
	double *cover = g_new0(double, t->spans->len + 1);
	g_autofree guint *first = g_new0(guint, t->gpus); /* of those that may still be beside */
	for (guint i = 0; i < t->spans->len; i++) {
		const struct span *s = trace_span(t, i);
		if (s->rank < 0 || s->rank >= t->gpus || !covered(s, what) || s->end_ns <= s->start_ns)
			continue;
		const GArray *x = others[s->rank];
		guint *from = &first[s->rank];
		while (*from < x->len && g_array_index(x, struct interval, *from).end_ns <= s->start_ns)
			(*from)++;
		for (guint k = *from; k < x->len && g_array_index(x, struct interval, k).start_ns < s->end_ns; k++) {
			const struct interval o = g_array_index(x, struct interval, k);
			cover[i] += (double)(MIN(o.end_ns, s->end_ns) - MAX(o.start_ns, s->start_ns)) / (double)(s->end_ns - s->start_ns);
		}
	}
	return cover;
}

double *cover_of(const struct trace *t, cover_choice covered, cover_choice by, int what)
{
	intervals *chosen = chosen_by_rank(t, by, what);
	double *result = cover(t, covered, what, chosen);
	intervals_free(t, chosen);
	return result;
}

double *cover_of_both(const struct trace *t, cover_choice covered, cover_choice by, int one, int other)
{
	intervals *a = chosen_by_rank(t, by, one), *b = chosen_by_rank(t, by, other), *both = intervals_new(t);
	for (int rank = 0; rank < t->gpus; rank++)
		intersect(a[rank], b[rank], both[rank]);
	double *result = cover(t, covered, one, both);
	intervals_free(t, a);
	intervals_free(t, b);
	intervals_free(t, both);
	return result;
}
