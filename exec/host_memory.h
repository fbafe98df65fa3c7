/* The host memory of a run, and how fast CPU Adam is on it (host.adam_share and host.adam_pace of its run.ini).
 *
 *     look |  step 0  | steps that tell   | steps that are recorded |              real GPUs, and steps before the recorded ones
 *     look |  steps                  look | steps that are recorded | look         others, and runs of a calibration
 *
 * Steps tell better than looks: in 15 runs on H200 the updates of four recorded steps were within 1.6 % on average (4.3 % at most) of those of the
 * four before them, looks before and after all eight within 3.7 % (16 %), what copies cost counted off as exec/updates.c does (the eleven runs of
 * 2026-11-29 and four of -30 that are not in tests/h200, by a script that is not in the repository). But what calibration has to tell is what such
 * updates take. */
#pragma once

#include "device.h"
#include "model/memory.h"
#include "model/scenario.h"
#include "run.h"

struct host_memory;

/* Claims (claim.h) what is planned, where that is much and GPUs are real; looks how fast CPU Adam is where experts are `offloaded` and sc's machine
 * says how fast it was alone in calibration, into adam_share: the slowest and the fastest of that stay where they were. Tells o->note what is far,
 * and another speed. Borrows its arguments. Owned by the caller. */
struct host_memory *host_memory_open(const struct scenario *sc, const struct memory *planned, bool offloaded, const struct device_info *info,
                                     const struct run_options *o);
void host_memory_free(struct host_memory *h);
AUTOPTR(host_memory)
/* Whether it has to be looked at where the recorded steps begin and end, while nothing else runs; and does so. */
bool host_memory_wants_looks(const struct host_memory *h);
void host_memory_look(struct host_memory *h);
/* A step that ended, by its spans (struct span), and how many there are until the recorded ones begin: 0, it is the first of them. */
void host_memory_step(struct host_memory *h, const GArray *spans, uint64_t before);
/* What all that says of the recorded steps, into adam_pace. */
void host_memory_settle(const struct host_memory *h);
