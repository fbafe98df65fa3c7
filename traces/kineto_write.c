/* One file per rank and one for the host, or for each host whose process writes its own. Every span is one event, its launch a second one, and two
 * flow events draw the arrow between them:
 *
 *     rank file   launcher  |launch 7|          (cuda_runtime, correlation c)
 *                              \ ac2g
 *                 compute       |expert_forward| (kernel, correlation c, args: stage 7, layer, expert, predecessors, ...)
 *     host file   optimizer           |adam_update|
 *
 * A million spans are some 600 MB of text, so that events are put together by hand in a buffer: what depends only on kind and pass is formatted once,
 * integers are written backwards by the digit, and room is checked once per event. All names in spans come from our own tables and need no escapes.
 */
#include "kineto.h"

#include "json_out.h"
#include "kineto_form.h"

#include <math.h>
#include <string.h>

enum { EVENT_BYTES = 1 << 10, HEAD_BYTES = 192 };

/* The events of one file in the order of the stage ids: index in spans, and whether only the launch belongs here (a node's stage in its launcher's
 * file). */
struct entry {
	uint32_t span;
	bool launch_only;
};

struct head {
	char text[HEAD_BYTES];
	size_t n;
};

struct writer {
	const struct trace *trace;
	struct head head[N_SPAN_KINDS][N_STAGE_PASSES];
	struct entry *entries; /* of all files, one file's after the other's */
	uint32_t *first;       /* (files + 1) */
	nsec_t end_ns;
	int first_gpu, end_gpu; /* whose files are written */
	struct json_out json;
};

static char *kernel_name(int kind, int pass)
{
	switch (kind) {
	case STAGE_COUNTS:
		return g_strdup("ncclDevKernel_AllToAll_Counts");
	case STAGE_ALL_TO_ALL:
		return g_strdup("ncclDevKernel_AllToAll");
	case STAGE_ALL_REDUCE:
		return g_strdup("ncclDevKernel_AllReduce");
	case STAGE_REDUCE_SCATTER:
		return g_strdup("ncclDevKernel_ReduceScatter");
	case STAGE_ALL_GATHER:
		return g_strdup("ncclDevKernel_AllGather");
	case STAGE_UPLOAD:
		return g_strdup(KINETO_UPLOAD_NAME);
	case STAGE_DOWNLOAD:
		return g_strdup(KINETO_DOWNLOAD_NAME);
	default:
		return g_strdup_printf("%s_%s", span_kind_name(kind), stage_pass_name(pass));
	}
}

static const char *category(int kind)
{
	if (kind == STAGE_UPLOAD || kind == STAGE_DOWNLOAD)
		return "gpu_memcpy";
	return kind >= STAGE_ADAM && kind <= STAGE_SSD_WRITE ? "cpu_op" : "kernel";
}

static void make_heads(struct writer *w)
{
	for (int kind = 0; kind < N_SPAN_KINDS; kind++)
		for (int pass = 0; pass < N_STAGE_PASSES; pass++) {
			struct head *head = &w->head[kind][pass];
			g_autofree char *name = kernel_name(kind, pass);

			head->n = (size_t)g_snprintf(
			    head->text, HEAD_BYTES,
			    "{\"ph\":\"X\",\"cat\":\"%s\",\"name\":\"%s\",\"args\":{\"kind\":\"%s\",\"pass\":\"%s\",\"stage\":", category(kind), name,
			    span_kind_name(kind), stage_pass_name(pass));
			g_assert(head->n < HEAD_BYTES);
		}
}

/* Sorts the spans into files: GPUs' first, the host's last. */
static void sort_into_files(struct writer *w)
{
	const struct trace *trace = w->trace;
	const struct span *spans = (const struct span *)trace->spans->data;
	uint32_t files = (uint32_t)trace->gpus + 1, sum = 0;
	g_autofree uint32_t *at = g_new0(uint32_t, files);

	for (uint32_t i = 0; i < trace->spans->len; i++) {
		int gpu = trace_stream_gpu(trace, spans[i].stream);

		g_assert(spans[i].rank >= 0 && spans[i].rank < trace->gpus && spans[i].start_ns <= spans[i].end_ns);
		at[gpu >= 0 ? gpu : trace->gpus]++;
		if (gpu < 0)
			at[spans[i].rank]++;
	}
	w->first = g_new(uint32_t, files + 1);
	for (uint32_t f = 0; f < files; f++) {
		w->first[f] = sum;
		sum += at[f];
		at[f] = w->first[f];
	}
	w->first[files] = sum;
	w->entries = g_new(struct entry, sum);
	for (uint32_t i = 0; i < trace->spans->len; i++) {
		int gpu = trace_stream_gpu(trace, spans[i].stream);

		w->entries[at[gpu >= 0 ? gpu : trace->gpus]++] = (struct entry){.span = i};
		if (gpu < 0)
			w->entries[at[spans[i].rank]++] = (struct entry){.span = i, .launch_only = true};
	}
}

