/* The CUDA device's memory, streams and events. Nothing here waits for the GPU but event_wait; streams wait for events, and for what host threads
 * signal by reading a counter in pinned memory (cuStreamWaitValue32):
 *
 *     launcher      arm(e) -> 7     wait(e): the stream reads flag until it is 7
 *     Adam's thread .............. flag = 7
 *
 * Times: an event's is its distance from an origin event, whose time on the host's clock is known; distances are floats, so the origin moves on
 * before they lose microseconds. */
#define _GNU_SOURCE
#include "gpu.h"

#include "model/error.h"

#include <cuda.h>
#include <gmodule.h>
#include <stdarg.h>
#include <string.h>
#include <sys/mman.h>

#define ORIGIN_MS 1000.0f /* after which the next one is taken: 1e-4 us is what a float keeps then */
#define ORIGIN_TRIES 20
#define REGISTER_FROM ((size_t)8 << 20)
#define HUGE_PAGE ((size_t)2 << 20)
#define POLLS 2000 /* of an event, before the thread sleeps between them: about a millisecond */
#define PAUSE_US 20

static struct cuda_event *event_of(const struct device_event *e)
{
	return (struct cuda_event *)e;
}

static struct cuda_group *group_of(struct device_group *g)
{
	return (struct cuda_group *)g;
}

/* ---- errors ---- */

static void release(struct cuda_event *e)
{
	pthread_mutex_lock(&e->lock);
	__atomic_store_n(e->flag, e->armed, __ATOMIC_RELEASE);
	pthread_cond_broadcast(&e->changed);
	pthread_mutex_unlock(&e->lock);
}

/* Streams that wait for a host thread are let go, so that the device can be closed. */
static void fail(struct cuda_group *g, const GError *error)
{
	pthread_mutex_lock(&g->lock);
	if (!g->error)
		g->error = g_error_copy(error);
	atomic_store(&g->failed, true);
	for (GList *l = g->events.head; l; l = l->next)
		release(l->data);
	pthread_mutex_unlock(&g->lock);
	cuda_collectives_fail(g->collectives);
}

void cuda_fail(struct cuda_device *d, int code, const char *format, ...)
{
	va_list args;
	va_start(args, format);
	g_autoptr(GError) error = g_error_new_valist(ESMOE_ERROR, code, format, args);
	va_end(args);
	fail(d->group, error);
}

static void device_failed(struct device *d, const GError *error)
{
	fail(cuda_device_of(d)->group, error);
}

static bool check(struct cuda_group *g, GError **error)
{
	if (!atomic_load(&g->failed))
		return true;
	pthread_mutex_lock(&g->lock);
	g_propagate_error(error, g_error_copy(g->error));
	pthread_mutex_unlock(&g->lock);
	return false;
}

static bool device_checked(struct device *d, GError **error)
{
	return check(cuda_device_of(d)->group, error);
}

static int code_of(cudaError_t status)
{
	return status == cudaErrorMemoryAllocation ? ESMOE_ERROR_FIT : ESMOE_ERROR_DEVICE;
}

bool cuda_ok(struct cuda_device *d, cudaError_t status, const char *what)
{
	if (status != cudaSuccess)
		cuda_fail(d, code_of(status), "GPU %d: %s: %s", d->ordinal, what, cudaGetErrorString(status));
	return status == cudaSuccess;
}

bool cuda_blas_ok(struct cuda_device *d, cublasStatus_t status, const char *what)
{
	if (status != CUBLAS_STATUS_SUCCESS)
		cuda_fail(d, ESMOE_ERROR_DEVICE, "GPU %d: %s: %s", d->ordinal, what, cublasGetStatusString(status));
	return status == CUBLAS_STATUS_SUCCESS;
}

bool cuda_ready(struct cuda_stream *s)
{
	cuda_use(s->device);
	return !atomic_load_explicit(&s->device->group->failed, memory_order_relaxed);
}

void cuda_launched(struct cuda_stream *s, const char *what)
{
	cuda_ok(s->device, cudaPeekAtLastError(), what);
}

