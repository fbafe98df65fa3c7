/* The router: L lanes for a token, J experts each. Blocks stay and walk down the tokens, so that the experts' mass (sum of prob) grows in registers;
 * what each block has goes to scratch, and is added up in order by a second kernel. Counts are whole numbers: atomics give the same in any order.
 *
 * Napkin, N = 32768, k = 2, E = 64: gate reads N E 2 bytes and writes N (4 E + 4 k), 13 MB in all, and its backward moves as much: launches decide. E
 * = 1024: 202 MB, and k searches of 32 experts a lane. */
#include "rows.h"

/* ---- kernels: gate ---- */

#define STAY 1056 /* blocks at most; the same on every GPU, so that sums are too */

/* What a lane has of a token's E experts: lane, lane + L, ...: J in registers, or any number when J = 0, in memory. */
template <int L, int J, typename F> __device__ static void each_expert(int E, F f)
{
	int lane = (int)threadIdx.x % L;
	if (J == 0)
		for (int e = lane; e < E; e += L)
			f(0, e);
#pragma unroll
	for (int j = 0; j < J; j++)
		if (lane + j * L < E)
			f(j, lane + j * L);
}

struct gate {
	float *prob;
	int32_t *index;
	uint32_t *counts;
	double *squares; /* (blocks): of the log-sum-exps */
	float *mass;     /* (blocks, or warps when J = 0; E) */
	const bf16 *logits;
	int N, E, k;
};

struct choice {
	float key;
	int expert;
};

__device__ static inline bool better(struct choice a, struct choice b)
{
	return a.key > b.key || (a.key == b.key && a.expert < b.expert);
}

/* The best of the lanes' choices. */
template <int L> __device__ static struct choice best_of(struct choice x)
{
#pragma unroll
	for (int d = L / 2; d; d /= 2) {
		struct choice y = {__shfl_xor_sync(ALL_LANES, x.key, d), __shfl_xor_sync(ALL_LANES, x.expert, d)};
		if (better(y, x))
			x = y;
	}
	return x;
}

/* A token's probabilities p(j, e) and its log-sum-exp. */
template <int L, int J, typename P> __device__ static float soften(const bf16 *logits, int E, P p)
{
	float most = -INFINITY, sum = 0;
	each_expert<L, J>(E, [&](int j, int e) {
		p(j, e) = widen(logits[e]);
		most = fmaxf(most, p(j, e));
	});
	most = most_of<L>(most);
	each_expert<L, J>(E, [&](int j, int e) {
		p(j, e) = exp_fast(p(j, e) - most);
		sum += p(j, e);
	});
	sum = sum_of<L>(sum);
	float share = 1 / sum;
	each_expert<L, J>(E, [&](int j, int e) { p(j, e) *= share; });
	return most + logf(sum);
}

/* Sums of the block's warps, in order; lanes of a warp that have the same experts first. */
template <int L, int J> __device__ static void write_mass(float *to, int E, const float (&mass)[J ? J : 1])
{
	__shared__ float sums[ROWS][LANES];
	int warp = (int)threadIdx.x / LANES, lane = (int)threadIdx.x % LANES;
	for (int j = 0; j < J; j++) {
		float x = 0;
#pragma unroll
		for (int i = 0; i < J; i++)
			x = i == j ? mass[i] : x;
#pragma unroll
		for (int d = LANES / 2; d >= L; d /= 2)
			x += __shfl_xor_sync(ALL_LANES, x, d);
		__syncthreads();
		sums[warp][lane] = x;
		__syncthreads();
		int e = j * L + lane;
		if (warp || lane >= L || e >= E)
			continue;
		x = 0;
		for (int w = 0; w < ROWS; w++)
			x += sums[w][lane];
		to[e] = x;
	}
}

/* The best after `last`: of p, from which it is taken, or of prob when J = 0. */
template <int L, int J> __device__ static struct choice next_choice(float (&p)[J ? J : 1], const float *prob, int E, struct choice last)
{
	struct choice best = {-2, 0x7fffffff};
	each_expert<L, J>(E, [&](int j, int e) {
		struct choice y = {J ? p[j] : prob[e] >= 0 ? prob[e] : -1, e};
		if (y.key > best.key && (J || better(last, y)))
			best = y;
	});
	best = best_of<L>(best);
	int gone = best.expert % L == (int)threadIdx.x % L ? best.expert / L : -1;
#pragma unroll
	for (int j = 0; j < J; j++)
		p[j] = j == gone ? -3 : p[j];
	return best;
}

