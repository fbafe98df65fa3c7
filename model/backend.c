/* Thin checked wrappers around a backend's table. They hold what is the same in every world: which stages a schedule may hand over, and that nothing
 * but freeing follows an error. A breach is a bug of the schedule, never of the user's input, and therefore an assertion. */
#include "backend.h"

static void stage_check(const struct backend *b, const struct stage *stage)
{
	g_assert(stage->id == b->n_launched);
	g_assert(stage->kind < N_STAGE_KINDS && stage->pass < N_STAGE_PASSES);
	g_assert(stage->cost_ns >= 0 && stage->rank >= 0);
	g_assert(stage->group == 0 || stage->group_size > 0);
	g_assert(stage->n_preds <= STAGE_PREDECESSORS);
	for (int i = 0; i < stage->n_preds; i++)
		g_assert(stage->preds[i] < stage->id);
}

bool backend_launch(struct backend *b, const struct stage *stage, GError **error)
{
	g_assert(!b->failed);
	stage_check(b, stage);
	b->failed = !b->impl->launch(b, stage, error);
	if (!b->failed)
		b->n_launched++;
	return !b->failed;
}

bool backend_wait(struct backend *b, stage_id id, GError **error)
{
	g_assert(!b->failed && id < b->n_launched);
	b->failed = !b->impl->wait(b, id, error);
	return !b->failed;
}

bool backend_loads(struct backend *b, const struct gate *gate, uint32_t *tokens, GError **error)
{
	g_assert(!b->failed && gate->counts < b->n_launched);
	g_assert(gate->step >= 0 && gate->microbatch >= 0 && gate->layer >= 0);
	g_assert(gate->top_k > 0 && gate->top_k <= gate->experts);
	b->failed = !b->impl->loads(b, gate, tokens, error);
	return !b->failed;
}

void backend_free(struct backend *b)
{
	if (b)
		b->impl->free(b);
}
