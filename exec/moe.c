/* MoE layers. A token's rows travel from the GPU whose gate chose to the GPUs that compute the experts, and back:
 *
 *     forward    u -> gather -> sent (D) =====> arrived (D) -> experts -> results (D) =====> sent -> scatter with weights -> out
 *     backward   u -> gather -> sent (D) =====> arrived (D) ------------+
 *                dout, weight -> sent (D, w) ==> arrived (D, w) --> experts -> dx, dw in place ==> sent -> scatter -> du, dweight
 *
 * Without an exchange the sender's rows are the expert's: both ends are one buffer. On its owner an expert's rows lie together, first those of GPU 0,
 * each GPU's in the order of its tokens, whatever the placement: so the same GEMMs run on the same rows under every policy. An expert is computed in
 * blocks of as many rows as a GPU has tokens, which bounds its hidden layer however many tokens choose it. */
#include "tensors.h"

#include "model/error.h"

#include <string.h>

static uint32_t *loads_of(const struct engine *e, int g, int layer, int microbatch)
{
	size_t block = (size_t)layer * (size_t)e->microbatches + (size_t)microbatch;
	return e->gpu[g].loads + block * (size_t)e->gpus * (size_t)e->experts;
}

void engine_loads(const struct engine *e, int layer, int microbatch, uint32_t *tokens)
{
	size_t n = (size_t)e->gpus * (size_t)e->n->layer[layer].experts;
	memcpy(tokens, loads_of(e, e->first, layer, microbatch), n * sizeof(uint32_t));
}

/* (G, E), of the stage's layer and micro-batch. They stay on the device: what comes from the host waits behind experts on their way. */
static uint32_t *counts_of_all(const struct issue *i)
{
	size_t block = (size_t)i->st->layer * (size_t)i->e->microbatches + i->st->microbatch;
	return i->g->all_counts + block * (size_t)i->e->experts * (size_t)i->e->gpus;
}

bool issue_gate(const struct issue *i)
{
	const struct engine *e = i->e;
	const struct stage *st = i->st;
	struct activations *a = i->a;
	int E = i->l->experts;
	size_t block = (size_t)st->layer * (size_t)e->microbatches + st->microbatch, bytes = sizeof(uint32_t) * (size_t)E;
	op_linear(i->s, a->logits, a->u, param_at(e, i->gpu, i->at->gate), NULL, e->N, e->n->d_model, E);
	op_gate(i->s, a->prob, a->index, a->counts, i->g->w.aux, a->logits, e->N, E, i->l->top_k);
	if (e->o.imposed) {
		device_copy(i->s, a->counts, i->g->wanted + block * (size_t)e->experts, bytes);
		op_assign(i->s, a->index, a->counts, e->N, E, i->l->top_k);
	}
	if (st->pass != PASS_FORWARD)
		return true;
	device_download(i->s, i->g->losses + st->step_parity * losses_of_step(e) + 1 + 2 * block, i->g->w.aux, 2 * sizeof(float));
	/* nothing orders the gathering of the counts before a later layer's gate */
	if (e->gpus > 1)
		device_copy(i->s, counts_of_all(i) + (size_t)i->gpu * (size_t)E, a->counts, bytes);
	else
		device_download(i->s, loads_of(e, i->gpu, st->layer, st->microbatch), a->counts, bytes);
	return true;
}

bool issue_counts(const struct issue *i)
{
	const struct engine *e = i->e;
	size_t bytes = sizeof(uint32_t) * (size_t)i->l->experts;
	uint32_t *all = counts_of_all(i);
	group_gather(i->s, e->group, i->gpu, all, bytes);
	device_download(i->s, loads_of(e, i->gpu, i->st->layer, i->st->microbatch), all, bytes * (size_t)e->gpus);
	/* where capacities are fixed and nothing is exchanged, no stage waits for the counts */
	device_event_record(i->s, i->g->gathered);
	return true;
}

