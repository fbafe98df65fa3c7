/* Claimed memory: which pages are far; blocks that are whole, apart, zeroed when they are pages, and the claim's again when they are given. */
#include "exec/claim.h"

#include "exec/pages.h"
#include "exec/round.h"

#include <criterion/criterion.h>
#include <glib.h>
#include <math.h>
#include <string.h>

#define PAGE ((size_t)2 << 20)

enum { PAGES = 1000 };

/* Two sockets in turns of seven pages, with noise of a tenth. */
static size_t two_sockets(float *ns, bool *remote)
{
	size_t local = 0;
	g_autoptr(GRand) rand = g_rand_new_with_seed(7);
	for (int i = 0; i < PAGES; i++) {
		remote[i] = i / 7 % 2;
		ns[i] = (float)((remote[i] ? 205 : 125) * g_rand_double_range(rand, 0.9, 1.1));
		local += !remote[i];
	}
	return local;
}

Test(claim, what_another_socket_has_is_far)
{
	float ns[PAGES];
	bool remote[PAGES], far[PAGES];
	struct claim_found found;
	const size_t local = two_sockets(ns, remote);
	claim_sort(ns, PAGES, far, &found);
	cr_assert_arr_eq(far, remote, sizeof far);
	cr_assert_eq(found.near_bytes, local * PAGE);
	cr_assert_eq(found.far_bytes, (PAGES - local) * PAGE);
	cr_assert_float_eq(found.near_ns, 125, 5);
	cr_assert_float_eq(found.far_ns, 205, 5);
}

Test(claim, memory_that_is_alike_is_near)
{
	float ns[PAGES];
	bool far[PAGES];
	struct claim_found found;
	g_autoptr(GRand) rand = g_rand_new_with_seed(8);
	for (int i = 0; i < PAGES; i++)
		ns[i] = (float)(125 * g_rand_double_range(rand, 0.9, 1.1));
	claim_sort(ns, PAGES, far, &found);
	for (int i = 0; i < PAGES; i++)
		cr_assert_not(far[i]);
	cr_assert_eq(found.far_bytes, 0);
}

/* No page twice, and wherever a block begins it has its share of far ones. */
static void check_order(const bool *far, size_t needed, double share, size_t unit)
{
	size_t order[PAGES];
	bool seen[PAGES] = {false};
	claim_order(far, PAGES, needed, share, unit, order);
	for (size_t i = 0; i < needed; i++) {
		cr_assert_lt(order[i], PAGES);
		cr_assert_not(seen[order[i]]);
		seen[order[i]] = true;
	}
	for (size_t first = 0; first + 16 * unit <= needed; first++) {
		size_t of_them = 0;
		for (size_t i = first; i < first + 16 * unit; i++)
			of_them += far[order[i]];
		cr_assert_leq(fabs((double)of_them - 16 * (double)unit * share), 2.0 * (double)unit, "share %g, unit %zu: %zu of %zu", share, unit,
		              of_them, 16 * unit);
	}
}

Test(claim, blocks_have_their_share_of_far_pages)
{
	float ns[PAGES];
	bool far[PAGES];
	const size_t local = two_sockets(ns, far);
	const double shares[] = {0, 0.1, 0.25, 0.42, 0.5};
	for (size_t i = 0; i < G_N_ELEMENTS(shares); i++)
		for (size_t unit = 1; unit <= 4; unit *= 2)
			check_order(far, (size_t)((double)local / (1 - shares[i]) * 0.9), shares[i], unit);
}

Test(claim, when_one_kind_is_used_up_the_other_is_taken)
{
	float ns[PAGES];
	bool far[PAGES], seen[PAGES] = {false};
	size_t order[PAGES], all = 0;
	two_sockets(ns, far);
	claim_order(far, PAGES, PAGES, 0.9, 1, order);
	for (size_t i = 0; i < PAGES; i++)
		seen[order[i]] = true;
	for (size_t i = 0; i < PAGES; i++)
		all += seen[i];
	cr_assert_eq(all, PAGES);
	cr_assert_not(far[order[PAGES - 1]]);
}

/* Machines that claim nothing have nothing to check. */
static bool some(size_t needed)
{
	struct claim_found found;
	return claim_open(needed, 32 * PAGE, &found);
}

