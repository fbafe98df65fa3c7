/* The schedule: what a training step does, as stages, built a layer at a time through a backend because placement needs the gate's counts. */
#pragma once

#include "autoptr.h"
#include "backend.h"
#include "cost.h"
#include "memory.h"
#include "plan.h"
#include "resource.h"
#include "scenario.h"

#define MAX_CHUNKS 8 /* pipeline degree */

/* One entry of a GPU's list: an expert and the tokens it gets there. */
struct expert_work {
	int32_t expert;
	uint32_t tokens;
};

/* One chunk of an all-to-all, as it was chosen. */
struct exchange_times {
	bool hierarchical;
	nsec_t linear_ns, gather_ns, rail_ns;
};

/* One MoE layer of one micro-batch as it was routed and placed; its backward runs on the same. Stages point to it; it holds until the layer is routed
 * for the same micro-batch of the next step. */
struct block {
	size_t room;                 /* entries that `work` can hold */
	struct expert_work *work;    /* by GPU, first[g] .. first[g + 1] */
	int *first;                  /* (G + 1) */
	uint64_t *sent;              /* (G) bytes of one all-to-all */
	struct exchange exchange;    /* bytes of a whole all-to-all */
	struct exchange_times times; /* of one chunk of it */
	uint64_t *gathered, *railed; /* (G) bytes sent in each half of a whole hierarchical one; NULL where there is none */
	int chunks;
	bool travels;      /* experts come to the tokens: each GPU computes all experts, in their order, on its own tokens */
	int slices;        /* that each expert is cut into, of the GPUs it has */
	int shadows;       /* experts at the end of each GPU's list that were copied to it for its own tokens */
	uint32_t capacity; /* tokens of one GPU for one expert, padded; 0: exact */
};

/* Slots of uploaded experts in HBM: 0 .. plan.slots - 1 are the ring that uploads go round; the pinned copies of MoE layer i (counted among the MoE
 * layers) follow, at plan.slots + i * P .. + P - 1 with P = memory_pinned_experts. Gradient slots: GRADIENT_SLOTS of them, in turn. */
#define GRADIENT_SLOTS 2

struct schedule;

/* Chooses what the policy leaves open (expert home, micro-batch, split, pipeline degree) and checks that it fits: ESMOE_ERROR_FIT names tier, need,
 * room and the most experts that would fit, and *overflow (may be NULL) receives the enum memory_tier that is too small, otherwise -1. The scenario
 * must outlive the schedule. Owned by the caller. */
struct schedule *schedule_new(const struct scenario *scenario, int *overflow, GError **error) G_GNUC_WARN_UNUSED_RESULT;
void schedule_free(struct schedule *schedule);
AUTOPTR(schedule)

/* Launches the next step, always on the same backend: of training, or of inference the prefill, then a decode step for each further token, at most
 * scenario.generate together. */
bool schedule_step(struct schedule *schedule, struct backend *backend, GError **error) G_GNUC_WARN_UNUSED_RESULT;

/* Waits until all stages launched so far have ended. */
bool schedule_wait(struct schedule *schedule, struct backend *backend, GError **error) G_GNUC_WARN_UNUSED_RESULT;

/* Borrowed views. */
const struct plan *schedule_plan(const struct schedule *schedule);
const struct memory *schedule_memory(const struct schedule *schedule);
const struct cost *schedule_cost(const struct schedule *schedule);
const struct resources *schedule_resources(const struct schedule *schedule);
int schedule_expert_home(const struct schedule *schedule); /* enum expert_home, never auto */
int schedule_microbatches(const struct schedule *schedule);
bool schedule_asks_gates(const struct schedule *schedule); /* so that all counts of a step are known when it has been launched */

/* Where an expert was computed last, and which GPU keeps a copy of it in HBM; -1: none. */
struct expert_place {
	int last, pinned;
};

/* Those of all MoE layers' experts, layer by layer, between two steps: what the next one places by. How many there are; `out` may be NULL. */
size_t schedule_places(const struct schedule *schedule, struct expert_place *out);
/* Of a schedule that begins in the middle of a run, between two of its steps. False, and nothing changes: a GPU that is not there, or one with more
 * copies of a layer than it has room for. */
bool schedule_set_places(struct schedule *schedule, const struct expert_place *places) G_GNUC_WARN_UNUSED_RESULT;

/* What was chosen for each load, over the MoE layers and micro-batches of the last step (of inference: what was routed last). */
struct choices {
	int layers;                 /* routed, micro-batches counted apart; those whose experts travel are in no other count */
	int degree[MAX_CHUNKS + 1]; /* of them by pipeline degree */
	int hierarchical, travel;
	int shadows;                   /* experts shadowed in all of them together */
	int least_slices, most_slices; /* of an expert */
};
void schedule_choices(const struct schedule *schedule, struct choices *out);

/* The last step built, of inference all steps so far: the longest its launches keep one host thread; and its speed of light, the most of each
 * stream's work at solo speed and each resource's bytes over its capacity. No step on any backend with these costs is shorter. */
nsec_t schedule_launch_ns(const struct schedule *schedule);
nsec_t schedule_light_ns(const struct schedule *schedule);
