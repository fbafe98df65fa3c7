/* A trace: the spans of a run plus its full description, enough to run it again. Both worlds fill one; files are in the Kineto form. */
#pragma once

#include "model/autoptr.h"
#include "model/stage.h"

#include <glib.h>

/* One executed stage. */
struct span {
	stage_id id;        /* of the stage; unique in the trace */
	uint8_t kind, pass; /* enum stage_kind or SPAN_OTHER, enum stage_pass */
	uint16_t step;      /* from 0 */
	uint16_t layer, microbatch;
	int32_t expert; /* -1: none */
	int32_t rank;   /* GPU whose launcher launched it */
	stream_id stream;
	uint32_t tokens;
	uint64_t bytes;
	nsec_t launch_ns; /* the host began to launch it; -1: unknown */
	nsec_t launch_end_ns;
	nsec_t start_ns, end_ns;
	uint8_t n_preds;
	stage_id preds[STAGE_PREDECESSORS];
};

/* A quantity over time as steps: value from ns on. */
struct sample {
	nsec_t ns;
	double value;
};
struct counter {
	char *name;      /* "PCIe up GB/s", "DRAM GB/s", "HBM bytes" */
	int gpu, node;   /* the other is -1 */
	GArray *samples; /* struct sample, ascending */
};

/* Without samples. `name` is copied. */
struct counter *counter_new(const char *name, int gpu, int node);
void counter_free(struct counter *counter);

struct trace {
	int gpus, gpus_per_node;
	char *gpu_name;
	uint64_t hbm_bytes;
	int sms;
	char *description;   /* the scenario as .ini text; NULL: none (a foreign trace) */
	GArray *spans;       /* struct span, by stage id */
	GArray *step_end_ns; /* nsec_t, end of each step; a step starts where the one before ends, the first at 0 */
	GPtrArray *counters; /* struct counter *, owned */
};

struct trace *trace_new(void);
void trace_free(struct trace *trace);
AUTOPTR(trace)

static inline const struct span *trace_span(const struct trace *t, guint i)
{
	return &g_array_index(t->spans, struct span, i);
}

/* The host was still launching it when it began. */
static inline bool span_waited_for_launches(const struct span *s)
{
	return s->launch_end_ns > s->start_ns;
}

/* A kernel of a foreign trace has no stage kind: SPAN_OTHER. Names of stage kinds and "other". */
enum { SPAN_OTHER = N_STAGE_KINDS, N_SPAN_KINDS };
const char *span_kind_name(int kind);

/* Streams by id as in stage.h, from the trace's own gpus and gpus_per_node. */
int trace_nodes(const struct trace *trace);
int trace_streams(const struct trace *trace);
char *trace_stream_name(const struct trace *trace, stream_id s);

/* What a stream is, whichever GPU's or node's: 0 .. GPU_STREAMS + NODE_STREAMS - 1, first the GPUs'. */
enum { STREAM_KINDS = GPU_STREAMS + NODE_STREAMS };
int trace_stream_kind(const struct trace *trace, stream_id s);
const char *stream_kind_name(int kind);
/* The GPU of a stream, or -1 for a node's; the node of a stream, also for a GPU's. */
int trace_stream_gpu(const struct trace *trace, stream_id s);
int trace_stream_node(const struct trace *trace, stream_id s);

/* The end of the last step or span, whichever is later; 0 for an empty trace. */
nsec_t trace_end_ns(const struct trace *trace);

/* Index in trace->spans of the stage, or STAGE_NONE. */
uint32_t trace_find(const struct trace *trace, stage_id id);
