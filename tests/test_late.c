/* Exchanges made by a rule: how late they are comes back, by tokens, and what was not late tells what one takes alone. */
#include "exec/late.h"
#include "exec/samples.h"
#include "exec/streamed.h"
#include "model/measured.h"

#include <criterion/criterion.h>

enum { LAYERS = 4, PERIOD_NS = 1000000, ALONE_NS = 180000 };

static stage_id add(struct trace *t, int kind, int pass, int layer, int rank, nsec_t launch, nsec_t start, nsec_t end, uint32_t tokens,
                    stage_id before)
{
	struct span s = {.id = t->spans->len, .kind = (uint8_t)kind, .pass = (uint8_t)pass, .rank = rank, .layer = (uint16_t)layer, .tokens = tokens};
	s.stream = stream_of_gpu(rank, kind == STAGE_ALL_TO_ALL ? STREAM_COLLECTIVE : STREAM_COMPUTE);
	s.launch_ns = launch;
	s.launch_end_ns = launch + 60000;
	s.start_ns = start;
	s.end_ns = end;
	s.n_preds = 1;
	s.preds[0] = before;
	g_array_append_val(t->spans, s);
	return s.id;
}

/* 10 us and one more for each thousand tokens. */
static nsec_t late_ns(uint32_t tokens)
{
	return 10000 + tokens;
}

/* Of a step of two GPUs: in each layer rows leave, as late as the rule says, 20 us after their launch began, and come back, launched while the
 * experts still compute, at the end of whose launch they go out; and rows that were launched long before. */
static struct trace *made(uint32_t tokens, nsec_t alone)
{
	struct trace *t = trace_new();
	t->gpus = t->gpus_per_node = 2;
	for (int layer = 0; layer < LAYERS; layer++)
		for (int rank = 0; rank < 2; rank++) {
			const nsec_t at = layer * PERIOD_NS;
			stage_id permute = add(t, STAGE_PERMUTE, PASS_FORWARD, layer, rank, at - 90000, at, at + 20000, tokens, STAGE_NONE);
			stage_id there = add(t, STAGE_ALL_TO_ALL, PASS_FORWARD, layer, rank, at + 50000, at + 70000,
			                     at + 50000 + late_ns(tokens) + ALONE_NS, tokens, permute);
			stage_id expert = add(t, STAGE_EXPERT, PASS_FORWARD, layer, rank, at + 100000, at + 400000, at + 500000, tokens, there);
			stage_id back = add(t, STAGE_ALL_TO_ALL, PASS_FORWARD, layer, rank, at + 450000, at + 500000, at + 900000, tokens, expert);
			if (alone)
				add(t, STAGE_ALL_TO_ALL, PASS_BACKWARD, layer, rank, at - 500000, at + 900000, at + 900000 + alone, tokens, back);
		}
	nsec_t end = LAYERS * PERIOD_NS;
	g_array_append_val(t->step_end_ns, end);
	return t;
}

static void take(uint32_t tokens, nsec_t alone, GArray *samples)
{
	g_autoptr(trace) t = made(tokens, alone);
	g_autofree double *cover = streamed_cover(t);
	late_add(t, cover, tokens, samples);
}

Test(late, tokens_decide_how_late_an_exchange_is)
{
	static const uint32_t tokens[] = {2048, 8192, 32768};
	g_autoptr(GArray) samples = g_array_new(FALSE, FALSE, sizeof(struct timing));
	g_autoptr(measured) m = measured_new();
	const struct measured_table *t = &m->table[MEASURED_LATE][PASS_FORWARD];
	for (size_t i = 0; i < G_N_ELEMENTS(tokens); i++)
		take(tokens[i], ALONE_NS, samples);
	cr_assert_eq(samples->len, G_N_ELEMENTS(tokens) * LAYERS * 2, "those that came back were not ready, the others did not wait");
	samples_to_tables(samples, m);
	cr_assert_eq(t->sizes.n, G_N_ELEMENTS(tokens));
	for (int i = 0; i < t->sizes.n; i++) {
		cr_expect_eq(t->sizes.v[i], tokens[i]);
		cr_expect_float_eq(t->median_us.v[i], (double)late_ns(tokens[i]) / 1e3, 1e-9);
		cr_expect_eq(t->samples.v[i], 1, "one step");
	}
}

Test(late, a_run_without_an_exchange_alone_tells_nothing)
{
	g_autoptr(GArray) samples = g_array_new(FALSE, FALSE, sizeof(struct timing));
	take(8192, 0, samples);
	cr_expect_eq(samples->len, 0);
}
