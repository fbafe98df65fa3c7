/* All cores look at every page, each with loads of which every one waits for the one before: a page is near when it is so to all of them. Where they
 * are cores of several sockets, no page is nearer than another. */
#define _GNU_SOURCE /* CPU_SET */
#include "look.h"

#include "exec.h"

#include <glib.h>
#include <pthread.h>
#include <sched.h>
#include <string.h>

enum { LINES = 32, FRAMES = 4, SMALL_PAGE = 4096, TWO_LINES = 128, LOOKS = 2, MOST_CORES = 256, STREAMS = 3 };

/* ---- one page ---- */

/* Every other line of a quarter of a small page, in four of them: few translations, and no order that a prefetcher would guess. */
static char *line(char *page, int i)
{
	int at = i * 13 % LINES, frame = at % FRAMES, in_frame = at / FRAMES;
	return page + (size_t)frame * (LOOK_PAGE / FRAMES) + (size_t)in_frame * 3 % 8 * (SMALL_PAGE / 8) + (size_t)(frame * TWO_LINES);
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
const bool look_possible = true;
#else
static float look(char *page)
{
	return 0;
}
const bool look_possible = false;
#endif

/* ---- all pages, on all cores ---- */

struct core {
	int cpu, index, count;
	char *from;
	size_t pages;
	float *ns;          /* of all pages */
	const size_t *page; /* (pages) to stream over */
	nsec_t took_ns;
	pthread_barrier_t *together;
};

static void stay_on(int cpu)
{
	cpu_set_t one;
	CPU_ZERO(&one);
	CPU_SET(cpu, &one);
	(void)sched_setaffinity(0, sizeof(one), &one);
}

/* Each begins elsewhere, so that no two look at the same page. */
static gpointer look_at_all(gpointer data)
{
	const struct core *c = data;
	stay_on(c->cpu);
	const size_t first = c->pages * (size_t)c->index / (size_t)c->count, end = c->pages * (size_t)(c->index + 1) / (size_t)c->count;
	for (size_t i = first; i < end; i++)
		lay(c->from + i * LOOK_PAGE);
	pthread_barrier_wait(c->together);
	for (size_t k = 0; k < c->pages; k++) {
		size_t i = (first + k) % c->pages;
		c->ns[i] = look(c->from + i * LOOK_PAGE);
	}
	return NULL;
}

/* Read and written, as CPU Adam does. */
static gpointer stream_over(gpointer data)
{
	struct core *c = data;
	stay_on(c->cpu);
	const size_t first = c->pages * (size_t)c->index / (size_t)c->count, end = c->pages * (size_t)(c->index + 1) / (size_t)c->count;
	c->took_ns = G_MAXINT64;
	for (int i = 0; i < STREAMS; i++) {
		pthread_barrier_wait(c->together);
		nsec_t start = exec_now_ns();
		for (size_t k = first; k < end; k++) {
			uint64_t *x = (uint64_t *)(void *)(c->from + c->page[k] * LOOK_PAGE);
			for (size_t at = 0; at < LOOK_PAGE / sizeof(*x); at++)
				x[at] += 1;
		}
		c->took_ns = MIN(c->took_ns, exec_now_ns() - start);
	}
	return NULL;
}

/* On all cores that the process may use. Returns how many there are; core[MOST_CORES]. */
static int on_all_cores(GThreadFunc what, const struct core *like, struct core *core)
{
	cpu_set_t allowed;
	GThread *thread[MOST_CORES];
	pthread_barrier_t together;
	int n = 0;
	if (sched_getaffinity(0, sizeof(allowed), &allowed) != 0)
		return 0;
	for (int cpu = 0; cpu < CPU_SETSIZE && n < MOST_CORES; cpu++)
		if (CPU_ISSET(cpu, &allowed))
			core[n++] = (struct core){.cpu = cpu};
	pthread_barrier_init(&together, NULL, (unsigned)n);
	for (int i = 0; i < n; i++) {
		const int cpu = core[i].cpu;
		core[i] = *like;
		core[i].cpu = cpu;
		core[i].index = i;
		core[i].count = n;
		core[i].ns = like->page ? NULL : g_new(float, like->pages);
		core[i].together = &together;
		thread[i] = g_thread_new("look", what, &core[i]);
	}
	for (int i = 0; i < n; i++)
		g_thread_join(thread[i]);
	pthread_barrier_destroy(&together);
	return n;
}

bool look_at_pages(char *from, size_t pages, float *ns)
{
	struct core core[MOST_CORES];
	const int n = on_all_cores(look_at_all, &(struct core){.from = from, .pages = pages}, core);
	memset(ns, 0, pages * sizeof(*ns));
	for (int i = 0; i < n; i++) {
		for (size_t k = 0; k < pages; k++)
			ns[k] += core[i].ns[k] / (float)n;
		g_free(core[i].ns);
	}
	return n > 0;
}

double look_gbps(char *from, const size_t *page, size_t n)
{
	struct core core[MOST_CORES];
	nsec_t longest = 0;
	const int cores = on_all_cores(stream_over, &(struct core){.from = from, .pages = n, .page = page}, core);
	for (int i = 0; i < cores; i++)
		longest = MAX(longest, core[i].took_ns);
	return longest > 0 ? 2.0 * (double)(n * LOOK_PAGE) / (double)longest : 0;
}
