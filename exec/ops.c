/* Operations and collectives, each by the stream's kind of device. */
#include "impl.h"

void op_embed(struct device_stream *s, elem *x, const int32_t *tokens, const elem *wte, const elem *wpe, int B, int T, int D)
{
	s->device->impl->math->embed(s, x, tokens, wte, wpe, B, T, D);
}

void op_embed_backward(struct device_stream *s, float *dwte, float *dwpe, const elem *dx, const int32_t *tokens, int B, int T, int D)
{
	s->device->impl->math->embed_backward(s, dwte, dwpe, dx, tokens, B, T, D);
}

void op_norm(struct device_stream *s, elem *y, float *mean, float *rstd, const elem *x, const elem *gain, const elem *bias, int N, int D)
{
	s->device->impl->math->norm(s, y, mean, rstd, x, gain, bias, N, D);
}

void op_norm_backward(struct device_stream *s, elem *dx, float *dgain, float *dbias, const elem *dy, const elem *x, const elem *gain,
                      const float *mean, const float *rstd, int N, int D)
{
	s->device->impl->math->norm_backward(s, dx, dgain, dbias, dy, x, gain, mean, rstd, N, D);
}

void op_linear(struct device_stream *s, elem *y, const elem *x, const elem *w, const elem *add, int N, int I, int O)
{
	s->device->impl->math->linear(s, y, x, w, add, N, I, O);
}

void op_linear_backward(struct device_stream *s, elem *dx, float *dw, const elem *dy, const elem *x, const elem *w, int N, int I, int O, bool add)
{
	s->device->impl->math->linear_backward(s, dx, dw, dy, x, w, N, I, O, add);
}

void op_attention(struct device_stream *s, elem *o, float *lse, const elem *qkv, int B, int T, int H, int K, int C)
{
	s->device->impl->attention->attention(s, o, lse, qkv, B, T, H, K, C);
}

void op_attention_backward(struct device_stream *s, elem *dqkv, const elem *d_o, const elem *qkv, const elem *o, const float *lse, int B, int T,
                           int H, int K, int C)
{
	s->device->impl->attention->attention_backward(s, dqkv, d_o, qkv, o, lse, B, T, H, K, C);
}

void op_add(struct device_stream *s, elem *y, const elem *a, const elem *b, size_t n)
{
	s->device->impl->math->add(s, y, a, b, n);
}

void op_activation(struct device_stream *s, elem *a, const elem *h, int N, int F, int activation)
{
	s->device->impl->math->activation(s, a, h, N, F, activation);
}

void op_activation_backward(struct device_stream *s, elem *dh, const elem *da, const elem *h, int N, int F, int activation)
{
	s->device->impl->math->activation_backward(s, dh, da, h, N, F, activation);
}

void op_experts(struct device_stream *s, elem *y, const elem *x, const struct expert_rows *pieces, int n, const struct expert_shape *shape,
                const struct expert_space *space)
{
	s->device->impl->math->experts(s, y, x, pieces, n, shape, space);
}

void op_experts_backward(struct device_stream *s, elem *rows, const elem *x, const struct expert_rows *pieces, int n,
                         const struct expert_shape *shape, const struct expert_space *space)
{
	s->device->impl->math->experts_backward(s, rows, x, pieces, n, shape, space);
}

void op_gate(struct device_stream *s, float *prob, int32_t *index, uint32_t *counts, float *aux, const elem *logits, int N, int E, int k)
{
	s->device->impl->gate->gate(s, prob, index, counts, aux, logits, N, E, k);
}

void op_gate_backward(struct device_stream *s, elem *dlogits, const float *dweight, const float *prob, const int32_t *index, const uint32_t *counts,
                      const elem *logits, float balance, float z, int N, int total, int E, int k)
{
	s->device->impl->gate->gate_backward(s, dlogits, dweight, prob, index, counts, logits, balance, z, N, total, E, k);
}

void op_assign(struct device_stream *s, int32_t *index, const uint32_t *counts, int N, int E, int k)
{
	s->device->impl->gate->assign(s, index, counts, N, E, k);
}

void op_sum_counts(struct device_stream *s, uint32_t *sum, const uint32_t *counts, int G, int E)
{
	s->device->impl->gate->sum_counts(s, sum, counts, G, E);
}

void op_route(struct device_stream *s, int32_t *order, int32_t *row, const int32_t *index, int N, int E, int k, uint32_t capacity)
{
	s->device->impl->gate->route(s, order, row, index, N, E, k, capacity);
}

void op_gather(struct device_stream *s, elem *rows, const elem *x, const int32_t *order, const float *weight, int R, int D, int k, int width)
{
	s->device->impl->gate->gather(s, rows, x, order, weight, R, D, k, width);
}

void op_scatter(struct device_stream *s, elem *y, const elem *rows, const int32_t *row, const float *weight, int N, int D, int k, int width)
{
	s->device->impl->gate->scatter(s, y, rows, row, weight, N, D, k, width);
}

void op_pick(struct device_stream *s, float *weight, const float *prob, const int32_t *index, int N, int E, int k)
{
	s->device->impl->gate->pick(s, weight, prob, index, N, E, k);
}

void op_column(struct device_stream *s, float *dweight, const elem *rows, const int32_t *row, int pairs, int D, int width)
{
	s->device->impl->gate->column(s, dweight, rows, row, pairs, D, width);
}

void op_head(struct device_stream *s, float *loss, elem *dx, float *dw, elem *logits, const elem *x, const elem *w, const int32_t *targets, int N,
             int D, int V, int chunk, double total, bool tied)
{
	s->device->impl->math->head(s, loss, dx, dw, logits, x, w, targets, N, D, V, chunk, total, tied);
}

void op_adam(struct device_stream *s, elem *param, float *master, float *m, float *v, float *gradient, size_t n, const struct adam_step *a)
{
	s->device->impl->math->adam(s, param, master, m, v, gradient, n, a);
}

void op_start(struct device_stream *s, elem *param, float *master, size_t n, const struct start *start)
{
	s->device->impl->math->start(s, param, master, n, start);
}

void op_accumulate(struct device_stream *s, float *to, const float *from, size_t n)
{
	s->device->impl->math->accumulate(s, to, from, n);
}

void op_cast(struct device_stream *s, elem *to, const float *from, size_t n)
{
	s->device->impl->math->cast(s, to, from, n);
}

void group_meet(struct device_stream *s, struct device_group *g, int member)
{
	s->device->impl->collectives->meet(s, g, member);
}

void group_all_to_all(struct device_stream *s, struct device_group *g, int member, elem *receive, const elem *send, const struct traffic *traffic)
{
	s->device->impl->collectives->all_to_all(s, g, member, receive, send, traffic);
}

void group_all_reduce(struct device_stream *s, struct device_group *g, int member, float *x, size_t n)
{
	s->device->impl->collectives->all_reduce(s, g, member, x, n);
}

void group_reduce_scatter(struct device_stream *s, struct device_group *g, int member, float *x, size_t n)
{
	s->device->impl->collectives->reduce_scatter(s, g, member, x, n);
}

void group_gather(struct device_stream *s, struct device_group *g, int member, void *all, size_t bytes)
{
	s->device->impl->collectives->gather(s, g, member, all, bytes);
}
