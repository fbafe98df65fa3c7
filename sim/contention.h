/* Who gets the host's DRAM, as measured: rates of Adam threads and copies by what runs together on one node. */
#pragma once

#include "model/machine.h"

/* GB/s of DRAM traffic: of all Adam threads together, of each upload, of each download. */
struct dram_rates {
	double adam, up, down;
};

struct contention_rule;

/* NULL when the machine has no measured table. Owned by the caller; the machine is not kept. */
struct contention_rule *contention_new(const struct machine *m);
void contention_free(struct contention_rule *contention);

/* Rates with `threads` Adam threads (0: no Adam), `up` uploads and `down` downloads running on one node, each copy on a GPU of its own. More users
 * never speed anyone up, and more threads never a copy. Members of classes that do not run are meaningless. */
struct dram_rates contention_rates(const struct contention_rule *contention, double threads, int up, int down);
