/* The life of a run's tensors, the beginning and the end of its steps. Tokens and losses are kept twice, by parity of the step, so that one may begin
 * while the last still runs. */
#include "tensors.h"

#include "model/error.h"
#include "model/footprint.h"
#include "ranks.h"

#include <string.h>

static bool refuse(GError **error, const char *what)
{
	g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_INPUT, "cannot be run: %s", what);
	return false;
}

/* Knobs that only the simulator knows. */
static bool can_run_policy(const struct engine *e, GError **error)
{
	const struct policy *p = e->p;
	if (e->plan->tensor_parallel > 1)
		return refuse(error, "policy.tensor_parallel above 1; expected 0 or 1, and policy.data_parallel = 0 or the number of GPUs");
	if (p->microbatch_order != ORDER_HORIZONTAL)
		return refuse(error, "policy.microbatch_order = vertical; expected horizontal");
	if (p->zero_stage)
		return refuse(error, "policy.zero_stage above 0; expected 0");
	if (p->dense_optimizer != DENSE_OPTIMIZER_GPU)
		return refuse(error, "policy.dense_optimizer = cpu; expected gpu");
	if (p->gradient_cast != CAST_NONE)
		return refuse(error, "policy.gradient_cast = whole or tiled; expected none");
	if (p->reduction_stream != REDUCTIONS_SHARED)
		return refuse(error, "policy.reduction_stream = own; expected shared");
	if (p->checkpoint == CHECKPOINT_LAYER)
		return refuse(error, "policy.checkpoint = layer; expected full, keep-collectives or none");
	if (p->exchange != EXCHANGE_TOKENS)
		return refuse(error, "policy.exchange = experts or auto; expected tokens");
	if (p->cache_threshold > 0)
		return refuse(error, "policy.cache_threshold; expected 0: every block that is used has its room in DRAM");
	if (p->shadowed_experts)
		return refuse(error, "policy.shadowed_experts; expected 0");
	if (p->embedding != EMBEDDING_COPIED)
		return refuse(error, "policy.embedding = cut; expected copied");
	if (p->gradient_bucket_mib || !p->fused_communication)
		return refuse(error, "policy.gradient_bucket_mib or policy.fused_communication = false; expected auto and true: a layer at a time");
	return true;
}

bool engine_knows(const struct scenario *sc, GError **error)
{
	if (sc->workload != WORKLOAD_TRAINING)
		return refuse(error, "scenario.workload = inference; expected training: predict, compare and sweep know inference");
	for (int i = 0; i < sc->network->layers; i++) {
		const struct layer *l = &sc->network->layer[i];
		if (l->mixer != MIXER_ATTENTION)
			return refuse(error, "Mamba layers; expected a network with network.attention_every = 1");
		if (l->cross)
			return refuse(error, "an encoder-decoder; expected a network with network.encoder_decoder = false");
	}
	return true;
}

static bool can_run(const struct engine *e, GError **error)
{
	int set = e->plan->expert_parallel;
	if (!engine_knows(e->sc, error))
		return false;
	if (e->sc->machine->element_bytes != (int)e->element) {
		g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_INPUT, "software.element_bytes = %d; expected %d, what the device computes in",
		            e->sc->machine->element_bytes, (int)e->element);
		return false;
	}
	if (!can_run_policy(e, error))
		return false;
	if (set != 1 && set != e->gpus)
		return refuse(error, "policy.expert_parallel between 1 and the number of GPUs; expected 0 (all of them) or 1");
	if (set > 1 && machine_nodes(e->sc->machine) > 1 && e->p->all_to_all != ALL_TO_ALL_LINEAR)
		return refuse(error, "policy.all_to_all = hierarchical or auto on several nodes; expected linear");
	if (set == 1 && e->gpus > 1 && e->offloaded && machine_nodes(e->sc->machine) > 1)
		return refuse(error,
		              "policy.expert_parallel = 1 with experts beyond HBM on several nodes; expected one node, or expert_parallel = 0");
	if (set == 1 && e->gpus > 1 && e->offloaded && e->gradient_bytes != sizeof(float))
		return refuse(error, "policy.expert_parallel = 1 with gradients of 2 bytes; expected policy.gradient_bytes = 4");
	for (int i = 0; i < e->n->layers; i++) {
		const struct layer *l = &e->n->layer[i];
		if (l->experts && l->experts < set && !e->offloaded)
			return refuse(error,
			              "a layer with fewer experts than GPUs; expected at least one expert a GPU, or policy.expert_home = dram");
	}
	return true;
}