void cuda_use(const struct cuda_device *d)
{
	static _Thread_local int current = -1;
	if (current != d->ordinal)
		cudaSetDevice(d->ordinal);
	current = d->ordinal;
}

/* A status as the caller's error, before there is a group to fail. */
static bool opened(cudaError_t status, const char *what, GError **error)
{
	if (status != cudaSuccess)
		g_set_error(error, ESMOE_ERROR, code_of(status), "device cuda: %s: %s", what, cudaGetErrorString(status));
	return status == cudaSuccess;
}

/* ---- life ---- */

static const struct device_info info = {
    .name = "cuda", .element_bytes = 2, .alignment = CUDA_ALIGNMENT, .weight_elements = CUDA_WEIGHT_ELEMENTS, .head_tokens = CUDA_HEAD_TOKENS};

/* Records an event and looks until it has happened: its time on the host's clock is known to half of what that took. */
static bool try_origin(struct cuda_device *d, cudaEvent_t event, nsec_t *at_ns, nsec_t *within_ns)
{
	nsec_t before = exec_now_ns();
	cudaError_t status = cudaEventRecord(event, d->clock);
	while (status == cudaSuccess && (status = cudaEventQuery(event)) != cudaSuccess)
		status = status == cudaErrorNotReady ? cudaSuccess : status;
	*within_ns = exec_now_ns() - before;
	*at_ns = before + *within_ns / 2;
	return status == cudaSuccess;
}

/* The best of some tries. */
static bool find_origin(struct cuda_device *d)
{
	nsec_t at_ns, within_ns, least = INT64_MAX;
	for (int i = 0; i < ORIGIN_TRIES; i++) {
		cudaEvent_t event = NULL;
		if (cudaEventCreate(&event) != cudaSuccess || !try_origin(d, event, &at_ns, &within_ns))
			return false;
		if (within_ns < least) {
			cudaEvent_t old = d->origin;
			least = within_ns;
			d->origin_ns = at_ns;
			d->origin = event;
			event = old;
		}
		if (event)
			cudaEventDestroy(event);
	}
	return true;
}

static void device_free(struct cuda_device *d)
{
	cuda_use(d);
	cudaDeviceSynchronize();
	for (guint i = 0; i < d->blocks->len; i++)
		cudaFree(g_ptr_array_index(d->blocks, i));
	if (d->origin)
		cudaEventDestroy(d->origin);
	if (d->clock)
		cudaStreamDestroy(d->clock);
	g_ptr_array_unref(d->blocks);
	pthread_mutex_destroy(&d->lock);
	g_free(d);
}

static void close_all(struct device **devices, int count, struct device_group *group)
{
	struct cuda_group *g = group_of(group);
	cuda_collectives_free(g->collectives);
	for (int i = 0; i < count; i++)
		device_free(cuda_device_of(devices[i]));
	g_assert(!g->events.length);
	g_hash_table_unref(g->pinned);
	pthread_mutex_destroy(&g->lock);
	g_clear_error(&g->error);
	g_free(g->devices);
	g_free(g);
}

static bool device_new(struct cuda_group *g, int ordinal, uint64_t capacity, struct cuda_device **device, GError **error)
{
	struct cuda_device *d = *device = g_new0(struct cuda_device, 1);
	d->base.impl = &cuda_impl;
	d->group = g;
	d->ordinal = ordinal;
	d->capacity = capacity;
	d->blocks = g_ptr_array_new();
	pthread_mutex_init(&d->lock, NULL);
	cuda_use(d);
	return opened(cudaFree(NULL), "cannot use the GPU", error) &&
	       opened(cudaStreamCreateWithFlags(&d->clock, cudaStreamNonBlocking), "no stream", error) &&
	       opened(find_origin(d) ? cudaSuccess : cudaGetLastError(), "no clock", error);
}

