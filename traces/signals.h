/* SIGINT and SIGTERM as something to look at between two pieces of work, whichever thread the system hands them to. One at a time in a process. */
#pragma once

#include "model/autoptr.h"

struct signals;

/* From now on the two do not kill. Owned by the caller. */
struct signals *signals_new(void);
/* From now on they do. */
void signals_free(struct signals *s);
AUTOPTR(signals)

/* The signal that came since, or 0. Never waits. */
int signals_taken(struct signals *s);
