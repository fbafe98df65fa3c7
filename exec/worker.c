/* A queue of tasks and the thread that empties it. Tasks are copied into a ring that doubles when it is full, so that pushing never waits and, once
 * the ring has its size, never allocates:
 *
 *      head              head + n
 *        v                  v
 *     [ | task | task | task | | | ]      the thread copies the first task out before it runs it: the ring may move meanwhile
 * (Locks are those of pthread, which the thread sanitizer can see.) */
#include "worker.h"

#include "device.h"

#include <glib.h>
#include <pthread.h>
#include <stdalign.h>
#include <stdatomic.h>
#include <string.h>

#define FIRST_ROOM 64 /* a power of two */

struct task {
	task_fn fn;
	size_t bytes;
	alignas(max_align_t) char args[WORKER_ARGS];
};

struct worker {
	GThread *thread;
	pthread_mutex_t lock;
	pthread_cond_t pushed, emptied;
	struct task *ring;
	size_t room, head, n;
	bool busy, ending;
	nsec_t patience_ns;
	atomic_uint calls; /* pushes, and the end */
};

static void task_copy(struct task *to, const struct task *from)
{
	to->fn = from->fn;
	to->bytes = from->bytes;
	memcpy(to->args, from->args, from->bytes);
}

/* Looks for work without the lock, which is let go meanwhile: waking a sleeping thread takes longer than launching a kernel. */
static void look(struct worker *w)
{
	unsigned seen = atomic_load(&w->calls);
	if (!w->patience_ns)
		return;
	pthread_mutex_unlock(&w->lock);
	for (nsec_t until = exec_now_ns() + w->patience_ns; atomic_load(&w->calls) == seen && exec_now_ns() < until;)
		continue;
	pthread_mutex_lock(&w->lock);
}

static void *work(void *user)
{
	struct worker *w = user;
	struct task task;
	pthread_mutex_lock(&w->lock);
	for (;;) {
		if (!w->n && !w->ending)
			look(w);
		while (!w->n && !w->ending)
			pthread_cond_wait(&w->pushed, &w->lock);
		if (!w->n)
			break;
		task_copy(&task, &w->ring[w->head]);
		w->head = (w->head + 1) & (w->room - 1);
		w->n--;
		w->busy = true;
		pthread_mutex_unlock(&w->lock);
		task.fn(task.args);
		pthread_mutex_lock(&w->lock);
		w->busy = false;
		if (!w->n)
			pthread_cond_broadcast(&w->emptied);
	}
	pthread_mutex_unlock(&w->lock);
	return NULL;
}

struct worker *worker_new(const char *name)
{
	struct worker *w = g_new0(struct worker, 1);
	pthread_mutex_init(&w->lock, NULL);
	pthread_cond_init(&w->pushed, NULL);
	pthread_cond_init(&w->emptied, NULL);
	w->room = FIRST_ROOM;
	w->ring = g_new(struct task, w->room);
	w->thread = g_thread_new(name, work, w);
	return w;
}

void worker_set_patience(struct worker *w, nsec_t patience_ns)
{
	pthread_mutex_lock(&w->lock);
	w->patience_ns = patience_ns;
	pthread_mutex_unlock(&w->lock);
}

void worker_free(struct worker *w)
{
	if (!w)
		return;
	pthread_mutex_lock(&w->lock);
	w->ending = true;
	atomic_fetch_add(&w->calls, 1);
	pthread_cond_signal(&w->pushed);
	pthread_mutex_unlock(&w->lock);
	g_thread_join(w->thread);
	pthread_cond_destroy(&w->emptied);
	pthread_cond_destroy(&w->pushed);
	pthread_mutex_destroy(&w->lock);
	g_free(w->ring);
	g_free(w);
}

static void grow(struct worker *w)
{
	struct task *ring = g_new(struct task, w->room * 2);
	for (size_t i = 0; i < w->n; i++)
		task_copy(&ring[i], &w->ring[(w->head + i) & (w->room - 1)]);
	g_free(w->ring);
	w->ring = ring;
	w->room *= 2;
	w->head = 0;
}

void worker_push(struct worker *w, task_fn fn, const void *args, size_t bytes)
{
	g_assert(bytes <= WORKER_ARGS);
	pthread_mutex_lock(&w->lock);
	if (w->n == w->room)
		grow(w);
	struct task *t = &w->ring[(w->head + w->n++) & (w->room - 1)];
	t->fn = fn;
	t->bytes = bytes;
	if (bytes)
		memcpy(t->args, args, bytes);
	atomic_fetch_add(&w->calls, 1);
	if (w->n == 1 && !w->busy)
		pthread_cond_signal(&w->pushed);
	pthread_mutex_unlock(&w->lock);
}

void worker_drain(struct worker *w)
{
	pthread_mutex_lock(&w->lock);
	while (w->n || w->busy)
		pthread_cond_wait(&w->emptied, &w->lock);
	pthread_mutex_unlock(&w->lock);
}
