/* Trace files: what is written comes back, foreign files are read as far as they go, and what is no trace is refused with file and byte. */
#include "made_trace.h"
#include "model/error.h"
#include "traces/kineto.h"

#include <criterion/criterion.h>
#include <glib/gstdio.h>
#include <signal.h>
#include <string.h>
#include <sys/resource.h>

static char *folder_new(void)
{
	char *folder = g_dir_make_tmp("test_kineto_XXXXXX", NULL);

	cr_assert_not_null(folder);
	return folder;
}

/* Removes the folder; returns how many files it had. */
static int folder_remove(const char *folder)
{
	g_autoptr(GDir) dir = g_dir_open(folder, 0, NULL);
	const char *name;
	int n = 0;

	while ((name = g_dir_read_name(dir))) {
		g_autofree char *path = g_build_filename(folder, name, NULL);

		g_unlink(path);
		n++;
	}
	g_rmdir(folder);
	return n;
}

static void expect_same_span(const struct span *a, const struct span *b)
{
	cr_assert_eq(a->id, b->id);
	cr_expect(a->kind == b->kind && a->pass == b->pass && a->step == b->step && a->layer == b->layer && a->microbatch == b->microbatch, "span %u",
	          a->id);
	cr_expect(a->expert == b->expert && a->rank == b->rank && a->stream == b->stream && a->tokens == b->tokens && a->bytes == b->bytes, "span %u",
	          a->id);
	cr_expect(a->launch_ns == b->launch_ns && a->launch_end_ns == b->launch_end_ns, "span %u", a->id);
	cr_expect(a->start_ns == b->start_ns && a->end_ns == b->end_ns, "span %u", a->id);
	cr_assert_eq(a->n_preds, b->n_preds);
	cr_expect_arr_eq(a->preds, b->preds, a->n_preds * sizeof(a->preds[0]), "span %u", a->id);
}

static void expect_same(const struct trace *a, const struct trace *b)
{
	cr_expect_eq(a->gpus, b->gpus);
	cr_expect_eq(a->gpus_per_node, b->gpus_per_node);
	cr_expect_str_eq(a->gpu_name, b->gpu_name);
	cr_expect_eq(a->hbm_bytes, b->hbm_bytes);
	cr_expect_eq(a->sms, b->sms);
	cr_expect_str_eq(a->description, b->description);
	cr_assert_eq(a->spans->len, b->spans->len);
	for (guint i = 0; i < a->spans->len; i++)
		expect_same_span(&g_array_index(a->spans, struct span, i), &g_array_index(b->spans, struct span, i));
	cr_assert_eq(a->step_end_ns->len, b->step_end_ns->len);
	for (guint i = 0; i < a->step_end_ns->len; i++)
		cr_expect_eq(g_array_index(a->step_end_ns, nsec_t, i), g_array_index(b->step_end_ns, nsec_t, i));
	cr_assert_eq(a->counters->len, b->counters->len);
	for (guint i = 0; i < a->counters->len; i++) {
		const struct counter *x = g_ptr_array_index(a->counters, i), *y = g_ptr_array_index(b->counters, i);

		cr_expect_str_eq(x->name, y->name);
		cr_expect(x->gpu == y->gpu && x->node == y->node);
		cr_assert_eq(x->samples->len, y->samples->len);
		for (guint k = 0; k < x->samples->len; k++) {
			cr_expect_eq(g_array_index(x->samples, struct sample, k).ns, g_array_index(y->samples, struct sample, k).ns);
			cr_expect_eq(g_array_index(x->samples, struct sample, k).value, g_array_index(y->samples, struct sample, k).value);
		}
	}
}

static void add_counter(struct trace *trace, const char *name, int gpu, int node)
{
	struct counter *counter = counter_new(name, gpu, node);

	for (int i = 0; i < 10; i++) {
		struct sample sample = {i * 1001, i == 3 ? 0.1 : 1e9 / (i + 1)};

		g_array_append_val(counter->samples, sample);
	}
	g_ptr_array_add(trace->counters, counter);
}

static struct trace *full_trace(void)
{
	struct trace *trace = made_trace(5, 2, 2000, 3);

