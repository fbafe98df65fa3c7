/* Sharing: against a brute-force water filling, the measured table of who gets the DRAM, and the laws that any fair rule obeys. */
#include "by_hand.h"
#include "sim/share.h"

#include <criterion/criterion.h>
#include <math.h>

static struct ini_doubles column(const double *v)
{
	return (struct ini_doubles){(double *)v, 9};
}

/* Two H200 on one host: rows are Adam threads, rates in GB/s (facts: measured 2026-11-22). Adam at 0 threads is no measurement. */
static const double threads[] = {0, 1, 2, 4, 8, 12, 16, 24, 32};
static const double adam[] = {0, 11, 22, 43, 77, 101, 124, 139, 155};
static const double adam_u[] = {0, 11, 21, 39, 70, 93, 104, 123, 130}, u_u[] = {55.2, 55.2, 54.4, 53.7, 47.5, 40.6, 36.8, 33.7, 30.7};
static const double adam_d[] = {0, 10, 21, 35, 62, 78, 82, 99, 125}, d_d[] = {55.2, 55.2, 54.4, 55.2, 54.4, 54.4, 54.4, 52.9, 34.2};
static const double adam_ud[] = {0, 8, 18, 31, 54, 65, 68, 90, 119}, u_ud[] = {48.3, 46.0, 45.2, 39.9, 35.3, 31.4, 29.9, 26.1, 23.0},
                    d_ud[] = {50.6, 51.4, 51.4, 52.1, 52.9, 52.9, 52.1, 45.2, 22.2};
static const double adam_uu[] = {0, 10, 20, 33, 58, 76, 80, 103, 112}, u_uu[] = {53.7, 52.9, 49.8, 43.7, 41.4, 37.6, 35.3, 33.0, 29.9};
static const double adam_dd[] = {0, 7, 13, 24, 43, 59, 69, 89, 117}, d_dd[] = {53.7, 52.9, 52.9, 49.1, 47.5, 45.2, 42.2, 33.0, 23.0};
static const double adam_uudd[] = {0, 6, 11, 18, 32, 51, 53, 72, 88}, u_uudd[] = {27.6, 27.6, 26.8, 26.1, 24.5, 21.5, 21.5, 17.6, 16.8},
                    d_uudd[] = {46.8, 46.8, 45.2, 41.4, 39.1, 33.7, 33.0, 27.6, 22.9};

/* The traffic of the busiest mix: 32 threads (88) and four copies (2 x 16.8, 2 x 22.9); 167.4. */
static const double most_gbps = 88 + 2 * 16.8 + 2 * 22.9;

static struct machine measured_machine(int gpus)
{
	struct machine m = machine_by_hand(gpus, gpus, 0, 400);
	m.h2d_gbps = m.d2h_gbps = 55.2;
	m.contention = CONTENTION_MEASURED;
	m.table = (struct contention_table){
	    .threads = column(threads),
	    .adam = column(adam),
	    .adam_u = column(adam_u),
	    .adam_d = column(adam_d),
	    .adam_ud = column(adam_ud),
	    .adam_uu = column(adam_uu),
	    .adam_dd = column(adam_dd),
	    .adam_uudd = column(adam_uudd),
	    .u_u = column(u_u),
	    .d_d = column(d_d),
	    .u_ud = column(u_ud),
	    .d_ud = column(d_ud),
	    .u_uu = column(u_uu),
	    .d_dd = column(d_dd),
	    .u_uudd = column(u_uudd),
	    .d_uudd = column(d_uudd),
	};
	return m;
}

/* GB/s of Adam, one upload and one download while `up` GPUs upload, `down` GPUs download and Adam runs, or not. */
static void run_on(const struct machine *m, const struct resources *r, bool adam_runs, int up, int down, double rate[3])
{
	struct share *share = share_new(m, r);
	uint32_t changed, adam_flow = 100;
	if (adam_runs)
		share_start(share, adam_flow, profile_of_node(m, 0, PROFILE_ADAM));
	for (int gpu = 0; gpu < up; gpu++)
		share_start(share, (uint32_t)gpu, profile_of_gpu(gpu, PROFILE_UP));
	for (int gpu = 0; gpu < down; gpu++)
		share_start(share, 50 + (uint32_t)gpu, profile_of_gpu(gpu, PROFILE_DOWN));
	share_settle(share, &changed);
	cr_assert_eq(changed, (uint32_t)(adam_runs + up + down));
	rate[0] = adam_runs ? share_rate(share, adam_flow) * r->profile[profile_of_node(m, 0, PROFILE_ADAM)].dram : 0;
	rate[1] = up ? share_rate(share, 0) * m->h2d_gbps : 0;
	rate[2] = down ? share_rate(share, 50) * m->d2h_gbps : 0;
	share_free(share);
}

