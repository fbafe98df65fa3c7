/* The operations of a transformer on the host device, around one sgemm. Each is a struct of its arguments, a function that its stream runs, and a
 * launcher that copies the one and queues the other. Loops over a row are written for the compiler's vectoriser (omp simd: sums in lanes, the same
 * lanes on every run); nothing allocates. A call with no tokens does nothing. */
#include "host.h"
#include "start.h"

#include <cblas.h>
#include <math.h>
#include <string.h>

#undef I /* complex.h, by way of cblas.h */

#define NORM_EPS 1e-5f

#define PUSH(s, run, ...)                                                                                                                            \
	do {                                                                                                                                         \
		struct run args_ = __VA_ARGS__;                                                                                                      \
		host_push(s, run_##run, &args_, sizeof(args_));                                                                                      \
	} while (0)

/* ---- embedding ---- */

struct embed {
	float *x;
	const int32_t *tokens;
	const float *wte, *wpe;
	int B, T, D;
};

static void run_embed(struct host_stream *s, const void *args)
{
	const struct embed *c = args;
	size_t D = (size_t)c->D;
	for (int b = 0, n = 0; b < c->B; b++)
		for (int t = 0; t < c->T; t++, n++) {
			const float *token = c->wte + (size_t)c->tokens[n] * D, *place = c->wpe + (size_t)t * D;
			float *x = c->x + (size_t)n * D;
#pragma omp simd
			for (size_t d = 0; d < D; d++)
				x[d] = token[d] + place[d];
		}
}

static void host_embed(struct device_stream *s, elem *x, const int32_t *tokens, const elem *wte, const elem *wpe, int B, int T, int D)
{
	PUSH(s, embed, {x, tokens, wte, wpe, B, T, D});
}

struct embed_backward {
	float *dwte, *dwpe;
	const float *dx;
	const int32_t *tokens;
	int B, T, D;
};

static void run_embed_backward(struct host_stream *s, const void *args)
{
	const struct embed_backward *c = args;
	size_t D = (size_t)c->D;
	for (int b = 0, n = 0; b < c->B; b++)
		for (int t = 0; t < c->T; t++, n++) {
			float *token = c->dwte + (size_t)c->tokens[n] * D, *place = c->dwpe + (size_t)t * D;
			const float *dx = c->dx + (size_t)n * D;
#pragma omp simd
			for (size_t d = 0; d < D; d++) {
				token[d] += dx[d];
				place[d] += dx[d];
			}
		}
}

static void host_embed_backward(struct device_stream *s, float *dwte, float *dwpe, const elem *dx, const int32_t *tokens, int B, int T, int D)
{
	PUSH(s, embed_backward, {dwte, dwpe, dx, tokens, B, T, D});
}

/* ---- layer norm ---- */

struct norm {
	float *y, *mean, *rstd;
	const float *x, *gain, *bias;
	int N, D;
};

static void run_norm(struct host_stream *s, const void *args)
{
	const struct norm *c = args;
	const float *gain = c->gain, *bias = c->bias;
	int D = c->D;
	for (int n = 0; n < c->N; n++) {
		const float *x = c->x + (size_t)n * (size_t)D;
		float *y = c->y + (size_t)n * (size_t)D, sum = 0, squares = 0;
#pragma omp simd reduction(+ : sum)
		for (int d = 0; d < D; d++)
			sum += x[d];
		float mean = sum / (float)D;
#pragma omp simd reduction(+ : squares)
		for (int d = 0; d < D; d++)
			squares += (x[d] - mean) * (x[d] - mean);
		float rstd = 1 / sqrtf(squares / (float)D + NORM_EPS);
#pragma omp simd
		for (int d = 0; d < D; d++)
			y[d] = (x[d] - mean) * rstd * gain[d] + bias[d];
		c->mean[n] = mean;
		c->rstd[n] = rstd;
	}
}

static void host_norm(struct device_stream *s, elem *y, float *mean, float *rstd, const elem *x, const elem *gain, const elem *bias, int N, int D)
{
	PUSH(s, norm, {y, mean, rstd, x, gain, bias, N, D});
}

struct norm_backward {
	float *dx, *dgain, *dbias;
	const float *dy, *x, *gain, *mean, *rstd;
	int N, D;
};

/* With z = (x - mean) rstd and dz = dy gain: dx = rstd (dz - mean(dz) - z mean(dz z)). */
static void run_norm_backward(struct host_stream *s, const void *args)
{
	const struct norm_backward *c = args;
	const float *gain = c->gain;
	float *dgain = c->dgain, *dbias = c->dbias;
	int D = c->D;
	for (int n = 0; n < c->N; n++) {
		size_t row = (size_t)n * (size_t)D;
		const float *x = c->x + row, *dy = c->dy + row;
		float *dx = c->dx + row, mean = c->mean[n], rstd = c->rstd[n], sum = 0, along = 0;
#pragma omp simd reduction(+ : sum, along)
		for (int d = 0; d < D; d++) {
			float dz = dy[d] * gain[d], z = (x[d] - mean) * rstd;
			sum += dz;
			along += dz * z;
			dgain[d] += dy[d] * z;
			dbias[d] += dy[d];
		}
		sum /= (float)D;
		along /= (float)D;
#pragma omp simd
		for (int d = 0; d < D; d++)
			dx[d] += rstd * (dy[d] * gain[d] - sum - (x[d] - mean) * rstd * along);
	}
}

static void host_norm_backward(struct device_stream *s, elem *dx, float *dgain, float *dbias, const elem *dy, const elem *x, const elem *gain,
                               const float *mean, const float *rstd, int N, int D)
{
	PUSH(s, norm_backward, {dx, dgain, dbias, dy, x, gain, mean, rstd, N, D});
}

/* ---- linear ---- */

struct linear {
	float *y;
	const float *x, *w, *add;
	int N, I, O;
};

static void run_linear(struct host_stream *s, const void *args)
{
	const struct linear *c = args;
	if (c->add && c->add != c->y)
		memcpy(c->y, c->add, sizeof(float) * (size_t)c->N * (size_t)c->O);
	cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, c->N, c->O, c->I, 1, c->x, c->I, c->w, c->O, c->add ? 1 : 0, c->y, c->O);
}

