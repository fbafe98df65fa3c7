/* Which process of a run this one is: what mpirun, srun and torchrun leave in the environment. */
#pragma once

#include "model/autoptr.h"

#include <glib.h>
#include <stdbool.h>

struct launched {
	const char *by; /* "torchrun", "mpirun", "srun"; NULL: started alone */
	int rank, size; /* of the processes; alone: 0 of 1 */
	int local;      /* among those of this host; -1: not told */
	char *job;      /* what tells one job's processes from another's; "": not told */
	char *address;  /* where rank 0 is found: HOST:PORT, or a file in a folder that all see; NULL: not told, or alone */
	int ports;      /* HOST:PORT: how many, from PORT on, rank 0 may have taken the first free one of */
};
void launched_clear(struct launched *l);

/* Looks with `get` (g_getenv; a test's own). The first launcher of the table that left anything counts: the one that started us directly.
 * `rendezvous` (NULL: none) is taken for the address. ESMOE_ERROR_USAGE names the variable, its value and what is expected. */
bool launched_find(const char *(*get)(const char *name), const char *rendezvous, struct launched *out, GError **error) G_GNUC_WARN_UNUSED_RESULT;
