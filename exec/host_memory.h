/* A run's host memory: which it gets, and what CPU Adam makes of it. */
#pragma once

#include "far.h"
#include "model/memory.h"
#include "run.h"

/* Holds what is far while the run takes as much as is planned, where that is much, on a real device; tells o->note what it found. NULL: nothing. */
struct far *host_memory_near(const struct memory *planned, const struct run_options *o);

/* Measures the pace, and tells o->note where the device is a real one. */
void host_memory_pace(const struct engine *engine, const struct run_options *o, bool real, struct adam_pace *out);
