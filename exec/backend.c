/* The executor as a backend. One host thread calls it; work is done by others:
 *
 *     caller ---> launcher of each GPU ---> its four streams      wait for predecessors' events, start event, operations, end event
 *         \-----> worker of each node stream                     the same, but the worker itself waits, works and signals
 *
 * Bookkeeping belongs to the caller alone. A record holds a stage, its two events and the number of stages that will still wait for it (`users`).
 * Once a wait is over, all that the stage followed, by stream or as a predecessor, has ended too: those records take their times from the events, and
 * the oldest that have ended and have no users are retired in order of id; their events go round. A step has thousands of them, and while the caller
 * reads their times a GPU has nothing to do, if the wait was for its gate: so this happens when the caller comes to wait again, or asks for times. A
 * stage of a retired id is no predecessor any more, however old the schedule's memory of it. So only a few steps are live, whatever the number of
 * stages. Their spans stay until exec_trace takes them.
 *
 * A stage of another process's GPU has ended as far as anybody here can tell: it has a record, for its number and its place in its group, and no
 * more. Who waits for one that is a member of a group waits for the members that are here. */
#include "model/error.h"
#include "world.h"

static struct record **place(struct exec *x, stage_id id)
{
	return &x->live[id & (x->ring - 1)];
}

/* The record of a stage that may not have ended; NULL: it has. */
static struct record *unended(struct exec *x, stage_id id)
{
	struct record *r = id == STAGE_NONE || id < x->oldest ? NULL : *place(x, id);
	return r && r->ended ? NULL : r;
}

/* ---- launching ---- */

static struct device_event *event_take(struct exec *x, int rank)
{
	GPtrArray *spare = x->spare[rank];
	return spare->len ? g_ptr_array_steal_index_fast(spare, spare->len - 1) : device_event_new(x->devices[rank]);
}

static struct group *group_join(struct exec *x, const struct stage *stage)
{
	if (!stage->group || stage->group_size < 2)
		return NULL;
	struct group *g = g_hash_table_lookup(x->open_groups, GUINT_TO_POINTER(stage->group));
	if (!g) {
		g = g_malloc0(sizeof *g + stage->group_size * sizeof g->member[0]);
		g->id = stage->group;
		g->size = stage->group_size;
		g_hash_table_insert(x->open_groups, GUINT_TO_POINTER(g->id), g);
	}
	g_assert(g->size == stage->group_size);
	g->holders++;
	pthread_mutex_lock(&x->lock);
	g->member[g->launched++] = stage->id;
	if (g->launched == g->size) {
		g_hash_table_remove(x->open_groups, GUINT_TO_POINTER(g->id));
		pthread_cond_broadcast(&x->changed);
	}
	pthread_mutex_unlock(&x->lock);
	return g;
}

static void ring_put(struct exec *x, struct record *r)
{
	const stage_id id = r->stage.id;
	if (id - x->oldest == x->ring) {
		const stage_id old = x->ring;
		struct record **live = g_new0(struct record *, 2 * old);
		for (stage_id i = x->oldest; i < id; i++)
			live[i & (2 * old - 1)] = x->live[i & (old - 1)];
		g_free(x->live);
		x->live = live;
		x->ring = 2 * old;
	}
	*place(x, id) = r;
}

static void follow(struct exec *x, struct record *r, stage_id before)
{
	struct record *pred = unended(x, before);
	if (!pred || pred->stage.stream == r->stage.stream)
		return;
	g_atomic_int_inc(&pred->users);
	r->after[r->n_after++] = pred;
}