bool issue_gate_backward(const struct issue *i)
{
	const struct engine *e = i->e;
	const struct activations *a = i->a;
	const struct workspace *w = &i->g->w;
	int E = i->l->experts;
	float share = 1.0f / (float)(e->gpus * e->microbatches);
	const uint32_t *counts = a->counts;
	/* the experts are balanced over the tokens of all GPUs: the loss does not depend on how many there are */
	if (e->gpus > 1) {
		device_stream_wait(i->s, i->g->gathered);
		op_sum_counts(i->s, w->sum_counts, counts_of_all(i), e->gpus, E);
		counts = w->sum_counts;
	}
	op_gate_backward(i->s, w->dlogits, w->dweight, a->prob, a->index, counts, a->logits, e->o.balance * share, e->o.z * share, e->N,
	                 e->gpus * e->N, E, i->l->top_k);
	op_linear_backward(i->s, w->du, i->g->gradient + i->at->gate, w->dlogits, a->u, param_at(e, i->gpu, i->at->gate), e->N, e->n->d_model, E,
	                   true);
	return true;
}

/* Rows that GPU g sends to an expert. */
static int rows_from(const struct issue *i, const uint32_t *loads, int g, int expert)
{
	return (int)(i->st->block->capacity ? i->st->block->capacity : loads[(size_t)g * (size_t)i->l->experts + (size_t)expert]);
}

/* By the first stage of a pass that needs to know. */
static void lay_out(const struct issue *i)
{
	const struct engine *e = i->e;
	const struct block *b = i->st->block;
	struct rows *r = &i->g->rows;
	const struct rows_of of = {i->st->step_parity, i->st->pass + 1, i->st->layer, i->st->microbatch};
	if (!memcmp(&of, &r->of, sizeof(of)))
		return;
	r->of = of;
	const uint32_t *loads = loads_of(e, i->gpu, i->st->layer, i->st->microbatch);
	int *next = g_newa0(int, e->gpus);
	int from = e->exchanges ? 0 : b->first[i->gpu], to = e->exchanges ? b->first[e->gpus] : b->first[i->gpu + 1], gpu = e->exchanges ? 0 : i->gpu;
	for (int w = from; w < to; w++) {
		while (w >= b->first[gpu + 1])
			gpu++;
		r->owner[b->work[w].expert] = gpu;
		r->total[b->work[w].expert] = (int)b->work[w].tokens;
	}
	r->n_sent = 0;
	r->exchanged = 0;
	for (int x = 0; x < i->l->experts; x++) {
		r->at[x] = next[r->owner[x]];
		next[r->owner[x]] += r->total[x];
		r->sent[x] = r->n_sent;
		r->n_sent += rows_from(i, loads, i->gpu, x);
	}
	g_assert((size_t)r->n_sent <= e->rows_sent && (size_t)next[i->gpu] <= e->rows_arrived);
}

/* Without padding, the block is not looked at: the counts may still be on their way. */
bool issue_permute(const struct issue *i)
{
	const struct engine *e = i->e;
	struct activations *a = i->a;
	int E = i->l->experts, k = i->l->top_k, D = e->n->d_model;
	uint32_t capacity = e->p->dispatch == DISPATCH_EXACT ? 0 : i->st->block->capacity;
	op_pick(i->s, a->weight, a->prob, a->index, e->N, E, k);
	op_route(i->s, a->order, a->row, a->index, e->N, E, k, capacity);
	op_gather(i->s, a->sent, a->u, a->order, NULL, capacity ? E * (int)capacity : e->N * k, D, k, D);
	return true;
}

bool issue_permute_backward(const struct issue *i)
{
	const struct engine *e = i->e;
	const struct workspace *w = &i->g->w;
	int k = i->l->top_k, D = e->n->d_model;
	op_scatter(i->s, w->du, w->sent, i->a->row, NULL, e->N, D, k, weighted_width(e));
	op_column(i->s, w->dweight, w->sent, i->a->row, e->N * k, D, weighted_width(e));
	return true;
}

bool issue_combine(const struct issue *i)
{
	const struct engine *e = i->e;
	int D = e->n->d_model;
	op_scatter(i->s, i->g->x[i->st->layer + 1], i->g->w.sent, i->a->row, i->a->weight, e->N, D, i->l->top_k, D);
	return true;
}

