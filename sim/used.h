/* What a recorded run took of memory beside what was planned for it. */
#pragma once

#include "model/memory.h"

/* Of one tier: the most that memory.csv ever shows of the fullest GPU, or of the process; and the plan's bytes. */
struct used {
	int tier; /* enum memory_tier */
	uint64_t measured_bytes, predicted_bytes;
};

/* struct used, of the tiers that `csv` (memory.csv, named `file` in errors) knows and the process has to itself: with several nodes HBM alone, with
 * experts on SSD no pageable DRAM, of which the cache fills what it needs. ESMOE_ERROR_INPUT names the line. Owned by the caller. */
GArray *used_of(const char *csv, const char *file, const struct memory *plan, int nodes, GError **error) G_GNUC_WARN_UNUSED_RESULT;
double used_error(const struct used *u); /* predicted over measured, minus 1; 0 of nothing */
