/* When experts beyond HBM are updated: which with their gradients, which after the backward, in what order, and what a step takes then. */
#include "steps.h"

#include "model/error.h"
#include "sim/predict.h"

enum { LAYERS = 4, EXPERTS = 8, ALL = LAYERS * EXPERTS };

/* An upload of 2^24 bytes at 16 GB/s, which a GPU's kernels of a few microseconds wait for; a download takes as long. */
static const double copy_ms = (1 << 24) / 16e6;

struct asked {
	const char *order, *adam_gparams_per_s, *more;
	int gpus, microbatches;
};

static struct scenario_options options(const struct asked *a, const char **set, char **texts)
{
	texts[0] = g_strdup_printf("policy.update_order=%s", a->order);
	texts[1] = g_strdup_printf("host.adam_gparams_per_s=%s", a->adam_gparams_per_s);
	set[0] = texts[0];
	set[1] = texts[1];
	set[2] = "network.layers=4";
	set[3] = "network.experts=8";
	set[4] = a->more;
	set[5] = NULL;
	return (struct scenario_options){.model = ROUND_NETWORK,
	                                 .machine = ROUND_MACHINE,
	                                 .policy = ROUND_POLICY,
	                                 .gpus = MAX(1, a->gpus),
	                                 .sequences = MAX(1, a->microbatches),
	                                 .microbatches = a->microbatches,
	                                 .set = set};
}

static void recorded(struct steps *t, const struct asked *a, int n)
{
	const char *set[6];
	char *texts[2];
	struct scenario_options o = options(a, set, texts);
	steps_record(t, &o, n);
	g_free(texts[0]);
	g_free(texts[1]);
}

static double step_ms(const struct asked *a, double *light_ms)
{
	const char *set[6];
	char *texts[2];
	struct scenario_options o = options(a, set, texts);
	struct prediction p;
	g_autoptr(scenario) s = scenario_made(&o);
	g_autoptr(GError) error = NULL;
	cr_assert(predict(s, &(struct sim_options){0}, 2, &p, NULL, &error), "%s", error ? error->message : "");
	g_free(texts[0]);
	g_free(texts[1]);
	*light_ms = p.speed_of_light_ms;
	return p.step_ms;
}

/* Updates of a step in their order, as layer * EXPERTS + expert; how many of them stand before the end of the backward. */
static int updates_of(const struct steps *t, int step, int *order, int *n)
{
	int early = 0;
	bool ended = false;
	*n = 0;
	EACH_STAGE(t, step, st)
	{
		ended |= st->kind == STAGE_EMBED && st->pass == PASS_BACKWARD;
		if (st->kind != STAGE_ADAM)
			continue;
		early += !ended;
		cr_assert_lt(*n, 2 * ALL);
		order[(*n)++] = st->layer * EXPERTS + st->expert;
	}
	return early;
}

static void check_each_once(const int *order, int n)
{
	bool seen[ALL] = {false};
	cr_assert_eq(n, ALL);
	for (int i = 0; i < n; i++) {
		cr_assert(!seen[order[i]], "expert %d twice", order[i]);
		seen[order[i]] = true;
	}
}

Test(expert_updates, by_arrival_all_follow_their_gradients_from_the_last_layer_down)
{
	struct steps t;
	int order[2 * ALL], n;
	recorded(&t, &(struct asked){"arrival", "1"}, 2);
	cr_assert_eq(updates_of(&t, 1, order, &n), ALL);
	check_each_once(order, n);
	for (int i = 1; i < n; i++)
		cr_assert_leq(order[i] / EXPERTS, order[i - 1] / EXPERTS);
	steps_clear(&t);
}

