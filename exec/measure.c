/* Each class of traffic is a thread that keeps one thing going until the time is up:
 *
 *     upload    pool in pinned memory -> device arena     one copy queued at a time, so that what is counted is done
 *     download  device arena -> pool in pinned memory
 *     Adam      the optimizer's own pool of threads over one block of state
 */
#include "measure.h"

#include "adam_speed.h"
#include "model/units.h"

enum {
	MOST_MEMBERS = 2,
	MIB = 1 << 20,
	AHEAD = 8 /* copies of a stream in flight */,
	WARM = 2 /* not counted */,
	BUSY_COPIES = 4 /* of a pool, a tenth of a millisecond each */
};

/* Blocks beyond the caches of the machine (a server's last level has hundreds of megabytes), small enough for many of them in the time there is. */
static const struct blocks {
	size_t copy_bytes, pool_bytes, most_bytes; /* most_bytes: of a collective */
	int stretch;                               /* of the time they are given */
} small_blocks = {4 * MIB, 64 * MIB, 16 * MIB, 1}, large_blocks = {32 * MIB, 256 * MIB, 256 * MIB, 3};

/* One GPU: `up` has the uploads and the collectives, `down` the downloads. */
struct member {
	struct device_stream *up, *down;
	struct device_event *start, *up_end[AHEAD], *down_end[AHEAD];
	char *arena, *landing; /* a pool each; landing: of uploads */
	char *pinned_up, *pinned_down;
};

struct measure {
	int count;
	const struct blocks *blocks;
	struct device *devices[MOST_MEMBERS];
	struct device_group *group;
	struct member member[MOST_MEMBERS];
	struct adam_work adam; /* its state pinned, as most of an expert's is */
};

static bool take(struct device *d, size_t pool, struct member *m, GError **error)
{
	m->start = device_event_new(d);
	for (int i = 0; i < AHEAD; i++) {
		m->up_end[i] = device_event_new(d);
		m->down_end[i] = device_event_new(d);
	}
	return (m->up = device_stream_new(d, "measure up", error)) && (m->down = device_stream_new(d, "measure down", error)) &&
	       (m->arena = device_alloc(d, pool, "measuring", error)) && (m->landing = device_alloc(d, pool, "measuring", error)) &&
	       (m->pinned_up = pinned_alloc(d, pool, error)) && (m->pinned_down = pinned_alloc(d, pool, error));
}

struct measure *measure_new(const char *device, int count, size_t expert, GError **error)
{
	g_autoptr(measure) m = g_new0(struct measure, 1);
	g_assert(count >= 1 && count <= MOST_MEMBERS);
	const struct device_info *info = device_find(device, error);
	m->blocks = info && info->element_bytes == sizeof(float) ? &small_blocks : &large_blocks;
	if (!info || !device_open(device, count, 3 * m->blocks->pool_bytes, m->devices, &m->group, error))
		return NULL;
	m->count = count;
	m->adam = adam_work_of(info, expert);
	if (!(m->adam.state = pinned_alloc(m->devices[0], adam_work_bytes(&m->adam), error)))
		return NULL;
	for (int i = 0; i < count; i++)
		if (!take(m->devices[i], m->blocks->pool_bytes, &m->member[i], error))
			return NULL;
	return g_steal_pointer(&m);
}

static void give(struct device *d, const struct member *m)
{
	struct device_stream *const streams[] = {m->up, m->down};
	char *const pinned[] = {m->pinned_up, m->pinned_down};
	for (size_t i = 0; i < G_N_ELEMENTS(streams); i++)
		if (streams[i])
			device_stream_free(streams[i]);
	device_event_free(m->start);
	for (int i = 0; i < AHEAD; i++) {
		device_event_free(m->up_end[i]);
		device_event_free(m->down_end[i]);
	}
	for (size_t i = 0; i < G_N_ELEMENTS(pinned); i++)
		if (pinned[i])
			pinned_free(d, pinned[i]);
}

void measure_free(struct measure *m)
{
	if (!m)
		return;
	for (int i = 0; i < m->count; i++)
		give(m->devices[i], &m->member[i]);
	if (m->adam.state)
		pinned_free(m->devices[0], m->adam.state);
	if (m->group)
		device_close(m->devices, m->count, m->group);
	g_free(m);
}

char *measure_describe(const struct measure *m)
{
	return device_describe(m->devices[0]);
}

