/* The executor's allocations (exec/arena.c, exec/store.c) in the same order, block by block:
 *
 *     resident    parameters, fp32 master, gradient, m, v of all that is at home in HBM, each one flat array
 *     offloaded   slots, pinned experts, gradient slots                 in DRAM: parameters and gradients pinned; master, m, v pageable
 *                                                                   over the SSD: pinned frames for all of them
 *     layers      every layer's input; activations of one layer that all share, or of each layer where they are kept
 *     stage       the largest space that a kind of stage needs; gradients of the residual stream; rows on their way
 *
 * Rows are those of the worst routing, since nothing is allocated later. Small scratch of single kernels (under 1 %) is left out. */
#include "footprint.h"

#include "schedule.h"

#include <math.h>

struct taker {
	const struct network *n;
	const struct machine *m;
	const struct policy *p;
	const struct memory_case *k;
	struct memory *out;
	uint64_t tokens, d, element, up; /* up: matrices of an FFN's first linear layer */
	uint64_t gradient_bytes, microbatches;
	uint64_t rows_sent, rows_arrived; /* of an exchange at most */
	struct layer widest;              /* of every shape */
	bool offloaded, exchanges;
};

static uint64_t aligned(uint64_t bytes)
{
	return (bytes + FOOTPRINT_ALIGNMENT - 1) / FOOTPRINT_ALIGNMENT * FOOTPRINT_ALIGNMENT;
}

static void take(struct taker *t, int class, uint64_t bytes)
{
	t->out->bytes[TIER_HBM][class] += aligned(bytes);
}

/* ---- rules that others need ---- */

static int gradient_bytes(const struct machine *m, const struct policy *p)
{
	return m->element_bytes == 4 ? 4 : p->gradient_bytes;
}

static uint64_t copy_frames(const struct machine *m, const struct policy *p)
{
	return (uint64_t)footprint_copy_frames(m->element_bytes, gradient_bytes(m, p));
}

static uint64_t widest_expert(const struct network *n)
{
	uint64_t most = 0;
	for (int i = 0; i < n->layers; i++)
		most = MAX(most, network_expert_params(n, &n->layer[i]));
	return most;
}

uint64_t footprint_gemm_bytes(int element_bytes, int together)
{
	return element_bytes == 4 ? 0 : (uint64_t)FOOTPRINT_GEMM_BF16 * (uint64_t)CLAMP(together, 1, FOOTPRINT_LANES_BF16);
}

static int at_home(int experts, int expert_parallel)
{
	return (experts + expert_parallel - 1) / expert_parallel;
}

int footprint_together(const struct network *n, const struct policy *p, int home, int expert_parallel)
{
	return p->expert_compute == EXPERTS_GROUPED && home == HOME_HBM ? MAX(1, at_home(network_experts(n), expert_parallel)) : 1;
}

struct expert_bytes footprint_expert(const struct network *n, const struct machine *m, const struct policy *p, const struct layer *l)
{
	uint64_t params = network_expert_params(n, l), gradient = params * (uint64_t)gradient_bytes(m, p), copy = params * (uint64_t)m->element_bytes;
	uint64_t pages = footprint_pages(copy) + footprint_pages(gradient);
	return (struct expert_bytes){.pinned = footprint_stride(pages),
	                             .pageable = footprint_stride(3 * footprint_pages(params * 4)),
	                             .parameter_block = copy_frames(m, p) * footprint_frame(widest_expert(n)),
	                             .gradient = gradient,
	                             .state_block = FOOTPRINT_STATE_FRAMES * footprint_frame(widest_expert(n))};
}

/* Blocks that stay for their gradient. An update launched with its gradient leaves none behind it; put off, it lets all others leave before. */
static uint64_t experts_behind(const struct network *n, const struct machine *m, const struct policy *p, const struct memory_case *k)
{
	uint64_t sum = 0, most = 0;
	for (int i = 0; i < n->layers; i++) {
		uint64_t experts = n->layer[i].experts ? memory_node_experts(m, k, &n->layer[i]) : 0;
		sum += experts;
		most = MAX(most, experts);
	}
	if (p->optimizer == OPTIMIZER_CPU_EXPERT && p->update_order != UPDATE_NEXT_FORWARD)
		return MIN(1, sum);
	return p->optimizer == OPTIMIZER_CPU_LAYER ? most : sum;
}

