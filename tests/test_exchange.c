/* All-to-alls over several nodes: bytes of the hierarchical halves against a count of every pair of GPUs, their times against closed forms over the
 * busiest GPU, adapter and leaf switch, who waits for whom, and which algorithm is chosen. On one node that was measured: what is looked up. */
#include "model/cost.h"
#include "steps.h"

#include <math.h>

#define STATIC "[policy]\nexpert_home = hbm\nexpert_compute = grouped\n"

/* Bytes from each GPU to each other of one layer's exchange, itself included: (G, G). Owned by the caller. */
static uint64_t *pairs_of(const struct steps *t, int layer)
{
	int gpus = t->s->machine->gpus, experts = t->s->network->layer[layer].experts;
	uint64_t *pairs = g_new0(uint64_t, (size_t)gpus * (size_t)gpus);
	g_autofree uint32_t *loads = g_new(uint32_t, (size_t)gpus * (size_t)experts);
	uint32_t tokens = (uint32_t)(t->s->sequences * t->s->seq_len);
	cr_assert(routing_loads(t->s->routing, 0, 0, layer, gpus, experts, t->s->network->layer[layer].top_k, tokens, loads, NULL));
	for (int g = 0; g < gpus; g++)
		for (int e = 0; e < experts; e++) /* fixed placement: as many experts on each GPU, in order */
			pairs[g * gpus + e * gpus / experts] += (uint64_t)loads[g * experts + e] * (uint64_t)t->s->network->d_model * 2;
	return pairs;
}

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

/* ---- measured: time in us is bytes to the power of 2 / 3, of what leaves a GPU or comes to it ---- */

#define MEASURED                                                                                                                                     \
	"measured_all_to_all.sizes=1,1e12", "measured_all_to_all.median_us=5.0001,100000005", "measured_all_to_all.spread_percent=0,0",              \
	    "measured_all_to_all.samples=9,9", "nvlink.latency_us=7", "nvlink.hop_us=3", "nvlink.mesh=false"

/* What that table says, ns. */
static double measured_law(double bytes)
{
	return 5000 + bytes / 10;
}

static struct scenario_options one_node(int gpus, const char *const *set)
{
	struct scenario_options o = {.model = "gpt-moe-s", .machine = "h200-x8", .policy = STATIC, .gpus = gpus, .experts = 12};
	o.sequences = 2;
	o.microbatches = 1;
	o.routing = "zipf:1.2";
	o.set = set;
	return o;
}

/* Of one layer, the most that one GPU sends to others or receives from them; whether it is what one receives. */
static double busiest(const struct steps *t, int layer, bool *receives)
{
	int gpus = t->s->machine->gpus;
	g_autofree uint64_t *pairs = pairs_of(t, layer);
	uint64_t most[2] = {0};
	for (int g = 0; g < gpus; g++) {
		uint64_t sent = 0, received = 0;
		for (int other = 0; other < gpus; other++) {
			sent += other == g ? 0 : pairs[g * gpus + other];
			received += other == g ? 0 : pairs[other * gpus + g];
		}
		most[0] = MAX(most[0], sent);
		most[1] = MAX(most[1], received);
	}
	*receives = most[1] > most[0];
	return (double)MAX(most[0], most[1]);
}

Test(exchange, a_measured_node_is_looked_up_by_its_busiest_gpu)
{
	for (int gpus = 2; gpus <= 4; gpus++) {
		struct steps t;
		g_autofree char *measured = g_strdup_printf("measured.gpus=%d", gpus);
		struct scenario_options o = one_node(gpus, SETS(MEASURED, measured));
		int of_receivers = 0;
		steps_record(&t, &o, 1);
		for (int layer = 0; layer < 12; layer++) {
			bool receives;
			double expected = ceil(measured_law(busiest(&t, layer, &receives)));
			of_receivers += receives;
			EACH_STAGE(&t, 0, st)
			if (st->kind == STAGE_ALL_TO_ALL && st->layer == layer) /* there and back alike */
				cr_assert_float_eq((double)st->cost_ns, expected, 1, "%ld ns, expected %.0f", st->cost_ns, expected);
		}
		cr_assert(gpus == 2 || of_receivers, "%d GPUs", gpus);
		steps_clear(&t);
	}
}

