/* What figures read (CSV) and write (files that appear whole or not at all), and the command around them. */
#define _GNU_SOURCE /* memmem */
#include "model/command.h"
#include "model/error.h"
#include "plots/best.h"
#include "plots/memory.h"
#include "plots/palette.h"
#include "plots/throughput.h"
#include "plots/timeline.h"
#include "svg.h"
#include "traces/kineto.h"

TestSuite(files, .init = enter_folder, .fini = leave_folder);

#define COLUMNS "policy,model,machine,gpus,experts,tokens_per_s,step_ms,bound_by,hbm_gib,dram_gib,ssd_gib,status\n"

static struct csv *csv_of(const char *text)
{
	GError *error = NULL;
	struct csv *csv = csv_parse(text, strlen(text), "x.csv", &error);

	cr_assert_not_null(csv, "%s", error ? error->message : "");
	return csv;
}

Test(csv, reads_quotes_line_ends_and_the_byte_order_mark)
{
	g_autoptr(csv) csv = csv_of("\xEF\xBB\xBF"
	                            "a,\"b,c\"\r\n\"say \"\"x\"\"\",\n1e3,18446744073709551615\n");
	guint64 whole;
	double number;

	cr_expect_eq(csv_rows(csv), 2);
	cr_expect_eq(csv_column(csv, "a", NULL), 0);
	cr_expect_eq(csv_column(csv, "b,c", NULL), 1);
	cr_expect_str_eq(csv_text(csv, 0, 0), "say \"x\"");
	cr_expect_str_eq(csv_text(csv, 0, 1), "");
	cr_expect(csv_number(csv, 1, 0, 0, 1e4, &number, NULL) && number == 1000);
	cr_expect(csv_whole(csv, 1, 1, 0, G_MAXUINT64, &whole, NULL) && whole == G_MAXUINT64);
}

Test(csv, refuses_what_is_no_table_and_says_where)
{
	static const struct {
		const char *text, *says;
		size_t length;
	} bad[] = {
	    {"", "x.csv: an empty file", 0},
	    {"a,b\n1", "x.csv:2: field 1: the file is cut off", 0},
	    {"a,b\n1\n", "x.csv:2: field 1: the line ends here", 0},
	    {"a,b\n1,2\n1,2,3\n", "x.csv:3: field 3: more fields", 0},
	    {"a,a\n", "x.csv:1: field 2: the header names this column twice", 0},
	    {",a\n", "x.csv:1: field 1: the header has a column without a name", 0},
	    {"a\n\"1\n", "x.csv:2: field 1: a quoted field does not end", 0},
	    {"a\n1\"2\n", "x.csv:2: field 1: a quote inside", 0},
	    {"a\n\"1\"2\n", "x.csv:2: field 1: something stands between", 0},
	    {"a\n\xFF\n", "x.csv:2: not text", 0},
	    {"a\n1\0\n", "x.csv:2: not text", 5},
	};

	for (size_t i = 0; i < G_N_ELEMENTS(bad); i++) {
		g_autoptr(GError) error = NULL;

		cr_expect_null(csv_parse(bad[i].text, bad[i].length ? bad[i].length : strlen(bad[i].text), "x.csv", &error));
		cr_assert(g_error_matches(error, ESMOE_ERROR, ESMOE_ERROR_INPUT));
		cr_expect(g_str_has_prefix(error->message, bad[i].says), "%s", error->message);
	}
}

Test(csv, wrong_numbers_name_line_column_and_value)
{
	static const char *const values[] = {"", " 1", "0x10", "nan", "inf", "1e999", "-1", "1,", "101"};
	g_autoptr(csv) csv = csv_of("n\n\"\"\n 1\n0x10\nnan\ninf\n1e999\n-1\n\"1,\"\n101\n");
	double number;

	for (int row = 0; row < (int)G_N_ELEMENTS(values); row++) {
		g_autoptr(GError) error = NULL;
		g_autofree char *begin = g_strdup_printf("x.csv:%d: n '%s': a number from 0 to 100", row + 2, values[row]);

		cr_expect_not(csv_number(csv, row, 0, 0, 100, &number, &error));
		cr_assert(g_error_matches(error, ESMOE_ERROR, ESMOE_ERROR_INPUT));
		cr_expect(g_str_has_prefix(error->message, begin), "%s", error->message);
	}
}

