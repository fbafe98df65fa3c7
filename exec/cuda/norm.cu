/* Layer norm. Forward: a warp for a row, kept in registers. Backward: a row's two means need all of it and a gain's gradient all rows, so a few
 * hundred blocks stay and walk down the rows, a thread for each 8 columns, with the columns' sums in registers; what each block has goes to scratch,
 * and a second kernel adds it up in order:
 *
 *      columns ->   8   8   8  ...           dx needs <dz>, <dz z> along the row: warps, then shared memory
 *      block 0    | . | . | . |  rows 0 .. , rows 0 + blocks ..        | dgain, dbias of block 0 |
 *      block 1    | . | . | . |  rows 1 .. , rows 1 + blocks ..        | dgain, dbias of block 1 | -> += in order
 *
 * Napkin, N = 32768, D = 1024: forward N D 2 = 67 MB read and as much written; backward reads dy, x, dx and writes dx, 268 MB, and two blocks a
 * multiprocessor have 2 D 4 bytes of scratch, 2 MB, twice. */
#include "rows.h"

#define NORM_EPS 1e-5f /* as exec/host_ops.c */

/* ---- kernels ---- */

template <int V, int KEPT>
__global__ void __launch_bounds__(BLOCK)
    normalize(bf16 *y, float *mean, float *rstd, const bf16 *x, const bf16 *__restrict__ gain, const bf16 *__restrict__ bias, int N, int D)
{
	int n = row_of();
	if (n >= N)
		return;
	warp_row<V, KEPT> row;
	row.start(x + (size_t)n * D, D);
	float sum = 0, squares = 0;
	row.each([&](int, const float(&e)[V]) {
#pragma unroll
		for (int v = 0; v < V; v++)
			sum += e[v];
	});
	float middle = sum_of(sum) / (float)D;
	row.each([&](int, const float(&e)[V]) {
#pragma unroll
		for (int v = 0; v < V; v++)
			squares += (e[v] - middle) * (e[v] - middle);
	});
	float scale = rsqrtf(sum_of(squares) / (float)D + NORM_EPS);
	bf16 *to = y + (size_t)n * D;
	row.each([&](int d, float(&e)[V]) {
		float g[V], b[V];
		unpack(g, load<V>(gain + d));
		unpack(b, load<V>(bias + d));
#pragma unroll
		for (int v = 0; v < V; v++)
			e[v] = (e[v] - middle) * scale * g[v] + b[v];
		store<V>(to + d, pack(e));
	});
	if (threadIdx.x % LANES == 0) {
		mean[n] = middle;
		rstd[n] = scale;
	}
}

struct norm_backward {
	bf16 *dx;
	float *parts; /* (blocks, 2, D): dgain, dbias */
	const bf16 *dy, *x, *gain;
	const float *mean, *rstd;
	int N, D;
	int warps; /* of a row */
};

#define TURN 2 /* rows of a thread between two barriers */

/* A row of a thread: dz = dy gain and z = (x - mean) rstd, of its 8 columns. */
struct part {
	uint4 dy, x, dx;
	float mean, rstd;
};

__device__ static inline struct part read_part(const struct norm_backward &c, int n, int d)
{
	struct part p = {};
	if (n < c.N) {
		size_t at = (size_t)n * c.D + d;
		p.mean = c.mean[n];
		p.rstd = c.rstd[n];
		if (d < c.D) {
			p.dy = load<8>(c.dy + at);
			p.x = load<8>(c.x + at);
			p.dx = load<8>(c.dx + at);
		}
	}
	return p;
}

/* Adds the part to the columns' sums; the row's sums of dz and of dz z. */
__device__ static inline float2 add_part(const struct part &p, const float (&gain)[8], float (&dgain)[8], float (&dbias)[8])
{
	float dy[8], x[8];
	float2 sum = make_float2(0, 0);
	unpack(dy, p.dy);
	unpack(x, p.x);
#pragma unroll
	for (int v = 0; v < 8; v++) {
		float z = (x[v] - p.mean) * p.rstd, dz = dy[v] * gain[v];
		sum.x += dz;
		sum.y += dz * z;
		dgain[v] += dy[v] * z;
		dbias[v] += dy[v];
	}
	return sum;
}

__device__ static inline uint4 finish_part(const struct part &p, const float (&gain)[8], float mean_dz, float along)
{
	float dy[8], x[8], dx[8];
	unpack(dy, p.dy);
	unpack(x, p.x);
	unpack(dx, p.dx);
#pragma unroll
	for (int v = 0; v < 8; v++)
		dx[v] += p.rstd * (dy[v] * gain[v] - mean_dz - (x[v] - p.mean) * p.rstd * along);
	return pack(dx);
}

