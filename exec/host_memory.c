/* CPU Adam is as fast as the memory that a run got, and as that is at the time. */
#include "host_memory.h"

#include "claim.h"

#include <math.h>

#define MUCH ((uint64_t)1 << 30)
#define LITTLE_SHARE (1.0 / 32) /* blocks do not fit without gaps */
#define SAME 0.03

/* What a step is predicted with is looked at longer than what it is planned with. */
enum { FIRST_MS = 200, AGAIN_MS = 350 };

static void tell(const struct run_options *o, char *line)
{
	if (o->note)
		o->note(line, o->user);
	g_free(line);
}

bool host_memory_claim(const struct memory *planned, const struct device_info *info, const struct run_options *o)
{
	const uint64_t needed = memory_total(planned, TIER_PINNED) + memory_total(planned, TIER_DRAM);
	const struct adam_work w = adam_work_of(info, 1);
	struct claim_found f;
	if (needed < MUCH || !claim_open(needed + (uint64_t)((double)needed * LITTLE_SHARE) + adam_work_bytes(&w), CLAIM_BESIDES, &f))
		return false;
	if (f.far_bytes)
		tell(o, claim_describe(&f));
	return true;
}

double host_memory_again(const struct adam_speed *speed)
{
	return adam_speed_now(speed, AGAIN_MS);
}

/* Of what calibration saw, over a speed that is not the usual one; that speed is among what can be. */
static void shift_range(struct machine *m, double by)
{
	m->adam_slowest = CLAMP(m->adam_slowest / by, LEAST_PACE, 1);
	m->adam_fastest = CLAMP(m->adam_fastest / by, 1, MOST_PACE);
}

struct adam_speed *host_memory_speed(const struct device_info *info, struct machine *m, const struct run_options *o)
{
	const double usual = m->adam_alone_gparams_per_s;
	struct adam_speed *speed = usual > 0 ? adam_speed_new(info, m->adam_threads) : NULL;
	if (!speed)
		return NULL;
	const double now = adam_speed_now(speed, FIRST_MS);
	m->adam_share = CLAMP(now / usual, LEAST_PACE, MOST_PACE);
	shift_range(m, m->adam_share);
	if (fabs(m->adam_share - 1) > SAME)
		tell(o, g_strdup_printf("CPU Adam: %.2f billion parameters/s alone, %.0f %% %s than when this machine was calibrated", now,
		                        100 * fabs(m->adam_share - 1), m->adam_share < 1 ? "less" : "more"));
	return speed;
}

void host_memory_between(struct machine *m, double before, double after)
{
	m->adam_pace = CLAMP((before + after) / 2 / (m->adam_share * m->adam_alone_gparams_per_s), LEAST_PACE, MOST_PACE);
	shift_range(m, m->adam_pace);
}
