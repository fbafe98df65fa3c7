/* Operations of the host device against their plain twins, on odd sizes and no tokens at all. Routes and rows move numbers without changing them, so
 * they are compared exactly. */
#include "device_bed.h"
#include "exec/adam.h"
#include "exec/host_math.h"

#define TOLERANCE 1e-5

/* Vector units; one that this machine lacks is replaced by its best. */
static const char *const units[] = {"plain", "avx2", "avx512"};

static void device_bed_init_on(struct device_bed *b, const char *unit)
{
	g_setenv("ESMOE_SIMD", unit, TRUE);
	device_bed_init(b);
}

Test(ops, exponential_is_within_two_in_ten_million)
{
	for (double x = -86.9; x < 86.9; x += 0.000317) {
		double expected = exp((double)(float)x);
		cr_assert(fabs((double)fast_exp((float)x) - expected) <= 2e-7 * expected, "%.9g", x);
	}
	cr_assert_eq(fast_exp(0), 1);
	cr_assert_lt(fast_exp(-INFINITY), 1e-37);
	cr_assert(isnan(fast_exp(NAN)));
}

Test(ops, embedding_adds_token_and_place)
{
	struct device_bed b;
	device_bed_init(&b);
	for (int B = 0; B <= 3; B++) {
		enum { T = 5, V = 9, D = 7 };
		size_t n = (size_t)(B * T * D);
		g_autofree int32_t *tokens = device_bed_tokens(&b, B * T, V);
		g_autofree double *wte = twin_random(b.random, V * D, 1), *wpe = twin_random(b.random, T * D, 1), *expected = twin_new(n);
		g_autofree float *fwte = twin_floats(wte, V * D), *fwpe = twin_floats(wpe, T * D), *x = g_new(float, n);
		op_embed(b.stream, x, tokens, fwte, fwpe, B, T, D);
		device_bed_sync(&b);
		twin_embed(expected, tokens, wte, wpe, B, T, D);
		twin_compare("x", x, expected, n, TOLERANCE);
	}
	device_bed_clear(&b);
}

Test(ops, norm)
{
	struct device_bed b;
	device_bed_init(&b);
	for (size_t i = 0; i < G_N_ELEMENTS(token_counts); i++)
		for (int D = 1; D < 70; D += 17) {
			int N = token_counts[i];
			size_t n = (size_t)(N * D);
			g_autofree double *x = twin_random(b.random, n, 3), *gain = twin_random(b.random, (size_t)D, 1),
			                  *bias = twin_random(b.random, (size_t)D, 1), *expected = twin_new(n);
			g_autofree float *fx = twin_floats(x, n), *fgain = twin_floats(gain, (size_t)D), *fbias = twin_floats(bias, (size_t)D),
			                 *y = g_new(float, n), *mean = g_new(float, N), *rstd = g_new(float, N);
			op_norm(b.stream, y, mean, rstd, fx, fgain, fbias, N, D);
			device_bed_sync(&b);
			twin_norm(expected, x, gain, bias, N, D);
			twin_compare("y", y, expected, n, TOLERANCE);
		}
	device_bed_clear(&b);
}

Test(ops, linear_writes_or_adds)
{
	struct device_bed b;
	device_bed_init(&b);
	for (size_t i = 0; i < G_N_ELEMENTS(token_counts); i++) {
		enum { I_ = 33, O = 21 };
		int N = token_counts[i];
		size_t in = (size_t)N * I_, out = (size_t)N * O;
		g_autofree double *x = twin_random(b.random, in, 1), *w = twin_random(b.random, I_ * O, 1), *expected = twin_new(out);
		g_autofree float *fx = twin_floats(x, in), *fw = twin_floats(w, I_ * O), *y = g_new(float, out);
		for (size_t j = 0; j < out; j++)
			y[j] = NAN; /* whatever was there is overwritten */
		twin_linear(expected, x, w, N, I_, O);
		op_linear(b.stream, y, fx, fw, NULL, N, I_, O);
		device_bed_sync(&b);
		twin_compare("y", y, expected, out, TOLERANCE);
		op_linear(b.stream, y, fx, fw, y, N, I_, O);
		device_bed_sync(&b);
		for (size_t j = 0; j < out; j++)
			expected[j] *= 2;
		twin_compare("y added", y, expected, out, TOLERANCE);
		g_autofree float *other = g_memdup2(y, out * sizeof(float));
		op_linear(b.stream, y, fx, fw, other, N, I_, O);
		device_bed_sync(&b);
		for (size_t j = 0; j < out; j++)
			expected[j] *= 1.5;
		twin_compare("y added to another", y, expected, out, TOLERANCE);
	}
	device_bed_clear(&b);
}