bool issue_combine_backward(const struct issue *i)
{
	const struct engine *e = i->e;
	const struct workspace *w = &i->g->w;
	int D = e->n->d_model;
	lay_out(i);
	device_zero(i->s, w->du, (size_t)e->N * (size_t)D * e->element);
	op_gather(i->s, w->sent, w->d, i->a->order, i->a->weight, i->g->rows.n_sent, D, i->l->top_k, weighted_width(e));
	return true;
}

/* The rows of a chunk among `total`, as the schedule cuts them. */
struct range {
	int from, to;
};
static struct range chunk_range(int total, int chunk, int chunks)
{
	int each = total / chunks, more = total % chunks, from = chunk * each + MIN(chunk, more);
	return (struct range){from, from + each + (chunk < more)};
}

/* Segments between the sources and the owners of a chunk that begin or end at this GPU: its own tokens on the way out, the rows of its experts on the
 * way back. All GPUs know all loads, so each lists both, in the same order. */
static struct traffic list_traffic(const struct issue *i, int chunk, bool back)
{
	const struct rows *r = &i->g->rows;
	const uint32_t *loads = loads_of(i->e, i->gpu, i->st->layer, i->st->microbatch);
	int *sent = g_newa0(int, i->e->gpus);
	struct traffic t = {.sends = r->sends, .receives = r->receives};
	for (int x = 0; x < i->l->experts; x++) {
		struct range c = chunk_range(r->total[x], chunk, i->st->block->chunks);
		for (int g = 0, first = 0; g < i->e->gpus; g++) {
			int rows = rows_from(i, loads, g, x), from = MAX(first, c.from), to = MIN(first + rows, c.to);
			int there = sent[g] + from - first, here = r->at[x] + from;
			first += rows;
			sent[g] += rows;
			if (from >= to)
				continue;
			int sender = back ? r->owner[x] : g, receiver = back ? g : r->owner[x];
			struct segment s = {.peer = receiver, .from = back ? here : there, .to = back ? there : here, .rows = to - from};
			if (sender == i->gpu)
				r->sends[t.n_sends++] = s;
			s.peer = sender;
			if (receiver == i->gpu)
				r->receives[t.n_receives++] = s;
		}
	}
	return t;
}

/* A chunk's first exchange of a pass takes its rows to the experts, the second brings them back. */
bool issue_all_to_all(const struct issue *i)
{
	const struct workspace *w = &i->g->w;
	lay_out(i);
	bool back = i->g->rows.exchanged++ >= i->st->block->chunks;
	struct traffic traffic = list_traffic(i, i->st->part, back);
	traffic.width = i->st->pass == PASS_BACKWARD ? weighted_width(i->e) : i->e->n->d_model;
	traffic.packed_out = back ? w->packed_arrived : w->packed_sent;
	traffic.packed_in = back ? w->packed_sent : w->packed_arrived;
	elem *from = back ? w->arrived : i->a->sent, *to = back ? w->sent : i->a->arrived;
	if (!back && i->st->pass == PASS_BACKWARD) {
		from = w->sent;
		to = w->arrived;
	}
	group_all_to_all(i->s, i->e->group, i->gpu, to, from, &traffic);
	return true;
}

/* Pieces of experts' rows that go to the device together: as many rows as a GPU has tokens. */
struct pieces {
	struct expert_rows *piece;
	int n, rows;
};

static void compute(const struct issue *i, struct pieces *p)
{
	const struct engine *e = i->e;
	const struct workspace *w = &i->g->w;
	const struct expert_shape shape = {e->n->d_model, i->l->d_expert, (int)e->n->activation,
	                                   i->st->slot >= 0 ? e->gradient_bytes : (int)sizeof(float)};
	const struct expert_space space = {w->hidden, w->active, w->dhidden, w->dactive};
	if (p->n && i->st->pass == PASS_BACKWARD)
		op_experts_backward(i->s, w->arrived, i->a->arrived, p->piece, p->n, &shape, &space);
	else if (p->n)
		op_experts(i->s, w->arrived, i->a->arrived, p->piece, p->n, &shape, &space);
	p->n = p->rows = 0;
}

