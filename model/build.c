/* What a schedule is built from, allocated once: the layers with their experts and routed blocks, the GPUs with their slots, and scratch. The plan
 * has been made by then, so all sizes are known and no step allocates. */
#include "build.h"

static void fill_ids(stage_id *ids, size_t n)
{
	for (size_t i = 0; i < n; i++)
		ids[i] = STAGE_NONE;
}

static stage_id *new_ids(size_t n)
{
	stage_id *ids = g_new(stage_id, n);
	fill_ids(ids, n);
	return ids;
}

static void block_init(struct block *b, const struct schedule *s, int experts)
{
	int set = s->plan.expert_parallel, units = set / s->plan.unit;
	size_t entries = (size_t)(s->gpus / set) * (size_t)MAX(experts, experts < units ? units / experts * experts : 0) * (size_t)s->plan.unit;
	b->room = entries;
	b->work = g_new(struct expert_work, entries);
	b->first = g_new(int, s->gpus + 1);
	b->sent = g_new(uint64_t, s->gpus);
	if (s->tally) {
		b->gathered = g_new0(uint64_t, s->gpus);
		b->railed = g_new0(uint64_t, s->gpus);
	}
}

void block_room(struct schedule *s, struct block *b, size_t n)
{
	if (n > b->room) {
		b->work = g_renew(struct expert_work, b->work, n);
		b->room = n;
	}
	if (n > s->entries) {
		s->work = g_renew(struct expert_work, s->work, n);
		s->place_of = g_renew(int, s->place_of, n);
		s->entries = n;
	}
}

/* Returns the number of experts of all layers before the next. */
static int moe_layer_init(struct moe_layer *moe, const struct schedule *s, const struct layer *l, int first_id, int *next_slot)
{
	moe->experts = l->experts;
	moe->first_id = first_id;
	if (!l->experts)
		return first_id;
	moe->params = network_expert_params(s->n, l);
	moe->upload_ns = cost_upload(s->cost, element_bytes(s) * moe->params);
	moe->travel_ns = cost_all_gather(s->cost, element_bytes(s) * moe->params, s->gpus);
	moe->bytes = inference(s) ? memory_expert_inference(s->n, s->m, l) : memory_expert(s->n, s->m, s->p, l);
	moe->pinned_slots = memory_pinned_experts(s->plan.pinned_share, l->experts, s->gpus);
	moe->first_pinned_slot = *next_slot;
	*next_slot += moe->pinned_slots;
	moe->expert = g_new(struct expert_state, l->experts);
	for (int e = 0; e < l->experts; e++)
		moe->expert[e] = (struct expert_state){.updated = STAGE_NONE,
		                                       .refreshed = STAGE_NONE,
		                                       .written = STAGE_NONE,
		                                       .uploaded = STAGE_NONE,
		                                       .aside = STAGE_NONE,
		                                       .added = {STAGE_NONE, STAGE_NONE},
		                                       .pinned = -1,
		                                       .last = -1};
	moe->block = g_new0(struct block, s->plan.microbatches);
	for (int mb = 0; mb < s->plan.microbatches; mb++)
		block_init(&moe->block[mb], s, l->experts);
	return first_id + l->experts;
}

static void scratch_init(struct schedule *s, int all_experts)
{
	size_t experts = (size_t)MAX(1, network_experts(s->n)), g = (size_t)s->gpus, sets = g / (size_t)s->plan.expert_parallel;
	size_t entries = sets * MAX(experts * (size_t)s->plan.unit, (size_t)s->plan.expert_parallel);
	s->dispatched = new_ids((size_t)s->plan.microbatches * MAX_CHUNKS * g);
	s->returned = new_ids(g);
	s->reduced = new_ids(g);
	s->gathered = new_ids(2 * g);
	s->counted = new_ids((size_t)s->plan.microbatches);
	s->round = new_ids(g);
	s->adam_last = new_ids((size_t)s->nodes);
	s->entries = entries;
	s->work = g_new(struct expert_work, entries);
	s->place_of = g_new(int, entries);
	s->cursor = g_new(int, g);
	s->loads = g_new0(uint32_t, g * experts);
	s->totals = g_new0(uint32_t, sets * experts);
	s->place = g_new(int, experts);
	s->last_place = g_new(int, experts);
	s->time_ns = g_new(nsec_t, experts);
	s->load_ns = g_new(nsec_t, g);
	s->rows = g_new(uint64_t, s->plan.expert_parallel);
	s->received = g_new(uint64_t, g);
	s->stretches = g_new(uint8_t, g);
	s->sent_near = g_new(uint64_t, g);
	s->node_bytes = g_new(uint64_t, 2 * (size_t)s->nodes);
	s->chosen = g_new(uint8_t, experts);
	s->shadow = g_new0(uint8_t, experts);
	s->arrived = new_ids(g);
	s->begun = new_ids(g);
	s->fetched = new_ids((size_t)s->slots * g);
	s->slot_user = new_ids((size_t)s->slots * g);
	s->sums = new_ids(GRADIENT_SLOTS * g);
	s->last_of = new_ids((size_t)stream_count(s->m));
	s->stream_ns = g_new0(nsec_t, stream_count(s->m));
	s->profile_ns = g_new0(nsec_t, s->resources->n_profiles);
	s->launches = g_new0(uint64_t, g);
	s->late = g_array_new(FALSE, FALSE, sizeof(struct late));
	s->evicted = g_new(int, 2 * (size_t)all_experts + 1);
	s->layer_of_block = g_new(int, (size_t)all_experts + 1);
}

