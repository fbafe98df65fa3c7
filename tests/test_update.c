/* How parameters and gradients of data-parallel copies travel: fused or tensor by tensor, in buckets, and an embedding that is cut. */
#include "model/error.h"
#include "steps.h"

/* MoE-S: 12 layers, D 768, 51 200 words; 13 tensors a layer beside its experts: projections with biases 8, norms 4, gate 1. */
enum { LAYERS = 12, WIDTH = 768, WORDS = 51200, TENSORS = 13, EXPERTS = 16, GPUS = 8 };
#define LAYER_PARAMS (4ul * WIDTH * WIDTH + WIDTH * EXPERTS)
#define TABLE ((uint64_t)WORDS * WIDTH)

static struct scenario_options on_node(const char *const *set)
{
	return (struct scenario_options){
	    .model = "gpt-moe-s", .machine = "h200-x8", .policy = "static", .experts = EXPERTS, .gpus = GPUS, .set = set};
}

/* n messages of a sum of bytes take n - 1 latencies more, and n launches. */
Test(update, tensors_that_travel_alone_each_pay_a_latency)
{
	static const char *const fused[] = {"policy.zero_stage=3", NULL}, *const alone[] = {"policy.zero_stage=3", "policy.fused_communication=false",
	                                                                                    NULL};
	struct steps a, b;
	struct scenario_options o = on_node(fused);
	steps_record(&a, &o, 1);
	o.set = alone;
	steps_record(&b, &o, 1);
	cr_assert_eq(a.stages->len, b.stages->len);
	int gathers = 0;
	for (guint i = 0; i < a.stages->len; i++) {
		const struct stage *x = stage_at(&a, i), *y = stage_at(&b, i);
		if (x->kind != STAGE_ALL_GATHER || x->part != REDUCED_DENSE)
			continue;
		gathers++;
		cr_assert_eq(x->bytes, y->bytes);
		cr_assert_eq(x->n_kernels * TENSORS, y->n_kernels);
		cr_assert_leq(labs(y->cost_ns - x->cost_ns - (TENSORS - 1) * (nsec_t)(a.s->machine->nvlink_latency_us * 1e3)), TENSORS, "%ld, %ld ns",
		              (long)x->cost_ns, (long)y->cost_ns);
	}
	cr_assert_eq(gathers, 2 * LAYERS * GPUS); /* forward, backward */
	steps_clear(&a);
	steps_clear(&b);
}

Test(update, buckets_carry_all_gradients_in_full_messages)
{
	enum { MIB = 7 };
	static const char *const set[] = {"policy.gradient_bucket_mib=7", NULL};
	for (int zero = 0; zero < 2; zero++) {
		struct steps t;
		g_autofree char *stage = g_strdup_printf("policy.zero_stage=%d", zero);
		struct scenario_options o = on_node(SETS(set[0], stage));
		o.microbatches = 2;
		steps_record(&t, &o, 2);
		uint64_t sum = 0, all = 2 * (LAYERS * LAYER_PARAMS + TABLE), messages = 0, bucket = (uint64_t)MIB << 20;
		const struct stage *last = NULL;
		EACH_STAGE(&t, 1, st)
		{
			if (st->kind != (zero ? STAGE_REDUCE_SCATTER : STAGE_ALL_REDUCE) || st->rank)
				continue;
			cr_assert(!last || last->bytes % bucket == 0, "only the last is not full");
			sum += st->bytes;
			messages += st->n_kernels;
			last = st;
		}
		cr_assert_eq(sum, all);
		cr_assert_eq(messages, (all + bucket - 1) / bucket);
		steps_clear(&t);
	}
}

/* What the backward below a layer costs its reduction is paid by the first of its messages alone; nothing is below the embedding. */
Test(update, a_layers_reduction_waits_for_the_backward_below_it)
{
	static const char *const fused[] = {"policy.fused_communication=true", "policy.fused_communication=false"};
	for (int i = 0; i < 2; i++) {
		struct steps a, b;
		struct scenario_options o = on_node(SETS(fused[i]));
		steps_record(&a, &o, 1);
		/* one point: the same for fewer rows */
		o.set = SETS(fused[i], "measured_all_reduce_under.sizes=1e12", "measured_all_reduce_under.median_us=20",
		             "measured_all_reduce_under.spread_percent=0", "measured_all_reduce_under.samples=1");
		steps_record(&b, &o, 1);
		cr_assert_eq(a.stages->len, b.stages->len);
		int layers = 0, embeddings = 0;
		for (guint k = 0; k < a.stages->len; k++) {
			const struct stage *x = stage_at(&a, k), *y = stage_at(&b, k);
			bool layer = x->kind == STAGE_ALL_REDUCE && x->part == REDUCED_DENSE;
			cr_assert_eq(y->cost_ns - x->cost_ns, layer ? 20000 : 0, "%s", stage_kind_name(x->kind));
			layers += layer;
			embeddings += x->kind == STAGE_ALL_REDUCE && x->part == REDUCED_EMBEDDING;
		}
		cr_assert_eq(layers, LAYERS * GPUS);
		cr_assert_eq(embeddings, GPUS);
		steps_clear(&a);
		steps_clear(&b);
	}
}

