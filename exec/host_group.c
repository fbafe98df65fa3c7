/* Collectives between virtual GPUs, each run by the members' own streams: all post their buffers, meet, work on their share of the elements or rows,
 * and meet again before anyone's buffers may change. A share belongs to one member, so that nobody writes where another reads:
 *
 *     all-reduce      member    0     1     2     3
 *                     x_0     [ sum | sum | sum | sum ]     member i adds x_0 + x_1 + ... in this order over its columns,
 *                     x_1     [  "  |  "  |  "  |  "  ]     and stores the sum into all
 *
 * A group that failed lets everybody out of the meeting. */
#include "host.h"

#include <string.h>

/* False: the group failed. */
static bool meet(struct host_group *g)
{
	pthread_mutex_lock(&g->lock);
	uint64_t turn = g->turn;
	if (++g->waiting == g->count) {
		g->waiting = 0;
		g->turn++;
		pthread_cond_broadcast(&g->met);
	}
	while (g->turn == turn && !g->error)
		pthread_cond_wait(&g->met, &g->lock);
	bool met = !g->error;
	pthread_mutex_unlock(&g->lock);
	return met;
}

struct collective {
	struct host_group *group;
	int member, width;
	struct host_post post;
	size_t n; /* elements or bytes */
};

static bool post_and_meet(const struct collective *c)
{
	c->group->post[c->member] = c->post;
	return meet(c->group);
}

static void run_meet(struct host_stream *s, const void *args)
{
	const struct collective *c = args;
	meet(c->group);
}

static void host_meet(struct device_stream *s, struct device_group *g, int member)
{
	struct collective c = {.group = (struct host_group *)g, .member = member};
	host_push(s, run_meet, &c, sizeof(c));
}

static void receive_rows(const struct collective *c)
{
	const struct host_group *g = c->group;
	size_t width = (size_t)c->width;
	for (int sender = 0; sender < g->count; sender++) {
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
	if (post_and_meet(c)) {
		receive_rows(c);
		meet(c->group);
	}
}

/* Behind the collective, and not skipped with it. */
static void run_free(void *args)
{
	g_free(*(void **)args);
}

static void host_all_to_all(struct device_stream *s, struct device_group *g, int member, elem *receive, const elem *send, const struct segment *sends,
                            int n, int width)
{
	struct segment *copy = g_memdup2(sends, sizeof(*sends) * (size_t)n);
	struct collective c = {.group = (struct host_group *)g, .member = member, .width = width, .post = {receive, send, copy, n}};
	host_push(s, run_all_to_all, &c, sizeof(c));
	worker_push(((struct host_stream *)s)->worker, run_free, &copy, sizeof(void *));
}

#define BLOCK 1024 /* elements that stay in the cache while the members' are added */

/* sum (n) = the members' elements from i, added in their order. */
static void add_up(const struct host_group *g, size_t i, size_t n, float *sum)
{
	memcpy(sum, g->post[0].to + i, n * sizeof(float));
	for (int m = 1; m < g->count; m++) {
		const float *x = g->post[m].to + i;
#pragma omp simd
		for (size_t j = 0; j < n; j++)
			sum[j] += x[j];
	}
}

/* The member's share of the sums goes to the members [from, to): nobody else reads or writes that share. */
static void reduce(const struct collective *c, int from, int to)
{
	struct host_group *g = c->group;
	size_t first = c->n * (size_t)c->member / (size_t)g->count, end = c->n * (size_t)(c->member + 1) / (size_t)g->count;
	float sum[BLOCK];
	if (!post_and_meet(c))
		return;
	for (size_t i = first; i < end; i += BLOCK) {
		size_t n = MIN(BLOCK, end - i);
		add_up(g, i, n, sum);
		for (int m = from; m < to; m++)
			memcpy(g->post[m].to + i, sum, n * sizeof(float));
	}
	meet(g);
}

static void run_all_reduce(struct host_stream *s, const void *args)
{
	const struct collective *c = args;
	reduce(c, 0, c->group->count);
}

static void run_reduce_scatter(struct host_stream *s, const void *args)
{
	const struct collective *c = args;
	reduce(c, c->member, c->member + 1);
}

static void host_all_reduce(struct device_stream *s, struct device_group *g, int member, float *x, size_t n)
{
	struct collective c = {.group = (struct host_group *)g, .member = member, .post = {.to = x}, .n = n};
	if (((struct host_group *)g)->count > 1)
		host_push(s, run_all_reduce, &c, sizeof(c));
}

static void host_reduce_scatter(struct device_stream *s, struct device_group *g, int member, float *x, size_t n)
{
	struct collective c = {.group = (struct host_group *)g, .member = member, .post = {.to = x}, .n = n};
	if (((struct host_group *)g)->count > 1)
		host_push(s, run_reduce_scatter, &c, sizeof(c));
}

static void run_gather_host(struct host_stream *s, const void *args)
{
	const struct collective *c = args;
	struct host_group *g = c->group;
	if (!post_and_meet(c))
		return;
	for (int m = 0; m < g->count; m++) {
		char *place = (char *)g->post[m].to + (size_t)c->member * c->n;
		if (place != (const char *)c->post.from)
			memcpy(place, c->post.from, c->n);
	}
	meet(g);
}

static void host_gather_host(struct device_stream *s, struct device_group *g, int member, void *all, const void *own, size_t bytes)
{
	struct collective c = {.group = (struct host_group *)g, .member = member, .post = {.to = all, .from = own}, .n = bytes};
	host_push(s, run_gather_host, &c, sizeof(c));
}

const struct device_collectives host_collectives_table = {
    .meet = host_meet,
    .all_to_all = host_all_to_all,
    .all_reduce = host_all_reduce,
    .reduce_scatter = host_reduce_scatter,
    .gather_host = host_gather_host,
};
