/* One indexed heap for all rules: what differs is only the worth of a block at its touch, and the block of least worth leaves first, equal worths in
 * the order of their last touch.
 *
 *     LRU     0: the touch alone decides
 *     LFU     hits, made less by a factor once in a while: instead of all becoming less a new one counts more, which leaves the order as it is
 *
 *     Belady  minus the position of the next use: the block's k-th touch stands for its k-th place in the future, so that a run that shuffles the
 *             blocks of a layer a little stays in step with it */
#include "cache.h"

#include "policy.h"

#include <glib.h>
#include <math.h>

struct worth {
	double value;
	uint64_t touch; /* number of the last touch */
};

struct block {
	struct worth worth;
	double hits;    /* LFU, in units of the first period */
	uint64_t bytes; /* while held */
	uint64_t uses;  /* Belady: touches since the future was set */
	int at;         /* in the heap, or CACHE_NONE */
};

struct cache {
	double (*worth)(struct cache *cache, int id);
	int n_blocks, n_held;
	struct block *block; /* (n_blocks) */
	int *heap;           /* (n_blocks): ids, the least worth first; n_held in use */
	uint64_t room_bytes, used_bytes, touches;
	double hit; /* LFU: what a hit counts in this period */
	struct cache_decay decay;
	int steps;     /* since the last decay */
	int n_future;  /* Belady */
	int *places;   /* (n_future): positions in the future, those of block 0, then of block 1, ... */
	int *place_of; /* (n_blocks + 1): where a block's positions start */
};

static bool worth_less(const struct cache *cache, int a, int b)
{
	const struct worth *x = &cache->block[a].worth, *y = &cache->block[b].worth;
	return x->value < y->value || (x->value == y->value && x->touch < y->touch);
}

static void heap_put(struct cache *cache, int at, int id)
{
	cache->heap[at] = id;
	cache->block[id].at = at;
}

static void heap_sink(struct cache *cache, int at, int id)
{
	for (int child = 2 * at + 1; child < cache->n_held; child = 2 * at + 1) {
		if (child + 1 < cache->n_held && worth_less(cache, cache->heap[child + 1], cache->heap[child]))
			child++;
		if (!worth_less(cache, cache->heap[child], id))
			break;
		heap_put(cache, at, cache->heap[child]);
		at = child;
	}
	heap_put(cache, at, id);
}

/* Moves id, which may stand at `at`, up or down to where its worth belongs. */
static void heap_settle(struct cache *cache, int at, int id)
{
	while (at > 0 && worth_less(cache, id, cache->heap[(at - 1) / 2])) {
		heap_put(cache, at, cache->heap[(at - 1) / 2]);
		at = (at - 1) / 2;
	}
	heap_sink(cache, at, id);
}

static void heap_rebuild(struct cache *cache)
{
	for (int at = cache->n_held - 1; at >= 0; at--)
		heap_sink(cache, at, cache->heap[at]);
}

static double lru_worth(struct cache *cache, int id)
{
	return 0;
}

static void decay(struct cache *cache)
{
	cache->hit /= cache->decay.decay;
	if (cache->hit > 0x1p500) {
		/* Exact; only what was forgotten long ago ends in a tie at 0. */
		for (int i = 0; i < cache->n_blocks; i++) {
			cache->block[i].hits *= 0x1p-500;
			cache->block[i].worth.value *= 0x1p-500;
		}
		cache->hit *= 0x1p-500;
		heap_rebuild(cache);
	}
}

static double lfu_worth(struct cache *cache, int id)
{
	if (!cache->decay.steps && cache->touches % (uint64_t)cache->n_blocks == 0)
		decay(cache);
	return cache->block[id].hits += cache->hit;
}

/* The position of the use after the block's first `uses`, counted on through the repetitions of the future. */
static double next_use(const struct cache *cache, int id)
{
	const uint64_t n = (uint64_t)(cache->place_of[id + 1] - cache->place_of[id]), uses = cache->block[id].uses;
	return n == 0 ? INFINITY : (double)(uses / n * (uint64_t)cache->n_future + (uint64_t)cache->places[(uint64_t)cache->place_of[id] + uses % n]);
}

static double belady_worth(struct cache *cache, int id)
{
	g_assert(cache->places);
	cache->block[id].uses++;
	return -next_use(cache, id);
}