struct footprint_frames footprint_frames(const struct network *n, const struct machine *m, const struct policy *p, const struct memory_case *k)
{
	struct footprint_frames f = {.bytes = footprint_frame(widest_expert(n)), .behind = copy_frames(m, p) * experts_behind(n, m, p, k)};
	for (int i = 0; i < n->layers; i++)
		if (n->layer[i].experts)
			f.all += memory_node_experts(m, k, &n->layer[i]) * (copy_frames(m, p) + FOOTPRINT_STATE_FRAMES);
	return f;
}

uint64_t footprint_cached_frames(const struct network *n, const struct machine *m, const struct policy *p, uint64_t cache_bytes)
{
	double per_byte = 0;
	for (int i = 0; i < n->layers; i++) {
		if (!n->layer[i].experts)
			continue;
		struct expert_bytes e = memory_expert(n, m, p, &n->layer[i]);
		per_byte = MAX(per_byte, (double)copy_frames(m, p) / (double)e.parameter_block);
		per_byte = MAX(per_byte, FOOTPRINT_STATE_FRAMES / (double)e.state_block);
	}
	return (uint64_t)((double)cache_bytes * per_byte + 1e-6); /* whole numbers stay whole */
}

bool footprint_known(const struct network *n, const struct machine *m, const struct policy *p, const struct memory_case *k)
{
	if (policy_tensor_parallel(p, m->gpus) > 1 || p->microbatch_order != ORDER_HORIZONTAL || p->zero_stage || p->gradient_cast != CAST_NONE ||
	    p->dense_optimizer != DENSE_OPTIMIZER_GPU || p->checkpoint == CHECKPOINT_LAYER || p->exchange != EXCHANGE_TOKENS || k->shadowed ||
	    p->embedding != EMBEDDING_COPIED || p->gradient_bucket_mib || !p->fused_communication)
		return false;
	for (int i = 0; i < n->layers; i++) {
		const struct layer *l = &n->layer[i];
		if (l->mixer != MIXER_ATTENTION || l->cross || (l->experts && l->experts < k->expert_parallel && k->home == HOME_HBM))
			return false;
	}
	return true;
}

/* ---- shapes ---- */

static struct layer widest_of(const struct network *n)
{
	struct layer w = {.mixer = MIXER_ATTENTION};
	for (int i = 0; i < n->layers; i++) {
		const struct layer *l = &n->layer[i];
		w.experts = MAX(w.experts, l->experts);
		w.top_k = MAX(w.top_k, l->top_k);
		w.d_expert = MAX(w.d_expert, l->d_expert);
		w.d_ff = MAX(w.d_ff, l->d_ff);
		w.d_shared = MAX(w.d_shared, l->shared * l->d_shared);
		w.shared = w.d_shared > 0;
	}
	return w;
}

/* What is padded to the largest load may be every token for every expert, and every token may go to one GPU. */
static void count_rows(struct taker *t)
{
	for (int i = 0; i < t->n->layers; i++) {
		const struct layer *l = &t->n->layer[i];
		if (!l->experts)
			continue;
		uint64_t home = (uint64_t)(t->offloaded ? l->experts : at_home(l->experts, t->k->expert_parallel));
		uint64_t sent = t->tokens * (uint64_t)l->top_k, each = t->tokens * MIN((uint64_t)l->top_k, home);
		if (t->p->dispatch != DISPATCH_EXACT) {
			double mean = t->p->capacity_factor * l->top_k * (double)t->tokens / l->experts;
			uint64_t capacity = t->p->capacity_factor > 0 ? (uint64_t)ceil(mean) : t->tokens;
			sent = capacity * (uint64_t)l->experts;
			each = capacity * home;
		}
		t->rows_sent = MAX(t->rows_sent, sent);
		t->rows_arrived = MAX(t->rows_arrived, t->exchanges ? each * (uint64_t)t->m->gpus : sent);
	}
}