static struct record *record_new(struct exec *x, const struct stage *stage, const struct store_places *at)
{
	struct record *r = g_new0(struct record, 1);
	if (stage->id && x->parity != stage->step_parity)
		x->step++;
	x->parity = stage->step_parity;
	r->stage = *stage;
	r->at = *at;
	r->step = x->step;
	r->ended = r->issued = !is_here(x, stage->rank);
	if (!r->ended) {
		r->end = event_take(x, stage->rank);
		r->start = on_gpu(x, stage->stream) ? event_take(x, stage->rank) : NULL;
	}
	r->before = x->last[stage->stream];
	x->last[stage->stream] = stage->id;
	for (int i = 0; !r->ended && i < stage->n_preds; i++)
		follow(x, r, stage->preds[i]);
	for (int i = 0; i < at->waits.n; i++) /* they had the frames that are its own now */
		follow(x, r, at->waits.stage[i]);
	ring_put(x, r);
	return r;
}

/* Nothing but a collective orders the stages of two processes. */
static bool order_is_kept(const struct exec *x, const struct stage *stage, GError **error)
{
	for (int i = 0; i < stage->n_preds && is_here(x, stage->rank); i++) {
		const stage_id id = stage->preds[i];
		const struct record *pred = id < x->oldest || id >= x->base.n_launched ? NULL : x->live[id & (x->ring - 1)];
		if (pred && !is_here(x, pred->stage.rank)) {
			g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_INPUT,
			            "the schedule cannot be run by several processes: stage %u (%s) of GPU %d follows stage %u (%s) of GPU %d, which "
			            "is another's",
			            stage->id, stage_kind_name(stage->kind), stage->rank, pred->stage.id, stage_kind_name(pred->stage.kind),
			            pred->stage.rank);
			return false;
		}
	}
	return true;
}

static bool exec_launch(struct backend *b, const struct stage *stage, GError **error)
{
	struct exec *x = exec_of(b);
	const bool gpu = on_gpu(x, stage->stream);
	g_assert(stage->rank < x->m->gpus && stage->stream < (stream_id)x->n_streams);
	g_assert(!gpu || stage->stream / GPU_STREAMS == (stream_id)stage->rank);
	if (exec_failed(x, error))
		return false;
	if (!order_is_kept(x, stage, error))
		return false;
	struct store_places at = {0};
	if (x->issue.launch && is_here(x, stage->rank) && !x->issue.launch(x->issue.user, stage, &at, error))
		return false;
	struct record *r = record_new(x, stage, &at);
	r->group = group_join(x, stage);
	if (r->ended)
		return true;
	struct worker *w = gpu ? x->launcher[stage->rank] : x->node[node_stream(x, stage->stream)];
	if (!gpu) {
		device_event_arm(r->end);
		r->issued = true;
		r->launch_ns = r->launch_end_ns = exec_now_ns();
	}
	worker_push(w, gpu ? launcher_run : node_run, &(struct errand){x, r, 0}, sizeof(struct errand));
	return true;
}

/* ---- waiting ---- */

/* The stage has ended, and with it all that it followed. */
static void note_ended(struct exec *x, stage_id id)
{
	g_array_set_size(x->unfolding, 0);
	g_array_append_val(x->unfolding, id);
	while (x->unfolding->len) {
		struct record *r = unended(x, g_array_index(x->unfolding, stage_id, x->unfolding->len - 1));
		g_array_set_size(x->unfolding, x->unfolding->len - 1);
		if (!r)
			continue;
		launcher_wait_issued(x, r); /* the launcher may still be noting when it was done */
		r->start_ns = r->start ? device_event_ns(r->start) : r->start_ns;
		r->end_ns = MAX(r->start_ns, device_event_ns(r->end)); /* a GPU's clock is found again each second, within microseconds */
		r->ended = true;
		g_array_append_vals(x->unfolding, r->stage.preds, r->stage.n_preds);
		g_array_append_val(x->unfolding, r->before);
	}
}

static void record_free(struct exec *x, struct record *r)
{
	if (r->end)
		g_ptr_array_add(x->spare[r->stage.rank], r->end);
	if (r->start)
		g_ptr_array_add(x->spare[r->stage.rank], r->start);
	g_free(r);
}

static void retire(struct exec *x)
{
	for (; x->oldest < x->base.n_launched; x->oldest++) {
		struct record *r = *place(x, x->oldest);
		if (!r->ended || g_atomic_int_get(&r->users))
			return;
		if (r->end)
			spans_add(x, r);
		group_unref(r->group);
		record_free(x, r);
	}
}

