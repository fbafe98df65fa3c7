/* In a time t a kernel that uploads alone accompany for a share u of it, downloads alone for d, and both for b, does the work of
 *
 *     t (1 - up u - down d - both b)                  (model/resource.c)
 *
 * so that its time alone, the middle of its like, gives a sliver. Forward passes have uploads alone and give `up`, the middle of theirs; the last
 * experts of a backward, whose parameters have all come, have downloads alone and give `down`; the others have both, and give `both` by what the two
 * leave - or, where no download was alone, `down`, as if both were the sum. Mixers, whose slivers are alike but smaller, give the share that they
 * have of all. What waited for its own launches tells nothing. Copies that the host's memory keeps waiting cost the more - an expert of 8 million
 * parameters on an H200 2 % beside a download, 16 to 20 % while CPU Adam works, too - so that what counts is measured in its company. */
#include "beside.h"

#include "cover.h"
#include "model/quantile.h"

#include <math.h>
#include <stdlib.h>

#define ALONE 0.02       /* of a span under copies, and less */
#define ACCOMPANIED 0.25 /* and more */
#define MOST 0.45        /* of both slivers */
#define MOST_MIXER_SHARE 4.0

double *beside_cover(const struct trace *t, stream_id stream)
{
	return cover_of(t, cover_computes, cover_on_stream, (int)stream);
}

struct point {
	uint64_t like; /* equal for what takes as long alone */
	bool mixer, company;
	double us, up, down, both; /* up, down: with or without the other */
	double lost;               /* of its time: 1 - alone / us */
};

static uint64_t like_of(const struct span *s, int d_expert)
{
	const uint64_t size = s->kind == STAGE_EXPERT ? (uint64_t)d_expert : 0;
	return (uint64_t)s->tokens << 32 | size << 8 | (uint64_t)s->pass << 4 | (s->kind == STAGE_MIXER);
}

static void add_points(const struct warm_run *run, const struct machine *m, GArray *points)
{
	const struct trace *t = run->trace;
	g_autofree double *hot = warmth_hot(t, m), *up = beside_cover(t, STREAM_UPLOAD), *down = beside_cover(t, STREAM_DOWNLOAD),
	                  *both = cover_of_both(t, cover_computes, cover_on_stream, STREAM_UPLOAD, STREAM_DOWNLOAD);
	for (guint i = 0; i < t->spans->len; i++) {
		const struct span *s = trace_span(t, i);
		if (s->stream != STREAM_COMPUTE || (s->kind != STAGE_EXPERT && s->kind != STAGE_MIXER) || span_waited_for_launches(s) ||
		    s->end_ns <= s->start_ns)
			continue;
		struct point p = {like_of(s, run->d_expert),
		                  s->kind == STAGE_MIXER,
		                  run->company,
		                  (double)(s->end_ns - s->start_ns) / 1e3 * hot[i],
		                  up[i],
		                  down[i],
		                  both[i],
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
	for (guint i = 0; i < n; i++)
		p[i].lost = 1 - base / p[i].us;
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

/* Who tells what; in company of Adam. */
enum class { UNDER_UPLOADS, UNDER_DOWNLOADS, UNDER_BOTH, MIXERS };

static bool in_class(const struct point *p, enum class class)
{
	if (isnan(p->lost) || !p->company || p->mixer != (class == MIXERS))
		return false;
	return class == UNDER_UPLOADS     ? p->up >= ACCOMPANIED && p->down <= ALONE
	       : class == UNDER_DOWNLOADS ? p->down >= ACCOMPANIED && p->up <= ALONE
	       : class == UNDER_BOTH      ? p->both >= ACCOMPANIED
	                                  : p->up + p->down >= ACCOMPANIED;
}

struct slivers {
	double up, down, both;
};

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
		const double value = (p->lost - lost_to(&known, p)) / lost_to(&unit, p);
		if (in_class(p, class))
			g_array_append_val(values, value);
	}
	return values->len ? quantile_median((double *)(void *)values->data, (int)values->len) : NAN;
}

/* NAN up: nothing is known. */
static struct slivers fit(const GArray *points)
{
	struct slivers s = {.up = middle(points, UNDER_UPLOADS, (struct slivers){0}, (struct slivers){1, 0, 1})};
	if (isnan(s.up))
		return s;
	s.up = CLAMP(s.up, 0, MOST);
	s.down = middle(points, UNDER_DOWNLOADS, (struct slivers){0}, (struct slivers){0, 1, 1});
	if (isnan(s.down)) {
		s.down = middle(points, UNDER_BOTH, (struct slivers){s.up, 0, s.up}, (struct slivers){0, 1, 1});
		s.down = isnan(s.down) ? MIN(s.up, MOST - s.up) : CLAMP(s.down, 0, MOST - s.up);
		s.both = s.up + s.down;
		return s;
	}
	s.down = CLAMP(s.down, 0, MOST);
	s.both = middle(points, UNDER_BOTH, (struct slivers){s.up, s.down, 0}, (struct slivers){0, 0, 1});
	s.both = CLAMP(isnan(s.both) ? s.up + s.down : s.both, MAX(s.up, s.down), MIN(s.up + s.down, MOST));
	return s;
}

void beside_fit(const struct warm_run *runs, int n, struct machine *m)
{
	g_autoptr(GArray) points = g_array_new(FALSE, FALSE, sizeof(struct point));
	for (int i = 0; i < n; i++)
		if (runs[i].waits)
			add_points(&runs[i], m, points);
	tell_all_lost(points);
	const struct slivers s = fit(points);
	if (isnan(s.up))
		return;
	m->copy_gemm_slowdown = 1 / (1 - s.both);
	if (s.both <= 0)
		return;
	m->copy_up_share = s.up / s.both;
	m->copy_down_share = s.down / s.both;
	const double mixers = middle(points, MIXERS, (struct slivers){0}, s);
	m->copy_mixer_share = isnan(mixers) ? m->copy_mixer_share : CLAMP(mixers, 0, MOST_MIXER_SHARE);
}
