/* The last steps of a run: what is kept, and that it starts at zero as if nothing had been before. */
#include "exec/record.h"

#include "model/loads.h"
#include "sim/places.h"

#include <criterion/criterion.h>

enum { GPUS = 2, MICROBATCHES = 2, SPANS = 5 };

static struct scenario *scenario_of(void)
{
	const struct scenario_options o = {.model = "tiny-moe", .machine = "host", .policy = "es-moe", .gpus = GPUS};
	g_autoptr(GError) error = NULL;
	struct scenario *sc = scenario_new(&o, &error);
	cr_assert(sc, "%s", error ? error->message : "");
	return sc;
}

static size_t counts_of(const struct scenario *sc)
{
	size_t n = 0;
	for (int i = 0; i < sc->network->layers; i++)
		n += (size_t)(MICROBATCHES * GPUS * sc->network->layer[i].experts);
	return n;
}

static size_t experts_of(const struct scenario *sc)
{
	return counts_of(sc) / (MICROBATCHES * GPUS);
}

/* Step s lasts from s * 1000 + 100 to s * 1000 + 900; between steps there are 200 ns of something else. Each span follows the one before. Counts are
 * 1000 s + their place; GPU 0 uses s bytes, GPU 1 ten times that; every third expert was pinned to "GPU s" before. Spans come in no order. */
static void add_step(struct record *r, const struct scenario *sc, int s)
{
	GArray *spans = g_array_new(FALSE, FALSE, sizeof(struct span));
	uint32_t *tokens = g_new(uint32_t, counts_of(sc));
	for (int i = SPANS - 1; i >= 0; i--) {
		struct span span = {.id = (stage_id)(s * SPANS + i), .step = 9, .start_ns = s * 1000 + 150 + i * 10, .launch_ns = -1};
		span.end_ns = span.start_ns + 10;
		if (i == 2) {
			span.launch_ns = span.start_ns - 20;
			span.launch_end_ns = span.start_ns - 10;
		}
		if (span.id > 0)
			span.preds[span.n_preds++] = span.id - 1;
		g_array_append_val(spans, span);
	}
	for (size_t i = 0; i < counts_of(sc); i++)
		tokens[i] = (uint32_t)(1000 * s) + (uint32_t)i;
	const uint64_t hbm[GPUS] = {(uint64_t)s, (uint64_t)(10 * s)};
	struct expert_place *places = g_new(struct expert_place, experts_of(sc));
	for (size_t i = 0; i < experts_of(sc); i++)
		places[i] = (struct expert_place){(int)i % GPUS, i % 3 ? -1 : s};
	record_step(
	    r, &(struct recorded_step){(stage_id)(s * SPANS), s * 1000 + 100, s * 1000 + 900, spans, tokens, g_memdup2(hbm, sizeof hbm), places});
}

Test(record, keeps_the_last_steps_as_a_trace_that_starts_at_zero_without_what_lay_between)
{
	g_autoptr(scenario) sc = scenario_of();
	g_autoptr(record) r = record_new(sc, MICROBATCHES, 2);
	for (int s = 0; s < 5; s++)
		add_step(r, sc, s);
	g_autoptr(trace) trace = record_trace(r);
	cr_assert_eq(trace->gpus, GPUS);
	cr_assert_eq(trace->step_end_ns->len, 2);
	cr_assert_eq(g_array_index(trace->step_end_ns, nsec_t, 0), 800);
	cr_assert_eq(g_array_index(trace->step_end_ns, nsec_t, 1), 1600);
	cr_assert_eq(trace->spans->len, 2 * SPANS);
	for (guint i = 0; i < trace->spans->len; i++) {
		const struct span *span = &g_array_index(trace->spans, struct span, i);
		cr_assert_eq(span->id, i);
		cr_assert_eq(span->step, i / SPANS);
		cr_assert_eq(span->start_ns, (nsec_t)(i / SPANS * 800 + 50 + i % SPANS * 10));
		cr_assert_eq(span->end_ns, span->start_ns + 10);
		cr_assert_eq(span->launch_ns, i % SPANS == 2 ? span->start_ns - 20 : -1);
		cr_assert_eq(span->n_preds, i > 0);
		cr_assert(i == 0 || span->preds[0] == i - 1);
	}
	cr_assert_eq(trace->counters->len, GPUS);
	for (int gpu = 0; gpu < GPUS; gpu++) {
		const struct counter *counter = g_ptr_array_index(trace->counters, gpu);
		const double each = gpu ? 10 : 1;
		const struct sample expected[] = {{0, 3 * each}, {800, 3 * each}, {1600, 4 * each}};
		cr_assert_str_eq(counter->name, "HBM bytes");
		cr_assert_eq(counter->gpu, gpu);
		cr_assert_eq(counter->samples->len, G_N_ELEMENTS(expected));
		for (guint i = 0; i < counter->samples->len; i++) {
			cr_assert_eq(g_array_index(counter->samples, struct sample, i).ns, expected[i].ns);
			cr_assert_eq(g_array_index(counter->samples, struct sample, i).value, expected[i].value);
		}
	}
	g_autoptr(GError) error = NULL;
	g_autoptr(scenario) again = scenario_from_ini(trace->description, "description", NULL, &error);
	cr_assert(again, "%s", error ? error->message : "");
}

