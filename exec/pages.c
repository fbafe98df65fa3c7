#define _GNU_SOURCE /* MAP_ANONYMOUS */
#include "pages.h"

#include "claim.h"

#include <glib.h>
#include <string.h>
#include <sys/mman.h>

#define HUGE_PAGE ((size_t)2 << 20)
#define SMALL_PAGE ((size_t)4 << 10)
#define KIB 1024

enum { MOST_THREADS = 64 };

struct part {
	char *from;
	size_t bytes;
};

static gpointer touch(gpointer data)
{
	const struct part *p = data;
	memset(p->from, 0, p->bytes);
	return NULL;
}

/* Whole huge pages can only be had from the start of one. */
char *pages_map(size_t bytes)
{
	void *p = mmap(NULL, bytes + HUGE_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (p == MAP_FAILED)
		return NULL;
	const size_t before = (size_t)(-(uintptr_t)p % HUGE_PAGE);
	char *start = (char *)p + before, *end = start + (bytes + SMALL_PAGE - 1) / SMALL_PAGE * SMALL_PAGE;
	if (before)
		munmap(p, before);
	munmap(end, (size_t)((char *)p + bytes + HUGE_PAGE - end));
	(void)madvise(start, bytes, MADV_HUGEPAGE);
	return start;
}

void *pages_new(size_t bytes)
{
	char *p = bytes >= HUGE_PAGE ? claim_take(bytes) : NULL;
	p = p ? p : pages_map(bytes);
	if (p)
		pages_touch(p, bytes);
	return p;
}

void pages_touch(char *p, size_t bytes)
{
	guint n = (guint)MIN(MIN(g_get_num_processors(), MOST_THREADS), bytes / HUGE_PAGE + 1);
	struct part part[MOST_THREADS];
	GThread *thread[MOST_THREADS];
	for (guint i = 0; i < n; i++) {
		size_t from = bytes / n * i / HUGE_PAGE * HUGE_PAGE, to = i + 1 == n ? bytes : bytes / n * (i + 1) / HUGE_PAGE * HUGE_PAGE;
		part[i] = (struct part){p + from, to - from};
		thread[i] = g_thread_new("touch", touch, &part[i]);
	}
	for (guint i = 0; i < n; i++)
		g_thread_join(thread[i]);
}

void pages_free(void *p, size_t bytes)
{
	if (!claim_give(p))
		munmap(p, bytes);
}

/* The number behind `key` in a file of the system, or its first one; G_MAXUINT64: none, or "max". */
static uint64_t number_in(const char *path, const char *key)
{
	g_autofree char *text = NULL;
	if (!g_file_get_contents(path, &text, NULL, NULL))
		return G_MAXUINT64;
	const char *at = key ? strstr(text, key) : text;
	at = at && key ? at + strlen(key) : at;
	while (at && g_ascii_isspace(*at))
		at++;
	return at && g_ascii_isdigit(*at) ? g_ascii_strtoull(at, NULL, 10) : G_MAXUINT64;
}

uint64_t pages_available(void)
{
	static const char *const groups[][2] = {{"/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"},
	                                        {"/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"}};
	uint64_t kib = number_in("/proc/meminfo", "MemAvailable:"), left = kib == G_MAXUINT64 ? 0 : kib * KIB;
	for (size_t i = 0; i < G_N_ELEMENTS(groups); i++) {
		uint64_t most = number_in(groups[i][0], NULL), taken = number_in(groups[i][1], NULL);
		if (most != G_MAXUINT64 && taken != G_MAXUINT64)
			left = MIN(left, most > taken ? most - taken : 0);
	}
	return left;
}