static char *put_row(char *p, uint64_t pid, uint64_t tid)
{
	p = PUT(p, "\"pid\":");
	p = put_unsigned(p, pid);
	p = PUT(p, ",\"tid\":");
	p = put_unsigned(p, tid);
	return PUT(p, ",\"ts\":");
}

/* What only the struct knows; values that say nothing are left out. */
static char *put_details(char *p, const struct span *s)
{
	p = PUT(p, ",\"step\":");
	p = put_unsigned(p, s->step);
	p = PUT(p, ",\"layer\":");
	p = put_unsigned(p, s->layer);
	p = PUT(p, ",\"microbatch\":");
	p = put_unsigned(p, s->microbatch);
	if (s->expert != -1)
		p = put_signed(PUT(p, ",\"expert\":"), s->expert);
	if (s->tokens)
		p = put_unsigned(PUT(p, ",\"tokens\":"), s->tokens);
	if (s->bytes)
		p = put_unsigned(PUT(p, ",\"bytes\":"), s->bytes);
	if (s->n_preds) {
		p = PUT(p, ",\"preds\":[");
		for (int i = 0; i < s->n_preds; i++) {
			p = put_unsigned(p, s->preds[i]);
			*p++ = i + 1 < s->n_preds ? ',' : ']';
		}
	}
	return p;
}

static char *put_work(struct writer *w, char *p, const struct span *s, int gpu)
{
	const struct head *head = &w->head[s->kind][s->pass];
	uint64_t tid = (s->stream - (gpu >= 0 ? 0 : (stream_id)w->trace->gpus * GPU_STREAMS)) % (gpu >= 0 ? GPU_STREAMS : NODE_STREAMS) + 1;

	p = put(p, head->text, head->n);
	p = put_unsigned(p, s->id);
	p = put_details(p, s);
	if (s->rank != gpu)
		p = put_unsigned(PUT(p, ",\"rank\":"), (uint64_t)s->rank);
	if (gpu >= 0) {
		p = put_unsigned(PUT(p, ",\"device\":"), (uint64_t)gpu);
		p = put_unsigned(PUT(p, ",\"context\":1,\"stream\":"), tid);
		p = put_unsigned(PUT(p, ",\"correlation\":"), KINETO_FIRST_CORRELATION + (uint64_t)s->id);
		p = put_unsigned(PUT(p, ",\"External id\":"), KINETO_FIRST_CORRELATION + (uint64_t)s->id);
	}
	if (s->kind == STAGE_UPLOAD || s->kind == STAGE_DOWNLOAD) {
		uint64_t ns = (uint64_t)(s->end_ns - s->start_ns);

		p = PUT(p, ",\"memory bandwidth (GB/s)\":");
		p = put_milli(p, ns ? (int64_t)((double)s->bytes * 1000 / (double)ns) : 0);
	}
	p = PUT(p, "},");
	p = put_row(p, gpu >= 0 ? (uint64_t)gpu : KINETO_NODE_PID + (uint64_t)trace_stream_node(w->trace, s->stream), tid);
	p = put_milli(p, s->start_ns);
	p = put_milli(PUT(p, ",\"dur\":"), s->end_ns - s->start_ns);
	return PUT(p, "},\n");
}

/* Tools drop GPU work without a launch, so that one of no length stands in where the launch is unknown. */
static char *put_launch(char *p, const struct span *s, bool of_gpu)
{
	bool known = s->launch_ns != -1;
	bool copy = s->kind == STAGE_UPLOAD || s->kind == STAGE_DOWNLOAD;

	if (!of_gpu)
		p = PUT(p, "{\"ph\":\"X\",\"cat\":\"cpu_op\",\"name\":\"submit\",\"args\":{\"stage\":");
	else if (copy)
		p = PUT(p, "{\"ph\":\"X\",\"cat\":\"cuda_runtime\",\"name\":\"cudaMemcpyAsync\",\"args\":{\"stage\":");
	else
		p = PUT(p, "{\"ph\":\"X\",\"cat\":\"cuda_runtime\",\"name\":\"cudaLaunchKernel\",\"args\":{\"stage\":");
	p = put_unsigned(p, s->id);
	if (of_gpu) {
		p = put_unsigned(PUT(p, ",\"correlation\":"), KINETO_FIRST_CORRELATION + (uint64_t)s->id);
		p = put_unsigned(PUT(p, ",\"External id\":"), KINETO_FIRST_CORRELATION + (uint64_t)s->id);
	}
	if (!known)
		p = PUT(p, ",\"unknown\":1");
	p = PUT(p, "},");
	p = put_row(p, KINETO_LAUNCHER_PID + (uint64_t)s->rank, KINETO_LAUNCH_TID);
	p = put_milli(p, known ? s->launch_ns : s->start_ns);
	p = put_milli(PUT(p, ",\"dur\":"), known ? s->launch_end_ns - s->launch_ns : 0);
	return PUT(p, "},\n");
}

