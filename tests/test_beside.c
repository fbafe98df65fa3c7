/* Traces made by the rule of exec/beside.c give its slivers back. */
#include "exec/beside.h"
#include "exec/cover.h"

#include <criterion/criterion.h>
#include <math.h>

enum { TOKENS = 4096, PIECES = 60 };

/* What a copy costs while it goes on. */
struct beside {
	double up, down, both, mixer_share;
	bool comes;        /* parameters, for each backward: no download has no upload beside it */
	double exposed_us; /* of a product; 0: all of it */
};

static void add(struct trace *t, int kind, int pass, stream_id stream, nsec_t start, nsec_t ns)
{
	struct span s = {.id = t->spans->len, .kind = (uint8_t)kind, .pass = (uint8_t)pass, .stream = stream, .tokens = TOKENS};
	s.start_ns = start;
	s.end_ns = start + ns;
	g_array_append_val(t->spans, s);
}

/* Of three pieces one is alone, the second beside uploads - in the backward, beside downloads - and the third beside both. */
static struct trace *made(const struct beside *b, double experts_scale)
{
	struct trace *t = trace_new();
	t->gpus = t->gpus_per_node = 1;
	nsec_t now = 0;
	for (int i = 0; i < PIECES; i++) {
		const bool backward = i % 2, mixer = i % 5 == 4, first = i / 2 % 3 == 1, second = i / 2 % 3 == 2;
		const bool up = second ? backward : first && (b->comes || !backward), down = backward && (first || second);
		const double alone = (mixer ? 3e6 : experts_scale * 1e6) * (backward ? 2 : 1), exposed = (backward ? 6 : 2) * b->exposed_us * 1e3;
		const double share = mixer ? b->mixer_share : exposed > 0 ? fmin(1, exposed / alone) : 1;
		const nsec_t ns = llround(alone / (1 - share * (up && down ? b->both : up ? b->up : down ? b->down : 0)));
		add(t, mixer ? STAGE_MIXER : STAGE_EXPERT, backward ? PASS_BACKWARD : PASS_FORWARD, STREAM_COMPUTE, now, ns);
		if (up)
			add(t, STAGE_UPLOAD, PASS_BACKWARD, STREAM_UPLOAD, now, ns);
		if (down)
			add(t, STAGE_DOWNLOAD, PASS_BACKWARD, STREAM_DOWNLOAD, now, ns);
		now += ns + 1000;
	}
	return t;
}

#define MACHINE                                                                                                                                      \
	{                                                                                                                                            \
		.cool_speedup = 1, .copy_gemm_slowdown = 1.5, .copy_up_share = 0.4, .copy_mixer_share = 0.7                                          \
	}

static void check(const struct beside *b)
{
	struct machine m = MACHINE;
	g_autoptr(trace) t = made(b, 1);
	g_autoptr(trace) large = made(b, 4);
	const struct warm_run runs[] = {{t, true, true, 1024, {2, 6}}, {large, true, true, 4096, {2, 6}}};
	beside_fit(runs, 2, &m);
	cr_expect_float_eq(m.copy_gemm_slowdown, 1 / (1 - b->both), 1e-3, "%g", m.copy_gemm_slowdown);
	cr_expect_float_eq(m.copy_up_share, b->up / b->both, 1e-3, "%g", m.copy_up_share);
	cr_expect_float_eq(m.copy_down_share, b->comes ? 1 - b->up / b->both : b->down / b->both, 1e-3, "%g", m.copy_down_share);
	cr_expect_float_eq(m.copy_mixer_share, b->mixer_share, 1e-2, "%g", m.copy_mixer_share);
	cr_expect_eq(m.copy_exposed_us, 0);
}

Test(beside, slivers_come_back)
{
	check(&(struct beside){0.1, 0.1, 0.2, 1});
	check(&(struct beside){0.18, 0.09, 0.27, 0.3});
	check(&(struct beside){0.05, 0.15, 0.2, 1.5});
}

Test(beside, both_ways_may_cost_less_than_each)
{
	check(&(struct beside){0.18, 0.16, 0.25, 0.5});
	check(&(struct beside){0.2, 0.2, 0.2, 1});
}

Test(beside, where_no_download_is_alone_both_are_the_sum)
{
	check(&(struct beside){0.18, 0.16, 0.25, 0.5, true});
}

