/* The experts of a layer: one after another, each a chain of stages over four engines.
 *
 *     upload stream    [up e0][up e1][up e2]...
 *     compute stream         [e0   ][e1   ][e2   ]...          forward; backward recomputes and differentiates
 *     download stream                [dn e0][dn e1]...          gradients
 *     optimizer stream                      [Adam e0][Adam e1]  CPU threads of the node
 *     SSD streams      state and parameters that the DRAM cache lacks come before, evicted state leaves after
 *
 * An upload waits for its slot in HBM (the expert computed `slots` uploads before) and for the expert's last update; a backward waits for its
 * gradient slot. The GPUs are interleaved expert by expert, so that the node's optimizer serves them in turn. Experts at home in HBM need no chain.
 */
#include "build.h"
#include "infer.h"
#include "placement.h"

stage_id experts_upload(struct schedule *s, int pass, int layer, int microbatch, int e, int gpu, int *slot)
{
	struct gpu_state *g = &s->gpu[gpu];
	struct moe_layer *moe = &s->moe[layer];
	stage_id fetched = store_fetch(s, pass, layer, e, false, gpu);
	struct stage st = stage_on_gpu(s, STAGE_UPLOAD, pass, layer, microbatch, gpu, STREAM_UPLOAD, PROFILE_UP);
	*slot = g->slot_next;
	g->slot_next = (g->slot_next + 1) % s->slots;
	for (int i = 0; i < g->n_prefetched; i++) /* an expert that came into the list before it takes its slot */
		if (g->prefetched_slot[i] == *slot)
			g->prefetched_expert[i] = -1;
	st.expert = e;
	st.slot = *slot;
	st.bytes = element_bytes(s) * moe->params;
	st.cost_ns = moe->upload_ns;
	st.n_kernels = (uint32_t)s->copy_kernels;
	after(&st, g->slot_user[*slot]);
	after(&st, moe->expert[e].updated);
	after(&st, fetched);
	if (s->plan.home == HOME_SSD && expert_data_parallel(s)) /* one after another, so that the last says when the block may leave DRAM */
		after(&st, moe->expert[e].uploaded);
	return moe->expert[e].uploaded = emit(s, &st);
}

stage_id expert_compute(struct schedule *s, int pass, int layer, int microbatch, int e, int gpu, uint32_t tokens, struct at at, const stage_id *preds,
                        int n_preds)
{
	const struct layer *l = &s->n->layer[layer];
	struct stage st = stage_on_gpu(s, STAGE_EXPERT, pass, layer, microbatch, gpu, STREAM_COMPUTE, s->cached ? PROFILE_MEMORY : PROFILE_COMPUTE);
	st.expert = e;
	st.slot = at.slot;
	st.part = at.part;
	st.block = &s->moe[layer].block[microbatch];
	st.tokens = tokens;
	st.products = (uint32_t)cost_expert_products(s->cost, pass);
	st.cost_ns = cost_compute(s->cost, STAGE_EXPERT, pass, l, tokens, &st.n_kernels);
	st.cost_ns /= st.block->slices;
	after_awaited(s, &st);
	for (int i = 0; i < n_preds; i++)
		after(&st, preds[i]);
	return s->gpu[gpu].last_compute = emit(s, &st);
}

/* Gradient of one expert: down to the host, there added or used. With every GPU computing every expert, the GPUs first reduce-scatter and each brings
 * its shard. */
static void retire(struct schedule *s, int layer, int microbatch, int e, int gpu, stage_id done, int slot)
{
	struct moe_layer *moe = &s->moe[layer];
	struct gpu_state *g = &s->gpu[gpu];
	int shards = expert_data_parallel(s) ? machine_node_gpus(s->m, s->node_of[gpu]) : 1;
	struct stage st = stage_on_gpu(s, STAGE_DOWNLOAD, PASS_BACKWARD, layer, microbatch, gpu, STREAM_DOWNLOAD, PROFILE_DOWN);
	st.expert = e;
	st.slot = slot;
	st.bytes = moe->params * (uint64_t)s->p->gradient_bytes / (uint64_t)shards;
	st.cost_ns = cost_download(s->cost, st.bytes);
	st.n_kernels = (uint32_t)s->copy_kernels;
	after(&st, done);
	after(&st, moe->expert[e].added[(microbatch + 1) % 2]);
	stage_id down = g->gradient_user[slot] = emit(s, &st);
	struct late u = {.layer = layer, .expert = e, .gpu = gpu, .params = moe->params / (uint64_t)shards, .gradient = down};
	if (microbatch == s->plan.microbatches - 1)
		updates_add(s, &u);
	else
		moe->expert[e].added[microbatch % 2] = updates_accumulate(s, &u, microbatch);
}

