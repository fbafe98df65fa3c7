/* What traces are asked: info, diff, critical path and CSV, on examples small enough to do by hand and against brute force. Times in the examples are
 * microseconds. */
#include "made_trace.h"
#include "model/command.h"
#include "model/error.h"
#include "traces/critical_path.h"
#include "traces/csv.h"
#include "traces/diff.h"
#include "traces/info.h"
#include "traces/table.h"

#include <criterion/criterion.h>
#include <string.h>

static struct trace *empty_trace(int gpus)
{
	struct trace *trace = trace_new();

	trace->gpus = gpus;
	trace->gpus_per_node = gpus;
	return trace;
}

static struct span *add_span(struct trace *trace, int kind, stream_id stream, int start_us, int end_us)
{
	struct span s = {.id = trace->spans->len, .kind = (uint8_t)kind, .stream = stream, .expert = -1, .launch_ns = -1, .launch_end_ns = -1};

	s.start_ns = start_us * NSEC_PER_USEC;
	s.end_ns = end_us * NSEC_PER_USEC;
	g_array_append_val(trace->spans, s);
	return &g_array_index(trace->spans, struct span, trace->spans->len - 1);
}

static void launched(struct span *s, int from_us, int to_us)
{
	s->launch_ns = from_us * NSEC_PER_USEC;
	s->launch_end_ns = to_us * NSEC_PER_USEC;
}

static void after(struct span *s, stage_id pred)
{
	s->preds[s->n_preds++] = pred;
}

static void end_step(struct trace *trace, int us)
{
	nsec_t ns = us * NSEC_PER_USEC;

	g_array_append_val(trace->step_end_ns, ns);
}

static int part_us(const struct critical_path *path, int resource, int kind)
{
	for (guint i = 0; i < path->parts->len; i++) {
		const struct path_part *part = &g_array_index(path->parts, struct path_part, i);

		if (part->resource == resource && part->kind == kind)
			return (int)(part->ns / NSEC_PER_USEC);
	}
	return 0;
}

static nsec_t parts_sum(const struct critical_path *path)
{
	nsec_t sum = 0;

	for (guint i = 0; i < path->parts->len; i++)
		sum += g_array_index(path->parts, struct path_part, i).ns;
	return sum;
}

Test(trace, info_of_a_gpu_done_by_hand)
{
	g_autoptr(trace) trace = empty_trace(1);
	g_autoptr(trace_info) info = NULL;

	add_span(trace, STAGE_EXPERT, STREAM_COMPUTE, 0, 10);
	add_span(trace, STAGE_EXPERT, STREAM_COMPUTE, 10, 30);
	add_span(trace, STAGE_UPLOAD, STREAM_UPLOAD, 5, 15);
	add_span(trace, STAGE_UPLOAD, STREAM_UPLOAD, 25, 45);
	add_span(trace, STAGE_DOWNLOAD, STREAM_DOWNLOAD, 40, 50);
	add_span(trace, STAGE_ALL_TO_ALL, STREAM_COLLECTIVE, 28, 32);
	add_span(trace, STAGE_ADAM, GPU_STREAMS + STREAM_OPTIMIZER, 20, 55);
	end_step(trace, 60);
	info = trace_info_new(trace);
	cr_expect_eq(info->run_ns, 60000);
	cr_expect(info->streams[STREAM_COMPUTE].busy_ns == 30000 && info->streams[STREAM_COMPUTE].idle_ns == 30000);
	cr_expect(info->streams[STREAM_UPLOAD].busy_ns == 30000 && info->streams[STREAM_UPLOAD].under_compute_ns == 15000);
	cr_expect(info->streams[STREAM_DOWNLOAD].busy_ns == 10000 && info->streams[STREAM_DOWNLOAD].under_compute_ns == 0);
	cr_expect(info->streams[GPU_STREAMS + STREAM_OPTIMIZER].busy_ns == 35000);
	cr_expect(info->streams[GPU_STREAMS + STREAM_OPTIMIZER].under_compute_ns == 10000);
	cr_expect(info->gpus[0].window_ns == 50000 && info->gpus[0].compute_ns == 30000 && info->gpus[0].other_ns == 20000 &&
	          info->gpus[0].idle_ns == 0);
	cr_expect(info->gpus[0].collective_ns == 4000 && info->gpus[0].collective_hidden_ns == 2000);
	cr_expect(info->copy_ns == 35000 && info->copy_hidden_ns == 15000);
}

