/* A cache of equally or unequally sized blocks named by dense ids: which block leaves when another comes. DRAM over SSD. */
#pragma once

#include "autoptr.h"

#include <stdbool.h>
#include <stdint.h>

struct cache;
enum { CACHE_NONE = -1 };

/* `rule` is an enum ssd_cache (policy.h); `blocks` ids 0..blocks-1; room in bytes. Belady needs cache_future first. Owned by the caller. */
struct cache *cache_new(int rule, int blocks, uint64_t room_bytes);
void cache_free(struct cache *cache);
AUTOPTR(cache)

/* For LFU, ignored by the others (MoESys, arXiv 2205.10034): hits are multiplied by `decay` every `steps` steps, which cache_step
 * counts, or, with 0, every as many touches as there are blocks; a block with `threshold` hits or more leaves for nobody, so that a newcomer that
 * finds no room is not kept. Without it: 0.5, 0, and no threshold (0). */
struct cache_decay {
	double decay, threshold;
	int steps;
};
void cache_tune(struct cache *cache, const struct cache_decay *decay);
void cache_step(struct cache *cache);

/* For Belady, ignored by the others: the ids in the order they will be asked for from now on, over and over. Copied. What is held stays and is
 * weighed anew. Touches in a slightly other order are fine: the k-th touch of a block takes its k-th place. */
void cache_future(struct cache *cache, const int *ids, int n);

bool cache_holds(const struct cache *cache, int id);

/* Touches block `id` of `bytes`, always the same for one id: true if it was there. Otherwise brings it in and fills evicted (room for `blocks`) with
 * the ids that had to leave, *n_evicted of them, in order. A block larger than the room is never kept and moves nobody. */
bool cache_touch(struct cache *cache, int id, uint64_t bytes, int *evicted, int *n_evicted);
uint64_t cache_used_bytes(const struct cache *cache);
