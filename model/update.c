/* Gradients and updates of what every data-parallel copy holds, and of the experts at home in HBM. ZeRO (arXiv 1910.02054, sections 5 and 7) cuts
 * optimizer state (1), gradients too (2), parameters too (3) into a part for each copy:
 *
 *     stage   forward, backward of a layer                   behind its backward        end of the step
 *       0                                                    all-reduce                 Adam on all
 *      1, 2                                                  reduce-scatter             Adam on a part, all-gather of the parameters
 *       3     all-gather of its parameters, one layer ahead  reduce-scatter             Adam on a part
 *
 * From stage 2 on nobody keeps whole gradients, so each micro-batch reduces its own. With the optimizer on the host (ZeRO-Offload, arXiv 2101.06840)
 * each GPU brings its part down behind the reduction, the node's threads update the parts, and they go up again before the gather. Experts that
 * several GPUs hold copies of are cut over those. */
#include "build.h"

static bool on_host(const struct schedule *s)
{
	return s->p->dense_optimizer == DENSE_OPTIMIZER_CPU;
}

/* Whether a micro-batch's gradients are reduced by themselves. */
static bool reduces_each(const struct schedule *s)
{
	return (s->p->zero_stage >= 2 || on_host(s)) && !vertical(s);
}

/* Whether sums over micro-batches are of parts that were reduced before; in vertical order a layer's whole gradient waits for its last one. */
static bool sums_parts(const struct schedule *s)
{
	return s->p->zero_stage >= 2 && !vertical(s);
}

static bool last(const struct schedule *s, int microbatch)
{
	return microbatch == s->plan.microbatches - 1;
}

static int copies(const struct schedule *s)
{
	return s->gpus / s->plan.tensor_parallel;
}

/* Of a layer, or of the embedding (-1): what one GPU holds. */
static uint64_t dense_params(const struct schedule *s, int layer)
{
	if (layer < 0)
		return network_embedding_params(s->n) / (uint64_t)s->plan.tensor_parallel;
	return network_dense_share(s->n, &s->n->layer[layer], s->plan.tensor_parallel);
}

static struct memory_share expert_share(const struct schedule *s, int layer)
{
	if (layer < 0 || offloaded(s))
		return (struct memory_share){0, 1};
	return memory_expert_share(s->n, s->m, s->p, &s->n->layer[layer], s->plan.expert_parallel, s->plan.split);
}

/* Each copy keeps a part of the embedding with all that belongs to it. */
static bool cut(const struct schedule *s, int layer)
{
	return layer < 0 && s->p->embedding == EMBEDDING_CUT && copies(s) > 1;
}

static uint64_t part(const struct schedule *s, uint64_t params, int n, int from_stage)
{
	return s->p->zero_stage >= from_stage ? (params + (uint64_t)n - 1) / (uint64_t)n : params;
}

/* Weight tensors with their biases: projections 8, norms 4, gate 1; two a matrix of each FFN. */
static int dense_tensors(const struct schedule *s, int layer)
{
	const struct layer *l = &s->n->layer[MAX(0, layer)];
	return layer < 0 ? 1 : 13 + 2 * ((l->d_ff > 0) + l->shared) * activation_matrices(s->n->activation);
}

static int expert_tensors(const struct schedule *s, int layer)
{
	int units = s->plan.expert_parallel / s->plan.unit, experts = s->moe[layer].experts;
	return experts && !offloaded(s) ? 2 * ((experts + units - 1) / units) * activation_matrices(s->n->activation) : 0;
}

static struct collective among_copies(const struct schedule *s, int kind, int pass, int layer, int microbatch, enum reduced what)
{
	return (struct collective){.kind = kind,
	                           .pass = pass,
	                           .layer = MAX(0, layer),
	                           .microbatch = microbatch,
	                           .expert = -1,
	                           .part = what,
	                           .group = &s->copies,
	                           .of_copies = true,

	                           .messages = s->p->fused_communication ? 1 : dense_tensors(s, layer)};
}

static struct collective among_experts(const struct schedule *s, int kind, int pass, int layer, int microbatch)
{
	struct collective c = among_copies(s, kind, pass, layer, microbatch, REDUCED_EXPERTS);
	c.group = &s->moe[MAX(0, layer)].copies;
	if (!s->p->fused_communication && layer >= 0)
		c.messages = expert_tensors(s, layer);
	return c;
}