	add_counter(trace, "PCIe up GB/s", 1, -1);
	add_counter(trace, "HBM bytes", 1, -1);
	add_counter(trace, "plain", 4, -1);
	add_counter(trace, "DRAM GB/s", -1, 0);
	add_counter(trace, "DRAM GB/s", -1, 2);
	return trace;
}

static struct trace *read_one(const char *path, GError **error)
{
	return kineto_read((const char *const[]){path, NULL}, error);
}

static struct trace *read_text(const char *text, GError **error)
{
	g_autoptr(GInputStream) in = g_memory_input_stream_new_from_data(text, (gssize)strlen(text), NULL);

	return kineto_read_stream("made.json", in, error);
}

Test(kineto, what_is_written_is_read_back_exactly)
{
	for (int gzip = 0; gzip < 2; gzip++) {
		g_autofree char *folder = folder_new();
		g_autofree char *prefix = g_build_filename(folder, "t", NULL);
		g_autoptr(trace) trace = full_trace(), by_prefix = NULL, by_folder = NULL;
		g_autoptr(GError) error = NULL;

		cr_assert(kineto_write(trace, prefix, gzip, &error), "%s", error ? error->message : "");
		by_prefix = read_one(prefix, &error);
		cr_assert_not_null(by_prefix, "%s", error ? error->message : "");
		by_folder = read_one(folder, &error);
		cr_assert_not_null(by_folder, "%s", error ? error->message : "");
		expect_same(trace, by_prefix);
		expect_same(trace, by_folder);
		cr_expect_eq(folder_remove(folder), 6);
	}
}

/* Three nodes, the last one half filled; each writes what it has seen of the run. */
Test(kineto, what_each_node_writes_is_read_back_as_one)
{
	g_autofree char *folder = folder_new();
	g_autofree char *prefix = g_build_filename(folder, "t", NULL);
	g_autoptr(trace) trace = full_trace(), back = NULL;
	g_autoptr(GArray) all = g_array_ref(trace->spans);
	g_autoptr(GError) error = NULL;

	for (int node = 0; node < 3; node++) {
		trace->spans = g_array_new(FALSE, FALSE, sizeof(struct span));
		for (guint i = 0; i < all->len; i++)
			if (trace_stream_node(trace, g_array_index(all, struct span, i).stream) == node)
				g_array_append_vals(trace->spans, &g_array_index(all, struct span, i), 1);
		cr_assert(kineto_write_part(trace, prefix, false, 2 * node, MIN(2 * node + 2, 5), &error), "%s", error ? error->message : "");
		g_array_unref(trace->spans);
	}
	trace->spans = g_array_ref(all);
	back = read_one(prefix, &error);
	cr_assert_not_null(back, "%s", error ? error->message : "");
	expect_same(trace, back);
	cr_expect_eq(folder_remove(folder), 8);
}

Test(kineto, the_empty_trace_has_files_too)
{
	g_autofree char *folder = folder_new();
	g_autofree char *prefix = g_build_filename(folder, "t", NULL);
	g_autoptr(trace) trace = made_trace(1, 1, 0, 3), back = NULL;

	g_array_set_size(trace->step_end_ns, 0);
	cr_assert(kineto_write(trace, prefix, false, NULL));
	back = read_one(prefix, NULL);
	cr_assert_not_null(back);
	expect_same(trace, back);
	folder_remove(folder);
}

Test(kineto, some_ranks_can_be_read_alone)
{
	g_autofree char *folder = folder_new();
	g_autofree char *prefix = g_build_filename(folder, "t", NULL);
	g_autofree char *rank = g_strconcat(prefix, ".rank3.json", NULL);
	g_autoptr(trace) trace = full_trace(), back = NULL;
	guint next = 0;

	cr_assert(kineto_write(trace, prefix, false, NULL));
	back = read_one(rank, NULL);
	cr_assert_not_null(back);
	for (guint i = 0; i < trace->spans->len; i++) {
		const struct span *s = &g_array_index(trace->spans, struct span, i);

		if (trace_stream_gpu(trace, s->stream) == 3)
			expect_same_span(s, &g_array_index(back->spans, struct span, next++));
	}
	cr_expect_eq(back->spans->len, next);
	folder_remove(folder);
}