/* Marks every nanosecond of a run by hand. */
Test(trace, info_agrees_with_counting_nanoseconds)
{
	for (uint64_t seed = 1; seed <= 5; seed++) {
		g_autoptr(trace) trace = made_trace(1, 1, 60, seed);
		g_autoptr(trace_info) info = trace_info_new(trace);
		nsec_t end = trace_end_ns(trace), compute = 0, other = 0, copy = 0, hidden = 0, first = end, last = 0;
		g_autofree uint8_t *running = g_new0(uint8_t, end); /* bit per stream */

		for (guint i = 0; i < trace->spans->len; i++) {
			const struct span *s = &g_array_index(trace->spans, struct span, i);

			for (nsec_t t = s->start_ns; t < s->end_ns; t++)
				running[t] |= (uint8_t)(1 << s->stream);
		}
		for (nsec_t t = 0; t < end; t++) {
			bool computes = running[t] & 1 << STREAM_COMPUTE, copies = running[t] & (1 << STREAM_UPLOAD | 1 << STREAM_DOWNLOAD);

			compute += computes;
			other += !computes && running[t] & ((1 << GPU_STREAMS) - 1);
			copy += copies;
			hidden += copies && computes;
			if (running[t] & ((1 << GPU_STREAMS) - 1)) {
				first = MIN(first, t);
				last = t + 1;
			}
		}
		cr_expect_eq(info->gpus[0].compute_ns, compute);
		cr_expect_eq(info->gpus[0].other_ns, other);
		cr_expect_eq(info->gpus[0].copy_ns, copy);
		cr_expect_eq(info->gpus[0].copy_hidden_ns, hidden);
		cr_expect_eq(info->gpus[0].idle_ns, last - first - compute - other);
		for (int s = 0; s < info->n_streams; s++)
			cr_expect_eq(info->streams[s].busy_ns + info->streams[s].idle_ns, end);
	}
}

Test(trace, critical_path_follows_predecessors)
{
	g_autoptr(trace) trace = empty_trace(1);
	g_autoptr(critical_path) path = NULL;
	struct span *s;

	launched(add_span(trace, STAGE_UPLOAD, STREAM_UPLOAD, 10, 100), 0, 10);
	launched(s = add_span(trace, STAGE_EXPERT, STREAM_COMPUTE, 105, 205), 10, 20);
	after(s, 0);
	launched(s = add_span(trace, STAGE_DOWNLOAD, STREAM_DOWNLOAD, 205, 255), 20, 30);
	after(s, 1);
	/* Not on the path: ends earlier, or is nobody's cause. */
	launched(add_span(trace, STAGE_ADAM, GPU_STREAMS + STREAM_OPTIMIZER, 40, 250), 30, 40);
	end_step(trace, 260);
	path = critical_path_new(trace, -1, NULL);
	cr_expect_eq(path->step_ns, 260000);
	cr_expect_eq(part_us(path, STREAM_DOWNLOAD, STAGE_DOWNLOAD), 50);
	cr_expect_eq(part_us(path, STREAM_COMPUTE, STAGE_EXPERT), 100);
	cr_expect_eq(part_us(path, STREAM_UPLOAD, STAGE_UPLOAD), 90);
	cr_expect_eq(part_us(path, PATH_LAUNCH, -1), 10);
	cr_expect_eq(part_us(path, PATH_IDLE, -1), 5 + 5);
	cr_expect_eq(parts_sum(path), path->step_ns);
	cr_expect(path->bound_by == STREAM_COMPUTE && path->bound_ns == 100000);
}

