/* The backend contract: who executes stages. Promises: every launched stage completes once; stages of one stream run in launch order and do not
 * overlap; none starts before its predecessors end; the members of a group start together; time never goes back; after an error the backend can only
 * be freed. */
#pragma once

#include "autoptr.h"
#include "stage.h"

struct backend;

/* A gate's answer is asked for by the stage that gathered the counts and where in the step it stands. */
struct gate {
	stage_id counts; /* the last member of the STAGE_COUNTS group */
	int step, microbatch, layer, experts, top_k;
	uint32_t tokens_per_gpu;
};

struct backend_impl {
	const char *name;
	bool (*launch)(struct backend *b, const struct stage *stage, GError **error);
	bool (*wait)(struct backend *b, stage_id id, GError **error);
	bool (*loads)(struct backend *b, const struct gate *gate, uint32_t *tokens, GError **error);
	void (*free)(struct backend *b);
};

/* Embedded first in every backend. */
struct backend {
	const struct backend_impl *impl;
	stage_id n_launched;
	bool failed;
};

/* Hands a stage over; never waits. The stage is copied. Ids come in order from 0, predecessors are earlier ids. */
bool backend_launch(struct backend *b, const struct stage *stage, GError **error) G_GNUC_WARN_UNUSED_RESULT;
/* The only place that waits: returns when the stage has ended. */
bool backend_wait(struct backend *b, stage_id id, GError **error) G_GNUC_WARN_UNUSED_RESULT;
/* Waits for the counts and fills tokens (G, E): how many of each GPU's tokens go to each expert. Every launcher thread waits. */
bool backend_loads(struct backend *b, const struct gate *gate, uint32_t *tokens, GError **error) G_GNUC_WARN_UNUSED_RESULT;
void backend_free(struct backend *b);
AUTOPTR(backend)
