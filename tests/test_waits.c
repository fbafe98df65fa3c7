/* What waiting costs, read off spans made by hand. */
#include "exec/waits.h"

#include <criterion/criterion.h>

static void add(struct trace *trace, stream_id stream, int kind, nsec_t launched_ns, nsec_t start_ns, nsec_t end_ns, stage_id pred)
{
	struct span s = {.id = trace->spans->len,
	                 .kind = (uint8_t)kind,
	                 .pass = PASS_FORWARD,
	                 .stream = stream,
	                 .launch_ns = launched_ns - 10,
	                 .launch_end_ns = launched_ns,
	                 .start_ns = start_ns,
	                 .end_ns = end_ns};
	if (pred != STAGE_NONE)
		s.preds[s.n_preds++] = pred;
	g_array_append_val(trace->spans, s);
}

static struct trace *trace_of_one_gpu(void)
{
	struct trace *trace = trace_new();
	trace->gpus = trace->gpus_per_node = 1;
	return trace;
}

static struct waits waits_of(const struct trace *trace)
{
	struct waits w;
	waits_init(&w);
	waits_add_streams(&w, trace);
	waits_add_syncs(&w, trace);
	return w;
}

static void expect(const GArray *list, guint n, double first)
{
	cr_assert_eq(list->len, n);
	if (n)
		cr_assert_float_eq(g_array_index(list, double, 0), first, 1e-9, "%g, expected %g", g_array_index(list, double, 0), first);
}

Test(waits, an_end_that_wakes_another_stream_costs_both_sides)
{
	g_autoptr(trace) trace = trace_of_one_gpu();
	add(trace, STREAM_COMPUTE, STAGE_EXPERT, 100, 1000, 5000, STAGE_NONE);
	add(trace, STREAM_COMPUTE, STAGE_EXPERT, 200, 45000, 50000, STAGE_NONE); /* 40 us after two were woken */
	add(trace, STREAM_DOWNLOAD, STAGE_DOWNLOAD, 300, 12000, 13000, 0);       /* slept, 7 us */
	add(trace, STREAM_UPLOAD, STAGE_UPLOAD, 300, 15000, 16000, 0);           /* slept, too */
	add(trace, STREAM_COMPUTE, STAGE_EXPERT, 400, 50500, 60000, STAGE_NONE); /* nobody was woken */
	add(trace, STREAM_DOWNLOAD, STAGE_DOWNLOAD, 55000, 56000, 57000, 1);     /* launched after that end: did not sleep */
	add(trace, STREAM_UPLOAD, STAGE_UPLOAD, 500, 63000, 64000, 4);           /* slept, 3 us, but what follows was launched late */
	add(trace, STREAM_COMPUTE, STAGE_EXPERT, 70000, 70100, 71000, STAGE_NONE);
	struct waits w = waits_of(trace);
	expect(w.event_us, 3, 7);
	expect(w.wake_us, 1, 20);
	expect(w.next_us, 1, 0.5);
	expect(w.sync_us, 0, 0);
	waits_clear(&w);
}

Test(waits, the_host_goes_on_between_a_gate_and_what_it_launches_then)
{
	g_autoptr(trace) trace = trace_of_one_gpu();
	add(trace, STREAM_COMPUTE, STAGE_GATE, 100, 1000, 5000, STAGE_NONE);
	add(trace, STREAM_COMPUTE, STAGE_PERMUTE, 200, 5000, 6000, STAGE_NONE); /* needs no counts */
	add(trace, STREAM_UPLOAD, STAGE_UPLOAD, 30010, 31000, 32000, STAGE_NONE);
	add(trace, STREAM_COMPUTE, STAGE_GATE, 30020, 32000, 33000, STAGE_NONE);
	add(trace, STREAM_COMPUTE, STAGE_PERMUTE, 30030, 33000, 34000, STAGE_NONE);
	add(trace, STREAM_COMPUTE, STAGE_EXPERT, 30040, 34000, 35000, STAGE_NONE); /* launched before: nobody waited */
	add(trace, STREAM_COMPUTE, STAGE_GATE, 30050, 36000, 40000, STAGE_NONE);
	add(trace, STREAM_COMPUTE, STAGE_PERMUTE, 43010, 44000, 45000, STAGE_NONE); /* of padded rows: needs them */
	struct waits w = waits_of(trace);
	expect(w.sync_us, 2, 25);
	cr_assert_float_eq(g_array_index(w.sync_us, double, 1), 3, 1e-9);
	expect(w.sync_adam_us, 0, 0);
	waits_clear(&w);
}

