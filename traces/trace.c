/* Spans are kept in the order of their stage ids. A step's stages have dense ids, so that an id is found by its distance from the first; where stages
 * are missing (a trace of some ranks only) the search halves instead. */
#include "trace.h"

static const char *const stream_kinds[STREAM_KINDS] = {
    [STREAM_COMPUTE] = "compute",
    [STREAM_UPLOAD] = "upload",
    [STREAM_DOWNLOAD] = "download",
    [STREAM_COLLECTIVE] = "collective",
    [STREAM_REDUCTION] = "reduction",
    [GPU_STREAMS + STREAM_OPTIMIZER] = "optimizer",
    [GPU_STREAMS + STREAM_SSD_READ] = "ssd read",
    [GPU_STREAMS + STREAM_SSD_WRITE] = "ssd write",
};

struct counter *counter_new(const char *name, int gpu, int node)
{
	struct counter *counter = g_new(struct counter, 1);

	*counter = (struct counter){g_strdup(name), gpu, node, g_array_new(FALSE, FALSE, sizeof(struct sample))};
	return counter;
}

void counter_free(struct counter *counter)
{
	if (!counter)
		return;
	g_free(counter->name);
	g_array_unref(counter->samples);
	g_free(counter);
}

struct trace *trace_new(void)
{
	struct trace *trace = g_new0(struct trace, 1);

	trace->spans = g_array_new(FALSE, FALSE, sizeof(struct span));
	trace->step_end_ns = g_array_new(FALSE, FALSE, sizeof(nsec_t));
	trace->counters = g_ptr_array_new_with_free_func((GDestroyNotify)counter_free);
	return trace;
}

void trace_free(struct trace *trace)
{
	if (!trace)
		return;
	g_free(trace->gpu_name);
	g_free(trace->description);
	g_array_unref(trace->spans);
	g_array_unref(trace->step_end_ns);
	g_ptr_array_unref(trace->counters);
	g_free(trace);
}

const char *span_kind_name(int kind)
{
	return kind == SPAN_OTHER ? "other" : stage_kind_name(kind);
}

int trace_nodes(const struct trace *trace)
{
	return (trace->gpus + trace->gpus_per_node - 1) / trace->gpus_per_node;
}

int trace_streams(const struct trace *trace)
{
	return trace->gpus * GPU_STREAMS + trace_nodes(trace) * NODE_STREAMS;
}

int trace_stream_kind(const struct trace *trace, stream_id s)
{
	stream_id of_nodes = (stream_id)trace->gpus * GPU_STREAMS;

	g_assert(s < (stream_id)trace_streams(trace));
	return s < of_nodes ? (int)(s % GPU_STREAMS) : GPU_STREAMS + (int)((s - of_nodes) % NODE_STREAMS);
}

const char *stream_kind_name(int kind)
{
	g_assert(kind >= 0 && kind < STREAM_KINDS);
	return stream_kinds[kind];
}

int trace_stream_gpu(const struct trace *trace, stream_id s)
{
	return s < (stream_id)trace->gpus * GPU_STREAMS ? (int)(s / GPU_STREAMS) : -1;
}

int trace_stream_node(const struct trace *trace, stream_id s)
{
	stream_id of_nodes = (stream_id)trace->gpus * GPU_STREAMS;

	return s < of_nodes ? (int)(s / GPU_STREAMS) / trace->gpus_per_node : (int)((s - of_nodes) / NODE_STREAMS);
}

char *trace_stream_name(const struct trace *trace, stream_id s)
{
	int gpu = trace_stream_gpu(trace, s);
	const char *kind = stream_kind_name(trace_stream_kind(trace, s));

	return gpu >= 0 ? g_strdup_printf("gpu%d %s", gpu, kind) : g_strdup_printf("node%d %s", trace_stream_node(trace, s), kind);
}

nsec_t trace_end_ns(const struct trace *trace)
{
	nsec_t end = 0;

	for (guint i = 0; i < trace->step_end_ns->len; i++)
		end = MAX(end, g_array_index(trace->step_end_ns, nsec_t, i));
	for (guint i = 0; i < trace->spans->len; i++)
		end = MAX(end, g_array_index(trace->spans, struct span, i).end_ns);
	return end;
}

uint32_t trace_find(const struct trace *trace, stage_id id)
{
	const struct span *spans = (const struct span *)trace->spans->data;
	uint32_t low = 0, high = trace->spans->len;

	if (high == 0 || id < spans[0].id)
		return STAGE_NONE;
	if (id - spans[0].id < high && spans[id - spans[0].id].id == id)
		return id - spans[0].id;
	while (low < high) {
		uint32_t middle = low + (high - low) / 2;

		if (spans[middle].id < id)
			low = middle + 1;
		else
			high = middle;
	}
	return low < trace->spans->len && spans[low].id == id ? low : STAGE_NONE;
}
