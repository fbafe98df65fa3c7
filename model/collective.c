/* A collective is counted in bytes and messages of one member, whatever the links; then the slowest link says how long it takes.
 *
 *     gpu -- nvlink or pcie -- gpu            near: inside a node
 *     gpu -- adapter -- leaf switch           far: between nodes
 *                         `-- spine           leaf: between leaf switches, over uplinks that may be fewer than the downlinks
 *
 * With rails each adapter of a node has a leaf switch of its own, shared with the adapters of equal place of the other nodes: neighbours of equal
 * place meet below it, others only over the spine. Members of a group are as regular as their ranks: what one of the busiest sends, all do. */
#include "collective.h"

#include <math.h>

/* The GPUs of a node lie `share` to an adapter. */
static int adapters_used(const struct machine *m, int stride, int local)
{
	int share = MAX(1, m->gpus_per_node / m->nic_adapters);
	return MIN(m->nic_adapters, stride >= share ? local : (local * stride + share - 1) / share);
}

void group_shape(const struct machine *m, const struct ranks *r, struct group_shape *out)
{
	int gpn = m->gpus_per_node, span = (r->first % gpn + r->stride * (r->size - 1)) / gpn + 1;
	*out = (struct group_shape){.size = r->size, .local = 1, .nodes = r->size, .leaf_nodes = r->size};
	if (r->stride < gpn) {
		out->local = MIN(r->size, (gpn + r->stride - 1) / r->stride);
		out->nodes = span;
	}
	int apart = MAX(1, r->stride / gpn), below = m->fabric_leaf_nodes ? (m->fabric_leaf_nodes + apart - 1) / apart : out->nodes;
	out->leaf_nodes = MIN(out->nodes, below);
	if (out->local > 1)
		out->near_gbps = machine_collective_gbps(m) * (m->nvlink_mesh && m->nvlink_gbps > 0 ? (out->local - 1.0) / (gpn - 1) : 1);
	out->adapters = 1;
	if (out->nodes == 1)
		return;
	out->adapters = adapters_used(m, r->stride, out->local);
	double adapter_gbps = m->nic_gbps / m->nic_adapters;
	/* an adapter reaches the memory of a GPU over the GPU's PCIe link, both ways at full speed: past the host (GPUDirect RDMA) */
	out->far_gbps = fmin(out->adapters * adapter_gbps, out->local * fmin(m->h2d_gbps, m->d2h_gbps));
	if (m->fabric_leaf_nodes && (m->fabric_rails || out->nodes > out->leaf_nodes))
		out->leaf_gbps =
		    m->fabric_leaf_nodes * adapter_gbps * (m->fabric_rails ? out->adapters : m->nic_adapters) / m->fabric_oversubscription;
}

double messages_in_turn(const struct machine *m, double messages)
{
	return ceil(messages / m->nic_window);
}

/* One edge of the ring leaves each leaf switch. */
static void cross_ring(const struct group_shape *g, double rounds, double bytes, struct crossing *x)
{
	double each = rounds * bytes * (g->size - 1) / g->size;
	x->near_bytes = g->local > 1 ? each : 0;
	x->far_bytes = g->nodes > 1 ? each / g->local : 0;
	x->leaf_bytes = g->nodes > g->leaf_nodes ? each / (g->local * g->leaf_nodes) : 0;
	x->near_steps = rounds * (g->size - g->nodes);
	x->far_steps = rounds * (g->nodes - 1);
}

/* A node is a leaf of one tree and an inner node of the other: three edges of half the bytes each and one of the other tree, up and down. Of two
 * nodes each is the other's parent. What leaves a leaf switch is taken as what leaves a node. */
static void cross_trees(const struct group_shape *g, double bytes, struct crossing *x)
{
	double far = g->nodes > 2 ? 2 * bytes : g->nodes > 1 ? bytes : 0;
	x->near_bytes = 2 * bytes * (g->local - 1) / g->local;
	x->far_bytes = far / g->local;
	x->leaf_bytes = g->nodes > g->leaf_nodes ? far / (g->local * g->leaf_nodes) : 0;
	x->near_steps = 2 * (g->local - 1);
	x->far_steps = 2 * ceil(log2(g->nodes));
}

/* Doubling between nodes while the pieces are small, each member with its own; then a ring inside. */
static void cross_doubling(const struct group_shape *g, double bytes, struct crossing *x)
{
	x->near_bytes = bytes * (g->local - 1) / g->local;
	x->far_bytes = bytes / g->local * (g->nodes - 1) / g->nodes;
	x->leaf_bytes = bytes / g->local * (g->nodes - g->leaf_nodes) / g->nodes;
	x->near_steps = g->local - 1;
	x->far_steps = ceil(log2(g->nodes));
}

/* With rails only peers of equal place meet below a leaf switch. */
static void cross_pairs(const struct machine *m, const struct group_shape *g, double bytes, struct crossing *x)
{
	double message = bytes / g->size, below = g->leaf_nodes * g->local;
	if (m->fabric_rails)
		below = g->local + (g->leaf_nodes - 1) * ceil((double)g->local / m->nic_adapters);
	x->near_bytes = message * (g->local - 1);
	x->far_bytes = message * (g->size - g->local);
	x->leaf_bytes = message * fmax(0, g->size - below);
	x->near_steps = g->local - 1;
	x->far_steps = messages_in_turn(m, g->size - g->local);
}

