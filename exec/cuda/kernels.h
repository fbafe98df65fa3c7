/* Launchers of the CUDA device's kernels: plain arguments, valid C and C++. Each queues its kernels on `s` and returns; an error of a launch stays
 * for cudaGetLastError. Letters, shapes and meaning as in exec/device.h, with elem = bf16: parameters and activations bf16, arithmetic, statistics
 * and gradients of parameters fp32. Any size works, 0 rows included; pointers are 256-byte aligned at the start of a buffer, rows wherever the width
 * puts them, and widths that are multiples of 8 elements take 16-byte accesses. Sums have a fixed order unless a launcher says otherwise: two runs
 * agree bit for bit.
 *
 * Rows that travel with a combine weight are W elements wide, W >= D + 8: the fp32 weight lies in elements D and D + 1 when D is even, otherwise in D
 * + 1 and D + 2 (weight_at), so that it is aligned as W is even. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct CUstream_st *cuda_stream;
typedef uint16_t bf16; /* its bits */

static inline int weight_at(int D)
{
	return D + (D & 1);
}

/* ---- embedding (tokens.cu) ---- */
void cuda_embed(cuda_stream s, bf16 *x, const int32_t *tokens, const bf16 *wte, const bf16 *wpe, int B, int T, int D);
/* dwte by atomics: the order of its sums is open. */
void cuda_embed_backward(cuda_stream s, float *dwte, float *dwpe, const bf16 *dx, const int32_t *tokens, int B, int T, int D);

/* ---- norm (norm.cu) ---- */
void cuda_norm(cuda_stream s, bf16 *y, float *mean, float *rstd, const bf16 *x, const bf16 *gain, const bf16 *bias, int N, int D);
/* scratch: cuda_norm_scratch_floats(N, D). */
size_t cuda_norm_scratch_floats(int N, int D);
void cuda_norm_backward(cuda_stream s, bf16 *dx, float *dgain, float *dbias, const bf16 *dy, const bf16 *x, const bf16 *gain, const float *mean,
                        const float *rstd, float *scratch, int N, int D);

/* ---- attention (attention.cu): no T x T matrix in memory; C <= 256, and C a multiple of 8 ---- */
void cuda_attention(cuda_stream s, bf16 *o, float *lse, const bf16 *qkv, int B, int T, int H, int K, int C);
/* scratch: cuda_attention_scratch_floats(B, T, H, K, C). */
size_t cuda_attention_scratch_floats(int B, int T, int H, int K, int C);
void cuda_attention_backward(cuda_stream s, bf16 *dqkv, const bf16 *d_o, const bf16 *qkv, const bf16 *o, const float *lse, float *scratch, int B,
                             int T, int H, int K, int C);

/* ---- element by element (elements.cu) ---- */
void cuda_add(cuda_stream s, bf16 *y, const bf16 *a, const bf16 *b, size_t n);
/* `activation` is enum activation of model/network.h. */
void cuda_activation(cuda_stream s, bf16 *a, const bf16 *h, int N, int F, int activation);
void cuda_activation_backward(cuda_stream s, bf16 *dh, const bf16 *da, const bf16 *h, int N, int F, int activation);
/* Of an expert whose output row r is weighted by c = the weight in rows (R, W): da (R, F) is the gradient of the unweighted output times down^T. dh
 * (R, F or 2 F) = c da act'(h); active (R, F) = c act(h), what the gradient of `down` multiplies; rows' weight <- <da, act(h)>, the gradient of c. */
void cuda_expert_backward(cuda_stream s, bf16 *dh, bf16 *active, bf16 *rows, const bf16 *da, const bf16 *h, int R, int F, int W, int D,
                          int activation);
void cuda_accumulate(cuda_stream s, float *to, const float *from, size_t n);
void cuda_cast(cuda_stream s, bf16 *to, const float *from, size_t n);
/* n times two bytes; either end may be pinned memory. */
void cuda_move(cuda_stream s, bf16 *to, const bf16 *from, size_t n);
/* AdamW as in exec/adam.h: p' = p - lr (m' / (1 - beta1^t) / (sqrt(v' / (1 - beta2^t)) + eps) + decay p); param = bf16(master); gradient is cleared.
 */
void cuda_adam(cuda_stream s, bf16 *param, float *master, float *m, float *v, float *gradient, size_t n, float lr, float beta1, float beta2,
               float eps, float decay, int t);
/* master (n): `deviation` times the normal number that exec/tensors.c defines for `key` and element `from` + i; gains 1, biases 0 (enum
 * tensor_start); param = bf16(master). */
void cuda_start(cuda_stream s, bf16 *param, float *master, size_t n, uint64_t key, uint64_t from, double deviation, int start);

/* ---- gate (gate.cu); its rows (route.cu) ---- */
/* scratch: cuda_gate_scratch_floats(N, E). */
size_t cuda_gate_scratch_floats(int N, int E);
void cuda_gate(cuda_stream s, float *prob, int32_t *index, uint32_t *counts, float *aux, const bf16 *logits, float *scratch, int N, int E, int k);
void cuda_gate_backward(cuda_stream s, bf16 *dlogits, const float *dweight, const float *prob, const int32_t *index, const uint32_t *counts,
                        const bf16 *logits, float balance, float z, int N, int total, int E, int k);
/* counts sum to N k, each N at most; token n's choice i is place n stride % N + i N of the experts in order; stride has no factor in common with N.
 */
void cuda_assign(cuda_stream s, int32_t *index, const uint32_t *counts, int N, int E, int k, int stride);
void cuda_sum_counts(cuda_stream s, uint32_t *sum, const uint32_t *counts, int G, int E);
/* scratch: cuda_route_scratch_ints(N, E, k). */
size_t cuda_route_scratch_ints(int N, int E, int k);
void cuda_route(cuda_stream s, int32_t *order, int32_t *row, const int32_t *index, int32_t *scratch, int N, int E, int k, uint32_t capacity);
/* weight NULL: rows of width D; otherwise W wide, the fp32 weight at its place, the other elements beyond D zero. */
void cuda_gather(cuda_stream s, bf16 *rows, const bf16 *x, const int32_t *order, const float *weight, int R, int D, int k, int W);
void cuda_scatter(cuda_stream s, bf16 *y, const bf16 *rows, const int32_t *row, const float *weight, int N, int D, int k, int W);
void cuda_pick(cuda_stream s, float *weight, const float *prob, const int32_t *index, int N, int E, int k);
void cuda_column(cuda_stream s, float *dweight, const bf16 *rows, const int32_t *row, int pairs, int D, int W);
/* n runs of `rows` rows (width) from one place to another; what is written overlaps nothing else. They are copied: the caller's may go. All in
 * 16-byte accesses where every place and the width allow it, otherwise all in 2-byte ones; a launch for each 160. Reads and writes rows width 2
 * bytes. */
struct cuda_rows {
	const bf16 *from;
	bf16 *to;
	int rows;
};
void cuda_move_rows(cuda_stream s, const struct cuda_rows *runs, int n, int width);

/* ---- cross entropy (tokens.cu): logits (n, V) become their gradient times 1 / total; loss (1) += the sum of the n tokens' cross entropies / total.
 * ---- scratch: n floats. */
void cuda_cross_entropy(cuda_stream s, float *loss, bf16 *logits, const int32_t *targets, float *scratch, int n, int V, double total);

#ifdef __cplusplus
}
#endif
