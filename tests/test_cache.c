/* The cache against naive versions of its rules: the same touches must hit, miss and evict alike. */
#include "model/cache.h"
#include "model/policy.h"

#include <criterion/criterion.h>
#include <glib.h>
#include <limits.h>

enum { BLOCKS = 12, TOUCHES = 3000 };

/* A cache as the definition says: arrays, and a search over all blocks for the victim. */
struct naive {
	int rule;
	bool held[BLOCKS];
	uint64_t last[BLOCKS], bytes[BLOCKS], room;
	double hits[BLOCKS];
	const int *future; /* (n_future), position of the next touch: now */
	int n_future;
	uint64_t now;
	double decay, threshold;
	int steps; /* touches a decay, as a step a touch */
};

static int distance(const struct naive *n, int id)
{
	for (int d = 1; d <= n->n_future; d++)
		if (n->future[(n->now + (uint64_t)d) % (uint64_t)n->n_future] == id)
			return d;
	return INT_MAX;
}

static bool leaves_before(const struct naive *n, int a, int b)
{
	if (n->rule == CACHE_BELADY)
		return distance(n, a) > distance(n, b);
	if (n->rule == CACHE_LFU_DECAY && n->hits[a] != n->hits[b])
		return n->hits[a] < n->hits[b];
	return n->last[a] < n->last[b];
}

static uint64_t naive_used(const struct naive *n)
{
	uint64_t used = 0;
	for (int id = 0; id < BLOCKS; id++)
		used += n->held[id] ? n->bytes[id] : 0;
	return used;
}

static bool naive_touch(struct naive *n, int id, int *evicted, int *n_evicted)
{
	const bool held = n->held[id];
	*n_evicted = 0;
	if ((n->now + 1) % (uint64_t)n->steps == 0)
		for (int i = 0; i < BLOCKS; i++)
			n->hits[i] *= n->decay;
	n->hits[id]++;
	n->last[id] = n->now + 1;
	while (!held && n->bytes[id] <= n->room && naive_used(n) + n->bytes[id] > n->room) {
		int victim = -1;
		for (int i = 0; i < BLOCKS; i++)
			if (n->held[i] && (victim < 0 || leaves_before(n, i, victim)))
				victim = i;
		if (n->threshold > 0 && n->hits[victim] >= n->threshold) {
			while (*n_evicted > 0)
				n->held[evicted[--*n_evicted]] = true;
			n->now++;
			return false;
		}
		n->held[victim] = false;
		evicted[(*n_evicted)++] = victim;
	}
	n->held[id] = n->bytes[id] <= n->room;
	n->now++;
	return held;
}

/* Skewed ids, so that frequency and recency differ. */
static void sequence_draw(GRand *random, int *ids, int n)
{
	for (int i = 0; i < n; i++) {
		const double u = g_rand_double(random);
		ids[i] = (int)(u * u * BLOCKS);
	}
}

static void compare_with_naive(int rule, uint32_t seed, bool equal_sizes, const struct cache_decay *decay)
{
	g_autoptr(GRand) random = g_rand_new_with_seed(seed);
	int ids[TOUCHES];
	sequence_draw(random, ids, TOUCHES);
	struct naive naive = {.rule = rule, .room = 20, .future = ids, .n_future = TOUCHES, .decay = 0.5, .steps = BLOCKS};
	for (int id = 0; id < BLOCKS; id++)
		naive.bytes[id] = equal_sizes ? 4 : (uint64_t)g_rand_int_range(random, 1, 22); /* 21 is past the room */
	g_autoptr(cache) cache = cache_new(rule, BLOCKS, naive.room);
	cache_future(cache, ids, TOUCHES);
	if (decay) {
		cache_tune(cache, decay);
		naive.decay = decay->decay;
		naive.threshold = decay->threshold;
		naive.steps = decay->steps;
	}
	for (int i = 0; i < TOUCHES; i++) {
		cache_step(cache); /* a touch a step */
		int evicted[BLOCKS], n_evicted, expected[BLOCKS], n_expected;
		const bool hit = naive_touch(&naive, ids[i], expected, &n_expected);
		cr_assert(hit == cache_touch(cache, ids[i], naive.bytes[ids[i]], evicted, &n_evicted), "touch %d", i);
		cr_assert(n_evicted == n_expected);
		for (int k = 0; k < n_expected; k++)
			cr_assert(evicted[k] == expected[k], "touch %d", i);
		cr_assert(cache_used_bytes(cache) == naive_used(&naive) && cache_used_bytes(cache) <= naive.room);
		for (int id = 0; id < BLOCKS; id++)
			cr_assert(cache_holds(cache, id) == naive.held[id]);
	}
}

Test(cache, evicts_as_the_definitions_say)
{
	for (int rule = CACHE_LRU; rule <= CACHE_BELADY; rule++)
		for (uint32_t seed = 0; seed < 10; seed++)
			compare_with_naive(rule, seed, true, NULL);
}

Test(cache, evicts_as_the_definitions_say_with_unequal_blocks)
{
	for (int rule = CACHE_LRU; rule <= CACHE_LFU_DECAY; rule++)
		for (uint32_t seed = 0; seed < 10; seed++)
			compare_with_naive(rule, seed, false, NULL);
}

/* Powers of two, so that hits that became less and later ones that count more tie alike. */
Test(cache, lfu_decays_by_steps_and_moves_no_block_past_the_threshold)
{
	const struct cache_decay decays[] = {{0.5, 2, 30}, {0.25, 1.5, 7}, {0.125, 0, 50}, {1, 4, 9}};
	for (size_t i = 0; i < G_N_ELEMENTS(decays); i++)
		for (uint32_t seed = 0; seed < 20; seed++)
			compare_with_naive(CACHE_LFU_DECAY, seed, seed % 2, &decays[i]);
}

