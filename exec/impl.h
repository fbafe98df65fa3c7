/* What a kind of device puts behind device.h: one table a room of it, chosen once when the devices are opened. Members promise what their namesakes
 * in device.h say; structs of a kind begin with these. */
#pragma once

#include "device.h"
#include "model/footprint_blocks.h" /* constants of each kind of device */

struct device_impl;

struct device {
	const struct device_impl *impl;
};
struct device_stream {
	struct device *device;
};
struct device_event {
	struct device *device;
};
struct device_group {
	const struct device_impl *impl;
};

struct device_core {
	void (*close)(struct device **devices, int count, struct device_group *group);
	char *(*describe)(const struct device *d);
	bool (*check)(struct device *d, GError **error);
	void (*fail)(struct device *d, const GError *error);
	void *(*alloc)(struct device *d, size_t bytes, const char *what, GError **error);
	uint64_t (*used_bytes)(const struct device *d);
	void *(*pinned_alloc)(struct device *d, size_t bytes, GError **error);
	void (*pinned_free)(struct device *d, void *p);
	struct device_stream *(*stream_new)(struct device *d, const char *name, GError **error);
	void (*stream_keep_core)(struct device_stream *s, int nth);
	void (*stream_free)(struct device_stream *s);
	struct device_event *(*event_new)(struct device *d);
	void (*event_free)(struct device_event *e);
	void (*event_record)(struct device_stream *s, struct device_event *e);
	void (*stream_wait)(struct device_stream *s, struct device_event *e);
	void (*event_arm)(struct device_event *e);
	void (*event_signal)(struct device_event *e);
	bool (*event_wait)(struct device_event *e, GError **error);
	nsec_t (*event_ns)(const struct device_event *e);
	void (*upload)(struct device_stream *s, void *device, const void *pinned, size_t bytes);
	void (*download)(struct device_stream *s, void *pinned, const void *device, size_t bytes);
	void (*copy)(struct device_stream *s, void *to, const void *from, size_t bytes);
	void (*zero)(struct device_stream *s, void *p, size_t bytes);
	bool (*record_stages)(struct device *d);
	void (*stage_begin)(struct device_stream *s, uint32_t id, const char *kind);
	void (*stage_end)(struct device_stream *s);
	void (*stages_ended)(struct device *d);
	bool (*stage_times)(struct device *d, uint32_t id, nsec_t *start_ns, nsec_t *end_ns);
};

struct device_math {
	void (*embed)(struct device_stream *s, elem *x, const int32_t *tokens, const elem *wte, const elem *wpe, int B, int T, int D);
	void (*embed_backward)(struct device_stream *s, float *dwte, float *dwpe, const elem *dx, const int32_t *tokens, int B, int T, int D);
	void (*norm)(struct device_stream *s, elem *y, float *mean, float *rstd, const elem *x, const elem *gain, const elem *bias, int N, int D);
	void (*norm_backward)(struct device_stream *s, elem *dx, float *dgain, float *dbias, const elem *dy, const elem *x, const elem *gain,
	                      const float *mean, const float *rstd, int N, int D);
	void (*linear)(struct device_stream *s, elem *y, const elem *x, const elem *w, const elem *add, int N, int I, int O);
	void (*linear_backward)(struct device_stream *s, elem *dx, float *dw, const elem *dy, const elem *x, const elem *w, int N, int I, int O,
	                        bool add);
	void (*add)(struct device_stream *s, elem *y, const elem *a, const elem *b, size_t n);
	void (*activation)(struct device_stream *s, elem *a, const elem *h, int N, int F, int activation);
	void (*activation_backward)(struct device_stream *s, elem *dh, const elem *da, const elem *h, int N, int F, int activation);
	void (*experts)(struct device_stream *s, elem *y, const elem *x, const struct expert_rows *pieces, int n, const struct expert_shape *shape,
	                const struct expert_space *space);
	void (*experts_backward)(struct device_stream *s, elem *rows, const elem *x, const struct expert_rows *pieces, int n,
	                         const struct expert_shape *shape, const struct expert_space *space);
	void (*head)(struct device_stream *s, float *loss, elem *dx, float *dw, elem *logits, const elem *x, const elem *w, const int32_t *targets,
	             int N, int D, int V, int chunk, double total, bool tied);
	void (*start)(struct device_stream *s, elem *param, float *master, size_t n, const struct start *start);
	void (*accumulate)(struct device_stream *s, float *to, const float *from, size_t n);
	void (*cast)(struct device_stream *s, elem *to, const float *from, size_t n);
	void (*adam)(struct device_stream *s, elem *param, float *master, float *m, float *v, float *gradient, size_t n, const struct adam_step *a);
};

struct device_attention {
	void (*attention)(struct device_stream *s, elem *o, float *lse, const elem *qkv, int B, int T, int H, int K, int C);
	void (*attention_backward)(struct device_stream *s, elem *dqkv, const elem *d_o, const elem *qkv, const elem *o, const float *lse, int B,
	                           int T, int H, int K, int C);
};

struct device_gate {
	void (*gate)(struct device_stream *s, float *prob, int32_t *index, uint32_t *counts, float *aux, const elem *logits, int N, int E, int k);
	void (*gate_backward)(struct device_stream *s, elem *dlogits, const float *dweight, const float *prob, const int32_t *index,
	                      const uint32_t *counts, const elem *logits, float balance, float z, int N, int total, int E, int k);
	void (*assign)(struct device_stream *s, int32_t *index, const uint32_t *counts, int N, int E, int k);
	void (*sum_counts)(struct device_stream *s, uint32_t *sum, const uint32_t *counts, int G, int E);
	void (*route)(struct device_stream *s, int32_t *order, int32_t *row, const int32_t *index, int N, int E, int k, uint32_t capacity);
	void (*gather)(struct device_stream *s, elem *rows, const elem *x, const int32_t *order, const float *weight, int R, int D, int k, int width);
	void (*scatter)(struct device_stream *s, elem *y, const elem *rows, const int32_t *row, const float *weight, int N, int D, int k, int width);
	void (*pick)(struct device_stream *s, float *weight, const float *prob, const int32_t *index, int N, int E, int k);
	void (*column)(struct device_stream *s, float *dweight, const elem *rows, const int32_t *row, int pairs, int D, int width);
};

/* How far apart op_assign puts neighbours: near the golden section of N, with no factor in common. */
static inline int assign_stride(int N)
{
	int stride = (int)(0.6180339887 * N);
	for (; stride > 1; stride--) {
		int a = N, b = stride;
		while (b) {
			int rest = a % b;
			a = b;
			b = rest;
		}
		if (a == 1)
			break;
	}
	return stride < 1 ? 1 : stride;
}

struct device_collectives {
	void (*meet)(struct device_stream *s, struct device_group *g, int member);
	void (*all_to_all)(struct device_stream *s, struct device_group *g, int member, elem *receive, const elem *send,
	                   const struct traffic *traffic);
	void (*all_reduce)(struct device_stream *s, struct device_group *g, int member, float *x, size_t n);
	void (*reduce_scatter)(struct device_stream *s, struct device_group *g, int member, float *x, size_t n);
	void (*gather)(struct device_stream *s, struct device_group *g, int member, void *all, size_t bytes);
};

struct device_impl {
	const struct device_info *info;
	bool (*open)(int count, uint64_t arena_bytes, const struct device_members *members, struct device **devices, struct device_group **group,
	             GError **error);
	const struct device_core *core;
	const struct device_math *math;
	const struct device_attention *attention;
	const struct device_gate *gate;
	const struct device_collectives *collectives;
};
