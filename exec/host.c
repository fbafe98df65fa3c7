/* The host device's memory, streams and events. The arena is a mapping of its whole capacity, whose pages come to life when they are touched; blocks
 * are cut off its front and never return. A stream is a worker. An event counts its occurrences: `queued` when one is announced, `happened` when the
 * stream gets there, so that whoever waits takes the number announced last and waits for that one:
 *
 *     launcher   record(e) -> 7      wait(e) for 7
 *     stream A   ...... work ...... happened = 7
 *     stream B                       .......... goes on
 *
 * An occurrence is announced only after the last one has happened, or on the same stream. */
#define _GNU_SOURCE /* CPU sets */
#include "host.h"
#include "adam.h"
#include "model/error.h"

#include <cblas.h>
#include <errno.h>
#include <sched.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define PAGE_BYTES 4096 /* also what direct access to files asks of memory */

struct device_event {
	struct device *device;
	atomic_uint_least64_t queued, happened;
	atomic_int_least64_t ns;
	pthread_mutex_t lock;
	pthread_cond_t changed;
	int waiting;
	GList link;
};

/* ---- life ---- */

static const struct device_info info = {"host", sizeof(float), HOST_ALIGNMENT};

const struct device_info *device_info(const struct device *d)
{
	return &info;
}

static struct device *host_new(struct device_group *g, uint64_t arena_bytes, GError **error)
{
	void *arena = mmap(NULL, MAX(arena_bytes, 1), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (arena == MAP_FAILED) {
		g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_FIT, "device host: an arena of %.3f GiB: %s", (double)arena_bytes / GIB,
		            g_strerror(errno));
		return NULL;
	}
	struct device *d = g_new0(struct device, 1);
	d->group = g;
	d->arena = arena;
	d->arena_bytes = arena_bytes;
	return d;
}

static void host_free(struct device *d)
{
	munmap(d->arena, MAX(d->arena_bytes, 1));
	g_free(d);
}

/* The unit that the CPU optimizer works on, too. */
static const struct host_loops *choose_loops(void)
{
	static const struct host_loops *const known[] = {
#ifdef __x86_64__
	    &host_avx512, &host_avx2,
#endif
	    &host_plain};
	size_t i = 0;
	while (i + 1 < G_N_ELEMENTS(known) && strcmp(known[i]->name, adam_simd()) != 0)
		i++;
	return known[i];
}

/* Two GPUs that share two cores must not start threads of BLAS on top; and a sum that is cut among threads would depend on their number. */
bool host_open(int count, uint64_t arena_bytes, struct device **devices, struct device_group **group, GError **error)
{
	struct device_group *g = g_new0(struct device_group, 1);
	openblas_set_num_threads(1);
	g->loops = choose_loops();
	g->devices = g_new0(struct device *, (size_t)count);
	g->post = g_new0(struct host_post, (size_t)count);
	pthread_mutex_init(&g->lock, NULL);
	pthread_cond_init(&g->met, NULL);
	g_queue_init(&g->events);
	for (; g->count < count; g->count++) {
		struct device *d = host_new(g, arena_bytes, error);
		if (!d) {
			device_close(devices, g->count, g);
			return false;
		}
		devices[g->count] = g->devices[g->count] = d;
	}
	*group = g;
	return true;
}

void device_close(struct device **devices, int count, struct device_group *group)
{
	for (int i = 0; i < count; i++)
		host_free(devices[i]);
	if (!group)
		return;
	g_assert(!group->events.length);
	pthread_cond_destroy(&group->met);
	pthread_mutex_destroy(&group->lock);
	g_clear_error(&group->error);
	g_free(group->post);
	g_free(group->devices);
	g_free(group);
}

void device_fail(struct device *d, const GError *error)
{
	struct device_group *g = d->group;
	pthread_mutex_lock(&g->lock);
	if (!g->error)
		g->error = g_error_copy(error);
	atomic_store(&g->failed, true);
	pthread_cond_broadcast(&g->met);
	for (GList *l = g->events.head; l; l = l->next) {
		struct device_event *e = l->data;
		pthread_mutex_lock(&e->lock);
		pthread_cond_broadcast(&e->changed);
		pthread_mutex_unlock(&e->lock);
	}
	pthread_mutex_unlock(&g->lock);
}

