/* One training step, layer by layer:
 *
 *     for each micro-batch:  embed, layers forward, head, layers backward        (compute stream)
 *     MoE layer forward:     mixer, gate -> counts -> the host places the experts, GPUs permute -> all-to-all, experts, all-to-all, combine
 *     MoE layer backward:    the same up to the first all-to-all again (checkpointing), gradients out by all-to-all, experts recomputed and
 *                            differentiated one by one (one upload serves both), gradients back by all-to-all, gate, mixer
 *     vertical order:        each of these for all micro-batches before the next; an expert that is uploaded computes on the tokens of all, and
 *                            its gradients come down once
 *     last micro-batch:      all-reduce of each layer's dense gradients under the backward of the next; Adam of what lives in HBM at the end
 *
 * The gate's own gradient needs each token's expert output; it is formed where that output is recomputed and returns with the gradients, so that
 * recomputation needs no second trip (one all-to-all instead of two). */
#include "schedule.h"

#include "build.h"
#include "infer.h"

#include <string.h>

static void dispatch(struct schedule *s, int pass, int layer, int microbatch)
{
	for (int chunk = 0; chunk < s->moe[layer].block[microbatch].chunks; chunk++)
		tensor_dispatch(s, pass, layer, microbatch, chunk,
		                s->dispatched + ((size_t)microbatch * MAX_CHUNKS + (size_t)chunk) * (size_t)s->gpus);
}

/* The counts of all GPUs meet in one small all-gather, whose end the host waits for. */
static stage_id gather_counts(struct schedule *s, int layer, int microbatch)
{
	if (s->gpus == 1)
		return s->gpu[0].last_compute;
	uint64_t bytes = 4 * (uint64_t)s->n->layer[layer].experts * (uint64_t)s->gpus;
	struct collective c = {.kind = STAGE_COUNTS, .pass = PASS_FORWARD, .layer = layer, .microbatch = microbatch, .expert = -1, .bytes = bytes};
	c.cost_ns = cost_counts(s->cost, bytes, s->gpus);
	emit_collective(s, &c, NULL, s->round);
	return s->round[s->gpus - 1];
}

static void dense_parts(struct schedule *s, int pass, int layer, int microbatch, bool added_up)
{
	const struct layer *l = &s->n->layer[layer];
	if (l->shared) {
		compute_everywhere(s, STAGE_SHARED, pass, layer, microbatch, NULL);
		if (added_up)
			tensor_reduce(s, pass, layer, microbatch, false);
	}
	if (l->d_ff) {
		compute_everywhere(s, STAGE_FFN, pass, layer, microbatch, NULL);
		if (added_up) /* beside experts, whose return comes behind it on the same stream, nobody else needs to wait for it */
			tensor_reduce(s, pass, layer, microbatch, !l->experts);
	}
}

/* The all-to-alls that brought the experts' results back, or NULL without. */
static const stage_id *returned(const struct schedule *s, int layer, int microbatch)
{
	return returns(s) && !s->moe[layer].block[microbatch].travels ? s->returned : NULL;
}

/* Without padding, the rows to send are as many as the gate chose, whatever the counts: GPUs sort them while the host waits for the counts. */
static bool permutes_ahead(const struct schedule *s)
{
	return s->p->dispatch == DISPATCH_EXACT;
}

static void mix(struct schedule *s, int layer, int microbatch)
{
	compute_everywhere(s, STAGE_MIXER, PASS_FORWARD, layer, microbatch, NULL);
	tensor_reduce(s, PASS_FORWARD, layer, microbatch, true);
	if (!s->n->layer[layer].experts)
		return;
	compute_everywhere(s, STAGE_GATE, PASS_FORWARD, layer, microbatch, NULL);
	s->counted[microbatch] = gather_counts(s, layer, microbatch);
	if (permutes_ahead(s))
		compute_everywhere(s, STAGE_PERMUTE, PASS_FORWARD, layer, microbatch, NULL);
}

static void forward_before_experts(struct schedule *s, int layer, int microbatch)
{
	if (s->n->layer[layer].experts) {
		route(s, layer, microbatch, s->counted[microbatch]);
		if (s->failed)
			return;
		if (!permutes_ahead(s))
			compute_everywhere(s, STAGE_PERMUTE, PASS_FORWARD, layer, microbatch, NULL);
		slices_gather(s, PASS_FORWARD, layer, microbatch);
		dispatch(s, PASS_FORWARD, layer, microbatch);
		shadows_fetch(s, layer, microbatch);
	}
	dense_parts(s, PASS_FORWARD, layer, microbatch, true);
}

