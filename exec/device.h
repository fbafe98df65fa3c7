/* What the executor computes on. A device is one (virtual) GPU: an arena of memory, streams, events, operations. Operations are queued on a stream
 * and return at once; a stream runs them in order. The first error of a device is kept and returned by the next call that can fail (device_check,
 * event_wait).
 *
 * Letters: B sequences, T tokens of a sequence, N = B T tokens, D d_model, H heads, K heads of keys and values, C d_head, F inner size of an FFN, E
 * experts, k experts a token, V vocabulary. Tensors are row-major; `elem` is the device's element type (fp32 on the host device), gradients of
 * parameters and everything named float are fp32. `+=` means that the operation adds to what is there. */
#pragma once

#include "model/autoptr.h"
#include "model/network.h"
#include "model/units.h"

#include <glib.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct device;
struct device_stream;
struct device_event;
struct device_group; /* a communicator: all devices of a run, also those of other processes */
struct ranks;
typedef void elem;

struct device_info {
	const char *name;    /* "host", "cuda" */
	int element_bytes;   /* of elem */
	size_t alignment;    /* of arena blocks */
	int weight_elements; /* that a row's combine weight takes behind its D elements */
	int head_tokens;     /* tokens whose logits are in memory at once */
	int hot_after_steps; /* of training, after which its clock has come down to what its power limit allows; 0: no such thing */
	int launcher_cores;  /* of the host for each GPU's launcher, beside the CPU optimizer's; 0: its streams compute on the host themselves */
	/* for how long a launcher thread, and those of the CPU optimizer, look for work before they sleep: 0 where cores are few */
	nsec_t patience_ns, adam_patience_ns;
	/* all-to-alls want staging (struct traffic) */
	bool packs_exchanges;
};

/* What a device of this name is, before any is opened; ESMOE_ERROR_DEVICE says what is missing. Borrowed. */
const struct device_info *device_find(const char *name, GError **error) G_GNUC_WARN_UNUSED_RESULT;

/* ---- life ---- */

/* Opens `count` devices named "host" (or "cuda": the module opened at run time), each with an arena of `arena_bytes`, in one group.
 * ESMOE_ERROR_DEVICE when there are none. devices (count) and *group are owned by the caller. */
bool device_open(const char *name, int count, uint64_t arena_bytes, struct device **devices, struct device_group **group,
                 GError **error) G_GNUC_WARN_UNUSED_RESULT;
/* The same as one of several processes: its devices are members first .. first + count - 1 of a group of `total`. `ranks` is borrowed and must
 * outlive the group. Real GPUs are taken from number ranks_local * count on or, where a process sees no more than it needs, from 0. */
struct device_members {
	int first, total;
	struct ranks *ranks; /* NULL: alone */
};
bool device_open_among(const char *name, int count, uint64_t arena_bytes, const struct device_members *members, struct device **devices,
                       struct device_group **group, GError **error) G_GNUC_WARN_UNUSED_RESULT;
void device_close(struct device **devices, int count, struct device_group *group);
const struct device_info *device_info(const struct device *d);
/* What it is, for files that say where something was measured: "NVIDIA H200, driver 580.65.06, CUDA 13.0". Owned by the caller. */
char *device_describe(const struct device *d);
bool device_check(struct device *d, GError **error) G_GNUC_WARN_UNUSED_RESULT;
/* All devices of the group fail: what is queued is skipped, whoever waits for an event or in a collective goes on, and every call that can fail
 * returns the first error. From any thread. */
void device_fail(struct device *d, const GError *error);

/* ---- memory ---- */

/* A block of the arena, zeroed, for the life of the device. ESMOE_ERROR_FIT when the arena is full: name what it was for. */
void *device_alloc(struct device *d, size_t bytes, const char *what, GError **error) G_GNUC_WARN_UNUSED_RESULT;
uint64_t device_used_bytes(const struct device *d);
/* Host memory that copies can reach directly, zeroed; one copy for all devices of the host. Whole pages (4 KiB) begin at one. Both calls may wait for
 * all that was queued on any device: never call them from what that waits for. */