/* Bytes that go one way alone count less: of each GPU those that go both ways and a share of the others. */
Test(exchange, one_way_alone_counts_as_the_machine_says)
{
	for (int gpus = 2; gpus <= 4; gpus++) {
		struct steps t;
		g_autofree char *measured = g_strdup_printf("measured.gpus=%d", gpus);
		struct scenario_options o = one_node(gpus, SETS(MEASURED, measured, "nvlink.one_way=0.6"));
		steps_record(&t, &o, 1);
		for (int layer = 0; layer < 12; layer++) {
			g_autofree uint64_t *pairs = pairs_of(&t, layer);
			double most = 0;
			for (int g = 0; g < gpus; g++) {
				double sent = 0, received = 0;
				for (int other = 0; other < gpus; other++) {
					sent += other == g ? 0 : (double)pairs[g * gpus + other];
					received += other == g ? 0 : (double)pairs[other * gpus + g];
				}
				most = fmax(most, fmin(sent, received) + 0.6 * fabs(sent - received));
			}
			EACH_STAGE(&t, 0, st)
			if (st->kind == STAGE_ALL_TO_ALL && st->layer == layer)
				cr_assert_float_eq((double)st->cost_ns, measured_law(most), 1, "%d GPUs, layer %d: %ld ns", gpus, layer, st->cost_ns);
		}
		steps_clear(&t);
	}
}

/* Rows in an order, a member's name for each lot of them: those of a member that lie in several places, of all but `own`. */
static double apart(const int *member, const uint32_t *rows, int n, int gpus, int own)
{
	double sum = 0;
	for (int other = 0; other < gpus; other++) {
		int nth = 0, first = -1, last = -1, lots = 0;
		double of_other = 0;
		for (int i = 0; i < n; i++) {
			if (rows[i] && member[i] == other) {
				first = first < 0 ? nth : first;
				last = nth;
				lots += 1;
				of_other += rows[i];
			}
			nth += rows[i] > 0;
		}
		sum += other != own && lots && last - first + 1 > lots ? of_other : 0;
	}
	return sum;
}

struct travelling {
	double bytes, moved; /* of the busiest */
};

/* By the work lists of a layer. */
static struct travelling travelling(const struct steps *t, const struct stage *st, const uint32_t *loads)
{
	const int gpus = t->s->machine->gpus, experts = t->s->network->layer[st->layer].experts;
	double before = 0, behind = 0, busiest = 0;
	int owner[64];
	for (int g = 0; g < gpus; g++)
		for (int i = st->block->first[g]; i < st->block->first[g + 1]; i++)
			owner[st->block->work[i].expert] = g;
	for (int g = 0; g < gpus; g++) {
		int from[256], n = 0;
		uint32_t arriving[256];
		double sent = 0, received = 0, stay = 0;
		for (int e = 0; e < experts; e++)
			for (int source = 0; source < gpus; source++) {
				const uint32_t rows = loads[source * experts + e];
				sent += source == g && owner[e] != g ? rows : 0;
				received += source != g && owner[e] == g ? rows : 0;
				stay += source == g && owner[e] == g ? rows : 0;
				if (owner[e] != g)
					continue;
				from[n] = source;
				arriving[n++] = rows;
			}
		const double packed = apart(owner, loads + g * experts, experts, gpus, g), unpacked = apart(from, arriving, n, gpus, g);
		before = fmax(before, packed > 0 ? packed + stay : 0);
		behind = fmax(behind, packed > 0 ? unpacked : unpacked + stay);
		busiest = fmax(busiest, fmax(sent, received));
	}
	const double row = 2.0 * t->s->network->d_model;
	return (struct travelling){row * busiest, row * (before + behind)};
}

/* Experts that go where there is room are not in order there, so that rows for one GPU lie apart at their sender, and rows for several experts where
 * they come to: copied together on real GPUs, and what stays is copied, too. What was measured has the latter two, of equal loads. */
static void packing_takes(int gpus, const char *policy, const char *routing, const char *software, bool packs)
{
	struct steps t;
	int more = 0, less = 0;
	g_autofree char *measured = g_strdup_printf("measured.gpus=%d", gpus);
	struct scenario_options o = one_node(gpus, SETS(MEASURED, measured, software));
	o.policy = policy;
	o.routing = routing;
	steps_record(&t, &o, 1);
	const struct machine *m = t.s->machine;
	EACH_STAGE(&t, 0, st)
	if (st->kind == STAGE_ALL_TO_ALL) {
		g_autofree uint32_t *loads = g_new(uint32_t, (size_t)gpus * 12);
		cr_assert(routing_loads(t.s->routing, 0, 0, st->layer, gpus, 12, 1, 2048, loads, NULL));
		const struct travelling x = travelling(&t, st, loads);
		double ns = measured_law(x.bytes);
		const double there = x.bytes * gpus / (gpus - 1);
		ns += packs ? 2 * (x.moved - there) / (m->hbm_gbps * m->hbm_efficiency) : 0;
		more += x.moved > there;
		less += x.moved < there;
		cr_assert_float_eq((double)st->cost_ns, ns, 2, "%d GPUs, %s, layer %d: %ld ns, expected %.0f", gpus, routing, st->layer, st->cost_ns,
		                   ns);
	}
	cr_assert(strcmp(policy, STATIC) == 0 || more > 0, "%d GPUs, %s", gpus, routing);
	cr_assert(strcmp(routing, "zipf:9") != 0 || less > 0, "%d GPUs, %s", gpus, policy);
	steps_clear(&t);
}

