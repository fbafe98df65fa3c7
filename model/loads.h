/* Token counts read from a CSV of loads: "microbatch,layer,gpu,expert,tokens", one row a count, absent rows are 0. */
#pragma once

#include "autoptr.h"

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

struct loads;

/* Reads rows in any order. Micro-batches and GPUs are dense from 0 and every layer of the file has tokens from every GPU in every micro-batch; a row
 * twice, anything but whole numbers in range, and a last line without its end are errors that name file, line and column. NULL on error. Owned by the
 * caller. */
struct loads *loads_read(const char *path, GError **error) G_GNUC_WARN_UNUSED_RESULT;
/* The same from memory; `file` is the name in errors. */
struct loads *loads_parse(const char *csv, size_t length, const char *file, GError **error) G_GNUC_WARN_UNUSED_RESULT;
void loads_free(struct loads *loads);
AUTOPTR(loads)

int loads_gpus(const struct loads *loads);
/* Fills tokens (G, E) of the file's own GPUs; a micro-batch past the file's wraps around. Fails when the file lacks the layer or its experts there
 * are not 0..experts-1, the highest named by a row (a row of 0 tokens counts). */
bool loads_layer(const struct loads *loads, int microbatch, int layer, int experts, uint32_t *tokens, GError **error) G_GNUC_WARN_UNUSED_RESULT;
