/* What a policy leaves open, decided before anything runs: home of the experts, micro-batches, groups, pipeline degree; and whether it fits. */
#pragma once

#include "memory.h"
#include "scenario.h"

struct plan {
	int home; /* enum expert_home, never auto */
	int microbatches;
	int microbatch;      /* sequences of one */
	uint32_t tokens;     /* of one GPU in one micro-batch */
	int expert_parallel; /* GPUs that share one set of experts */
	int split;           /* SPLIT_DATA or SPLIT_MODEL, where a layer has fewer experts than that */
	double pinned_share; /* the policy's, or the part of it that HBM holds */
	int overflow;        /* enum memory_tier that is too small, -1: it fits */
	struct memory memory;
};

/* ESMOE_ERROR_FIT names tier, need, room and the most experts that would fit; ESMOE_ERROR_INPUT a combination of knobs that has no meaning. *out is
 * filled in both cases as far as it goes. */
bool plan_make(const struct scenario *s, struct plan *out, GError **error) G_GNUC_WARN_UNUSED_RESULT;

/* The most experts a layer with which the scenario fits, 0: not even one. */
int plan_most_experts(const struct scenario *s);