/* The nodes of this process. */
struct node_range {
	int first, n;
};
static struct node_range nodes_here(const struct engine *e)
{
	int each = e->sc->machine->gpus_per_node, first = e->first / each;
	return (struct node_range){first, (e->end + each - 1) / each - first};
}

static struct store_layer kept_here(const struct engine *e, const struct layer *l)
{
	struct store_layer s = {.experts = l->experts, .params = network_expert_params(e->n, l)};
	if (e->end - e->first < e->gpus) {
		s.first = first_expert(l->experts, e->gpus, e->first);
		s.experts = first_expert(l->experts, e->gpus, e->end) - s.first;
	}
	return s;
}

static bool open_store(struct engine *e, GError **error)
{
	g_autofree struct store_layer *layers = g_new0(struct store_layer, e->n->layers);
	int n = 0;
	for (int i = 0; i < e->n->layers; i++)
		if (e->n->layer[i].experts)
			layers[n++] = kept_here(e, &e->n->layer[i]);
	const struct plan *plan = e->plan;
	const struct machine *m = e->sc->machine;
	const struct memory_case k = {.home = plan->home, .expert_parallel = plan->expert_parallel, .split = plan->split};
	uint64_t frames = footprint_cached_frames(e->n, m, e->p, plan->memory.cache_bytes) + footprint_frames(e->n, m, e->p, &k).behind;
	struct store_options o = {.home = plan->home,
	                          .element_bytes = (int)e->element,
	                          .gradient_bytes = e->gradient_bytes,
	                          .ssd_folder = e->o.ssd_folder,
	                          .frames = frames * (uint64_t)nodes_here(e).n};
	e->store = store_new(e->gpu[e->first].device, layers, n, &o, error);
	return e->store != NULL;
}

static void open_host(struct engine *e)
{
	const struct machine *m = e->sc->machine;
	int threads = e->p->adam_threads ? e->p->adam_threads : m->adam_threads, nodes = machine_nodes(m);
	e->due = g_new0(struct due *, e->n->layers);
	for (int i = 0; i < e->n->layers; i++)
		e->due[i] = g_new0(struct due, MAX(1, (size_t)e->n->layer[i].experts) * (size_t)e->gpus);
	e->pool = g_new0(struct adam_pool *, nodes);
	const struct node_range here = nodes_here(e);
	for (int i = here.first; i < here.first + here.n && e->offloaded; i++) {
		e->pool[i] = adam_pool_new(MAX(1, threads));
		adam_pool_set_patience(e->pool[i], e->info->adam_patience_ns);
	}
}

static void describe(struct engine *e, const struct device_info *device, const struct scenario *sc, const struct schedule *schedule)
{
	const struct plan *plan = schedule_plan(schedule);
	*e = (struct engine){.sc = sc, .n = sc->network, .p = sc->policy, .plan = plan, .info = device, .gpus = sc->machine->gpus};
	e->element = (size_t)device->element_bytes;
	e->gradient_bytes = e->element == sizeof(float) ? (int)sizeof(float) : sc->policy->gradient_bytes;
	e->microbatches = plan->microbatches;
	e->experts = network_experts(sc->network);
	e->B = plan->microbatch;
	e->N = (int)plan->tokens;
	e->offloaded = plan->home != HOME_HBM && e->experts > 0;
	e->exchanges = plan->expert_parallel > 1;
}