static void host_linear(struct device_stream *s, elem *y, const elem *x, const elem *w, const elem *add, int N, int I, int O)
{
	if (N)
		PUSH(s, linear, {y, x, w, add, N, I, O});
}

struct linear_backward {
	float *dx, *dw;
	const float *dy, *x, *w;
	int N, I, O;
	bool add;
};

static void run_linear_backward(struct host_stream *s, const void *args)
{
	const struct linear_backward *c = args;
	if (c->dx)
		cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, c->N, c->I, c->O, 1, c->dy, c->O, c->w, c->O, c->add ? 1 : 0, c->dx, c->I);
	if (c->dw)
		cblas_sgemm(CblasRowMajor, CblasTrans, CblasNoTrans, c->I, c->O, c->N, 1, c->x, c->I, c->dy, c->O, 1, c->dw, c->O);
}

static void host_linear_backward(struct device_stream *s, elem *dx, float *dw, const elem *dy, const elem *x, const elem *w, int N, int I, int O,
                                 bool add)
{
	if (N)
		PUSH(s, linear_backward, {dx, dw, dy, x, w, N, I, O, add});
}

/* ---- sums ---- */

struct add {
	float *y;
	const float *a, *b;
	size_t n;
};

static void run_add(struct host_stream *s, const void *args)
{
	const struct add *c = args;
	const float *a = c->a, *b = c->b;
	float *y = c->y;
#pragma omp simd
	for (size_t i = 0; i < c->n; i++)
		y[i] = a[i] + b[i];
}

static void host_add(struct device_stream *s, elem *y, const elem *a, const elem *b, size_t n)
{
	PUSH(s, add, {y, a, b, n});
}

static void host_accumulate(struct device_stream *s, float *to, const float *from, size_t n)
{
	host_add(s, to, to, from, n);
}

static void host_cast(struct device_stream *s, elem *to, const float *from, size_t n)
{
	if (to != from)
		device_copy(s, to, from, n * sizeof(float));
}

/* ---- activation ---- */

static void run_activation(struct host_stream *s, const void *args)
{
	s->device->group->loops->activate(args);
}

static void run_activation_backward(struct host_stream *s, const void *args)
{
	s->device->group->loops->activate_backward(args);
}

static void host_activation(struct device_stream *s, elem *a, const elem *h, int N, int F, int activation)
{
	struct activation_args c = {.a = a, .h = h, .N = N, .F = F, .kind = activation};
	host_push(s, run_activation, &c, sizeof(c));
}

