/* Exchanges made by the law give its share back. */
#include "exec/one_way.h"

#include <criterion/criterion.h>

static void add(struct trace *t, int rank, int layer, uint64_t bytes, double us)
{
	struct span s = {.id = t->spans->len, .kind = STAGE_ALL_TO_ALL, .rank = rank, .layer = (uint16_t)layer, .bytes = bytes};
	s.stream = (stream_id)rank * GPU_STREAMS + STREAM_COLLECTIVE;
	s.start_ns = 1000000 * layer;
	s.end_ns = s.start_ns + (nsec_t)(us * 1e3);
	g_array_append_val(t->spans, s);
}

/* Twice the bytes take twice the time: 1 us a thousand. */
static struct measured_table proportional(void)
{
	struct measured_table t = {0};
	double us[] = {1, 100000};
	measured_add(&t, 1e3, &us[0], 1);
	measured_add(&t, 1e8, &us[1], 1);
	return t;
}

/* Of GPUs with 50 million bytes of rows each; they arrive together, or lie apart. */
static double share_packed(double truth, uint64_t most, uint64_t least, double move_ns, bool apart)
{
	g_autoptr(trace) t = trace_new();
	g_autoptr(GArray) all = g_array_new(FALSE, FALSE, sizeof(struct unequal));
	struct measured_table table = proportional();
	t->gpus = 2;
	for (int layer = 0; layer < 5; layer++) {
		const double counted = (double)least + truth * (double)(most - least);
		double moved = 50e6 - (double)least + (apart ? (double)most : 0);
		double us = (counted + (moved - 2 * counted) * move_ns) / 1e3;
		add(t, 0, layer, layer % 2 ? most : least, us);
		add(t, 1, layer, layer % 2 ? least : most, us * 1.1); /* the shorter one counts */
	}
	add(t, 0, 5, most, 1e6);
	add(t, 1, 5, least, 1e6);
	g_array_index(t->spans, struct span, 11).launch_end_ns = G_MAXINT64; /* waited for its launches */
	one_way_add(t, &(struct unequal_rows){50e6, apart}, all);
	cr_assert_eq(all->len, 5);
	double share = one_way_share(all, &table, move_ns, 0.9);
	measured_table_clear(&table);
	return share;
}

static double share_of(double truth, uint64_t most, uint64_t least)
{
	return share_packed(truth, most, least, 0, false);
}

Test(one_way, what_moves_within_a_gpu_is_no_part_of_the_share)
{
	for (int apart = 0; apart < 2; apart++) {
		cr_expect_float_eq(share_packed(0.7, 40000000, 10000000, 0.2, apart), 0.7, 1e-3, "apart %d", apart);
		cr_expect_float_eq(share_packed(1, 40000000, 10000000, 0.1, apart), 1, 1e-3, "apart %d", apart);
		cr_expect_float_eq(share_packed(0.6, 40000000, 0, 0.4, apart), 0.6, 1e-3, "apart %d", apart);
	}
}

Test(one_way, the_law_gives_its_share_back)
{
	cr_expect_float_eq(share_of(0.7, 40000000, 10000000), 0.7, 1e-3);
	cr_expect_float_eq(share_of(1, 40000000, 10000000), 1, 1e-3);
	cr_expect_float_eq(share_of(0.6, 40000000, 0), 0.6, 1e-3);
	cr_expect_float_eq(share_of(0.3, 40000000, 0), 0.5, 1e-3, "no less than one direction after the other");
	cr_expect_float_eq(share_of(0.6, 40000000, 35000000), 0.9, 1e-9, "directions that hardly differ tell nothing");
}

Test(one_way, nothing_measured_is_nothing_known)
{
	g_autoptr(GArray) none = g_array_new(FALSE, FALSE, sizeof(struct unequal));
	g_autoptr(trace) one = trace_new();
	struct measured_table table = proportional(), empty = {0};
	one->gpus = 1;
	one_way_add(one, &(struct unequal_rows){50e6, false}, none);
	cr_expect_eq(one_way_share(none, &table, 0.1, 0.8), 0.8);
	struct unequal u = {.us = 100, .most = 2e6, .least = 1e6};
	g_array_append_val(none, u);
	cr_expect_eq(one_way_share(none, &empty, 0.1, 0.8), 0.8);
	measured_table_clear(&table);
}
