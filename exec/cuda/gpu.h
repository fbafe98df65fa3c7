/* Inside of the CUDA device, shared by its files: a device is a GPU of this node, its streams are CUDA streams, its events CUDA events. The module is
 * opened at run time; what it needs of the program (errors, the clock) it finds there. */
#pragma once

#include "exec/impl.h"
#include "kernels.h"

#include <cublasLt.h>
#include <cuda_runtime_api.h>
#include <pthread.h>
#include <stdatomic.h>

#define CUDA_ALIGNMENT FOOTPRINT_ALIGNMENT
#define CUDA_WEIGHT_ELEMENTS FOOTPRINT_WEIGHT_BF16 /* behind a row's D elements: an fp32 weight, and 16-byte rows stay so */
#define CUDA_HEAD_TOKENS FOOTPRINT_HEAD_BF16

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

/* GEMMs of several experts run beside each other, on lanes: the stream itself and some that start after it and that it waits for. A GEMM of a few
 * hundred rows fills a third of a large GPU. */
#define CUDA_LANES FOOTPRINT_LANES_BF16

struct cuda_lane {
	cudaStream_t stream;
	void *workspace; /* of its GEMMs; NULL until the first */
	cudaEvent_t done;
};

struct cuda_gemms;

struct cuda_stream {
	struct device_stream base;
	struct cuda_device *device;
	cudaStream_t stream;
	struct cuda_lane lane[CUDA_LANES]; /* the first is `stream`; `done` of that one: where the others start */
	struct cuda_gemms *gemms;
	void *scratch;
	size_t scratch_bytes;
	char *name;
};

/* An occurrence comes from a stream or, after event_arm, from a host thread: then streams wait for `flag` to reach its number. */
struct cuda_event {
	struct device_event base;
	struct cuda_device *device;
	cudaEvent_t event;
	uint32_t *flag; /* one of the group's: occurrences signalled by the host */
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
	int count;                     /* GPUs of this process */
	struct device_members members; /* of them and those of other processes */
	struct cuda_device **devices;
	pthread_mutex_t lock;
	GQueue events;
	GHashTable *pinned;             /* address to bytes of what was registered */
	GPtrArray *flag_blocks, *flags; /* pinned; those in them that no event has */
	GError *error;                  /* the first */
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

/* The group's first error stays; streams and threads that wait for the host are let go. */
void cuda_group_fail(struct cuda_group *g, const GError *error);
bool cuda_group_check(struct cuda_group *g, GError **error);
/* A status as the caller's error, before there is a group to fail; and the error code it has. */
bool cuda_opened(cudaError_t status, const char *what, GError **error);
int cuda_code_of(cudaError_t status);
/* A new origin of the device's times; the caller holds its lock. */
bool cuda_find_origin(struct cuda_device *d);
/* The host's occurrences have happened, as far as they were announced. */
void cuda_event_release(struct cuda_event *e);

/* An operand of a GEMM: (rows, columns) with `ld` elements from row to row, or its transpose. */
struct cuda_operand {
	const void *at;
	int ld;
	bool turned;
};
/* gemm.c: c (m, n; 2 or 4 bytes an element) = a (m, k) b (k, n) in bf16, plus `add` (as c; NULL: nothing; may be c). Between cuda_spread and
 * cuda_collect `n` GEMMs may run on any lane; they come after what the stream had, and before what it gets next. */
void cuda_gemm(struct cuda_stream *s, int lane, int m, int n, int k, struct cuda_operand a, struct cuda_operand b, void *c, int ldc, int bytes,
               const void *add);
void cuda_spread(struct cuda_stream *s, int n);
void cuda_collect(struct cuda_stream *s, int n);
void cuda_gemms_free(struct cuda_gemms *g);

/* Members of the device's table: memory.c, streams.c, activity.c. */
bool cuda_record_stages(struct device *d);
void cuda_stage_begin(struct device_stream *s, uint32_t id, const char *kind);
void cuda_stage_end(struct device_stream *s);
void cuda_stages_ended(struct device *d);
bool cuda_stage_times(struct device *d, uint32_t id, nsec_t *start_ns, nsec_t *end_ns);
void *cuda_alloc(struct device *d, size_t bytes, const char *what, GError **error);
/* The same for what the stream is the first to use, while others run: does not wait for the GPU, as cudaMalloc may, on which a collective may be
 * waiting for one that this thread has yet to queue. Other GPUs cannot reach it. */
void *cuda_alloc_on(struct cuda_device *d, cudaStream_t stream, size_t bytes, const char *what, GError **error);
/* A flag at zero, and its way back; NULL: the group has failed. */
uint32_t *cuda_flag_take(struct cuda_device *d);
void cuda_flag_return(struct cuda_device *d, uint32_t *flag);
uint64_t cuda_used_bytes(const struct device *d);
void *cuda_pinned_alloc(struct device *device, size_t bytes, GError **error);
void cuda_pinned_free(struct device *device, void *p);
struct device_stream *cuda_stream_new(struct device *d, const char *name, GError **error);
void cuda_stream_keep_core(struct device_stream *s, int nth);
void cuda_stream_free(struct device_stream *stream);
struct device_event *cuda_event_new(struct device *device);
void cuda_event_free(struct device_event *event);
void cuda_event_record(struct device_stream *stream, struct device_event *event);
void cuda_stream_wait(struct device_stream *stream, struct device_event *event);
void cuda_event_arm(struct device_event *event);
void cuda_event_signal(struct device_event *event);
bool cuda_event_wait(struct device_event *event, GError **error);
nsec_t cuda_event_ns(const struct device_event *event);
void cuda_upload(struct device_stream *s, void *device, const void *pinned, size_t bytes);
void cuda_download(struct device_stream *s, void *pinned, const void *device, size_t bytes);
void cuda_copy(struct device_stream *s, void *to, const void *from, size_t bytes);
void cuda_zero(struct device_stream *stream, void *p, size_t bytes);

/* collectives.c */
struct cuda_collectives *cuda_collectives_new(struct cuda_group *g, GError **error);
void cuda_collectives_free(struct cuda_collectives *c);
void cuda_collectives_fail(struct cuda_collectives *c);