/* The i-th entry of a GPU's list, or NULL when the list is shorter. */
static const struct expert_work *entry(const struct block *b, int gpu, int i)
{
	return i < b->first[gpu + 1] - b->first[gpu] ? &b->work[b->first[gpu] + i] : NULL;
}

static stage_id dispatched(const struct schedule *s, int microbatch, int chunk, int gpu)
{
	return s->dispatched[((size_t)microbatch * MAX_CHUNKS + (size_t)chunk) * (size_t)s->gpus + (size_t)gpu];
}

static void used(struct expert_state *x, stage_id upload)
{
	if (x->aside == upload)
		x->aside = STAGE_NONE;
}

/* Brings expert e to the GPU; the stage after which it is there. *slot is -1 for a pinned copy. */
static stage_id bring(struct schedule *s, int pass, int layer, int microbatch, int e, int gpu, int *slot)
{
	struct gpu_state *g = &s->gpu[gpu];
	struct expert_state *x = &s->moe[layer].expert[e];
	*slot = -1;
	if (x->pinned == gpu) {
		used(x, x->refreshed);
		return x->refreshed;
	}
	for (int i = 0; i < g->n_prefetched; i++) {
		if (pass != PASS_FORWARD || g->prefetched_expert[i] != e)
			continue;
		*slot = g->prefetched_slot[i];
		used(x, g->prefetched[i]);
		return g->prefetched[i];
	}
	if (ring_of_slots(s))
		return ring_next(s, gpu, slot);
	return experts_upload(s, pass, layer, microbatch, e, gpu, slot);
}

static bool wanted(const struct schedule *s, int layer, struct batches of, int gpu, int i)
{
	for (int mb = of.from; mb < of.to; mb++)
		if (entry(&s->moe[layer].block[mb], gpu, i)->tokens)
			return true;
	return false;
}

/* The i-th of a GPU's list, on the tokens of each micro-batch. One that no token wants is only passed over in the ring. */
static void forward_one(struct schedule *s, int pass, int layer, struct batches of, int gpu, int i)
{
	int slot, e = entry(&s->moe[layer].block[of.from], gpu, i)->expert;
	bool in_ring = ring_of_slots(s) && s->moe[layer].expert[e].pinned != gpu;
	if (!wanted(s, layer, of, gpu, i)) {
		if (in_ring)
			ring_pass(s, gpu, STAGE_NONE);
		return;
	}
	stage_id ready = bring(s, pass, layer, of.from, e, gpu, &slot), done = STAGE_NONE;
	struct at at = {slot >= 0 ? slot : s->moe[layer].expert[e].pinned_slot, 0};
	for (int mb = of.from; mb < of.to; mb++) {
		const struct expert_work *w = entry(&s->moe[layer].block[mb], gpu, i);
		stage_id preds[] = {ready, dispatched(s, mb, 0, gpu)};
		if (w->tokens)
			done = expert_compute(s, pass, layer, mb, e, gpu, w->tokens, at, preds, 2);
	}
	if (in_ring)
		ring_pass(s, gpu, done);
	else if (slot >= 0)
		s->gpu[gpu].slot_user[slot] = done;
}

static int longest_list(const struct schedule *s, const struct block *b)
{
	int most = 0;
	for (int g = 0; g < s->gpus; g++)
		most = MAX(most, b->first[g + 1] - b->first[g]);
	return most;
}

/* Entries from..to of a GPU's list on chunk `chunk` of `chunks` of their tokens: grouped in one launch, or one after another. */
struct turn {
	int gpu, from, to, chunk, chunks;
	stage_id arrived;
};

static void resident(struct schedule *s, int pass, int layer, int microbatch, const struct turn *t)
{
	const struct layer *l = &s->n->layer[layer];
	const struct block *b = &s->moe[layer].block[microbatch];
	bool grouped = s->p->expert_compute == EXPERTS_GROUPED;
	uint32_t *shares = g_newa(uint32_t, MAX(1, t->to - t->from)), tokens = 0;
	int busy = 0;
	for (int i = t->from; i < t->to; i++) {
		uint32_t share = b->work[i].tokens / (uint32_t)t->chunks + ((uint32_t)t->chunk < b->work[i].tokens % (uint32_t)t->chunks);
		if (!share)
			continue;
		tokens += share;
		shares[busy++] = share;
		if (!grouped)
			expert_compute(s, pass, layer, microbatch, b->work[i].expert, t->gpu, share, (struct at){-1, t->chunk}, &t->arrived, 1);
	}
	if (!grouped || !tokens)
		return;
	struct stage st =
	    stage_on_gpu(s, STAGE_EXPERT, pass, layer, microbatch, t->gpu, STREAM_COMPUTE, s->cached ? PROFILE_MEMORY : PROFILE_COMPUTE);
	st.slot = -1;
	st.part = t->chunk;
	st.block = b;
	st.tokens = tokens;
	st.products = (uint32_t)cost_expert_products(s->cost, pass);
	st.cost_ns = cost_grouped(s->cost, pass, l, shares, busy, b->capacity > 0, &st.n_kernels) / b->slices;
	after(&st, t->arrived);
	after_awaited(s, &st);
	s->gpu[t->gpu].last_compute = emit(s, &st);
}

