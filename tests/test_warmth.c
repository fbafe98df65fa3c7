/* Traces made by the law, step by step, give its constants back; noise does not move them far. */
#include "exec/warmth.h"
#include "model/heat.h"

#include <criterion/criterion.h>
#include <math.h>

enum { TOKENS = 4096, LAYERS = 12, STEPS = 6 };

static nsec_t add(struct trace *t, int kind, int pass, int step, stream_id stream, nsec_t start, nsec_t ns)
{
	struct span s = {
	    .id = t->spans->len, .kind = (uint8_t)kind, .pass = (uint8_t)pass, .step = (uint16_t)step, .stream = stream, .tokens = TOKENS};
	s.start_ns = start;
	s.end_ns = start + ns;
	g_array_append_val(t->spans, s);
	return start + ns;
}

static nsec_t base_of(int kind, int pass)
{
	return kind == STAGE_HEAD ? 15000000 : pass == PASS_FORWARD ? 2000000 : 5000000;
}

/* Forward, head and backward of a GPU that rests `rest_ns` after each step, and `gap_ns` after each layer. */
static struct trace *made(const struct machine *m, nsec_t gap_ns, nsec_t rest_ns, double noise)
{
	struct trace *t = trace_new();
	t->gpus = t->gpus_per_node = 1;
	g_autoptr(heat) h = heat_new(m);
	g_autoptr(GRand) random = g_rand_new_with_seed(7);
	nsec_t now = 0;
	for (int step = -20; step < STEPS; step++) {
		for (int i = 0; i <= 2 * LAYERS; i++) {
			const int pass = i <= LAYERS ? PASS_FORWARD : PASS_BACKWARD, kind = i == LAYERS ? STAGE_HEAD : STAGE_MIXER;
			const nsec_t hot = base_of(kind, pass), cool = heat_cost_ns(h, 0, now, hot, kind);
			nsec_t ns = (nsec_t)((double)cool * (1 + noise * g_rand_double_range(random, -1, 1)));
			if (step >= 0)
				add(t, kind, pass, step, STREAM_COMPUTE, now, ns);
			heat_ran(h, 0, now, now + ns);
			now += ns + gap_ns;
		}
		now += rest_ns;
	}
	return t;
}

static void check_law(double share, double ms, double noise)
{
	const struct machine truth = {.gpus = 1, .cool_speedup = 1.15, .cool_share = share, .cool_head_share = 0.4, .heat_ms = ms};
	struct machine m = {.gpus = 1, .cool_speedup = 1, .cool_share = 0.123, .heat_ms = 123};
	g_autoptr(trace) busy = made(&truth, 0, 0, noise);
	g_autoptr(trace) waits = made(&truth, 500000, 300000000, noise);
	g_autoptr(trace) partly = made(&truth, 200000, 60000000, noise);
	const struct warm_run runs[] = {{busy, false}, {waits, true}, {partly, true}};
	warmth_fit(runs, 3, TOKENS, &m);
	cr_expect_float_eq(m.cool_speedup, 1.15, noise > 0 ? 0.02 : 0.005, "share %g, %g ms: speedup %g", share, ms, m.cool_speedup);
	cr_expect_float_eq(m.cool_share, share, noise > 0 ? 0.11 : 1e-9, "share %g, %g ms: share %g", share, ms, m.cool_share);
	cr_expect(m.heat_ms >= ms / (noise > 0 ? 1.8 : 1.001) && m.heat_ms <= ms * (noise > 0 ? 1.8 : 1.001), "share %g, %g ms: %g ms", share, ms,
	          m.heat_ms);
	cr_expect_float_eq(m.cool_head_share, 0.4, noise > 0 ? 0.15 : 0.01, "share %g, %g ms: heads %g", share, ms, m.cool_head_share);
	g_autofree double *hot = warmth_hot(waits, &truth);
	for (guint i = 2 * LAYERS + 1; noise == 0 && i < waits->spans->len; i++) {
		const struct span *s = &g_array_index(waits->spans, struct span, i);
		double base = (double)base_of(s->kind, s->pass);
		cr_expect_float_eq((double)(s->end_ns - s->start_ns) * hot[i] / base, 1, 0.01, "span %u", i);
	}
}

Test(warmth, the_law_comes_back)
{
	check_law(0.5, 100, 0);
	check_law(0.7, 60, 0);
	check_law(0.3, 250, 0);
}

Test(warmth, also_from_times_that_vary)
{
	check_law(0.7, 60, 0.01);
	check_law(0.5, 150, 0.01);
}

Test(warmth, without_a_run_that_waits_nothing_is_known)
{
	const struct machine truth = {.gpus = 1, .cool_speedup = 1.15, .cool_share = 0.5, .heat_ms = 60};
	struct machine m = {.gpus = 1, .cool_speedup = 1.3};
	g_autoptr(trace) busy = made(&truth, 0, 0, 0);
	const struct warm_run run = {busy, false};
	warmth_fit(&run, 1, TOKENS, &m);
	cr_assert_eq(m.cool_speedup, 1);
	warmth_fit(&run, 0, TOKENS, &m);
	cr_assert_eq(m.cool_speedup, 1);
}
