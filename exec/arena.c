/* What a run takes of each GPU's arena, once, from the plan: the state of what lives there, slots for experts that do not, the layers' activations,
 * and the space of the stage that runs. Stages of the compute stream run one after another, so they share that space: what outlives a stage (d, du,
 * rows on their way) has its own. */
#include "tensors.h"

#include <math.h>

enum { ALIGNMENT = FOOTPRINT_ALIGNMENT };

/* Takes blocks of a device's arena or, without a device, cuts them off `base`. */
struct room {
	const struct engine *e;
	struct device *device;
	char *base;
	uint64_t used;
	GError **error;
	bool failed;
};

static void *take_bytes(struct room *r, size_t bytes, const char *what)
{
	if (r->failed || bytes == 0)
		return NULL;
	uint64_t at = r->used;
	r->used += (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
	if (!r->device)
		return r->base + at;
	void *p = device_alloc(r->device, bytes, what, r->error);
	r->failed = p == NULL;
	return p;
}

static elem *take(struct room *r, size_t n, const char *what)
{
	return take_bytes(r, n * r->e->element, what);
}

static float *take_floats(struct room *r, size_t n, const char *what)
{
	return take_bytes(r, n * sizeof(float), what);
}

static void allocate_state(struct room *r, struct gpu *g)
{
	const struct engine *e = r->e;
	g->param = take(r, e->resident, "parameters");
	if (e->element != sizeof(float))
		g->master = take_floats(r, e->resident, "fp32 parameters");
	g->gradient = take_floats(r, e->resident, "gradients");
	g->m = take_floats(r, e->resident, "optimizer state");
	g->v = take_floats(r, e->resident, "optimizer state");
	g->slot = g_new0(elem *, e->slots);
	g->slot_layer = g_new(int, e->slots);
	g->slot_expert = g_new(int, e->slots);
	for (int i = 0; i < e->slots; i++)
		g->slot_layer[i] = g->slot_expert[i] = -1;
	for (int i = 0; i < e->slots && i < e->plan->slots; i++)
		g->slot[i] = take(r, e->widest, "a slot for uploaded experts");
	for (int i = 0; e->offloaded && i < e->n->layers; i++) {
		int end = i + 1 < e->n->layers ? e->layer[i + 1].first_slot : e->slots;
		for (int s = e->layer[i].first_slot; s < end; s++)
			g->slot[s] = take(r, network_expert_params(e->n, &e->n->layer[i]), "a pinned expert");
	}
	for (int i = 0; e->offloaded && i < GRADIENT_SLOTS; i++)
		g->slot_gradient[i] = take_bytes(r, e->widest * (size_t)e->gradient_bytes, "an expert's gradient");
}

static void allocate_mixer(struct room *r, struct activations *a)
{
	const struct engine *e = r->e;
	const struct network *n = e->n;
	size_t rows = (size_t)e->N, d = (size_t)n->d_model, heads = (size_t)(n->heads * n->d_head), keys = (size_t)(n->kv_heads * n->d_head);
	a->n1 = take(r, rows * d, "activations");
	a->qkv = take(r, rows * (heads + 2 * keys), "activations");
	a->o = take(r, rows * heads, "activations");
	a->h = take(r, rows * d, "activations");
	a->u = take(r, rows * d, "activations");
	a->lse = take_floats(r, rows * (size_t)n->heads, "activations");
	a->mean1 = take_floats(r, 4 * rows, "activations");
	if (a->mean1) {
		a->rstd1 = a->mean1 + rows;
		a->mean2 = a->rstd1 + rows;
		a->rstd2 = a->mean2 + rows;
	}
}

static void allocate_ffn(struct room *r, struct activations *a, const struct layer *l)
{
	size_t rows = (size_t)r->e->N, up = (size_t)ups_of(r->e), shared = (size_t)(l->shared * l->d_shared);
	a->ffn_hidden = take(r, rows * up * (size_t)l->d_ff, "activations");
	a->ffn_active = take(r, rows * (size_t)l->d_ff, "activations");
	a->shared_hidden = take(r, rows * up * shared, "activations");
	a->shared_active = take(r, rows * shared, "activations");
}

static void allocate_gate(struct room *r, struct activations *a, const struct layer *l)
{
	size_t rows = (size_t)r->e->N, experts = (size_t)l->experts, k = (size_t)l->top_k;
	a->logits = take(r, rows * experts, "the gate");
	a->prob = take_floats(r, rows * experts, "the gate");
	a->index = take_bytes(r, rows * k * sizeof(int32_t), "the gate");
	a->counts = take_bytes(r, experts * sizeof(uint32_t), "the gate");
}

/* Where rows went, and the experts' inputs: kept from the forward when the exchange is not repeated. */
static void allocate_rows(struct room *r, struct activations *a, const struct layer *l, elem *sent)
{
	const struct engine *e = r->e;
	size_t pairs = (size_t)e->N * (size_t)l->top_k;
	a->order = take_bytes(r, e->rows_sent * sizeof(int32_t), "routes");
	a->row = take_bytes(r, pairs * sizeof(int32_t), "routes");
	a->weight = take_floats(r, pairs, "routes");
	a->arrived = take(r, e->rows_arrived * (size_t)e->n->d_model, "tokens of the experts");
	a->sent = e->exchanges ? sent : a->arrived;
}

/* The widest of every shape: what all layers can share. */
static struct layer widest_layer(const struct network *n)
{
	struct layer w = {0};
	for (int i = 0; i < n->layers; i++) {
		const struct layer *l = &n->layer[i];
		w.experts = MAX(w.experts, l->experts);
		w.top_k = MAX(w.top_k, l->top_k);
		w.d_expert = MAX(w.d_expert, l->d_expert);
		w.d_ff = MAX(w.d_ff, l->d_ff);
		w.d_shared = l->shared * l->d_shared > w.shared * w.d_shared ? l->shared * l->d_shared : w.d_shared;
		w.shared = w.d_shared > 0;
	}
	return w;
}

static void allocate_activations(struct room *r, struct gpu *g)
{
	const struct engine *e = r->e;
	int layers = e->n->layers;
	struct layer w = widest_layer(e->n);
	bool keeps_all = e->p->checkpoint == CHECKPOINT_NONE, keeps_rows = e->p->checkpoint != CHECKPOINT_FULL;
	struct activations shared = {0};
	elem *sent = e->exchanges ? take(r, e->rows_sent * (size_t)e->n->d_model, "tokens that are sent") : NULL;
	g->x = g_new0(elem *, layers + 1);
	g->layer = g_new0(struct activations, layers);
	for (int i = 0; i <= layers; i++)
		g->x[i] = take(r, (size_t)e->N * (size_t)e->n->d_model, "the layers' inputs");
	for (int i = 0; i < layers; i++) {
		const struct layer *l = keeps_all ? &e->n->layer[i] : &w;
		if (i == 0 || keeps_all) {
			shared = (struct activations){0};
			allocate_mixer(r, &shared);
			allocate_ffn(r, &shared, l);
			if (l->experts)
				allocate_gate(r, &shared, l);
		}
		if ((i == 0 && w.experts && !keeps_rows) || (keeps_rows && e->n->layer[i].experts))
			allocate_rows(r, &shared, keeps_rows ? &e->n->layer[i] : &w, sent);
		g->layer[i] = shared;
	}
}

/* Space of one stage, which the next may have. */
static void take_for_ffns(struct room *r, struct workspace *w)
{
	const struct layer widest = widest_layer(r->e->n);
	size_t rows = (size_t)r->e->N, up = (size_t)ups_of(r->e);
	size_t f = (size_t)MAX(MAX(widest.d_expert, widest.d_ff), widest.d_shared);
	w->hidden = take(r, rows * up * f, "");
	w->dhidden = take(r, rows * up * f, "");
	w->active = take(r, rows * f, "");
	w->dactive = take(r, rows * f, "");
}

static void take_for_mixers(struct room *r, struct workspace *w)
{
	const struct network *n = r->e->n;
	size_t rows = (size_t)r->e->N, heads = (size_t)(n->heads * n->d_head), keys = (size_t)(n->kv_heads * n->d_head);
	w->d_o = take(r, rows * heads, "");
	w->dqkv = take(r, rows * (heads + 2 * keys), "");
	w->dn1 = take(r, rows * (size_t)n->d_model, "");
}

static void take_for_head(struct room *r, struct workspace *w)
{
	size_t rows = (size_t)r->e->N, d = (size_t)r->e->n->d_model;
	w->head_x = take(r, rows * d, "");
	w->head_dx = take(r, rows * d, "");
	w->head = take(r, MIN(rows, (size_t)r->e->info->head_tokens) * (size_t)r->e->n->vocab, "");
	w->mean = take_floats(r, rows, "");
	w->rstd = take_floats(r, rows, "");
}

static void take_for_gates(struct room *r, struct workspace *w)
{
	w->dlogits = take(r, (size_t)r->e->N * (size_t)widest_layer(r->e->n).experts, "");
}

static void allocate_shared_space(struct room *r, struct workspace *w)
{
	static void (*const takers[])(struct room *, struct workspace *) = {take_for_ffns, take_for_mixers, take_for_head, take_for_gates};
	uint64_t most = 0;
	for (size_t i = 0; i < G_N_ELEMENTS(takers); i++) {
		struct room counted = {.e = r->e, .base = (char *)w};
		takers[i](&counted, w);
		most = MAX(most, counted.used);
	}
	char *base = take_bytes(r, most, "workspace");
	for (size_t i = 0; base && i < G_N_ELEMENTS(takers); i++)
		takers[i](&(struct room){.e = r->e, .base = base}, w);
}

static void allocate_workspace(struct room *r, struct workspace *w)
{
	const struct engine *e = r->e;
	struct layer widest = widest_layer(e->n);
	size_t rows = (size_t)e->N, d = (size_t)e->n->d_model;
	allocate_shared_space(r, w);
	w->d = take(r, rows * d, "gradients of the activations");
	w->du = take(r, rows * d, "gradients of the activations");
	w->dweight = take_floats(r, rows * (size_t)widest.top_k, "gradients of the gate");
	w->aux = take_floats(r, 2, "losses");
	w->loss = take_floats(r, 1, "losses");
	if (e->gpus > 1)
		w->sum_counts = take_bytes(r, (size_t)e->experts * sizeof(uint32_t), "the gate's counts");
	if (!e->offloaded && e->microbatches > 1 && e->element == sizeof(float))
		w->gradient = take_floats(r, e->widest, "an expert's gradient");
	if (!widest.experts)
		return;
	w->arrived = take(r, e->rows_arrived * (size_t)weighted_width(e), "gradients of the experts' tokens");
	w->sent = e->exchanges ? take(r, e->rows_sent * (size_t)weighted_width(e), "gradients that are sent") : w->arrived;
	if (!e->exchanges || !e->info->packs_exchanges)
		return;
	/* a GPU's own rows are not packed */
	size_t from_others = e->rows_arrived / (size_t)e->gpus * (size_t)(e->gpus - 1);
	w->packed_sent = take(r, e->rows_sent * (size_t)weighted_width(e), "rows in one message");
	w->packed_arrived = take(r, from_others * (size_t)weighted_width(e), "rows in one message");
}

static void allocate_inputs(struct room *r, struct gpu *g)
{
	const struct engine *e = r->e;
	size_t counts = (size_t)e->n->layers * (size_t)e->microbatches * (size_t)e->experts;
	g->tokens = take_bytes(r, (size_t)e->N * sizeof(int32_t), "tokens");
	g->targets = take_bytes(r, (size_t)e->N * sizeof(int32_t), "tokens");
	g->wanted = take_bytes(r, counts * sizeof(uint32_t), "the gate's counts");
	g->all_counts = take_bytes(r, e->gpus > 1 ? counts * (size_t)e->gpus * sizeof(uint32_t) : 0, "the gate's counts");
}

static void allocate_arena(struct room *r, struct gpu *g)
{
	allocate_state(r, g);
	allocate_activations(r, g);
	allocate_workspace(r, &g->w);
	allocate_inputs(r, g);
}

/* Bytes of each of a GPU's pinned blocks. */
struct pinned_sizes {
	size_t tokens, loads, imposed, losses, staging;
};

static struct pinned_sizes pinned_sizes_of(const struct engine *e)
{
	size_t steps = 2 * (size_t)e->microbatches, visits = (size_t)e->n->layers * (size_t)e->microbatches;
	return (struct pinned_sizes){.tokens = steps * 2 * (size_t)e->N * sizeof(int32_t),
	                             .loads = visits * (size_t)e->gpus * (size_t)MAX(1, e->experts) * sizeof(uint32_t),
	                             .imposed = 2 * visits * (size_t)MAX(1, e->experts) * sizeof(uint32_t),
	                             .losses = 2 * losses_of_step(e) * sizeof(float),
	                             .staging = STAGING_FLOATS * sizeof(float)};
}

uint64_t arena_pinned_bytes(const struct engine *e)
{
	struct pinned_sizes s = pinned_sizes_of(e);
	return s.tokens + s.loads + s.imposed + s.losses + s.staging;
}

static bool allocate_host(const struct engine *e, struct gpu *g, GError **error)
{
	struct pinned_sizes s = pinned_sizes_of(e);
	size_t experts = (size_t)MAX(1, e->experts);
	g->rows = (struct rows){.owner = g_new(int, experts),
	                        .at = g_new(int, experts),
	                        .sent = g_new(int, experts),
	                        .total = g_new(int, experts),
	                        .sends = g_new(struct segment, experts * (size_t)e->gpus),
	                        .receives = g_new(struct segment, experts * (size_t)e->gpus)};
	return (g->tokens_of_step = pinned_alloc(g->device, s.tokens, error)) && (g->loads = pinned_alloc(g->device, s.loads, error)) &&
	       (g->imposed = pinned_alloc(g->device, s.imposed, error)) && (g->losses = pinned_alloc(g->device, s.losses, error)) &&
	       (g->staging = pinned_alloc(g->device, s.staging, error));
}

/* Rows of the worst case: what a policy pads to the largest load may be every token for every expert, and every token may go to one GPU. */
static void count_rows(struct engine *e)
{
	for (int i = 0; i < e->n->layers; i++) {
		const struct layer *l = &e->n->layer[i];
		if (!l->experts)
			continue;
		size_t tokens = (size_t)e->N, sent = tokens * (size_t)l->top_k,
		       home = (size_t)(e->offloaded ? l->experts : experts_at_home(e, l->experts));
		size_t each = tokens * MIN((size_t)l->top_k, home);
		if (e->p->dispatch != DISPATCH_EXACT) {
			double mean = e->p->capacity_factor * l->top_k * e->N / l->experts;
			size_t capacity = e->p->capacity_factor > 0 ? (size_t)ceil(mean) : tokens;
			sent = capacity * (size_t)l->experts;
			each = capacity * home;
		}
		e->rows_sent = MAX(e->rows_sent, sent);
		e->rows_arrived = MAX(e->rows_arrived, e->exchanges ? each * (size_t)e->gpus : sent);
	}
}

static void gpu_clear(struct gpu *g)
{
	void *pinned[] = {g->tokens_of_step, g->loads, g->imposed, g->losses, g->staging};
	void *heap[] = {g->slot,    g->slot_layer, g->slot_expert, g->x,          g->layer,        g->rows.owner,
	                g->rows.at, g->rows.sent,  g->rows.total,  g->rows.sends, g->rows.receives};
	for (size_t i = 0; i < G_N_ELEMENTS(pinned); i++)
		if (pinned[i])
			pinned_free(g->device, pinned[i]);
	for (size_t i = 0; i < G_N_ELEMENTS(heap); i++)
		g_free(heap[i]);
}

uint64_t arena_bytes(struct engine *e)
{
	struct gpu g = {0};
	struct room r = {.e = e, .base = (char *)&g};
	count_rows(e);
	allocate_arena(&r, &g);
	gpu_clear(&g);
	return r.used;
}

bool arena_init(struct engine *e, GError **error)
{
	count_rows(e);
	for (int i = e->first; i < e->end; i++) {
		struct room r = {.e = e, .device = e->gpu[i].device, .error = error};
		allocate_arena(&r, &e->gpu[i]);
		if (r.failed || !allocate_host(e, &e->gpu[i], error)) {
			g_prefix_error(error, "GPU %d: ", i);
			return false;
		}
	}
	return true;
}

void arena_clear(struct engine *e)
{
	for (int i = e->first; i < e->end; i++)
		gpu_clear(&e->gpu[i]);
}
