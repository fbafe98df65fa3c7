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
#include "attention.h"

/* ---- kernels ---- */

/* o and lse of 64 M queries; KEYS keys a step. */
template <int P, int M, int KEYS, bool KEPT, int RESIDENT>
__global__ void __launch_bounds__(THREADS, RESIDENT) attend(bf16 *o, float *lse, const bf16 *qkv, struct sizes x)
{
	constexpr int QUERIES = 16 * M * WARPS;
	constexpr uint32_t STAGE = at<P>(KEYS, 0);
	int T = x.T, C = x.C, q0 = block_of_queries(x) * QUERIES, row0 = 16 * M * (threadIdx.x / 32), first = q0 + row0;
	int steps = (min(q0 + QUERIES, T) + KEYS - 1) / KEYS;
	struct place at_head = place_of(x, x.H);
	size_t step = at_head.step;
	const bf16 *k = qkv + at_head.k, *v = qkv + at_head.v;
	uint32_t tile_q = shared_address(shared_memory), tile_k = tile_q + at<P>(QUERIES, 0), tile_v = tile_k + 2 * STAGE;
	tile_copy<P, QUERIES>(tile_q, qkv + at_head.q, step, q0, T, C);
	tile_copy<P, KEYS>(tile_k, k, step, 0, T, C);
	tile_copy<P, KEYS>(tile_v, v, step, 0, T, C);

	left<P, M, KEPT> q;
	float out[M][P / 8][4] = {}, most[M][2], sum[M][2] = {}, fade[M][2], scale2 = x.scale * LOG2E;
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
		soften(s, most, sum, fade, scale2);
		rescale(out, fade);
		product_add<P, M, KEYS, P>(out, s, tile_v + stage + lane_at<P>());
	}

	float share[M][2];
	finish(share, lse + (size_t)at_head.head * T, first, T, most, sum, x.scale);
	tile_store<P, M, P>(o + at_head.o, at_head.out_step, first, T, C, shared_memory + row0 * (P + 8), out, share);
}

