/* When experts beyond HBM are updated, on the threads of their node. update_order = arrival: as their gradients come, the last layer first. Adam is
 * often slower than the backward; then it goes on for long after it, while the next forward waits for the first layer, which is the last in the
 * queue. next-forward takes only as many as the backward hides of every layer, the rest when it has ended, the first layer first:
 *
 *     compute     forward                                     | backward 3, 2, 1, 0     | next forward 0   1   2   3 | backward ...
 *     optimizer   0' 1' 2' 3' (of the step before)            | 3    2    1    0        | 0'   1'   2'   3'          | 3   2 ...
 *
 * A layer is computed once its own experts are updated: nothing is stale. What it costs is the time from the last update to the first gradient, in
 * which Adam has nothing to do. Neither does Adam wait for a gradient in the backward as long as what it was given lasts to the next one, through the
 * attention of a layer. Both worlds decide alike: by solo costs, not by a clock.
 *
 * Pinned copies in HBM are brought up to date behind the step; with next-forward one layer at a time. Those of updates that the backward hid follow
 * them there, under the layer below, when the forward has no copies to wait for; the others come when the next forward comes to their layer: the copy
 * of a layer that is updated last must not keep the uploads of the first ones waiting. From an SSD all come with the forward, since the frames of a
 * backward are counted without them. */
#include "build.h"

#include <string.h>

static bool puts_off(const struct schedule *s)
{
	return s->p->update_order == UPDATE_NEXT_FORWARD && offloaded(s) && !inference(s);
}

/* What a layer computes beside its experts between two gradients of experts. */
static nsec_t rest_ns(const struct schedule *s, const struct layer *l)
{
	static const int kinds[] = {STAGE_MIXER, STAGE_GATE, STAGE_PERMUTE, STAGE_COMBINE, STAGE_SHARED, STAGE_FFN};
	const bool asked[] = {true, l->experts > 0, l->experts > 0, l->experts > 0, l->shared > 0, l->d_ff > 0};
	nsec_t sum = 0;
	uint32_t kernels;
	for (size_t i = 0; i < G_N_ELEMENTS(kinds); i++) {
		if (!asked[i])
			continue;
		sum += cost_compute(s->cost, kinds[i], PASS_BACKWARD, l, s->tokens, &kernels);
		if (s->p->checkpoint != CHECKPOINT_NONE && kinds[i] != STAGE_COMBINE && kinds[i] != STAGE_PERMUTE)
			sum += cost_compute(s->cost, kinds[i], PASS_RECOMPUTE, l, s->tokens, &kernels);
	}
	return sum;
}

void updates_init(struct schedule *s)
{
	nsec_t between = 0;
	if (!puts_off(s))
		return;
	s->adam_until = g_new0(nsec_t, s->nodes);
	s->since = g_new0(nsec_t, stream_count(s->m));
	for (int layer = 0; layer < s->n->layers; layer++) {
		between += rest_ns(s, &s->n->layer[layer]);
		if (!s->moe[layer].experts)
			continue;
		s->moe[layer].pause_ns = between;
		between = 0;
	}
}

/* Of the micro-batch that completes the gradient, which our executor adds to the sum of those before it. */
static nsec_t adam_ns(const struct schedule *s, const struct late *u)
{
	bool brings = u->gradient != STAGE_NONE || s->plan.microbatches > 1, adds = u->gradient != STAGE_NONE && s->plan.microbatches > 1;
	return cost_adam(s->cost, u->params, brings) + (adds && s->m->runtime == RUNTIME_ESMOE ? cost_accumulate(s->cost, u->params) : 0);
}

static uint64_t adam_bytes(const struct schedule *s, const struct late *u)
{
	bool brings = u->gradient != STAGE_NONE || s->plan.microbatches > 1, adds = u->gradient != STAGE_NONE && s->plan.microbatches > 1;
	uint64_t bytes = (uint64_t)((double)u->params * (s->m->adam_bytes_per_param * cost_adam_share(s->cost, brings)));
	return bytes + (adds && s->m->runtime == RUNTIME_ESMOE ? u->params * 10 : 0);
}

static struct stage host_work(const struct schedule *s, int kind, int pass, int microbatch, const struct late *u)
{
	struct stage st = stage_on_node(s, kind, pass, u->layer, microbatch, u->gpu, STREAM_OPTIMIZER, PROFILE_ADAM);
	st.expert = u->expert;
	st.part = u->gradient != STAGE_NONE;
	after(&st, u->gradient);
	return st;
}

stage_id updates_accumulate(struct schedule *s, const struct late *u, int microbatch)
{
	struct stage st = host_work(s, STAGE_ACCUMULATE, PASS_BACKWARD, microbatch, u);
	st.bytes = u->params * 10;
	st.cost_ns = cost_accumulate(s->cost, u->params);
	return s->adam_last[s->node_of[u->gpu]] = emit(s, &st);
}

