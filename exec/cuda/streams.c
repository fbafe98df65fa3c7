/* The CUDA device's streams and events. Nothing here waits for the GPU but event_wait; streams wait for events, and for what host threads
 * signal by reading a counter in pinned memory (cuStreamWaitValue32):
 *
 *     launcher      arm(e) -> 7     wait(e): the stream reads flag until it is 7
 *     Adam's thread .............. flag = 7
 *
 * Times: an event's is its distance from an origin event, whose time on the host's clock is known; distances are floats, so the origin moves on
 * before they lose microseconds. */
#include "gpu.h"

#include "model/error.h"

#include <cuda.h>
#include <sys/prctl.h>

#define ORIGIN_MS 1000.0f /* after which the next one is taken: a float keeps 6e-5 ms then */
#define LOOK_NS 50000
#define PAUSE_US 5
#define LET_GO_NS (5 * NSEC_PER_SEC) /* after the group failed, when what the GPU has yet to do may never end */

static struct cuda_event *event_of(const struct device_event *e)
{
	return (struct cuda_event *)e;
}

/* ---- streams ---- */

struct device_stream *cuda_stream_new(struct device *d, const char *name, GError **error)
{
	struct cuda_stream *s = g_new0(struct cuda_stream, 1);
	s->base.device = d;
	s->device = cuda_device_of(d);
	s->name = g_strdup(name);
	cuda_use(s->device);
	if (cuda_opened(cudaStreamCreateWithFlags(&s->stream, cudaStreamNonBlocking), "no stream", error)) {
		s->lane[0].stream = s->stream;
		return &s->base;
	}
	g_free(s->name);
	g_free(s);
	return NULL;
}

void cuda_stream_keep_core(struct device_stream *s, int nth) {}

void cuda_stream_free(struct device_stream *stream)
{
	struct cuda_stream *s = cuda_stream_of(stream);
	cuda_use(s->device);
	cudaStreamSynchronize(s->stream);
	for (int i = CUDA_LANES - 1; i >= 0; i--) {
		struct cuda_lane *lane = &s->lane[i];
		if (lane->done)
			cudaEventDestroy(lane->done);
		if (lane->stream)
			cudaStreamDestroy(lane->stream);
	}
	cuda_gemms_free(s->gemms);
	g_free(s->name);
	g_free(s);
}

/* ---- events ---- */

struct device_event *cuda_event_new(struct device *device)
{
	struct cuda_device *d = cuda_device_of(device);
	struct cuda_event *e = g_new0(struct cuda_event, 1);
	e->base.device = device;
	e->device = d;
	cuda_use(d);
	cuda_ok(d, cudaEventCreate(&e->event), "no event");
	e->flag = cuda_flag_take(d);
	if (!e->flag)
		e->flag = &e->armed; /* nothing waits in a group that failed */
	pthread_mutex_init(&e->lock, NULL);
	pthread_cond_init(&e->changed, NULL);
	e->link.data = e;
	pthread_mutex_lock(&d->group->lock);
	g_queue_push_tail_link(&d->group->events, &e->link);
	pthread_mutex_unlock(&d->group->lock);
	return &e->base;
}

void cuda_event_free(struct device_event *event)
{
	struct cuda_event *e = event_of(event);
	pthread_mutex_lock(&e->device->group->lock);
	g_queue_unlink(&e->device->group->events, &e->link);
	pthread_mutex_unlock(&e->device->group->lock);
	cuda_use(e->device);
	if (e->event)
		cudaEventDestroy(e->event);
	if (e->flag != &e->armed)
		cuda_flag_return(e->device, e->flag);
	pthread_cond_destroy(&e->changed);
	pthread_mutex_destroy(&e->lock);
	g_free(e);
}

void cuda_event_record(struct device_stream *stream, struct device_event *event)
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

void cuda_stream_wait(struct device_stream *stream, struct device_event *event)
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

void cuda_event_arm(struct device_event *event)
{
	struct cuda_event *e = event_of(event);
	atomic_store(&e->by_host, true);
	e->armed++;
	if (atomic_load(&e->device->group->failed))
		cuda_event_release(e);
}

void cuda_event_signal(struct device_event *event)
{
	struct cuda_event *e = event_of(event);
	atomic_store(&e->ns, exec_now_ns());
	cuda_event_release(e);
}

static void await_host(struct cuda_event *e)
{
	pthread_mutex_lock(&e->lock);
	while (__atomic_load_n(e->flag, __ATOMIC_ACQUIRE) != e->armed && !atomic_load(&e->device->group->failed))
		pthread_cond_wait(&e->changed, &e->lock);
	pthread_mutex_unlock(&e->lock);
}

/* Looks often at first, then leaves the core to others between looks, whom the thread's timer must not delay. */
static void await_device(struct cuda_event *e)
{
	static _Thread_local bool exact;
	nsec_t until = exec_now_ns() + LOOK_NS, let_go = 0;
	cudaError_t status;
	cuda_use(e->device);
	while ((status = cudaEventQuery(e->event)) == cudaErrorNotReady) {
		const nsec_t now = exec_now_ns();
		if (now < until)
			continue;
		if (let_go && now > let_go)
			return;
		if (!let_go && atomic_load(&e->device->group->failed))
			let_go = now + LET_GO_NS;
		if (!exact)
			prctl(PR_SET_TIMERSLACK, 1UL);
		exact = true;
		g_usleep(PAUSE_US);
	}
	cuda_ok(e->device, status, "the device failed");
}

bool cuda_event_wait(struct device_event *event, GError **error)
{
	struct cuda_event *e = event_of(event);
	if (atomic_load(&e->by_host))
		await_host(e);
	else
		await_device(e);
	return cuda_group_check(e->device->group, error);
}

nsec_t cuda_event_ns(const struct device_event *event)
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
		cuda_find_origin(d);
	pthread_mutex_unlock(&d->lock);
	return MAX(0, atomic_load(&e->ns));
}
