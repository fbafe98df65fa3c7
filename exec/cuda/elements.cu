/* What is done element by element: sums, activations, Adam, initial values. Flat arrays are cut into pieces, one a thread; the last thread does what
 * is left, and an array that does not begin at 16 bytes goes one by one.
 *
 * Napkin, of n elements: add 6 n bytes, accumulate 12 n, cast 6 n; adam reads 16 n and writes 18 n (the gradient is cleared), n = 2^28: 9.1 GB.
 * Activation, N = 32768, F = 4096: N F 4 = 537 MB, gated 806 MB; expert_backward reads da, h and writes dh, active: N F 8 = 1.1 GB, gated 1.6 GB. */
#include "rows.h"

#include "exec/start.h"

enum { RELU, GELU, GEGLU, SWIGLU }; /* enum activation of model/network.h, which needs GLib */

/* ---- kernels: flat ---- */

/* work.at<V>(i) does the elements [i, i + V). */
template <int V, typename F> __global__ void __launch_bounds__(BLOCK) flat(F work, size_t n)
{
	size_t i = ((size_t)blockIdx.x * BLOCK + threadIdx.x) * V;
	if (i + V <= n)
		work.template at<V>(i);
	else
		for (; i < n; i++)
			work.template at<1>(i);
}

struct add {
	bf16 *y;
	const bf16 *a, *b;

	template <int V> __device__ void at(size_t i) const
	{
		float p[V], q[V];
		unpack(p, load<V>(a + i));
		unpack(q, load<V>(b + i));
#pragma unroll
		for (int v = 0; v < V; v++)
			p[v] += q[v];
		store<V>(y + i, pack(p));
	}
};

/* fp32, 4 or 1 at a time. */
template <int V> __device__ static void read_floats(float (&x)[V], const float *from)
{
	if constexpr (V == 4) {
		float4 p = *(const float4 *)from;
		x[0] = p.x;
		x[1] = p.y;
		x[2] = p.z;
		x[3] = p.w;
	} else {
		x[0] = *from;
	}
}

template <int V> __device__ static void write_floats(float *to, const float (&x)[V])
{
	if constexpr (V == 4)
		*(float4 *)to = make_float4(x[0], x[1], x[2], x[3]);
	else
		*to = x[0];
}

template <int V> __device__ static void write_narrow(bf16 *to, const float (&x)[V])
{
	if constexpr (V == 4)
		*(uint2 *)to = make_uint2(pack_pair(x[0], x[1]), pack_pair(x[2], x[3]));
	else
		*to = narrow(x[0]);
}

struct accumulate {
	float *to;
	const float *from;

	template <int V> __device__ void at(size_t i) const
	{
		float p[V], q[V];
		read_floats(p, to + i);
		read_floats(q, from + i);
#pragma unroll
		for (int v = 0; v < V; v++)
			p[v] += q[v];
		write_floats(to + i, p);
	}
};

struct cast {
	bf16 *to;
	const float *from;

	template <int V> __device__ void at(size_t i) const
	{
		float p[V];
		read_floats(p, from + i);
		write_narrow(to + i, p);
	}
};

/* Two bytes each, in device memory or pinned. */
struct move {
	bf16 *to;
	const bf16 *from;

	template <int V> __device__ void at(size_t i) const
	{
		store<V>(to + i, load<V>(from + i));
	}
};

/* As exec/adam_loop.h: every operation rounds once and none is fused, so a parameter gets the same bits on the CPU and here. */
struct adam {
	bf16 *param;
	float *master, *m, *v, *gradient;
	float keep_m, take_m, keep_v, take_v, correct_v, eps, rate, keep;

	template <int V> __device__ void at(size_t i) const
	{
		float p[V], m1[V], v1[V], g[V];
		read_floats(g, gradient + i);
		read_floats(p, master + i);
		read_floats(m1, m + i);
		read_floats(v1, v + i);
#pragma unroll
		for (int j = 0; j < V; j++) {
			m1[j] = __fadd_rn(__fmul_rn(m1[j], keep_m), __fmul_rn(g[j], take_m));
			v1[j] = __fadd_rn(__fmul_rn(v1[j], keep_v), __fmul_rn(__fmul_rn(g[j], g[j]), take_v));
			float root = __fadd_rn(__fmul_rn(__fsqrt_rn(v1[j]), correct_v), eps);
			p[j] = __fsub_rn(__fmul_rn(p[j], keep), __fmul_rn(__fdiv_rn(m1[j], root), rate));
			g[j] = 0;
		}
		write_floats(m + i, m1);
		write_floats(v + i, v1);
		write_floats(master + i, p);
		write_floats(gradient + i, g);
		write_narrow(param + i, p);
	}
};

