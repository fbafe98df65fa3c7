/* One trace file as it stands: what kineto_read merges. */
#pragma once

#include "trace.h"

#include <gio/gio.h>

/* A launch or a step: `key` is the stage id, the correlation or the step's number. */
struct kineto_interval {
	int64_t key;
	nsec_t start_ns, end_ns;
};

struct kineto_file {
	char *name;
	bool own;              /* written by kineto_write: times are the run's, stages have ids and predecessors */
	int64_t rank, gpus;    /* -1: not said */
	int64_t gpus_per_node; /* -1: not said, and the file is foreign */
	char *gpu_name;
	int64_t hbm_bytes, sms;
	char *description;
	nsec_t base_ns;           /* to be added to a foreign file's times */
	GArray *spans;            /* struct span; a foreign file's: id is the index here, rank the device, stream an enum gpu_stream */
	GArray *correlations;     /* int64_t, of a foreign file's spans; -1: none */
	GArray *launches, *steps; /* struct kineto_interval */
	GPtrArray *counters;      /* struct counter *, owned */
};

/* Reads to the end of the stream; the name is for errors, which carry the byte offset. Gzip is recognised by its first bytes. Owned by the caller. */
struct kineto_file *kineto_parse(const char *name, GInputStream *in, GError **error) G_GNUC_WARN_UNUSED_RESULT;
void kineto_file_free(struct kineto_file *file);
AUTOPTR(kineto_file)
