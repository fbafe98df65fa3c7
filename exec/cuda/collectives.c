/* Collectives between the GPUs of one process, by NCCL, which is opened when several GPUs are. Every member's launcher queues its part; sends and
 * receives of an all-to-all need both ends, so launchers show each other their segments before they queue:
 *
 *     launcher 0   show segments --\                  /-- send to 1, receive from 1
 *     launcher 1   show segments ---+-- all shown ---+--- send to 0, receive from 0
 *
 * A group that failed lets everybody out of the meeting. */
#define _GNU_SOURCE
#include "gpu.h"

#include "model/error.h"

#include <dlfcn.h>
#include <nccl.h>
#include <string.h>

static const char *const nccl_names[] = {"libnccl.so.2", "libnccl.so"};

struct nccl {
	void *library;
	const char *(*get_error)(ncclResult_t);
	ncclResult_t (*init_all)(ncclComm_t *, int, const int *);
	ncclResult_t (*destroy)(ncclComm_t);
	ncclResult_t (*abort)(ncclComm_t);
	ncclResult_t (*group_start)(void);
	ncclResult_t (*group_end)(void);
	ncclResult_t (*send)(const void *, size_t, ncclDataType_t, int, ncclComm_t, cudaStream_t);
	ncclResult_t (*receive)(void *, size_t, ncclDataType_t, int, ncclComm_t, cudaStream_t);
	ncclResult_t (*all_reduce)(const void *, void *, size_t, ncclDataType_t, ncclRedOp_t, ncclComm_t, cudaStream_t);
	ncclResult_t (*reduce)(const void *, void *, size_t, ncclDataType_t, ncclRedOp_t, int, ncclComm_t, cudaStream_t);
	ncclResult_t (*all_gather)(const void *, void *, size_t, ncclDataType_t, ncclComm_t, cudaStream_t);
};

#define GATHERED_BYTES ((size_t)1 << 16) /* taken in advance: most gates count less */

/* What a member shows the others; and where it gathers, which other GPUs may write. */
struct shown {
	const struct segment *sends;
	int n;
	char *gathered;
	size_t gathered_bytes;
};

struct cuda_collectives {
	struct cuda_group *group;
	struct nccl nccl;
	ncclComm_t *comm;     /* (G) */
	struct shown *member; /* (G) */
	pthread_mutex_t lock;
	pthread_cond_t met;
	int waiting;
	uint64_t turn;
	bool failed;
};

/* ---- life ---- */

static bool open_nccl(struct nccl *n, GError **error)
{
	const struct {
		const char *name;
		void **at;
	} symbols[] = {
	    {"ncclGetErrorString", (void **)&n->get_error},
	    {"ncclCommInitAll", (void **)&n->init_all},
	    {"ncclCommDestroy", (void **)&n->destroy},
	    {"ncclCommAbort", (void **)&n->abort},
	    {"ncclGroupStart", (void **)&n->group_start},
	    {"ncclGroupEnd", (void **)&n->group_end},
	    {"ncclSend", (void **)&n->send},
	    {"ncclRecv", (void **)&n->receive},
	    {"ncclAllReduce", (void **)&n->all_reduce},
	    {"ncclReduce", (void **)&n->reduce},
	    {"ncclAllGather", (void **)&n->all_gather},
	};
	for (size_t i = 0; !n->library && i < G_N_ELEMENTS(nccl_names); i++)
		n->library = dlopen(nccl_names[i], RTLD_NOW | RTLD_LOCAL);
	if (!n->library) {
		g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_DEVICE,
		            "device cuda: several GPUs need NCCL: %s; expected libnccl.so.2 where the system or LD_LIBRARY_PATH finds it", dlerror());
		return false;
	}
	for (size_t i = 0; i < G_N_ELEMENTS(symbols); i++)
		if (!(*symbols[i].at = dlsym(n->library, symbols[i].name))) {
			g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_DEVICE, "device cuda: this NCCL has no %s; expected NCCL 2.7 or newer",
			            symbols[i].name);
			return false;
		}
	return true;
}

static bool gather_room(struct cuda_collectives *c, int member, size_t bytes, GError **error)
{
	struct shown *m = &c->member[member];
	if (bytes <= m->gathered_bytes)
		return true;
	m->gathered = cuda_alloc(&c->group->devices[member]->base, bytes, "gathered counts", error);
	m->gathered_bytes = m->gathered ? bytes : 0;
	return m->gathered != NULL;
}

struct cuda_collectives *cuda_collectives_new(struct cuda_group *g, GError **error)
{
	struct cuda_collectives *c = g_new0(struct cuda_collectives, 1);
	g_autofree int *ordinals = g_new(int, g->count);
	c->group = g;
	c->comm = g_new0(ncclComm_t, g->count);
	c->member = g_new0(struct shown, g->count);
	pthread_mutex_init(&c->lock, NULL);
	pthread_cond_init(&c->met, NULL);
	bool ok = open_nccl(&c->nccl, error);
	for (int i = 0; ok && i < g->count; i++) {
		ordinals[i] = g->devices[i]->ordinal;
		ok = gather_room(c, i, GATHERED_BYTES, error);
	}
	if (!ok) {
		cuda_collectives_free(c);
		return NULL;
	}
	ncclResult_t status = c->nccl.init_all(c->comm, g->count, ordinals);
	if (status == ncclSuccess)
		return c;
	g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_DEVICE, "device cuda: NCCL between %d GPUs: %s", g->count, c->nccl.get_error(status));
	cuda_collectives_free(c);
	return NULL;
}