Test(exchange, rows_that_lie_apart_are_packed)
{
	static const char offloaded[] = "[policy]\nexpert_home = dram\nplacement = lpt\n";
	for (int gpus = 2; gpus <= 4; gpus++) {
		packing_takes(gpus, STATIC, "zipf:1.2", "software.runtime=esmoe", true);
		packing_takes(gpus, STATIC, "zipf:9", "software.runtime=esmoe", true);
		packing_takes(gpus, offloaded, "zipf:1.2", "software.runtime=esmoe", true);
		packing_takes(gpus, offloaded, "zipf:1.2", "software.runtime=framework", false);
	}
}

/* Two experts on four GPUs: nobody says what moves, and it is what was measured. */
Test(exchange, where_experts_are_spread_the_table_stands)
{
	nsec_t ns[2] = {0};
	for (int ours = 0; ours < 2; ours++) {
		struct steps t;
		struct scenario_options o =
		    one_node(4, SETS(MEASURED, "measured.gpus=4", ours ? "software.runtime=esmoe" : "software.runtime=framework"));
		o.experts = 2;
		steps_record(&t, &o, 1);
		ns[ours] = stage_find(&t, 0, STAGE_ALL_TO_ALL, PASS_FORWARD, 0)->cost_ns;
		steps_clear(&t);
	}
	cr_assert(ns[0] > 0 && ns[0] == ns[1], "%ld and %ld ns", (long)ns[0], (long)ns[1]);
}

/* Between two GPUs one hop, among four three: the same bytes take as much longer as the machine's law says. */
Test(exchange, more_gpus_than_were_measured_take_longer_by_the_machines_law)
{
	struct steps t;
	bool receives;
	struct scenario_options o = one_node(4, SETS(MEASURED, "measured.gpus=2"));
	steps_record(&t, &o, 1);
	const struct machine *m = t.s->machine;
	double bytes = busiest(&t, 3, &receives), link_ns = bytes / machine_collective_gbps(m);
	double expected = measured_law(bytes) * (7e3 + 3 * 3e3 + link_ns) / (7e3 + 3e3 + link_ns);
	EACH_STAGE(&t, 0, st)
	if (st->kind == STAGE_ALL_TO_ALL && st->layer == 3)
		cr_assert_float_eq((double)st->cost_ns, ceil(expected), 1, "%ld ns, expected %.0f", st->cost_ns, expected);
	steps_clear(&t);
}

/* Of equal parts, one of which stays: asked for by what a member has in all, or by what leaves it. */
Test(exchange, equal_parts_are_looked_up_without_the_one_that_stays)
{
	const int sizes[] = {2, 3, 8};
	struct scenario_options o = one_node(8, SETS(MEASURED, "measured.gpus=3"));
	g_autoptr(scenario) s = scenario_made(&o);
	g_autoptr(cost) c = cost_new(s->network, s->machine, s->policy, s->seq_len, 0);
	for (size_t i = 0; i < G_N_ELEMENTS(sizes); i++) {
		struct ranks set = {.stride = 1, .size = sizes[i]};
		uint64_t part = 1000003;
		nsec_t whole = cost_collective(c, STAGE_ALL_TO_ALL, &set, part * (uint64_t)sizes[i]);
		nsec_t leaving = cost_exchange(c, &(struct exchange){.intra_bytes = part * (uint64_t)(sizes[i] - 1)}, &set, ALGORITHM_PAIRWISE);
		cr_assert_leq(labs(whole - leaving), 1, "%d GPUs: %ld and %ld ns", sizes[i], (long)whole, (long)leaving);
		if (sizes[i] == 3)
			cr_assert_float_eq((double)whole, ceil(measured_law(2.0 * (double)part)), 1);
	}
}
