/* What launchers leave in the environment. */
#include "exec/launched.h"
#include "model/error.h"

#include <criterion/criterion.h>
#include <string.h>

static const char *const *environment; /* names and values */

static const char *get(const char *name)
{
	for (int i = 0; environment[i]; i += 2)
		if (strcmp(environment[i], name) == 0)
			return environment[i + 1];
	return NULL;
}

Test(launched, each_launcher_leaves_its_own_variables)
{
	static const struct {
		const char *set[20];
		const char *rendezvous, *by;
		int rank, size, local;
		const char *address;
		int ports;
	} cases[] = {
	    {{NULL}, NULL, NULL, 0, 1, -1, NULL, 1},
	    {{"RANK", "3", "WORLD_SIZE", "8", "LOCAL_RANK", "1", "MASTER_ADDR", "node7", "MASTER_PORT", "29500"},
	     NULL,
	     "torchrun",
	     3,
	     8,
	     1,
	     "node7:29500",
	     1},
	    {{"RANK", "3", "WORLD_SIZE", "8", "MASTER_ADDR", "node7", "MASTER_PORT", "29500", "TORCHELASTIC_USE_AGENT_STORE", "True"},
	     NULL,
	     "torchrun",
	     3,
	     8,
	     -1,
	     "node7:29501",
	     8},
	    {{"RANK", "3", "WORLD_SIZE", "8", "MASTER_ADDR", "node7", "MASTER_PORT", "29500"},
	     "/shared/meet",
	     "torchrun",
	     3,
	     8,
	     -1,
	     "/shared/meet",
	     1},
	    {{"OMPI_COMM_WORLD_RANK", "1", "OMPI_COMM_WORLD_SIZE", "2", "OMPI_COMM_WORLD_LOCAL_RANK", "0"}, "meet", "mpirun", 1, 2, 0, "meet", 1},
	    {{"PMI_RANK", "1", "PMI_SIZE", "2", "MPI_LOCALRANKID", "1"}, "a:1", "mpirun", 1, 2, 1, "a:1", 1},
	    {{"SLURM_PROCID", "5", "SLURM_NTASKS", "6", "SLURM_LOCALID", "2", "SLURM_JOB_ID", "77", "SLURM_STEP_ID", "0"},
	     "meet",
	     "srun",
	     5,
	     6,
	     2,
	     "meet",
	     1},
	    {{"SLURM_PROCID", "5", "SLURM_NTASKS", "6"}, "meet", "srun", 5, 6, -1, "meet", 1},
	    /* a script of a job of six tasks is not one of them */
	    {{"SLURM_PROCID", "0", "SLURM_NTASKS", "6", "SLURM_LOCALID", "0", "SLURM_JOB_ID", "77"}, NULL, NULL, 0, 1, -1, NULL, 1},
	    /* torchrun that srun started, once a node */
	    {{"SLURM_PROCID", "0", "SLURM_NTASKS", "2", "SLURM_STEP_ID", "0", "RANK", "3", "WORLD_SIZE", "4", "MASTER_ADDR", "a", "MASTER_PORT", "1"},
	     NULL,
	     "torchrun",
	     3,
	     4,
	     -1,
	     "a:1",
	     1},
	    {{"RANK", "0", "WORLD_SIZE", "1", "LOCAL_RANK", "0"}, NULL, NULL, 0, 1, -1, NULL, 1},
	    {{"RANK", "0", "WORLD_SIZE", "1", "LOCAL_RANK", "0"}, "meet", NULL, 0, 1, -1, NULL, 1},
	};
	for (size_t i = 0; i < G_N_ELEMENTS(cases); i++) {
		g_autoptr(GError) error = NULL;
		autoclear(launched) l = {0};
		environment = cases[i].set;
		cr_assert(launched_find(get, cases[i].rendezvous, &l, &error), "case %zu: %s", i, error ? error->message : "");
		cr_expect_eq(g_strcmp0(l.by, cases[i].by), 0, "case %zu: by %s", i, l.by);
		cr_expect(l.rank == cases[i].rank && l.size == cases[i].size && l.local == cases[i].local, "case %zu: %d of %d, %d", i, l.rank,
		          l.size, l.local);
		cr_expect_eq(g_strcmp0(l.address, cases[i].address), 0, "case %zu: %s", i, l.address);
		cr_expect_eq(l.ports, cases[i].ports, "case %zu: %d ports", i, l.ports);
	}
}

Test(launched, what_does_not_add_up_is_named)
{
	static const struct {
		const char *set[12];
		const char *rendezvous;
		const char *words[4];
	} cases[] = {
	    {{"RANK", "1"}, "meet", {"RANK = '1'", "WORLD_SIZE", "torchrun"}},
	    {{"SLURM_NTASKS", "4"}, "meet", {"SLURM_NTASKS = '4'", "SLURM_PROCID", "srun"}},
	    {{"RANK", "4", "WORLD_SIZE", "4"}, "meet", {"RANK = '4'", "0 to 3"}},
	    {{"RANK", "-1", "WORLD_SIZE", "4"}, "meet", {"RANK = '-1'", "0 to 3"}},
	    {{"RANK", "one", "WORLD_SIZE", "4"}, "meet", {"RANK = 'one'", "0 to 3"}},
	    {{"RANK", "0", "WORLD_SIZE", "0"}, "meet", {"WORLD_SIZE = '0'"}},
	    {{"RANK", "0", "WORLD_SIZE", "4", "LOCAL_RANK", "7"}, "meet", {"LOCAL_RANK = '7'", "0 to 3"}},
	    {{"RANK", "0", "WORLD_SIZE", "4", "MASTER_ADDR", "a"}, NULL, {"MASTER_ADDR = 'a'", "MASTER_PORT"}},
	    {{"RANK", "0", "WORLD_SIZE", "4", "MASTER_ADDR", "a", "MASTER_PORT", "70000"}, NULL, {"MASTER_PORT = '70000'"}},
	    {{"OMPI_COMM_WORLD_RANK", "0", "OMPI_COMM_WORLD_SIZE", "2"}, NULL, {"mpirun", "2 processes", "--rendezvous FILE", "MASTER_ADDR"}},
	    {{NULL}, "meet", {"--rendezvous", "srun"}},
	};
	for (size_t i = 0; i < G_N_ELEMENTS(cases); i++) {
		GError *error = NULL;
		autoclear(launched) l = {0};
		environment = cases[i].set;
		cr_assert_not(launched_find(get, cases[i].rendezvous, &l, &error), "case %zu", i);
		cr_expect_eq(error->code, ESMOE_ERROR_USAGE);
		for (int w = 0; w < 4 && cases[i].words[w]; w++)
			cr_expect(strstr(error->message, cases[i].words[w]) != NULL, "case %zu: no '%s' in: %s", i, cases[i].words[w],
			          error->message);
		g_clear_error(&error);
	}
}
