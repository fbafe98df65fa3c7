/* What a stage asks for at its solo speed, and what there is. Sharing then needs no knowledge of stages: a profile is a list of demands.
 *
 *     HBM, SM -- gpu -- pcie up, down, both -- root up, down -- dram of the node -- ssd
 *                 `-- nvlink        `-- nic of the node, or adapter -- leaf switch
 *
 * A copy crosses every resource from its GPU's memory to the host's, and also holds a sliver of the SMs: GEMMs under copies are slower than the bytes
 * explain (they lose L2 and HBM turns), and the more so while the host's memory keeps copies waiting, which is left out: slivers are those beside CPU
 * Adam (exec/beside.c). Both ways together leave a GEMM 1 / slowdown of the SMs; one way alone costs its share of that, and both shares may be more
 * than the whole - an expert's backward on an H200 took 287 us alone, 336 beside a download and 376 beside both ways (CPU Adam at work; medians over
 * x2-m8-dram in tests/h200). So the SMs are there twice:
 *
 *     both = 1 - 1 / slowdown        SMs   copies hold   uploads          downloads        uploads alone   downloads alone    both
 *     up   = both copy_up_share      RES_SM              up               both - up        1 - up                             1 - both
 *     down = both copy_down_share    RES_SM_DOWN         both - down      down                             1 - down           1 - both
 *
 * and what computes needs both, the fewer of which decide. What a long GEMM loses does not grow with it (gpu.copy_exposed_us): experts of twice as
 * many tokens on two H200 took 553 us alone and 641 beside both ways. A mixer, most of which is no GEMM, loses copy_mixer_share of that: it has the
 * SMs to itself that copies hold less of. A GPU computes one thing at a time, so that the SMs are never given twice.
 *
 * A collective's kernels stay on their SMs until it ends: computation has the others meanwhile, and does not slow the collective. Copies do, through
 * what NVLink and PCIe share inside of the GPU, and both ways at most as much as a GEMM; one way is no more than its part of that: exchanges of 34 MB
 * on two H200 took 207 us beside no copy, 222 beside uploads, 226 beside downloads and 245 beside both, from the later start of the two to the later
 * end (medians over x2-m8-dram-2 in tests/h200; 206, 238 beside downloads and 260 beside both the night before). So they hold of RES_SM_COLLECTIVE
 * what they hold of RES_SM_DOWN, where uploads have what downloads leave. So do kernels that stream rows through HBM, which hold nvlink.stream_share
 * of its speed (exec/streamed.h). */
#include "resource.h"

#include <math.h>

/* Bytes through HBM of a GEMM-like stage over the time it takes: large GEMMs reuse tiles and leave most of HBM to others. Assumed. */
#define GEMM_HBM_SHARE 0.35

static int roots_per_node(const struct machine *m)
{
	return m->gpus_per_node / m->gpus_per_root;
}

static uint32_t of_gpu(int gpu, enum gpu_resource resource)
{
	return (uint32_t)gpu * GPU_RESOURCES + resource;
}

static uint32_t first_of_roots(const struct machine *m)
{
	return (uint32_t)m->gpus * GPU_RESOURCES;
}

static uint32_t of_root(const struct machine *m, int gpu, enum root_resource resource)
{
	int node = gpu / m->gpus_per_node, root = gpu % m->gpus_per_node / m->gpus_per_root;

	return first_of_roots(m) + (uint32_t)(node * roots_per_node(m) + root) * ROOT_RESOURCES + resource;
}

static uint32_t first_of_adapters(const struct machine *m)
{
	return first_of_roots(m) + (uint32_t)(machine_nodes(m) * roots_per_node(m)) * ROOT_RESOURCES;
}

static uint32_t first_of_leaves(const struct machine *m)
{
	return first_of_adapters(m) + (uint32_t)(m->nic_adapters > 1 ? machine_nodes(m) * m->nic_adapters : 0);
}

