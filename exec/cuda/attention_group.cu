/* The kernels of attention.cu for groups of four warps (wgmma, sm_90a): the same walks, 64 rows a block of one group, several blocks a
 * multiprocessor, so that one's exponentials fall into another's products. C from 33 to 128.
 *
 * In `attend` the next scores and the product with the values are under way together, and the exponentials of the scores fall into the latter:
 *
 *      tensor cores   s0 |    | s1  p0 v0 | s2  p1 v1 | .. | pn vn
 *      warps             | p0 |       p1  |       p2  | pn |            p: exponentials, rescaling
 *
 * Operations and bytes as in attention.cu; a block of 64 rows asks the L2 for 256 C bytes for each 16384 C operations of `attend`, which is 5 TB/s at
 * 320 TFLOP/s. On an H200 (989 TFLOP/s on paper, 798 in a large product), B = 32, T = 1024, H = K = 16, TFLOP/s of what counts: attend 310 (C = 64)
 * and 412 (C = 128), dq and dkv together 285 and 340; with mma.sync 213 and 242, 185 and 187.
 *
 * Built where the compiler makes sm_90a code; attention.cu does without it elsewhere. */
#include "attention.h"
#include "panels.h"

#if defined(__CUDA_ARCH__) && !defined(__CUDA_ARCH_FEAT_SM90_ALL)
#error "wgmma is sm_90a's alone: -gencode arch=compute_90a,code=sm_90a"
#endif

#define ROWS 64 /* of a block */

/* o and lse of 64 queries. */
template <int P, int RESIDENT> __global__ void __launch_bounds__(THREADS, RESIDENT) group_attend(bf16 *o, float *lse, const bf16 *qkv, struct sizes x)
{
	constexpr int TILE = ROWS * P * 2;
	int T = x.T, C = x.C, row0 = threadIdx.x / 32 * 16, last = block_of_queries(x);
	struct place at_head = place_of(x, x.H);
	size_t step = at_head.step;
	const bf16 *k = qkv + at_head.k, *v = qkv + at_head.v;
	uint32_t tile_q = shared_address(shared_memory), tile_k = tile_q + TILE, tile_v = tile_k + TILE; /* values: two buffers */
	panel_copy<P, ROWS>(tile_q, qkv + at_head.q, step, last * ROWS, T, C);
	panel_copy<P, ROWS>(tile_k, k, step, 0, T, C);

	float out[1][P / 8][4] = {}, most[1][2] = {{-INFINITY, -INFINITY}}, sum[1][2] = {}, fade[1][2], s[1][ROWS / 8][4], scale2 = x.scale * LOG2E;
	uint32_t p[ROWS / 16][4];
	/* All warps have the scores of step j: its keys make room for the next ones. */
	auto exponentials = [&](int j) {
		hold(s[0]);
		__syncthreads();
		if (j < last)
			panel_copy<P, ROWS>(tile_k, k, step, (j + 1) * ROWS, T, C);
		panel_copy<P, ROWS>(tile_v + j % 2 * TILE, v, step, j * ROWS, T, C);
		if (j == last)
			each<1, ROWS / 8>([&](int m, int n, int i, int row, int column) {
				if (column > row0 + row)
					s[m][n][i] = -INFINITY;
			});
		soften(s, most, sum, fade, scale2);
	};
	panels_wait();
	group_begin();
	group_product<P, ROWS>(s[0], tile_q, tile_k);
	group_batch();
	group_wait<0>();
	exponentials(0);
	to_left(p, s[0]);
	for (int j = 1; j <= last; j++) {
		panels_wait();
		hold(out[0]);
		group_begin();
		group_product<P, ROWS>(s[0], tile_q, tile_k);
		group_batch();
		group_product_add<ROWS>(out[0], p, tile_v + (j - 1) % 2 * TILE);
		group_batch();
		group_wait<1>();
		exponentials(j);
		group_wait<0>();
		hold(out[0]);
		rescale(out, fade);
		to_left(p, s[0]);
	}
	panels_wait();
	hold(out[0]);
	group_begin();
	group_product_add<ROWS>(out[0], p, tile_v + last % 2 * TILE);
	group_batch();
	group_wait<0>();
	hold(out[0]);

	float share[1][2];
	finish(share, lse + (size_t)at_head.head * T, last * ROWS + row0, T, most, sum, x.scale);
	__syncthreads();
	panel_store<P>(o + at_head.o, at_head.out_step, last * ROWS, T, C, shared_memory, out[0], share[0]);
}

