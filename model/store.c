/* DRAM as a cache over the SSD, one a node. An expert is two blocks: its parameters, asked for before each upload, and the optimizer's state, asked
 * for before each update.
 *
 *     miss:   [SSD write: evicted state] -> [SSD read: the block] -> upload or Adam
 *
 * Whoever finds a block there waits for the read that brought it all the same: it may still be under way. */
#include "build.h"

static int block_id(const struct schedule *s, int layer, int e, bool state)
{
	return 2 * (s->moe[layer].first_id + e) + (state ? 1 : 0);
}

/* The last read of a block on a GPU's node. */
static stage_id *read_of(struct schedule *s, int gpu, int layer, int e, bool state)
{
	return &s->block_read[(size_t)s->node_of[gpu] * (size_t)s->n_blocks + (size_t)block_id(s, layer, e, state)];
}

/* Evicted state was changed by Adam and goes back to the SSD. Parameters are cast from the master again when they are needed, so their stage moves no
 * byte: it only says when their room is free. */
static stage_id evict(struct schedule *s, int gpu, int n_evicted)
{
	stage_id last = STAGE_NONE;
	for (int i = 0; i < n_evicted; i++) {
		int id = s->evicted[i], layer = s->layer_of_block[id / 2], e = id / 2 - s->moe[layer].first_id;
		struct expert_state *x = &s->moe[layer].expert[e];
		bool state = id % 2;
		struct stage st = stage_on_node(s, STAGE_SSD_WRITE, PASS_UPDATE, layer, 0, gpu, STREAM_SSD_WRITE, PROFILE_WRITE);
		st.expert = e;
		st.bytes = state ? s->moe[layer].params * SSD_STATE_BYTES : 0;
		st.cost_ns = state ? cost_ssd(s->cost, true, st.bytes) : 0;
		st.part = state;
		after(&st, x->updated);
		/* parameters may be cast from the state; their copies may still be on their way to several GPUs */
		after(&st, state ? *read_of(s, gpu, layer, e, false) : x->uploaded);
		after(&st, state ? STAGE_NONE : x->aside);
		last = emit(s, &st);
		*(state ? &x->written : &x->aside) = last;
	}
	return last;
}

static stage_id later(stage_id a, stage_id b)
{
	return a == STAGE_NONE || (b != STAGE_NONE && b > a) ? b : a;
}

stage_id store_fetch(struct schedule *s, int pass, int layer, int e, bool state, int gpu)
{
	struct moe_layer *moe = &s->moe[layer];
	int node = s->node_of[gpu], id = block_id(s, layer, e, state), n_evicted = 0;
	if (s->plan.home != HOME_SSD)
		return STAGE_NONE;
	uint64_t room = state ? moe->bytes.state_block : moe->bytes.parameter_block;
	stage_id *read = read_of(s, gpu, layer, e, state);
	if (cache_touch(s->cache[node], id, room, s->evicted, &n_evicted))
		return *read;
	stage_id freed = evict(s, gpu, n_evicted);
	struct stage st = stage_on_node(s, STAGE_SSD_READ, pass, layer, 0, gpu, STREAM_SSD_READ, PROFILE_READ);
	st.expert = e;
	/* parameters whose master is in DRAM are cast there */
	bool here = !state && cache_holds(s->cache[node], block_id(s, layer, e, true));
	st.bytes = here ? 0 : moe->params * (state ? SSD_STATE_BYTES : inference(s) ? element_bytes(s) : 4);
	st.cost_ns = here ? 0 : cost_ssd(s->cost, false, st.bytes);
	st.part = state;
	after(&st, freed);
	after(&st, moe->expert[e].written);
	/* what was not kept before went through a buffer: its last upload has left it; that came behind the update, or the update behind it */
	after(&st, state ? moe->expert[e].updated : later(moe->expert[e].updated, moe->expert[e].uploaded));
	if (!state && !cache_holds(s->cache[node], id))
		after(&st, moe->expert[e].aside);
	return *read = emit(s, &st);
}

/* State that DRAM did not keep goes back from the buffer that it was updated in. */
void store_send_back(struct schedule *s, int layer, int e, int gpu)
{
	struct moe_layer *moe = &s->moe[layer];
	if (s->plan.home != HOME_SSD || cache_holds(s->cache[s->node_of[gpu]], block_id(s, layer, e, true)))
		return;
	struct stage st = stage_on_node(s, STAGE_SSD_WRITE, PASS_UPDATE, layer, 0, gpu, STREAM_SSD_WRITE, PROFILE_WRITE);
	st.expert = e;
	st.bytes = moe->params * SSD_STATE_BYTES;
	st.cost_ns = cost_ssd(s->cost, true, st.bytes);
	st.part = 1;
	after(&st, moe->expert[e].updated);
	moe->expert[e].written = emit(s, &st);
}

enum foreseen { PARAMETERS, STATE, LATE_STATE };

/* Which updates will be put off the last step tells. */
static bool is_foreseen(const struct schedule *s, const struct expert_state *x, enum foreseen what)
{
	if (what == PARAMETERS)
		return x->pinned < 0;
	return (what == LATE_STATE) == (s->p->optimizer == OPTIMIZER_CPU_STEP || x->put_off);
}

/* The blocks of a layer that a node will be asked for, in the order of its experts. */
static void foresee(const struct schedule *s, int node, int layer, enum foreseen what, GArray *ids)
{
	const struct moe_layer *moe = &s->moe[layer];
	bool everywhere = expert_data_parallel(s);
	int times = everywhere ? machine_node_gpus(s->m, node) : 1;
	int from = everywhere ? 0 : first_expert(s, moe->experts, node), to = everywhere ? moe->experts : first_expert(s, moe->experts, node + 1);
	for (int e = from; e < to; e++) {
		int id = block_id(s, layer, e, what != PARAMETERS);
		if (!is_foreseen(s, &moe->expert[e], what))
			continue;
		for (int i = 0; i < times; i++)
			g_array_append_val(ids, id);
	}
}

/* Gates may change the order inside of a layer and leave an expert out, but not the order of the layers: near enough for Belady's rule, and what was
 * foreseen wrongly is forgotten with the step. */
void store_foresee(struct schedule *s)
{
	for (int node = 0; s->cache && s->step > 0 && node < s->nodes; node++)
		cache_step(s->cache[node]);
	bool updates = !inference(s), ascending = s->p->update_order == UPDATE_NEXT_FORWARD;
	for (int node = 0; s->cache && s->p->ssd_cache == CACHE_BELADY && node < s->nodes; node++) {
		g_autoptr(GArray) ids = g_array_new(FALSE, FALSE, sizeof(int));
		int rounds = vertical(s) ? 1 : s->plan.microbatches, layers = s->n->layers;
		for (int mb = 0; mb < rounds; mb++) {
			for (int layer = 0; layer < layers; layer++)
				foresee(s, node, layer, PARAMETERS, ids);
			for (int layer = layers - 1; layer >= 0 && updates; layer--) {
				foresee(s, node, layer, PARAMETERS, ids);
				if (mb == rounds - 1)
					foresee(s, node, layer, STATE, ids);
			}
		}
		for (int i = 0; i < layers && updates; i++)
			foresee(s, node, ascending ? i : layers - 1 - i, LATE_STATE, ids);
		cache_future(s->cache[node], (const int *)(void *)ids->data, (int)ids->len);
	}
}
