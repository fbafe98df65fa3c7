/* One prediction: a scenario's schedule run through the simulator. */
#pragma once

#include "model/schedule.h"
#include "sim.h"

/* Of inference a step is one token of every sequence, the mean over the batch from the first prompt to the last token. */
struct prediction {
	double tokens_per_s; /* tokens of all GPUs over the step */
	double step_ms;      /* from one step's end to the next's, after `warmup` steps */
	double prefill_ms;   /* inference: until the first token of the whole batch is there */
	double decode_ms;    /* inference: from one token to the next, mean; 0 when one is all */
	char prefill_bound_by[48], decode_bound_by[48];
	double speed_of_light_ms; /* the largest of: each stream's solo work, each resource's bytes over its capacity */
	char bound_by[48];        /* the stream busiest in the step, or "host_launch" */
	double hbm_gib, dram_gib, ssd_gib;
	double dropped_share; /* of routed tokens; inference: of the prefill's */
	int microbatches, expert_home;
	struct choices choices;
	uint8_t basis[N_STAGE_KINDS][N_STAGE_PASSES]; /* enum cost_basis of the costs; all 0: the machine is not measured */
	int oom_tier;                                 /* with ESMOE_ERROR_FIT: the enum memory_tier that is too small; -1: it fits */
	uint64_t n_stages;
	struct memory memory;
};

/* Runs 1 + warmup steps, and one behind them with update_order = next-forward, or a whole inference, whatever the warm-up. `trace` may be NULL;
 * otherwise it receives all steps. ESMOE_ERROR_FIT when it does not fit, ESMOE_ERROR_INPUT when the steps have more than STAGES_MOST stages. */
bool predict(const struct scenario *scenario, const struct sim_options *o, int warmup, struct prediction *out, struct trace *trace,
             GError **error) G_GNUC_WARN_UNUSED_RESULT;
