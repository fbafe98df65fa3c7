/* Vectors of one: the loop that every other must equal, and that does what is left of a range at the end. */
#include "adam_simd.h"

#include <math.h>
#include <string.h>

#define LANES 1
typedef float vec;

static inline vec vec_set(float x)
{
	return x;
}

static inline vec vec_load(const float *p)
{
	return *p;
}

static inline vec vec_load_bf16(const uint16_t *p)
{
	uint32_t bits = (uint32_t)*p << 16;
	float x;
	memcpy(&x, &bits, sizeof(x));
	return x;
}

static inline void vec_store(float *p, vec x)
{
	*p = x;
}

/* Adding just under a half, and one more when the last bit kept is odd, carries exactly when rounding to nearest even goes up. A NaN could carry into
 * infinity: it is cut and made quiet instead. */
static inline void vec_store_bf16(uint16_t *p, vec x)
{
	uint32_t bits;
	memcpy(&bits, &x, sizeof(bits));
	*p = (uint16_t)(isnan(x) ? bits >> 16 | 0x40 : (bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

static inline void vec_stream(float *p, vec x)
{
	vec_store(p, x);
}

static inline void vec_stream_bf16(uint16_t *p, vec x)
{
	vec_store_bf16(p, x);
}

static inline vec vec_sqrt(vec x)
{
	return sqrtf(x);
}

static inline void vec_fence(void) {}

#include "adam_loop.h"

const struct adam_loops adam_plain = {"plain", update, accumulate, cast};
