/* What stages share: the machine's resources with their capacities, and profiles that say how much of each a stage asks for at its solo speed. */
#pragma once

#include "autoptr.h"
#include "collective.h"
#include "machine.h"

#include <stdint.h>

/* Per GPU, per root complex, per adapter (where a node has several that serve their own GPUs), per leaf switch and per node; ids are dense in this
 * order. Capacities and demands in bytes per nanosecond (GB/s), SMs as a share of 1, cores in cores. RES_SM_DOWN: the same SMs once more, in which
 * downloads have what they cost alone; RES_SM_MIXER and RES_SM_MIXER_DOWN: as mixers see them; RES_SM_COLLECTIVE: as collectives do (resource.c). */
enum gpu_resource {
	RES_SM,
	RES_SM_DOWN,
	RES_SM_MIXER,
	RES_SM_MIXER_DOWN,
	RES_SM_COLLECTIVE,
	RES_HBM,
	RES_PCIE_UP,
	RES_PCIE_DOWN,
	RES_PCIE_DUPLEX,
	RES_NVLINK,
	GPU_RESOURCES
};
enum root_resource { RES_ROOT_UP, RES_ROOT_DOWN, ROOT_RESOURCES };
enum node_resource { RES_DRAM, RES_NIC, RES_SSD_READ, RES_SSD_WRITE, RES_SSD, RES_CORES, NODE_RESOURCES };

/* Classes of users of host DRAM, for the measured contention rule. */
enum flow_class { FLOW_OTHER, FLOW_ADAM, FLOW_UP, FLOW_DOWN };

#define PROFILE_DEMANDS 15

struct demand {
	uint32_t resource;
	double amount;
	bool held; /* for as long as the stage runs, whatever its rate: others have the rest */
};

struct profile {
	int n_demands;
	struct demand demand[PROFILE_DEMANDS]; /* only resources with a finite capacity */
	int flow_class;
	int node;    /* of its host DRAM */
	int gpu;     /* -1: none */
	int threads; /* FLOW_ADAM: CPU threads in use */
	double dram; /* bytes per nanosecond of host DRAM at solo speed; 0: none */
};

/* Profiles of a GPU and of a node; ids are dense: all GPUs' first. PROFILE_COLLECTIVE: among the GPUs of one node. */
enum gpu_profile { PROFILE_COMPUTE, PROFILE_MIXER, PROFILE_MEMORY, PROFILE_UP, PROFILE_DOWN, PROFILE_COLLECTIVE, GPU_PROFILES };
enum node_profile { PROFILE_ADAM, PROFILE_READ, PROFILE_WRITE, NODE_PROFILES };

struct resources {
	int n_resources, n_profiles;
	double *capacity;        /* (n_resources) */
	struct profile *profile; /* (n_profiles) */
};

struct resources *resources_new(const struct machine *m, int adam_threads);
void resources_free(struct resources *r);
AUTOPTR(resources)

/* Adds a profile for every GPU: a collective in groups of this shape, wherever the GPU's own group lies. Returns GPU 0's; GPU g's is g further. To be
 * called before anybody looks at the resources. */
uint32_t resources_collective(struct resources *r, const struct machine *m, int op, int algorithm, const struct ranks *ranks);

static inline uint32_t profile_of_gpu(int gpu, enum gpu_profile p)
{
	return (uint32_t)gpu * GPU_PROFILES + p;
}
static inline uint32_t profile_of_node(const struct machine *m, int node, enum node_profile p)
{
	return (uint32_t)m->gpus * GPU_PROFILES + (uint32_t)node * NODE_PROFILES + p;
}
/* "pcie up of gpu 0", "dram of node 1". Owned by the caller. */
char *resource_name(const struct machine *m, uint32_t resource);
