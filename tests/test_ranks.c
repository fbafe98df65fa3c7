/* Processes of a run, a thread for each: how ranks meet, pass bytes on, and fail; and groups of devices over them. */
#include "crew.h"
#include "exec/device.h"
#include "model/error.h"
#include "model/schedule.h"

#include <gio/gio.h>
#include <string.h>

enum { ROUNDS = 50 };

/* Round i: rank r brings r * i bytes of the value r + i. */
static bool gather_rounds(struct hand *h, enum ranks_channel channel)
{
	for (int i = 0; i < ROUNDS; i++) {
		const int own = ranks_own(h->ranks), n = ranks_size(h->ranks);
		g_autofree char *bytes = g_malloc((gsize)(own * i) + 1);
		memset(bytes, own + i, (size_t)(own * i));
		g_autoptr(GPtrArray) all = ranks_gather(h->ranks, channel, bytes, (size_t)(own * i), &h->error);
		if (!all || all->len != (guint)n)
			return false;
		for (int r = 0; r < n; r++) {
			gsize size;
			const char *data = g_bytes_get_data(g_ptr_array_index(all, r), &size);
			if (size != (gsize)(r * i))
				return false;
			for (gsize k = 0; k < size; k++)
				if (data[k] != (char)(r + i))
					return false;
		}
	}
	return true;
}

static gpointer gather_too(gpointer hand)
{
	return GINT_TO_POINTER(gather_rounds(hand, RANKS_COLLECTIVES));
}

static void gather_both(struct hand *h)
{
	GThread *other = g_thread_new("other", gather_too, h);
	h->ok = gather_rounds(h, RANKS_STEPS);
	h->ok &= GPOINTER_TO_INT(g_thread_join(other)) && ranks_leave(h->ranks, &h->error);
}

Test(ranks, everyone_gets_what_everyone_brings_on_channels_of_their_own)
{
	for (int n = 2; n <= MOST; n++) {
		struct crew c;
		crew_init(&c, n);
		crew_run(&c, gather_both);
		all_ok(&c);
		cr_expect_not(g_file_test(c.file, G_FILE_TEST_EXISTS), "the file of addresses is left");
		for (int i = 0; i < n; i++) {
			cr_expect_eq(ranks_local(c.hand[i].ranks), i, "all are on this host");
			g_autofree char *name = g_strdup_printf("rank %d (%s)", i, g_get_host_name());
			cr_expect_str_eq(ranks_name(c.hand[0].ranks, i), name);
		}
		crew_clear(&c);
	}
}

enum { LARGE = 3 << 20 };

static void share_and_hand_in(struct hand *h)
{
	const int own = ranks_own(h->ranks);
	g_autofree int *x = g_new(int, LARGE);
	for (int i = 0; i < LARGE; i++)
		x[i] = own ? -1 : i;
	h->ok = ranks_share(h->ranks, RANKS_STEPS, x, LARGE * sizeof(int), &h->error);
	for (int i = 0; i < LARGE; i++)
		h->ok &= x[i] == i;
	x[0] = 1000 + own;
	for (int from = 0; from < ranks_size(h->ranks); from++) {
		h->ok &= ranks_hand_in(h->ranks, RANKS_STEPS, from, x, LARGE * sizeof(int), &h->error);
		h->ok &= x[0] == 1000 + (own ? own : from) && x[LARGE - 1] == LARGE - 1;
	}
	h->ok &= ranks_leave(h->ranks, &h->error);
}

Test(ranks, rank_0_shares_and_is_handed_what_is_large)
{
	struct crew c;
	crew_init(&c, 3);
	crew_run(&c, share_and_hand_in);
	all_ok(&c);
	crew_clear(&c);
}

/* ---- failing ---- */

enum { LATER_US = 50000 }; /* when the others wait */

static void note_message(const GError *error, void *user)
{
	*(char **)user = g_strdup(error->message);
}

