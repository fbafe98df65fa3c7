/* Copies cost Adam what the contention table says of all its threads: with so many uploads and downloads beside it, it does a share of the work that
 * it does alone,
 *
 *     copies            [ upload 0 ]   [ download 1 ]
 *                             [ upload 1 ]
 *     an update     |  1 | u  | uu |u|1|  d  |              and all of it is what it would have taken
 *
 * Parameters that go up again as soon as they are updated are beside the next update for a third of it (18.9 million each, one H200): 3 % that are
 * not the update's own.
 *
 * The first updates after a rest find threads asleep: 8 million parameters 1.38 and 1.30 ms on 29 cores, 1.13 and 1.09 the others (medians of two
 * runs of a calibration of 2026-11-29). A run has one such rest a step. */
#include "updates.h"

#include <math.h>

#define REST_NS 100000

enum { WAKING = 3 /* as many as are in flight */, COLUMNS = 3 /* none, one, two and more */ };

static bool on_host(const struct span *s)
{
	return s->kind == STAGE_ADAM || s->kind == STAGE_ACCUMULATE;
}

/* ---- copies beside updates ---- */

/* From then on so many copies are under way, until the next one. */
struct copies {
	nsec_t ns;
	int up, down;
};

static gint by_time(gconstpointer a, gconstpointer b)
{
	const struct copies *x = a, *y = b;
	return (x->ns > y->ns) - (x->ns < y->ns);
}

static bool copies_up(const struct span *s)
{
	return s->stream == stream_of_gpu(s->rank, STREAM_UPLOAD);
}

/* Owned by the caller. */
static GArray *copies_of(const struct trace *t)
{
	GArray *copies = g_array_new(FALSE, FALSE, sizeof(struct copies));
	for (guint i = 0; i < t->spans->len; i++) {
		const struct span *s = trace_span(t, i);
		const bool up = copies_up(s);
		if (s->rank < 0 || s->rank >= t->gpus || (!up && s->stream != stream_of_gpu(s->rank, STREAM_DOWNLOAD)))
			continue;
		const struct copies change[] = {{s->start_ns, up, !up}, {s->end_ns, -up, -!up}};
		g_array_append_vals(copies, change, G_N_ELEMENTS(change));
	}
	g_array_sort(copies, by_time);
	for (guint i = 1; i < copies->len; i++) {
		struct copies *x = &g_array_index(copies, struct copies, i);
		x->up += (x - 1)->up;
		x->down += (x - 1)->down;
	}
	return copies;
}

/* The first that changes later than that. */
static guint first_after(const GArray *copies, nsec_t ns)
{
	guint low = 0, high = copies->len;
	while (low < high) {
		const guint middle = low + (high - low) / 2;
		if (g_array_index(copies, struct copies, middle).ns <= ns)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

/* The share of its work alone that Adam does beside so many, all of its threads: [up][down]. What was not measured is as the nearest below. */
static void fill_shares(const struct contention_table *t, double share[COLUMNS][COLUMNS])
{
	struct contention_mix mixes[CONTENTION_MIXES];
	const struct ini_doubles *column[COLUMNS][COLUMNS] = {{NULL}};
	const int last = t->adam.n - 1;
	contention_mixes(t, mixes);
	for (int i = 0; i < CONTENTION_MIXES; i++)
		column[mixes[i].up][mixes[i].down] = mixes[i].rates[0];
	for (int up = 0; up < COLUMNS; up++)
		for (int down = 0; down < COLUMNS; down++) {
			const struct ini_doubles *c = column[up][down];
			const double below = fmin(up ? share[up - 1][down] : 1, down ? share[up][down - 1] : 1);
			share[up][down] = c && last > 0 && c->n == t->adam.n && c->v[last] > 0 ? fmin(c->v[last] / t->adam.v[last], 1) : below;
		}
}

/* What a span would have taken alone over what it took. */
static double alone_share(const struct span *s, const GArray *copies, double share[COLUMNS][COLUMNS])
{
	double sum = 0;
	nsec_t at = s->start_ns;
	for (guint i = first_after(copies, at); at < s->end_ns; i++) {
		const struct copies *now = i ? &g_array_index(copies, struct copies, i - 1) : NULL;
		const nsec_t until = i < copies->len ? MIN(s->end_ns, g_array_index(copies, struct copies, i).ns) : s->end_ns;
		sum += (double)(until - at) * (now ? share[MIN(now->up, COLUMNS - 1)][MIN(now->down, COLUMNS - 1)] : 1);
		at = until;
	}
	return s->end_ns > s->start_ns ? sum / (double)(s->end_ns - s->start_ns) : 1;
}

/* By index of span; 1 for all that is not the host's. Owned by the caller. */
static double *alone_shares(const struct trace *t, const struct machine *m)
{
	g_autoptr(GArray) copies = copies_of(t);
	double share[COLUMNS][COLUMNS], *alone = g_new(double, t->spans->len + 1);
	fill_shares(&m->table, share);
	for (guint i = 0; i < t->spans->len; i++)
		alone[i] = on_host(trace_span(t, i)) ? alone_share(trace_span(t, i), copies, share) : 1;
	return alone;
}

double *updates_usual(const struct trace *t, const struct machine *m, double alone)
{
	const double speed = alone > 0 && m->adam_alone_gparams_per_s > 0 ? alone / m->adam_alone_gparams_per_s : 1;
	double *usual = alone_shares(t, m);
	for (guint i = 0; i < t->spans->len; i++)
		usual[i] *= on_host(trace_span(t, i)) ? speed : 1;
	return usual;
}

/* Costs go with the bytes that an update reads and writes, which are fewer without a gradient. */
double updates_pace(const struct trace *t, const struct machine *m, const struct network *n, const struct cost *cost)
{
	g_autofree double *alone = alone_shares(t, m);
	g_autofree bool *waking = updates_waking(t);
	double expected = 0, took = 0;
	for (guint i = 0; i < t->spans->len; i++) {
		const struct span *s = trace_span(t, i);
		if (s->kind != STAGE_ADAM || waking[i])
			continue;
		const uint64_t params = network_expert_params(n, &n->layer[s->layer]);
		expected += (double)cost_adam(cost, params, true) * (double)s->bytes / ((double)params * m->adam_bytes_per_param);
		took += alone[i] * (double)(s->end_ns - s->start_ns);
	}
	return took > 0 ? expected / took : 0;
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