static void check_attention(struct device_bed *b, int B, int T, int H, int K, int C)
{
	size_t in = (size_t)(B * T * (H + 2 * K) * C), out = (size_t)(B * T * H * C), rows = (size_t)(B * H * T);
	g_autofree double *qkv = twin_random(b->random, in, 1), *expected = twin_new(out), *lse = twin_new(rows);
	g_autofree float *fqkv = twin_floats(qkv, in), *o = g_new(float, out), *flse = g_new(float, rows);
	op_attention(b->stream, o, flse, fqkv, B, T, H, K, C);
	device_bed_sync(b);
	twin_attention(expected, lse, qkv, B, T, H, K, C);
	twin_compare("o", o, expected, out, TOLERANCE);
	twin_compare("lse", flse, lse, rows, TOLERANCE);
}

Test(ops, attention)
{
	for (size_t u = 0; u < G_N_ELEMENTS(units); u++) {
		struct device_bed b;
		device_bed_init_on(&b, units[u]);
		check_attention(&b, 0, 4, 2, 2, 4);
		check_attention(&b, 3, 1, 2, 1, 5);
		check_attention(&b, 2, 3, 1, 1, 8);
		check_attention(&b, 2, 17, 4, 2, 7);
		check_attention(&b, 1, 64, 2, 2, 4);
		check_attention(&b, 1, 65, 2, 2, 4);
		check_attention(&b, 2, 200, 2, 1, 16);
		device_bed_clear(&b);
	}
}

Test(ops, add_and_accumulate)
{
	struct device_bed b;
	device_bed_init(&b);
	for (size_t i = 0; i < G_N_ELEMENTS(token_counts); i++) {
		size_t n = (size_t)token_counts[i];
		g_autofree double *a = twin_random(b.random, n, 1), *c = twin_random(b.random, n, 1);
		g_autofree float *fa = twin_floats(a, n), *fc = twin_floats(c, n), *y = g_new0(float, n), *copy = g_new0(float, n);
		op_add(b.stream, y, fa, fc, n);
		op_add(b.stream, y, y, fa, n);
		op_accumulate(b.stream, y, fc, n);
		op_cast(b.stream, copy, y, n);
		device_bed_sync(&b);
		for (size_t j = 0; j < n; j++)
			cr_assert(y[j] == fa[j] + fc[j] + fa[j] + fc[j] && copy[j] == y[j]);
	}
	device_bed_clear(&b);
}

/* Relative to each value, not to the largest: no cancellation on the way down to zero. */
static void check_activation(struct device_bed *b, int N, int F, int kind)
{
	size_t out = (size_t)(N * F), in = twin_gated(kind) ? 2 * out : out;
	g_autofree double *h = twin_random(b->random, in, 1.5), *expected = twin_new(out);
	g_autofree float *fh = twin_floats(h, in), *a = g_new(float, out);
	op_activation(b->stream, a, fh, N, F, kind);
	device_bed_sync(b);
	twin_activation(expected, h, N, F, kind);
	for (size_t i = 0; i < out; i++)
		cr_assert(fabs((double)a[i] - expected[i]) <= 1e-6 * (fabs(expected[i]) + 1e-2), "%d: %.9g instead of %.9g", kind, (double)a[i],
		          expected[i]);
}

Test(ops, activations)
{
	for (size_t u = 0; u < G_N_ELEMENTS(units); u++) {
		struct device_bed b;
		device_bed_init_on(&b, units[u]);
		for (int kind = ACTIVATION_RELU; kind <= ACTIVATION_SWIGLU; kind++)
			for (size_t i = 0; i < G_N_ELEMENTS(token_counts); i++) {
				check_activation(&b, token_counts[i], 29, kind);
				check_activation(&b, token_counts[i], 64, kind);
			}
		device_bed_clear(&b);
	}
}

