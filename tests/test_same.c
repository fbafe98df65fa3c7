/* One policy against another: where experts live, how many GPUs, micro-batches and threads there are does not change the losses, mostly in no bit. */
#include "bench.h"

static void check_same(const struct asked *a, const struct asked *b, double tolerance)
{
	double x[STEPS], y[STEPS];
	losses_of(a, x);
	losses_of(b, y);
	for (int i = 0; i < STEPS; i++)
		cr_assert(fabs(x[i] - y[i]) <= tolerance * fabs(x[i]), "step %d: %.9f and %.9f with %s %s %s", i, x[i], y[i], b->policy,
		          b->set ? b->set[0] : "", b->set && b->set[0] ? b->set[1] : "");
	cr_assert_lt(x[STEPS - 1], x[0], "nothing was learned");
}

/* DRAM for blocks alone, a few of them. */
/* So slow in the schedule's eyes that nearly all updates are put off. */
#define PUT_OFF "policy.update_order=next-forward", "host.adam_gparams_per_s=0.001"
#define CACHE(gib) "software.runtime=framework", "host.dram_gib=" gib

static void check_same_bits(int gpus, int microbatches)
{
	const char *const *sets[] = {
	    SETS("policy.pinned_share=0"),
	    SETS("policy.pinned_share=0.5"),
	    SETS("policy.pinned_share=0.25", "policy.placement=sticky", "policy.upload_scope=next-layer", "policy.upload_ahead=3"),
	    SETS("policy.optimizer=cpu-step", "policy.upload_ahead=0"),
	    SETS("policy.optimizer=cpu-layer", "policy.placement=fixed"),
	    SETS("policy.expert_home=ssd"),
	    SETS("policy.pinned_share=0.5", PUT_OFF),
	    SETS("policy.pinned_share=0.25", "policy.placement=sticky", "policy.upload_scope=next-layer", "policy.upload_ahead=3", PUT_OFF),
	    SETS("policy.expert_home=ssd", "policy.pinned_share=0.5", "policy.ssd_cache=belady", CACHE("4.00012"), PUT_OFF),
	    SETS("policy.expert_home=ssd", "policy.pinned_share=0.5", CACHE("4.00012")),
	    SETS("machine.gpus_per_node=1", "pcie.gpus_per_root=1", "policy.pinned_share=0.5"),
	    SETS("machine.gpus_per_node=1", "pcie.gpus_per_root=1", "policy.expert_home=ssd", CACHE("4.00012")),
	};
	struct asked base = {.model = LARGER, .policy = STATIC, .gpus = gpus, .sequences = 8 / gpus, .microbatches = microbatches, .o = RATE};
	struct asked other = base;
	other.set = SETS("policy.expert_compute=sequential");
	check_same(&base, &other, 0);
	other.policy = ES_MOE;
	for (size_t i = 0; i < G_N_ELEMENTS(sets); i++) {
		other.set = sets[i];
		check_same(&base, &other, 0);
	}
}

Test(same, one_gpu_has_the_same_bits_wherever_experts_live)
{
	check_same_bits(1, 1);
}

Test(same, two_gpus_have_the_same_bits_wherever_experts_live)
{
	check_same_bits(2, 1);
}

Test(same, microbatches_have_the_same_bits_wherever_experts_live)
{
	check_same_bits(2, 2);
}

