/* Every byte of a run is laid out here, once, from the plan. What lives in HBM is one flat array a kind, so that Adam and the all-reduces of a layer
 * are each one call:
 *
 *     | layer 0 | layer 1 | ... | wte wpe norm head | experts of layer 0 at home here | ... |
 *       REDUCED_DENSE each        REDUCED_EMBEDDING   REDUCED_EXPERTS where replicated
 *
 * Experts that several GPUs share have the same places on each, so the last GPU may have room it does not use. An initial value is a function of the
 * seed, the tensor's name and the element's number: it is the same wherever the tensor lives. */
#include "tensors.h"

#include "model/error.h"
#include "model/placement.h"

#include <math.h>
#include <string.h>

#define INITIAL_DEVIATION 0.02
enum { STAGING_FLOATS = 1 << 16 };

/* ---- layout ---- */

static size_t place(struct engine *e, size_t n, int start, const char *format, ...) G_GNUC_PRINTF(4, 5);
static size_t place(struct engine *e, size_t n, int start, const char *format, ...)
{
	va_list args;
	va_start(args, format);
	struct tensor t = {.name = g_strdup_vprintf(format, args), .at = e->resident, .n = n, .start = start};
	va_end(args);
	g_array_append_val(e->tensors, t);
	e->resident += n;
	return t.at;
}

static void place_layer(struct engine *e, int i)
{
	const struct network *n = e->n;
	const struct layer *l = &n->layer[i];
	struct layer_place *p = &e->layer[i];
	size_t d = (size_t)n->d_model, heads = (size_t)(n->heads * n->d_head), keys = (size_t)(n->kv_heads * n->d_head), up = (size_t)ups_of(e);
	p->from = e->resident;
	p->norm1_gain = place(e, d, START_GAIN, "layer%d.norm1.gain", i);
	p->norm1_bias = place(e, d, START_BIAS, "layer%d.norm1.bias", i);
	p->qkv = place(e, d * (heads + 2 * keys), START_WEIGHT, "layer%d.attention.qkv", i);
	p->out = place(e, heads * d, START_OUTPUT, "layer%d.attention.out", i);
	p->norm2_gain = place(e, d, START_GAIN, "layer%d.norm2.gain", i);
	p->norm2_bias = place(e, d, START_BIAS, "layer%d.norm2.bias", i);
	if (l->experts)
		p->gate = place(e, d * (size_t)l->experts, START_WEIGHT, "layer%d.gate", i);
	if (l->d_ff) {
		p->up = place(e, d * up * (size_t)l->d_ff, START_WEIGHT, "layer%d.ffn.up", i);
		p->down = place(e, d * (size_t)l->d_ff, START_OUTPUT, "layer%d.ffn.down", i);
	}
	p->shared = e->resident;
	for (int j = 0; j < l->shared; j++) {
		place(e, d * up * (size_t)l->d_shared, START_WEIGHT, "layer%d.shared%d.up", i, j);
		place(e, d * (size_t)l->d_shared, START_OUTPUT, "layer%d.shared%d.down", i, j);
	}
	p->to = e->resident;
}

static int experts_of_gpu(const struct engine *e, int experts)
{
	return (experts + e->plan->expert_parallel - 1) / e->plan->expert_parallel;
}

static void place_all(struct engine *e)
{
	const struct network *n = e->n;
	size_t d = (size_t)n->d_model;
	int slot = 1 + e->p->upload_ahead, moe = 0;
	for (int i = 0; i < n->layers; i++)
		place_layer(e, i);
	e->shared_from = e->resident;
	e->wte = place(e, (size_t)n->vocab * d, START_WEIGHT, "wte");
	e->wpe = place(e, (size_t)e->sc->seq_len * d, START_WEIGHT, "wpe");
	e->norm_gain = place(e, d, START_GAIN, "norm.gain");
	e->norm_bias = place(e, d, START_BIAS, "norm.bias");
	e->head = n->tied ? e->wte : place(e, d * (size_t)n->vocab, START_WEIGHT, "head");
	e->shared_to = e->resident;
	for (int i = 0; i < n->layers; i++) {
		struct layer_place *p = &e->layer[i];
		size_t params = network_expert_params(n, &n->layer[i]);
		p->moe = n->layer[i].experts ? moe++ : -1;
		p->experts = e->resident;
		p->first_slot = slot;
		e->widest = MAX(e->widest, params);
		if (e->offloaded)
			slot += n->layer[i].experts ? memory_pinned_experts(e->plan->pinned_share, n->layer[i].experts, e->gpus) : 0;
		else
			e->resident += params * (size_t)experts_of_gpu(e, n->layer[i].experts);
	}
	e->slots = e->offloaded ? slot : 0;
}

