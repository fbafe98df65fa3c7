/* Memory that is far: which pages are held, and that what is held is the system's again in the end. */
#include "exec/far.h"

#include <criterion/criterion.h>
#include <glib.h>
#include <stdio.h>

#define PAGE ((uint64_t)2 << 20)
#define MIB ((uint64_t)1 << 20)

enum { PAGES = 1000 };

/* Two sockets in turns of seven pages, with noise of a tenth. */
static void two_sockets(float *ns, bool *remote)
{
	g_autoptr(GRand) rand = g_rand_new_with_seed(7);
	for (int i = 0; i < PAGES; i++) {
		remote[i] = i / 7 % 2;
		ns[i] = (float)((remote[i] ? 205 : 125) * g_rand_double_range(rand, 0.9, 1.1));
	}
}

Test(far, what_is_not_needed_is_held_from_the_far_end)
{
	float ns[PAGES];
	bool remote[PAGES], far[PAGES];
	struct far_found found;
	two_sockets(ns, remote);
	size_t local = 0;
	for (int i = 0; i < PAGES; i++)
		local += !remote[i];
	cr_assert(far_choose(ns, PAGES, local, far, &found));
	cr_assert_arr_eq(far, remote, sizeof far);
	cr_assert_eq(found.kept_bytes, local * PAGE);
	cr_assert_eq(found.far_bytes, (PAGES - local) * PAGE);
	cr_assert_float_eq(found.kept_ns, 125, 5);
	cr_assert_float_eq(found.far_ns, 205, 5);
}

Test(far, what_is_needed_is_left_however_far_it_is)
{
	float ns[PAGES];
	bool remote[PAGES], far[PAGES];
	struct far_found found;
	two_sockets(ns, remote);
	const size_t needed[] = {1, 100, 700, PAGES - 1};
	for (size_t k = 0; k < G_N_ELEMENTS(needed); k++) {
		size_t kept = 0;
		float farthest = 0, nearest = 1e9f;
		far_choose(ns, PAGES, needed[k], far, &found);
		for (int i = 0; i < PAGES; i++) {
			kept += !far[i];
			farthest = far[i] ? farthest : MAX(farthest, ns[i]);
			nearest = far[i] ? MIN(nearest, ns[i]) : nearest;
		}
		cr_assert_geq(kept, needed[k]);
		cr_assert_leq(farthest, nearest);
	}
}

Test(far, memory_that_is_alike_is_left)
{
	float ns[PAGES];
	bool far[PAGES];
	struct far_found found;
	g_autoptr(GRand) rand = g_rand_new_with_seed(8);
	for (int i = 0; i < PAGES; i++)
		ns[i] = (float)(125 * g_rand_double_range(rand, 0.95, 1.05));
	cr_assert_not(far_choose(ns, PAGES, PAGES / 2, far, &found));
	for (int i = 0; i < PAGES; i++)
		cr_assert_not(far[i]);
}

Test(far, no_page_is_held_where_all_are_needed)
{
	float ns[2] = {1, 100};
	bool far[2];
	struct far_found found;
	for (size_t needed = 2; needed < 4; needed++)
		cr_assert_not(far_choose(ns, 2, needed, far, &found));
}

static uint64_t resident(void)
{
	unsigned long all = 0, here = 0;
	FILE *f = fopen("/proc/self/statm", "r");
	cr_assert(f && fscanf(f, "%lu %lu", &all, &here) == 2);
	fclose(f);
	return (uint64_t)here * 4096;
}

/* Whatever this machine's memory is like. */
Test(far, what_is_held_is_given_back)
{
	const uint64_t before = resident();
	struct far_found found;
	struct far *far = far_new(64 * MIB, 256 * MIB, &found);
	if (far) {
		cr_assert_gt(found.far_bytes, 0);
		cr_assert_geq(found.far_ns, FAR_FROM * found.kept_ns);
	}
	far_free(far);
	cr_assert_lt(resident(), before + 64 * MIB);
	cr_assert_null(far_new(G_MAXUINT64 / 4, 256 * MIB, &found), "there is no more than is needed");
}
