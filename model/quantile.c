#include "quantile.h"

#include <stdlib.h>

static int compare(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;
	return (x > y) - (x < y);
}

void quantile_sort(double *values, int n)
{
	qsort(values, (size_t)n, sizeof *values, compare);
}

double quantile(const double *sorted, int n, double q)
{
	double at = q * (n - 1);
	int low = (int)at;
	return low + 1 < n ? sorted[low] + (sorted[low + 1] - sorted[low]) * (at - low) : sorted[low];
}

double quantile_median(double *values, int n)
{
	quantile_sort(values, n);
	return quantile(values, n, 0.5);
}
