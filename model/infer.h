/* The steps of inference, and the ring of slots that its experts may come through. */
#pragma once

#include "stage.h"

struct schedule;

/* Launches the next step: the prefill, then a decode step for each further token. At most scenario.generate steps. */
void infer_step(struct schedule *s);

/* Uploads the expert one ring further on into the slot that has become free, if a later step will use it. */
void ring_load(struct schedule *s, int gpu);
/* The upload that brought the expert whose turn it is, and its slot. */
stage_id ring_next(const struct schedule *s, int gpu, int *slot);
/* Its turn is over: `user` is the stage that computed with it, or STAGE_NONE. */
void ring_pass(struct schedule *s, int gpu, stage_id user);
