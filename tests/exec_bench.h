/* The executor with a stand-in for the engine, whose stages only take time. */
#pragma once

#include "exec/host.h"
#include "exec/world.h"
#include "model/error.h"
#include "steps.h"

#include <string.h>

/* Devices and what their stages do: sleep, meet their group, or fail. */
struct bench {
	struct device *device[8];
	struct device_group *group;
	const struct machine *m;
	int here;
	const struct routing *routing;
	struct backend *b;
	struct trace *trace;
	stage_id failing;                 /* STAGE_NONE: none */
	stage_id claiming, user, refused; /* one waits for another whose frame it has; one that finds none; STAGE_NONE: none */
	const void *given;                /* to claiming, as it found it when it was issued */
	nsec_t (*sleep_ns)(const struct stage *stage);
	bool pending; /* updates take their time after they were issued */
	pthread_mutex_t lock;
	GArray *issued; /* struct stage, in the order of issue */
};

static inline void sleep_op(struct host_stream *s, const void *args)
{
	g_usleep((gulong)(*(const nsec_t *)args / NSEC_PER_USEC));
}

static char frame[1];

static inline bool bench_place(void *user, const struct stage *stage, struct store_places *at, GError **error)
{
	struct bench *bench = user;
	if (stage->id == bench->refused) {
		g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_FIT, "no frame is free");
		return false;
	}
	if (stage->id == bench->claiming) {
		at->params = frame;
		frames_wait(&at->waits, bench->user);
	}
	return true;
}

static inline bool bench_stage(void *user, const struct stage *stage, const struct store_places *at, struct device_stream *stream, uint64_t *pending,
                               GError **error)
{
	struct bench *bench = user;
	const bool is_left = bench->pending && stage->kind == STAGE_ADAM;
	const nsec_t ns = bench->sleep_ns && !is_left ? bench->sleep_ns(stage) : 0;
	pthread_mutex_lock(&bench->lock);
	g_array_append_vals(bench->issued, stage, 1);
	if (stage->id == bench->claiming)
		bench->given = at->params;
	pthread_mutex_unlock(&bench->lock);
	if (stage->id == bench->failing) {
		g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_DEVICE, "the disk is full");
		return false;
	}
	if (is_left)
		*pending = (uint64_t)(exec_now_ns() + stage->cost_ns);
	if (stream && stage->group)
		group_meet(stream, bench->group, stage->rank);
	if (stream && ns)
		host_push(stream, sleep_op, &ns, sizeof ns);
	else if (ns)
		g_usleep((gulong)(ns / NSEC_PER_USEC));
	return true;
}

/* `pending` is when it ends. */
static inline void bench_settle(void *user, const struct stage *stage, uint64_t pending)
{
	const nsec_t rest_ns = (nsec_t)pending - exec_now_ns();
	if (pending && rest_ns > 0)
		g_usleep((gulong)(rest_ns / NSEC_PER_USEC));
}

static inline bool bench_loads(void *user, const struct gate *gate, uint32_t *tokens, GError **error)
{
	const struct bench *bench = user;
	return routing_loads(bench->routing, gate->step, gate->microbatch, gate->layer, bench->m->gpus, gate->experts, gate->top_k,
	                     gate->tokens_per_gpu, tokens, error);
}

/* GPUs 0 .. here - 1 are this process's. */
static inline struct bench *bench_new_of(const struct machine *m, int here, const struct routing *routing, nsec_t (*sleep_ns)(const struct stage *))
{
	g_autoptr(GError) error = NULL;
	struct bench *bench = g_new0(struct bench, 1);
	const struct issuer issue = {bench, bench_place, bench_stage, bench_settle, bench_loads};
	bench->m = m;
	bench->here = here;
	bench->routing = routing;
	bench->sleep_ns = sleep_ns;
	bench->failing = bench->claiming = bench->user = bench->refused = STAGE_NONE;
	bench->trace = trace_new();
	bench->issued = g_array_new(FALSE, FALSE, sizeof(struct stage));
	pthread_mutex_init(&bench->lock, NULL);
	cr_assert_leq(m->gpus, (int)G_N_ELEMENTS(bench->device));
	cr_assert(device_open("host", here, 4096, bench->device, &bench->group, &error), "%s", error ? error->message : "");
	bench->b = exec_new_issuing(bench->device, m->gpus, &issue, m, &error);
	cr_assert(bench->b, "%s", error ? error->message : "");
	return bench;
}

