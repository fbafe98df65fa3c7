/* Measured tables: lookup against the line through two points, files there and back, and what costs make of them. */
#include "model/cost.h"
#include "model/error.h"
#include "model/measured.h"
#include "model/resource.h"
#include "model/scenario.h"

#include <criterion/criterion.h>
#include <math.h>
#include <string.h>

static struct measured *three_points(int kind, int pass, double a, double b, double c)
{
	struct measured *m = measured_new();
	double us[] = {a, b, c};
	for (int i = 0; i < 3; i++)
		measured_add(&m->table[kind][pass], pow(10, i + 1), &us[i], 1);
	return m;
}

static double ns_at(const struct measured_table *t, double size, enum measured_range expected)
{
	double ns = -1;
	cr_assert_eq(measured_ns(t, size, &ns), expected, "size %g", size);
	return ns;
}

static void near(double value, double expected)
{
	cr_assert_float_eq(value, expected, 1e-9 * fabs(expected), "%.12g, expected %.12g", value, expected);
}

Test(measured, points_are_met_and_a_line_runs_between_them)
{
	g_autoptr(measured) m = three_points(STAGE_EXPERT, PASS_FORWARD, 20, 40, 800);
	const struct measured_table *t = &m->table[STAGE_EXPERT][PASS_FORWARD];
	near(ns_at(t, 10, MEASURED_INSIDE), 20e3);
	near(ns_at(t, 100, MEASURED_INSIDE), 40e3);
	near(ns_at(t, 1000, MEASURED_INSIDE), 800e3);
	near(ns_at(t, 55, MEASURED_INSIDE), 30e3);
	near(ns_at(t, 550, MEASURED_INSIDE), 420e3);
}

Test(measured, past_the_ends_the_nearest_segment_goes_on)
{
	g_autoptr(measured) m = three_points(STAGE_EXPERT, PASS_FORWARD, 20, 40, 800);
	const struct measured_table *t = &m->table[STAGE_EXPERT][PASS_FORWARD];
	near(ns_at(t, 1, MEASURED_BELOW), 18e3); /* 20 for 90 */
	near(ns_at(t, 0, MEASURED_BELOW), 18e3); /* nothing counts as one */
	/* 40 to 800 is more than in proportion: never assumed to go on */
	near(ns_at(t, 1e4, MEASURED_ABOVE), 8000e3);
}

Test(measured, a_falling_segment_is_not_continued)
{
	g_autoptr(measured) m = three_points(STAGE_UPLOAD, PASS_FORWARD, 50, 40, 30);
	const struct measured_table *t = &m->table[STAGE_UPLOAD][PASS_FORWARD];
	near(ns_at(t, 2, MEASURED_BELOW), 50e3);
	near(ns_at(t, 1e5, MEASURED_ABOVE), 30e3);
}

Test(measured, one_point_is_in_proportion_above_and_constant_below)
{
	g_autoptr(measured) m = measured_new();
	struct measured_table *t = &m->table[STAGE_HEAD][PASS_FORWARD];
	double us = 7;
	cr_assert_eq(measured_ns(t, 4, &us), MEASURED_NONE);
	cr_assert_eq(us, 7);
	measured_add(t, 64, &us, 1);
	near(ns_at(t, 64, MEASURED_INSIDE), 7e3);
	near(ns_at(t, 128, MEASURED_ABOVE), 14e3);
	near(ns_at(t, 8, MEASURED_BELOW), 7e3);
}

Test(measured, a_size_keeps_median_spread_and_count)
{
	g_autoptr(measured) m = measured_new();
	struct measured_table *t = &m->table[STAGE_ADAM][PASS_FORWARD];
	double us[] = {14, 10, 12, 8, 100};
	measured_add(t, 5, us, 5);
	cr_assert_eq(t->median_us.v[0], 12);
	near(t->spread_percent.v[0], 100.0 * (14 - 10) / 2 / 12);
	cr_assert_eq(t->samples.v[0], 5);
}

Test(measured, a_median_next_to_nothing_has_a_spread_that_can_be_read)
{
	g_autoptr(GError) error = NULL;
	g_autoptr(measured) m = measured_new(), back = NULL;
	struct measured_table *t = &m->table[STAGE_ADAM][PASS_FORWARD];
	double us[] = {-100, -100, 0, 100, 100};
	measured_add(t, 5, us, 5);
	cr_assert_eq(t->median_us.v[0], 0.001);
	cr_assert_eq(t->spread_percent.v[0], 1e6);
	g_autofree char *text = measured_ini(m);
	cr_assert(measured_read(text, NULL, &back, &error), "%s", error ? error->message : "");
}

static struct machine *calibrated(struct measured *measured)
{
	g_autoptr(GError) error = NULL;
	struct machine *m = machine_load("h200-x2", NULL, &error);
	cr_assert_not_null(m, "%s", error ? error->message : "");
	m->measured = measured;
	return m;
}