/* Of an element of a gradient on its way to the other copies: our executor reduces its fp32 sums. */
static uint64_t reduced_bytes(const struct schedule *s)
{
	return s->m->runtime == RUNTIME_ESMOE ? sizeof(float) : element_bytes(s);
}

static void run(struct schedule *s, struct collective *c, uint64_t params, const stage_id *preds, stage_id *out)
{
	c->bytes = (c->kind == STAGE_ALL_REDUCE || c->kind == STAGE_REDUCE_SCATTER ? reduced_bytes(s) : element_bytes(s)) * params;
	c->cost_ns = c->under_ns + c->messages * cost_collective(s->cost, c->kind, &c->group->ranks, c->bytes / (uint64_t)c->messages);
	emit_collective(s, c, preds, out);
}

void params_gather(struct schedule *s, int pass, int layer, int microbatch)
{
	const stage_id *preds = NULL;
	stage_id *out = s->gathered + (size_t)(layer & 1) * (size_t)s->gpus;
	struct memory_share experts = expert_share(s, layer);
	if (s->p->zero_stage < 3 || cut(s, layer))
		return;
	for (int g = 0; g < s->gpus && layer < 0; g++) { /* the first of all, also behind what the host updated */
		s->round[g] = s->gpu[g].awaited == STAGE_NONE ? s->gpu[g].last_compute : s->gpu[g].awaited;
		preds = s->round;
	}
	if (copies(s) > 1) {
		struct collective c = among_copies(s, STAGE_ALL_GATHER, pass, layer, microbatch, layer < 0 ? REDUCED_EMBEDDING : REDUCED_DENSE);
		run(s, &c, dense_params(s, layer), preds, out);
	}
	if (experts.copies > 1 && experts.params) {
		struct collective c = among_experts(s, STAGE_ALL_GATHER, pass, layer, microbatch);
		run(s, &c, experts.params, NULL, out);
	}
}

void params_await(struct schedule *s, int layer)
{
	const stage_id *gathered = s->gathered + (size_t)(layer & 1) * (size_t)s->gpus;
	for (int g = 0; g < s->gpus && s->p->zero_stage >= 3; g++)
		s->gpu[g].gather_awaited = gathered[g];
}

static void stream_params(struct schedule *s, int kind, int pass, int layer, int microbatch, uint64_t params, nsec_t cost_ns, uint32_t kernels,
                          const stage_id *preds)
{
	for (int g = 0; g < s->gpus; g++) {
		struct stage st = stage_on_gpu(s, kind, pass, layer, microbatch, g, STREAM_COMPUTE, PROFILE_MEMORY);
		st.cost_ns = cost_ns;
		st.n_kernels = kernels;
		st.bytes = params * 28;
		after(&st, preds ? preds[g] : STAGE_NONE);
		s->gpu[g].last_compute = emit(s, &st);
	}
}

static void accumulate(struct schedule *s, int layer, int microbatch, uint64_t params, const stage_id *preds)
{
	if (params)
		stream_params(s, STAGE_ACCUMULATE_GPU, PASS_BACKWARD, layer, microbatch, params, cost_accumulate_gpu(s->cost, params), 1, preds);
}

/* Each GPU's part of a layer's gradient comes down, to be added to the sum unless the update follows. */
static void bring_down(struct schedule *s, int layer, int microbatch)
{
	uint64_t params = part(s, dense_params(s, layer), copies(s), 1);
	for (int g = 0; g < s->gpus; g++) {
		struct stage st = stage_on_gpu(s, STAGE_DOWNLOAD, PASS_BACKWARD, MAX(0, layer), microbatch, g, STREAM_DOWNLOAD, PROFILE_DOWN);
		st.bytes = element_bytes(s) * params;
		st.cost_ns = cost_download(s->cost, st.bytes);
		st.n_kernels = (uint32_t)s->copy_kernels;
		after(&st, copies(s) > 1 ? s->reduced[g] : s->gpu[g].last_compute);
		s->gpu[g].brought = emit(s, &st);
		if (last(s, microbatch))
			continue;
		struct stage add = stage_on_node(s, STAGE_ACCUMULATE, PASS_BACKWARD, MAX(0, layer), microbatch, g, STREAM_OPTIMIZER, PROFILE_ADAM);
		add.bytes = 10 * params;
		add.cost_ns = cost_accumulate(s->cost, params);
		after(&add, s->gpu[g].brought);
		s->adam_last[s->node_of[g]] = emit(s, &add);
	}
}

