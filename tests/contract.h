/* The promises of model/backend.h as checks that run on any backend. A test file of a world fills a struct world and calls contract_check; each
 * promise fails by its own message. */
#pragma once

#include "model/backend.h"
#include "model/resource.h"
#include "model/routing.h"

#include <criterion/criterion.h>
#include <glib.h>

/* What a backend is made of here: three GPUs in two nodes, in round numbers. */
struct ground {
	struct machine machine;
	struct resources *resources;
	struct routing *routing;
};

struct world {
	const char *name;
	struct backend *(*make)(const struct ground *ground);
	/* When a stage that was waited for started and ended; launched stages that have not ended may end at this call. */
	void (*times)(struct backend *b, stage_id id, nsec_t *start_ns, nsec_t *end_ns);
	bool real_time; /* two runs differ in their times */
};

enum { CONTRACT_STAGES = 400, CONTRACT_GPUS = 3, CONTRACT_EXPERTS = 10, CONTRACT_TOP_K = 2, CONTRACT_TOKENS = 1001 };

static inline void ground_init(struct ground *ground)
{
	g_autoptr(GError) error = NULL;
	*ground = (struct ground){
	    .machine = {.gpus = CONTRACT_GPUS,
	                .gpus_per_node = 2,
	                .gpu_name = (char *)"contract",
	                .sms = 100,
	                .hbm_gib = 40,
	                .bf16_tflops = 100,
	                .hbm_gbps = 1000,
	                .gemm_efficiency = 1,
	                .hbm_efficiency = 1,
	                .copy_gemm_slowdown = 1,
	                .adam_share = 1,
	                .adam_pace = 1,
	                .h2d_gbps = 20,
	                .d2h_gbps = 20,
	                .duplex_gbps = 40,
	                .root_gbps = 30,
	                .gpus_per_root = 2,
	                .nvlink_gbps = 300,
	                .nvlink_efficiency = 1,
	                .nic_gbps = 50,
	                .cores = 16,
	                .dram_gib = 256,
	                .dram_gbps = 100,
	                .adam_gparams_per_s = 2,
	                .adam_threads = 16,
	                .adam_bytes_per_param = 28,
	                .ssd_read_gbps = 4,
	                .ssd_write_gbps = 2,
	                .ssd_mixed_gbps = 5,
	                .launch_us = 5,
	                .sync_us = 10,
	                .event_us = 1},
	    .routing = routing_new("zipf:1", 1, &error),
	};
	cr_assert(ground->routing, "%s", error ? error->message : "");
	ground->resources = resources_new(&ground->machine, ground->machine.adam_threads);
}

static inline void ground_clear(struct ground *ground)
{
	resources_free(ground->resources);
	routing_free(ground->routing);
}

/* A stage fit for its stream. */
static inline struct stage stage_draw(const struct machine *m, GRand *random, stage_id id, stream_id stream)
{
	static const struct {
		int kind, profile;
	} of_gpu[GPU_STREAMS] = {{STAGE_EXPERT, PROFILE_COMPUTE},
	                         {STAGE_UPLOAD, PROFILE_UP},
	                         {STAGE_DOWNLOAD, PROFILE_DOWN},
	                         {STAGE_ALL_TO_ALL, PROFILE_COLLECTIVE},
	                         {STAGE_ALL_TO_ALL, PROFILE_COLLECTIVE}};
	static const struct {
		int kind, profile;
	} of_node[NODE_STREAMS] = {{STAGE_ADAM, PROFILE_ADAM}, {STAGE_SSD_READ, PROFILE_READ}, {STAGE_SSD_WRITE, PROFILE_WRITE}};
	const int on_gpus = m->gpus * GPU_STREAMS;
	const bool gpu_stream = (int)stream < on_gpus;
	const int owner = gpu_stream ? (int)stream / GPU_STREAMS : ((int)stream - on_gpus) / NODE_STREAMS;
	const int which = gpu_stream ? (int)stream % GPU_STREAMS : ((int)stream - on_gpus) % NODE_STREAMS;
	return (struct stage){
	    .id = id,
	    .kind = (uint8_t)(gpu_stream ? of_gpu[which].kind : of_node[which].kind),
	    .expert = g_rand_int_range(random, 0, CONTRACT_EXPERTS),
	    .rank = gpu_stream ? owner : owner * m->gpus_per_node,
	    .stream = stream,
	    .profile = gpu_stream ? profile_of_gpu(owner, (enum gpu_profile)of_gpu[which].profile)
	                          : profile_of_node(m, owner, (enum node_profile)of_node[which].profile),
	    .tokens = (uint32_t)g_rand_int_range(random, 0, 1000),
	    .n_kernels = (uint32_t)g_rand_int_range(random, 0, 3),
	    .bytes = (uint64_t)g_rand_int_range(random, 0, 1 << 20),
	    .cost_ns = g_rand_int_range(random, 0, 5) == 0 ? 0 : g_rand_int_range(random, 1, 100000),
	};
}

