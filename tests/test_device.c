/* The host device: arena, copies, order of streams and events, collectives between virtual GPUs, and failures that must wake everybody. */
#include "exec/device.h"
#include "model/error.h"

#include <criterion/criterion.h>
#include <string.h>

#define ARENA (1 << 20)
#define MOST 4 /* devices */

struct bed {
	int n;
	struct device *device[MOST];
	struct device_stream *stream[MOST];
	struct device_event *event[MOST], *armed;
	struct device_group *group;
};

static void bed_init(struct bed *b, int n)
{
	GError *error = NULL;
	b->n = n;
	cr_assert(device_open("host", n, ARENA, b->device, &b->group, &error));
	for (int i = 0; i < n; i++) {
		b->stream[i] = device_stream_new(b->device[i], "collective", &error);
		b->event[i] = device_event_new(b->device[i]);
	}
	b->armed = device_event_new(b->device[0]);
}

/* Streams first: after a failure they may still be on their way out of a wait. */
static void bed_clear(struct bed *b)
{
	for (int i = 0; i < b->n; i++)
		device_stream_free(b->stream[i]);
	for (int i = 0; i < b->n; i++)
		device_event_free(b->event[i]);
	device_event_free(b->armed);
	device_close(b->device, b->n, b->group);
}

static void bed_sync(struct bed *b)
{
	GError *error = NULL;
	for (int i = 0; i < b->n; i++)
		device_event_record(b->stream[i], b->event[i]);
	for (int i = 0; i < b->n; i++)
		cr_assert(device_event_wait(b->event[i], &error));
}

Test(device, opened_by_name_or_refused_with_what_is_missing)
{
	struct device *d[1];
	struct device_group *g = NULL;
	g_autoptr(GError) cuda = NULL, unknown = NULL;
	cr_assert_not(device_open("cuda", 1, ARENA, d, &g, &cuda));
	cr_assert(g_error_matches(cuda, ESMOE_ERROR, ESMOE_ERROR_DEVICE));
	cr_assert(strstr(cuda->message, "CUDA"));
	cr_assert_not(device_open("abacus", 1, ARENA, d, &g, &unknown));
	cr_assert(g_error_matches(unknown, ESMOE_ERROR, ESMOE_ERROR_DEVICE));
	cr_assert(strstr(unknown->message, "abacus") && strstr(unknown->message, "host"));
}

Test(device, arena_is_zeroed_aligned_and_refuses_what_does_not_fit)
{
	struct bed b;
	g_autoptr(GError) error = NULL;
	bed_init(&b, 1);
	size_t alignment = device_info(b.device[0])->alignment;
	char *first = device_alloc(b.device[0], 1000, "first", &error), *second = device_alloc(b.device[0], ARENA / 2, "second", &error);
	cr_assert(first && second && second >= first + 1000);
	cr_assert((uintptr_t)first % alignment == 0 && (uintptr_t)second % alignment == 0);
	for (int i = 0; i < ARENA / 2; i++)
		cr_assert(second[i] == 0);
	cr_assert_geq(device_used_bytes(b.device[0]), 1000 + ARENA / 2);
	cr_assert_null(device_alloc(b.device[0], ARENA / 2, "optimizer state", &error));
	cr_assert(g_error_matches(error, ESMOE_ERROR, ESMOE_ERROR_FIT));
	cr_assert(strstr(error->message, "optimizer state"));
	g_clear_error(&error);
	cr_assert_null(device_alloc(b.device[0], SIZE_MAX - 100, "everything", &error));
	cr_assert(g_error_matches(error, ESMOE_ERROR, ESMOE_ERROR_FIT));
	bed_clear(&b);
}

Test(device, whole_capacity_can_be_used)
{
	struct bed b;
	g_autoptr(GError) error = NULL;
	bed_init(&b, 1);
	char *all = device_alloc(b.device[0], ARENA, "all", &error);
	cr_assert_not_null(all);
	all[0] = all[ARENA - 1] = 1;
	cr_assert_eq(device_used_bytes(b.device[0]), ARENA);
	cr_assert_null(device_alloc(b.device[0], 1, "one more", &error));
	bed_clear(&b);
}

Test(device, copies_go_there_and_back)
{
	struct bed b;
	GError *error = NULL;
	bed_init(&b, 1);
	enum { BYTES = 12345 };
	char *pinned = pinned_alloc(b.device[0], BYTES, &error), *back = pinned_alloc(b.device[0], BYTES, &error);
	char *one = device_alloc(b.device[0], BYTES, "one", &error), *two = device_alloc(b.device[0], BYTES, "two", &error);
	for (int i = 0; i < BYTES; i++) {
		cr_assert_eq(pinned[i], 0);
		pinned[i] = (char)(i * 7);
	}
	device_upload(b.stream[0], one, pinned, BYTES);
	device_copy(b.stream[0], two, one, BYTES);
	device_zero(b.stream[0], one, BYTES);
	device_download(b.stream[0], back, two, BYTES);
	device_copy(b.stream[0], one, two, 0);
	bed_sync(&b);
	cr_assert_arr_eq(back, pinned, BYTES);
	for (int i = 0; i < BYTES; i++)
		cr_assert_eq(one[i], 0);
	pinned_free(b.device[0], pinned);
	pinned_free(b.device[0], back);
	bed_clear(&b);
}

