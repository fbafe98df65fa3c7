/* AdamW against formulas in fp64, closed forms of its first steps, and every vector unit against the plain loop, bit for bit. */
#include "exec/adam.h"

#include <criterion/criterion.h>
#include <criterion/parameterized.h>
#include <float.h>
#include <math.h>
#include <string.h>

enum { ROOM = 1 << 17, OFFSETS = 17 };

static const struct adam_step step = {.lr = 1e-3f, .beta1 = 0.9f, .beta2 = 0.999f, .eps = 1e-8f, .decay = 0.01f, .t = 3};

/* One set of tensors; the parameters are n of ROOM elements from `offset` on, the rest must stay as it is. */
struct tensors {
	float *master, *m, *v, *out;
	void *gradient;
};

static struct tensors tensors_new(guint32 seed, int gradient_format)
{
	struct tensors t = {g_new(float, ROOM), g_new(float, ROOM), g_new(float, ROOM), g_new0(float, ROOM), g_new0(float, ROOM)};
	g_autoptr(GRand) r = g_rand_new_with_seed(seed);
	for (int i = 0; i < ROOM; i++) {
		t.master[i] = (float)g_rand_double_range(r, -1, 1);
		t.m[i] = (float)g_rand_double_range(r, -1e-2, 1e-2);
		t.v[i] = (float)pow(10, g_rand_double_range(r, -12, 0));
		float g = (float)(g_rand_double_range(r, -1, 1) * pow(10, g_rand_double_range(r, -6, 1)));
		guint32 bits;
		memcpy(&bits, &g, sizeof(bits));
		if (gradient_format == ADAM_BF16)
			((guint16 *)t.gradient)[i] = (guint16)(bits >> 16);
		else
			((float *)t.gradient)[i] = g;
	}
	return t;
}

static void tensors_clear(struct tensors *t)
{
	g_free(t->master);
	g_free(t->m);
	g_free(t->v);
	g_free(t->out);
	g_free(t->gradient);
}

static struct adam_args args_at(const struct tensors *t, int offset, size_t n, int gradient_format, int out_format)
{
	return (struct adam_args){
	    .master = t->master + offset,
	    .m = t->m + offset,
	    .v = t->v + offset,
	    .gradient = (char *)t->gradient + offset * (gradient_format == ADAM_BF16 ? 2 : 4),
	    .out = (char *)t->out + offset * (out_format == ADAM_BF16 ? 2 : 4),
	    .n = n,
	    .scale = 0.25f,
	    .gradient_format = gradient_format,
	    .out_format = out_format,
	    .step = step,
	};
}

static bool same(const struct tensors *a, const struct tensors *b)
{
	return !memcmp(a->master, b->master, sizeof(float) * ROOM) && !memcmp(a->m, b->m, sizeof(float) * ROOM) &&
	       !memcmp(a->v, b->v, sizeof(float) * ROOM) && !memcmp(a->out, b->out, sizeof(float) * ROOM);
}

static void expect_plain_bits(struct adam_pool *pool, size_t n, int offset, int gradient_format, int out_format)
{
	struct tensors expected = tensors_new(7, gradient_format), got = tensors_new(7, gradient_format);
	struct adam_args a = args_at(&expected, offset, n, gradient_format, out_format);
	adam_update_plain(&a);
	a = args_at(&got, offset, n, gradient_format, out_format);
	adam_update(pool, &a);
	cr_assert(same(&expected, &got), "%s: n %zu, offset %d, formats %d %d", adam_simd(), n, offset, gradient_format, out_format);
	tensors_clear(&expected);
	tensors_clear(&got);
}

ParameterizedTestParameters(adam, every_unit_gives_the_plain_bits_at_any_length_and_alignment)
{
	static const char units[][8] = {"plain", "avx2", "avx512", "widest"};
	return cr_make_param_array(char[8], (void *)units, G_N_ELEMENTS(units));
}