/* One thread's part. */
struct busy {
	const struct measure *measure;
	const struct member *member; /* NULL: Adam */
	bool up;
	struct adam_pool *pool;
	nsec_t until_ns;
	double per_ns;
	GError *error;
};

/* Some are queued ahead: on a machine whose cores are all busy this thread comes late. Counted are those between the ends of the first and of the
 * last; at least one, however late. */
static gpointer keep_copying(gpointer data)
{
	struct busy *b = data;
	const struct member *m = b->member;
	struct device_stream *s = b->up ? m->up : m->down;
	struct device_event *const *end = b->up ? m->up_end : m->down_end;
	nsec_t first_ns = -1, last_ns = 0;
	size_t at = 0, bytes = 0;
	for (int turn = 0; (!bytes || exec_now_ns() < b->until_ns) && !b->error; turn++) {
		if (turn >= AHEAD && device_event_wait(end[turn % AHEAD], &b->error)) {
			last_ns = device_event_ns(end[turn % AHEAD]);
			bytes += first_ns < 0 ? 0 : b->measure->blocks->copy_bytes;
			first_ns = first_ns < 0 ? last_ns : first_ns;
		}
		if (b->up)
			device_upload(s, m->landing + at, m->pinned_up + at, b->measure->blocks->copy_bytes);
		else
			device_download(s, m->pinned_down + at, m->arena + at, b->measure->blocks->copy_bytes);
		device_event_record(s, end[turn % AHEAD]);
		at = (at + b->measure->blocks->copy_bytes) % b->measure->blocks->pool_bytes;
	}
	b->per_ns = bytes ? (double)bytes / (double)(last_ns - first_ns) : 0;
	for (int i = 0; i < AHEAD && !b->error; i++)
		if (!device_event_wait(end[i], &b->error))
			break;
	return NULL;
}

static gpointer keep_updating(gpointer data)
{
	struct busy *b = data;
	b->per_ns = adam_work_until(&b->measure->adam, b->pool, b->until_ns);
	return NULL;
}

enum { MOST_BUSY = 2 * MOST_MEMBERS + 1 };

/* Who works: of each GPU its upload and its download, and Adam. */
static int list_busy(struct measure *m, const struct together *what, struct adam_pool *pool, nsec_t until_ns, struct busy *busy)
{
	int n = 0;
	for (int gpu = 0; gpu < what->gpus; gpu++) {
		if (what->upload)
			busy[n++] = (struct busy){.measure = m, .member = &m->member[gpu], .up = true, .until_ns = until_ns};
		if (what->download)
			busy[n++] = (struct busy){.measure = m, .member = &m->member[gpu], .until_ns = until_ns};
	}
	if (what->threads)
		busy[n++] = (struct busy){.measure = m, .pool = pool, .until_ns = until_ns};
	return n;
}

static bool together_once(struct measure *m, const struct together *what, struct adam_pool *pool, int ms, struct rates *out, GError **error)
{
	struct busy busy[MOST_BUSY];
	GThread *threads[MOST_BUSY];
	const int n = list_busy(m, what, pool, exec_now_ns() + ms * NSEC_PER_MSEC, busy);
	for (int i = 0; i < n; i++)
		threads[i] = g_thread_new("measure", busy[i].member ? keep_copying : keep_updating, &busy[i]);
	GError *first = NULL;
	*out = (struct rates){0};
	for (int i = 0; i < n; i++) {
		g_thread_join(threads[i]);
		*(busy[i].pool ? &out->adam_gparams : busy[i].up ? &out->up_gbps : &out->down_gbps) += busy[i].per_ns;
		if (!first)
			first = g_steal_pointer(&busy[i].error);
		g_clear_error(&busy[i].error);
	}
	if (first)
		g_propagate_error(error, first);
	return !first;
}

bool measure_together(struct measure *m, const struct together *what, int ms, struct rates *out, GError **error)
{
	g_autoptr(adam_pool) pool = what->threads ? adam_pool_new(what->threads) : NULL;
	g_assert(what->gpus <= m->count);
	if (pool)
		adam_pool_set_patience(pool, device_info(m->devices[0])->adam_patience_ns);
	if (!together_once(m, what, pool, ms * m->blocks->stretch, out, error))
		return false;
	out->up_gbps /= MAX(what->gpus, 1);
	out->down_gbps /= MAX(what->gpus, 1);
	return true;
}

