/* The CUDA device's life and its errors: the first one of a group stays, what is queued afterwards is not, and whoever waits is let go. */
#include "gpu.h"

#include "exec/ranks.h"
#include "model/error.h"

#include <gmodule.h>
#include <stdarg.h>
#include <string.h>

#define ORIGIN_TRIES 20

static struct cuda_group *group_of(struct device_group *g)
{
	return (struct cuda_group *)g;
}

/* ---- errors ---- */

void cuda_event_release(struct cuda_event *e)
{
	pthread_mutex_lock(&e->lock);
	__atomic_store_n(e->flag, e->armed, __ATOMIC_RELEASE);
	pthread_cond_broadcast(&e->changed);
	pthread_mutex_unlock(&e->lock);
}

/* Streams that wait for a host thread are let go, so that the device can be closed. */
void cuda_group_fail(struct cuda_group *g, const GError *error)
{
	pthread_mutex_lock(&g->lock);
	if (!g->error)
		g->error = g_error_copy(error);
	atomic_store(&g->failed, true);
	for (GList *l = g->events.head; l; l = l->next)
		cuda_event_release(l->data);
	pthread_mutex_unlock(&g->lock);
	cuda_collectives_fail(g->collectives);
}

void cuda_fail(struct cuda_device *d, int code, const char *format, ...)
{
	va_list args;
	va_start(args, format);
	g_autoptr(GError) error = g_error_new_valist(ESMOE_ERROR, code, format, args);
	va_end(args);
	cuda_group_fail(d->group, error);
}

static void device_failed(struct device *d, const GError *error)
{
	cuda_group_fail(cuda_device_of(d)->group, error);
}

bool cuda_group_check(struct cuda_group *g, GError **error)
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
	return cuda_group_check(cuda_device_of(d)->group, error);
}

int cuda_code_of(cudaError_t status)
{
	return status == cudaErrorMemoryAllocation ? ESMOE_ERROR_FIT : ESMOE_ERROR_DEVICE;
}

bool cuda_ok(struct cuda_device *d, cudaError_t status, const char *what)
{
	if (status != cudaSuccess)
		cuda_fail(d, cuda_code_of(status), "GPU %d: %s: %s", d->ordinal, what, cudaGetErrorString(status));
	return status == cudaSuccess;
}

bool cuda_blas_ok(struct cuda_device *d, cublasStatus_t status, const char *what)
{
	if (status != CUBLAS_STATUS_SUCCESS)
		cuda_fail(d, ESMOE_ERROR_DEVICE, "GPU %d: %s: %s", d->ordinal, what, cublasLtGetStatusString(status));
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
bool cuda_opened(cudaError_t status, const char *what, GError **error)
{
	if (status != cudaSuccess)
		g_set_error(error, ESMOE_ERROR, cuda_code_of(status), "device cuda: %s: %s", what, cudaGetErrorString(status));
	return status == cudaSuccess;
}

/* ---- life ---- */

static const struct device_info info = {.name = "cuda",
                                        .element_bytes = 2,
                                        .alignment = CUDA_ALIGNMENT,
                                        .weight_elements = CUDA_WEIGHT_ELEMENTS,
                                        .head_tokens = CUDA_HEAD_TOKENS,
                                        .packs_exchanges = FOOTPRINT_PACKS_BF16,
                                        .hot_after_steps = 12,
                                        .launcher_cores = 1,
                                        .patience_ns = 5000000,
                                        .adam_patience_ns = 100000};

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
bool cuda_find_origin(struct cuda_device *d)
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
	for (guint i = 0; i < g->flag_blocks->len; i++)
		cudaFreeHost(g_ptr_array_index(g->flag_blocks, i));
	g_ptr_array_unref(g->flag_blocks);
	g_ptr_array_unref(g->flags);
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
	return cuda_opened(cudaFree(NULL), "cannot use the GPU", error) &&
	       cuda_opened(cudaStreamCreateWithFlags(&d->clock, cudaStreamNonBlocking), "no stream", error) &&
	       cuda_opened(cuda_find_origin(d) ? cudaSuccess : cudaGetLastError(), "no clock", error);
}

