/* What the updates of CPU Adam in a run tell. */
#pragma once

#include "model/cost.h"
#include "traces/trace.h"

/* By index of span: what an update, or an accumulation, would have taken over what it took, had no copy been beside it and the memory as fast as m's
 * tables say it is for; 1 for all else. `alone`: how fast CPU Adam was alone at the time, billion parameters/s; 0: as usual. Owned by the caller. */
double *updates_usual(const struct trace *t, const struct machine *m, double alone);
/* By index of span: an update is one of the first after a rest. Owned by the caller. */
bool *updates_waking(const struct trace *t);

/* How many times as fast the updates of some steps were as `cost` has them, all of them together and copies beside them counted off; but for the
 * first after a rest. Of one node, without micro-batches. 0: there are none. */
double updates_pace(const struct trace *t, const struct machine *m, const struct network *n, const struct cost *cost);
