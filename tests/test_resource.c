/* Demands against capacities, through a naive max-min of rates: what a machine's numbers promise must come out when its stages share. */
#include "model/resource.h"

#include <criterion/criterion.h>
#include <math.h>
#include <string.h>

#define NEAR 1e-9

static struct machine *machine_of(const char *source, const char *const *overrides)
{
	g_autoptr(GError) error = NULL;
	struct machine *m = machine_load(source, overrides, &error);

	cr_assert_not_null(m, "%s", error ? error->message : "");
	return m;
}

static double demand_of(const struct profile *p, uint32_t resource)
{
	for (int i = 0; i < p->n_demands; i++)
		if (p->demand[i].resource == resource)
			return p->demand[i].amount;
	return 0;
}

static double held_of(const struct profile *p, uint32_t resource)
{
	for (int i = 0; i < p->n_demands; i++)
		if (p->demand[i].resource == resource && p->demand[i].held)
			return p->demand[i].amount;
	return 0;
}

/* Raises all rates together to the first saturated resource, freezes who asks more of it, goes on. rate (n). */
static void max_min(const struct resources *r, const uint32_t *profile, int n, double *rate)
{
	bool frozen[16] = {false};
	double level = 0;

	for (int left = n; left > 0;) {
		double room = 1 - level;
		int at = -1;

		for (int k = 0; k < r->n_resources; k++) {
			double used = 0, growing = 0;

			for (int i = 0; i < n; i++) {
				double held = held_of(&r->profile[profile[i]], (uint32_t)k);
				double amount = demand_of(&r->profile[profile[i]], (uint32_t)k) - held;

				used += held + amount * (frozen[i] ? rate[i] : level);
				growing += frozen[i] ? 0 : amount;
			}
			if (growing > 0 && (r->capacity[k] - used) / growing < room) {
				room = (r->capacity[k] - used) / growing;
				at = k;
			}
		}
		level += room;
		for (int i = 0; i < n; i++) {
			const struct profile *p = &r->profile[profile[i]];

			if (!frozen[i] && (at < 0 || demand_of(p, (uint32_t)at) > held_of(p, (uint32_t)at))) {
				frozen[i] = true;
				rate[i] = level;
				left--;
			}
		}
	}
}

Test(resource, ids_are_dense_and_names_tell_them_apart)
{
	/* two nodes, the second half full: 6 GPUs, 2 x 2 roots */
	g_autoptr(machine) m = machine_of("h100-x8", (const char *const[]){"machine.gpus_per_node=4", "machine.gpus=6", NULL});
	g_autoptr(resources) r = resources_new(m, 0);
	g_autoptr(GHashTable) seen = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, NULL);

	cr_assert_eq(r->n_resources, 6 * GPU_RESOURCES + 4 * ROOT_RESOURCES + 2 * NODE_RESOURCES);
	cr_assert_eq(r->n_profiles, 6 * GPU_PROFILES + 2 * NODE_PROFILES);
	for (int i = 0; i < r->n_resources; i++)
		cr_assert(g_hash_table_add(seen, resource_name(m, (uint32_t)i)));
	cr_assert(g_hash_table_contains(seen, "pcie up of gpu 0"));
	cr_assert(g_hash_table_contains(seen, "dram of node 1"));
	cr_assert(g_hash_table_contains(seen, "root down 3"));
	cr_assert_eq(r->profile[profile_of_gpu(5, PROFILE_UP)].gpu, 5);
	cr_assert_eq(r->profile[profile_of_gpu(5, PROFILE_UP)].node, 1);
	cr_assert_eq(r->profile[profile_of_node(m, 1, PROFILE_ADAM)].gpu, -1);
	cr_assert_eq(r->profile[profile_of_node(m, 1, PROFILE_ADAM)].node, 1);
}

Test(resource, every_stage_of_every_preset_runs_alone_at_its_solo_speed)
{
	g_auto(GStrv) names = preset_names("machines");

	for (int i = 0; names[i]; i++) {
		g_autoptr(machine) m = machine_of(names[i], NULL);
		g_autoptr(resources) r = resources_new(m, 0);

		for (int p = 0; p < r->n_profiles; p++)
			for (int d = 0; d < r->profile[p].n_demands; d++) {
				const struct demand *demand = &r->profile[p].demand[d];
				g_autofree char *name = resource_name(m, demand->resource);

				cr_assert_leq(demand->amount, r->capacity[demand->resource] * (1 + NEAR), "%s: profile %d, %s", names[i], p, name);
			}
	}
}

