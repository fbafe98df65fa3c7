/* How running stages share resources: one interface, two rules. Rates are shares 0..1 of a stage's solo speed. */
#pragma once

#include "model/resource.h"

struct share;

/* max-min: raise all together, freeze those that touch a saturated resource, go on. measured: users of host DRAM are first capped at what the
 * machine's contention table says for their mix over what it says for each alone, then max-min over all resources but that DRAM. Owned by the caller;
 * `r` and `m` are borrowed. */
struct share *share_new(const struct machine *m, const struct resources *r);
void share_free(struct share *share);

/* A flow starts or stops; `flow` is the caller's dense small id. Rates are recomputed by share_settle, once for all changes at one instant. */
void share_start(struct share *share, uint32_t flow, uint32_t profile);
void share_stop(struct share *share, uint32_t flow);

/* Recomputes what the changes since the last call touch; returns the flows whose rate changed or that are new, *n of them, valid until the next call.
 */
const uint32_t *share_settle(struct share *share, uint32_t *n);
double share_rate(const struct share *share, uint32_t flow);