static void expect_throughput_error(const char *rows, const char *says)
{
	g_autofree char *text = g_strconcat(COLUMNS, rows, NULL);
	g_autoptr(csv) csv = csv_of(text);
	g_autoptr(GError) error = NULL;

	cr_expect_null(throughput_new(&csv, 1, THROUGHPUT_X_AUTO, &error));
	cr_assert_not_null(error);
	cr_expect_not_null(strstr(error->message, says), "%s", error->message);
}

Test(throughput, wrong_rows_are_errors)
{
	expect_throughput_error("", "no rows");
	expect_throughput_error("p,m,x,0,8,1,,,,,,ok\n", "x.csv:2: gpus '0'");
	expect_throughput_error("p,m,x,4,8,-1,,,,,,ok\n", "x.csv:2: tokens_per_s '-1'");
	expect_throughput_error("p,m,x,4,8,,,,,,,ok\n", "x.csv:2: tokens_per_s ''");
	expect_throughput_error("p,m,x,4,8,,,,,,,oom\n", "x.csv:2: status 'oom': ok, oom_hbm");
	expect_throughput_error("p,m,x,4,8,1,,,,,,ok\np,m,x,4,8,2,,,,,,ok\n", "two rows for policy 'p', m, 8 experts");
	expect_throughput_error(",m,x,4,8,1,,,,,,ok\n", "x.csv:2: policy ''");
}

static void expect_best_error(const char *rows, const char *says)
{
	g_autofree char *text = g_strconcat(COLUMNS, rows, NULL);
	g_autoptr(csv) csv = csv_of(text);
	g_autoptr(GError) error = NULL;

	cr_expect_null(best_new(&csv, 1, &error));
	cr_assert_not_null(error);
	cr_expect_not_null(strstr(error->message, says), "%s", error->message);
}

Test(best, wrong_rows_are_errors)
{
	g_autoptr(GString) many = g_string_new(NULL);

	expect_best_error("", "no rows");
	expect_best_error("p,m,x,4,8,-1,,,,,,ok\n", "x.csv:2: tokens_per_s '-1'");
	expect_best_error("p,m,x,4,8,1,,,,,,ok\np,m,x,4,8,2,,,,,,oom_hbm\n", "two rows for policy 'p', m on x, 4 GPUs, 8 experts");
	for (int gpus = 1; gpus <= 17; gpus++)
		g_string_append_printf(many, "p,m,x,%d,8,1,,,,,,ok\n", gpus);
	expect_best_error(many->str, "17 numbers of GPUs");
}

#define BEST_ROWS                                                                                                                                    \
	"slow,m,x,8,16,40000,,,,,,ok\nfast,m,x,8,16,100000,,,,,,ok\nmiddle,m,x,8,16,50000,,,,,,ok\n" /* out of order */                              \
	"slow,m,x,4,16,50000,,,,,,ok\nfast,m,x,4,16,,,,,,,oom_hbm\n"                                                                                 \
	"slow,m,x,4,8,96000,,,,,,ok\nfast,m,x,4,8,100000,,,,,,ok\n"                                                                                  \
	"slow,m,y,4,8,,,,,,,oom_hbm\nfast,m,y,4,8,,,,,,,invalid\n"                                                                                   \
	"slow,m,y,8,8,,,,,,,invalid\nfast,m,y,8,8,,,,,,,invalid\n"

Test(best, each_place_has_the_fastest_of_those_that_run_and_the_next)
{
	g_autoptr(csv) csv = csv_of(COLUMNS BEST_ROWS);
	g_autoptr(best) best = best_new(&csv, 1, NULL);
	struct best_cell won = best_at(best, 0, 1, 1), alone = best_at(best, 0, 0, 1), tie = best_at(best, 0, 0, 0);

	cr_assert_str_eq(won.policy, "fast");
	cr_expect_str_eq(won.next, "middle");
	cr_expect(won.tokens_per_s == 100000 && won.next_tokens_per_s == 50000);
	cr_assert_str_eq(alone.policy, "slow");
	cr_expect_null(alone.next);
	cr_expect_str_eq(tie.policy, "fast");
	cr_expect_str_eq(tie.next, "slow");
	cr_expect_not(best_at(best, 0, 1, 0).there);
	cr_expect(best_at(best, 1, 0, 0).there && !best_at(best, 1, 0, 0).policy && !best_at(best, 1, 0, 0).invalid);
	cr_expect(best_at(best, 1, 1, 0).invalid);
}

