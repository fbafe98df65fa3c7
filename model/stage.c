/* The words for stages and streams. They appear in traces, tables and figures, and traces are read back by them: one table each, indexed by the enum.
 */
#include "stage.h"

#include <glib.h>

static const char *const kind_names[N_STAGE_KINDS] = {
    [STAGE_EMBED] = "embed",
    [STAGE_MIXER] = "mixer",
    [STAGE_GATE] = "gate",
    [STAGE_PERMUTE] = "permute",
    [STAGE_EXPERT] = "expert",
    [STAGE_COMBINE] = "combine",
    [STAGE_FFN] = "ffn",
    [STAGE_SHARED] = "shared",
    [STAGE_HEAD] = "head",
    [STAGE_ADAM_GPU] = "adam_gpu",
    [STAGE_ACCUMULATE_GPU] = "accumulate_gpu",
    [STAGE_COUNTS] = "counts",
    [STAGE_ALL_TO_ALL] = "all_to_all",
    [STAGE_ALL_REDUCE] = "all_reduce",
    [STAGE_REDUCE_SCATTER] = "reduce_scatter",
    [STAGE_ALL_GATHER] = "all_gather",
    [STAGE_UPLOAD] = "upload",
    [STAGE_DOWNLOAD] = "download",
    [STAGE_ADAM] = "adam",
    [STAGE_ACCUMULATE] = "accumulate",
    [STAGE_SSD_READ] = "ssd_read",
    [STAGE_SSD_WRITE] = "ssd_write",
};

static const char *const pass_names[N_STAGE_PASSES] = {
    [PASS_FORWARD] = "forward",
    [PASS_RECOMPUTE] = "recompute",
    [PASS_BACKWARD] = "backward",
    [PASS_UPDATE] = "update",
};

static const char *const gpu_stream_names[GPU_STREAMS] = {
    [STREAM_COMPUTE] = "compute",       [STREAM_UPLOAD] = "upload",       [STREAM_DOWNLOAD] = "download",
    [STREAM_COLLECTIVE] = "collective", [STREAM_REDUCTION] = "reduction",
};

static const char *const node_stream_names[NODE_STREAMS] = {
    [STREAM_OPTIMIZER] = "optimizer",
    [STREAM_SSD_READ] = "ssd read",
    [STREAM_SSD_WRITE] = "ssd write",
};

const char *stage_kind_name(int kind)
{
	g_assert(kind >= 0 && kind < N_STAGE_KINDS);
	return kind_names[kind];
}

const char *stage_pass_name(int pass)
{
	g_assert(pass >= 0 && pass < N_STAGE_PASSES);
	return pass_names[pass];
}

static int index_of(const char *name, const char *const *names, int n)
{
	for (int i = 0; i < n; i++)
		if (g_str_equal(name, names[i]))
			return i;
	return -1;
}

int stage_kind_parse(const char *name)
{
	return index_of(name, kind_names, N_STAGE_KINDS);
}

int stage_pass_parse(const char *name)
{
	return index_of(name, pass_names, N_STAGE_PASSES);
}

int stream_count(const struct machine *m)
{
	return m->gpus * GPU_STREAMS + machine_nodes(m) * NODE_STREAMS;
}

char *stream_name(const struct machine *m, stream_id s)
{
	stream_id of_nodes = (stream_id)m->gpus * GPU_STREAMS;

	g_assert(s < (stream_id)stream_count(m));
	if (s < of_nodes)
		return g_strdup_printf("gpu%u %s", s / GPU_STREAMS, gpu_stream_names[s % GPU_STREAMS]);
	return g_strdup_printf("node%u %s", (s - of_nodes) / NODE_STREAMS, node_stream_names[(s - of_nodes) % NODE_STREAMS]);
}
