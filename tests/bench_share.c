/* Stages a second of CPU time through launch and wait: chains of upload, compute, download and Adam, as ES-MoE's backward pass makes them, with a
 * collective and a gate's wait every 64 experts. DRAM is crowded whenever Adam runs with more than four copies of its node. */
#include "by_hand.h"
#include "sim/sim.h"

#include <time.h>

static stage_id last_on[5 * 4096];

static void launch(struct backend *b, struct stage stage)
{
	GError *error = NULL;
	stage.id = b->n_launched;
	if (!backend_launch(b, &stage, &error))
		g_error("%s", error->message);
}

static void expert(struct backend *b, const struct machine *m, int gpu, int i)
{
	stage_id up = b->n_launched;
	struct stage stage = {.rank = gpu,
	                      .n_kernels = 1,
	                      .kind = STAGE_UPLOAD,
	                      .stream = stream_of_gpu(gpu, STREAM_UPLOAD),
	                      .cost_ns = 90000 + i % 7 * 1000,
	                      .profile = profile_of_gpu(gpu, PROFILE_UP)};
	if (last_on[gpu])
		stage.preds[stage.n_preds++] = last_on[gpu];
	launch(b, stage);
	struct stage compute = {.rank = gpu,
	                        .n_kernels = 4,
	                        .kind = STAGE_EXPERT,
	                        .stream = stream_of_gpu(gpu, STREAM_COMPUTE),
	                        .cost_ns = 100000 + i % 5 * 3000,
	                        .profile = profile_of_gpu(gpu, PROFILE_COMPUTE),
	                        .n_preds = 1,
	                        .preds = {up}};
	launch(b, compute);
	last_on[gpu] = up + 1;
	struct stage down = {.rank = gpu,
	                     .n_kernels = 1,
	                     .kind = STAGE_DOWNLOAD,
	                     .stream = stream_of_gpu(gpu, STREAM_DOWNLOAD),
	                     .cost_ns = 90000,
	                     .profile = profile_of_gpu(gpu, PROFILE_DOWN),
	                     .n_preds = 1,
	                     .preds = {up + 1}};
	launch(b, down);
	int node = gpu / m->gpus_per_node;
	struct stage adam = {.rank = gpu,
	                     .kind = STAGE_ADAM,
	                     .stream = stream_of_node(m, node, STREAM_OPTIMIZER),
	                     .cost_ns = 25000,
	                     .profile = profile_of_node(m, node, PROFILE_ADAM),
	                     .n_preds = 1,
	                     .preds = {up + 2}};
	launch(b, adam);
}

static void layer(struct backend *b, const struct machine *m, int experts, uint32_t group)
{
	GError *error = NULL;
	for (int gpu = 0; gpu < m->gpus; gpu++) {
		struct stage all = {.rank = gpu,
		                    .n_kernels = 1,
		                    .kind = STAGE_ALL_TO_ALL,
		                    .stream = stream_of_gpu(gpu, STREAM_COLLECTIVE),
		                    .cost_ns = 50000,
		                    .profile = profile_of_gpu(gpu, PROFILE_COLLECTIVE),
		                    .group = group,
		                    .group_size = (uint32_t)m->gpus};
		if (last_on[gpu])
			all.preds[all.n_preds++] = last_on[gpu];
		launch(b, all);
	}
	if (!backend_wait(b, b->n_launched - 1, &error))
		g_error("%s", error->message);
	for (int i = 0; i < experts; i++)
		expert(b, m, i % m->gpus, i);
}

/* Of this process alone: others on the machine do not count. */
static double cpu_s(void)
{
	struct timespec t;
	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void bench(int gpus, int experts, int layers, double dram_gbps, bool measured)
{
	static double threads[] = {0, 32}, adam[] = {0, 100}, slow[] = {0, 70}, copy[] = {25, 18}, two[] = {22, 15};
	struct machine m = machine_by_hand(gpus, 4, 40, dram_gbps);
	GError *error = NULL;
	m.launch_us = 4;
	m.event_us = 1;
	m.sync_us = 5;
	if (measured)
		m.table = (struct contention_table){.threads = {threads, 2},
		                                    .adam = {adam, 2},
		                                    .adam_u = {slow, 2},
		                                    .adam_d = {slow, 2},
		                                    .adam_ud = {slow, 2},
		                                    .u_u = {copy, 2},
		                                    .d_d = {copy, 2},
		                                    .u_ud = {two, 2},
		                                    .d_ud = {two, 2}};
	m.contention = measured ? CONTENTION_MEASURED : CONTENTION_MAX_MIN;
	struct resources *r = resources_by_hand(&m, 32, 100);
	double begin_s = cpu_s();
	struct backend *b = sim_new(&m, r, NULL, &(struct sim_options){0});
	memset(last_on, 0, sizeof last_on);
	for (int l = 0; l < layers; l++)
		layer(b, &m, experts, (uint32_t)l + 1);
	stage_id n = b->n_launched;
	for (stage_id id = n - 1; id > n - 4 * (stage_id)MIN(experts, gpus); id--)
		if (!backend_wait(b, id, &error))
			g_error("%s", error->message);
	double s = cpu_s() - begin_s;
	g_print("%5d GPUs, %5d experts, %4d layers, DRAM %-8s: %8u stages, %6.1f ns each, %.2f million/s\n", gpus, experts, layers,
	        measured          ? "measured"
	        : dram_gbps > 300 ? "free"
	                          : "crowded",
	        n, s / n * 1e9, n / s / 1e6);
	backend_free(b);
	resources_by_hand_free(r);
}

int main(void)
{
	for (int kind = 0; kind < 3; kind++) {
		double dram_gbps = kind == 0 ? 400 : 180;
		bench(4, 64, 2400, dram_gbps, kind == 2);
		bench(64, 1024, 150, dram_gbps, kind == 2);
		bench(2048, 2048, 72, dram_gbps, kind == 2);
	}
	return 0;
}
