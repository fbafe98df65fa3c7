/* For what share of its time a span had others of its GPU beside it. */
#pragma once

#include "traces/trace.h"

typedef bool (*cover_choice)(const struct span *s, int what);
bool cover_computes(const struct span *s, int what);    /* whatever `what` is */
bool cover_on_stream(const struct span *s, int stream); /* enum gpu_stream, of the span's own GPU */

/* By index of span, for those that `covered` chooses: the sum over the spans of the same rank that `by` chooses, each a stream's, of their common
 * time over its own; 0 for all else. `what` is handed to both. Owned by the caller. */
double *cover_of(const struct trace *t, cover_choice covered, cover_choice by, int what);
/* The same with the time in which two kinds are there at once: those that `by` chooses with one `what`, and with the other. */
double *cover_of_both(const struct trace *t, cover_choice covered, cover_choice by, int one, int other);