static uint32_t first_of_nodes(const struct machine *m)
{
	return first_of_leaves(m) + (uint32_t)machine_leaves(m);
}

static uint32_t of_node(const struct machine *m, int node, enum node_resource resource)
{
	return first_of_nodes(m) + (uint32_t)node * NODE_RESOURCES + resource;
}

/* What carries a GPU's bytes out of its node. */
static uint32_t of_adapter(const struct machine *m, int gpu)
{
	if (m->nic_adapters <= 1)
		return of_node(m, gpu / m->gpus_per_node, RES_NIC);
	return first_of_adapters(m) + (uint32_t)machine_adapter(m, gpu);
}

static void fill_fabric(const struct machine *m, struct resources *r)
{
	double adapter_gbps = m->nic_gbps / m->nic_adapters;

	for (uint32_t i = first_of_adapters(m); i < first_of_leaves(m); i++)
		r->capacity[i] = adapter_gbps;
	for (uint32_t i = first_of_leaves(m); i < first_of_nodes(m); i++)
		r->capacity[i] = m->fabric_leaf_nodes * (m->fabric_rails ? adapter_gbps : m->nic_gbps) / m->fabric_oversubscription;
}

static void fill_capacities(const struct machine *m, struct resources *r)
{
	for (int gpu = 0; gpu < m->gpus; gpu++) {
		double *c = &r->capacity[of_gpu(gpu, 0)];

		c[RES_SM] = c[RES_SM_DOWN] = c[RES_SM_MIXER] = c[RES_SM_MIXER_DOWN] = c[RES_SM_COLLECTIVE] = 1;
		c[RES_HBM] = m->hbm_gbps;
		c[RES_PCIE_UP] = m->h2d_gbps;
		c[RES_PCIE_DOWN] = m->d2h_gbps;
		c[RES_PCIE_DUPLEX] = m->duplex_gbps;
		c[RES_NVLINK] = m->nvlink_gbps;
		r->capacity[of_root(m, gpu, RES_ROOT_UP)] = m->root_gbps;
		r->capacity[of_root(m, gpu, RES_ROOT_DOWN)] = m->root_gbps;
	}
	for (int node = 0; node < machine_nodes(m); node++) {
		double *c = &r->capacity[of_node(m, node, 0)];

		c[RES_DRAM] = m->dram_gbps * m->adam_share * m->adam_pace; /* as fast as it is for Adam */
		c[RES_NIC] = m->nic_gbps;
		c[RES_SSD_READ] = m->ssd_read_gbps;
		c[RES_SSD_WRITE] = m->ssd_write_gbps;
		c[RES_SSD] = m->ssd_mixed_gbps;
		c[RES_CORES] = m->cores;
	}
}

static void ask(struct profile *p, uint32_t resource, double amount)
{
	if (amount <= 0)
		return;
	g_assert(p->n_demands < PROFILE_DEMANDS);
	p->demand[p->n_demands++] = (struct demand){.resource = resource, .amount = amount};
}

static void hold(struct profile *p, uint32_t resource, double amount)
{
	ask(p, resource, amount);
	if (amount > 0)
		p->demand[p->n_demands - 1].held = true;
}

static void ask_dram(const struct machine *m, struct profile *p, double amount)
{
	ask(p, of_node(m, p->node, RES_DRAM), amount);
	p->dram = amount;
}

/* A virtual GPU computes and copies on the host's cores: a stream is a thread. */
static void ask_stream_cores(const struct machine *m, struct profile *p)
{
	ask(p, of_node(m, p->node, RES_CORES), fmin(m->stream_cores, m->cores));
}

/* The sliver of the SMs that a copy holds; see above. */
static double copy_sm_share(const struct machine *m, bool up)
{
	return (1 - 1 / m->copy_gemm_slowdown) * (up ? m->copy_up_share : 1 - m->copy_up_share);
}

