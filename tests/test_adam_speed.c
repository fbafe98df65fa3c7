/* How fast CPU Adam is: counted by what it did to the state, told apart from what a run took, and kept apart from the range of a calibration. */
#include "exec/adam_speed.h"
#include "exec/host_memory.h"
#include "exec/readings.h"
#include "exec/samples.h"
#include "exec/updates.h"

#include <criterion/criterion.h>
#include <math.h>

static const struct device_info host = {.name = "host", .element_bytes = 4};

/* Each update with a gradient of 1 takes the second moment from v to 0.999 v + 0.001: how often a piece was updated stands in it. */
static double updates_of(float v)
{
	return log(1 - (double)v) / log(0.999);
}

/* What is counted over what was done in all of the time. */
static double counted_share(void)
{
	struct adam_work w = {.params = 1 << 18, .piece = 1 << 16, .format = ADAM_FP32};
	g_autofree float *state = g_malloc0(adam_work_bytes(&w));
	g_autoptr(adam_pool) pool = adam_pool_new(1);
	double params = 0;
	w.state = state;
	for (size_t i = 0; i < w.params; i++)
		state[3 * w.params + i] = state[i] = 1;
	const nsec_t start = exec_now_ns();
	const double rate = adam_work_until(&w, pool, start + 60 * NSEC_PER_MSEC), ns = (double)(exec_now_ns() - start);
	for (size_t at = 0; at < w.params; at += w.piece)
		params += updates_of(state[2 * w.params + at]) * (double)w.piece;
	cr_assert_gt(params, 3.9 * (double)w.piece, "three in flight and one that counts");
	return rate * ns / params;
}

/* Start and end are not counted, and long where the machine is busy: once in a while they are not. */
Test(adam_speed, what_was_updated_over_the_time_it_took)
{
	double nearest = INFINITY;
	for (int i = 0; i < 20; i++)
		nearest = fmin(nearest, fabs(counted_share() - 1));
	cr_assert_lt(nearest, 0.1, "off by %g", nearest);
}

Test(adam_speed, however_late_one_counts)
{
	struct adam_work w = {.params = 4096, .piece = 1024, .format = ADAM_FP32};
	g_autofree float *state = g_malloc0(adam_work_bytes(&w));
	w.state = state;
	g_autoptr(adam_pool) pool = adam_pool_new(2);
	const double rate = adam_work_until(&w, pool, 0);
	cr_assert(isfinite(rate) && rate > 0, "%g", rate);
}

Test(adam_speed, a_piece_is_not_more_than_the_block)
{
	const struct adam_work w = adam_work_of(&host, SIZE_MAX), small = adam_work_of(&host, 1000);
	cr_assert_eq(w.piece, w.params);
	cr_assert_eq(small.piece, 1000);
}

Test(adam_speed, a_run_knows_its_memory_and_keeps_the_range_of_calibration)
{
	const struct run_options o = {0};
	struct machine m = {.adam_threads = 2, .adam_share = 0.7, .adam_slowest = 0.8, .adam_fastest = 1.1};
	cr_assert_null(host_memory_speed(&host, &m, &o));
	cr_assert_eq(m.adam_share, 0.7, "calibration did not say");
	m.adam_alone_gparams_per_s = 0.05; /* slower than most */
	g_autoptr(adam_speed) speed = host_memory_speed(&host, &m, &o);
	cr_assert_not_null(speed);
	cr_assert_gt(m.adam_share, 1.1);
	cr_assert_leq(m.adam_share, MOST_PACE, "a machine's file takes no more");
	cr_assert_float_eq(m.adam_slowest * m.adam_share, 0.8, 1e-9);
	cr_assert_eq(m.adam_fastest, 1, "it is past the fastest, but no slower than itself");
	cr_assert_gt(host_memory_again(speed), 0);
}

