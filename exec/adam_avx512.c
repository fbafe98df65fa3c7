/* Vectors of sixteen. The unit's own conversion to bf16 takes denormals for zero, so the rounding is done on integers here too. */
#include "adam_simd.h"

#include <immintrin.h>

#define LANES 16
typedef __m512 vec;

static inline vec vec_set(float x)
{
	return _mm512_set1_ps(x);
}

static inline vec vec_load(const float *p)
{
	return _mm512_loadu_ps(p);
}

static inline vec vec_load_bf16(const uint16_t *p)
{
	return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(const void *)p)), 16));
}

static inline void vec_store(float *p, vec x)
{
	_mm512_storeu_ps(p, x);
}

static inline __m256i to_bf16(vec x)
{
	__m512i bits = _mm512_castps_si512(x), high = _mm512_srli_epi32(bits, 16);
	__m512i odd = _mm512_and_si512(high, _mm512_set1_epi32(1));
	__m512i rounded = _mm512_srli_epi32(_mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff))), 16);
	__mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
	return _mm512_cvtepi32_epi16(_mm512_mask_or_epi32(rounded, nan, high, _mm512_set1_epi32(0x40)));
}

static inline void vec_store_bf16(uint16_t *p, vec x)
{
	_mm256_storeu_si256((__m256i *)(void *)p, to_bf16(x));
}

static inline void vec_stream(float *p, vec x)
{
	_mm512_stream_ps(p, x);
}

static inline void vec_stream_bf16(uint16_t *p, vec x)
{
	_mm256_stream_si256((__m256i *)(void *)p, to_bf16(x));
}

static inline vec vec_sqrt(vec x)
{
	return _mm512_sqrt_ps(x);
}

static inline void vec_fence(void)
{
	_mm_sfence();
}

#include "adam_loop.h"

const struct adam_loops adam_avx512 = {"avx512", update, accumulate, cast};
