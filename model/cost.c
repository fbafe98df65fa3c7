/* The roofline. A GEMM is cut into tiles, tiles run in waves over the SMs, so small and odd sizes pay for the wave they do not fill; what is not a
 * GEMM is counted in passes over HBM (cost_traffic.c).
 *
 *     stage = max(sum of GEMMs + HBM bytes / bandwidth, launches x shortest kernel)
 *
 * A measured machine answers from its tables instead; where it has none, the roofline does, and the basis says so. A cost is rounded to nanoseconds
 * once, at the end. */
#include "cost.h"

#include "cost_inside.h"
#include "measured.h"
#include "memory.h"

#include <math.h>
#include <string.h>

/* Tile shapes a BLAS chooses from, with the share of the tensor cores' rate each reaches beside the largest. */
static const struct {
	int m, n;
	double rate;
} tiles[] = {{256, 128, 1.0}, {128, 128, 0.97}, {128, 64, 0.85}, {64, 64, 0.65}};

struct cost *cost_new(const struct network *n, const struct machine *m, const struct policy *p, int seq_len, int adam_threads)
{
	struct cost *c = g_new0(struct cost, 1);
	*c = (struct cost){.n = n, .m = m, .p = p, .seq_len = seq_len};
	c->flops_per_ns_sm = m->bf16_tflops * 1e3 * m->gemm_efficiency / m->sms;
	c->tensor = policy_tensor_parallel(p, m->gpus);
	c->experts_tensor = p->tensor_experts == TENSOR_EXPERTS_CUT ? c->tensor : 1;
	c->sources = p->expert_rows == ROWS_BY_SOURCE ? policy_expert_parallel(p, m->gpus) / c->tensor : 1;
	c->hbm = m->hbm_gbps * m->hbm_efficiency;
	c->halves = c->hbm * 2 / m->element_bytes;
	c->kernel_ns = m->kernel_us * 1e3;
	cost_traffic(n, m, c->traffic);
	c->adam_params_per_ns = machine_adam_gparams_per_s(m, adam_threads);
	c->adam_slowdown = machine_adam_gparams_per_s(m, 0) / c->adam_params_per_ns / (m->adam_share * m->adam_pace);
	c->basis = g_malloc0(sizeof(*c->basis) * N_STAGE_KINDS);
	if (m->measured && c->tensor == 1) { /* whole matrices were measured */
		g_autofree char *network = measured_network(n);
		c->own = g_str_equal(network, m->measured->network) ? m->measured : NULL;
	}
	c->shape = g_new(int, c->n->layers);
	for (int i = 0; i < c->n->layers; i++) {
		int same = 0;
		while (memcmp(&c->n->layer[same], &c->n->layer[i], sizeof(struct layer)) != 0)
			same++;
		c->shape[i] = same;
	}
	return c;
}

void cost_free(struct cost *c)
{
	if (!c)
		return;
	g_free(c->shape);
	g_free(c->basis);
	g_free(c);
}

int cost_basis(const struct cost *c, int kind, int pass)
{
	return c->basis[kind][measured_pass(kind, pass)];
}

bool cost_look_up(const struct cost *c, const struct measured *tables, int kind, int pass, double size, double *ns)
{
	static const uint8_t bases[] = {[MEASURED_INSIDE] = COST_MEASURED,
	                                [MEASURED_BELOW] = COST_MEASURED | COST_BELOW,
	                                [MEASURED_ABOVE] = COST_MEASURED | COST_ABOVE,
	                                [MEASURED_NONE] = COST_ROOFLINE};
	if (!c->m->measured)
		return false;
	pass = measured_pass(kind, pass);
	enum measured_range range = tables ? measured_ns(&tables->table[kind][pass], size, ns) : MEASURED_NONE;
	c->basis[kind == MEASURED_GROUPED ? STAGE_EXPERT : kind][pass] |= bases[range];
	return range != MEASURED_NONE;
}

