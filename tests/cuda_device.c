/* The CUDA device against the host device through device.h: the same operations on the same numbers, rounded to bf16, on odd sizes and none at all;
 * and what streams and events promise. No test framework, since GPU nodes have none: a line a check, exit code 0 all right, 1 not, 77 no GPU here. */
#include "exec/adam.h"
#include "exec/device.h"
#include "exec/start.h"

#include <math.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { HOST, CUDA, DEVICES };
enum kind { ELEMENTS, FLOATS, INTS };

#define TOLERANCE 1e-2 /* of bf16 operands; sums are in fp32 on both */
#define ARENA ((uint64_t)4 << 30)

struct bed {
	struct device *device[DEVICES];
	struct device_group *group[DEVICES];
	struct device_stream *stream[DEVICES];
	struct device_event *done[DEVICES];
	char *pinned;
	GRand *random;
	int checks, failures;
};

/* One array on both devices. */
struct both {
	enum kind kind;
	size_t n;
	void *at[DEVICES];
};

static void die(GError *error)
{
	fprintf(stderr, "%s\n", error ? error->message : "failed");
	exit(1);
}

static void sync_all(struct bed *b)
{
	GError *error = NULL;
	for (int d = 0; d < DEVICES; d++) {
		device_event_record(b->stream[d], b->done[d]);
		if (!device_event_wait(b->done[d], &error))
			die(error);
	}
}

static float rounded(float x)
{
	uint16_t bits;
	uint32_t wide;
	adam_cast(NULL, &bits, ADAM_BF16, &x, 1);
	wide = (uint32_t)bits << 16;
	memcpy(&x, &wide, sizeof(x));
	return x;
}

static size_t width(const struct bed *b, int device, enum kind kind)
{
	return kind == ELEMENTS ? (size_t)device_info(b->device[device])->element_bytes : 4;
}

static void put(struct bed *b, struct both *x, const float *values)
{
	GError *error = NULL;
	memcpy(x->at[HOST], values, 4 * x->n);
	if (x->kind == ELEMENTS)
		adam_cast(NULL, b->pinned, ADAM_BF16, values, x->n);
	else
		memcpy(b->pinned, values, 4 * x->n);
	device_upload(b->stream[CUDA], x->at[CUDA], b->pinned, x->n * width(b, CUDA, x->kind));
	sync_all(b);
	if (error)
		die(error);
}

/* Random numbers around 0 where `scale` > 0; else a value that must be overwritten. */
static struct both make(struct bed *b, enum kind kind, size_t n, double scale)
{
	GError *error = NULL;
	struct both x = {.kind = kind, .n = n};
	g_autofree float *values = g_new(float, n + 1);
	for (int d = 0; d < DEVICES; d++)
		if (!(x.at[d] = device_alloc(b->device[d], MAX(n, 1) * width(b, d, kind), "a test's array", &error)))
			die(error);
	for (size_t i = 0; i < n; i++)
		values[i] = scale > 0 ? rounded((float)g_rand_double_range(b->random, -scale, scale)) : 12345;
	put(b, &x, values);
	return x;
}

static struct both make_tokens(struct bed *b, size_t n, int below)
{
	struct both x = make(b, INTS, n, 1);
	g_autofree int32_t *values = g_new(int32_t, n + 1);
	for (size_t i = 0; i < n; i++)
		values[i] = g_rand_int_range(b->random, 0, below);
	put(b, &x, (const float *)(const void *)values);
	return x;
}

static void report(struct bed *b, bool ok, const char *what, double error)
{
	b->checks++;
	b->failures += !ok;
	printf("%s %d - %s: %.2e\n", ok ? "ok" : "not ok", b->checks, what, error);
}

static float *got_from(struct bed *b, const struct both *x)
{
	float *got = g_new(float, x->n + 1);
	device_download(b->stream[CUDA], b->pinned, x->at[CUDA], x->n * width(b, CUDA, x->kind));
	sync_all(b);
	if (x->kind == FLOATS)
		memcpy(got, b->pinned, 4 * x->n);
	for (size_t i = 0; x->kind == ELEMENTS && i < x->n; i++) {
		uint32_t bits = (uint32_t)((const uint16_t *)(const void *)b->pinned)[i] << 16;
		memcpy(&got[i], &bits, 4);
	}
	return got;
}

