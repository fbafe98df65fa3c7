/* A table of measured mixes, made whole and monotone once, then looked up.
 *
 *                 down 0   1   2   3..          known: as measured
 *          up 0   known known known  past       half:  half-way between the least of the known mixes below it and (2,2)
 *             1   known known half   past       past:  the least of the known mixes below it; when the sum of all users passes the most
 *             2   known half  known  past              traffic that any measured mix reached, all are slowed alike to that sum
 *             3.. past  past  past   past
 *
 * A column that the machine does not state is simply not known, and the same rules fill it. Measurements are noisy, but more users never speed anyone
 * up: known mixes that contradict each other are pooled (model/monotone.h), and at the end each entry is lowered to its neighbours with one user
 * less (copies also to the row with fewer threads). Between rows of threads the rates are linear; past the last row they stay. */
#include "contention.h"

#include "model/monotone.h"

#include <math.h>

struct mix {
	struct contention_mix of;
	double *pooled[3]; /* (rows) its rates without contradictions */
};

struct contention_rule {
	int rows, width; /* copies of one direction that have entries of their own: 0..width-1 */
	double *threads; /* (rows) */
	double *rate;    /* (3, rows, width, width): class, threads, up, down */
	double most;     /* DRAM traffic of the busiest mix measured */
	double solo[3];
};

static double *entry(const struct contention_rule *c, int class, int row, int up, int down)
{
	return &c->rate[((class * c->rows + row) * c->width + up) * c->width + down];
}

/* A column shorter than the rows of threads is as good as none. At 0 threads Adam moves nothing, whatever the file says. */
static bool measured(const struct contention_rule *c, const struct mix *mix, int class, int row, double *rate)
{
	if (!mix->pooled[class])
		return false;
	*rate = class == 0 && c->threads[row] <= 0 ? 0 : mix->pooled[class][row];
	return true;
}

/* Copies also suffer from more threads of Adam, which has more from them. */
static void pool_all(const struct contention_rule *c, struct mix *mixes)
{
	g_autofree struct monotone_point *points = g_new(struct monotone_point, CONTENTION_MIXES * (size_t)c->rows);
	for (int class = 0; class < 3; class ++) {
		int n = 0;
		for (int i = 0; i < CONTENTION_MIXES; i++)
			if (mixes[i].of.rates[class] && mixes[i].of.rates[class]->n >= c->rows)
				mixes[i].pooled[class] = g_memdup2(mixes[i].of.rates[class]->v, sizeof(double) * (size_t)c->rows);
		for (int row = 0; row < c->rows; row++) {
			for (int i = 0; i < CONTENTION_MIXES; i++)
				if (mixes[i].pooled[class])
					points[n++] = (struct monotone_point){{c->threads[row], mixes[i].of.up, mixes[i].of.down},
					                                      &mixes[i].pooled[class][row]};
			if (class == 0) {
				monotone_pool(points, n);
				n = 0;
			}
		}
		monotone_pool(points, n);
	}
}

static double total(const double *rate, int up, int down)
{
	return rate[0] + up * rate[1] + down * rate[2];
}

static double most_traffic(const struct contention_rule *c, const struct mix *mixes, double otherwise)
{
	double most = 0;
	for (int i = 0; i < CONTENTION_MIXES; i++)
		for (int row = 0; row < c->rows; row++) {
			double rate[3] = {0};
			bool whole = measured(c, &mixes[i], 0, row, &rate[0]) || c->threads[row] <= 0;
			whole &= measured(c, &mixes[i], 1, row, &rate[1]) || !mixes[i].of.up;
			whole &= measured(c, &mixes[i], 2, row, &rate[2]) || !mixes[i].of.down;
			if (whole)
				most = MAX(most, total(rate, mixes[i].of.up, mixes[i].of.down));
		}
	return most > 0 ? most : otherwise;
}

/* The least of the known mixes that run no more copies than (up, down); the solo rate when there is none. True when (up, down) itself is among them.
 */