void host_fail(struct device_stream *s, int code, const char *format, ...)
{
	va_list args;
	va_start(args, format);
	GError *error = g_error_new_valist(ESMOE_ERROR, code, format, args);
	va_end(args);
	device_fail(s->device, error);
	g_error_free(error);
}

bool device_check(struct device *d, GError **error)
{
	struct device_group *g = d->group;
	if (!atomic_load(&g->failed))
		return true;
	pthread_mutex_lock(&g->lock);
	g_propagate_error(error, g_error_copy(g->error));
	pthread_mutex_unlock(&g->lock);
	return false;
}

/* ---- memory ---- */

void *device_alloc(struct device *d, size_t bytes, const char *what, GError **error)
{
	uint64_t room = d->arena_bytes - d->used_bytes, rest = bytes % HOST_ALIGNMENT;
	if (bytes > room) {
		g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_FIT, "hbm: %s needs %.6f GiB, but %.6f GiB of the arena's %.6f GiB are left", what,
		            (double)bytes / GIB, (double)room / GIB, (double)d->arena_bytes / GIB);
		return NULL;
	}
	void *p = d->arena + d->used_bytes;
	d->used_bytes += MIN(room, bytes + (rest || !bytes ? HOST_ALIGNMENT - rest : 0));
	return p;
}

uint64_t device_used_bytes(const struct device *d)
{
	return d->used_bytes;
}

void *pinned_alloc(struct device *d, size_t bytes, GError **error)
{
	void *p = NULL;
	int failed = posix_memalign(&p, PAGE_BYTES, MAX(bytes, 1));
	if (failed) {
		g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_FIT, "dram: %.3f GiB of pinned memory: %s", (double)bytes / GIB, g_strerror(failed));
		return NULL;
	}
	return memset(p, 0, bytes);
}

void pinned_free(struct device *d, void *p)
{
	free(p);
}

/* ---- streams ---- */

struct call {
	struct device_stream *stream;
	host_op op;
	char args[HOST_ARGS] __attribute__((aligned(16)));
};
G_STATIC_ASSERT(sizeof(struct call) <= WORKER_ARGS);

static void run_call(void *args)
{
	const struct call *c = args;
	if (!atomic_load_explicit(&c->stream->device->group->failed, memory_order_relaxed))
		c->op(c->stream, c->args);
}

void host_push(struct device_stream *s, host_op op, const void *args, size_t bytes)
{
	struct call c;
	g_assert(bytes <= HOST_ARGS);
	c.stream = s;
	c.op = op;
	memcpy(c.args, args, bytes);
	worker_push(s->worker, run_call, &c, offsetof(struct call, args) + bytes);
}

float *host_scratch(struct device_stream *s, size_t n)
{
	if (n > s->scratch_floats) {
		free(s->scratch);
		s->scratch_floats = n + n / 2;
		s->scratch = aligned_alloc(HOST_ALIGNMENT, (s->scratch_floats * sizeof(float) / HOST_ALIGNMENT + 1) * HOST_ALIGNMENT);
		g_assert(s->scratch);
	}
	return s->scratch;
}

struct device_stream *device_stream_new(struct device *d, const char *name, GError **error)
{
	struct device_stream *s = g_new0(struct device_stream, 1);
	s->device = d;
	s->worker = worker_new(name);
	return s;
}

struct core {
	int nth;
};

/* The optimizer's threads take the first cores (adam.c). */
static void keep_core(void *args)
{
	const struct core *c = args;
	cpu_set_t allowed, one;
	if (sched_getaffinity(0, sizeof(allowed), &allowed) != 0)
		return;
	int skip = CPU_COUNT(&allowed) - 1 - c->nth % CPU_COUNT(&allowed), cpu = 0;
	while (!CPU_ISSET(cpu, &allowed) || skip-- > 0)
		cpu++;
	CPU_ZERO(&one);
	CPU_SET(cpu, &one);
	/* a hint: where the system refuses, the thread goes where it may */
	(void)pthread_setaffinity_np(pthread_self(), sizeof(one), &one);
}

void device_stream_keep_core(struct device_stream *s, int nth)
{
	worker_push(s->worker, keep_core, &(struct core){nth}, sizeof(struct core));
}

