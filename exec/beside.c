/* In a time t a kernel that uploads accompany for a share u of it, and downloads for d, does the work of
 *
 *     t (1 - up u - down d)                  (model/resource.c)
 *
 * so that its time alone, the middle of its like, gives a sliver. Forward passes have uploads alone: they give `up`, the middle of theirs; what that
 * leaves of those beside downloads gives `down`; and mixers, whose slivers are alike but smaller, give the share that they have of both. What waited
 * for its own launches tells nothing. Copies that the host's memory keeps waiting cost the more - an expert of 8 million parameters on an H200 2 %
 * beside a download, 11 to 20 % while CPU Adam works, too - so that what counts is measured in its company. */
#include "beside.h"

#include "cover.h"
#include "model/quantile.h"

#include <math.h>
#include <stdlib.h>

#define ALONE 0.02       /* of a span under copies, and less */
#define ACCOMPANIED 0.25 /* and more */
#define MOST 0.45        /* of both slivers */
#define MOST_MIXER_SHARE 4.0

static bool computes(const struct span *s, int stream)
{
	return s->stream == STREAM_COMPUTE;
}

static bool copies(const struct span *s, int stream)
{
	return s->stream == (stream_id)stream;
}

double *beside_cover(const struct trace *t, stream_id stream)
{
	return cover_of(t, computes, copies, (int)stream);
}

struct point {
	uint64_t like; /* equal for what takes as long alone */
	bool mixer, company;
	double us, up, down;
	double lost; /* of its time: 1 - alone / us */
};

static uint64_t like_of(const struct span *s, int d_expert)
{
	const uint64_t size = s->kind == STAGE_EXPERT ? (uint64_t)d_expert : 0;
	return (uint64_t)s->tokens << 32 | size << 8 | (uint64_t)s->pass << 4 | (s->kind == STAGE_MIXER);
}

static void add_points(const struct warm_run *run, const struct machine *m, GArray *points)
{
	const struct trace *t = run->trace;
	g_autofree double *hot = warmth_hot(t, m), *up = beside_cover(t, STREAM_UPLOAD), *down = beside_cover(t, STREAM_DOWNLOAD);
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
enum class { UNDER_UPLOADS, UNDER_DOWNLOADS, MIXERS };

static bool in_class(const struct point *p, enum class class)
{
	if (isnan(p->lost) || !p->company || p->mixer != (class == MIXERS))
		return false;
	return class == UNDER_UPLOADS     ? p->up >= ACCOMPANIED && p->down <= ALONE
	       : class == UNDER_DOWNLOADS ? p->down >= ACCOMPANIED
	                                  : p->up + p->down >= ACCOMPANIED;
}

/* What each loses beyond `known` up, for each unit of up u + down d; NAN: there are none. */
static double middle(const GArray *points, enum class class, double known, double up, double down)
{
	g_autoptr(GArray) values = g_array_new(FALSE, FALSE, sizeof(double));
	for (guint i = 0; i < points->len; i++) {
		const struct point *p = &g_array_index(points, struct point, i);
		double value = (p->lost - known * p->up) / (up * p->up + down * p->down);
		if (in_class(p, class))
			g_array_append_val(values, value);
	}
	return values->len ? quantile_median((double *)(void *)values->data, (int)values->len) : NAN;
}

void beside_fit(const struct warm_run *runs, int n, struct machine *m)
{
	g_autoptr(GArray) points = g_array_new(FALSE, FALSE, sizeof(struct point));
	for (int i = 0; i < n; i++)
		if (runs[i].waits)
			add_points(&runs[i], m, points);
	tell_all_lost(points);
	double up = middle(points, UNDER_UPLOADS, 0, 1, 0);
	if (isnan(up))
		return;
	up = CLAMP(up, 0, MOST);
	double down = middle(points, UNDER_DOWNLOADS, up, 0, 1);
	down = isnan(down) ? MIN(up, MOST - up) : CLAMP(down, 0, MOST - up);
	m->copy_gemm_slowdown = 1 / (1 - up - down);
	if (up + down <= 0)
		return;
	m->copy_up_share = up / (up + down);
	const double mixers = middle(points, MIXERS, 0, up, down);
	m->copy_mixer_share = isnan(mixers) ? m->copy_mixer_share : CLAMP(mixers, 0, MOST_MIXER_SHARE);
}
