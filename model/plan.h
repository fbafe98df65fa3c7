/* What a policy leaves open, decided before anything runs: home of the experts, micro-batches, groups, pipeline degree; and whether it fits. */
#pragma once

#include "memory.h"
#include "scenario.h"

struct plan {
	int home;  /* enum expert_home, never auto */
	int slots; /* of uploaded experts in HBM */
	int microbatches;
	int microbatch;      /* sequences of one */
	uint32_t tokens;     /* of one GPU in one micro-batch; the GPUs of a tensor group have the same ones */
	uint32_t routed;     /* of them, those that the GPU sends to experts: all, or its share of the tensor group's */
	int expert_parallel; /* GPUs that share one set of experts */
	int tensor_parallel; /* GPUs side by side that cut every matrix among them and work on the same sequences */
	int unit;            /* GPUs side by side that act as one towards the experts: a tensor group that cuts them, or 1 */
	int split;           /* SPLIT_DATA, SPLIT_MODEL or SPLIT_ADAPTIVE, where a layer has fewer experts than that */
	int shadowed;        /* experts a layer, at most, that are copied to every GPU: the policy's, or as many as HBM holds copies of */
	double pinned_share; /* the policy's, or the part of it that HBM holds */
	int overflow;        /* enum memory_tier that is too small, -1: it fits */
	struct memory memory;
};

/* Stages that may be launched: the simulator keeps about 112 bytes of each, so 7 GiB, and their ids have 32 bits. */
#define STAGES_MOST (1 << 26)

/* ESMOE_ERROR_FIT names tier, need, room and the most experts that would fit; ESMOE_ERROR_INPUT a combination of knobs that has no meaning, or a
 * step of more than STAGES_MOST stages. *out is filled in all cases as far as it goes. */
bool plan_make(const struct scenario *s, struct plan *out, GError **error) G_GNUC_WARN_UNUSED_RESULT;

/* What of the scenario does not go with experts that travel or are copied, in words (travel.c); NULL: nothing. */
const char *travel_refusal(const struct scenario *s);

/* The most experts a layer with which the scenario fits, 0: not even one. */
int plan_most_experts(const struct scenario *s);

/* Stages of one step, or of all steps of an inference, nearly: experts that will get no token are counted, and one chunk where the pipeline degree is
 * left open. */
double plan_stages(const struct scenario *s, const struct plan *plan);