static void host_activation_backward(struct device_stream *s, elem *dh, const elem *da, const elem *h, int N, int F, int activation)
{
	struct activation_args c = {.dh = dh, .da = da, .h = h, .N = N, .F = F, .kind = activation};
	host_push(s, run_activation_backward, &c, sizeof(c));
}

/* ---- experts ---- */

struct expert {
	struct expert_rows at;
	struct expert_shape shape;
	struct expert_space space;
	const float *x;
	float *rows; /* the outputs, or what comes in and goes out in the backward */
	int wide;    /* columns of up */
};

static void gemm(bool turn_a, bool turn_b, int m, int n, int k, const float *a, int lda, const float *b, int ldb, float beta, float *c, int ldc)
{
	if (m)
		cblas_sgemm(CblasRowMajor, turn_a ? CblasTrans : CblasNoTrans, turn_b ? CblasTrans : CblasNoTrans, m, n, k, 1, a, lda, b, ldb, beta,
		            c, ldc);
}

static void hide(struct host_stream *s, const struct expert *c)
{
	int D = c->shape.D, F = c->shape.F;
	struct activation_args a = {.a = c->space.active, .h = c->space.hidden, .N = c->at.rows, .F = F, .kind = c->shape.activation};
	gemm(false, false, c->at.rows, c->wide, D, c->x, D, c->at.up, c->wide, 0, c->space.hidden, c->wide);
	s->device->group->loops->activate(&a);
}

static void run_expert(struct host_stream *s, const void *args)
{
	const struct expert *c = args;
	hide(s, c);
	gemm(false, false, c->at.rows, c->shape.D, c->shape.F, c->space.active, c->shape.F, c->at.down, c->shape.D, 0, c->rows, c->shape.D);
}

static void scale(float *x, size_t n, float by)
{
#pragma omp simd
	for (size_t i = 0; i < n; i++)
		x[i] *= by;
}

/* active and dhidden are still those of an unweighted output: weighs them, and leaves the weight's gradient <dactive, active> in its place. */
static void weigh(const struct expert *c)
{
	size_t F = (size_t)c->shape.F, D = (size_t)c->shape.D;
	for (size_t r = 0; r < (size_t)c->at.rows; r++) {
		float *weight = c->rows + r * (D + 1) + D, *active = (float *)c->space.active + r * F, by = *weight, sum = 0;
		const float *dactive = (const float *)c->space.dactive + r * F;
#pragma omp simd reduction(+ : sum)
		for (size_t f = 0; f < F; f++)
			sum += dactive[f] * active[f];
		scale(active, F, by);
		scale((float *)c->space.dhidden + r * (size_t)c->wide, (size_t)c->wide, by);
		*weight = sum;
	}
}

/* rows are read for the last time by the gradient of `down`, and then take that of x. */
static void run_expert_backward(struct host_stream *s, const void *args)
{
	const struct expert *c = args;
	int D = c->shape.D, F = c->shape.F, R = c->at.rows, wide = c->wide;
	float keep = c->at.fresh ? 0 : 1;
	struct activation_args a = {
	    .dh = c->space.dhidden, .da = c->space.dactive, .h = c->space.hidden, .N = R, .F = F, .kind = c->shape.activation};
	hide(s, c);
	gemm(false, true, R, F, D, c->rows, D + 1, c->at.down, D, 0, c->space.dactive, F);
	s->device->group->loops->activate_backward(&a);
	weigh(c);
	gemm(true, false, F, D, R, c->space.active, F, c->rows, D + 1, keep, c->at.ddown, D);
	gemm(true, false, D, wide, R, c->x, D, c->space.dhidden, wide, keep, c->at.dup, wide);
	gemm(false, true, R, D, wide, c->space.dhidden, wide, c->at.up, wide, 0, c->rows, D + 1);
}

/* One after another, whatever the policy: on a CPU there is nothing to group. */
static void push_experts(struct device_stream *s, host_op run, float *rows, size_t width, const float *x, const struct expert_rows *pieces, int n,
                         const struct expert_shape *shape, const struct expert_space *space)
{
	g_assert(shape->gradient_bytes == sizeof(float));
	for (int i = 0; i < n; i++) {
		struct expert c = {.at = pieces[i],
		                   .shape = *shape,
		                   .space = *space,
		                   .x = x + pieces[i].from * (size_t)shape->D,
		                   .rows = rows + pieces[i].from * width,
		                   .wide = shape->F * (activation_matrices(shape->activation) - 1)};
		host_push(s, run, &c, sizeof(c));
	}
}