static void update(struct schedule *s, const struct late *u)
{
	stage_id fetched = store_fetch(s, PASS_UPDATE, u->layer, u->expert, true, u->gpu);
	struct expert_state *x = &s->moe[u->layer].expert[u->expert];
	struct stage st = host_work(s, STAGE_ADAM, PASS_UPDATE, 0, u);
	st.bytes = adam_bytes(s, u);
	st.cost_ns = adam_ns(s, u);
	after(&st, fetched);
	after(&st, x->aside);
	if (s->p->optimizer == OPTIMIZER_CPU_STEP) /* the step's own call, once the whole backward has ended */
		after(&st, s->gpu[u->gpu].last_compute);
	x->updated = s->adam_last[s->node_of[u->gpu]] = emit(s, &st);
	x->aside = STAGE_NONE;
	store_send_back(s, u->layer, u->expert, u->gpu);
}

/* How far the GPUs of a node have come since the step's first update: by the stream that had most to do. */
static nsec_t gone_ns(const struct schedule *s, int node)
{
	int first = node * s->m->gpus_per_node, end = first + machine_node_gpus(s->m, node);
	nsec_t most = 0;
	for (int i = first * GPU_STREAMS; i < end * GPU_STREAMS; i++)
		most = MAX(most, s->stream_ns[i] - s->since[i]);
	return most;
}

/* Whether Adam could wait for the next gradient without this update. */
static bool is_wanted_now(struct schedule *s, const struct late *u)
{
	int node = s->node_of[u->gpu];
	if (!s->updating) {
		memcpy(s->since, s->stream_ns, sizeof(nsec_t) * (size_t)stream_count(s->m));
		memset(s->adam_until, 0, sizeof(nsec_t) * (size_t)s->nodes);
		s->updating = true;
	}
	nsec_t now = gone_ns(s, node), each = (nsec_t)((double)adam_ns(s, u) * s->m->adam_pace), *until = &s->adam_until[node];
	if (*until > now + s->moe[u->layer].pause_ns + each * machine_node_gpus(s->m, node))
		return false;
	*until = MAX(*until, now) + each;
	return true;
}

void updates_add(struct schedule *s, const struct late *u)
{
	bool put_off = puts_off(s) && !is_wanted_now(s, u);
	s->moe[u->layer].expert[u->expert].put_off = put_off;
	s->moe[u->layer].expert[u->expert].fresh = false;
	if (put_off || s->p->optimizer != OPTIMIZER_CPU_EXPERT)
		g_array_append_vals(s->late, u, 1);
	else
		update(s, u);
}

static int in_order_of_forward(gconstpointer a, gconstpointer b)
{
	const struct late *x = a, *y = b;
	if (x->layer != y->layer)
		return x->layer - y->layer;
	return x->expert != y->expert ? x->expert - y->expert : x->gpu - y->gpu;
}

void updates_late(struct schedule *s)
{
	if (puts_off(s))
		g_array_sort(s->late, in_order_of_forward);
	for (guint i = 0; i < s->late->len; i++)
		update(s, &g_array_index(s->late, struct late, i));
	g_array_set_size(s->late, 0);
	s->updating = false;
}

/* A pinned copy in HBM is brought up to date once Adam is done, instead of two uploads a micro-batch. */
static void refresh(struct schedule *s, int layer, int e)
{
	struct moe_layer *moe = &s->moe[layer];
	struct expert_state *x = &moe->expert[e];
	if (x->pinned < 0)
		return;
	stage_id fetched = store_fetch(s, PASS_UPDATE, layer, e, false, x->pinned);
	struct stage st = stage_on_gpu(s, STAGE_UPLOAD, PASS_UPDATE, layer, 0, x->pinned, STREAM_UPLOAD, PROFILE_UP);
	st.expert = e;
	st.slot = x->pinned_slot;
	st.bytes = element_bytes(s) * moe->params;
	st.cost_ns = moe->upload_ns;
	st.n_kernels = (uint32_t)s->copy_kernels;
	after(&st, x->updated);
	after(&st, s->gpu[x->pinned].pinned_user);
	after(&st, fetched);
	x->refreshed = x->uploaded = x->aside = emit(s, &st);
	x->fresh = true;
}

/* In the order in which the updates end, behind all uploads of the backward: a refresh that waits for its update must not stand before them. */
void updates_refresh(struct schedule *s)
{
	updates_layer_ends(s);
	for (int layer = s->n->layers - 1; layer >= 0 && !puts_off(s); layer--)
		for (int e = 0; e < s->moe[layer].experts; e++)
			refresh(s, layer, e);
}

void updates_refresh_layer(struct schedule *s, int layer)
{
	for (int e = 0; e < s->moe[layer].experts && puts_off(s); e++)
		if (!s->moe[layer].expert[e].fresh)
			refresh(s, layer, e);
}

void updates_refresh_hidden(struct schedule *s, int layer)
{
	for (int e = 0; puts_off(s) && s->plan.home == HOME_DRAM && e < s->moe[layer].experts; e++)
		if (!s->moe[layer].expert[e].put_off && !s->moe[layer].expert[e].fresh)
			refresh(s, layer, e);
}

void updates_layer_ends(struct schedule *s)
{
	for (int g = 0; g < s->gpus; g++)
		s->gpu[g].pinned_user = s->gpu[g].last_compute;
}
