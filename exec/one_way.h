/* What an all-to-all takes when a GPU sends more than it receives, or less, from runs with unequal loads beside the table of equal ones. */
#pragma once

#include "model/measured.h"
#include "traces/trace.h"

/* An exchange between two GPUs: the shorter of both spans, what the two sent, and how much the busier one moved within its memory. */
struct unequal {
	double us, most, least, moved;
};
/* Of a run of two GPUs: bytes of the rows that each has, in all; whether it has several experts, whose rows lie apart where they come to. */
struct unequal_rows {
	double bytes;
	bool apart;
};

/* Whether spans i and the next are the members of one all-to-all between two GPUs. */
bool exchange_pair(const struct trace *trace, guint i);
/* Adds those of a trace of two GPUs (struct unequal). */
void one_way_add(const struct trace *trace, const struct unequal_rows *rows, GArray *exchanges);
/* nvlink.one_way: the share with which bytes of one direction alone count, by the middle one of the exchanges whose directions differ by a third and
 * more; `otherwise` without any. `table`: all-to-alls with as much both ways, each of which moved as much again of what came and of what stayed, in
 * move_ns a byte. */
double one_way_share(const GArray *exchanges, const struct measured_table *table, double move_ns, double otherwise);