Test(resource, copies_both_ways_share_the_duplex_rate)
{
	g_autoptr(machine) m = machine_of("h200-x2", NULL);
	g_autoptr(resources) r = resources_new(m, 0);
	const uint32_t both[] = {profile_of_gpu(1, PROFILE_UP), profile_of_gpu(1, PROFILE_DOWN)};
	double rate[2];

	max_min(r, both, 2, rate);
	/* measured: 50.7 each of 55.3 and 55.1 */
	cr_assert_float_eq(rate[0] * 55.3, 50.7, 0.1);
	cr_assert_float_eq(rate[1] * 55.1, 50.7, 0.1);
}

Test(resource, gemm_under_copies_both_ways_slows_as_measured)
{
	const char *const presets[] = {"h200-x1", "h200-x2", "a100-40g-x4", NULL};

	for (int i = 0; presets[i]; i++) {
		g_autoptr(machine) m = machine_of(presets[i], NULL);
		g_autoptr(resources) r = resources_new(m, 0);
		const uint32_t three[] = {profile_of_gpu(0, PROFILE_COMPUTE), profile_of_gpu(0, PROFILE_UP), profile_of_gpu(0, PROFILE_DOWN)};
		double rate[3];

		max_min(r, three, 3, rate);
		cr_assert_float_eq(rate[0], 1 / m->copy_gemm_slowdown, NEAR, "%s: %g", presets[i], rate[0]);
		cr_assert_float_eq(rate[1], m->duplex_gbps / (m->h2d_gbps + m->d2h_gbps), NEAR, "the copies are not slowed");
	}
}

Test(resource, copies_cost_each_way_and_mixers_their_share)
{
	const char *const overrides[] = {"gpu.copy_gemm_slowdown=1.25", "gpu.copy_up_share=0.75", "gpu.copy_mixer_share=0.5", NULL};
	g_autoptr(machine) m = machine_of("h200-x1", overrides);
	g_autoptr(resources) r = resources_new(m, 0);
	const struct {
		enum gpu_profile what, beside;
		double rate;
	} cases[] = {{PROFILE_COMPUTE, PROFILE_UP, 0.85},  {PROFILE_COMPUTE, PROFILE_DOWN, 0.95},
	             {PROFILE_MEMORY, PROFILE_UP, 0.85},   {PROFILE_MIXER, PROFILE_UP, 0.925},
	             {PROFILE_MIXER, PROFILE_DOWN, 0.975}, {PROFILE_MIXER, PROFILE_COLLECTIVE, 1 - m->nccl_sm_share}};

	for (size_t i = 0; i < G_N_ELEMENTS(cases); i++) {
		const uint32_t two[] = {profile_of_gpu(0, cases[i].what), profile_of_gpu(0, cases[i].beside)};
		double rate[2];

		max_min(r, two, 2, rate);
		cr_expect_float_eq(rate[0], cases[i].rate, NEAR, "case %zu: %g", i, rate[0]);
	}
}

/* One way alone costs more than its part of both. */
Test(resource, copies_both_ways_cost_less_than_each_alone)
{
	const char *const overrides[] = {"gpu.copy_gemm_slowdown=1.25", "gpu.copy_up_share=0.75", "gpu.copy_down_share=0.5",
	                                 "gpu.copy_mixer_share=0.5", NULL};
	g_autoptr(machine) m = machine_of("h200-x1", overrides);
	g_autoptr(resources) r = resources_new(m, 0);
	const struct {
		enum gpu_profile what;
		double up, down, both, collective;
	} cases[] = {{PROFILE_COMPUTE, 0.85, 0.9, 0.8, 1 - m->nccl_sm_share},
	             {PROFILE_MEMORY, 0.85, 0.9, 0.8, 1 - m->nccl_sm_share},
	             {PROFILE_MIXER, 0.925, 0.95, 0.9, 1 - m->nccl_sm_share}};
	for (size_t i = 0; i < G_N_ELEMENTS(cases); i++) {
		const uint32_t what = profile_of_gpu(0, cases[i].what), up = profile_of_gpu(0, PROFILE_UP), down = profile_of_gpu(0, PROFILE_DOWN),
		               beside[][3] = {{what, up, 0}, {what, down, 0}, {what, profile_of_gpu(0, PROFILE_COLLECTIVE), 0}, {what, up, down}};
		const double expected[] = {cases[i].up, cases[i].down, cases[i].collective, cases[i].both};
		for (int k = 0; k < 4; k++) {
			double rate[3];
			max_min(r, beside[k], k == 3 ? 3 : 2, rate);
			cr_expect_float_eq(rate[0], expected[k], NEAR, "case %zu, %d: %g", i, k, rate[0]);
		}
	}
}