static bool least_below(const struct contention_rule *c, const struct mix *mixes, int class, int row, int up, int down, double *rate)
{
	bool known = false;
	*rate = class == 0 && c->threads[row] <= 0 ? 0 : c->solo[class];
	for (int i = 0; i < CONTENTION_MIXES; i++) {
		double value;
		if (mixes[i].of.up > up || mixes[i].of.down > down || !measured(c, &mixes[i], class, row, &value))
			continue;
		bool first = class == 0 && mixes[i].of.up == 0 && mixes[i].of.down == 0;
		*rate = first ? value : MIN(*rate, value);
		known |= mixes[i].of.up == up && mixes[i].of.down == down;
	}
	return known;
}

static void fill_mix(struct contention_rule *c, const struct mix *mixes, int row, int up, int down)
{
	double rate[3];
	bool known = true;
	for (int class = 0; class < 3; class ++) {
		double above;
		bool relevant = class == 0 || (class == 1 ? up : down) > 0;
		bool here = least_below(c, mixes, class, row, up, down, &rate[class]);
		if (!here && relevant && up <= 2 && down <= 2 && least_below(c, mixes, class, row, 2, 2, &above))
			rate[class] = (rate[class] + MIN(rate[class], above)) / 2;
		known &= here || !relevant;
	}
	double sum = total(rate, up, down);
	double slower = !known && sum > c->most ? c->most / sum : 1;
	for (int class = 0; class < 3; class ++) {
		double *out = entry(c, class, row, up, down);
		*out = rate[class] * slower;
		if (up > (class == 1))
			*out = MIN(*out, *entry(c, class, row, up - 1, down));
		if (down > (class == 2))
			*out = MIN(*out, *entry(c, class, row, up, down - 1));
		if (row && class)
			*out = MIN(*out, *entry(c, class, row - 1, up, down));
	}
}

struct contention_rule *contention_new(const struct machine *m)
{
	const struct contention_table *table = &m->table;
	if (m->contention != CONTENTION_MEASURED || table->threads.n < 1)
		return NULL;
	struct contention_mix columns[CONTENTION_MIXES];
	struct mix mixes[CONTENTION_MIXES] = {0};
	contention_mixes(table, columns);
	for (int i = 0; i < CONTENTION_MIXES; i++)
		mixes[i].of = columns[i];
	struct contention_rule *c = g_new0(struct contention_rule, 1);
	c->rows = table->threads.n;
	c->width = MAX(m->gpus_per_node, 2) + 1;
	c->threads = g_memdup2(table->threads.v, sizeof(double) * (size_t)c->rows);
	c->rate = g_new0(double, (size_t)3 * c->rows * c->width * c->width);
	c->solo[0] = m->adam_gparams_per_s * m->adam_bytes_per_param;
	c->solo[1] = m->h2d_gbps;
	c->solo[2] = m->d2h_gbps;
	pool_all(c, mixes);
	c->most = most_traffic(c, mixes, m->dram_gbps);
	for (int row = 0; row < c->rows; row++)
		for (int up = 0; up < c->width; up++)
			for (int down = 0; down < c->width; down++)
				fill_mix(c, mixes, row, up, down);
	for (int i = 0; i < CONTENTION_MIXES; i++)
		for (int class = 0; class < 3; class ++)
			g_free(mixes[i].pooled[class]);
	return c;
}

void contention_free(struct contention_rule *c)
{
	if (!c)
		return;
	g_free(c->threads);
	g_free(c->rate);
	g_free(c);
}

struct dram_rates contention_rates(const struct contention_rule *c, double threads, int up, int down)
{
	int high = 0;
	while (high < c->rows - 1 && c->threads[high] < threads)
		high++;
	int low = high ? high - 1 : 0;
	double step = c->threads[high] - c->threads[low];
	double at = step > 0 ? CLAMP((threads - c->threads[low]) / step, 0, 1) : 0;
	int u = MIN(up, c->width - 1), d = MIN(down, c->width - 1);
	double rate[3];
	for (int class = 0; class < 3; class ++)
		rate[class] = *entry(c, class, low, u, d) * (1 - at) + *entry(c, class, high, u, d) * at;
	/* More copies than GPUs share what one copy a GPU had. */
	return (struct dram_rates){rate[0], up > u ? rate[1] * u / up : rate[1], down > d ? rate[2] * d / down : rate[2]};
}