static void check_gate(struct device_bed *b, const double *logits, int N, int E, int k)
{
	size_t n = (size_t)(N * E), pairs = (size_t)(N * k);
	double aux[2];
	g_autofree double *prob = twin_new(n);
	g_autofree int32_t *expected = g_new0(int32_t, pairs), *index = g_new(int32_t, pairs);
	g_autofree uint32_t *counts = g_new0(uint32_t, E), *fcounts = g_new(uint32_t, E);
	g_autofree float *flogits = twin_floats(logits, n), *fprob = g_new(float, n);
	float faux[2];
	op_gate(b->stream, fprob, index, fcounts, faux, flogits, N, E, k);
	device_bed_sync(b);
	twin_softmax(prob, logits, N, E);
	device_bed_choose(expected, counts, logits, N, E, k);
	twin_aux(aux, logits, counts, N, E, k);
	twin_compare("prob", fprob, prob, n, TOLERANCE);
	twin_compare("aux", faux, aux, 2, TOLERANCE);
	for (size_t i = 0; i < pairs; i++)
		cr_assert_eq(index[i], expected[i], "pair %zu: %d instead of %d", i, index[i], expected[i]);
	for (int e = 0; e < E; e++)
		cr_assert_eq(fcounts[e], counts[e]);
}

Test(ops, gate_chooses_the_most_likely)
{
	struct device_bed b;
	device_bed_init(&b);
	static const int shape[][2] = {{1, 1}, {2, 1}, {8, 2}, {13, 5}, {64, 6}, {5, 5}};
	for (size_t i = 0; i < G_N_ELEMENTS(token_counts); i++)
		for (size_t j = 0; j < G_N_ELEMENTS(shape); j++) {
			g_autofree double *logits = twin_random(b.random, (size_t)(token_counts[i] * shape[j][0]), 2);
			check_gate(&b, logits, token_counts[i], shape[j][0], shape[j][1]);
		}
	device_bed_clear(&b);
}

/* Draws counts of at most N whose sum is N k. */
static void draw_counts(GRand *random, uint32_t *counts, int N, int E, int k)
{
	memset(counts, 0, sizeof(*counts) * (size_t)E);
	for (int left = N * k; left > 0;) {
		int e = g_rand_int_range(random, 0, E), room = N - (int)counts[e], most = MIN(room, left);
		int n = most > 0 ? g_rand_int_range(random, 1, most + 1) : 0;
		counts[e] += (uint32_t)n;
		left -= n;
	}
}

Test(ops, assignment_gives_each_expert_its_count_and_each_token_different_ones)
{
	static const int shape[][3] = {{0, 3, 1}, {1, 1, 1}, {1, 5, 5}, {17, 4, 1}, {64, 8, 2}, {100, 3, 3}, {127, 64, 6}};
	struct device_bed b;
	device_bed_init(&b);
	for (size_t i = 0; i < G_N_ELEMENTS(shape); i++) {
		int N = shape[i][0], E = shape[i][1], k = shape[i][2];
		g_autofree uint32_t *counts = g_new(uint32_t, E), *seen = g_new0(uint32_t, E);
		g_autofree int32_t *index = g_new(int32_t, N * k);
		draw_counts(b.random, counts, N, E, k);
		op_assign(b.stream, index, counts, N, E, k);
		device_bed_sync(&b);
		for (int pair = 0; pair < N * k; pair++) {
			seen[index[pair]]++;
			for (int other = pair / k * k; other < pair; other++)
				cr_assert_neq(index[other], index[pair]);
		}
		for (int e = 0; e < E; e++)
			cr_assert_eq(seen[e], counts[e]);
	}
	device_bed_clear(&b);
}

Test(ops, gate_gives_ties_to_the_lower_expert)
{
	struct device_bed b;
	device_bed_init(&b);
	double logits[3 * 8] = {0, 0, 0, 0, 0, 0, 0, 0, 1, 2, 2, 1, 2, 1, 1, 2, -5, -5, -5, -5, -5, -5, 3, 3};
	for (int k = 1; k <= 8; k++)
		check_gate(&b, logits, 3, 8, k);
	device_bed_clear(&b);
}

