/* What is said of a run besides its scenario. */
#pragma once

#include "run.h"

/* What processes that train together have to agree on: lines "section.key = value" of the scenario, and the options that decide losses or files.
 * Owned by the caller. */
char *run_terms(const struct scenario *sc, const struct run_options *o);

/* The first lines of run.ini: its command, and the section [run] (sim/validate.h reads it). Owned by the caller. */
char *run_head(const struct run_options *o, bool overlap);
