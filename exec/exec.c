/* The backend as a run has it: what the stages do is the engine's. */
#include "world.h"

static bool issue_stage(void *engine, const struct stage *stage, struct device_stream *stream, GError **error)
{
	return engine_issue(engine, stage, stream, error);
}

static bool answer_gate(void *engine, const struct gate *gate, uint32_t *tokens, GError **error)
{
	engine_loads(engine, gate->layer, gate->microbatch, tokens);
	return true;
}

struct backend *exec_new(struct device **devices, int count, struct engine *engine, const struct machine *m, GError **error)
{
	const struct issuer issue = {engine, issue_stage, answer_gate};
	return exec_new_issuing(devices, count, &issue, m, error);
}