Test(claim, blocks_are_apart_and_come_again)
{
	if (!some(16 * PAGE))
		cr_skip("no claim on this machine");
	char *block[3] = {claim_take(4 * PAGE), claim_take(1), claim_take(PAGE + 1)};
	const size_t bytes[] = {4 * PAGE, PAGE, 2 * PAGE};
	for (int i = 0; i < 3; i++) {
		cr_assert_not_null(block[i]);
		cr_assert_eq((uintptr_t)block[i] % PAGE, 0);
		memset(block[i], i + 1, bytes[i]);
	}
	for (int i = 0; i < 3; i++)
		for (size_t k = 0; k < bytes[i]; k += 512)
			cr_assert_eq(block[i][k], i + 1);
	cr_assert(claim_give(block[0]));
	cr_assert_not(claim_give(block[0]), "it is not out");
	cr_assert_not_null(block[0] = claim_take(3 * PAGE));
	cr_assert_null(claim_take(1000 * PAGE), "there is not so much");
	for (int i = 0; i < 3; i++)
		cr_assert(claim_give(block[i]));
	claim_close();
	cr_assert_null(claim_take(PAGE));
}

Test(claim, mixed_pages_are_whole)
{
	struct claim_found found;
	claim_far_from = 1.0; /* noise decides */
	if (!claim_open(64 * PAGE, 64 * PAGE, &found))
		cr_skip("no claim on this machine");
	cr_assert_gt(found.far_bytes, 0);
	cr_assert_gt(found.far_share, 0);
	cr_assert_leq(found.far_share, 1.001);
	g_autofree char *text = claim_describe(&found);
	cr_assert(strstr(text, "of far ones"), "%s", text);
	cr_assert(found.near_gbps > 0 && found.far_gbps > 0);
	cr_assert_eq(claim_spare_bytes(), 128 * PAGE);
	char *block[] = {claim_take(40 * PAGE), claim_take(24 * PAGE), claim_take(PAGE)};
	const size_t pages[] = {40, 24, 1};
	for (int i = 0; i < 3; i++) {
		cr_assert_not_null(block[i]);
		for (size_t k = 0; k < pages[i] * PAGE; k += 512)
			block[i][k] = (char)(i + 1);
	}
	cr_assert_eq(block[1], block[0] + 40 * PAGE);
	for (int i = 0; i < 3; i++) {
		for (size_t k = 0; k < pages[i] * PAGE; k += 512)
			cr_assert_eq(block[i][k], i + 1);
		cr_assert(claim_give(block[i]));
	}
	cr_assert_eq(claim_spare_bytes(), 128 * PAGE);
	claim_close();
	cr_assert_eq(claim_spare_bytes(), 0);
}

Test(claim, has_all_that_was_needed_in_one_block)
{
	if (!some(16 * PAGE))
		cr_skip("no claim on this machine");
	const uint64_t spare = claim_spare_bytes();
	char *all = claim_take(16 * PAGE);
	cr_assert_not_null(all);
	cr_assert_geq(spare, 16 * PAGE);
	cr_assert_eq(claim_spare_bytes(), spare - 16 * PAGE);
	claim_close();
	all[16 * PAGE - 1] = 1; /* it is out, and stays */
	cr_assert(claim_give(all));
	cr_assert_eq(claim_spare_bytes(), spare);
	claim_close();
	cr_assert_eq(claim_spare_bytes(), 0);
	cr_assert_not(claim_give(all));
}

Test(claim, what_no_block_has_is_not_used)
{
	struct claim_found found;
	autoclear(round) r;
	round_init(&r, 1);
	round_used(&r, NULL);
	const uint64_t before = r.host_bytes;
	if (!claim_open(16 * PAGE, 256 * PAGE, &found))
		cr_skip("no claim on this machine");
	round_used(&r, NULL);
	cr_assert_lt(r.host_bytes, before + 32 * PAGE);
	void *block = claim_take(64 * PAGE);
	memset(block, 1, 64 * PAGE); /* what nobody used may be the system's again */
	round_used(&r, NULL);
	cr_assert_geq(r.host_bytes, before + 64 * PAGE);
	cr_assert(claim_give(block));
	claim_close();
}

Test(claim, pages_are_zero_whatever_they_were)
{
	if (!some(16 * PAGE))
		cr_skip("no claim on this machine");
	for (int round = 0; round < 3; round++) {
		char *p = pages_new(8 * PAGE);
		for (size_t k = 0; k < 8 * PAGE; k += 64)
			cr_assert_eq(p[k], 0);
		memset(p, 7, 8 * PAGE);
		pages_free(p, 8 * PAGE);
	}
	char *small = pages_new(4096);
	cr_assert_not(claim_give(small), "a huge page is too much for it");
	pages_free(small, 4096);
	claim_close();
}

Test(claim, there_is_one_at_a_time_and_never_more_than_there_is)
{
	struct claim_found found;
	cr_assert_not(claim_open(G_MAXUINT64 / 4, 32 * PAGE, &found));
	cr_assert_not(claim_open(0, 32 * PAGE, &found));
	cr_assert_null(claim_take(PAGE));
	if (!some(16 * PAGE))
		cr_skip("no claim on this machine");
	cr_assert_not(some(16 * PAGE));
	claim_close();
	cr_assert(some(16 * PAGE));
	claim_close();
}