Test(measured, a_machine_with_tables_survives_its_own_text)
{
	struct measured *tables = three_points(STAGE_GATE, PASS_RECOMPUTE, 1.25, 1.0 / 3, 1e-3);
	g_autoptr(GError) error = NULL;
	g_free(tables->date);
	tables->date = g_strdup("2026-11-22");
	tables->gpus = 2;
	double us = 0.1;
	measured_add(&tables->table[MEASURED_UNDER][PASS_FORWARD], 1e6, &us, 1);
	g_autoptr(machine) m = calibrated(tables);
	g_autofree char *text = machine_ini(m);
	g_autoptr(machine) back = machine_load(text, NULL, &error);
	cr_assert_not_null(back, "%s", error ? error->message : "");
	cr_assert_not_null(back->measured);
	g_autofree char *again = machine_ini(back);
	cr_assert_str_eq(text, again);
	cr_assert_eq(back->measured->table[STAGE_GATE][PASS_RECOMPUTE].median_us.v[1], 1.0 / 3);
	cr_assert_eq(back->measured->table[MEASURED_UNDER][PASS_FORWARD].median_us.v[0], 0.1);
	cr_assert_eq(back->measured->gpus, 2);
	cr_assert_null(strstr(text, "measured_upload"), "an empty table is written");
}

Test(measured, a_preset_has_no_tables)
{
	g_autoptr(machine) m = calibrated(NULL);
	g_autofree char *text = machine_ini(m);
	cr_assert_null(m->measured);
	cr_assert_null(strstr(text, "measured_"));
}

static void refused(const char *section, const char *words)
{
	g_autoptr(machine) m = calibrated(NULL);
	g_autofree char *base = machine_ini(m), *text = g_strjoin("\n", base, section, NULL);
	g_autoptr(GError) error = NULL;
	g_autoptr(machine) bad = machine_load(text, NULL, &error);
	cr_assert_null(bad, "accepted: %s", section);
	cr_assert(g_error_matches(error, ESMOE_ERROR, ESMOE_ERROR_INPUT));
	cr_assert_not_null(strstr(error->message, words), "'%s' lacks '%s'", error->message, words);
}

Test(measured, bad_tables_are_refused_with_their_place)
{
	refused("[measured_upload]\nsizes = 1, 2\nmedian_us = 1\n", "measured_upload.median_us");
	refused("[measured_upload]\nsizes = 2, 1\nmedian_us = 1, 1\nspread_percent = 0, 0\nsamples = 1, 1\n", "ascending");
	refused("[measured_upload]\nsizes = 1\nmedian_us = 0\nspread_percent = 0\nsamples = 1\n", "more than 0");
	refused("[measured_uplod]\nsizes = 1\n", "did you mean 'measured_upload'");
	refused("[measured_upload]\nsize = 1\n", "did you mean 'sizes'");
	refused("[measured_upload]\nsizes = 1, x\n", "expected numbers");
}

static struct scenario *small(struct measured *(*make)(const struct network *))
{
	g_autoptr(GError) error = NULL;
	const struct scenario_options o = {.model = "gpt-moe-s", .machine = "h200-x2", .policy = "es-moe", .experts = 8};
	struct scenario *s = scenario_new(&o, &error);
	cr_assert_not_null(s, "%s", error ? error->message : "");
	s->machine->measured = make(s->network);
	return s;
}

static struct measured *of_network(const struct network *n)
{
	struct measured *m = three_points(STAGE_EXPERT, PASS_FORWARD, 20, 40, 800);
	double us = 50;
	g_free(m->network);
	m->network = measured_network(n);
	measured_add(&m->table[STAGE_UPLOAD][PASS_FORWARD], 1000, &us, 1);
	return m;
}

static struct measured *of_another(const struct network *n)
{
	struct measured *m = of_network(n);
	m->network[0] = 'x';
	return m;
}

static const struct layer *moe_layer(const struct network *n)
{
	int i = 0;
	while (!n->layer[i].experts)
		i++;
	return &n->layer[i];
}

Test(cost, tables_answer_and_say_where_they_do_not_reach)
{
	g_autoptr(scenario) s = small(of_network);
	g_autoptr(cost) c = cost_new(s->network, s->machine, s->policy, s->seq_len, 0);
	const struct layer *l = moe_layer(s->network);
	uint32_t kernels;
	cr_assert_eq(cost_basis(c, STAGE_EXPERT, PASS_FORWARD), 0);
	cr_assert_float_eq((double)cost_compute(c, STAGE_EXPERT, PASS_FORWARD, l, 100, &kernels), 40000, 1);
	cr_assert_eq(cost_basis(c, STAGE_EXPERT, PASS_FORWARD), COST_MEASURED);
	cr_assert_float_eq((double)cost_compute(c, STAGE_EXPERT, PASS_FORWARD, l, 2000, &kernels), 1600000, 1);
	cr_assert_eq(cost_basis(c, STAGE_EXPERT, PASS_FORWARD), COST_MEASURED | COST_ABOVE);
	cr_assert_float_eq((double)cost_compute(c, STAGE_EXPERT, PASS_FORWARD, l, 1, &kernels), 18000, 1);
	cr_assert_eq(cost_basis(c, STAGE_EXPERT, PASS_FORWARD), COST_MEASURED | COST_ABOVE | COST_BELOW);
	/* four experts, one after another; padded to the busiest */
	const uint32_t even[] = {100, 100, 100, 100}, uneven[] = {100, 2000, 1, 100};
	cr_assert_float_eq((double)cost_grouped(c, PASS_FORWARD, l, even, 4, false, &kernels), 4 * 40000, 1);
	cr_assert_float_eq((double)cost_grouped(c, PASS_FORWARD, l, uneven, 4, false, &kernels), 40000 + 1600000 + 18000 + 40000, 1);
	cr_assert_float_eq((double)cost_grouped(c, PASS_FORWARD, l, uneven, 4, true, &kernels), 4 * 1600000, 1);
	cr_assert_eq(cost_upload(c, 1000), 50000);
	cr_assert_eq(cost_basis(c, STAGE_UPLOAD, PASS_BACKWARD), COST_MEASURED);
	cr_assert_gt(cost_adam(c, 1000000, true), 0);
	cr_assert_eq(cost_basis(c, STAGE_ADAM, PASS_UPDATE), COST_ROOFLINE);
}

