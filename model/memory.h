/* Bytes per tier and class: what the schedule keeps where, whether it fits, and how it moves over time. Classes after ZeRO (arXiv 1910.02054, section 3). */
#pragma once

#include "machine.h"
#include "network.h"
#include "policy.h"
#include "stage.h"

enum memory_tier { TIER_HBM, TIER_PINNED, TIER_DRAM, TIER_SSD, N_TIERS }; /* HBM of the fullest GPU; the others of the fullest node */
enum memory_class { CLASS_PARAMETERS, CLASS_GRADIENTS, CLASS_OPTIMIZER, CLASS_ACTIVATIONS, CLASS_BUFFERS, CLASS_WORKSPACE, N_CLASSES };

const char *memory_tier_name(int tier);
const char *memory_class_name(int class);

/* Peak bytes of a plan. Pinned memory is part of the host's DRAM: TIER_DRAM counts pageable bytes only, both share room[TIER_DRAM]. */
struct memory {
	uint64_t bytes[N_TIERS][N_CLASSES];
	uint64_t room[N_TIERS];
	/* what moves: */
	uint64_t checkpoint_bytes;             /* kept from each layer's forward to its backward, one micro-batch */
	uint64_t workspace[N_STAGE_KINDS];     /* lives while such a stage runs */
	uint64_t slot_bytes;                   /* one expert slot in HBM */
};

uint64_t memory_total(const struct memory *m, int tier);

/* How a stage changes the HBM of its GPU: bytes taken when it starts (freed when it ends: workspace) and bytes that its end leaves behind (+ or -). */
struct memory_change { uint64_t while_running; int64_t at_end; };
struct memory_change memory_of_stage(const struct memory *m, const struct network *n, const struct stage *s);