void exec_note(struct exec *x)
{
	for (guint i = 0; i < x->waited->len; i++)
		note_ended(x, g_array_index(x->waited, stage_id, i));
	g_array_set_size(x->waited, 0);
	retire(x);
}

static bool await(struct exec *x, stage_id id, GError **error)
{
	struct record *r = unended(x, id);
	GError *own = NULL;
	if (r) {
		launcher_wait_issued(x, r);
		if (!device_event_wait(r->end, &own))
			exec_fail(x, own);
	}
	if (exec_failed(x, error))
		return false;
	g_array_append_val(x->waited, id);
	return true;
}

/* Launchers stand still at a group that misses members, and only the caller can launch them. */
static bool groups_complete(struct exec *x, stage_id id, GError **error)
{
	GHashTableIter i;
	gpointer open;
	const struct group *stuck = NULL;
	g_hash_table_iter_init(&i, x->open_groups);
	while (g_hash_table_iter_next(&i, NULL, &open))
		if (!stuck || ((struct group *)open)->member[0] < stuck->member[0])
			stuck = open;
	if (!stuck || stuck->member[0] > id)
		return true;
	g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_INPUT, "the schedule is stuck: stage %u waits for its group %u (%u members, %u launched)",
	            stuck->member[0], stuck->id, stuck->size, stuck->launched);
	return false;
}

/* Members of a group end together. */
static bool exec_wait(struct backend *b, stage_id id, GError **error)
{
	struct exec *x = exec_of(b);
	exec_note(x);
	const struct record *r = id < x->oldest ? NULL : *place(x, id);
	const struct group *g = r ? r->group : NULL;
	if (!groups_complete(x, id, error))
		return false;
	for (uint32_t i = 0; g && i < g->size; i++)
		if (!await(x, g->member[i], error))
			return false;
	return await(x, id, error);
}

static bool exec_loads(struct backend *b, const struct gate *gate, uint32_t *tokens, GError **error)
{
	const struct issuer *issue = &exec_of(b)->issue;
	return exec_wait(b, gate->counts, error) && issue->loads(issue->user, gate, tokens, error);
}

/* ---- life ---- */

static void exec_free(struct backend *b)
{
	struct exec *x = exec_of(b);
	const int nodes = machine_nodes(x->m);
	pthread_mutex_lock(&x->lock);
	x->stopping = true;
	pthread_cond_broadcast(&x->changed);
	pthread_mutex_unlock(&x->lock);
	for (int i = x->first; i < x->end; i++)
		worker_free(x->launcher[i]);
	for (int i = 0; i < nodes * NODE_STREAMS; i++) { /* those that push first */
		worker_free(x->node[i]);
		worker_free(x->settler[i]);
	}
	for (int i = 0; i < x->m->gpus * GPU_STREAMS; i++)
		if (x->stream[i])
			device_stream_free(x->stream[i]);
	for (; x->oldest < b->n_launched; x->oldest++) {
		group_unref((*place(x, x->oldest))->group);
		record_free(x, *place(x, x->oldest));
	}
	spans_clear(x);
	for (int i = x->first; i < x->end; i++)
		g_ptr_array_unref(x->spare[i]);
	g_hash_table_unref(x->open_groups);
	g_array_unref(x->waited);
	g_array_unref(x->unfolding);
	g_clear_error(&x->error);
	pthread_mutex_destroy(&x->lock);
	pthread_cond_destroy(&x->changed);
	g_free(x->launcher);
	g_free(x->node);
	g_free(x->settler);
	g_free(x->settled_ns);
	g_free(x->stream);
	g_free(x->spare);
	g_free(x->last);
	g_free(x->live);
	g_free(x);
}

static const struct backend_impl exec_impl = {
    .name = "exec",
    .launch = exec_launch,
    .wait = exec_wait,
    .loads = exec_loads,
    .free = exec_free,
};

static void event_free(gpointer event)
{
	device_event_free(event);
}

