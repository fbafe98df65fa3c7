#include "monotone.h"

#include <stdbool.h>

#define POOLED 1e-3 /* of a rate: a contradiction that is left */

enum { SWEEPS = 100 };

static bool no_fewer(const struct monotone_point *many, const struct monotone_point *few)
{
	for (int i = 0; i < 3; i++)
		if (many->users[i] < few->users[i])
			return false;
	return true;
}

static bool pool(const struct monotone_point *few, const struct monotone_point *many)
{
	if (*many->rate <= *few->rate * (1 + POOLED) || !no_fewer(many, few))
		return false;
	*few->rate = *many->rate = (*few->rate + *many->rate) / 2;
	return true;
}

void monotone_pool(const struct monotone_point *points, int n)
{
	bool again = true;
	for (int sweep = 0; again && sweep < SWEEPS; sweep++) {
		again = false;
		for (int i = 0; i < n; i++)
			for (int j = 0; j < n; j++)
				again |= pool(&points[i], &points[j]);
	}
}
