/* The executor: the backend's promises and its errors. */
#include "contract.h"
#include "exec_bench.h"

/* ---- the contract ---- */

static nsec_t a_tenth(const struct stage *stage)
{
	return stage->cost_ns / 10;
}

static GPtrArray *benches;

static struct backend *bench_make(const struct ground *ground)
{
	struct bench *bench = bench_new(&ground->machine, ground->routing, a_tenth);
	g_ptr_array_add(benches, bench);
	return bench->b;
}

static void bench_times(struct backend *b, stage_id id, nsec_t *start_ns, nsec_t *end_ns)
{
	guint i = benches->len;
	while (((struct bench *)benches->pdata[--i])->b != b) /* the latest: addresses come again */
		;
	const struct span *span = span_of(benches->pdata[i], id);
	*start_ns = span->start_ns;
	*end_ns = span->end_ns;
}

Test(exec, keeps_the_contract)
{
	struct ground ground;
	benches = g_ptr_array_new();
	ground_init(&ground);
	contract_check(&(struct world){"exec", bench_make, bench_times, .real_time = true});
	for (guint i = 0; i < benches->len; i++) {
		struct bench *bench = benches->pdata[i];
		bench->b = NULL;
		bench->m = &ground.machine;
		bench_free(bench);
	}
	g_ptr_array_unref(benches);
	ground_clear(&ground);
}

/* ---- times ---- */

/* Longer than a busy machine keeps a woken thread waiting. */
#define LONG_NS 300000000

Test(exec, streams_run_side_by_side_and_stages_take_their_time)
{
	const struct machine m = {.gpus = 2, .gpus_per_node = 2};
	g_autoptr(bench) bench = bench_new(&m, NULL, as_it_says);
	const stage_id up = add(bench, 0, STREAM_UPLOAD, LONG_NS, STAGE_NONE, STAGE_NONE);
	const stage_id compute = add(bench, 1, STREAM_COMPUTE, LONG_NS, STAGE_NONE, STAGE_NONE);
	const stage_id adam = add_on_node(bench, STREAM_OPTIMIZER, LONG_NS, STAGE_NONE);
	const stage_id down = add(bench, 0, STREAM_DOWNLOAD, 10000000, up, adam);
	await(bench, down);
	for (stage_id id = up; id <= adam; id++) {
		cr_assert_geq(span_of(bench, id)->end_ns - span_of(bench, id)->start_ns, LONG_NS);
		cr_assert_lt(span_of(bench, id)->start_ns, span_of(bench, up)->end_ns, "stage %u waited for another stream", id);
		cr_assert_geq(span_of(bench, down)->start_ns, id == compute ? 0 : span_of(bench, id)->end_ns);
	}
	cr_assert_geq(span_of(bench, up)->launch_ns, 0);
	cr_assert_leq(span_of(bench, up)->launch_ns, span_of(bench, up)->launch_end_ns);
}

/* b is done first, but ends after a, and c was begun beside both. */
Test(exec, updates_overlap_and_end_in_order)
{
	const struct machine m = {.gpus = 1, .gpus_per_node = 1};
	g_autoptr(bench) bench = bench_new(&m, NULL, as_it_says);
	bench->pending = true;
	const stage_id a = add_on_node(bench, STREAM_OPTIMIZER, LONG_NS, STAGE_NONE), b = add_on_node(bench, STREAM_OPTIMIZER, 0, STAGE_NONE);
	const stage_id c = add_on_node(bench, STREAM_OPTIMIZER, LONG_NS, STAGE_NONE), down = add(bench, 0, STREAM_DOWNLOAD, 0, b, STAGE_NONE);
	await(bench, c);
	await(bench, down);
	const nsec_t start_ns = span_of(bench, a)->start_ns, end_ns = span_of(bench, a)->end_ns;
	cr_assert_geq(end_ns - start_ns, LONG_NS - NSEC_PER_MSEC);
	cr_assert_geq(span_of(bench, b)->start_ns, end_ns);
	cr_assert_geq(span_of(bench, down)->start_ns, span_of(bench, b)->end_ns);
	cr_assert_geq(span_of(bench, c)->start_ns, span_of(bench, b)->end_ns);
	cr_assert_lt(span_of(bench, c)->end_ns - start_ns, 2 * LONG_NS - NSEC_PER_MSEC);
}

