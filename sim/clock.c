/* Virtual time moves when somebody waits, instant by instant:
 *
 *   launch --> queue of the stream --> first in its queue: waits for one predecessor after the other
 *                                        --> instant to start --> group complete --> runs --> floor --> group done --> ended
 *
 * A stream does one of these things at a time, so it is the unit of the event queue and of sharing, and a stage needs no list of its successors: only
 * the first stage of a stream waits, for one predecessor at a time, and hangs itself on that predecessor. A stage costs one record that the loop
 * touches (a cache line), one that only traces read, and no allocation.
 *
 * Exactness: a stage whose rate is 1 throughout ends exactly cost_ns after its start. Otherwise its remaining work is a double (nanoseconds at rate
 * 1), reduced at each change of its rate, and its end is rounded up to the next nanosecond, once; a millionth of a nanosecond is forgiven for
 * rounding. */
#include "model/error.h"
#include "model/heat.h"
#include "world.h"

#define FORGIVEN_NS 1e-6

nsec_t sim_head_ready_ns(struct sim *sim, stream_id s)
{
	struct stream *stream = &sim->streams[s];
	if (stream->head == STAGE_NONE) {
		stream->phase = PHASE_IDLE;
		return -1;
	}
	struct task *task = &sim->tasks[stream->head];
	for (; task->n_met < task->n_preds; task->n_met++) {
		struct task *pred = &sim->tasks[task->preds[task->n_met]];
		if (!pred->ended) {
			stream->next_waiter = pred->waiters;
			pred->waiters = s + 1;
			stream->phase = PHASE_BLOCKED;
			return -1;
		}
		nsec_t free_ns = pred->end_ns + (pred->stream == s ? 0 : sim->event_ns);
		task->start_ns = MAX(task->start_ns, free_ns);
	}
	stream->phase = PHASE_STARTING;
	return MAX(MAX(task->start_ns, stream->since_ns), sim->now_ns);
}

/* Bytes that a stage at this rate moves, on the counters. */
static void count(struct sim *sim, stream_id s, double rate)
{
	const struct stream *stream = &sim->streams[s];
	const struct task *task = &sim->tasks[stream->head];
	const struct profile *profile = &sim->r->profile[task->profile];
	double change = rate - stream->rate;
	if (profile->gpu >= 0 && (profile->flow_class == FLOW_UP || profile->flow_class == FLOW_DOWN) && task->cost_ns > 0)
		counters_add(sim->counters, counter_of_pcie(profile->gpu, profile->flow_class == FLOW_DOWN), sim->now_ns,
		             change * (double)sim->notes[stream->head].bytes / (double)task->cost_ns);
	if (profile->dram > 0)
		counters_add(sim->counters, counter_of_dram(sim->m->gpus, profile->node), sim->now_ns, change * profile->dram);
}

static void set_rate(struct sim *sim, stream_id s, double rate)
{
	struct stream *stream = &sim->streams[s];
	if (sim->counters)
		count(sim, s, rate);
	stream->remaining -= stream->rate * (double)(sim->now_ns - stream->since_ns);
	stream->since_ns = sim->now_ns;
	stream->rate = rate;
	double left = MAX(stream->remaining / rate - FORGIVEN_NS, 0);
	nsec_t whole = (nsec_t)left;
	events_put(sim->events, s, sim->now_ns + whole + ((double)whole < left));
}

/* Stages whose time follows the clock (model/heat.h). */
static bool follows_clock(const struct sim *sim, uint32_t profile)
{
	const uint32_t kind = profile % GPU_PROFILES;
	return profile < (uint32_t)sim->m->gpus * GPU_PROFILES && (kind == PROFILE_COMPUTE || kind == PROFILE_MIXER);
}

