/* Adam is bound by memory: 16 bytes read and 12 or 14 written a parameter against a dozen operations, so everything is done in one pass and every
 * thread takes the next piece until there is none, so that one whose core is taken meanwhile does not keep the others waiting. A pool's threads look
 * for the next job for a while, then sleep on a condition; so does the caller until the last is done.
 *
 *     caller  [post job]........................[go on]
 *     adam0            [ 0 ][ 2 ][  4  ][ 6 ]
 *     adam1            [ 1 ][    3   ][ 5 ]
 */
#define _GNU_SOURCE /* CPU sets, names of threads */
#include "adam_simd.h"

#include <errno.h>
#include <math.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <string.h>

/* Waking the threads costs as much as passing over this many parameters. */
#define ALONE_BELOW (1 << 15)
/* Pieces begin at multiples of it: no cache line belongs to two threads. */
#define PIECE_STEP 64
/* Of a thread, if they have that many parameters; the last ones to come then wait for a small part of a share. */
#define PIECES 8
#define PIECE_LEAST (1 << 13)

struct job {
	void (*run)(const struct job *j, const struct adam_loops *loops, size_t from, size_t to);
	const struct adam_args *update;
	struct adam_factors factors;
	float *sum;
	const void *in;
	void *out;
	int format;
	size_t n;
	bool fresh;
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
	atomic_int_least64_t patience_ns;
	atomic_size_t next; /* parameter of the job that no piece has yet */
	atomic_uint turn;   /* jobs so far, and the end */
	atomic_int busy;
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

static void take_pieces(struct adam_pool *p, const struct job *j)
{
	size_t each = MAX(j->n / (size_t)(p->threads * PIECES), PIECE_LEAST) / PIECE_STEP * PIECE_STEP, from;
	while ((from = atomic_fetch_add_explicit(&p->next, each, memory_order_relaxed)) < j->n)
		j->run(j, p->loops, from, MIN(j->n, from + each));
}

/* True as soon as *x is no longer `now`, false when patience has run out. */
static bool changed(const struct adam_pool *p, const atomic_uint *x, unsigned now)
{
	nsec_t until = p->patience_ns ? exec_now_ns() + p->patience_ns : 0;
	while (atomic_load(x) == now)
		if (exec_now_ns() >= until)
			return false;
	return true;
}

static void await_turn(struct adam_pool *p, unsigned turn)
{
	if (p->patience_ns && changed(p, &p->turn, turn))
		return;
	pthread_mutex_lock(&p->lock);
	while (atomic_load(&p->turn) == turn)
		pthread_cond_wait(&p->posted, &p->lock);
	pthread_mutex_unlock(&p->lock);
}

static void *thread_main(void *user)
{
	const struct adam_thread *t = user;
	struct adam_pool *p = t->pool;
	for (unsigned turn = 0;; turn++) {
		await_turn(p, turn);
		if (p->stop)
			return NULL;
		take_pieces(p, p->job);
		if (atomic_fetch_sub(&p->busy, 1) > 1)
			continue;
		pthread_mutex_lock(&p->lock);
		pthread_cond_signal(&p->done);
		pthread_mutex_unlock(&p->lock);
	}
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

void adam_pool_set_patience(struct adam_pool *p, nsec_t patience_ns)
{
	atomic_store(&p->patience_ns, patience_ns);
}

void adam_pool_free(struct adam_pool *p)
{
	if (!p)
		return;
	pthread_mutex_lock(&p->lock);
	p->stop = true;
	atomic_fetch_add(&p->turn, 1);
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

static bool all_done(struct adam_pool *p)
{
	nsec_t until = exec_now_ns() + p->patience_ns;
	while (atomic_load(&p->busy) > 0)
		if (exec_now_ns() >= until)
			return false;
	return true;
}

static void run(struct adam_pool *p, const struct job *j)
{
	if (!p || p->threads == 1 || j->n < ALONE_BELOW) {
		if (j->n)
			j->run(j, p ? p->loops : choose(), 0, j->n);
		return;
	}
	pthread_mutex_lock(&p->lock);
	while (p->job)
		pthread_cond_wait(&p->idle, &p->lock);
	p->job = j;
	atomic_store(&p->next, 0);
	atomic_store(&p->busy, p->threads);
	atomic_fetch_add(&p->turn, 1);
	pthread_cond_broadcast(&p->posted);
	pthread_mutex_unlock(&p->lock);
	bool done = all_done(p);
	pthread_mutex_lock(&p->lock);
	while (!done && atomic_load(&p->busy) > 0)
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
	if (j->fresh && j->format == ADAM_FP32) { /* zeros keep their signs */
		loops->cast(j->sum, ADAM_FP32, j->in, from, to);
		return;
	}
	if (j->fresh)
		memset(j->sum + from, 0, (to - from) * sizeof(float));
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

void adam_accumulate(struct adam_pool *p, float *sum, const void *gradient, int format, size_t n, bool fresh)
{
	run(p, &(struct job){.run = run_accumulate, .sum = sum, .in = gradient, .format = format, .n = n, .fresh = fresh});
}

void adam_cast(struct adam_pool *p, void *out, int format, const float *in, size_t n)
{
	run(p, &(struct job){.run = run_cast, .out = out, .in = in, .format = format, .n = n});
}