template <int L, int J> __global__ void __launch_bounds__(BLOCK, 2) gate(struct gate c)
{
	constexpr int TOKENS = BLOCK / L; /* at a time */
	__shared__ uint32_t chosen[J ? L * J : 1];
	__shared__ double squares[TOKENS];
	int lane = (int)threadIdx.x % L, mine = (int)threadIdx.x / L;
	float p[J ? J : 1], mass[J ? J : 1] = {}, *warp_mass = c.mass + (size_t)row_of() * c.E;
	double square = 0;
	for (int e = (int)threadIdx.x; e < (J ? c.E : 0); e += BLOCK)
		chosen[e] = 0;
	if (J == 0)
		each_expert<L, J>(c.E, [&](int, int e) { warp_mass[e] = 0; });
	__syncthreads();
	for (int from = (int)blockIdx.x * TOKENS; from < c.N; from += (int)gridDim.x * TOKENS) {
		bool there = from + mine < c.N;
		if (L == LANES && !there)
			break;
		/* a part of a warp does the last token again, for the others' shuffles, and keeps it to itself */
		size_t n = (size_t)min(from + mine, c.N - 1);
		float *prob = c.prob + n * c.E;
		auto at = [&](int j, int e) -> float & { return J ? p[j] : prob[e]; };
		float lse = soften<L, J>(c.logits + n * c.E, c.E, at);
		square += there ? (double)lse * lse : 0;
		each_expert<L, J>(c.E, [&](int j, int e) {
			float x = at(j, e);
			if (J && there) {
				prob[e] = x;
				mass[j] += x;
			} else if (!J) {
				warp_mass[e] += x;
			}
		});
		if (J) /* not a number: after all others */
			each_expert<L, J>(c.E, [&](int j, int) { p[j] = p[j] >= 0 ? p[j] : -1; });
		struct choice last = {INFINITY, -1};
		for (int i = 0; i < c.k; i++) {
			last = next_choice<L, J>(p, prob, c.E, last);
			if (lane == 0 && there) {
				c.index[n * c.k + i] = last.expert;
				atomicAdd(J ? &chosen[last.expert] : &c.counts[last.expert], 1);
			}
		}
	}
	if (lane == 0)
		squares[mine] = square;
	write_mass<L, J>(c.mass + (size_t)blockIdx.x * c.E, c.E, mass);
	__syncthreads();
	for (int e = (int)threadIdx.x; e < (J ? c.E : 0); e += BLOCK)
		if (chosen[e])
			atomicAdd(&c.counts[e], chosen[e]);
	if (threadIdx.x)
		return;
	for (int i = 1; i < TOKENS; i++)
		square += squares[i];
	c.squares[blockIdx.x] = square;
}

__device__ static double sum_of_doubles(double x)
{
#pragma unroll
	for (int d = LANES / 2; d; d /= 2)
		x += __shfl_xor_sync(ALL_LANES, x, d);
	return x;
}

/* terms: block b's is the sum of count times mass over its 32 experts, a warp for every 32nd of the parts (parts, E); the last block's is the sum of
 * the squares (blocks). */
__global__ void __launch_bounds__(LANES *LANES)
    sum_mass(double *terms, const float *mass, const uint32_t *counts, int parts, int E, const double *squares, int blocks)
{
	__shared__ double sums[LANES][LANES + 1];
	int warp = (int)threadIdx.x / LANES, lane = (int)threadIdx.x % LANES, e = (int)blockIdx.x * LANES + lane;
	bool last = blockIdx.x == gridDim.x - 1;
	double sum = 0;
	for (int i = (int)threadIdx.x; last && i < blocks; i += LANES * LANES)
		sum += squares[i];
	for (int i = warp; !last && i < parts && e < E; i += LANES)
		sum += (double)mass[(size_t)i * E + e];
	sums[warp][lane] = sum;
	__syncthreads();
	if (warp)
		return;
	sum = 0;
	for (int w = 0; w < LANES; w++)
		sum += sums[w][lane];
	sum = sum_of_doubles(last ? sum : e < E ? sum * counts[e] : 0);
	if (lane == 0)
		terms[blockIdx.x] = sum;
}