/* Experts at home in HBM, chunk by chunk of the tokens; then copies of others' experts, whose tokens never left. */
static void resident_chunks(struct schedule *s, int pass, int layer, int microbatch)
{
	const struct block *b = &s->moe[layer].block[microbatch];
	if (b->travels) {
		travel_experts(s, pass, layer, microbatch);
		return;
	}
	for (int chunk = 0; chunk < b->chunks; chunk++) {
		for (int g = 0; g < s->gpus; g++) {
			stage_id arrived = dispatched(s, microbatch, chunk, g);
			resident(s, pass, layer, microbatch, &(struct turn){g, b->first[g], b->first[g + 1] - b->shadows, chunk, b->chunks, arrived});
		}
		tensor_return(s, pass, layer, microbatch, chunk);
	}
	for (int g = 0; b->shadows && g < s->gpus; g++) {
		stage_id arrived = pass == PASS_FORWARD ? s->arrived[g] : STAGE_NONE;
		resident(s, pass, layer, microbatch, &(struct turn){g, b->first[g + 1] - b->shadows, b->first[g + 1], 0, 1, arrived});
	}
	if (pass == PASS_BACKWARD)
		slices_reduce(s, layer, microbatch);
	if (b->shadows && pass == PASS_BACKWARD)
		shadows_reduce(s, layer, microbatch);
}

void experts_forward(struct schedule *s, int pass, int layer, struct batches of)
{
	if (!offloaded(s)) {
		resident_chunks(s, pass, layer, of.from);
		return;
	}
	const struct block *b = &s->moe[layer].block[of.from]; /* all micro-batches of `of` are placed alike */
	int longest = longest_list(s, b);
	for (int i = 0; i < longest; i++)
		for (int g = 0; g < s->gpus; g++)
			if (entry(b, g, i))
				forward_one(s, pass, layer, of, g, i);
	for (int g = 0; g < s->gpus; g++)
		s->gpu[g].n_prefetched = 0;
}

void experts_return(struct schedule *s, int pass, int layer, int microbatch)
{
	if (offloaded(s))
		tensor_return(s, pass, layer, microbatch, 0);
}

void experts_prefetch(struct schedule *s, int layer)
{
	const struct moe_layer *moe = &s->moe[layer];
	for (int g = 0; g < s->gpus; g++) {
		struct gpu_state *x = &s->gpu[g];
		for (int e = 0; e < moe->experts && x->n_prefetched < MIN(s->slots - 1, MAX_PREFETCH); e++) {
			int slot, home = s->p->placement == PLACEMENT_STICKY ? moe->expert[e].last : (int)((int64_t)e * s->gpus / moe->experts);
			if ((home != g && !expert_data_parallel(s)) || moe->expert[e].pinned >= 0)
				continue;
			stage_id id = moe->expert[e].aside = experts_upload(s, PASS_FORWARD, layer, 0, e, g, &slot);
			int i = x->n_prefetched++;
			x->prefetched[i] = id;
			x->prefetched_expert[i] = e;
			x->prefetched_slot[i] = slot;
		}
	}
}

/* Waits for its parameters, the gradients that arrived, and the slot its own gradient will take, to which each micro-batch adds. */
static stage_id backward_one(struct schedule *s, int layer, struct batches of, int gpu, int i)
{
	struct gpu_state *g = &s->gpu[gpu];
	int slot, e = entry(&s->moe[layer].block[of.from], gpu, i)->expert;
	stage_id ready = bring(s, PASS_BACKWARD, layer, of.from, e, gpu, &slot), done = STAGE_NONE;
	struct at at = {slot >= 0 ? slot : s->moe[layer].expert[e].pinned_slot, g->gradient_next};
	for (int mb = of.from; mb < of.to; mb++) {
		const struct expert_work *w = entry(&s->moe[layer].block[mb], gpu, i);
		stage_id preds[] = {ready, dispatched(s, mb, 0, gpu), g->gradient_user[g->gradient_next]};
		if (w->tokens || expert_data_parallel(s))
			done = expert_compute(s, PASS_BACKWARD, layer, mb, e, gpu, w->tokens, at, preds, 3);
	}
	if (slot >= 0)
		g->slot_user[slot] = done;
	return done;
}