/* Beside its predecessors, on a GPU as on a node. */
Test(exec, a_stage_waits_for_the_last_user_of_its_frame)
{
	struct ground ground;
	ground_init(&ground);
	for (int on_node = 0; on_node < 2; on_node++) {
		g_autoptr(bench) bench = bench_new(&ground.machine, ground.routing, as_it_says);
		bench->user = add_on_node(bench, STREAM_OPTIMIZER, LONG_NS, STAGE_NONE);
		bench->claiming = bench->user + 1;
		if (on_node)
			add_on_node(bench, STREAM_SSD_READ, 0, STAGE_NONE);
		else
			add(bench, 0, STREAM_DOWNLOAD, 0, STAGE_NONE, STAGE_NONE);
		await(bench, bench->claiming);
		await(bench, bench->user);
		nsec_t ended = span_of(bench, bench->user)->end_ns;
		cr_assert_geq(span_of(bench, bench->claiming)->start_ns, ended);
		cr_assert_eq(bench->given, (const void *)frame);
	}
	ground_clear(&ground);
}

Test(exec, a_stage_without_a_frame_is_not_launched)
{
	struct ground ground;
	ground_init(&ground);
	g_autoptr(bench) bench = bench_new(&ground.machine, ground.routing, as_it_says);
	g_autoptr(GError) error = NULL;
	bench->refused = add_on_node(bench, STREAM_OPTIMIZER, 0, STAGE_NONE) + 1;
	cr_assert_not(try_add_on_node(bench, STREAM_SSD_READ, 0, STAGE_NONE, &error));
	cr_assert(g_error_matches(error, ESMOE_ERROR, ESMOE_ERROR_FIT) && g_str_equal(error->message, "no frame is free"), "%s", error->message);
	ground_clear(&ground);
}

/* GPU 1 comes 20 ms late. */
Test(exec, a_collective_starts_for_all_when_the_last_has_come)
{
	const struct machine m = {.gpus = 2, .gpus_per_node = 2};
	g_autoptr(bench) bench = bench_new(&m, NULL, as_it_says);
	add(bench, 1, STREAM_COLLECTIVE, 20000000, STAGE_NONE, STAGE_NONE);
	const stage_id a = add_member(bench, 0, 7, 2), b = add_member(bench, 1, 7, 2);
	await(bench, a);
	cr_assert_eq(span_of(bench, a)->start_ns, span_of(bench, b)->start_ns);
	cr_assert_geq(span_of(bench, a)->start_ns, 20000000);
	cr_assert_geq(span_of(bench, a)->end_ns, span_of(bench, a)->start_ns);
}

enum { CLOCK_BEHIND_NS = 100 * NSEC_PER_MSEC };

/* Of a device that knows when work ran, by a clock of its own: each stage took a microsecond. */
static bool own_times(struct device *d, uint32_t id, nsec_t *start_ns, nsec_t *end_ns)
{
	*start_ns = *start_ns - CLOCK_BEHIND_NS;
	*end_ns = *start_ns + 1000;
	return true;
}

/* What a trace's writer relies on, however the clocks of devices and events differ. */
Test(exec, collectives_do_not_end_before_they_start_on_the_devices_own_clock)
{
	g_autoptr(machine) m = machine_load("h200-x2", NULL, NULL);
	g_autoptr(bench) bench = bench_new(m, NULL, as_it_says);
	struct device_core core = *bench->device[0]->impl->core;
	struct device_impl impl = *bench->device[0]->impl;
	core.stage_times = own_times;
	impl.core = &core;
	for (int gpu = 0; gpu < m->gpus; gpu++)
		bench->device[gpu]->impl = &impl;
	stage_id last = STAGE_NONE;
	for (uint32_t group = 1; group <= 20; group++)
		for (int gpu = 0; gpu < m->gpus; gpu++)
			last = add_member(bench, gpu, group, (uint32_t)m->gpus);
	await(bench, last);
	exec_trace(bench->b, bench->b->n_launched, bench->trace);
	for (guint i = 0; i < bench->trace->spans->len; i++) {
		const struct span *s = &g_array_index(bench->trace->spans, struct span, i);
		cr_assert_leq(s->start_ns, s->end_ns);
	}
	cr_assert_eq(bench->trace->spans->len, 20 * (guint)m->gpus);
	for (int gpu = 0; gpu < m->gpus; gpu++)
		bench->device[gpu]->impl = bench->group->impl;
}

