/* Laws of a schedule on the simulator, against closed formulas and brute force. Durations are set through the round machine's keys: an upload u, the
 * experts' computation c, a download d, an update a. */
#include "steps.h"

static const struct sim_options all_on = {0};
#define DURATION_IS(t, st, ns)                                                                                                                       \
	cr_assert_eq(end_of(t, st) - start_of(t, st), ns, "%s %s takes %ld ns, not %ld", stage_pass_name((st)->pass), stage_kind_name((st)->kind),   \
	             (long)(end_of(t, st) - start_of(t, st)), (long)(ns))

/* One unit is 2^20 ns: 2^24 bytes at 16 GB/s, 2^23 parameters at 8 billion/s. Powers of two are exact, so that every expected time is. A kernel of k
 * makes the forward 3 k, the backward with its recomputation 9 k (six kernels and three). */
#define UNIT (INT64_C(1) << 20)
#define UP_8 "pcie.h2d_gbps=2"
#define DOWN_8 "pcie.d2h_gbps=2"
#define ADAM_8 "host.adam_gparams_per_s=1"
#define UP_8_DOWN_1 UP_8, "pcie.duplex_gbps=18"
#define UP_1_DOWN_8 DOWN_8, "pcie.duplex_gbps=18"
#define KERNEL_LONG "gpu.kernel_us=1024"
#define KERNEL_LONG_NS INT64_C(1024000)

static struct scenario_options round_options(const char *const *set)
{
	return (struct scenario_options){.model = ROUND_NETWORK, .machine = ROUND_MACHINE, .policy = ROUND_POLICY, .set = set};
}

Test(laws, one_expert_alone_is_upload_compute_download_and_adam_back_to_back)
{
	struct steps t;
	/* one slot: the backward's upload waits until the forward has used it; 3 us of latency are exact too */
	struct scenario_options o = round_options(SETS(UP_8_DOWN_1, "policy.upload_ahead=0", "pcie.latency_us=3"));
	steps_simulate(&t, &o, 1, &all_on);
	const struct stage *up = stage_find(&t, 0, STAGE_UPLOAD, PASS_BACKWARD, 0), *compute = stage_find(&t, 0, STAGE_EXPERT, PASS_BACKWARD, 0);
	const struct stage *down = stage_find(&t, 0, STAGE_DOWNLOAD, PASS_BACKWARD, 0), *adam = stage_find(&t, 0, STAGE_ADAM, PASS_UPDATE, 0);
	cr_assert_eq(start_of(&t, up), end_of(&t, stage_find(&t, 0, STAGE_EXPERT, PASS_FORWARD, 0)));
	cr_assert_eq(start_of(&t, compute), end_of(&t, up));
	cr_assert_eq(start_of(&t, down), end_of(&t, compute));
	cr_assert_eq(start_of(&t, adam), end_of(&t, down));
	DURATION_IS(&t, up, 8 * UNIT + 3000);
	DURATION_IS(&t, compute, 9000);
	DURATION_IS(&t, down, UNIT + 3000);
	DURATION_IS(&t, adam, UNIT);
	cr_assert_eq(end_of(&t, adam) - start_of(&t, up), (8 * UNIT + 3000) + 9000 + (UNIT + 3000) + UNIT);
	steps_clear(&t);
}

/* Forward of n experts through two slots: the first upload alone, then the longer of the two, then the last computation alone. */
static void check_forward(const char *up, const char *kernel, nsec_t u, nsec_t c)
{
	enum { N = 7 };
	struct steps t;
	struct scenario_options o = round_options(SETS("network.experts=7", "network.seq_len=70", up, "pcie.duplex_gbps=18", kernel));
	steps_simulate(&t, &o, 1, &all_on);
	const struct stage *first = stage_find(&t, 0, STAGE_UPLOAD, PASS_FORWARD, 0), *last = stage_find(&t, 0, STAGE_EXPERT, PASS_FORWARD, N - 1);
	nsec_t began = MAX(start_of(&t, first), start_of(&t, stage_find(&t, 0, STAGE_EXPERT, PASS_FORWARD, 0)) - u);
	cr_assert_eq(end_of(&t, last) - began, u + (N - 1) * MAX(u, c) + c);
	steps_clear(&t);
}

Test(laws, double_buffered_forward_takes_the_longer_of_upload_and_compute_each_time)
{
	check_forward(UP_8, "gpu.kernel_us=1", 8 * UNIT, 3000);
	check_forward(UP_8, KERNEL_LONG, 8 * UNIT, 3 * KERNEL_LONG_NS);
	check_forward("pcie.h2d_gbps=16", KERNEL_LONG, UNIT, 3 * KERNEL_LONG_NS);
}

/* Backward: four stages a job and equal jobs. From the first stage that is never kept waiting to the end: n times the longest, plus what comes after.
 */
