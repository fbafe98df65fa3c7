/* The gate and its rows: each operation is one launcher (kernels.h). */
#include "gpu.h"

static void gate(struct device_stream *stream, float *prob, int32_t *index, uint32_t *counts, float *aux, const elem *logits, int N, int E, int k)
{
	struct cuda_stream *s = cuda_stream_of(stream);
	float *scratch = cuda_ready(s) ? cuda_scratch(s, sizeof(float) * cuda_gate_scratch_floats(N, E)) : NULL;
	if (!scratch)
		return;
	cuda_gate(s->stream, prob, index, counts, aux, logits, scratch, N, E, k);
	cuda_launched(s, "gate");
}

static void gate_backward(struct device_stream *stream, elem *dlogits, const float *dweight, const float *prob, const int32_t *index,
                          const uint32_t *counts, const elem *logits, float balance, float z, int N, int total, int E, int k)
{
	struct cuda_stream *s = cuda_stream_of(stream);
	if (!N || !cuda_ready(s))
		return;
	cuda_gate_backward(s->stream, dlogits, dweight, prob, index, counts, logits, balance, z, N, total, E, k);
	cuda_launched(s, "gate, backward");
}

static void assign(struct device_stream *s, int32_t *index, const uint32_t *counts, int N, int E, int k)
{
	CUDA_LAUNCH(s, "assignment", cuda_assign, index, counts, N, E, k, assign_stride(N));
}

static void sum_counts(struct device_stream *s, uint32_t *sum, const uint32_t *counts, int G, int E)
{
	CUDA_LAUNCH(s, "sum of counts", cuda_sum_counts, sum, counts, G, E);
}

static void route(struct device_stream *stream, int32_t *order, int32_t *row, const int32_t *index, int N, int E, int k, uint32_t capacity)
{
	struct cuda_stream *s = cuda_stream_of(stream);
	int32_t *scratch = cuda_ready(s) ? cuda_scratch(s, sizeof(int32_t) * cuda_route_scratch_ints(N, E, k)) : NULL;
	if (!scratch)
		return;
	cuda_route(s->stream, order, row, index, scratch, N, E, k, capacity);
	cuda_launched(s, "route");
}

static void gather(struct device_stream *s, elem *rows, const elem *x, const int32_t *order, const float *weight, int R, int D, int k, int width)
{
	CUDA_LAUNCH(s, "gather", cuda_gather, rows, x, order, weight, R, D, k, width);
}

static void scatter(struct device_stream *s, elem *y, const elem *rows, const int32_t *row, const float *weight, int N, int D, int k, int width)
{
	CUDA_LAUNCH(s, "scatter", cuda_scatter, y, rows, row, weight, N, D, k, width);
}

static void pick(struct device_stream *s, float *weight, const float *prob, const int32_t *index, int N, int E, int k)
{
	CUDA_LAUNCH(s, "pick", cuda_pick, weight, prob, index, N, E, k);
}

static void column(struct device_stream *s, float *dweight, const elem *rows, const int32_t *row, int pairs, int D, int width)
{
	CUDA_LAUNCH(s, "column", cuda_column, dweight, rows, row, pairs, D, width);
}

const struct device_gate cuda_gate_table = {
    .gate = gate,
    .gate_backward = gate_backward,
    .assign = assign,
    .sum_counts = sum_counts,
    .route = route,
    .gather = gather,
    .scatter = scatter,
    .pick = pick,
    .column = column,
};
