/* All-to-alls on one node that was measured: what is looked up, what of it counts where loads are unequal, and the rows that are moved before and
 * after.
 */
#include "model/cost.h"
#include "pairs.h"

#include <math.h>

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

Test(node_exchange, a_measured_node_is_looked_up_by_its_busiest_gpu)
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
Test(node_exchange, one_way_alone_counts_as_the_machine_says)
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

Test(node_exchange, rows_that_lie_apart_are_packed)
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
Test(node_exchange, where_experts_are_spread_the_table_stands)
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
Test(node_exchange, more_gpus_than_were_measured_take_longer_by_the_machines_law)
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
Test(node_exchange, equal_parts_are_looked_up_without_the_one_that_stays)
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
