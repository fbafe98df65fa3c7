/* What was recorded is simulated with everything that decided it: the scenario of run.ini, and the true loads instead of a routing rule. A real
 * run waits for the end of a step, to print its loss, before it begins the next one, or the one after that ([run] of run.ini): so do its simulated
 * steps.
 *
 *     run.ini  --> scenario --+
 *     loads.csv -> routing  --+--> schedule --> sim --> predicted --+
 *     places.csv -------------+                                    |
 *     trace.*  -------------------------------------> measured  ----+--> per step, stream, stage kind
 */
#include "validate.h"

#include "model/error.h"
#include "model/quantile.h"
#include "places.h"
#include "sim.h"
#include "traces/kineto.h"
#include "used.h"

#include <string.h>

void accuracy_clear(void *accuracy)
{
	g_free(((struct accuracy *)accuracy)->name);
}

double accuracy_error(const struct accuracy *a)
{
	return a->measured_ms > 0 ? a->predicted_ms / a->measured_ms - 1 : 0;
}

void recorded_clear(struct recorded *r)
{
	scenario_free(r->scenario);
	trace_free(r->trace);
	g_free(r->places);
	*r = (struct recorded){0};
}

static char *file_of(const char *folder, const char *name, GError **error)
{
	g_autofree char *path = g_build_filename(folder, name, NULL);
	g_autoptr(GError) cause = NULL;
	char *text;
	if (g_file_get_contents(path, &text, NULL, &cause))
		return text;
	g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_INPUT, "%s: %s", path, cause->message);
	return NULL;
}

static bool exists(const char *folder, const char *name, char **path)
{
	*path = g_build_filename(folder, name, NULL);
	return g_file_test(*path, G_FILE_TEST_EXISTS);
}

/* Rows of losses.csv, one a step of the run; 0 when there is none. */
static int steps_of_run(const char *folder)
{
	g_autofree char *text = file_of(folder, "losses.csv", NULL);
	int lines = 0;
	for (const char *p = text; p && *p; p++)
		lines += *p == '\n';
	return MAX(0, lines - 1);
}

static int steps_of(const struct trace *trace)
{
	return (int)trace->step_end_ns->len;
}

enum { WARMUP = 2 }; /* pinned experts and the cache over the SSD settle */

static const struct ini_key run_keys[] = {
    {"run", "overlap", INI_BOOL, offsetof(struct recorded, overlap), "false", 0, 0, NULL, "a step begins before the one before it has ended"},
};

static bool read_all(const char *folder, struct recorded *r, GError **error)
{
	g_autofree char *ini = g_build_filename(folder, "run.ini", NULL), *text = file_of(folder, "run.ini", error), *loads = NULL;
	const char *const paths[] = {folder, NULL};
	if (!text)
		return false;
	r->real = exists(folder, "loads.csv", &loads);
	if (!ini_read("runs", text, run_keys, G_N_ELEMENTS(run_keys), NULL, r, NULL, error)) {
		g_prefix_error(error, "%s: ", ini);
		return false;
	}
	r->scenario = scenario_from_ini(text, ini, r->real ? loads : NULL, error);
	r->trace = r->scenario ? kineto_read(paths, error) : NULL;
	if (!r->trace)
		return false;
	if (r->trace->gpus != r->scenario->machine->gpus || !steps_of(r->trace)) {
		g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_INPUT, "%s: a trace of %d steps on %d GPUs; run.ini says %d GPUs", folder,
		            steps_of(r->trace), r->trace->gpus, r->scenario->machine->gpus);
		return false;
	}
	r->warmup = r->real && steps_of_run(folder) > steps_of(r->trace) ? WARMUP : 0;
	return true;
}

static bool read_places(const char *folder, struct recorded *r, GError **error)
{
	g_autofree char *path = NULL, *csv = NULL;
	if (!exists(folder, "places.csv", &path))
		return true;
	csv = file_of(folder, "places.csv", error);
	r->places = csv ? places_of(csv, path, r->scenario->network, error) : NULL;
	return r->places != NULL;
}

bool recorded_read(const char *folder, struct recorded *out, GError **error)
{
	*out = (struct recorded){0};
	if (read_all(folder, out, error) && read_places(folder, out, error))
		return true;
	recorded_clear(out);
	return false;
}

