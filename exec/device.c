/* Opening a device by its name, and the clock that host and devices share. The host device is always there; others are looked up here, so that one
 * binary starts everywhere and says what it lacks. */
#include "host.h"
#include "impl.h"
#include "model/error.h"

#include <gmodule.h>
#include <string.h>
#include <time.h>

static nsec_t clock_ns(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * NSEC_PER_SEC + t.tv_nsec;
}

/* The one thing that all runs of a process share: when its first device was opened. */
static nsec_t clock_origin(void)
{
	static size_t origin;
	if (g_once_init_enter(&origin))
		g_once_init_leave(&origin, (size_t)clock_ns());
	return (nsec_t)origin;
}

nsec_t exec_now_ns(void)
{
	nsec_t origin = clock_origin();
	return clock_ns() - origin;
}

/* Where modules lie, from the folder of the program: beside it, in a build tree, installed. */
static const char *const module_folders[] = {".", "exec/cuda", "../exec/cuda", "../lib/esmoe", "../lib/x86_64-linux-gnu/esmoe"};

static char *module_path(void)
{
	g_autofree char *program = g_file_read_link("/proc/self/exe", NULL);
	g_autofree char *folder = g_path_get_dirname(program ? program : ".");
	for (size_t i = 0; i < G_N_ELEMENTS(module_folders); i++) {
		g_autofree char *path = g_build_filename(folder, module_folders[i], "esmoe-cuda.so", NULL);
		if (g_file_test(path, G_FILE_TEST_EXISTS))
			return g_steal_pointer(&path);
	}
	return NULL;
}

/* Opened when its device is first asked for; it stays. */
static const struct device_impl *cuda(GError **error)
{
	const struct device_impl *(*device)(void);
	g_autofree char *path = module_path();
	if (!path) {
		g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_DEVICE,
		            "device cuda: this esmoe was built without its CUDA module, which needs nvcc, cuBLAS and NCCL; the host device is there");
		return NULL;
	}
	GModule *module = g_module_open(path, G_MODULE_BIND_LOCAL);
	if (!module || !g_module_symbol(module, "esmoe_device", (gpointer *)&device)) {
		g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_DEVICE, "device cuda: %s; LD_LIBRARY_PATH may name the folder of CUDA's libraries",
		            g_module_error());
		return NULL;
	}
	g_module_make_resident(module);
	return device();
}

static const struct device_impl *host(GError **error)
{
	return &host_impl;
}

static const struct kind {
	const char *name;
	const struct device_impl *(*impl)(GError **error);
} kinds[] = {{"host", host}, {"cuda", cuda}};

static const struct device_impl *find(const char *name, GError **error)
{
	for (size_t i = 0; i < G_N_ELEMENTS(kinds); i++)
		if (strcmp(kinds[i].name, name) == 0)
			return kinds[i].impl(error);
	g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_DEVICE, "device '%s' is unknown: host or cuda", name);
	return NULL;
}

const struct device_info *device_find(const char *name, GError **error)
{
	const struct device_impl *impl = find(name, error);
	return impl ? impl->info : NULL;
}

bool device_open(const char *name, int count, uint64_t arena_bytes, struct device **devices, struct device_group **group, GError **error)
{
	const struct device_members all = {0, count, NULL};
	return device_open_among(name, count, arena_bytes, &all, devices, group, error);
}

bool device_open_among(const char *name, int count, uint64_t arena_bytes, const struct device_members *members, struct device **devices,
                       struct device_group **group, GError **error)
{
	const struct device_impl *impl = find(name, error);
	g_assert(count > 0 && members->first + count <= members->total && (members->ranks || count == members->total));
	clock_origin();
	return impl && impl->open(count, arena_bytes, members, devices, group, error);
}

const struct device_info *device_info(const struct device *d)
{
	return d->impl->info;
}

/* ---- through the table ---- */

void device_close(struct device **devices, int count, struct device_group *group)
{
	if (group)
		group->impl->core->close(devices, count, group);
}

char *device_describe(const struct device *d)
{
	return d->impl->core->describe(d);
}

bool device_check(struct device *d, GError **error)
{
	return d->impl->core->check(d, error);
}

void device_fail(struct device *d, const GError *error)
{
	d->impl->core->fail(d, error);
}

void *device_alloc(struct device *d, size_t bytes, const char *what, GError **error)
{
	return d->impl->core->alloc(d, bytes, what, error);
}

uint64_t device_used_bytes(const struct device *d)
{
	return d->impl->core->used_bytes(d);
}

void *pinned_alloc(struct device *d, size_t bytes, GError **error)
{
	return d->impl->core->pinned_alloc(d, bytes, error);
}

void pinned_free(struct device *d, void *p)
{
	d->impl->core->pinned_free(d, p);
}

struct device_stream *device_stream_new(struct device *d, const char *name, GError **error)
{
	return d->impl->core->stream_new(d, name, error);
}

void device_stream_keep_core(struct device_stream *s, int nth)
{
	s->device->impl->core->stream_keep_core(s, nth);
}

void device_stream_free(struct device_stream *s)
{
	if (s)
		s->device->impl->core->stream_free(s);
}

struct device_event *device_event_new(struct device *d)
{
	return d->impl->core->event_new(d);
}

void device_event_free(struct device_event *e)
{
	if (e)
		e->device->impl->core->event_free(e);
}

void device_event_record(struct device_stream *s, struct device_event *e)
{
	s->device->impl->core->event_record(s, e);
}

void device_stream_wait(struct device_stream *s, struct device_event *e)
{
	s->device->impl->core->stream_wait(s, e);
}

void device_event_arm(struct device_event *e)
{
	e->device->impl->core->event_arm(e);
}

void device_event_signal(struct device_event *e)
{
	e->device->impl->core->event_signal(e);
}

bool device_event_wait(struct device_event *e, GError **error)
{
	return e->device->impl->core->event_wait(e, error);
}

nsec_t device_event_ns(const struct device_event *e)
{
	return e->device->impl->core->event_ns(e);
}

void device_upload(struct device_stream *s, void *device, const void *pinned, size_t bytes)
{
	s->device->impl->core->upload(s, device, pinned, bytes);
}

void device_download(struct device_stream *s, void *pinned, const void *device, size_t bytes)
{
	s->device->impl->core->download(s, pinned, device, bytes);
}

void device_copy(struct device_stream *s, void *to, const void *from, size_t bytes)
{
	s->device->impl->core->copy(s, to, from, bytes);
}

void device_zero(struct device_stream *s, void *p, size_t bytes)
{
	s->device->impl->core->zero(s, p, bytes);
}

void device_stage_begin(struct device_stream *s, uint32_t id, const char *kind)
{
	s->device->impl->core->stage_begin(s, id, kind);
}

void device_stage_end(struct device_stream *s)
{
	s->device->impl->core->stage_end(s);
}

bool device_record_stages(struct device *d)
{
	return d->impl->core->record_stages(d);
}

void device_stages_ended(struct device *d)
{
	d->impl->core->stages_ended(d);
}

bool device_stage_times(struct device *d, uint32_t id, nsec_t *start_ns, nsec_t *end_ns)
{
	return d->impl->core->stage_times(d, id, start_ns, end_ns);
}
