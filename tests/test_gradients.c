/* Every backward of the host device against central differences of a scalar, the sum of the operation's output times random numbers r; the
 * differences run in double on the plain twin, and r is the gradient that the backward is given. */
#include "device_bed.h"

#define TOLERANCE 2e-5

/* What a scalar is computed from. */
struct setting {
	double *x, *w, *bias, *r, *y, *aux;
	int32_t *tokens;
	uint32_t *counts;
	int B, T, N, D, O, H, K, C, E, k, kind, tied;
	double total, balance, z;
};

/* Gradients start from what is there: the same random number everywhere shows a missing or a wrong `+=`. */
static const double there = 0.5;

static float *filled(size_t n, double value)
{
	float *f = g_new(float, n);
	for (size_t i = 0; i < n; i++)
		f[i] = (float)value;
	return f;
}

/* Compares a gradient that was added to `there` (or written over it: added false) with the differences of f; frees it. */
static void check(const char *what, float *gradient, double (*f)(void *), struct setting *s, double *x, size_t n, bool added)
{
	double *expected = twin_differences(f, s, x, n);
	for (size_t i = 0; added && i < n; i++)
		expected[i] += there;
	twin_compare(what, gradient, expected, n, TOLERANCE);
	g_free(expected);
	g_free(gradient);
}

static void setting_clear(struct setting *s)
{
	g_free(s->x);
	g_free(s->w);
	g_free(s->bias);
	g_free(s->r);
	g_free(s->y);
	g_free(s->aux);
	g_free(s->tokens);
	g_free(s->counts);
}

static double embed_scalar(void *user)
{
	struct setting *s = user;
	twin_embed(s->y, s->tokens, s->x, s->w, s->B, s->T, s->D);
	return twin_dot(s->y, s->r, (size_t)(s->B * s->T * s->D));
}

Test(gradients, embedding)
{
	struct device_bed b;
	device_bed_init(&b);
	for (int B = 0; B <= 3; B++) {
		enum { T = 5, V = 7, D = 3 };
		size_t n = (size_t)(B * T * D);
		struct setting s = {.B = B, .T = T, .D = D};
		s.tokens = device_bed_tokens(&b, B * T, V);
		s.x = twin_random(b.random, V * D, 1);
		s.w = twin_random(b.random, T * D, 1);
		s.r = twin_random(b.random, n, 1);
		s.y = twin_new(n);
		g_autofree float *dx = twin_floats(s.r, n);
		float *dwte = filled(V * D, there), *dwpe = filled(T * D, there);
		op_embed_backward(b.stream, dwte, dwpe, dx, s.tokens, B, T, D);
		device_bed_sync(&b);
		check("dwte", dwte, embed_scalar, &s, s.x, V * D, true);
		check("dwpe", dwpe, embed_scalar, &s, s.w, T * D, true);
		setting_clear(&s);
	}
	device_bed_clear(&b);
}

static double norm_scalar(void *user)
{
	struct setting *s = user;
	twin_norm(s->y, s->x, s->w, s->bias, s->N, s->D);
	return twin_dot(s->y, s->r, (size_t)(s->N * s->D));
}

Test(gradients, norm)
{
	struct device_bed b;
	device_bed_init(&b);
	for (size_t i = 0; i < G_N_ELEMENTS(token_counts); i++) {
		enum { D = 19 };
		int N = token_counts[i];
		size_t n = (size_t)N * D;
		struct setting s = {.N = N, .D = D};
		s.x = twin_random(b.random, n, 2);
		s.w = twin_random(b.random, D, 1);
		s.bias = twin_random(b.random, D, 1);
		s.r = twin_random(b.random, n, 1);
		s.y = twin_new(n);
		g_autofree float *x = twin_floats(s.x, n), *gain = twin_floats(s.w, D), *bias = twin_floats(s.bias, D), *dy = twin_floats(s.r, n);
		g_autofree float *y = g_new(float, n), *mean = g_new(float, N), *rstd = g_new(float, N);
		float *dx = filled(n, there), *dgain = filled(D, there), *dbias = filled(D, there);
		op_norm(b.stream, y, mean, rstd, x, gain, bias, N, D);
		op_norm_backward(b.stream, dx, dgain, dbias, dy, x, gain, mean, rstd, N, D);
		device_bed_sync(&b);
		check("dx", dx, norm_scalar, &s, s.x, n, true);
		check("dgain", dgain, norm_scalar, &s, s.w, D, true);
		check("dbias", dbias, norm_scalar, &s, s.bias, D, true);
		setting_clear(&s);
	}
	device_bed_clear(&b);
}

