/* Machines: presets against their sources, what is derived, and numbers that do not agree. */
#include "model/machine.h"

#include "model/error.h"

#include <criterion/criterion.h>
#include <math.h>
#include <string.h>

static struct machine *machine_of(const char *source, const char *const *overrides)
{
	g_autoptr(GError) error = NULL;
	struct machine *m = machine_load(source, overrides, &error);

	cr_assert_not_null(m, "%s", error ? error->message : "");
	return m;
}

Test(machine, every_preset_reads_and_round_trips_with_its_name)
{
	g_auto(GStrv) names = preset_names("machines");

	for (int i = 0; names[i]; i++) {
		g_autoptr(machine) m = machine_of(names[i], NULL), back = NULL;
		g_autofree char *written = machine_ini(m), *again = NULL;

		cr_assert_str_eq(m->name, names[i]);
		back = machine_of(written, NULL);
		again = machine_ini(back);
		cr_assert_str_eq(again, written);
		cr_assert_str_eq(back->name, names[i]);
	}
}

/* Every value stands under a comment, every line fits a screen, and the comment is one of the kinds of source we accept. */
Test(machine, every_value_of_a_preset_has_its_source_above)
{
	g_auto(GStrv) names = preset_names("machines");

	for (int i = 0; names[i]; i++) {
		g_autofree char *text = preset_text("machines", names[i], NULL);
		g_auto(GStrv) lines = g_strsplit(text, "\n", -1);

		for (int j = 1; lines[j]; j++)
			if (strchr(lines[j], '=') && *lines[j] != '#')
				cr_assert(*lines[j - 1] == '#' && strlen(lines[j - 1]) > 3, "%s:%d has no source", names[i], j + 1);
	}
}

Test(machine, presets_are_the_named_ones)
{
	/* name, GPUs, GPUs a node, dense tensor-core peak and HBM bandwidth of the data sheets */
	static const struct {
		const char *name;
		int gpus, node;
		double tflops, hbm;
	} sheet[] = {
	    {"a100-40g-x4", 4, 4, 312, 1555}, {"a100-80g-x8", 8, 8, 312, 2039},  {"h100-x8", 8, 8, 989.4, 3350},
	    {"h200-x1", 1, 1, 989.4, 4800},   {"h200-x2", 2, 2, 989.4, 4800},    {"h200-x8", 8, 8, 989.4, 4800},
	    {"gh200", 1, 1, 989.4, 4000},     {"rtx4090-x8", 8, 8, 165.2, 1008}, {"v100-x16", 16, 8, 125, 900},
	};

	for (size_t i = 0; i < G_N_ELEMENTS(sheet); i++) {
		g_autoptr(machine) m = machine_of(sheet[i].name, NULL);

		cr_assert_eq(m->gpus, sheet[i].gpus);
		cr_assert_eq(m->gpus_per_node, sheet[i].node);
		cr_assert_eq(m->bf16_tflops, sheet[i].tflops);
		cr_assert_eq(m->hbm_gbps, sheet[i].hbm);
	}
}

Test(machine, nodes_are_filled_in_order)
{
	g_autoptr(machine) m = machine_of("v100-x16", (const char *const[]){"machine.gpus=19", NULL});

	cr_assert_eq(machine_nodes(m), 3);
	cr_assert_eq(machine_node_gpus(m, 0), 8);
	cr_assert_eq(machine_node_gpus(m, 2), 3);
}

Test(machine, any_preset_grows_to_many_gpus)
{
	g_auto(GStrv) names = preset_names("machines");

	for (int i = 0; names[i]; i++) {
		g_autoptr(machine) m = machine_of(names[i], (const char *const[]){"machine.gpus=16384", NULL});

		cr_assert_eq(machine_nodes(m) * m->gpus_per_node, 16384);
	}
}

Test(machine, adam_follows_the_measured_threads)
{
	/* 30 bytes a parameter: billion parameters/s of 1, 2, 4, 8 and 16 threads on the machine of h200-x1 */
	static const double measured[][2] = {{1, 0.64}, {2, 1.17}, {4, 2.05}, {8, 3.11}, {16, 3.60}};
	g_autoptr(machine) m = machine_of("h200-x1", NULL);

	for (size_t i = 0; i < G_N_ELEMENTS(measured); i++)
		cr_assert_float_eq(machine_adam_gparams_per_s(m, (int)measured[i][0]), measured[i][1], 0.005);
	cr_assert_float_eq(machine_adam_gparams_per_s(m, 12), (3.11 + 3.60) / 2, 0.005);
	cr_assert_float_eq(machine_adam_gparams_per_s(m, 0), 3.60, 0.005);
	cr_assert_float_eq(machine_adam_gparams_per_s(m, 1000), 3.60, 0.005);
}

Test(machine, adam_without_a_table_saturates_as_threads_were_seen_to)
{
	/* the run on two H200's host: plain C, 30 bytes a parameter */
	static const double measured[][2] = {{1, 0.60}, {2, 1.17}, {4, 1.95}, {8, 2.91}, {16, 3.94}, {32, 4.53}};
	const char *const overrides[] = {"contention.rule=max-min", "host.adam_gparams_per_s=4.53", "host.adam_bytes_per_param=30", NULL};
	g_autoptr(machine) m = machine_of("h200-x2", overrides);
	double before = 0;

	for (size_t i = 0; i < G_N_ELEMENTS(measured); i++)
		cr_assert_float_eq(machine_adam_gparams_per_s(m, (int)measured[i][0]) / measured[i][1], 1, 0.06);
	for (int threads = 1; threads <= 32; threads++) {
		cr_assert_gt(machine_adam_gparams_per_s(m, threads), before);
		before = machine_adam_gparams_per_s(m, threads);
	}
	cr_assert_float_eq(before, 4.53, 1e-12);
}

