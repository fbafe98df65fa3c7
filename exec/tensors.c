/* What lives in HBM is one flat array a kind, so that Adam and the all-reduces of a layer
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

/* ---- layout ---- */

static size_t place(struct engine *e, size_t n, int start, const char *format, ...) G_GNUC_PRINTF(4, 5);
static size_t place(struct engine *e, size_t n, int start, const char *format, ...)
{
	va_list args;
	va_start(args, format);
	struct tensor t = {.name = g_strdup_vprintf(format, args), .at = e->resident, .n = n, .start = start};
	va_end(args);
	g_array_append_val(e->tensors, t);
	e->resident += tensor_room(n);
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

static void place_all(struct engine *e)
{
	const struct network *n = e->n;
	size_t d = (size_t)n->d_model;
	int slot = e->plan->slots, moe = 0;
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
			e->resident += params * (size_t)experts_at_home(e, n->layer[i].experts);
	}
	e->slots = e->offloaded ? slot : 0;
}

bool expert_at_home(const struct engine *e, int g, int layer, int expert, size_t *at)
{
	const struct layer *l = &e->n->layer[layer];
	int set = e->plan->expert_parallel;
	/* placement_fixed: expert x is on GPU x * P / E */
	int first = first_expert(l->experts, set, g % set);
	*at = e->layer[layer].experts + network_expert_params(e->n, l) * (size_t)(expert - first);
	return !e->offloaded && expert >= first && (int)((int64_t)expert * set / l->experts) == g % set;
}

bool expert_stored(const struct engine *e, int layer, int expert)
{
	int experts = e->n->layer[layer].experts, home = (int)((int64_t)expert * e->gpus / experts);
	return e->end - e->first == e->gpus || (home >= e->first && home < e->end);
}

void tensors_place(struct engine *e)
{
	e->tensors = g_array_new(FALSE, FALSE, sizeof(struct tensor));
	e->layer = g_new0(struct layer_place, e->n->layers);
	place_all(e);
}

void tensors_clear(struct engine *e)
{
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

bool tensors_refresh_slot(struct engine *e, int g, int slot, const float *master, size_t n, GError **error)
{
	struct gpu *x = &e->gpu[g];
	for (size_t i = 0; i < n; i += STAGING_FLOATS) {
		size_t count = MIN(n - i, STAGING_FLOATS);
		adam_cast(NULL, x->staging, e->element == sizeof(float) ? ADAM_FP32 : ADAM_BF16, master + i, count);
		device_upload(x->side, elem_at(e, x->slot[slot], i), x->staging, count * e->element);
		if (!finish(x, error))
			return false;
	}
	return true;
}

/* ---- initial parameters ---- */

/* FNV-1a. */
static struct start start_of(const struct engine *e, const char *name, int start)
{
	uint64_t key = UINT64_C(0xcbf29ce484222325);
	for (const char *c = name; *c; c++)
		key = (key ^ (uint8_t)*c) * UINT64_C(0x100000001b3);
	return (struct start){.key = start_mix(e->o.seed) ^ start_mix(key),
	                      .deviation = start == START_OUTPUT ? INITIAL_DEVIATION / sqrt(2.0 * e->n->layers) : INITIAL_DEVIATION,
	                      .start = start};
}

static void begin(struct engine *e, int g, size_t at, size_t n, const struct start *start)
{
	struct gpu *x = &e->gpu[g];
	op_start(x->side, elem_at(e, x->param, at), x->master ? x->master + at : NULL, n, start);
}

/* The two matrices of an expert. */
static void starts_of(const struct engine *e, int layer, int expert, struct start *up, struct start *down)
{
	g_autofree char *up_name = g_strdup_printf("layer%d.expert%d.up", layer, expert);
	g_autofree char *down_name = g_strdup_printf("layer%d.expert%d.down", layer, expert);
	*up = start_of(e, up_name, START_WEIGHT);
	*down = start_of(e, down_name, START_OUTPUT);
}

static size_t up_params(const struct engine *e, const struct layer *l)
{
	return network_expert_params(e->n, l) - (size_t)e->n->d_model * (size_t)l->d_expert;
}

static void start_resident(struct engine *e, int layer, int expert)
{
	const struct layer *l = &e->n->layer[layer];
	size_t n = network_expert_params(e->n, l), up = up_params(e, l), at;
	struct start starts[2];
	starts_of(e, layer, expert, &starts[0], &starts[1]);
	for (int g = e->first; g < e->end; g++)
		if (expert_at_home(e, g, layer, expert, &at)) {
			begin(e, g, at, up, &starts[0]);
			begin(e, g, at + up, n - up, &starts[1]);
		}
}

/* Threads that fill the store, an expert each in turn: billions of numbers take one thread minutes. */
struct filling {
	struct engine *e;
	gint next; /* atomic: expert, counted over all layers */
	GError *error;
	GMutex lock;
};

static bool start_stored(struct engine *e, int layer, int expert, float *master, GError **error)
{
	const struct layer *l = &e->n->layer[layer];
	size_t n = network_expert_params(e->n, l), up = up_params(e, l);
	struct start starts[2];
	starts_of(e, layer, expert, &starts[0], &starts[1]);
	for (size_t i = 0; i < n; i++)
		master[i] = i < up ? start_value(&starts[0], i) : start_value(&starts[1], i - up);
	return store_load(e->store, e->layer[layer].moe, expert, master, NULL, NULL, error);
}

static gpointer fill(gpointer data)
{
	struct filling *f = data;
	struct engine *e = f->e;
	g_autofree float *master = g_new(float, e->widest);
	for (;;) {
		int expert = g_atomic_int_add(&f->next, 1), layer = 0;
		while (layer < e->n->layers && expert >= e->n->layer[layer].experts)
			expert -= e->n->layer[layer++].experts;
		g_autoptr(GError) error = NULL;
		if (layer == e->n->layers || !expert_stored(e, layer, expert) || start_stored(e, layer, expert, master, &error)) {
			if (layer == e->n->layers)
				return NULL;
			continue;
		}
		g_mutex_lock(&f->lock);
		if (!f->error)
			f->error = g_steal_pointer(&error);
		g_mutex_unlock(&f->lock);
		return NULL;
	}
}

static bool fill_store(struct engine *e, GError **error)
{
	struct filling f = {.e = e};
	int threads = (int)MIN(g_get_num_processors(), 64);
	g_autofree GThread **thread = g_new(GThread *, threads);
	g_mutex_init(&f.lock);
	for (int i = 0; i < threads; i++)
		thread[i] = g_thread_new("fill", fill, &f);
	for (int i = 0; i < threads; i++)
		g_thread_join(thread[i]);
	g_mutex_clear(&f.lock);
	if (f.error)
		g_propagate_error(error, f.error);
	return !f.error;
}

bool tensors_start(struct engine *e, GError **error)
{
	for (guint i = 0; i < e->tensors->len; i++) {
		const struct tensor *t = &g_array_index(e->tensors, struct tensor, i);
		struct start start = start_of(e, t->name, t->start);
		for (int g = e->first; g < e->end; g++)
			begin(e, g, t->at, t->n, &start);
	}
	for (int layer = 0; !e->offloaded && layer < e->n->layers; layer++)
		for (int x = 0; x < e->n->layer[layer].experts; x++)
			start_resident(e, layer, x);
	for (int g = e->first; g < e->end; g++)
		if (!finish(&e->gpu[g], error))
			return false;
	return !e->offloaded || fill_store(e, error);
}