static void compare(struct bed *b, const struct both *x, const char *format, ...) G_GNUC_PRINTF(3, 4);
static void compare(struct bed *b, const struct both *x, const char *format, ...)
{
	va_list args;
	va_start(args, format);
	g_autofree char *what = g_strdup_vprintf(format, args);
	va_end(args);
	sync_all(b);
	g_autofree float *got = got_from(b, x);
	const float *expected = x->at[HOST];
	double off = 0, size = 0;
	for (size_t i = 0; i < x->n; i++) {
		off += pow((double)(got[i] - expected[i]), 2);
		size += pow((double)expected[i], 2);
	}
	double error = size > 0 ? sqrt(off / size) : sqrt(off);
	report(b, error <= TOLERANCE, what, error);
}

#define ON_BOTH(b, ...)                                                                                                                              \
	for (int d = 0; d < DEVICES; d++) {                                                                                                          \
		struct device_stream *s = (b)->stream[d];                                                                                            \
		__VA_ARGS__;                                                                                                                         \
	}

static void check_linear(struct bed *b, int N, int I_, int O)
{
	struct both x = make(b, ELEMENTS, (size_t)N * (size_t)I_, 1), w = make(b, ELEMENTS, (size_t)I_ * (size_t)O, 1),
	            y = make(b, ELEMENTS, (size_t)N * (size_t)O, 0), to = make(b, ELEMENTS, (size_t)N * (size_t)O, 1),
	            dx = make(b, ELEMENTS, (size_t)N * (size_t)I_, 1), dw = make(b, FLOATS, (size_t)I_ * (size_t)O, 1);
	ON_BOTH(b, op_linear(s, y.at[d], x.at[d], w.at[d], NULL, N, I_, O));
	compare(b, &y, "linear %d x %d x %d", N, I_, O);
	ON_BOTH(b, op_linear(s, y.at[d], x.at[d], w.at[d], to.at[d], N, I_, O));
	compare(b, &y, "linear added to another, %d x %d x %d", N, I_, O);
	ON_BOTH(b, op_linear_backward(s, dx.at[d], dw.at[d], to.at[d], x.at[d], w.at[d], N, I_, O, true));
	compare(b, &dx, "linear, dx");
	compare(b, &dw, "linear, dw");
	ON_BOTH(b, op_linear_backward(s, dx.at[d], NULL, to.at[d], x.at[d], w.at[d], N, I_, O, false));
	compare(b, &dx, "linear, dx alone");
}

