/* Figures are checked as SVG, where gnuplot says in numbers what it drew: a box's corners must stand where the span's times put them, computed here
 * from the axis' own ticks, and no two texts may cover each other. */
#include "model/error.h"
#include "plots/breakdown.h"
#include "plots/palette.h"
#include "plots/timeline.h"
#include "svg.h"

TestSuite(figures, .init = enter_folder, .fini = leave_folder);

static struct trace *trace_of(int gpus)
{
	struct trace *trace = trace_new();

	trace->gpus = trace->gpus_per_node = gpus;
	trace->hbm_bytes = UINT64_C(40) << 30;
	return trace;
}

static void add(struct trace *trace, int kind, int pass, int layer, int expert, stream_id stream, nsec_t start_ms, nsec_t end_ms)
{
	struct span span = {.id = trace->spans->len,
	                    .kind = (uint8_t)kind,
	                    .pass = (uint8_t)pass,
	                    .layer = (uint16_t)layer,
	                    .expert = expert,
	                    .stream = stream,
	                    .launch_ns = -1};

	span.rank = (int)stream / GPU_STREAMS < trace->gpus ? (int)stream / GPU_STREAMS : 0;
	span.start_ns = start_ms * NSEC_PER_MSEC;
	span.end_ns = end_ms * NSEC_PER_MSEC;
	g_array_append_val(trace->spans, span);
}

static void end_step(struct trace *trace, nsec_t end_ms)
{
	nsec_t end = end_ms * NSEC_PER_MSEC;

	g_array_append_val(trace->step_end_ns, end);
}

/* Layers 0, 2, 4 with `experts` experts a GPU of 10 ms each: forward from 1000 * layer, backward from 100000 - 1000 * layer. */
static struct trace *three_layers(int gpus, int experts)
{
	struct trace *trace = trace_of(gpus);

	for (int gpu = 0; gpu < gpus; gpu++)
		for (int layer = 0; layer < 6; layer += 2)
			for (int e = 0; e < experts; e++)
				for (int back = 0; back < 2; back++) {
					nsec_t at = (back ? 100000 - 1000 * layer : 1000 * layer) + 10 * e;

					add(trace, STAGE_EXPERT, back ? PASS_BACKWARD : PASS_FORWARD, layer, gpu + e * gpus,
					    stream_of_gpu(gpu, STREAM_COMPUTE), at, at + 10);
				}
	end_step(trace, 110000);
	return trace;
}

Test(figure, text_is_as_wide_as_the_fonts_advances)
{
	/* DejaVu Sans 2.37, units of 2048 per letter size: i 569, M 1767, digits 1303 */
	cr_expect_float_eq(text_width("iM07", 2048), 569 + 1767 + 2 * 1303, 4);
	cr_expect_float_eq(text_width("é", 100), 100, 1e-9);
}

Test(figure, long_text_keeps_both_ends)
{
	g_autofree char *same = text_fit("short", 9, 100), *cut = text_fit("beginning-and-then-much-more-until-the-end", 9, 100);

	cr_expect_str_eq(same, "short");
	cr_expect_leq(text_width(cut, 9), 100);
	cr_expect(g_str_has_prefix(cut, "begin") && g_str_has_suffix(cut, "end") && strstr(cut, "…"));
}

/* Brettel-like simulation with the matrices of Machado, Oliveira and Fernandes (2009), severity 1, in linear RGB. */
static void seen_as(const double m[3][3], uint32_t rgb, double out[3])
{
	double linear[3];

	for (int i = 0; i < 3; i++) {
		double c = (rgb >> (16 - 8 * i) & 255) / 255.0;

		linear[i] = c <= 0.04045 ? c / 12.92 : pow((c + 0.055) / 1.055, 2.4);
	}
	for (int i = 0; i < 3; i++) {
		double c = fmin(1, fmax(0, m[i][0] * linear[0] + m[i][1] * linear[1] + m[i][2] * linear[2]));

		out[i] = 255 * (c <= 0.0031308 ? 12.92 * c : 1.055 * pow(c, 1 / 2.4) - 0.055);
	}
}

static void check_differ(uint32_t one, uint32_t other, const char *what, int i, int j)
{
	static const double sight[3][3][3] = {{{1, 0, 0}, {0, 1, 0}, {0, 0, 1}},
	                                      {{0.367322, 0.860646, -0.227968}, {0.280085, 0.672501, 0.047413}, {-0.011820, 0.042940, 0.968881}},
	                                      {{0.152286, 1.052583, -0.204868}, {0.114503, 0.786281, 0.099216}, {-0.003882, -0.048116, 1.051998}}};

	for (int s = 0; s < 3; s++) {
		double a[3], b[3];

		seen_as(sight[s], one, a);
		seen_as(sight[s], other, b);
		cr_expect_gt(hypot(hypot(a[0] - b[0], a[1] - b[1]), a[2] - b[2]), 30, "sight %d: %s %d and %d", s, what, i, j);
	}
}

