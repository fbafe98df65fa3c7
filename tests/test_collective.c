/* Collectives against closed forms: alpha-beta of the textbook algorithms on links in round numbers, alone and simulated without contention; who
 * meets whom on which link; and two groups that share a link. */
#include "model/collective.h"
#include "model/resource.h"
#include "sim/sim.h"
#include "steps.h"

#include <criterion/criterion.h>
#include <math.h>

/* 4 us a collective, 1 us a message inside a node at 100 GB/s, 10 us a message between nodes of eight GPUs at 80 GB/s. */
#define NET                                                                                                                                          \
	"machine.gpus_per_node=8", "nvlink.gbps=100", "nvlink.efficiency=1", "nvlink.latency_us=4", "nvlink.hop_us=1", "nic.gbps=80",                \
	    "nic.latency_us=10", "nic.window=1", "pcie.h2d_gbps=1000", "pcie.d2h_gbps=1000", "pcie.duplex_gbps=2000"

static struct machine *machine_with(const char *const *sets)
{
	g_autoptr(GError) error = NULL;
	struct machine *m = machine_load(ROUND_MACHINE, sets, &error);
	cr_assert(m != NULL, "%s", error ? error->message : "");
	return m;
}

static void expect_near(double ns, double expected_ns, const char *what, int gpus, double bytes)
{
	cr_expect_float_eq(ns / expected_ns, 1, 0.01, "%s of %g bytes on %d GPUs: %.1f us, expected %.1f", what, bytes, gpus, ns / 1e3,
	                   expected_ns / 1e3);
}

Test(collective, rings_inside_a_node)
{
	g_autoptr(machine) m = machine_with(SETS(NET, "machine.gpus=8", "software.all_reduce=ring"));
	for (int n = 2; n <= 8; n++) {
		struct ranks r = {.stride = 1, .size = n};
		for (double bytes = 1e3; bytes < 1e10; bytes *= 10) {
			double slice = bytes / n / 100;
			expect_near(collective_ns(m, OP_ALL_REDUCE, &r, bytes), 4000 + 2 * (n - 1) * (1000 + slice), "all-reduce", n, bytes);
			expect_near(collective_ns(m, OP_ALL_GATHER, &r, bytes), 4000 + (n - 1) * (1000 + slice), "all-gather", n, bytes);
			expect_near(collective_ns(m, OP_REDUCE_SCATTER, &r, bytes), 4000 + (n - 1) * (1000 + slice), "reduce-scatter", n, bytes);
			expect_near(collective_ns(m, OP_ALL_TO_ALL, &r, bytes), 4000 + (n - 1) * (1000 + slice), "all-to-all", n, bytes);
		}
	}
}

/* One GPU a node: a ring or trees over adapters alone. */
Test(collective, rings_trees_and_pairs_between_nodes)
{
	g_autoptr(machine) ring = machine_with(SETS(NET, "machine.gpus=512", "software.all_reduce=ring"));
	g_autoptr(machine) tree = machine_with(SETS(NET, "machine.gpus=512", "software.all_reduce=tree"));
	g_autoptr(machine) either = machine_with(SETS(NET, "machine.gpus=512"));
	for (int n = 4, log = 2; n <= 64; n *= 2, log++) {
		struct ranks r = {.stride = 8, .size = n};
		for (double bytes = 1e3; bytes < 1e10; bytes *= 10) {
			double slice = bytes / n / 80, by_ring = 4000 + 2 * (n - 1) * (10000 + slice),
			       by_tree = 4000 + 2 * log * 10000 + 2 * bytes / 80;
			expect_near(collective_ns(ring, OP_ALL_REDUCE, &r, bytes), by_ring, "ring", n, bytes);
			expect_near(collective_ns(tree, OP_ALL_REDUCE, &r, bytes), by_tree, "tree", n, bytes);
			expect_near(collective_ns(either, OP_ALL_REDUCE, &r, bytes), fmin(by_ring, by_tree), "the faster", n, bytes);
			expect_near(collective_ns(tree, OP_ALL_GATHER, &r, bytes), 4000 + log * 10000 + (n - 1) * slice, "doubling", n, bytes);
			expect_near(collective_ns(either, OP_ALL_TO_ALL, &r, bytes), 4000 + (n - 1) * (10000 + slice), "pairs", n, bytes);
		}
	}
}

