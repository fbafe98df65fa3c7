/* Processes of a run as threads of a test: each joins, works, and leaves. */
#pragma once

#include "exec/launched.h"
#include "exec/ranks.h"

#include <criterion/criterion.h>
#include <glib/gstdio.h>

#define MOST 4 /* ranks */

struct crew;
struct hand {
	struct crew *crew;
	struct launched l;
	const char *version, *terms;
	struct ranks *ranks;
	GError *error; /* of joining */
	bool ok;
	GThread *thread;
};

struct crew {
	int n, timeout_s;
	char *folder, *file;
	struct hand hand[MOST];
	void (*work)(struct hand *h); /* NULL: joins only */
};

static inline void crew_init(struct crew *c, int n)
{
	*c = (struct crew){.n = n, .timeout_s = 20, .folder = g_dir_make_tmp("esmoe-test-XXXXXX", NULL)};
	c->file = g_build_filename(c->folder, "meet", NULL);
	for (int i = 0; i < n; i++)
		c->hand[i] =
		    (struct hand){.crew = c,
		                  .l = {.by = "a test", .rank = i, .size = n, .local = -1, .job = (char *)"job", .address = c->file, .ports = 1},
		                  .version = "1",
		                  .terms = "a = 1\nb = 2"};
}

static inline gpointer join_and_work(gpointer hand)
{
	struct hand *h = hand;
	h->ranks = ranks_join(&h->l, h->version, h->terms, h->crew->timeout_s, &h->error);
	if (h->ranks && h->crew->work)
		h->crew->work(h);
	return NULL;
}

static inline void crew_run(struct crew *c, void (*work)(struct hand *h))
{
	c->work = work;
	for (int i = 0; i < c->n; i++)
		c->hand[i].thread = g_thread_new("rank", join_and_work, &c->hand[i]);
	for (int i = 0; i < c->n; i++)
		g_thread_join(c->hand[i].thread);
}

/* Connections end together, as those of processes that end do. */
static inline gpointer leave(gpointer hand)
{
	ranks_free(((struct hand *)hand)->ranks);
	return NULL;
}

static inline void crew_clear(struct crew *c)
{
	for (int i = 0; i < c->n; i++)
		c->hand[i].thread = g_thread_new("rank", leave, &c->hand[i]);
	for (int i = 0; i < c->n; i++) {
		g_thread_join(c->hand[i].thread);
		g_clear_error(&c->hand[i].error);
	}
	g_unlink(c->file);
	cr_assert_eq(g_rmdir(c->folder), 0);
	g_free(c->file);
	g_free(c->folder);
}

static inline void all_ok(const struct crew *c)
{
	for (int i = 0; i < c->n; i++)
		cr_assert(c->hand[i].ranks && c->hand[i].ok, "rank %d: %s", i, c->hand[i].error ? c->hand[i].error->message : "no words");
}
