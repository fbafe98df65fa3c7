/* Validation: a simulated run recorded as a real one would be predicts itself; figures against sums by hand. */
#include "model/error.h"
#include "sim/sim.h"
#include "sim/validate.h"
#include "traces/kineto.h"

#include <criterion/criterion.h>
#include <glib/gstdio.h>
#include <math.h>
#include <string.h>

#define PUT_OFF "[policy]\nexpert_home = dram\noptimizer = cpu-expert\nupdate_order = next-forward\npinned_share = 0.25\nplacement = lpt\n"

static struct scenario *scenario_of(const char *policy, int gpus)
{
	g_autoptr(GError) error = NULL;
	const struct scenario_options o = {
	    .model = "gpt-moe-s", .machine = "h200-x2", .policy = policy, .gpus = gpus, .experts = 8, .sequences = 4, .routing = "zipf:0.8:0.5"};
	struct scenario *s = scenario_new(&o, &error);
	cr_assert_not_null(s, "%s", error ? error->message : "");
	return s;
}

static void write_text(const char *folder, const char *name, const char *text)
{
	g_autofree char *path = g_build_filename(folder, name, NULL);
	cr_assert(g_file_set_contents(path, text, -1, NULL));
}

/* Loads as a run writes them: micro-batches count through. */
static void write_loads(const char *folder, const struct scenario *s, int steps, int microbatches)
{
	g_autoptr(GString) out = g_string_new("microbatch,layer,gpu,expert,tokens\n");
	int gpus = s->machine->gpus;
	uint32_t per_gpu = (uint32_t)(s->sequences / microbatches * s->seq_len);
	for (int i = 0; i < steps * microbatches; i++)
		for (int layer = 0; layer < s->network->layers; layer++) {
			const struct layer *l = &s->network->layer[layer];
			g_autofree uint32_t *tokens = g_new0(uint32_t, gpus * MAX(1, l->experts));
			if (l->experts)
				cr_assert(routing_loads(s->routing, i / microbatches, i % microbatches, layer, gpus, l->experts, l->top_k, per_gpu,
				                        tokens, NULL));
			for (int t = 0; t < gpus * l->experts; t++)
				g_string_append_printf(out, "%d,%d,%d,%d,%u\n", i, layer, t / l->experts, t % l->experts, tokens[t]);
		}
	write_text(folder, "loads.csv", out->str);
}

/* As recorded by a simulation, by a run that waits after each step (as its run.ini says, or as old ones do not say), by a run that begins the next.
 */
enum pace { SIMULATED, APART, OLD, OVERLAPPING };

static struct trace *simulated(struct scenario *s, int steps, enum pace pace)
{
	g_autoptr(GError) error = NULL;
	struct recorded r = {.scenario = s, .trace = trace_new(), .real = pace != SIMULATED, .overlap = pace == OVERLAPPING};
	nsec_t end = 0;
	for (int i = 0; i < steps; i++)
		g_array_append_val(r.trace->step_end_ns, end);
	struct trace *trace = recorded_simulate(&r, 1, &error);
	cr_assert_not_null(trace, "%s", error ? error->message : "");
	trace_free(r.trace);
	return trace;
}

static char *recorded_folder(struct scenario *s, int steps, enum pace pace)
{
	g_autoptr(GError) error = NULL;
	char *folder = g_dir_make_tmp("esmoe-validate-XXXXXX", NULL);
	const char *head = pace == OVERLAPPING ? "[run]\noverlap = true\n" : pace == APART ? "[run]\noverlap = false\n" : "";
	g_autofree char *scenario = scenario_ini(s), *ini = g_strconcat(head, scenario, NULL), *prefix = g_build_filename(folder, "trace", NULL);
	g_autoptr(trace) trace = simulated(s, steps, pace);
	write_text(folder, "run.ini", ini);
	cr_assert(kineto_write(trace, prefix, false, &error), "%s", error ? error->message : "");
	return folder;
}

static void remove_folder(char *folder)
{
	g_autoptr(GDir) dir = g_dir_open(folder, 0, NULL);
	for (const char *name; (name = g_dir_read_name(dir));) {
		g_autofree char *path = g_build_filename(folder, name, NULL);
		g_unlink(path);
	}
	g_rmdir(folder);
	g_free(folder);
}