/* With resources by hand, and Adam on `n` threads that alone take `alone` GB/s. */
static void run_mix(const struct machine *m, int n, double alone, int up, int down, double rate[3])
{
	struct resources *r = resources_by_hand(m, n, alone);
	run_on(m, r, n > 0, up, down, rate);
	resources_by_hand_free(r);
}

/* Every point within 5 %, nine in ten within 3 %. */
struct points {
	int all, close;
};

static void near(struct points *p, double got, double want, double n, const char *what)
{
	cr_assert(fabs(got - want) <= 0.05 * want, "%s at %g threads: %.1f GB/s, measured %.1f", what, n, got, want);
	p->all++;
	p->close += fabs(got - want) <= 0.03 * want;
}

static void most_are_close(const struct points *p)
{
	cr_assert(p->all > 0 && 10 * p->close >= 9 * p->all, "%d of %d points within 3 %%", p->close, p->all);
}

/* What a machine's table says of one mix of copies; NULL: no such class. */
struct mix {
	int up, down;
	const struct ini_doubles *adam, *each_up, *each_down;
};

enum { N_MIXES = 7 };

static void mixes_of(const struct contention_table *t, struct mix mixes[N_MIXES])
{
	const struct mix all[N_MIXES] = {{0, 0, &t->adam, NULL, NULL},
	                                 {1, 0, &t->adam_u, &t->u_u, NULL},
	                                 {0, 1, &t->adam_d, NULL, &t->d_d},
	                                 {1, 1, &t->adam_ud, &t->u_ud, &t->d_ud},
	                                 {2, 0, &t->adam_uu, &t->u_uu, NULL},
	                                 {0, 2, &t->adam_dd, NULL, &t->d_dd},
	                                 {2, 2, &t->adam_uudd, &t->u_uudd, &t->d_uudd}};
	memcpy(mixes, all, sizeof all);
}

static const struct ini_doubles *rates_of(const struct mix *mix, int class)
{
	return class == 0 ? mix->adam : class == 1 ? mix->each_up : mix->each_down;
}

static void check_mix(struct points *p, const struct contention_table *t, const struct mix *mixes, int mix, int row, const double rate[3])
{
	static const char *const names[] = {"Adam", "upload", "download"};
	const bool there[] = {t->threads.v[row] > 0, mixes[mix].up, mixes[mix].down};
	for (int class = 0; class < 3; class ++)
		if (there[class])
			near(p, rate[class], rates_of(&mixes[mix], class)->v[row], t->threads.v[row], names[class]);
}

Test(share, every_measured_mix_is_reproduced)
{
	struct machine m = measured_machine(2);
	struct points p = {0};
	struct mix mixes[N_MIXES];
	mixes_of(&m.table, mixes);
	for (size_t i = 0; i < N_MIXES; i++)
		for (int row = 0; row < 9; row++) {
			double rate[3];
			run_mix(&m, (int)threads[row], adam[row], mixes[i].up, mixes[i].down, rate);
			check_mix(&p, &m.table, mixes, (int)i, row, rate);
		}
	most_are_close(&p);
}

/* Of the presets: what was measured on them, with one GPU's copies or two's. */
Test(share, machines_with_measured_contention_reproduce_every_mix)
{
	static const char *const names[] = {"h200-x1", "h200-x2", "h200-x2-m", "h200-x1-m", "h200-x1-l", "h200-x1-swiglu"};
	for (size_t k = 0; k < G_N_ELEMENTS(names); k++) {
		g_autoptr(GError) error = NULL;
		g_autoptr(machine) m = machine_load(names[k], NULL, &error);
		cr_assert(m, "%s", error ? error->message : "");
		struct points p = {0};
		struct mix mixes[N_MIXES];
		mixes_of(&m->table, mixes);
		for (int row = 0; row < m->table.threads.n; row++) {
			g_autoptr(resources) r = resources_new(m, (int)MAX(m->table.threads.v[row], 1));
			for (size_t i = 0; i < N_MIXES && MAX(mixes[i].up, mixes[i].down) <= m->gpus_per_node; i++) {
				double rate[3];
				run_on(m, r, m->table.threads.v[row] > 0, mixes[i].up, mixes[i].down, rate);
				check_mix(&p, &m->table, mixes, (int)i, row, rate);
			}
		}
		most_are_close(&p);
	}
}