/* One warp. aux = the sum of squares, which is behind the n terms, and that of scale * terms. */
__global__ void sum_aux(float *aux, const double *terms, int n, double scale)
{
	double sum = 0;
	for (int i = (int)threadIdx.x; i < n; i += LANES)
		sum += terms[i];
	sum = sum_of_doubles(sum);
	if (threadIdx.x)
		return;
	aux[0] = (float)terms[n];
	aux[1] = (float)(sum * scale);
}

struct gate_backward {
	bf16 *dlogits;
	const float *dweight, *prob;
	const int32_t *index;
	const uint32_t *counts;
	const bf16 *logits;
	double push; /* of the balance, a count */
	float z;     /* 2 z / N */
	int N, E, k;
};

/* Of the logits x(j, e). */
template <int L, int J, typename X> __device__ static float log_sum_exp(int E, X x)
{
	float most = -INFINITY, sum = 0;
	each_expert<L, J>(E, [&](int j, int e) { most = fmaxf(most, x(j, e)); });
	most = most_of<L>(most);
	each_expert<L, J>(E, [&](int j, int e) { sum += exp_fast(x(j, e) - most); });
	return most + logf(sum_of<L>(sum));
}

/* With g the gradient of the probabilities: dlogit = p (g - <p, g>), and 2 z lse p / N of the z-loss. */
template <int L, int J> __global__ void __launch_bounds__(BLOCK, 2) gate_backward(struct gate_backward c)
{
	int token = (int)(blockIdx.x * (BLOCK / L) + threadIdx.x / L), lane = (int)threadIdx.x % L;
	bool there = token < c.N;
	size_t n = (size_t)min(token, c.N - 1);
	const float *prob = c.prob + n * c.E, *dweight = c.dweight + n * c.k;
	const int32_t *index = c.index + n * c.k;
	const bf16 *logits = c.logits + n * c.E;
	float p[J ? J : 1], g[J ? J : 1], along = 0, z = 0;
	bf16 logit[J ? J : 1];
	each_expert<L, J>(c.E, [&](int j, int e) {
		if (J) {
			p[j] = prob[e];
			logit[j] = c.z != 0 ? logits[e] : 0;
			g[j] = (float)(c.push * c.counts[e]);
		}
	});
	if (c.z != 0)
		z = c.z * log_sum_exp<L, J>(c.E, [&](int j, int e) { return widen(J ? logit[j] : logits[e]); });
	for (int i = 0; i < (J ? c.k : 0); i++) {
		int e = index[i];
		float d = dweight[i];
#pragma unroll
		for (int j = 0; j < J; j++)
			g[j] += e == lane + j * L ? d : 0;
	}
	auto gradient = [&](int j, int e) {
		if (J)
			return g[j];
		float d = (float)(c.push * c.counts[e]);
		for (int i = 0; i < c.k; i++)
			d += index[i] == e ? dweight[i] : 0;
		return d;
	};
	each_expert<L, J>(c.E, [&](int j, int e) { along += (J ? p[j] : prob[e]) * gradient(j, e); });
	along = sum_of<L>(along);
	each_expert<L, J>(c.E, [&](int j, int e) {
		if (there)
			c.dlogits[n * c.E + e] = narrow((J ? p[j] : prob[e]) * (gradient(j, e) - along + z));
	});
}

__global__ void sum_counts(uint32_t *sum, const uint32_t *counts, int G, int E)
{
	int e = (int)(blockIdx.x * BLOCK + threadIdx.x);
	uint32_t x = 0;
	for (int g = 0; g < G && e < E; g++)
		x += counts[(size_t)g * E + e];
	if (e < E)
		sum[e] = x;
}

/* Of a token and choice: the expert whose places, E of them side by side, have this one. */
__global__ void __launch_bounds__(BLOCK) assign(int32_t *index, const uint32_t *counts, int N, int E, int k, int stride)
{
	int pair = (int)(blockIdx.x * BLOCK + threadIdx.x);
	if (pair >= N * k)
		return;
	uint32_t place = (uint32_t)((uint64_t)(pair / k) * (uint64_t)stride % (uint64_t)N) + (uint32_t)(pair % k) * (uint32_t)N, end = 0;
	int e = 0;
	for (; e < E - 1 && (end += counts[e]) <= place; e++)
		continue;
	index[pair] = e;
}