static GArray *validated(const char *folder, double adam_speed)
{
	g_autoptr(GError) error = NULL;
	struct recorded r;
	cr_assert(recorded_read(folder, &r, &error), "%s", error ? error->message : "");
	g_autoptr(trace) predicted = recorded_simulate(&r, adam_speed, &error);
	cr_assert_not_null(predicted, "%s", error ? error->message : "");
	GArray *rows = accuracy_of_traces(r.trace, predicted);
	recorded_clear(&r);
	return rows;
}

static void predicts_itself(const char *policy, int gpus, enum pace pace)
{
	g_autoptr(scenario) s = scenario_of(policy, gpus);
	enum { STEPS = 3 };
	char *folder = recorded_folder(s, STEPS, pace);
	if (pace != SIMULATED) {
		g_autoptr(schedule) schedule = schedule_new(s, NULL, NULL);
		write_loads(folder, s, STEPS, schedule_microbatches(schedule));
	}
	g_autoptr(GArray) rows = validated(folder, 1);
	bool stage = false, stream = false;
	cr_assert_str_eq(g_array_index(rows, struct accuracy, 0).name, "step");
	for (guint i = 0; i < rows->len; i++) {
		const struct accuracy *a = &g_array_index(rows, struct accuracy, i);
		cr_assert_eq(accuracy_error(a), 0, "%s of %s on %d: %g, not %g", a->name, policy, gpus, a->predicted_ms, a->measured_ms);
		cr_assert_gt(a->measured_ms, 0);
		stage |= strcmp(a->name, "expert backward") == 0;
		stream |= strcmp(a->name, "gpu0 compute") == 0;
	}
	cr_assert(stage && stream);
	remove_folder(folder);
}

Test(validate, a_simulated_run_is_predicted_exactly)
{
	predicts_itself("static", 1, SIMULATED);
	predicts_itself("es-moe", 2, SIMULATED);
}

static double of_row(const GArray *rows, const char *name)
{
	for (guint i = 0; i < rows->len; i++)
		if (strcmp(g_array_index(rows, struct accuracy, i).name, name) == 0)
			return g_array_index(rows, struct accuracy, i).predicted_ms;
	return NAN;
}

/* Twice as long but for what copies cost it, which a slower one feels less; the forward as before. */
Test(validate, with_adam_at_half_its_speed)
{
	g_autoptr(scenario) s = scenario_of("[policy]\nexpert_home = dram\noptimizer = cpu-expert\n", 1);
	char *folder = recorded_folder(s, 3, SIMULATED);
	g_autoptr(GArray) usual = validated(folder, 1), half = validated(folder, 0.5);
	const double longer = of_row(half, "adam update") / of_row(usual, "adam update");
	cr_assert(longer > 1.8 && longer <= 2, "%g", longer);
	cr_assert_float_eq(of_row(half, "mixer forward"), of_row(usual, "mixer forward"), 1e-6);
	cr_assert_gt(of_row(half, "step"), of_row(usual, "step"));
	remove_folder(folder);
}

static struct trace *at_speed(struct scenario *s, double adam_speed)
{
	struct recorded r = {.scenario = s, .trace = trace_new(), .real = true, .overlap = true};
	nsec_t end = 0;
	g_array_append_val(r.trace->step_end_ns, end);
	g_array_append_val(r.trace->step_end_ns, end);
	struct trace *trace = recorded_simulate(&r, adam_speed, NULL);
	trace_free(r.trace);
	cr_assert_not_null(trace);
	return trace;
}

/* What was put off was put off by what was known before. */
Test(validate, and_with_the_schedule_as_it_was)
{
	g_autoptr(scenario) s = scenario_of(PUT_OFF, 1);
	g_autoptr(trace) usual = at_speed(s, 1), half = at_speed(s, 0.5);
	cr_assert_eq(usual->spans->len, half->spans->len);
	for (guint i = 0; i < usual->spans->len; i++) {
		const struct span *a = trace_span(usual, i), *b = trace_span(half, i);
		cr_assert(a->kind == b->kind && a->layer == b->layer && a->expert == b->expert, "span %u", i);
	}
	cr_assert_gt(g_array_index(half->step_end_ns, nsec_t, 1), g_array_index(usual->step_end_ns, nsec_t, 1));
}

Test(validate, from_its_own_loads_too)
{
	for (enum pace pace = APART; pace <= OVERLAPPING; pace++) {
		predicts_itself("es-moe", 2, pace);
		predicts_itself("static", 2, pace);
		predicts_itself(PUT_OFF, 2, pace);
	}
}