/* Through host memory all bytes cross the root complex; directly, one edge of a ring does, and messages to GPUs behind other roots. */
static double crossing_roots(const struct machine *m, int algorithm, const struct group_shape *g, double near)
{
	int behind = m->gpus_per_root;
	if (m->nvlink_gbps > 0 || g->local == 1)
		return 0;
	if (!m->pcie_peer)
		return near;
	if (behind >= g->local)
		return 0;
	return algorithm == ALGORITHM_RING || algorithm == ALGORITHM_TREE ? near / behind : near * (g->local - behind) / (g->local - 1);
}

void collective_crossing(const struct machine *m, int op, int algorithm, const struct ranks *ranks, double bytes, struct crossing *x)
{
	struct group_shape g;
	group_shape(m, ranks, &g);
	*x = (struct crossing){0};
	if (g.size <= 1)
		return;
	switch (algorithm) {
	case ALGORITHM_RING:
		cross_ring(&g, op == OP_ALL_REDUCE ? 2 : 1, bytes, x);
		break;
	case ALGORITHM_TREE:
		if (op == OP_ALL_REDUCE)
			cross_trees(&g, bytes, x);
		else
			cross_doubling(&g, bytes, x);
		break;
	case ALGORITHM_PAIRWISE:
		cross_pairs(m, &g, bytes, x);
		break;
	case ALGORITHM_GATHER:
		*x = (struct crossing){
		    .near_bytes = bytes * (g.local - 1) / g.local, .near_steps = g.local - 1, .copy_bytes = g.local > 1 ? 2 * bytes : 0};
		break;
	case ALGORITHM_RAIL:
		*x = (struct crossing){.far_bytes = bytes * (g.nodes - 1) / g.nodes,
		                       .leaf_bytes = bytes * (g.nodes - g.leaf_nodes) / g.nodes,
		                       .far_steps = messages_in_turn(m, g.nodes - 1),
		                       .copy_bytes = g.nodes > 1 ? 2 * bytes : 0};
		break;
	default:
		g_assert_not_reached();
	}
	x->root_bytes = crossing_roots(m, algorithm, &g, x->near_bytes);
}

/* The links carry their bytes at once; members behind one root complex, and all of a node in its DRAM, are in each other's way. */
static double links_ns(const struct machine *m, const struct group_shape *g, const struct crossing *x)
{
	int behind = MIN(m->gpus_per_root, g->local);
	double root = m->root_gbps > 0 ? x->root_bytes * behind / m->root_gbps : 0;
	double dram = m->nvlink_gbps > 0 || m->pcie_peer ? 0 : 2 * x->near_bytes * g->local / m->dram_gbps;
	double near = x->near_bytes > 0 ? x->near_bytes / g->near_gbps : 0, far = x->far_bytes > 0 ? x->far_bytes * g->local / g->far_gbps : 0;
	double leaf = g->leaf_gbps > 0 ? x->leaf_bytes * g->local * g->leaf_nodes / g->leaf_gbps : 0;
	return fmax(fmax(near, root), fmax(dram, fmax(far, leaf)));
}

double crossing_ns(const struct machine *m, const struct group_shape *g, const struct crossing *x)
{
	if (g->size <= 1)
		return 0;
	double latency_us = m->nvlink_latency_us + x->near_steps * m->nvlink_hop_us + x->far_steps * m->nic_latency_us;
	return latency_us * 1e3 + x->copy_bytes / (m->hbm_gbps * m->hbm_efficiency) + links_ns(m, g, x);
}

static double algorithm_ns(const struct machine *m, int op, int algorithm, const struct ranks *ranks, double bytes)
{
	struct group_shape shape;
	struct crossing x;
	group_shape(m, ranks, &shape);
	collective_crossing(m, op, algorithm, ranks, bytes, &x);
	return crossing_ns(m, &shape, &x);
}

double collective_ns(const struct machine *m, int op, const struct ranks *ranks, double bytes)
{
	if (op == OP_ALL_TO_ALL)
		return algorithm_ns(m, op, ALGORITHM_PAIRWISE, ranks, bytes);
	if (m->all_reduce != REDUCE_AUTO)
		return algorithm_ns(m, op, m->all_reduce == REDUCE_RING ? ALGORITHM_RING : ALGORITHM_TREE, ranks, bytes);
	return fmin(algorithm_ns(m, op, ALGORITHM_RING, ranks, bytes), algorithm_ns(m, op, ALGORITHM_TREE, ranks, bytes));
}

double all_to_all_message_bytes(const struct machine *m, const struct ranks *ranks, double bytes, bool hierarchical)
{
	struct group_shape g;
	group_shape(m, ranks, &g);
	return bytes / g.size * (hierarchical ? g.local : 1);
}

void collective_rates(const struct machine *m, int op, int algorithm, const struct ranks *ranks, struct link_rates *out)
{
	struct group_shape shape;
	struct crossing x;
	group_shape(m, ranks, &shape);
	collective_crossing(m, op, algorithm, ranks, 1, &x);
	double ns = links_ns(m, &shape, &x);
	*out = (struct link_rates){0};
	if (ns > 0)
		*out = (struct link_rates){x.near_bytes / ns, x.far_bytes / ns, shape.leaf_gbps > 0 ? x.leaf_bytes / ns : 0, x.root_bytes / ns};
}