static double tiles_ns(const struct cost *c, double batch, double m, double n, double k)
{
	double best = INFINITY;
	for (size_t i = 0; i < G_N_ELEMENTS(tiles); i++) {
		double count = batch * ceil(m / tiles[i].m) * ceil(n / tiles[i].n);
		double waves = ceil(count / c->m->sms);
		best = fmin(best, waves * 2.0 * tiles[i].m * tiles[i].n * k / (c->flops_per_ns_sm * tiles[i].rate));
	}
	/* a single row of tiles leaves SMs idle: cut along k as well, all of them read a part of the weights (split-K) */
	const size_t last = G_N_ELEMENTS(tiles) - 1;
	if (m <= tiles[last].m)
		best = fmin(best, batch * 2.0 * tiles[last].m * n * k / (c->flops_per_ns_sm * c->m->sms * tiles[last].rate));
	return best;
}

static double gemm_ns(const struct cost *c, double batch, double m, double n, double k)
{
	double memory = 2.0 * batch * (m * k + k * n + m * n) / c->halves;
	return fmax(fmax(tiles_ns(c, batch, m, n, k), memory), c->kernel_ns);
}

/* A batch with the same k x n matrix in all: it comes from HBM once. */
static double shared_gemm_ns(const struct cost *c, double batch, double m, double n, double k)
{
	double memory = 2.0 * (batch * (m * k + m * n) + k * n) / c->halves;
	return fmax(fmax(tiles_ns(c, batch, m, n, k), memory), c->kernel_ns);
}

double cost_linear_ns(const struct cost *c, bool backward, double tokens, double in, double out)
{
	if (!backward)
		return gemm_ns(c, 1, tokens, out, in);
	return gemm_ns(c, 1, tokens, in, out) + gemm_ns(c, 1, in, out, tokens);
}

static double ffn_ns(const struct cost *c, bool backward, double tokens, double inner)
{
	const double d = c->n->d_model;
	int up = activation_matrices(c->n->activation) - 1;
	return cost_linear_ns(c, backward, tokens, d, up * inner) + cost_linear_ns(c, backward, tokens, inner, d);
}

/* With the rows by source a batch of small matrices takes the place of each product with the weights; the weights' gradient is one sum over all. */
static double expert_ns(const struct cost *c, bool backward, double tokens, double inner)
{
	const double d = c->n->d_model, each = ceil(tokens / c->sources), up = (activation_matrices(c->n->activation) - 1) * inner;
	if (c->sources <= 1)
		return ffn_ns(c, backward, tokens, inner);
	if (!backward)
		return shared_gemm_ns(c, c->sources, each, up, d) + shared_gemm_ns(c, c->sources, each, d, inner);
	return shared_gemm_ns(c, c->sources, each, d, up) + gemm_ns(c, 1, d, up, tokens) + shared_gemm_ns(c, c->sources, each, inner, d) +
	       gemm_ns(c, 1, inner, d, tokens);
}

static double attention_ns(const struct cost *c, bool backward, double tokens)
{
	const struct network *n = c->n;
	double heads = n->heads / c->tensor, width = heads * n->d_head;
	double kv = 2.0 * fmax(1, n->kv_heads / c->tensor) * n->d_head; /* each GPU has one at least */
	double ns = cost_linear_ns(c, backward, tokens, n->d_model, width + kv) + cost_linear_ns(c, backward, tokens, width, n->d_model);
	double batch = heads * fmax(1, tokens / c->seq_len), t = fmin(c->seq_len, tokens);
	double scores = gemm_ns(c, batch, t, t, n->d_head) + gemm_ns(c, batch, t, n->d_head, t);
	if (c->m->attention == ATTENTION_MATERIALISED)
		return ns + (backward ? 2 : 1) * scores;
	/* one kernel, causal: half the products; its softmax keeps the tensor cores at about 60 % of a GEMM (FlashAttention-2, arXiv 2307.08691,
	 * section 4); the backward recomputes the scores: five products for two */
	double flops = 4.0 * batch * t * t * n->d_head / 2;
	return ns + (backward ? 2.5 : 1.0) * fmax(flops / (c->flops_per_ns_sm * c->m->sms * 0.6), c->kernel_ns);
}

