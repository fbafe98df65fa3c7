/* All cores look at every page, each with loads of which every one waits for the one before: a page is near when it is so to all of them. Where they
 * are cores of several sockets, no page is nearer than another.
 *
 *     claim   | near | far | near         | far | near |
 *     blocks  | a    |     | b  | c       |     |             the first fit among what is near, and across what is far only where that has none */
#define _GNU_SOURCE /* CPU_SET */
#include "claim.h"

#include "exec.h"
#include "pages.h"

#include <glib.h>
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define PAGE ((size_t)2 << 20)
#define LEFT_ALONE 0.1 /* of what the system has left */

enum { LINES = 32, FRAMES = 4, SMALL_PAGE = 4096, TWO_LINES = 128, LOOKS = 2, MOST_CORES = 256 };

struct claim {
	pthread_mutex_t lock;
	char *from;
	size_t pages;
	bool *far, *taken;  /* (pages) */
	GHashTable *blocks; /* address -> pages */
};

/* A process has its memory, as it has malloc's. */
static struct claim claim = {.lock = PTHREAD_MUTEX_INITIALIZER};

/* ---- one page ---- */

/* Every other line of a quarter of a small page, in four of them: few translations, and no order that a prefetcher would guess. */
static char *line(char *page, int i)
{
	int at = i * 13 % LINES, frame = at % FRAMES, in_frame = at / FRAMES;
	return page + (size_t)frame * (PAGE / FRAMES) + (size_t)in_frame * 3 % 8 * (SMALL_PAGE / 8) + (size_t)(frame * TWO_LINES);
}

static void lay(char *page)
{
	for (int i = 0; i < LINES; i++)
		*(char **)(void *)line(page, i) = line(page, (i + 1) % LINES);
}

#ifdef __x86_64__
static float look(char *page)
{
	nsec_t least = G_MAXINT64;
	for (int i = 0; i < LOOKS; i++) {
		for (int k = 0; k < LINES; k++)
			__builtin_ia32_clflush(line(page, k));
		__builtin_ia32_mfence();
		nsec_t start = exec_now_ns();
		char *volatile *at = (char *volatile *)(void *)line(page, 0);
		for (int k = 0; k < LINES; k++)
			at = (char *volatile *)(void *)*at;
		least = MIN(least, exec_now_ns() - start + (at ? 0 : 1));
	}
	return (float)least / LINES;
}
enum { CAN_LOOK = true };
#else
static float look(char *page)
{
	return 0;
}
enum { CAN_LOOK = false };
#endif

/* ---- all pages, on all cores ---- */

struct core {
	int cpu, index, count;
	char *from;
	size_t pages;
	float *ns; /* of all pages */
	pthread_barrier_t *laid;
};

/* Each begins elsewhere, so that no two look at the same page. */
static gpointer look_at_all(gpointer data)
{
	const struct core *c = data;
	cpu_set_t one;
	CPU_ZERO(&one);
	CPU_SET(c->cpu, &one);
	(void)sched_setaffinity(0, sizeof(one), &one);
	const size_t first = c->pages * (size_t)c->index / (size_t)c->count, end = c->pages * (size_t)(c->index + 1) / (size_t)c->count;
	for (size_t i = first; i < end; i++)
		lay(c->from + i * PAGE);
	pthread_barrier_wait(c->laid);
	for (size_t k = 0; k < c->pages; k++) {
		size_t i = (first + k) % c->pages;
		c->ns[i] = look(c->from + i * PAGE);
	}
	return NULL;
}

/* ns[pages]: means over the cores. */
static void look_from_everywhere(char *from, size_t pages, const cpu_set_t *allowed, float *ns)
{
	struct core core[MOST_CORES];
	GThread *thread[MOST_CORES];
	pthread_barrier_t laid;
	int n = 0;
	for (int cpu = 0; cpu < CPU_SETSIZE && n < MOST_CORES; cpu++)
		if (CPU_ISSET(cpu, allowed))
			core[n++] = (struct core){.cpu = cpu};
	pthread_barrier_init(&laid, NULL, (unsigned)n);
	for (int i = 0; i < n; i++) {
		core[i] = (struct core){core[i].cpu, i, n, from, pages, g_new(float, pages), &laid};
		thread[i] = g_thread_new("look", look_at_all, &core[i]);
	}
	memset(ns, 0, pages * sizeof(*ns));
	for (int i = 0; i < n; i++) {
		g_thread_join(thread[i]);
		for (size_t k = 0; k < pages; k++)
			ns[k] += core[i].ns[k] / (float)n;
		g_free(core[i].ns);
	}
	pthread_barrier_destroy(&laid);
}

