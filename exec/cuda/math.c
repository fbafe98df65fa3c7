/* Operations: GEMMs by cuBLAS, the rest by our kernels. Row-major c (m, n) = a b is column-major c^T = b^T a^T: operands change places. Parameters
 * and activations are bf16, products are added in fp32; gradients of parameters are fp32, or bf16 where they go down to the host. */
#include "gpu.h"

#include "exec/start.h"

/* as elements.cu counts them */
G_STATIC_ASSERT(ACTIVATION_RELU == 0 && ACTIVATION_GELU == 1 && ACTIVATION_GEGLU == 2 && ACTIVATION_SWIGLU == 3);

static struct cuda_operand plain(const void *at, int ld)
{
	return (struct cuda_operand){at, ld, false};
}
static struct cuda_operand turned(const void *at, int ld)
{
	return (struct cuda_operand){at, ld, true};
}

/* ---- embedding, norms, sums ---- */

static void embed(struct device_stream *s, elem *x, const int32_t *tokens, const elem *wte, const elem *wpe, int B, int T, int D)
{
	CUDA_LAUNCH(s, "embed", cuda_embed, x, tokens, wte, wpe, B, T, D);
}

static void embed_backward(struct device_stream *s, float *dwte, float *dwpe, const elem *dx, const int32_t *tokens, int B, int T, int D)
{
	CUDA_LAUNCH(s, "embed, backward", cuda_embed_backward, dwte, dwpe, dx, tokens, B, T, D);
}

static void norm(struct device_stream *s, elem *y, float *mean, float *rstd, const elem *x, const elem *gain, const elem *bias, int N, int D)
{
	CUDA_LAUNCH(s, "norm", cuda_norm, y, mean, rstd, x, gain, bias, N, D);
}

static void norm_backward(struct device_stream *stream, elem *dx, float *dgain, float *dbias, const elem *dy, const elem *x, const elem *gain,
                          const float *mean, const float *rstd, int N, int D)
{
	struct cuda_stream *s = cuda_stream_of(stream);
	float *scratch = cuda_ready(s) ? cuda_scratch(s, sizeof(float) * cuda_norm_scratch_floats(N, D)) : NULL;
	if (!scratch)
		return;
	cuda_norm_backward(s->stream, dx, dgain, dbias, dy, x, gain, mean, rstd, scratch, N, D);
	cuda_launched(s, "norm, backward");
}

static void add(struct device_stream *s, elem *y, const elem *a, const elem *b, size_t n)
{
	CUDA_LAUNCH(s, "add", cuda_add, y, a, b, n);
}

static void accumulate(struct device_stream *s, float *to, const float *from, size_t n)
{
	CUDA_LAUNCH(s, "accumulate", cuda_accumulate, to, from, n);
}

static void cast(struct device_stream *s, elem *to, const float *from, size_t n)
{
	CUDA_LAUNCH(s, "cast", cuda_cast, to, from, n);
}

static void start(struct device_stream *s, elem *param, float *master, size_t n, const struct start *how)
{
	CUDA_LAUNCH(s, "initial values", cuda_start, param, master, n, how->key, 0, how->deviation, how->start);
}

static void adam(struct device_stream *s, elem *param, float *master, float *m, float *v, float *gradient, size_t n, const struct adam_step *a)
{
	CUDA_LAUNCH(s, "adam", cuda_adam, param, master, m, v, gradient, n, a->lr, a->beta1, a->beta2, a->eps, a->decay, a->t);
}

/* ---- linear ---- */

static void linear(struct device_stream *stream, elem *y, const elem *x, const elem *w, const elem *to, int N, int I, int O)
{
	struct cuda_stream *s = cuda_stream_of(stream);
	cuda_gemm(s, 0, N, O, I, plain(x, I), plain(w, O), y, O, 2, to);
}

static void linear_backward(struct device_stream *stream, elem *dx, float *dw, const elem *dy, const elem *x, const elem *w, int N, int I, int O,
                            bool to)
{
	struct cuda_stream *s = cuda_stream_of(stream);
	if (N && dx)
		cuda_gemm(s, 0, N, I, O, plain(dy, O), turned(w, O), dx, I, 2, to ? dx : NULL);
	if (N && dw)
		cuda_gemm(s, 0, I, O, N, turned(x, I), plain(dy, O), dw, O, 4, dw);
}

