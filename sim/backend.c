/* The simulator as a backend. Launching only writes a stage down, with the time its launcher's clock shows; waiting lets virtual time pass (clock.c).
 *
 * Causality: launchers go on no earlier than the end of what was waited for, so nothing launched later can start before `now`.
 * Left out: a launcher that runs 1024 kernels ahead blocks in CUDA; gates stop ours every layer. */
#include "model/heat.h"
#include "model/measured.h"
#include "world.h"

#include <math.h>

static struct sim *sim_of(const struct backend *b)
{
	return (struct sim *)b;
}

static nsec_t nsec_of_us(double us)
{
	return llround(us * (double)NSEC_PER_USEC);
}

/* CPU Adam works on the GPU's node, as of now. Its launcher may be some kernels ahead: it is taken to launch them now. */
static bool beside_adam(const struct sim *sim, int gpu)
{
	const stream_id optimizer = stream_of_node(sim->m, gpu / sim->m->gpus_per_node, STREAM_OPTIMIZER);
	const enum phase phase = sim->streams[optimizer].phase;
	return phase == PHASE_FLOWING || phase == PHASE_ALONE;
}

/* A launcher that is later anyway did not wait. */
static void go_on(struct sim *sim, int gpu, nsec_t ns)
{
	if (ns <= sim->host_ns[gpu])
		return;
	sim->host_ns[gpu] = ns;
	sim->waited[gpu] = true;
}

static bool wait_and_sync(struct backend *b, stage_id id, nsec_t sync_ns, nsec_t sync_adam_ns, GError **error)
{
	struct sim *sim = sim_of(b);
	while (!sim->tasks[id].ended) {
		if (events_next_ns(sim->events) < 0)
			return sim_deadlock(sim, id, error);
		sim_instant(sim);
	}
	for (int gpu = 0; gpu < sim->m->gpus; gpu++)
		go_on(sim, gpu, sim->tasks[id].end_ns + (beside_adam(sim, gpu) ? sync_adam_ns : sync_ns));
	return true;
}

/* Lets time pass until the stage has ended, and the launchers go on after that. */
static bool sim_wait(struct backend *b, stage_id id, GError **error)
{
	return wait_and_sync(b, id, sim_of(b)->sync_ns, sim_of(b)->sync_adam_ns, error);
}

static bool sim_loads(struct backend *b, const struct gate *gate, uint32_t *tokens, GError **error)
{
	const struct sim *sim = sim_of(b);
	bool all = sim->notes[gate->counts].kind == STAGE_COUNTS;
	return wait_and_sync(b, gate->counts, all ? sim->sync_all_ns : sim->sync_ns, all ? sim->sync_all_adam_ns : sim->sync_adam_ns, error) &&
	       routing_loads(sim->routing, gate->step, gate->microbatch, gate->layer, sim->m->gpus, gate->experts, gate->top_k, gate->tokens_per_gpu,
	                     tokens, error);
}

/* Members of one group come close together, so the last one met is nearly always the one; the table is for the others. */
static uint32_t group_join(struct sim *sim, const struct stage *stage)
{
	if (!stage->group || stage->group_size < 2)
		return 0;
	struct group *group = group_at(sim, sim->group_at);
	if (group->id != stage->group || group->launched == group->size) {
		gpointer found = g_hash_table_lookup(sim->open_groups, GUINT_TO_POINTER(stage->group));
		sim->group_at = GPOINTER_TO_UINT(found);
		if (!found) {
			struct group fresh = {.id = stage->group, .size = stage->group_size};
			sim->group_at = sim->groups->len;
			g_array_append_val(sim->groups, fresh);
			g_hash_table_insert(sim->open_groups, GUINT_TO_POINTER(stage->group), GUINT_TO_POINTER(sim->group_at));
		}
		group = group_at(sim, sim->group_at);
	}
	g_assert(group->size == stage->group_size);
	if (++group->launched == group->size)
		g_hash_table_remove(sim->open_groups, GUINT_TO_POINTER(stage->group));
	return sim->group_at;
}

static void room_for_one_more(struct sim *sim)
{
	if (sim->base.n_launched < sim->room)
		return;
	sim->room = MAX(1024, sim->room * 2);
	sim->tasks = g_renew(struct task, sim->tasks, sim->room);
	sim->notes = g_renew(struct note, sim->notes, sim->room);
}

static void note_stage(struct sim *sim, const struct stage *stage, nsec_t launch_ns, nsec_t launch_end_ns)
{
	if (stage->id && sim->parity != stage->step_parity)
		sim->step++;
	sim->parity = stage->step_parity;
	sim->notes[stage->id] = (struct note){
	    .launch_ns = launch_ns,
	    .launch_end_ns = launch_end_ns,
	    .bytes = stage->bytes,
	    .expert = stage->expert,
	    .rank = stage->rank,
	    .tokens = stage->tokens,
	    .step = sim->step,
	    .layer = stage->layer,
	    .microbatch = stage->microbatch,
	    .kind = stage->kind,
	    .pass = stage->pass,
	};
}