Test(trace, critical_path_of_short_kernels_is_their_launches)
{
	g_autoptr(trace) trace = empty_trace(1);
	g_autoptr(critical_path) path = NULL;

	for (int i = 0; i < 5; i++)
		launched(add_span(trace, STAGE_GATE, STREAM_COMPUTE, 10 * i + 10, 10 * i + 11), 10 * i, 10 * i + 10);
	end_step(trace, 51);
	path = critical_path_new(trace, 0, NULL);
	cr_expect_eq(part_us(path, PATH_LAUNCH, -1), 50);
	cr_expect_eq(part_us(path, STREAM_COMPUTE, STAGE_GATE), 1);
	cr_expect(path->bound_by == PATH_LAUNCH && parts_sum(path) == 51000);
}

Test(trace, critical_path_sees_the_launcher_wait_for_counts)
{
	g_autoptr(trace) trace = empty_trace(1);
	g_autoptr(critical_path) path = NULL;

	launched(add_span(trace, STAGE_COUNTS, STREAM_COLLECTIVE, 10, 30), 0, 10);
	launched(add_span(trace, STAGE_EXPERT, STREAM_COMPUTE, 45, 145), 35, 45);
	end_step(trace, 145);
	path = critical_path_new(trace, -1, NULL);
	cr_expect_eq(part_us(path, STREAM_COMPUTE, STAGE_EXPERT), 100);
	cr_expect_eq(part_us(path, PATH_LAUNCH, -1), 10 + 10);
	cr_expect_eq(part_us(path, PATH_SYNC, -1), 5);
	cr_expect_eq(part_us(path, STREAM_COLLECTIVE, STAGE_COUNTS), 20);
	cr_expect_eq(part_us(path, PATH_IDLE, -1), 0);
	cr_expect_eq(parts_sum(path), 145000);
}

Test(trace, critical_path_stays_in_its_step)
{
	g_autoptr(trace) trace = empty_trace(1);
	g_autoptr(critical_path) first = NULL, second = NULL;
	g_autoptr(GError) error = NULL;

	add_span(trace, STAGE_UPLOAD, STREAM_UPLOAD, 0, 40);
	add_span(trace, STAGE_EXPERT, STREAM_COMPUTE, 0, 50);
	add_span(trace, STAGE_FFN, STREAM_COMPUTE, 50, 80);
	end_step(trace, 40);
	end_step(trace, 80);
	first = critical_path_new(trace, 0, NULL);
	second = critical_path_new(trace, 1, NULL);
	cr_expect(first->step_ns == 40000 && part_us(first, STREAM_UPLOAD, STAGE_UPLOAD) == 40);
	cr_expect(second->step_ns == 40000 && part_us(second, STREAM_COMPUTE, STAGE_FFN) == 30 &&
	          part_us(second, STREAM_COMPUTE, STAGE_EXPERT) == 10);
	cr_expect_null(critical_path_new(trace, 2, &error));
	cr_expect(g_error_matches(error, ESMOE_ERROR, ESMOE_ERROR_USAGE));
}

Test(trace, critical_path_parts_add_up_whatever_the_trace)
{
	for (uint64_t seed = 1; seed <= 50; seed++) {
		g_autoptr(trace) trace = made_trace(3, 2, 400, seed);

		for (int step = 0; step < 2; step++) {
			g_autoptr(critical_path) path = critical_path_new(trace, step, NULL);

			cr_expect_eq(parts_sum(path), path->step_ns);
			cr_expect_gt(path->step_ns, 0);
		}
	}
}

Test(trace, critical_path_of_an_empty_trace_is_empty)
{
	g_autoptr(trace) trace = empty_trace(1);
	g_autoptr(critical_path) path = critical_path_new(trace, -1, NULL);

	cr_expect(path->step_ns == 0 && path->parts->len == 0);
}

