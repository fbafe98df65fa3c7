/* Stages a second through building and simulating together, as predict does it: the schedule and the simulation made anew, two steps of ES-MoE with
 * the experts in DRAM launched and waited for, both freed. Reading the presets is not counted. A figure is the best of several runs by the CPU time
 * of this process, which is the wall time of an idle machine; others on the machine do not count. A verdict is printed, not returned: benchmarks are
 * not tests. */
#include "model/schedule.h"
#include "sim/sim.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <time.h>

enum { STEPS = 2 };

struct run {
	double cpu_s, wall_s;
	stage_id stages;
};

static double seconds(clockid_t clock)
{
	struct timespec t;
	clock_gettime(clock, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void fail(GError *error)
{
	fprintf(stderr, "bench_schedule: %s\n", error->message);
	exit(EXIT_FAILURE);
}

static struct scenario *scenario_made(const struct scenario_options *o)
{
	GError *error = NULL;
	struct scenario *sc = scenario_new(o, &error);
	if (!sc)
		fail(error);
	return sc;
}

static struct scenario *scenario_of(const char *model, const char *machine, int gpus, int experts, const char *routing)
{
	const char *set[] = {"policy.expert_home=dram", NULL};
	return scenario_made(&(struct scenario_options){
	    .model = model, .machine = machine, .policy = "es-moe", .gpus = gpus, .experts = experts, .routing = routing, .seed = 1, .set = set});
}

static struct run run_steps(const struct scenario *sc, int steps)
{
	GError *error = NULL;
	double cpu_s = seconds(CLOCK_PROCESS_CPUTIME_ID), wall_s = seconds(CLOCK_MONOTONIC);
	struct schedule *s = schedule_new(sc, NULL, &error);
	if (!s)
		fail(error);
	struct backend *b = sim_new(sc->machine, schedule_resources(s), sc->routing, &(struct sim_options){0});
	for (int i = 0; i < steps; i++)
		if (!schedule_step(s, b, &error))
			fail(error);
	if (!schedule_wait(s, b, &error))
		fail(error);
	struct run run = {.stages = b->n_launched};
	backend_free(b);
	schedule_free(s);
	run.cpu_s = seconds(CLOCK_PROCESS_CPUTIME_ID) - cpu_s;
	run.wall_s = seconds(CLOCK_MONOTONIC) - wall_s;
	return run;
}

/* Returns the nanoseconds a stage. */
static double bench(const char *model, const char *machine, int gpus, int experts, const char *routing, int times)
{
	g_autoptr(scenario) sc = scenario_of(model, machine, gpus, experts, routing);
	struct run best = run_steps(sc, STEPS);
	for (int i = 1; i < times; i++) {
		struct run run = run_steps(sc, STEPS);
		best.cpu_s = MIN(best.cpu_s, run.cpu_s);
		best.wall_s = MIN(best.wall_s, run.wall_s);
	}
	double ns = best.cpu_s / best.stages * 1e9;
	printf("%-9s %-12s %-8s %4d GPUs %4d experts %8u stages %9.2f ms CPU %9.2f ms wall %6.1f ns a stage %5.2f million/s\n", model, machine,
	       routing, gpus, experts, best.stages, best.cpu_s * 1e3, best.wall_s * 1e3, ns, 1e3 / ns);
	return ns;
}

static void verdict(const char *what, double figure, const char *unit, bool most, double target)
{
	bool met = most ? figure <= target : figure >= target;
	printf("%-44s %6.2f %s (asked: at %s %g): %s\n", what, figure, unit, most ? "most" : "least", target, met ? "met" : "MISSED");
}

static double peak_gib(void)
{
	struct rusage usage;
	getrusage(RUSAGE_SELF, &usage);
	return (double)usage.ru_maxrss * 1024 / GIB;
}

/* 4 GPUs with 64 experts a layer, then sixteen times that. */
static void bench_pair(const char *machine, const char *routing)
{
	double small = bench("gpt-moe-m", machine, 4, 64, routing, 100), large = bench("gpt-moe-m", machine, 64, 1024, routing, 10);
	verdict("  stages a second, 4 GPUs", 1e3 / small, "million", false, 3);
	verdict("  cost of a stage on 64 GPUs over that on 4", large / small, "x", true, 1.5);
}

int main(void)
{
	static const char *const machines[] = {"a100-40g-x4", "a100-80g-x8", "h200-x8"}, *const routings[] = {"uniform", "zipf:1"};
	for (size_t m = 0; m < G_N_ELEMENTS(machines); m++)
		for (size_t r = 0; r < G_N_ELEMENTS(routings); r++)
			bench_pair(machines[m], routings[r]);
	g_autoptr(scenario) huge = scenario_of("gpt-moe-l", "h200-x8", 2048, 2048, "uniform");
	struct run run = run_steps(huge, 1);
	printf("gpt-moe-l h200-x8      uniform  2048 GPUs 2048 experts, one step: %u stages\n", run.stages);
	verdict("  time", run.cpu_s, "s", true, 20);
	verdict("  memory, peak of this process", peak_gib(), "GiB", true, 8);
	const char *hierarchical[] = {"policy.all_to_all=hierarchical", NULL};
	g_autoptr(scenario) wide = scenario_made(&(struct scenario_options){
	    .model = "gpt-moe-l", .machine = "a100-80g-x8", .policy = "tutel", .gpus = 4096, .experts = 4096, .sequences = 8, .set = hierarchical});
	run = run_steps(wide, 1);
	printf("gpt-moe-l a100-80g-x8  uniform  4096 GPUs 4096 experts, Tutel, hierarchical all-to-alls, one step: %u stages\n", run.stages);
	verdict("  time", run.cpu_s, "s", true, 30);
	return EXIT_SUCCESS;
}