Test(exec, steps_end_with_their_last_stage_over_several_traces)
{
	const struct machine m = {.gpus = 1, .gpus_per_node = 1};
	g_autoptr(bench) bench = bench_new(&m, NULL, NULL);
	g_autoptr(GError) error = NULL;
	for (stage_id id = 0; id < 9; id++) { /* three a step, a trace after every second one */
		const struct stage stage = {.id = id, .step_parity = id / 3 & 1};
		cr_assert(backend_launch(bench->b, &stage, &error));
		if (id % 2)
			exec_trace(bench->b, bench->b->n_launched, bench->trace);
	}
	exec_trace(bench->b, bench->b->n_launched, bench->trace);
	cr_assert_eq(bench->trace->spans->len, 9);
	cr_assert_eq(bench->trace->step_end_ns->len, 3);
	for (guint i = 0; i < 3; i++)
		cr_assert_eq(g_array_index(bench->trace->step_end_ns, nsec_t, i), span_of(bench, i * 3 + 2)->end_ns);
}

/* Two steps of four stages, whose second one is launched before the first is taken: its stages stay, also those that have ended. */
Test(exec, spans_of_ended_stages_are_taken_while_others_run)
{
	const struct machine m = {.gpus = 2, .gpus_per_node = 2};
	g_autoptr(bench) bench = bench_new(&m, NULL, NULL);
	g_autoptr(GArray) copied = g_array_new(FALSE, FALSE, sizeof(struct span));
	stage_id second = STAGE_NONE;
	for (int step = 0; step < 2; step++) {
		add(bench, 0, STREAM_COMPUTE, 0, STAGE_NONE, STAGE_NONE);
		add_member(bench, 0, (uint32_t)step + 1, 2);
		add_member(bench, 1, (uint32_t)step + 1, 2);
		second = add_on_node(bench, STREAM_OPTIMIZER, 1000000, (stage_id)(4 * step));
	}
	for (stage_id id = 0; id < 4; id++)
		await(bench, id);
	await(bench, 5);
	exec_spans(bench->b, 1, 3, copied);
	exec_trace(bench->b, 4, bench->trace);
	cr_assert_eq(copied->len, 2);
	cr_assert_eq(bench->trace->spans->len, 4);
	for (guint i = 0; i < 2; i++) {
		const struct span *s = &g_array_index(copied, struct span, i), *taken = &g_array_index(bench->trace->spans, struct span, i + 1);
		cr_assert_eq(s->id, i + 1);
		cr_assert_eq(s->start_ns, taken->start_ns);
		cr_assert_eq(s->end_ns, taken->end_ns);
		cr_assert_eq(s->start_ns, g_array_index(copied, struct span, 0).start_ns, "a group begins together");
	}
	await(bench, second);
	exec_trace(bench->b, bench->b->n_launched, bench->trace);
	cr_assert_eq(bench->trace->spans->len, 8);
	for (guint i = 0; i < 8; i++)
		cr_assert_eq(g_array_index(bench->trace->spans, struct span, i).id, i);
}

static bool is_noted(const struct bench *bench, stage_id id)
{
	const struct exec *x = exec_of(bench->b);
	return id < x->oldest || x->live[id & (x->ring - 1)]->ended;
}

/* A GPU has nothing to do while the caller reads the times of what was before a gate. */
Test(exec, times_are_read_when_the_caller_comes_to_wait_again)
{
	const struct machine m = {.gpus = 1, .gpus_per_node = 1};
	g_autoptr(bench) bench = bench_new(&m, NULL, as_it_says);
	const stage_id a = add(bench, 0, STREAM_COMPUTE, 0, STAGE_NONE, STAGE_NONE), b = add(bench, 0, STREAM_UPLOAD, 0, a, STAGE_NONE);
	const stage_id c = add(bench, 0, STREAM_COMPUTE, 0, b, STAGE_NONE);
	await(bench, b);
	cr_assert_not(is_noted(bench, a) || is_noted(bench, b));
	await(bench, c);
	cr_assert(is_noted(bench, a) && is_noted(bench, b) && !is_noted(bench, c));
	span_of(bench, c);
	cr_assert(is_noted(bench, c));
}