/* Forward passes of two products and 1 and 4 ms, backwards of six and 2 and 8 ms. */
Test(beside, long_products_lose_what_short_ones_do)
{
	static const struct beside laws[] = {{0.2, 0.15, 0.3, 0.4, false, 400}, {0.1, 0.1, 0.15, 1, false, 600}};
	for (size_t i = 0; i < G_N_ELEMENTS(laws); i++) {
		struct machine m = MACHINE;
		g_autoptr(trace) t = made(&laws[i], 1);
		g_autoptr(trace) large = made(&laws[i], 4);
		const struct warm_run runs[] = {{t, true, true, 1024, {2, 6}}, {large, true, true, 4096, {2, 6}}};
		beside_fit(runs, 2, &m);
		const double both = 1 - 1 / m.copy_gemm_slowdown;
		cr_expect_float_eq(m.copy_exposed_us, laws[i].exposed_us, 0.06 * laws[i].exposed_us, "%g us", m.copy_exposed_us);
		cr_expect_float_eq(both, laws[i].both, 0.05 * laws[i].both, "%g", both);
		cr_expect_float_eq(m.copy_up_share * both, laws[i].up, 0.06 * laws[i].up, "%g", m.copy_up_share * both);
		cr_expect_float_eq(m.copy_down_share * both, laws[i].down, 0.06 * laws[i].down, "%g", m.copy_down_share * both);
	}
}

/* One update from the first span to the last. */
static void add_adam(struct trace *t)
{
	const nsec_t end = trace_span(t, t->spans->len - 1)->end_ns;
	add(t, STAGE_ADAM, PASS_UPDATE, GPU_STREAMS, 0, end);
}

/* Of two runs alike in all else. */
Test(beside, copies_count_while_adam_works)
{
	struct machine m = MACHINE;
	const struct beside fast = {0.02, 0.01, 0.03, 1}, slow = {0.18, 0.16, 0.25, 0.5};
	g_autoptr(trace) rests = made(&fast, 1);
	g_autoptr(trace) works = made(&slow, 1);
	add_adam(works);
	const struct warm_run runs[] = {{rests, true, true, 1024, {2, 6}}, {rests, true, true, 1024, {2, 6}}, {works, true, true, 1024, {2, 6}}};
	beside_fit(runs, G_N_ELEMENTS(runs), &m);
	cr_expect_float_eq(m.copy_gemm_slowdown, 1 / (1 - slow.both), 1e-3, "%g", m.copy_gemm_slowdown);
	cr_expect_float_eq(m.copy_up_share, slow.up / slow.both, 1e-3, "%g", m.copy_up_share);
	cr_expect_float_eq(m.copy_down_share, slow.down / slow.both, 1e-3, "%g", m.copy_down_share);
	cr_expect_float_eq(m.copy_mixer_share, slow.mixer_share, 1e-2, "%g", m.copy_mixer_share);
}

Test(beside, without_runs_that_wait_in_company_nothing_is_known)
{
	struct machine m = MACHINE;
	g_autoptr(trace) t = made(&(struct beside){0.1, 0.1, 0.2, 1}, 1);
	const struct warm_run others[] = {{t, false, true, 1024}, {t, true, false, 1024}};
	beside_fit(others, 2, &m);
	beside_fit(NULL, 0, &m);
	cr_expect_eq(m.copy_gemm_slowdown, 1.5);
	cr_expect_eq(m.copy_up_share, 0.4);
	cr_expect_eq(m.copy_mixer_share, 0.7);
}

Test(beside, cover_is_a_share_of_the_time)
{
	g_autoptr(trace) t = trace_new();
	t->gpus = t->gpus_per_node = 1;
	add(t, STAGE_EXPERT, PASS_FORWARD, STREAM_COMPUTE, 0, 1000);
	add(t, STAGE_EXPERT, PASS_FORWARD, STREAM_COMPUTE, 1000, 2000);
	add(t, STAGE_UPLOAD, PASS_FORWARD, STREAM_UPLOAD, 750, 500);
	g_autofree double *up = beside_cover(t, STREAM_UPLOAD), *down = beside_cover(t, STREAM_DOWNLOAD);
	cr_expect_float_eq(up[0], 0.25, 1e-9);
	cr_expect_float_eq(up[1], 0.125, 1e-9);
	cr_expect_eq(down[0], 0);
}

Test(beside, both_are_there_at_once)
{
	g_autoptr(trace) t = trace_new();
	t->gpus = t->gpus_per_node = 1;
	add(t, STAGE_EXPERT, PASS_FORWARD, STREAM_COMPUTE, 0, 1000);
	add(t, STAGE_EXPERT, PASS_FORWARD, STREAM_COMPUTE, 1000, 1000);
	add(t, STAGE_UPLOAD, PASS_FORWARD, STREAM_UPLOAD, 100, 500);
	add(t, STAGE_UPLOAD, PASS_FORWARD, STREAM_UPLOAD, 700, 600);
	add(t, STAGE_DOWNLOAD, PASS_FORWARD, STREAM_DOWNLOAD, 500, 300);
	add(t, STAGE_DOWNLOAD, PASS_FORWARD, STREAM_DOWNLOAD, 1250, 500);
	g_autofree double *both = cover_of_both(t, cover_computes, cover_on_stream, STREAM_UPLOAD, STREAM_DOWNLOAD);
	cr_expect_float_eq(both[0], 0.2, 1e-9, "500 to 600 and 700 to 800: %g", both[0]);
	cr_expect_float_eq(both[1], 0.05, 1e-9, "%g", both[1]);
}
