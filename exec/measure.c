/* Each class of traffic is a thread that keeps one thing going until the time is up:
 *
 *     upload    pool in pinned memory -> device arena     one copy queued at a time, so that what is counted is done
 *     download  device arena -> pool in pinned memory
 *     Adam      the optimizer's own pool of threads over one block of state
 */
#include "measure.h"

#include "adam.h"
#include "device.h"

enum {
	MEMBERS = 2,
	MIB = 1 << 20,
	COPY_BYTES = 4 * MIB,
	POOL_BYTES = 64 * MIB,
	ARENA_BYTES = 160 * MIB,
	ADAM_PARAMS = 4 * MIB,
	TIMES = 9,
	ADAM_BYTES = 32
};

struct measure {
	struct device *devices[MEMBERS];
	struct device_group *group;
	struct device_stream *stream[MEMBERS], *other; /* the second one of the first device */
	struct device_event *start[MEMBERS], *end[MEMBERS], *other_end;
	char *arena[MEMBERS]; /* POOL_BYTES each */
	char *landing;        /* of uploads, beside it */
	char *pinned_up, *pinned_down;
	float *state; /* (5, ADAM_PARAMS) */
};

static bool take(struct measure *m, GError **error)
{
	for (int i = 0; i < MEMBERS; i++) {
		m->stream[i] = device_stream_new(m->devices[i], "measure", error);
		m->arena[i] = m->stream[i] ? device_alloc(m->devices[i], POOL_BYTES, "measuring", error) : NULL;
		if (!m->arena[i])
			return false;
		m->start[i] = device_event_new(m->devices[i]);
		m->end[i] = device_event_new(m->devices[i]);
	}
	m->other = device_stream_new(m->devices[0], "measure", error);
	m->other_end = device_event_new(m->devices[0]);
	m->landing = m->other ? device_alloc(m->devices[0], POOL_BYTES, "measuring", error) : NULL;
	m->pinned_up = m->landing ? pinned_alloc(m->devices[0], POOL_BYTES, error) : NULL;
	m->pinned_down = m->pinned_up ? pinned_alloc(m->devices[0], POOL_BYTES, error) : NULL;
	m->state = g_new0(float, 5 * (size_t)ADAM_PARAMS);
	return m->pinned_down != NULL;
}

struct measure *measure_new(const char *device, GError **error)
{
	g_autoptr(measure) m = g_new0(struct measure, 1);
	if (!device_open(device, MEMBERS, ARENA_BYTES, m->devices, &m->group, error) || !take(m, error))
		return NULL;
	return g_steal_pointer(&m);
}

void measure_free(struct measure *m)
{
	if (!m)
		return;
	for (int i = 0; i < MEMBERS; i++) {
		if (m->stream[i])
			device_stream_free(m->stream[i]);
		if (m->start[i])
			device_event_free(m->start[i]);
		if (m->end[i])
			device_event_free(m->end[i]);
	}
	if (m->other)
		device_stream_free(m->other);
	if (m->other_end)
		device_event_free(m->other_end);
	if (m->pinned_up)
		pinned_free(m->devices[0], m->pinned_up);
	if (m->pinned_down)
		pinned_free(m->devices[0], m->pinned_down);
	if (m->group)
		device_close(m->devices, MEMBERS, m->group);
	g_free(m->state);
	g_free(m);
}

/* One thread's part. */
struct busy {
	struct measure *m;
	bool up;
	struct adam_pool *pool;
	int *stop; /* atomic */
	double per_ns;
	GError *error;
};

static gpointer keep_copying(gpointer data)
{
	struct busy *b = data;
	struct measure *m = b->m;
	struct device_stream *s = b->up ? m->stream[0] : m->other;
	struct device_event *end = b->up ? m->end[0] : m->other_end;
	nsec_t start = exec_now_ns();
	size_t at = 0, bytes = 0;
	while (!g_atomic_int_get(b->stop) && !b->error) {
		if (b->up)
			device_upload(s, m->landing + at, m->pinned_up + at, COPY_BYTES);
		else
			device_download(s, m->pinned_down + at, m->arena[0] + at, COPY_BYTES);
		device_event_record(s, end);
		if (device_event_wait(end, &b->error))
			bytes += COPY_BYTES;
		at = (at + COPY_BYTES) % POOL_BYTES;
	}
	b->per_ns = (double)bytes / (double)(exec_now_ns() - start);
	return NULL;
}