/* Of them as they are there the second time. */
static double copy_sm_down_share(const struct machine *m, bool up)
{
	const double down = fmax(m->copy_down_share, 1 - m->copy_up_share); /* at least what uploads leave */
	return (1 - 1 / m->copy_gemm_slowdown) * (up ? 1 - down : down);
}

/* Where both ways cost what each costs alone, once says it. */
static bool has_sm_down(const struct machine *m)
{
	return m->copy_up_share + m->copy_down_share > 1;
}

/* Where copies cost mixers what they cost a GEMM, both see the same. */
static enum gpu_resource mixer_sms(const struct machine *m)
{
	return m->copy_mixer_share == 1 ? RES_SM : RES_SM_MIXER;
}

static enum gpu_resource sms_down(enum gpu_resource sms)
{
	return sms == RES_SM ? RES_SM_DOWN : RES_SM_MIXER_DOWN;
}

/* Without NVLink collectives share the PCIe link itself with copies. */
static bool loses_to_others(const struct machine *m)
{
	return m->nvlink_gbps > 0 && (m->copy_gemm_slowdown > 1 || m->nvlink_stream_share > 0);
}

static void fill_compute(const struct machine *m, struct profile *p, enum gpu_resource sms, double hbm_share)
{
	ask(p, of_gpu(p->gpu, sms), 1);
	if (has_sm_down(m))
		ask(p, of_gpu(p->gpu, sms_down(sms)), 1);
	ask(p, of_gpu(p->gpu, RES_HBM), hbm_share * m->hbm_gbps);
	ask_stream_cores(m, p);
}

static void hold_slivers(const struct machine *m, struct profile *p, bool up, enum gpu_resource sms, double scale)
{
	hold(p, of_gpu(p->gpu, sms), copy_sm_share(m, up) * scale);
	if (has_sm_down(m))
		hold(p, of_gpu(p->gpu, sms_down(sms)), copy_sm_down_share(m, up) * scale);
}

static void fill_copy(const struct machine *m, struct profile *p, bool up)
{
	double rate = up ? m->h2d_gbps : m->d2h_gbps;

	p->flow_class = up ? FLOW_UP : FLOW_DOWN;
	ask(p, of_gpu(p->gpu, up ? RES_PCIE_UP : RES_PCIE_DOWN), rate);
	ask(p, of_gpu(p->gpu, RES_PCIE_DUPLEX), rate);
	ask(p, of_gpu(p->gpu, RES_HBM), rate);
	hold_slivers(m, p, up, RES_SM, 1);
	if (mixer_sms(m) == RES_SM_MIXER)
		hold_slivers(m, p, up, RES_SM_MIXER, m->copy_mixer_share);
	if (loses_to_others(m))
		hold(p, of_gpu(p->gpu, RES_SM_COLLECTIVE), copy_sm_down_share(m, up));
	if (m->root_gbps > 0)
		ask(p, of_root(m, p->gpu, up ? RES_ROOT_UP : RES_ROOT_DOWN), rate);
	ask_dram(m, p, rate);
	ask_stream_cores(m, p);
}

/* Both directions of the GPU's PCIe link at `rate` each. */
static void ask_pcie_both(struct profile *p, double rate)
{
	ask(p, of_gpu(p->gpu, RES_PCIE_UP), rate);
	ask(p, of_gpu(p->gpu, RES_PCIE_DOWN), rate);
	ask(p, of_gpu(p->gpu, RES_PCIE_DUPLEX), 2 * rate);
}

static void hold_sms(const struct machine *m, struct profile *p, enum gpu_resource sms, double share)
{
	hold(p, of_gpu(p->gpu, sms), share);
	if (has_sm_down(m))
		hold(p, of_gpu(p->gpu, sms_down(sms)), share);
}

/* Without NVLink a collective goes through buffers in host memory, down by the sender, up by the receiver, or straight to the other GPU. An adapter
 * reads and writes the GPU's memory over its PCIe link, past the root complex (GPUDirect RDMA through a switch). */