/* Rank 1 fails after a round; the others wait for it in the next. */
static void rank_1_fails(struct hand *h)
{
	char *heard = NULL;
	ranks_watch(h->ranks, note_message, &heard);
	g_autoptr(GPtrArray) first = ranks_gather(h->ranks, RANKS_STEPS, "x", 1, &h->error);
	if (first && ranks_own(h->ranks) == 1) {
		g_usleep(LATER_US);
		g_autoptr(GError) why = g_error_new(ESMOE_ERROR, ESMOE_ERROR_INPUT, "book.txt: gone");
		ranks_watch(h->ranks, NULL, NULL);
		ranks_fail(h->ranks, why);
		h->ok = !ranks_check(h->ranks, NULL);
		return;
	}
	g_autoptr(GPtrArray) second = ranks_gather(h->ranks, RANKS_STEPS, "x", 1, &h->error);
	g_autofree char *expected = g_strdup_printf("rank 1 (%s): book.txt: gone", g_get_host_name());
	h->ok = first && !second && h->error->code == ESMOE_ERROR_DEVICE && g_str_equal(h->error->message, expected);
	for (int i = 0; i < 100 && !heard; i++)
		g_usleep(10000);
	ranks_watch(h->ranks, NULL, NULL);
	h->ok &= heard && g_str_equal(heard, expected);
	ranks_watch(h->ranks, note_message, &heard); /* who asks late is told */
	h->ok &= heard && g_str_equal(heard, expected);
}

Test(ranks, the_error_of_one_is_the_error_of_all)
{
	struct crew c;
	crew_init(&c, 4);
	crew_run(&c, rank_1_fails);
	all_ok(&c);
	crew_clear(&c);
}

static int dying;

static void one_ends(struct hand *h)
{
	g_autoptr(GPtrArray) first = ranks_gather(h->ranks, RANKS_COLLECTIVES, NULL, 0, &h->error);
	g_autofree char *expected = g_strdup_printf("rank %d (%s) died", dying, g_get_host_name());
	if (ranks_own(h->ranks) == dying) {
		g_usleep(LATER_US);
		ranks_free(h->ranks); /* as a process that is killed: without a word */
		h->ranks = NULL;
		return;
	}
	g_autoptr(GPtrArray) second = ranks_gather(h->ranks, RANKS_COLLECTIVES, NULL, 0, &h->error);
	h->ok = first && !second && g_str_has_prefix(h->error->message, expected);
	GError *sign = g_error_new(ESMOE_ERROR, ESMOE_ERROR_DEVICE, "NCCL: remote error");
	h->ok &= ranks_explain(h->ranks, 10000, &sign) && g_str_has_prefix(sign->message, expected);
	g_clear_error(&sign);
}

Test(ranks, one_that_ends_without_goodbye_is_named)
{
	for (dying = 0; dying < 3; dying++) {
		struct crew c;
		crew_init(&c, 3);
		crew_run(&c, one_ends);
		for (int i = 0; i < 3; i++)
			cr_expect(i == dying || c.hand[i].ok, "rank %d, when %d died: %s", i, dying,
			          c.hand[i].error ? c.hand[i].error->message : "no words");
		crew_clear(&c);
	}
}

static void nothing_to_explain(struct hand *h)
{
	GError *own = g_error_new(ESMOE_ERROR, ESMOE_ERROR_DEVICE, "a GPU fell off");
	h->ok = !ranks_explain(h->ranks, 50, &own) && g_str_equal(own->message, "a GPU fell off") && ranks_leave(h->ranks, &h->error);
	g_clear_error(&own);
}

Test(ranks, an_error_without_anothers_end_stays)
{
	struct crew c;
	crew_init(&c, 2);
	crew_run(&c, nothing_to_explain);
	all_ok(&c);
	crew_clear(&c);
}

/* ---- meeting ---- */

static void expect_refusal(struct crew *c, int code, const char *word, const char *other)
{
	crew_run(c, NULL);
	for (int i = 0; i < c->n; i++) {
		const GError *e = c->hand[i].error;
		cr_assert(e && !c->hand[i].ranks, "rank %d was not refused", i);
		cr_expect_eq(e->code, code, "%s", e->message);
		cr_expect(strstr(e->message, word) && strstr(e->message, other), "rank %d: no '%s' and '%s' in: %s", i, word, other, e->message);
	}
	crew_clear(c);
}

