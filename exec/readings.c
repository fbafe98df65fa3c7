/* All-reduces are measured alone outside of runs, and in runs what they take longer there. A layer's gradients go out when its backward has ended,
 * and with them begins the mixer of the layer below, first with a norm of all rows. 17 MB between two H200, us (medians over calibrations and runs of
 * 2026-11-29):
 *
 *     alone   under a backward of 2048   8192   16384   24576   32768   65536 tokens
 *        79                         90    105     116     126     131     166
 *
 * From 8192 tokens on each 1024 add 1.1 us, about what the norm takes for them, as if NCCL's blocks got no SM before the last of its blocks had one;
 * under the embedding's backward, which is nothing but such a kernel, an all-reduce waits for nine tenths of it, and is left out here (streamed.h).
 * So rows decide what is to be added, and bytes are taken not to. */
#include "readings.h"

#include "cover.h"
#include "late.h"
#include "model/backend_null.h"
#include "model/quantile.h"
#include "model/schedule.h"
#include "one_way.h"
#include "samples.h"
#include "streamed.h"
#include "updates.h"
#include "warmth.h"

#define UNDER 0.5 /* of an all-reduce's time under computation, and more */

void probe_run_clear(struct probe_run *r)
{
	scenario_free(r->scenario);
	trace_free(r->trace);
}

double probe_run_alone(const struct probe_run *r)
{
	const struct machine *m = r->scenario->machine;
	return m->adam_alone_gparams_per_s * m->adam_share * m->adam_pace;
}

void probe_runs_fill_alone(const GArray *runs, struct machine *m)
{
	g_autofree double *all = g_new(double, runs->len);
	int n = 0;
	for (guint i = 0; i < runs->len; i++) {
		const struct probe_run *r = &g_array_index(runs, struct probe_run, i);
		if (r->probe.serves & SERVES_HOST)
			all[n++] = probe_run_alone(r);
	}
	m->adam_alone_gparams_per_s = n ? quantile_median(all, n) : 0;
	m->adam_share = m->adam_pace = m->adam_slowest = m->adam_fastest = 1;
	for (int i = 0; i < n; i++) {
		m->adam_slowest = CLAMP(all[i] / m->adam_alone_gparams_per_s, LEAST_PACE, m->adam_slowest);
		m->adam_fastest = CLAMP(all[i] / m->adam_alone_gparams_per_s, m->adam_fastest, MOST_PACE);
	}
}

static GArray *doubles(void)
{
	return g_array_new(FALSE, FALSE, sizeof(double));
}

void readings_init(struct readings *r)
{
	*r = (struct readings){.samples = g_array_new(FALSE, FALSE, sizeof(struct timing)),
	                       .launch_us = doubles(),
	                       .mixer_us = {doubles(), doubles()},
	                       .unequal = g_array_new(FALSE, FALSE, sizeof(struct unequal)),
	                       .streamed = g_array_new(FALSE, FALSE, sizeof(struct streamed))};
	waits_init(&r->waits);
}

void readings_clear(struct readings *r)
{
	GArray *arrays[] = {r->samples, r->launch_us, r->mixer_us[0], r->mixer_us[1], r->unequal, r->streamed};
	for (size_t i = 0; i < G_N_ELEMENTS(arrays); i++)
		g_array_unref(arrays[i]);
	waits_clear(&r->waits);
}

double readings_median(GArray *values, double otherwise)
{
	return values->len ? quantile_median((double *)(void *)values->data, (int)values->len) : otherwise;
}

double readings_mean(GArray *values, double otherwise)
{
	double sum = 0;
	guint n = values->len - values->len / 20;
	quantile_sort((double *)(void *)values->data, (int)values->len);
	for (guint i = 0; i < n; i++)
		sum += g_array_index(values, double, i);
	return n ? sum / n : otherwise;
}

/* In the unit of the kind's table. */
static double size_of(const struct measured *tables, const struct scenario *sc, const struct span *s)
{
	const char *unit = measured_unit(s->kind, s->pass);
	const struct layer *l = &sc->network->layer[s->layer];
	if (g_str_equal(unit, "bytes"))
		return (double)s->bytes;
	if (g_str_equal(unit, "parameters")) {
		double each = s->kind == STAGE_ADAM_GPU || s->kind == STAGE_ACCUMULATE_GPU ? 28
		              : s->kind == STAGE_ADAM                                      ? sc->machine->adam_bytes_per_param
		                                                                           : 10;
		return (double)s->bytes / each;
	}
	return measured_size(&tables->table[s->kind][s->pass], s->kind, l, s->tokens);
}

static bool serves_kind(int serves, int kind)
{
	switch (kind) {
	case STAGE_ADAM:
		return serves & SERVES_ADAM;
	case STAGE_ACCUMULATE:
		return serves & SERVES_SUMS;
	case STAGE_ALL_TO_ALL:
		return serves & SERVES_EXCHANGES;
	case STAGE_UPLOAD:
	case STAGE_DOWNLOAD:
	case STAGE_COUNTS:
	case STAGE_ALL_REDUCE:
	case STAGE_REDUCE_SCATTER:
	case STAGE_ALL_GATHER:
	case STAGE_SSD_READ:
	case STAGE_SSD_WRITE:
		return false;
	case STAGE_EXPERT:
		return serves & SERVES_EXPERTS;
	default:
		return serves & SERVES_COMPUTE;
	}
}

/* A span, what it would have taken as the tables want it, and whether it waited while it had begun. */
struct reading {
	const struct span *s;
	double us;
	bool waited;
};