static double mamba_ns(const struct cost *c, bool backward, double tokens)
{
	const struct network *n = c->n;
	double inner = n->mamba_expand * n->d_model / c->tensor;
	double ns = cost_linear_ns(c, backward, tokens, n->d_model, 2 * inner) + cost_linear_ns(c, backward, tokens, inner, n->d_model);
	/* the selective scan streams x, dt, B, C and y once (arXiv 2312.00752, section 3.3.2); its gradient about three times that */
	return ns + (backward ? 3 : 1) * 10.0 * tokens * inner / c->halves;
}

/* Of one GPU. */
static double inner_size(const struct cost *c, const struct layer *l, int kind)
{
	double whole = kind == STAGE_FFN ? l->d_ff : kind == STAGE_SHARED ? l->shared * l->d_shared : 0;
	return kind == STAGE_EXPERT ? l->d_expert / c->experts_tensor : whole / c->tensor;
}

static double traffic_ns(const struct cost *c, int kind, bool backward, const struct layer *l, double tokens)
{
	const struct traffic *t = &c->traffic[kind][backward];
	const struct network *n = c->n;
	double bytes = t->d * n->d_model + t->logit * n->vocab / c->tensor;
	if (l) {
		bytes += t->f * inner_size(c, l, kind);
		if (c->m->attention == ATTENTION_MATERIALISED && l->mixer == MIXER_ATTENTION)
			bytes += t->score * n->heads / c->tensor * c->seq_len;
	}
	int times = kind == STAGE_MIXER && l->cross ? 2 : 1; /* a decoder's layer attends twice */
	return times * tokens * bytes / c->halves;
}

static double products_ns(const struct cost *c, int kind, bool backward, const struct layer *l, double tokens)
{
	switch (kind) {
	case STAGE_MIXER:
		return l->mixer == MIXER_MAMBA ? mamba_ns(c, backward, tokens) : (1 + l->cross) * attention_ns(c, backward, tokens);
	case STAGE_GATE:
		return cost_linear_ns(c, backward, tokens, c->n->d_model, l->experts);
	case STAGE_EXPERT:
		return expert_ns(c, backward, tokens, inner_size(c, l, kind));
	case STAGE_FFN:
	case STAGE_SHARED:
		return ffn_ns(c, backward, tokens, inner_size(c, l, kind));
	case STAGE_HEAD: /* forward and backward in one, chunk by chunk */
		return cost_linear_ns(c, false, tokens, c->n->d_model, c->n->vocab / c->tensor) +
		       cost_linear_ns(c, true, tokens, c->n->d_model, c->n->vocab / c->tensor);
	default:
		return 0;
	}
}

static double once_ns(const struct cost *c, int kind, bool backward, const struct layer *l, uint32_t tokens, uint32_t *n_kernels)
{
	uint32_t kernels = (uint32_t)c->traffic[kind][backward].kernels;
	*n_kernels += kernels;
	if (!tokens)
		return kernels * c->kernel_ns;
	return fmax(products_ns(c, kind, backward, l, tokens) + traffic_ns(c, kind, backward, l, tokens), kernels * c->kernel_ns);
}

static bool recomputes(const struct cost *c)
{
	return c->p->checkpoint == CHECKPOINT_FULL || c->p->checkpoint == CHECKPOINT_KEEP_COLLECTIVES;
}

