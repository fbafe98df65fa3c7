/* A run's host memory: what of it there is, and what CPU Adam makes of it. */
#pragma once

#include "model/memory.h"
#include "run.h"

/* Claims (claim.h) what is planned, and a little, where that is much; tells o->note what it found far. False: nothing is claimed. */
bool host_memory_claim(const struct memory *planned, const struct run_options *o);

/* Measures the pace, and tells o->note where the device is a real one. */
void host_memory_pace(const struct engine *engine, const struct run_options *o, bool real, struct adam_pace *out);
