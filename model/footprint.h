/* What our own executor takes (exec/): software.runtime = esmoe. Everything is allocated once, before the first step, so what it takes is a sum of
 * shapes, and HBM does not change while it runs. */
#pragma once

#include "footprint_blocks.h"
#include "memory.h"

/* Bytes of an arena that GEMMs take for themselves. `together`: experts of one grouped stage, 1 where they run one by one. */
uint64_t footprint_gemm_bytes(int element_bytes, int together);

/* Experts of the widest layer that one GPU computes in one stage. */
int footprint_together(const struct network *n, const struct policy *p, int home, int expert_parallel);

/* One expert of the layer: its places in DRAM, and its blocks in the cache over the SSD, which counts frames. */
struct expert_bytes footprint_expert(const struct network *n, const struct machine *m, const struct policy *p, const struct layer *l);

/* Frames of the fullest node over its SSD: bytes of one; how many hold all blocks of all experts; and how many, at most, are taken by blocks that
 * left DRAM, in launch order, while their gradient waits for its update. */
struct footprint_frames {
	uint64_t bytes, all, behind;
};
struct footprint_frames footprint_frames(const struct network *n, const struct machine *m, const struct policy *p, const struct memory_case *k);
/* So many are taken, at most, by blocks whose bytes (memory_expert) the schedule counts up to cache_bytes. */
uint64_t footprint_cached_frames(const struct network *n, const struct machine *m, const struct policy *p, uint64_t cache_bytes);

/* Whether the executor can run this at all; what it cannot is planned as a framework's. */
bool footprint_known(const struct network *n, const struct machine *m, const struct policy *p, const struct memory_case *k);

/* All tiers of a training step, for a case that is known; rooms are filled already. */
void footprint_plan(const struct network *n, const struct machine *m, const struct policy *p, const struct memory_case *k, struct memory *out);
