/* A fuzz target: called by libFuzzer with made-up bytes, and by replay.c with the seeds. Returns 0. */
#pragma once

#include <glib.h>
#include <stdint.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