ParameterizedTest(char unit[8], adam, every_unit_gives_the_plain_bits_at_any_length_and_alignment)
{
	static const size_t lengths[] = {0, 1, 3, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 1000};
	g_setenv("ESMOE_SIMD", unit, TRUE);
	g_autoptr(adam_pool) pool = adam_pool_new(1);
	for (size_t i = 0; i < G_N_ELEMENTS(lengths); i++)
		expect_plain_bits(pool, lengths[i], (int)(i * 5 % OFFSETS), (int)(i % 2), (int)(i / 2 % 2));
	for (int offset = 0; offset < OFFSETS; offset++)
		for (int formats = 0; formats < 4; formats++)
			expect_plain_bits(pool, 77, offset, formats / 2, formats % 2);
	/* long enough to write around the caches, from aligned and other places */
	for (int offset = 0; offset < 4; offset++)
		expect_plain_bits(pool, 100001, offset * 8, offset / 2, offset % 2);
}

Test(adam, number_of_threads_does_not_change_a_bit)
{
	for (int threads = 1; threads <= 5; threads++) {
		g_autoptr(adam_pool) pool = adam_pool_new(threads);
		for (int formats = 0; formats < 4; formats++)
			expect_plain_bits(pool, ROOM - 3, 3, formats / 2, formats % 2);
		expect_plain_bits(pool, 70000, 0, ADAM_FP32, ADAM_BF16);
	}
}

Test(adam, lesser_unit_is_taken_when_asked_for)
{
	g_setenv("ESMOE_SIMD", "plain", TRUE);
	cr_assert_str_eq(adam_simd(), "plain");
#ifdef __x86_64__
	g_setenv("ESMOE_SIMD", "avx2", TRUE);
	cr_assert_str_eq(adam_simd(), __builtin_cpu_supports("avx2") ? "avx2" : "plain");
	g_unsetenv("ESMOE_SIMD");
	cr_assert_str_eq(adam_simd(), __builtin_cpu_supports("avx512f") ? "avx512" : __builtin_cpu_supports("avx2") ? "avx2" : "plain");
#endif
}

/* The definition in fp64, from the same fp32 state. */
Test(adam, agrees_with_the_definition_in_double)
{
	struct tensors t = tensors_new(11, ADAM_FP32), before = tensors_new(11, ADAM_FP32);
	struct adam_args a = args_at(&t, 0, ROOM, ADAM_FP32, ADAM_FP32);
	a.scale = 1;
	adam_update(NULL, &a);
	for (int i = 0; i < ROOM; i++) {
		double b1 = 0.9, b2 = 0.999, g = ((float *)before.gradient)[i], p = before.master[i];
		double m = b1 * before.m[i] + (1 - b1) * g, v = b2 * before.v[i] + (1 - b2) * g * g;
		double moved = 1e-3 * (m / (1 - pow(b1, 3)) / (sqrt(v / (1 - pow(b2, 3))) + 1e-8) + 0.01 * p);
		cr_assert_float_eq(t.m[i], m, 4e-7 * (fabs(b1 * before.m[i]) + fabs((1 - b1) * g)), "m %d", i);
		cr_assert_float_eq(t.v[i], v, 1.4e-5 * v, "v %d", i); /* 1 - 0.999f is 1.3e-5 off */
		cr_assert_float_eq(t.master[i], p - moved, 3e-5 * fabs(moved) + 1.3e-7, "p %d", i);
		cr_assert_eq(t.out[i], t.master[i]);
	}
	tensors_clear(&t);
	tensors_clear(&before);
}