/* dq of 64 M queries; KEYS keys a step, N at a time. */
template <int P, int M, int KEYS, int N, bool KEPT, int RESIDENT>
__global__ void __launch_bounds__(THREADS, RESIDENT) make_dq(struct backward g, struct sizes x)
{
	constexpr int QUERIES = 16 * M * WARPS;
	constexpr uint32_t STAGE = at<P>(KEYS, 0);
	int T = x.T, C = x.C, q0 = block_of_queries(x) * QUERIES, row0 = 16 * M * (threadIdx.x / 32), first = q0 + row0;
	int steps = (min(q0 + QUERIES, T) + KEYS - 1) / KEYS;
	struct place at_head = place_of(x, x.H);
	size_t step = at_head.step;
	const bf16 *k = g.qkv + at_head.k, *v = g.qkv + at_head.v;
	uint32_t tile_q = shared_address(shared_memory), tile_o = tile_q + at<P>(QUERIES, 0), tile_k = tile_o + at<P>(QUERIES, 0);
	uint32_t tile_v = tile_k + 2 * STAGE;
	tile_copy<P, QUERIES>(tile_q, g.qkv + at_head.q, step, q0, T, C);
	tile_copy<P, QUERIES>(tile_o, g.d_o + at_head.o, at_head.out_step, q0, T, C);
	tile_copy<P, KEYS>(tile_k, k, step, 0, T, C);
	tile_copy<P, KEYS>(tile_v, v, step, 0, T, C);

	left<P, M, KEPT> q, dout;
	float dq[M][P / 8][4] = {}, scale2 = x.scale * LOG2E, scale[M][2];
	float2 row_kept[M][2];
	keep_rows<P>(row_kept, g, at_head, first, x);
	for (int i = 0; i < 2 * M; i++) {
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
	tile_store<P, M, P>(g.dqkv + at_head.q, step, first, T, C, shared_memory + row0 * (P + 8), dq, scale);
}

/* dk and dv of 64 M / SPLIT keys of a head of keys, over the query heads that share it; QUERIES queries a step, N at a time. SPLIT warps have the
 * same keys, and an equal share of the channels each: where two whole accumulators are more than a warp's registers, the scores are made SPLIT times.
 */
template <int P, int M, int SPLIT, int QUERIES, int N, bool KEPT, int RESIDENT>
__global__ void __launch_bounds__(THREADS, RESIDENT) make_dkv(struct backward g, struct sizes x)
{
	constexpr int KEYS = 16 * M * WARPS / SPLIT, W = P / SPLIT;
	constexpr uint32_t STAGE = at<P>(QUERIES, 0);
	int T = x.T, C = x.C, warp = threadIdx.x / 32, lane = threadIdx.x % 32, shared = x.H / x.K, k0 = block_of_keys(x) * KEYS;
	int row0 = 16 * M * (warp / SPLIT), first = k0 + row0, column0 = warp % SPLIT * W;
	int from = k0 / QUERIES, steps = (T + QUERIES - 1) / QUERIES - from;
	struct place at_head = place_of(x, x.K);
	size_t step = at_head.step;
	uint32_t tile_k = shared_address(shared_memory), tile_v = tile_k + at<P>(KEYS, 0), tile_q = tile_v + at<P>(KEYS, 0);
	uint32_t tile_o = tile_q + 2 * STAGE, tile_kept = tile_o + 2 * STAGE;
	const float *shared_kept = (const float *)(shared_memory + 2 * (KEYS + 2 * QUERIES) * (P + 8));
	int next_head = 0, next = from, now = from; /* to be copied, and worked on */
	auto copy = [&](int j) {
		uint32_t stage = j % 2 * STAGE;
		tile_copy<P, QUERIES>(tile_q + stage, g.qkv + at_head.q + next_head * C, step, next * QUERIES, T, C);
		tile_copy<P, QUERIES>(tile_o + stage, g.d_o + at_head.o + next_head * C, at_head.out_step, next * QUERIES, T, C);
		kept_copy<QUERIES>(tile_kept + j % 2 * QUERIES * 8, g, at_head.head * shared + next_head, next * QUERIES, x);
		if (++next == from + steps) {
			next = from;
			next_head++;
		}
	};
	tile_copy<P, KEYS>(tile_k, g.qkv + at_head.k, step, k0, T, C);
	tile_copy<P, KEYS>(tile_v, g.qkv + at_head.v, step, k0, T, C);
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
			int q0 = now * QUERIES + part;
			uint32_t place = j % 2 * STAGE + at<P>(part, 0) + lane_at<P>();
			const float *lse = shared_kept + j % 2 * 2 * QUERIES + part + lane % 4 * 2, *delta = lse + QUERIES;
			if (q0 + N <= first)
				continue;
			float p[M][N / 8][4], ds[M][N / 8][4];
			product<P, M, N>(p, k, tile_q + place);
			bool diagonal = q0 < first + 16 * M - 1;
			each<M, N / 8>([&](int m, int n, int i, int row, int column) {
				float y = exp2_fast(fmaf(p[m][n][i], scale2, -lse[8 * n + i % 2]));
				p[m][n][i] = diagonal && first + row > q0 + column ? 0 : y;
			});
			product_add<P, M, N, W>(dv, p, tile_o + place + at<P>(0, column0));
			product<P, M, N>(ds, v, tile_o + place);
			each<M, N / 8>([&](int m, int n, int i, int, int) { ds[m][n][i] = p[m][n][i] * (ds[m][n][i] - delta[8 * n + i % 2]); });
			product_add<P, M, N, W>(dk, ds, tile_q + place + at<P>(0, column0));
		}
		now = now + 1 == from + steps ? from : now + 1;
	}

	float scale[M][2], one[M][2];
	for (int i = 0; i < 2 * M; i++) {
		scale[i / 2][i % 2] = x.scale;
		one[i / 2][i % 2] = 1;
	}
	__syncthreads(); /* the keys' tile becomes room for dk, the values' for dv */
	bf16 *room = shared_memory + row0 * (P + 8) + column0;
	tile_store<P, M, W>(g.dqkv + at_head.k + column0, step, first, T, C - column0, room, dk, scale);
	tile_store<P, M, W>(g.dqkv + at_head.v + column0, step, first, T, C - column0, room + KEYS * (P + 8), dv, one);
}