Test(machine, collectives_run_at_nvlink_or_at_both_ways_of_pcie)
{
	g_autoptr(machine) with = machine_of("h200-x2", NULL), without = machine_of("h200-x2", (const char *const[]){"nvlink.gbps=0", NULL});

	cr_assert_float_eq(machine_collective_gbps(with), 450 * 0.67, 1e-9);
	cr_assert_float_eq(machine_collective_gbps(without), 50.7, 1e-9);
}

static void refused(const char *set, const char *message)
{
	g_autoptr(GError) error = NULL;
	const char *const overrides[] = {set, NULL};

	cr_assert_null(machine_load("h200-x2", overrides, &error), "accepted: %s", set);
	cr_assert(g_error_matches(error, ESMOE_ERROR, ESMOE_ERROR_INPUT));
	cr_assert_str_eq(error->message, message);
}

/* The same, when the value that is wrong now stands in the preset, on the line of `key`. */
static void at_line(const char *set, const char *key, const char *message)
{
	g_autofree char *text = preset_text("machines", "h200-x2", NULL), *start = g_strconcat(key, " = ", NULL), *expected = NULL;
	g_auto(GStrv) lines = g_strsplit(text, "\n", -1);
	int line = 0;

	while (!g_str_has_prefix(lines[line], start))
		line++;
	expected = g_strdup_printf("h200-x2:%d: %s", line + 1, message);
	refused(set, expected);
}

Test(machine, numbers_that_do_not_agree_are_refused)
{
	refused("pcie.duplex_gbps=50", "--set pcie.duplex_gbps: 50; expected from 55.3, the faster direction alone, to 110.4, their sum");
	refused("pcie.duplex_gbps=111", "--set pcie.duplex_gbps: 111; expected from 55.3, the faster direction alone, to 110.4, their sum");
	refused("pcie.gpus_per_root=3", "--set pcie.gpus_per_root: 3; expected a divisor of machine.gpus_per_node = 2");
	at_line("ssd.gb=1000", "read_gbps", "ssd.read_gbps: 0; expected more than 0 with ssd.gb = 1000");
	refused("gpu.reserved_gib=200", "--set gpu.reserved_gib: 200; expected less than gpu.hbm_gib = 139.8");
	refused("host.dram_reserved_gib=251", "--set host.dram_reserved_gib: 251; expected less than host.dram_gib = 251");
	refused("host.adam_threads=33", "--set host.adam_threads: 33; expected at most host.cores = 32");
	at_line("contention.threads=0,1", "adam", "contention.adam: 9 values; expected 2, one for each of contention.threads");
	refused("contention.threads=", "--set contention.threads: none; expected the rows of the table, or contention.rule = max-min");
	refused("contention.u_ud=1,2", "--set contention.u_ud: 2 values; expected 9, one for each of contention.threads");
	refused("contention.adam_u=", "--set contention.adam_u: 0 values; expected 9, one for each of contention.threads");
	refused("contention.threads=0,2,1,4,8,12,16,24,32", "--set contention.threads: 1 in place 3; expected ascending numbers from 0");
	refused("contention.threads=1,2,3,4,8,12,16,24,32", "--set contention.threads: 1 in place 1; expected ascending numbers from 0");
}

Test(machine, two_gpu_columns_may_be_left_out)
{
	const char *const overrides[] = {"contention.adam_uu=", "contention.adam_dd=", "contention.adam_uudd=", "contention.u_uu=",
	                                 "contention.d_dd=",    "contention.u_uudd=",  "contention.d_uudd=",    NULL};
	g_autoptr(machine) m = machine_of("h200-x2", overrides);

	cr_assert_eq(m->table.u_uu.n, 0);
	cr_assert_eq(m->table.u_ud.n, 9);
}

Test(machine, absurd_sizes_are_refused)
{
	refused("machine.gpus=0", "--set machine.gpus: '0'; expected a whole number from 1 to 16384");
	refused("machine.gpus=16385", "--set machine.gpus: '16385'; expected a whole number from 1 to 16384");
	refused("gpu.hbm_gbps=0", "--set gpu.hbm_gbps: '0'; expected a number from 0.1 to 1e+06");
	refused("host.adam_gparams_per_s=nan", "--set host.adam_gparams_per_s: 'nan'; expected a number from 1e-06 to 100000");
	refused("gpu.gemm_efficiency=1.2", "--set gpu.gemm_efficiency: '1.2'; expected a number from 0.001 to 1");
}

Test(machine, a_fabric_that_does_not_fit_its_nodes_is_refused)
{
	refused("nic.adapters=3", "--set nic.adapters: 3; expected a divisor of machine.gpus_per_node = 2");
	refused("fabric.rails=true", "--set fabric.rails: true; expected nic.adapters > 1 and fabric.leaf_nodes > 0 with it");
	refused("fabric.oversubscription=0.5", "--set fabric.oversubscription: '0.5'; expected a number from 1 to 1000");
	refused("software.all_reduce=butterfly", "--set software.all_reduce: 'butterfly'; expected auto | ring | tree");
}
