/* A progress bar with the time left, on stderr and only when that is a terminal. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

struct progress {
	bool shown;
	int first, done, total;
	int64_t start_us, drawn_us;
};

/* `done` of `total` are there already and do not count for the speed. */
void progress_init(struct progress *p, int done, int total);
double progress_seconds(const struct progress *p); /* since progress_init */
void progress_step(struct progress *p);
/* Wipes the bar. */
void progress_clear(struct progress *p);
