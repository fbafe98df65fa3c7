/* Adam's bandwidth against that of a plain copy of as many bytes, by threads and formats, in turns in the same run; medians. Bytes are those that a
 * parameter must read and write: master, m and v both ways (24), its gradient in (2 or 4) and, when they are not the master itself, its parameters
 * out (2). The copy reads half of them and writes half: each thread a memcpy of its share, pinned like Adam's threads. */
#define _GNU_SOURCE /* CPU sets */
#include "exec/adam.h"

#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { MEGA_PARAMS = 24, ROUNDS = 9 };
static const size_t n_params = (size_t)MEGA_PARAMS << 20;

struct copier {
	char *to;
	const char *from;
	size_t bytes;
	int cpu;
	pthread_barrier_t *start, *end;
};

static nsec_t now_ns(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (nsec_t)t.tv_sec * NSEC_PER_SEC + t.tv_nsec;
}

static void *copy_main(void *user)
{
	const struct copier *c = user;
	cpu_set_t one;
	CPU_ZERO(&one);
	CPU_SET(c->cpu, &one);
	(void)pthread_setaffinity_np(pthread_self(), sizeof(one), &one);
	for (int i = 0; i < ROUNDS; i++) {
		pthread_barrier_wait(c->start);
		memcpy(c->to, c->from, c->bytes);
		pthread_barrier_wait(c->end);
	}
	return NULL;
}

/* The i-th CPU of this process. */
static int cpu_at(int i)
{
	cpu_set_t allowed;
	sched_getaffinity(0, sizeof(allowed), &allowed);
	for (int cpu = 0; cpu < CPU_SETSIZE; cpu++)
		if (CPU_ISSET(cpu, &allowed) && i-- == 0)
			return cpu;
	return 0;
}

static int by_time(const void *a, const void *b)
{
	const nsec_t *x = a, *y = b;
	return (*x > *y) - (*x < *y);
}

static nsec_t median(nsec_t *ns)
{
	qsort(ns, ROUNDS, sizeof(*ns), by_time);
	return ns[ROUNDS / 2];
}

struct tensors {
	float *master, *m, *v;
	void *gradient, *out;
	char *from, *to;
};

static void bench(const struct tensors *t, int threads, int gradient_format, int out_format)
{
	int bytes = 24 + (gradient_format == ADAM_BF16 ? 2 : 4) + (out_format == ADAM_BF16 ? 2 : 0);
	size_t half = (size_t)bytes / 2 * n_params, share = half / (size_t)threads;
	nsec_t adam_ns[ROUNDS], copy_ns[ROUNDS];
	g_autoptr(adam_pool) pool = adam_pool_new(threads);
	g_autofree pthread_t *thread = g_new(pthread_t, threads);
	g_autofree struct copier *copier = g_new(struct copier, threads);
	pthread_barrier_t start, end;
	pthread_barrier_init(&start, NULL, (unsigned)threads + 1);
	pthread_barrier_init(&end, NULL, (unsigned)threads + 1);
	for (int i = 0; i < threads; i++) {
		copier[i] = (struct copier){t->to + share * (size_t)i, t->from + share * (size_t)i, share, cpu_at(i), &start, &end};
		pthread_create(&thread[i], NULL, copy_main, &copier[i]);
	}
	for (int i = 0; i < ROUNDS; i++) {
		struct adam_args a = {.master = t->master,
		                      .m = t->m,
		                      .v = t->v,
		                      .gradient = t->gradient,
		                      .out = out_format == ADAM_BF16 ? t->out : t->master,
		                      .n = n_params,
		                      .scale = 1,
		                      .gradient_format = gradient_format,
		                      .out_format = out_format,
		                      .step = {1e-4f, 0.9f, 0.999f, 1e-8f, 0.01f, i + 1}};
		nsec_t from = now_ns();
		adam_update(pool, &a);
		adam_ns[i] = now_ns() - from;
		from = now_ns();
		pthread_barrier_wait(&start);
		pthread_barrier_wait(&end);
		copy_ns[i] = now_ns() - from;
	}
	for (int i = 0; i < threads; i++)
		pthread_join(thread[i], NULL);
	pthread_barrier_destroy(&start);
	pthread_barrier_destroy(&end);
	double adam = (double)bytes * (double)n_params / (double)median(adam_ns), copy = 2 * (double)half / (double)median(copy_ns);
	printf("%-7s %7d  %-8s  %-10s  %11d  %9.2f  %9.2f  %6.2f\n", adam_simd(), threads, gradient_format == ADAM_BF16 ? "bf16" : "fp32",
	       out_format == ADAM_BF16 ? "bf16" : "fp32", bytes, adam, copy, adam / copy);
}

static void *touched(size_t bytes)
{
	void *p = NULL;
	if (posix_memalign(&p, 2 << 20, bytes) != 0)
		g_error("no memory for %zu bytes", bytes);
	return memset(p, 0, bytes);
}

int main(void)
{
	struct tensors t = {touched(4 * n_params), touched(4 * n_params),  touched(4 * n_params), touched(4 * n_params),
	                    touched(2 * n_params), touched(15 * n_params), touched(15 * n_params)};
	int all = (int)g_get_num_processors();
	printf("%d Mi parameters, medians of %d\n", MEGA_PARAMS, ROUNDS);
	printf("unit    threads  gradient  parameters  bytes/param  Adam GB/s  copy GB/s  ratio\n");
	for (int threads = 1;; threads = all) {
		for (int formats = 0; formats < 4; formats++)
			bench(&t, threads, formats / 2, formats % 2);
		if (threads == all)
			break;
	}
	free(t.master);
	free(t.m);
	free(t.v);
	free(t.gradient);
	free(t.out);
	free(t.from);
	free(t.to);
	return 0;
}
