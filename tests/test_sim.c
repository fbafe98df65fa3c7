/* The simulator: the backend's promises, and times to the nanosecond where they follow by hand. */
#include "bed.h"
#include "contract.h"
#include "model/error.h"
#include "sim/events.h"

static struct backend *sim_make(const struct ground *ground)
{
	return sim_new(&ground->machine, ground->resources, ground->routing, &(struct sim_options){0});
}

static void sim_times(struct backend *b, stage_id id, nsec_t *start_ns, nsec_t *end_ns)
{
	*start_ns = sim_start_ns(b, id);
	*end_ns = sim_end_ns(b, id);
}

Test(sim, keeps_the_contract)
{
	contract_check(&(struct world){"sim", sim_make, sim_times});
}

Test(sim, events_come_in_order_of_time_then_stream)
{
	GRand *rand = g_rand_new_with_seed(7);
	for (uint32_t n = 1; n < 70; n++) {
		struct events *events = events_new(n);
		nsec_t pending[70];
		for (uint32_t s = 0; s < n; s++)
			pending[s] = -1;
		for (int move = 0; move < 500; move++) {
			uint32_t put = (uint32_t)g_rand_int_range(rand, 0, (gint32)n), least = n;
			pending[put] = g_rand_int_range(rand, 0, 50);
			events_put(events, put, pending[put]);
			for (uint32_t s = 0; s < n; s++)
				if (pending[s] >= 0 && (least == n || pending[s] < pending[least]))
					least = s;
			cr_assert_eq(events_next_ns(events), pending[least]);
			if (g_rand_boolean(rand))
				continue;
			cr_assert_eq(events_take(events), least);
			pending[least] = -1;
		}
		events_free(events);
	}
	g_rand_free(rand);
}

Test(sim, one_expert_alone_is_the_sum_of_its_parts)
{
	struct bed bed;
	bed_init(&bed, machine_by_hand(1, 1, 0, 200), &bare);
	stage_id up = add(&bed, on_gpu(0, STREAM_UPLOAD, 1234567, STAGE_NONE, STAGE_NONE));
	stage_id compute = add(&bed, on_gpu(0, STREAM_COMPUTE, 7654321, up, STAGE_NONE));
	stage_id down = add(&bed, on_gpu(0, STREAM_DOWNLOAD, 333333, compute, STAGE_NONE));
	stage_id adam = add(&bed, adam_on(&bed.m, 0, 0, 99999999, down));
	await(&bed, adam);
	spans(&bed, up, 0, 1234567);
	spans(&bed, compute, 1234567, 8888888);
	spans(&bed, down, 8888888, 9222221);
	spans(&bed, adam, 9222221, 109222220);
	cr_assert_eq(sim_now_ns(bed.b), 109222220);
	bed_clear(&bed);
}

static void hold(struct profile *p, double share)
{
	ask_for(p, RES_SM, share);
	p->demand[p->n_demands - 1].held = true;
}

/* An expert of so many products beside an upload that holds a fifth of the GPU and, up to then, a collective that holds a tenth. */
static nsec_t beside_an_upload(int products, nsec_t cost_ns, nsec_t collective_ns)
{
	struct bed bed = {.m = machine_by_hand(1, 1, 0, 200)};
	bed.m.copy_exposed_us = 100;
	bed.r = resources_by_hand(&bed.m, 32, 100);
	hold(&bed.r->profile[profile_of_gpu(0, PROFILE_UP)], 0.2);
	hold(&bed.r->profile[profile_of_gpu(0, PROFILE_COLLECTIVE)], 0.1);
	bed.b = sim_new(&bed.m, bed.r, NULL, &bare);
	struct stage expert = on_gpu(0, STREAM_COMPUTE, cost_ns, STAGE_NONE, STAGE_NONE);
	expert.products = (uint32_t)products;
	add(&bed, on_gpu(0, STREAM_UPLOAD, 10000000, STAGE_NONE, STAGE_NONE));
	if (collective_ns)
		add(&bed, on_gpu(0, STREAM_COLLECTIVE, collective_ns, STAGE_NONE, STAGE_NONE));
	const stage_id id = add(&bed, expert);
	await(&bed, id);
	const nsec_t ns = sim_end_ns(bed.b, id) - sim_start_ns(bed.b, id);
	bed_clear(&bed);
	return ns;
}