/* In vertical order the first micro-batch brings what all need. */
static bool brings(const struct schedule *s, int microbatch)
{
	return !vertical(s) || microbatch == 0;
}

void forward_layer(struct schedule *s, int layer, struct batches of)
{
	params_await(s, layer);
	if (s->step > 0 && of.from == 0)
		updates_refresh_layer(s, layer);
	if (layer + 1 < s->n->layers && brings(s, of.from))
		params_gather(s, PASS_FORWARD, layer + 1, of.from);
	for (int mb = of.from; mb < of.to; mb++)
		mix(s, layer, mb);
	for (int mb = of.from; mb < of.to && !s->failed; mb++)
		forward_before_experts(s, layer, mb);
	if (s->failed || !s->n->layer[layer].experts)
		return;
	experts_forward(s, PASS_FORWARD, layer, of);
	for (int mb = of.from; mb < of.to; mb++) {
		experts_return(s, PASS_FORWARD, layer, mb);
		bool ahead = s->p->upload_scope == UPLOAD_NEXT_LAYER && offloaded(s) && !inference(s) && mb == of.from;
		if (ahead && layer + 1 < s->n->layers && s->moe[layer + 1].experts)
			experts_prefetch(s, layer + 1);
		travel_prefetch(s, PASS_FORWARD, layer, false);
		compute_everywhere(s, STAGE_COMBINE, PASS_FORWARD, layer, mb, returned(s, layer, mb));
	}
}

static void recompute_before_experts(struct schedule *s, int layer, int microbatch)
{
	const struct layer *l = &s->n->layer[layer];
	bool exchanged = s->p->checkpoint != CHECKPOINT_KEEP_COLLECTIVES;
	compute_everywhere(s, STAGE_MIXER, PASS_RECOMPUTE, layer, microbatch, NULL);
	if (exchanged)
		tensor_reduce(s, PASS_RECOMPUTE, layer, microbatch, true);
	if (l->experts)
		compute_everywhere(s, STAGE_GATE, PASS_RECOMPUTE, layer, microbatch, NULL);
	if (l->experts && exchanged) {
		compute_everywhere(s, STAGE_PERMUTE, PASS_RECOMPUTE, layer, microbatch, NULL);
		dispatch(s, PASS_RECOMPUTE, layer, microbatch);
	}
	dense_parts(s, PASS_RECOMPUTE, layer, microbatch, s->p->checkpoint == CHECKPOINT_LAYER);
}

/* What checkpointing threw away: up to where the experts' inputs are back, or the whole layer as it stands. */
static void recompute_layer(struct schedule *s, int layer, struct batches of)
{
	if (s->p->checkpoint == CHECKPOINT_NONE)
		return;
	for (int mb = of.from; mb < of.to; mb++)
		recompute_before_experts(s, layer, mb);
	if (!s->n->layer[layer].experts || s->p->checkpoint != CHECKPOINT_LAYER)
		return;
	experts_forward(s, PASS_RECOMPUTE, layer, of);
	for (int mb = of.from; mb < of.to; mb++) {
		experts_return(s, PASS_RECOMPUTE, layer, mb);
		compute_everywhere(s, STAGE_COMBINE, PASS_RECOMPUTE, layer, mb, returned(s, layer, mb));
	}
}

static void backward_before_experts(struct schedule *s, int layer, int microbatch)
{
	if (s->n->layer[layer].experts) {
		compute_everywhere(s, STAGE_COMBINE, PASS_BACKWARD, layer, microbatch, NULL);
		slices_gather(s, PASS_BACKWARD, layer, microbatch);
		dispatch(s, PASS_BACKWARD, layer, microbatch);
	}
	dense_parts(s, PASS_BACKWARD, layer, microbatch, true);
}

static void backward_after_experts(struct schedule *s, int layer, int microbatch)
{
	if (s->n->layer[layer].experts) {
		travel_prefetch(s, PASS_BACKWARD, layer, microbatch == s->plan.microbatches - 1);
		compute_everywhere(s, STAGE_PERMUTE, PASS_BACKWARD, layer, microbatch, returned(s, layer, microbatch));
		compute_everywhere(s, STAGE_GATE, PASS_BACKWARD, layer, microbatch, NULL);
	}
	compute_everywhere(s, STAGE_MIXER, PASS_BACKWARD, layer, microbatch, NULL);
	tensor_reduce(s, PASS_BACKWARD, layer, microbatch, true);
	gradients_ready(s, layer, microbatch);
}