Test(files, best_says_who_drops_tokens)
{
	g_autoptr(csv) csv = csv_of("policy,model,machine,gpus,experts,tokens_per_s,status,dropped_share\nhasty,m,x,8,16,90000,ok,0.25\n"
	                            "whole,m,x,8,16,60000,ok,0\nwhole,m,x,4,16,50000,ok,0\nhasty,m,x,4,16,,oom_hbm,\n");
	g_autofree char *path = in_folder("b.svg"), *svg = NULL;
	g_autoptr(GArray) words = NULL;

	cr_assert(plot_best(&csv, 1, path, NULL));
	svg = contents(path);
	words = words_of(svg);
	cr_expect(says(words, "hasty −25 %") && says(words, "90k  1.5×") && says(words, "whole") &&
	          says(words, "OOM: fits no system; –: has no meaning in any; −7 %: drops 7 % of its tokens"));
	check_no_overlap(words, "best of droppers");
}

static int count(const char *text, const char *what)
{
	g_auto(GStrv) pieces = g_strsplit(text, what, -1);

	return (int)g_strv_length(pieces) - 1;
}

Test(files, throughput_marks_what_ran_out_of_memory)
{
	g_autoptr(csv) csv = csv_of(COLUMNS "es-moe,gpt-moe-s,m,4,8,160000,,,,,,ok\nes-moe,gpt-moe-s,m,4,16,120000,,,,,,ok\n"
	                                    "fairseq,gpt-moe-s,m,4,8,80000,,,,,,ok\nfairseq,gpt-moe-s,m,4,16,,,,,,,oom_hbm\n"
	                                    "fairseq,gpt-moe-l,m,4,16,,,,,,,oom_dram\nes-moe,gpt-moe-l,m,4,16,,,,,,,invalid\n");
	g_autofree char *path = in_folder("t.svg"), *svg = NULL;
	g_autoptr(GArray) words = NULL;

	cr_assert(plot_throughput(&csv, 1, THROUGHPUT_X_AUTO, path, NULL));
	svg = contents(path);
	words = words_of(svg);
	cr_expect(says(words, "gpt-moe-s") && says(words, "gpt-moe-l") && says(words, "es-moe") && says(words, "fairseq") && says(words, "experts"));
	cr_expect(says(words, "OOM") && says(words, "out of memory") && says(words, "thousand tokens/s"));
	cr_expect_eq(count(svg, "<use xlink:href='#gpPt1'"), 3, "two crosses and the legend's");
	check_no_overlap(words, "throughput");
}

Test(files, best_names_the_fastest_its_lead_and_its_ties)
{
	g_autoptr(csv) csv = csv_of(COLUMNS BEST_ROWS);
	g_autofree char *path = in_folder("b.svg"), *svg = NULL;
	g_autoptr(GArray) words = NULL;

	cr_assert(plot_best(&csv, 1, path, NULL));
	svg = contents(path);
	words = words_of(svg);
	cr_expect(says(words, "m on x") && says(words, "m on y") && says(words, "4 GPUs") && says(words, "16"));
	cr_expect(says(words, "100k  2.0×") && says(words, "50k") && says(words, "100k ≈ slow"));
	cr_expect(says(words, "OOM") && says(words, "–"));
	check_no_overlap(words, "best");
}

