/* What the kernels of attention.cu and attention_group.cu share: one head and one tile of rows a block, and an accumulator's rows and columns. */
#pragma once

#include "tiles.h"

#define LOG2E 1.4426950408889634f

struct sizes {
	int B, T, H, K, C;
	int blocks;  /* of a head */
	float scale; /* 1 / sqrt(C) */
};

struct backward {
	bf16 *dqkv;          /* (N, (H + 2 K) C) */
	float *kept;         /* (2, B, H, T): what keep_rows keeps, made with dq, read for dk and dv */
	const bf16 *d_o, *o; /* (N, H C) */
	const bf16 *qkv;
	const float *lse; /* (B, H, T) */
};

static inline struct sizes sizes_of(int B, int T, int H, int K, int C)
{
	struct sizes x = {B, T, H, K, C, 0, 1 / sqrtf((float)C)};
	return x;
}

/* attention_group.cu, where it is built in: false when it is not for these sizes or this device, with nothing queued. */
extern "C" bool __attribute__((weak)) group_attention(cuda_stream s, bf16 *o, float *lse, const bf16 *qkv, struct sizes x);
extern "C" bool __attribute__((weak)) group_attention_backward(cuda_stream s, struct backward g, struct sizes x);

/* Lets a kernel have that much shared memory on the current device. */
template <typename F> static void allow(F kernel, size_t bytes)
{
	cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes);
}

/* Its start is where wgmma wants a tile to start. */
extern __shared__ __align__(1024) bf16 shared_memory[];

/* A block's head, of H query heads or K key heads, and where token 0 has its rows: a key head's q and o are those of the first query head that shares
 * it. */
struct place {
	int head;              /* b heads + h */
	size_t step, out_step; /* elements from a token to the next in qkv, in o */
	size_t q, k, v, o;
};

__device__ static struct place place_of(const struct sizes &x, int heads)
{
	struct place at;
	at.head = (int)blockIdx.x / x.blocks;
	int h = at.head % heads, query_head = h * (x.H / heads), key_head = h / (heads / x.K);
	size_t token = (size_t)(at.head / heads) * x.T;
	at.step = (size_t)(x.H + 2 * x.K) * x.C;
	at.out_step = (size_t)x.H * x.C;
	at.q = token * at.step + query_head * x.C;
	at.k = token * at.step + (x.H + key_head) * x.C;
	at.v = at.k + x.K * x.C;
	at.o = token * at.out_step + query_head * x.C;
	return at;
}

/* Which block of the head's, the longest walk first: the last queries see the most keys, the first keys are seen most. */
__device__ static int block_of_queries(const struct sizes &x)
{
	return x.blocks - 1 - (int)blockIdx.x % x.blocks;
}

__device__ static int block_of_keys(const struct sizes &x)
{
	return (int)blockIdx.x % x.blocks;
}

/* Scores s (16 M, 8 N) become exp2(s - the row's largest so far), the largest and the lane's part of the sum follow; fade is what sums so far shrink
 * by. */
template <int M, int N> __device__ static void soften(float (&s)[M][N][4], float (&most)[M][2], float (&sum)[M][2], float (&fade)[M][2], float scale2)
{
#pragma unroll
	for (int i = 0; i < 2 * M; i++) {
		int m = i / 2, r = i % 2 * 2;
		float top = most[m][i % 2], added = 0;
#pragma unroll
		for (int n = 0; n < N; n++)
			top = fmaxf(top, fmaxf(s[m][n][r], s[m][n][r + 1]));
		top = over_quad(top, [](float a, float b) { return fmaxf(a, b); });
		float base = top * scale2;
		fade[m][i % 2] = exp2_fast((most[m][i % 2] - top) * scale2);
		most[m][i % 2] = top;
#pragma unroll
		for (int n = 0; n < N; n++) {
			s[m][n][r] = exp2_fast(fmaf(s[m][n][r], scale2, -base));
			s[m][n][r + 1] = exp2_fast(fmaf(s[m][n][r + 1], scale2, -base));
			added += s[m][n][r] + s[m][n][r + 1];
		}
		sum[m][i % 2] = sum[m][i % 2] * fade[m][i % 2] + added;
	}
}