static void describe(struct taker *t)
{
	t->tokens = (uint64_t)t->k->sequences * (uint64_t)t->k->seq_len;
	t->d = (uint64_t)t->n->d_model;
	t->element = (uint64_t)t->m->element_bytes;
	t->up = (uint64_t)activation_matrices(t->n->activation) - 1;
	t->gradient_bytes = (uint64_t)gradient_bytes(t->m, t->p);
	t->microbatches = (uint64_t)MAX(1, t->k->microbatches);
	t->offloaded = t->k->home != HOME_HBM && network_experts(t->n) > 0;
	t->exchanges = t->k->expert_parallel > 1;
	t->widest = widest_of(t->n);
	count_rows(t);
}

/* ---- what lives there ---- */

/* Tensors begin at 8 elements. */
static uint64_t tensor(uint64_t elements)
{
	return (elements + 7) / 8 * 8;
}

static uint64_t heads_of(const struct network *n)
{
	return (uint64_t)(n->heads * n->d_head);
}

static uint64_t qkv_of(const struct network *n)
{
	return heads_of(n) + 2 * (uint64_t)(n->kv_heads * n->d_head);
}

static uint64_t resident(const struct taker *t)
{
	const struct network *n = t->n;
	uint64_t d = t->d, sum = tensor((uint64_t)n->vocab * d) * (n->tied ? 1 : 2) + tensor((uint64_t)t->k->seq_len * d) + 2 * tensor(d);
	for (int i = 0; i < n->layers; i++) {
		const struct layer *l = &n->layer[i];
		sum += 4 * tensor(d) + tensor(d * qkv_of(n)) + tensor(heads_of(n) * d) + tensor(d * (uint64_t)l->experts);
		sum += tensor(d * t->up * (uint64_t)l->d_ff) + tensor(d * (uint64_t)l->d_ff);
		sum += (uint64_t)l->shared * (tensor(d * t->up * (uint64_t)l->d_shared) + tensor(d * (uint64_t)l->d_shared));
		if (!t->offloaded)
			sum += network_expert_params(n, l) * (uint64_t)at_home(l->experts, t->k->expert_parallel);
	}
	return sum;
}

static void take_state(struct taker *t)
{
	uint64_t params = resident(t), widest = widest_expert(t->n);
	take(t, CLASS_PARAMETERS, params * t->element);
	take(t, CLASS_OPTIMIZER, t->element == 4 ? 0 : params * 4);
	take(t, CLASS_GRADIENTS, params * 4);
	take(t, CLASS_OPTIMIZER, params * 4);
	take(t, CLASS_OPTIMIZER, params * 4);
	if (!t->offloaded)
		return;
	for (int i = memory_slots(t->n, t->m, t->p, t->k); i > 0; i--)
		take(t, CLASS_BUFFERS, widest * t->element);
	for (int i = 0; i < t->n->layers; i++)
		for (int j = memory_pinned_experts(t->k->pinned_share, t->n->layer[i].experts, t->m->gpus); j > 0; j--)
			take(t, CLASS_PARAMETERS, network_expert_params(t->n, &t->n->layer[i]) * t->element);
	for (int i = 0; i < GRADIENT_SLOTS; i++)
		take(t, CLASS_BUFFERS, widest * t->gradient_bytes);
}

/* ---- layers ---- */

static void take_layer(struct taker *t, const struct layer *l)
{
	uint64_t n = t->tokens, el = t->element, shared = (uint64_t)(l->shared * l->d_shared), experts = (uint64_t)l->experts;
	const uint64_t blocks[] = {
	    n * t->d * el,
	    n * qkv_of(t->n) * el,
	    n * heads_of(t->n) * el,
	    n * t->d * el,
	    n * t->d * el,
	    n * (uint64_t)t->n->heads * 4,
	    4 * n * 4,
	    n * t->up * (uint64_t)l->d_ff * el,
	    n * (uint64_t)l->d_ff * el,
	    n * t->up * shared * el,
	    n * shared * el,
	    n * experts * el,
	    n * experts * 4,
	    experts ? n * (uint64_t)l->top_k * 4 : 0,
	    experts * 4,
	};
	for (size_t i = 0; i < G_N_ELEMENTS(blocks); i++)
		take(t, CLASS_ACTIVATIONS, blocks[i]);
}