static char *put_flow(char *p, const struct span *s, int gpu)
{
	p = PUT(p, "{\"ph\":\"s\",\"cat\":\"ac2g\",\"name\":\"ac2g\",\"id\":");
	*(p = put_unsigned(p, KINETO_FIRST_CORRELATION + (uint64_t)s->id)) = ',';
	p = put_row(p + 1, KINETO_LAUNCHER_PID + (uint64_t)s->rank, KINETO_LAUNCH_TID);
	p = put_milli(p, s->launch_ns != -1 ? s->launch_ns : s->start_ns);
	p = PUT(p, "},\n{\"ph\":\"f\",\"bp\":\"e\",\"cat\":\"ac2g\",\"name\":\"ac2g\",\"id\":");
	*(p = put_unsigned(p, KINETO_FIRST_CORRELATION + (uint64_t)s->id)) = ',';
	p = put_row(p + 1, (uint64_t)gpu, s->stream % GPU_STREAMS + 1);
	p = put_milli(p, s->start_ns);
	return PUT(p, "},\n");
}

static void put_spans(struct writer *w, int file)
{
	const struct span *spans = (const struct span *)w->trace->spans->data;

	for (uint32_t i = w->first[file]; i < w->first[file + 1] && !w->json.error; i++) {
		const struct span *s = &spans[w->entries[i].span];
		char *p = json_room(&w->json, EVENT_BYTES);

		if (file == w->trace->gpus) {
			p = put_work(w, p, s, -1);
		} else if (!w->entries[i].launch_only) {
			p = put_work(w, p, s, file);
			p = put_launch(p, s, true);
			p = put_flow(p, s, file);
		} else if (s->launch_ns != -1) {
			p = put_launch(p, s, false);
		}
		w->json.at = p;
	}
}

/* The last step is one of no length: tools that drop the last lose nothing. */
static void put_steps(struct writer *w, int pid)
{
	const GArray *ends = w->trace->step_end_ns;
	nsec_t start = 0;

	for (guint i = 0; i <= ends->len && ends->len > 0; i++) {
		nsec_t end = i < ends->len ? g_array_index(ends, nsec_t, i) : start;
		char *p = json_room(&w->json, EVENT_BYTES);

		p = put_unsigned(PUT(p, "{\"ph\":\"X\",\"cat\":\"user_annotation\",\"name\":\"" KINETO_STEP_NAME), i);
		p = put_row(PUT(p, "\",\"args\":{},"), (uint64_t)pid, KINETO_STEP_TID);
		p = put_milli(p, start);
		p = put_milli(PUT(p, ",\"dur\":"), end - start);
		w->json.at = PUT(p, "},\n");
		start = end;
	}
}

/* The unit is the name's last word; Perfetto shows it behind the name again. */
static void put_counter(struct writer *w, const struct counter *counter)
{
	const char *space = strrchr(counter->name, ' ');
	g_autofree char *plain = g_strndup(counter->name, space ? (gsize)(space - counter->name) : strlen(counter->name));
	g_autofree char *name = json_quote(plain);
	g_autofree char *unit = json_quote(space ? space + 1 : "");
	g_autofree char *head = g_strdup_printf("{\"ph\":\"C\",\"name\":%s,\"args\":{%s:", name, unit);
	size_t n = strlen(head);
	uint64_t pid = counter->gpu >= 0 ? (uint64_t)counter->gpu : KINETO_NODE_PID + (uint64_t)counter->node;

	for (guint i = 0; i < counter->samples->len && !w->json.error; i++) {
		const struct sample *sample = &g_array_index(counter->samples, struct sample, i);
		char *p;

		g_assert(isfinite(sample->value));
		json_text(&w->json, head, n);
		p = json_room(&w->json, EVENT_BYTES);
		g_ascii_dtostr(p, G_ASCII_DTOSTR_BUF_SIZE, sample->value);
		p = put_unsigned(PUT(p + strlen(p), "},\"pid\":"), pid);
		p = put_milli(PUT(p, ",\"ts\":"), sample->ns);
		w->json.at = PUT(p, "},\n");
	}
}

