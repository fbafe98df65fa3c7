/* Spans as CSV, one a line: for spreadsheets and data frames. */
#pragma once

#include "trace.h"

/* Column names with the line end:
 * id,step,microbatch,layer,expert,stage,pass,stream,rank,tokens,bytes,launch_ns,launch_end_ns,start_ns,end_ns,predecessors. */
const char *csv_header(void);
/* Appends spans from..to-1. No expert and an unknown launch are empty; predecessors are separated by spaces. */
void csv_spans(const struct trace *trace, guint from, guint to, GString *out);