/* Two streams hand a number to and fro over reused events; each step reads what the other wrote. */
Test(device, streams_are_ordered_by_events_that_are_reused)
{
	enum { ROUNDS = 500 };
	struct bed b;
	bed_init(&b, 2);
	g_autofree float *x = g_new0(float, ROUNDS + 1);
	x[0] = 1;
	for (int i = 0; i < ROUNDS; i++) {
		int me = i % 2;
		if (i)
			device_stream_wait(b.stream[me], b.event[1 - me]);
		op_add(b.stream[me], &x[i + 1], &x[i], &x[0], 1);
		device_event_record(b.stream[me], b.event[me]);
	}
	bed_sync(&b);
	cr_assert_eq(x[ROUNDS], ROUNDS + 1);
	bed_clear(&b);
}

Test(device, wait_for_an_event_never_recorded_returns)
{
	struct bed b;
	GError *error = NULL;
	bed_init(&b, 1);
	device_stream_wait(b.stream[0], b.event[0]);
	cr_assert(device_event_wait(b.event[0], &error));
	bed_clear(&b);
}

Test(device, armed_event_holds_a_stream_until_it_is_signalled)
{
	struct bed b;
	GError *error = NULL;
	bed_init(&b, 1);
	float x = 1, one = 1;
	for (int i = 0; i < 100; i++) {
		device_event_arm(b.armed);
		device_stream_wait(b.stream[0], b.armed);
		op_add(b.stream[0], &x, &x, &one, 1);
		device_event_record(b.stream[0], b.event[0]);
		one = i % 2 ? 1 : -1; /* the stream has not read it yet */
		device_event_signal(b.armed);
		cr_assert(device_event_wait(b.event[0], &error));
		cr_assert_leq(device_event_ns(b.armed), device_event_ns(b.event[0]));
		cr_assert_eq(x, i % 2 ? 1 : 0);
	}
	bed_clear(&b);
}

Test(device, times_of_events_follow_the_clock)
{
	struct bed b;
	bed_init(&b, 1);
	nsec_t before = exec_now_ns();
	bed_sync(&b);
	nsec_t first = device_event_ns(b.event[0]);
	bed_sync(&b);
	nsec_t second = device_event_ns(b.event[0]), after = exec_now_ns();
	cr_assert(0 <= before && before <= first && first <= second && second <= after);
	bed_clear(&b);
}

/* ---- collectives ---- */

static void check_all_reduce(int n, size_t length)
{
	struct bed b;
	bed_init(&b, n);
	float *x[MOST], *expected = g_new(float, length);
	for (int g = 0; g < n; g++) {
		x[g] = g_new(float, length);
		for (size_t i = 0; i < length; i++) { /* the order of additions shows in the last bits */
			x[g][i] = (float)g_random_double_range(-1, 1) * (g ? 1 : 1e6f);
			expected[i] = g ? expected[i] + x[g][i] : x[g][i];
		}
	}
	for (int g = 0; g < n; g++)
		group_all_reduce(b.stream[g], b.group, g, x[g], length);
	bed_sync(&b);
	for (int g = 0; g < n; g++) {
		for (size_t i = 0; i < length; i++)
			cr_assert_eq(x[g][i], expected[i]);
		g_free(x[g]);
	}
	g_free(expected);
	bed_clear(&b);
}

Test(device, all_reduce_sums_in_the_order_of_members)
{
	for (int n = 1; n <= MOST; n++) {
		for (size_t length = 0; length < 12; length++)
			check_all_reduce(n, length);
		check_all_reduce(n, 10001);
	}
}

Test(device, reduce_scatter_leaves_each_member_its_share)
{
	for (int n = 1; n <= MOST; n++) {
		struct bed b;
		bed_init(&b, n);
		enum { LENGTH = 10 };
		float x[MOST][LENGTH];
		for (int g = 0; g < n; g++)
			for (int i = 0; i < LENGTH; i++)
				x[g][i] = (float)(i + 100 * g);
		for (int g = 0; g < n; g++)
			group_reduce_scatter(b.stream[g], b.group, g, x[g], LENGTH);
		bed_sync(&b);
		for (int g = 0; g < n; g++)
			for (int i = LENGTH * g / n; i < LENGTH * (g + 1) / n; i++)
				cr_assert_eq(x[g][i], n * i + 100 * n * (n - 1) / 2);
		bed_clear(&b);
	}
}

