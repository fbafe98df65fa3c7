/*     claimed       | near | far | near          | far  | near |
 *     what is needed  n n f n n f n n f ..                            taken from it page by page, and mapped anew in that order
 *     the others    |         |  far | near | far  | near |           as they lie
 *     blocks          a     b    c ..                                 the first fit in what is needed, among the others only where that has none */
#define _GNU_SOURCE /* mremap */
#include "claim.h"

#include "look.h"
#include "model/units.h"
#include "pages.h"

#include <glib.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define PAGE LOOK_PAGE
#define LEFT_ALONE 0.1 /* of what the system has left */

enum {
	MOST_LOOKS = 3,     /* at so many pages besides, if far ones are few */
	LOOKED_NEAREST = 8, /* the nearest one in so many is near for certain */
	STREAMED = 512,     /* pages, at most, that tell how fast their like are */
	MOST_UNIT = 64,     /* pages of one kind that follow each other */
	MAPS_SHARE = 4      /* of the mappings that a process may have */
};

struct range {
	char *from;
	size_t pages;
	bool *taken, *gone; /* (pages); gone: mapped elsewhere. NULL: none is */
};

enum { NEEDED, OTHERS, RANGES };

struct claim {
	pthread_mutex_t lock;
	struct range range[RANGES];
	GHashTable *blocks; /* address -> pages; NULL: nothing is claimed */
};

/* A process has its memory, as it has malloc's. */
static struct claim claim = {.lock = PTHREAD_MUTEX_INITIALIZER};

/* ---- what is near, and in which order ---- */

double claim_far_from = 1.3;

static int by_time(const void *a, const void *b)
{
	const float x = *(const float *)a, y = *(const float *)b;
	return (x > y) - (x < y);
}

void claim_sort(const float *ns, size_t n, bool *far, struct claim_found *found)
{
	g_assert(n);
	g_autofree float *sorted = g_memdup2(ns, n * sizeof(*ns));
	qsort(sorted, n, sizeof(*sorted), by_time);
	const float nearest = sorted[n / LOOKED_NEAREST / 2];
	size_t near = 0;
	for (size_t i = 0; i < n; i++) {
		far[i] = ns[i] >= (float)claim_far_from * nearest;
		near += !far[i];
	}
	*found = (struct claim_found){.near_bytes = near * PAGE,
	                              .far_bytes = (n - near) * PAGE,
	                              .near_ns = (double)sorted[near / 2],
	                              .far_ns = near < n ? (double)sorted[(near + n) / 2] : 0};
}

static size_t next_of(const bool *far, size_t n, size_t from, bool kind)
{
	while (from < n && far[from] != kind)
		from++;
	return from;
}

void claim_order(const bool *far, size_t n, size_t needed, double share, size_t unit, size_t *order)
{
	size_t next[2] = {next_of(far, n, 0, false), next_of(far, n, 0, true)};
	double due = 0;
	bool kind = false;
	g_assert(needed <= n);
	for (size_t i = 0; i < needed; i++) {
		if (i % unit == 0) {
			due += share;
			kind = due >= 0.5;
			due -= kind;
		}
		const bool taken = next[kind] < n ? kind : !kind;
		order[i] = next[taken];
		next[taken] = next_of(far, n, next[taken] + 1, taken);
	}
}

/* Pages of an order that follow each other need one mapping. */
static size_t mappings(const size_t *order, size_t n)
{
	size_t count = 0;
	for (size_t i = 0; i < n; i++)
		count += i == 0 || order[i] != order[i - 1] + 1;
	return count;
}

/* False: the system would not have so many mappings, however the pages are mixed. */
static bool mix(const bool *far, size_t n, size_t needed, double share, size_t *order)
{
	g_autofree char *text = NULL;
	const uint64_t most = g_file_get_contents("/proc/sys/vm/max_map_count", &text, NULL, NULL) ? g_ascii_strtoull(text, NULL, 10) : 0;
	for (size_t unit = 1; unit <= MOST_UNIT; unit *= 2) {
		claim_order(far, n, needed, share, unit, order);
		if (mappings(order, needed) <= most / MAPS_SHARE)
			return true;
	}
	return false;
}

