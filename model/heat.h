/* A GPU that computes without a pause runs into its power limit and lowers its clock; one that mostly waits does not. Measured tables are those of a
 * hot GPU; gpu.cool_speedup says how much faster a cool one multiplies, gpu.cool_share up to which share of work it stays cool, gpu.heat_ms how fast
 * the share follows (all three measured by exec/warmth.c).
 *
 * A head's products are so large that they meet the power limit from their first moment on: 15.2 ms on an H200 that waits, 15.9 on a hot one, where
 * the mixers of the recomputation that no copy accompanies take 680 and 807 us (medians over the traces of x2-m8-dram-kept and x2-m8-static in
 * tests/h200). It gains
 * gpu.cool_head_share of what they do; what is no product gains nothing. */
#pragma once

#include "autoptr.h"
#include "machine.h"
#include "stage.h"
#include "units.h"

struct heat;

/* NULL: the machine's clock does not depend on it. Owned by the caller. GPUs are hot at first. */
struct heat *heat_new(const struct machine *m);
void heat_free(struct heat *h);
AUTOPTR(heat)

/* How cool it is, on average, while it works from now on for so long: 0 hot, 1 cool. Moments of a GPU are asked for and told in their order. */
double heat_cool(struct heat *h, int gpu, nsec_t now_ns, nsec_t for_ns);
/* Solo duration of a stage of matrix products that starts now and would take cost_ns on a hot GPU. */
nsec_t heat_cost_ns(struct heat *h, int gpu, nsec_t now_ns, nsec_t cost_ns, int kind);
/* A computation or a collective ran. */
void heat_ran(struct heat *h, int gpu, nsec_t start_ns, nsec_t end_ns);
/* The share of its time that it worked until then. */
void heat_worked(struct heat *h, int gpu, nsec_t now_ns, double share);
