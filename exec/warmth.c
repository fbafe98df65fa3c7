/* The law of model/heat.h has three constants. For each pair of share and time constant on a grid, the walk through a run's computation says how cool
 * the GPU was at each mixer; then what a cool one gains is found by halving, and the triple that leaves the least of the variance of
 *
 *     log us - log (1 - gain cool)        over the mixers of one pass
 *
 * is taken; then, under that law, what heads gain. */
#include "warmth.h"

#include "beside.h"
#include "model/heat.h"

#include <math.h>

enum { WARM_STEP = 1 /* the first of a trace comes after steps that nobody saw */ };

static const double shares[] = {0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9};
static const double constants_ms[] = {10, 15, 25, 40, 60, 100, 150, 250, 400};

#define ALONE 0.02 /* of a span under copies, and less */

static bool computes(const struct span *s)
{
	return s->stream == STREAM_COMPUTE;
}

/* The share of what a cool GPU gains. */
static double gain_share(const struct span *s, const struct machine *m)
{
	const bool products = s->kind == STAGE_MIXER || s->kind == STAGE_GATE || s->kind == STAGE_EXPERT;
	return s->kind == STAGE_HEAD ? m->cool_head_share : products;
}

/* Of the time between the first span and the last, that in which GPU 0 computed: as before the first, too. */
static void start_warm(const struct trace *t, struct heat *h)
{
	nsec_t first = G_MAXINT64, last = 0, busy = 0;
	for (guint i = 0; i < t->spans->len; i++) {
		const struct span *s = trace_span(t, i);
		first = MIN(first, s->start_ns);
		last = MAX(last, s->end_ns);
		busy += computes(s) ? s->end_ns - s->start_ns : 0;
	}
	if (last > first)
		heat_worked(h, 0, first, fmin((double)busy / (double)(last - first), 1));
}

/* How cool GPU 0 was when each span of its compute stream began. Spans of a stream lie in its order. */
static double *cool_at(const struct trace *t, const struct machine *m)
{
	g_autoptr(heat) h = heat_new(m);
	double *cool = g_new0(double, t->spans->len + 1);
	if (!h)
		return cool;
	start_warm(t, h);
	for (guint i = 0; i < t->spans->len; i++) {
		const struct span *s = trace_span(t, i);
		if (!computes(s))
			continue;
		cool[i] = heat_cool(h, 0, s->start_ns, s->end_ns - s->start_ns);
		heat_ran(h, 0, s->start_ns, s->end_ns);
	}
	return cool;
}

double *warmth_hot(const struct trace *trace, const struct machine *m)
{
	double *hot = cool_at(trace, m), gain = 1 - 1 / m->cool_speedup;
	for (guint i = 0; i < trace->spans->len; i++)
		hot[i] = 1 / (1 - gain * gain_share(trace_span(trace, i), m) * hot[i]);
	return hot;
}

/* ---- the law ---- */

/* A mixer or head alone. */
struct point {
	int run, pass;
	guint span;
	double log_us;
};

static GArray *points_of(const struct warm_run *runs, int n, int kind, uint32_t tokens)
{
	GArray *points = g_array_new(FALSE, FALSE, sizeof(struct point));
	for (int run = 0; run < n; run++) {
		const struct trace *t = runs[run].trace;
		g_autofree double *up = beside_cover(t, STREAM_UPLOAD), *down = beside_cover(t, STREAM_DOWNLOAD);
		for (guint i = 0; i < t->spans->len; i++) {
			const struct span *s = trace_span(t, i);
			if (s->kind != kind || s->tokens != tokens || s->step < WARM_STEP || up[i] + down[i] > ALONE || s->end_ns <= s->start_ns)
				continue;
			struct point p = {run, s->pass, i, log((double)(s->end_ns - s->start_ns))};
			g_array_append_val(points, p);
		}
	}
	return points;
}

/* What a gain leaves unexplained. */
static double left(const GArray *points, double *const *cool, double gain)
{
	double n[N_STAGE_PASSES] = {0}, sum[N_STAGE_PASSES] = {0}, squares = 0;
	for (guint i = 0; i < points->len; i++) {
		const struct point *p = &g_array_index(points, struct point, i);
		double x = p->log_us - log(1 - gain * cool[p->run][p->span]);
		n[p->pass]++;
		sum[p->pass] += x;
		squares += x * x;
	}
	for (int pass = 0; pass < N_STAGE_PASSES; pass++)
		squares -= n[pass] > 0 ? sum[pass] * sum[pass] / n[pass] : 0;
	return squares;
}

/* The gain that leaves the least under a law. */
static double try_law(const struct warm_run *runs, int n, const GArray *points, const struct machine *law, double *gain)
{
	g_autofree double **cool = g_new0(double *, n);
	double low = 0, high = 1 - law->cool_share; /* rest never pays */
	for (int run = 0; run < n; run++)
		cool[run] = cool_at(runs[run].trace, law);
	while (high - low > 1e-7) {
		double third = (high - low) / 3;
		if (left(points, cool, low + third) < left(points, cool, high - third))
			high -= third;
		else
			low += third;
	}
	*gain = low;
	double least = left(points, cool, low);
	for (int run = 0; run < n; run++)
		g_free(cool[run]);
	return least;
}

static bool any_waits(const struct warm_run *runs, int n)
{
	for (int i = 0; i < n; i++)
		if (runs[i].waits)
			return true;
	return false;
}

/* Under the law that was found. */
static double head_share(const struct warm_run *runs, int n, uint32_t tokens, const struct machine *m)
{
	g_autoptr(GArray) heads = points_of(runs, n, STAGE_HEAD, tokens);
	double gain = 0;
	if (m->cool_speedup <= 1 || !heads->len)
		return 0;
	try_law(runs, n, heads, m, &gain);
	return fmin(gain / (1 - 1 / m->cool_speedup), 1);
}

void warmth_fit(const struct warm_run *runs, int n, uint32_t tokens, struct machine *m)
{
	g_autoptr(GArray) points = points_of(runs, n, STAGE_MIXER, tokens);
	double best = G_MAXDOUBLE;
	m->cool_speedup = 1;
	for (size_t i = 0; any_waits(runs, n) && i < G_N_ELEMENTS(shares) * G_N_ELEMENTS(constants_ms); i++) {
		const struct machine law = {.gpus = 1,
		                            .cool_speedup = 1 + 1e-9,
		                            .cool_share = shares[i / G_N_ELEMENTS(constants_ms)],
		                            .heat_ms = constants_ms[i % G_N_ELEMENTS(constants_ms)]};
		double gain, least = try_law(runs, n, points, &law, &gain);
		if (least >= best)
			continue;
		best = least;
		m->cool_speedup = 1 / (1 - gain);
		m->cool_share = law.cool_share;
		m->heat_ms = law.heat_ms;
	}
	m->cool_head_share = head_share(runs, n, tokens, m);
}
