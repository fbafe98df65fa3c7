/* Collectives between virtual GPUs, each run by the members' own streams: all post their buffers, meet, work on their share of the elements or rows,
 * and meet again before anyone's buffers may change. A share belongs to one member, so that nobody writes where another reads:
 *
 *     all-reduce      member    0     1     2     3
 *                     x_0     [ sum | sum | sum | sum ]     member i adds x_0 + x_1 + ... in this order over its columns,
 *                     x_1     [  "  |  "  |  "  |  "  ]     and stores the sum into all
 *
 * Where members are in other processes, the last one here that posts exchanges what all here have posted for what they have there, while the others
 * wait: then the remote members' buffers are here, too, and the rest is as above.
 *
 * A group that failed lets everybody out of the meeting. */
#include "host.h"

#include "model/error.h"
#include "ranks.h"

#include <string.h>

struct host_bring {
	/* What the members of this process have, for the others; and what came, into their places. */
	void (*pack)(const struct host_group *g, GString *out);
	bool (*unpack)(struct host_group *g, int first, const char *data, size_t bytes, int *members);
};

static bool is_here(const struct host_group *g, int member)
{
	return member >= g->members.first && member < g->members.first + g->count;
}

/* The bytes of other processes are kept until the next exchange. */
static bool exchange(struct host_group *g, const struct host_bring *bring, GError **error)
{
	struct ranks *ranks = g->members.ranks;
	g_autoptr(GString) own = g_string_new(NULL);
	int first = 0;
	if (bring)
		bring->pack(g, own);
	g_clear_pointer(&g->brought, g_ptr_array_unref);
	g->brought = ranks_gather(ranks, RANKS_COLLECTIVES, own->str, own->len, error);
	for (int rank = 0; g->brought && bring && rank < ranks_size(ranks); rank++) {
		gsize bytes;
		const char *data = g_bytes_get_data(g_ptr_array_index(g->brought, rank), &bytes);
		int members = g->count;
		if (rank != ranks_own(ranks) && !bring->unpack(g, first, data, bytes, &members)) {
			g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_DEVICE, "%s is in another collective", ranks_name(ranks, rank));
			return false;
		}
		first += members;
	}
	return g->brought != NULL;
}

/* False: the group failed. The last to come brings what other processes have. */
static bool meet(struct host_stream *s, struct host_group *g, const struct host_bring *bring, bool over)
{
	g_autoptr(GError) error = NULL;
	pthread_mutex_lock(&g->lock);
	const uint64_t turn = g->turn;
	const bool last = ++g->waiting == g->count;
	if (last && !over && g->members.ranks && !g->error) {
		g->exchanging = true;
		pthread_mutex_unlock(&g->lock);
		if (!exchange(g, bring, &error))
			host_fail(s, error->code, "%s", error->message);
		pthread_mutex_lock(&g->lock);
		g->exchanging = false;
	}
	if (last) {
		g->waiting = 0;
		g->turn++;
		pthread_cond_broadcast(&g->met);
	}
	while ((g->turn == turn && !g->error) || g->exchanging) /* what was posted is still read */
		pthread_cond_wait(&g->met, &g->lock);
	bool met = !g->error;
	pthread_mutex_unlock(&g->lock);
	return met;
}

struct collective {
	struct host_group *group;
	int member;
	struct host_post post;
};

static bool begin(struct host_stream *s, const struct collective *c, const struct host_bring *bring)
{
	c->group->post[c->member] = c->post;
	return meet(s, c->group, bring, false);
}

/* Nobody changes a buffer that others may still read. */
static void over(struct host_stream *s, const struct collective *c)
{
	(void)meet(s, c->group, NULL, true);
}

static void run_meet(struct host_stream *s, const void *args)
{
	const struct collective *c = args;
	(void)meet(s, c->group, NULL, false);
}

static void host_meet(struct device_stream *s, struct device_group *g, int member)
{
	struct collective c = {.group = (struct host_group *)g, .member = member};
	host_push(s, run_meet, &c, sizeof(c));
}