void device_stream_free(struct device_stream *s)
{
	if (!s)
		return;
	worker_free(s->worker);
	free(s->scratch);
	g_free(s);
}

/* ---- events ---- */

struct device_event *device_event_new(struct device *d)
{
	struct device_event *e = g_new0(struct device_event, 1);
	e->device = d;
	pthread_mutex_init(&e->lock, NULL);
	pthread_cond_init(&e->changed, NULL);
	e->link.data = e;
	pthread_mutex_lock(&d->group->lock);
	g_queue_push_tail_link(&d->group->events, &e->link);
	pthread_mutex_unlock(&d->group->lock);
	return e;
}

void device_event_free(struct device_event *e)
{
	if (!e)
		return;
	pthread_mutex_lock(&e->device->group->lock);
	g_queue_unlink(&e->device->group->events, &e->link);
	pthread_mutex_unlock(&e->device->group->lock);
	pthread_cond_destroy(&e->changed);
	pthread_mutex_destroy(&e->lock);
	g_free(e);
}

static void happen(struct device_event *e, uint64_t occurrence)
{
	nsec_t now = exec_now_ns();
	pthread_mutex_lock(&e->lock);
	atomic_store_explicit(&e->ns, now, memory_order_relaxed);
	atomic_store_explicit(&e->happened, occurrence, memory_order_release);
	if (e->waiting)
		pthread_cond_broadcast(&e->changed);
	pthread_mutex_unlock(&e->lock);
}

static void await(struct device_event *e, uint64_t occurrence)
{
	if (atomic_load_explicit(&e->happened, memory_order_acquire) >= occurrence)
		return;
	pthread_mutex_lock(&e->lock);
	e->waiting++;
	while (e->happened < occurrence && !atomic_load(&e->device->group->failed))
		pthread_cond_wait(&e->changed, &e->lock);
	e->waiting--;
	pthread_mutex_unlock(&e->lock);
}

struct occurrence {
	struct device_event *event;
	uint64_t number;
};

static void run_record(void *args)
{
	const struct occurrence *o = args;
	happen(o->event, o->number);
}

static void run_wait(void *args)
{
	const struct occurrence *o = args;
	await(o->event, o->number);
}

void device_event_record(struct device_stream *s, struct device_event *e)
{
	struct occurrence o = {e, atomic_fetch_add(&e->queued, 1) + 1};
	worker_push(s->worker, run_record, &o, sizeof(o));
}

void device_stream_wait(struct device_stream *s, struct device_event *e)
{
	struct occurrence o = {e, atomic_load(&e->queued)};
	if (atomic_load_explicit(&e->happened, memory_order_acquire) < o.number)
		worker_push(s->worker, run_wait, &o, sizeof(o));
}

void device_event_arm(struct device_event *e)
{
	atomic_fetch_add(&e->queued, 1);
}

void device_event_signal(struct device_event *e)
{
	happen(e, atomic_load(&e->queued));
}

bool device_event_wait(struct device_event *e, GError **error)
{
	await(e, atomic_load(&e->queued));
	return device_check(e->device, error);
}

nsec_t device_event_ns(const struct device_event *e)
{
	return atomic_load_explicit(&e->ns, memory_order_relaxed);
}

/* ---- copies ---- */

struct copy {
	void *to;
	const void *from;
	size_t bytes;
};

static void run_copy(struct device_stream *s, const void *args)
{
	const struct copy *c = args;
	memcpy(c->to, c->from, c->bytes);
}

static void run_zero(struct device_stream *s, const void *args)
{
	const struct copy *c = args;
	memset(c->to, 0, c->bytes);
}

void device_copy(struct device_stream *s, void *to, const void *from, size_t bytes)
{
	if (bytes)
		host_push(s, run_copy, &(struct copy){to, from, bytes}, sizeof(struct copy));
}

void device_upload(struct device_stream *s, void *device, const void *pinned, size_t bytes)
{
	device_copy(s, device, pinned, bytes);
}

void device_download(struct device_stream *s, void *pinned, const void *device, size_t bytes)
{
	device_copy(s, pinned, device, bytes);
}

void device_zero(struct device_stream *s, void *p, size_t bytes)
{
	if (bytes)
		host_push(s, run_zero, &(struct copy){p, NULL, bytes}, sizeof(struct copy));
}