uint64_t engine_bytes(const struct device_info *device, const struct scenario *sc, const struct schedule *schedule)
{
	struct engine e;
	describe(&e, device, sc, schedule);
	tensors_place(&e);
	uint64_t bytes = arena_bytes(&e);
	tensors_clear(&e);
	return bytes +
	       footprint_gemm_bytes(device->element_bytes, footprint_together(sc->network, sc->policy, e.plan->home, e.plan->expert_parallel));
}

uint64_t engine_pinned_bytes(const struct engine *e)
{
	uint64_t gpus = (uint64_t)(e->end - e->first);
	return gpus * arena_pinned_bytes(e) + (e->store ? store_pinned_bytes(e->store) : 0);
}

uint64_t engine_pageable_bytes(const struct engine *e)
{
	return e->store ? store_pageable_bytes(e->store) : 0;
}

struct engine *engine_new(struct device **devices, struct device_group *group, const struct scenario *sc, struct schedule *schedule,
                          const struct data *data, const struct engine_options *o, GError **error)
{
	g_autoptr(engine) e = g_new0(struct engine, 1);
	int first = 0, end = sc->machine->gpus;
	while (!devices[first])
		first++;
	while (!devices[end - 1])
		end--;
	describe(e, device_info(devices[first]), sc, schedule);
	e->first = first;
	e->end = end;
	e->data = data;
	e->o = *o;
	e->group = group;
	e->o.ssd_folder = g_strdup(o->ssd_folder);
	e->gpu = g_new0(struct gpu, e->gpus);
	if (!can_run(e, error))
		return NULL;
	for (int g = e->first; g < e->end; g++) {
		e->gpu[g].device = devices[g];
		e->gpu[g].done = device_event_new(devices[g]);
		e->gpu[g].gathered = device_event_new(devices[g]);
		e->gpu[g].side = device_stream_new(devices[g], "side", error);
		if (!e->gpu[g].side)
			return NULL;
	}
	open_host(e);
	tensors_place(e);
	if ((e->offloaded && !open_store(e, error)) || !arena_init(e, error) || !tensors_start(e, error))
		return NULL;
	return g_steal_pointer(&e);
}

void engine_free(struct engine *e)
{
	if (!e)
		return;
	arena_clear(e);
	tensors_clear(e);
	for (int g = e->first; g < e->end; g++) {
		if (e->gpu[g].side)
			device_stream_free(e->gpu[g].side);
		g_clear_pointer(&e->gpu[g].done, device_event_free);
		g_clear_pointer(&e->gpu[g].gathered, device_event_free);
	}
	for (int i = 0; e->due && i < e->n->layers; i++)
		g_free(e->due[i]);
	for (int i = 0; e->pool && i < machine_nodes(e->sc->machine); i++)
		if (e->pool[i])
			adam_pool_free(e->pool[i]);
	g_free(e->due);
	g_free(e->pool);
	store_free(e->store);
	g_clear_error(&e->unread[0]);
	g_clear_error(&e->unread[1]);
	g_free((char *)e->o.ssd_folder);
	g_free(e->gpu);
	g_free(e);
}

/* What the rule wants of this step's gates. */
static bool impose(struct engine *e, uint64_t step, int parity, GError **error)
{
	g_autofree uint32_t *tokens = g_new(uint32_t, (size_t)e->gpus * (size_t)MAX(1, e->experts));
	for (int layer = 0; layer < e->n->layers; layer++)
		for (int mb = 0; e->n->layer[layer].experts && mb < e->microbatches; mb++) {
			const struct layer *l = &e->n->layer[layer];
			size_t experts = (size_t)l->experts;
			if (!routing_loads(e->o.imposed, (int)step, mb, layer, e->gpus, l->experts, l->top_k, (uint32_t)e->N, tokens, error))
				return false;
			for (int g = e->first; g < e->end; g++)
				memcpy(imposed_of(e, g, parity, layer, mb), tokens + (size_t)g * experts, experts * sizeof(*tokens));
		}
	return true;
}

