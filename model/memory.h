/* Bytes per tier and class: what the schedule keeps where, and how HBM moves over time. Classes after ZeRO (arXiv 1910.02054, section 3). */
#pragma once

#include "machine.h"
#include "network.h"
#include "policy.h"
#include "stage.h"

enum memory_tier { TIER_HBM, TIER_PINNED, TIER_DRAM, TIER_SSD, N_TIERS }; /* HBM of the fullest GPU; the others of the fullest node */
enum memory_class {
	CLASS_PARAMETERS,
	CLASS_GRADIENTS,
	CLASS_OPTIMIZER,
	CLASS_ACTIVATIONS,
	CLASS_BUFFERS,
	CLASS_WORKSPACE,
	CLASS_KV_CACHE,
	N_CLASSES
};

const char *memory_tier_name(int tier);
const char *memory_class_name(int class);

/* Peak bytes. Pinned memory is part of the host's DRAM: TIER_DRAM counts pageable bytes only, both share room[TIER_DRAM]. */
struct memory {
	uint64_t bytes[N_TIERS][N_CLASSES];
	uint64_t room[N_TIERS];
	uint64_t checkpoint_bytes;         /* left by each layer's forward until its backward, one micro-batch */
	uint64_t workspace[N_STAGE_KINDS]; /* lives while such a stage runs */
	uint64_t cache_bytes;              /* DRAM over the SSD; 0 without */
	bool all_along;                    /* all of HBM's bytes are taken before the first step: nothing comes or goes */
};

uint64_t memory_total(const struct memory *m, int tier);
/* The first tier whose need is past its room (TIER_DRAM with the pinned bytes), or -1. */
int memory_overflow(const struct memory *m);
/* Bytes asked of a tier as memory_overflow sees it. */
uint64_t memory_need(const struct memory *m, int tier);

/* What a training step keeps: `home` never auto, `expert_parallel` GPUs share one set of experts, `sequences` of `seq_len` a micro-batch,
 * `pinned_share` of a GPU's experts in HBM. Inference keeps besides keys and values of `cached` tokens of `batch` sequences. */
struct memory_case {
	int home, expert_parallel, split, sequences, seq_len; /* tensor groups and ZeRO's stage are the policy's */
	double pinned_share;
	int batch, cached;
	int together; /* micro-batches that are under way at once; 0: one */
	int shadowed; /* experts a layer copied to every GPU until their backward */
	int microbatches;
};
void memory_plan(const struct network *n, const struct machine *m, const struct policy *p, const struct memory_case *k, struct memory *out);

/* What inference keeps: parameters without gradients and optimizer, no checkpoints, keys and values of all tokens so far. */
void memory_plan_inference(const struct network *n, const struct machine *m, const struct policy *p, const struct memory_case *k, struct memory *out);

/* Slots of uploaded experts in a GPU's HBM. Those counted in layers are never more than the GPU has experts that are not pinned. */
int memory_slots(const struct network *n, const struct machine *m, const struct policy *p, const struct memory_case *k);

/* Bytes that each token of a sequence leaves in a GPU's HBM: its keys and values in all attention layers, or its tensor group's part of them; and
 * each sequence, whatever its length: the state of Mamba layers. */
uint64_t memory_kv_bytes(const struct network *n, const struct machine *m, const struct policy *p);
uint64_t memory_state_bytes(const struct network *n, const struct machine *m, const struct policy *p);

/* What a GPU holds of the parameters in HBM, and over how many GPUs ZeRO cuts them into parts. */
struct memory_share {
	uint64_t params;
	int copies;
};
struct memory_share memory_dense_share(const struct network *n, const struct machine *m, const struct policy *p);
/* Of the experts of one layer that are at home in HBM. */
struct memory_share memory_expert_share(const struct network *n, const struct machine *m, const struct policy *p, const struct layer *l,
                                        int expert_parallel, int split);
/* Parameters that the GPU's Adam casts gradients of at a time, of `params` that it updates. */
uint64_t memory_cast(const struct policy *p, uint64_t params);

/* Experts of one layer that a GPU keeps in HBM. */
int memory_pinned_experts(double share, int experts, int gpus);

/* The least bytes in DRAM (pinned and pageable) of one expert of P parameters, and its blocks in the cache over the SSD: parameters with their
 * gradient, and the optimizer's state. Pinned blocks are rounded as the machine's allocator does. */
struct expert_bytes {
	uint64_t pinned, pageable, parameter_block, state_block;
	uint64_t gradient; /* of the parameter block */
};
struct expert_bytes memory_expert(const struct network *n, const struct machine *m, const struct policy *p, const struct layer *l);

/* The same of inference: parameters only. */
struct expert_bytes memory_expert_inference(const struct network *n, const struct machine *m, const struct layer *l);

/* Experts of a layer that the fullest node keeps: its share, or all of them where every node computes every expert. */
uint64_t memory_node_experts(const struct machine *m, const struct memory_case *k, const struct layer *l);

/* Bytes of HBM that are taken all the time; and how a stage changes the HBM of its GPU: bytes while it runs, and bytes its end leaves behind (+) or
 * gives back (-). */
struct memory_change {
	uint64_t while_running;
	int64_t at_end;
};
uint64_t memory_always(const struct memory *m);
struct memory_change memory_of_stage(const struct memory *m, const struct stage *s);

#define SSD_STATE_BYTES 12 /* fp32 master and both moments; the half-precision copy is cast from the master on the way up */