static void backward_layer(struct schedule *s, int layer, struct batches of)
{
	bool moe = s->n->layer[layer].experts > 0;
	params_await(s, layer);
	if (layer > 0 && brings(s, of.from))
		params_gather(s, PASS_BACKWARD, layer - 1, of.from);
	recompute_layer(s, layer, of);
	for (int mb = of.from; mb < of.to; mb++)
		backward_before_experts(s, layer, mb);
	if (moe)
		experts_backward(s, layer, of);
	if (of.to == s->plan.microbatches && layer + 1 < s->n->layers)
		updates_refresh_hidden(s, layer + 1);
	for (int mb = of.from; mb < of.to; mb++) {
		if (moe) {
			experts_return(s, PASS_BACKWARD, layer, mb);
			experts_settle(s, layer, mb);
		}
		backward_after_experts(s, layer, mb);
	}
	updates_layer_ends(s);
}

/* ZeRO-Offload's step returns when all updates have been made; the next step starts behind it. */
static void begin(struct schedule *s, int microbatch)
{
	if (brings(s, microbatch))
		params_gather(s, PASS_FORWARD, -1, microbatch);
	params_await(s, -1);
	if (brings(s, microbatch))
		params_gather(s, PASS_FORWARD, 0, microbatch);
	bool waits = offloaded(s) && s->p->optimizer == OPTIMIZER_CPU_STEP && microbatch == 0;
	for (int g = 0; g < s->gpus; g++)
		s->begun[g] = emit_compute(s, STAGE_EMBED, PASS_FORWARD, 0, microbatch, g, waits ? s->adam_last[s->node_of[g]] : STAGE_NONE);
	tensor_reduce(s, PASS_FORWARD, 0, microbatch, true);
	embedding_exchange(s, PASS_FORWARD, microbatch);
}

typedef void (*through_layer)(struct schedule *s, int layer, struct batches of);

/* Experts that are uploaded serve all micro-batches at once; at home in HBM they wait for none. */
static void go_through(struct schedule *s, int layer, struct batches of, through_layer pass)
{
	if (offloaded(s)) {
		pass(s, layer, of);
		return;
	}
	for (int mb = of.from; mb < of.to && !s->failed; mb++)
		pass(s, layer, (struct batches){mb, mb + 1});
}

/* After a failed gate the layer has no work lists, so nothing that reads them may follow. */
static void run_batches(struct schedule *s, struct batches of)
{
	for (int mb = of.from; mb < of.to; mb++)
		begin(s, mb);
	for (int layer = 0; layer < s->n->layers && !s->failed; layer++)
		go_through(s, layer, of, forward_layer);
	if (s->failed)
		return;
	params_gather(s, PASS_BACKWARD, s->n->layers - 1, of.from);
	for (int mb = of.from; mb < of.to; mb++) {
		embedding_gather(s, mb);
		compute_everywhere(s, STAGE_HEAD, PASS_FORWARD, 0, mb, NULL);
		tensor_reduce(s, PASS_BACKWARD, s->n->layers - 1, mb, true);
	}
	for (int layer = s->n->layers - 1; layer >= 0; layer--)
		go_through(s, layer, of, backward_layer);
	for (int mb = of.from; mb < of.to; mb++) {
		embedding_exchange(s, PASS_BACKWARD, mb);
		compute_everywhere(s, STAGE_EMBED, PASS_BACKWARD, 0, mb, NULL);
		gradients_end(s, mb);
	}
}

static void train_step(struct schedule *s)
{
	int all = s->plan.microbatches, together = vertical(s) ? all : 1;
	for (int mb = 0; mb < all && !s->failed; mb += together)
		run_batches(s, (struct batches){mb, mb + together});
	if (!s->failed) {
		update_resident(s);
		updates_late(s);
	}
	updates_refresh(s);
}

bool schedule_step(struct schedule *s, struct backend *backend, GError **error)
{
	s->backend = backend;
	s->error = error;
	store_foresee(s);
	if (!inference(s) || s->step == 0) {
		memset(s->stream_ns, 0, sizeof(nsec_t) * (size_t)stream_count(s->m));
		memset(s->profile_ns, 0, sizeof(nsec_t) * (size_t)s->resources->n_profiles);
		memset(s->launches, 0, sizeof(uint64_t) * (size_t)s->gpus);
	}
	if (inference(s))
		infer_step(s);
	else
		train_step(s);
	s->step++;
	s->error = NULL;
	return !s->failed;
}