Test(files, a_map_of_many_places_does_not_overlap)
{
	g_autoptr(GString) text = g_string_new(COLUMNS);
	g_autoptr(csv) csv = NULL;
	g_autofree char *path = in_folder("b.svg"), *svg = NULL;
	g_autoptr(GArray) words = NULL;

	for (int policy = 0; policy < 9; policy++)
		for (int gpus = 1; gpus <= 16; gpus++)
			for (int experts = 1; experts <= 20; experts++)
				g_string_append_printf(text, "a-policy-with-a-long-name-%d,m,x,%d,%d,%d,,,,,,ok\n", policy, 512 * gpus, 100 * experts,
				                       1000 + 977 * (policy * gpus * experts % 9));
	csv = csv_of(text->str);
	cr_assert(plot_best(&csv, 1, path, NULL));
	svg = contents(path);
	words = words_of(svg);
	check_no_overlap(words, "best of many");
}

Test(files, long_names_do_not_overlap)
{
	g_autoptr(GString) text = g_string_new(COLUMNS);
	g_autoptr(csv) csv = NULL;
	g_autofree char *path = in_folder("t.svg"), *svg = NULL;
	g_autoptr(GArray) words = NULL;

	for (int model = 0; model < 5; model++)
		for (int policy = 0; policy < 9; policy++)
			for (int experts = 8; experts <= 640; experts += 24)
				g_string_append_printf(
				    text, "a-policy-with-a-long-name-%d,model-%d-of-a-family-whose-name-fills-the-whole-line,m,4,%d,%d,,,,,,%s\n",
				    policy, model, experts, 90000 / experts + policy, policy % 2 && experts > 300 ? "oom_ssd" : "ok");
	csv = csv_of(text->str);
	cr_assert(plot_throughput(&csv, 1, THROUGHPUT_X_AUTO, path, NULL));
	svg = contents(path);
	words = words_of(svg);
	check_no_overlap(words, "throughput of many");
}

Test(memory, reads_tiers_and_classes_by_name)
{
	g_autoptr(csv) csv = csv_of("tier,class,bytes,room\nhbm,parameters,7,100\nHBM,workspace,5,100\nSSD,optimizer,11,50\n");
	struct memory memory;

	cr_assert(memory_read(csv, &memory, NULL));
	cr_expect_eq(memory.bytes[TIER_HBM][CLASS_PARAMETERS], 7);
	cr_expect_eq(memory.bytes[TIER_HBM][CLASS_WORKSPACE], 5);
	cr_expect_eq(memory.room[TIER_HBM], 100);
	cr_expect_eq(memory.bytes[TIER_SSD][CLASS_OPTIMIZER], 11);
	cr_expect_eq(memory.room[TIER_DRAM], 0);
}

Test(memory, contradictions_are_errors)
{
	static const char *const bad[] = {"tape,parameters,1,1\n",
	                                  "hbm,toys,1,1\n",
	                                  "hbm,parameters,-1,1\n",
	                                  "hbm,parameters,1.5,1\n",
	                                  "hbm,parameters,1,1\nhbm,parameters,1,1\n",
	                                  "hbm,parameters,1,1\nhbm,buffers,1,2\n"};

	for (size_t i = 0; i < G_N_ELEMENTS(bad); i++) {
		g_autofree char *text = g_strconcat("tier,class,bytes,room\n", bad[i], NULL);
		g_autoptr(csv) csv = csv_of(text);
		g_autoptr(GError) error = NULL;
		struct memory memory;

		cr_expect_not(memory_read(csv, &memory, &error));
		cr_expect(g_error_matches(error, ESMOE_ERROR, ESMOE_ERROR_INPUT));
	}
}

Test(files, memory_stands_against_its_room)
{
	/* 10 GiB in a room of 40: the box ends at a quarter of the way to the line; DRAM overflows */
	struct memory_bar bars[2] = {{.name = "a run with a name as long as names of runs become when folders are dated"}, {.name = "b"}};
	g_autofree char *path = in_folder("m.svg"), *svg = NULL;
	g_autoptr(GArray) words = NULL;

	for (int i = 0; i < 2; i++) {
		bars[i].memory.room[TIER_HBM] = UINT64_C(40) << 30;
		bars[i].memory.room[TIER_DRAM] = UINT64_C(500) << 30;
		bars[i].memory.bytes[TIER_HBM][CLASS_PARAMETERS] = UINT64_C(10) << 30;
		bars[i].memory.bytes[TIER_PINNED][CLASS_BUFFERS] = UINT64_C(200) << 30;
		bars[i].memory.bytes[TIER_DRAM][CLASS_OPTIMIZER] = UINT64_C(400) << 30;
	}
	cr_assert(plot_memory(bars, 2, path, NULL));
	svg = contents(path);
	words = words_of(svg);
	cr_expect(says(words, "10 of 40 GiB") && says(words, "600 of 500 GiB") && says(words, "capacity") && says(words, "parameters"));
	cr_expect_not(says(words, "SSD of the fullest node"));
	check_no_overlap(words, "memory");
}

