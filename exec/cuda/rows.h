/* Rows of bf16 that warps pass over, in pieces of V elements: 8, which are 16 bytes, where the width allows it, otherwise 1. What is read is kept as
 * it came (piece), arithmetic is fp32. A kernel first queues all its reads and then writes: nothing says to the compiler that they do not overlap. */
#pragma once

#include "kernels.h"

#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <type_traits>

#define LANES 32
#define ALL_LANES 0xffffffffu
#define BLOCK 256 /* threads, unless a kernel says otherwise */
#define ROWS (BLOCK / LANES)
#define AHEAD 4 /* pieces of a lane that are on their way at once */
#define LOG2E 1.4426950408889634f

template <int V> using piece = std::conditional_t<V == 8, uint4, bf16>;

template <int V> __device__ static piece<V> load(const bf16 *from)
{
	return *(const piece<V> *)from;
}

template <int V> __device__ static void store(bf16 *to, piece<V> x)
{
	*(piece<V> *)to = x;
}

__device__ static inline float widen(bf16 x)
{
	return __uint_as_float((uint32_t)x << 16);
}

__device__ static inline bf16 narrow(float x)
{
	return __bfloat16_as_ushort(__float2bfloat16_rn(x));
}

__device__ static inline void unpack(float (&to)[1], bf16 x)
{
	to[0] = widen(x);
}

__device__ static inline void unpack(float (&to)[8], uint4 x)
{
	uint32_t pair[4] = {x.x, x.y, x.z, x.w};
#pragma unroll
	for (int i = 0; i < 4; i++) {
		to[2 * i] = __uint_as_float(pair[i] << 16);
		to[2 * i + 1] = __uint_as_float(pair[i] & 0xffff0000u);
	}
}

__device__ static inline uint32_t pack_pair(float low, float high)
{
	return narrow(low) | (uint32_t)narrow(high) << 16;
}

__device__ static inline bf16 pack(const float (&x)[1])
{
	return narrow(x[0]);
}

__device__ static inline uint4 pack(const float (&x)[8])
{
	return make_uint4(pack_pair(x[0], x[1]), pack_pair(x[2], x[3]), pack_pair(x[4], x[5]), pack_pair(x[6], x[7]));
}

/* 2^x, within 2 units of the last place; results below 2^-126 are 0. */
__device__ static inline float exp2_fast(float x)
{
	float y;
	asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
	return y;
}

/* e^x, within a few units of fp32's last place for |x| < 10, and growing with |x|. */
__device__ static inline float exp_fast(float x)
{
	return exp2_fast(x * LOG2E);
}

/* ---- sums: each lane gets the same bits ---- */

template <int L = LANES> __device__ static float sum_of(float x)
{
#pragma unroll
	for (int d = L / 2; d; d /= 2)
		x += __shfl_xor_sync(ALL_LANES, x, d);
	return x;
}

template <int L = LANES> __device__ static float most_of(float x)
{
#pragma unroll
	for (int d = L / 2; d; d /= 2)
		x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, d));
	return x;
}

/* ---- a warp for each 32 AHEAD pieces of a row: what a lane has, on a grid that grid_of made ---- */

__device__ static inline int row_of(void)
{
	return (int)(blockIdx.x * ROWS + threadIdx.x / LANES);
}

template <int V> __device__ static int column_of(int nth)
{
	return (int)((blockIdx.y * AHEAD + nth) * LANES + threadIdx.x % LANES) * V;
}

static inline dim3 grid_of(int rows, int width, int V)
{
	int wide = V * LANES * AHEAD;
	return dim3((unsigned)(rows + ROWS - 1) / ROWS, (unsigned)((width + wide - 1) / wide));
}

static inline unsigned blocks_of(size_t n, size_t of_block)
{
	return (unsigned)((n + of_block - 1) / of_block);
}

static inline int processors_of_gpu(void)
{
	int device = 0, processors = 0;
	cudaGetDevice(&device);
	cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
	return processors;
}

/* ---- a warp for a row: lane l has the pieces l, l + 32, ..., KEPT of them in registers, or read again each time when 0 ---- */

template <int V, int KEPT> struct warp_row {
	const bf16 *from;
	int D;
	piece<V> kept[KEPT ? KEPT : 1];

	__device__ void start(const bf16 *row, int width)
	{
		from = row;
		D = width;
#pragma unroll
		for (int i = 0; i < KEPT; i++) {
			int d = (i * LANES + (int)threadIdx.x % LANES) * V;
			if (d < D)
				kept[i] = load<V>(from + d);
		}
	}

	/* f(column, elements) for each of the lane's pieces. */
	template <typename F> __device__ void each(F f) const
	{
		float x[V];
		if (KEPT == 0) {
			for (int d = (int)threadIdx.x % LANES * V; d < D; d += LANES * V) {
				unpack(x, load<V>(from + d));
				f(d, x);
			}
		}
#pragma unroll
		for (int i = 0; i < KEPT; i++) {
			int d = (i * LANES + (int)threadIdx.x % LANES) * V;
			if (d < D) {
				unpack(x, kept[i]);
				f(d, x);
			}
		}
	}
};
