/* Quantiles of measurements. */
#pragma once

/* Sorts the n > 0 values, ascending. */
void quantile_sort(double *values, int n);
/* Of sorted values, linear between two of them: q = 0 the least, 0.5 the median, 1 the most. */
double quantile(const double *sorted, int n, double q);
/* Sorts them, too. */
double quantile_median(double *values, int n);
