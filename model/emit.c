/* Stages one by one: what each is made of, and its launch behind those it follows. Which there are, and in what order, is schedule.c's. */
#include "build.h"
#include "infer.h"

static struct stage stage_of(const struct schedule *s, int kind, int pass, int layer, int microbatch, int gpu)
{
	return (struct stage){.kind = (uint8_t)kind,
	                      .pass = (uint8_t)pass,
	                      .step_parity = s->step & 1,
	                      .layer = (uint16_t)layer,
	                      .microbatch = (uint16_t)microbatch,
	                      .expert = -1,
	                      .rank = gpu};
}

struct stage stage_on_gpu(const struct schedule *s, int kind, int pass, int layer, int microbatch, int gpu, enum gpu_stream stream,
                          enum gpu_profile profile)
{
	struct stage st = stage_of(s, kind, pass, layer, microbatch, gpu);
	st.stream = stream_of_gpu(gpu, stream);
	st.profile = profile_of_gpu(gpu, profile);
	return st;
}

struct stage stage_on_node(const struct schedule *s, int kind, int pass, int layer, int microbatch, int gpu, enum node_stream stream,
                           enum node_profile profile)
{
	int node = s->node_of[gpu];
	struct stage st = stage_of(s, kind, pass, layer, microbatch, gpu);
	st.stream = stream_of_node(s->m, node, stream);
	st.profile = profile_of_node(s->m, node, profile);
	return st;
}

void after(struct stage *stage, stage_id predecessor)
{
	if (predecessor == STAGE_NONE)
		return;
	g_assert(stage->n_preds < STAGE_PREDECESSORS);
	stage->preds[stage->n_preds++] = predecessor;
}

stage_id emit(struct schedule *s, struct stage *stage)
{
	if (s->failed)
		return STAGE_NONE;
	stage->id = s->next;
	if (!backend_launch(s->backend, stage, s->error)) {
		s->failed = true;
		return STAGE_NONE;
	}
	s->stream_ns[stage->stream] += stage->cost_ns;
	s->profile_ns[stage->profile] += stage->cost_ns;
	s->launches[stage->rank] += stage->n_kernels;
	return s->last_of[stage->stream] = s->next++;
}

static bool bound_by_memory(int kind)
{
	return kind == STAGE_EMBED || kind == STAGE_PERMUTE || kind == STAGE_COMBINE || kind == STAGE_ADAM_GPU || kind == STAGE_ACCUMULATE_GPU;
}

static enum gpu_profile profile_of_kind(const struct schedule *s, int kind)
{
	if (s->cached || bound_by_memory(kind))
		return PROFILE_MEMORY;
	return kind == STAGE_MIXER ? PROFILE_MIXER : PROFILE_COMPUTE;
}

/* Of a stage of the whole micro-batch. */
static nsec_t compute_ns(const struct schedule *s, int kind, int pass, const struct layer *l, uint32_t tokens, uint32_t *n_kernels)
{
	if (inference(s) && kind == STAGE_HEAD)
		return cost_next_token(s->cost, tokens, n_kernels);
	if (s->cached && kind == STAGE_MIXER)
		return cost_decode_mixer(s->cost, l, tokens, s->cached, n_kernels);
	return cost_compute(s->cost, kind, pass, l, tokens, n_kernels);
}

stage_id emit_compute(struct schedule *s, int kind, int pass, int layer, int microbatch, int gpu, stage_id predecessor)
{
	const struct layer *l = kind == STAGE_EMBED || kind == STAGE_HEAD ? NULL : &s->n->layer[layer];
	struct stage st = stage_on_gpu(s, kind, pass, layer, microbatch, gpu, STREAM_COMPUTE, profile_of_kind(s, kind));
	st.tokens = inference(s) && kind == STAGE_HEAD && !s->cached ? (uint32_t)s->plan.microbatch : s->tokens;
	st.cost_ns = compute_ns(s, kind, pass, l, st.tokens, &st.n_kernels);
	st.block = l && l->experts ? &s->moe[layer].block[microbatch] : NULL;
	after(&st, predecessor);
	after_awaited(s, &st);
	if (s->p->dispatch == DISPATCH_MASK && (kind == STAGE_PERMUTE || kind == STAGE_COMBINE)) {
		const struct block *b = &s->moe[layer].block[microbatch];
		uint32_t kernels;
		st.cost_ns += cost_mask(s->cost, kind, pass, l, st.tokens, (uint64_t)b->capacity * (uint64_t)l->experts, &kernels);
		st.n_kernels += kernels;
	}
	return s->gpu[gpu].last_compute = emit(s, &st);
}

