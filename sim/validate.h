/* A recorded run simulated again: its own description, machine and loads, as many steps; then the two side by side. */
#pragma once

#include "model/schedule.h"
#include "traces/trace.h"

enum accuracy_of { ACCURACY_STEP, ACCURACY_STREAM, ACCURACY_STAGE };

/* One figure of a step, in milliseconds: its whole time, the busy time of one stream, or the sum over the stages of one kind and pass. Medians over
 * the steps; spread: half the distance of the quartiles over the median. A collective counts from when its last member came: waiting for each other
 * is not its work. */
struct accuracy {
	enum accuracy_of of;
	char *name; /* "step", "gpu0 compute", "expert backward" */
	double measured_ms, measured_spread, predicted_ms, predicted_spread;
};
void accuracy_clear(void *accuracy);             /* for GArray */
double accuracy_error(const struct accuracy *a); /* predicted over measured, minus 1; 0 of nothing */

/* struct accuracy, in the order of the enum. Both traces have the same GPUs and steps. Owned by the caller. */
GArray *accuracy_of_traces(const struct trace *measured, const struct trace *predicted);

struct recorded {
	struct scenario *scenario;
	struct trace *trace;
	struct expert_place *places; /* before the first recorded step (places.h); NULL: of a simulated run, or an older one */
	int warmup;                  /* steps before the first recorded one that are worth simulating: 0 for a run recorded whole */
	bool real;                   /* a run's own loads are there; a simulation launches all its steps one behind the other */
	bool overlap;                /* a run's step began before the one before it had ended; older runs never did that, nor do those with --apart */
};

/* Reads the folder of a run: run.ini, the trace, loads.csv and places.csv; without loads (a simulated run) the description's own routing.
 * ESMOE_ERROR_INPUT names the file. */
bool recorded_read(const char *folder, struct recorded *out, GError **error) G_GNUC_WARN_UNUSED_RESULT;
void recorded_clear(struct recorded *r);

/* struct used (used.h): memory of the run beside the scenario's plan; empty where the folder has no memory.csv. NULL on error. Owned by the caller.
 */
GArray *recorded_memory(const char *folder, const struct recorded *r, GError **error) G_GNUC_WARN_UNUSED_RESULT;

/* The recorded steps in virtual time, with so many times the calibrated speed of CPU Adam. NULL on error. Owned by the caller. */
struct trace *recorded_simulate(const struct recorded *r, double adam_speed, GError **error) G_GNUC_WARN_UNUSED_RESULT;