static void check_backward(const char *const *set, int longest_kind, int longest_pass, nsec_t longest_ns, nsec_t after_ns)
{
	enum { N = 9 };
	struct steps t;
	struct scenario_options o = round_options(set);
	o.experts = N;
	o.seq_len = 90;
	steps_simulate(&t, &o, 1, &all_on);
	for (int i = 0; i < N; i++) {
		const struct stage *st = stage_find(&t, 0, longest_kind, longest_pass, i);
		DURATION_IS(&t, st, longest_ns);
		if (i > 0)
			cr_assert_eq(start_of(&t, st), end_of(&t, stage_find(&t, 0, longest_kind, longest_pass, i - 1)), "a gap before expert %d", i);
	}
	const struct stage *first = stage_find(&t, 0, longest_kind, longest_pass, 0), *adam = stage_find(&t, 0, STAGE_ADAM, PASS_UPDATE, N - 1);
	cr_assert_eq(end_of(&t, adam) - start_of(&t, first), N * longest_ns + after_ns);
	steps_clear(&t);
}

Test(laws, perfectly_overlapped_backward_runs_at_the_pace_of_its_longest_part)
{
	check_backward(SETS(UP_8_DOWN_1, "gpu.kernel_us=10"), STAGE_UPLOAD, PASS_BACKWARD, 8 * UNIT, 90000 + UNIT + UNIT);
	check_backward(SETS(KERNEL_LONG), STAGE_EXPERT, PASS_BACKWARD, 9 * KERNEL_LONG_NS, UNIT + UNIT);
	check_backward(SETS(UP_1_DOWN_8, "gpu.kernel_us=10"), STAGE_DOWNLOAD, PASS_BACKWARD, 8 * UNIT, UNIT);
	check_backward(SETS(ADAM_8, "gpu.kernel_us=10"), STAGE_ADAM, PASS_UPDATE, 8 * UNIT, 0);
}

Test(laws, two_uploads_under_one_root_complex_take_twice_as_long)
{
	for (int per_root = 1; per_root <= 2; per_root++) {
		struct steps t;
		g_autofree char *roots = g_strdup_printf("pcie.gpus_per_root=%d", per_root);
		struct scenario_options o = round_options(SETS("machine.gpus=2", "network.experts=2", UP_8_DOWN_1, "pcie.root_gbps=2", roots));
		steps_simulate(&t, &o, 1, &all_on);
		const struct stage *a = stage_find(&t, 0, STAGE_UPLOAD, PASS_FORWARD, 0), *b = stage_find(&t, 0, STAGE_UPLOAD, PASS_FORWARD, 1);
		cr_assert_neq(a->stream, b->stream);
		cr_assert_eq(start_of(&t, a), start_of(&t, b));
		DURATION_IS(&t, a, per_root * 8 * UNIT);
		DURATION_IS(&t, b, per_root * 8 * UNIT);
		steps_clear(&t);
	}
}

/* The shortest makespan of n jobs on g machines, by trying all g^n. */
static nsec_t best_makespan(const nsec_t *job, int n, int gpus)
{
	nsec_t best = INT64_MAX;
	long ways = 1;
	for (int i = 0; i < n; i++)
		ways *= gpus;
	for (long way = 0; way < ways; way++) {
		nsec_t load[4] = {0}, most = 0;
		long rest = way;
		for (int i = 0; i < n; i++, rest /= gpus) {
			load[rest % gpus] += job[i];
			most = MAX(most, load[rest % gpus]);
		}
		best = MIN(best, most);
	}
	return best;
}

Test(laws, placement_of_a_real_schedule_is_within_four_thirds_of_the_optimum)
{
	enum { E = 8, G = 4 };
	for (uint64_t seed = 1; seed <= 20; seed++) {
		struct steps t;
		g_autofree char *routing = g_strdup_printf("zipf:%g", 0.5 + 0.1 * (double)seed);
		struct scenario_options o = {
		    .model = "gpt-moe-m", .machine = "h200-x8", .policy = "es-moe", .gpus = G, .experts = E, .routing = routing, .seed = seed};
		o.set = SETS("network.layers=3", "policy.expert_home=dram", "policy.pinned_share=0", "pcie.h2d_gbps=200", "pcie.d2h_gbps=200",
		             "pcie.duplex_gbps=400");
		steps_record(&t, &o, 1);
		nsec_t upload_ns = stage_find(&t, 0, STAGE_UPLOAD, PASS_FORWARD, 0)->cost_ns;
		for (int layer = 0; layer < 3; layer++) {
			nsec_t job[E], load[G] = {0}, most = 0;
			int n = 0;
			EACH_STAGE(&t, 0, st)
			if (st->kind == STAGE_EXPERT && st->pass == PASS_FORWARD && st->layer == layer) {
				job[n] = MAX(upload_ns, st->cost_ns);
				load[st->rank] += job[n++];
			}
			for (int g = 0; g < G; g++)
				most = MAX(most, load[g]);
			cr_assert_eq(n, E);
			cr_assert_leq(3 * most, 4 * best_makespan(job, n, G), "seed %lu layer %d", (unsigned long)seed, layer);
		}
		steps_clear(&t);
	}
}

