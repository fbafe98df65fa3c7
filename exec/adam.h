/* AdamW on the CPU (Loshchilov, Hutter, arXiv 1711.05101; bias correction as in Adam, arXiv 1412.6980, algorithm 1). One pass over memory. */
#pragma once

#include "device.h"

/* Number formats of gradients and parameters: fp32 or bf16 (round to nearest even; a NaN stays one). */
enum adam_format { ADAM_FP32, ADAM_BF16 };

/* p' = p - lr (m' / (1 - beta1^t) / (sqrt(v' / (1 - beta2^t)) + eps) + decay p), element by element; reads gradient (scaled by `scale`; NULL: zero),
 * master, m, v (n fp32 each); writes master, m, v, and the parameters `out` (NULL: none; may be `master` itself when fp32). t counts from 1.
 * `threads` of a pool, pinned to cores where the system allows; the result does not depend on their number, on the vector unit, nor on alignment: bit
 * for bit. */
struct adam_args {
	float *master, *m, *v;
	const void *gradient;
	void *out;
	size_t n;
	float scale;
	int gradient_format, out_format;
	struct adam_step step;
};

/* From any threads. A NULL pool: the calling thread alone, as with a pool of one. */
struct adam_pool;
struct adam_pool *adam_pool_new(int threads);
/* For how long its threads look for the next job, and a caller for the end of one, before they sleep; 0 at first. Before the first job. */
void adam_pool_set_patience(struct adam_pool *p, nsec_t patience_ns);
void adam_pool_free(struct adam_pool *p);
AUTOPTR(adam_pool)
void adam_update(struct adam_pool *p, const struct adam_args *a);
/* Begins an update (its args are copied) and returns, unless too many are under way; it has ended after adam_wait with the ticket, 0: it already has.
 * Several may be worked on at once: none may touch what another writes. */
typedef uint64_t adam_ticket;
adam_ticket adam_update_start(struct adam_pool *p, const struct adam_args *a);
void adam_wait(struct adam_pool *p, adam_ticket ticket);
/* sum += gradient (n), or sum = gradient when `fresh`; the same threads. */
void adam_accumulate(struct adam_pool *p, float *sum, const void *gradient, int format, size_t n, bool fresh);
/* out <- fp32 in. */
void adam_cast(struct adam_pool *p, void *out, int format, const float *in, size_t n);

/* "avx512", "avx2" or "plain": chosen at run time; ESMOE_SIMD in the environment can ask for a lesser one. */
const char *adam_simd(void);
/* The plain loop, one thread: what every other path must equal bit for bit. */
void adam_update_plain(const struct adam_args *a);
