/* Memory that is far from the cores, kept out of the way while a run takes what it works on.
 *
 * A virtual machine may have part of its memory from the other socket of its host, and sees one node all the same (Linux' numa(7) has nothing to
 * choose from then). What tells is how long a core waits for a line: measured, 2026-11-29, one H200 with 16 cores, 120 to 150 ns for one part of the
 * memory, 190 to 220 for the other, from which 14 threads read and write 83 GB/s instead of 117. */
#pragma once

#include "model/autoptr.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct far;

struct far_found {
	uint64_t kept_bytes, far_bytes; /* looked at: left to be allocated, and held */
	double kept_ns, far_ns; /* a line takes: the middle of as many of the nearest as are needed, and of those held; means over the cores */
};

/* Looks at what the system has left, up to `besides` more than `needed`, and holds what is far, but for `needed` and a little, until it is freed:
 * what is allocated meanwhile is the rest. NULL: nothing is held, since all of it is alike, there is no more than `needed`, the system knows its
 * nodes and places memory itself, or a core cannot be made to wait for its memory. Touches every page. */
struct far *far_new(uint64_t needed, uint64_t besides, struct far_found *found);
void far_free(struct far *far);
AUTOPTR(far)

/* far[i] of ns[i], i < n: the page is not among the `near` nearest, and FAR_FROM times as slow as the middle of those. False: none is. */
#define FAR_FROM 1.3
bool far_choose(const float *ns, size_t n, size_t near, bool *far, struct far_found *found);