static bool enough(int count, GError **error)
{
	int there = 0;
	cudaError_t status = cudaGetDeviceCount(&there);
	if (status == cudaErrorInsufficientDriver || status == cudaErrorNoDevice) {
		int driver = 0;
		cudaDriverGetVersion(&driver);
		g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_DEVICE,
		            "device cuda: %s (CUDA %d.%d is needed, the driver offers %d.%d); the host device is there",
		            driver ? cudaGetErrorString(status) : "no NVIDIA driver or GPU here", CUDART_VERSION / 1000, CUDART_VERSION % 1000 / 10,
		            driver / 1000, driver % 1000 / 10);
		return false;
	}
	if (!opened(status, "looking for GPUs", error))
		return false;
	if (there < count)
		g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_DEVICE, "device cuda: %d GPUs asked for, %d there; expected --gpus %d or fewer", count,
		            there, there);
	return there >= count;
}

static bool open_all(int count, uint64_t arena_bytes, struct device **devices, struct device_group **group, GError **error)
{
	if (!enough(count, error))
		return false;
	struct cuda_group *g = g_new0(struct cuda_group, 1);
	g->base.impl = &cuda_impl;
	g->devices = g_new0(struct cuda_device *, (size_t)count);
	g->pinned = g_hash_table_new(NULL, NULL);
	pthread_mutex_init(&g->lock, NULL);
	g_queue_init(&g->events);
	bool ok = true;
	while (ok && g->count < count) {
		ok = device_new(g, g->count, arena_bytes, &g->devices[g->count], error);
		devices[g->count] = &g->devices[g->count]->base;
		g->count++;
	}
	if (ok && count > 1)
		ok = (g->collectives = cuda_collectives_new(g, error)) != NULL;
	if (!ok)
		close_all(devices, g->count, &g->base);
	else
		*group = &g->base;
	return ok;
}

/* ---- memory ---- */

/* From the GPU's own memory, counted against the arena so that a smaller GPU can be emulated. */
static void *take(struct cuda_device *d, size_t bytes, const char *what, GError **error)
{
	void *p = NULL;
	size_t whole = MAX(1, (bytes + CUDA_ALIGNMENT - 1) / CUDA_ALIGNMENT) * CUDA_ALIGNMENT;
	pthread_mutex_lock(&d->lock);
	uint64_t room = d->capacity - d->used_bytes;
	bool fits = bytes <= room;
	if (fits)
		d->used_bytes += MIN(room, whole);
	pthread_mutex_unlock(&d->lock);
	if (!fits) {
		g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_FIT, "hbm: %s needs %.6f GiB, but %.6f GiB of the arena's %.6f GiB are left", what,
		            (double)bytes / GIB, (double)room / GIB, (double)d->capacity / GIB);
		return NULL;
	}
	cuda_use(d);
	cudaError_t status = cudaMalloc(&p, whole);
	if (status == cudaSuccess)
		status = cudaMemset(p, 0, whole);
	if (status != cudaSuccess) {
		size_t left = 0, all = 0;
		(void)cudaGetLastError();
		cudaMemGetInfo(&left, &all);
		g_set_error(error, ESMOE_ERROR, code_of(status), "hbm: %s needs %.3f GiB, GPU %d has %.3f GiB of %.3f GiB left: %s", what,
		            (double)bytes / GIB, d->ordinal, (double)left / GIB, (double)all / GIB, cudaGetErrorString(status));
		return NULL;
	}
	pthread_mutex_lock(&d->lock);
	g_ptr_array_add(d->blocks, p);
	pthread_mutex_unlock(&d->lock);
	return p;
}

static void *alloc(struct device *d, size_t bytes, const char *what, GError **error)
{
	return take(cuda_device_of(d), bytes, what, error);
}

static uint64_t used_bytes(const struct device *d)
{
	return cuda_device_of(d)->used_bytes;
}

void *cuda_scratch(struct cuda_stream *s, size_t bytes)
{
	if (bytes > s->scratch_bytes) {
		g_autoptr(GError) error = NULL;
		void *p = take(s->device, bytes, "scratch of an operation", &error);
		if (!p) {
			fail(s->device->group, error);
			return NULL;
		}
		s->scratch = p; /* the old one stays until the device is closed: it may be in use */
		s->scratch_bytes = bytes;
	}
	return s->scratch;
}

struct touching {
	char *from;
	size_t bytes;
};

