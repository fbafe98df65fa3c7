/* All-to-alls over several nodes: bytes of the hierarchical halves against a count of every pair of GPUs, their times against closed forms over the
 * busiest GPU, adapter and leaf switch, who waits for whom, and which algorithm is chosen. */
#include "model/cost.h"
#include "pairs.h"

#include <math.h>

static struct scenario_options four_nodes(const char *routing, const char *const *set)
{
	return (struct scenario_options){.model = "gpt-moe-s",
	                                 .machine = "v100-x16",
	                                 .policy = STATIC,
	                                 .gpus = 32,
	                                 .experts = 64,
	                                 .sequences = 2,
	                                 .microbatches = 1,
	                                 .routing = routing,
	                                 .set = set};
}

#define HIERARCHICAL "policy.all_to_all=hierarchical"

Test(exchange, each_half_carries_what_the_pairs_add_up_to)
{
	static const char *const routings[] = {"uniform", "zipf:0.8", "hash"};
	for (size_t r = 0; r < G_N_ELEMENTS(routings); r++) {
		struct steps t;
		struct scenario_options o = four_nodes(routings[r], SETS(HIERARCHICAL));
		steps_record(&t, &o, 1);
		for (int layer = 0; layer < 12; layer++) {
			g_autofree uint64_t *pairs = pairs_of(&t, layer);
			uint64_t gathered[32] = {0}, railed[32] = {0};
			int met[2][32] = {{0}};
			for (int from = 0; from < 32; from++)
				for (int to = 0; to < 32; to++) {
					int between = from / 8 * 8 + to % 8; /* of the sender's node, of the receiver's place */
					gathered[from] += between == from ? 0 : pairs[from * 32 + to];
					railed[between] += between == to ? 0 : pairs[from * 32 + to];
				}
			EACH_STAGE(&t, 0, st)
			if (st->kind == STAGE_ALL_TO_ALL && st->pass == PASS_FORWARD && st->layer == layer) {
				bool rail = st->group_size == 4;
				cr_assert(rail || st->group_size == 8);
				cr_assert_eq(st->bytes, rail ? railed[st->rank] : gathered[st->rank], "%s, layer %d, gpu %d: %lu", routings[r], layer,
				             st->rank, st->bytes);
				met[rail][st->rank]++;
			}
			for (int g = 0; g < 32; g++) /* there and back */
				cr_assert(met[0][g] == 2 && met[1][g] == 2);
		}
		steps_clear(&t);
	}
}

/* Equal loads: a member that sends S sends S m / n to each node. */
Test(exchange, messages_between_nodes_are_s_m_over_n)
{
	for (int gpus = 16; gpus <= 128; gpus *= 2) {
		struct steps t;
		struct scenario_options o = four_nodes("uniform", SETS(HIERARCHICAL));
		o.gpus = o.experts = gpus;
		steps_record(&t, &o, 1);
		uint64_t whole = (uint64_t)2 * 1024 * 768 * 2, message = whole * 8 / (uint64_t)gpus;
		EACH_STAGE(&t, 0, st)
		if (st->kind == STAGE_ALL_TO_ALL) {
			if (st->group_size == 8)
				cr_assert_eq(st->bytes, whole * 7 / 8);
			else
				cr_assert_eq(st->bytes, message * (st->group_size - 1));
		}
		steps_clear(&t);
	}
}

Test(exchange, a_gather_is_of_one_node_and_a_rail_of_one_place)
{
	struct steps t;
	struct scenario_options o = four_nodes("hash", SETS(HIERARCHICAL, "policy.pipeline_degree=2"));
	steps_record(&t, &o, 1);
	g_autoptr(GHashTable) members = g_hash_table_new(NULL, NULL);
	EACH_STAGE(&t, 0, st)
	{
		if (st->kind != STAGE_ALL_TO_ALL)
			continue;
		guint seen = GPOINTER_TO_UINT(g_hash_table_lookup(members, GUINT_TO_POINTER(st->group)));
		cr_assert_eq(seen & (1u << st->rank), 0);
		g_hash_table_insert(members, GUINT_TO_POINTER(st->group), GUINT_TO_POINTER(seen | 1u << st->rank));
	}
	GHashTableIter iter;
	gpointer seen;
	int nodes = 0, places = 0;
	g_hash_table_iter_init(&iter, members);
	while (g_hash_table_iter_next(&iter, NULL, &seen)) {
		guint set = GPOINTER_TO_UINT(seen);
		bool node = false, place = false;
		for (int i = 0; i < 4; i++)
			node |= set == 0xffu << (8 * i);
		for (int i = 0; i < 8; i++)
			place |= set == 0x01010101u << i;
		cr_assert(node || place, "%08x", set);
		nodes += node;
		places += place;
	}
	cr_assert_eq(places, 2 * nodes);
	cr_assert_eq(nodes, 12 * 2 * 5 * 4); /* layers, chunks, all-to-alls a step, nodes */
	steps_clear(&t);
}