Test(sim, a_long_product_loses_no_more_to_copies_than_one_that_is_exposed)
{
	cr_expect_eq(beside_an_upload(0, 800000, 0), 1000000, "what is no product");
	cr_expect_eq(beside_an_upload(2, 160000, 0), 200000, "two of 80 us");
	cr_expect_eq(beside_an_upload(2, 760000, 0), 802223, "of 380 us: 200 of 760, and 1 - 0.2 x 200 / 760 of the speed: %ld",
	             (long)beside_an_upload(2, 760000, 0));
	cr_expect_eq(beside_an_upload(8, 800000, 0), 1000000);
	/* 100 us beside both, at 0.7; then the rest */
	cr_expect_eq(beside_an_upload(2, 760000, 100000), 828334, "%ld", (long)beside_an_upload(2, 760000, 100000));
}

Test(sim, stages_of_one_stream_follow_each_other_without_gap_or_overlap)
{
	struct bed bed;
	bed_init(&bed, machine_by_hand(1, 1, 0, 200), &bare);
	for (int i = 0; i < 100; i++)
		add(&bed, on_gpu(0, STREAM_COMPUTE, 1000 + i, STAGE_NONE, STAGE_NONE));
	await(&bed, 99);
	for (nsec_t i = 0; i < 100; i++)
		spans(&bed, (stage_id)i, 1000 * i + i * (i - 1) / 2, 1000 * (i + 1) + (i + 1) * i / 2);
	bed_clear(&bed);
}

Test(sim, two_copies_behind_one_root_complex_take_twice_the_time)
{
	struct bed bed;
	bed_init(&bed, machine_by_hand(4, 4, 25, 1000), &bare);
	stage_id a = add(&bed, on_gpu(0, STREAM_UPLOAD, 1000001, STAGE_NONE, STAGE_NONE));
	stage_id b = add(&bed, on_gpu(1, STREAM_UPLOAD, 1000001, STAGE_NONE, STAGE_NONE));
	stage_id other = add(&bed, on_gpu(2, STREAM_UPLOAD, 1000001, STAGE_NONE, STAGE_NONE));
	stage_id down = add(&bed, on_gpu(0, STREAM_DOWNLOAD, 1000001, STAGE_NONE, STAGE_NONE));
	await(&bed, a);
	await(&bed, b);
	spans(&bed, a, 0, 2000002);
	spans(&bed, b, 0, 2000002);
	spans(&bed, other, 0, 1000001);
	spans(&bed, down, 0, 1000001);
	bed_clear(&bed);
}

/* b starts half-way through a: a has 500 left that take 1000, then b has 500 left alone. */
Test(sim, work_left_is_kept_when_rates_change)
{
	struct bed bed;
	bed_init(&bed, machine_by_hand(2, 2, 25, 1000), &bare);
	stage_id wait = add(&bed, on_gpu(1, STREAM_COMPUTE, 500, STAGE_NONE, STAGE_NONE));
	stage_id a = add(&bed, on_gpu(0, STREAM_UPLOAD, 1000, STAGE_NONE, STAGE_NONE));
	stage_id b = add(&bed, on_gpu(1, STREAM_UPLOAD, 1000, wait, STAGE_NONE));
	await(&bed, b);
	spans(&bed, a, 0, 1500);
	spans(&bed, b, 500, 2000);
	bed_clear(&bed);
}

Test(sim, without_sharing_everyone_runs_alone)
{
	struct bed bed;
	struct sim_options o = bare;
	o.no_sharing = true;
	bed_init(&bed, machine_by_hand(2, 2, 25, 1), &o);
	stage_id a = add(&bed, on_gpu(0, STREAM_UPLOAD, 1000, STAGE_NONE, STAGE_NONE));
	stage_id b = add(&bed, on_gpu(1, STREAM_UPLOAD, 1000, STAGE_NONE, STAGE_NONE));
	await(&bed, a);
	await(&bed, b);
	spans(&bed, a, 0, 1000);
	spans(&bed, b, 0, 1000);
	bed_clear(&bed);
}

