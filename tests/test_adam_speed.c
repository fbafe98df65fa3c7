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

/* A machine, a network of one expert of a million parameters, and a run of it that is recorded or not. */
struct bed {
	struct layer layer;
	struct network network;
	struct machine m;
	struct policy policy;
	struct scenario sc;
	struct run_options o;
	struct device_info device;
	struct memory planned;
};

static void bed_make(struct bed *b, bool real, bool looks)
{
	*b = (struct bed){.layer = {.experts = 1, .top_k = 1, .d_expert = 500},
	                  .network = {.layers = 1, .d_model = 1000, .heads = 1, .activation = ACTIVATION_GELU},
	                  .m = {.gpus = 1, .gpus_per_node = 1, .adam_gparams_per_s = 2, .adam_threads = 2, .adam_bytes_per_param = 28},
	                  .policy = {.gradient_bytes = 2},
	                  .o = {.trace = "there", .steps = 6, .trace_steps = 2, .looks = looks},
	                  .device = {.name = "host", .element_bytes = 4, .launcher_cores = real}};
	b->network.layer = &b->layer;
	b->m.adam_share = b->m.adam_pace = b->m.hbm_gbps = b->m.hbm_efficiency = b->m.sms = 1;
	b->m.adam_slowest = 0.8;
	b->m.adam_fastest = 1.1;
	b->m.adam_alone_gparams_per_s = 0.05; /* slower than most */
	b->sc = (struct scenario){.network = &b->network, .machine = &b->m, .policy = &b->policy, .seq_len = 8};
}

Test(adam_speed, a_run_knows_its_memory_and_keeps_the_range_of_calibration)
{
	struct bed b;
	bed_make(&b, false, true);
	b.m.adam_alone_gparams_per_s = 0;
	host_memory_free(host_memory_open(&b.sc, &b.planned, true, &b.device, &b.o));
	cr_assert_eq(b.m.adam_share, 1, "calibration did not say");
	b.m.adam_alone_gparams_per_s = 0.05;
	host_memory_free(host_memory_open(&b.sc, &b.planned, false, &b.device, &b.o));
	cr_assert_eq(b.m.adam_share, 1, "there is no CPU Adam");
	g_autoptr(host_memory) h = host_memory_open(&b.sc, &b.planned, true, &b.device, &b.o);
	const double share = b.m.adam_share;
	cr_assert_gt(share, 1.1);
	cr_assert_leq(share, MOST_PACE, "a machine's file takes no more");
	cr_assert_float_eq(b.m.adam_slowest * share, 0.8, 1e-9);
	cr_assert_eq(b.m.adam_fastest, 1, "it is past the fastest, but no slower than itself");
	cr_assert(host_memory_wants_looks(h));
	host_memory_look(h);
	host_memory_look(h);
	host_memory_settle(h);
	cr_assert_eq(b.m.adam_share, share);
	cr_assert(b.m.adam_pace > LEAST_PACE && b.m.adam_pace <= MOST_PACE, "%g", b.m.adam_pace);
	cr_assert_float_eq(b.m.adam_slowest, CLAMP(0.8 / share / b.m.adam_pace, LEAST_PACE, 1), 1e-9);
}

Test(adam_speed, nobody_looks_again_at_what_nobody_records)
{
	struct bed b;
	bed_make(&b, false, true);
	b.o.trace = NULL;
	g_autoptr(host_memory) h = host_memory_open(&b.sc, &b.planned, true, &b.device, &b.o);
	cr_assert(!host_memory_wants_looks(h) && !host_memory_wants_looks(NULL));
	host_memory_settle(h);
	host_memory_settle(NULL);
	cr_assert_eq(b.m.adam_pace, 1);
}

/* Updates of a step, each in so much of the time that is usual. */
static void step_of(struct host_memory *h, uint16_t step, double over, uint64_t before)
{
	g_autoptr(GArray) spans = g_array_new(FALSE, FALSE, sizeof(struct span));
	for (int i = 0; i < 8; i++) {
		const nsec_t each = (nsec_t)(5e5 / MOST_PACE * over), at = step * NSEC_PER_SEC + i * each;
		const struct span s = {
		    .kind = STAGE_ADAM, .step = step, .stream = GPU_STREAMS, .bytes = 28000000, .start_ns = at, .end_ns = at + each};
		g_array_append_val(spans, s);
	}
	host_memory_step(h, spans, before);
}

Test(adam_speed, on_real_gpus_the_steps_before_those_that_are_recorded_tell)
{
	struct bed b;
	bed_make(&b, true, false);
	b.m.adam_alone_gparams_per_s = 1e-6;
	b.m.adam_pace = 0.7; /* another run's */
	g_autoptr(host_memory) h = host_memory_open(&b.sc, &b.planned, true, &b.device, &b.o);
	cr_assert(!host_memory_wants_looks(h));
	cr_assert_eq(b.m.adam_share, MOST_PACE, "this machine has no such slow memory");
	step_of(h, 0, 7, 2); /* the first one, */
	step_of(h, 1, 7, 3); /* and one long before them, do not count */
	step_of(h, 2, 1.3, 2);
	step_of(h, 3, 1.2, 1);
	step_of(h, 4, 7, 0); /* recorded */
	host_memory_settle(h);
	cr_assert_float_eq(b.m.adam_pace, 1 / 1.25, 1e-4);
}