bool expert_at_home(const struct engine *e, int g, int layer, int expert, size_t *at)
{
	const struct layer *l = &e->n->layer[layer];
	int set = e->plan->expert_parallel;
	/* placement_fixed: expert x is on GPU x * P / E, so the first one of GPU g is the ceiling of g E / P */
	int first = ((g % set) * l->experts + set - 1) / set;
	*at = e->layer[layer].experts + network_expert_params(e->n, l) * (size_t)(expert - first);
	return !e->offloaded && expert >= first && (int)((int64_t)expert * set / l->experts) == g % set;
}

/* ---- allocation ---- */

struct room {
	struct engine *e;
	struct device *device;
	GError **error;
	bool failed;
};

static void *take_bytes(struct room *r, size_t bytes, const char *what)
{
	if (r->failed || bytes == 0)
		return NULL;
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

static void *take_pinned(struct room *r, size_t bytes)
{
	void *p = r->failed ? NULL : pinned_alloc(r->device, MAX(1, bytes), r->error);
	r->failed = p == NULL;
	return p;
}

static void allocate_state(struct room *r, struct gpu *g)
{
	struct engine *e = r->e;
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
	for (int i = 0; i < e->slots && i < 1 + e->p->upload_ahead; i++)
		g->slot[i] = take(r, e->widest, "a slot for uploaded experts");
	for (int i = 0; e->offloaded && i < e->n->layers; i++) {
		int end = i + 1 < e->n->layers ? e->layer[i + 1].first_slot : e->slots;
		for (int s = e->layer[i].first_slot; s < end; s++)
			g->slot[s] = take(r, network_expert_params(e->n, &e->n->layer[i]), "a pinned expert");
	}
	for (int i = 0; e->offloaded && i < GRADIENT_SLOTS; i++)
		g->slot_gradient[i] = take_floats(r, e->widest, "an expert's gradient");
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

static void allocate_workspace(struct room *r, struct gpu *g)
{
	const struct engine *e = r->e;
	const struct network *n = e->n;
	struct layer widest = widest_layer(n);
	struct workspace *w = &g->w;
	size_t rows = (size_t)e->N, d = (size_t)n->d_model, heads = (size_t)(n->heads * n->d_head), keys = (size_t)(n->kv_heads * n->d_head);
	size_t f = (size_t)MAX(MAX(widest.d_expert, widest.d_ff), widest.d_shared), up = (size_t)ups_of(e), pairs = rows * (size_t)widest.top_k;
	elem **hidden[] = {&w->hidden, &w->dhidden, &w->active, &w->dactive};
	elem **residual[] = {&w->d, &w->du, &w->dn1, &w->y, &w->dy, &w->dx, &w->head_x, &w->head_dx};
	for (size_t i = 0; i < G_N_ELEMENTS(residual); i++)
		*residual[i] = take(r, rows * d, "gradients of the activations");
	for (size_t i = 0; i < G_N_ELEMENTS(hidden); i++)
		*hidden[i] = take(r, rows * (i < 2 ? up : 1) * f, "an expert's hidden layer");
	w->d_o = take(r, rows * heads, "gradients of the mixer");
	w->dqkv = take(r, rows * (heads + 2 * keys), "gradients of the mixer");
	w->dot = take(r, rows, "gradients of the gate");
	w->dlogits = take(r, rows * (size_t)widest.experts, "gradients of the gate");
	w->dweight = take_floats(r, pairs, "gradients of the gate");
	w->aux = take_floats(r, 2, "losses");
	w->all_counts = take_bytes(r, e->gpus > 1 ? (size_t)e->gpus * (size_t)e->experts * sizeof(uint32_t) : 0, "the gate's counts");
	w->sum_counts = take_bytes(r, e->gpus > 1 ? (size_t)e->experts * sizeof(uint32_t) : 0, "the gate's counts");
	w->loss = take_floats(r, 1, "losses");
	w->head = take(r, MIN(rows, HEAD_CHUNK) * (size_t)n->vocab, "logits");
	w->mean = take_floats(r, rows, "statistics");
	w->rstd = take_floats(r, rows, "statistics");
	if (!e->offloaded && e->microbatches > 1)
		w->gradient = take_floats(r, e->widest, "an expert's gradient");
	if (!widest.experts)
		return;
	w->arrived = take(r, e->rows_arrived * (d + 1), "gradients of the experts' tokens");
	w->sent = e->exchanges ? take(r, e->rows_sent * (d + 1), "gradients that are sent") : w->arrived;
}

static void allocate_host(struct room *r, struct gpu *g)
{
	const struct engine *e = r->e;
	size_t steps = 2 * (size_t)e->microbatches, experts = (size_t)MAX(1, e->experts), layers = (size_t)e->n->layers;
	g->tokens = take_bytes(r, (size_t)e->N * sizeof(int32_t), "tokens");
	g->targets = take_bytes(r, (size_t)e->N * sizeof(int32_t), "tokens");
	g->tokens_of_step = take_pinned(r, steps * 2 * (size_t)e->N * sizeof(int32_t));
	g->loads = take_pinned(r, layers * (size_t)e->microbatches * (size_t)e->gpus * experts * sizeof(uint32_t));
	g->counts = take_bytes(r, e->gpus > 1 ? layers * (size_t)e->microbatches * experts * sizeof(uint32_t) : 0, "the gate's counts");
	g->losses = take_pinned(r, 2 * losses_of_step(e) * sizeof(float));
	g->staging = take_pinned(r, STAGING_FLOATS * sizeof(float));
	g->rows = (struct rows){.owner = g_new(int, experts),
	                        .at = g_new(int, experts),
	                        .sent = g_new(int, experts),
	                        .total = g_new(int, experts),
	                        .segment = g_new(struct segment, experts * (size_t)e->gpus)};
}

/* Rows of the worst case: what a policy pads to the largest load may be every token for every expert, and every token may go to one GPU. */
static void count_rows(struct engine *e)
{
	for (int i = 0; i < e->n->layers; i++) {
		const struct layer *l = &e->n->layer[i];
		if (!l->experts)
			continue;
		size_t tokens = (size_t)e->N, sent = tokens * (size_t)l->top_k,
		       home = (size_t)(e->offloaded ? l->experts : experts_of_gpu(e, l->experts));
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

bool tensors_init(struct engine *e, GError **error)
{
	e->tensors = g_array_new(FALSE, FALSE, sizeof(struct tensor));
	e->layer = g_new0(struct layer_place, e->n->layers);
	place_all(e);
	count_rows(e);
	for (int i = 0; i < e->gpus; i++) {
		struct gpu *g = &e->gpu[i];
		struct room r = {.e = e, .device = g->device, .error = error};
		allocate_state(&r, g);
		allocate_activations(&r, g);
		allocate_workspace(&r, g);
		allocate_host(&r, g);
		if (r.failed) {
			g_prefix_error(error, "GPU %d: ", i);
			return false;
		}
	}
	return true;
}

void tensors_clear(struct engine *e)
{
	for (int i = 0; i < e->gpus; i++) {
		struct gpu *g = &e->gpu[i];
		void *pinned[] = {g->tokens_of_step, g->loads, g->losses, g->staging};
		void *heap[] = {g->slot,       g->slot_layer, g->slot_expert, g->x,          g->layer,
		                g->rows.owner, g->rows.at,    g->rows.sent,   g->rows.total, g->rows.segment};
		for (size_t j = 0; j < G_N_ELEMENTS(pinned); j++)
			if (pinned[j])
				pinned_free(g->device, pinned[j]);
		for (size_t j = 0; j < G_N_ELEMENTS(heap); j++)
			g_free(heap[j]);
	}
	for (guint i = 0; e->tensors && i < e->tensors->len; i++)
		g_free(g_array_index(e->tensors, struct tensor, i).name);
	if (e->tensors)
		g_array_free(e->tensors, TRUE);
	g_free(e->layer);
}

/* ---- to and from the host ---- */

static bool finish(struct gpu *g, GError **error)
{
	device_event_record(g->side, g->done);
	return device_event_wait(g->done, error);
}

static bool download(struct gpu *g, float *to, const float *from, size_t n, GError **error)
{
	for (size_t i = 0; to && i < n; i += STAGING_FLOATS) {
		size_t count = MIN(n - i, STAGING_FLOATS);
		device_download(g->side, g->staging, from + i, count * sizeof(float));
		if (!finish(g, error))
			return false;
		memcpy(to + i, g->staging, count * sizeof(float));
	}
	return true;
}

static bool upload(struct gpu *g, float *to, const float *from, size_t n, GError **error)
{
	for (size_t i = 0; from && i < n; i += STAGING_FLOATS) {
		size_t count = MIN(n - i, STAGING_FLOATS);
		memcpy(g->staging, from + i, count * sizeof(float));
		device_upload(g->side, to + i, g->staging, count * sizeof(float));
		if (!finish(g, error))
			return false;
	}
	return true;
}

bool tensors_read(struct engine *e, int g, size_t at, size_t n, const struct tensor_state *to, GError **error)
{
	struct gpu *x = &e->gpu[g];
	const float *master = x->master ? x->master : x->param;
	return download(x, to->master, master + at, n, error) && download(x, to->m, x->m + at, n, error) && download(x, to->v, x->v + at, n, error) &&
	       download(x, to->gradient, x->gradient + at, n, error);
}

bool tensors_write(struct engine *e, int g, size_t at, size_t n, const struct tensor_state *from, GError **error)
{
	struct gpu *x = &e->gpu[g];
	float *master = x->master ? x->master : x->param;
	if (!upload(x, master + at, from->master, n, error) || !upload(x, x->m + at, from->m, n, error) || !upload(x, x->v + at, from->v, n, error))
		return false;
	if (x->master)
		op_cast(x->side, elem_at(e, x->param, at), x->master + at, n);
	return finish(x, error);
}

/* Element by element through the gradient slot, which is free while nothing runs. */
bool tensors_refresh_slot(struct engine *e, int g, int slot, const float *master, size_t n, GError **error)
{
	struct gpu *x = &e->gpu[g];
	if (!upload(x, x->slot_gradient[0], master, n, error))
		return false;
	op_cast(x->side, x->slot[slot], x->slot_gradient[0], n);
	return finish(x, error);
}

/* ---- initial parameters ---- */

/* splitmix64 (Steele, Lea, Flood, OOPSLA 2014): a counter in, 64 random bits out. */
static uint64_t mix(uint64_t x)
{
	x += UINT64_C(0x9e3779b97f4a7c15);
	x = (x ^ (x >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
	x = (x ^ (x >> 27)) * UINT64_C(0x94d049bb133111eb);
	return x ^ (x >> 31);
}

/* FNV-1a. */
static uint64_t key_of(uint64_t seed, const char *name)
{
	uint64_t key = UINT64_C(0xcbf29ce484222325);
	for (; *name; name++)
		key = (key ^ (uint8_t)*name) * UINT64_C(0x100000001b3);
	return mix(seed) ^ mix(key);
}

static double uniform(uint64_t bits)
{
	return ((double)(bits >> 11) + 0.5) * 0x1p-53;
}

static void fill(const struct engine *e, const char *name, int start, float *x, size_t n)
{
	uint64_t key = key_of(e->o.seed, name);
	double deviation = start == START_OUTPUT ? INITIAL_DEVIATION / sqrt(2.0 * e->n->layers) : INITIAL_DEVIATION;
	for (size_t i = 0; i < n; i++) {
		uint64_t bits = mix(key + i);
		double normal = sqrt(-2 * log(uniform(bits))) * cos(2 * G_PI * uniform(mix(bits ^ key)));
		x[i] = start == START_GAIN ? 1 : start == START_BIAS ? 0 : (float)(deviation * normal);
	}
}

static bool start_expert(struct engine *e, int layer, int expert, GError **error)
{
	const struct layer *l = &e->n->layer[layer];
	size_t n = network_expert_params(e->n, l), up = n - (size_t)e->n->d_model * (size_t)l->d_expert, at;
	g_autofree float *master = g_new(float, n);
	g_autofree float *zero = g_new0(float, n);
	g_autofree char *up_name = g_strdup_printf("layer%d.expert%d.up", layer, expert);
	g_autofree char *down_name = g_strdup_printf("layer%d.expert%d.down", layer, expert);
	fill(e, up_name, START_WEIGHT, master, up);
	fill(e, down_name, START_OUTPUT, master + up, n - up);
	if (e->offloaded)
		return store_load(e->store, e->layer[layer].moe, expert, master, zero, zero, error);
	for (int g = 0; g < e->gpus; g++)
		if (expert_at_home(e, g, layer, expert, &at) && !tensors_write(e, g, at, n, &(struct tensor_state){.master = master}, error))
			return false;
	return true;
}

bool tensors_start(struct engine *e, GError **error)
{
	for (guint i = 0; i < e->tensors->len; i++) {
		const struct tensor *t = &g_array_index(e->tensors, struct tensor, i);
		g_autofree float *x = g_new(float, t->n);
		fill(e, t->name, t->start, x, t->n);
		for (int g = 0; g < e->gpus; g++)
			if (!tensors_write(e, g, t->at, t->n, &(struct tensor_state){.master = x}, error))
				return false;
	}
	for (int layer = 0; layer < e->n->layers; layer++)
		for (int x = 0; x < e->n->layer[layer].experts; x++)
			if (!start_expert(e, layer, x, error))
				return false;
	return true;
}
