/* Both ends of a network: tokens to rows, and logits to their gradient.
 *
 * Napkin, N = 32768, D = 1024, V = 51200: embed writes N D 2 = 67 MB, and reads as much of wte less what repeats. Its backward reads 67 MB and adds N
 * D 4 = 134 MB by atomics. Cross entropy of 4096 tokens reads and writes n V 2 = 419 MB each: a block keeps its row, 100 KB, in shared memory; 2 n V
 * exponentials are a third of the time that the bytes take. */
#include "rows.h"

/* ---- kernels: embedding ---- */

template <int V> __global__ void embed(bf16 *x, const int32_t *tokens, const bf16 *wte, const bf16 *wpe, int N, int T, int D)
{
	int n = row_of();
	if (n >= N)
		return;
	const bf16 *token = wte + (size_t)tokens[n] * D, *place = wpe + (size_t)(n % T) * D;
	piece<V> a[AHEAD], b[AHEAD];
#pragma unroll
	for (int i = 0; i < AHEAD; i++) {
		int d = column_of<V>(i);
		if (d < D) {
			a[i] = load<V>(token + d);
			b[i] = load<V>(place + d);
		}
	}
#pragma unroll
	for (int i = 0; i < AHEAD; i++) {
		int d = column_of<V>(i);
		float p[V], q[V];
		unpack(p, a[i]);
		unpack(q, b[i]);
#pragma unroll
		for (int v = 0; v < V; v++)
			p[v] += q[v];
		if (d < D)
			store<V>(x + (size_t)n * D + d, pack(p));
	}
}

/* Fewer elements than a piece, so that neighbouring threads add to neighbouring 16 bytes. */
template <int V> __device__ static void read_narrow(float (&x)[V], const bf16 *from)
{
	if constexpr (V == 4) {
		uint2 p = *(const uint2 *)from;
		x[0] = __uint_as_float(p.x << 16);
		x[1] = __uint_as_float(p.x & 0xffff0000u);
		x[2] = __uint_as_float(p.y << 16);
		x[3] = __uint_as_float(p.y & 0xffff0000u);
	} else {
		x[0] = widen(*from);
	}
}

template <int V> __device__ static void add_atomically(float *to, const float (&x)[V])
{
#if __CUDA_ARCH__ >= 900
	if constexpr (V == 4)
		atomicAdd((float4 *)to, make_float4(x[0], x[1], x[2], x[3]));
	else
#endif
#pragma unroll
		for (int v = 0; v < V; v++)
			atomicAdd(to + v, x[v]);
}

/* A block for 128 V columns of a place: the sequences' sum for dwpe has one owner and one order. */
#define PLACE_THREADS 128

template <int V>
__global__ void __launch_bounds__(PLACE_THREADS) embed_backward(float *dwte, float *dwpe, const bf16 *dx, const int32_t *tokens, int B, int T, int D)
{
	int t = (int)blockIdx.x, d = (int)(blockIdx.y * PLACE_THREADS + threadIdx.x) * V;
	float sum[V] = {};
	if (d >= D)
		return;
	for (int from = 0; from < B; from += AHEAD) {
		float x[AHEAD][V];
		int32_t token[AHEAD];
#pragma unroll
		for (int i = 0; i < AHEAD; i++) {
			size_t n = (size_t)min(from + i, B - 1) * T + t;
			token[i] = tokens[n];
			read_narrow(x[i], dx + n * D + d);
		}
#pragma unroll
		for (int i = 0; i < AHEAD; i++) {
			if (from + i >= B)
				break;
			add_atomically(dwte + (size_t)token[i] * D + d, x[i]);
#pragma unroll
			for (int v = 0; v < V; v++)
				sum[v] += x[i][v];
		}
	}
#pragma unroll
	for (int v = 0; v < V; v++)
		dwpe[(size_t)t * D + d + v] += sum[v];
}

/* ---- kernels: cross entropy ---- */

/* A row as 16-byte pieces, with up to 7 elements before them and behind: odd widths put rows anywhere. Each of these has a thread of its own. */
struct ends {
	int before, pieces, edge; /* edge: this thread's element, or -1 */
};