Test(sim, another_stream_starts_an_event_later_and_the_same_stream_at_once)
{
	struct bed bed;
	struct machine m = machine_by_hand(1, 1, 0, 200);
	struct sim_options o = bare;
	m.event_us = 1.5;
	o.no_event = false;
	bed_init(&bed, m, &o);
	stage_id a = add(&bed, on_gpu(0, STREAM_COMPUTE, 1000, STAGE_NONE, STAGE_NONE));
	stage_id same = add(&bed, on_gpu(0, STREAM_COMPUTE, 1000, a, STAGE_NONE));
	stage_id other = add(&bed, on_gpu(0, STREAM_DOWNLOAD, 1000, a, STAGE_NONE));
	await(&bed, other);
	spans(&bed, same, 1000, 2000);
	spans(&bed, other, 2500, 3500);
	bed_clear(&bed);
}

Test(sim, a_stream_goes_on_after_it_has_woken_those_that_waited)
{
	struct bed bed;
	struct machine m = machine_by_hand(1, 1, 0, 200);
	struct sim_options o = bare;
	m.event_us = 1.5;
	m.wake_us = 4;
	o.no_event = false;
	bed_init(&bed, m, &o);
	stage_id a = add(&bed, on_gpu(0, STREAM_COMPUTE, 1000, STAGE_NONE, STAGE_NONE));
	stage_id next = add(&bed, on_gpu(0, STREAM_COMPUTE, 1000, STAGE_NONE, STAGE_NONE));
	stage_id last = add(&bed, on_gpu(0, STREAM_COMPUTE, 1000, STAGE_NONE, STAGE_NONE));
	stage_id down = add(&bed, on_gpu(0, STREAM_DOWNLOAD, 1000, a, STAGE_NONE));
	stage_id up = add(&bed, on_gpu(0, STREAM_UPLOAD, 1000, a, STAGE_NONE));
	stage_id third = add(&bed, on_gpu(0, STREAM_UPLOAD, 1000, next, STAGE_NONE));
	await(&bed, last);
	await(&bed, third);
	spans(&bed, a, 0, 1000);
	spans(&bed, down, 2500, 3500);
	spans(&bed, up, 2500, 3500);
	spans(&bed, next, 9000, 10000); /* two were woken */
	spans(&bed, third, 11500, 12500);
	spans(&bed, last, 14000, 15000); /* and one by next's end */
	bed_clear(&bed);
}

Test(sim, a_compute_stream_takes_a_moment_between_stages)
{
	struct bed bed;
	struct machine m = machine_by_hand(1, 1, 0, 200);
	struct sim_options o = bare;
	m.next_us = 3;
	m.wake_us = 1;
	o.no_event = false;
	bed_init(&bed, m, &o);
	stage_id a = add(&bed, on_gpu(0, STREAM_COMPUTE, 1000, STAGE_NONE, STAGE_NONE));
	stage_id b = add(&bed, on_gpu(0, STREAM_COMPUTE, 1000, STAGE_NONE, STAGE_NONE));
	stage_id up = add(&bed, on_gpu(0, STREAM_UPLOAD, 1000, a, STAGE_NONE));
	stage_id next = add(&bed, on_gpu(0, STREAM_UPLOAD, 1000, STAGE_NONE, STAGE_NONE));
	await(&bed, b);
	await(&bed, next);
	spans(&bed, b, 4000, 5000); /* no longer because it woke one meanwhile */
	spans(&bed, up, 1000, 2000);
	spans(&bed, next, 2000, 3000);
	bed_clear(&bed);
}