/* The share of far pages with which both sockets' memory is done at the same time, or what there are. */
static double far_share(char *from, const bool *far, size_t n, size_t needed, struct claim_found *f)
{
	size_t page[2][STREAMED], count[2] = {0};
	for (size_t i = 0; i < n; i++)
		if (count[far[i]] < STREAMED)
			page[far[i]][count[far[i]]++] = i;
	f->near_gbps = look_gbps(from, page[false], count[false]);
	f->far_gbps = look_gbps(from, page[true], count[true]);
	return MIN(f->far_gbps / (f->near_gbps + f->far_gbps), (double)f->far_bytes / (double)(needed * PAGE));
}

char *claim_describe(const struct claim_found *f)
{
	const double all = (double)(f->near_bytes + f->far_bytes) / GIB;
	if (!f->far_bytes)
		return g_strdup_printf("host memory: %.1f GiB, all of them near (%.0f ns a line)", all, f->near_ns);
	g_autofree char *blocks = f->mixed ? g_strdup_printf("blocks have %.0f %% of far ones", 100 * f->far_share) : g_strdup("as they lie");
	return g_strdup_printf("host memory: of %.1f GiB, %.1f are near (%.0f ns a line, %.0f GB/s), the others far (%.0f ns, %.0f GB/s); %s", all,
	                       (double)f->near_bytes / GIB, f->near_ns, f->near_gbps, f->far_ns, f->far_gbps, blocks);
}

/* ---- the claim ---- */

/* The system's, when it needs it: it is not freed before. */
static void offer(char *from, size_t pages)
{
	(void)madvise(from, pages * PAGE, MADV_FREE);
}

/* "0", where it has one node or shows only one. */
static bool knows_nodes(void)
{
	g_autofree char *online = NULL;
	return g_file_get_contents("/sys/devices/system/node/online", &online, NULL, NULL) && strpbrk(online, "-,");
}

static struct range range_new(char *from, size_t pages)
{
	return (struct range){from, pages, g_new0(bool, pages), NULL};
}

