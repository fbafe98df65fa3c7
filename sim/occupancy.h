/* HBM in use over time: what each stage takes, leaves and gives back, along the spans of a trace. */
#pragma once

#include "model/memory.h"
#include "traces/trace.h"

/* Appends one counter "HBM bytes" a GPU. */
void occupancy_add(struct trace *trace, const struct memory *memory);