static nsec_t compute(const struct cost *c, int kind, int pass, const struct layer *l, uint32_t tokens, uint32_t *n_kernels)
{
	*n_kernels = 0;
	double ns = once_ns(c, kind, pass == PASS_BACKWARD, l, tokens, n_kernels);
	if (kind == STAGE_EXPERT && pass == PASS_BACKWARD && recomputes(c))
		ns += once_ns(c, kind, false, l, tokens, n_kernels);
	if (c->own)
		cost_look_up(c, c->own, kind, pass, measured_size(&c->own->table[kind][pass], kind, l, tokens), &ns);
	else
		cost_look_up(c, NULL, kind, pass, tokens, &ns);
	return cost_whole(ns);
}

/* Multiplicative hashing spreads the keys over the table; a key is exact, so a collision only costs time. */
nsec_t cost_compute(struct cost *c, int kind, int pass, const struct layer *l, uint32_t tokens, uint32_t *n_kernels)
{
	uint64_t shape = l ? (uint64_t)c->shape[l - c->n->layer] + 1 : 0;
	uint64_t key = ((((shape << 5) | (uint64_t)kind) << 2 | (uint64_t)pass) << 32 | tokens) + 1;
	struct memo *m = &c->memo[(key * UINT64_C(0x9E3779B97F4A7C15)) >> 52];
	if (m->key != key) {
		m->ns = compute(c, kind, pass, l, tokens, &m->kernels);
		m->key = key;
	}
	*n_kernels = m->kernels;
	return m->ns;
}

int cost_expert_products(const struct cost *c, int pass)
{
	const int matrices = activation_matrices(c->n->activation);
	return pass == PASS_BACKWARD ? (2 + recomputes(c)) * matrices : matrices;
}

static double group_gemms_ns(const struct cost *c, bool backward, const struct layer *l, int experts, double tokens)
{
	const double d = c->n->d_model, f = inner_size(c, l, STAGE_EXPERT), up = activation_matrices(c->n->activation) - 1;
	double each = tokens / experts;
	if (!backward)
		return gemm_ns(c, experts, each, up * f, d) + gemm_ns(c, experts, each, d, f);
	return gemm_ns(c, experts, each, d, up * f) + gemm_ns(c, experts, d, up * f, each) + gemm_ns(c, experts, each, f, d) +
	       gemm_ns(c, experts, f, d, each);
}

static double grouped_once_ns(const struct cost *c, bool backward, const struct layer *l, int experts, double tokens, uint32_t *n_kernels)
{
	uint32_t kernels = (uint32_t)c->traffic[STAGE_EXPERT][backward].kernels;
	*n_kernels += kernels;
	if (tokens < 1)
		return kernels * c->kernel_ns;
	return fmax(group_gemms_ns(c, backward, l, experts, tokens) + traffic_ns(c, STAGE_EXPERT, backward, l, tokens), kernels * c->kernel_ns);
}

/* Where no group was measured: one after another, what a virtual GPU does. */
static bool look_up_group(const struct cost *c, int pass, const uint32_t *tokens, int experts, uint32_t padded_to, double *ns)
{
	bool grouped = c->own && c->own->table[MEASURED_GROUPED][pass].sizes.n > 0;
	double sum = 0, each = 0;
	for (int i = 0; i < experts; i++) {
		if (!cost_look_up(c, c->own, grouped ? MEASURED_GROUPED : STAGE_EXPERT, pass, padded_to ? padded_to : tokens[i], &each))
			return false;
		sum += each;
	}
	*ns = sum;
	return true;
}

nsec_t cost_grouped(struct cost *c, int pass, const struct layer *l, const uint32_t *tokens, int experts, bool padded, uint32_t *n_kernels)
{
	uint64_t all = 0;
	uint32_t most = 0;
	for (int i = 0; i < experts; i++) {
		all += tokens[i];
		most = MAX(most, tokens[i]);
	}
	double work = padded ? (double)most * experts : (double)all;
	*n_kernels = 0;
	double ns = grouped_once_ns(c, pass == PASS_BACKWARD, l, experts, work, n_kernels);
	if (pass == PASS_BACKWARD && recomputes(c))
		ns += grouped_once_ns(c, false, l, experts, work, n_kernels);
	look_up_group(c, pass, tokens, experts, padded ? most : 0, &ns);
	return cost_whole(ns);
}