Test(palette, colours_differ_for_colour_blind_readers)
{
	for (int i = 0; i < N_STAGE_KINDS; i++)
		for (int j = 0; j < i; j++)
			if (palette_family(i) != palette_family(j))
				check_differ(palette_stage(i, PASS_FORWARD), palette_stage(j, PASS_FORWARD), "stage kinds", i, j);
	for (int i = 0; i < PALETTE_SERIES; i++)
		for (int j = 0; j < i; j++)
			check_differ(palette_series(i), palette_series(j), "lines", i, j);
}

Test(timeline, window_is_the_middle_layers_extent)
{
	g_autoptr(trace) trace = three_layers(2, 8);
	struct timeline_options o = {.layer = -1, .pass = PASS_FORWARD};
	struct timeline_window w[2];
	int n;

	cr_assert(timeline_windows(trace, &o, 600, w, &n, NULL));
	cr_expect_eq(n, 1);
	cr_expect_eq(w[0].layer, 2);
	/* 2000 to 2080 ms and a fiftieth on either side */
	cr_expect_float_eq((double)w[0].from_ns / 1e6, 2000 - 1.6, 0.001);
	cr_expect_float_eq((double)w[0].to_ns / 1e6, 2080 + 1.6, 0.001);
}

Test(timeline, backward_stands_beside_when_numbers_fit)
{
	g_autoptr(trace) few = three_layers(1, 8), many = three_layers(1, 64);
	struct timeline_options o = {.layer = 4, .pass = -1};
	struct timeline_window w[2];
	int n;

	cr_assert(timeline_windows(few, &o, 600, w, &n, NULL));
	cr_expect_eq(n, 2);
	cr_expect_eq(w[1].pass, PASS_BACKWARD);
	cr_assert(timeline_windows(many, &o, 600, w, &n, NULL));
	cr_expect_eq(n, 1);
}

Test(timeline, what_the_trace_has_not_is_an_error)
{
	g_autoptr(trace) trace = three_layers(2, 2);
	int five = 5;
	const struct timeline_options wrong[] = {{.layer = 3, .pass = -1},
	                                         {.zoom = TIMELINE_PERIOD, .from_ns = 200000 * NSEC_PER_MSEC, .to_ns = 300000 * NSEC_PER_MSEC},
	                                         {.layer = -1, .pass = -1, .gpus = {.gpus = &five, .n = 1}}};

	for (size_t i = 0; i < G_N_ELEMENTS(wrong); i++) {
		g_autoptr(GError) error = NULL;

		cr_expect_not(plot_timeline(trace, &wrong[i], "unused.svg", &error));
		cr_expect(g_error_matches(error, ESMOE_ERROR, ESMOE_ERROR_USAGE));
		cr_expect_not(g_file_test("unused.svg", G_FILE_TEST_EXISTS));
	}
}

Test(figures, timeline_boxes_stand_at_their_times)
{
	g_autoptr(trace) trace = trace_of(1);
	struct timeline_options o = {.zoom = TIMELINE_PERIOD, .from_ns = 0, .to_ns = 100 * NSEC_PER_MSEC};
	g_autofree char *path = in_folder("t.svg"), *svg = NULL;
	g_autoptr(GArray) words = NULL;
	double left, right, zero, point;

	add(trace, STAGE_MIXER, PASS_FORWARD, 0, -1, stream_of_gpu(0, STREAM_COMPUTE), 0, 20);
	add(trace, STAGE_UPLOAD, PASS_FORWARD, 0, 3, stream_of_gpu(0, STREAM_UPLOAD), 10, 40);
	add(trace, STAGE_EXPERT, PASS_FORWARD, 0, 3, stream_of_gpu(0, STREAM_COMPUTE), 40, 90);
	end_step(trace, 100);
	cr_assert(plot_timeline(trace, &o, path, NULL));
	svg = contents(path);
	words = words_of(svg);
	zero = middle_of(words, "20") - (middle_of(words, "80") - middle_of(words, "20")) / 3;
	point = (middle_of(words, "80") - middle_of(words, "20")) / 60;
	cr_assert(box_edges(svg, palette_stage(STAGE_UPLOAD, PASS_FORWARD), 1, &left, &right), "the legend's swatch comes first, then the box");
	cr_expect_float_eq(left, zero + 10 * point, 1.5);
	cr_expect_float_eq(right, zero + 40 * point, 1.5);
	cr_assert(box_edges(svg, palette_stage(STAGE_EXPERT, PASS_FORWARD), 1, &left, &right));
	cr_expect_float_eq(left, zero + 40 * point, 1.5);
	cr_expect_float_eq(right, zero + 90 * point, 1.5);
	cr_expect(says(words, "upload") && says(words, "compute") && says(words, "GPU 0"));
	cr_expect_not(says(words, "download"), "an empty row is dropped");
	check_no_overlap(words, "timeline");
}