Test(kineto, same_trace_gives_the_same_bytes)
{
	for (int gzip = 0; gzip < 2; gzip++) {
		g_autofree char *folder = folder_new();
		g_autoptr(trace) trace = full_trace();
		g_autofree char *a = g_build_filename(folder, "a", NULL), *b = g_build_filename(folder, "b", NULL);

		cr_assert(kineto_write(trace, a, gzip, NULL) && kineto_write(trace, b, gzip, NULL));
		for (int f = 0; f < 6; f++) {
			g_autofree char *part =
			    f < 5 ? g_strdup_printf(".rank%d.json%s", f, gzip ? ".gz" : "") : g_strdup_printf(".host.json%s", gzip ? ".gz" : "");
			g_autofree char *pa = g_strconcat(a, part, NULL), *pb = g_strconcat(b, part, NULL), *ta = NULL, *tb = NULL;
			gsize na, nb;

			cr_assert(g_file_get_contents(pa, &ta, &na, NULL) && g_file_get_contents(pb, &tb, &nb, NULL));
			cr_assert_eq(na, nb);
			cr_expect_arr_eq(ta, tb, na);
		}
		folder_remove(folder);
	}
}

/* The facts that tools depend on, looked for in the text as they look for them. */
Test(kineto, a_rank_file_has_what_the_tools_look_for)
{
	g_autofree char *folder = folder_new();
	g_autofree char *prefix = g_build_filename(folder, "t", NULL), *path = g_strconcat(prefix, ".rank1.json", NULL), *text = NULL;
	g_autoptr(trace) trace = full_trace();

	cr_assert(kineto_write(trace, prefix, false, NULL));
	cr_assert(g_file_get_contents(path, &text, NULL, NULL));
	cr_expect(g_regex_match_simple("\"rank\":\\s+1\\b", text, 0, 0));
	cr_expect(strstr(text, "\"world_size\": 5"));
	cr_expect(strstr(text, "\"schemaVersion\": 1") && strstr(text, "\"displayTimeUnit\": \"ms\"") && strstr(text, "\"baseTimeNanoseconds\": 0"));
	cr_expect(strstr(text, "\"name\":\"ProfilerStep#0\"") && strstr(text, "\"name\":\"ProfilerStep#1\"") &&
	          strstr(text, "\"name\":\"ProfilerStep#2\""));
	cr_expect(strstr(text, "\"name\":\"Memcpy HtoD (Pinned -> Device)\"") && strstr(text, "\"memory bandwidth (GB/s)\":"));
	cr_expect(strstr(text, "\"name\":\"ncclDevKernel_AllToAll\"") && strstr(text, "\"name\":\"expert_forward\""));
	cr_expect(strstr(text, "\"name\":\"process_labels\",\"pid\":1,\"tid\":0,\"ts\":0,\"args\":{\"labels\":\"GPU 1\"}"));
	cr_expect(strstr(text, "\"ph\":\"f\",\"bp\":\"e\",\"cat\":\"ac2g\",\"name\":\"ac2g\""));
	cr_expect(strstr(text, "{\"ph\":\"C\",\"name\":\"PCIe up\",\"args\":{\"GB/s\":1000000000},\"pid\":1,\"ts\":0.000}"));
	cr_expect(g_regex_match_simple("\"ts\":\\d+\\.\\d{3},\"dur\":\\d+\\.\\d{3}\\}", text, 0, 0));
	cr_expect_not(g_regex_match_simple("\"cat\":\"kernel\",\"name\":\"[^\"]*(dma|Sync|Memcpy)", text, 0, 0));
	folder_remove(folder);
}

Test(kineto, an_unwritable_path_is_one_error)
{
	g_autoptr(trace) trace = full_trace();
	g_autoptr(GError) error = NULL;

	cr_expect_not(kineto_write(trace, "/nonexistent/folder/t", false, &error));
	cr_expect(g_error_matches(error, ESMOE_ERROR, ESMOE_ERROR_INPUT));
	cr_expect(strstr(error->message, "/nonexistent/folder/t.rank0.json"), "%s", error->message);
}

