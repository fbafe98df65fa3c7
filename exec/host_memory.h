/* The host memory of a run on a real device. */
#pragma once

#include "model/memory.h"
#include "run.h"

/* How fast CPU Adam is where so much of the memory is far, over near memory alone. */
double host_memory_speed(double far_share);
/* Claims (claim.h) what is planned, and a little, where that is much; tells o->note what it found far, and the machine, where calibration had another
 * share of far pages, what that makes of CPU Adam's speed. False: nothing is claimed. */
bool host_memory_claim(const struct memory *planned, struct machine *m, const struct run_options *o);
