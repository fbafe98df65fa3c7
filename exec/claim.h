/* Host memory that the process has claimed for what it works on, so that CPU Adam is as fast in one run as in the next.
 *
 * A virtual machine may have part of its memory from the other socket of its host and see one node all the same, so that numa(7) has nothing to
 * choose from. What tells is how long a core waits for a line: 115 to 150 ns for most, 190 to 240 for the rest. Each part has channels of its own:
 * CPU Adam on 14 threads updates 4.4 billion parameters/s in near pages alone, 3.2 in far ones, and 5.3 to 5.8 where three to four of eight pages are
 * far (one H200 with 16 cores, 2026-11-29). Which pages a block has was chance, and Adam's speed with it. So near and far pages are mixed, in each
 * block alike.
 *
 * And what a process frees, the system may report to its host for minutes, a GiB every other second, which stalls its cores 40 ms each time (Linux'
 * free page reporting; a machine of two cores, same day: 30 GB/s instead of 35; that of the H200 reported nothing). So a claim is taken once, and its
 * pages go from block to block without being freed; those that no block has are the system's when it needs them, and not before (MADV_FREE). */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct claim_found {
	uint64_t near_bytes, far_bytes; /* of what was looked at; far: claim_far_from times as slow as the nearest */
	double near_ns, far_ns;         /* a line takes, middles of means over the cores */
	double near_gbps, far_gbps;     /* that all cores read and write; 0: nothing is far */
	double far_share;               /* of far pages in what is needed */
	bool mixed;                     /* they are, in each block alike; otherwise it has what it happens to have */
};
/* 1.3; less makes two kinds of memory that is alike. */
extern double claim_far_from;

/* Far pages, of those that are needed, with which both sockets are done at the same time: 0.36 to 0.42 on the machines that were measured. */
#define CLAIM_FAR_ENOUGH 0.4
/* So much is looked at in some seconds. */
#define CLAIM_BESIDES ((uint64_t)64 << 30)
/* Claims what is needed and `besides` more, so that there is something to choose from, twice that and three times where few of them are far, or what
 * the system has left. False: the process has a claim
 * already, there is no more than is needed, the system knows its nodes and places memory itself, or a core cannot be made to wait for its memory.
 * Touches every page. */
bool claim_open(uint64_t needed, uint64_t besides, struct claim_found *found);
/* "host memory: ...", how much is near and how far the rest is. Owned by the caller. */
char *claim_describe(const struct claim_found *found);
void claim_close(void); /* nothing when there is none; as long as blocks are out, it stays */

/* A block from the start of a huge page, of what is needed as long as that has room; whatever was in it before. NULL: no claim has one. Any thread.
 */
void *claim_take(size_t bytes);
bool claim_give(void *block);     /* false: it is not of the claim */
uint64_t claim_spare_bytes(void); /* that no block has; of them the process holds what the system has not needed yet */

/* far[i] of ns[i], i < n. */
void claim_sort(const float *ns, size_t n, bool *far, struct claim_found *found);
/* Which `needed` of n pages, and in which order: a share of far ones, in turns of `unit` pages; when one kind is used up, the other. */
void claim_order(const bool *far, size_t n, size_t needed, double share, size_t unit, size_t *order);