/* An expert's update takes four uploads: of each layer's eight the backward hides two, and the last ones are left for under the forward. */
Test(expert_updates, a_share_of_every_layer_waits_for_the_end_of_the_backward_and_then_follows_the_forward)
{
	struct steps t;
	int order[2 * ALL], n, late_of[LAYERS] = {0};
	recorded(&t, &(struct asked){"next-forward", "2"}, 2);
	int early = updates_of(&t, 1, order, &n);
	check_each_once(order, n);
	for (int i = 1; i < early; i++)
		cr_assert_leq(order[i] / EXPERTS, order[i - 1] / EXPERTS, "as gradients come");
	for (int i = early; i < n; i++) {
		cr_assert(i == early || order[i] > order[i - 1], "%d after %d", order[i], order[i - 1]);
		late_of[order[i] / EXPERTS]++;
	}
	/* the last layer also fills the queue: with the one under way and one more */
	for (int layer = 0; layer < LAYERS; layer++) {
		cr_assert_leq(late_of[layer], EXPERTS - 2 + 1, "layer %d: %d", layer, late_of[layer]);
		cr_assert_geq(late_of[layer], EXPERTS - 2 - 2, "layer %d: %d", layer, late_of[layer]);
	}
	steps_clear(&t);
}

Test(expert_updates, what_keeps_up_with_the_gradients_is_never_put_off)
{
	for (int gpus = 1; gpus <= 4; gpus *= 2) {
		struct steps t;
		int order[2 * ALL], n;
		/* four GPUs bring four gradients in the time of one upload */
		recorded(&t, &(struct asked){"next-forward", "33", .gpus = gpus}, 2);
		cr_assert_eq(updates_of(&t, 1, order, &n), ALL, "%d GPUs", gpus);
		check_each_once(order, n);
		steps_clear(&t);
	}
}

Test(expert_updates, micro_batches_and_nodes_have_their_own_queues)
{
	struct steps t;
	int order[2 * ALL], n;
	recorded(&t, &(struct asked){"next-forward", "2", .microbatches = 3}, 2);
	cr_assert_lt(updates_of(&t, 1, order, &n), ALL);
	check_each_once(order, n);
	steps_clear(&t);
	/* two nodes of a GPU each have half of the experts and all the threads of one: each hides what a lone one does of as many */
	recorded(&t, &(struct asked){"next-forward", "2", "machine.gpus_per_node=1", .gpus = 2}, 2);
	cr_assert_lt(updates_of(&t, 1, order, &n), ALL);
	check_each_once(order, n);
	stage_id last[2] = {STAGE_NONE, STAGE_NONE};
	EACH_STAGE(&t, 1, st)
	if (st->kind == STAGE_ADAM)
		last[st->rank] = st->id;
	for (int node = 0; node < 2; node++)
		cr_assert_eq(stage_at(&t, last[node])->layer, LAYERS - 1, "the last layer is last on node %d", node);
	steps_clear(&t);
}

/* By arrival Adam has nothing to do from the first layer's last update to the last layer's first gradient: the forward from there, an upload after
 * another. Else only from the last update on: the expert comes up, and comes up again for its backward, whose gradient goes down. Kernels, a few
 * microseconds each, are less than a tenth of a copy a layer. */
Test(expert_updates, the_step_of_a_slow_optimizer_is_its_own_time_and_the_way_of_one_expert)
{
	for (int halves = 1; halves <= 4; halves *= 2) {
		double light_ms, adam_ms = ALL * ROUND_EXPERT_PARAMS / (halves / 2.0 * 1e6), kernels_ms = LAYERS * copy_ms / 10;
		g_autofree char *rate = g_strdup_printf("%g", halves / 2.0);
		double arrival = step_ms(&(struct asked){"arrival", rate}, &light_ms);
		cr_assert_float_eq(light_ms, adam_ms, 1e-3);
		double ahead = step_ms(&(struct asked){"next-forward", rate}, &light_ms);
		cr_assert_float_eq(light_ms, adam_ms, 1e-3);
		cr_assert_geq(arrival, adam_ms + (ALL - EXPERTS + 1) * copy_ms, "%g Gparams/s: %f", halves / 2.0, arrival);
		cr_assert_leq(ahead, adam_ms + 3 * copy_ms + kernels_ms, "%g Gparams/s: %f", halves / 2.0, ahead);
		cr_assert_geq(ahead, adam_ms);
	}
}

