/* Quantiles of few values, by hand. */
#include "model/quantile.h"

#include <criterion/criterion.h>

Test(quantile, lies_between_two_values_in_proportion)
{
	double v[] = {4, 1, 3, 2, 5};
	quantile_sort(v, 5);
	for (int i = 0; i < 5; i++)
		cr_expect_eq(v[i], i + 1);
	cr_expect_eq(quantile(v, 5, 0), 1);
	cr_expect_eq(quantile(v, 5, 1), 5);
	cr_expect_float_eq(quantile(v, 5, 0.25), 2, 1e-12);
	cr_expect_float_eq(quantile(v, 5, 0.1), 1.4, 1e-12);
}

Test(quantile, median_of_an_even_number_is_half_way)
{
	double four[] = {10, 1, 2, 4}, one[] = {7};
	cr_expect_eq(quantile_median(four, 4), 3);
	cr_expect_eq(quantile_median(one, 1), 7);
}