/* One member's part of a collective. */
struct part {
	struct measure *m;
	int rank, kind;
	size_t bytes;
};

/* What keeps a real GPU busy until all of a collective is queued: in a run it lies behind computation, and small ones take less than their launches.
 */
static void keep_busy(const struct part *p, const struct member *x)
{
	for (int i = 0; i < BUSY_COPIES && device_info(p->m->devices[0])->launcher_cores; i++)
		device_copy(x->up, x->landing, x->arena, p->m->blocks->pool_bytes);
}

/* As a gate's exchange does. */
static void gather_counts(const struct part *p, const struct member *x)
{
	group_gather(x->up, p->m->group, p->rank, x->arena, p->bytes / (size_t)p->m->count);
	device_download(x->up, x->pinned_up, x->arena, p->bytes);
}

static gpointer queue_part(gpointer data)
{
	const struct part *p = data;
	const struct member *x = &p->m->member[p->rank];
	keep_busy(p, x);
	device_event_record(x->up, x->start);
	if (p->kind == STAGE_ALL_REDUCE)
		group_all_reduce(x->up, p->m->group, p->rank, (float *)(void *)x->arena, p->bytes / sizeof(float));
	else if (p->kind == STAGE_REDUCE_SCATTER)
		group_reduce_scatter(x->up, p->m->group, p->rank, (float *)(void *)x->arena, p->bytes / sizeof(float));
	else
		gather_counts(p, x);
	device_event_record(x->up, x->up_end[0]);
	return NULL;
}

/* Each member's by a thread of its own, as launchers do: the first call may wait for the others' before it returns. */
static bool collective_once(struct measure *m, int kind, size_t bytes, double *us, GError **error)
{
	nsec_t start = 0, end = 0;
	struct part part[MOST_MEMBERS];
	GThread *threads[MOST_MEMBERS];
	for (int i = 0; i < m->count; i++) {
		part[i] = (struct part){m, i, kind, bytes};
		threads[i] = g_thread_new("measure", queue_part, &part[i]);
	}
	for (int i = 0; i < m->count; i++)
		g_thread_join(threads[i]);
	for (int i = 0; i < m->count; i++) {
		const struct member *x = &m->member[i];
		if (!device_event_wait(x->up_end[0], error))
			return false;
		start = MAX(start, device_event_ns(x->start));
		end = MAX(end, device_event_ns(x->up_end[0]));
	}
	*us = (double)(end - start) / 1e3;
	return true;
}

bool measure_collective(struct measure *m, int kind, int repeats, struct measured_table *table, GError **error)
{
	const size_t least = kind == STAGE_COUNTS ? 64 : 4096, most = kind == STAGE_COUNTS ? 65536 : m->blocks->most_bytes;
	g_autofree double *us = g_new(double, repeats);
	for (size_t bytes = least; bytes <= most; bytes *= 4) {
		for (int i = -WARM; i < repeats; i++)
			if (!collective_once(m, kind, bytes, &us[MAX(0, i)], error))
				return false;
		measured_add(table, (double)bytes, us, repeats);
	}
	return true;
}

/* The nth goes on where the one before it ended: no cache has what it reads. */
static bool copy_once(struct measure *m, bool up, size_t bytes, int nth, double *us, GError **error)
{
	const size_t at = (size_t)nth * bytes % (m->blocks->pool_bytes - bytes + 1) / bytes * bytes;
	const struct member *x = &m->member[0];
	struct device_stream *s = up ? x->up : x->down;
	device_event_record(s, x->start);
	if (up)
		device_upload(s, x->landing + at, x->pinned_up + at, bytes);
	else
		device_download(s, x->pinned_down + at, x->arena + at, bytes);
	device_event_record(s, x->up_end[0]);
	if (!device_event_wait(x->up_end[0], error))
		return false;
	*us = (double)(device_event_ns(x->up_end[0]) - device_event_ns(x->start)) / 1e3;
	return true;
}

bool measure_copies(struct measure *m, bool up, int repeats, struct measured_table *table, GError **error)
{
	g_autofree double *us = g_new(double, repeats);
	for (size_t bytes = 16384; bytes <= m->blocks->pool_bytes; bytes *= 4) {
		for (int i = -WARM; i < repeats; i++)
			if (!copy_once(m, up, bytes, i + WARM, &us[MAX(0, i)], error))
				return false;
		measured_add(table, (double)bytes, us, repeats);
	}
	return true;
}