/* A network that diverged: what is chosen makes no sense, but no row goes astray. */
Test(ops, gate_without_numbers_chooses_different_experts)
{
	struct device_bed b;
	device_bed_init(&b);
	enum { N = 4, E = 5, K = 3 };
	float logits[N * E] = {[1] = NAN, [E + 2] = INFINITY, [2 * E + 3] = -INFINITY, [3 * E] = NAN, [3 * E + 1] = NAN}, prob[N * E], aux[2];
	int32_t index[N * K];
	uint32_t counts[E], sum = 0;
	op_gate(b.stream, prob, index, counts, aux, logits, N, E, K);
	device_bed_sync(&b);
	for (int n = 0; n < N; n++)
		for (int i = 0; i < K; i++) {
			cr_assert(index[n * K + i] >= 0 && index[n * K + i] < E);
			for (int j = 0; j < i; j++)
				cr_assert(index[n * K + i] != index[n * K + j]);
		}
	for (int e = 0; e < E; e++)
		sum += counts[e];
	cr_assert_eq(sum, N * K);
	device_bed_clear(&b);
}

/* Where each pair goes, by counting for each of them who comes before it. */
static void check_route(struct device_bed *b, int N, int E, int k, uint32_t capacity)
{
	int pairs = N * k, slots = capacity ? E * (int)capacity : pairs;
	g_autofree double *logits = twin_random(b->random, (size_t)(N * E), 1);
	g_autofree int32_t *index = g_new0(int32_t, pairs), *row = g_new(int32_t, pairs), *order = g_new(int32_t, slots);
	g_autofree uint32_t *counts = g_new0(uint32_t, E);
	device_bed_choose(index, counts, logits, N, E, k);
	op_route(b->stream, order, row, index, N, E, k, capacity);
	device_bed_sync(b);
	int kept = 0;
	for (int p = 0; p < pairs; p++) {
		int lower = 0, same = 0;
		for (int q = 0; q < pairs; q++) {
			lower += index[q] < index[p];
			same += index[q] == index[p] && q < p;
		}
		int expected = !capacity ? lower + same : same < (int)capacity ? index[p] * (int)capacity + same : -1;
		cr_assert_eq(row[p], expected, "pair %d: row %d instead of %d", p, row[p], expected);
		cr_assert(expected < 0 || order[expected] == p);
		kept += expected >= 0;
	}
	for (int r = 0; r < slots; r++)
		kept -= order[r] >= 0;
	cr_assert_eq(kept, 0, "rows nobody sent");
}

Test(ops, route_sorts_by_expert_then_token_and_drops_exactly_the_overflow)
{
	struct device_bed b;
	device_bed_init(&b);
	for (size_t i = 0; i < G_N_ELEMENTS(token_counts); i++)
		for (uint32_t capacity = 0; capacity <= 8; capacity = capacity * 2 + 1) {
			check_route(&b, token_counts[i], 6, 2, capacity);
			check_route(&b, token_counts[i], 1, 1, capacity);
			check_route(&b, token_counts[i], 40, 3, capacity);
		}
	device_bed_clear(&b);
}

/* What an expert that copies its rows gives back: each token times the sum of the weights of its choices that were not dropped. */
Test(ops, rows_come_back_to_their_tokens)
{
	struct device_bed b;
	device_bed_init(&b);
	for (uint32_t capacity = 0; capacity <= 2; capacity++) {
		enum { N = 17, E = 5, K = 2, D = 7, W = D + 1 };
		int rows = capacity ? E * (int)capacity : N * K;
		g_autofree double *logits = twin_random(b.random, N * E, 1), *x = twin_random(b.random, N * D, 1);
		int32_t index[N * K] = {0}, row[N * K];
		uint32_t counts[E] = {0};
		device_bed_choose(index, counts, logits, N, E, K);
		g_autofree int32_t *order = g_new(int32_t, rows);
		g_autofree float *prob = twin_floats(logits, N * E), *fx = twin_floats(x, N * D), *wide = g_new(float, rows *W),
		                 *narrow = g_new(float, rows *D);
		float weight[N * K], dweight[N * K], y[N * D], plain[N * D];
		memset(y, 0, sizeof(y));
		memcpy(plain, fx, sizeof(plain));
		op_route(b.stream, order, row, index, N, E, K, capacity);
		op_pick(b.stream, weight, prob, index, N, E, K);
		op_gather(b.stream, wide, fx, order, weight, rows, D, K, W);
		op_gather(b.stream, narrow, fx, order, NULL, rows, D, K, D);
		op_scatter(b.stream, y, wide, row, weight, N, D, K, W);
		op_scatter(b.stream, plain, narrow, row, NULL, N, D, K, D);
		op_column(b.stream, dweight, wide, row, N * K, D, W);
		device_bed_sync(&b);
		for (int n = 0; n < N; n++)
			for (int d = 0; d < D; d++) {
				double sum = 0, copies = 1;
				for (int i = n * K; i < (n + 1) * K; i++)
					if (row[i] >= 0) {
						sum += logits[n * E + index[i]];
						copies++;
					}
				cr_assert_float_eq(y[n * D + d], sum * x[n * D + d], 1e-5 * (1 + fabs(sum * x[n * D + d])));
				cr_assert_float_eq(plain[n * D + d], copies * x[n * D + d], 1e-5 * (1 + fabs(x[n * D + d])));
			}
		for (int p = 0; p < N * K; p++)
			cr_assert(dweight[p] == (row[p] < 0 ? 0 : weight[p]) && weight[p] == prob[p / K * E + index[p]]);
		for (int r = 0; r < rows; r++)
			for (int d = 0; d < W && order[r] < 0; d++)
				cr_assert_eq(wide[r * W + d], 0);
	}
	device_bed_clear(&b);
}