/* dq of 64 queries. */
template <int P, int RESIDENT> __global__ void __launch_bounds__(THREADS, RESIDENT) group_dq(struct backward g, struct sizes x)
{
	constexpr int TILE = ROWS * P * 2;
	int T = x.T, C = x.C, row0 = threadIdx.x / 32 * 16, last = block_of_queries(x), q0 = last * ROWS;
	struct place at_head = place_of(x, x.H);
	size_t step = at_head.step;
	const bf16 *k = g.qkv + at_head.k, *v = g.qkv + at_head.v;
	uint32_t tile_q = shared_address(shared_memory), tile_o = tile_q + TILE, tile_k = tile_o + TILE, tile_v = tile_k + 2 * TILE;
	panel_copy<P, ROWS>(tile_q, g.qkv + at_head.q, step, q0, T, C);
	panel_copy<P, ROWS>(tile_o, g.d_o + at_head.o, at_head.out_step, q0, T, C);
	panel_copy<P, ROWS>(tile_k, k, step, 0, T, C);
	panel_copy<P, ROWS>(tile_v, v, step, 0, T, C);

	float dq[P / 8][4] = {}, scale2 = x.scale * LOG2E, scale[2] = {x.scale, x.scale};
	float2 kept[1][2];
	keep_rows<P>(kept, g, at_head, q0 + row0, x);
	for (int j = 0; j <= last; j++) {
		uint32_t stage = j % 2 * TILE, other = TILE - stage;
		panels_wait();
		if (j < last) {
			panel_copy<P, ROWS>(tile_k + other, k, step, (j + 1) * ROWS, T, C);
			panel_copy<P, ROWS>(tile_v + other, v, step, (j + 1) * ROWS, T, C);
		}
		float s[ROWS / 8][4], ds[ROWS / 8][4];
		uint32_t left[ROWS / 16][4];
		hold(dq);
		group_begin();
		group_product<P, ROWS>(s, tile_q, tile_k + stage);
		group_batch();
		group_product<P, ROWS>(ds, tile_o, tile_v + stage);
		group_batch();
		group_wait<1>();
		hold(s);
		each<1, ROWS / 8>([&](int, int n, int i, int, int) { s[n][i] = exp2_fast(fmaf(s[n][i], scale2, -kept[0][i / 2].x)); });
		if (j == last)
			each<1, ROWS / 8>([&](int, int n, int i, int row, int column) { s[n][i] = column > row0 + row ? 0 : s[n][i]; });
		group_wait<0>();
		hold(ds);
		each<1, ROWS / 8>([&](int, int n, int i, int, int) { ds[n][i] = s[n][i] * (ds[n][i] - kept[0][i / 2].y); });
		to_left(left, ds);
		group_begin();
		group_product_add<ROWS>(dq, left, tile_k + stage);
		group_batch();
		group_wait<0>();
		hold(dq);
	}
	__syncthreads();
	panel_store<P>(g.dqkv + at_head.q, step, q0, T, C, shared_memory, dq, scale);
}

