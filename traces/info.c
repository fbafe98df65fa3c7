/* Each stream becomes a sorted list of disjoint intervals; everything asked for is a union or an intersection of such lists, both one walk along
 * them. */
#include "info.h"

struct interval {
	nsec_t start, end;
};

static int by_start(gconstpointer a, gconstpointer b)
{
	const struct interval *x = a, *y = b;

	return (x->start > y->start) - (x->start < y->start);
}

/* Sorts and joins what touches, in place. */
static void normalise(GArray *list)
{
	struct interval *v = (struct interval *)list->data;
	guint n = 0;
	bool sorted = true;

	for (guint i = 1; i < list->len && sorted; i++)
		sorted = v[i - 1].start <= v[i].start;
	if (!sorted)
		g_array_sort(list, by_start);
	for (guint i = 0; i < list->len; i++) {
		if (n > 0 && v[i].start <= v[n - 1].end)
			v[n - 1].end = MAX(v[n - 1].end, v[i].end);
		else
			v[n++] = v[i];
	}
	g_array_set_size(list, n);
}

static GArray *list_new(void)
{
	return g_array_new(FALSE, FALSE, sizeof(struct interval));
}

static GArray *joined(GArray *const *lists, int first, int n, int stride)
{
	GArray *all = list_new();

	for (int i = 0; i < n; i++)
		if (lists[first + i * stride]->len > 0)
			g_array_append_vals(all, lists[first + i * stride]->data, lists[first + i * stride]->len);
	normalise(all);
	return all;
}

static nsec_t length(const GArray *list)
{
	nsec_t sum = 0;

	for (guint i = 0; i < list->len; i++)
		sum += g_array_index(list, struct interval, i).end - g_array_index(list, struct interval, i).start;
	return sum;
}

static nsec_t overlap(const GArray *a, const GArray *b)
{
	nsec_t sum = 0;

	for (guint i = 0, k = 0; i < a->len && k < b->len;) {
		const struct interval *x = &g_array_index(a, struct interval, i), *y = &g_array_index(b, struct interval, k);
		nsec_t both = MIN(x->end, y->end) - MAX(x->start, y->start);

		sum += MAX(both, 0);
		if (x->end < y->end)
			i++;
		else
			k++;
	}
	return sum;
}

static struct gpu_info gpu_figures(GArray *const *lists, int gpu)
{
	int first = gpu * GPU_STREAMS;
	GArray *compute = lists[first + STREAM_COMPUTE];
	g_autoptr(GArray) collective = joined(lists, first + STREAM_COLLECTIVE, 2, STREAM_REDUCTION - STREAM_COLLECTIVE);
	g_autoptr(GArray) all = joined(lists, first, GPU_STREAMS, 1);
	g_autoptr(GArray) copies = joined(lists, first + STREAM_UPLOAD, 2, STREAM_DOWNLOAD - STREAM_UPLOAD);
	struct gpu_info figures = {
	    .compute_ns = length(compute),
	    .other_ns = length(all) - length(compute),
	    .collective_ns = length(collective),
	    .collective_hidden_ns = overlap(collective, compute),
	    .copy_ns = length(copies),
	    .copy_hidden_ns = overlap(copies, compute),
	};

	if (all->len > 0)
		figures.window_ns = g_array_index(all, struct interval, all->len - 1).end - g_array_index(all, struct interval, 0).start;
	figures.idle_ns = figures.window_ns - length(all);
	return figures;
}

static void stream_figures(struct trace_info *info, const struct trace *trace, GArray *const *lists)
{
	for (int s = 0; s < info->n_streams; s++) {
		int gpu = trace_stream_gpu(trace, (stream_id)s), from = trace_stream_node(trace, (stream_id)s) * trace->gpus_per_node;

		info->streams[s].busy_ns = length(lists[s]);
		info->streams[s].idle_ns = info->run_ns - info->streams[s].busy_ns;
		if (gpu >= 0) {
			info->streams[s].under_compute_ns = overlap(lists[s], lists[gpu * GPU_STREAMS + STREAM_COMPUTE]);
		} else if (lists[s]->len > 0) {
			int gpus = MIN(trace->gpus_per_node, trace->gpus - from);
			g_autoptr(GArray) compute = joined(lists, from * GPU_STREAMS + STREAM_COMPUTE, gpus, GPU_STREAMS);

			info->streams[s].under_compute_ns = overlap(lists[s], compute);
		}
	}
}

struct trace_info *trace_info_new(const struct trace *trace)
{
	struct trace_info *info = g_new0(struct trace_info, 1);
	g_autoptr(GPtrArray) lists = g_ptr_array_new_with_free_func((GDestroyNotify)g_array_unref);
	GArray **list;
	nsec_t begin = 0;

	info->n_gpus = trace->gpus;
	info->n_streams = trace_streams(trace);
	info->streams = g_new0(struct stream_info, info->n_streams);
	info->gpus = g_new0(struct gpu_info, info->n_gpus);
	for (int s = 0; s < info->n_streams; s++)
		g_ptr_array_add(lists, list_new());
	list = (GArray **)lists->pdata;
	for (guint i = 0; i < trace->spans->len; i++) {
		const struct span *s = trace_span(trace, i);
		struct interval interval = {s->start_ns, s->end_ns};

		g_array_append_val(list[s->stream], interval);
		info->streams[s->stream].n_spans++;
		begin = MIN(begin, s->start_ns);
	}
	for (int s = 0; s < info->n_streams; s++)
		normalise(list[s]);
	info->run_ns = trace_end_ns(trace) - begin;
	stream_figures(info, trace, list);
	for (int gpu = 0; gpu < info->n_gpus; gpu++) {
		info->gpus[gpu] = gpu_figures(list, gpu);
		info->copy_ns += info->gpus[gpu].copy_ns;
		info->copy_hidden_ns += info->gpus[gpu].copy_hidden_ns;
	}
	return info;
}

void trace_info_free(struct trace_info *info)
{
	if (!info)
		return;
	g_free(info->streams);
	g_free(info->gpus);
	g_free(info);
}
