/* The CUDA device's memory and copies: blocks of its own memory, counted against a capacity; host memory that copies reach directly. */
#include "gpu.h"

#include "exec/pages.h"
#include "model/error.h"

#include <string.h>

#define REGISTER_FROM ((size_t)8 << 20)
#define SMALL_PAGE ((size_t)4 << 10)

/* ---- memory ---- */

static cudaError_t allocate(void **p, size_t bytes, const cudaStream_t *stream)
{
	cudaError_t status = stream ? cudaMallocAsync(p, bytes, *stream) : cudaMalloc(p, bytes);
	if (status != cudaSuccess)
		return status;
	return stream ? cudaMemsetAsync(*p, 0, bytes, *stream) : cudaMemset(*p, 0, bytes);
}

/* From the GPU's own memory, counted against the arena so that a smaller GPU can be emulated. */
static void *take(struct cuda_device *d, const cudaStream_t *stream, size_t bytes, const char *what, GError **error)
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
	cudaError_t status = allocate(&p, whole, stream);
	if (status != cudaSuccess) {
		size_t left = 0, all = 0;
		(void)cudaGetLastError();
		cudaMemGetInfo(&left, &all);
		g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_DEVICE, "hbm: %s needs %.3f GiB, GPU %d has %.3f GiB of %.3f GiB left: %s%s", what,
		            (double)bytes / GIB, d->ordinal, (double)left / GIB, (double)all / GIB, cudaGetErrorString(status),
		            status == cudaErrorMemoryAllocation ? "; nvidia-smi says who has the rest" : "");
		return NULL;
	}
	pthread_mutex_lock(&d->lock);
	g_ptr_array_add(d->blocks, p);
	pthread_mutex_unlock(&d->lock);
	return p;
}

void *cuda_alloc(struct device *d, size_t bytes, const char *what, GError **error)
{
	return take(cuda_device_of(d), NULL, bytes, what, error);
}

void *cuda_alloc_on(struct cuda_device *d, cudaStream_t stream, size_t bytes, const char *what, GError **error)
{
	return take(d, &stream, bytes, what, error);
}

uint64_t cuda_used_bytes(const struct device *d)
{
	return cuda_device_of(d)->used_bytes;
}

void *cuda_scratch(struct cuda_stream *s, size_t bytes)
{
	if (bytes > s->scratch_bytes) {
		g_autoptr(GError) error = NULL;
		void *p = take(s->device, &s->stream, bytes, "scratch of an operation", &error);
		if (!p) {
			cuda_group_fail(s->device->group, error);
			return NULL;
		}
		s->scratch = p; /* the old one stays until the device is closed: it may be in use */
		s->scratch_bytes = bytes;
	}
	return s->scratch;
}

void *cuda_pinned_alloc(struct device *device, size_t bytes, GError **error)
{
	struct cuda_device *d = cuda_device_of(device);
	void *p = NULL;
	cuda_use(d);
	if (bytes < REGISTER_FROM && bytes % SMALL_PAGE) {
		cudaError_t status = cudaHostAlloc(&p, MAX(bytes, 1), cudaHostAllocPortable);
		if (status == cudaSuccess)
			return memset(p, 0, bytes);
		g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_FIT, "dram: %.3f GiB of pinned memory: %s", (double)bytes / GIB,
		            cudaGetErrorString(status));
		return NULL;
	}
	p = pages_new(bytes); /* registering them afterwards costs a tenth of allocating them pinned */
	cudaError_t status = p ? cudaHostRegister(p, bytes, cudaHostRegisterPortable) : cudaErrorMemoryAllocation;
	if (status != cudaSuccess) {
		(void)cudaGetLastError();
		g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_FIT, "dram: %.3f GiB of pinned memory: %s", (double)bytes / GIB,
		            cudaGetErrorString(status));
		if (p)
			pages_free(p, bytes);
		return NULL;
	}
	pthread_mutex_lock(&d->group->lock);
	g_hash_table_insert(d->group->pinned, p, GSIZE_TO_POINTER(bytes));
	pthread_mutex_unlock(&d->group->lock);
	return p;
}

void cuda_pinned_free(struct device *device, void *p)
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
	pages_free(p, bytes);
}

/* ---- flags ---- */

#define FLAGS (1 << 16) /* more than the live stages of most schedules have events */

/* To pin memory may wait for the GPU, so it is done for many events at once. The caller holds the lock. */
static bool more_flags(struct cuda_group *g)
{
	uint32_t *block = NULL;
	if (cudaHostAlloc((void **)&block, FLAGS * sizeof(*block), cudaHostAllocPortable | cudaHostAllocMapped) != cudaSuccess)
		return false;
	g_ptr_array_add(g->flag_blocks, block);
	for (int i = FLAGS - 1; i >= 0; i--)
		g_ptr_array_add(g->flags, block + i);
	return true;
}

uint32_t *cuda_flag_take(struct cuda_device *d)
{
	struct cuda_group *g = d->group;
	uint32_t *flag = NULL;
	cuda_use(d);
	pthread_mutex_lock(&g->lock);
	if (g->flags->len || more_flags(g))
		*(flag = g_ptr_array_steal_index(g->flags, g->flags->len - 1)) = 0;
	pthread_mutex_unlock(&g->lock);
	if (!flag)
		cuda_ok(d, cudaGetLastError(), "no event");
	return flag;
}

void cuda_flag_return(struct cuda_device *d, uint32_t *flag)
{
	pthread_mutex_lock(&d->group->lock);
	g_ptr_array_add(d->group->flags, flag);
	pthread_mutex_unlock(&d->group->lock);
}

/* ---- copies ---- */

/* A copy engine takes the copies of all streams in turns that can last milliseconds, so counts, losses and tokens would wait for experts on their
 * way: up to here a kernel reads and writes pinned memory itself, which takes no longer. */
#define SMALL_BYTES (256u << 10)

static bool small(size_t bytes)
{
	return bytes <= SMALL_BYTES && bytes % sizeof(bf16) == 0;
}

static void copy(struct cuda_stream *s, void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind, const char *what)
{
	if (bytes && cuda_ready(s))
		cuda_ok(s->device, cudaMemcpyAsync(to, from, bytes, kind, s->stream), what);
}

void cuda_upload(struct device_stream *s, void *device, const void *pinned, size_t bytes)
{
	if (small(bytes))
		CUDA_LAUNCH(s, "small upload", cuda_move, device, pinned, bytes / sizeof(bf16));
	else
		copy(cuda_stream_of(s), device, pinned, bytes, cudaMemcpyHostToDevice, "upload");
}

void cuda_download(struct device_stream *s, void *pinned, const void *device, size_t bytes)
{
	if (small(bytes))
		CUDA_LAUNCH(s, "small download", cuda_move, pinned, device, bytes / sizeof(bf16));
	else
		copy(cuda_stream_of(s), pinned, device, bytes, cudaMemcpyDeviceToHost, "download");
}

void cuda_copy(struct device_stream *s, void *to, const void *from, size_t bytes)
{
	copy(cuda_stream_of(s), to, from, bytes, cudaMemcpyDeviceToDevice, "copy");
}

void cuda_zero(struct device_stream *stream, void *p, size_t bytes)
{
	struct cuda_stream *s = cuda_stream_of(stream);
	if (bytes && cuda_ready(s))
		cuda_ok(s->device, cudaMemsetAsync(p, 0, bytes, s->stream), "zero");
}
