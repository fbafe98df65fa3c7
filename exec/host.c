/* The host device's memory, streams and events. The arena is a mapping of its whole capacity, whose pages come to life when they are touched; blocks
 * are cut off its front and never return. A stream is a worker. An event counts its occurrences: `queued` when one is announced, `happened` when the
 * stream gets there, so that whoever waits takes the number announced last and waits for that one:
 *
 *     launcher   record(e) -> 7      wait(e) for 7
 *     stream A   ...... work ...... happened = 7
 *     stream B                       .......... goes on
 *
 * An occurrence is announced only after the last one has happened, or on the same stream. */
#include "host.h"
#include "adam.h"
#include "model/error.h"
#include "ranks.h"

#include <cblas.h>
#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define PAGE_BYTES 4096 /* also what direct access to files asks of memory */

struct host_event {
	struct device_event base;
	struct host_device *device;
	atomic_uint_least64_t queued, happened;
	atomic_int_least64_t ns;
	pthread_mutex_t lock;
	pthread_cond_t changed;
	int waiting;
	GList link;
};

/* ---- life ---- */

static const struct device_info info = {.name = "host",
                                        .element_bytes = sizeof(float),
                                        .alignment = HOST_ALIGNMENT,
                                        .weight_elements = FOOTPRINT_WEIGHT_FP32,
                                        .head_tokens = FOOTPRINT_HEAD_FP32,
                                        .packs_exchanges = FOOTPRINT_PACKS_FP32};

static struct host_device *host_of(const struct device *d)
{
	return (struct host_device *)d;
}

static struct host_stream *stream_of(struct device_stream *s)
{
	return (struct host_stream *)s;
}

static struct host_event *event_of(const struct device_event *e)
{
	return (struct host_event *)e;
}

static struct host_device *host_new(struct host_group *g, int first, uint64_t arena_bytes, GError **error)
{
	void *arena = mmap(NULL, MAX(arena_bytes, 1), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (arena == MAP_FAILED) {
		g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_FIT, "device host: an arena of %.3f GiB: %s", (double)arena_bytes / GIB,
		            g_strerror(errno));
		return NULL;
	}
	struct host_device *d = g_new0(struct host_device, 1);
	d->base.impl = &host_impl;
	d->group = g;
	d->index = g->count + first;
	d->arena = arena;
	d->arena_bytes = arena_bytes;
	return d;
}

static void host_free(struct host_device *d)
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

static void host_close(struct device **devices, int count, struct device_group *group)
{
	struct host_group *g = (struct host_group *)group;
	for (int i = 0; i < count; i++)
		host_free(host_of(devices[i]));
	g_assert(!g->events.length);
	pthread_cond_destroy(&g->met);
	pthread_mutex_destroy(&g->lock);
	g_clear_error(&g->error);
	g_clear_pointer(&g->brought, g_ptr_array_unref);
	g_free(g->post);
	g_free(g->cores);
	g_free(g->devices);
	g_free(g);
}

/* Two GPUs that share two cores must not start threads of BLAS on top; and a sum that is cut among threads would depend on their number. */
static bool host_open(int count, uint64_t arena_bytes, const struct device_members *members, struct device **devices, struct device_group **group,
                      GError **error)
{
	struct host_group *g = g_new0(struct host_group, 1);
	openblas_set_num_threads(1);
	g->loops = choose_loops();
	g->cores = host_cores_new();
	g->base.impl = &host_impl;
	g->devices = g_new0(struct host_device *, (size_t)count);
	g->members = *members;
	g->post = g_new0(struct host_post, (size_t)members->total);
	pthread_mutex_init(&g->lock, NULL);
	pthread_cond_init(&g->met, NULL);
	g_queue_init(&g->events);
	for (; g->count < count; g->count++) {
		struct host_device *d = host_new(g, members->ranks ? ranks_local(members->ranks) * count : 0, arena_bytes, error);
		if (!d) {
			host_close(devices, g->count, &g->base);
			return false;
		}
		g->devices[g->count] = d;
		devices[g->count] = &d->base;
	}
	*group = &g->base;
	return true;
}

static void fail(struct host_group *g, const GError *error)
{
	pthread_mutex_lock(&g->lock);
	if (!g->error)
		g->error = g_error_copy(error);
	atomic_store(&g->failed, true);
	pthread_cond_broadcast(&g->met);
	for (GList *l = g->events.head; l; l = l->next) {
		struct host_event *e = l->data;
		pthread_mutex_lock(&e->lock);
		pthread_cond_broadcast(&e->changed);
		pthread_mutex_unlock(&e->lock);
	}
	pthread_mutex_unlock(&g->lock);
}

