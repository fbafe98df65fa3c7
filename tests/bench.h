/* Small training runs for tests of the engine: a policy's stages issued one at a time, in launch order, on streams of the test's own. */
#pragma once

#include "exec/exec.h"
#include "model/schedule.h"

#include <criterion/criterion.h>
#include <glib/gstdio.h>
#include <math.h>
#include <string.h>

#define SETS(...) ((const char *const[]){__VA_ARGS__, NULL})
enum { STREAMS_MOST = 4 * GPU_STREAMS, LAYERS_MOST = 4 };

/* A run whose stages are issued one at a time, members of a collective together. */
struct bench {
	struct backend base;
	struct scenario *sc;
	struct schedule *schedule;
	struct device *device[4];
	struct device_group *group;
	struct device_stream *stream[STREAMS_MOST];
	struct device_event *event[STREAMS_MOST];
	struct data *data;
	struct engine *engine;
	char *folder;
	uint32_t waiting, loads[LAYERS_MOST][4 * 64];
};

static inline bool bench_launch(struct backend *b, const struct stage *st, GError **error)
{
	struct bench *x = (struct bench *)b;
	bool on_gpu = st->stream < (stream_id)x->sc->machine->gpus * GPU_STREAMS;
	struct store_places at = {0};
	uint64_t pending;
	if (!engine_launch(x->engine, st, &at, error) || !engine_issue(x->engine, st, &at, on_gpu ? x->stream[st->stream] : NULL, &pending, error))
		return false;
	engine_settle(x->engine, st, pending);
	if (!on_gpu)
		return true;
	device_event_record(x->stream[st->stream], x->event[st->stream]);
	if (st->group && ++x->waiting < st->group_size)
		return true;
	int first = st->group ? st->rank - (int)st->group_size + 1 : st->rank;
	for (int g = first; g <= st->rank; g++)
		if (!device_event_wait(x->event[stream_of_gpu(g, st->stream % GPU_STREAMS)], error))
			return false;
	x->waiting = 0;
	return true;
}

static inline bool bench_wait(struct backend *b, stage_id id, GError **error)
{
	return true;
}

static inline bool bench_loads(struct backend *b, const struct gate *gate, uint32_t *tokens, GError **error)
{
	struct bench *x = (struct bench *)b;
	engine_loads(x->engine, gate->layer, gate->microbatch, tokens);
	memcpy(x->loads[gate->layer], tokens, sizeof(uint32_t) * (size_t)(x->sc->machine->gpus * gate->experts));
	return true;
}

static const struct backend_impl bench_impl = {.name = "bench", .launch = bench_launch, .wait = bench_wait, .loads = bench_loads};

#define TINY "[network]\nlayers = 2\nd_model = 8\nheads = 2\nvocab = 19\nseq_len = 6\nsequences = 4\nd_ff = 12\nexperts = 4\ntop_k = 2\n"
#define SHARED "shared = 1\nactivation = swiglu\ntied = true\n"
#define PARALLEL "parallel_dense = true\nkv_heads = 1\n"
#define MIXED "moe_every = 2\nshared = 2\n"
#define ES_MOE "[policy]\nexpert_home = dram\nplacement = lpt\noptimizer = cpu-expert\ngradient_bytes = 4\n"
#define STATIC "[policy]\nexpert_home = hbm\nexpert_compute = grouped\n"

#define LARGER                                                                                                                                       \
	"[network]\nlayers = 3\nd_model = 16\nheads = 2\nvocab = 64\nseq_len = 32\nsequences = 8\nd_ff = 40\nexperts = 8\ntop_k = 2\nshared = 1\n"   \
	"dense_first = 1\n"
#define RATE                                                                                                                                         \
	{                                                                                                                                            \
		.lr = 3e-3f, .balance = 0.01f, .z = 1e-3f                                                                                            \
	}

struct asked {
	const char *model, *policy;
	int gpus, sequences, microbatches, seq_len;
	struct engine_options o;
	const char *const *set;
};

static inline void bench_open(struct bench *b, const struct asked *a)
{
	g_autoptr(GError) error = NULL;
	struct engine_options o = a->o;
	*b = (struct bench){.base.impl = &bench_impl};
	b->sc = scenario_new(&(struct scenario_options){.model = a->model,
	                                                .machine = "host",
	                                                .policy = a->policy,
	                                                .gpus = a->gpus,
	                                                .sequences = a->sequences,
	                                                .microbatches = a->microbatches,
	                                                .seq_len = a->seq_len,
	                                                .set = a->set},
	                     &error);
	cr_assert(b->sc, "%s", error->message);
	b->schedule = schedule_new(b->sc, NULL, &error);
	cr_assert(b->schedule, "%s", error->message);
	cr_assert(device_open("host", a->gpus, (uint64_t)1 << 26, b->device, &b->group, &error), "%s", error ? error->message : "");
	for (int i = 0; i < a->gpus * GPU_STREAMS; i++) {
		b->stream[i] = device_stream_new(b->device[i / GPU_STREAMS], "stream", &error);
		b->event[i] = device_event_new(b->device[i / GPU_STREAMS]);
	}
	b->data = data_open(NULL, b->sc->network->vocab, 7, &error);
	cr_assert(b->data, "%s", error ? error->message : "");
	b->folder = g_dir_make_tmp("esmoe-test-XXXXXX", NULL);
	o.ssd_folder = b->folder;
	o.seed = 5;
	b->engine = engine_new(b->device, b->group, b->sc, b->schedule, b->data, &o, &error);
	cr_assert(b->engine, "%s", error ? error->message : "");
}

static inline void bench_close(struct bench *b)
{
	engine_free(b->engine);
	for (int i = 0; i < b->sc->machine->gpus * GPU_STREAMS; i++) {
		device_stream_free(b->stream[i]);
		device_event_free(b->event[i]);
	}
	device_close(b->device, b->sc->machine->gpus, b->group);
	data_free(b->data);
	schedule_free(b->schedule);
	scenario_free(b->sc);
	cr_assert_eq(g_rmdir(b->folder), 0, "the folder holds files that nobody removed");
	g_free(b->folder);
}

static inline double bench_step(struct bench *b, uint64_t step)
{
	g_autoptr(GError) error = NULL;
	engine_begin(b->engine, step);
	cr_assert(schedule_step(b->schedule, &b->base, &error), "%s", error ? error->message : "");
	return engine_loss(b->engine);
}

enum { STEPS = 20 };

static inline void losses_of(const struct asked *a, double *loss)
{
	struct bench b;
	bench_open(&b, a);
	for (int i = 0; i < STEPS; i++)
		loss[i] = bench_step(&b, (uint64_t)i);
	bench_close(&b);
}
