/* A busy GPU takes what its tables say, an idle one less, and one that works half of the time the least. */
#include "model/heat.h"

#include <criterion/criterion.h>
#include <math.h>

#define SECOND 1000000000LL

static struct heat *of(double speedup)
{
	struct machine m = {.gpus = 2, .cool_speedup = speedup, .cool_share = 0.5, .heat_ms = 200};
	return heat_new(&m);
}

Test(heat, without_a_speedup_there_is_none)
{
	cr_assert_null(of(1));
}

Test(heat, a_gpu_that_never_pauses_stays_hot)
{
	g_autoptr(heat) h = of(1.25);
	for (nsec_t t = 0; t < 5 * SECOND; t += 1000000) {
		cr_assert_eq(heat_cost_ns(h, 0, t, 1000000, STAGE_MIXER), 1000000);
		heat_ran(h, 0, t, t + 1000000);
	}
}

Test(heat, a_gpu_that_has_rested_is_faster_by_the_speedup)
{
	g_autoptr(heat) h = of(1.25);
	cr_assert_eq(heat_cost_ns(h, 1, 10 * SECOND, 1000000, STAGE_MIXER), 800000);
	cr_assert_eq(heat_cost_ns(h, 0, 0, 1000000, STAGE_MIXER), 1000000, "the other one was not asked before");
}

/* Work for a time w in each p leaves an exponential mean between (e^((w-p)/tau) - e^(-p/tau)) / (1 - e^(-p/tau)) and its value at the end of the
 * work: in steps far below tau, the duty itself. */
Test(heat, the_share_of_work_decides)
{
	for (int duty = 10; duty < 100; duty += 20) {
		g_autoptr(heat) h = of(1.25);
		nsec_t cost = 0;
		for (nsec_t t = 0; t < 4 * SECOND; t += 1000000) {
			cost = heat_cost_ns(h, 0, t, 1000000, STAGE_MIXER);
			heat_ran(h, 0, t, t + duty * 10000);
		}
		cr_assert_float_eq(heat_cool(h, 0, 4 * SECOND, 0), fmin((1 - duty / 100.0) / 0.5, 1), 0.01);
		double cool = fmin((1 - duty / 100.0) / 0.5, 1);
		cr_assert_float_eq((double)cost, 1e6 * (1 - 0.2 * cool), 2500, "duty %d: %" G_GINT64_FORMAT, duty, cost);
	}
}

Test(heat, one_that_worked_before_begins_with_that)
{
	g_autoptr(heat) h = of(1.25);
	heat_worked(h, 0, 2 * SECOND, 0.75);
	cr_assert_float_eq(heat_cool(h, 0, 2 * SECOND, 0), 0.5, 1e-9);
	cr_assert_float_eq((double)heat_cost_ns(h, 0, 2 * SECOND, 1000, STAGE_MIXER), 900, 1.1);
	cr_assert_eq(heat_cost_ns(h, 1, 0, 1000000, STAGE_MIXER), 1000000);
}

/* The mean of (1 - share) / (1 - cool share) over a time t of work that begins at a share s: (1 - s) tau / t (1 - e^(-t / tau)) / (1 - cool share).
 */
Test(heat, a_long_stage_warms_up_on_its_way)
{
	g_autoptr(heat) h = of(1.25);
	heat_worked(h, 0, 0, 0.75);
	cr_expect_float_eq(heat_cool(h, 0, 0, 200000000), 0.25 * (1 - exp(-1)) / 0.5, 1e-9);
	cr_expect_eq(heat_cost_ns(h, 0, 0, 200000000, STAGE_MIXER), (nsec_t)ceil(2e8 * (1 - 0.2 * 0.25 * (1 - exp(-1)) / 0.5)));
}

Test(heat, rest_never_pays)
{
	struct machine m = {.gpus = 1, .cool_speedup = 1.25, .cool_share = 0.9, .heat_ms = 40};
	nsec_t busy_ns = 0, rests_ns = 0;
	for (int rests = 0; rests < 2; rests++) {
		g_autoptr(heat) h = heat_new(&m);
		nsec_t now = 0;
		for (int i = 0; i < 20000; i++) {
			nsec_t ns = heat_cost_ns(h, 0, now, 1000000, STAGE_MIXER);
			heat_ran(h, 0, now, now + ns);
			now += ns + rests * 120000;
		}
		*(rests ? &rests_ns : &busy_ns) = now;
	}
	cr_assert_leq(busy_ns, rests_ns);
}

/* Cool, products take four fifths; a head, which gains a quarter of that, 19 of 20. */
Test(heat, a_head_gains_its_share)
{
	struct machine m = {.gpus = 1, .cool_speedup = 1.25, .cool_share = 0.5, .heat_ms = 200, .cool_head_share = 0.25};
	g_autoptr(heat) h = heat_new(&m);
	heat_worked(h, 0, 0, 0);
	cr_assert_eq(heat_cost_ns(h, 0, 10 * SECOND, 1000000, STAGE_MIXER), 800000);
	cr_assert_eq(heat_cost_ns(h, 0, 10 * SECOND, 1000000, STAGE_HEAD), 950000);
}
