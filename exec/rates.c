/* A row of the contention table is a number of Adam threads, its columns are what copies beside them. One GPU is opened alone for those of one,
 * because on the host device two share the cores. The table is gone through several times and each of its rates is the middle one: a machine whose
 * memory others use, too, is for seconds at a time another one, and rates measured one after the other would contradict those measured before. */
#include "rates.h"

#include "measure.h"
#include "model/quantile.h"
#include "model/stage.h"

#include <math.h>
#include <stddef.h>
#include <string.h>

enum { ROUNDS = 7, COLUMNS = 7, CONTENTION_MS = 25, COLLECTIVE_REPEATS = 30, COPY_REPEATS = 30, SSD_REPEATS = 25 };

/* One mix: which copies, and where its rates go; NULL: nothing of that class runs. */
struct column {
	int gpus;
	bool upload, download;
	struct ini_doubles *adam, *up, *down;
};

static int contention_rows(const struct machine *m)
{
	int rows = 2;
	for (int threads = 1; threads < m->adam_threads; threads *= 2)
		rows++;
	return rows;
}

static int row_threads(const struct machine *m, int row)
{
	return row == 0 ? 0 : row == contention_rows(m) - 1 ? m->adam_threads : 1 << (row - 1);
}

static void columns_of(struct contention_table *t, struct column columns[COLUMNS])
{
	const struct column all[COLUMNS] = {
	    {0, false, false, &t->adam, NULL, NULL},
	    {1, true, false, &t->adam_u, &t->u_u, NULL},
	    {1, false, true, &t->adam_d, NULL, &t->d_d},
	    {1, true, true, &t->adam_ud, &t->u_ud, &t->d_ud},
	    {2, true, false, &t->adam_uu, &t->u_uu, NULL},
	    {2, false, true, &t->adam_dd, NULL, &t->d_dd},
	    {2, true, true, &t->adam_uudd, &t->u_uudd, &t->d_uudd},
	};
	memcpy(columns, all, sizeof all);
}

/* rates: (rows, COLUMNS, ROUNDS) */
static struct rates *rates_at(struct rates *rates, int row, int column)
{
	return &rates[(row * COLUMNS + column) * ROUNDS];
}

static bool measure_round(const struct machine_rates *r, struct measure *one, struct measure *two, const struct column *columns, int round,
                          struct rates *rates, GError **error)
{
	for (int row = 0; row < contention_rows(r->m); row++)
		for (int i = 0; i < COLUMNS; i++) {
			const struct together what = {columns[i].gpus, columns[i].upload, columns[i].download, row_threads(r->m, row)};
			struct measure *measure = what.gpus == 2 ? two : one;
			if (measure && (what.threads || what.gpus) &&
			    !measure_together(measure, &what, CONTENTION_MS, rates_at(rates, row, i) + round, error))
				return false;
		}
	g_autofree char *what = g_strdup_printf("copies and Adam outside of runs, round %d of %d", round + 1, ROUNDS);
	r->part(what, r->user);
	return true;
}

/* A column of the middle ones of a member of struct rates, times `unit`. */
static void fill(struct ini_doubles *list, const struct rates *rates, int rows, int column, size_t member, double unit)
{
	if (!list)
		return;
	g_free(list->v);
	list->v = g_new0(double, rows);
	list->n = rows;
	for (int row = 0; row < rows; row++) {
		double all[ROUNDS];
		for (int i = 0; i < ROUNDS; i++)
			all[i] = *(const double *)(const void *)((const char *)&rates[(row * COLUMNS + column) * ROUNDS + i] + member);
		list->v[row] = quantile_median(all, ROUNDS) * unit;
	}
}

static bool fill_contention(const struct machine_rates *r, struct measure *one, struct measure *two, GError **error)
{
	struct column columns[COLUMNS];
	const int rows = contention_rows(r->m);
	g_autofree struct rates *rates = g_new0(struct rates, rows * COLUMNS * ROUNDS);
	columns_of(&r->m->table, columns);
	for (int round = 0; round < ROUNDS; round++)
		if (!measure_round(r, one, two, columns, round, rates, error))
			return false;
	fill(&r->m->table.threads, rates, rows, 0, 0, 0);
	for (int row = 0; row < rows; row++)
		r->m->table.threads.v[row] = row_threads(r->m, row);
	for (int i = 0; i < COLUMNS; i++) {
		if (columns[i].gpus == 2 && !two)
			continue;
		fill(columns[i].adam, rates, rows, i, offsetof(struct rates, adam_gparams), r->m->adam_bytes_per_param);
		fill(columns[i].up, rates, rows, i, offsetof(struct rates, up_gbps), 1);
		fill(columns[i].down, rates, rows, i, offsetof(struct rates, down_gbps), 1);
	}
	return true;
}

