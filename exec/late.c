/* The first exchange of a layer cannot be launched before the counts have come and the launcher has woken:
 *
 *     compute      [gate][permute]
 *     collective              [counts]             [      exchange      ]
 *     launcher        ...asleep          [launching]
 *                                        `------- late + alone --------'
 *
 * It launches the more slowly the more tokens a GPU has: between two H200 the same calls took 38 us at 2048, 44 at 8192, 67 at 32768 and 99 at 65536
 * (medians of a calibration's runs), and first launches after a gate's wait on one GPU grow alike. Likely that is a core gone cold over longer
 * sleeps; but among the layers of one run, waits half as long or as long again made no difference. So tokens decide, not the wait. */
#include "late.h"

#include "model/measured.h"
#include "model/quantile.h"
#include "samples.h"
#include "streamed.h"

static bool is_ready(const struct trace *trace, const struct span *s)
{
	for (int p = 0; p < s->n_preds; p++) {
		const uint32_t at = trace_find(trace, s->preds[p]);
		if (at != STAGE_NONE && trace_span(trace, at)->end_ns > s->launch_ns)
			return false;
	}
	return s->launch_ns >= 0;
}

/* 0: none was. */
static double alone_us(const struct trace *trace, const double *cover)
{
	g_autoptr(GArray) alone = g_array_new(FALSE, FALSE, sizeof(double));
	for (guint i = 0; i < trace->spans->len; i++) {
		const struct span *s = trace_span(trace, i);
		const double us = (double)(s->end_ns - s->start_ns) / 1e3;
		if (s->kind == STAGE_ALL_TO_ALL && streamed_alone(cover[i]) && !span_waited_for_launches(s))
			g_array_append_val(alone, us);
	}
	return alone->len ? quantile_median((double *)(void *)alone->data, (int)alone->len) : 0;
}

void late_add(const struct trace *trace, const double *cover, uint32_t first_step, GArray *samples)
{
	const double alone = alone_us(trace, cover);
	for (guint i = 0; alone > 0 && i < trace->spans->len; i++) {
		const struct span *s = trace_span(trace, i);
		struct timing late = {.kind = MEASURED_LATE, .size = s->tokens, .step = first_step + s->step};
		if (s->kind != STAGE_ALL_TO_ALL || s->pass != PASS_FORWARD || !s->tokens || !is_ready(trace, s))
			continue;
		late.us = (double)(s->end_ns - s->launch_ns) / 1e3 - alone;
		g_array_append_val(samples, late);
	}
}
