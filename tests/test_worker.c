/* Workers: order, copies of the arguments, and what waits for what. */
#include "exec/worker.h"

#include <criterion/criterion.h>
#include <glib.h>
#include <string.h>

struct record {
	int *seen, *n;
	int value;
};

static void append(void *args)
{
	const struct record *r = args;
	r->seen[(*r->n)++] = r->value;
}

Test(worker, tasks_run_in_the_order_they_were_pushed)
{
	enum { TASKS = 10000 };
	g_autofree int *seen = g_new0(int, TASKS);
	int n = 0;
	g_autoptr(worker) w = worker_new("order");
	for (int i = 0; i < TASKS; i++)
		worker_push(w, append, &(struct record){seen, &n, i}, sizeof(struct record));
	worker_drain(w);
	cr_assert_eq(n, TASKS);
	for (int i = 0; i < TASKS; i++)
		cr_assert_eq(seen[i], i);
}

struct gate {
	GMutex lock;
	GCond opened;
	bool open;
};

static void pass_gate(void *args)
{
	struct gate *g = *(struct gate **)args;
	g_mutex_lock(&g->lock);
	while (!g->open)
		g_cond_wait(&g->opened, &g->lock);
	g_mutex_unlock(&g->lock);
}

static void open_gate(struct gate *g)
{
	g_mutex_lock(&g->lock);
	g->open = true;
	g_cond_signal(&g->opened);
	g_mutex_unlock(&g->lock);
}

/* The queue grows while its first task stands still. */
Test(worker, push_never_waits_for_a_task_that_runs)
{
	struct gate gate = {0}, *p = &gate;
	int seen[1000], n = 0;
	g_autoptr(worker) w = worker_new("gate");
	worker_push(w, pass_gate, &p, sizeof(p));
	for (int i = 0; i < 1000; i++)
		worker_push(w, append, &(struct record){seen, &n, i}, sizeof(struct record));
	open_gate(&gate);
	worker_drain(w);
	cr_assert_eq(n, 1000);
	for (int i = 0; i < 1000; i++)
		cr_assert_eq(seen[i], i);
}

struct large {
	char **out;
	char text[WORKER_ARGS - sizeof(char **)];
};

static void keep_text(void *args)
{
	const struct large *l = args;
	*l->out = g_strdup(l->text);
}

Test(worker, arguments_are_copied_when_they_are_pushed)
{
	char *out = NULL;
	struct large l = {.out = &out};
	memset(l.text, 'x', sizeof(l.text) - 1);
	g_autoptr(worker) w = worker_new("copy");
	worker_push(w, keep_text, &l, sizeof(l));
	memset(l.text, 'y', sizeof(l.text) - 1);
	worker_drain(w);
	cr_assert_eq(strspn(out, "x"), sizeof(l.text) - 1);
	g_free(out);
}

Test(worker, free_runs_what_was_queued)
{
	int seen[100], n = 0;
	struct worker *w = worker_new("free");
	for (int i = 0; i < 100; i++)
		worker_push(w, append, &(struct record){seen, &n, i}, sizeof(struct record));
	worker_free(w);
	cr_assert_eq(n, 100);
	worker_free(NULL);
}

Test(worker, drain_of_an_idle_worker_returns_at_once)
{
	g_autoptr(worker) w = worker_new("idle");
	worker_drain(w);
	worker_drain(w);
}