/* ---- the claim ---- */

static int by_time(const void *a, const void *b)
{
	const float x = *(const float *)a, y = *(const float *)b;
	return (x > y) - (x < y);
}

void claim_sort(const float *ns, size_t n, size_t needed, bool *far, struct claim_found *found)
{
	g_assert(needed && needed < n);
	g_autofree float *sorted = g_memdup2(ns, n * sizeof(*ns));
	qsort(sorted, n, sizeof(*sorted), by_time);
	const float middle = sorted[needed / 2];
	size_t near = 0;
	for (size_t i = 0; i < n; i++) {
		far[i] = ns[i] >= (float)FAR_FROM * middle;
		near += !far[i];
	}
	*found = (struct claim_found){near * PAGE, (n - near) * PAGE, (double)middle, near < n ? (double)sorted[(near + n) / 2] : 0};
}

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

bool claim_open(uint64_t needed, uint64_t besides, struct claim_found *found)
{
	const uint64_t most = (uint64_t)((double)pages_available() * (1 - LEFT_ALONE));
	const size_t least = (size_t)((needed + PAGE - 1) / PAGE), pages = (size_t)(MIN(most, needed + besides) / PAGE);
	cpu_set_t allowed;
	*found = (struct claim_found){0};
	if (claim.from || !CAN_LOOK || !least || pages <= least || knows_nodes() || sched_getaffinity(0, sizeof(allowed), &allowed) != 0)
		return false;
	char *from = pages_new(pages * PAGE);
	if (!from)
		return false;
	g_autofree float *ns = g_new(float, pages);
	claim.far = g_new(bool, pages);
	claim.taken = g_new0(bool, pages);
	claim.blocks = g_hash_table_new(NULL, NULL);
	claim.pages = pages;
	look_from_everywhere(from, pages, &allowed, ns);
	claim_sort(ns, pages, least, claim.far, found);
	offer(from, pages);
	claim.from = from;
	return true;
}

void claim_close(void)
{
	if (!claim.from || g_hash_table_size(claim.blocks))
		return;
	char *from = claim.from;
	claim.from = NULL;
	pages_free(from, claim.pages * PAGE);
	g_hash_table_unref(claim.blocks);
	g_free(claim.far);
	g_free(claim.taken);
}

/* The first `pages` that follow each other and are free; claim.pages: there are none. */
static size_t first_fit(size_t pages, bool near)
{
	size_t run = 0;
	for (size_t i = 0; i < claim.pages; i++) {
		run = claim.taken[i] || (near && claim.far[i]) ? 0 : run + 1;
		if (run == pages)
			return i + 1 - pages;
	}
	return claim.pages;
}

void *claim_take(size_t bytes)
{
	const size_t pages = (bytes + PAGE - 1) / PAGE;
	char *block = NULL;
	pthread_mutex_lock(&claim.lock);
	if (claim.from && pages) {
		size_t at = first_fit(pages, true);
		at = at == claim.pages ? first_fit(pages, false) : at;
		if (at < claim.pages) {
			block = claim.from + at * PAGE;
			memset(claim.taken + at, true, pages);
			g_hash_table_insert(claim.blocks, block, GSIZE_TO_POINTER(pages));
		}
	}
	pthread_mutex_unlock(&claim.lock);
	return block;
}

bool claim_give(void *block)
{
	pthread_mutex_lock(&claim.lock);
	const size_t pages = claim.from ? GPOINTER_TO_SIZE(g_hash_table_lookup(claim.blocks, block)) : 0;
	if (pages) {
		memset(claim.taken + (size_t)((char *)block - claim.from) / PAGE, false, pages);
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
	for (size_t i = 0; claim.from && i < claim.pages; i++)
		spare += claim.taken[i] ? 0 : PAGE;
	pthread_mutex_unlock(&claim.lock);
	return spare;
}