/* Address space from the start of a huge page. */
static char *space_new(size_t bytes)
{
	char *p = mmap(NULL, bytes + PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (p == MAP_FAILED)
		return NULL;
	const size_t before = (size_t)(-(uintptr_t)p % PAGE);
	if (before)
		munmap(p, before);
	munmap(p + before + bytes, PAGE - before);
	return p + before;
}

/* Maps order[n] of `others` anew, one after the other: as many of them as the system does. */
static struct range take_out(struct range *others, const size_t *order, size_t n)
{
	size_t done = 0, run;
	char *to = space_new(n * PAGE);
	for (; to && done < n; done += run) {
		for (run = 1; done + run < n && order[done + run] == order[done] + run; run++)
			;
		char *from = others->from + order[done] * PAGE;
		if (mremap(from, run * PAGE, run * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, to + done * PAGE) == MAP_FAILED)
			break;
	}
	if (to && done < n)
		munmap(to + done * PAGE, (n - done) * PAGE);
	others->gone = g_new0(bool, others->pages);
	for (size_t i = 0; i < done; i++)
		others->gone[order[i]] = others->taken[order[i]] = true;
	return done ? range_new(to, done) : (struct range){0};
}

/* Touches the next `besides` of `most` pages, and says of all so far which are far, until those are enough for `least`. 0: pages cannot be looked at.
 */
static size_t look_around(char *from, size_t least, size_t besides, size_t most, bool *far, struct claim_found *found)
{
	g_autofree float *ns = g_new(float, most);
	for (size_t looked = 0, end = MIN(most, least + besides);; end = MIN(most, end + besides)) {
		pages_touch(from + looked * PAGE, (end - looked) * PAGE);
		if (!look_at_pages(from + looked * PAGE, end - looked, ns + looked))
			return 0;
		looked = end;
		claim_sort(ns, looked, far, found);
		if (looked == most || (double)found->far_bytes >= CLAIM_FAR_ENOUGH * (double)(least * PAGE))
			return looked;
	}
}

bool claim_open(uint64_t needed, uint64_t besides, struct claim_found *found)
{
	const uint64_t available = (uint64_t)((double)pages_available() * (1 - LEFT_ALONE));
	const size_t least = (size_t)((needed + PAGE - 1) / PAGE), more = (size_t)(besides / PAGE),
	             most = MIN((size_t)(available / PAGE), least + MOST_LOOKS * more);
	*found = (struct claim_found){0};
	if (claim.blocks || !look_possible || !least || !more || most <= least || knows_nodes())
		return false;
	char *from = pages_map(most * PAGE);
	g_autofree bool *far = g_new(bool, most);
	g_autofree size_t *order = g_new(size_t, least);
	const size_t pages = from ? look_around(from, least, more, most, far, found) : 0;
	if (from && pages < most)
		munmap(from + pages * PAGE, (most - pages) * PAGE);
	if (!pages)
		return false;
	struct range all = range_new(from, pages);
	found->far_share = (double)found->far_bytes / (double)(pages * PAGE);
	if (found->far_bytes && mix(far, pages, least, far_share(from, far, pages, least, found), order)) {
		found->far_share = 0;
		claim.range[NEEDED] = take_out(&all, order, least);
		for (size_t i = 0; i < claim.range[NEEDED].pages; i++)
			found->far_share += far[order[i]] / (double)claim.range[NEEDED].pages;
		found->mixed = true;
	}
	claim.range[OTHERS] = all;
	claim.blocks = g_hash_table_new(NULL, NULL);
	for (int i = 0; i < RANGES; i++)
		if (claim.range[i].from)
			offer(claim.range[i].from, claim.range[i].pages);
	return true;
}

/* What is gone is not the range's, whatever lies there now. */
static void range_free(struct range *r)
{
	for (size_t first = 0, end = 0; first < r->pages; first = end) {
		const bool gone = r->gone && r->gone[first];
		while (end < r->pages && (r->gone && r->gone[end]) == gone)
			end++;
		if (!gone)
			munmap(r->from + first * PAGE, (end - first) * PAGE);
	}
	g_free(r->taken);
	g_free(r->gone);
	*r = (struct range){0};
}

void claim_close(void)
{
	if (!claim.blocks || g_hash_table_size(claim.blocks))
		return;
	g_clear_pointer(&claim.blocks, g_hash_table_unref);
	for (int i = 0; i < RANGES; i++)
		range_free(&claim.range[i]);
}

/* The first `pages` that follow each other and are free; r->pages: there are none. */
static size_t first_fit(const struct range *r, size_t pages)
{
	size_t run = 0;
	for (size_t i = 0; i < r->pages; i++) {
		run = r->taken[i] ? 0 : run + 1;
		if (run == pages)
			return i + 1 - pages;
	}
	return r->pages;
}

static char *take_from(struct range *r, size_t pages)
{
	const size_t at = first_fit(r, pages);
	if (at == r->pages)
		return NULL;
	memset(r->taken + at, true, pages);
	return r->from + at * PAGE;
}

void *claim_take(size_t bytes)
{
	const size_t pages = (bytes + PAGE - 1) / PAGE;
	char *block = NULL;
	pthread_mutex_lock(&claim.lock);
	for (int i = 0; claim.blocks && pages && !block && i < RANGES; i++)
		block = take_from(&claim.range[i], pages);
	if (block)
		g_hash_table_insert(claim.blocks, block, GSIZE_TO_POINTER(pages));
	pthread_mutex_unlock(&claim.lock);
	return block;
}

bool claim_give(void *block)
{
	pthread_mutex_lock(&claim.lock);
	const size_t pages = claim.blocks ? GPOINTER_TO_SIZE(g_hash_table_lookup(claim.blocks, block)) : 0;
	for (int i = 0; pages && i < RANGES; i++) {
		struct range *r = &claim.range[i];
		const size_t at = ((uintptr_t)block - (uintptr_t)r->from) / PAGE;
		if (at < r->pages)
			memset(r->taken + at, false, pages);
	}
	if (pages) {
		g_hash_table_remove(claim.blocks, block);
		offer(block, pages);
	}
	pthread_mutex_unlock(&claim.lock);
	return pages > 0;
}

uint64_t claim_spare_bytes(void)
{
	uint64_t spare = 0;
	pthread_mutex_lock(&claim.lock);
	for (int i = 0; claim.blocks && i < RANGES; i++)
		for (size_t k = 0; k < claim.range[i].pages; k++)
			spare += claim.range[i].taken[k] ? 0 : PAGE;
	pthread_mutex_unlock(&claim.lock);
	return spare;
}
