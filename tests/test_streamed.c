/* Exchanges made by the law give its share back; what waited, or had nothing beside it, tells nothing. */
#include "exec/streamed.h"
#include "model/stage.h"

#include <criterion/criterion.h>

enum { LAYERS = 5, PERIOD_NS = 1000000 };

static void add(struct trace *t, int kind, int pass, int rank, int layer, nsec_t start, nsec_t ns, uint64_t bytes)
{
	struct span s = {.id = t->spans->len, .kind = (uint8_t)kind, .pass = (uint8_t)pass, .rank = rank, .layer = (uint16_t)layer, .bytes = bytes};
	s.stream = (stream_id)rank * GPU_STREAMS + (kind == STAGE_ALL_TO_ALL ? STREAM_COLLECTIVE : STREAM_COMPUTE);
	s.start_ns = start;
	s.end_ns = start + ns;
	g_array_append_val(t->spans, s);
}

/* Of two GPUs, the second 10 us early: an exchange of `alone` ns in each recomputation, beside a combination of `beside` ns that takes `share` of its
 * speed, and one in each backward, whose kernels are matrix products. */
static struct trace *made(double share, nsec_t alone, nsec_t beside)
{
	struct trace *t = trace_new();
	t->gpus = t->gpus_per_node = 2;
	const nsec_t longer = alone + (nsec_t)(share * (double)beside);
	for (int layer = 0; layer < LAYERS; layer++) {
		nsec_t at = layer * PERIOD_NS;
		for (int rank = 0; rank < 2; rank++)
			add(t, STAGE_COMBINE, PASS_BACKWARD, rank, layer, at, beside, 0);
		for (int rank = 0; rank < 2; rank++)
			add(t, STAGE_ALL_TO_ALL, PASS_RECOMPUTE, rank, layer, at - 10000 * rank, longer + 10000 * rank, 1000);
		at += PERIOD_NS / 2;
		for (int rank = 0; rank < 2; rank++)
			add(t, STAGE_EXPERT, PASS_BACKWARD, rank, layer, at, alone, 0);
		for (int rank = 0; rank < 2; rank++)
			add(t, STAGE_ALL_TO_ALL, PASS_BACKWARD, rank, layer, at, alone, 1000);
	}
	return t;
}

static double share_of(const struct trace *t)
{
	g_autofree double *cover = streamed_cover(t);
	g_autoptr(GArray) all = g_array_new(FALSE, FALSE, sizeof(struct streamed));
	streamed_add(t, cover, all);
	return streamed_share(all);
}

Test(streamed, the_law_gives_its_share_back)
{
	for (double share = 0; share < 0.8; share += 0.2) {
		g_autoptr(trace) t = made(share, 200000, 60000);
		cr_expect_float_eq(share_of(t), share, 1e-4, "%g: %g", share, share_of(t));
	}
}

Test(streamed, cover_is_the_share_of_the_time)
{
	g_autoptr(trace) t = made(0.5, 200000, 60000);
	g_autofree double *cover = streamed_cover(t);
	cr_expect_float_eq(cover[2], 60.0 / 230, 1e-9);
	cr_expect_float_eq(cover[3], 60.0 / 240, 1e-9, "from when it came");
	cr_expect(!streamed_alone(cover[2]) && streamed_alone(cover[6]) && cover[0] == 0);
}

Test(streamed, who_waited_or_was_alone_tells_nothing)
{
	g_autoptr(trace) late = made(0.5, 200000, 60000), alone = made(0, 200000, 0);
	for (guint i = 0; i < late->spans->len; i++)
		g_array_index(late->spans, struct span, i).launch_end_ns = G_MAXINT64;
	cr_expect_eq(share_of(late), 0);
	cr_expect_eq(share_of(alone), 0);
}