/* Cut where the rows of one expert are, so that its sums do not depend on its neighbours. */
static void add_pieces(const struct issue *i, struct pieces *p, int expert, struct expert_rows piece)
{
	struct range c = chunk_range(i->g->rows.total[expert], i->st->slot >= 0 ? 0 : i->st->part, i->st->block->chunks);
	for (int from = c.from; from < c.to; from += i->e->N) {
		piece.from = (size_t)(i->g->rows.at[expert] + from);
		piece.rows = MIN(i->e->N, c.to - from);
		if (p->rows + piece.rows > i->e->N)
			compute(i, p);
		p->piece[p->n++] = piece;
		p->rows += piece.rows;
		piece.fresh = false;
	}
}

/* Where elements are fp32, the gradient of one micro-batch is complete before it is added to those before it, as it is where the host adds them: the
 * sums have the same bits. */
static void add_expert(const struct issue *i, struct pieces *p, int expert)
{
	const struct engine *e = i->e;
	const struct stage *st = i->st;
	bool uploaded = st->slot >= 0, backward = st->pass == PASS_BACKWARD;
	bool apart = backward && !uploaded && e->microbatches > 1 && e->element == sizeof(float);
	size_t params = network_expert_params(e->n, i->l), up = params - (size_t)e->n->d_model * (size_t)i->l->d_expert, at = 0;
	size_t width = uploaded ? (size_t)e->gradient_bytes : sizeof(float);
	g_assert(uploaded || expert_at_home(e, i->gpu, st->layer, expert, &at));
	elem *weights = uploaded ? i->g->slot[st->slot] : param_at(e, i->gpu, at);
	char *home = uploaded ? i->g->slot_gradient[backward ? st->part : 0] : (char *)(i->g->gradient + at);
	char *gradient = apart ? (char *)i->g->w.gradient : home;
	bool fresh = uploaded || apart;
	if (backward && fresh && !i->g->rows.total[expert])
		device_zero(i->s, gradient, params * width);
	add_pieces(i, p, expert, (struct expert_rows){weights, elem_at(e, weights, up), gradient, gradient + up * width, 0, 0, fresh});
	if (!apart)
		return;
	compute(i, p);
	op_accumulate(i->s, (float *)home, (float *)gradient, params);
}

bool issue_expert(const struct issue *i)
{
	const struct block *b = i->st->block;
	struct pieces p = {.piece = g_newa(struct expert_rows, (size_t)i->l->experts + 1)};
	lay_out(i);
	if (i->st->expert >= 0)
		add_expert(i, &p, i->st->expert);
	for (int w = b->first[i->gpu]; i->st->expert < 0 && w < b->first[i->gpu + 1]; w++)
		add_expert(i, &p, b->work[w].expert);
	compute(i, &p);
	return true;
}

bool issue_upload(const struct issue *i)
{
	const struct engine *e = i->e;
	int slot = i->st->slot;
	i->g->slot_layer[slot] = i->st->layer;
	i->g->slot_expert[slot] = i->st->expert;
	device_upload(i->s, i->g->slot[slot], i->stored->params, network_expert_params(e->n, i->l) * e->element);
	return true;
}

/* Where every GPU computes every expert, each has the sum of one share of the gradient. */
struct share {
	size_t from, n;
};
static struct share share_of(const struct issue *i)
{
	size_t params = network_expert_params(i->e->n, i->l), gpus = (size_t)i->e->gpus, gpu = (size_t)i->st->rank;
	if (i->e->exchanges || gpus == 1)
		return (struct share){0, params};
	size_t from = params * gpu / gpus;
	return (struct share){from, params * (gpu + 1) / gpus - from};
}

bool issue_download(const struct issue *i)
{
	struct share share = share_of(i);
	size_t width = (size_t)i->e->gradient_bytes;
	char *to = i->stored->gradient, *from = i->g->slot_gradient[i->st->slot];
	device_download(i->s, to + share.from * width, from + share.from * width, share.n * width);
	return true;
}

bool issue_reduce_scatter(const struct issue *i)
{
	g_assert(i->e->gradient_bytes == sizeof(float));
	group_reduce_scatter(i->s, i->e->group, i->gpu, i->g->slot_gradient[i->st->part], network_expert_params(i->e->n, i->l));
	return true;
}

