/* Pooling: what contradicts nothing stays, two that contradict each other meet half-way, and afterwards nothing contradicts anything. */
#include "model/machine.h"
#include "model/monotone.h"

#include <criterion/criterion.h>
#include <math.h>

Test(monotone, rates_that_fall_with_users_stay)
{
	double rate[] = {10, 8, 9, 7};
	const struct monotone_point p[] = {{{1, 0, 0}, &rate[0]}, {{1, 1, 0}, &rate[1]}, {{1, 0, 1}, &rate[2]}, {{1, 1, 1}, &rate[3]}};
	monotone_pool(p, 4);
	cr_assert(rate[0] == 10 && rate[1] == 8 && rate[2] == 9 && rate[3] == 7, "neither an upload nor a download is more than the other");
}

Test(monotone, two_that_contradict_each_other_get_the_mean)
{
	double rate[] = {20, 23, 18};
	const struct monotone_point p[] = {{{1, 0, 0}, &rate[0]}, {{1, 0, 1}, &rate[1]}, {{1, 1, 1}, &rate[2]}};
	monotone_pool(p, 3);
	cr_assert_float_eq(rate[0], 21.5, 1e-9);
	cr_assert_float_eq(rate[1], 21.5, 1e-9);
	cr_assert_eq(rate[2], 18);
}

Test(monotone, nothing_contradicts_anything_afterwards)
{
	enum { N = 40 };
	g_autoptr(GRand) random = g_rand_new_with_seed(3);
	for (int round = 0; round < 50; round++) {
		double rate[N], sum = 0, after = 0;
		struct monotone_point p[N];
		for (int i = 0; i < N; i++) {
			rate[i] = g_rand_double_range(random, 1, 2);
			sum += rate[i];
			p[i] = (struct monotone_point){
			    {g_rand_int_range(random, 0, 4), g_rand_int_range(random, 0, 3), g_rand_int_range(random, 0, 3)}, &rate[i]};
		}
		monotone_pool(p, N);
		for (int i = 0; i < N; i++) {
			after += rate[i];
			for (int j = 0; j < N; j++)
				if (p[i].users[0] <= p[j].users[0] && p[i].users[1] <= p[j].users[1] && p[i].users[2] <= p[j].users[2])
					cr_assert_leq(rate[j], rate[i] * 1.002, "round %d: %g beside %g", round, rate[j], rate[i]);
		}
		cr_assert_float_eq(after, sum, 1e-9 * sum, "a mean takes nothing away");
	}
}

/* A thread that is measured faster beside a download than alone: by the mean it is neither. */
Test(monotone, adam_alone_is_no_slower_than_beside_copies)
{
	double threads[] = {0, 1, 4}, adam[] = {0, 20, 80}, adam_d[] = {0, 23, 60}, shorter[] = {0, 50};
	struct machine m = {.contention = CONTENTION_MEASURED, .adam_threads = 4, .adam_bytes_per_param = 10, .adam_share = 1, .adam_pace = 1};
	m.table = (struct contention_table){.threads = {threads, 3}, .adam = {adam, 3}, .adam_d = {adam_d, 3}, .adam_u = {shorter, 2}};
	cr_assert_float_eq(machine_adam_gparams_per_s(&m, 1), 2.15, 1e-9);
	cr_assert_float_eq(machine_adam_gparams_per_s(&m, 4), 8, 1e-9);
	cr_assert_float_eq(machine_adam_gparams_per_s(&m, 2), (2.15 * 2 + 8) / 3, 1e-9, "on the line between both");
}