template <int M, int N> __device__ static void rescale(float (&o)[M][N][4], const float (&fade)[M][2])
{
#pragma unroll
	for (int i = 0; i < 4 * M * N; i++)
		o[i / 4 / N][i / 4 % N][i % 4] *= fade[i / 4 / N][i % 4 / 2];
}

/* What each row of o is multiplied by at the end, and its lse (T), from query `first` on. */
template <int M>
__device__ static void finish(float (&share)[M][2], float *lse, int first, int T, const float (&most)[M][2], const float (&sum)[M][2], float scale)
{
	int lane = threadIdx.x % 32;
#pragma unroll
	for (int i = 0; i < 2 * M; i++) {
		float total = over_quad(sum[i / 2][i % 2], [](float a, float b) { return a + b; });
		int t = first + 8 * i + lane / 4;
		share[i / 2][i % 2] = 1 / total;
		if (lane % 4 == 0 && t < T)
			lse[t] = most[i / 2][i % 2] * scale + logf(total);
	}
}

/* f(m, n, i, row, column) for every element of the lane in scores (16 M, 8 N). */
template <int M, int N, typename F> __device__ static void each(F f)
{
	int lane = threadIdx.x % 32;
#pragma unroll
	for (int m = 0; m < M; m++)
#pragma unroll
		for (int n = 0; n < N; n++)
#pragma unroll
			for (int i = 0; i < 4; i++)
				f(m, n, i, 16 * m + lane / 4 + i / 2 * 8, 8 * n + lane % 4 * 2 + i % 2);
}

__device__ static size_t kept_plane(const struct sizes &x)
{
	return (size_t)x.B * x.H * x.T;
}

/* What the backward keeps of the lane's rows of M pieces, queries `first` and on of the head: lse in base 2, and delta = <do, o>, the inner
 * product of a query's rows. All lanes of a warp call it. */
template <int P, int M>
__device__ static void keep_rows(float2 (&row_kept)[M][2], const struct backward &g, const struct place &at_head, int first, const struct sizes &x)
{
	float delta[2 * M] = {};
	int lane = threadIdx.x % 32;
#pragma unroll
	for (int i = 0; i < 2 * M; i++) {
		int t = first + 8 * i + lane / 4;
		size_t row = at_head.o + t * at_head.out_step;
#pragma unroll
		for (int c = 0; c < P; c += 32) {
			int column = c + lane % 4 * 8;
			bool there = t < x.T && column < x.C;
			uint4 a = there ? *(const uint4 *)(g.d_o + row + column) : uint4{},
			      b = there ? *(const uint4 *)(g.o + row + column) : uint4{};
			uint32_t p[4] = {a.x, a.y, a.z, a.w}, q[4] = {b.x, b.y, b.z, b.w};
#pragma unroll
			for (int j = 0; j < 4; j++) {
				delta[i] += __uint_as_float(p[j] << 16) * __uint_as_float(q[j] << 16);
				delta[i] += __uint_as_float(p[j] & 0xffff0000u) * __uint_as_float(q[j] & 0xffff0000u);
			}
		}
	}
#pragma unroll
	for (int i = 0; i < 2 * M; i++) {
		int t = first + 8 * i + lane / 4;
		size_t at = (size_t)at_head.head * x.T + t;
		float2 &row = row_kept[i / 2][i % 2];
		row = make_float2(t < x.T ? g.lse[at] * LOG2E : 0, over_quad(delta[i], [](float a, float b) { return a + b; }));
		if (t < x.T && lane % 4 < 2)
			g.kept[at + lane % 4 * kept_plane(x)] = lane % 4 ? row.y : row.x;
	}
}

/* Queues the copy of N queries' rows of g.kept, `first` and on of `head`, to lse (N) and delta (N) in shared memory. */
template <int N> __device__ static void kept_copy(uint32_t to, const struct backward &g, int head, int first, const struct sizes &x)
{
	int query = first + (int)threadIdx.x % N, plane = threadIdx.x / N;
	static_assert(2 * N <= THREADS, "a thread a number");
	if (plane < 2)
		copy4(to + threadIdx.x * 4, g.kept + plane * kept_plane(x) + (size_t)head * x.T + query, query < x.T);
}