static double linear_scalar(void *user)
{
	struct setting *s = user;
	twin_linear(s->y, s->x, s->w, s->N, s->D, s->O);
	return twin_dot(s->y, s->r, (size_t)(s->N * s->O));
}

static void check_linear(struct device_bed *b, int N, bool add)
{
	enum { I_ = 11, O = 6 };
	size_t in = (size_t)N * I_, out = (size_t)N * O;
	struct setting s = {.N = N, .D = I_, .O = O};
	s.x = twin_random(b->random, in, 1);
	s.w = twin_random(b->random, I_ * O, 1);
	s.r = twin_random(b->random, out, 1);
	s.y = twin_new(out);
	g_autofree float *x = twin_floats(s.x, in), *w = twin_floats(s.w, I_ * O), *dy = twin_floats(s.r, out);
	float *dx = filled(in, there), *dw = filled(I_ * O, there), *only = filled(in, there);
	op_linear_backward(b->stream, dx, dw, dy, x, w, N, I_, O, add);
	op_linear_backward(b->stream, only, NULL, dy, x, w, N, I_, O, add);
	device_bed_sync(b);
	check("dx", dx, linear_scalar, &s, s.x, in, add);
	check("dx alone", only, linear_scalar, &s, s.x, in, add);
	check("dw", dw, linear_scalar, &s, s.w, I_ * O, true);
	setting_clear(&s);
}

Test(gradients, linear)
{
	struct device_bed b;
	device_bed_init(&b);
	for (size_t i = 0; i < G_N_ELEMENTS(token_counts); i++) {
		check_linear(&b, token_counts[i], false);
		check_linear(&b, token_counts[i], true);
	}
	device_bed_clear(&b);
}

/* sum over the rows of weight <r, act(x up) down>: x (N, D), w = up and then down, aux the weights. */
static double expert_scalar(void *user)
{
	struct setting *s = user;
	int wide = twin_gated(s->kind) ? 2 * s->O : s->O;
	g_autofree double *h = twin_new((size_t)(s->N * wide)), *a = twin_new((size_t)(s->N * s->O));
	double sum = 0;
	twin_linear(h, s->x, s->w, s->N, s->D, wide);
	twin_activation(a, h, s->N, s->O, s->kind);
	twin_linear(s->y, a, s->w + s->D * wide, s->N, s->O, s->D);
	for (int n = 0; n < s->N; n++)
		sum += s->aux[n] * twin_dot(s->y + n * s->D, s->r + n * s->D, (size_t)s->D);
	return sum;
}

static float *column(const float *rows, int N, int from, int n, int width)
{
	float *x = g_new(float, N *n);
	for (int r = 0; r < N; r++)
		memcpy(x + r * n, rows + r * width + from, sizeof(float) * (size_t)n);
	return x;
}

static void check_expert(struct device_bed *b, int N, int kind, bool fresh)
{
	enum { D = 7, F = 5, W = D + 1 };
	int wide = twin_gated(kind) ? 2 * F : F;
	size_t in = (size_t)N * D, up = (size_t)(D * wide), down = F * D;
	struct setting s = {.N = N, .D = D, .O = F, .kind = kind};
	s.x = twin_random(b->random, in, 1);
	s.w = twin_random(b->random, up + down, 1);
	s.r = twin_random(b->random, in, 1);
	s.aux = twin_random(b->random, (size_t)N, 1);
	s.y = twin_new(in);
	g_autofree float *x = twin_floats(s.x, in), *w = twin_floats(s.w, up + down), *rows = g_new(float, N *W);
	g_autofree float *hidden = g_new(float, N *wide), *active = g_new(float, N *F), *dhidden = g_new(float, N *wide),
	                 *dactive = g_new(float, N *F);
	float *dup = filled(up, there), *ddown = filled(down, there);
	for (int n = 0; n < N; n++) {
		for (int d = 0; d < D; d++)
			rows[n * W + d] = (float)s.r[n * D + d];
		rows[n * W + D] = (float)s.aux[n];
	}
	/* two pieces of one expert: the second adds to the first */
	struct expert_rows whole = {.up = w, .down = w + up, .dup = dup, .ddown = ddown, .rows = N / 2, .fresh = fresh}, rest = whole;
	rest.from = (size_t)(N / 2);
	rest.rows = N - N / 2;
	rest.fresh = false;
	const struct expert_rows *pieces[] = {&whole, &rest};
	for (int i = 0; i < 2; i++)
		op_experts_backward(b->stream, rows, x, pieces[i], 1, &(struct expert_shape){D, F, kind, 4},
		                    &(struct expert_space){hidden, active, dhidden, dactive});
	device_bed_sync(b);
	check("dx", column(rows, N, 0, D, W), expert_scalar, &s, s.x, in, false);
	check("dweight", column(rows, N, D, 1, W), expert_scalar, &s, s.aux, (size_t)N, false);
	check("dup", dup, expert_scalar, &s, s.w, up, !fresh);
	check("ddown", ddown, expert_scalar, &s, s.w + up, down, !fresh);
	setting_clear(&s);
}