Test(adam_speed, where_all_steps_are_recorded_it_is_looked_at)
{
	for (uint64_t steps = 1; steps <= 5; steps++) {
		struct bed b;
		bed_make(&b, true, false);
		b.o.steps = steps;
		g_autoptr(host_memory) h = host_memory_open(&b.sc, &b.planned, true, &b.device, &b.o);
		cr_assert_eq(host_memory_wants_looks(h), steps < 4, "%lu steps, the last two of which are recorded", steps);
	}
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

/* 4 us each, half of it under an upload, a quarter under a download: by the table two thirds and a half of the work are done beside those. */
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
		cr_assert_float_eq(usual[i], i % 3 ? 1 : 0.5 * 2 / 3 + 0.25 / 2 + 0.25, 1e-9, "span %d: %g", i, usual[i]);
		cr_assert_eq(as_it_was[i], 1);
	}
}

/* Milliseconds of a burst's updates, of a million parameters each at two a nanosecond, on memory of so many times the usual speed; copies of two GPUs
 * beside it: up and down on GPU 0 from 1 to 2 us of each, up on GPU 1 from 1.5. */
static double pace_of(double truth, const double *bytes, int n)
{
	double adam[] = {0, 60}, u[] = {0, 48}, d[] = {0, 45}, ud[] = {0, 30}, uu[] = {0, 36}, uudd[] = {0, 15};
	const struct layer layer = {.experts = 8, .top_k = 1, .d_expert = 500};
	const struct network network = {.layers = 1, .layer = (struct layer *)&layer, .d_model = 1000, .heads = 1, .activation = ACTIVATION_GELU};
	struct machine m = {.gpus = 2, .gpus_per_node = 2, .adam_gparams_per_s = 2, .adam_threads = 4, .adam_share = 1, .adam_pace = 1};
	const struct policy policy = {.gradient_bytes = 2};
	m.adam_bytes_per_param = 28;
	m.hbm_gbps = m.hbm_efficiency = m.sms = 1;
	m.table = (struct contention_table){
	    .adam = {adam, 2}, .adam_u = {u, 2}, .adam_d = {d, 2}, .adam_ud = {ud, 2}, .adam_uu = {uu, 2}, .adam_uudd = {uudd, 2}};
	g_autoptr(cost) cost = cost_new(&network, &m, &policy, 8, 0);
	g_autoptr(trace) t = trace_new();
	t->gpus = t->gpus_per_node = 2;
	nsec_t now = NSEC_PER_MSEC;
	for (int i = 0; i < n; i++) {
		/* 1000 ns alone, 500 at ud, the rest at (2, 1), which is as the slower of ud and uu: half */
		const double alone_ns = 5e5 * bytes[i] / 28 / truth, ns = i % 8 < 3 ? 9e6 : 1000 + 2 * (alone_ns - 1000);
		const struct span spans[] = {
		    {.kind = STAGE_ADAM, .stream = 2 * GPU_STREAMS, .bytes = (uint64_t)(bytes[i] * 1e6), .start_ns = now, .end_ns = now + (nsec_t)ns},
		    {.kind = STAGE_UPLOAD, .stream = STREAM_UPLOAD, .start_ns = now + 1000, .end_ns = now + (nsec_t)ns},
		    {.kind = STAGE_DOWNLOAD, .stream = STREAM_DOWNLOAD, .start_ns = now + 1000, .end_ns = now + (nsec_t)ns},
		    {.kind = STAGE_UPLOAD, .rank = 1, .stream = GPU_STREAMS + STREAM_UPLOAD, .start_ns = now + 1500, .end_ns = now + (nsec_t)ns}};
		for (size_t k = 0; k < G_N_ELEMENTS(spans); k++) {
			struct span s = spans[k];
			s.id = (uint32_t)t->spans->len;
			g_array_append_val(t->spans, s);
		}
		now += (nsec_t)ns + (i % 8 == 7 ? NSEC_PER_MSEC : 0);
	}
	return updates_pace(t, &m, &network, cost);
}

Test(adam_speed, steps_tell_how_fast_the_memory_was_whatever_ran_beside)
{
	const double bytes[16] = {28, 28, 28, 28, 28, 26, 28, 28, 28, 28, 28, 26, 28, 28, 28, 28}; /* two came without a gradient */
	cr_expect_float_eq(pace_of(1, bytes, 16), 1, 1e-4);
	cr_expect_float_eq(pace_of(0.8, bytes, 16), 0.8, 1e-4);
	cr_expect_float_eq(pace_of(1.2, bytes, 16), 1.2, 1e-4);
	cr_expect_eq(pace_of(1, bytes, 3), 0, "none but the first after a rest");
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