/* The global batch is cut into the GPUs' sequences, those into micro-batches. */
void engine_begin(struct engine *e, uint64_t step)
{
	int parity = (int)(e->begun++ & 1), all = e->microbatches * e->B;
	e->step_of[parity] = step;
	g_clear_error(&e->unread[parity]);
	if (e->o.imposed && !impose(e, step, parity, &e->unread[parity]))
		return;
	for (int g = e->first; g < e->end; g++)
		for (int mb = 0; mb < e->microbatches && !e->unread[parity]; mb++) {
			int32_t *tokens = e->gpu[g].tokens_of_step + ((size_t)(parity * e->microbatches + mb)) * 2 * (size_t)e->N;
			uint64_t first = (uint64_t)g * (uint64_t)all + (uint64_t)mb * (uint64_t)e->B;
			if (!data_batch(e->data, step, first, e->B, e->sc->seq_len, tokens, tokens + e->N, &e->unread[parity]))
				break;
		}
}

const GError *engine_unread(const struct engine *e)
{
	return e->unread[(e->begun + 1) & 1];
}

static const float *losses_now(const struct engine *e, int g)
{
	return e->gpu[g].losses + ((e->begun + 1) & 1) * losses_of_step(e);
}

float engine_loss_of(const struct engine *e, uint64_t step, int gpu)
{
	int parity = e->step_of[1] == step && e->begun > 1;
	g_assert(e->step_of[parity] == step && e->begun);
	return e->gpu[gpu].losses[(size_t)parity * losses_of_step(e)];
}

double engine_loss(const struct engine *e)
{
	double sum = 0;
	for (int g = 0; g < e->gpus; g++)
		sum += (double)losses_now(e, g)[0];
	return sum;
}

void engine_aux(const struct engine *e, double *balance, double *z)
{
	double parts = (double)e->gpus * e->microbatches;
	*balance = *z = 0;
	for (int g = 0; g < e->gpus; g++)
		for (int layer = 0; layer < e->n->layers; layer++)
			for (int mb = 0; e->n->layer[layer].experts && mb < e->microbatches; mb++) {
				const float *aux = losses_now(e, g) + 1 + 2 * (layer * e->microbatches + mb);
				*z += (double)aux[0] / e->N / parts;
				*balance += (double)aux[1] / parts;
			}
}

struct visit {
	bool write_back;
	engine_tensor_fn fn;
	void *user;
};

/* Host copies of one tensor of n elements. */
static struct tensor_state state_new(size_t n, bool gradient)
{
	return (struct tensor_state){g_new0(float, n), g_new0(float, n), g_new0(float, n), gradient ? g_new0(float, n) : NULL};
}

static void tensor_state_clear(struct tensor_state *s)
{
	g_free(s->master);
	g_free(s->m);
	g_free(s->v);
	g_free(s->gradient);
}

/* A tensor that process `owner` has read into `s`: rank 0 shows what others hand in. What is written back all have been given. */
static bool call(struct engine *e, const struct visit *v, int owner, const char *name, size_t n, const struct tensor_state *s, GError **error)
{
	struct ranks *ranks = e->o.ranks;
	float *const parts[] = {s->master, s->m, s->v, s->gradient};
	for (size_t i = 0; ranks && !v->write_back && i < G_N_ELEMENTS(parts) && parts[i]; i++)
		if (!ranks_hand_in(ranks, RANKS_STEPS, owner, parts[i], n * sizeof(float), error))
			return false;
	return (ranks && !v->write_back && ranks_own(ranks)) || v->fn(name, n, s->master, s->m, s->v, s->gradient, v->user, error);
}

