/* Collectives between GPUs, by NCCL, which is opened when a run has several. Every member's launcher queues its part, in launch order on one stream,
 * so that all members queue the same operations in the same order; sends and receives of an all-to-all come from loads that all know.
 *
 * Launchers of a process queue their parts together and go on together, so that no GPU waits in a kernel for one that is not queued. To load a kernel
 * or to take memory waits for GPUs: a launcher that did so inside of cuBLAS, with its lock held, while a GPU waited for a member that another one
 * could not queue without that lock, waited for ever.
 *
 * When the group fails, a GPU may be waiting in a kernel for one that will never come, perhaps in another process: aborting ends that. It must not
 * meet a call with the same communicator, so calls hold the member's lock. One that does not come back within ABORT_WAIT_S waits for what aborting
 * ends.
 */
#define _GNU_SOURCE
#include "gpu.h"
#include "packing.h"

#include "exec/ranks.h"
#include "model/error.h"

#include <dlfcn.h>
#include <nccl.h>
#include <string.h>

static const char *const nccl_names[] = {"libnccl.so.2", "libnccl.so"};

struct nccl {
	void *library;
	const char *(*get_error)(ncclResult_t);
	ncclResult_t (*init_all)(ncclComm_t *, int, const int *);
	ncclResult_t (*unique_id)(ncclUniqueId *);
	ncclResult_t (*init_rank)(ncclComm_t *, int, ncclUniqueId, int);
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

#define ABORT_WAIT_S 3
#define PAUSE_US 2000
#define EXPLAIN_MS 2000
#define AWAKE_NS 100000 /* a virtual core that slept comes back as late as an exchange of ten million bytes takes */

struct member {
	ncclComm_t comm;        /* NULL once it was aborted */
	pthread_mutex_t lock;   /* over calls with it */
	struct packing packing; /* of the exchange that is queued */
	GArray *moves;          /* struct cuda_rows, of one launch of it */
};

struct cuda_collectives {
	struct cuda_group *group;
	struct nccl nccl;
	struct member *member; /* of this process */
	atomic_bool failed;
	pthread_mutex_t aborting;
	pthread_mutex_t lock; /* over the meeting */
	pthread_cond_t met;
	int waiting;
	atomic_uint_least64_t turn;
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
	    {"ncclGetUniqueId", (void **)&n->unique_id},
	    {"ncclCommInitRank", (void **)&n->init_rank},
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

static bool refused(const struct cuda_collectives *c, ncclResult_t status, GError **error)
{
	g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_DEVICE, "device cuda: NCCL between %d GPUs: %s", c->group->members.total,
	            c->nccl.get_error(status));
	return false;
}

static bool init_alone(struct cuda_collectives *c, GError **error)
{
	const int n = c->group->count;
	g_autofree int *ordinals = g_new(int, n);
	g_autofree ncclComm_t *comm = g_new0(ncclComm_t, n);
	for (int i = 0; i < n; i++)
		ordinals[i] = c->group->devices[i]->ordinal;
	ncclResult_t status = c->nccl.init_all(comm, n, ordinals);
	for (int i = 0; i < n; i++)
		c->member[i].comm = comm[i];
	return status == ncclSuccess || refused(c, status, error);
}

/* All members of this process together. It waits for those of the others, so that it has a thread of its own, which is left behind when they die: it
 * has its own of what it needs. */
struct joining {
	struct nccl nccl;
	ncclUniqueId id;
	int count, first, total;
	int *ordinal;     /* (count) */
	ncclComm_t *comm; /* (count) */
	ncclResult_t status;
	atomic_bool done;
};

static void *join_others(void *joining)
{
	struct joining *j = joining;
	ncclResult_t status = j->nccl.group_start();
	for (int i = 0; i < j->count && status == ncclSuccess; i++) {
		cudaSetDevice(j->ordinal[i]);
		status = j->nccl.init_rank(&j->comm[i], j->total, j->id, j->first + i);
	}
	ncclResult_t end = j->nccl.group_end();
	j->status = status == ncclSuccess ? end : status;
	atomic_store(&j->done, true);
	return NULL;
}

static struct joining *joining_new(const struct cuda_collectives *c, const ncclUniqueId *id)
{
	const struct cuda_group *g = c->group;
	struct joining *j = g_new0(struct joining, 1);
	j->nccl = c->nccl;
	j->id = *id;
	j->count = g->count;
	j->first = g->members.first;
	j->total = g->members.total;
	j->ordinal = g_new(int, g->count);
	j->comm = g_new0(ncclComm_t, g->count);
	for (int i = 0; i < g->count; i++)
		j->ordinal[i] = g->devices[i]->ordinal;
	return j;
}

static void joining_free(struct joining *j)
{
	g_free(j->ordinal);
	g_free(j->comm);
	g_free(j);
}

/* False: the others died first, and the thread goes on waiting for them. */
static bool await_others(struct joining *j, struct ranks *ranks, GError **error)
{
	pthread_t thread;
	bool started = pthread_create(&thread, NULL, join_others, j) == 0;
	g_assert(started);
	while (!atomic_load(&j->done)) {
		if (!ranks_check(ranks, error)) {
			pthread_detach(thread);
			return false;
		}
		g_usleep(PAUSE_US);
	}
	pthread_join(thread, NULL);
	return true;
}

static bool init_across(struct cuda_collectives *c, GError **error)
{
	struct ranks *ranks = c->group->members.ranks;
	ncclUniqueId id;
	ncclResult_t status = ranks_own(ranks) == 0 ? c->nccl.unique_id(&id) : ncclSuccess;
	if (status != ncclSuccess)
		return refused(c, status, error);
	if (!ranks_share(ranks, RANKS_STEPS, &id, sizeof(id), error))
		return false;
	struct joining *j = joining_new(c, &id);
	if (!await_others(j, ranks, error)) {
		c->nccl.library = NULL; /* the thread runs in it */
		return false;
	}
	for (int i = 0; i < c->group->count; i++)
		c->member[i].comm = j->comm[i];
	status = j->status;
	joining_free(j);
	if (status == ncclSuccess)
		return true;
	(void)refused(c, status, error);
	(void)ranks_explain(ranks, EXPLAIN_MS, error);
	return false;
}

static void member_init(struct member *m, int members)
{
	pthread_mutex_init(&m->lock, NULL);
	packing_init(&m->packing, members);
	m->moves = g_array_new(FALSE, FALSE, sizeof(struct cuda_rows));
}

static void member_clear(struct member *m)
{
	pthread_mutex_destroy(&m->lock);
	packing_clear(&m->packing);
	g_array_unref(m->moves);
}

struct cuda_collectives *cuda_collectives_new(struct cuda_group *g, GError **error)
{
	struct cuda_collectives *c = g_new0(struct cuda_collectives, 1);
	c->group = g;
	c->member = g_new0(struct member, g->count);
	pthread_mutex_init(&c->aborting, NULL);
	pthread_mutex_init(&c->lock, NULL);
	pthread_cond_init(&c->met, NULL);
	for (int i = 0; i < g->count; i++)
		member_init(&c->member[i], g->members.total);
	bool ok = open_nccl(&c->nccl, error);
	if (ok && (g->members.ranks ? init_across : init_alone)(c, error))
		return c;
	cuda_collectives_free(c);
	return NULL;
}

/* Those that are left. */
static void abort_all(struct cuda_collectives *c)
{
	for (int i = 0; i < c->group->count; i++) {
		struct member *m = &c->member[i];
		struct timespec until;
		clock_gettime(CLOCK_REALTIME, &until);
		until.tv_sec += ABORT_WAIT_S;
		bool held = pthread_mutex_timedlock(&m->lock, &until) == 0;
		if (m->comm)
			c->nccl.abort(m->comm);
		m->comm = NULL;
		if (held)
			pthread_mutex_unlock(&m->lock);
	}
}

void cuda_collectives_free(struct cuda_collectives *c)
{
	if (!c)
		return;
	pthread_mutex_lock(&c->aborting);
	if (atomic_load(&c->failed))
		abort_all(c);
	pthread_mutex_unlock(&c->aborting);
	pthread_mutex_destroy(&c->aborting);
	pthread_mutex_destroy(&c->lock);
	pthread_cond_destroy(&c->met);
	for (int i = 0; i < c->group->count; i++) {
		if (c->member[i].comm)
			c->nccl.destroy(c->member[i].comm);
		member_clear(&c->member[i]);
	}
	if (c->nccl.library)
		dlclose(c->nccl.library);
	g_free(c->member);
	g_free(c);
}

void cuda_collectives_fail(struct cuda_collectives *c)
{
	if (!c)
		return;
	pthread_mutex_lock(&c->lock);
	atomic_store(&c->failed, true);
	pthread_cond_broadcast(&c->met);
	pthread_mutex_unlock(&c->lock);
	if (pthread_mutex_trylock(&c->aborting) != 0)
		return; /* somebody does it already */
	abort_all(c);
	pthread_mutex_unlock(&c->aborting);
}

/* ---- one operation ---- */

static struct cuda_collectives *collectives_of(struct device_group *g)
{
	return ((struct cuda_group *)g)->collectives;
}

static bool have_met(struct cuda_collectives *c, uint64_t turn)
{
	return atomic_load(&c->turn) != turn || atomic_load(&c->failed);
}

/* Until all members of this process have got here, or the group has failed. They mostly come within microseconds. */
static void meet(struct cuda_collectives *c)
{
	pthread_mutex_lock(&c->lock);
	const uint64_t turn = atomic_load(&c->turn);
	if (++c->waiting == c->group->count) {
		c->waiting = 0;
		atomic_store(&c->turn, turn + 1);
		pthread_cond_broadcast(&c->met);
	}
	pthread_mutex_unlock(&c->lock);
	for (const nsec_t until_ns = exec_now_ns() + AWAKE_NS; !have_met(c, turn) && exec_now_ns() < until_ns;)
		continue;
	if (have_met(c, turn))
		return;
	pthread_mutex_lock(&c->lock);
	while (!have_met(c, turn))
		pthread_cond_wait(&c->met, &c->lock);
	pthread_mutex_unlock(&c->lock);
}

/* The member's communicator until `queued`; NULL: the group has failed, and there is nothing to end. */
static ncclComm_t take(struct cuda_stream *s, struct cuda_collectives *c, int member)
{
	struct member *m = &c->member[member - c->group->members.first];
	if (!cuda_ready(s))
		return NULL;
	meet(c);
	pthread_mutex_lock(&m->lock);
	if (m->comm && !atomic_load(&c->failed))
		return m->comm;
	pthread_mutex_unlock(&m->lock);
	return NULL;
}

/* Errors are told without the lock, which whoever is told may need. */
static void queued(struct cuda_stream *s, struct cuda_collectives *c, int member, ncclResult_t status, const char *what)
{
	pthread_mutex_unlock(&c->member[member - c->group->members.first].lock);
	if (status != ncclSuccess)
		cuda_fail(s->device, ESMOE_ERROR_DEVICE, "GPU %d: NCCL, %s: %s", s->device->ordinal, what, c->nccl.get_error(status));
	meet(c);
}

/* The first error of several calls. */
static ncclResult_t both(ncclResult_t a, ncclResult_t b)
{
	return a != ncclSuccess ? a : b;
}

/* ---- collectives ---- */

/* Members' starts are put together from their events. */
static void no_meeting(struct device_stream *s, struct device_group *g, int member) {}

static bf16 *row_at(const elem *rows, int nth, int width)
{
	return (bf16 *)rows + (size_t)nth * (size_t)width;
}

static void add_moves(GArray *moves, const GArray *runs, elem *to, const elem *from, int width)
{
	g_assert(!runs->len || (to && from));
	for (guint i = 0; i < runs->len; i++) {
		const struct row_run *x = &g_array_index(runs, struct row_run, i);
		const struct cuda_rows move = {row_at(from, x->from, width), row_at(to, x->to, width), x->rows};
		g_array_append_val(moves, move);
	}
}

static void move_all(struct device_stream *stream, GArray *moves, int width)
{
	if (moves->len)
		CUDA_LAUNCH(stream, "rows of an all-to-all", cuda_move_rows, (const struct cuda_rows *)(void *)moves->data, (int)moves->len, width);
	g_array_set_size(moves, 0);
}

/* Segments that lie apart go through staging, so that there is one message a peer: many small ones, and those to oneself, take NCCL far longer than
 * their bytes. Rows of the GPU's own go with what is packed or else with what is unpacked. */
static void all_to_all(struct device_stream *stream, struct device_group *g, int member, elem *receive, const elem *send, const struct traffic *t)
{
	struct cuda_stream *s = cuda_stream_of(stream);
	struct cuda_collectives *c = collectives_of(g);
	struct member *m = &c->member[member - c->group->members.first];
	const struct packing *p = &m->packing;
	const struct nccl *n = &c->nccl;
	packing_list(&m->packing, t, member);
	add_moves(m->moves, p->runs[PARCEL_OUT], t->packed_out, send, t->width);
	if (p->runs[PARCEL_OUT]->len)
		add_moves(m->moves, p->own, receive, send, t->width);
	move_all(stream, m->moves, t->width);
	ncclComm_t comm = take(s, c, member);
	if (!comm)
		return;
	ncclResult_t status = n->group_start();
	for (int i = 0; i < p->members; i++) {
		const struct parcel *out = &p->parcel[PARCEL_OUT][i], *in = &p->parcel[PARCEL_IN][i];
		const size_t sent = (size_t)out->rows * (size_t)t->width, arriving = (size_t)in->rows * (size_t)t->width;
		const bf16 *from = row_at(out->packed ? t->packed_out : send, out->at, t->width);
		bf16 *to = row_at(in->packed ? t->packed_in : receive, in->at, t->width);
		if (sent)
			status = both(status, n->send(from, sent, ncclBfloat16, i, comm, s->stream));
		if (arriving)
			status = both(status, n->receive(to, arriving, ncclBfloat16, i, comm, s->stream));
	}
	queued(s, c, member, both(status, n->group_end()), "all-to-all");
	if (!p->runs[PARCEL_OUT]->len)
		add_moves(m->moves, p->own, receive, send, t->width);
	add_moves(m->moves, p->runs[PARCEL_IN], receive, t->packed_in, t->width);
	move_all(stream, m->moves, t->width);
}

static void all_reduce(struct device_stream *stream, struct device_group *g, int member, float *x, size_t n)
{
	struct cuda_stream *s = cuda_stream_of(stream);
	struct cuda_collectives *c = collectives_of(g);
	ncclComm_t comm = c && n ? take(s, c, member) : NULL;
	if (comm)
		queued(s, c, member, c->nccl.all_reduce(x, x, n, ncclFloat32, ncclSum, comm, s->stream), "all-reduce");
}

/* Shares differ by an element where G does not divide n, so each is a reduction of its own. */
static void reduce_scatter(struct device_stream *stream, struct device_group *g, int member, float *x, size_t n)
{
	struct cuda_stream *s = cuda_stream_of(stream);
	struct cuda_collectives *c = collectives_of(g);
	ncclComm_t comm = c ? take(s, c, member) : NULL;
	if (!comm)
		return;
	const size_t gpus = (size_t)c->group->members.total;
	ncclResult_t status = c->nccl.group_start();
	for (size_t i = 0; i < gpus; i++) {
		size_t from = n * i / gpus, to = n * (i + 1) / gpus;
		status = both(status, c->nccl.reduce(x + from, x + from, to - from, ncclFloat32, ncclSum, (int)i, comm, s->stream));
	}
	queued(s, c, member, both(status, c->nccl.group_end()), "reduce-scatter");
}

static void gather(struct device_stream *stream, struct device_group *g, int member, void *all, size_t bytes)
{
	struct cuda_stream *s = cuda_stream_of(stream);
	struct cuda_collectives *c = collectives_of(g);
	ncclComm_t comm = c ? take(s, c, member) : NULL;
	const char *own = (const char *)all + (size_t)member * bytes;
	if (comm)
		queued(s, c, member, c->nccl.all_gather(own, all, bytes, ncclUint8, comm, s->stream), "all-gather");
}

const struct device_collectives cuda_collectives_table = {
    .meet = no_meeting,
    .all_to_all = all_to_all,
    .all_reduce = all_reduce,
    .reduce_scatter = reduce_scatter,
    .gather = gather,
};
