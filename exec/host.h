/* Inside of the host device, shared by its files: virtual GPUs are an arena each, and streams are threads. All devices of a run fail together: a
 * collective that one of them cannot reach would never end. */
#pragma once

#include "host_loops.h"
#include "impl.h"
#include "worker.h"

#include <pthread.h>
#include <stdatomic.h>

#define HOST_ALIGNMENT FOOTPRINT_ALIGNMENT

/* What a member brings to a collective. */
struct host_post {
	float *to;
	const float *from;
	const struct segment *sends;
	int n_sends, width;
	size_t n; /* elements or bytes */
};

struct host_group {
	struct device_group base;
	const struct host_loops *loops;
	struct host_cores *cores;
	int count;                     /* devices of this process */
	struct device_members members; /* of them and those of other processes */
	struct host_device **devices;
	pthread_mutex_t lock;
	pthread_cond_t met;     /* the turn changed, or the group failed */
	int waiting;            /* members that got to the meeting */
	uint64_t turn;          /* meetings so far */
	bool exchanging;        /* with other processes */
	GQueue events;          /* of all devices: a failure wakes who waits for them */
	struct host_post *post; /* (G) of all processes */
	GPtrArray *brought;     /* of other processes to the collective that runs, GBytes by rank */
	GError *error;          /* the first */
	atomic_bool failed;
};

struct host_device {
	struct device base;
	struct host_group *group;
	int index; /* among those of this host */
	char *arena;
	uint64_t arena_bytes, used_bytes;
};

struct host_stream {
	struct device_stream base;
	struct host_device *device;
	struct worker *worker;
	float *scratch;
	size_t scratch_floats;
};

/* An operation as its stream runs it; args are a copy of those pushed. */
typedef void (*host_op)(struct host_stream *s, const void *args);
#define HOST_ARGS (WORKER_ARGS - 32)

extern const struct device_impl host_impl;
extern const struct device_math host_math_table;
extern const struct device_attention host_attention_table;
extern const struct device_gate host_gate_table;
extern const struct device_collectives host_collectives_table;
void host_adam(struct device_stream *s, elem *param, float *master, float *m, float *v, float *gradient, size_t n, const struct adam_step *a);

/* Cores that the process may use, as they are now. Freed by g_free. */
struct host_cores *host_cores_new(void);
/* The thread of a GPU's computation, and those of its other streams. */
void host_core_keep(const struct host_cores *c, struct worker *w, int gpu);
void host_core_keep_off(const struct host_cores *c, struct worker *w, int gpu, int gpus);

/* Queues the operation; skipped once the group has failed. */
void host_push(struct device_stream *s, host_op op, const void *args, size_t bytes);
/* For the operation that runs: n floats, its own until it ends, not cleared. */
float *host_scratch(struct host_stream *s, size_t n);
/* From within an operation: the group fails; the first error is kept. */
void host_fail(struct host_stream *s, int code, const char *format, ...) G_GNUC_PRINTF(3, 4);