GArray *recorded_memory(const char *folder, const struct recorded *r, GError **error)
{
	g_autofree char *path = NULL, *csv = NULL;
	struct plan plan;
	if (!exists(folder, "memory.csv", &path))
		return g_array_new(FALSE, FALSE, sizeof(struct used));
	csv = file_of(folder, "memory.csv", error);
	if (!csv || !plan_make(r->scenario, &plan, error))
		return NULL;
	return used_of(csv, path, &plan.memory, machine_nodes(r->scenario->machine), error);
}

static bool wait_for(struct backend *b, stage_id from, stage_id to, GError **error)
{
	for (stage_id id = from; id < to; id++)
		if (!backend_wait(b, id, error))
			return false;
	return true;
}

/* When the first stage of the steps from span `first` on was launched, or the step before ended. */
static nsec_t begin_ns(const struct trace *trace, guint first, nsec_t ended_ns)
{
	nsec_t begin_ns = ended_ns;
	for (guint i = first; i < trace->spans->len; i++)
		begin_ns = MIN(begin_ns, g_array_index(trace->spans, struct span, i).launch_ns);
	return begin_ns;
}

/* Leaves the warm-up out, as a recorder of the last steps does. */
static void cut_warmup(struct trace *trace, int warmup)
{
	guint first = 0;
	nsec_t by_ns = warmup ? g_array_index(trace->step_end_ns, nsec_t, warmup - 1) : 0;
	while (first < trace->spans->len && g_array_index(trace->spans, struct span, first).step < warmup)
		first++;
	by_ns = begin_ns(trace, first, by_ns);
	g_array_remove_range(trace->spans, 0, first);
	g_array_remove_range(trace->step_end_ns, 0, (guint)warmup);
	for (guint i = 0; i < trace->step_end_ns->len; i++)
		g_array_index(trace->step_end_ns, nsec_t, i) -= by_ns;
	for (guint i = 0; i < trace->spans->len; i++) {
		struct span *span = &g_array_index(trace->spans, struct span, i);
		span->step = (uint16_t)(span->step - warmup);
		span->id -= first;
		span->start_ns -= by_ns;
		span->end_ns -= by_ns;
		span->launch_ns -= by_ns;
		span->launch_end_ns -= by_ns;
		int kept = 0;
		for (int p = 0; p < span->n_preds; p++)
			if (span->preds[p] >= first)
				span->preds[kept++] = span->preds[p] - first;
		span->n_preds = (uint8_t)kept;
	}
}

struct trace *recorded_simulate(const struct recorded *r, double adam_speed, GError **error)
{
	struct machine machine;
	const struct scenario with = scenario_with_adam(r->scenario, adam_speed, &machine), *s = &with;
	g_autoptr(schedule) schedule = schedule_new(s, NULL, error);
	if (!schedule)
		return NULL;
	int steps = steps_of(r->trace), warmup = r->warmup;
	const struct sim_options o = {0};
	if (r->real)
		routing_replay(s->routing, schedule_microbatches(schedule), steps - warmup % steps);
	g_autoptr(backend) b = sim_new(s->machine, schedule_resources(schedule), s->routing, &o);
	stage_id before = 0;
	for (int i = 0; i < steps + warmup; i++) {
		stage_id first = b->n_launched;
		if (i == warmup && r->places && !schedule_set_places(schedule, r->places)) {
			g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_INPUT,
			            "places.csv: more experts on a GPU than policy.pinned_share keeps there, or a GPU that run.ini has not");
			return NULL;
		}
		if (!schedule_step(schedule, b, error) || (r->real && !wait_for(b, before, r->overlap ? first : b->n_launched, error)))
			return NULL;
		before = first;
	}
	if (!schedule_wait(schedule, b, error))
		return NULL;
	struct trace *trace = trace_new();
	trace->description = scenario_ini(s);
	sim_trace(b, false, trace);
	cut_warmup(trace, warmup);
	return trace;
}

/* Figures of one trace: milliseconds (keys, steps). */
struct figures {
	int n_keys, steps;
	double *ms;
};

static int first_stage_key(const struct trace *trace)
{
	return 1 + trace_streams(trace);
}

