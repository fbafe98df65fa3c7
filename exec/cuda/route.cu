/* The rows that the router sends (exec/host_gate.c draws them): their order, moving them there and back.
 *
 * Order: a counting sort in tiles of 1024 pairs. A pair's row is where its expert begins, plus the pairs of that expert in tiles before, in warps
 * before, in lanes before:
 *
 *     count_pairs    tile 0  tile 1  ...        counts (E, tiles)
 *     scan_tiles     expert: 0, a, a + b, ...   in their place, and totals (E)
 *     scan_experts                              bases (E), unless a capacity says where experts begin
 *     place_pairs    a tile's warps in turn, equal lanes found by match
 *
 * Napkin, N = 32768, k = 2, D = 1024: the indices are N k 4 = 0.3 MB, read twice: launches decide. gather reads N D 2 = 67 MB (again for the second
 * choice, at best from the L2 cache) and writes 134 MB; scatter reads 134 MB, reads and writes 67 MB. On one of two GPUs half of the rows are its own
 * and half come packed: move_rows reads and writes 67 MB of each, 268 MB in all. */
#include "rows.h"

/* ---- kernels: order ---- */

#define TILE 1024
#define IN_SHARED 8192 /* experts whose counts a block keeps in shared memory */

struct route {
	int32_t *order, *row;
	const int32_t *index;
	int32_t *counts; /* (E, tiles) */
	int32_t *totals; /* (E) */
	int32_t *bases;  /* (E) */
	int pairs, E, tiles;
	int capacity; /* 0: none */
};

extern __shared__ int32_t of_expert[];

/* A tile's number of an expert: in shared memory, or where it is kept. */
template <bool SHARED> __device__ static int32_t &tile_number(const struct route &c, int e)
{
	return SHARED ? of_expert[e] : c.counts[(size_t)e * c.tiles + blockIdx.x];
}

template <bool SHARED> __global__ void __launch_bounds__(TILE) count_pairs(struct route c)
{
	int pair = (int)(blockIdx.x * TILE + threadIdx.x);
	for (int e = (int)threadIdx.x; e < c.E; e += TILE)
		tile_number<SHARED>(c, e) = 0;
	__syncthreads();
	if (pair < c.pairs)
		atomicAdd(&tile_number<SHARED>(c, c.index[pair]), 1);
	__syncthreads();
	for (int e = (int)threadIdx.x; SHARED && e < c.E; e += TILE)
		c.counts[(size_t)e * c.tiles + blockIdx.x] = of_expert[e];
}

/* Of the lanes up to and with this one. */
__device__ static int32_t sum_so_far(int32_t x)
{
	int lane = (int)threadIdx.x % LANES;
#pragma unroll
	for (int d = 1; d < LANES; d *= 2) {
		int32_t before = __shfl_up_sync(ALL_LANES, x, d);
		x += lane >= d ? before : 0;
	}
	return x;
}

/* A warp for an expert. */
__global__ void __launch_bounds__(BLOCK) scan_tiles(struct route c)
{
	int e = row_of(), lane = (int)threadIdx.x % LANES;
	if (e >= c.E)
		return;
	int32_t *counts = c.counts + (size_t)e * c.tiles, before = 0;
	for (int from = 0; from < c.tiles; from += LANES) {
		int32_t x = from + lane < c.tiles ? counts[from + lane] : 0, sum = sum_so_far(x);
		if (from + lane < c.tiles)
			counts[from + lane] = before + sum - x;
		before += __shfl_sync(ALL_LANES, sum, LANES - 1);
	}
	if (lane == 0)
		c.totals[e] = before;
}

/* One block. */
__global__ void __launch_bounds__(TILE) scan_experts(struct route c)
{
	__shared__ int32_t warps[TILE / LANES];
	int warp = (int)threadIdx.x / LANES, lane = (int)threadIdx.x % LANES;
	int32_t before = 0;
	for (int from = 0; from < c.E; from += TILE) {
		int e = from + (int)threadIdx.x;
		int32_t x = e < c.E ? c.totals[e] : 0, sum = sum_so_far(x);
		if (lane == LANES - 1)
			warps[warp] = sum;
		__syncthreads();
		int32_t of_warps = sum_so_far(warps[lane]);
		__syncthreads();
		int32_t earlier = __shfl_sync(ALL_LANES, of_warps, warp ? warp - 1 : 0);
		if (e < c.E)
			c.bases[e] = before + (warp ? earlier : 0) + sum - x;
		before += __shfl_sync(ALL_LANES, of_warps, LANES - 1);
	}
}

