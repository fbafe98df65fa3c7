/* CPU Adam is as fast as the memory that a run got. */
#include "host_memory.h"

#include "claim.h"

#include <math.h>

#define MUCH ((uint64_t)1 << 30)
#define LITTLE_SHARE (1.0 / 32) /* blocks do not fit without gaps */

static void tell(const struct run_options *o, char *line)
{
	if (o->note)
		o->note(line, o->user);
	g_free(line);
}

/* Both sockets' channels work at once, and as long as the nearer one ends last, its share of the pages is the time: where memory alone bounds Adam.
 * It says too much for large differences, 1.6 and 1.67 at shares of 0.375 and 0.4 where 1.2 to 1.3 and 1.35 were measured; runs and their calibration
 * differ by some hundredths. */
double host_memory_speed(double far_share)
{
	return 1 / (1 - fmin(far_share, CLAIM_FAR_ENOUGH));
}

bool host_memory_claim(const struct memory *planned, struct machine *m, const struct run_options *o)
{
	const uint64_t needed = memory_total(planned, TIER_PINNED) + memory_total(planned, TIER_DRAM);
	struct claim_found f;
	if (needed < MUCH || !claim_open(needed + (uint64_t)((double)needed * LITTLE_SHARE), CLAIM_BESIDES, &f))
		return false;
	if (f.far_bytes)
		tell(o, claim_describe(&f));
	if (m->far_share >= 0) {
		m->adam_share *= host_memory_speed(f.far_share) / host_memory_speed(m->far_share);
		m->far_share = f.far_share;
	}
	return true;
}