/* So long after its launcher turns to it a stage's first kernel is launched, and all of them; and it ends no earlier, where that says anything. */
struct launching {
	nsec_t first_ns, all_ns, end_ns;
};

static bool launches_late(const struct sim *sim, uint32_t tokens, double *late_ns)
{
	const struct measured *tables = sim->launch_ns ? sim->m->measured : NULL;
	return tables && measured_ns(&tables->table[MEASURED_LATE][PASS_FORWARD], tokens, late_ns) != MEASURED_NONE;
}

/* The first launch after a wait begins as fast as any, and takes longer. */
static struct launching launching_of(struct sim *sim, const struct stage *stage)
{
	const bool beside = beside_adam(sim, stage->rank);
	const nsec_t kernel_ns = beside ? sim->launch_adam_ns : sim->launch_ns;
	struct launching l = {stage->n_kernels ? kernel_ns : 0, stage->n_kernels * kernel_ns, 0};
	double late_ns;
	if (stage->kind == STAGE_ALL_TO_ALL && launches_late(sim, stage->tokens, &late_ns)) {
		l.all_ns = llround(late_ns * (double)kernel_ns / (double)MAX(1, sim->launch_ns));
		l.end_ns = l.all_ns + stage->cost_ns;
	} else if (stage->n_kernels) {
		l.all_ns += !sim->waited[stage->rank] ? 0 : beside ? sim->first_adam_ns : sim->first_ns;
		l.first_ns = stage->n_kernels > 1 ? l.first_ns : l.all_ns;
		l.end_ns = stage->n_kernels > 1 ? l.all_ns + stage->cost_ns / stage->n_kernels : 0;
	}
	sim->waited[stage->rank] = sim->waited[stage->rank] && !stage->n_kernels;
	return l;
}

static bool sim_launch(struct backend *b, const struct stage *stage, GError **error)
{
	struct sim *sim = sim_of(b);
	g_assert(stage->rank < sim->m->gpus && stage->stream < sim->n_streams && stage->profile < (uint32_t)sim->r->n_profiles);
	room_for_one_more(sim);
	nsec_t *host_ns = &sim->host_ns[stage->rank], launch_ns = *host_ns;
	const struct launching l = launching_of(sim, stage);
	*host_ns += l.all_ns;
	note_stage(sim, stage, launch_ns, *host_ns);
	struct task *task = &sim->tasks[stage->id];
	*task = (struct task){
	    .cost_ns = stage->cost_ns,
	    .start_ns = launch_ns + l.first_ns,
	    .end_ns = l.end_ns ? launch_ns + l.end_ns : 0,
	    .next = STAGE_NONE,
	    .stream = stage->stream,
	    .profile = stage->profile,
	    .group = group_join(sim, stage),
	    .n_preds = stage->n_preds,
	    .products = (uint8_t)stage->products,
	};
	memcpy(task->preds, stage->preds, sizeof task->preds);
	struct stream *stream = &sim->streams[stage->stream];
	if (stream->head == STAGE_NONE) {
		stream->head = stream->tail = stage->id;
		nsec_t ready_ns = sim_head_ready_ns(sim, stage->stream);
		if (ready_ns >= 0)
			events_put(sim->events, stage->stream, ready_ns);
	} else {
		sim->tasks[stream->tail].next = stage->id;
		stream->tail = stage->id;
	}
	return true;
}

static void sim_free(struct backend *b)
{
	struct sim *sim = sim_of(b);
	g_free(sim->host_ns);
	g_free(sim->waited);
	g_free(sim->tasks);
	g_free(sim->notes);
	g_free(sim->streams);
	g_array_unref(sim->groups);
	g_hash_table_unref(sim->open_groups);
	share_free(sim->share);
	events_free(sim->events);
	counters_free(sim->counters);
	heat_free(sim->heat);
	g_free(sim);
}

static const struct backend_impl sim_impl = {
    .name = "sim",
    .launch = sim_launch,
    .wait = sim_wait,
    .loads = sim_loads,
    .free = sim_free,
};

static void host_times(struct sim *sim, const struct machine *m, const struct sim_options *o)
{
	const double sync_all_us = m->sync_all_us > 0 ? m->sync_all_us : m->sync_us;
	const double late_us = m->sync_adam_us > 0 ? m->sync_adam_us - m->sync_us : 0; /* a wait's, beside Adam */
	if (!o->no_launch) {
		sim->launch_ns = nsec_of_us(m->launch_us);
		sim->launch_adam_ns = m->launch_adam_us > 0 ? nsec_of_us(m->launch_adam_us) : sim->launch_ns;
		sim->first_ns = nsec_of_us(m->first_us);
		sim->first_adam_ns = m->first_adam_us > 0 ? nsec_of_us(m->first_adam_us) : sim->first_ns;
	}
	if (!o->no_sync) {
		sim->sync_ns = nsec_of_us(m->sync_us);
		sim->sync_adam_ns = nsec_of_us(m->sync_us + late_us);
		sim->sync_all_ns = nsec_of_us(sync_all_us);
		sim->sync_all_adam_ns = nsec_of_us(fmax(sync_all_us + late_us, 0));
	}
}

