/* Runs made by a rule: what their all-reduces take longer than alone comes back, by rows, and what tells something else is left out. */
#include "exec/readings.h"
#include "exec/samples.h"

#include <criterion/criterion.h>

enum { LAYERS = 3, PERIOD_NS = 1000000 };

static void add(struct trace *t, int kind, enum gpu_stream stream, int rank, int layer, nsec_t start, nsec_t ns, uint64_t bytes)
{
	struct span s = {.id = t->spans->len, .kind = (uint8_t)kind, .pass = PASS_BACKWARD, .rank = rank, .layer = (uint16_t)layer, .bytes = bytes};
	s.stream = stream_of_gpu(rank, stream);
	s.start_ns = start;
	s.end_ns = start + ns;
	g_array_append_val(t->spans, s);
}

/* 1 us a thousand bytes. */
static double alone_us(uint64_t bytes)
{
	return (double)bytes / 1e3;
}

/* 10 us and one more for each million elements of the layer below. */
static double longer_us(double elements)
{
	return 10 + elements / 1e6;
}

/* Of a backward, from the last layer to the first: under each all-reduce the mixer below it, under the first layer's the embedding, which keeps it
 * waiting as long as it takes; under the embedding's nothing. Layers may differ in what they reduce. */
static struct trace *made(double elements)
{
	struct trace *t = trace_new();
	t->gpus = t->gpus_per_node = 2;
	nsec_t at = 0;
	for (int layer = LAYERS - 1; layer >= 0; layer--, at += PERIOD_NS)
		for (int rank = 0; rank < 2; rank++) {
			uint64_t bytes = 20000 + 30000 * (uint64_t)layer;
			double us = alone_us(bytes) + (layer ? longer_us(elements) : 500);
			add(t, STAGE_ALL_REDUCE, STREAM_COLLECTIVE, rank, layer, at, (nsec_t)(us * 1e3), bytes);
			add(t, layer ? STAGE_MIXER : STAGE_EMBED, STREAM_COMPUTE, rank, MAX(layer - 1, 0), at, 500000, 0);
		}
	for (int rank = 0; rank < 2; rank++)
		add(t, STAGE_ALL_REDUCE, STREAM_COLLECTIVE, rank, 0, at, 777777, 300000);
	nsec_t end = at + PERIOD_NS;
	g_array_append_val(t->step_end_ns, end);
	return t;
}

static struct scenario *of_sequences(int sequences)
{
	g_autoptr(GError) error = NULL;
	const struct scenario_options o = {.model = "gpt-moe-s", .machine = "h200-x2", .policy = "static", .experts = 8, .sequences = sequences};
	struct scenario *s = scenario_new(&o, &error);
	cr_assert_not_null(s, "%s", error ? error->message : "");
	return s;
}

static void take(struct readings *r, int serves, int sequences, const struct measured *tables)
{
	g_autoptr(GError) error = NULL;
	struct scenario *sc = of_sequences(sequences);
	double elements = (double)sequences * sc->seq_len * sc->network->d_model;
	struct probe_run run = {{.serves = serves, .gpus = 2, .sequences = sequences, .microbatches = 1}, sc, made(elements)};
	cr_assert(readings_take(r, &run, tables, sc->machine, &error), "%s", error ? error->message : "");
	probe_run_clear(&run);
}

static struct measured *proportional(void)
{
	struct measured *m = measured_new();
	double us[] = {alone_us(1000), alone_us(1000000)};
	measured_add(&m->table[STAGE_ALL_REDUCE][PASS_FORWARD], 1e3, &us[0], 1);
	measured_add(&m->table[STAGE_ALL_REDUCE][PASS_FORWARD], 1e6, &us[1], 1);
	return m;
}

Test(readings, an_all_reduce_takes_longer_by_the_rows_of_the_backward_it_runs_under)
{
	static const int sequences[] = {2, 8, 32};
	g_autoptr(measured) tables = proportional();
	const struct measured_table *t = &tables->table[MEASURED_UNDER][PASS_FORWARD];
	struct readings r;
	readings_init(&r);
	for (size_t i = 0; i < G_N_ELEMENTS(sequences); i++)
		take(&r, SERVES_EXCHANGES, sequences[i], tables);
	samples_to_tables(r.samples, tables);
	cr_assert_eq(t->sizes.n, G_N_ELEMENTS(sequences));
	for (int i = 0; i < t->sizes.n; i++) {
		cr_assert_eq(t->sizes.v[i], sequences[i] * 1024 * 768);
		cr_assert_float_eq(t->median_us.v[i], longer_us(t->sizes.v[i]), 0.002); /* ends are whole nanoseconds */
	}
	cr_assert_eq(tables->table[STAGE_ALL_REDUCE][PASS_FORWARD].sizes.n, 2, "those alone are measured elsewhere");
	readings_clear(&r);
}

Test(readings, all_reduces_of_other_runs_or_without_any_alone_tell_nothing)
{
	g_autoptr(measured) tables = proportional(), none = measured_new();
	struct readings r;
	readings_init(&r);
	take(&r, SERVES_SUMS, 8, tables);
	take(&r, SERVES_EXCHANGES, 8, none);
	for (guint i = 0; i < r.samples->len; i++)
		cr_assert_neq(g_array_index(r.samples, struct timing, i).kind, MEASURED_UNDER);
	readings_clear(&r);
}