static void fill_collective(const struct machine *m, struct profile *p, const struct link_rates *rate)
{
	double pcie = rate->far + (m->nvlink_gbps > 0 ? 0 : rate->near);

	hold_sms(m, p, RES_SM, m->nccl_sm_share);
	if (mixer_sms(m) == RES_SM_MIXER)
		hold_sms(m, p, RES_SM_MIXER, m->nccl_sm_share);
	if (loses_to_others(m))
		ask(p, of_gpu(p->gpu, RES_SM_COLLECTIVE), 1);
	ask(p, of_gpu(p->gpu, RES_HBM), 2 * (rate->near + rate->far));
	ask_stream_cores(m, p);
	if (m->nvlink_gbps > 0)
		ask(p, of_gpu(p->gpu, RES_NVLINK), rate->near);
	ask_pcie_both(p, fmin(pcie, machine_pcie_both_gbps(m)));
	if (m->root_gbps > 0) {
		ask(p, of_root(m, p->gpu, RES_ROOT_UP), rate->root);
		ask(p, of_root(m, p->gpu, RES_ROOT_DOWN), rate->root);
	}
	if (m->nvlink_gbps == 0 && !m->pcie_peer && rate->near > 0)
		ask_dram(m, p, 2 * rate->near);
	ask(p, of_adapter(m, p->gpu), rate->far);
	if (m->fabric_leaf_nodes)
		ask(p, first_of_leaves(m) + (uint32_t)machine_leaf(m, p->gpu), rate->leaf);
}

uint32_t resources_collective(struct resources *r, const struct machine *m, int op, int algorithm, const struct ranks *ranks)
{
	struct link_rates rate;
	uint32_t first = (uint32_t)r->n_profiles;

	collective_rates(m, op, algorithm, ranks, &rate);
	r->n_profiles += m->gpus;
	r->profile = g_renew(struct profile, r->profile, r->n_profiles);
	for (int gpu = 0; gpu < m->gpus; gpu++) {
		struct profile *p = &r->profile[first + (uint32_t)gpu];

		*p = (struct profile){.gpu = gpu, .node = gpu / m->gpus_per_node};
		fill_collective(m, p, &rate);
	}
	return first;
}

/* Alone, a read or a write stays under the capacity of both together; side by side at full speed they add up to the sum, so they end at mixed / sum.
 */
static void fill_ssd(const struct machine *m, struct profile *p, bool read)
{
	double rate = read ? m->ssd_read_gbps : m->ssd_write_gbps;

	ask(p, of_node(m, p->node, read ? RES_SSD_READ : RES_SSD_WRITE), rate);
	ask(p, of_node(m, p->node, RES_SSD), (m->ssd_read_gbps + m->ssd_write_gbps) / 2);
	ask(p, of_node(m, p->node, RES_CORES), fmin(m->ssd_cores, m->cores));
	ask_dram(m, p, rate);
}

struct resources *resources_new(const struct machine *m, int adam_threads)
{
	struct resources *r = g_new0(struct resources, 1);
	int nodes = machine_nodes(m);

	r->n_resources = (int)of_node(m, nodes, 0);
	r->n_profiles = (int)profile_of_node(m, nodes, 0);
	r->capacity = g_new0(double, r->n_resources);
	r->profile = g_new0(struct profile, r->n_profiles);
	double near = machine_collective_gbps(m);
	struct link_rates inside = {.near = near, .root = m->nvlink_gbps > 0 || m->pcie_peer ? 0 : near};

