/* What processes that train together have to agree on. */
#pragma once

#include "run.h"

/* Lines "section.key = value" of the scenario, and the options that decide losses or files. Owned by the caller. */
char *run_terms(const struct scenario *sc, const struct run_options *o);
