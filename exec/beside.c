/* In a time t a kernel that uploads alone accompany for a share u of it, downloads alone for d, and both for b, does the work of
 *
 *     t (1 - up u - down d - both b)                  (model/resource.c)
 *
 * so that its time alone, the middle of its like, gives a sliver. A long product loses no more time to copies than one that takes copy_exposed_us: of
 * an expert that has n of them and takes t0 alone, the slivers are as much smaller as n copy_exposed_us is less than t0. Runs with experts of several
 * sizes tell that: the one by which the slivers explain best what all of them lost.
 *
 * Forward passes have uploads alone and give `up`, the middle of theirs; experts of a backward whose parameters have come, or stay, have downloads
 * alone and give `down`; the others have both, and give `both` by what the two leave - or, where no download was alone, `down`, as if both were the
 * sum. Mixers, whose slivers are alike but smaller, give the share that they have of all. What waited for its own launches tells nothing.
 *
 * Copies that the host's memory keeps waiting cost the more: of an expert of 8 million parameters on an H200 a download takes 2 % at 54 GB/s and 15 %
 * at the 40 that CPU Adam leaves it (medians over x2-m8-dram in tests/h200, of the last layer and of the others). So what counts is measured while
 * Adam works, and worked beside what was computed before; everything counts of a kind of which that is never so. */
#include "beside.h"

#include "cover.h"
#include "model/quantile.h"

#include <math.h>
#include <stdlib.h>

#define ALONE 0.02       /* of a span under copies, and less */
#define ACCOMPANIED 0.25 /* and more */
#define AT_WORK 0.9      /* of its time Adam's, and more */
#define MOST 0.45        /* of both slivers */
#define MOST_MIXER_SHARE 4.0
#define LEAST_EXPOSED_US 5.0
#define MOST_EXPOSED_US 1000.0
#define FINER 1.1
#define BETTER 0.9    /* of the squares that are left without it: less are a law */
#define NO_WORSE 0.99 /* of what a larger one leaves: where all are longer, only their product is known */

double *beside_cover(const struct trace *t, stream_id stream)
{
	return cover_of(t, cover_computes, cover_on_stream, (int)stream);
}

struct point {
	uint64_t like; /* equal for what takes as long alone */
	bool mixer;
	bool accompanied, company; /* by copies, in a run that has them all along; by Adam, too */
	int products;              /* of an expert */
	double us, up, down, both; /* up, down: with or without the other */
	double alone;              /* us */
	double lost;               /* of its time: 1 - alone / us */
};

static uint64_t like_of(const struct span *s, int d_expert)
{
	const uint64_t size = s->kind == STAGE_EXPERT ? (uint64_t)d_expert : 0;
	return (uint64_t)s->tokens << 32 | size << 8 | (uint64_t)s->pass << 4 | (s->kind == STAGE_MIXER);
}

static bool updates(const struct span *s, int what)
{
	return s->kind == STAGE_ADAM;
}

static void add_points(const struct warm_run *run, const struct machine *m, GArray *points)
{
	const struct trace *t = run->trace;
	g_autofree double *hot = warmth_hot(t, m), *up = beside_cover(t, STREAM_UPLOAD), *down = beside_cover(t, STREAM_DOWNLOAD),
	                  *both = cover_of_both(t, cover_computes, cover_on_stream, STREAM_UPLOAD, STREAM_DOWNLOAD),
	                  *adam = cover_of(t, cover_computes, updates, 0);
	bool at_work = false; /* Adam, beside what was computed before */
	for (guint i = 0; i < t->spans->len; i++) {
		const struct span *s = trace_span(t, i);
		if (s->stream != STREAM_COMPUTE)
			continue;
		const bool worked = at_work;
		at_work = adam[i] >= AT_WORK;
		if ((s->kind != STAGE_EXPERT && s->kind != STAGE_MIXER) || span_waited_for_launches(s) || s->end_ns <= s->start_ns)
			continue;
		struct point p = {like_of(s, run->d_expert),
		                  s->kind == STAGE_MIXER,
		                  run->company,
		                  run->company && worked && at_work,
		                  s->kind == STAGE_EXPERT ? run->products[s->pass == PASS_BACKWARD] : 0,
		                  (double)(s->end_ns - s->start_ns) / 1e3 * hot[i],
		                  up[i],
		                  down[i],
		                  both[i],
		                  NAN,
		                  NAN};
		g_array_append_val(points, p);
	}
}

static int by_like(const void *a, const void *b)
{
	const struct point *x = a, *y = b;
	return (x->like > y->like) - (x->like < y->like);
}

/* Of one like: nothing is told when none of them was alone. */
static void tell_lost(struct point *p, guint n)
{
	g_autoptr(GArray) alone = g_array_new(FALSE, FALSE, sizeof(double));
	for (guint i = 0; i < n; i++)
		if (p[i].up + p[i].down <= ALONE)
			g_array_append_val(alone, p[i].us);
	if (!alone->len)
		return;
	const double base = quantile_median((double *)(void *)alone->data, (int)alone->len);
	for (guint i = 0; i < n; i++) {
		p[i].alone = base;
		p[i].lost = 1 - base / p[i].us;
	}
}

static void tell_all_lost(GArray *points)
{
	struct point *p = (struct point *)(void *)points->data;
	qsort(p, points->len, sizeof(*p), by_like);
	for (guint first = 0, end = 0; first < points->len; first = end) {
		while (end < points->len && p[end].like == p[first].like)
			end++;
		tell_lost(p + first, end - first);
	}
}

/* Who tells what. */
enum class { UNDER_UPLOADS, UNDER_DOWNLOADS, UNDER_BOTH, MIXERS, N_CLASSES };

