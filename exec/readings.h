/* What the runs of a calibration say: each span of a kind that its run serves is a reading of what that kind takes. */
#pragma once

#include "model/machine.h"
#include "model/measured.h"
#include "model/scenario.h"
#include "probes.h"
#include "traces/trace.h"
#include "waits.h"

/* A probe that was run. */
struct probe_run {
	struct probe probe;
	struct scenario *scenario;
	struct trace *trace;
};
/* How fast CPU Adam was alone, before and after the steps that its trace has, billion parameters/s; 0: it was not looked at. */
double probe_run_alone(const struct probe_run *r);
/* The usual of those that look at it (struct probe_run), the slowest and the fastest, into the machine that tables are for. */
void probe_runs_fill_alone(const GArray *runs, struct machine *m);
void probe_run_clear(struct probe_run *r);

struct readings {
	GArray *samples;   /* struct timing */
	GArray *launch_us; /* double: host time of one launch */
	struct waits waits;
	GArray *mixer_us[2]; /* double: backward of one GPU alone, and beside another */
	GArray *unequal;     /* struct unequal: exchanges with unequal loads */
	GArray *streamed;    /* struct streamed: and with equal ones */
	uint32_t steps;      /* read so far */
};
void readings_init(struct readings *r);
void readings_clear(struct readings *r);

/* Times of matrix products are those of a hot GPU (warmth.h), by m's law, those of CPU Adam as the tables want them (updates.h); sizes are in the
 * unit of the kind's table. `tables` has the all-reduces that were alone. */
bool readings_take(struct readings *r, const struct probe_run *run, const struct measured *tables, const struct machine *m,
                   GError **error) G_GNUC_WARN_UNUSED_RESULT;
double readings_median(GArray *values, double otherwise);
/* The mean without the largest twentieth. */
double readings_mean(GArray *values, double otherwise);