static gpointer touch(gpointer data)
{
	const struct touching *t = data;
	memset(t->from, 0, t->bytes);
	return NULL;
}

/* Fresh pages come a few GB/s to a thread, and registering them afterwards costs a tenth of allocating them pinned. Huge ones spare Adam the walks
 * through page tables. */
static void *map_touched(size_t bytes)
{
	char *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (p == MAP_FAILED)
		return NULL;
	(void)madvise(p, bytes, MADV_HUGEPAGE);
	guint n = MIN(g_get_num_processors(), 64);
	g_autofree struct touching *part = g_new(struct touching, n);
	g_autofree GThread **thread = g_new(GThread *, n);
	for (guint i = 0; i < n; i++) {
		size_t from = bytes / n * i / HUGE_PAGE * HUGE_PAGE, to = i + 1 == n ? bytes : bytes / n * (i + 1) / HUGE_PAGE * HUGE_PAGE;
		part[i] = (struct touching){p + from, to - from};
		thread[i] = g_thread_new("touch", touch, &part[i]);
	}
	for (guint i = 0; i < n; i++)
		g_thread_join(thread[i]);
	return p;
}

static void *alloc_pinned(struct device *device, size_t bytes, GError **error)
{
	struct cuda_device *d = cuda_device_of(device);
	void *p = NULL;
	cuda_use(d);
	if (bytes < REGISTER_FROM) {
		cudaError_t status = cudaHostAlloc(&p, MAX(bytes, 1), cudaHostAllocPortable);
		if (status == cudaSuccess)
			return memset(p, 0, bytes);
		g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_FIT, "dram: %.3f GiB of pinned memory: %s", (double)bytes / GIB,
		            cudaGetErrorString(status));
		return NULL;
	}
	p = map_touched(bytes);
	cudaError_t status = p ? cudaHostRegister(p, bytes, cudaHostRegisterPortable) : cudaErrorMemoryAllocation;
	if (status != cudaSuccess) {
		(void)cudaGetLastError();
		g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_FIT, "dram: %.3f GiB of pinned memory: %s", (double)bytes / GIB,
		            cudaGetErrorString(status));
		if (p)
			munmap(p, bytes);
		return NULL;
	}
	pthread_mutex_lock(&d->group->lock);
	g_hash_table_insert(d->group->pinned, p, GSIZE_TO_POINTER(bytes));
	pthread_mutex_unlock(&d->group->lock);
	return p;
}

static void free_pinned(struct device *device, void *p)
{
	struct cuda_device *d = cuda_device_of(device);
	cuda_use(d);
	pthread_mutex_lock(&d->group->lock);
	size_t bytes = GPOINTER_TO_SIZE(g_hash_table_lookup(d->group->pinned, p));
	g_hash_table_remove(d->group->pinned, p);
	pthread_mutex_unlock(&d->group->lock);
	if (!bytes) {
		cudaFreeHost(p);
		return;
	}
	cudaHostUnregister(p);
	munmap(p, bytes);
}

/* ---- streams ---- */

static struct device_stream *stream_new(struct device *d, const char *name, GError **error)
{
	struct cuda_stream *s = g_new0(struct cuda_stream, 1);
	s->base.device = d;
	s->device = cuda_device_of(d);
	s->name = g_strdup(name);
	cuda_use(s->device);
	if (opened(cudaStreamCreateWithFlags(&s->stream, cudaStreamNonBlocking), "no stream", error))
		return &s->base;
	g_free(s->name);
	g_free(s);
	return NULL;
}

static void stream_keep_core(struct device_stream *s, int nth) {}

static void stream_free(struct device_stream *stream)
{
	struct cuda_stream *s = cuda_stream_of(stream);
	cuda_use(s->device);
	cudaStreamSynchronize(s->stream);
	if (s->blas)
		cublasDestroy(s->blas);
	for (int i = 0; i < 2; i++)
		if (s->pointers.read[i])
			cudaEventDestroy(s->pointers.read[i]);
	if (s->pointers.host)
		cudaFreeHost(s->pointers.host);
	cudaStreamDestroy(s->stream);
	g_free(s->name);
	g_free(s);
}