static void take_rows(struct taker *t, const struct layer *l)
{
	uint64_t pairs = t->tokens * (uint64_t)l->top_k;
	take(t, CLASS_BUFFERS, t->rows_sent * 4);
	take(t, CLASS_BUFFERS, pairs * 4);
	take(t, CLASS_BUFFERS, pairs * 4);
	take(t, CLASS_BUFFERS, t->rows_arrived * t->d * t->element);
}

static void take_layers(struct taker *t)
{
	int layers = t->n->layers;
	bool keeps_all = t->p->checkpoint == CHECKPOINT_NONE, keeps_rows = t->p->checkpoint != CHECKPOINT_FULL;
	take(t, CLASS_BUFFERS, t->exchanges ? t->rows_sent * t->d * t->element : 0);
	for (int i = 0; i <= layers; i++)
		take(t, CLASS_ACTIVATIONS, t->tokens * t->d * t->element);
	if (!keeps_all)
		take_layer(t, &t->widest);
	if (!keeps_rows && t->widest.experts)
		take_rows(t, &t->widest);
	for (int i = 0; i < layers; i++) {
		if (keeps_all)
			take_layer(t, &t->n->layer[i]);
		if (keeps_rows && t->n->layer[i].experts)
			take_rows(t, &t->n->layer[i]);
	}
}

/* ---- the stage that runs ---- */

static uint64_t stage_space(const struct taker *t)
{
	const struct layer *w = &t->widest;
	uint64_t n = t->tokens, el = t->element, inner = (uint64_t)MAX(MAX(w->d_expert, w->d_ff), w->d_shared);
	uint64_t head = MIN(n, (uint64_t)(el == 4 ? FOOTPRINT_HEAD_FP32 : FOOTPRINT_HEAD_BF16));
	uint64_t ffn = 2 * aligned(n * t->up * inner * el) + 2 * aligned(n * inner * el);
	uint64_t mixer = aligned(n * heads_of(t->n) * el) + aligned(n * qkv_of(t->n) * el) + aligned(n * t->d * el);
	uint64_t logits = 2 * aligned(n * t->d * el) + aligned(head * (uint64_t)t->n->vocab * el) + 2 * aligned(n * 4);
	return MAX(MAX(ffn, mixer), MAX(logits, aligned(n * (uint64_t)w->experts * el)));
}

static void take_stage(struct taker *t)
{
	uint64_t n = t->tokens, row = t->d + (t->element == 4 ? FOOTPRINT_WEIGHT_FP32 : FOOTPRINT_WEIGHT_BF16), gpus = (uint64_t)t->m->gpus;
	uint64_t experts = (uint64_t)t->widest.experts, layers = (uint64_t)t->n->layers;
	take(t, CLASS_WORKSPACE, stage_space(t));
	take(t, CLASS_WORKSPACE, footprint_gemm_bytes(t->m->element_bytes, footprint_together(t->n, t->p, t->k->home, t->k->expert_parallel)));
	take(t, CLASS_WORKSPACE, n * t->d * t->element);
	take(t, CLASS_WORKSPACE, n * t->d * t->element);
	take(t, CLASS_WORKSPACE, n * (uint64_t)t->widest.top_k * 4);
	take(t, CLASS_WORKSPACE, 2 * 4); /* losses of the gate, and of the head */
	take(t, CLASS_WORKSPACE, 4);
	if (!t->offloaded && t->microbatches > 1 && t->element == 4)
		take(t, CLASS_GRADIENTS, widest_expert(t->n) * 4);
	if (experts) {
		take(t, CLASS_BUFFERS, t->rows_arrived * row * t->element);
		take(t, CLASS_BUFFERS, t->exchanges ? t->rows_sent * row * t->element : 0);
	}
	if (experts && t->exchanges && (t->element == 4 ? FOOTPRINT_PACKS_FP32 : FOOTPRINT_PACKS_BF16)) { /* all but a GPU's own rows */
		take(t, CLASS_BUFFERS, t->rows_sent * row * t->element);
		take(t, CLASS_BUFFERS, t->rows_arrived / gpus * (gpus - 1) * row * t->element);
	}
	if (gpus > 1) /* counts of a gate, of all GPUs together */
		take(t, CLASS_BUFFERS, experts * 4);
	take(t, CLASS_BUFFERS, layers * t->microbatches * experts * 4); /* those that a rule may impose, and those of all gates of all GPUs */
	take(t, CLASS_BUFFERS, gpus > 1 ? layers * t->microbatches * experts * gpus * 4 : 0);
	take(t, CLASS_BUFFERS, n * 4); /* tokens and targets */
	take(t, CLASS_BUFFERS, n * 4);
}

