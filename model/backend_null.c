/* A backend without time and devices. It keeps nothing but the caller's record of the stages, so it also shows how little a backend must have. */
#include "backend_null.h"

struct backend_null {
	struct backend base;
	const struct routing *routing;
	int gpus;
	GArray *record;
};

static struct backend_null *null_of(struct backend *b)
{
	return (struct backend_null *)b;
}

static bool null_launch(struct backend *b, const struct stage *stage, GError **error)
{
	if (null_of(b)->record)
		g_array_append_vals(null_of(b)->record, stage, 1);
	return true;
}

static bool null_wait(struct backend *b, stage_id id, GError **error)
{
	return true;
}

static bool null_loads(struct backend *b, const struct gate *gate, uint32_t *tokens, GError **error)
{
	const struct backend_null *null = null_of(b);
	return routing_loads(null->routing, gate->step, gate->microbatch, gate->layer, null->gpus, gate->experts, gate->top_k, gate->tokens_per_gpu,
	                     tokens, error);
}

static void null_free(struct backend *b)
{
	g_free(null_of(b));
}

static const struct backend_impl null_impl = {
    .name = "null",
    .launch = null_launch,
    .wait = null_wait,
    .loads = null_loads,
    .free = null_free,
};

struct backend *backend_null_new(const struct routing *routing, int gpus)
{
	struct backend_null *null = g_new0(struct backend_null, 1);
	null->base.impl = &null_impl;
	null->routing = routing;
	null->gpus = gpus;
	return &null->base;
}

void backend_null_record(struct backend *b, GArray *stages)
{
	g_assert(b->impl == &null_impl);
	null_of(b)->record = stages;
}