/* Rows for one member of another process, as they travel; the rows follow. */
struct parcel {
	int32_t peer, to, rows, width;
};

static void pack_rows(const struct host_group *g, GString *out)
{
	for (int m = g->members.first; m < g->members.first + g->count; m++) {
		const struct host_post *p = &g->post[m];
		for (int i = 0; i < p->n_sends; i++) {
			const struct segment *x = &p->sends[i];
			const struct parcel parcel = {x->peer, x->to, x->rows, p->width};
			if (is_here(g, x->peer) || !x->rows)
				continue;
			g_string_append_len(out, (const char *)&parcel, sizeof parcel);
			g_string_append_len(out, (const char *)(p->from + (size_t)x->from * (size_t)p->width),
			                    (gssize)((size_t)x->rows * (size_t)p->width * sizeof(float)));
		}
	}
}

static bool unpack_rows(struct host_group *g, int first, const char *data, size_t bytes, int *members)
{
	for (size_t at = 0; at < bytes;) {
		struct parcel parcel;
		if (bytes - at < sizeof parcel)
			return false;
		memcpy(&parcel, data + at, sizeof parcel);
		at += sizeof parcel;
		size_t n = (size_t)parcel.rows * (size_t)parcel.width * sizeof(float);
		if (n > bytes - at || (is_here(g, parcel.peer) && parcel.width != g->post[parcel.peer].width))
			return false;
		if (is_here(g, parcel.peer))
			memcpy(g->post[parcel.peer].to + (size_t)parcel.to * (size_t)parcel.width, data + at, n);
		at += n;
	}
	return true;
}

static const struct host_bring bring_rows = {pack_rows, unpack_rows};

static void receive_rows(const struct collective *c)
{
	const struct host_group *g = c->group;
	size_t width = (size_t)c->post.width;
	for (int sender = g->members.first; sender < g->members.first + g->count; sender++) {
		const struct host_post *p = &g->post[sender];
		for (int i = 0; i < p->n_sends; i++) {
			const struct segment *x = &p->sends[i];
			if (x->peer == c->member && x->rows)
				memcpy(c->post.to + (size_t)x->to * width, p->from + (size_t)x->from * width,
				       (size_t)x->rows * width * sizeof(float));
		}
	}
}

static void run_all_to_all(struct host_stream *s, const void *args)
{
	const struct collective *c = args;
	if (begin(s, c, &bring_rows)) {
		receive_rows(c);
		over(s, c);
	}
}

/* Behind the collective, and not skipped with it. */
static void run_free(void *args)
{
	g_free(*(void **)args);
}

static void host_all_to_all(struct device_stream *s, struct device_group *g, int member, elem *receive, const elem *send, const struct traffic *t)
{
	struct segment *copy = g_memdup2(t->sends, sizeof(*t->sends) * (size_t)t->n_sends);
	struct collective c = {.group = (struct host_group *)g, .member = member, .post = {receive, send, copy, t->n_sends, t->width, 0}};
	host_push(s, run_all_to_all, &c, sizeof(c));
	worker_push(((struct host_stream *)s)->worker, run_free, &copy, sizeof(void *));
}

#define BLOCK 1024 /* elements that stay in the cache while the members' are added */

static void pack_sums(const struct host_group *g, GString *out)
{
	for (int m = g->members.first; m < g->members.first + g->count; m++)
		g_string_append_len(out, (const char *)g->post[m].to, (gssize)(g->post[m].n * sizeof(float)));
}

/* The remote members' elements stay where they came. */
static bool unpack_sums(struct host_group *g, int first, const char *data, size_t bytes, int *members)
{
	size_t n = g->post[g->members.first].n, each = n * sizeof(float);
	if (bytes % each || first + (int)(bytes / each) > g->members.total)
		return false;
	*members = (int)(bytes / each);
	for (int m = 0; m < *members; m++)
		g->post[first + m] = (struct host_post){.to = (float *)(void *)(data + (size_t)m * each), .n = n};
	return true;
}

static const struct host_bring bring_sums = {pack_sums, unpack_sums};

