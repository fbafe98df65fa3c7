/* How fast CPU Adam is on the memory of this machine, at this moment.
 *
 * Memory whose channels other machines use, too, is slower and faster for seconds at a time, and which pages a process gets of it is another matter
 * of chance. So each run of a calibration that tells what Adam takes stands between two looks at how fast it is alone, and what it took is told for
 * the usual one (host.adam_alone_gparams_per_s), and a run looks at the memory that it got before it plans its updates (host_memory.h). */
#pragma once

#include "adam.h"

/* A block of state, gone through piece by piece, as a run goes through experts. */
struct adam_work {
	float *state;         /* (5, params): master, m, v, gradient, out. Not owned */
	size_t params, piece; /* piece: of one update, at most params */
	int format;
};
/* Beyond the caches of a server, or of what a device of 4-byte elements has beside it; without its state. */
struct adam_work adam_work_of(const struct device_info *info, size_t piece);
size_t adam_work_bytes(const struct adam_work *w);
/* Billion parameters/s of some updates in flight until then, at least one of which counts, however late. */
double adam_work_until(const struct adam_work *w, struct adam_pool *pool, nsec_t until_ns);

/* A block of its own, in pieces of a sixteenth. NULL: no memory. */
struct adam_speed *adam_speed_new(const struct device_info *info, int threads);
void adam_speed_free(struct adam_speed *s);
AUTOPTR(adam_speed)
/* Billion parameters/s, over so many milliseconds. */
double adam_speed_now(const struct adam_speed *s, int ms);
