/* The host memory of a run. */
#pragma once

#include "adam_speed.h"
#include "model/memory.h"
#include "run.h"

/* Claims (claim.h) what is planned and what host_memory_speed takes, and a little, where that is much; tells o->note what it found far. False:
 * nothing is claimed. */
bool host_memory_claim(const struct memory *planned, const struct device_info *info, const struct run_options *o);
/* How fast CPU Adam is now, on memory of this process (adam_speed.h), into adam_share, where the machine says how fast it was alone in calibration;
 * the slowest and the fastest of that stay where they were. Tells o->note where it is another speed. NULL: it was not looked at. Owned by the caller.
 */
struct adam_speed *host_memory_speed(const struct device_info *info, struct machine *m, const struct run_options *o);
/* The same again, while nothing else runs: billion parameters/s. */
double host_memory_again(const struct adam_speed *speed);
/* What it was over the time between two looks, the middle of both, into adam_pace. */
void host_memory_between(struct machine *m, double before, double after);
