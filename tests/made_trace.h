/* A trace made by a small linear generator: every stream is in order, stages of all kinds, launches before starts. For tests and benchmarks of trace
 * files. */
#pragma once

#include "traces/trace.h"

static inline uint32_t made_random(uint64_t *state, uint32_t below)
{
	*state = *state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
	return (uint32_t)((*state >> 33) % below);
}

static const uint8_t made_kinds[STREAM_KINDS][3] = {
    {STAGE_EXPERT, STAGE_GATE, STAGE_MIXER},
    {STAGE_UPLOAD, STAGE_UPLOAD, STAGE_UPLOAD},
    {STAGE_DOWNLOAD, STAGE_DOWNLOAD, STAGE_DOWNLOAD},
    {STAGE_ALL_TO_ALL, STAGE_COUNTS, STAGE_ALL_REDUCE},
    {STAGE_ADAM, STAGE_ACCUMULATE, STAGE_ADAM},
    {STAGE_SSD_READ, STAGE_SSD_READ, STAGE_SSD_READ},
    {STAGE_SSD_WRITE, STAGE_SSD_WRITE, STAGE_SSD_WRITE},
};

static inline struct trace *made_trace(int gpus, int gpus_per_node, uint32_t n_spans, uint64_t seed)
{
	struct trace *trace = trace_new();
	g_autofree nsec_t *free_ns = NULL;
	nsec_t host_ns = 0, end;

	trace->gpus = gpus;
	trace->gpus_per_node = gpus_per_node;
	trace->gpu_name = g_strdup("Made \"GPU\"");
	trace->hbm_bytes = UINT64_C(42949672960);
	trace->sms = 108;
	trace->description = g_strdup("[network]\nlayers = 2\n# caf\xc3\xa9 \\ \"quoted\"\ttab\n");
	free_ns = g_new0(nsec_t, trace_streams(trace));
	for (uint32_t i = 0; i < n_spans; i++) {
		struct span s = {.id = i + 7, .expert = -1};
		int gpu, kind;

		s.stream = made_random(&seed, (uint32_t)trace_streams(trace));
		kind = trace_stream_kind(trace, s.stream);
		gpu = trace_stream_gpu(trace, s.stream);
		s.rank = gpu >= 0 ? gpu : MIN(trace_stream_node(trace, s.stream) * gpus_per_node, gpus - 1);
		s.kind = made_kinds[kind][made_random(&seed, 3)];
		s.pass = (uint8_t)made_random(&seed, N_STAGE_PASSES);
		s.step = (uint16_t)(i >= n_spans / 2);
		s.layer = (uint16_t)made_random(&seed, 24);
		s.microbatch = (uint16_t)made_random(&seed, 2);
		s.expert = kind == STREAM_COMPUTE ? (int32_t)made_random(&seed, 64) : -1;
		s.tokens = made_random(&seed, 4096);
		s.bytes = kind == STREAM_COMPUTE ? 0 : UINT64_C(1000) * made_random(&seed, 1000000);
		s.n_preds = (uint8_t)MIN(made_random(&seed, STAGE_PREDECESSORS + 1), i);
		for (int k = 0; k < s.n_preds; k++)
			s.preds[k] = 7 + made_random(&seed, i);
		s.launch_ns = host_ns;
		host_ns += 1 + made_random(&seed, 9000);
		s.launch_end_ns = host_ns;
		if (made_random(&seed, 16) == 0)
			s.launch_ns = s.launch_end_ns = -1;
		s.start_ns = MAX(host_ns, free_ns[s.stream]) + made_random(&seed, 5000);
		s.end_ns = free_ns[s.stream] = s.start_ns + made_random(&seed, 200000);
		g_array_append_val(trace->spans, s);
	}
	end = trace_end_ns(trace);
	for (int i = 1; i <= 2; i++) {
		nsec_t step_end = end / 2 * i + (i == 2 ? end % 2 : 0);

		g_array_append_val(trace->step_end_ns, step_end);
	}
	return trace;
}