void compute_everywhere(struct schedule *s, int kind, int pass, int layer, int microbatch, const stage_id *preds)
{
	for (int g = 0; g < s->gpus; g++)
		emit_compute(s, kind, pass, layer, microbatch, g, preds ? preds[g] : STAGE_NONE);
}

void emit_collective(struct schedule *s, const struct collective *c, const stage_id *preds, stage_id *out)
{
	const struct group *group = c->group ? c->group : &s->all;
	int size = group->ranks.size, stride = group->ranks.stride, span = size * stride;
	enum gpu_stream stream = c->of_copies && s->p->reduction_stream == REDUCTIONS_OWN ? STREAM_REDUCTION : STREAM_COLLECTIVE;
	for (int g = 0; g < s->gpus; g++) {
		int first = g / span * span + g % stride, members = MIN(size, (s->gpus - 1 - first) / stride + 1);
		struct stage st = stage_on_gpu(s, c->kind, c->pass, c->layer, c->microbatch, g, stream, PROFILE_COLLECTIVE);
		st.profile = group->profile + (uint32_t)g;
		st.expert = c->expert;
		st.part = c->part;
		st.group = s->group + 1 + (uint32_t)(g / span * stride + g % stride);
		st.group_size = (uint32_t)members;
		st.bytes = c->bytes_of ? c->bytes_of[g] : c->bytes;
		st.cost_ns = c->bytes_of ? c->cost_of[g] : c->cost_ns;
		st.n_kernels = (uint32_t)(s->collective_kernels * MAX(1, c->messages));
		after(&st, preds ? preds[g] : s->gpu[g].last_compute);
		after(&st, c->also ? c->also[g] : STAGE_NONE);
		stage_id id = emit(s, &st);
		if (out)
			out[g] = id;
	}
	s->group += (uint32_t)((s->gpus + span - 1) / span * stride);
}

/* Expert-parallel sets exchange each among themselves, and in them GPUs of equal place in their units. */
void emit_all_to_all(struct schedule *s, int pass, int layer, int microbatch, int chunk, stage_id *out)
{
	const struct block *b = &s->moe[layer].block[microbatch];
	int set = s->plan.expert_parallel, unit = s->plan.unit;
	if (exchanges(s) && !b->travels && b->times.hierarchical) {
		struct stage st = stage_on_gpu(s, STAGE_ALL_TO_ALL, pass, layer, microbatch, 0, STREAM_COLLECTIVE, PROFILE_COLLECTIVE);
		st.part = chunk;
		st.block = b;
		st.tokens = s->tokens / (uint32_t)b->chunks;
		st.n_kernels = (uint32_t)s->collective_kernels;
		emit_hierarchical(s, &st, out);
		return;
	}
	for (int g = 0; g < s->gpus; g++) {
		if (!exchanges(s) || b->travels) {
			if (out)
				out[g] = STAGE_NONE;
			continue;
		}
		struct stage st = stage_on_gpu(s, STAGE_ALL_TO_ALL, pass, layer, microbatch, g, STREAM_COLLECTIVE, PROFILE_COLLECTIVE);
		st.profile = s->exchanging + (uint32_t)g;
		st.group = s->group + 1 + (uint32_t)(g / set * unit + g % unit);
		st.group_size = (uint32_t)(set / unit);
		st.bytes = b->sent[g] / (uint64_t)b->chunks;
		st.part = chunk;
		st.block = b;
		st.tokens = s->tokens / (uint32_t)b->chunks;
		st.cost_ns = b->times.linear_ns;
		st.n_kernels = (uint32_t)s->collective_kernels;
		after(&st, s->gpu[g].last_compute);
		s->returned[g] = emit(s, &st);
		if (out)
			out[g] = s->returned[g];
	}
	s->group += (uint32_t)(s->gpus / set * unit);
}
