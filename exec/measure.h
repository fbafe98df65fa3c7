/* Copies, CPU Adam, collectives and the SSD outside any run: alone, and against each other. */
#pragma once

#include "model/measured.h"

/* What runs together: uploads and downloads of each of so many GPUs, Adam threads (0: none); and GB/s of each copy of a direction, billion
 * parameters/s of Adam. */
struct together {
	int gpus;
	bool upload, download;
	int threads;
};
struct rates {
	double up_gbps, down_gbps, adam_gparams;
};

struct measure;

/* Opens one or two devices of that name; Adam will update experts of so many parameters. Owned by the caller. */
struct measure *measure_new(const char *device, int count, size_t expert, GError **error) G_GNUC_WARN_UNUSED_RESULT;
void measure_free(struct measure *m);
AUTOPTR(measure)

/* device_describe of what it measures. Owned by the caller. */
char *measure_describe(const struct measure *m);

/* Each class works on blocks of its own, one after the other, for `ms` milliseconds. */
bool measure_together(struct measure *m, const struct together *what, int ms, struct rates *out, GError **error) G_GNUC_WARN_UNUSED_RESULT;

/* STAGE_ALL_REDUCE, STAGE_REDUCE_SCATTER or STAGE_COUNTS (bytes of all members) over a range of sizes, `repeats` times each, added to the table. Time
 * runs from when the last one came to the end of the slowest. */
bool measure_collective(struct measure *m, int kind, int repeats, struct measured_table *table, GError **error) G_GNUC_WARN_UNUSED_RESULT;

/* Copies of the first device, nothing beside them, over a range of sizes. */
bool measure_copies(struct measure *m, bool up, int repeats, struct measured_table *table, GError **error) G_GNUC_WARN_UNUSED_RESULT;

struct ssd_rates {
	double gb;                                /* that the file system has free */
	double read_gbps, write_gbps, mixed_gbps; /* mixed: reads and writes at once, their sum */
	double latency_us;                        /* of a read of one page beyond its bytes */
	double cores;                             /* kept busy by a read or a write */
};

/* A store's file in `folder`, read and written in blocks of a page to 16 MiB here and there in it, `repeats` times each (large
 * ones fewer), added to the tables. */
bool measure_ssd(const char *folder, int repeats, struct measured_table *read, struct measured_table *write, struct ssd_rates *out,
                 GError **error) G_GNUC_WARN_UNUSED_RESULT;