/* All GPUs of all nodes: every edge of a flat ring carries 2 (n - 1) / n of the bytes, and one edge leaves each node. */
Test(collective, whole_nodes_share_their_adapters)
{
	g_autoptr(machine) m = machine_with(SETS(NET, "machine.gpus=32", "software.all_reduce=ring"));
	struct ranks r = {.stride = 1, .size = 32};
	double bytes = 1e9;
	expect_near(collective_ns(m, OP_ALL_REDUCE, &r, bytes), 4000 + 2 * 28 * 1000 + 2 * 3 * 10000 + 2 * bytes * 31 / 32 / 80, "ring", 32, bytes);
	/* 24 of 32 messages leave, eight GPUs' through 80 GB/s */
	expect_near(collective_ns(m, OP_ALL_TO_ALL, &r, bytes), 4000 + 7 * 1000 + 24 * 10000 + 8 * bytes * 24 / 32 / 80, "pairs", 32, bytes);
}

/* Tutel, section 4.3: S / n between any two, S m / n between nodes once a node's GPUs have gathered what goes to GPUs of equal place. */
Test(collective, hierarchical_messages_are_m_times_as_long)
{
	g_autoptr(machine) m = machine_with(SETS(NET, "machine.gpus=2048"));
	for (int n = 16; n <= 2048; n *= 2) {
		struct ranks r = {.stride = 1, .size = n};
		struct crossing inside, between, pairs;
		double bytes = 3 << 20;
		collective_crossing(m, OP_ALL_TO_ALL, ALGORITHM_PAIRWISE, &r, bytes, &pairs);
		collective_crossing(m, OP_ALL_TO_ALL, ALGORITHM_GATHER, &r, bytes, &inside);
		collective_crossing(m, OP_ALL_TO_ALL, ALGORITHM_RAIL, &r, bytes, &between);
		cr_assert_eq(all_to_all_message_bytes(m, &r, bytes, false), bytes / n);
		cr_assert_eq(all_to_all_message_bytes(m, &r, bytes, true), bytes * 8 / n);
		cr_assert_eq(pairs.far_bytes, (n - 8) * bytes / n);
		cr_assert_eq(pairs.far_steps, n - 8);
		cr_assert_eq(between.far_bytes, (n / 8 - 1) * (bytes * 8 / n));
		cr_assert_eq(between.far_bytes, pairs.far_bytes);
		cr_assert_eq(between.far_steps, n / 8 - 1);
		cr_assert_eq(inside.near_bytes, 7 * bytes / 8);
		cr_assert_eq(inside.far_bytes, 0);
	}
}

static double all_to_all_us(const struct machine *m, int gpus, double bytes, bool hierarchical)
{
	struct ranks r = {.stride = 1, .size = gpus};
	struct group_shape g;
	struct crossing x, y;
	group_shape(m, &r, &g);
	collective_crossing(m, OP_ALL_TO_ALL, hierarchical ? ALGORITHM_GATHER : ALGORITHM_PAIRWISE, &r, bytes, &x);
	collective_crossing(m, OP_ALL_TO_ALL, ALGORITHM_RAIL, &r, bytes, &y);
	return (crossing_ns(m, &g, &x) + (hierarchical ? crossing_ns(m, &g, &y) : 0)) / 1e3;
}

/* Tutel, section 4.3, on nodes of eight A100: the hierarchical one wins where S / n is small and loses at 32 to 256 MiB on few GPUs. */
Test(collective, hierarchy_wins_with_small_messages_and_loses_with_large_ones)
{
	g_autoptr(GError) error = NULL;
	g_autoptr(machine) m = machine_load("a100-80g-x8", SETS("machine.gpus=4096", "nic.adapters=8"), &error);
	const double mib = 1 << 20;
	cr_assert(m != NULL);
	for (double bytes = 32 * mib; bytes <= 256 * mib; bytes *= 2)
		cr_assert_lt(all_to_all_us(m, 64, bytes, false), all_to_all_us(m, 64, bytes, true), "%g MiB", bytes / mib);
	for (int gpus = 256; gpus <= 4096; gpus *= 2)
		cr_assert_lt(all_to_all_us(m, gpus, mib, true), all_to_all_us(m, gpus, mib, false), "%d GPUs", gpus);
	/* the more GPUs, the more it gains */
	double gain = 1;
	for (int gpus = 256; gpus <= 4096; gpus *= 2) {
		double now = all_to_all_us(m, gpus, 32 * mib, false) / all_to_all_us(m, gpus, 32 * mib, true);
		cr_assert_gt(now, gain);
		gain = now;
	}
}