static void activation(struct device_stream *s, elem *a, const elem *h, int N, int F, int kind)
{
	CUDA_LAUNCH(s, "activation", cuda_activation, a, h, N, F, kind);
}

static void activation_backward(struct device_stream *s, elem *dh, const elem *da, const elem *h, int N, int F, int kind)
{
	CUDA_LAUNCH(s, "activation, backward", cuda_activation_backward, dh, da, h, N, F, kind);
}

/* ---- experts ---- */

static bf16 *row(const void *x, size_t rows, size_t width)
{
	return (bf16 *)x + rows * width;
}

static int wide_of(const struct expert_shape *shape)
{
	return shape->F * (activation_matrices(shape->activation) - 1);
}

/* Pieces' hidden rows lie one behind the other, as the pieces themselves do when they are neighbours. */
static int rows_of(const struct expert_rows *pieces, int n)
{
	int rows = 0;
	for (int i = 0; i < n; i++)
		rows += pieces[i].rows;
	return rows;
}

static void hide(struct cuda_stream *s, const elem *x, const struct expert_rows *pieces, int n, const struct expert_shape *shape, elem *hidden)
{
	int D = shape->D, wide = wide_of(shape);
	size_t at = 0;
	cuda_spread(s, n);
	for (int i = 0; i < n; i++) {
		const struct expert_rows *p = &pieces[i];
		cuda_gemm(s, i, p->rows, wide, D, plain(row(x, p->from, (size_t)D), D), plain(p->up, wide), row(hidden, at, (size_t)wide), wide, 2,
		          NULL);
		at += (size_t)p->rows;
	}
	cuda_collect(s, n);
}

static void experts(struct device_stream *stream, elem *y, const elem *x, const struct expert_rows *pieces, int n, const struct expert_shape *shape,
                    const struct expert_space *space)
{
	struct cuda_stream *s = cuda_stream_of(stream);
	int D = shape->D, F = shape->F;
	size_t at = 0;
	hide(s, x, pieces, n, shape, space->hidden);
	activation(stream, space->active, space->hidden, rows_of(pieces, n), F, shape->activation);
	cuda_spread(s, n);
	for (int i = 0; i < n; i++) {
		const struct expert_rows *p = &pieces[i];
		cuda_gemm(s, i, p->rows, D, F, plain(row(space->active, at, (size_t)F), F), plain(p->down, D), row(y, p->from, (size_t)D), D, 2,
		          NULL);
		at += (size_t)p->rows;
	}
	cuda_collect(s, n);
}

/* Runs of pieces that are neighbours: one kernel for their activations. */
static void weigh(struct cuda_stream *s, bf16 *rows, const struct expert_rows *pieces, int n, const struct expert_shape *shape,
                  const struct expert_space *space)
{
	int D = shape->D, F = shape->F, W = D + CUDA_WEIGHT_ELEMENTS, wide = wide_of(shape);
	size_t at = 0;
	for (int i = 0, end; i < n; i = end) {
		size_t count = (size_t)pieces[i].rows;
		for (end = i + 1; end < n && pieces[end].from == pieces[i].from + count; end++)
			count += (size_t)pieces[end].rows;
		if (count && cuda_ready(s))
			cuda_expert_backward(s->stream, row(space->dhidden, at, (size_t)wide), row(space->active, at, (size_t)F),
			                     row(rows, pieces[i].from, (size_t)W), row(space->dactive, at, (size_t)F),
			                     row(space->hidden, at, (size_t)wide), (int)count, F, W, D, shape->activation);
		at += count;
	}
	cuda_launched(s, "experts, backward");
}

/* With g the rows that came in: dactive = g down^T; then what the weights scale (kernels.h); ddown += active^T g; dup += x^T dhidden; and g's place
 * takes dx = dhidden up^T. */
