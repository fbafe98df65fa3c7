/* Elastic multi-task training (SE-MoE, arXiv 2205.10034): tasks of unequal batches train side by side, each on GPUs and with experts of its own, and
 * all else in common, whose gradients they reduce over all GPUs at the end of each step. So the slowest sets the step, and GPUs are better shared by
 * load than equally. */
#pragma once

#include "grid.h"
#include "model/scenario.h"

#define TASKS_MOST 64

struct task {
	int sequences; /* a step, over its GPUs */
	int gpus;
	double step_ms; /* alone */
};

enum elastic_share { SHARE_EQUAL, SHARE_BY_LOAD, N_SHARES };

/* Gives each of n tasks at least one of `gpus` >= n GPUs: as many each, the first ones one more; or one after another to the task that has most
 * sequences a GPU. */
void elastic_share(enum elastic_share share, int gpus, struct task *tasks, int n);

/* Predicts each task on its GPUs; *step_ms becomes the slowest's and, of more than one task, the reduction's behind it. `o` says all but the GPUs and
 * the sequences. */
bool elastic_predict(const struct scenario_options *o, const struct how *how, struct task *tasks, int n, double *step_ms,
                     GError **error) G_GNUC_WARN_UNUSED_RESULT;

/* Both shares of `gpus` among tasks of so many sequences, as a table or as CSV (share,task,sequences,gpus,step_ms,step_of_all_ms,tokens_per_s_gpu).
 */
bool elastic_report(const struct scenario_options *o, const struct how *how, const struct ini_ints *sequences, bool csv, GString *out,
                    GError **error) G_GNUC_WARN_UNUSED_RESULT;
