/* Copies, CPU Adam and collectives of a device outside any run: alone, and against each other. */
#pragma once

#include "model/measured.h"

/* GB/s of each copy, and billion parameters/s of Adam, with what runs together: uploads, downloads, Adam threads (0: none). */
struct together {
	bool upload, download;
	int threads;
};
struct rates {
	double up_gbps, down_gbps, adam_gparams;
};

struct measure;

/* Opens two devices of that name. Owned by the caller. */
struct measure *measure_new(const char *device, GError **error) G_GNUC_WARN_UNUSED_RESULT;
void measure_free(struct measure *m);
AUTOPTR(measure)

/* Each class works on blocks of its own, one after the other, for `ms` milliseconds at a time; the best of several times. */
bool measure_together(struct measure *m, const struct together *what, int ms, struct rates *out, GError **error) G_GNUC_WARN_UNUSED_RESULT;

/* All-reduce or reduce-scatter of two devices over a range of sizes, `repeats` times each, added to the table. Time runs from when the later one came
 * to the end of the slower. */
bool measure_collective(struct measure *m, int kind, int repeats, struct measured_table *table, GError **error) G_GNUC_WARN_UNUSED_RESULT;