void *pinned_alloc(struct device *d, size_t bytes, GError **error) G_GNUC_WARN_UNUSED_RESULT;
void pinned_free(struct device *d, void *p);

/* ---- streams and events ---- */

struct device_stream *device_stream_new(struct device *d, const char *name, GError **error) G_GNUC_WARN_UNUSED_RESULT;
/* A stream that is always busy: `nth` of them so far. On the host device its thread keeps a core, the last first, where two would otherwise meet on
 * one. */
void device_stream_keep_core(struct device_stream *s, int nth);
void device_stream_free(struct device_stream *s); /* after it has drained */

/* Events are reused: each record or signal makes a new occurrence, a wait is for the latest one recorded before the wait was queued. */
struct device_event *device_event_new(struct device *d);
void device_event_free(struct device_event *e);                            /* after the streams that record it or wait for it */
void device_event_record(struct device_stream *s, struct device_event *e); /* when the stream gets here */
void device_stream_wait(struct device_stream *s, struct device_event *e);  /* the stream goes on when it has happened */
/* Events that a host thread signals (optimizer workers, SSD): reset before the waits are queued, then signalled once. */
void device_event_arm(struct device_event *e);
void device_event_signal(struct device_event *e);
bool device_event_wait(struct device_event *e, GError **error) G_GNUC_WARN_UNUSED_RESULT; /* the calling host thread waits */
nsec_t device_event_ns(const struct device_event *e);                                     /* when it happened, on the clock of exec_now_ns */

/* One clock for host and devices, nanoseconds since the first device was opened. */
nsec_t exec_now_ns(void);

/* ---- copies ---- */
void device_upload(struct device_stream *s, void *device, const void *pinned, size_t bytes);
void device_download(struct device_stream *s, void *pinned, const void *device, size_t bytes);
void device_copy(struct device_stream *s, void *to, const void *from, size_t bytes);
void device_zero(struct device_stream *s, void *p, size_t bytes);

/* ---- stages, for traces and profilers ---- */

/* What the calling thread queues between these belongs to the stage. */
void device_stage_begin(struct device_stream *s, uint32_t id, const char *kind);
void device_stage_end(struct device_stream *s);
/* From here on the devices of this kind note when the work of each stage really ran; false: they cannot, events' times are what there is. */
bool device_record_stages(struct device *d);
/* When all stages so far have ended; then the times of each, once; false: not known. */
void device_stages_ended(struct device *d);
bool device_stage_times(struct device *d, uint32_t id, nsec_t *start_ns, nsec_t *end_ns);

/* ---- operations ---- */

/* x (N, D) = wte[tokens] + wpe[position in the sequence]; and its gradient into dwte (V, D), dwpe (T, D) +=. */
void op_embed(struct device_stream *s, elem *x, const int32_t *tokens, const elem *wte, const elem *wpe, int B, int T, int D);
void op_embed_backward(struct device_stream *s, float *dwte, float *dwpe, const elem *dx, const int32_t *tokens, int B, int T, int D);

/* Layer norm over D with gain and bias; mean and rstd (N) are kept for the backward. dx +=, dgain (D) +=, dbias (D) +=. */
void op_norm(struct device_stream *s, elem *y, float *mean, float *rstd, const elem *x, const elem *gain, const elem *bias, int N, int D);
void op_norm_backward(struct device_stream *s, elem *dx, float *dgain, float *dbias, const elem *dy, const elem *x, const elem *gain,
                      const float *mean, const float *rstd, int N, int D);

/* y (N, O) = x (N, I) w (I, O), plus `add` (N, O; NULL: nothing; may be y). Backward: dx (N, I) = dy w^T, plus dx when `add`; dw (I, O) += x^T dy.
 * Either may be NULL. */
void op_linear(struct device_stream *s, elem *y, const elem *x, const elem *w, const elem *add, int N, int I, int O);
void op_linear_backward(struct device_stream *s, elem *dx, float *dw, const elem *dy, const elem *x, const elem *w, int N, int I, int O, bool add);