Test(gradients, experts)
{
	struct device_bed b;
	device_bed_init(&b);
	for (int kind = ACTIVATION_RELU; kind <= ACTIVATION_SWIGLU; kind++) {
		check_expert(&b, 0, kind, false);
		check_expert(&b, 2, kind, true);
		check_expert(&b, 9, kind, true);
		check_expert(&b, 9, kind, false);
	}
	device_bed_clear(&b);
}

static double attention_scalar(void *user)
{
	struct setting *s = user;
	twin_attention(s->y, s->aux, s->x, s->B, s->T, s->H, s->K, s->C);
	return twin_dot(s->y, s->r, (size_t)(s->B * s->T * s->H * s->C));
}

static void check_attention(struct device_bed *b, int B, int T, int H, int K, int C)
{
	size_t in = (size_t)(B * T * (H + 2 * K) * C), out = (size_t)(B * T * H * C);
	struct setting s = {.B = B, .T = T, .H = H, .K = K, .C = C};
	s.x = twin_random(b->random, in, 1);
	s.r = twin_random(b->random, out, 1);
	s.y = twin_new(out);
	s.aux = twin_new((size_t)(B * H * T));
	g_autofree float *qkv = twin_floats(s.x, in), *d_o = twin_floats(s.r, out), *o = g_new(float, out), *lse = g_new(float, B *H *T);
	float *dqkv = filled(in, there);
	op_attention(b->stream, o, lse, qkv, B, T, H, K, C);
	op_attention_backward(b->stream, dqkv, d_o, qkv, o, lse, B, T, H, K, C);
	device_bed_sync(b);
	check("dqkv", dqkv, attention_scalar, &s, s.x, in, false);
	setting_clear(&s);
}

Test(gradients, attention)
{
	struct device_bed b;
	device_bed_init(&b);
	check_attention(&b, 0, 3, 2, 2, 4);
	check_attention(&b, 2, 1, 2, 2, 4);
	check_attention(&b, 1, 3, 1, 1, 1);
	check_attention(&b, 2, 17, 2, 2, 3);
	device_bed_clear(&b);
}

Test(gradients, attention_with_shared_keys_and_values)
{
	struct device_bed b;
	device_bed_init(&b);
	check_attention(&b, 1, 9, 4, 2, 3);
	check_attention(&b, 2, 5, 3, 1, 2);
	device_bed_clear(&b);
}

/* Longer than a block of queries. */
Test(gradients, attention_over_several_blocks)
{
	struct device_bed b;
	device_bed_init(&b);
	check_attention(&b, 1, 70, 1, 1, 2);
	device_bed_clear(&b);
}

static double activation_scalar(void *user)
{
	struct setting *s = user;
	twin_activation(s->y, s->x, s->N, s->D, s->kind);
	return twin_dot(s->y, s->r, (size_t)(s->N * s->D));
}

Test(gradients, activations)
{
	struct device_bed b;
	device_bed_init(&b);
	for (int kind = ACTIVATION_RELU; kind <= ACTIVATION_SWIGLU; kind++)
		for (size_t i = 0; i < G_N_ELEMENTS(token_counts); i++) {
			enum { F = 13 };
			int N = token_counts[i];
			size_t out = (size_t)N * F, in = twin_gated(kind) ? 2 * out : out;
			struct setting s = {.N = N, .D = F, .kind = kind};
			s.x = twin_random(b.random, in, 3);
			s.r = twin_random(b.random, out, 1);
			s.y = twin_new(out);
			g_autofree float *h = twin_floats(s.x, in), *da = twin_floats(s.r, out);
			float *dh = filled(in, there);
			op_activation_backward(b.stream, dh, da, h, N, F, kind);
			device_bed_sync(&b);
			check("dh", dh, activation_scalar, &s, s.x, in, false);
			setting_clear(&s);
		}
	device_bed_clear(&b);
}