Test(collective, groups_lie_where_their_ranks_do)
{
	static const struct {
		struct ranks ranks;
		int local, nodes;
		double far_gbps;
	} cases[] = {
	    {{0, 1, 4}, 4, 1, 0},  {{4, 1, 4}, 4, 1, 0},   {{6, 1, 4}, 4, 2, 40},  {{0, 8, 4}, 1, 4, 10},  {{3, 8, 4}, 1, 4, 10},
	    {{0, 4, 8}, 2, 4, 20}, {{1, 2, 16}, 4, 4, 40}, {{0, 1, 32}, 8, 4, 80}, {{0, 16, 2}, 1, 2, 10},
	};
	g_autoptr(machine) m = machine_with(SETS(NET, "machine.gpus=32", "nic.adapters=8"));
	for (size_t i = 0; i < G_N_ELEMENTS(cases); i++) {
		struct group_shape g;
		group_shape(m, &cases[i].ranks, &g);
		cr_expect_eq(g.local, cases[i].local, "case %zu: %d a node", i, g.local);
		cr_expect_eq(g.nodes, cases[i].nodes, "case %zu: %d nodes", i, g.nodes);
		cr_expect_eq(g.far_gbps, cases[i].far_gbps, "case %zu: %g GB/s", i, g.far_gbps);
	}
}

/* Four nodes below each leaf switch, uplinks a quarter of the downlinks: 80 GB/s up for 320 GB/s of adapters. */
Test(collective, oversubscribed_uplinks_slow_what_crosses_them)
{
	g_autoptr(machine) m = machine_with(SETS(NET, "machine.gpus=128", "fabric.leaf_nodes=4", "fabric.oversubscription=4"));
	struct ranks all = {.stride = 1, .size = 128}, near = {.stride = 1, .size = 32};
	double bytes = 1e9;
	/* 96 of 128 messages leave the leaf switch, from 32 GPUs */
	expect_near(collective_ns(m, OP_ALL_TO_ALL, &all, bytes), 4000 + 7000 + 120 * 10000 + 32 * bytes * 96 / 128 / 80, "pairs", 128, bytes);
	expect_near(collective_ns(m, OP_ALL_TO_ALL, &near, bytes), 4000 + 7000 + 24 * 10000 + 8 * bytes * 24 / 32 / 80, "pairs", 32, bytes);
	/* a ring leaves each leaf switch once, with as many bytes as any other edge */
	m->all_reduce = REDUCE_RING;
	expect_near(collective_ns(m, OP_ALL_REDUCE, &all, bytes), 4000 + 2 * 112 * 1000 + 2 * 15 * 10000 + 2 * bytes * 127 / 128 / 80, "ring", 128,
	            bytes);
}

/* With rails what goes to the same place of another node stays below its leaf switch, all else crosses the spine. */
Test(collective, rails_keep_equal_places_below_one_switch)
{
	g_autoptr(machine) m =
	    machine_with(SETS(NET, "machine.gpus=64", "nic.adapters=8", "fabric.leaf_nodes=8", "fabric.oversubscription=2", "fabric.rails=true"));
	struct ranks r = {.stride = 1, .size = 64};
	struct crossing pairs, rail;
	collective_crossing(m, OP_ALL_TO_ALL, ALGORITHM_PAIRWISE, &r, 64, &pairs);
	collective_crossing(m, OP_ALL_TO_ALL, ALGORITHM_RAIL, &r, 64, &rail);
	cr_assert_eq(pairs.far_bytes, 56);
	cr_assert_eq(pairs.leaf_bytes, 49);
	cr_assert_eq(rail.far_bytes, 56);
	cr_assert_eq(rail.leaf_bytes, 0);
}

Test(collective, a_mesh_gives_a_group_only_its_own_links)
{
	g_autoptr(machine) m = machine_with(SETS(NET, "machine.gpus=8", "machine.gpus_per_node=8", "nvlink.gbps=140", "nvlink.mesh=true"));
	struct ranks two = {.stride = 1, .size = 2}, all = {.stride = 1, .size = 8};
	expect_near(collective_ns(m, OP_ALL_TO_ALL, &two, 1e9), 4000 + 1000 + 0.5e9 / 20, "pairs", 2, 1e9);
	expect_near(collective_ns(m, OP_ALL_TO_ALL, &all, 1e9), 4000 + 7000 + 0.875e9 / 140, "pairs", 8, 1e9);
}

static double demand_of(const struct profile *p, const struct resources *r, const struct machine *m, const char *name)
{
	for (int i = 0; i < p->n_demands; i++) {
		g_autofree char *resource = resource_name(m, p->demand[i].resource);
		cr_assert_gt(r->capacity[p->demand[i].resource], 0);
		if (g_str_equal(resource, name))
			return p->demand[i].amount;
	}
	return 0;
}