/* Gradients fill buckets, whatever layers they are of; what is left at the embedding goes as it is. */
static void reduce_buckets(struct schedule *s, struct collective *c, int layer)
{
	uint64_t bucket = (uint64_t)s->p->gradient_bucket_mib << 20;
	s->pending += cut(s, layer) ? 0 : reduced_bytes(s) * dense_params(s, layer);
	c->messages = (int)(layer < 0 ? (s->pending + bucket - 1) / bucket : s->pending / bucket);
	uint64_t bytes = layer < 0 ? s->pending : (uint64_t)c->messages * bucket;
	s->pending -= bytes;
	if (c->messages)
		run(s, c, bytes / reduced_bytes(s), NULL, s->reduced);
}

static void reduce_dense(struct schedule *s, int layer, int microbatch)
{
	int kind = s->p->zero_stage ? STAGE_REDUCE_SCATTER : STAGE_ALL_REDUCE;
	struct collective c = among_copies(s, kind, PASS_BACKWARD, layer, microbatch, layer < 0 ? REDUCED_EMBEDDING : REDUCED_DENSE);
	c.under_ns = layer < 0 ? 0 : cost_under(s->cost, s->tokens); /* the backward goes on below */
	if (s->p->gradient_bucket_mib && copies(s) > 1)
		reduce_buckets(s, &c, layer);
	if (cut(s, layer)) {
		c.kind = STAGE_REDUCE_SCATTER;
		run(s, &c, dense_params(s, layer), NULL, s->reduced);
	} else if (copies(s) > 1 && !s->p->gradient_bucket_mib)
		run(s, &c, dense_params(s, layer), NULL, s->reduced);
	if (on_host(s))
		bring_down(s, layer, microbatch);
}

static void reduce_experts(struct schedule *s, int layer, int microbatch)
{
	struct memory_share experts = expert_share(s, layer);
	struct collective c = among_experts(s, s->p->zero_stage ? STAGE_REDUCE_SCATTER : STAGE_ALL_REDUCE, PASS_BACKWARD, layer, microbatch);
	if (experts.copies > 1 && experts.params && !s->moe[layer].block[microbatch].travels) /* else summed one by one (travel.c) */
		run(s, &c, experts.params, NULL, s->reduced);
}

void gradients_ready(struct schedule *s, int layer, int microbatch)
{
	struct memory_share experts = expert_share(s, layer);
	bool brought_down = on_host(s) && reduces_each(s);
	if (microbatch > 0 && !sums_parts(s))
		accumulate(s, layer, microbatch, (brought_down ? 0 : dense_params(s, layer)) + experts.params, NULL);
	if (last(s, microbatch) || reduces_each(s))
		reduce_dense(s, layer, microbatch);
	if (last(s, microbatch) || sums_parts(s))
		reduce_experts(s, layer, microbatch);
}

/* Parameters that this GPU keeps gradients of. */
static uint64_t kept(const struct schedule *s, int from_stage)
{
	uint64_t params = on_host(s) ? 0 : part(s, dense_params(s, -1), copies(s), cut(s, -1) ? 0 : from_stage);
	for (int layer = 0; layer < s->n->layers; layer++) {
		struct memory_share experts = expert_share(s, layer);
		params += on_host(s) ? 0 : part(s, dense_params(s, layer), copies(s), from_stage);
		params += part(s, experts.params, experts.copies, from_stage);
	}
	return params;
}

void gradients_end(struct schedule *s, int microbatch)
{
	if ((reduces_each(s) || cut(s, -1)) && !last(s, microbatch))
		reduce_dense(s, -1, microbatch);
	if (microbatch > 0 && sums_parts(s))
		accumulate(s, 0, microbatch, kept(s, 2), copies(s) > 1 ? s->reduced : NULL);
}

/* Of two collectives on one stream the later. */
static void await_later(struct schedule *s, const stage_id *ids)
{
	for (int g = 0; g < s->gpus; g++) {
		stage_id *awaited = &s->gpu[g].awaited;
		if (*awaited == STAGE_NONE || *awaited < ids[g])
			*awaited = ids[g];
	}
}