/* The rows' weights lie where each device keeps them. */
static void check_experts(struct bed *b, int D, int F, int activation, int first, int second, bool apart)
{
	int N = first + second, wide = F * (activation_matrices(activation) - 1), gap = apart ? 3 : 0;
	size_t rows = (size_t)(N + gap), d_ = (size_t)D, f = (size_t)F, params = d_ * (size_t)wide + f * d_;
	struct both x = make(b, ELEMENTS, rows * d_, 1), y = make(b, ELEMENTS, rows * d_, 0), g = make(b, ELEMENTS, rows * d_, 1),
	            w = make(b, ELEMENTS, 2 * params, 0.3), dw = make(b, FLOATS, 2 * params, 1), weight = make(b, FLOATS, rows, 1),
	            order = make(b, INTS, rows, 1), hidden = make(b, ELEMENTS, rows * (size_t)wide, 0), active = make(b, ELEMENTS, rows * f, 0),
	            dhidden = make(b, ELEMENTS, rows * (size_t)wide, 0), dactive = make(b, ELEMENTS, rows * f, 0),
	            dx = make(b, ELEMENTS, rows * d_, 0), dweight = make(b, FLOATS, rows, 0),
	            sent = make(b, ELEMENTS, rows * (d_ + (size_t)device_info(b->device[CUDA])->weight_elements), 0);
	g_autofree int32_t *same = g_new(int32_t, rows);
	for (size_t i = 0; i < rows; i++)
		same[i] = (int32_t)i;
	put(b, &order, (const float *)(const void *)same);
	ON_BOTH(b, {
		struct expert_shape shape = {D, F, activation, 4};
		struct expert_space space = {hidden.at[d], active.at[d], dhidden.at[d], dactive.at[d]};
		struct expert_rows pieces[2];
		int W = D + device_info(b->device[d])->weight_elements;
		for (int i = 0; i < 2; i++) {
			char *at = (char *)w.at[d] + (size_t)i * params * width(b, d, ELEMENTS);
			float *to = (float *)dw.at[d] + (size_t)i * params;
			pieces[i] = (struct expert_rows){.up = at,
			                                 .down = at + d_ * (size_t)wide * width(b, d, ELEMENTS),
			                                 .dup = to,
			                                 .ddown = to + d_ * (size_t)wide,
			                                 .from = i ? (size_t)(first + gap) : 0,
			                                 .rows = i ? second : first,
			                                 .fresh = i == 1};
		}
		device_zero(s, y.at[d], rows * d_ * width(b, d, ELEMENTS));
		op_experts(s, y.at[d], x.at[d], pieces, 2, &shape, &space);
		op_gather(s, sent.at[d], g.at[d], order.at[d], weight.at[d], (int)rows, D, 1, W);
		op_experts_backward(s, sent.at[d], x.at[d], pieces, 2, &shape, &space);
		device_zero(s, dx.at[d], rows * d_ * width(b, d, ELEMENTS));
		op_scatter(s, dx.at[d], sent.at[d], order.at[d], NULL, (int)rows, D, 1, W);
		op_column(s, dweight.at[d], sent.at[d], order.at[d], (int)rows, D, W);
	});
	compare(b, &y, "experts D %d F %d activation %d rows %d + %d", D, F, activation, first, second);
	compare(b, &dx, "experts, dx");
	compare(b, &dweight, "experts, dweight");
	compare(b, &dw, "experts, dup and ddown");
}

static void check_head(struct bed *b, int N, int D, int V, int chunk, bool tied)
{
	struct both x = make(b, ELEMENTS, (size_t)N * (size_t)D, 1), w = make(b, ELEMENTS, (size_t)D * (size_t)V, 0.3),
	            dx = make(b, ELEMENTS, (size_t)N * (size_t)D, 0), dw = make(b, FLOATS, (size_t)D * (size_t)V, 0.01), loss = make(b, FLOATS, 1, 1),
	            logits = make(b, ELEMENTS, (size_t)chunk * (size_t)V, 0), targets = make_tokens(b, (size_t)N, V);
	ON_BOTH(b, op_head(s, loss.at[d], dx.at[d], dw.at[d], logits.at[d], x.at[d], w.at[d], targets.at[d], N, D, V, chunk, 2.0 * N, tied));
	compare(b, &loss, "head %d x %d x %d in chunks of %d%s, loss", N, D, V, chunk, tied ? ", tied" : "");
	compare(b, &dx, "head, dx");
	compare(b, &dw, "head, dw");
}

static void check_attention(struct bed *b, int B, int T, int H, int K, int C)
{
	size_t n = (size_t)(B * T), in = n * (size_t)((H + 2 * K) * C), out = n * (size_t)(H * C);
	struct both qkv = make(b, ELEMENTS, in, 2), o = make(b, ELEMENTS, out, 0), lse = make(b, FLOATS, n * (size_t)H, 0),
	            d_o = make(b, ELEMENTS, out, 1), dqkv = make(b, ELEMENTS, in, 0);
	ON_BOTH(b, op_attention(s, o.at[d], lse.at[d], qkv.at[d], B, T, H, K, C));
	compare(b, &o, "attention B %d T %d H %d K %d C %d", B, T, H, K, C);
	compare(b, &lse, "attention, lse");
	ON_BOTH(b, op_attention_backward(s, dqkv.at[d], d_o.at[d], qkv.at[d], o.at[d], lse.at[d], B, T, H, K, C));
	compare(b, &dqkv, "attention, dqkv");
}

