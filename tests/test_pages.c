/* Blocks of memory that is there: zeroed, writable, counted by the system. */
#include "exec/pages.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <string.h>

static uint64_t resident(void)
{
	unsigned long all = 0, here = 0;
	FILE *f = fopen("/proc/self/statm", "r");
	cr_assert(f && fscanf(f, "%lu %lu", &all, &here) == 2);
	fclose(f);
	return (uint64_t)here * 4096;
}

Test(pages, are_there_and_zero)
{
	const size_t sizes[] = {4096, 12345, (8u << 20) + 4096, 64u << 20};
	for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
		uint64_t before = resident();
		unsigned char *p = pages_new(sizes[i]);
		cr_assert_not_null(p);
		cr_expect_geq(resident() + (1u << 20), before + sizes[i], "%zu bytes", sizes[i]);
		for (size_t k = 0; k < sizes[i]; k += 4096)
			cr_assert_eq(p[k], 0);
		cr_assert_eq(p[sizes[i] - 1], 0);
		memset(p, 1, sizes[i]);
		pages_free(p, sizes[i]);
	}
}

Test(pages, no_address_space_is_no_block)
{
	cr_assert_null(pages_new(SIZE_MAX / 2));
}

Test(pages, what_is_available_is_less_than_what_there_is)
{
	unsigned long long kib = 0;
	FILE *f = fopen("/proc/meminfo", "r");
	cr_assert(f && fscanf(f, "MemTotal: %llu", &kib) == 1);
	fclose(f);
	cr_expect_gt(pages_available(), 0);
	cr_expect_leq(pages_available(), kib << 10);
}
