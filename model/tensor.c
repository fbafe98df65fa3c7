/* A tensor group's exchanges (Megatron, arXiv 1909.08053, section 3; DeepSpeed-TED, arXiv 2303.06318, section 5). Its t GPUs work on the same tokens,
 * each with its part of every matrix, so partial results are added up behind mixer, FFN and experts:
 *
 *     cut       all-to-all                 experts  all-reduce  all-to-all                 each of t GPUs sends all tokens of the group
 *     dropped   all-to-all/t  all-gather   experts  all-reduce  all-to-all/t  all-gather   each sends its share, the group gathers
 *     whole     all-to-all/t               experts              all-to-all/t  all-gather   experts are not cut, each GPU's work on its share
 *
 * The backward is the mirror: the gradient of a gather drops, that of dropping gathers, and what entered cut matrices is added up. */
#include "build.h"

static bool alone(const struct schedule *s)
{
	return s->plan.tensor_parallel == 1;
}

void tensor_reduce(struct schedule *s, int pass, int layer, int microbatch, bool awaited)
{
	if (alone(s))
		return;
	struct collective c = {.kind = STAGE_ALL_REDUCE,
	                       .pass = pass,
	                       .layer = layer,
	                       .microbatch = microbatch,
	                       .expert = -1,
	                       .part = REDUCED_PARTIAL,
	                       .group = &s->tensor};
	c.bytes = (uint64_t)s->n->d_model * element_bytes(s) * s->tokens;
	c.cost_ns = cost_collective(s->cost, c.kind, &s->tensor.ranks, c.bytes);
	emit_collective(s, &c, NULL, s->reduced);
	for (int g = 0; g < s->gpus && awaited; g++)
		s->gpu[g].awaited = s->reduced[g];
}

/* Rows that the experts of a GPU work on, and those that come back to it: all of its unit's, padded to the capacity. */
static uint64_t rows_of_experts(const struct block *b, int gpu)
{
	uint64_t rows = 0;
	for (int i = b->first[gpu]; i < b->first[gpu + 1]; i++)
		rows += b->work[i].tokens;
	return rows;
}

static uint64_t rows_back(const struct schedule *s, const struct block *b, int layer)
{
	const struct layer *l = &s->n->layer[layer];
	return b->capacity ? (uint64_t)b->capacity * (uint64_t)l->experts : (uint64_t)routed(s) * (uint64_t)l->top_k;
}

/* One chunk's collective in each tensor group, on rows of the experts, or on those that come back. */
static void exchange_rows(struct schedule *s, int kind, int pass, int layer, int microbatch, bool back, stage_id *out)
{
	const struct block *b = &s->moe[layer].block[microbatch];
	uint64_t row = (uint64_t)s->n->d_model * element_bytes(s);
	struct collective c = {.kind = kind,
	                       .pass = pass,
	                       .layer = layer,
	                       .microbatch = microbatch,
	                       .expert = -1,
	                       .part = REDUCED_PARTIAL,
	                       .group = &s->tensor,
	                       .bytes_of = s->received,
	                       .cost_of = s->load_ns};
	int tensor = s->plan.tensor_parallel;
	for (int g = 0; g < s->gpus; g++) {
		bool first = g % tensor == 0;
		uint64_t rows = !first ? 0 : back ? rows_back(s, b, layer) * (uint64_t)(tensor / s->plan.unit) : rows_of_experts(b, g);
		s->received[g] = first ? row * rows / (uint64_t)b->chunks : s->received[g - 1];
		s->load_ns[g] = first ? cost_collective(s->cost, kind, &s->tensor.ranks, s->received[g]) : s->load_ns[g - 1];
	}
	emit_collective(s, &c, NULL, out);
}

void tensor_dispatch(struct schedule *s, int pass, int layer, int microbatch, int chunk, stage_id *arrived)
{
	emit_all_to_all(s, pass, layer, microbatch, chunk, arrived);
	if (!alone(s) && s->p->all_to_all == ALL_TO_ALL_DROPPED && exchanges(s))
		exchange_rows(s, STAGE_ALL_GATHER, pass, layer, microbatch, false, arrived);
}

void tensor_return(struct schedule *s, int pass, int layer, int microbatch, int chunk)
{
	bool cut = s->plan.unit > 1, gathers = !cut || (s->p->all_to_all == ALL_TO_ALL_DROPPED && exchanges(s));
	if (!alone(s) && cut)
		exchange_rows(s, STAGE_ALL_REDUCE, pass, layer, microbatch, false, s->returned);
	emit_all_to_all(s, pass, layer, microbatch, chunk, NULL);
	if (!alone(s) && gathers)
		exchange_rows(s, STAGE_ALL_GATHER, pass, layer, microbatch, true, s->returned);
}