static void check_norm_and_embedding(struct bed *b, int B, int T, int D)
{
	enum { V = 97 };
	size_t n = (size_t)(B * T), all = n * (size_t)D, d_ = (size_t)D;
	struct both tokens = make_tokens(b, n, V), wte = make(b, ELEMENTS, V * d_, 1), wpe = make(b, ELEMENTS, (size_t)T * d_, 1),
	            x = make(b, ELEMENTS, all, 0), y = make(b, ELEMENTS, all, 0), mean = make(b, FLOATS, n, 0), rstd = make(b, FLOATS, n, 0),
	            gain = make(b, ELEMENTS, d_, 1), bias = make(b, ELEMENTS, d_, 1), dy = make(b, ELEMENTS, all, 1), dx = make(b, ELEMENTS, all, 1),
	            dgain = make(b, FLOATS, d_, 1), dbias = make(b, FLOATS, d_, 1), dwte = make(b, FLOATS, V * d_, 1),
	            dwpe = make(b, FLOATS, (size_t)T * d_, 1);
	ON_BOTH(b, op_embed(s, x.at[d], tokens.at[d], wte.at[d], wpe.at[d], B, T, D));
	compare(b, &x, "embedding B %d T %d D %d", B, T, D);
	ON_BOTH(b, op_norm(s, y.at[d], mean.at[d], rstd.at[d], x.at[d], gain.at[d], bias.at[d], B * T, D));
	compare(b, &y, "norm");
	ON_BOTH(b, op_norm_backward(s, dx.at[d], dgain.at[d], dbias.at[d], dy.at[d], x.at[d], gain.at[d], mean.at[d], rstd.at[d], B * T, D));
	compare(b, &dx, "norm, dx");
	compare(b, &dgain, "norm, dgain");
	compare(b, &dbias, "norm, dbias");
	ON_BOTH(b, op_embed_backward(s, dwte.at[d], dwpe.at[d], dy.at[d], tokens.at[d], B, T, D));
	compare(b, &dwte, "embedding, dwte");
	compare(b, &dwpe, "embedding, dwpe");
}

static void check_adam(struct bed *b, size_t n)
{
	const struct adam_step step = {.lr = 1e-2f, .beta1 = 0.9f, .beta2 = 0.95f, .eps = 1e-8f, .decay = 0.1f, .t = 3};
	struct both param = make(b, ELEMENTS, n, 0), master = make(b, FLOATS, n, 1), m = make(b, FLOATS, n, 1), v = make(b, FLOATS, n, 1),
	            gradient = make(b, FLOATS, n, 1);
	g_autofree float *squares = g_memdup2(v.at[HOST], 4 * n);
	for (size_t i = 0; i < n; i++)
		squares[i] = fabsf(squares[i]);
	put(b, &v, squares);
	ON_BOTH(b, op_adam(s, param.at[d], master.at[d], m.at[d], v.at[d], gradient.at[d], n, &step));
	compare(b, &param, "adam, %zu parameters", n);
	compare(b, &master, "adam, master");
	compare(b, &m, "adam, m");
	compare(b, &v, "adam, v");
	compare(b, &gradient, "adam, gradient cleared");
}

static void check_start(struct bed *b, size_t n)
{
	const struct start how = {.key = 0x123456789abcdef, .deviation = 0.02, .start = START_WEIGHT};
	struct both param = make(b, ELEMENTS, n, 0), master = make(b, FLOATS, n, 0);
	ON_BOTH(b, op_start(s, param.at[d], master.at[d], n, &how));
	compare(b, &master, "initial values");
}

