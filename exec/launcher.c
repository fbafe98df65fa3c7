/* What the threads of the executor do with a stage: the launcher of a GPU queues it on its stream between two events, behind those of its
 * predecessors; the worker of a node's stream waits, works and signals. An update of the CPU optimizer may still be at work when the next one begins:
 * a second worker waits for each in turn and signals, so that the stages of the stream end in order.
 *
 * An event can be waited for only when it has been queued, and launchers do not keep step, so each first waits until the predecessor has been issued
 * by its own. A launcher issues in launch order: the earliest stage that is not issued can always be, and nothing hangs.
 *
 * A group is issued when its last member was launched, by all members or, after an error or when the backend is freed, by none: the first member to
 * come decides for all, because a collective that some skip never ends for the others. */
#include "world.h"

/* The first error of any thread stays; the devices let everyone go on who waits for what will not come. Takes the error. */
void exec_fail(struct exec *x, GError *error)
{
	pthread_mutex_lock(&x->lock);
	const bool first = !x->error;
	if (first)
		x->error = g_error_copy(error);
	pthread_cond_broadcast(&x->changed);
	pthread_mutex_unlock(&x->lock);
	if (first)
		device_fail(x->devices[x->first], error);
	g_error_free(error);
}

bool exec_failed(struct exec *x, GError **error)
{
	pthread_mutex_lock(&x->lock);
	const bool has = x->error != NULL;
	if (has && error)
		*error = g_error_copy(x->error);
	pthread_mutex_unlock(&x->lock);
	return has;
}

void launcher_wait_issued(struct exec *x, const struct record *r)
{
	pthread_mutex_lock(&x->lock);
	while (!r->issued)
		pthread_cond_wait(&x->changed, &x->lock);
	pthread_mutex_unlock(&x->lock);
}

/* Afterwards the record may be retired at any moment. */
static void set_issued(struct exec *x, struct record *r)
{
	pthread_mutex_lock(&x->lock);
	r->issued = true;
	pthread_cond_broadcast(&x->changed);
	pthread_mutex_unlock(&x->lock);
}

static bool may_run(struct exec *x, struct group *g)
{
	pthread_mutex_lock(&x->lock);
	while (g && g->launched < g->size && !x->error && !x->stopping)
		pthread_cond_wait(&x->changed, &x->lock);
	bool run = !x->error && !x->stopping;
	if (g && g->verdict == OPEN)
		g->verdict = run ? RUN : SKIP;
	if (g)
		run = g->verdict == RUN;
	pthread_mutex_unlock(&x->lock);
	return run;
}

/* What it leaves pending. */
static uint64_t issue(struct exec *x, const struct record *r, struct device_stream *stream)
{
	GError *error = NULL;
	uint64_t pending = 0;
	if (x->issue.stage(x->issue.user, &r->stage, &r->at, stream, &pending, &error))
		return pending;
	g_autofree char *name = stream_name(x->m, r->stage.stream);
	g_prefix_error(&error, "stage %u (%s %s of layer %d on %s): ", r->stage.id, stage_pass_name(r->stage.pass), stage_kind_name(r->stage.kind),
	               r->stage.layer, name);
	exec_fail(x, error);
	return 0;
}

void launcher_run(void *args)
{
	const struct errand *errand = args;
	struct exec *x = errand->x;
	struct record *r = errand->r;
	struct device_stream *stream = x->stream[r->stage.stream];
	const bool run = may_run(x, r->group);
	for (int i = 0; i < r->n_after; i++)
		launcher_wait_issued(x, r->after[i]);
	r->launch_ns = exec_now_ns();
	for (int i = 0; i < r->n_after; i++) {
		device_stream_wait(stream, r->after[i]->end);
		g_atomic_int_add(&r->after[i]->users, -1);
	}
	device_event_record(stream, r->start);
	device_stage_begin(stream, r->stage.id, stage_kind_name(r->stage.kind));
	if (run)
		issue(x, r, stream);
	device_stage_end(stream);
	device_event_record(stream, r->end);
	r->launch_end_ns = exec_now_ns();
	set_issued(x, r);
}

/* A stage is the stream's from the end of the one before it. Once signalled, the record may be gone. */
static void node_settle(void *args)
{
	const struct errand *errand = args;
	struct exec *x = errand->x;
	struct record *r = errand->r;
	nsec_t *settled_ns = &x->settled_ns[node_stream(x, r->stage.stream)];
	x->issue.settle(x->issue.user, &r->stage, errand->pending);
	r->start_ns = MAX(r->start_ns, *settled_ns);
	device_event_signal(r->end);
	*settled_ns = exec_now_ns();
}

void node_run(void *args)
{
	const struct errand *errand = args;
	struct exec *x = errand->x;
	struct record *r = errand->r;
	for (int i = 0; i < r->n_after; i++) {
		GError *error = NULL;
		launcher_wait_issued(x, r->after[i]);
		if (!device_event_wait(r->after[i]->end, &error))
			exec_fail(x, error);
		g_atomic_int_add(&r->after[i]->users, -1);
	}
	r->start_ns = exec_now_ns();
	const uint64_t pending = may_run(x, NULL) ? issue(x, r, NULL) : 0;
	struct worker *settler = x->settler[node_stream(x, r->stage.stream)];
	if (settler)
		worker_push(settler, node_settle, &(struct errand){x, r, pending}, sizeof(struct errand));
	else
		device_event_signal(r->end);
}