Test(same, losses_do_not_depend_on_gpus_microbatches_and_exchanges)
{
	const char *const *const sets[] = {
	    SETS("policy.pipeline_degree=4"),
	    SETS("policy.dispatch=padded", "policy.pipeline_degree=2"),
	    SETS("policy.dispatch=mask"),
	    SETS("policy.checkpoint=none"),
	    SETS("policy.checkpoint=keep-collectives"),
	    SETS("policy.expert_parallel=1"),
	    SETS("policy.expert_parallel=1", "policy.expert_home=dram", "policy.gradient_bytes=4"),
	};
	/* the balance is that of each micro-batch, so that it depends on their number by intent */
	struct asked one = {.model = LARGER, .policy = STATIC, .gpus = 1, .sequences = 8, .microbatches = 1, .o = {.lr = 3e-3f}}, other = one;
	for (int gpus = 1; gpus <= 4; gpus *= 2) {
		other.gpus = gpus;
		other.sequences = 8 / gpus;
		other.microbatches = gpus == 4 ? 1 : 2;
		other.set = NULL;
		check_same(&one, &other, 1e-5);
		for (size_t i = 0; gpus > 1 && i < G_N_ELEMENTS(sets); i++) {
			other.set = sets[i];
			/* sums in another order: a last bit may decide a token's expert, and the losses part a little */
			check_same(&one, &other, 1e-4);
		}
	}
}

Test(same, experts_are_balanced_over_the_tokens_of_all_gpus)
{
	struct asked one = {
	    .model = LARGER, .policy = STATIC, .gpus = 1, .sequences = 8, .microbatches = 1, .o = {.lr = 3e-3f, .balance = 0.01f, .z = 1e-3f}};
	struct asked other = one;
	for (int gpus = 2; gpus <= 4; gpus *= 2) {
		other.gpus = gpus;
		other.sequences = 8 / gpus;
		check_same(&one, &other, 1e-5);
	}
}

/* Launchers, streams and workers at the same time, a step running into the next: what the stages' order leaves open must not matter. */
static void check_threads(const struct asked *a)
{
	double expected[STEPS];
	struct bench b;
	g_autoptr(GError) error = NULL;
	losses_of(a, expected);
	bench_open(&b, a);
	g_autoptr(backend) exec = exec_new(b.device, a->gpus, b.engine, b.sc->machine, &error);
	cr_assert(exec, "%s", error ? error->message : "");
	for (int i = 0; i < STEPS; i++) {
		engine_begin(b.engine, (uint64_t)i);
		cr_assert(schedule_step(b.schedule, exec, &error), "%s", error ? error->message : "");
		if (i % 2 == 0)
			continue;
		cr_assert(schedule_wait(b.schedule, exec, &error), "%s", error ? error->message : "");
		cr_assert_eq(engine_loss(b.engine), expected[i], "step %d: %.9f, one stage at a time %.9f", i, engine_loss(b.engine), expected[i]);
	}
	g_clear_pointer(&exec, backend_free);
	bench_close(&b);
}

Test(same, threads_have_the_same_bits_as_one_stage_at_a_time)
{
	struct asked a = {.model = LARGER, .policy = STATIC, .gpus = 2, .sequences = 4, .microbatches = 2, .o = RATE};
	check_threads(&a);
	a.set = SETS("policy.pipeline_degree=4", "policy.expert_compute=sequential");
	check_threads(&a);
	a.set = SETS("policy.dispatch=padded", "policy.capacity_factor=1.25", "policy.expert_parallel=1");
	check_threads(&a);
	a.set = SETS("policy.checkpoint=keep-collectives");
	check_threads(&a);
	a.policy = ES_MOE;
	a.set = SETS("policy.pinned_share=0.25", "policy.upload_ahead=2");
	check_threads(&a);
	a.set = SETS("policy.expert_home=ssd", "policy.pinned_share=0.5", CACHE("4.00012"));
	check_threads(&a);
	a.set = SETS("policy.pinned_share=0.25", PUT_OFF);
	check_threads(&a);
	a.set = SETS("policy.expert_home=ssd", "policy.pinned_share=0.5", CACHE("4.00012"), PUT_OFF);
	check_threads(&a);
	a.set = SETS("policy.expert_parallel=1", "policy.placement=fixed", PUT_OFF);
	check_threads(&a);
	a.set = SETS("policy.expert_parallel=1", "policy.placement=fixed", "policy.optimizer=cpu-step");
	check_threads(&a);
	a.microbatches = 1;
	a.set = SETS("policy.placement=sticky", "policy.upload_scope=next-layer", "policy.upload_ahead=3", "policy.optimizer=cpu-layer");
	check_threads(&a);
}