static const struct stage *pred_of_kind(const struct steps *t, const struct stage *st, int kind)
{
	for (int i = 0; i < st->n_preds; i++)
		if (stage_at(t, st->preds[i])->kind == kind)
			return stage_at(t, st->preds[i]);
	return NULL;
}

/* One whose update was not put off comes up under the backward of the layer below, when that of its own has ended; no forward brings it again. */
Test(expert_updates, pinned_copies_that_are_updated_in_the_backward_come_up_there)
{
	struct steps t;
	int early = 0, times[LAYERS][EXPERTS] = {{0}};
	recorded(&t, &(struct asked){"next-forward", "1", "policy.pinned_share=1"}, 3);
	stage_id last_of[LAYERS] = {0};
	bool forward = true;
	int below = LAYERS;
	EACH_STAGE(&t, 1, st)
	{
		forward = st->kind == STAGE_HEAD ? false : forward;
		below = st->kind == STAGE_EXPERT && st->pass == PASS_BACKWARD ? st->layer : below;
		if (st->kind == STAGE_MIXER && st->pass == PASS_BACKWARD)
			last_of[st->layer] = st->id;
		if (st->kind != STAGE_UPLOAD || forward)
			continue;
		cr_assert(st->pass == PASS_UPDATE && st->layer == below + 1, "layer %d beside %d", st->layer, below);
		const struct stage *update = pred_of_kind(&t, st, STAGE_ADAM), *behind = pred_of_kind(&t, st, STAGE_MIXER);
		cr_assert(update && update->layer == st->layer && update->expert == st->expert && update->id >= t.first[1]);
		cr_assert(behind && behind->id == last_of[st->layer]);
		early++;
		times[st->layer][st->expert]++;
	}
	EACH_STAGE(&t, 2, st)
	{
		if (st->kind == STAGE_HEAD)
			break;
		if (st->kind == STAGE_UPLOAD)
			times[st->layer][st->expert]++;
	}
	cr_assert_gt(early, 0);
	for (int i = 0; i < ALL; i++)
		cr_assert_eq(times[i / EXPERTS][i % EXPERTS], 1, "layer %d, expert %d", i / EXPERTS, i % EXPERTS);
	steps_clear(&t);
}

/* A pinned copy must not wait for its update in front of the uploads that the first layers need. */
Test(expert_updates, pinned_copies_come_up_with_their_layer)
{
	struct steps t;
	double light_ms, unpinned_ms = step_ms(&(struct asked){"next-forward", "1"}, &light_ms);
	double pinned_ms = step_ms(&(struct asked){"next-forward", "1", "policy.pinned_share=0.5"}, &light_ms);
	cr_assert_leq(pinned_ms, unpinned_ms + copy_ms, "%f, %f ms", pinned_ms, unpinned_ms);
	recorded(&t, &(struct asked){"next-forward", "1", "policy.pinned_share=0.5"}, 3);
	int refreshed = 0, layer = 0;
	stage_id forward_end = STAGE_NONE;
	EACH_STAGE(&t, 2, st)
	forward_end = st->kind == STAGE_HEAD && forward_end == STAGE_NONE ? st->id : forward_end;
	EACH_STAGE(&t, 2, st)
	{
		layer = st->kind == STAGE_MIXER && st->pass == PASS_FORWARD ? st->layer : layer;
		if (st->kind != STAGE_UPLOAD || st->pass != PASS_UPDATE)
			continue;
		refreshed++;
		if (st->id < forward_end)
			cr_assert_leq(abs(st->layer - layer), 1, "layer %d while %d is computed", st->layer, layer);
	}
	cr_assert_eq(refreshed, ALL / 2);
	steps_clear(&t);
}

Test(expert_updates, putting_off_needs_updates_of_single_experts)
{
	g_autoptr(GError) error = NULL;
	cr_assert_null(policy_load("[policy]\noptimizer = cpu-layer\nupdate_order = next-forward\n", NULL, &error));
	cr_assert(g_error_matches(error, ESMOE_ERROR, ESMOE_ERROR_INPUT) && strstr(error->message, "cpu-expert"), "%s", error->message);
}