/* Where a launcher lets each process see only its own GPUs, they are numbered from 0. */
static bool find_gpus(int count, const struct ranks *ranks, int *first, GError **error)
{
	const int local = ranks ? ranks_local(ranks) : 0;
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
	if (!cuda_opened(status, "looking for GPUs", error))
		return false;
	*first = there == count ? 0 : local * count;
	if (there >= *first + count)
		return true;
	if (ranks)
		g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_DEVICE,
		            "device cuda: %d GPUs there; expected %d, for %d in each of at least %d processes of this host", there, *first + count,
		            count, local + 1);
	else
		g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_DEVICE, "device cuda: %d GPUs asked for, %d there; expected --gpus %d or fewer", count,
		            there, there);
	return false;
}

/* A kernel that is loaded when it is first launched waits for the GPU, where a collective may wait for a kernel that this launch holds up. */
static void load_kernels_early(int total)
{
	if (total > 1)
		g_setenv("CUDA_MODULE_LOADING", "EAGER", FALSE);
}

static bool open_all(int count, uint64_t arena_bytes, const struct device_members *members, struct device **devices, struct device_group **group,
                     GError **error)
{
	int first = 0;
	load_kernels_early(members->total);
	if (!find_gpus(count, members->ranks, &first, error))
		return false;
	struct cuda_group *g = g_new0(struct cuda_group, 1);
	g->base.impl = &cuda_impl;
	g->members = *members;
	g->devices = g_new0(struct cuda_device *, (size_t)count);
	g->pinned = g_hash_table_new(NULL, NULL);
	g->flag_blocks = g_ptr_array_new();
	g->flags = g_ptr_array_new();
	pthread_mutex_init(&g->lock, NULL);
	g_queue_init(&g->events);
	bool ok = true;
	while (ok && g->count < count) {
		ok = device_new(g, first + g->count, arena_bytes, &g->devices[g->count], error);
		devices[g->count] = &g->devices[g->count]->base;
		g->count++;
	}
	if (ok && members->total > 1)
		ok = (g->collectives = cuda_collectives_new(g, error)) != NULL;
	if (!ok)
		close_all(devices, g->count, &g->base);
	else
		*group = &g->base;
	return ok;
}

/* The kernel module's version, which CUDA's own calls do not tell. */
static char *driver_version(void)
{
	g_autofree char *text = NULL;
	if (g_file_get_contents("/proc/driver/nvidia/version", &text, NULL, NULL)) {
		g_auto(GStrv) words = g_strsplit_set(text, " \n", -1);
		for (int i = 0; words[i]; i++)
			if (g_ascii_isdigit(words[i][0]) && strchr(words[i], '.'))
				return g_strdup(words[i]);
	}
	return g_strdup("unknown");
}

static char *describe(const struct device *d)
{
	struct cudaDeviceProp properties = {.name = "a GPU"};
	int cuda = 0;
	g_autofree char *driver = driver_version();
	cudaGetDeviceProperties(&properties, cuda_device_of(d)->ordinal);
	cudaDriverGetVersion(&cuda);
	return g_strdup_printf("%s, driver %s, CUDA %d.%d", properties.name, driver, cuda / 1000, cuda % 1000 / 10);
}

static const struct device_core core = {
    .close = close_all,
    .describe = describe,
    .check = device_checked,
    .fail = device_failed,
    .alloc = cuda_alloc,
    .used_bytes = cuda_used_bytes,
    .pinned_alloc = cuda_pinned_alloc,
    .pinned_free = cuda_pinned_free,
    .stream_new = cuda_stream_new,
    .stream_keep_core = cuda_stream_keep_core,
    .stream_free = cuda_stream_free,
    .event_new = cuda_event_new,
    .event_free = cuda_event_free,
    .event_record = cuda_event_record,
    .stream_wait = cuda_stream_wait,
    .event_arm = cuda_event_arm,
    .event_signal = cuda_event_signal,
    .event_wait = cuda_event_wait,
    .event_ns = cuda_event_ns,
    .upload = cuda_upload,
    .download = cuda_download,
    .copy = cuda_copy,
    .zero = cuda_zero,
    .record_stages = cuda_record_stages,
    .stage_begin = cuda_stage_begin,
    .stage_end = cuda_stage_end,
    .stages_ended = cuda_stages_ended,
    .stage_times = cuda_stage_times,
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