Test(share, measured_rule_never_speeds_anyone_up_and_never_passes_the_measured_traffic)
{
	struct machine m = measured_machine(8);
	for (int n = 0; n <= 40; n += 3) {
		double alone = n < 1 ? 0 : 11.0 * n, rate[9][9][3];
		for (int up = 0; up <= 8; up++)
			for (int down = 0; down <= 8; down++) {
				double *now = rate[up][down];
				run_mix(&m, n, alone, up, down, now);
				for (int class = 0; class < 3; class ++) {
					if (up > (class == 1))
						cr_assert_leq(now[class], rate[up - 1][down][class] + 1e-9);
					if (down > (class == 2))
						cr_assert_leq(now[class], rate[up][down - 1][class] + 1e-9);
				}
				if (up + down > 2 && n <= 32 && n > 0) /* more than what Adam alone asks here is the fixture's, not the table's */
					cr_assert_leq(now[1] * up + now[2] * down, most_gbps * (1 + 1e-9));
			}
	}
}

Test(share, more_adam_threads_never_speed_up_a_copy)
{
	struct machine m = measured_machine(4);
	for (int up = 0; up <= 4; up++)
		for (int down = 0; down <= 4; down++) {
			double before[3] = {0, INFINITY, INFINITY}, now[3];
			for (int n = 0; n <= 40; n++) {
				run_mix(&m, n, 100, up, down, now);
				cr_assert(now[1] <= before[1] + 1e-9 && now[2] <= before[2] + 1e-9, "%d threads, %d up, %d down", n, up, down);
				memcpy(before, now, sizeof before);
			}
		}
}

Test(share, a_table_of_one_gpu_serves_two_gpus_within_its_own_traffic)
{
	struct machine m = measured_machine(2);
	static const double rows[] = {0, 16}, alone[] = {0, 108}, both[] = {0, 71}, solo[] = {55, 55}, duplex[] = {48, 39.6};
	m.h2d_gbps = m.d2h_gbps = 55;
	m.table = (struct contention_table){.threads = {(double *)rows, 2},
	                                    .adam = {(double *)alone, 2},
	                                    .adam_ud = {(double *)both, 2},
	                                    .u_u = {(double *)solo, 2},
	                                    .d_d = {(double *)solo, 2},
	                                    .u_ud = {(double *)duplex, 2},
	                                    .d_ud = {(double *)duplex, 2}};
	double one[3], all[3];
	run_mix(&m, 16, 108, 1, 1, one);
	cr_assert(fabs(one[0] - 71) < 1e-6 && fabs(one[1] - 39.6) < 1e-6 && fabs(one[2] - 39.6) < 1e-6);
	run_mix(&m, 16, 108, 2, 2, all);
	cr_assert_leq(all[0] + 2 * all[1] + 2 * all[2], 108 + 55 + 1e-6); /* Adam and one upload: nothing measured slows them */
	cr_assert(all[0] > 30 && all[1] > 15 && all[2] > 15);
}

Test(share, measured_without_a_table_is_max_min)
{
	struct machine m = measured_machine(2);
	double rate[3];
	m.table = (struct contention_table){0};
	m.dram_gbps = 55.2;
	run_mix(&m, 0, 0, 2, 0, rate);
	cr_assert(fabs(rate[1] - 27.6) < 1e-9);
}