/* A limit on the size of files stands for the full disk: the write fails in the middle of the set. */
Test(kineto, a_full_disk_leaves_no_file)
{
	for (int gzip = 0; gzip < 2; gzip++) {
		g_autofree char *folder = folder_new();
		g_autofree char *prefix = g_build_filename(folder, "t", NULL);
		g_autoptr(trace) trace = full_trace();
		g_autoptr(GError) error = NULL;
		struct rlimit limit = {5000, RLIM_INFINITY};

		signal(SIGXFSZ, SIG_IGN);
		cr_assert_eq(setrlimit(RLIMIT_FSIZE, &limit), 0);
		cr_expect_not(kineto_write(trace, prefix, gzip, &error));
		limit.rlim_cur = RLIM_INFINITY;
		cr_assert_eq(setrlimit(RLIMIT_FSIZE, &limit), 0);
		cr_expect(g_error_matches(error, ESMOE_ERROR, ESMOE_ERROR_INPUT));
		cr_expect(strstr(error->message, prefix), "%s", error->message);
		cr_expect_eq(folder_remove(folder), 0);
	}
}

/* Cuts a file at many places: each is refused with its name and a byte, none crashes. */
Test(kineto, a_truncated_file_is_refused_with_its_byte)
{
	for (int gzip = 0; gzip < 2; gzip++) {
		g_autofree char *folder = folder_new();
		g_autofree char *prefix = g_build_filename(folder, "t", NULL), *text = NULL;
		g_autofree char *path = g_strconcat(prefix, ".rank0.json", gzip ? ".gz" : "", NULL);
		g_autoptr(trace) trace = full_trace();
		gsize n;

		cr_assert(kineto_write(trace, prefix, gzip, NULL));
		cr_assert(g_file_get_contents(path, &text, &n, NULL));
		for (gsize cut = 0; cut + 2 < n; cut += 1 + n / 97) {
			g_autoptr(GError) error = NULL;
			g_autoptr(trace) back = NULL;

			cr_assert(g_file_set_contents(path, text, (gssize)cut, NULL));
			back = read_one(path, &error);
			cr_assert_null(back, "cut at %zu", cut);
			cr_expect(g_error_matches(error, ESMOE_ERROR, ESMOE_ERROR_INPUT));
			cr_expect(g_str_has_prefix(error->message, path) && strstr(error->message, "byte "), "%s", error->message);
		}
		folder_remove(folder);
	}
}

Test(kineto, what_is_no_trace_is_refused)
{
	static const struct {
		const char *text, *says;
	} cases[] = {
	    {"", "byte 0"},
	    {"\x7f"
	     "ELF\x02\x01",
	     "byte 1"},
	    {"{}", "no \"traceEvents\""},
	    {"[1, 2]", "no \"traceEvents\""},
	    {"{\"traceEvents\": {}}", "no \"traceEvents\""},
	    {"{\"traceEvents\": []} x", "byte 21"},
	    {"{\"traceEvents\": [], \"traceEvents\": []}", "second"},
	    {"{\"gpus_per_node\": 1, \"traceEvents\": []}", "world_size"},
	    {"{\"gpus_per_node\": 0, \"traceEvents\": []}", "gpus_per_node"},
	    {"{\"distributedInfo\": {\"world_size\": 99999999999999999999}, \"traceEvents\": []}", "world_size"},
	    {"{\"traceEvents\": [{\"ph\":\"X\",\"cat\":\"kernel\",\"ts\":1e300,\"dur\":1}]}", "\"ts\""},
	    {"{\"traceEvents\": [{\"ph\":\"X\",\"cat\":\"kernel\",\"ts\":1,\"dur\":-1}]}", "\"dur\""},
	};
	for (size_t i = 0; i < G_N_ELEMENTS(cases); i++) {
		g_autoptr(GError) error = NULL;
		g_autoptr(trace) back = read_text(cases[i].text, &error);

		cr_assert_null(back, "%s", cases[i].text);
		cr_expect(g_error_matches(error, ESMOE_ERROR, ESMOE_ERROR_INPUT));
		cr_expect(g_str_has_prefix(error->message, "made.json: ") && strstr(error->message, cases[i].says), "%s -> %s", cases[i].text,
		          error->message);
	}
}

