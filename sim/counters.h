/* GB/s over time: of each GPU's PCIe directions and of each node's DRAM. */
#pragma once

#include "traces/trace.h"

struct counters;

struct counters *counters_new(int gpus, int nodes);
void counters_free(struct counters *counters);

static inline int counter_of_pcie(int gpu, bool down)
{
	return 2 * gpu + down;
}
static inline int counter_of_dram(int gpus, int node)
{
	return 2 * gpus + node;
}

/* Adds to a counter's value from `ns` on; ns never falls. */
void counters_add(struct counters *counters, int counter, nsec_t ns, double gbps);

/* Appends copies to the trace. */
void counters_copy(const struct counters *counters, struct trace *trace);