/* Kernels of 1 us launched every 5 us: the k-th starts when it is launched. The launcher of the other GPU has a clock of its own. */
Test(sim, short_kernels_run_at_the_launchers_pace)
{
	struct bed bed;
	struct machine m = machine_by_hand(2, 2, 0, 200);
	struct sim_options o = bare;
	m.launch_us = 5;
	o.no_launch = false;
	bed_init(&bed, m, &o);
	for (int i = 0; i < 50; i++)
		add(&bed, on_gpu(0, STREAM_COMPUTE, 1000, STAGE_NONE, STAGE_NONE));
	stage_id other = add(&bed, on_gpu(1, STREAM_COMPUTE, 1000, STAGE_NONE, STAGE_NONE));
	await(&bed, 49);
	for (nsec_t i = 0; i < 50; i++)
		spans(&bed, (stage_id)i, 5000 * (i + 1), 5000 * (i + 1) + 1000);
	spans(&bed, other, 5000, 6000);
	bed_clear(&bed);
}

/* Ten kernels of 1 us in one stage: the last is launched at 50 us and ends at 51. Its stream is kept, its resources are not. */
Test(sim, a_stage_ends_no_earlier_than_its_last_kernel_and_frees_resources_before)
{
	struct bed bed;
	struct machine m = machine_by_hand(2, 2, 25, 200);
	struct sim_options o = bare;
	m.launch_us = 5;
	o.no_launch = false;
	bed_init(&bed, m, &o);
	struct stage copies = on_gpu(0, STREAM_UPLOAD, 10000, STAGE_NONE, STAGE_NONE);
	copies.n_kernels = 10;
	stage_id a = add(&bed, copies);
	stage_id next = add(&bed, on_gpu(0, STREAM_UPLOAD, 3000, STAGE_NONE, STAGE_NONE));
	stage_id b = add(&bed, on_gpu(1, STREAM_UPLOAD, 20000, STAGE_NONE, STAGE_NONE));
	await(&bed, next);
	spans(&bed, a, 5000, 51000);
	spans(&bed, b, 5000, 35000); /* half speed until 25 us, then alone */
	spans(&bed, next, 55000, 58000);
	bed_clear(&bed);
}

Test(sim, a_stage_without_kernels_costs_its_launcher_nothing_but_comes_after_it)
{
	struct bed bed;
	struct machine m = machine_by_hand(1, 1, 0, 200);
	struct sim_options o = bare;
	m.launch_us = 5;
	o.no_launch = false;
	bed_init(&bed, m, &o);
	add(&bed, on_gpu(0, STREAM_COMPUTE, 1000, STAGE_NONE, STAGE_NONE));
	stage_id adam = add(&bed, adam_on(&bed.m, 0, 0, 700, STAGE_NONE));
	stage_id last = add(&bed, on_gpu(0, STREAM_COMPUTE, 1000, STAGE_NONE, STAGE_NONE));
	await(&bed, last);
	spans(&bed, adam, 5000, 5700);
	spans(&bed, last, 10000, 11000);
	bed_clear(&bed);
}

/* GPU 1 comes last and is alone slow: all start with it and end with it. */
Test(sim, members_of_a_group_start_and_end_together)
{
	struct bed bed;
	bed_init(&bed, machine_by_hand(4, 4, 0, 200), &bare);
	stage_id before = add(&bed, on_gpu(1, STREAM_COMPUTE, 700, STAGE_NONE, STAGE_NONE)), member[4], after[4];
	for (int gpu = 0; gpu < 4; gpu++) {
		struct stage stage = on_gpu(gpu, STREAM_COLLECTIVE, gpu == 1 ? 900 : 300, gpu == 1 ? before : STAGE_NONE, STAGE_NONE);
		stage.group = 7;
		stage.group_size = 4;
		member[gpu] = add(&bed, stage);
		after[gpu] = add(&bed, on_gpu(gpu, STREAM_COMPUTE, 10, member[gpu], STAGE_NONE));
	}
	for (int gpu = 0; gpu < 4; gpu++) {
		await(&bed, after[gpu]);
		spans(&bed, member[gpu], 700, 1600);
		spans(&bed, after[gpu], 1600, 1610);
	}
	bed_clear(&bed);
}