/* Causal attention. qkv (N, (H + 2 K) C): queries, keys, values of a token side by side; o (N, H C); lse (B, H, T) is kept for the backward. dqkv is
 * written. */
void op_attention(struct device_stream *s, elem *o, float *lse, const elem *qkv, int B, int T, int H, int K, int C);
void op_attention_backward(struct device_stream *s, elem *dqkv, const elem *d_o, const elem *qkv, const elem *o, const float *lse, int B, int T,
                           int H, int K, int C);

/* y (N, D) = a + b; and y += a. */
void op_add(struct device_stream *s, elem *y, const elem *a, const elem *b, size_t n);

/* The FFN's activation. Without a gate h (N, F) -> a (N, F); gated (GEGLU, SwiGLU) h (N, 2 F): gate half, then linear half -> a (N, F). GELU is the
 * tanh form. */
void op_activation(struct device_stream *s, elem *a, const elem *h, int N, int F, int activation);
void op_activation_backward(struct device_stream *s, elem *dh, const elem *da, const elem *h, int N, int F, int activation);

/* Experts: `n` pieces of rows that lie in one buffer, each of another expert, of N rows at most together; in grouped GEMMs where that pays. y rows
 * (D) = act(x up) down. */
struct expert_rows {
	const elem *up, *down; /* (D, F or 2 F), (F, D) */
	void *dup, *ddown;     /* their gradients, in the format asked for */
	size_t from;           /* first row */
	int rows;
	bool fresh; /* the gradients are written, otherwise += */
};
struct expert_shape {
	int D, F, activation;
	int gradient_bytes; /* of an element of dup and ddown: 4, or 2 (bf16) */
};
/* Scratch for N rows: hidden (N, F or 2 F), active (N, F); and their gradients. */
struct expert_space {
	elem *hidden, *active, *dhidden, *dactive;
};
void op_experts(struct device_stream *s, elem *y, const elem *x, const struct expert_rows *pieces, int n, const struct expert_shape *shape,
                const struct expert_space *space);
/* rows (D + weight_elements): the gradients of the weighted outputs and the combine weights come in; the gradients of x and of the weights go out. */
void op_experts_backward(struct device_stream *s, elem *rows, const elem *x, const struct expert_rows *pieces, int n,
                         const struct expert_shape *shape, const struct expert_space *space);

/* Router. logits (N, E) -> prob (N, E) softmax; index (N, k) the largest, ties to the lower expert; counts (E) of this device's tokens; aux (2): sum
 * over the tokens of log-sum-exp squared (z-loss), and E * sum_e f_e P_e of this device's tokens (load balance; Switch, arXiv 2101.03961, eq. 4),
 * with f_e = counts[e] / (N k) and P_e the mean of prob. */
void op_gate(struct device_stream *s, float *prob, int32_t *index, uint32_t *counts, float *aux, const elem *logits, int N, int E, int k);
/* dlogits (N, E) from dweight (N, k), the gradient of each chosen probability, plus the gradients of z * aux[0] / N and of balance * E * sum_e f_e
 * P_e, where P_e is of these tokens and f_e of the `total` tokens, those of other devices too, that `counts` (E) counts. */
void op_gate_backward(struct device_stream *s, elem *dlogits, const float *dweight, const float *prob, const int32_t *index, const uint32_t *counts,
                      const elem *logits, float balance, float z, int N, int total, int E, int k);
/* index (N, k) of a rule instead of the gate: expert e gets counts[e] of the N k choices, N at most, its tokens spread over the batch and a token's
 * choices all different. */
void op_assign(struct device_stream *s, int32_t *index, const uint32_t *counts, int N, int E, int k);
/* sum (E) of the counts (G, E) of all devices. */
void op_sum_counts(struct device_stream *s, uint32_t *sum, const uint32_t *counts, int G, int E);

/* order (N k): the (token, choice) pairs n k + i sorted by expert, then token; with a capacity > 0 order is (E capacity), expert e's rows start at
 * e * capacity, what overflows is dropped (row[pair] = -1) and unused rows have order -1. row (N k): where each pair went. */