static struct adam_pool *pool_of(const struct issue *i)
{
	return i->e->pool[i->st->rank / i->e->sc->machine->gpus_per_node];
}

static struct due *due_of(const struct issue *i)
{
	return &i->e->due[i->st->layer][(size_t)i->st->expert * (size_t)i->e->gpus + (i->e->exchanges ? 0 : (size_t)i->st->rank)];
}

static bool absent(const struct issue *i, const char *what)
{
	g_set_error(i->error, ESMOE_ERROR, ESMOE_ERROR_DEVICE, "layer %d, expert %d: its %s are not in DRAM when stage %u (%s) needs them",
	            i->st->layer, i->st->expert, what, i->st->id, stage_kind_name(i->st->kind));
	return false;
}

static int gradient_format(const struct issue *i)
{
	return i->e->gradient_bytes == sizeof(float) ? ADAM_FP32 : ADAM_BF16;
}

/* Adds the share that came down to the step's sum, or begins the sum with it. */
static bool add_gradient(const struct issue *i)
{
	struct share share = share_of(i);
	float *sum = store_sum(i->e->store, i->at->moe, i->st->expert);
	const char *gradient = i->stored->gradient;
	if (!gradient)
		return absent(i, "gradients");
	adam_accumulate(pool_of(i), sum + share.from, gradient + share.from * (size_t)i->e->gradient_bytes, gradient_format(i), share.n,
	                !due_of(i)->summed);
	due_of(i)->summed = true;
	return true;
}

bool issue_accumulate(const struct issue *i)
{
	adam_wait(pool_of(i), due_of(i)->update);
	return add_gradient(i);
}

/* Leaves the step's gradient in the sum, zero where no token came by. */
static bool keep_gradient(const struct issue *i)
{
	struct share share = share_of(i);
	float *sum = store_sum(i->e->store, i->at->moe, i->st->expert);
	if (!i->st->part && !due_of(i)->summed)
		memset(sum + share.from, 0, share.n * sizeof(float));
	else if (i->st->part && !add_gradient(i))
		return false;
	due_of(i)->summed = false;
	return true;
}

/* Parameters that left DRAM are cast from the master when they come again. */
static bool update(const struct issue *i, const float *sum)
{
	const struct engine *e = i->e;
	const struct store_places *stored = i->stored;
	struct share share = share_of(i);
	int format = sum ? ADAM_FP32 : gradient_format(i);
	const char *gradient = sum ? (const char *)sum : i->st->part ? stored->gradient : NULL;
	if (!stored->master)
		return absent(i, "optimizer's numbers");
	if (i->st->part && !gradient)
		return absent(i, "gradients");
	struct adam_args a = {.master = stored->master + share.from,
	                      .m = stored->m + share.from,
	                      .v = stored->v + share.from,
	                      .gradient = gradient ? gradient + share.from * (sum ? sizeof(float) : (size_t)e->gradient_bytes) : NULL,
	                      .out = stored->params ? elem_at(e, stored->params, share.from) : NULL,
	                      .n = share.n,
	                      .scale = 1,
	                      .gradient_format = format,
	                      .out_format = e->element == sizeof(float) ? ADAM_FP32 : ADAM_BF16,
	                      .step = adam_step_of(e, i->st)};
	*i->pending = due_of(i)->update = adam_update_start(pool_of(i), &a);
	return true;
}

bool issue_adam(const struct issue *i)
{
	const struct engine *e = i->e;
	struct due *due = due_of(i);
	if (e->o.grad_check)
		return keep_gradient(i);
	adam_wait(pool_of(i), due->update);
	if (i->st->part && due->summed && !add_gradient(i))
		return false;
	const float *sum = due->summed ? store_sum(e->store, i->at->moe, i->st->expert) : NULL;
	bool updated = update(i, sum);
	due->summed = false;
	return updated;
}

bool issue_ssd(const struct issue *i)
{
	bool reads = i->st->kind == STAGE_SSD_READ;
	return (reads ? store_read : store_write)(i->e->store, i->at->moe, i->st->expert, i->st->part, i->stored, i->error);
}