/* ---- events ---- */

static struct device_event *event_new(struct device *device)
{
	struct cuda_device *d = cuda_device_of(device);
	struct cuda_event *e = g_new0(struct cuda_event, 1);
	e->base.device = device;
	e->device = d;
	cuda_use(d);
	cuda_ok(d, cudaEventCreate(&e->event), "no event");
	cuda_ok(d, cudaHostAlloc((void **)&e->flag, sizeof(*e->flag), cudaHostAllocPortable | cudaHostAllocMapped), "no event");
	if (e->flag)
		*e->flag = 0;
	pthread_mutex_init(&e->lock, NULL);
	pthread_cond_init(&e->changed, NULL);
	e->link.data = e;
	pthread_mutex_lock(&d->group->lock);
	g_queue_push_tail_link(&d->group->events, &e->link);
	pthread_mutex_unlock(&d->group->lock);
	return &e->base;
}

static void event_free(struct device_event *event)
{
	struct cuda_event *e = event_of(event);
	pthread_mutex_lock(&e->device->group->lock);
	g_queue_unlink(&e->device->group->events, &e->link);
	pthread_mutex_unlock(&e->device->group->lock);
	cuda_use(e->device);
	if (e->event)
		cudaEventDestroy(e->event);
	if (e->flag)
		cudaFreeHost(e->flag);
	pthread_cond_destroy(&e->changed);
	pthread_mutex_destroy(&e->lock);
	g_free(e);
}

static void event_record(struct device_stream *stream, struct device_event *event)
{
	struct cuda_stream *s = cuda_stream_of(stream);
	struct cuda_event *e = event_of(event);
	cuda_use(s->device);
	atomic_store(&e->ns, -1);
	atomic_store(&e->by_host, false);
	cuda_ok(s->device, cudaEventRecord(e->event, s->stream), "recording an event");
}

/* The driver's own calls, which the runtime finds for us: no module is linked to the driver. */
typedef CUresult (*wait_value_fn)(CUstream, CUdeviceptr, cuuint32_t, unsigned int);

static wait_value_fn wait_value(void)
{
	static gsize found;
	if (g_once_init_enter(&found)) {
		void *fn = NULL;
		enum cudaDriverEntryPointQueryResult result;
		cudaGetDriverEntryPointByVersion("cuStreamWaitValue32", &fn, 12000, cudaEnableDefault, &result);
		g_once_init_leave(&found, fn ? (gsize)fn : 1);
	}
	return found == 1 ? NULL : (wait_value_fn)found;
}

static void wait_for_host(struct cuda_stream *s, struct cuda_event *e)
{
	wait_value_fn fn = wait_value();
	if (__atomic_load_n(e->flag, __ATOMIC_ACQUIRE) == e->armed)
		return;
	CUresult status =
	    fn ? fn((CUstream)s->stream, (CUdeviceptr)(uintptr_t)e->flag, e->armed, CU_STREAM_WAIT_VALUE_GEQ) : CUDA_ERROR_NOT_SUPPORTED;
	if (status != CUDA_SUCCESS)
		cuda_fail(s->device, ESMOE_ERROR_DEVICE, "GPU %d: a stream cannot wait for a host thread: CUDA driver error %d", s->device->ordinal,
		          (int)status);
}

static void stream_wait(struct device_stream *stream, struct device_event *event)
{
	struct cuda_stream *s = cuda_stream_of(stream);
	struct cuda_event *e = event_of(event);
	if (!cuda_ready(s))
		return;
	if (atomic_load(&e->by_host))
		wait_for_host(s, e);
	else
		cuda_ok(s->device, cudaStreamWaitEvent(s->stream, e->event, 0), "waiting for an event");
}

static void event_arm(struct device_event *event)
{
	struct cuda_event *e = event_of(event);
	atomic_store(&e->by_host, true);
	e->armed++;
	if (atomic_load(&e->device->group->failed))
		release(e);
}