Test(figures, timeline_numbers_every_expert_of_four_gpus_with_64)
{
	g_autoptr(trace) trace = three_layers(4, 16);
	struct timeline_options o = {.layer = -1, .pass = -1};
	g_autofree char *path = in_folder("t.svg"), *svg = NULL;
	g_autoptr(GArray) words = NULL;

	cr_assert(plot_timeline(trace, &o, path, NULL));
	svg = contents(path);
	words = words_of(svg);
	for (int e = 0; e < 64; e++) {
		g_autofree char *number = g_strdup_printf("%d", e);

		cr_expect(says(words, number), "expert %d has no number", e);
	}
	check_no_overlap(words, "timeline");
}

Test(figures, hairs_keep_the_busy_share)
{
	/* 50000 spans of 1 ms with 1 ms between, in 100 s: thinner than a hair, half the row's width in ink */
	g_autoptr(trace) trace = trace_of(1);
	struct timeline_options o = {.zoom = TIMELINE_ALL};
	g_autofree char *path = in_folder("t.svg"), *svg = NULL;
	g_autoptr(GArray) words = NULL;
	double ink = 0, first = HUGE_VAL, last = 0, left, right;

	for (int i = 0; i < 50000; i++)
		add(trace, STAGE_MIXER, PASS_FORWARD, 0, -1, stream_of_gpu(0, STREAM_COMPUTE), 2 * i, 2 * i + 1);
	end_step(trace, 100000);
	cr_assert(plot_timeline(trace, &o, path, NULL));
	svg = contents(path);
	for (int n = 1; box_edges(svg, palette_stage(STAGE_MIXER, PASS_FORWARD), n, &left, &right); n++) {
		ink += right - left;
		first = fmin(first, left);
		last = fmax(last, right);
	}
	cr_expect_float_eq(ink / (last - first), 0.5, 0.03);
	words = words_of(svg);
	cr_expect(says(words, "100000"));
	check_no_overlap(words, "timeline with a tick at its end");
}

Test(breakdown, busy_time_is_clipped_to_the_period)
{
	g_autoptr(trace) trace = trace_of(1);
	struct stream_time times[GPU_STREAMS + NODE_STREAMS];

	add(trace, STAGE_MIXER, PASS_FORWARD, 0, -1, stream_of_gpu(0, STREAM_COMPUTE), 0, 30);
	add(trace, STAGE_EXPERT, PASS_BACKWARD, 0, 1, stream_of_gpu(0, STREAM_COMPUTE), 40, 90);
	add(trace, STAGE_DOWNLOAD, PASS_BACKWARD, 0, 1, stream_of_gpu(0, STREAM_DOWNLOAD), 95, 99);
	stream_times(trace, 20 * NSEC_PER_MSEC, 80 * NSEC_PER_MSEC, times);
	cr_expect_eq(times[STREAM_COMPUTE].busy[STAGE_MIXER][PASS_FORWARD], 10 * NSEC_PER_MSEC);
	cr_expect_eq(times[STREAM_COMPUTE].busy[STAGE_EXPERT][PASS_BACKWARD], 40 * NSEC_PER_MSEC);
	cr_expect_eq(times[STREAM_DOWNLOAD].busy[STAGE_DOWNLOAD][PASS_BACKWARD], 0);
}

Test(figures, breakdown_says_busy_shares_of_the_last_step)
{
	/* the second step, 100 to 300 ms: GPU 0 computes half of it, GPU 1 a quarter; together 38 % */
	g_autoptr(trace) trace = trace_of(2);
	struct gpu_choice choice = {0};
	struct named_trace named[2] = {{"one", trace}, {"a name that is much too long to stand beside any bar", trace}};
	g_autofree char *path = in_folder("b.svg"), *svg = NULL, *means = NULL;
	g_autoptr(GArray) words = NULL, mean_words = NULL;

	add(trace, STAGE_MIXER, PASS_FORWARD, 0, -1, stream_of_gpu(0, STREAM_COMPUTE), 0, 200);
	add(trace, STAGE_MIXER, PASS_FORWARD, 0, -1, stream_of_gpu(1, STREAM_COMPUTE), 250, 300);
	end_step(trace, 100);
	end_step(trace, 300);
	cr_assert(plot_breakdown(named, 1, &choice, path, NULL));
	svg = contents(path);
	words = words_of(svg);
	cr_expect(says(words, "50 %") && says(words, "25 %") && says(words, "GPU 1"));
	check_no_overlap(words, "breakdown");
	cr_assert(plot_breakdown(named, 2, &choice, path, NULL));
	means = contents(path);
	mean_words = words_of(means);
	cr_expect(says(mean_words, "38 %") && says(mean_words, "one"));
	check_no_overlap(mean_words, "breakdown of two");
}