static inline void preds_draw(GRand *random, stage_id before, struct stage *stage)
{
	for (int i = g_rand_int_range(random, 0, STAGE_PREDECESSORS + 1); i > 0 && before > 0; i--)
		stage->preds[stage->n_preds++] = (stage_id)g_rand_int_range(random, (int)MAX(0, (int)before - 30), (int)before);
}

static inline void launch(struct backend *b, GArray *stages, const struct stage *stage)
{
	g_autoptr(GError) error = NULL;
	cr_assert(backend_launch(b, stage, &error), "%s", error ? error->message : "");
	g_array_append_vals(stages, stage, 1);
}

/* Launches about `n` more stages at random: one stream's stage, or a collective of all GPUs. Members of a group only follow what came before the
 * whole group. */
static inline void launch_some(struct backend *b, const struct machine *m, GRand *random, int n, GArray *stages)
{
	for (int i = 0; i < n; i++) {
		const stage_id first = stages->len;
		const bool collective = g_rand_int_range(random, 0, 10) == 0;
		const stream_id stream = (stream_id)g_rand_int_range(random, 0, stream_count(m));
		for (int g = 0; g < (collective ? m->gpus : 1); g++) {
			struct stage stage = stage_draw(m, random, stages->len, collective ? stream_of_gpu(g, STREAM_COLLECTIVE) : stream);
			if (collective) {
				stage.group = first + 1;
				stage.group_size = (uint32_t)m->gpus;
			}
			preds_draw(random, first, &stage);
			launch(b, stages, &stage);
		}
	}
}

static inline void wait_for(struct backend *b, stage_id id)
{
	g_autoptr(GError) error = NULL;
	cr_assert(backend_wait(b, id, &error), "%s", error ? error->message : "");
}

/* Streams in launch order without overlap, predecessors first, groups together. All stages have been waited for. */
static inline void check_order(const struct world *world, const struct machine *m, struct backend *b, const GArray *stages)
{
	g_autofree nsec_t *start = g_new(nsec_t, stages->len), *end = g_new(nsec_t, stages->len), *stream_end = g_new0(nsec_t, stream_count(m));
	for (stage_id id = 0; id < stages->len; id++) {
		const struct stage *s = &g_array_index(stages, struct stage, id);
		world->times(b, id, &start[id], &end[id]);
		cr_assert(start[id] >= 0 && end[id] >= start[id], "%s: stage %u runs backwards", world->name, id);
		cr_assert(start[id] >= stream_end[s->stream], "%s: stage %u overlaps an earlier one of its stream", world->name, id);
		stream_end[s->stream] = end[id];
		for (int i = 0; i < s->n_preds; i++)
			cr_assert(start[id] >= end[s->preds[i]], "%s: stage %u starts before its predecessor %u ends", world->name, id, s->preds[i]);
		if (s->group > 0)
			cr_assert(start[id] == start[s->group - 1], "%s: stage %u starts apart from its group", world->name, id);
	}
}

static inline void stages_run_in_order(const struct world *world, const struct ground *ground, uint32_t seed)
{
	g_autoptr(GRand) random = g_rand_new_with_seed(seed);
	g_autoptr(GArray) stages = g_array_new(FALSE, FALSE, sizeof(struct stage));
	g_autoptr(backend) b = world->make(ground);
	launch_some(b, &ground->machine, random, CONTRACT_STAGES, stages);
	for (stage_id id = stages->len; id-- > 0;) /* the last first, so that most have ended when they are waited for */
		wait_for(b, id);
	wait_for(b, 0); /* again: an ended stage is no wait */
	check_order(world, &ground->machine, b, stages);
}

