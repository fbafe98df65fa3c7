/* Any bytes as a trace file, plain or gzip: read, or refused with an error of one line; what was read can be asked everything and comes out of memory
 * consistent. */
#include "fuzz.h"
#include "traces/critical_path.h"
#include "traces/csv.h"
#include "traces/diff.h"
#include "traces/info.h"
#include "traces/kineto.h"

#include <string.h>

enum { MOST_STREAMS = 4096 }; /* a file may name a million GPUs: allowed, and slow to sum up again and again */

static void ask(const struct trace *trace)
{
	g_autoptr(trace_info) info = trace_info_new(trace);
	g_autoptr(GArray) rows = trace_diff(trace, trace);
	g_autoptr(GString) csv = g_string_new(NULL);
	g_autoptr(GError) error = NULL;

	g_assert_cmpint(info->run_ns, >=, 0);
	for (guint i = 0; i < rows->len; i++)
		g_assert_cmpuint(g_array_index(rows, struct diff_row, i).only_a, ==, 0);
	for (int step = 0; step < MAX((int)trace->step_end_ns->len, 1); step++) {
		g_autoptr(critical_path) path = critical_path_new(trace, step, &error);
		nsec_t sum = 0;

		g_assert_no_error(error);
		for (guint i = 0; i < path->parts->len; i++)
			sum += g_array_index(path->parts, struct path_part, i).ns;
		g_assert_cmpint(sum, ==, path->step_ns);
	}
	csv_spans(trace, 0, trace->spans->len, csv);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	g_autoptr(GError) error = NULL;
	g_autoptr(GInputStream) in = g_memory_input_stream_new_from_data(data, (gssize)size, NULL);
	g_autoptr(trace) trace = kineto_read_stream("fuzz.json", in, &error);

	g_assert_true(!trace == !!error);
	if (error) {
		g_assert_true(*error->message && !strpbrk(error->message, "\r\n") && g_utf8_validate(error->message, -1, NULL));
		return 0;
	}
	if (trace_streams(trace) <= MOST_STREAMS)
		ask(trace);
	return 0;
}
