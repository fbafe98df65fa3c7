/* Names and integers only, so that nothing needs quotes and times are exact. The caller takes pieces: a million lines are never held at once. */
#include "csv.h"

const char *csv_header(void)
{
	return "id,step,microbatch,layer,expert,stage,pass,stream,rank,tokens,bytes,launch_ns,launch_end_ns,start_ns,end_ns,predecessors\n";
}

static void append_span(const struct trace *trace, const struct span *s, GString *out)
{
	g_autofree char *stream = trace_stream_name(trace, s->stream);

	g_string_append_printf(out, "%u,%d,%d,%d,", s->id, s->step, s->microbatch, s->layer);
	if (s->expert != -1)
		g_string_append_printf(out, "%d", s->expert);
	g_string_append_printf(out, ",%s,%s,%s,%d,%u,%" G_GUINT64_FORMAT ",", span_kind_name(s->kind), stage_pass_name(s->pass), stream, s->rank,
	                       s->tokens, s->bytes);
	if (s->launch_ns == -1)
		g_string_append_c(out, ',');
	else
		g_string_append_printf(out, "%" G_GINT64_FORMAT ",%" G_GINT64_FORMAT, s->launch_ns, s->launch_end_ns);
	g_string_append_printf(out, ",%" G_GINT64_FORMAT ",%" G_GINT64_FORMAT ",", s->start_ns, s->end_ns);
	for (int i = 0; i < s->n_preds; i++)
		g_string_append_printf(out, "%s%u", i > 0 ? " " : "", s->preds[i]);
	g_string_append_c(out, '\n');
}

void csv_spans(const struct trace *trace, guint from, guint to, GString *out)
{
	for (guint i = from; i < to; i++)
		append_span(trace, &g_array_index(trace->spans, struct span, i), out);
}