#define OWN_HEAD "{\"distributedInfo\": {\"rank\": 0, \"world_size\": 2}, \"gpus_per_node\": 2, \"traceEvents\": ["
#define OWN_SPAN                                                                                                                                     \
	"{\"ph\":\"X\",\"cat\":\"kernel\",\"pid\":0,\"tid\":1,\"ts\":1,\"dur\":2,\"args\":{\"kind\":\"expert\",\"pass\":\"forward\",\"stage\":5"

Test(kineto, a_span_out_of_range_is_refused)
{
	static const struct {
		const char *text, *says;
	} cases[] = {
	    {OWN_HEAD OWN_SPAN ",\"layer\":65536}}]}", "\"layer\""},
	    {OWN_HEAD OWN_SPAN ",\"rank\":2}}]}", "\"rank\""},
	    {OWN_HEAD OWN_SPAN ",\"preds\":[5]}}]}", "predecessor 5"},
	    {OWN_HEAD OWN_SPAN ",\"preds\":[0,1,2,3,4]}}]}", "\"preds\""},
	    {OWN_HEAD OWN_SPAN ",\"kind\":\"expret\"}}]}", "expret"},
	    {OWN_HEAD OWN_SPAN "}}," OWN_SPAN "}}]}", "stage 5 comes twice"},
	    {OWN_HEAD OWN_SPAN "},\"pid\":2}]}", "pid 2"},
	    {OWN_HEAD OWN_SPAN "},\"tid\":6}]}", "stream 6"},
	    {OWN_HEAD "{\"ph\":\"C\",\"name\":\"x\",\"pid\":7,\"ts\":1,\"args\":{\"y\":1}}]}", "pid 7"},
	};
	g_autoptr(trace) good = read_text(OWN_HEAD OWN_SPAN "}}]}", NULL);

	cr_assert_not_null(good);
	cr_expect_eq(g_array_index(good->spans, struct span, 0).end_ns, 3000);
	for (size_t i = 0; i < G_N_ELEMENTS(cases); i++) {
		g_autoptr(GError) error = NULL;
		g_autoptr(trace) back = read_text(cases[i].text, &error);

		cr_assert_null(back, "%s", cases[i].text);
		cr_expect(g_error_matches(error, ESMOE_ERROR, ESMOE_ERROR_INPUT));
		cr_expect(strstr(error->message, cases[i].says), "%s -> %s", cases[i].text, error->message);
	}
}

Test(kineto, files_of_two_runs_are_not_joined)
{
	g_autofree char *folder = folder_new();
	g_autofree char *a = g_build_filename(folder, "a", NULL), *b = g_build_filename(folder, "b", NULL);
	g_autoptr(trace) trace = full_trace(), back = NULL;
	g_autoptr(GError) error = NULL;

	cr_assert(kineto_write(trace, a, false, NULL) && kineto_write(trace, b, false, NULL));
	back = read_one(folder, &error);
	cr_assert_null(back);
	cr_expect(strstr(error->message, "the same rank"), "%s", error->message);
	folder_remove(folder);
}

Test(kineto, a_path_without_a_trace_is_refused)
{
	g_autofree char *folder = folder_new(), *prefix = g_build_filename(folder, "t", NULL);
	const char *const paths[] = {folder, prefix, "/nonexistent/t"};

	for (size_t i = 0; i < G_N_ELEMENTS(paths); i++) {
		g_autoptr(GError) error = NULL;

		cr_assert_null(read_one(paths[i], &error));
		cr_expect(g_error_matches(error, ESMOE_ERROR, ESMOE_ERROR_INPUT));
		cr_expect(strstr(error->message, paths[i]), "%s", error->message);
	}
	folder_remove(folder);
}

