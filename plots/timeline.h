/* The timeline: when each stream did what. One row a stream, boxes coloured by stage kind, expert numbers in the boxes where they fit. */
#pragma once

#include "rows.h"

enum timeline_zoom {
	TIMELINE_LAYER,  /* one micro-batch of one MoE layer: from the first to the last of its stages on the compute and collective streams */
	TIMELINE_PERIOD, /* from_ns to to_ns */
	TIMELINE_ALL,    /* the last step */
};

struct timeline_options {
	enum timeline_zoom zoom;
	int layer; /* -1: the middle one of those with experts */
	int pass;  /* PASS_FORWARD, PASS_BACKWARD (with its recomputation), or -1: forward, and backward beside it if the expert numbers still fit */
	nsec_t from_ns, to_ns;
	struct gpu_choice gpus;
};

/* Draws the trace into the file `out` (see figure_write). Of several micro-batches the last is shown: the one whose gradients the optimizer takes.
 * ESMOE_ERROR_USAGE: a layer, GPU or period that the trace has not. */
bool plot_timeline(const struct trace *trace, const struct timeline_options *options, const char *out, GError **error) G_GNUC_WARN_UNUSED_RESULT;

/* One panel's period. */
struct timeline_window {
	nsec_t from_ns, to_ns;
	int layer, pass; /* -1: none */
};
/* The one or two windows that the options choose, in *n; `width` points is their room. False on error. */
bool timeline_windows(const struct trace *trace, const struct timeline_options *options, double width, struct timeline_window window[2], int *n,
                      GError **error) G_GNUC_WARN_UNUSED_RESULT;