#define PCIE "machine.gpus=8", "machine.gpus_per_node=8", "nvlink.gbps=0", "pcie.gpus_per_root=2"

/* Without NVLink: through host memory all bytes cross the root complex and twice the DRAM; directly, a ring's one edge in two. */
Test(collective, pcie_alone_goes_through_the_host_or_straight)
{
	const char *const through[] = {PCIE, "pcie.root_gbps=32", NULL}, *const straight[] = {PCIE, "pcie.root_gbps=32", "pcie.peer=true", NULL};
	struct ranks r = {.stride = 1, .size = 8};
	for (int peer = 0; peer < 2; peer++) {
		g_autoptr(machine) m = machine_with(peer ? straight : through);
		g_autoptr(resources) resources = resources_new(m, 0);
		uint32_t ring = resources_collective(resources, m, OP_ALL_REDUCE, ALGORITHM_RING, &r),
		         pairs = resources_collective(resources, m, OP_ALL_TO_ALL, ALGORITHM_PAIRWISE, &r);
		const struct profile *p = &resources->profile[ring + 5], *q = &resources->profile[pairs + 5];
		cr_assert_eq(demand_of(p, resources, m, "pcie up of gpu 5"), 16);
		cr_assert_eq(demand_of(p, resources, m, "root up 2"), peer ? 8 : 16);
		cr_assert_eq(demand_of(p, resources, m, "dram of node 0"), peer ? 0 : 32);
		cr_assert_float_eq(demand_of(q, resources, m, "root up 2"), peer ? 16.0 * 6 / 7 : 16, 1e-9);
	}
}

/* A root complex of 16 GB/s for two GPUs, or a DRAM of 64 GB/s for all, written and read: 8 and 4 GB/s a GPU. */
Test(collective, members_behind_one_root_complex_are_in_each_others_way)
{
	g_autoptr(machine) root = machine_with(SETS(PCIE, "pcie.root_gbps=16", "nvlink.latency_us=4"));
	g_autoptr(machine) dram = machine_with(SETS(PCIE, "pcie.root_gbps=16", "nvlink.latency_us=4", "host.dram_gbps=64"));
	g_autoptr(machine) peer = machine_with(SETS(PCIE, "pcie.root_gbps=16", "nvlink.latency_us=4", "host.dram_gbps=64", "pcie.peer=true"));
	struct ranks r = {.stride = 1, .size = 8};
	root->all_reduce = dram->all_reduce = peer->all_reduce = REDUCE_RING;
	expect_near(collective_ns(root, OP_ALL_REDUCE, &r, 1e9), 4000 + 1.75e9 / 8, "through the root", 8, 1e9);
	expect_near(collective_ns(dram, OP_ALL_REDUCE, &r, 1e9), 4000 + 1.75e9 / 4, "through the DRAM", 8, 1e9);
	expect_near(collective_ns(peer, OP_ALL_REDUCE, &r, 1e9), 4000 + 1.75e9 / 16, "straight", 8, 1e9);
	expect_near(collective_ns(peer, OP_ALL_TO_ALL, &r, 1e9), 4000 + 0.75e9 / 8, "pairs, six of seven behind other roots", 8, 1e9);
}

/* The simulator's time of a whole group at once is the closed form: its members do not slow each other. Two groups that meet on a link do. */
static nsec_t simulated(const struct machine *m, int op, int algorithm, const struct ranks *groups, int n_groups, double bytes)
{
	g_autoptr(GError) error = NULL;
	g_autoptr(resources) r = resources_new(m, 0);
	uint32_t profile = resources_collective(r, m, op, algorithm, groups);
	g_autoptr(backend) b = sim_new(m, r, NULL, &(struct sim_options){0});
	struct group_shape shape;
	struct crossing x;
	stage_id id = 0;
	group_shape(m, groups, &shape);
	collective_crossing(m, op, algorithm, groups, bytes, &x);
	for (int g = 0; g < n_groups; g++)
		for (int i = 0; i < groups[g].size; i++) {
			int gpu = groups[g].first + i * groups[g].stride;
			struct stage st = {.id = id++, .kind = STAGE_ALL_REDUCE, .expert = -1, .rank = gpu};
			st.stream = stream_of_gpu(gpu, STREAM_COLLECTIVE);
			st.group = (uint32_t)g + 1;
			st.group_size = (uint32_t)groups[g].size;
			st.profile = profile + (uint32_t)gpu;
			st.cost_ns = llround(crossing_ns(m, &shape, &x));
			cr_assert(backend_launch(b, &st, &error));
		}
	nsec_t end = 0;
	for (stage_id i = 0; i < id; i++) {
		cr_assert(backend_wait(b, i, &error), "%s", error ? error->message : "");
		end = MAX(end, sim_end_ns(b, i));
	}
	return end;
}