Test(adam_speed, over_a_time_it_was_what_it_was_before_and_after)
{
	struct machine m = {.adam_alone_gparams_per_s = 4, .adam_share = 0.75, .adam_pace = 1, .adam_slowest = 0.8, .adam_fastest = 1.5};
	host_memory_between(&m, 4, 5);
	cr_assert_float_eq(m.adam_pace, 4.5 / 3, 1e-12);
	cr_assert_float_eq(m.adam_slowest, 0.8 / 1.5, 1e-12);
	cr_assert_eq(m.adam_fastest, 1);
}

static double update_us(double alone, double usual)
{
	const struct layer layer = {.experts = 1, .top_k = 1};
	const struct network network = {.layers = 1, .layer = (struct layer *)&layer, .d_model = 8};
	const struct machine m = {.cool_speedup = 1, .adam_alone_gparams_per_s = usual};
	struct machine own = {.gpus = 1, .adam_alone_gparams_per_s = alone / 1.5, .adam_share = 0.75, .adam_pace = 2, .adam_bytes_per_param = 30};
	struct scenario sc = {.network = (struct network *)&network, .machine = &own};
	struct readings r;
	readings_init(&r);
	g_autoptr(measured) tables = measured_new();
	const struct span s = {.kind = STAGE_ADAM, .pass = PASS_UPDATE, .bytes = 30000, .start_ns = 1000, .end_ns = 5000, .launch_ns = -1};
	struct trace *trace = trace_new();
	const nsec_t end = 6000;
	trace->gpus = trace->gpus_per_node = 1;
	g_array_append_val(trace->spans, s);
	g_array_append_val(trace->step_end_ns, end);
	const struct probe_run run = {{SERVES_HOST | SERVES_ADAM, 1, 1, 1, 1, 8}, &sc, trace};
	cr_assert(readings_take(&r, &run, tables, &m, NULL));
	cr_assert_eq(r.samples->len, 1);
	const double us = g_array_index(r.samples, struct timing, 0).us;
	readings_clear(&r);
	trace_free(trace);
	return us;
}

Test(adam_speed, what_an_update_took_is_told_for_memory_of_the_usual_speed)
{
	cr_assert_float_eq(update_us(0, 4), 4, 1e-9);
	cr_assert_float_eq(update_us(4, 4), 4, 1e-9);
	cr_assert_float_eq(update_us(3, 4), 3, 1e-9, "it had slow memory");
	cr_assert_float_eq(update_us(5, 4), 5, 1e-9);
	cr_assert_float_eq(update_us(5, 0), 4, 1e-9);
}

/* 8 us each for the first of a burst, 4 for the others; after each burst, and before the first, a rest. */
Test(adam_speed, the_first_updates_after_a_rest_do_not_count)
{
	enum { BURST = 5, BURSTS = 2, SLOW = 3 };
	const struct layer layer = {.experts = 1, .top_k = 1};
	const struct network network = {.layers = 1, .layer = (struct layer *)&layer, .d_model = 8};
	struct machine m = {.gpus = 1, .cool_speedup = 1, .adam_bytes_per_param = 30};
	struct scenario sc = {.network = (struct network *)&network, .machine = &m};
	struct readings r;
	readings_init(&r);
	g_autoptr(measured) tables = measured_new();
	g_autoptr(trace) trace = trace_new();
	nsec_t now = NSEC_PER_MSEC;
	trace->gpus = trace->gpus_per_node = 1;
	for (int i = 0; i < BURST * BURSTS; i++) {
		const nsec_t ns = i % BURST < SLOW ? 8000 : 4000;
		struct span s = {
		    .id = (uint32_t)i, .kind = STAGE_ADAM, .pass = PASS_UPDATE, .bytes = 30000, .start_ns = now, .end_ns = now + ns, .launch_ns = -1};
		g_array_append_val(trace->spans, s);
		now += ns + (i % BURST == BURST - 1 ? NSEC_PER_MSEC : 3000);
	}
	g_array_append_val(trace->step_end_ns, now);
	const struct probe_run run = {{SERVES_HOST | SERVES_ADAM, 1, 1, 1, 1, 8}, &sc, trace};
	cr_assert(readings_take(&r, &run, tables, &m, NULL));
	cr_assert_eq(r.samples->len, BURST * BURSTS);
	for (int i = 0; i < BURST * BURSTS; i++)
		cr_assert_eq(g_array_index(r.samples, struct timing, i).waited, i % BURST < SLOW, "update %d", i);
	samples_to_tables(r.samples, tables);
	cr_assert_float_eq(tables->table[STAGE_ADAM][PASS_FORWARD].median_us.v[0], 4, 1e-9);
	readings_clear(&r);
}

