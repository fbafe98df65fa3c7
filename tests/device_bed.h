/* One host device with one stream, and random numbers that are fresh on every run; a failure prints their seed. */
#pragma once

#include "exec/device.h"
#include "twins.h"

static const int token_counts[] = {0, 1, 3, 17};

struct device_bed {
	struct device *device;
	struct device_group *group;
	struct device_stream *stream;
	struct device_event *done;
	GRand *random;
};

static inline void device_bed_init(struct device_bed *b)
{
	GError *error = NULL;
	const char *given = g_getenv("TEST_SEED");
	guint32 seed = given ? (guint32)g_ascii_strtoull(given, NULL, 10) : g_random_int();
	cr_log_info("TEST_SEED=%u\n", seed);
	b->random = g_rand_new_with_seed(seed);
	cr_assert(device_open("host", 1, 1 << 20, &b->device, &b->group, &error));
	b->stream = device_stream_new(b->device, "test", &error);
	b->done = device_event_new(b->device);
}

static inline void device_bed_sync(struct device_bed *b)
{
	GError *error = NULL;
	device_event_record(b->stream, b->done);
	cr_assert(device_event_wait(b->done, &error), "%s", error ? error->message : "");
}

static inline void device_bed_clear(struct device_bed *b)
{
	device_stream_free(b->stream);
	device_event_free(b->done);
	device_close(&b->device, 1, b->group);
	g_rand_free(b->random);
}

/* n tokens or targets below `vocab`. */
static inline int32_t *device_bed_tokens(struct device_bed *b, int n, int vocab)
{
	int32_t *t = g_new(int32_t, n);
	for (int i = 0; i < n; i++)
		t[i] = g_rand_int_range(b->random, 0, vocab);
	return t;
}

/* The k largest of each row of logits, the first of equals: independent of how the device finds them. */
static inline void device_bed_choose(int32_t *index, uint32_t *counts, const double *logits, int N, int E, int k)
{
	for (int n = 0; n < N; n++)
		for (int e = 0; e < E; e++) {
			int before = 0; /* experts that come before e */
			for (int f = 0; f < E; f++)
				before += logits[n * E + f] > logits[n * E + e] || (logits[n * E + f] == logits[n * E + e] && f < e);
			if (before < k) {
				index[n * k + before] = e;
				counts[e]++;
			}
		}
}