static void experts_backward(struct device_stream *stream, elem *rows, const elem *x, const struct expert_rows *pieces, int n,
                             const struct expert_shape *shape, const struct expert_space *space)
{
	struct cuda_stream *s = cuda_stream_of(stream);
	int D = shape->D, F = shape->F, W = D + CUDA_WEIGHT_ELEMENTS, wide = wide_of(shape), bytes = shape->gradient_bytes;
	size_t at = 0;
	hide(s, x, pieces, n, shape, space->hidden);
	cuda_spread(s, n);
	for (int i = 0; i < n; i++) {
		const struct expert_rows *p = &pieces[i];
		cuda_gemm(s, i, p->rows, F, D, plain(row(rows, p->from, (size_t)W), W), turned(p->down, D), row(space->dactive, at, (size_t)F), F, 2,
		          NULL);
		at += (size_t)p->rows;
	}
	cuda_collect(s, n);
	weigh(s, rows, pieces, n, shape, space);
	at = 0;
	cuda_spread(s, n);
	for (int i = 0; i < n; i++) {
		const struct expert_rows *p = &pieces[i];
		bf16 *g = row(rows, p->from, (size_t)W), *active = row(space->active, at, (size_t)F),
		     *dhidden = row(space->dhidden, at, (size_t)wide);
		if (p->rows) {
			cuda_gemm(s, i, F, D, p->rows, turned(active, F), plain(g, W), p->ddown, D, bytes, p->fresh ? NULL : p->ddown);
			cuda_gemm(s, i, D, wide, p->rows, turned(row(x, p->from, (size_t)D), D), plain(dhidden, wide), p->dup, wide, bytes,
			          p->fresh ? NULL : p->dup);
			cuda_gemm(s, i, p->rows, D, wide, plain(dhidden, wide), turned(p->up, wide), g, W, 2, NULL);
		}
		at += (size_t)p->rows;
	}
	cuda_collect(s, n);
}

/* ---- head ---- */

static void head(struct device_stream *stream, float *loss, elem *dx, float *dw, elem *logits, const elem *x, const elem *w, const int32_t *targets,
                 int N, int D, int V, int chunk, double total, bool tied)
{
	struct cuda_stream *s = cuda_stream_of(stream);
	for (int from = 0; from < N; from += chunk) {
		int n = MIN(chunk, N - from);
		const bf16 *in = row(x, (size_t)from, (size_t)D);
		float *scratch = cuda_ready(s) ? cuda_scratch(s, sizeof(float) * (size_t)n) : NULL;
		if (!scratch)
			return;
		cuda_gemm(s, 0, n, V, D, plain(in, D), tied ? turned(w, D) : plain(w, V), logits, V, 2, NULL);
		cuda_cross_entropy(s->stream, loss, logits, targets + from, scratch, n, V, total);
		cuda_launched(s, "cross entropy");
		cuda_gemm(s, 0, n, D, V, plain(logits, V), tied ? plain(w, D) : turned(w, V), row(dx, (size_t)from, (size_t)D), D, 2, NULL);
		if (tied)
			cuda_gemm(s, 0, V, D, n, turned(logits, V), plain(in, D), dw, D, 4, dw);
		else
			cuda_gemm(s, 0, D, V, n, turned(in, D), plain(logits, V), dw, V, 4, dw);
	}
}

const struct device_math cuda_math_table = {
    .embed = embed,
    .embed_backward = embed_backward,
    .norm = norm,
    .norm_backward = norm_backward,
    .linear = linear,
    .linear_backward = linear_backward,
    .add = add,
    .activation = activation,
    .activation_backward = activation_backward,
    .experts = experts,
    .experts_backward = experts_backward,
    .head = head,
    .start = start,
    .accumulate = accumulate,
    .cast = cast,
    .adam = adam,
};

/* ---- attention ---- */

static void attention(struct device_stream *s, elem *o, float *lse, const elem *qkv, int B, int T, int H, int K, int C)
{
	CUDA_LAUNCH(s, "attention", cuda_attention, o, lse, qkv, B, T, H, K, C);
}

static void attention_backward(struct device_stream *stream, elem *dqkv, const elem *d_o, const elem *qkv, const elem *o, const float *lse, int B,
                               int T, int H, int K, int C)
{
	struct cuda_stream *s = cuda_stream_of(stream);
	float *scratch = cuda_ready(s) ? cuda_scratch(s, sizeof(float) * cuda_attention_scratch_floats(B, T, H, K, C)) : NULL;
	if (!scratch)
		return;
	cuda_attention_backward(s->stream, dqkv, d_o, qkv, o, lse, scratch, B, T, H, K, C);
	cuda_launched(s, "attention, backward");
}

const struct device_attention cuda_attention_table = {.attention = attention, .attention_backward = attention_backward};