/* A grouped launch: one expert of it with the mean of their tokens. */
static void take_group(struct readings *r, const struct scenario *sc, const struct reading *x)
{
	const struct span *s = x->s;
	double experts = sc->network->layer[s->layer].experts;
	struct timing sample = {MEASURED_GROUPED, s->pass, s->tokens / experts, x->us / experts, s->tokens, experts, r->steps + s->step, x->waited};
	if (s->kind == STAGE_EXPERT && s->expert < 0 && s->tokens)
		g_array_append_val(r->samples, sample);
}

/* Not of virtual GPUs, whose streams ask for the cores that they share (model/resource.c). */
static void take_under(struct readings *r, const struct probe_run *run, const struct measured *tables, const struct reading *x)
{
	const struct span *s = x->s;
	const struct scenario *sc = run->scenario;
	double alone_ns, rows = (double)run->probe.sequences * sc->seq_len / run->probe.microbatches;
	if (!(run->probe.serves & SERVES_EXCHANGES) || sc->machine->stream_cores > 0 ||
	    measured_ns(&tables->table[s->kind][PASS_FORWARD], (double)s->bytes, &alone_ns) == MEASURED_NONE)
		return;
	struct timing sample = {.kind = MEASURED_UNDER,
	                        .size = rows * sc->network->d_model,
	                        .us = x->us - alone_ns / 1e3,
	                        .step = r->steps + s->step,
	                        .waited = x->waited};
	g_array_append_val(r->samples, sample);
}

static void take_span(struct readings *r, const struct probe_run *run, const struct measured *tables, const struct reading *x)
{
	const struct span *s = x->s;
	const int serves = run->probe.serves;
	if (s->kind == STAGE_MIXER && s->pass == PASS_BACKWARD && serves & SERVES_STEPS)
		g_array_append_val(r->mixer_us[run->probe.gpus - 1], x->us);
	if (serves & SERVES_GROUPED)
		take_group(r, run->scenario, x);
	if (!measured_unit(s->kind, s->pass) || !serves_kind(serves, s->kind))
		return;
	struct timing sample = {s->kind,
	                        measured_pass(s->kind, s->pass),
	                        size_of(tables, run->scenario, s),
	                        x->us,
	                        s->tokens,
	                        run->scenario->network->layer[s->layer].experts,
	                        r->steps + s->step,
	                        x->waited};
	if (sample.size > 0)
		g_array_append_val(r->samples, sample);
}

/* Host time of one launch: what the launchers took for a step over the launches a schedule counts. */
static bool take_launches(struct readings *r, struct scenario *sc, const struct trace *trace, GError **error)
{
	sc->machine->launch_us = 1;
	g_autoptr(schedule) schedule = schedule_new(sc, NULL, error);
	if (!schedule)
		return false;
	g_autoptr(backend) b = backend_null_new(sc->routing, sc->machine->gpus);
	if (!schedule_step(schedule, b, error))
		return false;
	double launches = (double)schedule_launch_ns(schedule) / 1e3;
	for (guint step = 0; step < trace->step_end_ns->len; step++) {
		nsec_t sum = 0;
		for (guint i = 0; i < trace->spans->len; i++) {
			const struct span *s = trace_span(trace, i);
			sum += s->step == step && s->rank == 0 && s->launch_ns >= 0 ? s->launch_end_ns - s->launch_ns : 0;
		}
		double us = (double)sum / 1e3 / launches;
		g_array_append_val(r->launch_us, us);
	}
	return true;
}

static void take_unequal(struct readings *r, const struct probe_run *run)
{
	const struct scenario *sc = run->scenario;
	int top_k = 1;
	for (int i = 0; i < sc->network->layers; i++)
		top_k = MAX(top_k, sc->network->layer[i].top_k);
	const double bytes = (double)run->probe.sequences * sc->seq_len * top_k * sc->network->d_model * sc->machine->element_bytes;
	const struct unequal_rows of = {bytes, run->probe.experts > run->probe.gpus};
	one_way_add(run->trace, &of, r->unequal);
}

static bool reduces(const struct span *s, int what)
{
	return s->kind == STAGE_ALL_REDUCE;
}

bool readings_take(struct readings *r, const struct probe_run *run, const struct measured *tables, const struct machine *m, GError **error)
{
	const struct trace *trace = run->trace;
	g_autofree double *hot = run->probe.gpus == 1 ? warmth_hot(trace, m) : NULL, *cover = streamed_cover(trace),
	                  *under = cover_of(trace, reduces, cover_computes, 0), *usual = updates_usual(trace, m, probe_run_alone(run));
	g_autofree bool *waking = updates_waking(trace);
	for (guint i = 0; i < trace->spans->len; i++) {
		const struct span *s = trace_span(trace, i);
		const double us = (double)(s->end_ns - s->start_ns) / 1e3 * (hot ? hot[i] : 1) * usual[i];
		const struct reading x = {s, us, span_waited_for_launches(s) || waking[i]};
		if (streamed_alone(cover[i]))
			(under[i] >= UNDER ? take_under : take_span)(r, run, tables, &x);
	}
	if (run->probe.serves & SERVES_EXCHANGES)
		late_add(trace, cover, r->steps, r->samples);
	r->steps += trace->step_end_ns->len;
	if (run->probe.serves & SERVES_ONE_WAY)
		take_unequal(r, run);
	if (run->probe.serves & SERVES_EXCHANGES)
		streamed_add(trace, cover, r->streamed);
	if (run->probe.serves & SERVES_OVERHEADS)
		waits_add_streams(&r->waits, trace);
	if (run->probe.serves & (SERVES_OVERHEADS | SERVES_COPIES))
		waits_add_launches(&r->waits, trace);
	if (run->probe.serves & (SERVES_STEPS | SERVES_COPIES))
		waits_add_syncs(&r->waits, trace);
	return !(run->probe.serves & SERVES_OVERHEADS) || take_launches(r, run->scenario, trace, error);
}
