/* A trace: the spans of a run plus its full description, enough to run it again. Both worlds fill one; files are in the Kineto form. */
#pragma once

#include "model/autoptr.h"
#include "model/stage.h"

#include <glib.h>

/* One executed stage. */
struct span {
	stage_id id;           /* of the stage; unique in the trace */
	uint8_t kind, pass;    /* enum stage_kind, enum stage_pass */
	uint16_t step;         /* from 0 */
	uint16_t layer, microbatch;
	int32_t expert;        /* -1: none */
	int32_t rank;          /* GPU whose launcher launched it */
	stream_id stream;
	uint32_t tokens;
	uint64_t bytes;
	nsec_t launch_ns;      /* the host began to launch it; -1: unknown */
	nsec_t launch_end_ns;
	nsec_t start_ns, end_ns;
	uint8_t n_preds;
	stage_id preds[STAGE_PREDECESSORS];
};

/* A quantity over time as steps: value from ns on. */
struct sample { nsec_t ns; double value; };
struct counter {
	char *name;      /* "PCIe up GB/s", "DRAM GB/s", "HBM bytes" */
	int gpu, node;   /* the other is -1 */
	GArray *samples; /* struct sample, ascending */
};

struct trace {
	int gpus, gpus_per_node;
	char *gpu_name;
	uint64_t hbm_bytes;
	int sms;
	char *description;   /* the scenario as .ini text */
	GArray *spans;       /* struct span, by stage id */
	GArray *step_end_ns; /* nsec_t, end of each step; a step starts where the one before ends, the first at 0 */
	GPtrArray *counters; /* struct counter *, owned */
};

struct trace *trace_new(void);
void trace_free(struct trace *trace);
AUTOPTR(trace)

/* Streams by id as in stage.h, from the trace's own gpus and gpus_per_node. */
int trace_streams(const struct trace *trace);
char *trace_stream_name(const struct trace *trace, stream_id s);