/* The process of a GPU. */
static int rank_of(const struct engine *e, int gpu)
{
	return e->o.ranks ? gpu / e->sc->machine->gpus_per_node : 0;
}

static bool is_here(const struct engine *e, int gpu)
{
	return gpu >= e->first && gpu < e->end;
}

static bool visit_dense(struct engine *e, const struct visit *v, const struct tensor *t, GError **error)
{
	if (e->o.ranks && !v->write_back && ranks_own(e->o.ranks))
		return true;
	autoclear(tensor_state) s = state_new(t->n, e->o.grad_check);
	if (!tensors_read(e, e->first, t->at, t->n, &s, error) || !call(e, v, 0, t->name, t->n, &s, error))
		return false;
	for (int g = e->first; v->write_back && g < e->end; g++)
		if (!tensors_write(e, g, t->at, t->n, &s, error))
			return false;
	return true;
}

static bool visit_resident(struct engine *e, const struct visit *v, int layer, int expert, GError **error)
{
	size_t n = network_expert_params(e->n, &e->n->layer[layer]), at;
	autoclear(tensor_state) s = state_new(n, e->o.grad_check);
	g_autofree char *name = g_strdup_printf("layer%d.expert%d", layer, expert);
	int owner = 0;
	while (!expert_at_home(e, owner, layer, expert, &at))
		owner++;
	if (is_here(e, owner) && !tensors_read(e, owner, at, n, &s, error))
		return false;
	if (!call(e, v, rank_of(e, owner), name, n, &s, error))
		return false;
	for (int g = e->first; v->write_back && g < e->end; g++)
		if (expert_at_home(e, g, layer, expert, &at) && !tensors_write(e, g, at, n, &s, error))
			return false;
	return true;
}

/* Copies that stay in HBM between steps are brought up to date too. */
static bool refresh_copies(struct engine *e, int layer, int expert, const float *master, size_t n, GError **error)
{
	for (int g = e->first; g < e->end; g++)
		for (int i = 0; i < e->slots; i++)
			if (e->gpu[g].slot_layer[i] == layer && e->gpu[g].slot_expert[i] == expert &&
			    !tensors_refresh_slot(e, g, i, master, n, error))
				return false;
	return true;
}

static bool visit_stored(struct engine *e, const struct visit *v, int layer, int expert, GError **error)
{
	size_t n = network_expert_params(e->n, &e->n->layer[layer]);
	int moe = e->layer[layer].moe, experts = e->n->layer[layer].experts;
	bool here = expert_stored(e, layer, expert);
	autoclear(tensor_state) s = state_new(n, e->o.grad_check);
	g_autofree char *name = g_strdup_printf("layer%d.expert%d", layer, expert);
	if (here && !store_save(e->store, moe, expert, s.master, s.m, s.v, error))
		return false;
	if (here && e->o.grad_check && e->begun)
		memcpy(s.gradient, store_sum(e->store, moe, expert), n * sizeof(float));
	if (!call(e, v, rank_of(e, (int)((int64_t)expert * e->gpus / experts)), name, n, &s, error))
		return false;
	return !here || !v->write_back ||
	       (store_load(e->store, moe, expert, s.master, s.m, s.v, error) && refresh_copies(e, layer, expert, s.master, n, error));
}

bool engine_each(struct engine *e, bool write_back, engine_tensor_fn fn, void *user, GError **error)
{
	const struct visit v = {write_back, fn, user};
	for (guint i = 0; i < e->tensors->len; i++)
		if (!visit_dense(e, &v, &g_array_index(e->tensors, struct tensor, i), error))
			return false;
	for (int layer = 0; layer < e->n->layers; layer++)
		for (int x = 0; x < e->n->layer[layer].experts; x++)
			if (!(e->offloaded ? visit_stored : visit_resident)(e, &v, layer, x, error))
				return false;
	return true;
}