/* Of an element of the mask, tokens x slots, as FairSeq and DeepSpeed do it (GShard's layer in PyTorch):
 *
 *     dispatch    for each choice the gate's weight times the one-hot of its place, fp32 4; sums of choices 12; as booleans 5, as halves 3; one
 * einsum combine     the weights as halves 6; one einsum backward    combine: two einsums, the weights' gradient to fp32 6, and a sum of it for each
 * choice 4. Booleans have no gradient: dispatch has one einsum, for the tokens'
 */
nsec_t cost_mask(struct cost *c, int kind, int pass, const struct layer *l, uint32_t tokens, uint64_t slots, uint32_t *n_kernels)
{
	bool backward = pass == PASS_BACKWARD, combine = kind == STAGE_COMBINE;
	uint32_t k = (uint32_t)l->top_k;
	int einsums = backward && combine ? 2 : 1;
	double bytes = backward ? 0 : 12.0 * (k - 1) + 4.0 * k + 8;
	*n_kernels = backward ? 1 : 4 * k + (k - 1) + 3;
	if (combine) {
		bytes = backward ? 6 + 4.0 * k : 6;
		*n_kernels = backward ? 3 + k : 2;
	}
	double ns = einsums * gemm_ns(c, 1, (double)slots, c->n->d_model, tokens) + (double)tokens * (double)slots * bytes / c->halves;
	return cost_whole(fmax(ns, *n_kernels * c->kernel_ns));
}

nsec_t cost_upload(const struct cost *c, uint64_t bytes)
{
	double ns = c->m->pcie_latency_us * 1e3 + (double)bytes / c->m->h2d_gbps;
	cost_look_up(c, c->m->measured, STAGE_UPLOAD, PASS_FORWARD, (double)bytes, &ns);
	return cost_whole(ns);
}

nsec_t cost_download(const struct cost *c, uint64_t bytes)
{
	double ns = c->m->pcie_latency_us * 1e3 + (double)bytes / c->m->d2h_gbps;
	cost_look_up(c, c->m->measured, STAGE_DOWNLOAD, PASS_FORWARD, (double)bytes, &ns);
	return cost_whole(ns);
}

nsec_t cost_ssd(const struct cost *c, bool write, uint64_t bytes)
{
	double ns = c->m->ssd_latency_us * 1e3 + (double)bytes / (write ? c->m->ssd_write_gbps : c->m->ssd_read_gbps);
	cost_look_up(c, c->m->measured, write ? STAGE_SSD_WRITE : STAGE_SSD_READ, PASS_FORWARD, (double)bytes, &ns);
	return cost_whole(ns);
}

double cost_adam_share(const struct cost *c, bool gradient)
{
	return gradient ? 1 : fmax(1 - c->p->gradient_bytes / c->m->adam_bytes_per_param, 0);
}

nsec_t cost_adam(const struct cost *c, uint64_t params, bool gradient)
{
	double ns = (double)params / c->adam_params_per_ns;
	if (cost_look_up(c, c->m->measured, STAGE_ADAM, PASS_UPDATE, (double)params, &ns))
		ns *= c->adam_slowdown;
	return cost_whole(ns * cost_adam_share(c, gradient));
}

/* Reads the 2-byte gradient, reads and writes the fp32 sum: 10 bytes a parameter at the same DRAM rate as Adam. */
nsec_t cost_accumulate(const struct cost *c, uint64_t params)
{
	double ns = (double)params / c->adam_params_per_ns * 10.0 / c->m->adam_bytes_per_param;
	if (cost_look_up(c, c->m->measured, STAGE_ACCUMULATE, PASS_BACKWARD, (double)params, &ns))
		ns *= c->adam_slowdown;
	return cost_whole(ns);
}