static void host_experts(struct device_stream *s, elem *y, const elem *x, const struct expert_rows *pieces, int n, const struct expert_shape *shape,
                         const struct expert_space *space)
{
	push_experts(s, run_expert, y, (size_t)shape->D, x, pieces, n, shape, space);
}

static void host_experts_backward(struct device_stream *s, elem *rows, const elem *x, const struct expert_rows *pieces, int n,
                                  const struct expert_shape *shape, const struct expert_space *space)
{
	push_experts(s, run_expert_backward, rows, (size_t)shape->D + 1, x, pieces, n, shape, space);
}

/* ---- initial values ---- */

struct begin {
	float *param, *master;
	size_t n;
	struct start start;
};

static void run_begin(struct host_stream *s, const void *args)
{
	const struct begin *c = args;
	for (size_t i = 0; i < c->n; i++)
		c->param[i] = start_value(&c->start, i);
	if (c->master)
		memcpy(c->master, c->param, sizeof(float) * c->n);
}

static void host_start(struct device_stream *s, elem *param, float *master, size_t n, const struct start *start)
{
	PUSH(s, begin, {param, master, n, *start});
}

/* ---- head ---- */

struct head {
	float *loss, *dx, *dw, *logits;
	const float *x, *w;
	const int32_t *targets;
	int N, D, V, chunk;
	double total;
	bool tied;
};

/* logits (rows, V) become their gradient; the sum of the tokens' cross entropies. */
static double cross_entropy(const struct host_loops *loops, const struct head *c, int from, int rows)
{
	double sum = 0;
	float scale = (float)(1 / c->total);
	for (int r = 0; r < rows; r++) {
		float *p = c->logits + (size_t)r * (size_t)c->V, most;
		int32_t target = c->targets[from + r];
		float right = p[target], whole = loops->exp_row(p, c->V, &most), share = scale / whole;
		sum += log((double)whole) + (double)most - (double)right;
#pragma omp simd
		for (int v = 0; v < c->V; v++)
			p[v] *= share;
		p[target] -= scale;
	}
	return sum;
}

static void run_head(struct host_stream *s, const void *args)
{
	const struct head *c = args;
	int D = c->D, V = c->V;
	double sum = 0;
	for (int from = 0; from < c->N; from += c->chunk) {
		int n = MIN(c->chunk, c->N - from);
		const float *x = c->x + (size_t)from * (size_t)D;
		float *dx = c->dx + (size_t)from * (size_t)D, *logits = c->logits;
		cblas_sgemm(CblasRowMajor, CblasNoTrans, c->tied ? CblasTrans : CblasNoTrans, n, V, D, 1, x, D, c->w, c->tied ? D : V, 0, logits, V);
		sum += cross_entropy(s->device->group->loops, c, from, n);
		cblas_sgemm(CblasRowMajor, CblasNoTrans, c->tied ? CblasNoTrans : CblasTrans, n, D, V, 1, logits, V, c->w, c->tied ? D : V, 0, dx, D);
		if (c->tied)
			cblas_sgemm(CblasRowMajor, CblasTrans, CblasNoTrans, V, D, n, 1, logits, V, x, D, 1, c->dw, D);
		else
			cblas_sgemm(CblasRowMajor, CblasTrans, CblasNoTrans, D, V, n, 1, x, D, logits, V, 1, c->dw, V);
	}
	*c->loss += (float)(sum / c->total);
}

static void host_head(struct device_stream *s, float *loss, elem *dx, float *dw, elem *logits, const elem *x, const elem *w, const int32_t *targets,
                      int N, int D, int V, int chunk, double total, bool tied)
{
	PUSH(s, head, {loss, dx, dw, logits, x, w, targets, N, D, V, chunk, total, tied});
}

const struct device_math host_math_table = {
    .embed = host_embed,
    .embed_backward = host_embed_backward,
    .norm = host_norm,
    .norm_backward = host_norm_backward,
    .linear = host_linear,
    .linear_backward = host_linear_backward,
    .add = host_add,
    .accumulate = host_accumulate,
    .cast = host_cast,
    .activation = host_activation,
    .activation_backward = host_activation_backward,
    .experts = host_experts,
    .experts_backward = host_experts_backward,
    .start = host_start,
    .head = host_head,
    .adam = host_adam,
};