/* Waits at every hundredth stage only, which the next one follows back, and who was named is let go at the one after that; stage 0 is named by
 * all. */
Test(exec, events_go_round_however_many_stages)
{
	const struct machine m = {.gpus = 2, .gpus_per_node = 2};
	g_autoptr(bench) bench = bench_new(&m, NULL, NULL);
	const struct exec *x = exec_of(bench->b);
	stage_id last = add(bench, 0, STREAM_COMPUTE, 0, STAGE_NONE, STAGE_NONE);
	for (int i = 1; i < 20000; i++) {
		last = i % 5 ? add(bench, i % 2, (enum gpu_stream)(i % GPU_STREAMS), 0, last, 0) : add_on_node(bench, i % NODE_STREAMS, 0, last);
		if (i % 100 == 0)
			await(bench, last);
	}
	exec_trace(bench->b, bench->b->n_launched, bench->trace);
	cr_assert_eq(bench->trace->spans->len, 20000);
	cr_assert_leq(x->spare[0]->len + x->spare[1]->len, 2 * 301 + 2);
	for (stage_id id = 0; id < 20000; id++)
		cr_assert_eq(g_array_index(bench->trace->spans, struct span, id).id, id);
}

/* 5000 stages under way at once. */
Test(exec, stages_may_be_launched_far_ahead)
{
	const struct machine m = {.gpus = 1, .gpus_per_node = 1};
	g_autoptr(bench) bench = bench_new(&m, NULL, as_it_says);
	stage_id last = add_on_node(bench, STREAM_OPTIMIZER, 50000000, STAGE_NONE);
	for (int i = 0; i < 5000; i++)
		last = add(bench, 0, i % 2 ? STREAM_UPLOAD : STREAM_COMPUTE, 0, last, 0);
	await(bench, last);
	cr_assert_geq(span_of(bench, 1)->start_ns, 50000000);
	cr_assert_geq(span_of(bench, last)->start_ns, span_of(bench, last - 1)->end_ns);
}

/* ---- one of several processes ---- */

static nsec_t long_on_gpu_0(const struct stage *stage)
{
	return stage->rank == 0 && stage->group ? 30000000 : 0;
}

/* GPU 1 is another process's: whoever waits for its part of a collective has waited for ours. */
Test(exec, stages_of_other_processes_are_launched_there)
{
	const struct machine m = {.gpus = 2, .gpus_per_node = 1};
	g_autoptr(bench) bench = bench_new_of(&m, 1, NULL, long_on_gpu_0);
	g_autoptr(GError) error = NULL;
	const nsec_t before_ns = exec_now_ns();
	for (int gpu = 0; gpu < 2; gpu++) {
		const struct stage stage = {.id = (stage_id)gpu,
		                            .kind = STAGE_ALL_REDUCE,
		                            .rank = gpu,
		                            .stream = stream_of_gpu(gpu, STREAM_COLLECTIVE),
		                            .group = 1,
		                            .group_size = 2};
		cr_assert(backend_launch(bench->b, &stage, &error));
	}
	await(bench, 1);
	cr_assert_geq(exec_now_ns() - before_ns, 30000000);
	const stage_id theirs = add(bench, 1, STREAM_UPLOAD, 0, 1, STAGE_NONE), ours = add(bench, 0, STREAM_UPLOAD, 0, 0, STAGE_NONE);
	await(bench, theirs);
	await(bench, ours);
	exec_trace(bench->b, bench->b->n_launched, bench->trace);
	cr_assert_eq(bench->issued->len, 2);
	cr_assert_eq(bench->trace->spans->len, 2);
	cr_assert_eq(g_array_index(bench->trace->spans, struct span, 0).id, 0);
	cr_assert_eq(g_array_index(bench->trace->spans, struct span, 1).id, ours);
}