/* Fused: reads gradient, master, both moments; writes master, moments and the half copy: 28 bytes. Eager, counted from FairSeq's FP16Optimizer and
 * Adam without flattening: fp32 copy of the gradient 6, unscaling 8, norm 4, clipping 8, Adam 80 in ten operators, copy back 6. */
#define EAGER_ADAM_BYTES 112
#define EAGER_ADAM_KERNELS 15 /* operators a tensor */

nsec_t cost_adam_gpu(const struct cost *c, uint64_t params, uint64_t tensors, uint32_t *n_kernels)
{
	bool eager = c->m->kernels == KERNELS_EAGER;
	*n_kernels = eager ? (uint32_t)(tensors * EAGER_ADAM_KERNELS) : 1;
	double bytes = eager ? EAGER_ADAM_BYTES : 28.0;
	uint64_t cast = eager ? 0 : memory_cast(c->p, params);
	if (cast) { /* reads 2, writes 4, and Adam reads 4 for 2: a cast and an Adam a tile */
		bytes += 8;
		*n_kernels = (uint32_t)(2 * ((params + cast - 1) / cast));
	}
	double ns = fmax((double)params * bytes / c->hbm, *n_kernels * c->kernel_ns);
	cost_look_up(c, c->m->measured, STAGE_ADAM_GPU, PASS_UPDATE, (double)params, &ns);
	return cost_whole(ns);
}

nsec_t cost_accumulate_gpu(const struct cost *c, uint64_t params)
{
	double ns = (double)params * (c->m->state_bytes_gpu >= 20 ? 10.0 : 6.0) / c->hbm + c->kernel_ns;
	cost_look_up(c, c->m->measured, STAGE_ACCUMULATE_GPU, PASS_BACKWARD, (double)params, &ns);
	return cost_whole(ns);
}

static int op_of(int kind)
{
	return kind == STAGE_ALL_TO_ALL ? OP_ALL_TO_ALL : kind == STAGE_ALL_REDUCE ? OP_ALL_REDUCE : OP_ALL_GATHER;
}

/* What all-to-alls are measured by leaves a member (b->sent), and a part of what it has in all stays. Among more or fewer GPUs than were measured a
 * collective changes as the machine's own law does. */
static double measured_collective(const struct cost *c, int kind, int gpus, double bytes, double law)
{
	double ns = law;
	if (gpus <= 1 || !cost_look_up(c, c->m->measured, kind, PASS_FORWARD, bytes, &ns) || gpus == c->m->measured->gpus)
		return ns;
	struct ranks measured = {.stride = 1, .size = MAX(2, c->m->measured->gpus)};
	double whole = kind == STAGE_ALL_TO_ALL ? bytes * measured.size / (measured.size - 1) : bytes;
	double there = collective_ns(c->m, op_of(kind), &measured, whole);
	return there > 0 ? ns * law / there : ns;
}

nsec_t cost_collective(const struct cost *c, int kind, const struct ranks *ranks, uint64_t bytes)
{
	double counted = kind == STAGE_ALL_TO_ALL ? (double)bytes * (ranks->size - 1) / ranks->size : (double)bytes;
	return cost_whole(measured_collective(c, kind, ranks->size, counted, collective_ns(c->m, op_of(kind), ranks, (double)bytes)));
}

nsec_t cost_under(const struct cost *c, uint32_t tokens)
{
	double ns = 0;
	if (c->m->measured)
		measured_ns(&c->m->measured->table[MEASURED_UNDER][PASS_FORWARD], (double)tokens * c->n->d_model, &ns);
	return cost_whole(ns);
}

nsec_t cost_all_reduce(const struct cost *c, uint64_t bytes, int gpus)
{
	return cost_collective(c, STAGE_ALL_REDUCE, &(struct ranks){.stride = 1, .size = gpus}, bytes);
}

nsec_t cost_all_gather(const struct cost *c, uint64_t bytes, int gpus)
{
	return cost_collective(c, STAGE_REDUCE_SCATTER, &(struct ranks){.stride = 1, .size = gpus}, bytes);
}

