/* Names of stages and streams. */
#include "model/stage.h"

#include <criterion/criterion.h>

Test(stage, every_kind_and_pass_has_a_name_of_its_own_that_parses_back)
{
	for (int i = 0; i < N_STAGE_KINDS; i++)
		cr_assert_eq(stage_kind_parse(stage_kind_name(i)), i, "kind %d", i);
	for (int i = 0; i < N_STAGE_PASSES; i++)
		cr_assert_eq(stage_pass_parse(stage_pass_name(i)), i, "pass %d", i);
}

Test(stage, unknown_names_parse_to_minus_one)
{
	cr_assert_eq(stage_kind_parse("uploads"), -1);
	cr_assert_eq(stage_kind_parse(""), -1);
	cr_assert_eq(stage_pass_parse("sideways"), -1);
}

Test(stage, streams_are_dense_gpus_first_then_nodes)
{
	const struct machine m = {.gpus = 6, .gpus_per_node = 4}; /* two nodes, the second half full */
	stream_id s = 0;

	cr_assert_eq(stream_count(&m), 6 * 5 + 2 * 3);
	for (int gpu = 0; gpu < 6; gpu++)
		for (int i = 0; i < GPU_STREAMS; i++)
			cr_assert_eq(stream_of_gpu(gpu, i), s++);
	for (int node = 0; node < 2; node++)
		for (int i = 0; i < NODE_STREAMS; i++)
			cr_assert_eq(stream_of_node(&m, node, i), s++);
}

static void named(const struct machine *m, stream_id s, const char *expected)
{
	g_autofree char *name = stream_name(m, s);

	cr_assert_str_eq(name, expected);
}

Test(stage, stream_names_say_whose_and_what)
{
	const struct machine m = {.gpus = 6, .gpus_per_node = 4};

	named(&m, 0, "gpu0 compute");
	named(&m, stream_of_gpu(5, STREAM_COLLECTIVE), "gpu5 collective");
	named(&m, stream_of_node(&m, 0, STREAM_OPTIMIZER), "node0 optimizer");
	named(&m, stream_of_node(&m, 1, STREAM_SSD_WRITE), "node1 ssd write");
}
