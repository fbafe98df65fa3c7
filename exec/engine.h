/* What each stage does: the tensors of a run, and the operations a stage queues on its stream. */
#pragma once

#include "data.h"
#include "device.h"
#include "model/schedule.h"
#include "store.h"

struct engine;

struct engine_options {
	uint64_t seed;        /* of the initial parameters */
	float lr, balance, z; /* learning rate; weights of the load-balancing and the z-loss */
	const char *ssd_folder;
	const struct routing *imposed; /* where tokens go, whatever the gate says; NULL: as it says */
	bool grad_check;               /* keep gradients: Adam does nothing */
	struct ranks *ranks;           /* of which this process is one; NULL: it is the only one */
};

/* devices (G): NULL where another process has it; those here are whole nodes. All arguments are borrowed; the schedule's plan fixes all sizes.
 * ESMOE_ERROR_FIT names what did not fit the arena; ESMOE_ERROR_INPUT a network that
 * cannot be run (Mamba). */
struct engine *engine_new(struct device **devices, struct device_group *group, const struct scenario *sc, struct schedule *schedule,
                          const struct data *data, const struct engine_options *o, GError **error) G_GNUC_WARN_UNUSED_RESULT;
void engine_free(struct engine *e);
AUTOPTR(engine)

/* Whether it is training, of a network that the engine knows, whatever the policy; ESMOE_ERROR_INPUT says what it is instead. */
bool engine_knows(const struct scenario *sc, GError **error) G_GNUC_WARN_UNUSED_RESULT;

/* Bytes of each GPU's arena that the engine, and the GEMMs that it queues, would take on such a device under this schedule's plan. */
uint64_t engine_bytes(const struct device_info *device, const struct scenario *sc, const struct schedule *schedule);

/* Host memory that it took: pinned, and what else is at home in DRAM. */
uint64_t engine_pinned_bytes(const struct engine *e);
uint64_t engine_pageable_bytes(const struct engine *e);

/* Begins a step: its tokens are read, its loss starts at zero. The first call goes with the schedule's first step; step N + 2 begins after N has
 * ended. Tokens that cannot be read, or loads that a file lacks, fail the step's first stage. */
void engine_begin(struct engine *e, uint64_t step);

/* Chooses where the stage will find its expert, and whom it waits for beside its predecessors: in launch order, by the thread that launches. False:
 * it cannot be launched, as store_launch says. */
bool engine_launch(struct engine *e, const struct stage *stage, struct store_places *at, GError **error) G_GNUC_WARN_UNUSED_RESULT;
/* Queues the operations of a stage that was launched. GPU streams: on `stream`, returns at once. Node streams (Adam, accumulate, SSD): runs them, on
 * the calling worker; Adam may still be at work when it returns and leaves in *pending what engine_settle then waits for, else 0. */
bool engine_issue(struct engine *e, const struct stage *stage, const struct store_places *at, struct device_stream *stream, uint64_t *pending,
                  GError **error) G_GNUC_WARN_UNUSED_RESULT;
/* The stage has done what it left pending. From any thread. */
void engine_settle(struct engine *e, const struct stage *stage, uint64_t pending);

/* After a STAGE_COUNTS (or, with one GPU, its gate) has ended: tokens (G, E) of the layer and micro-batch. */
void engine_loads(const struct engine *e, int layer, int microbatch, uint32_t *tokens);

/* Why the tokens of the step begun last could not be read; NULL: they were. */
const GError *engine_unread(const struct engine *e);

/* After one of the last two steps begun has ended: what a GPU that is here adds to its mean loss over all tokens (cross entropy alone). */
float engine_loss_of(const struct engine *e, uint64_t step, int gpu);
/* After the step begun last has ended: the sum of all. */
double engine_loss(const struct engine *e);
/* The z-loss before its weight, and how well each GPU balances its own tokens (the loss balances those of all GPUs together): sums over layers, means
 * over GPUs and micro-batches. */
void engine_aux(const struct engine *e, double *balance, double *z);

/* Parameters and optimizer state while nothing runs, in a fixed order that does not depend on GPUs, homes or placement: for checkpoints, gradient
 * checks and tests. Each tensor: name, n elements, fp32 master, m, v, gradient (NULL unless grad_check keeps it). fn returns false to stop. With
 * several processes all call it; fn then sees what is elsewhere, too, but only on rank 0, unless `write_back`: that each rank has to know by itself.
 */
typedef bool (*engine_tensor_fn)(const char *name, size_t n, float *master, float *m, float *v, float *gradient, void *user, GError **error);
bool engine_each(struct engine *e, bool write_back, engine_tensor_fn fn, void *user, GError **error) G_GNUC_WARN_UNUSED_RESULT;