static int evict(struct cache *cache)
{
	const int id = cache->heap[0];
	cache->n_held--;
	if (cache->n_held > 0)
		heap_sink(cache, 0, cache->heap[cache->n_held]);
	cache->block[id].at = CACHE_NONE;
	cache->used_bytes -= cache->block[id].bytes;
	return id;
}

static bool keeps(const struct cache *cache, int id)
{
	const struct cache_decay *d = &cache->decay;
	return cache->worth == lfu_worth && d->threshold > 0 && cache->block[id].hits >= d->threshold * cache->hit;
}

static void bring_back(struct cache *cache, int id)
{
	cache->used_bytes += cache->block[id].bytes;
	heap_settle(cache, cache->n_held++, id);
}

struct cache *cache_new(int rule, int blocks, uint64_t room_bytes)
{
	static double (*const worths[])(struct cache *,
	                                int) = {[CACHE_LRU] = lru_worth, [CACHE_LFU_DECAY] = lfu_worth, [CACHE_BELADY] = belady_worth};
	g_assert(rule >= 0 && rule < (int)G_N_ELEMENTS(worths) && blocks >= 0);
	struct cache *cache = g_new0(struct cache, 1);
	cache->worth = worths[rule];
	cache->n_blocks = blocks;
	cache->block = g_new0(struct block, blocks);
	cache->heap = g_new(int, blocks);
	cache->room_bytes = room_bytes;
	cache->hit = 1;
	cache->decay.decay = 0.5;
	for (int id = 0; id < blocks; id++)
		cache->block[id].at = CACHE_NONE;
	return cache;
}

void cache_tune(struct cache *cache, const struct cache_decay *decay)
{
	cache->decay = *decay;
}

void cache_step(struct cache *cache)
{
	if (cache->worth != lfu_worth || !cache->decay.steps || ++cache->steps < cache->decay.steps)
		return;
	cache->steps = 0;
	decay(cache);
}

void cache_free(struct cache *cache)
{
	if (!cache)
		return;
	g_free(cache->block);
	g_free(cache->heap);
	g_free(cache->places);
	g_free(cache->place_of);
	g_free(cache);
}

void cache_future(struct cache *cache, const int *ids, int n)
{
	if (cache->worth != belady_worth)
		return;
	g_free(cache->places);
	g_free(cache->place_of);
	cache->n_future = n;
	cache->places = g_new(int, MAX(n, 1));
	cache->place_of = g_new0(int, cache->n_blocks + 1);
	for (int i = 0; i < n; i++)
		cache->place_of[ids[i] + 1]++;
	for (int id = 0; id < cache->n_blocks; id++)
		cache->place_of[id + 1] += cache->place_of[id];
	g_autofree int *filled = g_memdup2(cache->place_of, sizeof(int) * ((size_t)cache->n_blocks + 1));
	for (int i = 0; i < n; i++)
		cache->places[filled[ids[i]]++] = i;
	for (int id = 0; id < cache->n_blocks; id++)
		cache->block[id].uses = 0;
	for (int i = 0; i < cache->n_held; i++)
		cache->block[cache->heap[i]].worth.value = -next_use(cache, cache->heap[i]);
	heap_rebuild(cache);
}

bool cache_holds(const struct cache *cache, int id)
{
	return cache->block[id].at != CACHE_NONE;
}

bool cache_touch(struct cache *cache, int id, uint64_t bytes, int *evicted, int *n_evicted)
{
	g_assert(id >= 0 && id < cache->n_blocks);
	struct block *block = &cache->block[id];
	const bool held = cache_holds(cache, id);
	g_assert(!held || block->bytes == bytes);
	*n_evicted = 0;
	cache->touches++;
	const struct worth worth = {cache->worth(cache, id), cache->touches};
	if (held) {
		block->worth = worth;
		heap_settle(cache, block->at, id);
		return true;
	}
	if (bytes > cache->room_bytes)
		return false;
	while (cache->room_bytes - cache->used_bytes < bytes && !keeps(cache, cache->heap[0]))
		evicted[(*n_evicted)++] = evict(cache);
	if (cache->room_bytes - cache->used_bytes < bytes) {
		while (*n_evicted > 0)
			bring_back(cache, evicted[--*n_evicted]);
		return false;
	}
	block->worth = worth;
	block->bytes = bytes;
	cache->used_bytes += bytes;
	cache->n_held++;
	heap_settle(cache, cache->n_held - 1, id);
	return false;
}

uint64_t cache_used_bytes(const struct cache *cache)
{
	return cache->used_bytes;
}