template <bool SHARED> __global__ void __launch_bounds__(TILE) place_pairs(struct route c)
{
	int pair = (int)(blockIdx.x * TILE + threadIdx.x), warp = (int)threadIdx.x / LANES, lane = (int)threadIdx.x % LANES;
	int e = pair < c.pairs ? c.index[pair] : -1;
	for (int x = (int)threadIdx.x; SHARED && x < c.E; x += TILE)
		of_expert[x] = c.counts[(size_t)x * c.tiles + blockIdx.x];
	unsigned same = __match_any_sync(ALL_LANES, e);
	int first = __ffs((int)same) - 1, before = __popc(same & ((1u << lane) - 1));
	int32_t rank = 0;
	for (int w = 0; w < TILE / LANES; w++) {
		__syncthreads();
		if (w == warp && lane == first && e >= 0) {
			rank = tile_number<SHARED>(c, e);
			tile_number<SHARED>(c, e) = rank + __popc(same);
		}
	}
	rank = __shfl_sync(ALL_LANES, rank, first) + before;
	if (e < 0)
		return;
	bool fits = !c.capacity || rank < c.capacity;
	int32_t row = c.capacity ? e * c.capacity + rank : c.bases[e] + rank;
	c.row[pair] = fits ? row : -1;
	if (fits)
		c.order[row] = pair;
}

/* ---- kernels: rows ---- */

struct rows {
	bf16 *to;
	const bf16 *from;
	const int32_t *map; /* order or row */
	const float *weight;
	int n, D, k, W;
	int place; /* of the weight in a row */
};

/* Half of a weight where element d is one of its two, otherwise zero. */
__device__ static inline bf16 weight_element(const struct rows &c, float weight, int d)
{
	uint32_t bits = __float_as_uint(weight);
	return d == c.place ? (bf16)bits : d == c.place + 1 ? (bf16)(bits >> 16) : 0;
}

template <int V> __device__ static piece<V> weight_piece(const struct rows &c, float weight, int d)
{
	if constexpr (V == 8)
		return make_uint4(d == c.place ? __float_as_uint(weight) : 0, 0, 0, 0);
	else
		return weight_element(c, weight, d);
}

template <int V> __global__ void __launch_bounds__(BLOCK) gather(struct rows c)
{
	int r = row_of();
	if (r >= c.n)
		return;
	int pair = c.map[r];
	const bf16 *x = c.from + (size_t)((unsigned)pair / (unsigned)c.k) * c.D;
	float weight = pair >= 0 && c.weight ? c.weight[pair] : 0;
	piece<V> p[AHEAD] = {};
#pragma unroll
	for (int i = 0; i < AHEAD; i++) {
		int d = column_of<V>(i);
		if (d < c.D && pair >= 0)
			p[i] = load<V>(x + d);
	}
#pragma unroll
	for (int i = 0; i < AHEAD; i++) {
		int d = column_of<V>(i);
		if (d < c.D)
			store<V>(c.to + (size_t)r * c.W + d, p[i]);
	}
	for (int d = c.D + (int)threadIdx.x % LANES * V; d < c.W && blockIdx.y == gridDim.y - 1; d += LANES * V)
		store<V>(c.to + (size_t)r * c.W + d, weight_piece<V>(c, weight, d));
}

/* K choices a token, or c.k when 0; the pieces of up to 4 choices are on their way at once. */
template <int V, int K> __global__ void __launch_bounds__(BLOCK) scatter(struct rows c)
{
	constexpr int AT_ONCE = K == 1 ? 4 : K == 2 ? 2 : 1, CHOICES = K ? K : 4;
	int n = (int)blockIdx.x * ROWS + (int)threadIdx.x / LANES, k = K ? K : c.k;
	if (n >= c.n)
		return;
	bf16 *y = c.to + (size_t)n * c.D;
	const int32_t *row = c.map + (size_t)n * k;
	const float *weight = c.weight ? c.weight + (size_t)n * k : NULL;
	for (int from = (int)(blockIdx.y * AHEAD * LANES + threadIdx.x % LANES) * V, nth = 0; nth < AHEAD;
	     nth += AT_ONCE, from += AT_ONCE * LANES * V) {
		float sum[AT_ONCE][V];
#pragma unroll
		for (int i = 0; i < AT_ONCE; i++)
			if (from + i * LANES * V < c.D)
				unpack(sum[i], load<V>(y + from + i * LANES * V));
		for (int choice = 0; choice < k; choice += CHOICES) {
			piece<V> p[AT_ONCE][CHOICES];
			int32_t at[CHOICES];
			float by[CHOICES];
#pragma unroll
			for (int j = 0; j < CHOICES; j++) {
				at[j] = choice + j < k ? row[choice + j] : -1;
				by[j] = weight && choice + j < k ? weight[choice + j] : 1;
#pragma unroll
				for (int i = 0; i < AT_ONCE; i++)
					if (at[j] >= 0 && from + i * LANES * V < c.D)
						p[i][j] = load<V>(c.from + (size_t)at[j] * c.W + from + i * LANES * V);
			}
#pragma unroll
			for (int i = 0; i < AT_ONCE; i++)
#pragma unroll
				for (int j = 0; j < CHOICES; j++) {
					float x[V];
					unpack(x, p[i][j]);
#pragma unroll
					for (int v = 0; v < V; v++)
						sum[i][v] = at[j] >= 0 ? fmaf(by[j], x[v], sum[i][v]) : sum[i][v];
				}
		}
#pragma unroll
		for (int i = 0; i < AT_ONCE; i++)
			if (from + i * LANES * V < c.D)
				store<V>(y + from + i * LANES * V, pack(sum[i]));
	}
}