/* Water filling from first principles: small steps up for everyone that is not yet stopped, each step as large as the nearest obstacle allows. */
static void brute_force(const struct resources *r, const uint32_t *profiles, int n, double *rate)
{
	bool stopped[64] = {false};
	memset(rate, 0, sizeof(double) * (size_t)n);
	for (int left = n; left;) {
		double step = INFINITY;
		for (int i = 0; i < n; i++)
			if (!stopped[i])
				step = MIN(step, 1 - rate[i]);
		for (int res = 0; res < r->n_resources; res++) {
			double used = 0, more = 0;
			for (int i = 0; i < n; i++)
				for (int d = 0; d < r->profile[profiles[i]].n_demands; d++)
					if (r->profile[profiles[i]].demand[d].resource == (uint32_t)res) {
						const struct demand *demand = &r->profile[profiles[i]].demand[d];
						used += (demand->held ? 1 : rate[i]) * demand->amount;
						more += stopped[i] || demand->held ? 0 : demand->amount;
					}
			if (more > 0)
				step = MIN(step, MAX(r->capacity[res] - used, 0) / more);
		}
		for (int i = 0; i < n; i++)
			rate[i] += stopped[i] ? 0 : step;
		for (int i = 0; i < n; i++) {
			bool stop = rate[i] > 1 - 1e-12;
			for (int d = 0; d < r->profile[profiles[i]].n_demands; d++) {
				uint32_t res = r->profile[profiles[i]].demand[d].resource;
				double used = 0;
				for (int j = 0; j < n; j++)
					for (int e = 0; e < r->profile[profiles[j]].n_demands; e++)
						if (r->profile[profiles[j]].demand[e].resource == res)
							used += (r->profile[profiles[j]].demand[e].held ? 1 : rate[j]) *
							        r->profile[profiles[j]].demand[e].amount;
				stop |= !r->profile[profiles[i]].demand[d].held && used > r->capacity[res] * (1 - 1e-12);
			}
			if (stop && !stopped[i]) {
				stopped[i] = true;
				left--;
			}
		}
	}
}

/* Random resources and profiles: up to 6 of each, up to 4 demands a profile, some of them held: all flows together hold less than there is. */
static struct resources *random_resources(GRand *rand, struct machine *m)
{
	*m = machine_by_hand(1, 1, 0, 0);
	struct resources *r = g_new0(struct resources, 1);
	r->n_resources = g_rand_int_range(rand, 1, 7) + NODE_RESOURCES;
	r->n_profiles = g_rand_int_range(rand, 1, 7);
	r->capacity = g_new0(double, r->n_resources);
	r->profile = g_new0(struct profile, r->n_profiles);
	for (int i = 0; i < r->n_resources; i++)
		r->capacity[i] = g_rand_double_range(rand, 10, 100);
	for (int p = 0; p < r->n_profiles; p++)
		for (int i = 0; i < r->n_resources && r->profile[p].n_demands < 4; i++)
			if (g_rand_boolean(rand)) {
				const bool held = g_rand_int_range(rand, 0, 4) == 0;
				ask_for(&r->profile[p], (uint32_t)i,
				        held ? r->capacity[i] * g_rand_double_range(rand, 0.01, 0.08) : g_rand_double_range(rand, 1, 60));
				r->profile[p].demand[r->profile[p].n_demands - 1].held = held;
			}
	return r;
}

Test(share, max_min_equals_brute_force_water_filling_after_any_history)
{
	GRand *rand = g_rand_new_with_seed(1);
	for (int round = 0; round < 300; round++) {
		struct machine m;
		struct resources *r = random_resources(rand, &m);
		struct share *share = share_new(&m, r);
		bool runs[12] = {false};
		uint32_t profile_of[12], changed;
		for (int move = 0; move < 40; move++) {
			for (int i = g_rand_int_range(rand, 1, 4); i; i--) {
				uint32_t flow = (uint32_t)g_rand_int_range(rand, 0, 12);
				if (runs[flow])
					share_stop(share, flow);
				if (!runs[flow] || g_rand_boolean(rand)) {
					uint32_t same = profile_of[flow], other = (uint32_t)g_rand_int_range(rand, 0, r->n_profiles);
					profile_of[flow] = runs[flow] && g_rand_boolean(rand) ? same : other;
					share_start(share, flow, profile_of[flow]);
					runs[flow] = true;
				} else {
					runs[flow] = false;
				}
			}
			share_settle(share, &changed);
			uint32_t running[12], profiles[12];
			double want[12];
			int n = 0;
			for (uint32_t flow = 0; flow < 12; flow++)
				if (runs[flow]) {
					running[n] = flow;
					profiles[n++] = profile_of[flow];
				}
			brute_force(r, profiles, n, want);
			for (int i = 0; i < n; i++) {
				double got = share_rate(share, running[i]);
				cr_assert(fabs(got - want[i]) < 1e-8, "round %d move %d flow %u: %.12f, want %.12f", round, move, running[i], got,
				          want[i]);
				cr_assert(got > 0 && got <= 1);
			}
		}
		share_free(share);
		resources_by_hand_free(r);
	}
	g_rand_free(rand);
}

/* With one crowded resource nobody gains when someone joins. (With several, a newcomer can slow A, whose leftovers go to B: max-min itself is not
 * monotone there.) */
