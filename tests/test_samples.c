/* Points of a table from samples that were made by a rule, so that what the points should be is known. */
#include "exec/samples.h"

#include <criterion/criterion.h>
#include <math.h>

static void add(GArray *samples, int kind, double size, double us, uint32_t step)
{
	const struct timing s = {.kind = kind, .size = size, .us = us, .step = step};
	g_array_append_val(samples, s);
}

static GArray *samples_new(void)
{
	return g_array_new(FALSE, FALSE, sizeof(struct timing));
}

Test(samples, a_point_is_the_median_over_steps_of_their_means)
{
	g_autoptr(GArray) samples = samples_new();
	g_autoptr(measured) tables = measured_new();
	const struct measured_table *t = &tables->table[STAGE_ADAM][PASS_FORWARD];
	/* each step has nine quick ones and a straggler, the third a disaster besides */
	for (uint32_t step = 0; step < 5; step++)
		for (int i = 0; i < 10; i++)
			add(samples, STAGE_ADAM, 1000, i ? 10 + step : step == 2 ? 5000 : 50, step);
	samples_to_tables(samples, tables);
	cr_assert_eq(t->sizes.n, 1);
	cr_assert_eq(t->sizes.v[0], 1000);
	/* means: 14, 14.9, 510.8, 16.7, 17.6 */
	cr_assert_float_eq(t->median_us.v[0], 16.7, 1e-9);
	cr_assert_eq(t->samples.v[0], 5);
}

Test(samples, what_waited_for_launches_counts_where_all_did)
{
	g_autoptr(GArray) samples = samples_new();
	g_autoptr(measured) tables = measured_new();
	const struct measured_table *t = &tables->table[STAGE_EXPERT][PASS_FORWARD];
	for (uint32_t step = 0; step < 3; step++)
		for (int i = 0; i < 4; i++) {
			const struct timing late = {.kind = STAGE_EXPERT, .size = 100, .us = 150, .step = step, .waited = true};
			const struct timing some = {.kind = STAGE_EXPERT, .size = 1000, .us = i ? 150 : 98, .step = step, .waited = i > 0};
			g_array_append_val(samples, late);
			g_array_append_val(samples, some);
		}
	samples_to_tables(samples, tables);
	cr_assert_eq(t->sizes.n, 2);
	cr_assert_float_eq(t->median_us.v[0], 150, 1e-9);
	cr_assert_float_eq(t->median_us.v[1], 98, 1e-9);
}

Test(samples, equal_sizes_are_one_point_and_octaves_are_apart)
{
	g_autoptr(GArray) samples = samples_new();
	g_autoptr(measured) tables = measured_new();
	const struct measured_table *t = &tables->table[STAGE_EXPERT][PASS_FORWARD];
	for (uint32_t step = 0; step < 40; step++)
		for (double size = 4096; size >= 64; size /= 4)
			add(samples, STAGE_EXPERT, size, size / 2, step);
	samples_to_tables(samples, tables);
	cr_assert_eq(t->sizes.n, 4);
	for (int i = 0; i < t->sizes.n; i++) {
		cr_assert_eq(t->sizes.v[i], 64 << 2 * i);
		cr_assert_float_eq(t->median_us.v[i], t->sizes.v[i] / 2, 1e-9);
		cr_assert_eq(t->samples.v[i], 40);
	}
}

Test(samples, what_a_gates_token_costs_whatever_the_experts_is_found)
{
	g_autoptr(GArray) samples = samples_new();
	g_autoptr(measured) tables = measured_new();
	const struct measured_table *t = &tables->table[STAGE_GATE][PASS_FORWARD];
	for (int experts = 4; experts <= 64; experts *= 2)
		for (double tokens = 1024; tokens <= 16384; tokens *= 2) {
			const struct timing s = {STAGE_GATE, PASS_FORWARD, tokens * experts, tokens * (experts + 32) / 1e3, tokens, experts, 0};
			g_array_append_val(samples, s);
		}
	samples_to_tables(samples, tables);
	cr_assert_float_eq(t->extra_experts, 32, 1e-9);
	for (int i = 0; i < t->sizes.n; i++)
		cr_assert_float_eq(t->median_us.v[i], t->sizes.v[i] / 1e3, 0.2 * t->median_us.v[i]);
}
