/* Adam is bound by memory: 16 bytes read and 12 or 14 written a parameter against a dozen operations, so everything is done in one pass and every
 * core takes an equal, contiguous share of it. A pool's threads sleep on a condition until a job comes; the caller sleeps until the last is done.
 *
 *     caller  [post job]........................[go on]
 *     adam0            [    first share     ]
 *     adam1            [    second share    ]
 */
#define _GNU_SOURCE /* CPU sets, names of threads */
#include "adam_simd.h"

#include <errno.h>
#include <math.h>
#include <pthread.h>
#include <sched.h>

/* Waking the threads costs as much as passing over this many parameters. */
#define ALONE_BELOW (1 << 15)
/* Shares begin at multiples of it: no cache line belongs to two threads. */
#define SHARE_STEP 64

struct job {
	void (*run)(const struct job *j, const struct adam_loops *loops, size_t from, size_t to);
	const struct adam_args *update;
	struct adam_factors factors;
	float *sum;
	const void *in;
	void *out;
	int format;
	size_t n;
};

struct adam_thread {
	struct adam_pool *pool;
	int index;
	pthread_t id;
};

struct adam_pool {
	const struct adam_loops *loops;
	int threads;
	struct adam_thread *thread; /* (threads), none when one: then the caller works */
	pthread_mutex_t lock;
	pthread_cond_t posted, done, idle;
	const struct job *job; /* NULL: idle */
	unsigned turn;
	int busy;
	bool stop;
};

/* Wider units first. */
static const struct adam_loops *const known[] = {
#ifdef __x86_64__
    &adam_avx512, &adam_avx2,
#endif
    &adam_plain};

static bool has(const struct adam_loops *loops)
{
#ifdef __x86_64__
	if (loops == &adam_avx512)
		return __builtin_cpu_supports("avx512f") != 0;
	if (loops == &adam_avx2)
		return __builtin_cpu_supports("avx2") != 0;
#endif
	return true;
}

/* The widest that the CPU has, but none wider than the one asked for. */
static const struct adam_loops *choose(void)
{
	const char *asked = g_getenv("ESMOE_SIMD");
	size_t i = 0;
	while (asked && i + 1 < G_N_ELEMENTS(known) && !g_str_equal(asked, known[i]->name))
		i++;
	if (i + 1 == G_N_ELEMENTS(known) && asked && !g_str_equal(asked, known[i]->name))
		i = 0;
	while (!has(known[i]))
		i++;
	return known[i];
}

const char *adam_simd(void)
{
	return choose()->name;
}

static struct adam_factors factors(const struct adam_args *a)
{
	const struct adam_step *s = &a->step;
	g_assert(s->t >= 1);
	return (struct adam_factors){
	    .scale = a->scale,
	    .keep_m = s->beta1,
	    .take_m = (float)(1 - (double)s->beta1),
	    .keep_v = s->beta2,
	    .take_v = (float)(1 - (double)s->beta2),
	    .correct_v = (float)(1 / sqrt(1 - pow(s->beta2, s->t))),
	    .eps = s->eps,
	    .rate = (float)(s->lr / (1 - pow(s->beta1, s->t))),
	    .keep = (float)(1 - (double)s->lr * s->decay),
	};
}

static void share(const struct job *j, const struct adam_loops *loops, int index, int threads)
{
	size_t each = (j->n / (size_t)threads / SHARE_STEP + 1) * SHARE_STEP;
	size_t from = MIN(j->n, each * (size_t)index), to = index == threads - 1 ? j->n : MIN(j->n, from + each);
	if (from < to)
		j->run(j, loops, from, to);
}

static void *thread_main(void *user)
{
	const struct adam_thread *t = user;
	struct adam_pool *p = t->pool;
	unsigned turn = 0;
	pthread_mutex_lock(&p->lock);
	for (;;) {
		while (p->turn == turn && !p->stop)
			pthread_cond_wait(&p->posted, &p->lock);
		if (p->stop)
			break;
		turn = p->turn;
		const struct job *j = p->job;
		pthread_mutex_unlock(&p->lock);
		share(j, p->loops, t->index, p->threads);
		pthread_mutex_lock(&p->lock);
		if (--p->busy == 0)
			pthread_cond_signal(&p->done);
	}
	pthread_mutex_unlock(&p->lock);
	return NULL;
}

