/* Causal attention without a T x T matrix in memory: FlashAttention-2 (arXiv 2307.08691) on the warps' matrix instructions. A block of four warps
 * keeps a tile of rows in shared memory and walks over the tiles of the other side, copied ahead of it into two buffers; everything between the
 * products stays in registers, because an accumulator's layout is also that of a left factor:
 *
 *                    keys ->                     attend    rows = queries: s = q k^T, p = exp(s - max so far), o = p v, rescaled as max grows
 *      queries   [\        ]  . walked over      dq        rows = queries: p from lse, ds = p (do v^T - delta), dq = ds k
 *         |      [...\     ]                     dkv       rows = keys:    p^T from lse, dv = p^T do, ds^T likewise, dk = ds^T q
 *         v      [......\  ]  \ diagonal, masked
 *
 * dq and dkv both make p again, 7 products instead of 5, and so need neither atomics nor a turn to add in: every sum has one owner and one order.
 * dkv's owner of a shared key head walks over all its H / K query heads. Blocks beyond the diagonal are not visited.
 *
 * C is rounded up to a width P that is compiled in, with zeros beyond C and T in the tiles (tiles.h).
 *
 * Napkin, B = 32, T = 1024, H = K = 16, C = 128: attend 2 B H T^2 C = 137 GFLOP below the diagonal, and 4 B T H C * 2 = 0.54 GB; backward
 * 5 B H T^2 C = 344 GFLOP that count, 481 that are done, and 1.75 GB with what is read twice: arithmetic decides. */
#include "tiles.h"

#define LOG2E 1.4426950408889634f

/* ---- kernels: one head and one tile of rows a block ---- */

struct sizes {
	int T, H, K, C;
	int blocks;  /* of a head */
	float scale; /* 1 / sqrt(C) */
};

extern __shared__ __align__(16) bf16 shared_memory[];

