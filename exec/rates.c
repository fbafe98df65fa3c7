/* A row of the contention table is a number of Adam threads, its columns are what copies beside them. One GPU is opened alone for those of one,
 * because on the host device two share the cores. */
#include "rates.h"

#include "measure.h"
#include "model/stage.h"

#include <math.h>

enum { CONTENTION_MS = 30, COLLECTIVE_REPEATS = 30, COPY_REPEATS = 30, SSD_REPEATS = 25 };

/* One mix: which copies, and where its rates go; NULL: nothing of that class runs. */
struct column {
	int gpus;
	bool upload, download;
	struct ini_doubles *adam, *up, *down;
};

static void put(struct ini_doubles *list, int i, int n, double value)
{
	if (!list)
		return;
	if (i == 0) {
		g_free(list->v);
		list->v = g_new0(double, n);
		list->n = n;
	}
	list->v[i] = value;
}

static bool fill_column(const struct machine_rates *r, struct measure *measure, const struct column *c, int threads, int row, int rows,
                        GError **error)
{
	struct rates rates = {0};
	const struct together what = {c->gpus, c->upload, c->download, threads};
	if ((threads || c->gpus) && !measure_together(measure, &what, CONTENTION_MS, &rates, error))
		return false;
	put(c->adam, row, rows, rates.adam_gparams * r->m->adam_bytes_per_param);
	put(c->up, row, rows, rates.up_gbps);
	put(c->down, row, rows, rates.down_gbps);
	return true;
}

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

static bool fill_contention(const struct machine_rates *r, struct measure *one, struct measure *two, GError **error)
{
	struct contention_table *t = &r->m->table;
	const struct column columns[] = {
	    {0, false, false, &t->adam, NULL, NULL},
	    {1, true, false, &t->adam_u, &t->u_u, NULL},
	    {1, false, true, &t->adam_d, NULL, &t->d_d},
	    {1, true, true, &t->adam_ud, &t->u_ud, &t->d_ud},
	    {2, true, false, &t->adam_uu, &t->u_uu, NULL},
	    {2, false, true, &t->adam_dd, NULL, &t->d_dd},
	    {2, true, true, &t->adam_uudd, &t->u_uudd, &t->d_uudd},
	};
	const int rows = contention_rows(r->m);
	for (int row = 0; row < rows; row++) {
		put(&t->threads, row, rows, row_threads(r->m, row));
		for (size_t i = 0; i < G_N_ELEMENTS(columns); i++) {
			struct measure *measure = columns[i].gpus == 2 ? two : one;
			if (measure && !fill_column(r, measure, &columns[i], row_threads(r->m, row), row, rows, error))
				return false;
		}
		g_autofree char *what = g_strdup_printf("copies and Adam outside of runs, threads: %d", row_threads(r->m, row));
		r->part(what, r->user);
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

int rates_parts(const struct machine *m)
{
	return contention_rows(m) + 1;
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
