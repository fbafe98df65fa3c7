/* What stays in HBM all the time is the plan less its activations and workspace, or all of it where it is allocated once; on top come the changes at
 * each span's start and end, in order of time. Within one instant what is freed goes first: a stage that starts where another ends reuses its room.
 */
#include "occupancy.h"

struct change {
	nsec_t ns;
	int64_t bytes;
};

static int earlier(gconstpointer a, gconstpointer b)
{
	const struct change *x = a, *y = b;
	if (x->ns != y->ns)
		return x->ns < y->ns ? -1 : 1;
	return (x->bytes > y->bytes) - (x->bytes < y->bytes);
}

static void note(GArray *changes, nsec_t ns, int64_t bytes)
{
	if (bytes)
		g_array_append_vals(changes, &(struct change){ns, bytes}, 1);
}

static GArray *changes_of(const struct trace *trace, const struct memory *memory, int gpu)
{
	GArray *changes = g_array_new(FALSE, FALSE, sizeof(struct change));
	for (guint i = 0; i < trace->spans->len; i++) {
		const struct span *span = trace_span(trace, i);
		if (span->stream / GPU_STREAMS != (stream_id)gpu)
			continue;
		struct stage stage = {.kind = span->kind, .pass = span->pass};
		struct memory_change c = memory_of_stage(memory, &stage);
		note(changes, span->start_ns, (int64_t)c.while_running);
		note(changes, span->end_ns, c.at_end - (int64_t)c.while_running);
	}
	g_array_sort(changes, earlier);
	return changes;
}

void occupancy_add(struct trace *trace, const struct memory *memory)
{
	double always = (double)memory_always(memory);
	for (int gpu = 0; gpu < trace->gpus; gpu++) {
		g_autoptr(GArray) changes = changes_of(trace, memory, gpu);
		struct counter *counter = g_new0(struct counter, 1);
		*counter = (struct counter){
		    .name = g_strdup("HBM bytes"), .gpu = gpu, .node = -1, .samples = g_array_new(FALSE, FALSE, sizeof(struct sample))};
		struct sample now = {0, always};
		g_array_append_val(counter->samples, now);
		for (guint i = 0; i < changes->len; i++) {
			const struct change *c = &g_array_index(changes, struct change, i);
			now.value += (double)c->bytes;
			now.ns = c->ns;
			if (i + 1 == changes->len || g_array_index(changes, struct change, i + 1).ns != c->ns)
				g_array_append_val(counter->samples, now);
		}
		g_ptr_array_add(trace->counters, counter);
	}
}