/* Where teams of c.warps warps, one for a row, have the same columns: their sums, in order, by the first of them. */
template <int THREADS>
__device__ static void write_parts(const struct norm_backward &c, int team, int teams, int d, const float (&dgain)[8], const float (&dbias)[8])
{
	__shared__ float sums[2][THREADS * 8];
	int width = c.warps * LANES * 8;
	float *part = c.parts + (size_t)blockIdx.x * 2 * c.D;
#pragma unroll
	for (int v = 0; v < 8; v++) {
		sums[0][team * width + d + v] = dgain[v];
		sums[1][team * width + d + v] = dbias[v];
	}
	__syncthreads();
	for (int i = (int)threadIdx.x; i < c.D; i += (int)blockDim.x) {
		float gain = 0, bias = 0;
		for (int t = 0; t < teams; t++) {
			gain += sums[0][t * width + i];
			bias += sums[1][t * width + i];
		}
		part[i] = gain;
		part[c.D + i] = bias;
	}
}

/* D a multiple of 8, at most 8 THREADS. */
template <int THREADS> __global__ void __launch_bounds__(THREADS, 512 / THREADS) norm_backward(struct norm_backward c)
{
	__shared__ float2 row_sums[2][THREADS / LANES][TURN]; /* of a warp; in turns, so that one barrier a turn is enough */
	int warp = (int)threadIdx.x / LANES, team = warp / c.warps, teams = (int)blockDim.x / LANES / c.warps;
	int d = ((int)threadIdx.x - team * c.warps * LANES) * 8, step = teams * TURN;
	float gain[8] = {}, dgain[8] = {}, dbias[8] = {};
	struct part p[TURN], next[TURN];
	if (d < c.D)
		unpack(gain, load<8>(c.gain + d));
#pragma unroll
	for (int i = 0; i < TURN; i++)
		next[i] = read_part(c, (int)blockIdx.x * step + team * TURN + i, d);
	for (int from = (int)blockIdx.x * step, odd = 0; from < c.N; from += (int)gridDim.x * step, odd ^= 1) {
		int n = from + team * TURN;
#pragma unroll
		for (int i = 0; i < TURN; i++) { /* what the next turn needs comes while this one works */
			p[i] = next[i];
			next[i] = read_part(c, n + (int)gridDim.x * step + i, d);
		}
#pragma unroll
		for (int i = 0; i < TURN; i++) {
			float2 sum = add_part(p[i], gain, dgain, dbias);
			sum.x = sum_of(sum.x);
			sum.y = sum_of(sum.y);
			if (threadIdx.x % LANES == 0)
				row_sums[odd][warp][i] = sum;
		}
		__syncthreads();
#pragma unroll
		for (int i = 0; i < TURN; i++) {
			float2 sum = make_float2(0, 0);
			for (int w = 0; w < c.warps; w++) {
				sum.x += row_sums[odd][team * c.warps + w][i].x;
				sum.y += row_sums[odd][team * c.warps + w][i].y;
			}
			if (n + i < c.N && d < c.D)
				store<8>(c.dx + (size_t)(n + i) * c.D + d, finish_part(p[i], gain, sum.x / (float)c.D, sum.y / (float)c.D));
		}
	}
	write_parts<THREADS>(c, team, teams, d, dgain, dbias);
}

/* Any width, dx alone: a warp for a row, read twice. */
template <int V> __global__ void __launch_bounds__(BLOCK) norm_backward_rows(struct norm_backward c)
{
	int n = row_of();
	if (n >= c.N)
		return;
	const bf16 *x = c.x + (size_t)n * c.D;
	bf16 *dx = c.dx + (size_t)n * c.D;
	float mean = c.mean[n], rstd = c.rstd[n], sum = 0, along = 0;
	warp_row<V, 0> dy;
	dy.start(c.dy + (size_t)n * c.D, c.D);
	dy.each([&](int d, const float(&e)[V]) {
		float g[V], z[V];
		unpack(g, load<V>(c.gain + d));
		unpack(z, load<V>(x + d));
#pragma unroll
		for (int v = 0; v < V; v++) {
			sum += e[v] * g[v];
			along += e[v] * g[v] * (z[v] - mean) * rstd;
		}
	});
	sum = sum_of(sum) / (float)c.D;
	along = sum_of(along) / (float)c.D;
	dy.each([&](int d, const float(&e)[V]) {
		float g[V], z[V], to[V];
		unpack(g, load<V>(c.gain + d));
		unpack(z, load<V>(x + d));
		unpack(to, load<V>(dx + d));
#pragma unroll
		for (int v = 0; v < V; v++)
			to[v] += rstd * (e[v] * g[v] - sum - (z[v] - mean) * rstd * along);
		store<V>(dx + d, pack(to));
	});
}