/* The gate that ends at 5 us has an update beside it, the one that ends at 105 has none. */
Test(waits, beside_cpu_adam_the_host_is_slower)
{
	g_autoptr(trace) trace = trace_of_one_gpu();
	const stream_id optimizer = GPU_STREAMS + STREAM_OPTIMIZER;
	add(trace, optimizer, STAGE_ADAM, 0, 4000, 50000, STAGE_NONE);
	add(trace, STREAM_COMPUTE, STAGE_GATE, 100, 1000, 5000, STAGE_NONE);
	add(trace, STREAM_COMPUTE, STAGE_EXPERT, 85010, 91000, 92000, STAGE_NONE);
	add(trace, STREAM_COMPUTE, STAGE_GATE, 93010, 95000, 105000, STAGE_NONE);
	add(trace, STREAM_COMPUTE, STAGE_EXPERT, 115010, 116000, 117000, STAGE_NONE);
	add(trace, optimizer, STAGE_ADAM, 0, 106000, 150000, STAGE_NONE);
	struct waits w = waits_of(trace);
	expect(w.sync_us, 1, 10);
	expect(w.sync_adam_us, 1, 80);
	expect(w.first_us, 1, 0); /* as long as its like without Adam */
	expect(w.first_adam_us, 1, 0);
	waits_clear(&w);
}

/* Four uploads of 10 ns each, the fourth after a wait with 40. */
Test(waits, the_first_launch_after_a_wait_is_compared_with_its_like)
{
	g_autoptr(trace) trace = trace_of_one_gpu();
	for (int i = 0; i < 3; i++)
		add(trace, STREAM_UPLOAD, STAGE_UPLOAD, 100, 200, 300, STAGE_NONE);
	add(trace, STREAM_COMPUTE, STAGE_GATE, 100, 1000, 5000, STAGE_NONE);
	add(trace, STREAM_UPLOAD, STAGE_UPLOAD, 6040, 7000, 8000, STAGE_NONE);
	g_array_index(trace->spans, struct span, 4).launch_ns = 6000;
	struct waits w = waits_of(trace);
	expect(w.sync_us, 1, 1);
	expect(w.first_us, 1, 0.03);
	waits_clear(&w);
}

Test(waits, what_adam_costs_launches_is_the_middle_of_the_kinds_that_tell)
{
	g_autoptr(trace) trace = trace_of_one_gpu();
	struct waits w;
	waits_init(&w);
	cr_assert_eq(waits_adam_slowdown(&w), 1);
	add(trace, GPU_STREAMS + STREAM_OPTIMIZER, STAGE_ADAM, 0, 1000, 2000, STAGE_NONE);
	add(trace, STREAM_COMPUTE, STAGE_FFN, 1500, 1600, 1700, STAGE_NONE); /* begun at 1490 */
	add(trace, STREAM_COMPUTE, STAGE_FFN, 2500, 2600, 2700, STAGE_NONE);
	waits_add_launches(&w, trace);
	expect(w.launch_us[1][STAGE_FFN], 1, 0.01);
	expect(w.launch_us[0][STAGE_FFN], 1, 0.01);
	const int kinds[] = {STAGE_MIXER, STAGE_EXPERT, STAGE_COMBINE}, slow[] = {2, 3, 4};
	for (int k = 0; k < 3; k++)
		for (int i = 0; i < 9; i++)
			for (int beside = 0; beside < 2; beside++) {
				double us = (k + 1) * (beside ? slow[k] : 1);
				g_array_append_val(w.launch_us[beside][kinds[k]], us);
			}
	double lone = 50;
	g_array_append_val(w.launch_us[1][STAGE_GATE], lone); /* one is too few, and none without Adam */
	cr_assert_float_eq(waits_adam_slowdown(&w), 3, 1e-9);
	waits_clear(&w);
}

Test(waits, with_several_gpus_the_exchange_of_counts_is_what_the_host_waits_for)
{
	g_autoptr(trace) trace = trace_of_one_gpu();
	trace->gpus = trace->gpus_per_node = 2;
	add(trace, STREAM_COMPUTE, STAGE_GATE, 100, 1000, 5000, STAGE_NONE);
	add(trace, STREAM_COLLECTIVE, STAGE_COUNTS, 100, 5000, 9000, 0);
	add(trace, STREAM_COMPUTE, STAGE_PERMUTE, 200, 5000, 8000, STAGE_NONE);
	add(trace, STREAM_COLLECTIVE, STAGE_ALL_TO_ALL, 49010, 50000, 52000, 1);
	struct waits w = waits_of(trace);
	expect(w.sync_us, 0, 0);
	expect(w.sync_all_us, 1, 40);
	waits_clear(&w);
}