static void host_device_fail(struct device *d, const GError *error)
{
	fail(host_of(d)->group, error);
}

void host_fail(struct host_stream *s, int code, const char *format, ...)
{
	va_list args;
	va_start(args, format);
	GError *error = g_error_new_valist(ESMOE_ERROR, code, format, args);
	va_end(args);
	fail(s->device->group, error);
	g_error_free(error);
}

static bool check(struct host_group *g, GError **error)
{
	if (!atomic_load(&g->failed))
		return true;
	pthread_mutex_lock(&g->lock);
	g_propagate_error(error, g_error_copy(g->error));
	pthread_mutex_unlock(&g->lock);
	return false;
}

static bool host_check(struct device *d, GError **error)
{
	return check(host_of(d)->group, error);
}

/* ---- memory ---- */

static void *host_alloc(struct device *device, size_t bytes, const char *what, GError **error)
{
	struct host_device *d = host_of(device);
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

static uint64_t host_used_bytes(const struct device *d)
{
	return host_of(d)->used_bytes;
}

static void *host_pinned_alloc(struct device *d, size_t bytes, GError **error)
{
	void *p = NULL;
	int failed = posix_memalign(&p, PAGE_BYTES, MAX(bytes, 1));
	if (failed) {
		g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_FIT, "dram: %.3f GiB of pinned memory: %s", (double)bytes / GIB, g_strerror(failed));
		return NULL;
	}
	return memset(p, 0, bytes);
}

static void host_pinned_free(struct device *d, void *p)
{
	free(p);
}

/* ---- streams ---- */

struct call {
	struct host_stream *stream;
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
	c.stream = stream_of(s);
	c.op = op;
	memcpy(c.args, args, bytes);
	worker_push(c.stream->worker, run_call, &c, offsetof(struct call, args) + bytes);
}

float *host_scratch(struct host_stream *s, size_t n)
{
	if (n > s->scratch_floats) {
		free(s->scratch);
		s->scratch_floats = n + n / 2;
		s->scratch = aligned_alloc(HOST_ALIGNMENT, (s->scratch_floats * sizeof(float) / HOST_ALIGNMENT + 1) * HOST_ALIGNMENT);
		g_assert(s->scratch);
	}
	return s->scratch;
}

static struct device_stream *host_stream_new(struct device *d, const char *name, GError **error)
{
	struct host_stream *s = g_new0(struct host_stream, 1);
	const int count = host_of(d)->group->count;
	s->base.device = d;
	s->device = host_of(d);
	s->worker = worker_new(name);
	host_core_keep_off(s->device->group->cores, s->worker, s->device->index, s->device->index - s->device->index % count + count);
	return &s->base;
}

static void host_stream_keep_core(struct device_stream *s, int nth)
{
	const struct host_device *d = stream_of(s)->device;
	host_core_keep(d->group->cores, stream_of(s)->worker, d->index - d->index % d->group->count + nth);
}

static void host_stream_free(struct device_stream *stream)
{
	struct host_stream *s = stream_of(stream);
	worker_free(s->worker);
	free(s->scratch);
	g_free(s);
}

/* ---- events ---- */

static struct device_event *host_event_new(struct device *device)
{
	struct host_device *d = host_of(device);
	struct host_event *e = g_new0(struct host_event, 1);
	e->base.device = device;
	e->device = d;
	pthread_mutex_init(&e->lock, NULL);
	pthread_cond_init(&e->changed, NULL);
	e->link.data = e;
	pthread_mutex_lock(&d->group->lock);
	g_queue_push_tail_link(&d->group->events, &e->link);
	pthread_mutex_unlock(&d->group->lock);
	return &e->base;
}

static void host_event_free(struct device_event *event)
{
	struct host_event *e = event_of(event);
	pthread_mutex_lock(&e->device->group->lock);
	g_queue_unlink(&e->device->group->events, &e->link);
	pthread_mutex_unlock(&e->device->group->lock);
	pthread_cond_destroy(&e->changed);
	pthread_mutex_destroy(&e->lock);
	g_free(e);
}

static void happen(struct host_event *e, uint64_t occurrence)
{
	nsec_t now = exec_now_ns();
	pthread_mutex_lock(&e->lock);
	atomic_store_explicit(&e->ns, now, memory_order_relaxed);
	atomic_store_explicit(&e->happened, occurrence, memory_order_release);
	if (e->waiting)
		pthread_cond_broadcast(&e->changed);
	pthread_mutex_unlock(&e->lock);
}

