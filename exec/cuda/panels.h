/* Tiles in shared memory and products of them by a group of four warps: wgmma, sm_90a. The tensor cores read the right factor from shared memory
 * themselves, and the left one too or from registers; they work while the warps go on, until waited for.
 *
 * A tile is panels of 64 channels: R rows of 128 bytes each, whose eight 16-byte pieces change places with the row (the 128-byte swizzle), so that
 * eight rows, or eight columns, lie in different banks. It starts at a multiple of 1024 bytes. */
#pragma once

#include "tiles.h"

/* ---- instructions of a group ---- */

/* What the warp's threads wrote to shared memory is there for wgmma, after the next barrier. */
__device__ static void group_sees(void)
{
	asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

/* Before the first product that uses registers which the warps changed. */
__device__ static void group_begin(void)
{
	asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

/* The products queued since the last call are one batch. */
__device__ static void group_batch(void)
{
	asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

/* Until at most N batches are under way. */
template <int N> __device__ static void group_wait(void)
{
	asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}

/* The compiler does not move uses of d across this. */
template <int N> __device__ static void hold(float (&d)[N][4])
{
#pragma unroll
	for (int i = 0; i < 4 * N; i++)
		asm volatile("" : "+f"(d[i / 4][i % 4])::"memory");
}

#define FOUR(i) "+f"(d[i][0]), "+f"(d[i][1]), "+f"(d[i][2]), "+f"(d[i][3])
#define EIGHT(i) FOUR(i), FOUR(i + 1), FOUR(i + 2), FOUR(i + 3), FOUR(i + 4), FOUR(i + 5), FOUR(i + 6), FOUR(i + 7)

/* d (64, 64 or 128) = or += a (64, 16) b (16, ..): a and b as by_channel says, summed over channels; or a from the warps' registers and b as by_row
 * says, summed over rows. Each warp has 16 rows of d and a, as multiply has them. */
__device__ static void group_multiply(float (&d)[8][4], uint64_t a, uint64_t b, bool add)
{
	asm volatile("{ .reg .pred p; setp.ne.b32 p, %34, 0;"
	             "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, "
	             "%11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, "
	             "%31},"
	             " %32, %33, p, 1, 1, 0, 0; }"
	             : EIGHT(0)
	             : "l"(a), "l"(b), "r"((int)add));
}

__device__ static void group_multiply(float (&d)[8][4], const uint32_t (&a)[4], uint64_t b)
{
	asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, "
	             "%11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, "
	             "%31}, {%32, %33, %34, %35}, %36, 1, 1, 1, 1;"
	             : EIGHT(0)
	             : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

__device__ static void group_multiply(float (&d)[16][4], uint64_t a, uint64_t b, bool add)
{
	asm volatile("{ .reg .pred p; setp.ne.b32 p, %66, 0;"
	             "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, "
	             "%11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, "
	             "%31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, "
	             "%51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63},"
	             " %64, %65, p, 1, 1, 0, 0; }"
	             : EIGHT(0), EIGHT(8)
	             : "l"(a), "l"(b), "r"((int)add));
}

__device__ static void group_multiply(float (&d)[16][4], const uint32_t (&a)[4], uint64_t b)
{
	asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, "
	             "%11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, "
	             "%31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, "
	             "%51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, {%64, %65, %66, %67}, %68, 1, 1, "
	             "1, 1;"
	             : EIGHT(0), EIGHT(8)
	             : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

#undef EIGHT
#undef FOUR

/* ---- panels ---- */

/* Bytes from a tile's start to a 16-byte piece. */
template <int R> __device__ constexpr uint32_t panel_at(int row, int piece)
{
	return (uint32_t)(piece / 8 * R * 128 + row * 128 + (piece % 8 ^ row % 8) * 16);
}

/* Queues the copies of R rows, `first` and on of T, `step` elements apart and C wide, into a tile of P channels. */
template <int P, int R> __device__ static void panel_copy(uint32_t tile, const bf16 *from, size_t step, int first, int T, int C)
{
	constexpr int PIECES = P / 8, ROWS = THREADS / PIECES; /* at a time: a multiple of 8, so that the pieces' places stay */
	static_assert(ROWS % 8 == 0 && R % ROWS == 0, "");
	int row = threadIdx.x / PIECES, piece = threadIdx.x % PIECES;
	from += (size_t)(first + row) * step + piece * 8;
	tile += panel_at<R>(row, piece);
#pragma unroll
	for (int i = 0; i < R; i += ROWS)
		copy16(tile + i * 128, from + i * step, piece * 8 < C && first + i + row < T);
}

/* A tile as wgmma's descriptor has it: address, the way to the next panel, to the next eight rows (all in 16 bytes), the swizzle. */
template <int R> __device__ static uint64_t described(uint32_t tile)
{
	return tile >> 4 | (uint64_t)(R * 8) << 16 | 64ull << 32 | 1ull << 62;
}

/* The copies that were queued have come, for all warps and for wgmma. */
__device__ static void panels_wait(void)
{
	copies_wait();
	group_sees();
	__syncthreads();
}

/* Queues s (64, N) = a b^T, over the channels of tiles of 64 and R rows. */
template <int P, int R, int N> __device__ static void group_product(float (&s)[N][4], uint32_t a, uint32_t b)
{
#pragma unroll
	for (int c = 0; c < P / 16; c++)
		group_multiply(s, described<64>(a) + (c / 4 * 64 * 8 + c % 4 * 2), described<R>(b) + (c / 4 * R * 8 + c % 4 * 2), c > 0);
}

/* Queues o (64, P) += x b, over the R rows of the tile b. */
template <int R, int O> __device__ static void group_product_add(float (&o)[O][4], const uint32_t (&x)[R / 16][4], uint32_t b)
{
#pragma unroll
	for (int n = 0; n < R / 16; n++)
		group_multiply(o, x[n], described<R>(b) + n * 128);
}

/* An accumulator as left factor. */
template <int N> __device__ static void to_left(uint32_t (&x)[N / 2][4], const float (&s)[N][4])
{
#pragma unroll
	for (int i = 0; i < 2 * N; i++) {
		const float *pair = s[i / 4 * 2 + i % 4 / 2] + i % 2 * 2;
		x[i / 4][i % 4] = pack(pair[0], pair[1]);
	}
}

/* Writes o (64, P), row r times factor[r % 16 / 8], to rows `first` and on of T, C of the P columns, through a tile of 64 rows that nobody reads any
 * more. */
template <int P>
__device__ static void panel_store(bf16 *to, size_t step, int first, int T, int C, bf16 *tile, const float (&o)[P / 8][4], const float (&factor)[2])
{
	int lane = threadIdx.x % 32, row0 = threadIdx.x / 32 * 16;
#pragma unroll
	for (int i = 0; i < P / 4; i++) {
		int n = i / 2, half = i % 2, row = row0 + 8 * half + lane / 4;
		uint32_t *pair = (uint32_t *)((char *)tile + panel_at<64>(row, n)) + lane % 4;
		*pair = pack(o[n][2 * half] * factor[half], o[n][2 * half + 1] * factor[half]);
	}
	__syncwarp();
	for (int i = lane; i < 16 * P / 8; i += 32) {
		int row = row0 + i / (P / 8), piece = i % (P / 8);
		if (first + row < T && piece * 8 < C)
			*(uint4 *)(to + (size_t)(first + row) * step + piece * 8) = *(const uint4 *)((char *)tile + panel_at<64>(row, piece));
	}
}