#define FABRIC                                                                                                                                       \
	"nic.adapters=4", "fabric.leaf_nodes=2", "fabric.oversubscription=3", "pcie.h2d_gbps=1000", "pcie.d2h_gbps=1000", "pcie.duplex_gbps=2000"

/* 12.5 GB/s a node over four adapters for two GPUs each, 25 GB/s of each leaf switch's nodes over uplinks of a third. */
Test(exchange, the_busiest_adapter_and_leaf_switch_say_how_long_it_takes)
{
	for (int hierarchical = 0; hierarchical < 2; hierarchical++) {
		struct steps t;
		const char *const linear[] = {FABRIC, NULL}, *const both[] = {HIERARCHICAL, FABRIC, NULL};
		struct scenario_options o = four_nodes("zipf:0.8", hierarchical ? both : linear);
		steps_record(&t, &o, 1);
		g_autofree uint64_t *pairs = pairs_of(&t, 5);
		double adapter[2][16] = {{0}}, leaf[2][2] = {{0}}, most = 0;
		for (int from = 0; from < 32; from++)
			for (int to = 0; to < 32; to++) {
				double bytes = (double)pairs[from * 32 + to];
				int sender = hierarchical ? from / 8 * 8 + to % 8 : from;
				if (from / 8 == to / 8)
					continue;
				adapter[0][sender / 2] += bytes;
				adapter[1][to / 2] += bytes;
				if (from / 16 == to / 16)
					continue;
				leaf[0][from / 16] += bytes;
				leaf[1][to / 16] += bytes;
			}
		for (int way = 0; way < 2; way++) {
			for (int i = 0; i < 16; i++)
				most = fmax(most, adapter[way][i] / (12.5 / 4));
			for (int i = 0; i < 2; i++)
				most = fmax(most, leaf[way][i] / (2 * 12.5 / 3));
		}
		EACH_STAGE(&t, 0, st)
		if (st->kind == STAGE_ALL_TO_ALL && st->layer == 5 && st->group_size == (hierarchical ? 4 : 32)) {
			const struct machine *m = t.s->machine;
			double copy = hierarchical ? 2.0 * (2 * 1024 * 768 * 2) / (m->hbm_gbps * m->hbm_efficiency) : 0;
			double messages = hierarchical ? 1 : 3; /* 3 and 24 of them, eight at a time */
			double expected = 1e3 * (m->nvlink_latency_us + messages * m->nic_latency_us) + copy + most;
			cr_assert_float_eq((double)st->cost_ns / expected, 1, 1e-5, "%ld ns, expected %.0f", st->cost_ns, expected);
		}
		steps_clear(&t);
	}
}

static double step_ns(const struct scenario_options *o, uint64_t *halves)
{
	struct steps t;
	steps_simulate(&t, o, 1, &(struct sim_options){0});
	*halves = 0;
	EACH_STAGE(&t, 0, st)
	*halves += st->kind == STAGE_ALL_TO_ALL && st->group_size < 32;
	double ns = (double)sim_now_ns(t.b);
	steps_clear(&t);
	return ns;
}

/* Many small messages go hierarchically, few large ones straight (Tutel, section 4.3). */
Test(exchange, auto_takes_the_faster)
{
	for (int large = 0; large < 2; large++) {
		const char *const words[] = {"policy.all_to_all=linear", HIERARCHICAL, "policy.all_to_all=auto"};
		double ns[3];
		uint64_t halves[3];
		for (int i = 0; i < 3; i++) {
			struct scenario_options o = four_nodes("uniform", SETS(words[i], "policy.checkpoint=none"));
			o.seq_len = large ? 2048 : 128;
			o.sequences = large ? 16 : 1;
			ns[i] = step_ns(&o, &halves[i]);
		}
		cr_assert_eq(halves[0], 0);
		cr_assert_gt(halves[1], 0);
		cr_assert_eq(halves[2], large ? 0 : halves[1]);
		cr_assert(large ? ns[0] < ns[1] : ns[1] < ns[0], "%g %g", ns[0], ns[1]);
		cr_assert_eq(ns[2], fmin(ns[0], ns[1]));
	}
}

Test(exchange, sets_that_do_not_fill_their_nodes_exchange_straight)
{
	static const int gpus[] = {8, 12, 20, 12, 20};
	for (size_t i = 0; i < G_N_ELEMENTS(gpus); i++) {
		struct steps t;
		const char *const pool[] = {HIERARCHICAL, NULL}, *const adapters[] = {HIERARCHICAL, FABRIC, NULL};
		struct scenario_options o = four_nodes("uniform", i < 3 ? pool : adapters);
		o.gpus = gpus[i];
		o.experts = 60;
		steps_record(&t, &o, 1);
		EACH_STAGE(&t, 0, st)
		if (st->kind == STAGE_ALL_TO_ALL)
			cr_assert_eq(st->group_size, gpus[i]);
		steps_clear(&t);
	}
}