/* A thread for a pair. */
__global__ void __launch_bounds__(BLOCK) pick(float *weight, const float *prob, const int32_t *index, size_t pairs, int E, int k)
{
	size_t pair = (size_t)blockIdx.x * BLOCK + threadIdx.x;
	if (pair < pairs)
		weight[pair] = prob[pair / (unsigned)k * E + index[pair]];
}

__global__ void __launch_bounds__(BLOCK) column(float *dweight, const bf16 *rows, const int32_t *row, int pairs, int place, int W)
{
	int pair = (int)(blockIdx.x * BLOCK + threadIdx.x);
	if (pair >= pairs)
		return;
	uint32_t bits = 0;
	if (row[pair] >= 0) {
		const bf16 *at = rows + (size_t)row[pair] * W + place;
		bits = at[0] | (uint32_t)at[1] << 16;
	}
	dweight[pair] = __uint_as_float(bits);
}

/* ---- kernels: runs of rows ---- */

#define RUNS 160              /* of a launch: what its arguments have room for */
#define CHUNK (LANES * AHEAD) /* pieces that a warp has on its way at once */

struct runs {
	const bf16 *from[RUNS];
	bf16 *to[RUNS];
	int rows[RUNS];
	int end[RUNS]; /* chunks of this run and those before */
	int n;
	int width;
};
static_assert(sizeof(struct runs) <= 4096, "arguments of a kernel");

/* A run is one piece of memory, whatever its width: a warp for a chunk of it, then for the chunk that is as many further as there are warps. */
template <int V> __global__ void __launch_bounds__(BLOCK) move(const __grid_constant__ struct runs c)
{
	int lane = (int)threadIdx.x % LANES, run = 0;
	for (int chunk = row_of(); chunk < c.end[c.n - 1]; chunk += (int)gridDim.x * ROWS) {
		for (int last = c.n - 1; run < last;) {
			int middle = (run + last) / 2;
			if (chunk < c.end[middle])
				last = middle;
			else
				run = middle + 1;
		}
		size_t at = (size_t)(chunk - (run ? c.end[run - 1] : 0)) * (CHUNK * V), left = (size_t)c.rows[run] * (size_t)c.width - at;
		const bf16 *from = c.from[run] + at;
		bf16 *to = c.to[run] + at;
		piece<V> p[AHEAD];
#pragma unroll
		for (int i = 0; i < AHEAD; i++)
			if ((size_t)(i * LANES + lane) * V < left)
				p[i] = load<V>(from + (i * LANES + lane) * V);
#pragma unroll
		for (int i = 0; i < AHEAD; i++)
			if ((size_t)(i * LANES + lane) * V < left)
				store<V>(to + (i * LANES + lane) * V, p[i]);
	}
}

/* ---- launchers ---- */

size_t cuda_route_scratch_ints(int N, int E, int k)
{
	return ((size_t)blocks_of((size_t)N * (size_t)k, TILE) + 2) * (size_t)E;
}

template <bool SHARED> static void start_route(cuda_stream s, const struct route &c)
{
	size_t bytes = SHARED ? sizeof(int32_t) * (size_t)c.E : 0;
	count_pairs<SHARED><<<(unsigned)c.tiles, TILE, bytes, s>>>(c);
	scan_tiles<<<blocks_of((size_t)c.E, ROWS), BLOCK, 0, s>>>(c);
	if (!c.capacity)
		scan_experts<<<1, TILE, 0, s>>>(c);
	place_pairs<SHARED><<<(unsigned)c.tiles, TILE, bytes, s>>>(c);
}