/* NCCL's kernels keep a GPU as warm as its own. */
static bool warms(const struct sim *sim, stream_id s)
{
	const stream_id stream = s % GPU_STREAMS;
	return s < (stream_id)sim->m->gpus * GPU_STREAMS && (stream == STREAM_COMPUTE || stream == STREAM_COLLECTIVE || stream == STREAM_REDUCTION);
}

static bool computes(const struct sim *sim, stream_id s)
{
	return s < (stream_id)sim->m->gpus * GPU_STREAMS && s % GPU_STREAMS == STREAM_COMPUTE;
}

/* A long product of matrices loses no more time to copies than one of copy_exposed_us (exec/beside.c). */
static double exposed(const struct sim *sim, const struct task *task)
{
	const double exposed_ns = task->products * sim->m->copy_exposed_us * 1e3;
	return exposed_ns > 0 && exposed_ns < (double)task->cost_ns ? exposed_ns / (double)task->cost_ns : 1;
}

/* Collectives keep the SMs that they have from all that is computed beside them. */
static double exposed_rate(const struct sim *sim, stream_id s, double rate)
{
	const struct stream *stream = &sim->streams[s], *of_gpu = stream - s % GPU_STREAMS;
	if (stream->exposed == 1 || of_gpu[STREAM_COLLECTIVE].phase == PHASE_FLOWING || of_gpu[STREAM_REDUCTION].phase == PHASE_FLOWING)
		return rate;
	return 1 - stream->exposed * (1 - rate);
}

static void begin(struct sim *sim, stream_id s)
{
	struct stream *stream = &sim->streams[s];
	struct task *task = &sim->tasks[stream->head];
	task->start_ns = stream->since_ns = sim->now_ns;
	if (sim->heat && follows_clock(sim, task->profile))
		task->cost_ns =
		    heat_cost_ns(sim->heat, sim->r->profile[task->profile].gpu, sim->now_ns, task->cost_ns, sim->notes[stream->head].kind);
	stream->remaining = (double)task->cost_ns;
	stream->rate = 0;
	stream->exposed = exposed(sim, task);
	if (task->next != STAGE_NONE) /* it comes to the cache while this one runs */
		__builtin_prefetch(&sim->tasks[task->next]);
	if (sim->share && task->cost_ns) {
		stream->phase = PHASE_FLOWING;
		share_start(sim->share, s, task->profile);
	} else {
		stream->phase = PHASE_ALONE;
		set_rate(sim, s, 1);
	}
}

/* The instant has come at which the first stage of a stream may start: now it is up to its group. */
static void arrive(struct sim *sim, stream_id s)
{
	uint32_t index = sim->tasks[sim->streams[s].head].group;
	if (!index) {
		begin(sim, s);
		return;
	}
	struct group *group = group_at(sim, index);
	sim->streams[s].phase = PHASE_GATHERED;
	sim->streams[s].next_member = group->members;
	group->members = s + 1;
	if (++group->arrived < group->size)
		return;
	group->running = group->size;
	for (uint32_t member = group->members; member; member = sim->streams[member - 1].next_member)
		begin(sim, member - 1);
}

static void proceed(struct sim *sim, stream_id s)
{
	nsec_t ready_ns = sim_head_ready_ns(sim, s);
	if (ready_ns > sim->now_ns)
		events_put(sim->events, s, ready_ns);
	else if (ready_ns >= 0)
		arrive(sim, s);
}

static void end(struct sim *sim, stream_id s)
{
	struct task *task = &sim->tasks[sim->streams[s].head];
	nsec_t free_ns = sim->now_ns;
	task->end_ns = sim->now_ns;
	task->ended = true;
	if (sim->heat && warms(sim, s))
		heat_ran(sim->heat, (int)(s / GPU_STREAMS), task->start_ns, task->end_ns);
	sim->streams[s].head = task->next;
	for (uint32_t waiter = task->waiters, next; waiter; waiter = next) {
		next = sim->streams[waiter - 1].next_waiter;
		free_ns += sim->wake_ns;
		proceed(sim, waiter - 1);
	}
	sim->streams[s].since_ns = computes(sim, s) ? MAX(free_ns, sim->now_ns + sim->next_ns) : free_ns;
	proceed(sim, s);
}