Test(share, a_newcomer_on_one_resource_slows_everyone_or_nobody)
{
	struct machine m = machine_by_hand(8, 8, 0, 110);
	struct resources *r = resources_by_hand(&m, 32, 100);
	struct share *share = share_new(&m, r);
	double before[8], last = 1;
	uint32_t n;
	for (uint32_t gpu = 0; gpu < 8; gpu++) {
		share_start(share, gpu, profile_of_gpu((int)gpu, PROFILE_UP));
		share_settle(share, &n);
		double rate = share_rate(share, gpu), want = MIN(1, 110.0 / (25.0 * (gpu + 1)));
		cr_assert(fabs(rate - want) < 1e-12);
		cr_assert_leq(rate, last);
		for (uint32_t other = 0; other < gpu; other++)
			cr_assert_leq(share_rate(share, other), before[other]);
		for (uint32_t other = 0; other <= gpu; other++)
			before[other] = share_rate(share, other);
		last = rate;
	}
	share_free(share);
	resources_by_hand_free(r);
}

/* Who asks for what another holds waits for it, and has it then. */
Test(share, what_is_held_entirely_does_not_stop_time)
{
	struct machine m = machine_by_hand(1, 1, 0, 200);
	struct resources *r = resources_by_hand(&m, 32, 100);
	struct profile *holder = &r->profile[profile_of_gpu(0, PROFILE_COLLECTIVE)];
	ask_for(holder, RES_SM, 1.2);
	holder->demand[holder->n_demands - 1].held = true;
	struct share *share = share_new(&m, r);
	uint32_t n;
	share_start(share, 0, profile_of_gpu(0, PROFILE_COMPUTE));
	share_start(share, 1, profile_of_gpu(0, PROFILE_COLLECTIVE));
	share_settle(share, &n);
	cr_assert_eq(share_rate(share, 1), 1);
	cr_assert(share_rate(share, 0) > 0 && share_rate(share, 0) < 1e-5, "%g", share_rate(share, 0));
	share_stop(share, 1);
	share_settle(share, &n);
	cr_assert_eq(share_rate(share, 0), 1);
	share_free(share);
	resources_by_hand_free(r);
}

Test(share, freed_capacity_goes_to_those_who_stay)
{
	struct machine m = machine_by_hand(2, 2, 25, 1000);
	struct resources *r = resources_by_hand(&m, 32, 100);
	struct share *share = share_new(&m, r);
	uint32_t n;
	share_start(share, 0, profile_of_gpu(0, PROFILE_UP));
	share_start(share, 1, profile_of_gpu(1, PROFILE_UP));
	share_settle(share, &n);
	cr_assert_eq(n, 2);
	cr_assert_eq(share_rate(share, 0), 0.5);
	cr_assert_eq(share_rate(share, 1), 0.5);
	share_stop(share, 0);
	const uint32_t *changed = share_settle(share, &n);
	cr_assert_eq(n, 1);
	cr_assert_eq(changed[0], 1);
	cr_assert_eq(share_rate(share, 1), 1);
	share_free(share);
	resources_by_hand_free(r);
}

Test(share, a_queue_of_copies_changes_nobody_else)
{
	struct machine m = machine_by_hand(2, 2, 25, 1000);
	struct resources *r = resources_by_hand(&m, 32, 100);
	struct share *share = share_new(&m, r);
	uint32_t n;
	share_start(share, 0, profile_of_gpu(0, PROFILE_UP));
	share_start(share, 1, profile_of_gpu(1, PROFILE_UP));
	share_settle(share, &n);
	share_stop(share, 0);
	share_start(share, 0, profile_of_gpu(0, PROFILE_UP));
	const uint32_t *changed = share_settle(share, &n);
	cr_assert_eq(n, 1);
	cr_assert_eq(changed[0], 0);
	cr_assert_eq(share_rate(share, 0), 0.5);
	share_free(share);
	resources_by_hand_free(r);
}

Test(share, six_sixths_of_a_resource_run_at_full_speed)
{
	struct machine m = machine_by_hand(6, 6, 0, 150);
	struct resources *r = resources_by_hand(&m, 32, 100);
	struct share *share = share_new(&m, r);
	uint32_t n;
	for (uint32_t gpu = 0; gpu < 6; gpu++)
		share_start(share, gpu, profile_of_gpu((int)gpu, PROFILE_UP));
	share_settle(share, &n);
	for (uint32_t gpu = 0; gpu < 6; gpu++)
		cr_assert_eq(share_rate(share, gpu), 1);
	share_free(share);
	resources_by_hand_free(r);
}