Test(trace, a_trace_differs_from_itself_in_nothing)
{
	g_autoptr(trace) trace = made_trace(2, 2, 3000, 9);
	g_autoptr(GArray) rows = trace_diff(trace, trace);
	uint32_t n = 0;

	for (guint i = 0; i < rows->len; i++) {
		const struct diff_row *row = &g_array_index(rows, struct diff_row, i);

		cr_expect(row->n_a == row->n_b && row->a_ns == row->b_ns && row->only_a == 0 && row->only_b == 0);
		n += row->n_a;
	}
	cr_expect_eq(n, trace->spans->len);
}

Test(trace, diff_finds_partners_whatever_ids_and_steps)
{
	g_autoptr(trace) a = empty_trace(1), b = empty_trace(2);
	g_autoptr(GArray) rows = NULL;
	const struct diff_row *row;

	add_span(a, STAGE_EXPERT, STREAM_COMPUTE, 0, 10)->expert = 1;
	add_span(a, STAGE_EXPERT, STREAM_COMPUTE, 10, 15)->expert = 2;
	add_span(a, STAGE_ADAM, GPU_STREAMS + STREAM_OPTIMIZER, 0, 7);
	add_span(b, STAGE_EXPERT, STREAM_COMPUTE, 0, 20)->expert = 2;
	add_span(b, STAGE_EXPERT, STREAM_COMPUTE, 20, 30)->expert = 3;
	add_span(b, STAGE_EXPERT, STREAM_COMPUTE, 30, 40)->expert = 4;
	add_span(b, STAGE_ADAM, 2 * GPU_STREAMS + STREAM_OPTIMIZER, 0, 7);
	for (guint i = 0; i < b->spans->len; i++)
		g_array_index(b->spans, struct span, i).step = 3;
	rows = trace_diff(a, b);
	cr_assert_eq(rows->len, 2);
	row = &g_array_index(rows, struct diff_row, 0);
	cr_expect(row->gpu == 0 && row->stream_kind == STREAM_COMPUTE && row->kind == STAGE_EXPERT);
	cr_expect(row->n_a == 2 && row->n_b == 3 && row->only_a == 1 && row->only_b == 2 && row->a_ns == 15000 && row->b_ns == 40000);
	row = &g_array_index(rows, struct diff_row, 1);
	cr_expect(row->gpu == -1 && row->node == 0 && row->kind == STAGE_ADAM && row->only_a == 0 && row->only_b == 0);
}

Test(trace, csv_has_a_line_per_span)
{
	g_autoptr(trace) trace = empty_trace(1);
	g_autoptr(GString) out = g_string_new(NULL);
	struct span *s;

	add_span(trace, STAGE_UPLOAD, STREAM_UPLOAD, 0, 1)->bytes = 5000000000;
	launched(s = add_span(trace, STAGE_EXPERT, STREAM_COMPUTE, 1, 2), 0, 1);
	s->expert = 17;
	s->layer = 3;
	s->pass = PASS_BACKWARD;
	s->tokens = 99;
	after(s, 0);
	after(s, 0);
	csv_spans(trace, 0, 2, out);
	cr_expect_str_eq(out->str, "0,0,0,0,,upload,forward,gpu0 upload,0,0,5000000000,,,0,1000,\n"
	                           "1,0,0,3,17,expert,backward,gpu0 compute,0,99,0,0,1000,1000,2000,0 0\n");
	cr_expect_str_eq(csv_header(), "id,step,microbatch,layer,expert,stage,pass,stream,rank,tokens,bytes,launch_ns,launch_end_ns,start_ns,end_ns,"
	                               "predecessors\n");
}

