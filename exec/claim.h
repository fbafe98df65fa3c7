/* Host memory that the process has claimed for what it works on: the nearest of what the system has left, so that CPU Adam is as fast in one run as
 * in the next.
 *
 * A virtual machine may have part of its memory from the other socket of its host and see one node all the same, so that numa(7) has nothing to
 * choose from. What tells is how long a core waits for a line: 120 to 150 ns for most, 190 to 230 for the rest, from which 14 threads read and write
 * 83 GB/s instead of 117 (one H200 with 16 cores, 2026-11-29). And what it frees, it may report to its host for minutes, a GiB every other second,
 * which stalls its cores 40 ms each time (Linux' free page reporting; a machine of two cores, same day: 30 GB/s instead of 35; that of the H200
 * reported nothing). So a claim is taken once, and its pages go from block to block without being freed; those that no block has are the system's
 * when it needs them, and not before (MADV_FREE). */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct claim_found {
	uint64_t near_bytes, far_bytes; /* of what was looked at; far: FAR_FROM times as slow as the middle of as much of the nearest as is needed */
	double near_ns, far_ns;         /* a line takes, those middles; means over the cores */
};
#define FAR_FROM 1.3

/* So much beside what is needed is enough to choose from, and looked at in some seconds. */
#define CLAIM_BESIDES ((uint64_t)64 << 30)
/* Claims what is needed and `besides` more, so that there is something to choose from, or what the system has left. False: the process has a claim
 * already, there is no more than is needed, the system knows its nodes and places memory itself, or a core cannot be made to wait for its memory.
 * Touches every page. */
bool claim_open(uint64_t needed, uint64_t besides, struct claim_found *found);
void claim_close(void); /* nothing when there is none; as long as blocks are out, it stays */

/* A block from the start of a huge page, near where such pages follow each other; whatever was in it before. NULL: no claim has one. Any thread. */
void *claim_take(size_t bytes);
bool claim_give(void *block);     /* false: it is not of the claim */
uint64_t claim_spare_bytes(void); /* that no block has; of them the process holds what the system has not needed yet */

/* far[i] of ns[i], i < n, of which the nearest `needed` < n are needed. */
void claim_sort(const float *ns, size_t n, size_t needed, bool *far, struct claim_found *found);
