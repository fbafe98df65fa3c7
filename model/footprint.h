/* What our own executor takes (exec/): software.runtime = esmoe. Everything is allocated once, before the first step, so what it takes is a sum of
 * shapes, and HBM does not change while it runs. */
#pragma once

#include "footprint_blocks.h"
#include "memory.h"

/* Bytes of an arena that GEMMs take for themselves. `together`: experts of one grouped stage, 1 where they run one by one. */
uint64_t footprint_gemm_bytes(int element_bytes, int together);

/* Experts of the widest layer that one GPU computes in one stage. */
int footprint_together(const struct network *n, const struct policy *p, int home, int expert_parallel);

/* One expert of the layer: its places in DRAM, and its blocks in the cache over the SSD, which counts elements. */
struct expert_bytes footprint_expert(const struct network *n, const struct machine *m, const struct policy *p, const struct layer *l);

/* Whether the executor can run this at all; what it cannot is planned as a framework's. */
bool footprint_known(const struct network *n, const struct machine *m, const struct policy *p, const struct memory_case *k);

/* All tiers of a training step, for a case that is known; rooms are filled already. */
void footprint_plan(const struct network *n, const struct machine *m, const struct policy *p, const struct memory_case *k, struct memory *out);
