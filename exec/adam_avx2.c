/* Vectors of eight. */
#include "adam_simd.h"

#include <immintrin.h>

#define LANES 8
typedef __m256 vec;

static inline vec vec_set(float x)
{
	return _mm256_set1_ps(x);
}

static inline vec vec_load(const float *p)
{
	return _mm256_loadu_ps(p);
}

static inline vec vec_load_bf16(const uint16_t *p)
{
	return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(const void *)p)), 16));
}

static inline void vec_store(float *p, vec x)
{
	_mm256_storeu_ps(p, x);
}

/* As in the plain loop; the packing takes halves of 128 bits, so the quarters are put in order first. */
static inline __m128i to_bf16(vec x)
{
	__m256i bits = _mm256_castps_si256(x), high = _mm256_srli_epi32(bits, 16);
	__m256i odd = _mm256_and_si256(high, _mm256_set1_epi32(1));
	__m256i rounded = _mm256_srli_epi32(_mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))), 16);
	__m256i quiet = _mm256_or_si256(high, _mm256_set1_epi32(0x40));
	__m256i words = _mm256_blendv_epi8(rounded, quiet, _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q)));
	return _mm_packus_epi32(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
}

static inline void vec_store_bf16(uint16_t *p, vec x)
{
	_mm_storeu_si128((__m128i *)(void *)p, to_bf16(x));
}

static inline void vec_stream(float *p, vec x)
{
	_mm256_stream_ps(p, x);
}

static inline void vec_stream_bf16(uint16_t *p, vec x)
{
	_mm_stream_si128((__m128i *)(void *)p, to_bf16(x));
}

static inline vec vec_sqrt(vec x)
{
	return _mm256_sqrt_ps(x);
}

static inline void vec_fence(void)
{
	_mm_sfence();
}

#include "adam_loop.h"

const struct adam_loops adam_avx2 = {"avx2", update, accumulate, cast};