nsec_t cost_counts(const struct cost *c, uint64_t bytes, int gpus)
{
	return cost_collective(c, STAGE_COUNTS, &(struct ranks){.stride = 1, .size = gpus}, bytes);
}

/* All-to-alls were measured with several experts on each GPU and as many tokens for each: all that came was unpacked, and what stayed was moved. */
static double moved_ns(const struct cost *c, const struct exchange *x, bool node)
{
	const struct measured *measured = c->m->measured;
	double there = 0;
	if (!x->moves)
		return 0;
	if (node && measured && measured->table[STAGE_ALL_TO_ALL][PASS_FORWARD].sizes.n)
		there = (double)x->intra_bytes * (1 + 1.0 / (MAX(2, measured->gpus) - 1));
	return machine_move_ns(c->m) * ((double)x->moved_bytes - there);
}

/* The busiest GPU, adapter and leaf switch of each half say how long it takes. */
nsec_t cost_exchange(const struct cost *c, const struct exchange *x, const struct ranks *set, int algorithm)
{
	struct group_shape g;
	struct crossing way;
	group_shape(c->m, set, &g);
	collective_crossing(c->m, OP_ALL_TO_ALL, algorithm, set, 0, &way);
	bool gather = algorithm == ALGORITHM_GATHER, rail = algorithm == ALGORITHM_RAIL;
	/* uplinks of the leaf switches that one leaf's nodes share */
	double switches = c->m->fabric_rails ? g.adapters : 1;
	way.near_bytes = gather ? (double)x->gather_bytes : rail ? 0 : (double)x->intra_bytes;
	way.far_bytes = gather ? 0 : (double)(rail ? x->rail_bytes : x->inter_bytes) * g.adapters / g.local;
	way.leaf_bytes = gather ? 0 : (double)(rail ? x->rail_leaf_bytes : x->leaf_bytes) * switches / (g.local * g.leaf_nodes);
	way.copy_bytes = gather || rail ? 2 * (double)x->whole_bytes : 0;
	double ns = crossing_ns(c->m, &g, &way);
	if (g.nodes == 1)
		ns = measured_collective(c, STAGE_ALL_TO_ALL, set->size, (double)x->intra_bytes, ns);
	return cost_whole(gather || rail ? ns : fmax(0, ns + moved_ns(c, x, g.nodes == 1)));
}

uint64_t cost_workspace(const struct cost *c, int kind, const struct layer *l, uint32_t tokens)
{
	const struct network *n = c->n;
	bool eager = c->m->kernels == KERNELS_EAGER;
	double per_token = 0, t = tokens;
	switch (kind) {
	case STAGE_MIXER: /* what the backward of one layer needs: q, k, v, context and norms; the scores unless the kernel is fused */
		/* norms, the projections' inputs and dropout masks stay whole in a tensor group: half (arXiv 2205.05198, section 4.2.1) */
		per_token = (eager ? 40.0 : 16.0) * n->d_model * (0.5 + 0.5 / c->tensor);
		if (c->m->attention == ATTENTION_MATERIALISED && l->mixer == MIXER_ATTENTION)
			per_token += 13.0 * n->heads / c->tensor * c->seq_len;
		break;
	case STAGE_EXPERT:
	case STAGE_FFN:
	case STAGE_SHARED:
		per_token = (eager ? 17.0 : 6.0) * inner_size(c, l, kind) + 4.0 * n->d_model;
		break;
	case STAGE_HEAD: /* eager: fp16 logits and gradient, fp32 copy, log-softmax and gradient; fused: chunks of 4096 tokens, logits and gradient */
		per_token = (eager ? 16.0 : 4.0) * n->vocab / c->tensor;
		t = eager ? t : fmin(t, 4096);
		break;
	default:
		break;
	}
	return (uint64_t)(per_token * t);
}
