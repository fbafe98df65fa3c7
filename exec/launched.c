/* A table of launchers, innermost first: torchrun may have been started by srun, and then both have left their variables.
 *
 * The agent of torchrun itself listens at MASTER_PORT, so that rank 0 takes one of the ports behind it. A script that sbatch runs has the variables
 * of a task, too, but no step: it was not started as one of several. */
#include "launched.h"

#include "model/error.h"

#include <string.h>

enum { RANKS_MOST = 4096, PORTS_BEHIND_AGENT = 8 };

static const struct launcher {
	const char *name;
	const char *rank, *size, *local; /* variables */
	const char *job;
	const char *within, *step; /* where `within` is set, `step` must be, or it is the job's script; NULL: no such thing */
} launchers[] = {
    {"torchrun", "RANK", "WORLD_SIZE", "LOCAL_RANK", "TORCHELASTIC_RUN_ID", NULL, NULL},
    {"mpirun", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "PMIX_NAMESPACE", NULL, NULL},
    {"mpirun", "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "PMI_JOBID", NULL, NULL},
    {"srun", "SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", "SLURM_JOB_ID", "SLURM_JOB_ID", "SLURM_STEP_ID"},
};

typedef const char *(*get_fn)(const char *name);

void launched_clear(struct launched *l)
{
	g_clear_pointer(&l->job, g_free);
	g_clear_pointer(&l->address, g_free);
}

static bool read_number(get_fn get, const char *name, int least, int most, int *out, GError **error)
{
	guint64 n;
	const char *text = get(name);
	if (g_ascii_string_to_unsigned(text, 10, (guint64)least, (guint64)most, &n, NULL)) {
		*out = (int)n;
		return true;
	}
	g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_USAGE, "%s = '%s' in the environment; expected a number from %d to %d", name, text, least, most);
	return false;
}

static const struct launcher *launcher_of(get_fn get)
{
	for (size_t i = 0; i < G_N_ELEMENTS(launchers); i++) {
		const struct launcher *l = &launchers[i];
		bool script = l->within && get(l->within) && !get(l->step);
		if ((get(l->rank) || get(l->size)) && !script)
			return l;
	}
	return NULL;
}

static bool read_place(get_fn get, const struct launcher *l, struct launched *out, GError **error)
{
	const char *has = get(l->rank) ? l->rank : l->size, *lacks = get(l->rank) ? l->size : l->rank;
	if (!get(l->rank) || !get(l->size)) {
		g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_USAGE,
		            "%s = '%s' in the environment without %s; expected both, as %s sets them, or neither", has, get(has), lacks, l->name);
		return false;
	}
	if (!read_number(get, l->size, 1, RANKS_MOST, &out->size, error) || !read_number(get, l->rank, 0, out->size - 1, &out->rank, error))
		return false;
	return !get(l->local) || read_number(get, l->local, 0, out->size - 1, &out->local, error);
}

static bool read_master(get_fn get, struct launched *out, GError **error)
{
	const char *host = get("MASTER_ADDR"), *port = get("MASTER_PORT"), *agent = get("TORCHELASTIC_USE_AGENT_STORE");
	bool taken = agent && strcmp(agent, "True") == 0;
	int n;
	if (!host && !port) {
		g_set_error(
		    error, ESMOE_ERROR, ESMOE_ERROR_USAGE,
		    "started by %s as %d processes, which have to find each other: expected --rendezvous FILE (in a folder that all of them see) or "
		    "--rendezvous HOST:PORT, or MASTER_ADDR and MASTER_PORT in the environment",
		    out->by, out->size);
		return false;
	}
	if (!host || !port) {
		g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_USAGE, "%s = '%s' in the environment without %s; expected both",
		            host ? "MASTER_ADDR" : "MASTER_PORT", host ? host : port, host ? "MASTER_PORT" : "MASTER_ADDR");
		return false;
	}
	if (!read_number(get, "MASTER_PORT", 1, 65535 - PORTS_BEHIND_AGENT, &n, error))
		return false;
	g_autofree char *id = out->job;
	out->job = g_strdup_printf("%s:%s", id, port); /* jobs without an id may be on neighbouring ports of one host */
	out->address = g_strdup_printf("%s:%d", host, n + taken);
	out->ports = taken ? PORTS_BEHIND_AGENT : 1;
	return true;
}

bool launched_find(const char *(*get)(const char *name), const char *rendezvous, struct launched *out, GError **error)
{
	const struct launcher *l = launcher_of(get);
	*out = (struct launched){.size = 1, .local = -1, .ports = 1};
	if (l && !read_place(get, l, out, error))
		return false;
	if (!l && rendezvous) {
		g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_USAGE,
		            "--rendezvous is for several processes: expected mpirun, srun or torchrun to start esmoe, or no --rendezvous");
		return false;
	}
	if (out->size == 1) {
		*out = (struct launched){.size = 1, .local = -1, .ports = 1};
		return true;
	}
	out->by = l->name;
	out->job = g_strdup(get(l->job) ? get(l->job) : "");
	out->address = g_strdup(rendezvous);
	if (rendezvous || read_master(get, out, error))
		return true;
	launched_clear(out);
	return false;
}