Test(update, our_executor_reduces_sums_of_four_bytes)
{
	static const char *const runtimes[] = {"software.runtime=framework", "software.runtime=esmoe"};
	for (int i = 0; i < 2; i++) {
		struct steps t;
		struct scenario_options o = on_node(SETS(runtimes[i]));
		steps_record(&t, &o, 1);
		cr_expect_eq(stage_sum(&t, 0, STAGE_ALL_REDUCE, PASS_BACKWARD).bytes, (i ? 4 : 2) * GPUS * (LAYERS * LAYER_PARAMS + TABLE));
		steps_clear(&t);
	}
}

Test(update, what_our_executor_does_not_reduce_is_as_wide_as_elsewhere)
{
	static const char *const runtimes[] = {"software.runtime=framework", "software.runtime=esmoe"};
	uint64_t bytes[2][2];
	for (int i = 0; i < 2; i++) {
		struct steps t;
		struct scenario_options o = on_node(SETS(runtimes[i], "policy.all_to_all=linear", "policy.embedding=cut"));
		steps_record(&t, &o, 1);
		bytes[i][0] = stage_sum(&t, 0, STAGE_ALL_TO_ALL, PASS_FORWARD).bytes;
		bytes[i][1] = stage_sum(&t, 0, STAGE_ALL_GATHER, PASS_FORWARD).bytes;
		steps_clear(&t);
	}
	cr_expect_eq(bytes[1][0], bytes[0][0]);
	cr_expect_eq(bytes[1][1], bytes[0][1]);
}

/* Lookups come back and gradients go out by all-to-alls of T D elements; the head's table is gathered and its gradients scattered each micro-batch.
 */
Test(update, a_cut_embedding_is_exchanged_and_kept_in_parts)
{
	static const char *const sets[][3] = {{"policy.all_to_all=linear"}, {"policy.all_to_all=linear", "policy.embedding=cut"}};
	struct sum sums[2][4];
	uint64_t optimizer[2];
	for (int i = 0; i < 2; i++) {
		struct steps t;
		struct scenario_options o = on_node(sets[i]);
		o.microbatches = 2;
		steps_record(&t, &o, 1);
		sums[i][0] = stage_sum(&t, 0, STAGE_ALL_TO_ALL, PASS_FORWARD);
		sums[i][1] = stage_sum(&t, 0, STAGE_ALL_TO_ALL, PASS_BACKWARD);
		sums[i][2] = stage_sum(&t, 0, STAGE_ALL_GATHER, PASS_FORWARD);
		sums[i][3] = stage_sum(&t, 0, STAGE_REDUCE_SCATTER, PASS_BACKWARD);
		optimizer[i] = schedule_memory(t.schedule)->bytes[TIER_HBM][CLASS_OPTIMIZER];
		if (i) {
			uint64_t rows = 2ul * GPUS * schedule_plan(t.schedule)->tokens * WIDTH * 2;
			cr_assert_eq(sums[1][0].bytes - sums[0][0].bytes, rows);
			cr_assert_eq(sums[1][1].bytes - sums[0][1].bytes, rows);
		}
		steps_clear(&t);
	}
	cr_assert_eq(sums[0][2].n + sums[0][3].n, 0);
	cr_assert_eq(sums[1][2].bytes, 2 * GPUS * TABLE * 2);
	cr_assert_eq(sums[1][3].bytes, 2 * GPUS * TABLE * 2);
	cr_assert_eq(optimizer[0] - optimizer[1], 12 * (TABLE - TABLE / GPUS));
}

static void refused(const char *const *set, const char *what)
{
	struct scenario_options o = on_node(set);
	g_autoptr(scenario) s = scenario_made(&o);
	g_autoptr(GError) error = NULL;
	cr_assert_null(schedule_new(s, NULL, &error));
	cr_assert(g_error_matches(error, ESMOE_ERROR, ESMOE_ERROR_INPUT) && strstr(error->message, what), "%s", error->message);
}

Test(update, what_the_host_updates_is_neither_cut_nor_bucketed)
{
	refused(SETS("policy.dense_optimizer=cpu", "policy.zero_stage=2", "policy.gradient_bucket_mib=25"), "need policy.dense_optimizer = gpu");
	refused(SETS("policy.dense_optimizer=cpu", "policy.zero_stage=2", "policy.embedding=cut"), "need policy.dense_optimizer = gpu");
}

/* SE-MoE's two ways: the dense parameters of the next layer over NVLink and its experts over PCIe, both under the computation of this one. */
Test(update, the_next_layer_comes_both_ways_at_once)
{
	struct steps t;
	struct sim_options sim = {0};
	struct scenario_options o = on_node(SETS("policy.expert_home=dram", "policy.all_to_all=linear"));
	o.policy = "se-moe";
	steps_simulate(&t, &o, 1, &sim);
	nsec_t gathered[LAYERS] = {0}, uploaded[LAYERS] = {0}, computed[LAYERS] = {0};
	EACH_STAGE(&t, 0, st)
	{
		if (st->rank || st->pass != PASS_FORWARD || st->layer >= LAYERS)
			continue;
		if (st->kind == STAGE_ALL_GATHER && st->part == REDUCED_DENSE)
			gathered[st->layer] = start_of(&t, st);
		if (st->kind == STAGE_UPLOAD && !uploaded[st->layer])
			uploaded[st->layer] = start_of(&t, st);
		if (st->kind == STAGE_EXPERT)
			computed[st->layer] = end_of(&t, st);
	}
	for (int i = 1; i < LAYERS; i++) {
		cr_assert_lt(gathered[i], computed[i - 1], "layer %d", i);
		cr_assert_lt(uploaded[i], computed[i - 1], "layer %d", i);
	}
	steps_clear(&t);
}
