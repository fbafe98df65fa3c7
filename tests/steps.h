/* Scenarios in round numbers, and whole steps of their schedules with every stage kept: on the do-nothing backend, and with times on the simulator.
 */
#pragma once

#include "model/backend_null.h"
#include "model/schedule.h"
#include "sim/sim.h"

#include <criterion/criterion.h>

/* A GPU whose kernels never take longer than `kernel_us`, links and memories so wide that nothing is shared (streaming kernels leave half of HBM);
 * one MoE layer of 2^23 parameters an expert. Latencies are 0: an upload takes 2^24 / h2d_gbps ns, a download the same over d2h_gbps, Adam 2^23 /
 * adam_gparams_per_s ns. */
#define ROUND_MACHINE                                                                                                                                \
	"[machine]\ngpus = 1\ngpus_per_node = 4\n"                                                                                                   \
	"[gpu]\nsms = 100\nhbm_gib = 1000\nreserved_gib = 0\nbf16_tflops = 100000\nhbm_gbps = 100000\ngemm_efficiency = 1\n"                         \
	"hbm_efficiency = 0.5\nkernel_us = 1\nnccl_sm_share = 0\ncopy_gemm_slowdown = 1\n"                                                           \
	"[pcie]\nh2d_gbps = 16\nd2h_gbps = 16\nduplex_gbps = 32\nlatency_us = 0\n"                                                                   \
	"[nvlink]\ngbps = 1000\nefficiency = 1\nlatency_us = 0\n[nic]\ngbps = 100\nlatency_us = 0\n"                                                 \
	"[host]\ncores = 8\ndram_gib = 4000\ndram_reserved_gib = 0\ndram_gbps = 90000\nadam_gparams_per_s = 8\nadam_threads = 8\n"                   \
	"adam_bytes_per_param = 28\n"                                                                                                                \
	"[ssd]\ngb = 10000\nread_gbps = 4\nwrite_gbps = 4\nmixed_gbps = 8\nlatency_us = 0\n"                                                         \
	"[software]\nlaunch_us = 0\nsync_us = 0\nevent_us = 0\n"
#define ROUND_NETWORK                                                                                                                                \
	"[network]\nlayers = 1\nd_model = 1024\nheads = 8\nvocab = 1024\nseq_len = 64\nsequences = 1\nactivation = gelu\nd_ff = 4096\n"              \
	"experts = 1\ntop_k = 1\ntied = true\n"
#define ROUND_POLICY "[policy]\nexpert_home = dram\noptimizer = cpu-expert\n"
enum { ROUND_EXPERT_PARAMS = 2 * 1024 * 4096 };

#define SETS(...) ((const char *const[]){__VA_ARGS__, NULL})

#define STEPS_MOST 4

struct steps {
	struct scenario *s;
	struct schedule *schedule;
	struct backend *b;
	GArray *stages;                 /* struct stage, of all steps */
	stage_id first[STEPS_MOST + 1]; /* where each step begins, and the last ends */
	int n;
};

static inline struct scenario *scenario_made(const struct scenario_options *o)
{
	g_autoptr(GError) error = NULL;
	struct scenario *s = scenario_new(o, &error);
	cr_assert(s != NULL, "%s", error ? error->message : "");
	return s;
}

static inline struct schedule *schedule_made(const struct scenario *s)
{
	g_autoptr(GError) error = NULL;
	struct schedule *schedule = schedule_new(s, NULL, &error);
	cr_assert(schedule != NULL, "%s", error ? error->message : "");
	return schedule;
}

static inline void steps_run(struct schedule *schedule, struct backend *b, int n, stage_id *first)
{
	g_autoptr(GError) error = NULL;
	for (int i = 0; i < n; i++) {
		if (first)
			first[i] = b->n_launched;
		cr_assert(schedule_step(schedule, b, &error), "%s", error ? error->message : "");
	}
	if (first)
		first[n] = b->n_launched;
	cr_assert(schedule_wait(schedule, b, &error), "%s", error ? error->message : "");
}

/* `n` steps on the do-nothing backend. */
static inline void steps_record(struct steps *t, const struct scenario_options *o, int n)
{
	*t = (struct steps){.s = scenario_made(o), .stages = g_array_new(FALSE, FALSE, sizeof(struct stage)), .n = n};
	t->schedule = schedule_made(t->s);
	t->b = backend_null_new(t->s->routing, t->s->machine->gpus);
	backend_null_record(t->b, t->stages);
	steps_run(t->schedule, t->b, n, t->first);
}

/* The same, then again on a simulator, which `b` becomes. */
static inline void steps_simulate(struct steps *t, const struct scenario_options *o, int n, const struct sim_options *options)
{
	steps_record(t, o, n);
	schedule_free(t->schedule);
	backend_free(t->b);
	t->schedule = schedule_made(t->s);
	t->b = sim_new(t->s->machine, schedule_resources(t->schedule), t->s->routing, options);
	steps_run(t->schedule, t->b, n, NULL);
	cr_assert_eq(t->b->n_launched, t->stages->len);
}

static inline void steps_clear(struct steps *t)
{
	backend_free(t->b);
	schedule_free(t->schedule);
	scenario_free(t->s);
	g_array_unref(t->stages);
}

static inline const struct stage *stage_at(const struct steps *t, stage_id id)
{
	return &g_array_index(t->stages, struct stage, id);
}

/* For each stage of step `step` as `st`. */
#define EACH_STAGE(t, step, st)                                                                                                                      \
	for (const struct stage *st = stage_at(t, (t)->first[step]), *const end_##st = stage_at(t, (t)->first[(step) + 1]); st < end_##st; st++)

/* The i-th stage of its kind and pass in a step. */
static inline const struct stage *stage_find(const struct steps *t, int step, int kind, int pass, int i)
{
	EACH_STAGE(t, step, st)
	if (st->kind == kind && st->pass == pass && i-- == 0)
		return st;
	cr_assert_fail("no such %s %s in step %d", stage_pass_name(pass), stage_kind_name(kind), step);
	return NULL;
}

static inline nsec_t start_of(const struct steps *t, const struct stage *st)
{
	return sim_start_ns(t->b, st->id);
}
static inline nsec_t end_of(const struct steps *t, const struct stage *st)
{
	return sim_end_ns(t->b, st->id);
}

/* What the stages of a kind and pass add up to in a step. */
struct sum {
	uint64_t n, tokens, bytes;
	nsec_t cost_ns;
};
static inline struct sum stage_sum(const struct steps *t, int step, int kind, int pass)
{
	struct sum sum = {0};
	EACH_STAGE(t, step, st)
	if (st->kind == kind && st->pass == pass) {
		sum.n++;
		sum.tokens += st->tokens;
		sum.bytes += st->bytes;
		sum.cost_ns += st->cost_ns;
	}
	return sum;
}
