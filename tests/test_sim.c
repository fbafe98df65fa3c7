/* The simulator: the backend's promises, times to the nanosecond where they follow by hand, and two naive simulators that know nothing of its tricks.
 */
#include "by_hand.h"
#include "contract.h"
#include "model/error.h"
#include "sim/events.h"
#include "sim/sim.h"

#include <criterion/criterion.h>
#include <math.h>

static const struct sim_options bare = {.no_launch = true, .no_sync = true, .no_event = true};

struct bed {
	struct machine m;
	struct resources *r;
	struct backend *b;
	uint32_t groups;
};

static void bed_init(struct bed *bed, struct machine m, const struct sim_options *o)
{
	bed->m = m;
	bed->r = resources_by_hand(&bed->m, 32, 100);
	bed->b = sim_new(&bed->m, bed->r, NULL, o);
	bed->groups = 0;
}

static void bed_clear(struct bed *bed)
{
	backend_free(bed->b);
	resources_by_hand_free(bed->r);
}

static stage_id add(struct bed *bed, struct stage stage)
{
	GError *error = NULL;
	stage.id = bed->b->n_launched;
	cr_assert(backend_launch(bed->b, &stage, &error));
	return stage.id;
}

static void await(struct bed *bed, stage_id id)
{
	GError *error = NULL;
	cr_assert(backend_wait(bed->b, id, &error), "%s", error ? error->message : "no words");
}

/* A stage on one of a GPU's streams, with at most two predecessors (STAGE_NONE: none). */
static struct stage on_gpu(int gpu, enum gpu_stream stream, nsec_t cost_ns, stage_id a, stage_id b)
{
	static const uint8_t kinds[] = {STAGE_EXPERT, STAGE_UPLOAD, STAGE_DOWNLOAD, STAGE_ALL_TO_ALL};
	static const uint8_t profiles[] = {PROFILE_COMPUTE, PROFILE_UP, PROFILE_DOWN, PROFILE_COLLECTIVE};
	struct stage stage = {
	    .kind = kinds[stream],
	    .rank = gpu,
	    .expert = -1,
	    .stream = stream_of_gpu(gpu, stream),
	    .profile = profile_of_gpu(gpu, profiles[stream]),
	    .n_kernels = 1,
	    .cost_ns = cost_ns,
	};
	if (a != STAGE_NONE)
		stage.preds[stage.n_preds++] = a;
	if (b != STAGE_NONE)
		stage.preds[stage.n_preds++] = b;
	return stage;
}

static struct stage adam_on(const struct machine *m, int node, int rank, nsec_t cost_ns, stage_id a)
{
	struct stage stage = on_gpu(rank, STREAM_DOWNLOAD, cost_ns, a, STAGE_NONE);
	stage.kind = STAGE_ADAM;
	stage.stream = stream_of_node(m, node, STREAM_OPTIMIZER);
	stage.profile = profile_of_node(m, node, PROFILE_ADAM);
	stage.n_kernels = 0;
	return stage;
}

static void spans(const struct bed *bed, stage_id id, nsec_t start_ns, nsec_t end_ns)
{
	cr_assert_eq(sim_start_ns(bed->b, id), start_ns, "stage %u starts at %ld, not %ld", id, (long)sim_start_ns(bed->b, id), (long)start_ns);
	cr_assert_eq(sim_end_ns(bed->b, id), end_ns, "stage %u ends at %ld, not %ld", id, (long)sim_end_ns(bed->b, id), (long)end_ns);
}

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