__device__ static inline struct ends ends_of(const bf16 *row, int V)
{
	struct ends x;
	x.before = min((int)((16 - (uintptr_t)row % 16) % 16 / sizeof(bf16)), V);
	x.pieces = (V - x.before) / 8;
	int behind = V - x.before - 8 * x.pieces, t = (int)threadIdx.x;
	x.edge = t < x.before ? t : t < x.before + behind ? x.before + 8 * x.pieces + t - x.before : -1;
	return x;
}

/* exp(x - most) of a sum so far. */
struct softmax {
	float most, sum;
};

template <int V> __device__ static void soften(struct softmax &s, const float (&x)[V])
{
	float top = x[0];
#pragma unroll
	for (int v = 1; v < V; v++)
		top = fmaxf(top, x[v]);
	if (top > s.most) {
		s.sum *= exp_fast(s.most - top);
		s.most = top;
	}
#pragma unroll
	for (int v = 0; v < V; v++)
		s.sum += exp2_fast(fmaf(x[v], LOG2E, -s.most * LOG2E));
}

/* Of all threads of a block. A thread that saw nothing has -inf and 0. */
template <int THREADS> __device__ static struct softmax soften_block(struct softmax s)
{
	__shared__ float warp_most[THREADS / LANES], warp_sum[THREADS / LANES];
	int warp = (int)threadIdx.x / LANES, lane = (int)threadIdx.x % LANES;
	float most = most_of(s.most), sum = sum_of(s.sum == 0 ? 0 : s.sum * exp_fast(s.most - most));
	if (lane == 0) {
		warp_most[warp] = most;
		warp_sum[warp] = sum;
	}
	__syncthreads();
	bool there = lane < THREADS / LANES;
	struct softmax all;
	most = there ? warp_most[lane] : -INFINITY;
	sum = there ? warp_sum[lane] : 0;
	all.most = most_of(most);
	all.sum = sum_of(sum == 0 ? 0 : sum * exp_fast(most - all.most));
	return all;
}

extern __shared__ uint4 row_kept[];

/* KEPT: the row's pieces stay in shared memory; otherwise they are read twice. */
template <int THREADS, bool KEPT>
__global__ void __launch_bounds__(THREADS, 1024 / THREADS) cross_entropy(float *losses, bf16 *logits, const int32_t *targets, int V, float scale)
{
	bf16 *row = logits + (size_t)blockIdx.x * V;
	struct ends x = ends_of(row, V);
	uint4 *body = (uint4 *)(row + x.before);
	int target = targets[blockIdx.x], hit = target - x.before;
	float right = widen(row[target]), edge[1] = {x.edge < 0 ? 0 : widen(row[x.edge])};
	struct softmax s = {-INFINITY, 0};
	if (x.edge >= 0)
		soften(s, edge);
	for (int from = (int)threadIdx.x; from < x.pieces; from += AHEAD * THREADS) {
		uint4 p[AHEAD];
#pragma unroll
		for (int i = 0; i < AHEAD; i++)
			if (from + i * THREADS < x.pieces)
				p[i] = body[from + i * THREADS];
#pragma unroll
		for (int i = 0; i < AHEAD; i++)
			if (from + i * THREADS < x.pieces) {
				float e[8];
				unpack(e, p[i]);
				soften(s, e);
				if (KEPT)
					row_kept[from + i * THREADS] = p[i];
			}
	}
	s = soften_block<THREADS>(s);
	if (threadIdx.x == 0)
		losses[blockIdx.x] = logf(s.sum) + s.most - right;
	float share = scale / s.sum, base = -s.most * LOG2E;
	for (int at = (int)threadIdx.x; at < x.pieces; at += THREADS) {
		float e[8];
		unpack(e, KEPT ? row_kept[at] : body[at]);
#pragma unroll
		for (int v = 0; v < 8; v++)
			e[v] = exp2_fast(fmaf(e[v], LOG2E, base)) * share;
		if (at == hit >> 3) {
#pragma unroll
			for (int v = 0; v < 8; v++)
				e[v] -= v == (hit & 7) ? scale : 0;
		}
		body[at] = pack(e);
	}
	if (x.edge >= 0)
		row[x.edge] = narrow(exp2_fast(fmaf(edge[0], LOG2E, base)) * share - (x.edge == target ? scale : 0));
}

