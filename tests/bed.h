/* A simulator on a machine by hand, and stages for it. */
#pragma once

#include "by_hand.h"
#include "sim/sim.h"

#include <criterion/criterion.h>

static const struct sim_options bare __attribute__((unused)) = {.no_launch = true, .no_sync = true, .no_event = true};

struct bed {
	struct machine m;
	struct resources *r;
	struct backend *b;
	uint32_t groups;
};

static inline void bed_init(struct bed *bed, struct machine m, const struct sim_options *o)
{
	bed->m = m;
	bed->r = resources_by_hand(&bed->m, 32, 100);
	bed->b = sim_new(&bed->m, bed->r, NULL, o);
	bed->groups = 0;
}

static inline void bed_clear(struct bed *bed)
{
	backend_free(bed->b);
	resources_by_hand_free(bed->r);
}

static inline stage_id add(struct bed *bed, struct stage stage)
{
	GError *error = NULL;
	stage.id = bed->b->n_launched;
	cr_assert(backend_launch(bed->b, &stage, &error));
	return stage.id;
}

static inline void await(struct bed *bed, stage_id id)
{
	GError *error = NULL;
	cr_assert(backend_wait(bed->b, id, &error), "%s", error ? error->message : "no words");
}

/* A stage on one of a GPU's streams, with at most two predecessors (STAGE_NONE: none). */
static inline struct stage on_gpu(int gpu, enum gpu_stream stream, nsec_t cost_ns, stage_id a, stage_id b)
{
	static const uint8_t kinds[] = {STAGE_EXPERT, STAGE_UPLOAD, STAGE_DOWNLOAD, STAGE_ALL_TO_ALL};
	static const uint8_t profiles[] = {PROFILE_COMPUTE, PROFILE_UP, PROFILE_DOWN, PROFILE_COLLECTIVE};
	struct stage stage = {
	    .kind = kinds[stream],
	    .rank = gpu,
	    .expert = -1,
	    .stream = stream_of_gpu(gpu, stream),
	    .profile = profile_of_gpu(gpu, profiles[stream]),
	    .n_kernels = 1,
	    .cost_ns = cost_ns,
	};
	if (a != STAGE_NONE)
		stage.preds[stage.n_preds++] = a;
	if (b != STAGE_NONE)
		stage.preds[stage.n_preds++] = b;
	return stage;
}

static inline struct stage adam_on(const struct machine *m, int node, int rank, nsec_t cost_ns, stage_id a)
{
	struct stage stage = on_gpu(rank, STREAM_DOWNLOAD, cost_ns, a, STAGE_NONE);
	stage.kind = STAGE_ADAM;
	stage.stream = stream_of_node(m, node, STREAM_OPTIMIZER);
	stage.profile = profile_of_node(m, node, PROFILE_ADAM);
	stage.n_kernels = 0;
	return stage;
}

static inline void spans(const struct bed *bed, stage_id id, nsec_t start_ns, nsec_t end_ns)
{
	cr_assert_eq(sim_start_ns(bed->b, id), start_ns, "stage %u starts at %ld, not %ld", id, (long)sim_start_ns(bed->b, id), (long)start_ns);
	cr_assert_eq(sim_end_ns(bed->b, id), end_ns, "stage %u ends at %ld, not %ld", id, (long)sim_end_ns(bed->b, id), (long)end_ns);
}