/* Computation has the SMs that a collective leaves, and slows it by nothing; copies both ways slow it as they do a GEMM, where it goes over NVLink,
 * and downloads by their share of that. */
Test(resource, collectives_keep_their_sms_and_lose_to_copies)
{
	const char *const overrides[] = {"gpu.copy_gemm_slowdown=1.25", "gpu.copy_up_share=0.75", "gpu.copy_down_share=0.6", "gpu.nccl_sm_share=0.2",
	                                 NULL};
	const char *const over_pcie[] = {"gpu.copy_gemm_slowdown=1.25", "nvlink.gbps=0", NULL};
	g_autoptr(machine) m = machine_of("h200-x2", overrides), narrow = machine_of("h200-x2", over_pcie);
	g_autoptr(resources) r = resources_new(m, 0), n = resources_new(narrow, 0);
	const uint32_t all[] = {profile_of_gpu(0, PROFILE_COLLECTIVE), profile_of_gpu(0, PROFILE_COMPUTE), profile_of_gpu(0, PROFILE_UP),
	                        profile_of_gpu(0, PROFILE_DOWN)};
	double rate[4];

	max_min(r, all, 2, rate);
	cr_expect_float_eq(rate[0], 1, NEAR, "%g", rate[0]);
	cr_expect_float_eq(rate[1], 0.8, NEAR, "%g", rate[1]);
	max_min(r, all, 3, rate);
	cr_expect_float_eq(rate[0], 0.92, NEAR, "%g", rate[0]);
	cr_expect_float_eq(rate[1], 0.65, NEAR, "%g", rate[1]);
	max_min(r, (const uint32_t[]){all[0], all[3]}, 2, rate);
	cr_expect_float_eq(rate[0], 0.88, NEAR, "%g", rate[0]);
	max_min(r, all, 4, rate);
	cr_expect_float_eq(rate[0], 0.8, NEAR, "%g", rate[0]);
	for (int i = 0; i < n->profile[all[0]].n_demands; i++)
		cr_expect_neq(n->profile[all[0]].demand[i].resource, RES_SM_COLLECTIVE);
}

Test(resource, collectives_lose_to_what_streams_through_hbm)
{
	const char *const overrides[] = {"gpu.copy_gemm_slowdown=1", "nvlink.stream_share=0.4", "gpu.nccl_sm_share=0.2", NULL};
	g_autoptr(machine) m = machine_of("h200-x2", overrides);
	g_autoptr(resources) r = resources_new(m, 0);
	const uint32_t beside[] = {PROFILE_MEMORY, PROFILE_COMPUTE, PROFILE_MIXER};
	for (size_t i = 0; i < G_N_ELEMENTS(beside); i++) {
		const uint32_t two[] = {profile_of_gpu(0, PROFILE_COLLECTIVE), profile_of_gpu(0, beside[i])};
		double rate[2];
		max_min(r, two, 2, rate);
		cr_expect_float_eq(rate[0], i == 0 ? 0.6 : 1, NEAR, "%zu: %g", i, rate[0]);
		cr_expect_float_eq(rate[1], 0.8, NEAR, "%zu: %g", i, rate[1]);
	}
}

Test(resource, copies_that_wait_for_memory_cost_as_much)
{
	const char *const overrides[] = {"gpu.copy_gemm_slowdown=1.25", "host.dram_gbps=27.6", NULL};
	g_autoptr(machine) m = machine_of("h200-x1", overrides);
	g_autoptr(resources) r = resources_new(m, 0);
	const uint32_t two[] = {profile_of_gpu(0, PROFILE_COMPUTE), profile_of_gpu(0, PROFILE_UP)};
	double rate[2];

	max_min(r, two, 2, rate);
	cr_expect_float_eq(rate[1], 27.6 / m->h2d_gbps, NEAR, "the copy: %g", rate[1]);
	cr_expect_float_eq(rate[0], 0.9, NEAR, "%g", rate[0]);
}