Test(exec, an_order_that_no_collective_keeps_between_processes_is_refused)
{
	const struct machine m = {.gpus = 2, .gpus_per_node = 1};
	g_autoptr(bench) bench = bench_new_of(&m, 1, NULL, NULL);
	g_autoptr(GError) error = NULL;
	const stage_id theirs = add(bench, 1, STREAM_COMPUTE, 0, STAGE_NONE, STAGE_NONE);
	const struct stage stage = {
	    .id = 1, .kind = STAGE_UPLOAD, .rank = 0, .stream = stream_of_gpu(0, STREAM_UPLOAD), .n_preds = 1, .preds = {theirs}};
	cr_assert_not(backend_launch(bench->b, &stage, &error));
	cr_assert(strstr(error->message, "stage 1 (upload) of GPU 0 follows stage 0 (expert) of GPU 1"), "%s", error->message);
}

/* ---- errors ---- */

/* Nodes, streams and launchers have work before, on and behind the failing stage; the error is told again by whatever is called. */
Test(exec, the_first_error_names_its_stage_and_nobody_hangs)
{
	const struct machine m = {.gpus = 2, .gpus_per_node = 2};
	g_autoptr(bench) bench = bench_new(&m, NULL, as_it_says);
	g_autoptr(GError) error = NULL, again = NULL;
	bench->failing = 2;
	const stage_id up = add(bench, 0, STREAM_UPLOAD, 1000000, STAGE_NONE, STAGE_NONE);
	const stage_id compute = add(bench, 1, STREAM_COMPUTE, 1000000, up, STAGE_NONE);
	cr_assert(try_add_on_node(bench, STREAM_SSD_WRITE, 0, compute, &error));
	cr_assert(!backend_wait(bench->b, 2, &error));
	cr_assert(g_error_matches(error, ESMOE_ERROR, ESMOE_ERROR_DEVICE));
	cr_assert_str_eq(error->message, "stage 2 (forward ssd_write of layer 0 on node0 ssd write): the disk is full");
	cr_assert(bench->b->failed);
	bench->b->failed = false; /* what the wrappers forbid: the backend itself must stay with its error */
	cr_assert(!try_add_on_node(bench, STREAM_OPTIMIZER, 0, compute, &again));
	cr_assert_str_eq(again->message, error->message);
}

Test(exec, an_error_in_one_member_lets_the_others_out_of_their_collective)
{
	const struct machine m = {.gpus = 3, .gpus_per_node = 3};
	for (stage_id failing = 0; failing < 6; failing++) {
		g_autoptr(bench) bench = bench_new(&m, NULL, NULL);
		g_autoptr(GError) error = NULL;
		bool well = true;
		bench->failing = failing;
		for (int i = 0; i < 30 && well; i++) {
			const struct stage stage = {.id = bench->b->n_launched,
			                            .kind = STAGE_ALL_TO_ALL,
			                            .rank = i % 3,
			                            .group = (uint32_t)i / 3 + 1,
			                            .group_size = 3,
			                            .stream = stream_of_gpu(i % 3, STREAM_COLLECTIVE)};
			well = backend_launch(bench->b, &stage, &error);
		}
		cr_assert(!(well && backend_wait(bench->b, 29, &error)));
		cr_assert(strstr(error->message, "the disk is full"), "%s", error->message);
	}
}

Test(exec, waiting_behind_a_group_that_misses_members_is_an_error)
{
	const struct machine m = {.gpus = 2, .gpus_per_node = 2};
	g_autoptr(bench) bench = bench_new(&m, NULL, NULL);
	g_autoptr(GError) error = NULL;
	const stage_id before = add(bench, 0, STREAM_COMPUTE, 0, STAGE_NONE, STAGE_NONE), member = add_member(bench, 0, 3, 2);
	const stage_id behind = add(bench, 0, STREAM_COMPUTE, 0, member, STAGE_NONE);
	await(bench, before);
	cr_assert(!backend_wait(bench->b, behind, &error));
	cr_assert(g_error_matches(error, ESMOE_ERROR, ESMOE_ERROR_INPUT));
	cr_assert_str_eq(error->message, "the schedule is stuck: stage 1 waits for its group 3 (2 members, 1 launched)");
}
