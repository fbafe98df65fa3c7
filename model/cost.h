/* Solo durations: what each stage takes when nothing else runs. The machine's measured tables where it has them; otherwise a roofline over GEMM
 * tiles, HBM passes and link rates, with the machine's efficiencies. */
#pragma once

#include "autoptr.h"
#include "collective.h"
#include "machine.h"
#include "network.h"
#include "policy.h"
#include "stage.h"

struct cost;

/* Constants of one scenario; `adam_threads` CPU threads a node, 0: all the machine's. Borrows its arguments. Owned by the caller. */
struct cost *cost_new(const struct network *n, const struct machine *m, const struct policy *p, int seq_len, int adam_threads);
void cost_free(struct cost *c);
AUTOPTR(cost)

/* A stage of the compute stream on `tokens` tokens of one GPU. The backward pass of STAGE_EXPERT includes its recomputation when the policy
 * checkpoints. *n_kernels receives the launches it needs. */
nsec_t cost_compute(struct cost *c, int kind, int pass, const struct layer *l, uint32_t tokens, uint32_t *n_kernels);

/* Products of matrices in an expert's pass, one behind the other. */
int cost_expert_products(const struct cost *c, int pass);

/* Experts of one GPU in one launch, each with its tokens (experts), none of them 0 (padded: each counts as the busiest). The roofline takes them as
 * equal; a measured machine adds up what each takes in company. */
nsec_t cost_grouped(struct cost *c, int pass, const struct layer *l, const uint32_t *tokens, int experts, bool padded, uint32_t *n_kernels);

/* The dense mask of GShard-style dispatch (STAGE_PERMUTE) or combination (STAGE_COMBINE): tokens x slots, experts x capacity of them. */
nsec_t cost_mask(struct cost *c, int kind, int pass, const struct layer *l, uint32_t tokens, uint64_t slots, uint32_t *n_kernels);

/* Inference. The mixer of a layer on one new token of each sequence, which looks at `cached` tokens (the new one included); and the head that draws
 * the next token of each sequence. */
nsec_t cost_decode_mixer(const struct cost *c, const struct layer *l, uint32_t sequences, int cached, uint32_t *n_kernels);
nsec_t cost_next_token(const struct cost *c, uint32_t sequences, uint32_t *n_kernels);

nsec_t cost_upload(const struct cost *c, uint64_t bytes);
nsec_t cost_download(const struct cost *c, uint64_t bytes);
nsec_t cost_ssd(const struct cost *c, bool write, uint64_t bytes);
/* All threads of a node on one expert; without a gradient, as of one that no token came to, there is less to read: cost_adam_share of the bytes. */
nsec_t cost_adam(const struct cost *c, uint64_t params, bool gradient);
double cost_adam_share(const struct cost *c, bool gradient);
nsec_t cost_accumulate(const struct cost *c, uint64_t params); /* adds a gradient that came down to the one in DRAM */
nsec_t cost_adam_gpu(const struct cost *c, uint64_t params, uint64_t tensors, uint32_t *n_kernels); /* casts as the policy says */
nsec_t cost_accumulate_gpu(const struct cost *c, uint64_t params);

/* What the costs asked for so far stand on, ORed over them: 0 where none was asked, or the machine is not measured. */
enum cost_basis { COST_MEASURED = 1, COST_BELOW = 2, COST_ABOVE = 4, COST_ROOFLINE = 8 };
int cost_basis(const struct cost *c, int kind, int pass);

/* A collective of the GPUs of `ranks` alone: kind STAGE_ALL_REDUCE, STAGE_REDUCE_SCATTER, STAGE_ALL_GATHER
 * or STAGE_COUNTS with the full vector's bytes, or STAGE_ALL_TO_ALL of equal parts with what one member has in all. */
nsec_t cost_collective(const struct cost *c, int kind, const struct ranks *ranks, uint64_t bytes);

/* So much longer takes a reduction of gradients that begins together with a layer's backward on so many tokens; 0 where that was not measured. */
nsec_t cost_under(const struct cost *c, uint32_t tokens);

/* The same over the machine's first GPUs. */
nsec_t cost_all_reduce(const struct cost *c, uint64_t bytes, int gpus);
nsec_t cost_all_gather(const struct cost *c, uint64_t bytes, int gpus); /* and reduce-scatter */
nsec_t cost_counts(const struct cost *c, uint64_t bytes, int gpus);     /* the small all-gather of the gates' counts */

/* All-to-all-v, in bytes of the busiest: what one GPU sends or receives inside its node, one adapter (one node, where its adapters are a pool) and
 * the uplinks of one leaf switch; hierarchical: what one GPU has in all, sends or receives when its node gathers, then again adapter and leaf switch.
 * moved_bytes: of the rows that a GPU copies within its memory: those that lie apart at their sender or receiver, and those that stay. */
struct exchange {
	uint64_t intra_bytes, inter_bytes, leaf_bytes, moved_bytes;
	uint64_t whole_bytes, gather_bytes, rail_bytes, rail_leaf_bytes;
	bool moves; /* moved_bytes is known: it is our executor's exchange */
};
/* Of one set; ALGORITHM_PAIRWISE, or one of the halves ALGORITHM_GATHER and ALGORITHM_RAIL. */
nsec_t cost_exchange(const struct cost *c, const struct exchange *x, const struct ranks *set, int algorithm);

/* Bytes of HBM a stage needs beside its inputs and outputs while it runs, on `tokens` tokens. */
uint64_t cost_workspace(const struct cost *c, int kind, const struct layer *l, uint32_t tokens);