Test(resource, gemm_under_copies_slows_as_asked_on_a_full_duplex_link_too)
{
	const char *const overrides[] = {"pcie.duplex_gbps=110.4", "gpu.copy_gemm_slowdown=1.1", NULL};
	g_autoptr(machine) m = machine_of("h200-x2", overrides);
	g_autoptr(resources) r = resources_new(m, 0);
	const uint32_t three[] = {profile_of_gpu(0, PROFILE_COMPUTE), profile_of_gpu(0, PROFILE_UP), profile_of_gpu(0, PROFILE_DOWN)};
	double rate[3];

	max_min(r, three, 3, rate);
	cr_assert_float_eq(rate[0], 1 / 1.1, NEAR);
}

Test(resource, two_uploads_of_one_root_share_it_and_others_do_not_notice)
{
	const char *const overrides[] = {"pcie.root_gbps=60", NULL};
	g_autoptr(machine) m = machine_of("h100-x8", overrides); /* two GPUs a root */
	g_autoptr(resources) r = resources_new(m, 0);
	const uint32_t three[] = {profile_of_gpu(0, PROFILE_UP), profile_of_gpu(1, PROFILE_UP), profile_of_gpu(2, PROFILE_UP)};
	double rate[3];

	max_min(r, three, 3, rate);
	cr_assert_float_eq(rate[0], 30 / m->h2d_gbps, NEAR);
	cr_assert_float_eq(rate[1], 30 / m->h2d_gbps, NEAR);
	cr_assert_float_eq(rate[2], 1, NEAR);
}

Test(resource, reads_and_writes_of_the_ssd_end_at_the_mixed_rate)
{
	const char *const overrides[] = {"ssd.read_gbps=7", "ssd.write_gbps=5", "ssd.mixed_gbps=6.6", NULL};
	g_autoptr(machine) m = machine_of("a100-40g-x4", overrides);
	g_autoptr(resources) r = resources_new(m, 0);
	const uint32_t both[] = {profile_of_node(m, 0, PROFILE_READ), profile_of_node(m, 0, PROFILE_WRITE)};
	double rate[2];

	max_min(r, both, 2, rate);
	cr_assert_float_eq(rate[0] * 7 + rate[1] * 5, 6.6, NEAR);
	max_min(r, both, 1, rate);
	cr_assert_float_eq(rate[0], 1, NEAR);
}

Test(resource, slow_memory_has_less_for_all)
{
	const char *const overrides[] = {"host.adam_share=0.8", "host.adam_pace=1.1", NULL};
	g_autoptr(machine) usual = machine_of("h200-x2", NULL), now = machine_of("h200-x2", overrides);
	g_autoptr(resources) r = resources_new(usual, 0), slow = resources_new(now, 0);
	for (int i = 0; i < r->n_resources; i++) {
		g_autofree char *name = resource_name(usual, (uint32_t)i);
		cr_expect_float_eq(slow->capacity[i], r->capacity[i] * (g_str_has_prefix(name, "dram") ? 0.88 : 1), 1e-6, "%s", name);
	}
}

Test(resource, adam_asks_the_dram_for_its_traffic)
{
	const char *const overrides[] = {"host.adam_gparams_per_s=2", "host.adam_bytes_per_param=30", "host.adam_threads=32", NULL};
	g_autoptr(machine) m = machine_of("a100-40g-x4", overrides);
	g_autoptr(resources) r = resources_new(m, 0), few = resources_new(m, 8);
	const struct profile *p = &r->profile[profile_of_node(m, 0, PROFILE_ADAM)], *q = &few->profile[profile_of_node(m, 0, PROFILE_ADAM)];

	cr_assert_eq(p->flow_class, FLOW_ADAM);
	cr_assert_eq(p->n_demands, 1);
	cr_assert_float_eq(p->dram, 60, NEAR);
	cr_assert_float_eq(p->demand[0].amount, 60, NEAR);
	cr_assert_eq(p->threads, 32);
	cr_assert_eq(q->threads, 8);
	cr_assert_float_eq(q->dram, machine_adam_gparams_per_s(m, 8) * 30, NEAR);
}

