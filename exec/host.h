/* Inside of the host device, shared by its files: virtual GPUs are an arena each, and streams are threads. All devices of a run fail together: a
 * collective that one of them cannot reach would never end. */
#pragma once

#include "device.h"
#include "host_loops.h"
#include "worker.h"

#include <pthread.h>
#include <stdatomic.h>

#define HOST_ALIGNMENT 256

/* What a member brings to a collective. */
struct host_post {
	float *to;
	const float *from;
	const struct segment *sends;
	int n_sends;
};

struct device_group {
	const struct host_loops *loops;
	int count;
	struct device **devices;
	pthread_mutex_t lock;
	pthread_cond_t met;     /* the turn changed, or the group failed */
	int waiting;            /* members that got to the meeting */
	uint64_t turn;          /* meetings so far */
	GQueue events;          /* of all devices: a failure wakes who waits for them */
	struct host_post *post; /* (G) */
	GError *error;          /* the first */
	atomic_bool failed;
};

struct device {
	struct device_group *group;
	char *arena;
	uint64_t arena_bytes, used_bytes;
};

struct device_stream {
	struct device *device;
	struct worker *worker;
	float *scratch;
	size_t scratch_floats;
};

/* An operation as its stream runs it; args are a copy of those pushed. */
typedef void (*host_op)(struct device_stream *s, const void *args);
#define HOST_ARGS (WORKER_ARGS - 32)

bool host_open(int count, uint64_t arena_bytes, struct device **devices, struct device_group **group, GError **error) G_GNUC_WARN_UNUSED_RESULT;

/* Queues the operation; skipped once the group has failed. */
void host_push(struct device_stream *s, host_op op, const void *args, size_t bytes);
/* For the operation that runs: n floats, its own until it ends, not cleared. */
float *host_scratch(struct device_stream *s, size_t n);
/* From within an operation: the group fails; the first error is kept. */
void host_fail(struct device_stream *s, int code, const char *format, ...) G_GNUC_PRINTF(3, 4);