/* A stream waits for a host thread, and the download behind it sees what was there only then; times are in order. */
static void check_order(struct bed *b)
{
	GError *error = NULL;
	struct device_event *host = device_event_new(b->device[CUDA]), *after = device_event_new(b->device[CUDA]);
	struct both x = make(b, FLOATS, 1024, 1);
	float *late = pinned_alloc(b->device[CUDA], 4096, &error);
	bool ok = late != NULL;
	for (int round = 0; ok && round < 50; round++) {
		late[0] = -1;
		device_event_arm(host);
		device_stream_wait(b->stream[CUDA], host);
		device_upload(b->stream[CUDA], x.at[CUDA], late, 4096);
		device_download(b->stream[CUDA], b->pinned, x.at[CUDA], 4096);
		device_event_record(b->stream[CUDA], after);
		g_usleep(200);
		late[0] = (float)round;
		nsec_t before = exec_now_ns();
		device_event_signal(host);
		ok = device_event_wait(after, &error) && ((float *)(void *)b->pinned)[0] == (float)round;
		nsec_t happened = device_event_ns(after);
		ok = ok && happened > before - 50000 && happened < exec_now_ns() + 50000 && device_event_ns(host) <= happened + 50000;
	}
	report(b, ok, "streams wait for host threads", 0);
	pinned_free(b->device[CUDA], late);
	sync_all(b);
	device_event_free(host);
	device_event_free(after);
}

static void check_arena(struct bed *b)
{
	g_autoptr(GError) error = NULL;
	bool refused = !device_alloc(b->device[CUDA], ARENA, "too much", &error) && error && strstr(error->message, "hbm: too much needs");
	report(b, refused, "a full arena is refused", 0);
}

static void check_all(struct bed *b)
{
	static const int rows[] = {0, 1, 3, 127, 1000};
	for (size_t i = 0; i < G_N_ELEMENTS(rows); i++) {
		check_linear(b, rows[i], 96, 64);
		check_linear(b, rows[i], 33, 21);
		check_norm_and_embedding(b, 1, MAX(1, rows[i]), i % 2 ? 1023 : 768);
	}
	for (int activation = ACTIVATION_RELU; activation <= ACTIVATION_SWIGLU; activation++) {
		check_experts(b, 64, 128, activation, 5, 12, false);
		check_experts(b, 64, 128, activation, 0, 100, true);
		check_experts(b, 40, 72, activation, 33, 1, true);
		check_experts(b, 37, 19, activation, 3, 4, false);
	}
	for (int tied = 0; tied < 2; tied++) {
		check_head(b, 100, 64, 1000, 64, tied);
		check_head(b, 7, 40, 1003, 7, tied);
	}
	check_attention(b, 1, 1, 1, 1, 64);
	check_attention(b, 2, 127, 4, 2, 64);
	check_attention(b, 1, 1000, 2, 2, 128);
	check_attention(b, 3, 65, 3, 1, 40);
	check_attention(b, 2, 256, 2, 2, 80);
	check_adam(b, 1);
	check_adam(b, 100003);
	check_start(b, 70001);
	check_order(b);
	check_arena(b);
}

int main(void)
{
	GError *error = NULL;
	struct bed b = {0};
	guint32 seed = g_random_int();
	/* a module that cannot be loaded fails wherever it was built; a machine without a driver has nothing to test */
	if (!device_find("cuda", &error))
		die(error);
	if (!device_open("cuda", 1, ARENA, &b.device[CUDA], &b.group[CUDA], &error)) {
		if (access("/dev/nvidiactl", F_OK) == 0)
			die(error);
		printf("1..0 # skip %s\n", error->message);
		return 77;
	}
	if (!device_open("host", 1, ARENA, &b.device[HOST], &b.group[HOST], &error))
		die(error);
	for (int d = 0; d < DEVICES; d++) {
		if (!(b.stream[d] = device_stream_new(b.device[d], "test", &error)))
			die(error);
		b.done[d] = device_event_new(b.device[d]);
	}
	if (!(b.pinned = pinned_alloc(b.device[CUDA], 64 << 20, &error)))
		die(error);
	b.random = g_rand_new_with_seed(seed);
	printf("# seed %u\n", seed);
	check_all(&b);
	printf("1..%d\n# %d of %d failed\n", b.checks, b.failures, b.checks);
	pinned_free(b.device[CUDA], b.pinned);
	for (int d = 0; d < DEVICES; d++) {
		device_stream_free(b.stream[d]);
		device_event_free(b.done[d]);
		device_close(&b.device[d], 1, b.group[d]);
	}
	g_rand_free(b.random);
	return b.failures > 0;
}
