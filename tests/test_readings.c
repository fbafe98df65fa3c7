/* Readings of a calibration's runs. */
#include "exec/readings.h"
#include "exec/samples.h"

#include <criterion/criterion.h>

static void add(struct trace *t, int kind, int pass, uint64_t bytes, nsec_t ns)
{
	struct span s = {.id = t->spans->len, .kind = (uint8_t)kind, .pass = (uint8_t)pass, .stream = GPU_STREAMS + STREAM_OPTIMIZER, .bytes = bytes};
	s.end_ns = ns;
	g_array_append_val(t->spans, s);
}

/* A run whose memory is half as fast as usual: what its CPU does would have taken half the time. */
Test(readings, work_on_the_hosts_memory_is_told_for_the_usual_pace)
{
	static const struct scenario_options o = {.model = "tiny-moe", .machine = "host", .policy = "es-moe", .gpus = 1};
	const double shares[] = {0, 1, 0.5}, times[] = {1, 1, 0.5}; /* 0: unknown */
	for (size_t i = 0; i < G_N_ELEMENTS(shares); i++) {
		g_autoptr(scenario) sc = scenario_new(&o, NULL);
		g_autoptr(trace) t = trace_new();
		g_autoptr(GError) error = NULL;
		struct probe_run run = {.probe = {.serves = SERVES_HOST | SERVES_ADAM | SERVES_SUMS, .gpus = 1}, .scenario = sc, .trace = t};
		struct measured *tables = measured_new();
		struct readings r;
		t->gpus = t->gpus_per_node = 1;
		add(t, STAGE_ADAM, PASS_UPDATE, (uint64_t)(1000 * sc->machine->adam_bytes_per_param), 8000);
		add(t, STAGE_ACCUMULATE, PASS_BACKWARD, 10000, 4000);
		run.adam_share = shares[i];
		readings_init(&r);
		cr_assert(readings_take(&r, &run, tables, sc->machine, &error), "%s", error ? error->message : "");
		cr_assert_eq(r.samples->len, 2);
		cr_assert_float_eq(g_array_index(r.samples, struct timing, 0).us, 8 * times[i], 1e-9);
		cr_assert_float_eq(g_array_index(r.samples, struct timing, 0).size, 1000, 1e-9);
		cr_assert_float_eq(g_array_index(r.samples, struct timing, 1).us, 4 * times[i], 1e-9);
		readings_clear(&r);
		measured_free(tables);
	}
}