/* As the profiler writes it: clock since 1970, streams of any number, launches in cuda_runtime, keys in its order. */
static const char foreign[] =
    "{\"schemaVersion\": 1, \"deviceProperties\": [{\"id\": 0, \"name\": \"NVIDIA H100\", \"totalGlobalMem\": 85017493504, \"numSms\": 132},"
    "{\"id\": 1, \"name\": \"other\"}], \"distributedInfo\": {\"backend\": \"nccl\", \"rank\": 1, \"world_size\": 2, \"pg_config\": [{\"name\": "
    "\"x\"}]},"
    "\"traceEvents\": ["
    "{\"ph\": \"X\", \"cat\": \"user_annotation\", \"name\": \"ProfilerStep#3\", \"pid\": 9, \"tid\": 9, \"ts\": 5000000000100.000, \"dur\": 50.5},"
    "{\"ph\": \"X\", \"cat\": \"cuda_runtime\", \"name\": \"cudaLaunchKernel\", \"pid\": 9, \"tid\": 9, \"ts\": 5000000000101.250, \"dur\": 2.125,"
    "\"args\": {\"External id\": 1, \"cbid\": 211, \"correlation\": 77}},"
    "{\"ph\": \"X\", \"cat\": \"kernel\", \"name\": \"void gemm<float, 1>(int)\", \"pid\": 1, \"tid\": 7, \"ts\": 5000000000105.001, \"dur\": 10.002,"
    "\"args\": {\"External id\": 1, \"device\": 1, \"stream\": 7, \"correlation\": 77, \"grid\": [1, 2, 3]}},"
    "{\"ph\": \"X\", \"cat\": \"gpu_memcpy\", \"name\": \"Memcpy HtoD (Pinned -> Device)\", \"pid\": 1, \"tid\": 20, \"ts\": 5000000000106, \"dur\": "
    "3,"
    "\"args\": {\"device\": 1, \"stream\": 20, \"correlation\": 78, \"bytes\": 4096}},"
    "{\"ph\": \"X\", \"cat\": \"kernel\", \"name\": \"ncclDevKernel_AllReduce_Sum_f32\", \"pid\": 1, \"tid\": 24, \"ts\": 5000000000120, \"dur\": 4,"
    "\"args\": {\"device\": 1, \"stream\": 24}},"
    "{\"ph\": \"X\", \"cat\": \"Trace\", \"name\": \"PyTorch Profiler (0)\", \"pid\": \"Spans\", \"tid\": \"PyTorch Profiler\", \"ts\": 1, \"dur\": "
    "2}"
    "], \"baseTimeNanoseconds\": 1700000000000000000, \"traceName\": \"x\"}";

Test(kineto, a_profiler_trace_is_read_as_far_as_it_goes)
{
	g_autoptr(GError) error = NULL;
	g_autoptr(trace) trace = read_text(foreign, &error);
	const struct span *s;

	cr_assert_not_null(trace, "%s", error ? error->message : "");
	cr_expect_eq(trace->gpus, 2);
	cr_expect_str_eq(trace->gpu_name, "NVIDIA H100");
	cr_expect_eq(trace->sms, 132);
	cr_expect_null(trace->description);
	cr_assert_eq(trace->spans->len, 3);
	s = (const struct span *)trace->spans->data;
	/* Time 0 is the launch at .250. */
	cr_expect(s[0].kind == SPAN_OTHER && s[0].stream == stream_of_gpu(1, STREAM_COMPUTE) && s[0].rank == 1);
	cr_expect(s[0].launch_ns == 0 && s[0].launch_end_ns == 2125 && s[0].start_ns == 3751 && s[0].end_ns == 13753);
	cr_expect(s[1].kind == STAGE_UPLOAD && s[1].stream == stream_of_gpu(1, STREAM_UPLOAD) && s[1].bytes == 4096 && s[1].start_ns == 4750);
	cr_expect(s[1].launch_ns == -1 && s[1].launch_end_ns == -1);
	cr_expect(s[2].kind == STAGE_ALL_REDUCE && s[2].stream == stream_of_gpu(1, STREAM_COLLECTIVE) && s[2].end_ns == 22750);
	cr_assert_eq(trace->step_end_ns->len, 1);
	cr_expect_eq(g_array_index(trace->step_end_ns, nsec_t, 0), 49250);
}