static void put_process(struct writer *w, int pid, const char *name, const char *label, int sort)
{
	json_print(&w->json, "{\"ph\":\"M\",\"name\":\"process_name\",\"pid\":%d,\"tid\":0,\"ts\":0,\"args\":{\"name\":\"%s\"}},\n", pid, name);
	json_print(&w->json, "{\"ph\":\"M\",\"name\":\"process_labels\",\"pid\":%d,\"tid\":0,\"ts\":0,\"args\":{\"labels\":\"%s\"}},\n", pid, label);
	json_print(&w->json, "{\"ph\":\"M\",\"name\":\"process_sort_index\",\"pid\":%d,\"tid\":0,\"ts\":0,\"args\":{\"sort_index\":%d}},\n", pid,
	           sort);
}

static void put_thread(struct writer *w, int pid, int tid, const char *name)
{
	json_print(&w->json, "{\"ph\":\"M\",\"name\":\"thread_name\",\"pid\":%d,\"tid\":%d,\"ts\":0,\"args\":{\"name\":\"%s\"}},\n", pid, tid, name);
	json_print(&w->json, "{\"ph\":\"M\",\"name\":\"thread_sort_index\",\"pid\":%d,\"tid\":%d,\"ts\":0,\"args\":{\"sort_index\":%d}},\n", pid, tid,
	           tid);
}

static void put_rows_of_rank(struct writer *w, int gpu)
{
	g_autofree char *label = g_strdup_printf("GPU %d", gpu);
	g_autofree char *launcher = g_strdup_printf("launcher of GPU %d", gpu);
	int pid = KINETO_LAUNCHER_PID + gpu;

	put_process(w, pid, launcher, "CPU", gpu);
	put_thread(w, pid, KINETO_LAUNCH_TID, "launches");
	put_thread(w, pid, KINETO_STEP_TID, "steps");
	put_process(w, gpu, label, label, KINETO_LAUNCHER_PID + gpu);
	for (int s = 0; s < GPU_STREAMS; s++)
		put_thread(w, gpu, s + 1, stream_kind_name(s));
}

/* Hosts' files have the numbers after the last GPU's. */
static int host_number(const struct writer *w)
{
	return w->trace->gpus + w->first_gpu / w->trace->gpus_per_node;
}

static bool has_node(const struct writer *w, int node)
{
	const int gpu = node * w->trace->gpus_per_node;

	return gpu >= w->first_gpu && gpu < w->end_gpu;
}

static void put_rows_of_host(struct writer *w)
{
	const int each = w->trace->gpus_per_node;

	for (int node = w->first_gpu / each; node * each < w->end_gpu; node++) {
		g_autofree char *name = g_strdup_printf("node %d", node);

		put_process(w, KINETO_NODE_PID + node, name, "CPU", node);
		for (int s = 0; s < NODE_STREAMS; s++)
			put_thread(w, KINETO_NODE_PID + node, s + 1, stream_kind_name(GPU_STREAMS + s));
	}
	put_process(w, KINETO_LAUNCHER_PID + host_number(w), "steps", "CPU", 0);
}

/* Holistic Trace Analysis takes each file of a folder for a rank and fails on one without GPU work: one kernel of no length lets it read the host's.
 */
static void put_placeholder(struct writer *w)
{
	static const char event[] =
	    "{\"ph\":\"X\",\"cat\":\"%s\",\"name\":\"%s\",\"args\":{%s\"correlation\":%d},\"pid\":%d,\"tid\":1,\"ts\":0.000,\"dur\":0.000},\n";
	int pid = KINETO_LAUNCHER_PID + host_number(w);

	json_print(&w->json, event, "cuda_runtime", "cudaLaunchKernel", "", KINETO_FIRST_CORRELATION, pid);
	json_print(&w->json, event, "kernel", "none", "\"stream\":1,", KINETO_FIRST_CORRELATION, pid);
}