void op_route(struct device_stream *s, int32_t *order, int32_t *row, const int32_t *index, int N, int E, int k, uint32_t capacity);
/* rows (R, width) gathered from x (N, D): row r is x[order[r] / k], zero where order is -1. width is D or, with weights, D + weight_elements: behind
 * its D elements lies fp32 weight[order[r]] (N k), as the device keeps it. */
void op_gather(struct device_stream *s, elem *rows, const elem *x, const int32_t *order, const float *weight, int R, int D, int k, int width);
/* y (N, D) += sum over the choices i of weight[n k + i] * rows[row[n k + i]] (width >= D; weight NULL: 1). Dropped pairs add nothing. */
void op_scatter(struct device_stream *s, elem *y, const elem *rows, const int32_t *row, const float *weight, int N, int D, int k, int width);
/* weight (N k) = prob at index: the combine weights; and dweight (N k) = the weights of the returned rows (0 where dropped). */
void op_pick(struct device_stream *s, float *weight, const float *prob, const int32_t *index, int N, int E, int k);
void op_column(struct device_stream *s, float *dweight, const elem *rows, const int32_t *row, int pairs, int D, int width);
/* Head: loss (1) += mean cross entropy of x (N, D) w (D, V) against targets (N) times N / total, and its gradients dx (N, D) written, dw (D, V) +=;
 * in chunks of `chunk` tokens, logits (chunk, V) is scratch. `tied`: w is wte (V, D) instead. */
void op_head(struct device_stream *s, float *loss, elem *dx, float *dw, elem *logits, const elem *x, const elem *w, const int32_t *targets, int N,
             int D, int V, int chunk, double total, bool tied);

/* AdamW on n parameters that live on the device: master (NULL: param is fp32 and its own master), m, v, gradient fp32, which is cleared. */
struct adam_step {
	float lr, beta1, beta2, eps, decay;
	int t;
};
void op_adam(struct device_stream *s, elem *param, float *master, float *m, float *v, float *gradient, size_t n, const struct adam_step *a);
/* Initial values (n) of the tensor whose key (start.h) is given, into param and, unless NULL, master. */
struct start;
void op_start(struct device_stream *s, elem *param, float *master, size_t n, const struct start *start);
/* to += from, fp32; and elem <- fp32. */
void op_accumulate(struct device_stream *s, float *to, const float *from, size_t n);
void op_cast(struct device_stream *s, elem *to, const float *from, size_t n);

/* ---- collectives: every member of the group queues the same call, in the same order ---- */

/* The stream goes on when all members have got here: an event recorded behind it says when a collective began. */
void group_meet(struct device_stream *s, struct device_group *g, int member);

/* `rows` rows from row `from` of the sender's buffer to row `to` of the receiver's; peer: the member at the other end. */
struct segment {
	int peer;
	int from, to, rows;
};
/* What a member sends and receives, in rows of `width` elements. Between any two members both list their segments in the same order. */
struct traffic {
	const struct segment *sends, *receives;
	int n_sends, n_receives;
	int width;
	elem *packed_out, *packed_in; /* where the device packs exchanges: room for all rows that go to others, that come from others */
};
/* The lists are copied; staging is in use until the stream has passed, so that exchanges of one stream may share it. */
void group_all_to_all(struct device_stream *s, struct device_group *g, int member, elem *receive, const elem *send, const struct traffic *traffic);
/* Sums in the order of the members: the same bits everywhere. all_reduce in place; reduce_scatter leaves member i's share [i n / G, (i + 1) n / G)
 * valid. */
void group_all_reduce(struct device_stream *s, struct device_group *g, int member, float *x, size_t n);
void group_reduce_scatter(struct device_stream *s, struct device_group *g, int member, float *x, size_t n);
/* Each member's `bytes`, which lie at its place `member * bytes` of `all`, at that place of everyone's. */
void group_gather(struct device_stream *s, struct device_group *g, int member, void *all, size_t bytes);