/* Under a constant gradient g, m = (1 - b1^t) g and v = (1 - b2^t) g^2, so with eps 0 and no decay every step moves p by lr against the sign of g. */
Test(adam, constant_gradient_moves_by_the_learning_rate_each_step)
{
	float p[] = {1, -2, 0.5f}, m[3] = {0}, v[3] = {0}, g[] = {0.3f, -5, 1e-3f};
	const double start[] = {1, -2, 0.5};
	for (int t = 1; t <= 20; t++) {
		struct adam_args a = {.master = p, .m = m, .v = v, .gradient = g, .n = 3, .scale = 1, .step = {1e-2f, 0.9f, 0.999f, 0, 0, t}};
		adam_update(NULL, &a);
		for (int i = 0; i < 3; i++) {
			cr_assert_float_eq(p[i], start[i] - 1e-2 * t * (g[i] > 0 ? 1 : -1), 1e-6 * t);
			cr_assert_float_eq(m[i], (1 - pow(0.9, t)) * g[i], 1e-5 * fabs(g[i]));
			cr_assert_float_eq(v[i], (1 - pow(0.999, t)) * g[i] * g[i], 2e-5 * g[i] * g[i]);
		}
	}
}

/* Decay alone: without a gradient p shrinks by 1 - lr decay each step, and the moments of before decay by beta. */
Test(adam, no_gradient_decays_moments_and_weights)
{
	float p = 3, m = 0, v = 0;
	for (int t = 1; t <= 10; t++) {
		struct adam_args a = {.master = &p, .m = &m, .v = &v, .n = 1, .scale = 1, .step = {0.5f, 0.9f, 0.999f, 1e-8f, 0.5f, t}};
		adam_update(NULL, &a);
		cr_assert_eq(p, 3 * powf(0.75f, (float)t)); /* exact: 3^k / 4^k fits */
	}
	float m1 = 2, v1 = 4, p1 = 0;
	struct adam_args a = {.master = &p1, .m = &m1, .v = &v1, .n = 1, .scale = 1, .step = {0, 0.5f, 0.25f, 0, 0, 1}};
	adam_update(NULL, &a);
	cr_assert(m1 == 1 && v1 == 1 && p1 == 0);
}

Test(adam, parameters_may_be_their_own_master)
{
	struct tensors expected = tensors_new(5, ADAM_FP32), got = tensors_new(5, ADAM_FP32);
	struct adam_args a = args_at(&expected, 0, 1003, ADAM_FP32, ADAM_FP32);
	adam_update(NULL, &a);
	a = args_at(&got, 0, 1003, ADAM_FP32, ADAM_FP32);
	a.out = a.master;
	adam_update(NULL, &a);
	cr_assert_arr_eq(expected.master, got.master, sizeof(float) * ROOM);
	tensors_clear(&expected);
	tensors_clear(&got);
}

/* bf16 keeps the upper half of an fp32: 8 bits of significand, so between 1 and 2 neighbours are 2^-7 apart. */
Test(adam, bf16_rounds_to_nearest_even_and_keeps_nan)
{
	float in[] = {1, 1 + 0x1p-8f, 1 + 0x3p-8f, 1 + 0x1p-8f + 0x1p-20f, -1 - 0x1p-9f, 0x1p-133f, FLT_MAX, INFINITY, -0.0f, NAN};
	const guint16 expected[] = {0x3f80, 0x3f80, 0x3f82, 0x3f81, 0xbf80, 0x0001, 0x7f80, 0x7f80, 0x8000};
	const guint32 odd_nan = 0x7f800001; /* would round to infinity */
	memcpy(&in[9], &odd_nan, sizeof(odd_nan));
	for (int at = 0; at < 32; at++) {
		float many[42];
		guint16 out[42];
		memset(many, 0, sizeof(many));
		memcpy(many + at, in, sizeof(in));
		adam_cast(NULL, out, ADAM_BF16, many, 42);
		cr_assert_arr_eq(out + at, expected, sizeof(expected));
		cr_assert_eq(out[at + 9], 0x7fc0);
	}
}

