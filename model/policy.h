/* A policy: one row of knobs, each with one meaning whatever the row. A training system is an .ini of them. */
#pragma once

#include "autoptr.h"

#include <glib.h>
#include <stdbool.h>

enum expert_home { HOME_HBM, HOME_DRAM, HOME_SSD, HOME_AUTO }; /* where idle experts live; auto: the cheapest that fits */
enum placement_rule { PLACEMENT_FIXED, PLACEMENT_LPT, PLACEMENT_STICKY };
enum dispatch {
	DISPATCH_EXACT,
	DISPATCH_PADDED,
	DISPATCH_MASK
}; /* exact token counts; zero padding to the capacity; padding and a dense tokens x experts x capacity mask */
enum expert_compute { EXPERTS_SEQUENTIAL, EXPERTS_GROUPED };
enum rows_kept { ROWS_TOGETHER, ROWS_BY_SOURCE };      /* an expert's rows as one matrix, or one for each GPU that sent some */
enum reductions { REDUCTIONS_SHARED, REDUCTIONS_OWN }; /* data-parallel copies' collectives: in line with all others, or beside them */
enum upload_scope { UPLOAD_LAYER, UPLOAD_NEXT_LAYER };
enum optimizer {
	OPTIMIZER_GPU,
	OPTIMIZER_CPU_STEP,
	OPTIMIZER_CPU_LAYER,
	OPTIMIZER_CPU_EXPERT
}; /* where Adam of the experts runs, and when it may start */
enum all_to_all {
	ALL_TO_ALL_LINEAR,
	ALL_TO_ALL_HIERARCHICAL,
	ALL_TO_ALL_AUTO,
	ALL_TO_ALL_DROPPED
}; /* hierarchical: where each set fills its nodes; auto: the faster of the two before; dropped: linear, duplicates in a tensor group sent once and
      gathered there (DeepSpeed-TED) */
enum checkpoint {
	CHECKPOINT_NONE,
	CHECKPOINT_FULL,
	CHECKPOINT_KEEP_COLLECTIVES,
	CHECKPOINT_LAYER
}; /* full: what the backward needs, once more; keep-collectives: that without its collectives; layer: the whole forward, as a framework runs it */
enum tensor_experts { TENSOR_EXPERTS_CUT, TENSOR_EXPERTS_WHOLE };
enum embedding { EMBEDDING_COPIED, EMBEDDING_CUT };
enum gradient_cast { CAST_NONE, CAST_WHOLE, CAST_TILED };
enum microbatch_order { ORDER_HORIZONTAL, ORDER_VERTICAL }; /* vertical: all micro-batches of a layer before the next */
enum dense_optimizer { DENSE_OPTIMIZER_GPU, DENSE_OPTIMIZER_CPU };
/* Fewer experts than GPUs: replicate them (EP+DP) or cut them (EP+MP), for the run; adaptive: any mixture of both, or DP, for each load (slices.c) */
enum expert_split { SPLIT_AUTO, SPLIT_DATA, SPLIT_MODEL, SPLIT_ADAPTIVE };
enum exchanged { EXCHANGE_TOKENS, EXCHANGE_EXPERTS, EXCHANGE_AUTO }; /* what travels between GPUs to meet the other */
/* Updates of experts as their gradients come; or no more of them than the backward hides, and the others once it has ended, layer by layer as the
 * next forward asks for them (updates.c) */
enum update_order { UPDATE_ARRIVAL, UPDATE_NEXT_FORWARD };
enum ssd_cache { CACHE_LRU, CACHE_LFU_DECAY, CACHE_BELADY };

struct policy {
	char *name;
	int expert_home, placement, dispatch, expert_compute, upload_scope, optimizer, all_to_all, checkpoint, expert_split, ssd_cache;
	int tensor_experts, gradient_cast, dense_optimizer, exchange, microbatch_order, embedding;
	int expert_rows, reduction_stream, update_order;
	bool fused_communication;            /* one collective a layer for its parameters, and for its gradients; otherwise one a tensor */
	int gradient_bucket_mib;             /* gradients are reduced by so many MiB, whatever layers they are of; 0: layer by layer */
	double cache_threshold, cache_decay; /* of ssd_cache = lfu-decay, see cache_tune */
	int cache_decay_steps;
	double pinned_share;     /* busiest experts of the last step kept in HBM, 0..1 */
	double capacity_factor;  /* 0: dropless (padded: to the largest load); > 0: capacity over the mean, overflow dropped */
	int upload_ahead;        /* expert slots in HBM beyond the one in use */
	int upload_ahead_layers; /* the same in layers of a GPU's experts: slots for those beyond the layer in use; the larger of the two counts */
	int pipeline_degree;     /* chunks of tokens, all-to-all of one under the experts of another; 0: auto */
	int microbatch;          /* sequences a micro-batch; 0: auto, the largest that fits */
	int expert_parallel;     /* GPUs that share one set of experts; 0: derived; 1: every GPU computes every expert on its own tokens */
	int tensor_parallel;     /* GPUs that cut every matrix among them, side by side; 0: derived from data_parallel */
	int data_parallel;       /* copies of the non-expert parameters; 0: derived from tensor_parallel */
	int zero_stage;          /* what data-parallel copies keep one part each of: 1 optimizer state, 2 and gradients, 3 and parameters */
	int shadowed_experts;    /* busiest experts of a micro-batch, at most, that every GPU computes on its own tokens, where it is faster */
	int gradient_bytes;      /* of an expert gradient element on its way down, 2 or 4 */
	int adam_threads;        /* CPU threads of one node's optimizer; 0: the machine's; under esmoe run machine_spare_adam_threads */
};

/* Reads a preset or a file; `overrides` as in ini_read. NULL on error. Owned by the caller. */
struct policy *policy_load(const char *source, const char *const *overrides, GError **error) G_GNUC_WARN_UNUSED_RESULT;
void policy_free(struct policy *policy);
AUTOPTR(policy)

/* GPUs of one set of experts, and of one tensor group, on a machine of `gpus`: at most all of them. */
int policy_expert_parallel(const struct policy *policy, int gpus);
int policy_tensor_parallel(const struct policy *policy, int gpus);

/* The policy as an .ini that policy_load takes back. Owned by the caller. */
char *policy_ini(const struct policy *policy);

/* The knobs in their order, from 0: each one's name (NULL past the last), and a policy's value as an .ini has it. The value is owned by the caller.
 */
const char *policy_knob(int i);
char *policy_knob_value(const struct policy *policy, int i);