static struct trace *small_trace(void)
{
	struct trace *trace = trace_new();
	struct span span = {.kind = STAGE_EXPERT, .pass = PASS_FORWARD, .expert = 0, .launch_ns = -1, .end_ns = 50 * NSEC_PER_MSEC};
	nsec_t end = 60 * NSEC_PER_MSEC;

	trace->gpus = trace->gpus_per_node = 1;
	g_array_append_val(trace->spans, span);
	g_array_append_val(trace->step_end_ns, end);
	return trace;
}

Test(files, memory_over_time_shows_the_last_step_of_each_gpu)
{
	g_autoptr(trace) trace = small_trace();
	struct counter *counter = g_new0(struct counter, 1);
	struct gpu_choice choice = {0};
	const struct sample samples[] = {{0, 3 * GIB}, {10 * NSEC_PER_MSEC, 5 * GIB}, {30 * NSEC_PER_MSEC, 4 * GIB}};
	g_autofree char *path = in_folder("m.svg"), *svg = NULL;
	g_autoptr(GError) error = NULL;
	g_autoptr(GArray) words = NULL;

	cr_expect_not(plot_memory_over_time(trace, &choice, path, &error));
	cr_expect(g_error_matches(error, ESMOE_ERROR, ESMOE_ERROR_INPUT));
	counter->name = g_strdup("HBM bytes");
	counter->node = -1;
	counter->samples = g_array_new(FALSE, FALSE, sizeof(struct sample));
	g_array_append_vals(counter->samples, samples, G_N_ELEMENTS(samples));
	g_ptr_array_add(trace->counters, counter);
	trace->hbm_bytes = UINT64_C(8) << 30;
	cr_assert(plot_memory_over_time(trace, &choice, path, NULL));
	svg = contents(path);
	words = words_of(svg);
	cr_expect(says(words, "GPU 0") && says(words, "capacity") && says(words, "GiB") && says(words, "60"));
	check_no_overlap(words, "memory over time");
}

/* Cairo packs a PDF's objects from 1.18 on, and the time of day with them. */
static bool hides_its_date(const char *name, const char *data, gsize size)
{
	return g_str_has_suffix(name, ".pdf") && memmem(data, size, "/ObjStm", strlen("/ObjStm"));
}

Test(files, same_input_gives_same_bytes_a_second_later)
{
	static const char *const names[] = {"a.png", "a.svg", "a.pdf"};
	g_autoptr(trace) trace = small_trace();
	struct timeline_options o = {.layer = -1, .pass = -1};
	char *first[3];
	gsize size[3];

	for (int round = 0; round < 2; round++) {
		for (int i = 0; i < 3; i++) {
			g_autofree char *path = in_folder(names[i]), *now = NULL;
			gsize n;

			cr_assert(plot_timeline(trace, &o, path, NULL));
			cr_assert(g_file_get_contents(path, &now, &n, NULL));
			if (round == 0) {
				first[i] = g_steal_pointer(&now);
				size[i] = n;
				continue;
			}
			cr_expect(hides_its_date(names[i], now, n) || (n == size[i] && !memcmp(now, first[i], n)), "%s differs", names[i]);
			g_free(first[i]);
		}
		if (round == 0)
			g_usleep(1100 * 1000);
	}
}

