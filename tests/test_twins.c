/* The executor runs the same stages as the simulator. */
#include "exec_bench.h"

static bool same_stage(const struct stage *a, const struct stage *b)
{
	return a->id == b->id && a->kind == b->kind && a->pass == b->pass && a->step_parity == b->step_parity && a->layer == b->layer &&
	       a->microbatch == b->microbatch && a->expert == b->expert && a->slot == b->slot && a->part == b->part && a->rank == b->rank &&
	       a->stream == b->stream && a->group == b->group && a->group_size == b->group_size && a->profile == b->profile &&
	       a->tokens == b->tokens && a->n_kernels == b->n_kernels && a->bytes == b->bytes && a->cost_ns == b->cost_ns &&
	       a->n_preds == b->n_preds && memcmp(a->preds, b->preds, sizeof a->preds[0] * a->n_preds) == 0;
}

static bool same_span(const struct span *a, const struct span *b)
{
	return a->id == b->id && a->kind == b->kind && a->pass == b->pass && a->step == b->step && a->layer == b->layer &&
	       a->microbatch == b->microbatch && a->expert == b->expert && a->rank == b->rank && a->stream == b->stream && a->tokens == b->tokens &&
	       a->bytes == b->bytes && a->n_preds == b->n_preds && memcmp(a->preds, b->preds, sizeof a->preds[0] * a->n_preds) == 0;
}

/* What was issued, against the do-nothing backend's record; a launcher and a node's worker each issue in launch order. */
static void check_issued(const struct bench *bench, const GArray *recorded)
{
	g_autofree stage_id *last = g_new0(stage_id, bench->m->gpus + stream_count(bench->m));
	g_autofree bool *seen = g_new0(bool, recorded->len);
	cr_assert_eq(bench->issued->len, recorded->len);
	for (guint i = 0; i < bench->issued->len; i++) {
		const struct stage *stage = &g_array_index(bench->issued, struct stage, i);
		const bool gpu = stage->stream < (stream_id)bench->m->gpus * GPU_STREAMS;
		stage_id *before = &last[gpu ? stage->rank : bench->m->gpus + (int)stage->stream];
		cr_assert(stage->id < recorded->len && !seen[stage->id], "stage %u is issued twice", stage->id);
		cr_assert_geq(stage->id, *before);
		cr_assert(same_stage(stage, &g_array_index(recorded, struct stage, stage->id)), "stage %u is another", stage->id);
		seen[ *before = stage->id] = true;
	}
}

static void check_same(const char *policy, int microbatches, const char *const *set)
{
	struct steps t;
	const struct scenario_options o = {.model = ROUND_NETWORK,
	                                   .machine = ROUND_MACHINE,
	                                   .policy = policy,
	                                   .routing = "zipf:1",
	                                   .seed = 3,
	                                   .microbatches = microbatches,
	                                   .set = set};
	g_autoptr(trace) simulated = trace_new();
	steps_simulate(&t, &o, 3, &(struct sim_options){0});
	sim_trace(t.b, false, simulated);
	struct schedule *schedule = schedule_made(t.s);
	struct bench *bench = bench_new(t.s->machine, t.s->routing, NULL);
	steps_run(schedule, bench->b, 3, NULL);
	exec_trace(bench->b, bench->b->n_launched, bench->trace);
	check_issued(bench, t.stages);
	cr_assert_eq(bench->trace->spans->len, simulated->spans->len);
	cr_assert_eq(bench->trace->step_end_ns->len, simulated->step_end_ns->len);
	for (guint i = 0; i < simulated->spans->len; i++)
		cr_assert(same_span(&g_array_index(bench->trace->spans, struct span, i), &g_array_index(simulated->spans, struct span, i)),
		          "span %u is another", i);
	bench_free(bench);
	schedule_free(schedule);
	steps_clear(&t);
}

#define SHAPE "machine.gpus=2", "network.experts=6", "network.layers=3"

Test(twins, the_executor_runs_the_stages_that_the_simulator_runs)
{
	check_same("es-moe", 1, SETS(SHAPE, "policy.expert_home=dram"));
	check_same("es-moe", 2, SETS(SHAPE, "network.sequences=2", "policy.expert_home=ssd"));
	check_same("static", 1, SETS(SHAPE));
	check_same("fairseq", 2, SETS(SHAPE, "network.sequences=2"));
}