static void gpus_init(struct schedule *s)
{
	s->gpu = g_new0(struct gpu_state, s->gpus);
	s->node_of = g_new(int, s->gpus);
	for (int g = 0; g < s->gpus; g++) {
		s->gpu[g].slot_user = new_ids((size_t)s->slots);
		fill_ids(s->gpu[g].gradient_user, GRADIENT_SLOTS);
		s->gpu[g].last_compute = s->gpu[g].awaited = s->gpu[g].gather_awaited = s->gpu[g].brought = s->gpu[g].pinned_user = STAGE_NONE;
		s->node_of[g] = g / s->m->gpus_per_node;
	}
}

static void caches_init(struct schedule *s, int all_experts)
{
	if (s->plan.home != HOME_SSD)
		return;
	s->cache = g_new(struct cache *, s->nodes);
	s->n_blocks = 2 * all_experts;
	s->block_read = new_ids((size_t)s->nodes * (size_t)s->n_blocks);
	for (int node = 0; node < s->nodes; node++) {
		s->cache[node] = cache_new(s->p->ssd_cache, 2 * all_experts, s->plan.memory.cache_bytes);
		cache_tune(s->cache[node], &(struct cache_decay){s->p->cache_decay, s->p->cache_threshold, s->p->cache_decay_steps});
	}
}

/* Of the groups of a shape one that reaches over nodes, if any does. */
static struct ranks farthest(const struct schedule *s, int stride, int size)
{
	for (int base = 0; base < s->gpus; base += size * stride)
		for (int g = base; g < base + stride && g + (size - 1) * stride < s->gpus; g++)
			if (s->node_of[g] != s->node_of[g + (size - 1) * stride])
				return (struct ranks){g, stride, size};
	return (struct ranks){0, stride, size};
}

struct group group_of(const struct schedule *s, int stride, int size)
{
	struct group group = {.ranks = farthest(s, stride, size)};
	group.profile = resources_collective(s->resources, s->m, OP_ALL_REDUCE, ALGORITHM_RING, &group.ranks);
	return group;
}

/* Copies of a layer's experts lie in different sets, or in units side by side in one set; where both is so, all GPUs wait for each other. */
static struct group copies_of_experts(const struct schedule *s, int layer)
{
	const struct moe_layer *moe = &s->moe[layer];
	int set = s->plan.expert_parallel, sets = s->gpus / set, spread = 1;
	if (moe->experts && s->plan.split == SPLIT_DATA)
		spread = spread_of(s, moe->experts);
	if (!moe->experts || offloaded(s) || sets * spread == 1)
		return (struct group){.ranks = {.stride = 1, .size = 1}};
	if (layer > 0 && s->moe[layer - 1].experts == moe->experts)
		return s->moe[layer - 1].copies;
	if (sets > 1 && (spread > 1 || set == 1))
		return s->all;
	return sets > 1 ? group_of(s, set, sets) : group_of(s, s->plan.unit, spread);
}

