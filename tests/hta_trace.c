/* Writes a trace set for the test with Holistic Trace Analysis: PREFIX.*, two ranks, two steps. On each GPU collectives and copies run now beside
 * compute, now alone; no two marks fall together, because HTA's interval arithmetic leaves the order of equal times to chance. */
#include "traces/kineto.h"

#include <stdio.h>
#include <stdlib.h>

enum { GPUS = 2, ROUNDS = 40, LAUNCH_NS = 4003 };

struct lane {
	int kind;
	stream_id stream; /* of GPU 0 */
	nsec_t start_ns, length_ns, every_ns;
};

static const struct lane lanes[] = {
    {STAGE_EXPERT, STREAM_COMPUTE, 101003, 60007, 100000},
    {STAGE_UPLOAD, STREAM_UPLOAD, 130011, 30013, 100000},
    {STAGE_DOWNLOAD, STREAM_DOWNLOAD, 190017, 5019, 100000},
    {STAGE_ALL_TO_ALL, STREAM_COLLECTIVE, 150023, 20029, 100000},
    {STAGE_ADAM, GPUS *GPU_STREAMS + STREAM_OPTIMIZER, 110031, 45037, 100000},
};

static void add_round(struct trace *trace, int round, int gpu, nsec_t *launcher_ns)
{
	for (size_t i = 0; i < G_N_ELEMENTS(lanes); i++) {
		const struct lane *lane = &lanes[i];
		struct span s = {
		    .id = trace->spans->len, .kind = (uint8_t)lane->kind, .pass = PASS_FORWARD, .layer = (uint16_t)round, .expert = -1, .rank = gpu};

		if (lane->kind == STAGE_ADAM && gpu > 0)
			continue;
		s.step = round >= ROUNDS / 2;
		s.pass = round % 2 ? PASS_BACKWARD : PASS_FORWARD;
		s.stream = lane->stream + (lane->kind == STAGE_ADAM ? 0 : (stream_id)gpu * GPU_STREAMS);
		/* Rank 1 computes longer, and the lengths drift from round to round. */
		s.start_ns = lane->start_ns + round * lane->every_ns;
		s.end_ns = s.start_ns + lane->length_ns + round * 37 + gpu * 7001 * (lane->kind == STAGE_EXPERT);
		s.bytes = lane->kind == STAGE_EXPERT ? 0 : 1000000;
		s.launch_ns = *launcher_ns;
		s.launch_end_ns = *launcher_ns = *launcher_ns + LAUNCH_NS;
		g_array_append_val(trace->spans, s);
	}
}

int main(int argc, char **argv)
{
	g_autoptr(trace) trace = trace_new();
	g_autoptr(GError) error = NULL;
	nsec_t launcher_ns[GPUS] = {0}, step_end_ns;

	if (argc != 2)
		return EXIT_FAILURE;
	trace->gpus = trace->gpus_per_node = GPUS;
	for (int round = 0; round < ROUNDS; round++) {
		for (int gpu = 0; gpu < GPUS; gpu++)
			add_round(trace, round, gpu, &launcher_ns[gpu]);
		if (round + 1 == ROUNDS / 2 || round + 1 == ROUNDS) {
			step_end_ns = (round + 2) * INT64_C(100000);
			g_array_append_val(trace->step_end_ns, step_end_ns);
		}
	}
	if (!kineto_write(trace, argv[1], false, &error)) {
		fprintf(stderr, "%s\n", error->message);
		return EXIT_FAILURE;
	}
	return EXIT_SUCCESS;
}
