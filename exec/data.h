/* Training data: a text file (bytes as tokens), a token file (uint16, the .bin form of nanoGPT; llm.c's with its 1024-byte header), or tokens from a
 * seed. */
#pragma once

#include "model/autoptr.h"

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

struct data;

/* `path` NULL: synthetic tokens of a Markov chain drawn from `seed`, which a network can learn. A file named .bin holds tokens, any other is text.
 * `vocab`: tokens past it are an error that names file and offset. Owned by the caller. */
struct data *data_open(const char *path, int vocab, uint64_t seed, GError **error) G_GNUC_WARN_UNUSED_RESULT;
void data_free(struct data *d);
AUTOPTR(data)

/* Tokens and targets (sequences, seq_len) of a global batch: sequences `first` .. of step `step`, from places drawn from the seed: a pure function of
 * its arguments, so that 1, 2 and 4 GPUs, micro-batches and resumed runs see the same. A file shorter than one sequence plus one token, or one that
 * has changed since it was opened, is an error. Thread-safe. */
bool data_batch(const struct data *d, uint64_t step, uint64_t first, int sequences, int seq_len, int32_t *tokens, int32_t *targets,
                GError **error) G_GNUC_WARN_UNUSED_RESULT;