void cuda_collectives_free(struct cuda_collectives *c)
{
	if (!c)
		return;
	for (int i = 0; i < c->group->count; i++)
		if (c->comm[i])
			(c->failed ? c->nccl.abort : c->nccl.destroy)(c->comm[i]);
	if (c->nccl.library)
		dlclose(c->nccl.library);
	pthread_cond_destroy(&c->met);
	pthread_mutex_destroy(&c->lock);
	g_free(c->member);
	g_free(c->comm);
	g_free(c);
}

void cuda_collectives_fail(struct cuda_collectives *c)
{
	if (!c)
		return;
	pthread_mutex_lock(&c->lock);
	c->failed = true;
	pthread_cond_broadcast(&c->met);
	pthread_mutex_unlock(&c->lock);
}

/* ---- meeting of the launchers ---- */

static bool meet(struct cuda_collectives *c)
{
	pthread_mutex_lock(&c->lock);
	uint64_t turn = c->turn;
	if (++c->waiting == c->group->count) {
		c->waiting = 0;
		c->turn++;
		pthread_cond_broadcast(&c->met);
	}
	while (c->turn == turn && !c->failed)
		pthread_cond_wait(&c->met, &c->lock);
	bool met = !c->failed;
	pthread_mutex_unlock(&c->lock);
	return met;
}

static struct cuda_collectives *collectives_of(struct device_group *g)
{
	return ((struct cuda_group *)g)->collectives;
}

static void nccl_ok(struct cuda_stream *s, struct cuda_collectives *c, ncclResult_t status, const char *what)
{
	if (status != ncclSuccess)
		cuda_fail(s->device, ESMOE_ERROR_DEVICE, "GPU %d: NCCL, %s: %s", s->device->ordinal, what, c->nccl.get_error(status));
}

/* ---- collectives ---- */

/* Members' starts are put together from their events. */
static void no_meeting(struct device_stream *s, struct device_group *g, int member) {}

static void send_and_receive(struct cuda_stream *s, struct cuda_collectives *c, int member, bf16 *receive, const bf16 *send, size_t width)
{
	for (int i = 0; i < c->member[member].n; i++) {
		const struct segment *x = &c->member[member].sends[i];
		nccl_ok(s, c,
		        c->nccl.send(send + (size_t)x->from * width, (size_t)x->rows * width, ncclBfloat16, x->peer, c->comm[member], s->stream),
		        "all-to-all");
	}
	for (int peer = 0; peer < c->group->count; peer++)
		for (int i = 0; i < c->member[peer].n; i++) {
			const struct segment *x = &c->member[peer].sends[i];
			if (x->peer == member)
				nccl_ok(s, c,
				        c->nccl.receive(receive + (size_t)x->to * width, (size_t)x->rows * width, ncclBfloat16, peer, c->comm[member],
				                        s->stream),
				        "all-to-all");
		}
}

static void all_to_all(struct device_stream *stream, struct device_group *g, int member, elem *receive, const elem *send, const struct segment *sends,
                       int n, int width)
{
	struct cuda_stream *s = cuda_stream_of(stream);
	struct cuda_collectives *c = collectives_of(g);
	if (!cuda_ready(s))
		return;
	c->member[member].sends = sends;
	c->member[member].n = n;
	if (!meet(c))
		return;
	nccl_ok(s, c, c->nccl.group_start(), "all-to-all");
	send_and_receive(s, c, member, receive, send, (size_t)width);
	nccl_ok(s, c, c->nccl.group_end(), "all-to-all");
	meet(c); /* the segments are their owners' again */
}

static void all_reduce(struct device_stream *stream, struct device_group *g, int member, float *x, size_t n)
{
	struct cuda_stream *s = cuda_stream_of(stream);
	struct cuda_collectives *c = collectives_of(g);
	if (c && n && cuda_ready(s))
		nccl_ok(s, c, c->nccl.all_reduce(x, x, n, ncclFloat32, ncclSum, c->comm[member], s->stream), "all-reduce");
}

/* Shares differ by an element where G does not divide n, so each is a reduction of its own. */
static void reduce_scatter(struct device_stream *stream, struct device_group *g, int member, float *x, size_t n)
{
	struct cuda_stream *s = cuda_stream_of(stream);
	struct cuda_collectives *c = collectives_of(g);
	if (!c || !cuda_ready(s))
		return;
	size_t gpus = (size_t)c->group->count;
	nccl_ok(s, c, c->nccl.group_start(), "reduce-scatter");
	for (size_t i = 0; i < gpus; i++) {
		size_t from = n * i / gpus, to = n * (i + 1) / gpus;
		nccl_ok(s, c, c->nccl.reduce(x + from, x + from, to - from, ncclFloat32, ncclSum, (int)i, c->comm[member], s->stream),
		        "reduce-scatter");
	}
	nccl_ok(s, c, c->nccl.group_end(), "reduce-scatter");
}

static void gather_host(struct device_stream *stream, struct device_group *g, int member, void *all, const void *own, size_t bytes)
{
	struct cuda_stream *s = cuda_stream_of(stream);
	struct cuda_collectives *c = collectives_of(g);
	size_t gpus = (size_t)((struct cuda_group *)g)->count;
	g_autoptr(GError) error = NULL;
	if (!c) {
		device_download(stream, all, own, bytes);
		return;
	}
	char *to = cuda_ready(s) && gather_room(c, member, bytes * gpus, &error) ? c->member[member].gathered : NULL;
	if (error)
		cuda_group_fail(s->device->group, error);
	if (!to)
		return;
	nccl_ok(s, c, c->nccl.all_gather(own, to, bytes, ncclUint8, c->comm[member], s->stream), "all-gather");
	device_download(stream, all, to, bytes * gpus);
}

const struct device_collectives cuda_collectives_table = {
    .meet = no_meeting,
    .all_to_all = all_to_all,
    .all_reduce = all_reduce,
    .reduce_scatter = reduce_scatter,
    .gather_host = gather_host,
};