/* The busiest experts of this step stay on the GPU that computed them (ES-MoE, section 4.3). */
void experts_pin(struct schedule *s, int layer)
{
	struct moe_layer *moe = &s->moe[layer];
	const struct block *b = &moe->block[s->plan.microbatches - 1];
	for (int e = 0; e < moe->experts; e++)
		moe->expert[e].pinned = -1;
	for (int g = 0; g < s->gpus; g++) {
		const struct expert_work *w = &b->work[b->first[g]];
		int n = b->first[g + 1] - b->first[g];
		for (int i = 0; i < n; i++) {
			s->totals[i] = moe->expert[w[i].expert].tokens;
			moe->expert[w[i].expert].last = g;
		}
		placement_busiest(n, s->totals, MIN(n, moe->pinned_slots), s->chosen);
		for (int i = 0, slot = moe->first_pinned_slot; i < n; i++)
			if (s->chosen[i]) {
				moe->expert[w[i].expert].pinned = g;
				moe->expert[w[i].expert].pinned_slot = slot++;
			}
	}
	for (int e = 0; e < moe->experts; e++)
		moe->expert[e].tokens = 0;
}

/* With every GPU computing every expert, their gradients of one expert are summed and cut into shards; done (G) becomes the members' ids. */
static void reduce_shards(struct schedule *s, int layer, int microbatch, int e, stage_id *done)
{
	struct collective c = {.of_copies = true,
	                       .pass = PASS_BACKWARD,
	                       .layer = layer,
	                       .microbatch = microbatch,
	                       .expert = e,
	                       .bytes = s->moe[layer].params * element_bytes(s)};
	c.part = s->gpu[0].gradient_next; /* every GPU goes through the experts in the same order */
	c.kind = s->nodes > 1 ? STAGE_ALL_REDUCE : STAGE_REDUCE_SCATTER;
	c.cost_ns = s->nodes > 1 ? cost_all_reduce(s->cost, c.bytes, s->gpus) : cost_all_gather(s->cost, c.bytes, s->gpus);
	emit_collective(s, &c, done, done);
}

/* The i-th experts of all GPUs. One that got no token has a zero gradient, but its moments decay all the same: only its update is launched. */
static void backward_round(struct schedule *s, int layer, struct batches of, int i)
{
	int microbatch = of.to - 1; /* the one whose gradient is complete */
	const struct block *b = &s->moe[layer].block[of.from];
	stage_id *done = s->round;
	bool last = microbatch == s->plan.microbatches - 1;
	for (int g = 0; g < s->gpus; g++) {
		const struct expert_work *w = entry(b, g, i);
		bool works = w && (wanted(s, layer, of, g, i) || expert_data_parallel(s));
		done[g] = works ? backward_one(s, layer, of, g, i) : STAGE_NONE;
	}
	if (expert_data_parallel(s))
		reduce_shards(s, layer, microbatch, b->work[i].expert, done);
	for (int g = 0; g < s->gpus; g++) {
		const struct expert_work *w = entry(b, g, i);
		struct gpu_state *x = &s->gpu[g];
		if (done[g] != STAGE_NONE) {
			retire(s, layer, microbatch, w->expert, g, done[g], x->gradient_next);
			x->gradient_next = (x->gradient_next + 1) % GRADIENT_SLOTS;
		} else if (w && last) {
			updates_add(
			    s, &(struct late){.layer = layer, .expert = w->expert, .gpu = g, .params = s->moe[layer].params, .gradient = STAGE_NONE});
		}
	}
}

void experts_backward(struct schedule *s, int layer, struct batches of)
{
	if (!offloaded(s)) {
		resident_chunks(s, PASS_BACKWARD, layer, of.from);
		return;
	}
	int longest = longest_list(s, &s->moe[layer].block[of.from]);
	for (int i = 0; i < longest; i++)
		backward_round(s, layer, of, i);
}

void experts_settle(struct schedule *s, int layer, int microbatch)
{
	if (!offloaded(s) || microbatch != s->plan.microbatches - 1)
		return;
	if (!expert_data_parallel(s))
		experts_pin(s, layer);
	if (s->p->optimizer == OPTIMIZER_CPU_LAYER)
		updates_late(s);
}