Test(sim, members_launched_in_turns_find_their_groups_and_ids_may_come_again)
{
	struct bed bed;
	bed_init(&bed, machine_by_hand(2, 2, 0, 200), &bare);
	for (int round = 0; round < 3; round++) {
		for (int gpu = 0; gpu < 2; gpu++)
			for (uint32_t group = 1; group <= 3; group++) {
				struct stage stage = on_gpu(gpu, STREAM_COLLECTIVE, 100 * (gpu + 1), STAGE_NONE, STAGE_NONE);
				stage.group = group;
				stage.group_size = 2;
				add(&bed, stage);
			}
		await(&bed, bed.b->n_launched - 1);
		for (stage_id id = 0; id < 6; id++)
			spans(&bed, (stage_id)round * 6 + id, round * 600 + 200 * (id % 3), round * 600 + 200 * (id % 3) + 200);
	}
	bed_clear(&bed);
}

Test(sim, a_group_that_never_fills_is_an_error_that_says_so)
{
	struct bed bed;
	GError *error = NULL;
	bed_init(&bed, machine_by_hand(2, 2, 0, 200), &bare);
	struct stage stage = on_gpu(0, STREAM_COLLECTIVE, 100, STAGE_NONE, STAGE_NONE);
	stage.group = 3;
	stage.group_size = 2;
	stage_id member = add(&bed, stage);
	stage_id after = add(&bed, on_gpu(0, STREAM_COMPUTE, 10, member, STAGE_NONE));
	cr_assert_not(backend_wait(bed.b, after, &error));
	cr_assert(g_error_matches(error, ESMOE_ERROR, ESMOE_ERROR_INPUT));
	cr_assert_str_eq(error->message, "the schedule is stuck at 0.000 ms: stage 1 (expert on gpu0 compute) waits for stage 0 (all_to_all on gpu0 "
	                                 "collective) waits for its group 3 (2 members, 1 launched, 1 ready)");
	cr_assert(bed.b->failed);
	g_error_free(error);
	bed_clear(&bed);
}

Test(sim, groups_in_opposite_order_are_an_error_that_names_both)
{
	struct bed bed;
	GError *error = NULL;
	bed_init(&bed, machine_by_hand(2, 2, 0, 200), &bare);
	for (int gpu = 0; gpu < 2; gpu++)
		for (int i = 0; i < 2; i++) {
			struct stage stage = on_gpu(gpu, STREAM_COLLECTIVE, 100, STAGE_NONE, STAGE_NONE);
			stage.group = i == gpu ? 1 : 2;
			stage.group_size = 2;
			add(&bed, stage);
		}
	cr_assert_not(backend_wait(bed.b, 3, &error));
	cr_assert(strstr(error->message, "group 1") && strstr(error->message, "group 2"), "%s", error->message);
	g_error_free(error);
	bed_clear(&bed);
}

Test(sim, waiting_for_an_early_stage_leaves_the_later_ones_to_time)
{
	struct bed bed;
	bed_init(&bed, machine_by_hand(1, 1, 0, 200), &bare);
	stage_id a = add(&bed, on_gpu(0, STREAM_COMPUTE, 1000, STAGE_NONE, STAGE_NONE));
	stage_id b = add(&bed, on_gpu(0, STREAM_COMPUTE, 1000, STAGE_NONE, STAGE_NONE));
	await(&bed, a);
	cr_assert_eq(sim_now_ns(bed.b), 1000);
	stage_id late = add(&bed, on_gpu(0, STREAM_UPLOAD, 10, STAGE_NONE, STAGE_NONE));
	await(&bed, late);
	spans(&bed, late, 1000, 1010);
	await(&bed, a);
	cr_assert_eq(sim_now_ns(bed.b), 1010);
	await(&bed, b);
	spans(&bed, b, 1000, 2000);
	bed_clear(&bed);
}

Test(sim, stages_of_no_cost_take_no_time)
{
	struct bed bed;
	bed_init(&bed, machine_by_hand(1, 1, 0, 200), &bare);
	stage_id a = add(&bed, on_gpu(0, STREAM_COMPUTE, 0, STAGE_NONE, STAGE_NONE));
	stage_id b = add(&bed, on_gpu(0, STREAM_UPLOAD, 0, a, STAGE_NONE));
	stage_id c = add(&bed, on_gpu(0, STREAM_COMPUTE, 5, b, STAGE_NONE));
	await(&bed, c);
	spans(&bed, b, 0, 0);
	spans(&bed, c, 0, 5);
	bed_clear(&bed);
}