/* 4 us each, half of it under an upload, a quarter under a download: by the table 1.5 and 2 times as long beside those all along. */
Test(adam_speed, what_copies_cost_an_update_is_not_its_own)
{
	double adam[] = {0, 60}, adam_u[] = {0, 40}, adam_d[] = {0, 30};
	const struct machine m = {.table = {.adam = {adam, 2}, .adam_u = {adam_u, 2}, .adam_d = {adam_d, 2}}}, unknown = {0};
	g_autoptr(trace) trace = trace_new();
	trace->gpus = trace->gpus_per_node = 1;
	for (int i = 0; i < 6; i++) {
		const nsec_t at = NSEC_PER_MSEC + i / 3 * 5000;
		const struct span spans[] = {{.kind = STAGE_ADAM, .stream = GPU_STREAMS, .start_ns = at, .end_ns = at + 4000},
		                             {.kind = STAGE_UPLOAD, .stream = STREAM_UPLOAD, .start_ns = at - 500, .end_ns = at + 2000},
		                             {.kind = STAGE_DOWNLOAD, .stream = STREAM_DOWNLOAD, .start_ns = at + 3000, .end_ns = at + 4800}};
		struct span s = spans[i % 3];
		s.id = (uint32_t)i;
		g_array_append_val(trace->spans, s);
	}
	g_autofree double *usual = updates_usual(trace, &m, 0), *as_it_was = updates_usual(trace, &unknown, 0);
	for (int i = 0; i < 6; i++) {
		cr_assert_float_eq(usual[i], i % 3 ? 1 : 1 / (1 + 0.5 * 0.5 + 0.25 * 1), 1e-9, "span %d: %g", i, usual[i]);
		cr_assert_eq(as_it_was[i], 1);
	}
}

Test(adam_speed, the_usual_is_the_middle_of_the_runs_that_looked)
{
	struct machine at[] = {{.adam_alone_gparams_per_s = 5, .adam_share = 0.8, .adam_pace = 1},
	                       {.adam_alone_gparams_per_s = 5, .adam_share = 1, .adam_pace = 1},
	                       {.adam_alone_gparams_per_s = 5, .adam_share = 1.25, .adam_pace = 0.96},
	                       {.adam_alone_gparams_per_s = 5, .adam_share = 9, .adam_pace = 1}},
	               m = {.adam_share = 0.7, .adam_pace = 1.3};
	struct scenario sc[G_N_ELEMENTS(at)];
	g_autoptr(GArray) runs = g_array_new(FALSE, FALSE, sizeof(struct probe_run));
	for (size_t i = 0; i < G_N_ELEMENTS(at); i++) {
		sc[i] = (struct scenario){.machine = &at[i]};
		const struct probe_run run = {.probe = {.serves = i < 3 ? SERVES_HOST : SERVES_COMPUTE}, .scenario = &sc[i]};
		g_array_append_val(runs, run);
	}
	probe_runs_fill_alone(runs, &m);
	cr_assert_float_eq(m.adam_alone_gparams_per_s, 5, 1e-9);
	cr_assert_float_eq(m.adam_slowest, 0.8, 1e-9);
	cr_assert_float_eq(m.adam_fastest, 1.2, 1e-9);
	cr_assert(m.adam_share == 1 && m.adam_pace == 1, "the tables are for the usual");
	g_array_set_size(runs, 0);
	probe_runs_fill_alone(runs, &m);
	cr_assert_eq(m.adam_alone_gparams_per_s, 0, "nobody looked");
	cr_assert(m.adam_slowest == 1 && m.adam_fastest == 1);
}