/* sum (n) = the members' elements from i, added in their order. */
static void add_up(const struct host_group *g, size_t i, size_t n, float *sum)
{
	memcpy(sum, g->post[0].to + i, n * sizeof(float));
	for (int m = 1; m < g->members.total; m++) {
		const float *x = g->post[m].to + i;
#pragma omp simd
		for (size_t j = 0; j < n; j++)
			sum[j] += x[j];
	}
}

/* The sums of share `share` of `shares` go to the members [from, to): nobody else here reads or writes that share. */
static void reduce(struct host_stream *s, const struct collective *c, int share, int shares, int from, int to)
{
	struct host_group *g = c->group;
	size_t all = c->post.n, first = all * (size_t)share / (size_t)shares, end = all * (size_t)(share + 1) / (size_t)shares;
	float sum[BLOCK];
	if (!begin(s, c, &bring_sums))
		return;
	for (size_t i = first; i < end; i += BLOCK) {
		size_t n = MIN(BLOCK, end - i);
		add_up(g, i, n, sum);
		for (int m = from; m < to; m++)
			memcpy(g->post[m].to + i, sum, n * sizeof(float));
	}
	over(s, c);
}

static void run_all_reduce(struct host_stream *s, const void *args)
{
	const struct collective *c = args;
	const int first = c->group->members.first, count = c->group->count;
	reduce(s, c, c->member - first, count, first, first + count);
}

static void run_reduce_scatter(struct host_stream *s, const void *args)
{
	const struct collective *c = args;
	reduce(s, c, c->member, c->group->members.total, c->member, c->member + 1);
}

static void host_all_reduce(struct device_stream *s, struct device_group *g, int member, float *x, size_t n)
{
	struct collective c = {.group = (struct host_group *)g, .member = member, .post = {.to = x, .n = n}};
	if (n && ((struct host_group *)g)->members.total > 1)
		host_push(s, run_all_reduce, &c, sizeof(c));
}

static void host_reduce_scatter(struct device_stream *s, struct device_group *g, int member, float *x, size_t n)
{
	struct collective c = {.group = (struct host_group *)g, .member = member, .post = {.to = x, .n = n}};
	if (n && ((struct host_group *)g)->members.total > 1)
		host_push(s, run_reduce_scatter, &c, sizeof(c));
}

static void pack_gathered(const struct host_group *g, GString *out)
{
	for (int m = g->members.first; m < g->members.first + g->count; m++)
		g_string_append_len(out, (const char *)g->post[m].from, (gssize)g->post[m].n);
}

static bool unpack_gathered(struct host_group *g, int first, const char *data, size_t bytes, int *members)
{
	size_t each = g->post[g->members.first].n;
	if (!each || bytes % each || first + (int)(bytes / each) > g->members.total)
		return false;
	*members = (int)(bytes / each);
	for (int m = g->members.first; m < g->members.first + g->count; m++)
		memcpy((char *)g->post[m].to + (size_t)first * each, data, bytes);
	return true;
}

static const struct host_bring bring_gathered = {pack_gathered, unpack_gathered};

static void run_gather(struct host_stream *s, const void *args)
{
	const struct collective *c = args;
	struct host_group *g = c->group;
	if (!begin(s, c, &bring_gathered))
		return;
	for (int m = g->members.first; m < g->members.first + g->count; m++) {
		char *place = (char *)g->post[m].to + (size_t)c->member * c->post.n;
		if (place != (const char *)c->post.from)
			memcpy(place, c->post.from, c->post.n);
	}
	over(s, c);
}

static void host_gather(struct device_stream *s, struct device_group *g, int member, void *all, size_t bytes)
{
	const void *own = (const char *)all + (size_t)member * bytes;
	struct collective c = {.group = (struct host_group *)g, .member = member, .post = {.to = all, .from = own, .n = bytes}};
	host_push(s, run_gather, &c, sizeof(c));
}

const struct device_collectives host_collectives_table = {
    .meet = host_meet,
    .all_to_all = host_all_to_all,
    .all_reduce = host_all_reduce,
    .reduce_scatter = host_reduce_scatter,
    .gather = host_gather,
};