/* Every launcher waits for the counts, and goes on a synchronisation later; a launcher that is already later stays where it is. */
Test(sim, launchers_go_on_after_the_gate_and_its_synchronisation)
{
	struct bed bed;
	GError *error = NULL;
	struct machine m = machine_by_hand(2, 2, 0, 200);
	m.launch_us = 5;
	m.sync_us = 10;
	bed_init(&bed, m, &(struct sim_options){.no_event = true});
	backend_free(bed.b);
	struct routing *routing = routing_new("uniform", 1, &error);
	bed.b = sim_new(&bed.m, bed.r, routing, &(struct sim_options){.no_event = true});
	stage_id counts = add(&bed, on_gpu(0, STREAM_COLLECTIVE, 2000, STAGE_NONE, STAGE_NONE));
	for (int i = 0; i < 10; i++)
		add(&bed, on_gpu(1, STREAM_COMPUTE, 1, STAGE_NONE, STAGE_NONE));
	uint32_t tokens[2][4], total = 0;
	struct gate gate = {.counts = counts, .experts = 4, .top_k = 1, .tokens_per_gpu = 1000};
	cr_assert(backend_loads(bed.b, &gate, tokens[0], &error));
	for (int e = 0; e < 4; e++)
		total += tokens[1][e];
	cr_assert_eq(total, 1000);
	stage_id zero = add(&bed, on_gpu(0, STREAM_COMPUTE, 100, STAGE_NONE, STAGE_NONE));
	stage_id one = add(&bed, on_gpu(1, STREAM_COMPUTE, 100, STAGE_NONE, STAGE_NONE));
	await(&bed, zero);
	await(&bed, one);
	spans(&bed, counts, 5000, 7000);
	spans(&bed, zero, 22000, 22100); /* 7 + 10 + 5 us */
	spans(&bed, one, 55000, 55100);  /* its own 50 + 5 us */
	bed_clear(&bed);
	routing_free(routing);
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

/* A random step on `m`: mostly pairs of predecessors among the last 40 stages, now and then a collective of all GPUs. */
static GArray *random_stages(GRand *rand, const struct machine *m, int n)
{
	GArray *stages = g_array_new(FALSE, FALSE, sizeof(struct stage));
	uint32_t groups = 0;
	while ((int)stages->len < n) {
		bool group = g_rand_int_range(rand, 0, 8) == 0;
		int gpu = g_rand_int_range(rand, 0, m->gpus), members = group ? m->gpus : 1;
		groups += group;
		stage_id first = stages->len;
		for (int i = 0; i < members; i++) {
			stage_id preds[2];
			for (int p = 0; p < 2; p++)
				preds[p] = first && g_rand_boolean(rand) ? first - 1 - (stage_id)g_rand_int_range(rand, 0, (gint32)MIN(first, 40))
				                                         : STAGE_NONE;
			nsec_t cost_ns = g_rand_int_range(rand, 0, 2000);
			struct stage stage =
			    on_gpu(group ? i : gpu, group ? STREAM_COLLECTIVE : g_rand_int_range(rand, 0, 3), cost_ns, preds[0], preds[1]);
			if (!group && g_rand_int_range(rand, 0, 6) == 0)
				stage = adam_on(m, gpu / m->gpus_per_node, gpu, cost_ns, preds[0]);
			else
				stage.n_kernels = (uint32_t)g_rand_int_range(rand, 1, 4);
			stage.group = group ? groups : 0;
			stage.group_size = group ? (uint32_t)members : 0;
			stage.id = stages->len;
			g_array_append_val(stages, stage);
		}
	}
	return stages;
}

/* Without sharing, start and end are the least solution of a few inequalities: repeat all until nothing moves. */
static void naive_solo(const struct machine *m, const GArray *stages, nsec_t *start, nsec_t *end)
{
	const struct stage *s = (const struct stage *)stages->data;
	nsec_t launch = (nsec_t)(m->launch_us * 1000), event = (nsec_t)(m->event_us * 1000), floor_ns[stages->len], host[8] = {0};
	for (guint i = 0; i < stages->len; i++) {
		start[i] = host[s[i].rank] + (s[i].n_kernels ? launch : 0);
		host[s[i].rank] += s[i].n_kernels * launch;
		floor_ns[i] = s[i].n_kernels ? host[s[i].rank] + s[i].cost_ns / s[i].n_kernels : 0;
		end[i] = 0;
	}
	for (bool moved = true; moved;) {
		moved = false;
		for (guint i = 0; i < stages->len; i++) {
			nsec_t first = start[i], last;
			for (guint j = 0; j < i; j++)
				first = s[j].stream == s[i].stream ? MAX(first, end[j]) : first;
			for (int p = 0; p < s[i].n_preds; p++)
				first = MAX(first, end[s[i].preds[p]] + (s[s[i].preds[p]].stream == s[i].stream ? 0 : event));
			last = MAX(MAX(first + s[i].cost_ns, floor_ns[i]), end[i]);
			for (guint j = 0; s[i].group && j < stages->len; j++)
				if (s[j].group == s[i].group) {
					first = MAX(first, start[j]);
					last = MAX(last, end[j]);
				}
			moved |= first != start[i] || last != end[i];
			start[i] = first;
			end[i] = last;
		}
	}
}

Test(sim, a_thousand_random_schedules_equal_the_naive_solution_without_sharing)
{
	GRand *rand = g_rand_new_with_seed(2);
	for (int round = 0; round < 1000; round++) {
		struct bed bed;
		struct machine m = machine_by_hand(g_rand_int_range(rand, 1, 5), 2, 0, 200);
		m.launch_us = 0.1 * g_rand_int_range(rand, 0, 8);
		m.launch_us = round % 2 ? m.launch_us : 1;
		m.event_us = round % 3;
		bed_init(&bed, m, &(struct sim_options){.no_sharing = true});
		GArray *stages = random_stages(rand, &m, 60);
		nsec_t start[stages->len], end[stages->len];
		naive_solo(&m, stages, start, end);
		for (guint i = 0; i < stages->len; i++)
			add(&bed, g_array_index(stages, struct stage, i));
		for (guint i = 0; i < stages->len; i++)
			await(&bed, i);
		for (guint i = 0; i < stages->len; i++)
			spans(&bed, i, start[i], end[i]);
		g_array_unref(stages);
		bed_clear(&bed);
	}
	g_rand_free(rand);
}

/* Fluid in small steps of time: each nanosecond, who may run runs, and everyone's rate is found anew by raising all in steps of 1/1000. */
static void naive_fluid(const struct resources *r, const GArray *stages, double *end)
{
	const struct stage *s = (const struct stage *)stages->data;
	guint n = stages->len, left = n;
	double done[n];
	memset(done, 0, sizeof done);
	for (guint i = 0; i < n; i++)
		end[i] = -1;
	for (double now = 0; left; now++) {
		guint runs[n], n_runs = 0;
		bool settled = false;
		while (!settled) { /* stages of no cost end at once and let others in */
			settled = true;
			n_runs = 0;
			for (guint i = 0; i < n; i++) {
				bool ready = end[i] < 0;
				for (guint j = 0; j < i; j++)
					ready &= s[j].stream != s[i].stream || end[j] >= 0;
				for (int p = 0; p < s[i].n_preds; p++)
					ready &= end[s[i].preds[p]] >= 0;
				if (ready && done[i] >= (double)s[i].cost_ns - 1e-6) {
					end[i] = now;
					left--;
					settled = false;
				} else if (ready) {
					runs[n_runs++] = i;
				}
			}
		}
		double rate[n];
		bool stopped[n];
		for (guint k = 0; k < n_runs; k++) {
			rate[k] = 0;
			stopped[k] = false;
		}
		for (int step = 0; step < 1000; step++)
			for (guint k = 0; k < n_runs; k++) {
				const struct profile *p = &r->profile[s[runs[k]].profile];
				for (int d = 0; d < p->n_demands; d++) {
					double used = 0;
					for (guint j = 0; j < n_runs; j++)
						for (int e = 0; e < r->profile[s[runs[j]].profile].n_demands; e++)
							if (r->profile[s[runs[j]].profile].demand[e].resource == p->demand[d].resource)
								used += rate[j] * r->profile[s[runs[j]].profile].demand[e].amount;
					stopped[k] |= used + p->demand[d].amount / 1000 > r->capacity[p->demand[d].resource] + 1e-9;
				}
				rate[k] += stopped[k] ? 0 : 0.001;
			}
		for (guint k = 0; k < n_runs; k++)
			done[runs[k]] += rate[k];
	}
}

Test(sim, small_random_schedules_follow_a_naive_fluid_within_a_percent)
{
	GRand *rand = g_rand_new_with_seed(3);
	for (int round = 0; round < 20; round++) {
		struct bed bed;
		bed_init(&bed, machine_by_hand(2, 2, 40, g_rand_int_range(rand, 60, 140)), &bare);
		GArray *stages = g_array_new(FALSE, FALSE, sizeof(struct stage));
		for (stage_id i = 0; i < 10; i++) {
			nsec_t cost_ns = g_rand_int_range(rand, 0, 400);
			int gpu = g_rand_int_range(rand, 0, 2);
			stage_id pred = i && g_rand_boolean(rand) ? (stage_id)g_rand_int_range(rand, 0, (gint32)i) : STAGE_NONE;
			struct stage stage = i % 4 == 3 ? adam_on(&bed.m, 0, gpu, cost_ns, pred)
			                                : on_gpu(gpu, g_rand_int_range(rand, 0, 3), cost_ns, pred, STAGE_NONE);
			stage.id = i;
			g_array_append_val(stages, stage);
		}
		double end[10];
		naive_fluid(bed.r, stages, end);
		for (stage_id i = 0; i < 10; i++)
			add(&bed, g_array_index(stages, struct stage, i));
		for (stage_id i = 0; i < 10; i++) {
			await(&bed, i);
			double got = (double)sim_end_ns(bed.b, i);
			cr_assert(fabs(got - end[i]) <= 0.01 * end[i] + 12, "round %d stage %u: %g, naive %g", round, i, got, end[i]);
		}
		g_array_unref(stages);
		bed_clear(&bed);
	}
	g_rand_free(rand);
}

/* Launches and waits a random schedule with everything on, and returns its trace. */
static struct trace *random_trace(struct bed *bed, guint32 seed, bool counters)
{
	GRand *rand = g_rand_new_with_seed(seed);
	struct machine m = machine_by_hand(4, 2, 30, 120);
	m.launch_us = 1;
	m.event_us = 0.5;
	m.sync_us = 3;
	bed_init(bed, m, &(struct sim_options){.record_counters = counters});
	GArray *stages = random_stages(rand, &m, 400);
	for (guint i = 0; i < stages->len; i++) {
		struct stage stage = g_array_index(stages, struct stage, i);
		stage.step_parity = i >= 150 && i < 300;
		stage.bytes = (uint64_t)stage.cost_ns * 25;
		add(bed, stage);
		if (i % 50 == 49)
			await(bed, stage.id - 10);
	}
	for (stage_id id = 0; id < bed->b->n_launched; id++)
		await(bed, id);
	struct trace *trace = trace_new();
	sim_trace(bed->b, counters, trace);
	g_array_unref(stages);
	g_rand_free(rand);
	return trace;
}

Test(sim, every_promise_holds_in_a_trace_with_everything_on)
{
	struct bed bed;
	struct trace *trace = random_trace(&bed, 4, false);
	nsec_t free_ns[32] = {0}, busy_ns[32], want_ns[32] = {0}, last_ns = 0;
	cr_assert_eq(trace->spans->len, bed.b->n_launched);
	for (guint i = 0; i < trace->spans->len; i++) {
		const struct span *span = &g_array_index(trace->spans, struct span, i);
		cr_assert_eq(span->id, i);
		cr_assert_geq(span->start_ns, free_ns[span->stream]);
		cr_assert_geq(span->start_ns, span->launch_ns);
		cr_assert_geq(span->end_ns, span->launch_end_ns);
		for (int p = 0; p < span->n_preds; p++)
			cr_assert_geq(span->start_ns, g_array_index(trace->spans, struct span, span->preds[p]).end_ns);
		free_ns[span->stream] = span->end_ns;
		want_ns[span->stream] += span->end_ns - span->start_ns;
		last_ns = MAX(last_ns, span->end_ns);
		cr_assert_eq(span->step, i < 150 ? 0 : i < 300 ? 1 : 2);
	}
	sim_busy(bed.b, -1, last_ns, busy_ns);
	for (int stream = 0; stream < stream_count(&bed.m); stream++) {
		cr_assert_eq(busy_ns[stream], want_ns[stream]);
		cr_assert_leq(busy_ns[stream], last_ns);
	}
	cr_assert_eq(trace->step_end_ns->len, 3);
	cr_assert_eq(g_array_index(trace->step_end_ns, nsec_t, 2), last_ns);
	trace_free(trace);
	bed_clear(&bed);
}

Test(sim, the_same_schedule_gives_the_same_spans)
{
	struct bed one, two;
	struct trace *a = random_trace(&one, 5, true), *b = random_trace(&two, 5, false);
	cr_assert_eq(a->spans->len, b->spans->len);
	for (guint i = 0; i < a->spans->len; i++) {
		const struct span *x = &g_array_index(a->spans, struct span, i), *y = &g_array_index(b->spans, struct span, i);
		cr_assert(x->launch_ns == y->launch_ns && x->start_ns == y->start_ns && x->end_ns == y->end_ns, "span %u", i);
	}
	trace_free(a);
	trace_free(b);
	bed_clear(&one);
	bed_clear(&two);
}

/* The area under a counter is what went over the link: bytes of all copies of that GPU and direction. */
Test(sim, counters_integrate_to_the_bytes_moved)
{
	struct bed bed;
	struct trace *trace = random_trace(&bed, 6, true);
	cr_assert_eq(trace->counters->len, 4 * 2 + 2);
	for (guint c = 0; c < 8; c++) {
		const struct counter *counter = g_ptr_array_index(trace->counters, c);
		double area = 0, bytes = 0;
		for (guint i = 0; i + 1 < counter->samples->len; i++) {
			const struct sample *at = &g_array_index(counter->samples, struct sample, i);
			cr_assert_lt(at->ns, at[1].ns);
			cr_assert_leq(at->value, 25 + 1e-6);
			area += at->value * (double)(at[1].ns - at->ns);
		}
		for (guint i = 0; i < trace->spans->len; i++) {
			const struct span *span = &g_array_index(trace->spans, struct span, i);
			if (span->stream == stream_of_gpu(counter->gpu, c % 2 ? STREAM_DOWNLOAD : STREAM_UPLOAD))
				bytes += (double)span->bytes;
		}
		cr_assert(bytes > 0 && fabs(area - bytes) < 0.002 * bytes, "counter %u: %g, bytes %g", c, area, bytes);
	}
	trace_free(trace);
	bed_clear(&bed);
}