/* Hits of n touches with blocks of one byte. */
static int hits(int rule, int blocks, int room, const int *ids, int n)
{
	g_autoptr(cache) cache = cache_new(rule, blocks, (uint64_t)room);
	cache_future(cache, ids, n);
	g_autofree int *evicted = g_new(int, blocks);
	int n_hits = 0, n_evicted;
	for (int i = 0; i < n; i++)
		n_hits += cache_touch(cache, ids[i], 1, evicted, &n_evicted);
	return n_hits;
}

Test(cache, belady_never_hits_less_than_the_others)
{
	g_autoptr(GRand) random = g_rand_new_with_seed(3);
	for (int i = 0; i < 100; i++) {
		int ids[TOUCHES];
		const int room = g_rand_int_range(random, 1, BLOCKS + 1), n = g_rand_int_range(random, 1, TOUCHES);
		sequence_draw(random, ids, n);
		const int best = hits(CACHE_BELADY, BLOCKS, room, ids, n);
		cr_assert(best >= hits(CACHE_LRU, BLOCKS, room, ids, n));
		cr_assert(best >= hits(CACHE_LFU_DECAY, BLOCKS, room, ids, n));
	}
}

Test(cache, lru_never_hits_on_a_cycle_larger_than_the_room)
{
	int ids[100];
	for (int i = 0; i < 100; i++)
		ids[i] = i % 10;
	cr_assert(hits(CACHE_LRU, 10, 9, ids, 100) == 0);
	cr_assert(hits(CACHE_LRU, 10, 10, ids, 100) == 90);
}

/* Mattson et al. 1970: on a cycle of N through M < N places the optimum keeps M - 1 blocks of each N - 1 touches. */
Test(cache, belady_keeps_most_of_a_cycle)
{
	enum { N = 10, M = 4, ROUNDS = 90 };
	int ids[N * ROUNDS];
	for (int i = 0; i < N * ROUNDS; i++)
		ids[i] = i % N;
	cr_assert_float_eq(hits(CACHE_BELADY, N, M, ids, N * ROUNDS) / (double)(N * ROUNDS), (M - 1.0) / (N - 1), 0.01);
}

/* Forward 0..N-1 and backward N-1..0: at each turn the last M blocks are still there. */
Test(cache, lru_hits_the_room_at_each_turn_of_a_palindrome)
{
	enum { N = 24, M = 7, PASSES = 6 };
	int ids[N * PASSES];
	for (int i = 0; i < N * PASSES; i++)
		ids[i] = i / N % 2 == 0 ? i % N : N - 1 - i % N;
	cr_assert(hits(CACHE_LRU, N, M, ids, N * PASSES) == M * (PASSES - 1));
}

Test(cache, a_block_larger_than_the_room_moves_nobody)
{
	g_autoptr(cache) cache = cache_new(CACHE_LRU, 3, 10);
	int evicted[3], n_evicted;
	cr_assert(!cache_touch(cache, 0, 6, evicted, &n_evicted));
	cr_assert(!cache_touch(cache, 1, 11, evicted, &n_evicted));
	cr_assert(n_evicted == 0 && cache_holds(cache, 0) && !cache_holds(cache, 1));
	cr_assert(cache_touch(cache, 0, 6, evicted, &n_evicted));
	cr_assert(!cache_touch(cache, 2, 10, evicted, &n_evicted));
	cr_assert(n_evicted == 1 && evicted[0] == 0 && cache_used_bytes(cache) == 10);
}

Test(cache, lfu_forgets_what_was_hot_long_ago)
{
	enum { N = 4 };
	g_autoptr(cache) cache = cache_new(CACHE_LFU_DECAY, N, 2);
	int evicted[N], n_evicted;
	for (int i = 0; i < 100; i++)
		(void)cache_touch(cache, 0, 1, evicted, &n_evicted);
	for (int i = 0; i < 40; i++) /* 100 hits weigh less than 40 touches of two others once halved 10 times */
		(void)cache_touch(cache, 1 + i % 2, 1, evicted, &n_evicted);
	cr_assert(!cache_holds(cache, 0) && cache_holds(cache, 1) && cache_holds(cache, 2));
}

/* Hits and misses must not change when the weight of a hit has grown past what a double holds. */
Test(cache, lfu_runs_for_long)
{
	enum { N = 2 };
	g_autoptr(cache) cache = cache_new(CACHE_LFU_DECAY, N, 1);
	int evicted[N], n_evicted;
	(void)cache_touch(cache, 1, 1, evicted, &n_evicted);
	for (int i = 0; i < 10000; i++)
		cr_assert(cache_touch(cache, 0, 1, evicted, &n_evicted) == (i > 0));
}

/* A layer's experts in another order than foreseen: each block's next use is still the next round's. */
Test(cache, belady_stays_in_step_with_a_shuffled_layer)
{
	const int foreseen[] = {0, 1, 2, 3, 4, 5}, taken[] = {2, 0, 1, 5, 3, 4};
	g_autoptr(cache) cache = cache_new(CACHE_BELADY, 6, 3);
	cache_future(cache, foreseen, 6);
	int evicted[6], n_evicted, n_hits = 0;
	for (int i = 0; i < 600; i++)
		n_hits += cache_touch(cache, taken[i % 6], 1, evicted, &n_evicted);
	cr_assert(n_hits >= 600 / 6, "%d", n_hits); /* LRU has 0, the optimum (3 - 1) / (6 - 1) of all */
}
