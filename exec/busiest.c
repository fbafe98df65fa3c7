/* What bounded a step is what was busy for longest in it: a stream, or a launcher thread. */
#include "busiest.h"

#include "traces/trace.h"

static const char *const busy_names[] = {"compute",   "upload",   "download",  "collective", "reduction",
                                         "optimizer", "ssd_read", "ssd_write", "host_launch"};
enum { BUSY_LAUNCH = GPU_STREAMS + NODE_STREAMS };
G_STATIC_ASSERT(G_N_ELEMENTS(busy_names) == BUSY_LAUNCH + 1);

const char *busiest_name(int busiest)
{
	return busy_names[busiest];
}

void busiest_find(const struct machine *m, const GArray *spans, struct round *round)
{
	int streams = stream_count(m), of_gpus = m->gpus * GPU_STREAMS, busiest = 0, launcher = 0;
	g_autofree nsec_t *busy = g_new0(nsec_t, streams), *launch = g_new0(nsec_t, m->gpus);
	for (guint i = 0; i < spans->len; i++) {
		const struct span *span = &g_array_index(spans, struct span, i);
		busy[span->stream] += span->end_ns - span->start_ns;
		if (span->launch_ns != -1)
			launch[span->rank] += span->launch_end_ns - span->launch_ns;
	}
	for (int i = 1; i < streams; i++)
		if (busy[i] > busy[busiest])
			busiest = i;
	for (int i = 1; i < m->gpus; i++)
		if (launch[i] > launch[launcher])
			launcher = i;
	round->busy_ns = MAX(launch[launcher], busy[busiest]);
	round->busiest = busiest < of_gpus ? busiest % GPU_STREAMS : GPU_STREAMS + (busiest - of_gpus) % NODE_STREAMS;
	if (launch[launcher] > busy[busiest])
		round->busiest = BUSY_LAUNCH;
}