Test(trace, a_table_is_text_csv_and_json)
{
	static const char *const columns[] = {"name", "n", ".hidden_ms", "share_pct", NULL};
	g_autoptr(table) table = table_new(columns);
	g_autoptr(GString) text = g_string_new(NULL), csv = g_string_new(NULL), json = g_string_new(NULL);

	table_text(table, "a");
	table_count(table, 12345);
	table_ms(table, -1234567);
	table_percent(table, 1, 3);
	table_text(table, "long name");
	table_count(table, 7);
	table_ms(table, 1);
	table_percent(table, 0, 0);
	table_print(table, TABLE_TEXT, text);
	table_print(table, TABLE_CSV, csv);
	table_print(table, TABLE_JSON, json);
	cr_expect_str_eq(text->str, "name           n  share pct\na          12345       33.3\nlong name      7          -\n");
	cr_expect_str_eq(csv->str, "name,n,hidden_ms,share_pct\na,12345,-1.234567,33.3333\nlong name,7,0.000001,\n");
	cr_expect_str_eq(json->str, "[\n  {\"name\": \"a\", \"n\": 12345, \"hidden_ms\": -1.234567, \"share_pct\": 33.3333},\n"
	                            "  {\"name\": \"long name\", \"n\": 7, \"hidden_ms\": 0.000001, \"share_pct\": null}\n]");
}

Test(trace, streams_are_named_like_the_machines)
{
	g_autoptr(trace) trace = empty_trace(5);
	g_autofree char *last_gpu = NULL, *last_node = NULL;

	trace->gpus_per_node = 2;
	cr_expect_eq(trace_nodes(trace), 3);
	cr_expect_eq(trace_streams(trace), 5 * GPU_STREAMS + 3 * NODE_STREAMS);
	last_gpu = trace_stream_name(trace, stream_of_gpu(4, STREAM_COLLECTIVE));
	last_node = trace_stream_name(trace, (stream_id)trace_streams(trace) - 1);
	cr_expect_str_eq(last_gpu, "gpu4 collective");
	cr_expect_str_eq(last_node, "node2 ssd write");
	cr_expect_eq(trace_stream_node(trace, stream_of_gpu(4, STREAM_COMPUTE)), 2);
}

Test(trace, spans_are_found_by_id_also_with_gaps)
{
	g_autoptr(trace) trace = empty_trace(1);
	static const stage_id ids[] = {3, 4, 9, 10, 400, STAGE_NONE - 1};

	cr_expect_eq(trace_find(trace, 0), STAGE_NONE);
	for (size_t i = 0; i < G_N_ELEMENTS(ids); i++)
		add_span(trace, STAGE_GATE, STREAM_COMPUTE, 0, 1)->id = ids[i];
	for (size_t i = 0; i < G_N_ELEMENTS(ids); i++)
		cr_expect_eq(trace_find(trace, ids[i]), i);
	cr_expect_eq(trace_find(trace, 0), STAGE_NONE);
	cr_expect_eq(trace_find(trace, 5), STAGE_NONE);
	cr_expect_eq(trace_find(trace, 401), STAGE_NONE);
}

Test(trace, the_command_refuses_what_it_does_not_know)
{
	static const struct {
		const char *words[6];
		int code;
		const char *says;
	} cases[] = {
	    {{"trace"}, ESMOE_ERROR_USAGE, "info, convert, diff, critical-path"},
	    {{"trace", "inf"}, ESMOE_ERROR_USAGE, "did you mean 'info'"},
	    {{"trace", "info"}, ESMOE_ERROR_USAGE, "no trace given"},
	    {{"trace", "info", "--format", "xml", "x"}, ESMOE_ERROR_USAGE, "xml"},
	    {{"trace", "diff", "x"}, ESMOE_ERROR_USAGE, "two traces"},
	    {{"trace", "info", "/nonexistent/x"}, ESMOE_ERROR_INPUT, "/nonexistent/x"},
	};
	for (size_t i = 0; i < G_N_ELEMENTS(cases); i++) {
		g_autoptr(GError) error = NULL;
		char *words[7] = {0};
		int n = 0;

		for (; n < 6 && cases[i].words[n]; n++)
			words[n] = (char *)cases[i].words[n];
		cr_expect_not(cmd_trace(n, words, &error));
		cr_expect(g_error_matches(error, ESMOE_ERROR, cases[i].code), "%s", error->message);
		cr_expect(strstr(error->message, cases[i].says), "%s", error->message);
	}
}
