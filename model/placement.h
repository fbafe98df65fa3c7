/* Which GPU computes which expert of a layer. */
#pragma once

#include "units.h"

#include <stdint.h>

/* Contiguous blocks: expert e on GPU e * gpus / experts, for any counts. Fills gpu (E). */
void placement_fixed(int experts, int gpus, int *gpu);

/* Longest processing time first (ES-MoE, section 4.2; Graham 1969): sorts by time, gives each to the least loaded GPU; ties by index. `load_ns` (G)
 * holds the load already there (pinned experts) and ends with the final loads; experts with gpu[e] >= 0 on entry are already placed and stay. */
void placement_lpt(int experts, const nsec_t *time_ns, int gpus, nsec_t *load_ns, int *gpu);

/* Sticky: like LPT, but each expert stays on `last[e]` (-1: none) unless that GPU's load would then pass (1 + slack) times the mean; on a GPU with no
 * load yet it always stays. Those that stay are settled first, longest first. */
void placement_sticky(int experts, const nsec_t *time_ns, const int *last, double slack, int gpus, nsec_t *load_ns, int *gpu);

/* Marks in pinned (E, 0 or 1) the `n` busiest experts by `tokens` (E), ties by index. */
void placement_busiest(int experts, const uint32_t *tokens, int n, uint8_t *pinned);