/* Any width: a thread for a column, every gridDim.y-th row. */
__global__ void __launch_bounds__(BLOCK) norm_backward_columns(struct norm_backward c)
{
	int d = (int)(blockIdx.x * BLOCK + threadIdx.x);
	float gain = 0, bias = 0, *part = c.parts + (size_t)blockIdx.y * 2 * c.D;
	if (d >= c.D)
		return;
	for (int n = (int)blockIdx.y; n < c.N; n += (int)gridDim.y) {
		float dy = widen(c.dy[(size_t)n * c.D + d]);
		gain += dy * (widen(c.x[(size_t)n * c.D + d]) - c.mean[n]) * c.rstd[n];
		bias += dy;
	}
	part[d] = gain;
	part[c.D + d] = bias;
}

/* dgain and dbias += the sum of the blocks' parts: a block for 32 of the 2 D columns, a warp for every 32nd part. */
__global__ void __launch_bounds__(LANES *LANES) sum_parts(float *dgain, float *dbias, const float *parts, int blocks, int D)
{
	__shared__ float sums[LANES][LANES + 1];
	int warp = (int)threadIdx.x / LANES, lane = (int)threadIdx.x % LANES;
	int i = (int)blockIdx.x * LANES + lane;
	float sum = 0;
	for (int b = warp; b < blocks && i < 2 * D; b += LANES)
		sum += parts[(size_t)b * 2 * D + i];
	sums[warp][lane] = sum;
	__syncthreads();
	if (warp > 0 || i >= 2 * D)
		return;
	sum = 0;
	for (int w = 0; w < LANES; w++)
		sum += sums[w][lane];
	if (i < D)
		dgain[i] += sum;
	else
		dbias[i - D] += sum;
}

/* ---- launchers ---- */

template <int V, int KEPT>
static void start_norm(cuda_stream s, bf16 *y, float *mean, float *rstd, const bf16 *x, const bf16 *gain, const bf16 *bias, int N, int D)
{
	normalize<V, KEPT><<<blocks_of((size_t)N, ROWS), BLOCK, 0, s>>>(y, mean, rstd, x, gain, bias, N, D);
}

void cuda_norm(cuda_stream s, bf16 *y, float *mean, float *rstd, const bf16 *x, const bf16 *gain, const bf16 *bias, int N, int D)
{
	int lane = (D + 8 * LANES - 1) / (8 * LANES); /* pieces of it */
	if (!N || !D)
		return;
	if (D % 8)
		start_norm<1, 0>(s, y, mean, rstd, x, gain, bias, N, D);
	else if (lane > 16)
		start_norm<8, 0>(s, y, mean, rstd, x, gain, bias, N, D);
	else if (lane > 8)
		start_norm<8, 16>(s, y, mean, rstd, x, gain, bias, N, D);
	else if (lane > 4)
		start_norm<8, 8>(s, y, mean, rstd, x, gain, bias, N, D);
	else if (lane > 2)
		start_norm<8, 4>(s, y, mean, rstd, x, gain, bias, N, D);
	else
		start_norm<8, 2>(s, y, mean, rstd, x, gain, bias, N, D);
}

#define PARTS 512 /* at most */

static int parts_of(int N)
{
	return N < PARTS ? N : PARTS;
}

size_t cuda_norm_scratch_floats(int N, int D)
{
	return (size_t)parts_of(N) * 2 * (size_t)D;
}

template <int THREADS> static int start_norm_backward(cuda_stream s, struct norm_backward c)
{
	c.warps = (c.D / 8 + LANES - 1) / LANES;
	int teams = THREADS / LANES / c.warps, blocks = parts_of((c.N + teams * TURN - 1) / (teams * TURN)),
	    most = processors_of_gpu() * (512 / THREADS);
	if (blocks > most) /* as many as there is room for at once */
		blocks = most;
	norm_backward<THREADS><<<(unsigned)blocks, (unsigned)(teams * c.warps * LANES), 0, s>>>(c);
	return blocks;
}

void cuda_norm_backward(cuda_stream s, bf16 *dx, float *dgain, float *dbias, const bf16 *dy, const bf16 *x, const bf16 *gain, const float *mean,
                        const float *rstd, float *scratch, int N, int D)
{
	struct norm_backward c = {dx, scratch, dy, x, gain, mean, rstd, N, D, 0};
	int blocks = parts_of(N);
	if (!N || !D)
		return;
	if (D % 8 == 0 && D <= 8 * 256) {
		blocks = start_norm_backward<256>(s, c);
	} else if (D % 8 == 0 && D <= 8 * 512) {
		blocks = start_norm_backward<512>(s, c);
	} else {
		norm_backward_columns<<<dim3(blocks_of((size_t)D, BLOCK), (unsigned)blocks), BLOCK, 0, s>>>(c);
		if (D % 8)
			norm_backward_rows<1><<<blocks_of((size_t)N, ROWS), BLOCK, 0, s>>>(c);
		else
			norm_backward_rows<8><<<blocks_of((size_t)N, ROWS), BLOCK, 0, s>>>(c);
	}
	sum_parts<<<blocks_of((size_t)D * 2, LANES), LANES * LANES, 0, s>>>(dgain, dbias, scratch, blocks, D);
}
