/* Throughput over experts or GPUs: one line a policy, one panel a model. */
#pragma once

#include "csv.h"

enum throughput_x { THROUGHPUT_X_AUTO, THROUGHPUT_X_EXPERTS, THROUGHPUT_X_GPUS }; /* auto: experts if they vary, else GPUs */

struct throughput;

/* The points of rows as sweep and compare write them (columns policy, model, machine, gpus, experts, tokens_per_s, status; others are not looked at;
 * status ok, oom_hbm, oom_dram, oom_ssd or invalid). The horizontal axis is log2. Whatever else varies - model, machine, the count that is not the
 * axis - splits into panels. A point that ran out of memory is a cross under the axis; an invalid one is not drawn. Two rows for one point are an
 * error. NULL on error. Owned by the caller. */
struct throughput *throughput_new(struct csv *const *files, int n_files, enum throughput_x x, GError **error) G_GNUC_WARN_UNUSED_RESULT;
void throughput_free(struct throughput *chart);
AUTOPTR(throughput)

/* Draws them into the file `out` (see figure_write). */
bool plot_throughput(struct csv *const *files, int n_files, enum throughput_x x, const char *out, GError **error) G_GNUC_WARN_UNUSED_RESULT;
