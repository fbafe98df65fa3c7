/* What calibration measures outside of runs: which tables and columns it fills, that a machine's file takes them, and what it refuses. How fast this
 * machine is, no test can know. */
#include "exec/measure.h"
#include "exec/rates.h"
#include "model/error.h"

#include <criterion/criterion.h>
#include <glib/gstdio.h>

static int parts;

static void count_part(const char *what, void *user)
{
	parts++;
}

static char *folder_new(void)
{
	char *folder = g_dir_make_tmp("esmoe-test-XXXXXX", NULL);
	cr_assert(folder);
	return folder;
}

static struct machine *measured_machine(int gpus, int threads)
{
	g_autofree char *per_node = g_strdup_printf("machine.gpus_per_node=%d", gpus), *per_root = g_strdup_printf("pcie.gpus_per_root=%d", gpus),
	                *adam = g_strdup_printf("host.adam_threads=%d", threads), *folder = folder_new();
	const char *const set[] = {per_node, per_root, adam, NULL};
	g_autoptr(machine) m = machine_load("host", set, NULL);
	cr_assert(m);
	m->measured = measured_new();
	m->measured->gpus = gpus;
	const struct machine_rates r = {"host", folder, m, 1 << 20, m->measured, count_part, NULL};
	parts = 0;
	GError *error = NULL;
	cr_assert(rates_measure(&r, &error), "%s", error ? error->message : "");
	cr_assert_eq(parts, rates_parts());
	g_autoptr(rate_rounds) rounds = rate_rounds_new();
	for (int i = 0; i < 3; i++)
		cr_assert(rate_rounds_add(rounds, &r, &error), "%s", error ? error->message : "");
	cr_assert_eq(parts, rates_parts() + 3);
	rate_rounds_fill(rounds, m);
	cr_assert_eq(g_rmdir(folder), 0, "something was left in %s", folder);
	return g_steal_pointer(&m);
}

/* A machine's file is checked when it is read: what was measured must pass. */
static void there_and_back(const struct machine *m)
{
	g_autofree char *folder = folder_new(), *path = g_build_filename(folder, "m.ini", NULL), *text = machine_ini(m);
	GError *error = NULL;
	cr_assert(g_file_set_contents(path, text, -1, NULL));
	g_autoptr(machine) back = machine_load(path, NULL, &error);
	cr_assert(back, "%s", error ? error->message : "");
	g_unlink(path);
	g_rmdir(folder);
}

static void expect_column(const struct ini_doubles *column, int rows, bool copies)
{
	cr_assert_eq(column->n, rows);
	for (int i = 0; i < rows; i++)
		cr_assert(copies || i > 0 ? column->v[i] > 0 : column->v[i] == 0, "row %d: %g", i, column->v[i]);
}

Test(rates, two_gpus_fill_every_column_and_one_leaves_those_of_two_unknown, .timeout = 120)
{
	g_autoptr(machine) two = measured_machine(2, 2), one = measured_machine(1, 1);
	const struct contention_table *t = &two->table;
	const struct ini_doubles *adam[] = {&t->adam, &t->adam_u, &t->adam_d, &t->adam_ud, &t->adam_uu, &t->adam_dd, &t->adam_uudd};
	const struct ini_doubles *copies[] = {&t->u_u, &t->d_d, &t->u_ud, &t->d_ud, &t->u_uu, &t->d_dd, &t->u_uudd, &t->d_uudd};
	cr_assert_eq(t->threads.n, 3); /* 0, 1, 2 */
	for (size_t i = 0; i < G_N_ELEMENTS(adam); i++)
		expect_column(adam[i], 3, false);
	for (size_t i = 0; i < G_N_ELEMENTS(copies); i++)
		expect_column(copies[i], 3, true);
	cr_assert_eq(one->table.threads.n, 2);
	expect_column(&one->table.u_ud, 2, true);
	cr_assert_eq(one->table.u_uu.n, 0);
	cr_assert_eq(one->table.adam_uudd.n, 0);
	there_and_back(two);
	there_and_back(one);
}

Test(rates, collectives_of_two_and_the_ssd_have_tables)
{
	g_autoptr(machine) m = measured_machine(2, 1);
	static const int kinds[] = {STAGE_ALL_REDUCE, STAGE_REDUCE_SCATTER, STAGE_SSD_READ, STAGE_SSD_WRITE};
	for (size_t i = 0; i < G_N_ELEMENTS(kinds); i++) {
		const struct measured_table *t = &m->measured->table[kinds[i]][PASS_FORWARD];
		cr_assert_eq(t->sizes.n, 7, "%s", stage_kind_name(kinds[i])); /* 4 KiB to 16 MiB, fourfold */
		cr_assert_eq(t->sizes.v[0], 4096);
		cr_assert_eq(t->sizes.v[6], 16 << 20);
		/* four thousand times the bytes take longer whatever else the machine does */
		cr_assert_gt(t->median_us.v[6], t->median_us.v[0]);
	}
	cr_assert(m->ssd_cores > 0 && m->ssd_cores <= 1);
	cr_assert(m->ssd_read_gbps > 0 && m->ssd_write_gbps > 0 && m->ssd_gb > 0);
}

Test(rates, a_folder_that_is_not_there_is_named)
{
	autoclear(measured_table) read = {0}, write = {0};
	struct ssd_rates out;
	g_autoptr(GError) error = NULL;
	cr_assert_not(measure_ssd("/nonexistent/folder", 3, &read, &write, &out, &error));
	cr_assert_eq(error->code, ESMOE_ERROR_INPUT);
	cr_assert(strstr(error->message, "/nonexistent/folder"), "%s", error->message);
}
