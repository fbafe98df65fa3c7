/* A GPU that computes without a pause runs into its power limit and lowers its clock; one that mostly waits does not. Measured tables are those of a
 * busy GPU (exec/calibrate.c); gpu.cool_speedup says how much faster a cool one is. */
#pragma once

#include "model/autoptr.h"
#include "model/machine.h"
#include "model/units.h"

struct heat;

/* NULL: the machine's clock does not depend on it. Owned by the caller. GPUs are hot at first. */
struct heat *heat_new(const struct machine *m);
void heat_free(struct heat *h);
AUTOPTR(heat)

/* Solo duration of a stage of matrix products that starts now and would take cost_ns on a hot GPU. */
nsec_t heat_cost_ns(struct heat *h, int gpu, nsec_t now_ns, nsec_t cost_ns);
/* A stage of the compute stream ran. */
void heat_ran(struct heat *h, int gpu, nsec_t start_ns, nsec_t end_ns);