struct backend *sim_new(const struct machine *m, const struct resources *r, const struct routing *routing, const struct sim_options *o)
{
	struct sim *sim = g_new0(struct sim, 1);
	struct group none = {0};
	sim->base.impl = &sim_impl;
	sim->m = m;
	sim->r = r;
	sim->routing = routing;
	host_times(sim, m, o);
	sim->event_ns = o->no_event ? 0 : nsec_of_us(m->event_us);
	sim->next_ns = o->no_event ? 0 : nsec_of_us(m->next_us);
	sim->wake_ns = o->no_event ? 0 : nsec_of_us(m->wake_us);
	sim->host_ns = g_new0(nsec_t, m->gpus);
	sim->waited = g_new0(bool, m->gpus);
	sim->n_streams = (uint32_t)stream_count(m);
	sim->streams = g_new0(struct stream, sim->n_streams);
	for (uint32_t s = 0; s < sim->n_streams; s++)
		sim->streams[s].head = STAGE_NONE;
	sim->groups = g_array_new(FALSE, FALSE, sizeof(struct group));
	g_array_append_val(sim->groups, none);
	sim->open_groups = g_hash_table_new(NULL, NULL);
	sim->share = o->no_sharing ? NULL : share_new(m, r);
	sim->events = events_new(sim->n_streams);
	sim->counters = o->record_counters ? counters_new(m->gpus, machine_nodes(m)) : NULL;
	sim->heat = o->no_sharing ? NULL : heat_new(m);
	return &sim->base;
}

static const struct task *ended_task(const struct backend *b, stage_id id)
{
	g_assert(id < b->n_launched && sim_of(b)->tasks[id].ended);
	return &sim_of(b)->tasks[id];
}

nsec_t sim_start_ns(const struct backend *b, stage_id id)
{
	return ended_task(b, id)->start_ns;
}

nsec_t sim_end_ns(const struct backend *b, stage_id id)
{
	return ended_task(b, id)->end_ns;
}

nsec_t sim_now_ns(const struct backend *b)
{
	return sim_of(b)->now_ns;
}

void sim_busy(const struct backend *b, nsec_t from_ns, nsec_t to_ns, nsec_t *busy_ns)
{
	const struct sim *sim = sim_of(b);
	memset(busy_ns, 0, sizeof(nsec_t) * sim->n_streams);
	for (stage_id id = 0; id < b->n_launched; id++) {
		const struct task *task = &sim->tasks[id];
		if (task->ended && task->end_ns > from_ns && task->end_ns <= to_ns)
			busy_ns[task->stream] += task->end_ns - task->start_ns;
	}
}

static struct span span_of(const struct sim *sim, stage_id id)
{
	const struct task *task = &sim->tasks[id];
	const struct note *note = &sim->notes[id];
	struct span span = {
	    .id = id,
	    .kind = note->kind,
	    .pass = note->pass,
	    .step = note->step,
	    .layer = note->layer,
	    .microbatch = note->microbatch,
	    .expert = note->expert,
	    .rank = note->rank,
	    .stream = task->stream,
	    .tokens = note->tokens,
	    .bytes = note->bytes,
	    .launch_ns = note->launch_ns,
	    .launch_end_ns = note->launch_end_ns,
	    .start_ns = task->start_ns,
	    .end_ns = task->end_ns,
	    .n_preds = task->n_preds,
	};
	memcpy(span.preds, task->preds, sizeof span.preds);
	return span;
}

void sim_trace(const struct backend *b, bool counters, struct trace *trace)
{
	const struct sim *sim = sim_of(b);
	nsec_t step_end_ns = 0;
	uint16_t step = 0;
	g_assert(!counters || sim->counters);
	trace->gpus = sim->m->gpus;
	trace->gpus_per_node = sim->m->gpus_per_node;
	g_free(trace->gpu_name);
	trace->gpu_name = g_strdup(sim->m->gpu_name);
	trace->hbm_bytes = (uint64_t)(sim->m->hbm_gib * GIB);
	trace->sms = sim->m->sms;
	for (stage_id id = 0; id < b->n_launched; id++) {
		if (!sim->tasks[id].ended)
			continue;
		struct span span = span_of(sim, id);
		for (; step < span.step; step++)
			g_array_append_val(trace->step_end_ns, step_end_ns);
		step_end_ns = MAX(step_end_ns, span.end_ns);
		g_array_append_val(trace->spans, span);
	}
	if (trace->spans->len)
		g_array_append_val(trace->step_end_ns, step_end_ns);
	if (counters)
		counters_copy(sim->counters, trace);
}