static bool streams_new(struct exec *x, GError **error)
{
	for (int i = 0; i < x->n_streams; i++) {
		g_autofree char *name = stream_name(x->m, (stream_id)i);
		const int on_node = node_stream(x, (stream_id)i);
		const int gpu = on_node >= 0 ? on_node / NODE_STREAMS * x->m->gpus_per_node : i / GPU_STREAMS;
		if (!is_here(x, gpu))
			continue;
		if (on_node >= 0 && on_node % NODE_STREAMS == STREAM_OPTIMIZER && x->issue.settle)
			x->settler[on_node] = worker_new("settle");
		if (on_node >= 0)
			x->node[on_node] = worker_new(name);
		else if (!(x->stream[i] = device_stream_new(x->devices[gpu], name, error)))
			return false;
		else if (i % GPU_STREAMS == STREAM_COMPUTE)
			device_stream_keep_core(x->stream[i], gpu - x->first);
	}
	return true;
}

struct backend *exec_new_issuing(struct device **devices, int count, const struct issuer *issue, const struct machine *m, GError **error)
{
	struct exec *x = g_new0(struct exec, 1);
	g_assert(count == m->gpus);
	x->base.impl = &exec_impl;
	x->m = m;
	x->issue = *issue;
	x->devices = devices;
	while (!devices[x->first])
		x->first++;
	for (x->end = count; !devices[x->end - 1];)
		x->end--;
	x->n_streams = stream_count(m);
	x->launcher = g_new0(struct worker *, count);
	x->stream = g_new0(struct device_stream *, count * GPU_STREAMS);
	x->node = g_new0(struct worker *, machine_nodes(m) * NODE_STREAMS);
	x->settler = g_new0(struct worker *, machine_nodes(m) * NODE_STREAMS);
	x->settled_ns = g_new0(nsec_t, machine_nodes(m) * NODE_STREAMS);
	x->spare = g_new0(GPtrArray *, count);
	x->last = g_new(stage_id, x->n_streams);
	for (int i = 0; i < x->n_streams; i++)
		x->last[i] = STAGE_NONE;
	x->ring = 1024;
	x->live = g_new0(struct record *, x->ring);
	x->open_groups = g_hash_table_new(NULL, NULL);
	x->waited = g_array_new(FALSE, FALSE, sizeof(stage_id));
	x->unfolding = g_array_new(FALSE, FALSE, sizeof(stage_id));
	spans_init(x);
	pthread_mutex_init(&x->lock, NULL);
	pthread_cond_init(&x->changed, NULL);
	for (int i = x->first; i < x->end; i++) {
		g_autofree char *name = g_strdup_printf("gpu%d host", i);
		x->spare[i] = g_ptr_array_new_with_free_func(event_free);
		x->launcher[i] = worker_new(name);
		worker_set_patience(x->launcher[i], device_info(x->devices[i])->patience_ns);
	}
	if (!streams_new(x, error)) {
		exec_free(&x->base);
		return NULL;
	}
	return &x->base;
}

/* ---- with the engine ---- */

static bool launch_stage(void *engine, const struct stage *stage, struct store_places *at, GError **error)
{
	return engine_launch(engine, stage, at, error);
}

static bool issue_stage(void *engine, const struct stage *stage, const struct store_places *at, struct device_stream *stream, uint64_t *pending,
                        GError **error)
{
	return engine_issue(engine, stage, at, stream, pending, error);
}

static void settle_stage(void *engine, const struct stage *stage, uint64_t pending)
{
	engine_settle(engine, stage, pending);
}

static bool answer_gate(void *engine, const struct gate *gate, uint32_t *tokens, GError **error)
{
	engine_loads(engine, gate->layer, gate->microbatch, tokens);
	return true;
}

struct backend *exec_new(struct device **devices, int count, struct engine *engine, const struct machine *m, GError **error)
{
	const struct issuer issue = {engine, launch_stage, issue_stage, settle_stage, answer_gate};
	return exec_new_issuing(devices, count, &issue, m, error);
}
