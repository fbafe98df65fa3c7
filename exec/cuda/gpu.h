/* Inside of the CUDA device, shared by its files: a device is a GPU of this node, its streams are CUDA streams, its events CUDA events. The module is
 * opened at run time; what it needs of the program (errors, the clock) it finds there. */
#pragma once

#include "exec/impl.h"
#include "kernels.h"

#include <cublas_v2.h>
#include <cuda_runtime_api.h>
#include <pthread.h>
#include <stdatomic.h>

#define CUDA_ALIGNMENT 256
#define CUDA_WEIGHT_ELEMENTS 8 /* behind a row's D elements: an fp32 weight, and 16-byte rows stay so */
#define CUDA_HEAD_TOKENS 4096

struct cuda_group;

struct cuda_device {
	struct device base;
	struct cuda_group *group;
	int ordinal;
	uint64_t capacity, used_bytes; /* of the arena */
	GPtrArray *blocks;             /* device pointers */
	pthread_mutex_t lock;
	cudaEvent_t origin; /* happened at origin_ns on the host's clock */
	nsec_t origin_ns;
	cudaStream_t clock; /* for new origins */
};

/* Pointers of grouped GEMMs on their way to the device, in two halves: one is filled while the other is read. */
struct cuda_pointers {
	void **host, **device;
	cudaEvent_t read[2];
	size_t used;
	int half;
};

struct cuda_stream {
	struct device_stream base;
	struct cuda_device *device;
	cudaStream_t stream;
	cublasHandle_t blas; /* NULL until the first GEMM */
	void *workspace, *scratch;
	size_t scratch_bytes;
	struct cuda_pointers pointers;
	char *name;
};

/* An occurrence comes from a stream or, after event_arm, from a host thread: then streams wait for `flag` to reach its number. */
struct cuda_event {
	struct device_event base;
	struct cuda_device *device;
	cudaEvent_t event;
	uint32_t *flag; /* pinned: occurrences signalled by the host */
	uint32_t armed;
	atomic_bool by_host;
	atomic_int_least64_t ns;
	pthread_mutex_t lock;
	pthread_cond_t changed;
	GList link;
};

struct cuda_collectives;

struct cuda_group {
	struct device_group base;
	int count;
	struct cuda_device **devices;
	pthread_mutex_t lock;
	GQueue events;
	GHashTable *pinned; /* address to bytes of what was registered */
	GError *error;      /* the first */
	atomic_bool failed;
	struct cuda_collectives *collectives; /* several devices only */
};

extern const struct device_impl cuda_impl;
extern const struct device_math cuda_math_table;
extern const struct device_attention cuda_attention_table;
extern const struct device_gate cuda_gate_table;
extern const struct device_collectives cuda_collectives_table;

static inline struct cuda_stream *cuda_stream_of(struct device_stream *s)
{
	return (struct cuda_stream *)s;
}
static inline struct cuda_device *cuda_device_of(const struct device *d)
{
	return (struct cuda_device *)d;
}

/* The calling thread works on the device from here on. */
void cuda_use(const struct cuda_device *d);
/* The group fails with what CUDA says; true when status is no error. */
bool cuda_ok(struct cuda_device *d, cudaError_t status, const char *what);
bool cuda_blas_ok(struct cuda_device *d, cublasStatus_t status, const char *what);
void cuda_fail(struct cuda_device *d, int code, const char *format, ...) G_GNUC_PRINTF(3, 4);
/* False: the group has failed, and nothing more is queued. */
bool cuda_ready(struct cuda_stream *s);
/* After a launcher: its error, if any, fails the group. */
void cuda_launched(struct cuda_stream *s, const char *what);
/* Queues a launcher of kernels.h on a stream, unless the group has failed. */
#define CUDA_LAUNCH(device_stream, what, launcher, ...)                                                                                              \
	do {                                                                                                                                         \
		struct cuda_stream *stream_ = cuda_stream_of(device_stream);                                                                         \
		if (cuda_ready(stream_)) {                                                                                                           \
			launcher(stream_->stream, __VA_ARGS__);                                                                                      \
			cuda_launched(stream_, what);                                                                                                \
		}                                                                                                                                    \
	} while (0)
/* For the operation that is queued: bytes of its own until it ends; NULL after a failure. */
void *cuda_scratch(struct cuda_stream *s, size_t bytes);

/* collectives.c */
struct cuda_collectives *cuda_collectives_new(struct cuda_group *g, GError **error);
void cuda_collectives_free(struct cuda_collectives *c);
void cuda_collectives_fail(struct cuda_collectives *c);
