/* A cache of equally or unequally sized blocks named by dense ids: which block leaves when another comes. DRAM over SSD. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

struct cache;
enum { CACHE_NONE = -1 };

/* `rule` is an enum ssd_cache (policy.h); `blocks` ids 0..blocks-1; room in bytes. Belady needs cache_future first. Owned by the caller. */
struct cache *cache_new(int rule, int blocks, uint64_t room_bytes);
void cache_free(struct cache *cache);

/* For Belady: the ids in the order they will be asked for, cyclic. Copied. */
void cache_future(struct cache *cache, const int *ids, int n);

bool cache_holds(const struct cache *cache, int id);

/* Touches block `id` of `bytes`: true if it was there. Otherwise brings it in and appends to evicted (room for `blocks`) the ids that had to leave, *n_evicted of
 * them, in order. A block larger than the room is never kept. */
bool cache_touch(struct cache *cache, int id, uint64_t bytes, int *evicted, int *n_evicted);
uint64_t cache_used_bytes(const struct cache *cache);
