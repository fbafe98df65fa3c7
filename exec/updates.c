/* Copies cost Adam what the contention table says of all its threads: with uploads beside it for a share u of its time, and downloads for d, it takes
 *
 *     1 + u (adam / adam_u - 1) + d (adam / adam_d - 1)
 *
 * times as long as alone. Parameters that go up again as soon as they are updated are beside the next update for a third of it (18.9 million each,
 * one H200): 3 % that are not the update's own.
 *
 * The first updates after a rest find threads asleep: 8 million parameters 1.38 and 1.30 ms on 29 cores, 1.13 and 1.09 the others (medians of two
 * runs of a calibration of 2026-11-29). A run has one such rest a step. */
#include "updates.h"

#include "cover.h"

#define REST_NS 100000

enum { WAKING = 3 /* as many as are in flight */ };

static bool on_host(const struct span *s, int stream)
{
	return s->kind == STAGE_ADAM || s->kind == STAGE_ACCUMULATE;
}

/* So much longer takes all of it beside those copies. */
static double longer(const struct contention_table *t, const struct ini_doubles *beside)
{
	const int last = t->adam.n - 1;
	return last > 0 && beside->n == t->adam.n && beside->v[last] > 0 ? t->adam.v[last] / beside->v[last] - 1 : 0;
}

double *updates_usual(const struct trace *t, const struct machine *m, double alone)
{
	g_autofree double *up = cover_of(t, on_host, cover_on_stream, STREAM_UPLOAD), *down = cover_of(t, on_host, cover_on_stream, STREAM_DOWNLOAD);
	const double speed = alone > 0 && m->adam_alone_gparams_per_s > 0 ? alone / m->adam_alone_gparams_per_s : 1,
	             by_up = longer(&m->table, &m->table.adam_u), by_down = longer(&m->table, &m->table.adam_d);
	double *usual = g_new(double, t->spans->len + 1);
	for (guint i = 0; i < t->spans->len; i++)
		usual[i] = on_host(trace_span(t, i), 0) ? speed / (1 + up[i] * by_up + down[i] * by_down) : 1;
	return usual;
}

bool *updates_waking(const struct trace *t)
{
	bool *waking = g_new0(bool, t->spans->len + 1);
	nsec_t end_ns = 0;
	for (guint i = 0, n = 0; i < t->spans->len; i++) {
		const struct span *s = trace_span(t, i);
		if (s->kind != STAGE_ADAM)
			continue;
		n = s->start_ns - end_ns > REST_NS ? 0 : n;
		end_ns = s->end_ns;
		waking[i] = n++ < WAKING;
	}
	return waking;
}