Test(collective, simulated_alone_it_takes_its_closed_form)
{
	static const struct ranks shapes[] = {{0, 1, 8}, {0, 1, 64}, {0, 8, 8}, {0, 2, 32}, {0, 16, 4}};
	static const struct {
		int op, algorithm;
	} ways[] = {{OP_ALL_REDUCE, ALGORITHM_RING}, {OP_ALL_REDUCE, ALGORITHM_TREE},     {OP_ALL_GATHER, ALGORITHM_RING},
	            {OP_ALL_GATHER, ALGORITHM_TREE}, {OP_ALL_TO_ALL, ALGORITHM_PAIRWISE}, {OP_ALL_TO_ALL, ALGORITHM_GATHER},
	            {OP_ALL_TO_ALL, ALGORITHM_RAIL}};
	g_autoptr(machine) pool = machine_with(SETS(NET, "machine.gpus=64"));
	g_autoptr(machine) fabric = machine_with(SETS(NET, "machine.gpus=64", "nic.adapters=4", "fabric.leaf_nodes=2", "fabric.oversubscription=3"));
	g_autoptr(machine) rails =
	    machine_with(SETS(NET, "machine.gpus=64", "nic.adapters=8", "fabric.leaf_nodes=4", "fabric.oversubscription=2", "fabric.rails=true"));
	g_autoptr(machine) pcie =
	    machine_with(SETS(NET, "machine.gpus=64", "nvlink.gbps=0", "pcie.gpus_per_root=2", "pcie.root_gbps=900", "pcie.peer=true"));
	g_autoptr(machine) host = machine_with(SETS(NET, "machine.gpus=64", "nvlink.gbps=0", "host.dram_gbps=700"));
	const struct machine *machines[] = {pool, fabric, rails, pcie, host};
	for (size_t i = 0; i < G_N_ELEMENTS(machines); i++)
		for (size_t s = 0; s < G_N_ELEMENTS(shapes); s++)
			for (size_t w = 0; w < G_N_ELEMENTS(ways); w++) {
				struct group_shape shape;
				struct crossing x;
				group_shape(machines[i], &shapes[s], &shape);
				collective_crossing(machines[i], ways[w].op, ways[w].algorithm, &shapes[s], 1e9, &x);
				double alone = crossing_ns(machines[i], &shape, &x);
				nsec_t ns = simulated(machines[i], ways[w].op, ways[w].algorithm, &shapes[s], 1, 1e9);
				cr_expect_float_eq((double)ns / alone, 1, 0.01, "machine %zu, shape %zu, way %zu: %ld ns, alone %.0f", i, s, w, ns,
				                   alone);
			}
}

/* Eight data-parallel rings of tensor-parallel places share the pool of adapters, and each has its own adapter where there are eight. */
Test(collective, groups_that_meet_on_a_link_share_it)
{
	g_autoptr(machine) pool = machine_with(SETS(NET, "machine.gpus=64", "nvlink.latency_us=0", "nic.latency_us=0"));
	g_autoptr(machine) own = machine_with(SETS(NET, "machine.gpus=64", "nic.adapters=8", "nvlink.latency_us=0", "nic.latency_us=0"));
	struct ranks groups[8];
	for (int i = 0; i < 8; i++)
		groups[i] = (struct ranks){i, 8, 8};
	double alone = 2e9 * 7 / 8 / 80;
	expect_near((double)simulated(pool, OP_ALL_REDUCE, ALGORITHM_RING, groups, 1, 1e9), alone, "one ring", 8, 1e9);
	expect_near((double)simulated(pool, OP_ALL_REDUCE, ALGORITHM_RING, groups, 8, 1e9), 8 * alone, "eight rings", 64, 1e9);
	expect_near((double)simulated(own, OP_ALL_REDUCE, ALGORITHM_RING, groups, 1, 1e9), 8 * alone, "one ring", 8, 1e9);
	expect_near((double)simulated(own, OP_ALL_REDUCE, ALGORITHM_RING, groups, 8, 1e9), 8 * alone, "eight rings", 64, 1e9);
}