/* Line by line as the profiler writes it: tools look for the rank with a pattern that wants the space behind the colon. */
static void put_file_head(struct writer *w, int file)
{
	const struct trace *trace = w->trace;
	const int number = file < trace->gpus ? file : host_number(w);

	json_print(&w->json, "{\n\"schemaVersion\": 1,\n\"deviceProperties\": [");
	if (file < trace->gpus) {
		g_autofree char *name = json_quote(trace->gpu_name ? trace->gpu_name : "");

		json_print(&w->json, "{\"id\": %d, \"name\": %s, \"totalGlobalMem\": %" G_GUINT64_FORMAT ", \"numSms\": %d}", file, name,
		           trace->hbm_bytes, trace->sms);
	}
	json_print(&w->json, "],\n\"distributedInfo\": {\"backend\": \"nccl\", \"rank\": %d, \"world_size\": %d},\n", number, trace->gpus);
	json_print(&w->json, "\"displayTimeUnit\": \"ms\",\n\"baseTimeNanoseconds\": 0,\n\"gpus_per_node\": %d,\n", trace->gpus_per_node);
	if (trace->description) {
		g_autofree char *description = json_quote(trace->description);

		json_print(&w->json, "\"description\": %s,\n", description);
	}
	json_print(&w->json, "\"traceEvents\": [\n");
}

static bool write_file(struct writer *w, int file, struct outfile *out, GError **error)
{
	const struct trace *trace = w->trace;
	const int pid = KINETO_LAUNCHER_PID + (file < trace->gpus ? file : host_number(w));

	w->json.file = out;
	w->json.at = w->json.buffer;
	put_file_head(w, file);
	if (file < trace->gpus) {
		put_rows_of_rank(w, file);
	} else {
		put_rows_of_host(w);
		put_placeholder(w);
	}
	put_steps(w, pid);
	put_spans(w, file);
	for (guint i = 0; i < trace->counters->len; i++) {
		const struct counter *counter = g_ptr_array_index(trace->counters, i);

		if (file < trace->gpus ? counter->gpu == file : counter->gpu < 0 && has_node(w, counter->node))
			put_counter(w, counter);
	}
	json_print(&w->json, "{\"ph\":\"i\",\"s\":\"g\",\"name\":\"end\",\"pid\":%d,\"tid\":%d,\"ts\":", pid, KINETO_STEP_TID);
	w->json.at = put_milli(json_room(&w->json, EVENT_BYTES), w->end_ns);
	json_print(&w->json, "}\n],\n");
	if (file < trace->gpus)
		json_print(&w->json, "\"traceName\": \"rank %d\"\n}\n", file);
	else
		json_print(&w->json, "\"traceName\": \"host\"\n}\n");
	json_flush(&w->json);
	if (w->json.error) {
		g_propagate_error(error, g_steal_pointer(&w->json.error));
		return false;
	}
	return outfile_finish(out, error);
}

bool kineto_write(const struct trace *trace, const char *prefix, bool gzip, GError **error)
{
	return kineto_write_part(trace, prefix, gzip, 0, trace->gpus, error);
}

static char *path_of(const struct writer *w, int file, const char *prefix, bool gzip)
{
	const char *ending = gzip ? ".json.gz" : ".json";
	const int node = w->first_gpu / w->trace->gpus_per_node;

	if (file < w->trace->gpus)
		return g_strdup_printf("%s.rank%d%s", prefix, file, ending);
	return node ? g_strdup_printf("%s.host%d%s", prefix, node, ending) : g_strdup_printf("%s.host%s", prefix, ending);
}

bool kineto_write_part(const struct trace *trace, const char *prefix, bool gzip, int first, int end, GError **error)
{
	g_autofree struct writer *w = g_new0(struct writer, 1);
	g_autoptr(GPtrArray) files = g_ptr_array_new_with_free_func((GDestroyNotify)outfile_free);
	bool ok = true;

	g_assert(trace->gpus > 0 && trace->gpus <= KINETO_MOST_GPUS && trace->gpus_per_node > 0);
	w->trace = trace;
	w->first_gpu = first;
	w->end_gpu = end;
	w->end_ns = trace_end_ns(trace);
	make_heads(w);
	sort_into_files(w);
	for (int i = first; i <= end && ok; i++) {
		const int f = i < end ? i : trace->gpus;
		g_autofree char *path = path_of(w, f, prefix, gzip);
		struct outfile *out = outfile_new(path, gzip, error);

		if (out)
			g_ptr_array_add(files, out);
		ok = out && write_file(w, f, out, error);
	}
	for (guint i = 0; i < files->len && ok; i++)
		ok = outfile_commit(g_ptr_array_index(files, i), error);
	g_free(w->entries);
	g_free(w->first);
	return ok;
}