bool schedule_wait(struct schedule *s, struct backend *backend, GError **error)
{
	for (int i = 0; i < stream_count(s->m); i++)
		if (s->last_of[i] != STAGE_NONE && !backend_wait(backend, s->last_of[i], error))
			return false;
	return true;
}

const struct memory *schedule_memory(const struct schedule *s)
{
	return &s->plan.memory;
}

const struct cost *schedule_cost(const struct schedule *s)
{
	return s->cost;
}

const struct resources *schedule_resources(const struct schedule *s)
{
	return s->resources;
}

int schedule_expert_home(const struct schedule *s)
{
	return s->plan.home;
}

int schedule_microbatches(const struct schedule *s)
{
	return s->plan.microbatches;
}

size_t schedule_places(const struct schedule *s, struct expert_place *out)
{
	size_t n = 0;
	for (int layer = 0; layer < s->n->layers; layer++)
		for (int e = 0; e < s->moe[layer].experts; e++, n++)
			if (out)
				out[n] = (struct expert_place){s->moe[layer].expert[e].last, s->moe[layer].expert[e].pinned};
	return n;
}

static bool has_room(const struct schedule *s, const struct moe_layer *moe, const struct expert_place *places)
{
	g_autofree int *copies = g_new0(int, s->gpus);
	for (int e = 0; e < moe->experts; e++) {
		const struct expert_place *p = &places[e];
		if (p->last < -1 || p->last >= s->gpus || p->pinned < -1 || p->pinned >= s->gpus ||
		    (p->pinned >= 0 && ++copies[p->pinned] > moe->pinned_slots))
			return false;
	}
	return true;
}

static void set_places(const struct schedule *s, struct moe_layer *moe, const struct expert_place *places)
{
	g_autofree int *copies = g_new0(int, s->gpus);
	for (int e = 0; e < moe->experts; e++) {
		struct expert_state *x = &moe->expert[e];
		x->last = places[e].last;
		x->pinned = places[e].pinned;
		if (x->pinned >= 0)
			x->pinned_slot = moe->first_pinned_slot + copies[x->pinned]++;
	}
}

bool schedule_set_places(struct schedule *s, const struct expert_place *places)
{
	const struct expert_place *of = places;
	for (int layer = 0; layer < s->n->layers; of += s->moe[layer++].experts)
		if (!has_room(s, &s->moe[layer], of))
			return false;
	of = places;
	for (int layer = 0; layer < s->n->layers; of += s->moe[layer++].experts)
		set_places(s, &s->moe[layer], of);
	return true;
}

bool schedule_asks_gates(const struct schedule *s)
{
	return asks_gates(s);
}

nsec_t schedule_launch_ns(const struct schedule *s)
{
	uint64_t most = 0;
	for (int g = 0; g < s->gpus; g++)
		most = MAX(most, s->launches[g]);
	return (nsec_t)((double)most * s->m->launch_us * 1e3);
}

nsec_t schedule_light_ns(const struct schedule *s)
{
	const struct resources *r = s->resources;
	g_autofree double *used = g_new0(double, r->n_resources);
	nsec_t most = 0;
	for (int i = 0; i < stream_count(s->m); i++)
		most = MAX(most, s->stream_ns[i]);
	for (int i = 0; i < r->n_profiles; i++)
		for (int d = 0; d < r->profile[i].n_demands; d++)
			used[r->profile[i].demand[d].resource] += r->profile[i].demand[d].amount * (double)s->profile_ns[i];
	for (int i = 0; i < r->n_resources; i++)
		most = MAX(most, (nsec_t)(used[i] / r->capacity[i]));
	return most;
}

void schedule_choices(const struct schedule *s, struct choices *out)
{
	*out = (struct choices){.least_slices = G_MAXINT};
	for (int layer = 0; layer < s->n->layers; layer++)
		for (int mb = 0; s->moe[layer].experts && mb < s->plan.microbatches; mb++) {
			const struct block *b = &s->moe[layer].block[mb];
			if (!b->chunks)
				continue;
			out->layers++;
			out->travel += b->travels;
			if (b->travels)
				continue;
			out->degree[b->chunks]++;
			out->hierarchical += b->times.hierarchical;
			out->shadows += b->shadows;
			out->least_slices = MIN(out->least_slices, b->slices);
			out->most_slices = MAX(out->most_slices, b->slices);
		}
}
