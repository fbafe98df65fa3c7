/* Every span is reduced to its identity, a few integers; both traces' identities are sorted and walked together, so that stages find their partners
 * whatever their ids and order. Streams are compared by GPU or node and kind, since two machines number them differently. */
#include "diff.h"

struct identity {
	int32_t place; /* GPU, or number of GPUs plus node */
	uint8_t stream_kind, kind, pass;
	uint16_t step, layer, microbatch;
	int32_t expert;
	nsec_t duration_ns;
};

static int compare(int64_t a, int64_t b)
{
	return (a > b) - (a < b);
}

static int by_identity(gconstpointer a, gconstpointer b)
{
	const struct identity *x = a, *y = b;
	int order = compare(x->place, y->place);

	order = order ? order : compare(x->stream_kind, y->stream_kind);
	order = order ? order : compare(x->kind, y->kind);
	order = order ? order : compare(x->step, y->step);
	order = order ? order : compare(x->layer, y->layer);
	order = order ? order : compare(x->microbatch, y->microbatch);
	order = order ? order : compare(x->expert, y->expert);
	return order ? order : compare(x->pass, y->pass);
}

static GArray *identities(const struct trace *trace, int gpus)
{
	GArray *all = g_array_sized_new(FALSE, FALSE, sizeof(struct identity), trace->spans->len);
	uint16_t first = UINT16_MAX;

	for (guint i = 0; i < trace->spans->len; i++)
		first = MIN(first, g_array_index(trace->spans, struct span, i).step);
	for (guint i = 0; i < trace->spans->len; i++) {
		const struct span *s = trace_span(trace, i);
		int gpu = trace_stream_gpu(trace, s->stream);
		struct identity id = {
		    .place = gpu >= 0 ? gpu : gpus + trace_stream_node(trace, s->stream),
		    .stream_kind = (uint8_t)trace_stream_kind(trace, s->stream),
		    .kind = s->kind,
		    .pass = s->pass,
		    .step = (uint16_t)(s->step - first),
		    .layer = s->layer,
		    .microbatch = s->microbatch,
		    .expert = s->expert,
		    .duration_ns = s->end_ns - s->start_ns,
		};

		g_array_append_val(all, id);
	}
	g_array_sort(all, by_identity);
	return all;
}

static struct diff_row *row_of(GArray *rows, const struct identity *id, int gpus)
{
	int gpu = id->place < gpus ? id->place : -1, node = id->place < gpus ? -1 : id->place - gpus;
	struct diff_row row = {.gpu = gpu, .node = node, .stream_kind = id->stream_kind, .kind = id->kind};

	if (rows->len > 0) {
		struct diff_row *last = &g_array_index(rows, struct diff_row, rows->len - 1);

		if (last->gpu == gpu && last->node == node && last->stream_kind == row.stream_kind && last->kind == row.kind)
			return last;
	}
	g_array_append_val(rows, row);
	return &g_array_index(rows, struct diff_row, rows->len - 1);
}

GArray *trace_diff(const struct trace *a, const struct trace *b)
{
	int gpus = MAX(a->gpus, b->gpus);
	g_autoptr(GArray) in_a = identities(a, gpus), in_b = identities(b, gpus);
	GArray *rows = g_array_new(FALSE, FALSE, sizeof(struct diff_row));

	for (guint i = 0, k = 0; i < in_a->len || k < in_b->len;) {
		const struct identity *x = i < in_a->len ? &g_array_index(in_a, struct identity, i) : NULL;
		const struct identity *y = k < in_b->len ? &g_array_index(in_b, struct identity, k) : NULL;
		int order = !x ? 1 : !y ? -1 : by_identity(x, y);
		struct diff_row *row = row_of(rows, order <= 0 ? x : y, gpus);

		if (order <= 0) {
			row->n_a++;
			row->a_ns += x->duration_ns;
			row->only_a += order < 0;
			i++;
		}
		if (order >= 0) {
			row->n_b++;
			row->b_ns += y->duration_ns;
			row->only_b += order > 0;
			k++;
		}
	}
	return rows;
}