Test(ranks, other_terms_and_versions_are_refused_by_name)
{
	struct crew c;
	crew_init(&c, 2);
	c.hand[1].terms = "a = 1\nb = 3";
	expect_refusal(&c, ESMOE_ERROR_INPUT, "'b = 3'", "'b = 2'");
	crew_init(&c, 2);
	c.hand[1].terms = "a = 1";
	expect_refusal(&c, ESMOE_ERROR_INPUT, "nothing", "'b = 2'");
	crew_init(&c, 2);
	c.hand[1].version = "2";
	expect_refusal(&c, ESMOE_ERROR_INPUT, "rank 1 (", "runs esmoe 2");
	crew_init(&c, 2);
	c.hand[1].l.size = 3;
	expect_refusal(&c, ESMOE_ERROR_INPUT, "one of 3 ranks", "expected 2");
	crew_init(&c, 3);
	c.hand[2].l.rank = 1;
	c.timeout_s = 5;
	crew_run(&c, NULL);
	cr_assert(c.hand[0].error && strstr(c.hand[0].error->message, "rank 1 (") && strstr(c.hand[0].error->message, "came twice"));
	crew_clear(&c);
}

Test(ranks, those_of_another_job_do_not_count)
{
	struct crew c;
	crew_init(&c, 2);
	c.timeout_s = 1;
	c.hand[1].l.job = (char *)"another job";
	crew_run(&c, NULL);
	cr_assert(c.hand[0].error && strstr(c.hand[0].error->message, "rank 1 of 2 has not come"));
	cr_assert(c.hand[1].error && strstr(c.hand[1].error->message, "rank 0 was not found"));
	cr_expect_eq(c.hand[0].error->code, ESMOE_ERROR_DEVICE);
	crew_clear(&c);
}

/* Somebody else calls at rank 0's port, and says something else, or nothing. */
static gpointer call_wrongly(gpointer file)
{
	g_autofree char *text = NULL;
	for (int i = 0; i < 500 && !g_file_get_contents(file, &text, NULL, NULL); i++)
		g_usleep(10000);
	cr_assert(text);
	const int port = atoi(strrchr(text, ' ') + 1);
	for (int i = 0; i < 2; i++) {
		g_autoptr(GSocketClient) client = g_socket_client_new();
		g_autoptr(GSocketConnection) call = g_socket_client_connect_to_host(client, "127.0.0.1", (guint16)port, NULL, NULL);
		cr_assert(call);
		if (i)
			(void)!g_output_stream_write(g_io_stream_get_output_stream(G_IO_STREAM(call)), "GET / HTTP/1.1\r\n\r\n", 18, NULL, NULL);
	}
	return NULL;
}

static void say_goodbye(struct hand *h)
{
	h->ok = ranks_leave(h->ranks, &h->error);
}

Test(ranks, strangers_at_the_port_do_no_harm)
{
	struct crew c;
	crew_init(&c, 2);
	c.work = say_goodbye;
	c.hand[0].thread = g_thread_new("rank", join_and_work, &c.hand[0]);
	GThread *stranger = g_thread_new("stranger", call_wrongly, c.file);
	g_thread_join(stranger);
	c.hand[1].thread = g_thread_new("rank", join_and_work, &c.hand[1]);
	for (int i = 0; i < 2; i++)
		g_thread_join(c.hand[i].thread);
	all_ok(&c);
	crew_clear(&c);
}

/* ---- a group of devices over several processes ---- */

enum { TOTAL = 5, WIDTH = 3, LENGTH = 2500, ROWS = 60 };
static const int first_of[] = {0, 2, 4, TOTAL}; /* two, two, one */

struct member {
	struct device_stream *stream;
	struct device_event *done;
	float x[LENGTH], send[ROWS * WIDTH], receive[ROWS * WIDTH];
	uint32_t all[TOTAL];
};