/* ---- the host ---- */

/* Tokens and losses of two steps, counts of the gates and those that a rule may impose on two steps, staging: of each GPU. */
static uint64_t pinned_of_gpu(const struct taker *t)
{
	uint64_t visits = (uint64_t)t->n->layers * t->microbatches, experts = (uint64_t)MAX(1, network_experts(t->n));
	return 2 * t->microbatches * 2 * t->tokens * 4 + visits * ((uint64_t)t->m->gpus + 2) * experts * 4 + 2 * (1 + 2 * visits) * 4 +
	       FOOTPRINT_STAGING * 4;
}

static void take_experts(struct taker *t)
{
	struct memory *out = t->out;
	for (int i = 0; t->offloaded && i < t->n->layers; i++) {
		const struct layer *l = &t->n->layer[i];
		uint64_t experts = l->experts ? memory_node_experts(t->m, t->k, l) : 0, params = network_expert_params(t->n, l);
		struct expert_bytes e = footprint_expert(t->n, t->m, t->p, l);
		if (t->microbatches > 1) /* what earlier ones add up to */
			out->bytes[TIER_DRAM][CLASS_GRADIENTS] += experts * params * 4;
		if (t->k->home == HOME_SSD) {
			out->bytes[TIER_SSD][CLASS_OPTIMIZER] += experts * 3 * footprint_pages(params * 4);
			continue;
		}
		out->bytes[TIER_PINNED][CLASS_GRADIENTS] += experts * e.gradient;
		out->bytes[TIER_PINNED][CLASS_PARAMETERS] += experts * (e.pinned - e.gradient);
		out->bytes[TIER_DRAM][CLASS_OPTIMIZER] += experts * e.pageable;
	}
}

/* As many as DRAM holds beside those that stay behind, or all; one block at least. */
static void take_frames(struct taker *t)
{
	struct memory *out = t->out;
	struct footprint_frames f = footprint_frames(t->n, t->m, t->p, t->k);
	uint64_t taken = memory_need(out, TIER_DRAM), room = out->room[TIER_DRAM], fit = f.all && room > taken ? (room - taken) / f.bytes : 0;
	uint64_t cached = fit >= f.all ? f.all : MAX(fit - MIN(fit, f.behind), FOOTPRINT_STATE_FRAMES);
	out->cache_bytes = cached * f.bytes;
	out->bytes[TIER_PINNED][CLASS_BUFFERS] += MIN(cached + f.behind, f.all) * f.bytes;
}

static void take_host(struct taker *t)
{
	t->out->bytes[TIER_PINNED][CLASS_BUFFERS] += pinned_of_gpu(t) * (uint64_t)machine_node_gpus(t->m, 0);
	take_experts(t);
	if (t->k->home == HOME_SSD)
		take_frames(t);
}

void footprint_plan(const struct network *n, const struct machine *m, const struct policy *p, const struct memory_case *k, struct memory *out)
{
	struct taker t = {.n = n, .m = m, .p = p, .k = k, .out = out};
	describe(&t);
	out->all_along = true;
	take_state(&t);
	take_layers(&t);
	take_stage(&t);
	take_host(&t);
}