Test(validate, other_loads_give_another_time)
{
	g_autoptr(scenario) s = scenario_of("static", 2);
	char *folder = recorded_folder(s, 2, OLD);
	g_autoptr(schedule) schedule = schedule_new(s, NULL, NULL);
	routing_free(s->routing);
	s->routing = routing_new("uniform", 0, NULL);
	write_loads(folder, s, 2, schedule_microbatches(schedule));
	g_autoptr(GArray) rows = validated(folder, 1);
	cr_assert_neq(accuracy_error(&g_array_index(rows, struct accuracy, 0)), 0);
	remove_folder(folder);
}

/* Steps 2 to 4 of a run whose experts changed GPUs before step 2: who computes which, where. */
static GArray *moved_about(struct scenario *s, const struct expert_place *places)
{
	GArray *where = g_array_new(FALSE, FALSE, sizeof(int));
	struct recorded r = {.scenario = s, .trace = trace_new(), .real = true, .warmup = 2};
	const nsec_t end = 0;
	for (int i = 0; i < 3; i++)
		g_array_append_val(r.trace->step_end_ns, end);
	r.places = places ? g_memdup2(places, sizeof(*places) * 8 * (size_t)s->network->layers) : NULL;
	g_autoptr(trace) t = recorded_simulate(&r, 1, NULL);
	cr_assert(t);
	for (guint i = 0; i < t->spans->len; i++) {
		const struct span *x = trace_span(t, i);
		const int at = ((x->step * 64 + x->layer) * 8 + x->expert) * 2 + x->rank;
		if (x->kind == STAGE_EXPERT && x->pass == PASS_FORWARD)
			g_array_append_val(where, at);
	}
	trace_free(r.trace);
	g_free(r.places);
	return where;
}

static struct expert_place *places_after_two_steps(struct scenario *s, bool swapped)
{
	g_autoptr(schedule) schedule = schedule_new(s, NULL, NULL);
	const struct sim_options o = {0};
	g_autoptr(backend) b = sim_new(s->machine, schedule_resources(schedule), s->routing, &o);
	const size_t n = schedule_places(schedule, NULL);
	struct expert_place *places = g_new(struct expert_place, n);
	cr_assert(schedule_step(schedule, b, NULL) && schedule_step(schedule, b, NULL) && schedule_wait(schedule, b, NULL));
	schedule_places(schedule, places);
	for (size_t i = 0; swapped && i < n; i++)
		places[i] = (struct expert_place){1 - places[i].last, places[i].pinned < 0 ? -1 : 1 - places[i].pinned};
	return places;
}

static bool same(const GArray *a, const GArray *b)
{
	return a->len == b->len && memcmp(a->data, b->data, sizeof(int) * a->len) == 0;
}

Test(validate, experts_begin_where_the_run_had_left_them)
{
	g_autoptr(scenario) s = scenario_of("[policy]\nexpert_home = dram\npinned_share = 0.25\nplacement = sticky\n", 2);
	g_autofree struct expert_place *left = places_after_two_steps(s, false), *swapped = places_after_two_steps(s, true);
	g_autoptr(GArray) usual = moved_about(s, NULL), as_left = moved_about(s, left), other = moved_about(s, swapped);
	cr_expect(same(usual, as_left), "the warm-up is what the run did");
	cr_expect_not(same(usual, other));
	left[0].pinned = left[1].pinned = left[2].pinned = left[3].pinned = 0;
	g_autoptr(schedule) schedule = schedule_new(s, NULL, NULL);
	cr_expect_not(schedule_set_places(schedule, left), "more than there is room for");
	left[0].pinned = 2;
	cr_expect_not(schedule_set_places(schedule, left), "a third GPU");
}

/* Half of the updates run under the next forward, or hold it up. */
Test(validate, steps_that_ran_into_each_other_do_so_again_and_others_do_not)
{
	enum { STEPS = 3 };
	g_autoptr(scenario) s = scenario_of(PUT_OFF, 2);
	g_autoptr(schedule) schedule = schedule_new(s, NULL, NULL);
	char *folder = recorded_folder(s, STEPS, OVERLAPPING);
	g_autofree char *waited = scenario_ini(s), *wrong = g_strconcat("[run]\noverlaps = true\n", waited, NULL);
	g_autoptr(GError) error = NULL;
	struct recorded r;
	write_loads(folder, s, STEPS, schedule_microbatches(schedule));
	write_text(folder, "run.ini", waited);
	g_autoptr(GArray) rows = validated(folder, 1);
	cr_assert_gt(accuracy_error(&g_array_index(rows, struct accuracy, 0)), 0.01, "%g", accuracy_error(&g_array_index(rows, struct accuracy, 0)));
	write_text(folder, "run.ini", wrong);
	cr_assert_not(recorded_read(folder, &r, &error));
	cr_assert(g_error_matches(error, ESMOE_ERROR, ESMOE_ERROR_INPUT) && strstr(error->message, "overlaps"), "%s", error->message);
	remove_folder(folder);
}