/* Pieces of a buffer, out of order, one of them empty. */
Test(ops, experts_are_two_products_around_the_activation)
{
	struct device_bed b;
	device_bed_init(&b);
	enum { D = 6, F = 9, N = 17, X = 3 };
	for (int kind = ACTIVATION_RELU; kind <= ACTIVATION_SWIGLU; kind++) {
		const int wide = twin_gated(kind) ? 2 * F : F, first[X] = {5, 0, 17}, rows[X] = {12, 5, 0};
		g_autofree double *x = twin_random(b.random, N * D, 1), *up = twin_random(b.random, (size_t)(X * D * wide), 1),
		                  *down = twin_random(b.random, X * F * D, 1), *h = twin_new((size_t)(N * wide)), *a = twin_new(N * F),
		                  *expected = twin_new(N * D);
		g_autofree float *fx = twin_floats(x, N * D), *fup = twin_floats(up, (size_t)(X * D * wide)), *fdown = twin_floats(down, X * F * D),
		                 *y = g_new(float, N *D), *hidden = g_new(float, N *wide), *active = g_new(float, N *F);
		struct expert_rows pieces[X];
		for (int i = 0; i < X; i++) {
			pieces[i] =
			    (struct expert_rows){.up = fup + i * D * wide, .down = fdown + i * F * D, .from = (size_t)first[i], .rows = rows[i]};
			twin_linear(h, x + first[i] * D, up + i * D * wide, rows[i], D, wide);
			twin_activation(a, h, rows[i], F, kind);
			twin_linear(expected + first[i] * D, a, down + i * F * D, rows[i], F, D);
		}
		op_experts(b.stream, y, fx, pieces, X, &(struct expert_shape){D, F, kind, 4}, &(struct expert_space){hidden, active, NULL, NULL});
		device_bed_sync(&b);
		twin_compare("y", y, expected, N * D, TOLERANCE);
	}
	device_bed_clear(&b);
}

/* The same bits as the CPU optimizer's plain loop, whatever the length; and the gradient starts again from zero. */
Test(ops, adam_on_the_device_gives_the_bits_of_adam_on_the_host)
{
	struct device_bed b;
	device_bed_init(&b);
	for (size_t n = 0; n < 70; n = n * 2 + 1) {
		struct adam_step step = {.lr = 1e-2f, .beta1 = 0.9f, .beta2 = 0.95f, .eps = 1e-8f, .decay = 0.1f};
		g_autofree double *p = twin_random(b.random, n, 1), *g = twin_random(b.random, n, 1);
		g_autofree float *param = twin_floats(p, n), *m = g_new0(float, n), *v = g_new0(float, n), *gradient = g_new(float, n),
		                 *param2 = twin_floats(p, n), *m2 = g_new0(float, n), *v2 = g_new0(float, n), *gradient2 = twin_floats(g, n);
		struct adam_args plain = {.master = param2, .m = m2, .v = v2, .gradient = gradient2, .n = n, .scale = 1};
		for (step.t = 1; step.t <= 3; step.t++) {
			for (size_t i = 0; i < n; i++)
				gradient[i] = gradient2[i];
			op_adam(b.stream, param, NULL, m, v, gradient, n, &step);
			device_bed_sync(&b);
			plain.step = step;
			adam_update_plain(&plain);
		}
		for (size_t i = 0; i < n; i++)
			cr_assert(param[i] == param2[i] && m[i] == m2[i] && v[i] == v2[i] && gradient[i] == 0);
	}
	device_bed_clear(&b);
}