static struct span span_at(stage_id id, nsec_t launch_ns, nsec_t start_ns, nsec_t end_ns)
{
	return (struct span){.id = id, .launch_ns = launch_ns, .launch_end_ns = launch_ns, .start_ns = start_ns, .end_ns = end_ns};
}

static void keep_step(struct record *r, const struct scenario *sc, const struct span *spans, guint n, nsec_t start_ns, nsec_t end_ns)
{
	GArray *array = g_array_new(FALSE, FALSE, sizeof(struct span));
	g_array_append_vals(array, spans, n);
	record_step(r, &(struct recorded_step){spans->id, start_ns, end_ns, array, g_new0(uint32_t, counts_of(sc)), g_new0(uint64_t, GPUS), NULL});
}

/* Step 1 (not kept) ends at 1000; step 2 was launched at 700, runs from 800 and ends at 2000; step 3 runs from 1900 and ends at 3100. */
Test(record, steps_that_overlap_keep_their_spans_and_their_distances)
{
	g_autoptr(scenario) sc = scenario_of();
	g_autoptr(record) r = record_new(sc, MICROBATCHES, 2);
	const struct span one[] = {span_at(0, 0, 10, 1000)}, two[] = {span_at(1, 700, 800, 1500), span_at(2, 710, 1500, 2000)};
	const struct span three[] = {span_at(3, 1600, 1900, 3000), span_at(4, 1610, 2000, 3100)};
	keep_step(r, sc, one, 1, 0, 1000);
	keep_step(r, sc, two, 2, 1000, 2000);
	keep_step(r, sc, three, 2, 2000, 3100);
	g_autoptr(GArray) exact = g_array_new(FALSE, FALSE, sizeof(struct span));
	const struct span better[] = {span_at(0, 0, 20, 990), span_at(2, 710, 1510, 1990), span_at(3, 1600, 1905, 2990)};
	g_array_append_vals(exact, better, G_N_ELEMENTS(better));
	record_exact(r, exact);
	g_autoptr(trace) trace = record_trace(r);
	const nsec_t ends[] = {2000 - 700, 3100 - 700}, starts[] = {800, 1510, 1905, 2000};
	cr_assert_eq(trace->step_end_ns->len, 2);
	cr_assert_eq(trace->spans->len, 4);
	for (guint i = 0; i < 2; i++)
		cr_assert_eq(g_array_index(trace->step_end_ns, nsec_t, i), ends[i]);
	for (guint i = 0; i < 4; i++) {
		const struct span *span = &g_array_index(trace->spans, struct span, i);
		cr_assert_eq(span->id, i);
		cr_assert_eq(span->step, i / 2);
		cr_assert_eq(span->start_ns, starts[i] - 700);
		cr_assert_geq(span->launch_ns, 0);
	}
}

Test(record, its_loads_are_read_back_with_micro_batches_that_count_through)
{
	g_autoptr(scenario) sc = scenario_of();
	g_autoptr(record) r = record_new(sc, MICROBATCHES, 2);
	g_autoptr(GString) csv = g_string_new(NULL);
	g_autoptr(GError) error = NULL;
	for (int s = 0; s < 3; s++)
		add_step(r, sc, s);
	record_loads(r, csv);
	g_autoptr(loads) loads = loads_parse(csv->str, csv->len, "loads.csv", &error);
	cr_assert(loads, "%s", error ? error->message : "");
	int experts = sc->network->layer[0].experts, layers = sc->network->layers;
	g_autofree uint32_t *tokens = g_new(uint32_t, GPUS * experts);
	for (int step = 1; step < 3; step++)
		for (int mb = 0; mb < MICROBATCHES; mb++)
			for (int layer = 0; layer < layers; layer++) {
				cr_assert(loads_layer(loads, (step - 1) * MICROBATCHES + mb, layer, experts, tokens, &error));
				for (int i = 0; i < GPUS * experts; i++)
					cr_assert_eq(tokens[i], (uint32_t)(1000 * step + (mb * layers + layer) * GPUS * experts + i));
			}
}

Test(record, where_experts_were_before_the_first_step_is_read_back)
{
	g_autoptr(scenario) sc = scenario_of();
	g_autoptr(record) r = record_new(sc, MICROBATCHES, 2);
	g_autoptr(GString) csv = g_string_new(NULL);
	g_autoptr(GError) error = NULL;
	cr_assert_not(record_places(r, csv), "of no step");
	for (int s = 0; s < 3; s++)
		add_step(r, sc, s);
	cr_assert(record_places(r, csv));
	g_autofree struct expert_place *places = places_of(csv->str, "places.csv", sc->network, &error);
	cr_assert(places, "%s", error ? error->message : "");
	for (size_t i = 0; i < experts_of(sc); i++) {
		cr_expect_eq(places[i].last, (int)i % GPUS);
		cr_expect_eq(places[i].pinned, i % 3 ? -1 : 1);
	}
}

Test(record, nothing_recorded_is_an_empty_trace)
{
	g_autoptr(scenario) sc = scenario_of();
	g_autoptr(record) r = record_new(sc, 1, 4);
	g_autoptr(trace) trace = record_trace(r);
	cr_assert_eq(trace->spans->len, 0);
	cr_assert_eq(trace->step_end_ns->len, 0);
}