/* ---- launchers ---- */

template <int P, int M, int KEYS, bool KEPT, int RESIDENT> static void forward(cuda_stream s, bf16 *o, float *lse, const bf16 *qkv, struct sizes x)
{
	constexpr int QUERIES = 16 * M * WARPS;
	size_t bytes = (QUERIES + 4 * KEYS) * (P + 8) * sizeof(bf16);
	auto kernel = attend<P, M, KEYS, KEPT, RESIDENT>;
	x.blocks = (x.T + QUERIES - 1) / QUERIES;
	allow(kernel, bytes);
	kernel<<<(unsigned)(x.B * x.H * x.blocks), THREADS, bytes, s>>>(o, lse, qkv, x);
}

template <int P, int M, int KEYS, int N, bool KEPT, int RESIDENT> static void backward_q(cuda_stream s, struct backward g, struct sizes x)
{
	constexpr int QUERIES = 16 * M * WARPS;
	size_t bytes = (2 * QUERIES + 4 * KEYS) * (P + 8) * sizeof(bf16);
	auto kernel = make_dq<P, M, KEYS, N, KEPT, RESIDENT>;
	x.blocks = (x.T + QUERIES - 1) / QUERIES;
	allow(kernel, bytes);
	kernel<<<(unsigned)(x.B * x.H * x.blocks), THREADS, bytes, s>>>(g, x);
}

template <int P, int M, int SPLIT, int QUERIES, int N, bool KEPT, int RESIDENT>
static void backward_kv(cuda_stream s, struct backward g, struct sizes x)
{
	constexpr int KEYS = 16 * M * WARPS / SPLIT;
	size_t bytes = (2 * KEYS + 4 * QUERIES) * (P + 8) * sizeof(bf16) + 4 * QUERIES * sizeof(float);
	auto kernel = make_dkv<P, M, SPLIT, QUERIES, N, KEPT, RESIDENT>;
	x.blocks = (x.T + KEYS - 1) / KEYS;
	allow(kernel, bytes);
	kernel<<<(unsigned)(x.B * x.K * x.blocks), THREADS, bytes, s>>>(g, x);
}

void cuda_attention(cuda_stream s, bf16 *o, float *lse, const bf16 *qkv, int B, int T, int H, int K, int C)
{
	struct sizes x = sizes_of(B, T, H, K, C);
	if (B == 0 || T == 0 || (group_attention && group_attention(s, o, lse, qkv, x)))
		return;
	if (C <= 32)
		forward<32, 2, 64, true, 2>(s, o, lse, qkv, x);
	else if (C <= 64)
		forward<64, 2, 64, true, 2>(s, o, lse, qkv, x);
	else if (C <= 96)
		forward<96, 2, 64, false, 2>(s, o, lse, qkv, x);
	else if (C <= 128)
		forward<128, 2, 32, false, 2>(s, o, lse, qkv, x);
	else
		forward<256, 1, 32, false, 2>(s, o, lse, qkv, x);
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
	struct sizes x = sizes_of(B, T, H, K, C);
	struct backward g = {dqkv, scratch, d_o, o, qkv, lse};
	if (B == 0 || T == 0 || (group_attention_backward && group_attention_backward(s, g, x)))
		return;
	if (C <= 32) {
		backward_q<32, 2, 64, 32, true, 2>(s, g, x);
		backward_kv<32, 2, 1, 64, 32, true, 2>(s, g, x);
	} else if (C <= 64) {
		backward_q<64, 2, 64, 32, true, 2>(s, g, x);
		backward_kv<64, 2, 1, 64, 32, false, 2>(s, g, x);
	} else if (C <= 96) {
		backward_q<96, 2, 32, 32, false, 2>(s, g, x);
		backward_kv<96, 1, 1, 64, 64, false, 2>(s, g, x);
	} else if (C <= 128) {
		backward_q<128, 1, 32, 32, true, 2>(s, g, x);
		backward_kv<128, 1, 1, 64, 64, false, 2>(s, g, x);
	} else {
		backward_q<256, 1, 32, 32, false, 1>(s, g, x);
		backward_kv<256, 1, 2, 32, 32, false, 2>(s, g, x);
	}
}