/* Each GPU looks up the rows it has for the tokens of all (SE-MoE, arXiv 2205.10034), and gets their gradients. */
void embedding_exchange(struct schedule *s, int pass, int microbatch)
{
	struct collective c = among_copies(s, STAGE_ALL_TO_ALL, pass, -1, microbatch, REDUCED_EMBEDDING);
	if (!cut(s, -1))
		return;
	run(s, &c, (uint64_t)s->tokens * (uint64_t)s->n->d_model, NULL, s->round);
	await_later(s, s->round);
}

void embedding_gather(struct schedule *s, int microbatch)
{
	struct collective c = among_copies(s, STAGE_ALL_GATHER, PASS_FORWARD, -1, microbatch, REDUCED_EMBEDDING);
	if (!cut(s, -1))
		return;
	run(s, &c, dense_params(s, -1), s->begun, s->round);
	await_later(s, s->round);
}

/* Adam of the non-expert parameters on the node's threads, a part a GPU, which goes up when it is done. */
static void update_on_host(struct schedule *s)
{
	uint64_t params = 0;
	for (int layer = -1; layer < s->n->layers; layer++)
		params += part(s, dense_params(s, layer), copies(s), 1);
	for (int g = 0; g < s->gpus; g++) {
		struct stage adam = stage_on_node(s, STAGE_ADAM, PASS_UPDATE, 0, 0, g, STREAM_OPTIMIZER, PROFILE_ADAM);
		adam.bytes = (uint64_t)((double)params * s->m->adam_bytes_per_param);
		adam.part = 1;
		adam.cost_ns = cost_adam(s->cost, params, true);
		after(&adam, s->gpu[g].brought);
		stage_id updated = s->adam_last[s->node_of[g]] = emit(s, &adam);
		struct stage up = stage_on_gpu(s, STAGE_UPLOAD, PASS_UPDATE, 0, 0, g, STREAM_UPLOAD, PROFILE_UP);
		up.bytes = element_bytes(s) * params;
		up.cost_ns = cost_upload(s->cost, up.bytes);
		up.n_kernels = (uint32_t)s->copy_kernels;
		after(&up, updated);
		after(&up, s->gpu[g].last_compute);
		s->gpu[g].awaited = emit(s, &up);
	}
}

/* The updated parts of all copies, before the next step. */
static void gather_updated(struct schedule *s)
{
	uint64_t dense = 0;
	int tensors = 0;
	for (int layer = -1; layer < s->n->layers; layer++) {
		dense += cut(s, layer) ? 0 : dense_params(s, layer);
		tensors += dense_tensors(s, layer);
	}
	for (int g = 0; g < s->gpus; g++)
		s->round[g] = on_host(s) ? s->gpu[g].awaited : s->gpu[g].last_compute;
	struct collective c = among_copies(s, STAGE_ALL_GATHER, PASS_UPDATE, 0, 0, REDUCED_DENSE);
	c.messages = s->p->fused_communication ? 1 : tensors;
	if (copies(s) > 1)
		run(s, &c, dense, s->round, s->round);
	for (int layer = 0; layer < s->n->layers; layer++) {
		struct memory_share experts = expert_share(s, layer);
		struct collective e = among_experts(s, STAGE_ALL_GATHER, PASS_UPDATE, layer, 0);
		if (experts.copies > 1 && experts.params)
			run(s, &e, experts.params, NULL, s->round);
	}
	for (int g = 0; g < s->gpus; g++)
		s->gpu[g].awaited = s->round[g];
}

void update_resident(struct schedule *s)
{
	uint64_t params = kept(s, 1), tensors = 1;
	uint32_t kernels;
	for (int layer = 0; layer < s->n->layers; layer++)
		tensors += (uint64_t)(dense_tensors(s, layer) + expert_tensors(s, layer));
	reduce_dense(s, -1, s->plan.microbatches - 1);
	if (on_host(s))
		update_on_host(s);
	if (params) {
		nsec_t cost_ns = cost_adam_gpu(s->cost, params, tensors, &kernels);
		stream_params(s, STAGE_ADAM_GPU, PASS_UPDATE, 0, 0, params, cost_ns, kernels, s->gpus > 1 ? s->reduced : NULL);
	}
	if (s->p->zero_stage == 1 || s->p->zero_stage == 2)
		gather_updated(s);
}
