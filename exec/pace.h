/* How fast CPU Adam is on the memory that a run got. */
#pragma once

#include <stddef.h>

struct engine;

/* Billion parameters/s of single updates. An expert has its memory for as long as the process runs, and some are by half faster than others. */
struct adam_pace {
	int experts;  /* 0: none is at home in DRAM */
	double whole; /* of all experts together: what one update after the other takes */
	double least, quartile[3], most;
};

/* Updates each expert that is at home in DRAM, and has as many parameters as the largest, once, with nothing to learn, and nothing beside it. Before
 * the first step, and before a checkpoint is loaded: with moments of zero no bit changes. */
void engine_adam_pace(const struct engine *e, struct adam_pace *out);