/* Member g has g + p + 1 rows for member p, which lie there in the order of the senders. */
static void exchange_rows(struct device_group *group, struct member *m, int g)
{
	struct segment sends[TOTAL], receives[TOTAL];
	int from = 0, arrived = 0;
	for (int p = 0; p < TOTAL; p++) {
		int to = 0, rows = g + p + 1;
		for (int before = 0; before < g; before++)
			to += before + p + 1;
		sends[p] = (struct segment){.peer = p, .from = from, .to = to, .rows = rows};
		receives[p] = (struct segment){.peer = p, .to = arrived, .rows = rows};
		for (int i = 0; i < rows * WIDTH; i++)
			m->send[from * WIDTH + i] = (float)(10000 * g + 1000 * p + i);
		from += rows;
		arrived += rows;
	}
	const struct traffic t = {sends, receives, TOTAL, TOTAL, WIDTH};
	group_all_to_all(m->stream, group, g, m->receive, m->send, &t);
}

static bool rows_are_right(const struct member *m, int p)
{
	bool ok = true;
	for (int g = 0, row = 0; g < TOTAL; row += g + p + 1, g++)
		for (int i = 0; i < (g + p + 1) * WIDTH; i++)
			ok &= m->receive[row * WIDTH + i] == (float)(10000 * g + 1000 * p + i);
	return ok;
}

/* Sums of small whole numbers are exact. */
static void fill(struct member *m, int g)
{
	for (int i = 0; i < LENGTH; i++)
		m->x[i] = (float)(i % 100 + 100 * g);
}

static float sum_at(int i)
{
	return (float)(TOTAL * (i % 100) + 100 * TOTAL * (TOTAL - 1) / 2);
}

static bool sums_are_right(const struct member *m, int from, int to)
{
	bool ok = true;
	for (int i = from; i < to; i++)
		ok &= m->x[i] == sum_at(i);
	return ok;
}

static bool sync_all(struct member *m, int n, GError **error)
{
	bool ok = true;
	for (int i = 0; i < n; i++)
		device_event_record(m[i].stream, m[i].done);
	for (int i = 0; i < n; i++)
		ok &= device_event_wait(m[i].done, ok ? error : NULL);
	return ok;
}

static bool all_collectives(struct device_group *group, struct member *m, int first, int n, GError **error)
{
	for (int i = 0; i < n; i++) {
		fill(&m[i], first + i);
		m[i].all[first + i] = 7u * (uint32_t)(first + i);
		exchange_rows(group, &m[i], first + i);
		group_all_reduce(m[i].stream, group, first + i, m[i].x, LENGTH);
		group_gather(m[i].stream, group, first + i, m[i].all, sizeof(*m[i].all));
		group_meet(m[i].stream, group, first + i);
	}
	bool ok = sync_all(m, n, error);
	for (int i = 0; ok && i < n; i++) {
		ok = rows_are_right(&m[i], first + i) && sums_are_right(&m[i], 0, LENGTH);
		for (int g = 0; g < TOTAL; g++)
			ok &= m[i].all[g] == 7u * (uint32_t)g;
	}
	for (int i = 0; ok && i < n; i++) {
		fill(&m[i], first + i);
		group_reduce_scatter(m[i].stream, group, first + i, m[i].x, LENGTH);
	}
	ok = ok && sync_all(m, n, error);
	for (int i = 0; ok && i < n; i++)
		ok = sums_are_right(&m[i], LENGTH * (first + i) / TOTAL, LENGTH * (first + i + 1) / TOTAL);
	return ok;
}

static void collect(struct hand *h)
{
	const int own = ranks_own(h->ranks), first = first_of[own], n = first_of[own + 1] - first;
	const struct device_members members = {first, TOTAL, h->ranks};
	struct device *device[2];
	struct device_group *group;
	struct member *m = g_new0(struct member, n);
	h->ok = device_open_among("host", n, 1 << 16, &members, device, &group, &h->error);
	for (int i = 0; i < n; i++) {
		m[i].stream = device_stream_new(device[i], "collective", &h->error);
		m[i].done = device_event_new(device[i]);
	}
	for (int round = 0; round < 10 && h->ok; round++)
		h->ok = all_collectives(group, m, first, n, &h->error);
	for (int i = 0; i < n; i++)
		device_stream_free(m[i].stream);
	for (int i = 0; i < n; i++)
		device_event_free(m[i].done);
	device_close(device, n, group);
	g_free(m);
	h->ok = h->ok && ranks_leave(h->ranks, &h->error);
}