Test(resource, copies_are_of_their_class_and_use_dram_and_hbm_once)
{
	g_autoptr(machine) m = machine_of("h200-x2", NULL);
	g_autoptr(resources) r = resources_new(m, 0);
	const struct profile *up = &r->profile[profile_of_gpu(1, PROFILE_UP)], *down = &r->profile[profile_of_gpu(1, PROFILE_DOWN)];

	cr_assert_eq(up->flow_class, FLOW_UP);
	cr_assert_eq(down->flow_class, FLOW_DOWN);
	cr_assert_float_eq(up->dram, 55.3, NEAR);
	cr_assert_float_eq(down->dram, 55.1, NEAR);
	cr_assert_float_eq(demand_of(up, 1 * GPU_RESOURCES + RES_HBM), 55.3, NEAR);
	cr_assert_float_eq(demand_of(up, 1 * GPU_RESOURCES + RES_PCIE_DOWN), 0, NEAR);
}

Test(resource, collectives_go_over_nvlink_or_through_host_memory)
{
	g_autoptr(machine) with = machine_of("a100-40g-x4", (const char *const[]){"nvlink.gbps=300", "nvlink.efficiency=0.75", NULL});
	g_autoptr(machine) without = machine_of("rtx4090-x8", NULL);
	g_autoptr(resources) over = resources_new(with, 0), through = resources_new(without, 0);
	const struct profile *p = &over->profile[profile_of_gpu(2, PROFILE_COLLECTIVE)],
	                     *q = &through->profile[profile_of_gpu(2, PROFILE_COLLECTIVE)];
	double rate = fmin(fmin(without->h2d_gbps, without->d2h_gbps), without->duplex_gbps / 2);

	cr_assert_float_eq(demand_of(p, 2 * GPU_RESOURCES + RES_NVLINK), 225, NEAR);
	cr_assert_float_eq(demand_of(p, 2 * GPU_RESOURCES + RES_HBM), 450, NEAR);
	cr_assert_float_eq(demand_of(p, 2 * GPU_RESOURCES + RES_SM), with->nccl_sm_share, NEAR);
	cr_assert_eq(p->dram, 0);
	cr_assert_float_eq(demand_of(q, 2 * GPU_RESOURCES + RES_PCIE_UP), rate, NEAR);
	cr_assert_float_eq(demand_of(q, 2 * GPU_RESOURCES + RES_PCIE_DOWN), rate, NEAR);
	cr_assert_float_eq(q->dram, 2 * rate, NEAR);
}

Test(resource, gpus_of_a_node_share_its_adapters)
{
	g_autoptr(machine) m = machine_of("v100-x16", NULL);
	g_autoptr(resources) r = resources_new(m, 0);
	uint32_t all[9];
	double rate[9];

	uint32_t first = resources_collective(r, m, OP_ALL_TO_ALL, ALGORITHM_PAIRWISE, &(struct ranks){.stride = 1, .size = 16});
	for (uint32_t i = 0; i < 9; i++)
		all[i] = first + i;
	max_min(r, all, 9, rate);
	for (int i = 0; i < 9; i++)
		cr_assert_float_eq(rate[i], 1, NEAR);
	cr_assert_float_eq(demand_of(&r->profile[all[0]], (uint32_t)(r->n_resources - 2 * NODE_RESOURCES + RES_NIC)), m->nic_gbps / 8, NEAR);
}

Test(resource, what_a_machine_lacks_is_not_asked_for)
{
	g_autoptr(machine) m = machine_of("h200-x1", (const char *const[]){"nic.gbps=0", NULL});
	g_autoptr(resources) r = resources_new(m, 0);

	cr_assert_eq(m->ssd_gb, 0);
	cr_assert_eq(r->profile[profile_of_node(m, 0, PROFILE_READ)].n_demands, 0);
	cr_assert_eq(r->profile[profile_of_node(m, 0, PROFILE_WRITE)].n_demands, 0);
	for (int p = 0; p < r->n_profiles; p++)
		for (int d = 0; d < r->profile[p].n_demands; d++)
			cr_assert_gt(r->capacity[r->profile[p].demand[d].resource], 0);
}