static double value(const struct ini_doubles *list, int row)
{
	return row < list->n ? list->v[row] : 0;
}

/* Traffic of the busiest mix. */
static double most_traffic(const struct contention_table *t)
{
	double most = 0;
	for (int row = 0; row < t->threads.n; row++) {
		most = fmax(most, value(&t->adam, row));
		most = fmax(most, value(&t->adam_ud, row) + value(&t->u_ud, row) + value(&t->d_ud, row));
		most = fmax(most, value(&t->adam_uudd, row) + 2 * (value(&t->u_uudd, row) + value(&t->d_uudd, row)));
	}
	return most;
}

static void fill_rates(struct machine *m)
{
	const struct contention_table *t = &m->table;
	m->contention = CONTENTION_MEASURED;
	m->adam_gparams_per_s = t->adam.v[t->adam.n - 1] / m->adam_bytes_per_param;
	m->h2d_gbps = t->u_u.v[0];
	m->d2h_gbps = t->d_d.v[0];
	m->duplex_gbps = fmin(fmax(t->u_ud.v[0] + t->d_ud.v[0], fmax(m->h2d_gbps, m->d2h_gbps)), m->h2d_gbps + m->d2h_gbps);
	m->dram_gbps = most_traffic(t);
}

static bool fill_ssd(const struct machine_rates *r, GError **error)
{
	struct machine *m = r->m;
	struct ssd_rates ssd;
	if (!measure_ssd(r->ssd, SSD_REPEATS, &r->tables->table[STAGE_SSD_READ][PASS_FORWARD], &r->tables->table[STAGE_SSD_WRITE][PASS_FORWARD], &ssd,
	                 error))
		return false;
	m->ssd_gb = ssd.gb;
	m->ssd_read_gbps = ssd.read_gbps;
	m->ssd_write_gbps = ssd.write_gbps;
	m->ssd_latency_us = ssd.latency_us;
	m->ssd_cores = fmin(ssd.cores, 1);
	/* a machine's file takes no less than the mean of both alone, and no more than their sum */
	m->ssd_mixed_gbps = fmin(fmax(ssd.mixed_gbps, (ssd.read_gbps + ssd.write_gbps) / 2), ssd.read_gbps + ssd.write_gbps);
	r->part("the disk", r->user);
	return true;
}

static void unknown(struct contention_table *t)
{
	struct ini_doubles *const of_two[] = {&t->adam_uu, &t->adam_dd, &t->adam_uudd, &t->u_uu, &t->d_dd, &t->u_uudd, &t->d_uudd};
	for (size_t i = 0; i < G_N_ELEMENTS(of_two); i++)
		of_two[i]->n = 0;
}

int rates_parts(void)
{
	return ROUNDS + 1;
}

bool rates_measure(const struct machine_rates *r, GError **error)
{
	static const int kinds[] = {STAGE_ALL_REDUCE, STAGE_REDUCE_SCATTER, STAGE_COUNTS};
	const bool several = r->m->gpus_per_node > 1;
	unknown(&r->m->table);
	g_autoptr(measure) one = measure_new(r->device, 1, r->expert, error);
	g_autoptr(measure) two = one && several ? measure_new(r->device, 2, r->expert, error) : NULL;
	if (!one || (several && !two) || !fill_ssd(r, error) || !fill_contention(r, one, two, error))
		return false;
	fill_rates(r->m);
	if (!measure_copies(one, true, COPY_REPEATS, &r->tables->table[STAGE_UPLOAD][PASS_FORWARD], error) ||
	    !measure_copies(one, false, COPY_REPEATS, &r->tables->table[STAGE_DOWNLOAD][PASS_FORWARD], error))
		return false;
	g_free(r->tables->device);
	r->tables->device = measure_describe(one);
	for (size_t i = 0; two && i < G_N_ELEMENTS(kinds); i++)
		if (!measure_collective(two, kinds[i], COLLECTIVE_REPEATS, &r->tables->table[kinds[i]][PASS_FORWARD], error))
			return false;
	return true;
}
