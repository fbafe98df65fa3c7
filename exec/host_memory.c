#include "host_memory.h"

#include "adam_speed.h"
#include "claim.h"
#include "updates.h"

#include <math.h>

#define MUCH ((uint64_t)1 << 30)
#define LITTLE_SHARE (1.0 / 32) /* blocks do not fit without gaps */
#define SAME 0.03

/* What a step is predicted with is looked at longer than what it is planned with. */
enum { FIRST_MS = 200, AGAIN_MS = 250 };

enum { STEPS_BEFORE = 2 /* the recorded ones; the very first does not tell */ };

struct host_memory {
	const struct scenario *sc;
	const struct run_options *o;
	bool claimed, steps_tell;
	struct adam_speed *speed; /* NULL: it is not looked at again */
	double looked;            /* the sum of the looks around the recorded steps, billion parameters/s */
	int looks;
	struct trace *seen; /* updates and copies of the steps that tell */
};

static void tell(const struct run_options *o, char *line)
{
	if (o->note)
		o->note(line, o->user);
	g_free(line);
}

static bool claims(const struct memory *planned, const struct device_info *info, const struct run_options *o)
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

/* Of what calibration saw, over a speed that is not the usual one; that speed is among what can be. */
static void shift_range(struct machine *m, double by)
{
	m->adam_slowest = CLAMP(m->adam_slowest / by, LEAST_PACE, 1);
	m->adam_fastest = CLAMP(m->adam_fastest / by, 1, MOST_PACE);
}

static void look_first(struct host_memory *h, const struct device_info *info)
{
	struct machine *m = h->sc->machine;
	const double usual = m->adam_alone_gparams_per_s;
	h->speed = usual > 0 ? adam_speed_new(info, m->adam_threads) : NULL;
	if (!h->speed)
		return;
	const double now = adam_speed_now(h->speed, FIRST_MS);
	m->adam_share = CLAMP(now / usual, LEAST_PACE, MOST_PACE);
	m->adam_pace = 1;
	shift_range(m, m->adam_share);
	if (fabs(m->adam_share - 1) > SAME)
		tell(h->o, g_strdup_printf("CPU Adam: %.2f billion parameters/s alone, %.0f %% %s than when this machine was calibrated", now,
		                           100 * fabs(m->adam_share - 1), m->adam_share < 1 ? "less" : "more"));
}

struct host_memory *host_memory_open(const struct scenario *sc, const struct memory *planned, bool offloaded, const struct device_info *info,
                                     const struct run_options *o)
{
	struct host_memory *h = g_new0(struct host_memory, 1);
	h->sc = sc;
	h->o = o;
	h->claimed = info->launcher_cores && claims(planned, info, o);
	if (!offloaded)
		return h;
	look_first(h, info);
	h->steps_tell = h->speed && o->trace && info->launcher_cores && !o->looks && o->steps >= (uint64_t)o->trace_steps + STEPS_BEFORE;
	h->seen = trace_new();
	h->seen->gpus = sc->machine->gpus;
	h->seen->gpus_per_node = sc->machine->gpus_per_node;
	if (!o->trace || h->steps_tell) /* nobody will ask again, and it has gigabytes */
		g_clear_pointer(&h->speed, adam_speed_free);
	return h;
}

void host_memory_free(struct host_memory *h)
{
	if (!h)
		return;
	adam_speed_free(h->speed);
	if (h->seen)
		trace_free(h->seen);
	if (h->claimed)
		claim_close();
	g_free(h);
}

bool host_memory_wants_looks(const struct host_memory *h)
{
	return h && h->speed;
}

void host_memory_look(struct host_memory *h)
{
	h->looked += adam_speed_now(h->speed, AGAIN_MS);
	h->looks++;
}

static bool is_copy(const struct span *s)
{
	return s->kind == STAGE_UPLOAD || s->kind == STAGE_DOWNLOAD;
}

/* As many as are recorded, but the very first: copies of the first that is recorded are beside the last updates of the one before it. */
void host_memory_step(struct host_memory *h, const GArray *spans, uint64_t before)
{
	if (!h || !h->steps_tell || before > (uint64_t)h->o->trace_steps)
		return;
	for (guint i = 0; i < spans->len; i++) {
		const struct span *s = &g_array_index(spans, struct span, i);
		if (is_copy(s) || (before && s->step && s->kind == STAGE_ADAM && !s->microbatch)) /* others have sums to read, besides */
			g_array_append_val(h->seen->spans, *s);
	}
}

static double pace_of_steps(const struct host_memory *h)
{
	const struct scenario *sc = h->sc;
	g_autoptr(cost) cost = cost_new(sc->network, sc->machine, sc->policy, sc->seq_len, sc->policy->adam_threads);
	return updates_pace(h->seen, sc->machine, sc->network, cost);
}

void host_memory_settle(const struct host_memory *h)
{
	struct machine *m = h ? h->sc->machine : NULL;
	double pace = 0;
	if (h && h->looks)
		pace = h->looked / h->looks / (m->adam_share * m->adam_alone_gparams_per_s);
	else if (h && h->steps_tell)
		pace = pace_of_steps(h);
	if (pace <= 0)
		return;
	m->adam_pace = CLAMP(pace, LEAST_PACE, MOST_PACE);
	shift_range(m, m->adam_pace);
}
