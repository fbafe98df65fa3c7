/* Rates that more users never raise, from measurements that are noisy. */
#pragma once

struct monotone_point {
	double users[3]; /* Adam threads, uploads, downloads */
	double *rate;
};

/* Of two points of which the one with no fewer users of any kind has the higher rate both get the mean, until none is left to speak of. */
void monotone_pool(const struct monotone_point *points, int n);