static gpointer keep_updating(gpointer data)
{
	struct busy *b = data;
	float *s = b->m->state;
	const struct adam_args a = {.master = s,
	                            .m = s + ADAM_PARAMS,
	                            .v = s + 2 * (size_t)ADAM_PARAMS,
	                            .gradient = s + 3 * (size_t)ADAM_PARAMS,
	                            .out = s + 4 * (size_t)ADAM_PARAMS,
	                            .n = ADAM_PARAMS,
	                            .scale = 1,
	                            .gradient_format = ADAM_FP32,
	                            .out_format = ADAM_FP32,
	                            .step = {.lr = 1e-3f, .beta1 = 0.9f, .beta2 = 0.999f, .eps = 1e-8f, .t = 1}};
	nsec_t start = exec_now_ns();
	double params = 0;
	while (!g_atomic_int_get(b->stop)) {
		adam_update(b->pool, &a);
		params += ADAM_PARAMS;
	}
	b->per_ns = params / (double)(exec_now_ns() - start);
	return NULL;
}

static bool together_once(struct measure *m, const struct together *what, struct adam_pool *pool, int ms, struct rates *out, GError **error)
{
	int stop = 0;
	struct busy up = {.m = m, .up = true, .stop = &stop}, down = {.m = m, .stop = &stop}, adam = {.m = m, .pool = pool, .stop = &stop};
	GThread *threads[] = {what->upload ? g_thread_new("upload", keep_copying, &up) : NULL,
	                      what->download ? g_thread_new("download", keep_copying, &down) : NULL,
	                      what->threads ? g_thread_new("adam", keep_updating, &adam) : NULL};
	g_usleep((gulong)ms * 1000);
	g_atomic_int_set(&stop, 1);
	for (size_t i = 0; i < G_N_ELEMENTS(threads); i++)
		if (threads[i])
			g_thread_join(threads[i]);
	*out = (struct rates){up.per_ns, down.per_ns, adam.per_ns};
	if (up.error && down.error)
		g_clear_error(&down.error);
	if (up.error || down.error)
		g_propagate_error(error, up.error ? up.error : down.error);
	return !up.error && !down.error;
}

static double traffic(const struct rates *r)
{
	return r->up_gbps + r->down_gbps + r->adam_gparams * ADAM_BYTES;
}

/* The time with the most traffic is the one that others on the machine disturbed least. */
bool measure_together(struct measure *m, const struct together *what, int ms, struct rates *out, GError **error)
{
	g_autoptr(adam_pool) pool = what->threads ? adam_pool_new(what->threads) : NULL;
	*out = (struct rates){0};
	for (int i = 0; i < TIMES; i++) {
		struct rates once;
		if (!together_once(m, what, pool, ms, &once, error))
			return false;
		*out = traffic(&once) > traffic(out) ? once : *out;
	}
	return true;
}

static bool collective_once(struct measure *m, int kind, size_t n, double *us, GError **error)
{
	for (int i = 0; i < MEMBERS; i++) {
		device_event_record(m->stream[i], m->start[i]);
		if (kind == STAGE_ALL_REDUCE)
			group_all_reduce(m->stream[i], m->group, i, (float *)(void *)m->arena[i], n);
		else
			group_reduce_scatter(m->stream[i], m->group, i, (float *)(void *)m->arena[i], n);
		device_event_record(m->stream[i], m->end[i]);
	}
	for (int i = 0; i < MEMBERS; i++)
		if (!device_event_wait(m->end[i], error))
			return false;
	nsec_t start = MAX(device_event_ns(m->start[0]), device_event_ns(m->start[1]));
	*us = (double)(MAX(device_event_ns(m->end[0]), device_event_ns(m->end[1])) - start) / 1e3;
	return true;
}

bool measure_collective(struct measure *m, int kind, int repeats, struct measured_table *table, GError **error)
{
	g_autofree double *us = g_new(double, repeats);
	for (size_t bytes = 4096; bytes <= 16 * MIB; bytes *= 4) {
		for (int i = -1; i < repeats; i++) /* the first one warms up */
			if (!collective_once(m, kind, bytes / sizeof(float), &us[MAX(0, i)], error))
				return false;
		measured_add(table, (double)bytes, us, repeats);
	}
	return true;
}