void cuda_route(cuda_stream s, int32_t *order, int32_t *row, const int32_t *index, int32_t *scratch, int N, int E, int k, uint32_t capacity)
{
	int pairs = N * k, tiles = (int)blocks_of((size_t)pairs, TILE);
	int32_t *totals = scratch + (size_t)tiles * (size_t)E;
	struct route c = {order, row, index, scratch, totals, totals + E, pairs, E, tiles, (int)capacity};
	if (capacity)
		cudaMemsetAsync(order, 0xff, sizeof(*order) * (size_t)E * capacity, s);
	if (!pairs)
		return;
	if (E <= IN_SHARED)
		start_route<true>(s, c);
	else
		start_route<false>(s, c);
}

void cuda_gather(cuda_stream s, bf16 *rows, const bf16 *x, const int32_t *order, const float *weight, int R, int D, int k, int W)
{
	int width = weight ? W : D;
	struct rows c = {rows, x, order, weight, R, D, k, width, weight_at(D)};
	if (!R || !D)
		return;
	if (D % 8 == 0 && width % 8 == 0)
		gather<8><<<grid_of(R, D, 8), BLOCK, 0, s>>>(c);
	else
		gather<1><<<grid_of(R, D, 1), BLOCK, 0, s>>>(c);
}

void cuda_scatter(cuda_stream s, bf16 *y, const bf16 *rows, const int32_t *row, const float *weight, int N, int D, int k, int W)
{
	struct rows c = {y, rows, row, weight, N, D, k, W, 0};
	bool wide = D % 8 == 0 && W % 8 == 0;
	dim3 grid = grid_of(N, D, wide ? 8 : 1);
	if (!N || !D)
		return;
	if (wide && k == 1)
		scatter<8, 1><<<grid, BLOCK, 0, s>>>(c);
	else if (wide && k == 2)
		scatter<8, 2><<<grid, BLOCK, 0, s>>>(c);
	else if (wide)
		scatter<8, 0><<<grid, BLOCK, 0, s>>>(c);
	else
		scatter<1, 0><<<grid, BLOCK, 0, s>>>(c);
}

void cuda_pick(cuda_stream s, float *weight, const float *prob, const int32_t *index, int N, int E, int k)
{
	size_t pairs = (size_t)N * (size_t)k;
	if (pairs)
		pick<<<blocks_of(pairs, BLOCK), BLOCK, 0, s>>>(weight, prob, index, pairs, E, k);
}

void cuda_column(cuda_stream s, float *dweight, const bf16 *rows, const int32_t *row, int pairs, int D, int W)
{
	if (pairs)
		column<<<blocks_of((size_t)pairs, BLOCK), BLOCK, 0, s>>>(dweight, rows, row, pairs, weight_at(D), W);
}

/* Takes the runs from *next on that one launch has room for. */
static void fill_runs(struct runs *c, const struct cuda_rows *runs, int n, int chunk, int *next)
{
	size_t chunks = 0;
	for (c->n = 0; *next < n && c->n < RUNS; ++*next) {
		const struct cuda_rows *x = &runs[*next];
		if (!x->rows)
			continue;
		chunks += ((size_t)x->rows * (size_t)c->width + (size_t)chunk - 1) / (size_t)chunk;
		c->from[c->n] = x->from;
		c->to[c->n] = x->to;
		c->rows[c->n] = x->rows;
		c->end[c->n++] = (int)chunks;
	}
}

void cuda_move_rows(cuda_stream s, const struct cuda_rows *runs, int n, int width)
{
	const unsigned fill = (unsigned)processors_of_gpu() * (2048 / BLOCK); /* as many as there is room for at once */
	uintptr_t places = (uintptr_t)width * sizeof(bf16);
	struct runs c;
	for (int i = 0; i < n; i++)
		places |= (uintptr_t)runs[i].from | (uintptr_t)runs[i].to;
	bool wide = places % sizeof(uint4) == 0;
	c.width = width;
	for (int next = 0; next < n && width;) {
		fill_runs(&c, runs, n, CHUNK * (wide ? 8 : 1), &next);
		if (!c.n)
			return;
		unsigned blocks = blocks_of((size_t)c.end[c.n - 1], ROWS), grid = blocks < fill ? blocks : fill;
		if (wide)
			move<8><<<grid, BLOCK, 0, s>>>(c);
		else
			move<1><<<grid, BLOCK, 0, s>>>(c);
	}
}