/* start.h's functions, which are the host's. */
__device__ static uint64_t mix(uint64_t x)
{
	x += UINT64_C(0x9e3779b97f4a7c15);
	x = (x ^ (x >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
	x = (x ^ (x >> 27)) * UINT64_C(0x94d049bb133111eb);
	return x ^ (x >> 31);
}

__device__ static double uniform(uint64_t bits)
{
	return ((double)(bits >> 11) + 0.5) * 0x1p-53;
}

struct begin {
	bf16 *param;
	float *master;
	uint64_t key, from;
	double deviation;
	int start;

	template <int V> __device__ void at(size_t i) const
	{
		float x = start == START_GAIN;
		if (start != START_GAIN && start != START_BIAS) {
			uint64_t bits = mix(key + from + i);
			x = (float)(deviation * sqrt(-2 * log(uniform(bits))) * cos(2 * 3.14159265358979323846 * uniform(mix(bits ^ key))));
		}
		if (master)
			master[i] = x;
		param[i] = narrow(x);
	}
};

/* ---- kernels: activations ---- */

#define GELU_SCALE 1.5957691216057308f /* 2 sqrt(2 / pi): 0.5 (1 + tanh u) = sigmoid(2 u) */
#define GELU_CUBE 0.044715f

__device__ constexpr bool gated(int kind)
{
	return kind == GEGLU || kind == SWIGLU;
}

/* f(x), and f'(x): f = x sigmoid(u(x)), f' = s + x s (1 - s) u'. Where 1 - s cancels, the term is small beside s. */
template <int KIND> __device__ static float value_of(float x, float &slope)
{
	if (KIND == RELU) {
		slope = x > 0 ? 1 : 0;
		return x > 0 ? x : 0;
	}
	float square = x * x, u = KIND == SWIGLU ? x : GELU_SCALE * x * (1 + GELU_CUBE * square);
	float du = KIND == SWIGLU ? 1 : GELU_SCALE * (1 + 3 * GELU_CUBE * square);
	float s = __fdividef(1, 1 + exp_fast(fminf(-u, 87)));
	slope = s + x * s * (1 - s) * du;
	return x * s;
}

template <int V, int KIND> __global__ void __launch_bounds__(BLOCK) activate(bf16 *a, const bf16 *h, int N, int F)
{
	int n = row_of();
	if (n >= N)
		return;
	const bf16 *row = h + (size_t)n * F * (gated(KIND) ? 2 : 1);
	piece<V> in[AHEAD], up[AHEAD];
#pragma unroll
	for (int i = 0; i < AHEAD; i++) {
		int f = column_of<V>(i);
		if (f < F) {
			in[i] = load<V>(row + f);
			if (gated(KIND))
				up[i] = load<V>(row + F + f);
		}
	}
#pragma unroll
	for (int i = 0; i < AHEAD; i++) {
		int f = column_of<V>(i);
		float x[V], by[V], slope;
		unpack(x, in[i]);
		if (gated(KIND))
			unpack(by, up[i]);
#pragma unroll
		for (int v = 0; v < V; v++)
			x[v] = value_of<KIND>(x[v], slope) * (gated(KIND) ? by[v] : 1);
		if (f < F)
			store<V>(a + (size_t)n * F + f, pack(x));
	}
}

/* Of a piece: dh = c da f'(h), for the linear half dup = c da f(h); `active` = c act(h). Returns <da, act(h)>. */
template <int V, int KIND>
__device__ static float differentiate(float (&active)[V], float (&dh)[V], float (&dup)[V], const float (&da)[V], const float (&h)[V],
                                      const float (&up)[V], float c)
{
	float along = 0;
#pragma unroll
	for (int v = 0; v < V; v++) {
		float slope, y = value_of<KIND>(h[v], slope), by = gated(KIND) ? up[v] : 1, d = c * da[v];
		dh[v] = d * by * slope;
		dup[v] = d * y;
		active[v] = c * y * by;
		along += da[v] * y * by;
	}
	return along;
}

template <int V, int KIND> __global__ void __launch_bounds__(BLOCK) activate_backward(bf16 *dh, const bf16 *da, const bf16 *h, int N, int F)
{
	int n = row_of();
	if (n >= N)
		return;
	size_t row = (size_t)n * F * (gated(KIND) ? 2 : 1);
	piece<V> in[AHEAD], up[AHEAD] = {}, d[AHEAD];
#pragma unroll
	for (int i = 0; i < AHEAD; i++) {
		int f = column_of<V>(i);
		if (f < F) {
			in[i] = load<V>(h + row + f);
			d[i] = load<V>(da + (size_t)n * F + f);
			if (gated(KIND))
				up[i] = load<V>(h + row + F + f);
		}
	}
#pragma unroll
	for (int i = 0; i < AHEAD; i++) {
		int f = column_of<V>(i);
		float x[V], by[V], dy[V], active[V], dx[V], dby[V];
		unpack(x, in[i]);
		unpack(by, up[i]);
		unpack(dy, d[i]);
		differentiate<V, KIND>(active, dx, dby, dy, x, by, 1);
		if (f < F) {
			store<V>(dh + row + f, pack(dx));
			if (gated(KIND))
				store<V>(dh + row + F + f, pack(dby));
		}
	}
}

/* The weight of a row, which an odd width leaves at any element. */
__device__ static float read_weight(const bf16 *at)
{
	return __uint_as_float(at[0] | (uint32_t)at[1] << 16);
}

__device__ static void write_weight(bf16 *at, float weight)
{
	uint32_t bits = __float_as_uint(weight);
	at[0] = (bf16)bits;
	at[1] = (bf16)(bits >> 16);
}

struct expert_backward {
	bf16 *dh, *active, *rows;
	const bf16 *da, *h;
	int F, W;
	int weight; /* where it is in a row */
};

/* A block for a row. */
template <int V, int KIND> __global__ void __launch_bounds__(BLOCK) expert_backward(struct expert_backward c)
{
	__shared__ float sums[ROWS];
	size_t r = blockIdx.x, wide = r * c.F * (gated(KIND) ? 2 : 1);
	bf16 *weight = c.rows + r * c.W + c.weight;
	float by = read_weight(weight), along = 0;
	for (int f = (int)threadIdx.x * V; f < c.F; f += (int)blockDim.x * V) {
		float h[V], up[V] = {}, da[V], active[V], dh[V], dup[V];
		unpack(h, load<V>(c.h + wide + f));
		unpack(da, load<V>(c.da + r * c.F + f));
		if (gated(KIND))
			unpack(up, load<V>(c.h + wide + c.F + f));
		along += differentiate<V, KIND>(active, dh, dup, da, h, up, by);
		store<V>(c.active + r * c.F + f, pack(active));
		store<V>(c.dh + wide + f, pack(dh));
		if (gated(KIND))
			store<V>(c.dh + wide + c.F + f, pack(dup));
	}
	along = sum_of(along);
	if (threadIdx.x % LANES == 0)
		sums[threadIdx.x / LANES] = along;
	__syncthreads();
	if (threadIdx.x)
		return;
	for (unsigned w = 1; w < blockDim.x / LANES; w++)
		along += sums[w];
	write_weight(weight, along);
}

/* ---- launchers ---- */

/* V elements a thread when all pointers begin at 16 bytes. */
template <int V, typename F> static void start_flat(cuda_stream s, const F &work, size_t n, uintptr_t addresses)
{
	if (!n)
		return;
	if (addresses % 16 == 0)
		flat<V><<<blocks_of(n, (size_t)BLOCK * V), BLOCK, 0, s>>>(work, n);
	else
		flat<1><<<blocks_of(n, BLOCK), BLOCK, 0, s>>>(work, n);
}

void cuda_add(cuda_stream s, bf16 *y, const bf16 *a, const bf16 *b, size_t n)
{
	struct add work = {y, a, b};
	start_flat<8>(s, work, n, (uintptr_t)y | (uintptr_t)a | (uintptr_t)b);
}

void cuda_accumulate(cuda_stream s, float *to, const float *from, size_t n)
{
	struct accumulate work = {to, from};
	start_flat<4>(s, work, n, (uintptr_t)to | (uintptr_t)from);
}

void cuda_cast(cuda_stream s, bf16 *to, const float *from, size_t n)
{
	struct cast work = {to, from};
	start_flat<4>(s, work, n, (uintptr_t)to * 2 | (uintptr_t)from);
}

void cuda_move(cuda_stream s, bf16 *to, const bf16 *from, size_t n)
{
	struct move work = {to, from};
	start_flat<8>(s, work, n, (uintptr_t)to | (uintptr_t)from);
}

void cuda_adam(cuda_stream s, bf16 *param, float *master, float *m, float *v, float *gradient, size_t n, float lr, float beta1, float beta2,
               float eps, float decay, int t)
{
	double correct_m = 1 - pow((double)beta1, t), correct_v = 1 - pow((double)beta2, t);
	struct adam work = {param,
	                    master,
	                    m,
	                    v,
	                    gradient,
	                    beta1,
	                    (float)(1 - (double)beta1),
	                    beta2,
	                    (float)(1 - (double)beta2),
	                    (float)(1 / sqrt(correct_v)),
	                    eps,
	                    (float)((double)lr / correct_m),
	                    (float)(1 - (double)lr * (double)decay)};
	start_flat<4>(s, work, n, (uintptr_t)param * 2 | (uintptr_t)master | (uintptr_t)m | (uintptr_t)v | (uintptr_t)gradient);
}

void cuda_start(cuda_stream s, bf16 *param, float *master, size_t n, uint64_t key, uint64_t from, double deviation, int start)
{
	struct begin work = {param, master, key, from, deviation, start};
	start_flat<1>(s, work, n, 0);
}

/* Chooses the kernel of a kind and a width. */
#define BY_KIND(kind, width, launch)                                                                                                                 \
	do {                                                                                                                                         \
		if ((width) % 8 == 0)                                                                                                                \
			BY_KIND_ONLY(kind, 8, launch)                                                                                                \
		else                                                                                                                                 \
			BY_KIND_ONLY(kind, 1, launch)                                                                                                \
	} while (0)
#define BY_KIND_ONLY(kind, V, launch)                                                                                                                \
	switch (kind) {                                                                                                                              \
	case RELU:                                                                                                                                   \
		launch(V, RELU);                                                                                                                     \
		break;                                                                                                                               \
	case GELU:                                                                                                                                   \
		launch(V, GELU);                                                                                                                     \
		break;                                                                                                                               \
	case GEGLU:                                                                                                                                  \
		launch(V, GEGLU);                                                                                                                    \
		break;                                                                                                                               \
	case SWIGLU:                                                                                                                                 \
		launch(V, SWIGLU);                                                                                                                   \
		break;                                                                                                                               \
	}

void cuda_activation(cuda_stream s, bf16 *a, const bf16 *h, int N, int F, int activation)
{
	if (!N || !F)
		return;
#define LAUNCH(V, KIND) activate<V, KIND><<<grid_of(N, F, V), BLOCK, 0, s>>>(a, h, N, F)
	BY_KIND(activation, F, LAUNCH);
#undef LAUNCH
}

void cuda_activation_backward(cuda_stream s, bf16 *dh, const bf16 *da, const bf16 *h, int N, int F, int activation)
{
	if (!N || !F)
		return;
#define LAUNCH(V, KIND) activate_backward<V, KIND><<<grid_of(N, F, V), BLOCK, 0, s>>>(dh, da, h, N, F)
	BY_KIND(activation, F, LAUNCH);
#undef LAUNCH
}

void cuda_expert_backward(cuda_stream s, bf16 *dh, bf16 *active, bf16 *rows, const bf16 *da, const bf16 *h, int R, int F, int W, int D,
                          int activation)
{
	struct expert_backward c = {dh, active, rows, da, h, F, W, weight_at(D)};
	unsigned warps = blocks_of((size_t)F, F % 8 == 0 ? 8 * LANES : LANES), threads = (warps < ROWS ? warps : ROWS) * LANES;
	if (!R || !F)
		return;
#define LAUNCH(V, KIND) expert_backward<V, KIND><<<(unsigned)R, threads, 0, s>>>(c)
	BY_KIND(activation, F, LAUNCH);
#undef LAUNCH
}
