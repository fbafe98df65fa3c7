/* Cores for the threads of virtual GPUs. Those that compute keep one each, the last core first (the optimizer's threads take the first ones, adam.c).
 * Copies and collectives are short and others wait for them: they keep off the cores of other GPUs, where they would stand in line behind
 * computation that has nothing to do with them while their own GPU's core idles. With two GPUs:
 *
 *     cores      0      1      2      3
 *     compute                gpu1   gpu0
 *     others    both   both   gpu1   gpu0
 *
 * All of this is a hint: where the system refuses, a thread goes where it may. */
#define _GNU_SOURCE /* CPU sets */
#include "host.h"

#include <sched.h>

struct host_cores {
	cpu_set_t allowed; /* none: the system does not tell */
};

struct seat {
	cpu_set_t cores;
};
G_STATIC_ASSERT(sizeof(struct seat) <= WORKER_ARGS);

struct host_cores *host_cores_new(void)
{
	struct host_cores *c = g_new0(struct host_cores, 1);
	if (sched_getaffinity(0, sizeof(c->allowed), &c->allowed) != 0)
		CPU_ZERO(&c->allowed);
	return c;
}

static int core_of(const struct host_cores *c, int gpu)
{
	int n = CPU_COUNT(&c->allowed), skip = n - 1 - gpu % n, cpu = 0;
	while (!CPU_ISSET(cpu, &c->allowed) || skip-- > 0)
		cpu++;
	return cpu;
}

static void sit_down(void *args)
{
	const struct seat *s = args;
	if (CPU_COUNT(&s->cores))
		(void)sched_setaffinity(0, sizeof(s->cores), &s->cores);
}

void host_core_keep(const struct host_cores *c, struct worker *w, int gpu)
{
	struct seat s;
	CPU_ZERO(&s.cores);
	if (CPU_COUNT(&c->allowed))
		CPU_SET(core_of(c, gpu), &s.cores);
	worker_push(w, sit_down, &s, sizeof(s));
}

void host_core_keep_off(const struct host_cores *c, struct worker *w, int gpu, int gpus)
{
	struct seat s = {c->allowed};
	for (int i = 0; CPU_COUNT(&c->allowed) && i < gpus; i++)
		CPU_CLR(core_of(c, i), &s.cores);
	if (CPU_COUNT(&c->allowed))
		CPU_SET(core_of(c, gpu), &s.cores);
	worker_push(w, sit_down, &s, sizeof(s));
}