static void await(struct host_event *e, uint64_t occurrence)
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
	struct host_event *event;
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

static void host_event_record(struct device_stream *s, struct device_event *event)
{
	struct host_event *e = event_of(event);
	struct occurrence o = {e, atomic_fetch_add(&e->queued, 1) + 1};
	worker_push(stream_of(s)->worker, run_record, &o, sizeof(o));
}

static void host_stream_wait(struct device_stream *s, struct device_event *event)
{
	struct host_event *e = event_of(event);
	struct occurrence o = {e, atomic_load(&e->queued)};
	if (atomic_load_explicit(&e->happened, memory_order_acquire) < o.number)
		worker_push(stream_of(s)->worker, run_wait, &o, sizeof(o));
}

static void host_event_arm(struct device_event *e)
{
	atomic_fetch_add(&event_of(e)->queued, 1);
}

static void host_event_signal(struct device_event *e)
{
	happen(event_of(e), atomic_load(&event_of(e)->queued));
}

static bool host_event_wait(struct device_event *event, GError **error)
{
	struct host_event *e = event_of(event);
	await(e, atomic_load(&e->queued));
	return check(e->device->group, error);
}

static nsec_t host_event_ns(const struct device_event *e)
{
	return atomic_load_explicit(&event_of(e)->ns, memory_order_relaxed);
}

/* ---- copies ---- */

struct copy {
	void *to;
	const void *from;
	size_t bytes;
};

static void run_copy(struct host_stream *s, const void *args)
{
	const struct copy *c = args;
	memcpy(c->to, c->from, c->bytes);
}

static void run_zero(struct host_stream *s, const void *args)
{
	const struct copy *c = args;
	memset(c->to, 0, c->bytes);
}

static void host_copy(struct device_stream *s, void *to, const void *from, size_t bytes)
{
	if (bytes)
		host_push(s, run_copy, &(struct copy){to, from, bytes}, sizeof(struct copy));
}

static void host_upload(struct device_stream *s, void *device, const void *pinned, size_t bytes)
{
	host_copy(s, device, pinned, bytes);
}

static void host_download(struct device_stream *s, void *pinned, const void *device, size_t bytes)
{
	host_copy(s, pinned, device, bytes);
}

static void host_zero(struct device_stream *s, void *p, size_t bytes)
{
	if (bytes)
		host_push(s, run_zero, &(struct copy){p, NULL, bytes}, sizeof(struct copy));
}

/* Events' times are exact here. */
static bool host_record_stages(struct device *d)
{
	return false;
}

static void host_stage_begin(struct device_stream *s, uint32_t id, const char *kind) {}

static void host_stage_end(struct device_stream *s) {}

static void host_stages_ended(struct device *d) {}

static bool host_stage_times(struct device *d, uint32_t id, nsec_t *start_ns, nsec_t *end_ns)
{
	return false;
}

/* Its copies reach all memory. */
static char *host_describe(const struct device *d)
{
	return g_strdup("host");
}

static const struct device_core host_core = {
    .close = host_close,
    .describe = host_describe,
    .check = host_check,
    .fail = host_device_fail,
    .alloc = host_alloc,
    .used_bytes = host_used_bytes,
    .pinned_alloc = host_pinned_alloc,
    .pinned_free = host_pinned_free,
    .stream_new = host_stream_new,
    .stream_keep_core = host_stream_keep_core,
    .stream_free = host_stream_free,
    .event_new = host_event_new,
    .event_free = host_event_free,
    .event_record = host_event_record,
    .stream_wait = host_stream_wait,
    .event_arm = host_event_arm,
    .event_signal = host_event_signal,
    .event_wait = host_event_wait,
    .event_ns = host_event_ns,
    .upload = host_upload,
    .download = host_download,
    .copy = host_copy,
    .zero = host_zero,
    .record_stages = host_record_stages,
    .stage_begin = host_stage_begin,
    .stage_end = host_stage_end,
    .stages_ended = host_stages_ended,
    .stage_times = host_stage_times,
};

const struct device_impl host_impl = {
    .info = &info,
    .open = host_open,
    .core = &host_core,
    .math = &host_math_table,
    .attention = &host_attention_table,
    .gate = &host_gate_table,
    .collectives = &host_collectives_table,
};
