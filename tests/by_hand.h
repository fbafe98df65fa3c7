/* Machines for tests of the simulator, in round numbers and filled by hand, so that expected times are simple arithmetic. */
#pragma once

#include "model/resource.h"
#include "model/stage.h"

/* Copies of 25 GB/s a GPU, a root complex of `root_gbps` for two GPUs (0: no limit), DRAM of `dram_gbps`, Adam that alone takes 100 GB/s of it. */
static inline struct machine machine_by_hand(int gpus, int gpus_per_node, double root_gbps, double dram_gbps)
{
	return (struct machine){
	    .gpus = gpus,
	    .gpus_per_node = gpus_per_node,
	    .gpu_name = (char *)"by hand",
	    .hbm_gib = 40,
	    .sms = 108,
	    .hbm_gbps = 1000,
	    .h2d_gbps = 25,
	    .d2h_gbps = 25,
	    .root_gbps = root_gbps,
	    .gpus_per_root = 2,
	    .nvlink_gbps = 300,
	    .nic_gbps = 50,
	    .dram_gbps = dram_gbps,
	    .adam_gparams_per_s = 4,
	    .adam_bytes_per_param = 25,
	    .adam_threads = 32,
	};
}

static inline void ask_for(struct profile *p, uint32_t resource, double amount)
{
	p->demand[p->n_demands++] = (struct demand){.resource = resource, .amount = amount};
}

static inline void gpu_by_hand(const struct machine *m, struct resources *r, int gpu, uint32_t roots_at, uint32_t nodes_at)
{
	uint32_t own = (uint32_t)gpu * GPU_RESOURCES, root = roots_at + (uint32_t)(gpu / m->gpus_per_root) * ROOT_RESOURCES;
	uint32_t node = (uint32_t)(gpu / m->gpus_per_node), shared = nodes_at + node * NODE_RESOURCES;
	struct profile *p = &r->profile[profile_of_gpu(gpu, 0)];
	for (int i = 0; i < GPU_PROFILES; i++)
		p[i] = (struct profile){.gpu = gpu, .node = (int)node};
	ask_for(&p[PROFILE_COMPUTE], own + RES_SM, 1);
	ask_for(&p[PROFILE_MIXER], own + RES_SM, 1);
	ask_for(&p[PROFILE_MEMORY], own + RES_HBM, m->hbm_gbps);
	ask_for(&p[PROFILE_UP], own + RES_PCIE_UP, m->h2d_gbps);
	ask_for(&p[PROFILE_DOWN], own + RES_PCIE_DOWN, m->d2h_gbps);
	if (m->root_gbps > 0) {
		ask_for(&p[PROFILE_UP], root + RES_ROOT_UP, m->h2d_gbps);
		ask_for(&p[PROFILE_DOWN], root + RES_ROOT_DOWN, m->d2h_gbps);
	}
	ask_for(&p[PROFILE_UP], shared + RES_DRAM, m->h2d_gbps);
	ask_for(&p[PROFILE_DOWN], shared + RES_DRAM, m->d2h_gbps);
	ask_for(&p[PROFILE_COLLECTIVE], own + RES_NVLINK, m->nvlink_gbps);
	p[PROFILE_UP].flow_class = FLOW_UP;
	p[PROFILE_DOWN].flow_class = FLOW_DOWN;
	p[PROFILE_UP].dram = m->h2d_gbps;
	p[PROFILE_DOWN].dram = m->d2h_gbps;
	double capacity[GPU_RESOURCES] = {[RES_SM] = 1,
	                                  [RES_SM_MIXER] = 1,
	                                  [RES_SM_COLLECTIVE] = 1,
	                                  [RES_HBM] = m->hbm_gbps,
	                                  [RES_PCIE_UP] = m->h2d_gbps,
	                                  [RES_PCIE_DOWN] = m->d2h_gbps,
	                                  [RES_PCIE_DUPLEX] = 2 * m->h2d_gbps,
	                                  [RES_NVLINK] = m->nvlink_gbps};
	memcpy(&r->capacity[own], capacity, sizeof capacity);
}

static inline void node_by_hand(const struct machine *m, struct resources *r, int node, int adam_threads, double adam_gbps, uint32_t nodes_at)
{
	uint32_t own = nodes_at + (uint32_t)node * NODE_RESOURCES;
	double capacity[NODE_RESOURCES] = {m->dram_gbps, m->nic_gbps, 6, 6, 6};
	struct profile *p = &r->profile[profile_of_node(m, node, 0)];
	memcpy(&r->capacity[own], capacity, sizeof capacity);
	for (int i = 0; i < NODE_PROFILES; i++)
		p[i] = (struct profile){.gpu = -1, .node = node};
	ask_for(&p[PROFILE_ADAM], own + RES_DRAM, adam_gbps);
	p[PROFILE_ADAM].flow_class = FLOW_ADAM;
	p[PROFILE_ADAM].threads = adam_threads;
	p[PROFILE_ADAM].dram = adam_gbps;
	ask_for(&p[PROFILE_READ], own + RES_SSD_READ, 6);
	ask_for(&p[PROFILE_READ], own + RES_SSD, 6);
	ask_for(&p[PROFILE_WRITE], own + RES_SSD_WRITE, 6);
	ask_for(&p[PROFILE_WRITE], own + RES_SSD, 6);
}

/* Free with resources_by_hand_free. `adam_gbps`: what `adam_threads` ask of the DRAM alone. */
static inline struct resources *resources_by_hand(const struct machine *m, int adam_threads, double adam_gbps)
{
	int nodes = (m->gpus + m->gpus_per_node - 1) / m->gpus_per_node, roots = (m->gpus + m->gpus_per_root - 1) / m->gpus_per_root;
	uint32_t roots_at = (uint32_t)m->gpus * GPU_RESOURCES, nodes_at = roots_at + (uint32_t)roots * ROOT_RESOURCES;
	struct resources *r = g_new0(struct resources, 1);
	r->n_resources = (int)nodes_at + nodes * NODE_RESOURCES;
	r->n_profiles = m->gpus * GPU_PROFILES + nodes * NODE_PROFILES;
	r->capacity = g_new0(double, r->n_resources);
	r->profile = g_new0(struct profile, r->n_profiles);
	for (uint32_t i = roots_at; i < nodes_at; i++)
		r->capacity[i] = m->root_gbps;
	for (int gpu = 0; gpu < m->gpus; gpu++)
		gpu_by_hand(m, r, gpu, roots_at, nodes_at);
	for (int node = 0; node < nodes; node++)
		node_by_hand(m, r, node, adam_threads, adam_gbps, nodes_at);
	return r;
}

static inline void resources_by_hand_free(struct resources *r)
{
	g_free(r->capacity);
	g_free(r->profile);
	g_free(r);
}
