/* What an all-to-all takes when a GPU sends more than it receives, or less, from runs with unequal loads beside the table of equal ones. */
#pragma once

#include "model/measured.h"
#include "traces/trace.h"

/* An exchange between two GPUs: the longer of both spans, and what the two sent. */
struct unequal {
	double us, most, least;
};

/* Whether spans i and the next are the members of one all-to-all between two GPUs. */
bool exchange_pair(const struct trace *trace, guint i);
/* Adds those of a trace of two GPUs (struct unequal). */
void one_way_add(const struct trace *trace, GArray *exchanges);
/* nvlink.one_way: the share with which bytes of one direction alone count, by the middle one of the exchanges whose directions differ by a third and
 * more; `otherwise` without any. `table`: all-to-alls with as much both ways. */
double one_way_share(const GArray *exchanges, const struct measured_table *table, double otherwise);
