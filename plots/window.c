/* Which part of a trace the timeline shows. A step has thousands of boxes, a layer some dozens: so one layer, in the middle of the network, where
 * nothing starts or ends. Its backward pass comes much later; it stands beside the forward pass at the same scale if that leaves room for the expert
 * numbers. */
#include "model/error.h"
#include "timeline.h"

#define LABEL_PADDING 2.0

/* The layers that have experts, as a set. */
static GArray *moe_layers(const struct trace *trace)
{
	g_autofree bool *seen = g_new0(bool, UINT16_MAX + 1);
	GArray *layers = g_array_new(FALSE, FALSE, sizeof(int));

	for (guint i = 0; i < trace->spans->len; i++) {
		const struct span *span = trace_span(trace, i);

		if (span->kind == STAGE_EXPERT)
			seen[span->layer] = true;
	}
	for (int layer = 0; layer <= UINT16_MAX; layer++)
		if (seen[layer])
			g_array_append_val(layers, layer);
	return layers;
}

static bool choose_layer(const struct trace *trace, int wanted, int *layer, GError **error)
{
	g_autoptr(GArray) layers = moe_layers(trace);

	if (!layers->len) {
		g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_INPUT, "the trace has no stages of experts to zoom to; --all shows the last step");
		return false;
	}
	*layer = g_array_index(layers, int, layers->len / 2);
	if (wanted < 0)
		return true;
	for (guint i = 0; i < layers->len; i++)
		if (g_array_index(layers, int, i) == wanted) {
			*layer = wanted;
			return true;
		}
	g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_USAGE, "layer %d: the trace's layers with experts are %d to %d", wanted,
	            g_array_index(layers, int, 0), g_array_index(layers, int, layers->len - 1));
	return false;
}

static bool pass_matches(int pass, int wanted)
{
	return pass == wanted || (wanted == PASS_BACKWARD && pass == PASS_RECOMPUTE);
}

/* The last micro-batch of the last step that has experts in this layer and pass; false: none has. */
static bool last_turn(const struct trace *trace, int layer, int pass, int *step, int *microbatch)
{
	*step = *microbatch = -1;
	for (guint i = 0; i < trace->spans->len; i++) {
		const struct span *span = trace_span(trace, i);

		if (span->kind != STAGE_EXPERT || span->layer != layer || span->pass != pass || span->step < *step)
			continue;
		*microbatch = span->step > *step ? span->microbatch : MAX(*microbatch, span->microbatch);
		*step = span->step;
	}
	return *step >= 0;
}

static bool frames_layer(int kind)
{
	return kind < STAGE_ADAM_GPU || kind == STAGE_COUNTS || kind == STAGE_ALL_TO_ALL;
}

static bool layer_window(const struct trace *trace, int layer, int pass, struct timeline_window *window)
{
	int step, microbatch;
	nsec_t margin;

	if (!last_turn(trace, layer, pass, &step, &microbatch))
		return false;
	*window = (struct timeline_window){.from_ns = INT64_MAX, .to_ns = INT64_MIN, .layer = layer, .pass = pass};
	for (guint i = 0; i < trace->spans->len; i++) {
		const struct span *span = trace_span(trace, i);

		if (span->step != step || span->microbatch != microbatch || span->layer != layer || !pass_matches(span->pass, pass) ||
		    !frames_layer(span->kind))
			continue;
		window->from_ns = MIN(window->from_ns, span->start_ns);
		window->to_ns = MAX(window->to_ns, span->end_ns);
	}
	margin = (window->to_ns - window->from_ns) / 50 + 1;
	window->from_ns = MAX(0, window->from_ns - margin);
	window->to_ns += margin;
	return true;
}

static int compare_nsec(gconstpointer a, gconstpointer b)
{
	nsec_t x = *(const nsec_t *)a, y = *(const nsec_t *)b;

	return (x > y) - (x < y);
}

/* Whether the typical expert box of the window still holds the widest expert number at this scale. */
static bool numbers_fit(const struct trace *trace, const struct timeline_window *window, double points_per_ns)
{
	g_autoptr(GArray) durations = g_array_new(FALSE, FALSE, sizeof(nsec_t));
	g_autofree char *widest = NULL;
	int most = -1;

	for (guint i = 0; i < trace->spans->len; i++) {
		const struct span *span = trace_span(trace, i);
		nsec_t duration = span->end_ns - span->start_ns;

		if (span->kind != STAGE_EXPERT || span->layer != window->layer || span->expert < 0 || span->end_ns <= window->from_ns ||
		    span->start_ns >= window->to_ns)
			continue;
		most = MAX(most, span->expert);
		g_array_append_val(durations, duration);
	}
	if (!durations->len)
		return true;
	g_array_sort(durations, compare_nsec);
	widest = g_strdup_printf("%d", most);
	return (double)g_array_index(durations, nsec_t, durations->len / 2) * points_per_ns >= text_width(widest, TEXT_SMALL) + LABEL_PADDING;
}

static bool period_window(const struct trace *trace, const struct timeline_options *options, struct timeline_window *window, GError **error)
{
	nsec_t from, to;

	trace_last_step(trace, &from, &to);
	*window = (struct timeline_window){.from_ns = from, .to_ns = to, .layer = -1, .pass = -1};
	if (options->zoom == TIMELINE_PERIOD) {
		window->from_ns = options->from_ns;
		window->to_ns = options->to_ns;
	}
	if (window->from_ns < window->to_ns && window->from_ns < to && window->to_ns > 0)
		return true;
	g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_USAGE, "the period from %.3f to %.3f ms: the trace goes from 0 to %.3f ms",
	            (double)window->from_ns / (double)NSEC_PER_MSEC, (double)window->to_ns / (double)NSEC_PER_MSEC,
	            (double)to / (double)NSEC_PER_MSEC);
	return false;
}

bool timeline_windows(const struct trace *trace, const struct timeline_options *options, double width, struct timeline_window window[2], int *n,
                      GError **error)
{
	int first = options->pass == PASS_BACKWARD ? PASS_BACKWARD : PASS_FORWARD, layer;
	double scale;

	*n = 1;
	if (options->zoom != TIMELINE_LAYER)
		return period_window(trace, options, &window[0], error);
	if (!choose_layer(trace, options->layer, &layer, error))
		return false;
	if (!layer_window(trace, layer, first, &window[0])) {
		g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_USAGE, "layer %d has no %s pass in the trace", layer, stage_pass_name(first));
		return false;
	}
	if (options->pass >= 0 || !layer_window(trace, layer, PASS_BACKWARD, &window[1]))
		return true;
	scale = width / (double)(window[0].to_ns - window[0].from_ns + window[1].to_ns - window[1].from_ns);
	if (numbers_fit(trace, &window[0], scale) && numbers_fit(trace, &window[1], scale))
		*n = 2;
	return true;
}
