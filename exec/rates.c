/* A row of the contention table is a number of Adam threads, its columns are what copies beside them. One GPU is opened alone for those of one,
 * because on the host device two share the cores. */
#include "rates.h"

#include "measure.h"
#include "model/quantile.h"
#include "model/stage.h"

#include <math.h>
#include <stddef.h>
#include <string.h>

enum { COLUMNS = 7, CONTENTION_MS = 25, COLLECTIVE_REPEATS = 30, COPY_REPEATS = 30, SSD_REPEATS = 25 };

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

struct rate_rounds {
	int n;
	GArray *rates; /* struct rates: (n, rows, COLUMNS) */
};

struct rate_rounds *rate_rounds_new(void)
{
	struct rate_rounds *rounds = g_new0(struct rate_rounds, 1);
	rounds->rates = g_array_new(FALSE, FALSE, sizeof(struct rates));
	return rounds;
}

void rate_rounds_free(struct rate_rounds *rounds)
{
	if (!rounds)
		return;
	g_array_unref(rounds->rates);
	g_free(rounds);
}

/* A row of a round, appended. */
static bool measure_row(const struct machine_rates *r, struct measure *one, struct measure *two, int threads, GArray *out, GError **error)
{
	struct column columns[COLUMNS];
	columns_of(&r->m->table, columns);
	for (int i = 0; i < COLUMNS; i++) {
		const struct together what = {columns[i].gpus, columns[i].upload, columns[i].download, threads};
		struct measure *measure = what.gpus == 2 ? two : one;
		struct rates rates = {0};
		if (measure && (what.threads || what.gpus) && !measure_together(measure, &what, CONTENTION_MS, &rates, error))
			return false;
		g_array_append_val(out, rates);
	}
	return true;
}

/* Opens what it uses and closes it again: runs between two rounds need the GPUs. */
bool rate_rounds_add(struct rate_rounds *rounds, const struct machine_rates *r, GError **error)
{
	const bool several = r->m->gpus_per_node > 1;
	g_autoptr(measure) one = measure_new(r->device, 1, r->expert, error);
	g_autoptr(measure) two = one && several ? measure_new(r->device, 2, r->expert, error) : NULL;
	if (!one || (several && !two))
		return false;
	for (int row = 0; row < contention_rows(r->m); row++)
		if (!measure_row(r, one, two, row_threads(r->m, row), rounds->rates, error))
			return false;
	const double alone = g_array_index(rounds->rates, struct rates, rounds->rates->len - COLUMNS).adam_gparams;
	g_autofree char *what = g_strdup_printf("copies and Adam, round %d: Adam alone %.2f G parameters/s", ++rounds->n, alone);
	r->part(what, r->user);
	return true;
}

/* A column of the middle ones of a member of struct rates, times `unit`. */
static void fill(struct ini_doubles *list, const struct rate_rounds *rounds, int rows, int column, size_t member, double unit)
{
	if (!list)
		return;
	g_autofree double *all = g_new(double, rounds->n);
	g_free(list->v);
	list->v = g_new0(double, rows);
	list->n = rows;
	for (int row = 0; row < rows; row++) {
		for (int i = 0; i < rounds->n; i++) {
			const struct rates *rates = &g_array_index(rounds->rates, struct rates, (i * rows + row) * COLUMNS + column);
			all[i] = *(const double *)(const void *)((const char *)rates + member);
		}
		list->v[row] = quantile_median(all, rounds->n) * unit;
	}
}

static void unknown(struct ini_doubles *list)
{
	if (list)
		list->n = 0;
}

static void fill_contention(const struct rate_rounds *rounds, struct machine *m)
{
	struct column columns[COLUMNS];
	const int rows = contention_rows(m);
	columns_of(&m->table, columns);
	fill(&m->table.threads, rounds, rows, 0, 0, 0);
	for (int row = 0; row < rows; row++)
		m->table.threads.v[row] = row_threads(m, row);
	for (int i = 0; i < COLUMNS; i++) {
		fill(columns[i].adam, rounds, rows, i, offsetof(struct rates, adam_gparams), m->adam_bytes_per_param);
		fill(columns[i].up, rounds, rows, i, offsetof(struct rates, up_gbps), 1);
		fill(columns[i].down, rounds, rows, i, offsetof(struct rates, down_gbps), 1);
		if (columns[i].gpus <= m->gpus_per_node)
			continue;
		unknown(columns[i].adam);
		unknown(columns[i].up);
		unknown(columns[i].down);
	}
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

void rate_rounds_fill(const struct rate_rounds *rounds, struct machine *m)
{
	const struct contention_table *t = &m->table;
	g_assert(rounds->n > 0);
	fill_contention(rounds, m);
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

int rates_parts(void)
{
	return 2;
}

bool rates_measure(const struct machine_rates *r, GError **error)
{
	static const int kinds[] = {STAGE_ALL_REDUCE, STAGE_REDUCE_SCATTER, STAGE_COUNTS};
	const bool several = r->m->gpus_per_node > 1;
	g_autoptr(measure) one = measure_new(r->device, 1, r->expert, error);
	g_autoptr(measure) two = one && several ? measure_new(r->device, 2, r->expert, error) : NULL;
	if (!one || (several && !two) || !fill_ssd(r, error))
		return false;
	if (!measure_copies(one, true, COPY_REPEATS, &r->tables->table[STAGE_UPLOAD][PASS_FORWARD], error) ||
	    !measure_copies(one, false, COPY_REPEATS, &r->tables->table[STAGE_DOWNLOAD][PASS_FORWARD], error))
		return false;
	g_free(r->tables->device);
	r->tables->device = measure_describe(one);
	for (size_t i = 0; two && i < G_N_ELEMENTS(kinds); i++)
		if (!measure_collective(two, kinds[i], COLLECTIVE_REPEATS, &r->tables->table[kinds[i]][PASS_FORWARD], error))
			return false;
	r->part("copies and collectives outside of runs", r->user);
	return true;
}