static bool beside_copies(const struct point *p, enum class class)
{
	if (isnan(p->lost) || !p->accompanied || p->mixer != (class == MIXERS))
		return false;
	return class == UNDER_UPLOADS     ? p->up >= ACCOMPANIED && p->down <= ALONE
	       : class == UNDER_DOWNLOADS ? p->down >= ACCOMPANIED && p->up <= ALONE
	       : class == UNDER_BOTH      ? p->both >= ACCOMPANIED
	                                  : p->up + p->down >= ACCOMPANIED;
}

static bool in_class(const struct point *p, enum class class)
{
	return p->company && beside_copies(p, class);
}

/* A GPU may be so slow, or Adam so fast, that it is never there. */
static void accept_what_there_is(GArray *points)
{
	for (enum class class = 0; class < N_CLASSES; class ++) {
		guint n = 0;
		for (guint i = 0; i < points->len; i++)
			n += in_class(&g_array_index(points, struct point, i), class);
		for (guint i = 0; i < points->len && !n; i++) {
			struct point *p = &g_array_index(points, struct point, i);
			p->company |= beside_copies(p, class);
		}
	}
}

struct slivers {
	double up, down, both;
	double exposed_us; /* of a product; 0: all of it */
};

/* What of its slivers a point has. */
static double exposed(const struct point *p, double exposed_us)
{
	return exposed_us > 0 && p->products ? fmin(1, p->products * exposed_us / p->alone) : 1;
}

static double lost_to(const struct slivers *s, const struct point *p)
{
	return s->up * (p->up - p->both) + s->down * (p->down - p->both) + s->both * p->both;
}

/* What each loses beyond the known slivers over what it would lose to those of a unit; NAN: there are none. */
static double middle(const GArray *points, enum class class, struct slivers known, struct slivers unit)
{
	g_autoptr(GArray) values = g_array_new(FALSE, FALSE, sizeof(double));
	for (guint i = 0; i < points->len; i++) {
		const struct point *p = &g_array_index(points, struct point, i);
		const double value = (p->lost / exposed(p, known.exposed_us) - lost_to(&known, p)) / lost_to(&unit, p);
		if (in_class(p, class))
			g_array_append_val(values, value);
	}
	return values->len ? quantile_median((double *)(void *)values->data, (int)values->len) : NAN;
}

/* NAN up: nothing is known. */
static struct slivers fit(const GArray *points, double us)
{
	struct slivers s = {.up = middle(points, UNDER_UPLOADS, (struct slivers){0, 0, 0, us}, (struct slivers){1, 0, 1, 0}), .exposed_us = us};
	if (isnan(s.up))
		return s;
	s.up = CLAMP(s.up, 0, MOST);
	s.down = middle(points, UNDER_DOWNLOADS, (struct slivers){0, 0, 0, us}, (struct slivers){0, 1, 1, 0});
	if (isnan(s.down)) {
		s.down = middle(points, UNDER_BOTH, (struct slivers){s.up, 0, s.up, us}, (struct slivers){0, 1, 1, 0});
		s.down = isnan(s.down) ? MIN(s.up, MOST - s.up) : CLAMP(s.down, 0, MOST - s.up);
		s.both = s.up + s.down;
		return s;
	}
	s.down = CLAMP(s.down, 0, MOST);
	s.both = middle(points, UNDER_BOTH, (struct slivers){s.up, s.down, 0, us}, (struct slivers){0, 0, 1, 0});
	s.both = CLAMP(isnan(s.both) ? s.up + s.down : s.both, MAX(s.up, s.down), MIN(s.up + s.down, MOST));
	return s;
}

/* The squares of what experts lost beyond that. */
static double left_over(const GArray *points, const struct slivers *s)
{
	double sum = 0;
	for (guint i = 0; i < points->len; i++) {
		const struct point *p = &g_array_index(points, struct point, i);
		const double left = p->lost - exposed(p, s->exposed_us) * lost_to(s, p);
		if (in_class(p, UNDER_UPLOADS) || in_class(p, UNDER_DOWNLOADS) || in_class(p, UNDER_BOTH))
			sum += left * left;
	}
	return sum;
}

static struct slivers best(const GArray *points)
{
	struct slivers best = fit(points, 0);
	double least = isnan(best.up) ? 0 : BETTER * left_over(points, &best);
	for (double us = MOST_EXPOSED_US; least > 0 && us > LEAST_EXPOSED_US; us /= FINER) {
		const struct slivers s = fit(points, us);
		const double left = left_over(points, &s);
		if (left < (best.exposed_us > 0 ? NO_WORSE : 1) * least) {
			best = s;
			least = left;
		}
	}
	return best;
}

void beside_fit(const struct warm_run *runs, int n, struct machine *m)
{
	g_autoptr(GArray) points = g_array_new(FALSE, FALSE, sizeof(struct point));
	for (int i = 0; i < n; i++)
		if (runs[i].waits)
			add_points(&runs[i], m, points);
	tell_all_lost(points);
	accept_what_there_is(points);
	const struct slivers s = best(points);
	if (isnan(s.up))
		return;
	m->copy_gemm_slowdown = 1 / (1 - s.both);
	m->copy_exposed_us = s.exposed_us;
	if (s.both <= 0)
		return;
	m->copy_up_share = s.up / s.both;
	m->copy_down_share = s.down / s.both;
	const double mixers = middle(points, MIXERS, (struct slivers){0}, s);
	m->copy_mixer_share = isnan(mixers) ? m->copy_mixer_share : CLAMP(mixers, 0, MOST_MIXER_SHARE);
}
