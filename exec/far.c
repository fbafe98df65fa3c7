/* All cores look at every page, each with loads of which every one waits for the one before: a page is near when it is so to all of them. Where they
 * are cores of several sockets no page is nearer than another, and nothing is held. */
#define _GNU_SOURCE /* CPU_SET */
#include "far.h"

#include "exec.h"
#include "pages.h"

#include <glib.h>
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define PAGE ((size_t)2 << 20)
#define LITTLE_SHARE (1.0 / 32) /* besides what is needed: page tables, buffers of a run, what lies in small pages */
#define LITTLE ((uint64_t)1 << 30)
#define LEFT_ALONE 0.1 /* of what the system has left */

enum { LINES = 32, FRAMES = 4, SMALL_PAGE = 4096, TWO_LINES = 128, LOOKS = 2, MOST_CORES = 256 };

struct far {
	char *from;
	size_t bytes;
};

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

/* ---- what to hold ---- */

static int by_time(const void *a, const void *b)
{
	const float x = *(const float *)a, y = *(const float *)b;
	return (x > y) - (x < y);
}

bool far_choose(const float *ns, size_t n, size_t near, bool *far, struct far_found *found)
{
	*found = (struct far_found){0};
	memset(far, 0, n * sizeof(*far));
	if (!near || near >= n)
		return false;
	g_autofree float *sorted = g_memdup2(ns, n * sizeof(*ns));
	qsort(sorted, n, sizeof(*sorted), by_time);
	const float kept_ns = sorted[near / 2], from = MAX(sorted[near - 1], (float)FAR_FROM * kept_ns);
	size_t kept = n;
	for (size_t i = 0; i < n; i++) {
		far[i] = ns[i] > from;
		kept -= far[i];
	}
	*found = (struct far_found){kept * PAGE, (n - kept) * PAGE, (double)kept_ns, kept < n ? (double)sorted[(kept + n) / 2] : 0};
	return kept < n;
}

/* The system gets the others back. */
static void give_others_back(const struct far *m, const bool *far)
{
	const size_t pages = m->bytes / PAGE;
	for (size_t i = 0, end; i < pages; i = end) {
		for (end = i + 1; end < pages && far[end] == far[i]; end++)
			;
		if (!far[i])
			(void)madvise(m->from + i * PAGE, (end - i) * PAGE, MADV_DONTNEED);
	}
}

/* "0", where it has one node or shows only one. */
static bool knows_nodes(void)
{
	g_autofree char *online = NULL;
	return g_file_get_contents("/sys/devices/system/node/online", &online, NULL, NULL) && strpbrk(online, "-,");
}

struct far *far_new(uint64_t needed, uint64_t besides, struct far_found *found)
{
	const uint64_t keep = needed + (uint64_t)((double)needed * LITTLE_SHARE) + LITTLE;
	const uint64_t most = (uint64_t)((double)pages_available() * (1 - LEFT_ALONE));
	const size_t bytes = (size_t)(MIN(most, keep + besides) / PAGE * PAGE);
	cpu_set_t allowed;
	*found = (struct far_found){0};
	if (!CAN_LOOK || bytes <= keep || knows_nodes() || sched_getaffinity(0, sizeof(allowed), &allowed) != 0)
		return NULL;
	struct far m = {pages_new(bytes), bytes};
	if (!m.from)
		return NULL;
	const size_t pages = bytes / PAGE;
	g_autofree float *ns = g_new(float, pages);
	g_autofree bool *far = g_new(bool, pages);
	look_from_everywhere(m.from, pages, &allowed, ns);
	if (!far_choose(ns, pages, (size_t)(keep / PAGE), far, found)) {
		pages_free(m.from, bytes);
		return NULL;
	}
	give_others_back(&m, far);
	return g_memdup2(&m, sizeof m);
}

void far_free(struct far *far)
{
	if (!far)
		return;
	pages_free(far->from, far->bytes);
	g_free(far);
}