static int n_keys(const struct trace *trace)
{
	return first_stage_key(trace) + N_SPAN_KINDS * N_STAGE_PASSES;
}

static bool is_collective(int kind)
{
	return kind >= STAGE_COUNTS && kind <= STAGE_ALL_GATHER;
}

/* Whether b is the next member of a's group: they are launched one behind the other, GPU by GPU. */
static bool same_group(const struct span *a, const struct span *b)
{
	return b->id == a->id + 1 && b->rank == a->rank + 1 && b->kind == a->kind && b->pass == a->pass && b->layer == a->layer &&
	       b->microbatch == a->microbatch && b->expert == a->expert;
}

/* When its work began: for a collective, when the last member of its group came. `i` is the span's index. */
static nsec_t work_start_ns(const struct trace *trace, guint i)
{
	const struct span *spans = (const struct span *)(const void *)trace->spans->data;
	nsec_t start = spans[i].start_ns;
	if (!is_collective(spans[i].kind))
		return start;
	for (guint k = i; k > 0 && same_group(&spans[k - 1], &spans[k]); k--)
		start = MAX(start, spans[k - 1].start_ns);
	for (guint k = i; k + 1 < trace->spans->len && same_group(&spans[k], &spans[k + 1]); k++)
		start = MAX(start, spans[k + 1].start_ns);
	return MIN(start, spans[i].end_ns);
}

static void figures_of(const struct trace *trace, struct figures *f)
{
	nsec_t before = 0;
	f->n_keys = n_keys(trace);
	f->steps = steps_of(trace);
	f->ms = g_new0(double, (size_t)f->n_keys *(size_t)f->steps);
	for (int i = 0; i < f->steps; i++) {
		nsec_t end = g_array_index(trace->step_end_ns, nsec_t, i);
		f->ms[i] = (double)(end - before) / 1e6;
		before = end;
	}
	for (guint i = 0; i < trace->spans->len; i++) {
		const struct span *s = trace_span(trace, i);
		double ms = (double)(s->end_ns - work_start_ns(trace, i)) / 1e6;
		if (s->step >= f->steps)
			continue;
		f->ms[(1 + (int)s->stream) * f->steps + s->step] += ms;
		f->ms[(first_stage_key(trace) + s->kind * N_STAGE_PASSES + s->pass) * f->steps + s->step] += ms;
	}
}

static void summarise(struct figures *f, int key, double *median, double *spread)
{
	double *ms = f->ms + (size_t)key * (size_t)f->steps;
	*median = quantile_median(ms, f->steps);
	*spread = *median > 0 ? (quantile(ms, f->steps, 0.75) - quantile(ms, f->steps, 0.25)) / 2 / *median : 0;
}

static char *name_of(const struct trace *trace, int key)
{
	int stages = first_stage_key(trace), stage = key - stages;
	if (key == 0)
		return g_strdup("step");
	if (key < stages)
		return trace_stream_name(trace, (stream_id)key - 1);
	return g_strdup_printf("%s %s", span_kind_name(stage / N_STAGE_PASSES), stage_pass_name(stage % N_STAGE_PASSES));
}

GArray *accuracy_of_traces(const struct trace *measured, const struct trace *predicted)
{
	GArray *rows = g_array_new(FALSE, FALSE, sizeof(struct accuracy));
	struct figures m, p;
	g_assert(measured->gpus == predicted->gpus && measured->gpus_per_node == predicted->gpus_per_node);
	g_assert(steps_of(measured) == steps_of(predicted));
	g_array_set_clear_func(rows, accuracy_clear);
	figures_of(measured, &m);
	figures_of(predicted, &p);
	for (int key = 0; key < m.n_keys; key++) {
		struct accuracy a = {.of = key == 0 ? ACCURACY_STEP : key < first_stage_key(measured) ? ACCURACY_STREAM : ACCURACY_STAGE};
		summarise(&m, key, &a.measured_ms, &a.measured_spread);
		summarise(&p, key, &a.predicted_ms, &a.predicted_spread);
		if (a.measured_ms == 0 && a.predicted_ms == 0)
			continue;
		a.name = name_of(measured, key);
		g_array_append_val(rows, a);
	}
	g_free(m.ms);
	g_free(p.ms);
	return rows;
}