struct instant {
	nsec_t ns;
	int change, gpu;
};

static int earlier(gconstpointer a, gconstpointer b)
{
	const struct instant *x = a, *y = b;
	if (x->ns != y->ns)
		return x->ns < y->ns ? -1 : 1;
	return x->change - y->change;
}

/* The most expert copies a GPU holds at once: a copy lives from the start of its upload to the end of the computation that uses it. */
static int most_copies(const struct steps *t)
{
	g_autoptr(GArray) instants = g_array_new(FALSE, FALSE, sizeof(struct instant));
	int held[8] = {0}, most = 0;
	for (int step = 0; step < t->n; step++)
		EACH_STAGE(t, step, st)
		{
			if (st->kind != STAGE_EXPERT)
				continue;
			for (int i = 0; i < st->n_preds; i++) {
				const struct stage *up = stage_at(t, st->preds[i]);
				if (up->kind != STAGE_UPLOAD || up->pass == PASS_UPDATE)
					continue;
				g_array_append_vals(instants, &(struct instant){start_of(t, up), 1, st->rank}, 1);
				g_array_append_vals(instants, &(struct instant){end_of(t, st), -1, st->rank}, 1);
			}
		}
	g_array_sort(instants, earlier);
	for (guint i = 0; i < instants->len; i++) {
		const struct instant *x = &g_array_index(instants, struct instant, i);
		held[x->gpu] += x->change;
		most = MAX(most, held[x->gpu]);
	}
	return most;
}

/* A fast link makes computation decide the placement, so that sticky experts do move. */
static void check_slots(const char *scope, const char *placement, int ahead, const char *routing, uint64_t seed)
{
	struct steps t;
	g_autofree char *a = g_strdup_printf("policy.upload_scope=%s", scope), *b = g_strdup_printf("policy.placement=%s", placement);
	g_autofree char *c = g_strdup_printf("policy.upload_ahead=%d", ahead);
	struct scenario_options o = {
	    .model = "gpt-moe-m", .machine = "h200-x8", .policy = "es-moe", .gpus = 4, .experts = 24, .routing = routing, .seed = seed};
	o.set = SETS("network.layers=6", "policy.expert_home=dram", "pcie.h2d_gbps=400", "pcie.d2h_gbps=400", "pcie.duplex_gbps=800",
	             "policy.pinned_share=0", b, a, c);
	steps_simulate(&t, &o, 3, &all_on);
	int most = most_copies(&t);
	cr_assert_leq(most, 1 + ahead, "%s %s %s: %d copies in %d slots", scope, placement, routing, most, 1 + ahead);
	cr_assert_geq(most, MIN(2, 1 + ahead), "%s %s: uploads do not run ahead", scope, placement);
	steps_clear(&t);
}

Test(laws, hbm_never_holds_more_expert_copies_than_slots)
{
	for (uint64_t seed = 1; seed <= 3; seed++) {
		check_slots("layer", "lpt", 0, "uniform", seed);
		check_slots("layer", "lpt", 1, "zipf:1", seed);
		check_slots("layer", "lpt", 3, "zipf:1:0.2", seed);
		check_slots("next-layer", "fixed", 1, "zipf:1", seed);
		check_slots("next-layer", "fixed", 3, "zipf:2", seed);
		check_slots("next-layer", "sticky", 1, "zipf:1:0.9", seed);
		check_slots("next-layer", "sticky", 3, "zipf:1:0.9", seed);
	}
}

Test(laws, spans_and_idle_time_of_a_stream_fill_the_step)
{
	static const char *const policies[] = {"es-moe", "tutel", "zero-offload-e"};
	for (size_t i = 0; i < G_N_ELEMENTS(policies); i++) {
		struct steps t;
		struct scenario_options o = {
		    .model = "gpt-moe-s", .machine = "a100-40g-x4", .policy = policies[i], .experts = 16, .routing = "zipf:0.5"};
		steps_simulate(&t, &o, 1, &all_on);
		int streams = stream_count(t.s->machine);
		g_autofree nsec_t *busy = g_new0(nsec_t, streams), *idle = g_new0(nsec_t, streams), *last = g_new0(nsec_t, streams),
		                  *sim = g_new0(nsec_t, streams);
		nsec_t end = 0;
		EACH_STAGE(&t, 0, st)
		{
			cr_assert_geq(start_of(&t, st), last[st->stream]);
			idle[st->stream] += start_of(&t, st) - last[st->stream];
			busy[st->stream] += end_of(&t, st) - start_of(&t, st);
			last[st->stream] = end_of(&t, st);
			end = MAX(end, end_of(&t, st));
		}
		sim_busy(t.b, -1, end, sim);
		for (int k = 0; k < streams; k++) {
			cr_assert_eq(busy[k] + idle[k] + (end - last[k]), end);
			cr_assert_eq(sim[k], busy[k]);
		}
		steps_clear(&t);
	}
}