/* ---- launchers ---- */

static int blocks_that_stay(int N)
{
	unsigned blocks = blocks_of((size_t)N, ROWS);
	return blocks < 1 ? 1 : blocks < STAY ? (int)blocks : STAY;
}

static int groups_of(int E)
{
	return (int)blocks_of((size_t)E, LANES);
}

#define IN_REGISTERS 1024 /* experts */

size_t cuda_gate_scratch_floats(int N, int E)
{
	size_t blocks = (size_t)blocks_that_stay(N), parts = blocks * (E > IN_REGISTERS ? ROWS : 1);
	return 2 * (blocks + (size_t)groups_of(E) + 1) + parts * (size_t)E;
}

/* Calls launch(L, J) with room for E experts. */
#define BY_EXPERTS(E, launch)                                                                                                                        \
	do {                                                                                                                                         \
		if ((E) <= 8)                                                                                                                        \
			launch(8, 1);                                                                                                                \
		else if ((E) <= 32)                                                                                                                  \
			launch(8, 4);                                                                                                                \
		else if ((E) <= 64)                                                                                                                  \
			launch(8, 8);                                                                                                                \
		else if ((E) <= 128)                                                                                                                 \
			launch(32, 4);                                                                                                               \
		else if ((E) <= 256)                                                                                                                 \
			launch(32, 8);                                                                                                               \
		else if ((E) <= 512)                                                                                                                 \
			launch(32, 16);                                                                                                              \
		else if ((E) <= IN_REGISTERS)                                                                                                        \
			launch(32, 32);                                                                                                              \
		else                                                                                                                                 \
			launch(32, 0);                                                                                                               \
	} while (0)

void cuda_gate(cuda_stream s, float *prob, int32_t *index, uint32_t *counts, float *aux, const bf16 *logits, float *scratch, int N, int E, int k)
{
	int blocks = blocks_that_stay(N), parts = blocks * (E > IN_REGISTERS ? ROWS : 1);
	double *squares = (double *)scratch, *terms = squares + blocks;
	float *mass = (float *)(terms + groups_of(E) + 1);
	struct gate c = {prob, index, counts, squares, mass, logits, N, E, k};
	cudaMemsetAsync(counts, 0, sizeof(*counts) * (size_t)E, s);
#define LAUNCH(L, J) gate<L, J><<<(unsigned)blocks, BLOCK, 0, s>>>(c)
	BY_EXPERTS(E, LAUNCH);
#undef LAUNCH
	sum_mass<<<(unsigned)groups_of(E) + 1, LANES * LANES, 0, s>>>(terms, mass, counts, parts, E, squares, blocks);
	sum_aux<<<1, LANES, 0, s>>>(aux, terms, groups_of(E), N ? (double)E / ((double)N * k) / N : 0);
}

void cuda_gate_backward(cuda_stream s, bf16 *dlogits, const float *dweight, const float *prob, const int32_t *index, const uint32_t *counts,
                        const bf16 *logits, float balance, float z, int N, int total, int E, int k)
{
	if (!N)
		return;
	struct gate_backward c = {dlogits,          dweight, prob, index, counts, logits, (double)balance * E / ((double)total * k) / N,
	                          2 * z / (float)N, N,       E,    k};
#define LAUNCH(L, J) gate_backward<L, J><<<blocks_of((size_t)N, BLOCK / L), BLOCK, 0, s>>>(c)
	BY_EXPERTS(E, LAUNCH);
#undef LAUNCH
}

void cuda_assign(cuda_stream s, int32_t *index, const uint32_t *counts, int N, int E, int k, int stride)
{
	if (N)
		assign<<<blocks_of((size_t)N * (size_t)k, BLOCK), BLOCK, 0, s>>>(index, counts, N, E, k, stride);
}

void cuda_sum_counts(cuda_stream s, uint32_t *sum, const uint32_t *counts, int G, int E)
{
	sum_counts<<<blocks_of((size_t)E, BLOCK), BLOCK, 0, s>>>(sum, counts, G, E);
}