/* Two layers on four nodes: the reduction of the last layer's gradients runs under the first layer's exchanges where it has a stream of its own, and
 * both slow down at the adapters that they share; in line each has them alone. */
Test(exchange, reductions_of_their_own_share_the_adapters_with_exchanges)
{
	const char *const words[] = {"policy.reduction_stream=shared", "policy.reduction_stream=own"};
	nsec_t exchange[2] = {0};
	for (int own = 0; own < 2; own++) {
		struct steps t;
		struct scenario_options o = four_nodes("uniform", SETS(words[own], "policy.checkpoint=none", "network.vocab=64"));
		steps_simulate(&t, &o, 1, &(struct sim_options){0});
		nsec_t both = 0, slowest = 0, alone = 0;
		EACH_STAGE(&t, 0, st)
		{
			if (st->rank == 0 && st->kind == STAGE_ALL_REDUCE)
				cr_assert_eq(st->stream, stream_of_gpu(0, own ? STREAM_REDUCTION : STREAM_COLLECTIVE));
			if (st->rank != 0 || st->kind != STAGE_ALL_TO_ALL)
				continue;
			alone = st->cost_ns;
			slowest = MAX(slowest, end_of(&t, st) - start_of(&t, st));
			EACH_STAGE(&t, 0, other)
			if (other->rank == 0 && other->kind == STAGE_ALL_REDUCE)
				both += MAX(0, MIN(end_of(&t, st), end_of(&t, other)) - MAX(start_of(&t, st), start_of(&t, other)));
		}
		cr_assert(own ? both > 0 : both == 0);
		exchange[own] = slowest;
		cr_assert(own ? slowest > alone + alone / 10 : slowest <= alone + 1, "%ld ns, alone %ld", slowest, alone);
		cr_assert_geq(sim_now_ns(t.b), schedule_light_ns(t.schedule));
		steps_clear(&t);
	}
	cr_assert_gt(exchange[1], exchange[0]);
}

#define PICK(r, ...) ((const char *const[]){__VA_ARGS__})[g_rand_int_range(r, 0, (gint32)G_N_ELEMENTS(((const char *const[]){__VA_ARGS__})))]

/* Whatever lies between the GPUs, full nodes or not: every stage ends, no step is shorter than its busiest stream or link, and what is sent is what
 * goes from one GPU to another, twice over its way where a GPU of the own node gathers it. */
Test(exchange, any_fabric_carries_any_exchange)
{
	for (uint32_t seed = 0; seed < 150; seed++) {
		g_autoptr(GRand) r = g_rand_new_with_seed(seed);
		const char *adapters = PICK(r, "1", "2", "4", "8"), *leaf = PICK(r, "0", "1", "2", "3");
		bool rails = *adapters != '1' && *leaf != '0' && g_rand_boolean(r);
		g_autofree char *nic = g_strdup_printf("nic.adapters=%s", adapters), *leaves = g_strdup_printf("fabric.leaf_nodes=%s", leaf);
		struct scenario_options o = four_nodes(PICK(r, "uniform", "zipf:0.8", "hash"), NULL);
		o.set = SETS(nic, leaves, rails ? "fabric.rails=true" : "fabric.rails=false",
		             PICK(r, "fabric.oversubscription=1", "fabric.oversubscription=3"),
		             PICK(r, "policy.all_to_all=linear", HIERARCHICAL, "policy.all_to_all=auto"),
		             PICK(r, "policy.reduction_stream=own", "policy.reduction_stream=shared"), PICK(r, "nvlink.gbps=0", "nvlink.mesh=true"),
		             PICK(r, "pcie.peer=true", "pcie.peer=false"), PICK(r, "software.all_reduce=ring", "software.all_reduce=tree"),
		             "network.layers=2");
		o.gpus = 4 * g_rand_int_range(r, 2, 9);
		o.experts = 2 * o.gpus;
		struct steps t;
		steps_simulate(&t, &o, 1, &(struct sim_options){0});
		cr_assert_geq(sim_now_ns(t.b), schedule_light_ns(t.schedule), "seed %u", seed);
		uint64_t straight = 0, halves = 0, sent = 0;
		EACH_STAGE(&t, 0, st)
		if (st->kind == STAGE_ALL_TO_ALL && st->pass == PASS_FORWARD) {
			sent += st->bytes;
			halves += (int)st->group_size < o.gpus;
		}
		for (int layer = 0; layer < 2; layer++) {
			g_autofree uint64_t *pairs = pairs_of(&t, layer);
			for (int from = 0; from < o.gpus; from++)
				for (int to = 0; to < o.gpus; to++) {
					int between = from / 8 * 8 + to % 8;
					uint64_t times = halves ? (between != from) + (between != to) : from != to;
					straight += 2 * times * pairs[from * o.gpus + to];
				}
		}
		cr_assert(sent > 0 && sent == straight, "seed %u: %lu bytes, expected %lu", seed, sent, straight);
		steps_clear(&t);
	}
}