/* Thread i on the i-th core that the process may use, when there are that many. Where the system refuses, the scheduler places it. */
static void pin(const struct adam_thread *t)
{
	cpu_set_t allowed, one;
	if (sched_getaffinity(0, sizeof(allowed), &allowed) != 0 || CPU_COUNT(&allowed) < t->pool->threads)
		return;
	int cpu = -1;
	for (int seen = -1; seen < t->index;)
		if (CPU_ISSET(++cpu, &allowed))
			seen++;
	CPU_ZERO(&one);
	CPU_SET(cpu, &one);
	(void)pthread_setaffinity_np(t->id, sizeof(one), &one);
}

struct adam_pool *adam_pool_new(int threads)
{
	g_assert(threads >= 1);
	struct adam_pool *p = g_new0(struct adam_pool, 1);
	p->loops = choose();
	p->threads = threads;
	pthread_mutex_init(&p->lock, NULL);
	pthread_cond_init(&p->posted, NULL);
	pthread_cond_init(&p->done, NULL);
	pthread_cond_init(&p->idle, NULL);
	p->thread = threads > 1 ? g_new0(struct adam_thread, threads) : NULL;
	for (int i = 0; threads > 1 && i < threads; i++) {
		struct adam_thread *t = &p->thread[i];
		g_autofree char *name = g_strdup_printf("adam%d", i);
		*t = (struct adam_thread){.pool = p, .index = i};
		if (pthread_create(&t->id, NULL, thread_main, t) != 0)
			g_error("no thread for the optimizer: %s", g_strerror(errno));
		pthread_setname_np(t->id, name);
		pin(t);
	}
	return p;
}

void adam_pool_free(struct adam_pool *p)
{
	if (!p)
		return;
	pthread_mutex_lock(&p->lock);
	p->stop = true;
	pthread_cond_broadcast(&p->posted);
	pthread_mutex_unlock(&p->lock);
	for (int i = 0; p->thread && i < p->threads; i++)
		pthread_join(p->thread[i].id, NULL);
	pthread_cond_destroy(&p->posted);
	pthread_cond_destroy(&p->done);
	pthread_cond_destroy(&p->idle);
	pthread_mutex_destroy(&p->lock);
	g_free(p->thread);
	g_free(p);
}

static void run(struct adam_pool *p, const struct job *j)
{
	if (!p || p->threads == 1 || j->n < ALONE_BELOW) {
		share(j, p ? p->loops : choose(), 0, 1);
		return;
	}
	pthread_mutex_lock(&p->lock);
	while (p->job)
		pthread_cond_wait(&p->idle, &p->lock);
	p->job = j;
	p->turn++;
	p->busy = p->threads;
	pthread_cond_broadcast(&p->posted);
	while (p->busy > 0)
		pthread_cond_wait(&p->done, &p->lock);
	p->job = NULL;
	pthread_cond_signal(&p->idle);
	pthread_mutex_unlock(&p->lock);
}

static void run_update(const struct job *j, const struct adam_loops *loops, size_t from, size_t to)
{
	loops->update(j->update, &j->factors, from, to);
}

static void run_accumulate(const struct job *j, const struct adam_loops *loops, size_t from, size_t to)
{
	loops->accumulate(j->sum, j->in, j->format, from, to);
}

static void run_cast(const struct job *j, const struct adam_loops *loops, size_t from, size_t to)
{
	loops->cast(j->out, j->format, j->in, from, to);
}

void adam_update(struct adam_pool *p, const struct adam_args *a)
{
	run(p, &(struct job){.run = run_update, .update = a, .factors = factors(a), .n = a->n});
}

void adam_update_plain(const struct adam_args *a)
{
	struct adam_factors f = factors(a);
	if (a->n)
		adam_plain.update(a, &f, 0, a->n);
}

void adam_accumulate(struct adam_pool *p, float *sum, const void *gradient, int format, size_t n)
{
	run(p, &(struct job){.run = run_accumulate, .sum = sum, .in = gradient, .format = format, .n = n});
}

void adam_cast(struct adam_pool *p, void *out, int format, const float *in, size_t n)
{
	run(p, &(struct job){.run = run_cast, .out = out, .in = in, .format = format, .n = n});
}
