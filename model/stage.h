/* A stage: one piece of work that runs alone on its stream, after its predecessors. The unit both worlds execute. */
#pragma once

#include "machine.h"
#include "units.h"

#include <stdbool.h>
#include <stdint.h>

typedef uint32_t stage_id;  /* dense from 0 in launch order */
typedef uint32_t stream_id; /* see stream_of_gpu, stream_of_node */

#define STAGE_NONE UINT32_MAX
#define STAGE_PREDECESSORS 4

enum stage_kind {
	/* compute stream */
	STAGE_EMBED,
	STAGE_MIXER,
	STAGE_GATE,
	STAGE_PERMUTE,
	STAGE_EXPERT,
	STAGE_COMBINE,
	STAGE_FFN,
	STAGE_SHARED,
	STAGE_HEAD,
	STAGE_ADAM_GPU,
	STAGE_ACCUMULATE_GPU,
	/* collective stream */
	STAGE_COUNTS,
	STAGE_ALL_TO_ALL,
	STAGE_ALL_REDUCE,
	STAGE_REDUCE_SCATTER,
	STAGE_ALL_GATHER,
	/* copy streams */
	STAGE_UPLOAD,
	STAGE_DOWNLOAD,
	/* optimizer stream of a node */
	STAGE_ADAM,
	STAGE_ACCUMULATE,
	/* SSD streams of a node */
	STAGE_SSD_READ,
	STAGE_SSD_WRITE,
	N_STAGE_KINDS,
};

enum stage_pass { PASS_FORWARD, PASS_RECOMPUTE, PASS_BACKWARD, PASS_UPDATE, N_STAGE_PASSES };

/* Streams: in-order queues. Five a GPU, three a node; ids are dense, first all GPUs', then all nodes'. */
enum gpu_stream { STREAM_COMPUTE, STREAM_UPLOAD, STREAM_DOWNLOAD, STREAM_COLLECTIVE, STREAM_REDUCTION, GPU_STREAMS };
enum node_stream { STREAM_OPTIMIZER, STREAM_SSD_READ, STREAM_SSD_WRITE, NODE_STREAMS };

/* What is summed over GPUs: gradients of a layer's dense parameters, of experts at home on several GPUs, of the embedding and the last norm; partial
 * results of a tensor group. */
enum reduced { REDUCED_DENSE, REDUCED_EXPERTS, REDUCED_EMBEDDING, REDUCED_PARTIAL };

struct block;

struct stage {
	stage_id id;
	uint8_t kind, pass; /* enum stage_kind, enum stage_pass */
	uint8_t n_preds;
	uint8_t step_parity; /* lowest bit of the step's number, so that readers can tell steps apart */
	uint16_t layer, microbatch;
	int32_t expert; /* -1: none, or all of the layer's on this GPU (grouped) */
	int32_t slot;   /* experts and uploads: where in HBM the parameters are, see schedule.h; -1: at home there. Downloads: the gradient slot */
	int32_t part;   /* backward of an uploaded expert, reduce-scatter: its gradient slot; all-to-alls and resident experts: the chunk of tokens;
	                 * all-reduces: enum reduced; SSD: 0 parameters, 1 state; Adam: 1 when the last micro-batch brought a gradient */
	int32_t rank;   /* GPU whose launcher thread launches it, also for stages of a node */
	stream_id stream;
	uint32_t group;      /* collectives: id of the rendezvous, 0: none; all members start together */
	uint32_t group_size; /* members of the group */
	uint32_t profile;    /* what it asks of the shared resources (resource.h) */
	uint32_t tokens;
	uint32_t n_kernels;                 /* launches it needs; 0: free for the host */
	uint32_t products;                  /* experts: of matrices, one behind the other */
	uint64_t bytes;                     /* moved by copies and collectives, touched by optimizers; 0 otherwise */
	nsec_t cost_ns;                     /* solo duration */
	const struct block *block;          /* how its MoE layer was routed (schedule.h); NULL where it does not matter */
	stage_id preds[STAGE_PREDECESSORS]; /* own stream order comes on top of these */
};

const char *stage_kind_name(int kind);  /* "expert", "all_to_all", ... */
const char *stage_pass_name(int pass);  /* "forward", "recompute", "backward", "update" */
int stage_kind_parse(const char *name); /* -1: unknown */
int stage_pass_parse(const char *name); /* -1: unknown */

static inline stream_id stream_of_gpu(int gpu, enum gpu_stream s)
{
	return (stream_id)gpu * GPU_STREAMS + s;
}
static inline stream_id stream_of_node(const struct machine *m, int node, enum node_stream s)
{
	return (stream_id)m->gpus * GPU_STREAMS + (stream_id)node * NODE_STREAMS + s;
}
int stream_count(const struct machine *m);
/* "gpu0 compute", "node0 optimizer". Owned by the caller. */
char *stream_name(const struct machine *m, stream_id s);