	fill_capacities(m, r);
	fill_fabric(m, r);
	for (int gpu = 0; gpu < m->gpus; gpu++) {
		struct profile *p = &r->profile[profile_of_gpu(gpu, 0)];

		for (int i = 0; i < GPU_PROFILES; i++) {
			p[i].gpu = gpu;
			p[i].node = gpu / m->gpus_per_node;
		}
		fill_compute(m, &p[PROFILE_COMPUTE], RES_SM, GEMM_HBM_SHARE);
		fill_compute(m, &p[PROFILE_MIXER], mixer_sms(m), GEMM_HBM_SHARE);
		fill_compute(m, &p[PROFILE_MEMORY], RES_SM, m->hbm_efficiency);
		if (loses_to_others(m))
			hold(&p[PROFILE_MEMORY], of_gpu(gpu, RES_SM_COLLECTIVE), m->nvlink_stream_share);
		fill_copy(m, &p[PROFILE_UP], true);
		fill_copy(m, &p[PROFILE_DOWN], false);
		fill_collective(m, &p[PROFILE_COLLECTIVE], &inside);
	}
	for (int node = 0; node < nodes; node++) {
		struct profile *p = &r->profile[profile_of_node(m, node, 0)];

		for (int i = 0; i < NODE_PROFILES; i++) {
			p[i].gpu = -1;
			p[i].node = node;
		}
		p[PROFILE_ADAM].flow_class = FLOW_ADAM;
		p[PROFILE_ADAM].threads = adam_threads ? adam_threads : m->adam_threads;
		ask(&p[PROFILE_ADAM], of_node(m, node, RES_CORES), fmin(m->stream_cores * p[PROFILE_ADAM].threads, m->cores));
		ask_dram(m, &p[PROFILE_ADAM], machine_adam_gparams_per_s(m, adam_threads) * m->adam_bytes_per_param);
		fill_ssd(m, &p[PROFILE_READ], true);
		fill_ssd(m, &p[PROFILE_WRITE], false);
	}
	return r;
}

void resources_free(struct resources *r)
{
	if (!r)
		return;
	g_free(r->capacity);
	g_free(r->profile);
	g_free(r);
}

static const char *const gpu_names[GPU_RESOURCES] = {[RES_SM] = "sms",
                                                     [RES_SM_DOWN] = "sms beside downloads",
                                                     [RES_SM_MIXER_DOWN] = "sms of mixers beside downloads",
                                                     [RES_SM_MIXER] = "sms of mixers",
                                                     [RES_SM_COLLECTIVE] = "sms of collectives",
                                                     [RES_HBM] = "hbm",
                                                     [RES_PCIE_UP] = "pcie up",
                                                     [RES_PCIE_DOWN] = "pcie down",
                                                     [RES_PCIE_DUPLEX] = "pcie",
                                                     [RES_NVLINK] = "nvlink"};
static const char *const root_names[ROOT_RESOURCES] = {[RES_ROOT_UP] = "root up", [RES_ROOT_DOWN] = "root down"};
static const char *const node_names[NODE_RESOURCES] = {
    [RES_DRAM] = "dram", [RES_NIC] = "nic", [RES_SSD_READ] = "ssd read", [RES_SSD_WRITE] = "ssd write", [RES_SSD] = "ssd", [RES_CORES] = "cores"};

char *resource_name(const struct machine *m, uint32_t resource)
{
	uint32_t roots = first_of_roots(m), adapters = first_of_adapters(m), leaf = first_of_leaves(m), nodes = first_of_nodes(m);

	g_assert(resource < of_node(m, machine_nodes(m), 0));
	if (resource < roots)
		return g_strdup_printf("%s of gpu %u", gpu_names[resource % GPU_RESOURCES], resource / GPU_RESOURCES);
	if (resource < adapters)
		return g_strdup_printf("%s %u", root_names[(resource - roots) % ROOT_RESOURCES], (resource - roots) / ROOT_RESOURCES);
	if (resource < leaf)
		return g_strdup_printf("adapter %u of node %u", (resource - adapters) % (uint32_t)m->nic_adapters,
		                       (resource - adapters) / (uint32_t)m->nic_adapters);
	if (resource < nodes)
		return g_strdup_printf("uplinks of leaf switch %u", resource - leaf);
	return g_strdup_printf("%s of node %u", node_names[(resource - nodes) % NODE_RESOURCES], (resource - nodes) / NODE_RESOURCES);
}