/* dk and dv of 64 keys of a head of keys, over the query heads that share it. */
template <int P, int RESIDENT> __global__ void __launch_bounds__(THREADS, RESIDENT) group_dkv(struct backward g, struct sizes x)
{
	constexpr int TILE = ROWS * P * 2;
	int T = x.T, C = x.C, lane = threadIdx.x % 32, row0 = threadIdx.x / 32 * 16, shared = x.H / x.K, from = block_of_keys(x), k0 = from * ROWS;
	struct place at_head = place_of(x, x.K);
	size_t step = at_head.step;
	uint32_t tile_k = shared_address(shared_memory), tile_v = tile_k + TILE, tile_q = tile_v + TILE, tile_o = tile_q + 2 * TILE;
	uint32_t tile_kept = tile_o + 2 * TILE;
	const float *shared_kept = (const float *)(shared_memory + 3 * TILE);
	int next_head = 0, next = from, now = from, steps = shared * (x.blocks - from); /* to be copied, and worked on */
	auto copy = [&](int j) {
		panel_copy<P, ROWS>(tile_q + j % 2 * TILE, g.qkv + at_head.q + next_head * C, step, next * ROWS, T, C);
		panel_copy<P, ROWS>(tile_o + j % 2 * TILE, g.d_o + at_head.o + next_head * C, at_head.out_step, next * ROWS, T, C);
		kept_copy<ROWS>(tile_kept + j % 2 * ROWS * 8, g, at_head.head * shared + next_head, next * ROWS, x);
		if (++next == x.blocks) {
			next = from;
			next_head++;
		}
	};
	panel_copy<P, ROWS>(tile_k, g.qkv + at_head.k, step, k0, T, C);
	panel_copy<P, ROWS>(tile_v, g.qkv + at_head.v, step, k0, T, C);
	copy(0);

	float dk[P / 8][4] = {}, dv[P / 8][4] = {}, scale2 = x.scale * LOG2E, scale[2] = {x.scale, x.scale}, one[2] = {1, 1};
	for (int j = 0; j < steps; j++) {
		uint32_t stage = j % 2 * TILE;
		const float *lse = shared_kept + j % 2 * 2 * ROWS + lane % 4 * 2, *delta = lse + ROWS;
		panels_wait();
		if (j + 1 < steps)
			copy(j + 1);
		float p[ROWS / 8][4], ds[ROWS / 8][4];
		uint32_t left[ROWS / 16][4], left_ds[ROWS / 16][4];
		hold(dk);
		hold(dv);
		group_begin();
		group_product<P, ROWS>(p, tile_k, tile_q + stage);
		group_batch();
		group_product<P, ROWS>(ds, tile_v, tile_o + stage);
		group_batch();
		group_wait<1>();
		hold(p);
		each<1, ROWS / 8>([&](int, int n, int i, int, int) { p[n][i] = exp2_fast(fmaf(p[n][i], scale2, -lse[8 * n + i % 2])); });
		if (now == from)
			each<1, ROWS / 8>([&](int, int n, int i, int row, int column) { p[n][i] = row0 + row > column ? 0 : p[n][i]; });
		to_left(left, p);
		group_begin();
		group_product_add<ROWS>(dv, left, tile_o + stage);
		group_batch();
		group_wait<1>();
		hold(ds);
		each<1, ROWS / 8>([&](int, int n, int i, int, int) { ds[n][i] = p[n][i] * (ds[n][i] - delta[8 * n + i % 2]); });
		to_left(left_ds, ds);
		group_begin();
		group_product_add<ROWS>(dk, left_ds, tile_q + stage);
		group_batch();
		group_wait<0>();
		hold(dv);
		hold(dk);
		now = now + 1 == x.blocks ? from : now + 1;
	}
	__syncthreads(); /* the keys' tile becomes room for dk, the values' for dv */
	panel_store<P>(g.dqkv + at_head.k, step, k0, T, C, shared_memory, dk, scale);
	panel_store<P>(g.dqkv + at_head.v, step, k0, T, C, shared_memory + TILE / 2, dv, one);
}

/* ---- launchers ---- */

static bool group_runs(int C)
{
	int device, major;
	return C > 32 && C <= 128 && cudaGetDevice(&device) == cudaSuccess &&
	       cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess && major == 9;
}

template <int P, int RESIDENT> static void forward(cuda_stream s, bf16 *o, float *lse, const bf16 *qkv, struct sizes x)
{
	size_t bytes = 4 * ROWS * P * sizeof(bf16);
	auto kernel = group_attend<P, RESIDENT>;
	allow(kernel, bytes);
	kernel<<<(unsigned)(x.B * x.H * x.blocks), THREADS, bytes, s>>>(o, lse, qkv, x);
}

template <int P, int RESIDENT> static void backward_q(cuda_stream s, struct backward g, struct sizes x)
{
	size_t bytes = 6 * ROWS * P * sizeof(bf16);
	auto kernel = group_dq<P, RESIDENT>;
	allow(kernel, bytes);
	kernel<<<(unsigned)(x.B * x.H * x.blocks), THREADS, bytes, s>>>(g, x);
}

template <int P, int RESIDENT> static void backward_kv(cuda_stream s, struct backward g, struct sizes x)
{
	size_t bytes = 6 * ROWS * P * sizeof(bf16) + 4 * ROWS * sizeof(float);
	auto kernel = group_dkv<P, RESIDENT>;
	allow(kernel, bytes);
	kernel<<<(unsigned)(x.B * x.K * x.blocks), THREADS, bytes, s>>>(g, x);
}

extern "C" bool group_attention(cuda_stream s, bf16 *o, float *lse, const bf16 *qkv, struct sizes x)
{
	x.blocks = (x.T + ROWS - 1) / ROWS;
	if (!group_runs(x.C))
		return false;
	if (x.C <= 64)
		forward<64, 4>(s, o, lse, qkv, x);
	else
		forward<128, 3>(s, o, lse, qkv, x);
	return true;
}

extern "C" bool group_attention_backward(cuda_stream s, struct backward g, struct sizes x)
{
	x.blocks = (x.T + ROWS - 1) / ROWS;
	if (!group_runs(x.C))
		return false;
	if (x.C <= 64) {
		backward_q<64, 4>(s, g, x);
		backward_kv<64, 2>(s, g, x);
	} else {
		backward_q<128, 2>(s, g, x);
		backward_kv<128, 2>(s, g, x);
	}
	return true;
}