#define LOSS_THREADS 1024

/* One block: each thread's share in order, then halves upon halves. */
__global__ void __launch_bounds__(LOSS_THREADS) sum_losses(float *loss, const float *losses, int n, double total)
{
	__shared__ double sum[LOSS_THREADS];
	int t = (int)threadIdx.x;
	sum[t] = 0;
	for (int i = t; i < n; i += LOSS_THREADS)
		sum[t] += (double)losses[i];
	for (int half = LOSS_THREADS / 2; half; half /= 2) {
		__syncthreads();
		if (t < half)
			sum[t] += sum[t + half];
	}
	if (t == 0)
		*loss += (float)(sum[0] / total);
}

/* ---- launchers ---- */

void cuda_embed(cuda_stream s, bf16 *x, const int32_t *tokens, const bf16 *wte, const bf16 *wpe, int B, int T, int D)
{
	int N = B * T;
	if (!N || !D)
		return;
	if (D % 8 == 0)
		embed<8><<<grid_of(N, D, 8), BLOCK, 0, s>>>(x, tokens, wte, wpe, N, T, D);
	else
		embed<1><<<grid_of(N, D, 1), BLOCK, 0, s>>>(x, tokens, wte, wpe, N, T, D);
}

void cuda_embed_backward(cuda_stream s, float *dwte, float *dwpe, const bf16 *dx, const int32_t *tokens, int B, int T, int D)
{
	int V = D % 8 == 0 ? 4 : 1;
	dim3 grid((unsigned)T, blocks_of((size_t)D, (size_t)(PLACE_THREADS * V)));
	if (!B || !T || !D)
		return;
	if (V == 4)
		embed_backward<4><<<grid, PLACE_THREADS, 0, s>>>(dwte, dwpe, dx, tokens, B, T, D);
	else
		embed_backward<1><<<grid, PLACE_THREADS, 0, s>>>(dwte, dwpe, dx, tokens, B, T, D);
}

template <int THREADS, bool KEPT>
static void start_cross_entropy(cuda_stream s, float *losses, bf16 *logits, const int32_t *targets, int n, int V, float scale)
{
	size_t bytes = KEPT ? (size_t)V / 8 * sizeof(uint4) : 0;
	if (KEPT)
		cudaFuncSetAttribute(cross_entropy<THREADS, KEPT>, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes);
	cross_entropy<THREADS, KEPT><<<(unsigned)n, THREADS, bytes, s>>>(losses, logits, targets, V, scale);
}

/* Two rows a multiprocessor while they fit, so that one is read while the other is written. */
void cuda_cross_entropy(cuda_stream s, float *loss, bf16 *logits, const int32_t *targets, float *scratch, int n, int V, double total)
{
	int device = 0, most = 0, all = 0;
	size_t bytes = (size_t)V * sizeof(bf16) + 1024; /* with what else a block has, and what CUDA keeps of one */
	float scale = (float)(1 / total);
	if (!n)
		return;
	cudaGetDevice(&device);
	cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
	cudaDeviceGetAttribute(&all, cudaDevAttrMaxSharedMemoryPerMultiprocessor, device);
	if (V <= 4096)
		start_cross_entropy<128, true>(s, scratch, logits, targets, n, V, scale);
	else if (2 * (bytes + 1024) <= (size_t)all)
		start_cross_entropy<512, true>(s, scratch, logits, targets, n, V, scale);
	else if (bytes <= (size_t)most)
		start_cross_entropy<1024, true>(s, scratch, logits, targets, n, V, scale);
	else
		start_cross_entropy<1024, false>(s, scratch, logits, targets, n, V, scale);
	sum_losses<<<1, LOSS_THREADS, 0, s>>>(loss, scratch, n, total);
}