static void collectives_init(struct schedule *s)
{
	int tensor = s->plan.tensor_parallel, unit = s->plan.unit;
	s->all = group_of(s, 1, s->gpus);
	/* all units' GPUs exchange at once, as costs count them, though each with its own peers: what they ask of the links is what a whole set asks
	 */
	struct ranks whole = farthest(s, 1, s->plan.expert_parallel);
	s->set = farthest(s, unit, s->plan.expert_parallel / unit);
	s->exchanging = resources_collective(s->resources, s->m, OP_ALL_TO_ALL, ALGORITHM_PAIRWISE, &whole);
	s->tally = tally_new(s);
	s->copies = tensor == 1 ? s->all : group_of(s, tensor, s->gpus / tensor);
	if (tensor > 1)
		s->tensor = group_of(s, 1, tensor);
}

struct schedule *schedule_new(const struct scenario *sc, int *overflow, GError **error)
{
	struct plan plan;
	bool fits = plan_make(sc, &plan, error);
	if (overflow)
		*overflow = plan.overflow;
	if (!fits)
		return NULL;
	struct schedule *s = g_new0(struct schedule, 1);
	*s = (struct schedule){.sc = sc, .n = sc->network, .m = sc->machine, .p = sc->policy, .plan = plan, .gpus = sc->machine->gpus};
	bool eager = s->m->kernels == KERNELS_EAGER;
	s->nodes = machine_nodes(s->m);
	s->slots = plan.slots;
	s->tokens = plan.tokens;
	s->collective_kernels = eager ? 4 : 1;
	s->copy_kernels = eager ? 2 : 1;
	s->cost = cost_new(s->n, s->m, s->p, sc->seq_len, s->p->adam_threads);
	s->resources = resources_new(s->m, s->p->adam_threads);
	s->moe = g_new0(struct moe_layer, s->n->layers);
	gpus_init(s);
	collectives_init(s);
	int all_experts = 0, next_slot = s->slots;
	for (int i = 0; i < s->n->layers; i++)
		all_experts = moe_layer_init(&s->moe[i], s, &s->n->layer[i], all_experts, &next_slot);
	for (int i = 0; i < s->n->layers; i++)
		s->moe[i].copies = copies_of_experts(s, i);
	slices_init(s);
	scratch_init(s, all_experts);
	for (int i = 0; i < s->n->layers; i++)
		for (int e = 0; e < s->moe[i].experts; e++)
			s->layer_of_block[s->moe[i].first_id + e] = i;
	caches_init(s, all_experts);
	updates_init(s);
	return s;
}

static void moe_layer_clear(struct moe_layer *moe, int microbatches)
{
	g_free(moe->replicas);
	for (int mb = 0; moe->block && mb < microbatches; mb++) {
		g_free(moe->block[mb].work);
		g_free(moe->block[mb].first);
		g_free(moe->block[mb].sent);
		g_free(moe->block[mb].gathered);
		g_free(moe->block[mb].railed);
	}
	g_free(moe->block);
	g_free(moe->expert);
}

void schedule_free(struct schedule *s)
{
	if (!s)
		return;
	for (int i = 0; i < s->n->layers; i++)
		moe_layer_clear(&s->moe[i], s->plan.microbatches);
	for (int g = 0; g < s->gpus; g++) {
		g_free(s->gpu[g].slot_user);
		g_free(s->gpu[g].slot_upload);
		g_free(s->gpu[g].ring.expert);
	}
	for (int node = 0; s->cache && node < s->nodes; node++)
		cache_free(s->cache[node]);
	void *scratch[] = {s->counted,        s->moe,       s->gpu,       s->node_of,    s->cache,    s->dispatched, s->returned,
	                   s->reduced,        s->gathered,  s->round,     s->adam_last,  s->work,     s->place_of,   s->cursor,
	                   s->loads,          s->totals,    s->place,     s->last_place, s->time_ns,  s->load_ns,    s->rows,
	                   s->received,       s->stretches, s->sent_near, s->node_bytes, s->chosen,   s->evicted,    s->block_read,
	                   s->layer_of_block, s->last_of,   s->stream_ns, s->profile_ns, s->launches, s->shadow,     s->arrived,
	                   s->begun,          s->fetched,   s->slot_user, s->sums,       s->since,    s->adam_until};
	for (size_t i = 0; i < G_N_ELEMENTS(scratch); i++)
		g_free(scratch[i]);
	g_array_free(s->late, TRUE);
	tally_free(s->tally);
	cost_free(s->cost);
	resources_free(s->resources);
	g_free(s);
}

const struct plan *schedule_plan(const struct schedule *s)
{
	return &s->plan;
}