/* Counts below 2^24, so that sums are exact. */
Test(adam, accumulates_both_formats)
{
	g_autoptr(adam_pool) pool = adam_pool_new(2);
	const size_t n = 100003;
	g_autofree float *sum = g_new(float, n), *whole = g_new(float, n);
	g_autofree guint16 *half = g_new(guint16, n);
	for (size_t i = 0; i < n; i++) {
		sum[i] = (float)i;
		whole[i] = (float)(2 * i);
	}
	for (size_t i = 0; i < n; i++)
		half[i] = i % 2 ? 0x3f80 : 0xc000; /* 1, -2 */
	adam_accumulate(pool, sum, whole, ADAM_FP32, n, false);
	adam_accumulate(pool, sum, half, ADAM_BF16, n, false);
	for (size_t i = 0; i < n; i++)
		cr_assert_eq(sum[i], (float)(3 * i) + (i % 2 ? 1 : -2));
	adam_accumulate(pool, sum, half, ADAM_BF16, n, true);
	for (size_t i = 0; i < n; i++)
		cr_assert_eq(sum[i], i % 2 ? 1 : -2);
	adam_accumulate(pool, sum, whole, ADAM_FP32, n, true);
	for (size_t i = 0; i < n; i++)
		cr_assert_eq(sum[i], (float)(2 * i));
}

static gpointer update_often(gpointer user)
{
	struct tensors t = tensors_new(3, ADAM_FP32);
	for (int i = 1; i <= 30; i++) {
		struct adam_args a = args_at(&t, 0, ROOM, ADAM_FP32, ADAM_BF16);
		a.step.t = i;
		adam_update(user, &a);
	}
	g_free(t.gradient);
	t.gradient = NULL;
	return g_memdup2(&t, sizeof(t));
}

/* More than the pool holds at once, among them ones that the caller does itself; each twice, the second only after the first. */
Test(adam, updates_under_way_together_are_as_one_by_one)
{
	enum { TENSORS = 24, TIMES = 2 };
	g_autoptr(adam_pool) pool = adam_pool_new(3);
	struct tensors t[TENSORS], alone[TENSORS];
	adam_ticket begun[TENSORS] = {0};
	for (int i = 0; i < TENSORS; i++) {
		t[i] = tensors_new((unsigned)i + 1, ADAM_BF16);
		alone[i] = tensors_new((unsigned)i + 1, ADAM_BF16);
	}
	for (int turn = 1; turn <= TIMES; turn++)
		for (int i = 0; i < TENSORS; i++) {
			const size_t n = i % 5 == 4 ? 100 : ROOM;
			struct adam_args a = args_at(&t[i], 0, n, ADAM_BF16, ADAM_BF16), b = args_at(&alone[i], 0, n, ADAM_BF16, ADAM_BF16);
			a.step.t = b.step.t = turn;
			adam_wait(pool, begun[i]);
			begun[i] = adam_update_start(pool, &a);
			adam_update_plain(&b);
			memset(&a, 0, sizeof(a)); /* was copied */
		}
	for (int i = TENSORS; i-- > 0;)
		adam_wait(pool, begun[i]);
	for (int i = 0; i < TENSORS; i++) {
		cr_assert(same(&t[i], &alone[i]), "tensor %d", i);
		tensors_clear(&t[i]);
		tensors_clear(&alone[i]);
	}
}

Test(adam, a_pool_is_freed_after_what_was_begun)
{
	struct tensors t = tensors_new(1, ADAM_FP32), alone = tensors_new(1, ADAM_FP32);
	struct adam_pool *pool = adam_pool_new(2);
	const struct adam_args a = args_at(&t, 0, ROOM, ADAM_FP32, ADAM_BF16), b = args_at(&alone, 0, ROOM, ADAM_FP32, ADAM_BF16);
	adam_update_start(pool, &a);
	adam_pool_free(pool);
	adam_update_plain(&b);
	cr_assert(same(&t, &alone));
	tensors_clear(&t);
	tensors_clear(&alone);
}

Test(adam, several_call_one_pool)
{
	g_autoptr(adam_pool) pool = adam_pool_new(2);
	GThread *thread[3];
	struct tensors *t[3];
	for (int i = 0; i < 3; i++)
		thread[i] = g_thread_new("caller", update_often, pool);
	for (int i = 0; i < 3; i++)
		t[i] = g_thread_join(thread[i]);
	cr_assert(same(t[0], t[1]) && same(t[0], t[2]));
	for (int i = 0; i < 3; i++) {
		tensors_clear(t[i]);
		g_free(t[i]);
	}
}