/* Member g has g + p + 1 rows for member p; in the receiver they lie in the order of the senders, as experts want them. */
Test(device, all_to_all_moves_rows_of_uneven_segments)
{
	enum { WIDTH = 3, ROWS = 40 };
	struct bed b;
	bed_init(&b, MOST);
	for (int round = 0; round < 20; round++) {
		float send[MOST][ROWS * WIDTH], receive[MOST][ROWS * WIDTH] = {{0}};
		for (int g = 0; g < MOST; g++) {
			struct segment s[MOST], r[MOST];
			int from = 0, arrived = 0;
			for (int p = 0; p < MOST; p++) {
				int rows = g + p + 1, to = 0;
				for (int before = 0; before < g; before++)
					to += before + p + 1;
				s[p] = (struct segment){.peer = p, .from = from, .to = to, .rows = rows};
				for (int i = 0; i < rows * WIDTH; i++)
					send[g][from * WIDTH + i] = (float)(1000 * g + 100 * p + i);
				r[p] = (struct segment){.peer = p, .to = arrived, .rows = rows};
				for (int before = 0; before < g; before++)
					r[p].from += p + before + 1;
				arrived += rows;
				from += rows;
			}
			const struct traffic t = {s, r, MOST, MOST, WIDTH};
			group_all_to_all(b.stream[g], b.group, g, receive[g], send[g], &t);
			memset(s, 0xff, sizeof(s)); /* the lists were copied */
			memset(r, 0xff, sizeof(r));
		}
		bed_sync(&b);
		for (int p = 0; p < MOST; p++)
			for (int g = 0, row = 0; g < MOST; row += g + p + 1, g++)
				for (int i = 0; i < (g + p + 1) * WIDTH; i++)
					cr_assert_eq(receive[p][row * WIDTH + i], 1000 * g + 100 * p + i);
	}
	bed_clear(&b);
}

Test(device, all_to_all_with_nothing_to_send)
{
	struct bed b;
	bed_init(&b, 2);
	float x = 5, y = 7;
	struct segment only = {.peer = 0, .rows = 1}, arrives = {.peer = 1, .rows = 1}, empty = {.peer = 1}, nothing = {.peer = 0};
	const struct traffic first = {&empty, &arrives, 1, 1, 1}, second = {&only, &nothing, 1, 1, 1}, none = {.width = 1};
	group_all_to_all(b.stream[0], b.group, 0, &x, NULL, &first);
	group_all_to_all(b.stream[1], b.group, 1, NULL, &y, &second);
	group_all_to_all(b.stream[0], b.group, 0, NULL, NULL, &none);
	group_all_to_all(b.stream[1], b.group, 1, NULL, NULL, &none);
	bed_sync(&b);
	cr_assert_eq(x, 7);
	bed_clear(&b);
}

Test(device, gather_fills_everyones_list)
{
	struct bed b;
	bed_init(&b, 3);
	uint32_t own[3] = {10, 20, 30}, all[3][3] = {{10}, {0, 20}, {0, 0, 30}};
	for (int g = 0; g < 3; g++)
		group_gather(b.stream[g], b.group, g, all[g], sizeof(uint32_t));
	bed_sync(&b);
	for (int g = 0; g < 3; g++)
		cr_assert_arr_eq(all[g], own, sizeof(own));
	bed_clear(&b);
}

/* An event behind the meeting of all is never before the last one arrived. */
Test(device, members_meet)
{
	struct bed b;
	bed_init(&b, 3);
	struct device_event *arrived = device_event_new(b.device[2]);
	for (int g = 0; g < 2; g++)
		group_meet(b.stream[g], b.group, g);
	g_usleep(2000);
	device_event_record(b.stream[2], arrived);
	group_meet(b.stream[2], b.group, 2);
	bed_sync(&b);
	for (int g = 0; g < 3; g++)
		cr_assert_geq(device_event_ns(b.event[g]), device_event_ns(arrived));
	device_event_free(arrived);
	bed_clear(&b);
}

/* ---- failures ---- */

Test(device, failure_of_one_frees_all_who_wait_and_is_returned)
{
	struct bed b;
	bed_init(&b, 3);
	g_autoptr(GError) why = g_error_new(ESMOE_ERROR, ESMOE_ERROR_DEVICE, "the third is on fire"), got = NULL, second = NULL;
	g_autoptr(GError) later = g_error_new(ESMOE_ERROR, ESMOE_ERROR_DEVICE, "another");
	float x[3] = {1, 2, 3}, after = 0;
	device_event_arm(b.armed);
	for (int g = 0; g < 2; g++) /* the third never comes */
		group_all_reduce(b.stream[g], b.group, g, &x[g], 1);
	device_stream_wait(b.stream[2], b.armed);
	for (int g = 0; g < 3; g++) {
		op_add(b.stream[g], &after, &x[g], &x[g], 1);
		device_event_record(b.stream[g], b.event[g]);
	}
	cr_assert(device_check(b.device[0], &got));
	device_fail(b.device[2], why);
	device_fail(b.device[1], later);
	for (int g = 0; g < 3; g++) {
		cr_assert_not(device_event_wait(b.event[g], &got));
		cr_assert_str_eq(got->message, "the third is on fire");
		g_clear_error(&got);
	}
	cr_assert_not(device_event_wait(b.armed, &got));
	cr_assert_not(device_check(b.device[1], &second));
	cr_assert_eq(second->code, ESMOE_ERROR_DEVICE);
	cr_assert_eq(after, 0, "what was queued is skipped");
	bed_clear(&b);
}