/* Waits between launches: what comes after a wait starts no earlier than the end of what was waited for. */
static inline void time_never_goes_back(const struct world *world, const struct ground *ground, uint32_t seed)
{
	g_autoptr(GRand) random = g_rand_new_with_seed(seed);
	g_autoptr(GArray) stages = g_array_new(FALSE, FALSE, sizeof(struct stage));
	g_autoptr(backend) b = world->make(ground);
	for (int round = 0; round < 20; round++) {
		const stage_id first = stages->len;
		nsec_t passed = 0, start, end;
		if (first > 0) {
			const stage_id waited = (stage_id)g_rand_int_range(random, 0, (int)first);
			wait_for(b, waited);
			world->times(b, waited, &start, &passed);
		}
		launch_some(b, &ground->machine, random, 20, stages);
		wait_for(b, first);
		world->times(b, first, &start, &end);
		cr_assert(start >= passed, "%s: stage %u starts before a wait that preceded it was over", world->name, first);
	}
	for (stage_id id = 0; id < stages->len; id++)
		wait_for(b, id);
	check_order(world, &ground->machine, b, stages);
}

/* The stages that stand for a gate: counts gathered by all GPUs. Returns the last one's id. */
static inline stage_id counts_launch(struct backend *b, const struct machine *m, GArray *stages)
{
	const stage_id first = stages->len;
	for (int g = 0; g < m->gpus; g++) {
		const struct stage stage = {.id = stages->len,
		                            .kind = STAGE_COUNTS,
		                            .expert = -1,
		                            .rank = g,
		                            .stream = stream_of_gpu(g, STREAM_COLLECTIVE),
		                            .group = first + 1,
		                            .group_size = (uint32_t)m->gpus,
		                            .profile = profile_of_gpu(g, PROFILE_COLLECTIVE),
		                            .n_kernels = 1,
		                            .cost_ns = 20000};
		launch(b, stages, &stage);
	}
	return stages->len - 1;
}

/* A gate's counts add up, and two backends of one world give the same ones and, in virtual time, the same times. */
static inline void gates_answer_alike(const struct world *world, const struct ground *ground)
{
	uint32_t tokens[2][CONTRACT_GPUS * CONTRACT_EXPERTS];
	nsec_t start[2], end[2];
	struct backend *const side[2] = {world->make(ground), world->make(ground)};
	GArray *const stages[2] = {g_array_new(FALSE, FALSE, sizeof(struct stage)), g_array_new(FALSE, FALSE, sizeof(struct stage))};
	for (int layer = 0; layer < 10; layer++) {
		for (int i = 0; i < 2; i++) {
			g_autoptr(GError) error = NULL;
			const struct gate gate = {
			    counts_launch(side[i], &ground->machine, stages[i]), 1, 2, layer, CONTRACT_EXPERTS, CONTRACT_TOP_K, CONTRACT_TOKENS};
			cr_assert(backend_loads(side[i], &gate, tokens[i], &error), "%s", error ? error->message : "");
			world->times(side[i], gate.counts, &start[i], &end[i]);
		}
		cr_assert_arr_eq(tokens[0], tokens[1], sizeof tokens[0], "%s: two runs route differently", world->name);
		cr_assert(world->real_time || (start[0] == start[1] && end[0] == end[1]), "%s: two runs differ in time", world->name);
		for (int g = 0; g < CONTRACT_GPUS; g++) {
			uint64_t sum = 0;
			for (int e = 0; e < CONTRACT_EXPERTS; e++)
				sum += tokens[0][g * CONTRACT_EXPERTS + e];
			cr_assert(sum == CONTRACT_TOKENS * CONTRACT_TOP_K, "%s: loads of gpu %d do not add up", world->name, g);
		}
	}
	for (int i = 0; i < 2; i++) {
		backend_free(side[i]);
		g_array_unref(stages[i]);
	}
}

/* Freed at any moment without a leak: with stages under way, and a group that is not complete. */
static inline void is_freed_at_any_moment(const struct world *world, const struct ground *ground)
{
	g_autoptr(GRand) random = g_rand_new_with_seed(1);
	for (int n = 0; n < 40; n += 13) {
		g_autoptr(GArray) stages = g_array_new(FALSE, FALSE, sizeof(struct stage));
		g_autoptr(backend) b = world->make(ground);
		launch_some(b, &ground->machine, random, n, stages);
		struct stage member = stage_draw(&ground->machine, random, stages->len, stream_of_gpu(0, STREAM_COLLECTIVE));
		member.group = stages->len + 1;
		member.group_size = 2;
		launch(b, stages, &member);
	}
	backend_free(NULL);
}

/* All of it. */
static inline void contract_check(const struct world *world)
{
	struct ground ground;
	ground_init(&ground);
	for (uint32_t seed = 0; seed < 20; seed++) {
		stages_run_in_order(world, &ground, seed);
		time_never_goes_back(world, &ground, seed);
	}
	gates_answer_alike(world, &ground);
	is_freed_at_any_moment(world, &ground);
	ground_clear(&ground);
}