Test(cost, tables_of_another_network_give_only_what_does_not_depend_on_it)
{
	g_autoptr(scenario) s = small(of_another);
	g_autoptr(cost) c = cost_new(s->network, s->machine, s->policy, s->seq_len, 0);
	uint32_t kernels;
	cr_assert_neq(cost_compute(c, STAGE_EXPERT, PASS_FORWARD, moe_layer(s->network), 100, &kernels), 40000);
	cr_assert_eq(cost_basis(c, STAGE_EXPERT, PASS_FORWARD), COST_ROOFLINE);
	cr_assert_eq(cost_upload(c, 1000), 50000);
}

Test(cost, an_unmeasured_machine_has_no_basis)
{
	g_autoptr(GError) error = NULL;
	const struct scenario_options o = {.model = "gpt-moe-s", .machine = "h200-x2", .policy = "es-moe"};
	g_autoptr(scenario) s = scenario_new(&o, &error);
	g_autoptr(cost) c = cost_new(s->network, s->machine, s->policy, s->seq_len, 0);
	cr_assert_gt(cost_upload(c, 1000), 0);
	cr_assert_eq(cost_basis(c, STAGE_UPLOAD, PASS_FORWARD), 0);
}

/* 10 us and 2 more for each thousand rows; none where it was not measured. */
Test(cost, a_reduction_waits_by_the_rows_of_the_backward_it_runs_under)
{
	g_autoptr(scenario) s = small(of_network);
	struct measured_table *t = &s->machine->measured->table[MEASURED_UNDER][PASS_FORWARD];
	g_autoptr(cost) c = cost_new(s->network, s->machine, s->policy, s->seq_len, 0);
	double us[] = {12, 42};
	cr_assert_eq(cost_under(c, 4000), 0);
	measured_add(t, 1000 * s->network->d_model, &us[0], 1);
	measured_add(t, 16000 * s->network->d_model, &us[1], 1);
	cr_assert_float_eq((double)cost_under(c, 1000), 12000, 1);
	cr_assert_float_eq((double)cost_under(c, 4000), 18000, 1);
	cr_assert_float_eq((double)cost_under(c, 16000), 42000, 1);
	cr_assert_float_eq((double)cost_under(c, 64000), 138000, 1);
	cr_assert_eq(cost_basis(c, STAGE_ALL_REDUCE, PASS_BACKWARD), 0);
}

static double cores_of(const struct machine *m, const struct resources *r, uint32_t profile)
{
	const struct profile *p = &r->profile[profile];
	for (int i = 0; i < p->n_demands; i++)
		if (p->demand[i].resource == (uint32_t)r->n_resources - NODE_RESOURCES + RES_CORES)
			return p->demand[i].amount;
	return 0;
}

Test(resource, streams_of_virtual_gpus_share_the_cores)
{
	g_autoptr(GError) error = NULL;
	const char *const set[] = {"host.stream_cores=1.5", "host.cores=4", "host.adam_threads=2", NULL};
	g_autoptr(machine) m = machine_load("h200-x2", set, &error);
	g_autoptr(machine) real = machine_load("h200-x2", NULL, &error);
	g_autoptr(resources) r = resources_new(m, 0), none = resources_new(real, 0);
	cr_assert_eq(r->capacity[r->n_resources - NODE_RESOURCES + RES_CORES], 4);
	cr_assert_eq(cores_of(m, r, profile_of_gpu(1, PROFILE_COMPUTE)), 1.5);
	cr_assert_eq(cores_of(m, r, profile_of_gpu(0, PROFILE_UP)), 1.5);
	cr_assert_eq(cores_of(m, r, profile_of_gpu(0, PROFILE_COLLECTIVE)), 1.5);
	cr_assert_eq(cores_of(m, r, profile_of_node(m, 0, PROFILE_ADAM)), 3);
	for (int i = 0; i < none->n_profiles; i++)
		cr_assert_eq(cores_of(real, none, (uint32_t)i), 0);
}