Test(files, each_form_begins_as_it_should)
{
	static const struct {
		const char *name, *magic;
	} forms[] = {{"a.png", "\x89PNG"}, {"a.svg", "<?xml"}, {"a.pdf", "%PDF"}};
	g_autoptr(trace) trace = small_trace();
	struct timeline_options o = {.layer = -1, .pass = -1};

	for (size_t i = 0; i < G_N_ELEMENTS(forms); i++) {
		g_autofree char *path = in_folder(forms[i].name), *data = NULL;

		cr_assert(plot_timeline(trace, &o, path, NULL));
		data = contents(path);
		cr_expect(!strncmp(data, forms[i].magic, strlen(forms[i].magic)));
	}
}

Test(files, what_cannot_be_written_leaves_nothing)
{
	g_autoptr(trace) trace = small_trace();
	struct timeline_options o = {.layer = -1, .pass = -1};
	g_autofree char *nowhere = in_folder("missing/a.svg"), *unknown = in_folder("a.jpeg");
	g_autoptr(GError) error = NULL, usage = NULL;
	g_autoptr(GDir) dir = NULL;

	cr_expect_not(plot_timeline(trace, &o, nowhere, &error));
	cr_expect(g_error_matches(error, ESMOE_ERROR, ESMOE_ERROR_INPUT));
	cr_expect_not(plot_timeline(trace, &o, unknown, &usage));
	cr_expect(g_error_matches(usage, ESMOE_ERROR, ESMOE_ERROR_USAGE));
	dir = g_dir_open(folder, 0, NULL);
	cr_expect_null(g_dir_read_name(dir));
}

Test(files, missing_gnuplot_says_how_to_get_it)
{
	g_autoptr(trace) trace = small_trace();
	struct timeline_options o = {.layer = -1, .pass = -1};
	g_autofree char *path = in_folder("a.svg");
	g_autoptr(GError) error = NULL;

	g_setenv("PATH", folder, TRUE);
	cr_expect_not(plot_timeline(trace, &o, path, &error));
	cr_assert(g_error_matches(error, ESMOE_ERROR, ESMOE_ERROR_DEVICE));
	cr_expect_not_null(strstr(error->message, "gnuplot-nox"));
	cr_expect_not(g_file_test(path, G_FILE_TEST_EXISTS));
}

static bool command(const char *line, GError **error)
{
	g_auto(GStrv) words = g_strsplit(line, " ", -1);

	return cmd_plot((int)g_strv_length(words), words, error);
}

Test(files, wrong_command_lines_are_told)
{
	static const char *const wrong[] = {"plot",
	                                    "plot timelime -o a.png x",
	                                    "plot timeline x",
	                                    "plot timeline -o a.png",
	                                    "plot timeline -o a.bmp x",
	                                    "plot timeline -o a.png --pass up x",
	                                    "plot timeline -o a.png --all --layer 3 x",
	                                    "plot timeline -o a.png --from 3 x",
	                                    "plot timeline -o a.png --from nan --to 3 x",
	                                    "plot timeline -o a.png --gpu 1,one x",
	                                    "plot timeline -o a.png --gpu 1,1 x",
	                                    "plot throughput -o a.png --x tokens x"};

	for (size_t i = 0; i < G_N_ELEMENTS(wrong); i++) {
		g_autoptr(GError) error = NULL;

		cr_expect_not(command(wrong[i], &error), "%s", wrong[i]);
		cr_expect(g_error_matches(error, ESMOE_ERROR, ESMOE_ERROR_USAGE), "%s: %s", wrong[i], error ? error->message : "");
	}
}

Test(files, command_draws_a_trace_it_reads)
{
	g_autoptr(trace) trace = small_trace();
	g_autofree char *prefix = in_folder("trace"), *out = in_folder("a.svg"), *line = NULL, *both = NULL;
	g_autoptr(GError) error = NULL;

	cr_assert(kineto_write(trace, prefix, false, &error), "%s", error ? error->message : "");
	line = g_strdup_printf("plot timeline -o %s %s", out, prefix);
	cr_expect(command(line, &error), "%s", error ? error->message : "");
	cr_expect(g_file_test(out, G_FILE_TEST_EXISTS));
	both = g_strdup_printf("plot breakdown -o %s %s.rank0.json %s.host.json", out, prefix, prefix);
	cr_expect(command(both, &error), "%s", error ? error->message : "");
}
