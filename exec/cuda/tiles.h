/* Tiles in shared memory and products of them by a block of four warps, with the warps' matrix instructions (mma.sync, sm_80 and later).
 *
 * A tile is rows of P elements, P + 8 apart: P is a width that is compiled in, a multiple of 32; 8 more make the row an odd number of 16-byte pieces,
 * so that the eight rows of an ldmatrix lie in different banks. A warp works on M pieces of 16 rows. An accumulator's layout is also that of a left
 * factor, so what one product gives can go into the next from the registers. */
#pragma once

#include "kernels.h"

#include <cuda_runtime.h>

#define WARPS 4
#define THREADS (32 * WARPS)

/* ---- instructions ---- */

__device__ static uint32_t shared_address(const void *p)
{
	return (uint32_t)__cvta_generic_to_shared(p);
}

/* 16 (4) bytes to shared memory; zeros unless `there`, when `from` is not touched. */
__device__ static void copy16(uint32_t to, const void *from, bool there)
{
	asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(there ? 16 : 0));
}

__device__ static void copy4(uint32_t to, const void *from, bool there)
{
	asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(to), "l"(from), "r"(there ? 4 : 0));
}

__device__ static void copies_wait(void)
{
	asm volatile("cp.async.wait_all;" ::: "memory");
}

/* Four 8 x 8 matrices, lane l giving the address of row l % 8 of matrix l / 8; lane l gets elements (l / 4, 2 (l % 4) ..) of each, or of its
 * transpose. */
__device__ static void load4(uint32_t (&x)[4], uint32_t at)
{
	asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];" : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3]) : "r"(at));
}

__device__ static void load4_transposed(uint32_t (&x)[4], uint32_t at)
{
	asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
	             : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
	             : "r"(at));
}

/* d (16, 8) += a (16, 16) b (16, 8): lane l has d (l / 4, 2 (l % 4) ..) and 8 rows below. */
__device__ static void multiply(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1)
{
	asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
	    : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
	    : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ static uint32_t pack(float low, float high)
{
	uint32_t x;
	asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(x) : "f"(high), "f"(low));
	return x;
}

__device__ static float exp2_fast(float x)
{
	float y;
	asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
	return y;
}

/* ---- tiles ---- */

/* Bytes from a tile's start to an element. */
template <int P> __device__ constexpr uint32_t at(int row, int column)
{
	return (uint32_t)(row * (P + 8) + column) * 2;
}

/* Where the lane's part of any 16 x 16 piece begins, from the piece's corner. */
template <int P> __device__ static uint32_t lane_at(void)
{
	return at<P>(threadIdx.x % 16, threadIdx.x % 32 / 16 * 8);
}

/* Queues the copies of R rows, `first` and on of T, `step` elements apart and C wide, into a tile. */
template <int P, int R> __device__ static void tile_copy(uint32_t tile, const bf16 *from, size_t step, int first, int T, int C)
{
	constexpr int PIECES = P / 8, ROWS = THREADS / PIECES; /* at a time */
	int row = threadIdx.x / PIECES, column = threadIdx.x % PIECES * 8;
	from += (size_t)(first + row) * step + column;
	tile += at<P>(row, column);
#pragma unroll
	for (int i = 0; i < R; i += ROWS)
		if ((THREADS % PIECES == 0 || row < ROWS) && (R % ROWS == 0 || i + row < R))
			copy16(tile + at<P>(i, 0), from + i * step, column < C && first + i + row < T);
}

/* The left factor of a product, 16 M rows of a tile: kept in registers where there is room for it. */
template <int P, int M, bool KEPT> struct left {
	uint32_t tile, x[KEPT ? P / 16 : 1][M][4];

	__device__ void load(int column)
	{
#pragma unroll
		for (int m = 0; m < M; m++)
			load4(x[KEPT ? column / 16 : 0][m], tile + at<P>(16 * m, column));
	}

	/* `address` has lane_at. */
	__device__ void start(uint32_t address)
	{
		tile = address;
		if (KEPT) {
#pragma unroll
			for (int c = 0; c < P; c += 16)
				load(c);
		}
	}
};

/* s (16 M, N) = a b^T, with N rows of the tile at b, which has lane_at. */
template <int P, int M, int N, bool KEPT> __device__ static void product(float (&s)[M][N / 8][4], left<P, M, KEPT> &a, uint32_t b)
{
#pragma unroll
	for (int i = 0; i < M * N / 2; i++)
		s[i / (N / 2)][i / 4 % (N / 8)][i % 4] = 0;
#pragma unroll
	for (int c = 0; c < P; c += 16) {
		if (!KEPT)
			a.load(c);
#pragma unroll
		for (int n = 0; n < N; n += 16) {
			uint32_t y[4];
			load4(y, b + at<P>(n, c));
#pragma unroll
			for (int m = 0; m < M; m++) {
				multiply(s[m][n / 8], a.x[KEPT ? c / 16 : 0][m], y[0], y[2]);
				multiply(s[m][n / 8 + 1], a.x[KEPT ? c / 16 : 0][m], y[1], y[3]);
			}
		}
	}
}

/* o (16 M, W) += s b, with W columns of N rows of the tile at b, which has lane_at; s becomes bf16. */
template <int P, int M, int N, int W> __device__ static void product_add(float (&o)[M][W / 8][4], const float (&s)[M][N / 8][4], uint32_t b)
{
#pragma unroll
	for (int n = 0; n < N; n += 16) {
		uint32_t x[M][4];
#pragma unroll
		for (int m = 0; m < M; m++)
#pragma unroll
			for (int i = 0; i < 4; i++) {
				const float *pair = s[m][n / 8 + i / 2] + i % 2 * 2;
				x[m][i] = pack(pair[0], pair[1]);
			}
#pragma unroll
		for (int c = 0; c < W; c += 16) {
			uint32_t y[4];
			load4_transposed(y, b + at<P>(n, c));
#pragma unroll
			for (int m = 0; m < M; m++) {
				multiply(o[m][c / 8], x[m], y[0], y[1]);
				multiply(o[m][c / 8 + 1], x[m], y[2], y[3]);
			}
		}
	}
}

/* Writes o (16 M, W), row r times factor[r / 16][r % 16 / 8], to rows `first` and on of T, C of the W columns, through the warp's own rows of `tile`,
 * which nobody reads any more. */
template <int P, int M, int W>
__device__ static void tile_store(bf16 *to, size_t step, int first, int T, int C, bf16 *tile, const float (&o)[M][W / 8][4],
                                  const float (&factor)[M][2])
{
	int lane = threadIdx.x % 32;
#pragma unroll
	for (int i = 0; i < M * W / 4; i++) {
		int m = i / (W / 4), n = i / 2 % (W / 8), half = i % 2;
		bf16 *pair = tile + (16 * m + 8 * half + lane / 4) * (P + 8) + 8 * n + lane % 4 * 2;
		*(uint32_t *)pair = pack(o[m][n][2 * half] * factor[m][half], o[m][n][2 * half + 1] * factor[m][half]);
	}
	__syncwarp();
	for (int piece = lane; piece < 16 * M * W / 8; piece += 32) {
		int row = piece / (W / 8), column = piece % (W / 8) * 8;
		if (first + row < T && column < C)
			*(uint4 *)(to + (size_t)(first + row) * step + column) = *(const uint4 *)(tile + row * (P + 8) + column);
	}
}

template <typename F> __device__ static float over_quad(float x, F f)
{
	x = f(x, __shfl_xor_sync(0xffffffffu, x, 1));
	return f(x, __shfl_xor_sync(0xffffffffu, x, 2));
}
