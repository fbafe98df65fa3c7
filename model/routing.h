/* Where tokens go: how many of each GPU's tokens the gate sends to each expert. Uniform, Zipf with drift, expert choice, hash, or a CSV of loads. */
#pragma once

#include "autoptr.h"

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

struct routing;

/* `spec`: "uniform", "zipf:S" or "zipf:S:DRIFT" (popularity ~ rank^-S; the order of experts is drawn per layer from the seed, and each step a share
 * DRIFT of the experts changes places, default 0.02), "expert-choice" (exactly balanced), "hash" (near uniform, multinomial), or the path of a CSV
 * "microbatch,layer,gpu,expert,tokens" (DESIGN's loads.csv; scaled to the asked totals when GPUs or tokens differ). NULL on error. Owned by the
 * caller. */
struct routing *routing_new(const char *spec, uint64_t seed, GError **error) G_GNUC_WARN_UNUSED_RESULT;
void routing_free(struct routing *routing);
AUTOPTR(routing)

/* From now on the rows of a CSV are of one step after another, `microbatches` each, beginning with the file's step `offset`: a recorded run's.
 * Nothing for other rules. */
void routing_replay(struct routing *r, int microbatches, int offset);

/* Fills tokens (G, E) with counts: each row sums to exactly `tokens_per_gpu` * `top_k`, no entry past tokens_per_gpu. Pure function of the seed and
 * its arguments, whatever was asked before. Fails only when a CSV lacks the layer or has other experts. */
bool routing_loads(const struct routing *r, int step, int microbatch, int layer, int gpus, int experts, int top_k, uint32_t tokens_per_gpu,
                   uint32_t *tokens, GError **error) G_GNUC_WARN_UNUSED_RESULT;