/* Scores s (16 M, N) of queries `first` and on against keys k0 and on, in base 2, become exp2(s - the row's largest so far), o and sum follow. */
template <int M, int N, int O>
__device__ static void soften(float (&s)[M][N][4], float (&o)[M][O][4], float (&most)[M][2], float (&sum)[M][2], float scale2)
{
#pragma unroll
	for (int i = 0; i < 2 * M; i++) {
		int m = i / 2, r = i % 2 * 2;
		float &old = most[m][i % 2], top = old, added = 0;
#pragma unroll
		for (int n = 0; n < N; n++)
			top = fmaxf(top, fmaxf(s[m][n][r], s[m][n][r + 1]));
		top = over_quad(top, [](float a, float b) { return fmaxf(a, b); });
		float fade = exp2_fast((old - top) * scale2), base = top * scale2;
		old = top;
#pragma unroll
		for (int n = 0; n < N; n++) {
			s[m][n][r] = exp2_fast(fmaf(s[m][n][r], scale2, -base));
			s[m][n][r + 1] = exp2_fast(fmaf(s[m][n][r + 1], scale2, -base));
			added += s[m][n][r] + s[m][n][r + 1];
		}
		sum[m][i % 2] = sum[m][i % 2] * fade + added;
#pragma unroll
		for (int c = 0; c < O; c++) {
			o[m][c][r] *= fade;
			o[m][c][r + 1] *= fade;
		}
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

/* o and lse of 64 M queries; KEYS keys a step. */
template <int P, int M, int KEYS, bool KEPT, int RESIDENT>
__global__ void __launch_bounds__(THREADS, RESIDENT) attend(bf16 *o, float *lse, const bf16 *qkv, struct sizes x)
{
	constexpr int QUERIES = 16 * M * WARPS;
	constexpr uint32_t STAGE = at<P>(KEYS, 0);
	int T = x.T, C = x.C, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
	int q0 = (x.blocks - 1 - (int)blockIdx.x % x.blocks) * QUERIES, head = (int)blockIdx.x / x.blocks, b = head / x.H, h = head % x.H;
	int row0 = 16 * M * warp, first = q0 + row0, steps = (min(q0 + QUERIES, T) + KEYS - 1) / KEYS;
	size_t step = (size_t)(x.H + 2 * x.K) * C;
	qkv += (size_t)b * T * step;
	const bf16 *k = qkv + (x.H + h / (x.H / x.K)) * C, *v = k + x.K * C;
	uint32_t tile_q = shared_address(shared_memory), tile_k = tile_q + at<P>(QUERIES, 0), tile_v = tile_k + 2 * STAGE;
	tile_copy<P, QUERIES>(tile_q, qkv + h * C, step, q0, T, C);
	tile_copy<P, KEYS>(tile_k, k, step, 0, T, C);
	tile_copy<P, KEYS>(tile_v, v, step, 0, T, C);

	left<P, M, KEPT> q;
	float out[M][P / 8][4] = {}, most[M][2], sum[M][2] = {}, scale2 = x.scale * LOG2E;
	for (int i = 0; i < 2 * M; i++)
		most[i / 2][i % 2] = -INFINITY;
	for (int j = 0; j < steps; j++) {
		uint32_t stage = j % 2 * STAGE, other = STAGE - stage;
		int k0 = j * KEYS;
		copies_wait();
		__syncthreads();
		if (j == 0)
			q.start(tile_q + at<P>(row0, 0) + lane_at<P>());
		if (j + 1 < steps) {
			tile_copy<P, KEYS>(tile_k + other, k, step, k0 + KEYS, T, C);
			tile_copy<P, KEYS>(tile_v + other, v, step, k0 + KEYS, T, C);
		}
		if (k0 >= first + 16 * M)
			continue;
		float s[M][KEYS / 8][4];
		product<P, M, KEYS>(s, q, tile_k + stage + lane_at<P>());
		if (k0 + KEYS > first + 1)
			each<M, KEYS / 8>([&](int m, int n, int i, int row, int column) {
				if (k0 + column > first + row)
					s[m][n][i] = -INFINITY;
			});
		soften(s, out, most, sum, scale2);
		product_add<P, M, KEYS, P>(out, s, tile_v + stage + lane_at<P>());
	}

	float share[M][2];
	for (int i = 0; i < 2 * M; i++) {
		float total = over_quad(sum[i / 2][i % 2], [](float a, float b) { return a + b; });
		int t = first + 8 * i + lane / 4;
		share[i / 2][i % 2] = 1 / total;
		if (lane % 4 == 0 && t < T)
			lse[(size_t)head * T + t] = most[i / 2][i % 2] * x.scale + logf(total);
	}
	tile_store<P, M, P>(o + (size_t)b * T * x.H * C + h * C, (size_t)x.H * C, first, T, C, shared_memory + row0 * (P + 8), out, share);
}

/* kept (B, H, T) = lse in base 2, and delta = <do, o>, of every query; `lanes` threads a query, of 16 bytes each. */
__global__ void make_delta(float2 *kept, const float *lse, const bf16 *d_o, const bf16 *o, size_t n, int lanes, struct sizes x)
{
	size_t thread = (size_t)blockIdx.x * blockDim.x + threadIdx.x, query = thread / lanes; /* token, then head */
	int column = (int)(thread % lanes) * 8;
	float sum = 0;
	if (query < n && column < x.C) {
		uint4 a = *(const uint4 *)(d_o + query * x.C + column), b = *(const uint4 *)(o + query * x.C + column);
		uint32_t p[4] = {a.x, a.y, a.z, a.w}, q[4] = {b.x, b.y, b.z, b.w};
		for (int i = 0; i < 4; i++) {
			sum += __uint_as_float(p[i] << 16) * __uint_as_float(q[i] << 16);
			sum += __uint_as_float(p[i] & 0xffff0000u) * __uint_as_float(q[i] & 0xffff0000u);
		}
	}
	for (int d = lanes / 2; d; d /= 2)
		sum += __shfl_xor_sync(0xffffffffu, sum, d);
	if (query < n && column == 0) {
		size_t token = query / x.H, to = (token / x.T * x.H + query % x.H) * x.T + token % x.T;
		kept[to] = make_float2(lse[to] * LOG2E, sum);
	}
}

/* dq of 64 M queries; KEYS keys a step, N at a time. */
template <int P, int M, int KEYS, int N, bool KEPT, int RESIDENT>
__global__ void __launch_bounds__(THREADS, RESIDENT) make_dq(bf16 *dqkv, const bf16 *d_o, const bf16 *qkv, const float2 *kept, struct sizes x)
{
	constexpr int QUERIES = 16 * M * WARPS;
	constexpr uint32_t STAGE = at<P>(KEYS, 0);
	int T = x.T, C = x.C, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
	int q0 = (x.blocks - 1 - (int)blockIdx.x % x.blocks) * QUERIES, head = (int)blockIdx.x / x.blocks, b = head / x.H, h = head % x.H;
	int row0 = 16 * M * warp, first = q0 + row0, steps = (min(q0 + QUERIES, T) + KEYS - 1) / KEYS;
	size_t step = (size_t)(x.H + 2 * x.K) * C, out_step = (size_t)x.H * C, base = (size_t)b * T * step;
	const bf16 *k = qkv + base + (x.H + h / (x.H / x.K)) * C, *v = k + x.K * C;
	uint32_t tile_q = shared_address(shared_memory), tile_o = tile_q + at<P>(QUERIES, 0), tile_k = tile_o + at<P>(QUERIES, 0);
	uint32_t tile_v = tile_k + 2 * STAGE;
	tile_copy<P, QUERIES>(tile_q, qkv + base + h * C, step, q0, T, C);
	tile_copy<P, QUERIES>(tile_o, d_o + (size_t)b * T * out_step + h * C, out_step, q0, T, C);
	tile_copy<P, KEYS>(tile_k, k, step, 0, T, C);
	tile_copy<P, KEYS>(tile_v, v, step, 0, T, C);

	left<P, M, KEPT> q, dout;
	float dq[M][P / 8][4] = {}, scale2 = x.scale * LOG2E, scale[M][2];
	float2 row_kept[M][2];
	for (int i = 0; i < 2 * M; i++) {
		int t = first + 8 * i + lane / 4;
		row_kept[i / 2][i % 2] = t < T ? kept[(size_t)head * T + t] : make_float2(0, 0);
		scale[i / 2][i % 2] = x.scale;
	}
	for (int j = 0; j < steps; j++) {
		uint32_t stage = j % 2 * STAGE, other = STAGE - stage;
		copies_wait();
		__syncthreads();
		if (j == 0) {
			q.start(tile_q + at<P>(row0, 0) + lane_at<P>());
			dout.start(tile_o + at<P>(row0, 0) + lane_at<P>());
		}
		if (j + 1 < steps) {
			tile_copy<P, KEYS>(tile_k + other, k, step, (j + 1) * KEYS, T, C);
			tile_copy<P, KEYS>(tile_v + other, v, step, (j + 1) * KEYS, T, C);
		}
#pragma unroll 1
		for (int part = 0; part < KEYS; part += N) {
			int k0 = j * KEYS + part;
			uint32_t from = stage + at<P>(part, 0) + lane_at<P>();
			if (k0 >= first + 16 * M)
				break;
			float s[M][N / 8][4], ds[M][N / 8][4];
			product<P, M, N>(s, q, tile_k + from);
			product<P, M, N>(ds, dout, tile_v + from);
			bool diagonal = k0 + N > first + 1;
			each<M, N / 8>([&](int m, int n, int i, int row, int column) {
				float p = exp2_fast(fmaf(s[m][n][i], scale2, -row_kept[m][i / 2].x)) * (ds[m][n][i] - row_kept[m][i / 2].y);
				ds[m][n][i] = diagonal && k0 + column > first + row ? 0 : p;
			});
			product_add<P, M, N, P>(dq, ds, tile_k + from);
		}
	}
	tile_store<P, M, P>(dqkv + base + h * C, step, first, T, C, shared_memory + row0 * (P + 8), dq, scale);
}

/* dk and dv of 64 M / SPLIT keys of a head of keys, over the query heads that share it; QUERIES queries a step, N at a time. SPLIT warps have the
 * same keys, and an equal share of the channels each: where two whole accumulators are more than a warp's registers, the scores are made SPLIT times.
 */
template <int P, int M, int SPLIT, int QUERIES, int N, bool KEPT, int RESIDENT>
__global__ void __launch_bounds__(THREADS, RESIDENT) make_dkv(bf16 *dqkv, const bf16 *d_o, const bf16 *qkv, const float2 *kept, struct sizes x)
{
	constexpr int KEYS = 16 * M * WARPS / SPLIT, W = P / SPLIT;
	constexpr uint32_t STAGE = at<P>(QUERIES, 0);
	int T = x.T, C = x.C, warp = threadIdx.x / 32, lane = threadIdx.x % 32, shared = x.H / x.K;
	int k0 = (int)blockIdx.x % x.blocks * KEYS, head = (int)blockIdx.x / x.blocks, b = head / x.K, h = head % x.K; /* h: of the keys */
	int row0 = 16 * M * (warp / SPLIT), first = k0 + row0, column0 = warp % SPLIT * W;
	int from = k0 / QUERIES, steps = (T + QUERIES - 1) / QUERIES - from;
	size_t step = (size_t)(x.H + 2 * x.K) * C, out_step = (size_t)x.H * C, base = (size_t)b * T * step, key = base + (x.H + h) * C;
	size_t value = key + x.K * C;
	uint32_t tile_k = shared_address(shared_memory), tile_v = tile_k + at<P>(KEYS, 0), tile_q = tile_v + at<P>(KEYS, 0);
	uint32_t tile_o = tile_q + 2 * STAGE, tile_kept = tile_o + 2 * STAGE;
	const float2 *shared_kept = (const float2 *)(shared_memory + 2 * (KEYS + 2 * QUERIES) * (P + 8));
	auto copy = [&](int j) {
		int head_q = h * shared + j / steps, q0 = (from + j % steps) * QUERIES, t = threadIdx.x;
		uint32_t stage = j % 2 * STAGE;
		tile_copy<P, QUERIES>(tile_q + stage, qkv + base + head_q * C, step, q0, T, C);
		tile_copy<P, QUERIES>(tile_o + stage, d_o + (size_t)b * T * out_step + head_q * C, out_step, q0, T, C);
		if (t < QUERIES)
			copy8(tile_kept + (j % 2 * QUERIES + t) * 8, kept + ((size_t)b * x.H + head_q) * T + min(q0 + t, T - 1), q0 + t < T);
	};
	tile_copy<P, KEYS>(tile_k, qkv + key, step, k0, T, C);
	tile_copy<P, KEYS>(tile_v, qkv + value, step, k0, T, C);
	copy(0);

	left<P, M, KEPT> k, v;
	float dk[M][W / 8][4] = {}, dv[M][W / 8][4] = {}, scale2 = x.scale * LOG2E;
	for (int j = 0; j < shared * steps; j++) {
		copies_wait();
		__syncthreads();
		if (j == 0) {
			k.start(tile_k + at<P>(row0, 0) + lane_at<P>());
			v.start(tile_v + at<P>(row0, 0) + lane_at<P>());
		}
		if (j + 1 < shared * steps)
			copy(j + 1);
#pragma unroll 1
		for (int part = 0; part < QUERIES; part += N) {
			int q0 = (from + j % steps) * QUERIES + part;
			uint32_t place = j % 2 * STAGE + at<P>(part, 0) + lane_at<P>();
			const float2 *of = shared_kept + j % 2 * QUERIES + part + lane % 4 * 2;
			if (q0 + N <= first)
				continue;
			float p[M][N / 8][4], ds[M][N / 8][4];
			product<P, M, N>(p, k, tile_q + place);
			bool diagonal = q0 < first + 16 * M - 1;
			each<M, N / 8>([&](int m, int n, int i, int row, int column) {
				float y = exp2_fast(fmaf(p[m][n][i], scale2, -of[8 * n + i % 2].x));
				p[m][n][i] = diagonal && first + row > q0 + column ? 0 : y;
			});
			product_add<P, M, N, W>(dv, p, tile_o + place + at<P>(0, column0));
			product<P, M, N>(ds, v, tile_o + place);
			each<M, N / 8>([&](int m, int n, int i, int, int) { ds[m][n][i] = p[m][n][i] * (ds[m][n][i] - of[8 * n + i % 2].y); });
			product_add<P, M, N, W>(dk, ds, tile_q + place + at<P>(0, column0));
		}
	}

	float scale[M][2], one[M][2];
	for (int i = 0; i < 2 * M; i++) {
		scale[i / 2][i % 2] = x.scale;
		one[i / 2][i % 2] = 1;
	}
	__syncthreads(); /* the keys' tile becomes room for dk, the values' for dv */
	bf16 *room = shared_memory + row0 * (P + 8) + column0;
	tile_store<P, M, W>(dqkv + key + column0, step, first, T, C - column0, room, dk, scale);
	tile_store<P, M, W>(dqkv + value + column0, step, first, T, C - column0, room + KEYS * (P + 8), dv, one);
}

/* ---- launchers ---- */

static struct sizes sizes_of(int T, int H, int K, int C)
{
	struct sizes x = {T, H, K, C, 0, 1 / sqrtf((float)C)};
	return x;
}

/* Lets a kernel have that much shared memory on the current device. */
template <typename F> static void allow(F kernel, size_t bytes)
{
	cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes);
}

template <int P, int M, int KEYS, bool KEPT, int RESIDENT>
static void forward(cuda_stream s, bf16 *o, float *lse, const bf16 *qkv, int B, struct sizes x)
{
	constexpr int QUERIES = 16 * M * WARPS;
	size_t bytes = (QUERIES + 4 * KEYS) * (P + 8) * sizeof(bf16);
	auto kernel = attend<P, M, KEYS, KEPT, RESIDENT>;
	x.blocks = (x.T + QUERIES - 1) / QUERIES;
	allow(kernel, bytes);
	kernel<<<(unsigned)(B * x.H * x.blocks), THREADS, bytes, s>>>(o, lse, qkv, x);
}

template <int P, int M, int KEYS, int N, bool KEPT, int RESIDENT>
static void backward_q(cuda_stream s, bf16 *dqkv, const bf16 *d_o, const bf16 *qkv, const float2 *kept, int B, struct sizes x)
{
	constexpr int QUERIES = 16 * M * WARPS;
	size_t bytes = (2 * QUERIES + 4 * KEYS) * (P + 8) * sizeof(bf16);
	auto kernel = make_dq<P, M, KEYS, N, KEPT, RESIDENT>;
	x.blocks = (x.T + QUERIES - 1) / QUERIES;
	allow(kernel, bytes);
	kernel<<<(unsigned)(B * x.H * x.blocks), THREADS, bytes, s>>>(dqkv, d_o, qkv, kept, x);
}

template <int P, int M, int SPLIT, int QUERIES, int N, bool KEPT, int RESIDENT>
static void backward_kv(cuda_stream s, bf16 *dqkv, const bf16 *d_o, const bf16 *qkv, const float2 *kept, int B, struct sizes x)
{
	constexpr int KEYS = 16 * M * WARPS / SPLIT;
	size_t bytes = (2 * KEYS + 4 * QUERIES) * (P + 8) * sizeof(bf16) + 2 * QUERIES * sizeof(float2);
	auto kernel = make_dkv<P, M, SPLIT, QUERIES, N, KEPT, RESIDENT>;
	x.blocks = (x.T + KEYS - 1) / KEYS;
	allow(kernel, bytes);
	kernel<<<(unsigned)(B * x.K * x.blocks), THREADS, bytes, s>>>(dqkv, d_o, qkv, kept, x);
}

void cuda_attention(cuda_stream s, bf16 *o, float *lse, const bf16 *qkv, int B, int T, int H, int K, int C)
{
	struct sizes x = sizes_of(T, H, K, C);
	if (B == 0 || T == 0)
		return;
	if (C <= 32)
		forward<32, 2, 64, true, 2>(s, o, lse, qkv, B, x);
	else if (C <= 64)
		forward<64, 2, 64, true, 2>(s, o, lse, qkv, B, x);
	else if (C <= 96)
		forward<96, 2, 64, false, 2>(s, o, lse, qkv, B, x);
	else if (C <= 128)
		forward<128, 2, 64, false, 2>(s, o, lse, qkv, B, x);
	else
		forward<256, 1, 32, false, 2>(s, o, lse, qkv, B, x);
}

size_t cuda_attention_scratch_floats(int B, int T, int H, int K, int C)
{
	(void)K;
	(void)C;
	return (size_t)B * T * H * 2;
}

void cuda_attention_backward(cuda_stream s, bf16 *dqkv, const bf16 *d_o, const bf16 *qkv, const bf16 *o, const float *lse, float *scratch, int B,
                             int T, int H, int K, int C)
{
	struct sizes x = sizes_of(T, H, K, C);
	float2 *kept = (float2 *)scratch;
	size_t queries = (size_t)B * T * H;
	int lanes = C <= 64 ? 8 : C <= 128 ? 16 : 32;
	if (queries == 0)
		return;
	make_delta<<<(unsigned)((queries * lanes + 255) / 256), 256, 0, s>>>(kept, lse, d_o, o, queries, lanes, x);
	if (C <= 32) {
		backward_q<32, 2, 64, 32, true, 2>(s, dqkv, d_o, qkv, kept, B, x);
		backward_kv<32, 2, 1, 64, 32, true, 2>(s, dqkv, d_o, qkv, kept, B, x);
	} else if (C <= 64) {
		backward_q<64, 2, 64, 32, true, 2>(s, dqkv, d_o, qkv, kept, B, x);
		backward_kv<64, 2, 1, 64, 32, false, 2>(s, dqkv, d_o, qkv, kept, B, x);
	} else if (C <= 96) {
		backward_q<96, 2, 32, 32, false, 2>(s, dqkv, d_o, qkv, kept, B, x);
		backward_kv<96, 1, 1, 64, 64, false, 2>(s, dqkv, d_o, qkv, kept, B, x);
	} else if (C <= 128) {
		backward_q<128, 2, 32, 32, false, 2>(s, dqkv, d_o, qkv, kept, B, x);
		backward_kv<128, 1, 1, 64, 32, false, 2>(s, dqkv, d_o, qkv, kept, B, x);
	} else {
		backward_q<256, 1, 32, 32, false, 1>(s, dqkv, d_o, qkv, kept, B, x);
		backward_kv<256, 1, 2, 32, 32, false, 2>(s, dqkv, d_o, qkv, kept, B, x);
	}
}