static inline struct bench *bench_new(const struct machine *m, const struct routing *routing, nsec_t (*sleep_ns)(const struct stage *))
{
	return bench_new_of(m, m->gpus, routing, sleep_ns);
}

/* `b` is NULL when someone else has freed the backend. */
static inline void bench_free(struct bench *bench)
{
	backend_free(bench->b);
	device_close(bench->device, bench->here, bench->group);
	trace_free(bench->trace);
	g_array_unref(bench->issued);
	pthread_mutex_destroy(&bench->lock);
	g_free(bench);
}
AUTOPTR(bench)

static inline stage_id add(struct bench *bench, int gpu, enum gpu_stream stream, nsec_t cost_ns, stage_id a, stage_id b)
{
	static const uint8_t kinds[] = {STAGE_EXPERT, STAGE_UPLOAD, STAGE_DOWNLOAD, STAGE_ALL_TO_ALL, STAGE_ALL_REDUCE};
	g_autoptr(GError) error = NULL;
	struct stage stage = {
	    .id = bench->b->n_launched, .kind = kinds[stream], .rank = gpu, .expert = -1, .stream = stream_of_gpu(gpu, stream), .cost_ns = cost_ns};
	if (a != STAGE_NONE)
		stage.preds[stage.n_preds++] = a;
	if (b != STAGE_NONE)
		stage.preds[stage.n_preds++] = b;
	cr_assert(backend_launch(bench->b, &stage, &error), "%s", error ? error->message : "");
	return stage.id;
}

static inline bool try_add_on_node(struct bench *bench, enum node_stream stream, nsec_t cost_ns, stage_id a, GError **error)
{
	static const uint8_t kinds[] = {STAGE_ADAM, STAGE_SSD_READ, STAGE_SSD_WRITE};
	struct stage stage = {
	    .id = bench->b->n_launched, .kind = kinds[stream], .expert = -1, .stream = stream_of_node(bench->m, 0, stream), .cost_ns = cost_ns};
	if (a != STAGE_NONE)
		stage.preds[stage.n_preds++] = a;
	return backend_launch(bench->b, &stage, error);
}

static inline stage_id add_on_node(struct bench *bench, enum node_stream stream, nsec_t cost_ns, stage_id a)
{
	g_autoptr(GError) error = NULL;
	cr_assert(try_add_on_node(bench, stream, cost_ns, a, &error), "%s", error ? error->message : "");
	return bench->b->n_launched - 1;
}

static inline stage_id add_member(struct bench *bench, int gpu, uint32_t group, uint32_t size)
{
	g_autoptr(GError) error = NULL;
	const struct stage stage = {.id = bench->b->n_launched,
	                            .kind = STAGE_ALL_TO_ALL,
	                            .rank = gpu,
	                            .expert = -1,
	                            .group = group,
	                            .group_size = size,
	                            .stream = stream_of_gpu(gpu, STREAM_COLLECTIVE)};
	cr_assert(backend_launch(bench->b, &stage, &error), "%s", error ? error->message : "");
	return stage.id;
}

static inline void await(struct bench *bench, stage_id id)
{
	g_autoptr(GError) error = NULL;
	cr_assert(backend_wait(bench->b, id, &error), "%s", error ? error->message : "");
}

static inline const struct span *span_of(struct bench *bench, stage_id id)
{
	exec_trace(bench->b, bench->b->n_launched, bench->trace);
	const uint32_t i = trace_find(bench->trace, id);
	cr_assert_neq(i, STAGE_NONE);
	return &g_array_index(bench->trace->spans, struct span, i);
}

static inline nsec_t as_it_says(const struct stage *stage)
{
	return stage->cost_ns;
}
