/* What was busiest in a step. */
#pragma once

#include "model/machine.h"
#include "round.h"

/* Of spans (struct span) of one step: busiest and busy_ns of the round; a launcher thread counts as a stream. */
void busiest_find(const struct machine *m, const GArray *spans, struct round *round);
const char *busiest_name(int busiest); /* "compute", "optimizer", "host_launch", ...; static */
