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
	struct waits w = {g_array_new(FALSE, FALSE, sizeof(double)), g_array_new(FALSE, FALSE, sizeof(double)),
	                  g_array_new(FALSE, FALSE, sizeof(double)), g_array_new(FALSE, FALSE, sizeof(double)),
	                  g_array_new(FALSE, FALSE, sizeof(double))};
	waits_add(&w, trace);
	return w;
}

static void waits_clear(struct waits *w)
{
	g_array_unref(w->sync_us);
	g_array_unref(w->sync_all_us);
	g_array_unref(w->event_us);
	g_array_unref(w->wake_us);
	g_array_unref(w->next_us);
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
	add(trace, STREAM_COMPUTE, STAGE_PERMUTE, 30010, 31000, 32000, 0);
	add(trace, STREAM_COMPUTE, STAGE_GATE, 30020, 32000, 33000, STAGE_NONE);
	add(trace, STREAM_COMPUTE, STAGE_PERMUTE, 30030, 33000, 34000, 2); /* launched before: nobody waited */
	struct waits w = waits_of(trace);
	expect(w.sync_us, 1, 26);
	expect(w.event_us, 0, 0);
	expect(w.wake_us, 0, 0);
	waits_clear(&w);
}

Test(waits, with_several_gpus_the_exchange_of_counts_is_what_the_host_waits_for)
{
	g_autoptr(trace) trace = trace_of_one_gpu();
	trace->gpus = trace->gpus_per_node = 2;
	add(trace, STREAM_COMPUTE, STAGE_GATE, 100, 1000, 5000, STAGE_NONE);
	add(trace, STREAM_COLLECTIVE, STAGE_COUNTS, 100, 5000, 9000, 0);
	add(trace, STREAM_COMPUTE, STAGE_PERMUTE, 30010, 49000, 52000, 1);
	struct waits w = waits_of(trace);
	expect(w.sync_us, 0, 0);
	expect(w.sync_all_us, 1, 40);
	waits_clear(&w);
}