Test(ranks, collectives_of_the_host_device_span_processes)
{
	struct crew c;
	crew_init(&c, 3);
	crew_run(&c, collect);
	all_ok(&c);
	crew_clear(&c);
}

/* ---- what several processes rely on ---- */

struct spy {
	struct backend base;
	const struct machine *m;
	GArray *stages;
	int crossings, small_groups;
};

static bool spy_launch(struct backend *b, const struct stage *stage, GError **error)
{
	struct spy *s = (struct spy *)b;
	g_array_append_vals(s->stages, stage, 1);
	for (int i = 0; i < stage->n_preds; i++) {
		const struct stage *pred = &g_array_index(s->stages, struct stage, stage->preds[i]);
		s->crossings += pred->rank / s->m->gpus_per_node != stage->rank / s->m->gpus_per_node;
	}
	s->small_groups += stage->group && stage->group_size < (uint32_t)s->m->gpus;
	return true;
}

static bool spy_wait(struct backend *b, stage_id id, GError **error)
{
	return true;
}

static bool spy_loads(struct backend *b, const struct gate *gate, uint32_t *tokens, GError **error)
{
	const struct spy *s = (struct spy *)b;
	for (int g = 0; g < s->m->gpus; g++) {
		uint32_t left = gate->tokens_per_gpu * (uint32_t)gate->top_k;
		for (int e = 0; e < gate->experts; e++) {
			uint32_t n = e + 1 == gate->experts ? left : left * (uint32_t)((e * 7 + g * 3 + gate->layer + gate->step) % 5) / 8;
			tokens[g * gate->experts + e] = n;
			left -= n;
		}
	}
	return true;
}

static const struct backend_impl spy_impl = {.name = "spy", .launch = spy_launch, .wait = spy_wait, .loads = spy_loads};

Test(ranks, no_stage_follows_another_nodes_but_through_a_collective_of_all)
{
	static const char *const policies[] = {"es-moe", "static", "fairseq", "megablocks"};
	static const char *const knobs[] = {"policy.expert_home=hbm", "policy.expert_home=dram", "policy.expert_home=ssd", "policy.pinned_share=0.25",
	                                    "policy.optimizer=cpu-step"};
	for (size_t i = 0; i < G_N_ELEMENTS(policies) * G_N_ELEMENTS(knobs); i++) {
		const char *const set[] = {"machine.gpus_per_node=2", "pcie.gpus_per_root=2", "policy.all_to_all=linear",
		                           knobs[i / G_N_ELEMENTS(policies)], NULL};
		g_autoptr(GError) error = NULL;
		g_autoptr(scenario) sc = scenario_new(
		    &(struct scenario_options){
		        .model = "tiny-moe", .machine = "host", .policy = policies[i % G_N_ELEMENTS(policies)], .gpus = 6, .set = set},
		    &error);
		cr_assert(sc, "%s", error->message);
		g_autoptr(schedule) schedule = schedule_new(sc, NULL, &error);
		cr_assert(schedule, "%s", error->message);
		g_autoptr(GArray) stages = g_array_new(FALSE, FALSE, sizeof(struct stage));
		struct spy s = {.base.impl = &spy_impl, .m = sc->machine, .stages = stages};
		for (int step = 0; step < 3; step++)
			cr_assert(schedule_step(schedule, &s.base, &error), "%s", error ? error->message : "");
		cr_expect_eq(s.crossings, 0, "%s with %s", policies[i % G_N_ELEMENTS(policies)], set[3]);
		cr_expect_eq(s.small_groups, 0, "%s with %s", policies[i % G_N_ELEMENTS(policies)], set[3]);
		cr_expect_gt(stages->len, 100);
	}
}