/* Far from zero the slope is 0 or 1, and never a NaN. */
Test(gradients, activations_far_from_zero)
{
	struct device_bed b;
	device_bed_init(&b);
	float h[] = {-1e4f, -200, -50, 50, 200, 1e4f}, da[] = {1, 1, 1, 1, 1, 1}, dh[6];
	for (int kind = ACTIVATION_RELU; kind <= ACTIVATION_GELU; kind++) {
		op_activation_backward(b.stream, dh, da, h, 1, 6, kind);
		device_bed_sync(&b);
		for (int i = 0; i < 6; i++)
			cr_assert_float_eq(dh[i], i < 3 ? 0 : 1, 1e-6, "%g: %g", (double)h[i], (double)dh[i]);
	}
	device_bed_clear(&b);
}

/* The combine weights times r, and both auxiliary losses; what was chosen stays. */
static double gate_scalar(void *user)
{
	struct setting *s = user;
	double sum = 0, aux[2];
	twin_softmax(s->y, s->x, s->N, s->E);
	for (int n = 0; n < s->N; n++)
		for (int i = 0; i < s->k; i++)
			sum += s->r[n * s->k + i] * s->y[n * s->E + s->tokens[n * s->k + i]];
	if (!s->N)
		return 0;
	twin_aux(aux, s->x, s->counts, s->N, s->E, s->k);
	return sum + s->balance * aux[1] + s->z * aux[0] / s->N;
}

static void check_gate(struct device_bed *b, int N, int E, int k, double balance, double z)
{
	size_t n = (size_t)(N * E), pairs = (size_t)(N * k);
	struct setting s = {.N = N, .E = E, .k = k, .balance = balance, .z = z};
	s.x = twin_random(b->random, n, 2);
	s.r = twin_random(b->random, pairs, 1);
	s.y = twin_new(n);
	s.tokens = g_new0(int32_t, pairs);
	s.counts = g_new0(uint32_t, E);
	device_bed_choose(s.tokens, s.counts, s.x, N, E, k);
	g_autofree float *logits = twin_floats(s.x, n), *dweight = twin_floats(s.r, pairs), *prob = g_new(float, n);
	g_autofree int32_t *index = g_new(int32_t, pairs);
	g_autofree uint32_t *counts = g_new(uint32_t, E);
	float aux[2], *dlogits = filled(n, there);
	op_gate(b->stream, prob, index, counts, aux, logits, N, E, k);
	op_gate_backward(b->stream, dlogits, dweight, prob, index, counts, logits, (float)balance, (float)z, N, N, E, k);
	device_bed_sync(b);
	check("dlogits", dlogits, gate_scalar, &s, s.x, n, false);
	setting_clear(&s);
}

Test(gradients, gate)
{
	struct device_bed b;
	device_bed_init(&b);
	for (size_t i = 0; i < G_N_ELEMENTS(token_counts); i++) {
		check_gate(&b, token_counts[i], 8, 2, 0, 0);
		check_gate(&b, token_counts[i], 5, 1, 0.5, 0);
		check_gate(&b, token_counts[i], 7, 3, 0, 0.25);
		check_gate(&b, token_counts[i], 4, 4, 0.125, 0.5);
		check_gate(&b, token_counts[i], 1, 1, 1, 1);
	}
	device_bed_clear(&b);
}

static double head_scalar(void *user)
{
	struct setting *s = user;
	return twin_head(s->x, s->w, s->tokens, s->N, s->D, s->O, s->total, s->tied);
}

static void check_head(struct device_bed *b, int N, int chunk, int tied)
{
	enum { D = 9, V = 23 };
	size_t n = (size_t)N * D;
	struct setting s = {.N = N, .D = D, .O = V, .tied = tied, .total = 2 * N + 1};
	s.x = twin_random(b->random, n, 1);
	s.w = twin_random(b->random, D * V, 1);
	s.tokens = device_bed_tokens(b, N, V);
	g_autofree float *x = twin_floats(s.x, n), *w = twin_floats(s.w, D * V), *logits = g_new(float, chunk *V);
	float loss = 3, *dx = filled(n, there), *dw = filled(D * V, there);
	op_head(b->stream, &loss, dx, dw, logits, x, w, s.tokens, N, D, V, chunk, s.total, tied);
	device_bed_sync(b);
	cr_assert_float_eq(loss, 3 + head_scalar(&s), 1e-5);
	check("dx", dx, head_scalar, &s, s.x, n, false);
	check("dw", dw, head_scalar, &s, s.w, D * V, true);
	setting_clear(&s);
}

Test(gradients, head_and_its_loss_in_chunks)
{
	struct device_bed b;
	device_bed_init(&b);
	for (size_t i = 0; i < G_N_ELEMENTS(token_counts); i++)
		for (int tied = 0; tied < 2; tied++) {
			check_head(&b, token_counts[i], 1, tied);
			check_head(&b, token_counts[i], 5, tied);
			check_head(&b, token_counts[i], 64, tied);
		}
	device_bed_clear(&b);
}