static struct span span_by_hand(stage_id id, int kind, int rank, int step, enum gpu_stream stream, nsec_t start_ns, nsec_t end_ns)
{
	return (struct span){.id = id,
	                     .kind = (uint8_t)kind,
	                     .rank = rank,
	                     .step = (uint16_t)step,
	                     .expert = -1,
	                     .stream = stream_of_gpu(rank, stream),
	                     .start_ns = start_ns,
	                     .end_ns = end_ns};
}

static struct trace *by_hand(const struct span *spans, guint n, const nsec_t *ends, guint steps)
{
	struct trace *t = trace_new();
	t->gpus = t->gpus_per_node = 2;
	g_array_append_vals(t->spans, spans, n);
	g_array_append_vals(t->step_end_ns, ends, steps);
	return t;
}

static const struct accuracy *row(const GArray *rows, const char *name)
{
	for (guint i = 0; i < rows->len; i++)
		if (strcmp(g_array_index(rows, struct accuracy, i).name, name) == 0)
			return &g_array_index(rows, struct accuracy, i);
	cr_assert_fail("no row %s", name);
	return NULL;
}

Test(validate, figures_are_medians_over_the_steps_and_collectives_do_not_count_waiting)
{
	const struct span measured[] = {
	    span_by_hand(0, STAGE_MIXER, 0, 0, STREAM_COMPUTE, 0, 4000000),
	    span_by_hand(1, STAGE_ALL_TO_ALL, 0, 0, STREAM_COLLECTIVE, 1000000, 9000000),
	    span_by_hand(2, STAGE_ALL_TO_ALL, 1, 0, STREAM_COLLECTIVE, 7000000, 9000000),
	    span_by_hand(3, STAGE_MIXER, 0, 1, STREAM_COMPUTE, 10000000, 12000000),
	    span_by_hand(4, STAGE_MIXER, 0, 1, STREAM_COMPUTE, 12000000, 16000000),
	    span_by_hand(5, STAGE_MIXER, 0, 2, STREAM_COMPUTE, 20000000, 25000000),
	};
	const nsec_t ends[] = {10000000, 20000000, 32000000};
	struct span predicted[G_N_ELEMENTS(measured)];
	memcpy(predicted, measured, sizeof predicted);
	predicted[5].end_ns += 5000000;
	g_autoptr(trace) a = by_hand(measured, G_N_ELEMENTS(measured), ends, 3), b = by_hand(predicted, G_N_ELEMENTS(predicted), ends, 3);
	g_autoptr(GArray) rows = accuracy_of_traces(a, b);
	cr_assert_eq(row(rows, "step")->measured_ms, 10);
	cr_assert_float_eq(row(rows, "step")->measured_spread, (11 - 10) / 2.0 / 10, 1e-12);
	cr_assert_eq(row(rows, "mixer forward")->measured_ms, 5);
	cr_assert_eq(row(rows, "mixer forward")->predicted_ms, 6);
	cr_assert_float_eq(accuracy_error(row(rows, "mixer forward")), 0.2, 1e-12);
	/* of three steps only one exchanges: the median is nothing, so there is no such row */
	for (guint i = 0; i < rows->len; i++)
		cr_assert_str_neq(g_array_index(rows, struct accuracy, i).name, "all_to_all forward");
	g_autoptr(trace) one = by_hand(measured, 3, ends, 1), same = by_hand(measured, 3, ends, 1);
	g_autoptr(GArray) first = accuracy_of_traces(one, same);
	cr_assert_eq(row(first, "all_to_all forward")->measured_ms, 4); /* 2 on each GPU */
	cr_assert_eq(row(first, "gpu0 collective")->measured_ms, 2);
}

Test(validate, what_is_missing_is_named)
{
	g_autofree char *folder = g_dir_make_tmp("esmoe-validate-XXXXXX", NULL);
	g_autoptr(GError) error = NULL;
	struct recorded r;
	cr_assert_not(recorded_read(folder, &r, &error));
	cr_assert(g_error_matches(error, ESMOE_ERROR, ESMOE_ERROR_INPUT));
	cr_assert_not_null(strstr(error->message, "run.ini"));
	g_rmdir(folder);
}
