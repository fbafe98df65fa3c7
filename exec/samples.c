/* Samples whose sizes lie within half an octave make one point of a table, within an eighth where there are many; equal sizes are never parted.
 *
 * A step is as long as the sum of its stages, so what a stage takes is the mean over its like in a step, stragglers included: a CPU that is lent and
 * taken back makes every twentieth update three times as long, and a median would never see it. Over the steps it is the median, as the step that is
 * compared with a prediction is. */
#include "samples.h"

#include <math.h>

enum { ENOUGH = 24 /* samples of a point */ };

static int by_size(gconstpointer a, gconstpointer b)
{
	const struct timing *x = a, *y = b;
	if (x->kind != y->kind)
		return x->kind - y->kind;
	if (x->pass != y->pass)
		return x->pass - y->pass;
	return (x->size > y->size) - (x->size < y->size);
}

/* How unequal the time of a unit of size is between the gates of a pass, with so many extra experts: the variance of its logarithm. */
static double unevenness(const struct timing *t, guint n, double extra)
{
	double sum = 0, squares = 0;
	for (guint i = 0; i < n; i++) {
		double x = log(fmax(t[i].us, 0.001) / (t[i].tokens * (t[i].experts + extra)));
		sum += x;
		squares += x * x;
	}
	return squares / n - sum / n * (sum / n);
}

/* A gate's token costs a + b E: the extra experts a / b are those that explain the samples best. */
static void fit_gates(GArray *samples, struct measured *tables)
{
	struct timing *all = (struct timing *)(void *)samples->data;
	for (guint first = 0, end; first < samples->len; first = end) {
		struct measured_table *t = &tables->table[all[first].kind][all[first].pass];
		double best = 0;
		for (end = first; end < samples->len && all[end].kind == all[first].kind && all[end].pass == all[first].pass; end++)
			continue;
		if (all[first].kind != STAGE_GATE)
			continue;
		for (double extra = 1; extra <= 512; extra *= sqrt(2))
			best = unevenness(&all[first], end - first, extra) < unevenness(&all[first], end - first, best) ? extra : best;
		t->extra_experts = best;
		for (guint i = first; i < end; i++)
			all[i].size = all[i].tokens * (all[i].experts + best);
	}
}

/* Where the point ends that begins at `first`: equal sizes are never parted. */
static guint end_of_point(const struct timing *all, guint first, guint n)
{
	guint end = first + 1;
	for (; end < n && all[end].kind == all[first].kind && all[end].pass == all[first].pass; end++) {
		double width = end - first < ENOUGH ? sqrt(2) : pow(2, 0.125);
		if (all[end].size > all[end - 1].size && all[end].size >= all[first].size * width)
			break;
	}
	return end;
}

struct moment {
	uint32_t step;
	double us;
};

static int by_step(gconstpointer a, gconstpointer b)
{
	const struct moment *x = a, *y = b;
	return (x->step > y->step) - (x->step < y->step);
}

static bool any_ran_through(const struct timing *s, guint n)
{
	for (guint i = 0; i < n; i++)
		if (!s[i].waited)
			return true;
	return false;
}

/* The mean of each step among the samples: us (n at most); how many steps there were. What waited for its launches shows how fast those were - 2700
 * tokens of an expert, some behind a gate's counts, 154 us for 102 on an H200 -, and counts where all did. */
static int step_means(const struct timing *s, guint n_samples, double *us)
{
	g_autofree struct moment *m = g_new(struct moment, n_samples);
	const bool through = any_ran_through(s, n_samples);
	int steps = 0;
	guint n = 0;
	for (guint i = 0; i < n_samples; i++)
		if (!(through && s[i].waited))
			m[n++] = (struct moment){s[i].step, s[i].us};
	qsort(m, n, sizeof(*m), by_step);
	for (guint first = 0, end; first < n; first = end) {
		double sum = 0;
		for (end = first; end < n && m[end].step == m[first].step; end++)
			sum += m[end].us;
		us[steps++] = sum / (end - first);
	}
	return steps;
}

void samples_to_tables(GArray *samples, struct measured *tables)
{
	g_array_sort(samples, by_size);
	fit_gates(samples, tables);
	g_array_sort(samples, by_size);
	const struct timing *all = (const struct timing *)(const void *)samples->data;
	for (guint first = 0, end; first < samples->len; first = end) {
		const struct timing *s = &all[first];
		end = end_of_point(all, first, samples->len);
		g_autofree double *us = g_new(double, end - first);
		int steps = step_means(s, end - first, us);
		measured_add(&tables->table[s->kind][s->pass], all[(first + end - 1) / 2].size, us, steps);
	}
}