/* All of a stage is over; members of a group wait for the slowest. */
static void finish(struct sim *sim, stream_id s)
{
	uint32_t index = sim->tasks[sim->streams[s].head].group;
	if (!index) {
		end(sim, s);
		return;
	}
	struct group *group = group_at(sim, index);
	sim->streams[s].phase = PHASE_DONE;
	if (--group->running)
		return;
	for (uint32_t member = group->members, next; member; member = next) {
		next = sim->streams[member - 1].next_member; /* the stream may join its next group at once */
		end(sim, member - 1);
	}
}

static void happen(struct sim *sim, stream_id s)
{
	struct stream *stream = &sim->streams[s];
	nsec_t floor_ns = sim->tasks[stream->head].end_ns;
	if (stream->phase == PHASE_STARTING) {
		arrive(sim, s);
		return;
	}
	if (stream->phase == PHASE_FLOWING)
		share_stop(sim->share, s);
	if (sim->counters && stream->phase != PHASE_FLOORED)
		count(sim, s, 0);
	if (floor_ns > sim->now_ns) {
		stream->phase = PHASE_FLOORED;
		events_put(sim->events, s, floor_ns);
	} else {
		finish(sim, s);
	}
}

void sim_instant(struct sim *sim)
{
	sim->now_ns = events_next_ns(sim->events);
	while (events_next_ns(sim->events) == sim->now_ns)
		happen(sim, events_take(sim->events));
	if (!sim->share)
		return;
	uint32_t n;
	const uint32_t *changed = share_settle(sim->share, &n);
	for (uint32_t i = 0; i < n; i++)
		set_rate(sim, changed[i], exposed_rate(sim, changed[i], share_rate(sim->share, changed[i])));
}

static char *stage_words(const struct sim *sim, stage_id id)
{
	g_autofree char *stream = stream_name(sim->m, sim->tasks[id].stream);
	return g_strdup_printf("stage %u (%s on %s)", id, stage_kind_name(sim->notes[id].kind), stream);
}

/* A member of a group that is launched but not there yet. STAGE_NONE: all that are launched are there. */
static stage_id missing_member(const struct sim *sim, uint32_t group)
{
	for (stage_id id = 0; id < sim->base.n_launched; id++)
		if (sim->tasks[id].group == group &&
		    (sim->streams[sim->tasks[id].stream].head != id || sim->tasks[id].n_met < sim->tasks[id].n_preds))
			return id;
	return STAGE_NONE;
}

/* Follows what the stage waits for, down to a group that misses members or some way round a circle. */
bool sim_deadlock(const struct sim *sim, stage_id id, GError **error)
{
	g_autoptr(GString) text = g_string_new(NULL);
	for (uint32_t hops = 0; hops < 8 && id != STAGE_NONE; hops++) {
		g_autofree char *words = stage_words(sim, id);
		const struct task *task = &sim->tasks[id];
		const struct group *group = group_at(sim, task->group);
		stage_id head = sim->streams[task->stream].head;
		g_string_append(text, words);
		if (head != id) {
			g_string_append(text, " waits behind ");
			id = head;
		} else if (task->n_met < task->n_preds) {
			g_string_append(text, " waits for ");
			id = task->preds[task->n_met];
		} else {
			g_string_append_printf(text, " waits for its group %u (%u members, %u launched, %u ready)", group->id, group->size,
			                       group->launched, group->arrived);
			id = missing_member(sim, task->group);
			g_string_append(text, id == STAGE_NONE ? "" : ", which waits for ");
		}
	}
	g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_INPUT, "the schedule is stuck at %.3f ms: %s%s", (double)sim->now_ns / (double)NSEC_PER_MSEC,
	            text->str, id == STAGE_NONE ? "" : "...");
	return false;
}
