/* Adam is bound by memory: 16 bytes read and 12 or 14 written a parameter against a dozen operations, so everything is done in one pass and every
 * thread takes the next piece until there is none. Then it goes on to the next job, if there is one, while others still work on their last pieces: a
 * thread whose core is taken for a while costs its own share and not that of all who would wait for it.
 *
 *     caller  [start a][start b]..[wait a].......[wait b]
 *     adam0            [a0][a2][ a4 ][b1][b3]
 *     adam1            [a1][  a3  ][ b0 ][b2 ]
 *
 * Jobs lie in a ring, in the order of their tickets. Each thread passes by each of them; a place of the ring is free again when all have left it.
 * Threads look for the next job for a while, then sleep on a condition; so does who waits for the end of one. */
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
/* That are begun and not left by all: as many updates as a thread can be late. */
#define JOBS 8

struct job {
	void (*run)(const struct job *j, const struct adam_loops *loops, size_t from, size_t to);
	struct adam_args update;
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

struct place {
	struct job job;
	atomic_size_t next;          /* parameter that no piece has yet */
	atomic_size_t left;          /* parameters that are not done */
	atomic_int inside;           /* threads that may still take a piece */
	atomic_uint_least64_t ended; /* ticket of the last job here that is done */
};

struct adam_pool {
	const struct adam_loops *loops;
	int threads;
	struct adam_thread *thread; /* (threads), none when one: then the caller works */
	pthread_mutex_t lock;
	pthread_cond_t started, changed; /* a job was; one ended or was left by all */
	atomic_int_least64_t patience_ns;
	atomic_uint_least64_t jobs; /* so far, and the end: the last one's ticket */
	atomic_bool stop;
	struct place ring[JOBS];
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

static struct place *place_of(struct adam_pool *p, adam_ticket ticket)
{
	return &p->ring[ticket % JOBS];
}

static void tell(struct adam_pool *p, pthread_cond_t *what)
{
	pthread_mutex_lock(&p->lock);
	pthread_cond_broadcast(what);
	pthread_mutex_unlock(&p->lock);
}

static void take_pieces(struct adam_pool *p, adam_ticket ticket)
{
	struct place *at = place_of(p, ticket);
	const struct job *j = &at->job;
	size_t each = MAX(j->n / (size_t)(p->threads * PIECES), PIECE_LEAST) / PIECE_STEP * PIECE_STEP, from;
	while ((from = atomic_fetch_add_explicit(&at->next, each, memory_order_relaxed)) < j->n) {
		size_t n = MIN(each, j->n - from);
		j->run(j, p->loops, from, from + n);
		if (atomic_fetch_sub(&at->left, n) > n)
			continue;
		atomic_store(&at->ended, ticket);
		tell(p, &p->changed);
	}
	if (atomic_fetch_sub(&at->inside, 1) == 1)
		tell(p, &p->changed);
}

/* True as soon as *x has reached `ticket`, false when patience has run out. */
static bool reached(const struct adam_pool *p, const atomic_uint_least64_t *x, adam_ticket ticket)
{
	nsec_t until = p->patience_ns ? exec_now_ns() + p->patience_ns : 0;
	while (atomic_load(x) < ticket)
		if (exec_now_ns() >= until)
			return false;
	return true;
}

static void await(struct adam_pool *p, const atomic_uint_least64_t *x, adam_ticket ticket, pthread_cond_t *told)
{
	if (reached(p, x, ticket))
		return;
	pthread_mutex_lock(&p->lock);
	while (atomic_load(x) < ticket)
		pthread_cond_wait(told, &p->lock);
	pthread_mutex_unlock(&p->lock);
}

static void *thread_main(void *user)
{
	const struct adam_thread *t = user;
	struct adam_pool *p = t->pool;
	for (adam_ticket ticket = 1;; ticket++) {
		await(p, &p->jobs, ticket, &p->started);
		if (p->stop)
			return NULL;
		take_pieces(p, ticket);
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
	pthread_cond_init(&p->started, NULL);
	pthread_cond_init(&p->changed, NULL);
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
	adam_wait(p, atomic_load(&p->jobs));
	p->stop = true;
	atomic_fetch_add(&p->jobs, 1);
	tell(p, &p->started);
	for (int i = 0; p->thread && i < p->threads; i++)
		pthread_join(p->thread[i].id, NULL);
	pthread_cond_destroy(&p->started);
	pthread_cond_destroy(&p->changed);
	pthread_mutex_destroy(&p->lock);
	g_free(p->thread);
	g_free(p);
}

static adam_ticket start(struct adam_pool *p, const struct job *j)
{
	if (!p || p->threads == 1 || j->n < ALONE_BELOW) {
		if (j->n)
			j->run(j, p ? p->loops : choose(), 0, j->n);
		return 0;
	}
	pthread_mutex_lock(&p->lock);
	while (atomic_load(&place_of(p, p->jobs + 1)->inside))
		pthread_cond_wait(&p->changed, &p->lock);
	adam_ticket ticket = p->jobs + 1;
	struct place *at = place_of(p, ticket);
	at->job = *j;
	atomic_store(&at->next, 0);
	atomic_store(&at->left, j->n);
	atomic_store(&at->inside, p->threads);
	atomic_store(&p->jobs, ticket);
	pthread_cond_broadcast(&p->started);
	pthread_mutex_unlock(&p->lock);
	return ticket;
}

void adam_wait(struct adam_pool *p, adam_ticket ticket)
{
	if (ticket)
		await(p, &place_of(p, ticket)->ended, ticket, &p->changed);
}

static void run_update(const struct job *j, const struct adam_loops *loops, size_t from, size_t to)
{
	loops->update(&j->update, &j->factors, from, to);
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

adam_ticket adam_update_start(struct adam_pool *p, const struct adam_args *a)
{
	return start(p, &(struct job){.run = run_update, .update = *a, .factors = factors(a), .n = a->n});
}

void adam_update(struct adam_pool *p, const struct adam_args *a)
{
	adam_wait(p, adam_update_start(p, a));
}

void adam_update_plain(const struct adam_args *a)
{
	struct adam_factors f = factors(a);
	if (a->n)
		adam_plain.update(a, &f, 0, a->n);
}

void adam_accumulate(struct adam_pool *p, float *sum, const void *gradient, int format, size_t n, bool fresh)
{
	adam_wait(p, start(p, &(struct job){.run = run_accumulate, .sum = sum, .in = gradient, .format = format, .n = n, .fresh = fresh}));
}

void adam_cast(struct adam_pool *p, void *out, int format, const float *in, size_t n)
{
	adam_wait(p, start(p, &(struct job){.run = run_cast, .out = out, .in = in, .format = format, .n = n}));
}