static void event_signal(struct device_event *event)
{
	struct cuda_event *e = event_of(event);
	atomic_store(&e->ns, exec_now_ns());
	release(e);
}

static void await_host(struct cuda_event *e)
{
	pthread_mutex_lock(&e->lock);
	while (__atomic_load_n(e->flag, __ATOMIC_ACQUIRE) != e->armed && !atomic_load(&e->device->group->failed))
		pthread_cond_wait(&e->changed, &e->lock);
	pthread_mutex_unlock(&e->lock);
}

static void await_device(struct cuda_event *e)
{
	cudaError_t status;
	cuda_use(e->device);
	for (int i = 0; (status = cudaEventQuery(e->event)) == cudaErrorNotReady; i++)
		if (i > POLLS)
			g_usleep(PAUSE_US);
	cuda_ok(e->device, status, "the device failed");
}

static bool event_wait(struct device_event *event, GError **error)
{
	struct cuda_event *e = event_of(event);
	if (atomic_load(&e->by_host))
		await_host(e);
	else
		await_device(e);
	return check(e->device->group, error);
}

static nsec_t event_ns(const struct device_event *event)
{
	struct cuda_event *e = event_of(event);
	struct cuda_device *d = e->device;
	float ms = 0;
	if (atomic_load(&e->ns) >= 0)
		return atomic_load(&e->ns);
	cuda_use(d);
	pthread_mutex_lock(&d->lock);
	if (cudaEventElapsedTime(&ms, d->origin, e->event) == cudaSuccess)
		atomic_store(&e->ns, d->origin_ns + (nsec_t)((double)ms * 1e6));
	if (ms > ORIGIN_MS)
		find_origin(d);
	pthread_mutex_unlock(&d->lock);
	return MAX(0, atomic_load(&e->ns));
}

/* ---- copies ---- */

static void copy(struct cuda_stream *s, void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind, const char *what)
{
	if (bytes && cuda_ready(s))
		cuda_ok(s->device, cudaMemcpyAsync(to, from, bytes, kind, s->stream), what);
}

static void upload(struct device_stream *s, void *device, const void *pinned, size_t bytes)
{
	copy(cuda_stream_of(s), device, pinned, bytes, cudaMemcpyHostToDevice, "upload");
}

static void download(struct device_stream *s, void *pinned, const void *device, size_t bytes)
{
	copy(cuda_stream_of(s), pinned, device, bytes, cudaMemcpyDeviceToHost, "download");
}

static void copy_inside(struct device_stream *s, void *to, const void *from, size_t bytes)
{
	copy(cuda_stream_of(s), to, from, bytes, cudaMemcpyDeviceToDevice, "copy");
}

static void zero(struct device_stream *stream, void *p, size_t bytes)
{
	struct cuda_stream *s = cuda_stream_of(stream);
	if (bytes && cuda_ready(s))
		cuda_ok(s->device, cudaMemsetAsync(p, 0, bytes, s->stream), "zero");
}

static const struct device_core core = {
    .close = close_all,
    .check = device_checked,
    .fail = device_failed,
    .alloc = alloc,
    .used_bytes = used_bytes,
    .pinned_alloc = alloc_pinned,
    .pinned_free = free_pinned,
    .stream_new = stream_new,
    .stream_keep_core = stream_keep_core,
    .stream_free = stream_free,
    .event_new = event_new,
    .event_free = event_free,
    .event_record = event_record,
    .stream_wait = stream_wait,
    .event_arm = event_arm,
    .event_signal = event_signal,
    .event_wait = event_wait,
    .event_ns = event_ns,
    .upload = upload,
    .download = download,
    .copy = copy_inside,
    .zero = zero,
};

const struct device_impl cuda_impl = {
    .info = &info,
    .open = open_all,
    .core = &core,
    .math = &cuda_math_table,
    .attention = &cuda_attention_table,
    .gate = &cuda_gate_table,
    .collectives = &cuda_collectives_table,
};

/* What the program looks up in the module. */
G_MODULE_EXPORT const struct device_impl *esmoe_device(void);
const struct device_impl *esmoe_device(void)
{
	return &cuda_impl;
}
