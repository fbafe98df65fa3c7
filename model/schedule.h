/* The schedule: what a training step does, as stages, built a layer at a time through a backend because placement needs the gate's counts. */
#pragma once

#include "autoptr.h"
#include "backend.h"
#include "memory.h"
#include "resource.h"
#include "scenario.h"

struct schedule;

/* Chooses what the policy leaves open (expert home, micro-batch, split, pipeline degree) and checks that it fits: ESMOE_ERROR_FIT names tier, need,
 * room and the most experts that would fit, and *overflow (may be NULL) receives the enum memory_tier that is too small, otherwise -1. The scenario
 * must outlive the schedule. Owned by the caller. */
struct schedule *schedule_new(const struct scenario *scenario, int *overflow, GError **error) G_GNUC_WARN_UNUSED_RESULT;
void schedule_free(struct schedule *schedule);
AUTOPTR(schedule)

/* Launches the next training step; always on the same backend. */
bool schedule_step(struct schedule *schedule, struct backend *backend, GError **error) G_GNUC_WARN_UNUSED_RESULT;

/* Waits until all stages launched so far have ended. */
bool schedule_wait(struct schedule *schedule, struct backend *backend, GError **error) G_GNUC_WARN_UNUSED_RESULT;

/* Borrowed views. */
const struct memory *schedule_memory(const struct schedule *schedule);
const struct resources *schedule_resources(const struct schedule *schedule);
int schedule_expert_home(const struct schedule *schedule); /* enum expert_home, never auto */
int schedule_microbatches(const struct schedule *schedule);

/* The last step built: the longest its launches keep one host thread; and its speed of light, the most of each stream's work at solo speed and each
 * resource's bytes over its capacity. No step on any backend with these costs is shorter. */
nsec_t schedule_launch_ns(const struct schedule *schedule);
nsec_t schedule_light_ns(const struct schedule *schedule);
