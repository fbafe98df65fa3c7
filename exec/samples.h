/* From what single stages took to the points of a machine's tables. */
#pragma once

#include "model/measured.h"

#include <stdbool.h>

struct timing {
	int kind, pass;
	double size, us;        /* size in the unit of the kind's table */
	double tokens, experts; /* of a gate */
	uint32_t step;          /* a number of its own for each step of each run */
	bool waited;            /* while it had begun: for its launches, or for threads to come to work */
};

/* Adds a point for each cluster of sizes; gates first get the table's extra experts, which decide their sizes. Sorts the samples. */
void samples_to_tables(GArray *samples, struct measured *tables);
