/* A run opens everything in the order in which the parts lean on each other and closes it the other way round:
 *
 *     data -> schedule (does it fit?) -> devices -> engine (tensors) -> backend (threads) -> checkpoint
 *
 * and then steps. A step is the schedule's, unchanged; around it stand the engine's batch, the wait for its end, and what is recorded of it. The next
 * one begins before that: what is left of a step then runs under it, in the order that the schedule's own predecessors allow.
 *
 *     launched   | step 0 | step 1   |      | step 2   |      | step 3 ...
 *     ended            |  step 0     | told |  step 1  | told |
 *
 * Of several processes each does this with the GPUs of its node; they join before anything else, so that what one cannot do is told to all. */
#include "run.h"

#include "busiest.h"
#include "checkpoint.h"
#include "exec.h"
#include "host_memory.h"
#include "model/error.h"
#include "model/schedule.h"
#include "ranks.h"
#include "round.h"
#include "terms.h"
#include "together.h"
#include "traces/signals.h"
#include "traces/temporary.h"

#include <errno.h>
#include <glib/gstdio.h>

/* A step that was begun and has not been told of. */
struct begun {
	stage_id first, end;
	nsec_t start_ns;
	uint32_t *tokens; /* of its gates; the next step's come in the same place */
	struct expert_place *places;
};

struct run {
	const struct scenario *sc;
	const struct run_options *o;
	struct signals *signals;
	struct ranks *ranks; /* NULL: alone */
	int first, end;      /* GPUs of this process: first .. end - 1 */
	struct data *data;
	struct schedule *schedule;
	struct device **devices; /* (G), NULL where another process has it */
	struct device_group *group;
	const char *ssd; /* folder of expert files; NULL: none */
	char *ssd_made;  /* when it is our own */
	struct engine *engine;
	struct backend *backend;
	struct host_memory *memory; /* NULL: others have theirs of it */
	struct record *record;
	struct folder *folder;
	size_t tokens;         /* counts of one step: (microbatches, MoE layers, G, E) */
	uint64_t step;         /* so many have ended */
	uint64_t n_begun;      /* at most two more */
	struct begun begun[2]; /* by parity */
	nsec_t last_end_ns;
	bool exact; /* the device knows when the work of a stage really ran, once nothing runs */
	int taken;  /* signal that someone was sent */
};

static void run_clear(struct run *r)
{
	if (r->ranks)
		ranks_watch(r->ranks, NULL, NULL);
	backend_free(r->backend);
	engine_free(r->engine);
	if (r->devices)
		device_close(r->devices + r->first, r->end - r->first, r->group);
	g_free(r->devices);
	schedule_free(r->schedule);
	data_free(r->data);
	record_free(r->record);
	folder_free(r->folder);
	temporary_folder_remove(r->ssd_made);
	g_free(r->ssd_made);
	ranks_free(r->ranks);
	host_memory_free(r->memory);
	g_free(r->begun[0].tokens);
	g_free(r->begun[1].tokens);
	g_free(r->begun[0].places);
	g_free(r->begun[1].places);
	signals_free(r->signals);
}

static bool each(void *owner, bool write_back, engine_tensor_fn fn, void *user, GError **error)
{
	return engine_each(owner, write_back, fn, user, error);
}

static bool open_data(struct run *r, GError **error)
{
	size_t n = (size_t)r->sc->seq_len;
	g_autofree int32_t *tokens = g_new(int32_t, n), *targets = g_new(int32_t, n);
	r->data = data_open(r->o->data, r->sc->network->vocab, r->sc->seed, error);
	return r->data && data_batch(r->data, 0, 0, 1, r->sc->seq_len, tokens, targets, error);
}

/* Called by another thread: whoever waits for a device is let go. */
static void others_failed(const GError *error, void *run)
{
	const struct run *r = run;
	device_fail(r->devices[r->first], error);
}

static bool open_devices(struct run *r, GError **error)
{
	const struct machine *m = r->sc->machine;
	const struct device_members members = {r->first, m->gpus, r->ranks};
	g_autofree struct device **devices = g_new0(struct device *, m->gpus);
	if (!device_open_among(r->o->device, r->end - r->first, (uint64_t)(m->hbm_gib * GIB), &members, devices + r->first, &r->group, error))
		return false;
	r->devices = g_steal_pointer(&devices);
	if (r->ranks)
		ranks_watch(r->ranks, others_failed, r);
	int element_bytes = device_info(r->devices[r->first])->element_bytes;
	if (element_bytes == m->element_bytes && (element_bytes != 4 || r->sc->policy->gradient_bytes == 4))
		return true;
	g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_INPUT,
	            "software.element_bytes = %d, policy.gradient_bytes = %d: device %s computes with %d bytes and moves its gradients as they are",
	            m->element_bytes, r->sc->policy->gradient_bytes, r->o->device, element_bytes);
	return false;
}

/* Processes may see the same folder: each has its own in it. Expert files are the store's to remove; what a failed one leaves goes with the folder.
 */
static bool open_ssd(struct run *r, GError **error)
{
	r->ssd = r->o->ssd;
	if (schedule_expert_home(r->schedule) != HOME_SSD)
		return true;
	if (r->ssd && r->ranks)
		r->ssd = r->ssd_made = g_strdup_printf("%s/rank%d", r->o->ssd, ranks_own(r->ranks));
	if (r->ssd) {
		if (g_mkdir_with_parents(r->ssd, 0777) == 0)
			return true;
		g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_INPUT, "%s: cannot be made: %s", r->ssd, g_strerror(errno));
		return false;
	}
	r->ssd = r->ssd_made = temporary_folder("expert files", error);
	return r->ssd != NULL;
}

static bool open_engine(struct run *r, GError **error)
{
	struct engine_options e = {.seed = r->sc->seed,
	                           .lr = r->o->lr,
	                           .balance = r->o->balance,
	                           .z = r->o->z,
	                           .imposed = r->o->impose ? r->sc->routing : NULL,
	                           .ranks = r->ranks};
	if (!open_ssd(r, error))
		return false;
	e.ssd_folder = r->ssd;
	r->engine = engine_new(r->devices, r->group, r->sc, r->schedule, r->data, &e, error);
	if (!r->engine)
		return false;
	r->backend = exec_new(r->devices, r->sc->machine->gpus, r->engine, r->sc->machine, error);
	return r->backend != NULL;
}

/* Several processes would each take the memory of the others, and plan otherwise than they do. */
static bool open_host(struct run *r, GError **error)
{
	const struct memory *planned = &schedule_plan(r->schedule)->memory;
	const struct device_info *info = device_info(r->devices[r->first]);
	if (!r->ranks)
		r->memory = host_memory_open(r->sc, planned, schedule_expert_home(r->schedule) != HOME_HBM, info, r->o);
	schedule_free(r->schedule); /* it divides updates by the speed of CPU Adam */
	r->schedule = schedule_new(r->sc, NULL, error);
	return r->schedule && open_engine(r, error);
}

static bool resume(struct run *r, GError **error)
{
	const struct checkpoint_tensors tensors = {r->engine, each};
	struct checkpoint_state state;
	if (!r->o->resume)
		return true;
	g_autofree char *file = checkpoint_find(r->o->resume, error);
	if (!file || !checkpoint_load(file, &state, &tensors, error))
		return false;
	if (state.seed != r->sc->seed) {
		g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_INPUT, "%s: of a run with --seed %" G_GUINT64_FORMAT ", this one has %" G_GUINT64_FORMAT,
		            file, state.seed, r->sc->seed);
		return false;
	}
	if (state.step >= r->o->steps) {
		g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_INPUT,
		            "%s: %" G_GUINT64_FORMAT " steps are done already; expected more than that as --steps, which counts them", file,
		            state.step);
		return false;
	}
	r->step = r->n_begun = state.step;
	return true;
}

static bool save(struct run *r, GError **error)
{
	const struct checkpoint_tensors tensors = {r->engine, each};
	const struct checkpoint_state state = {r->step, r->sc->seed};
	if (r->first)
		return engine_each(r->engine, false, NULL, NULL, error);
	return checkpoint_save(r->o->save, &state, &tensors, error);
}

/* Where no gate is asked for its counts, those of a step are not known before it has ended. */
static bool overlaps(const struct run *r)
{
	return !r->o->apart && schedule_asks_gates(r->schedule);
}

static void tell(const struct run *r, const char *line)
{
	if (r->o->note)
		r->o->note(line, r->o->user);
}

static bool open_folder(struct run *r, GError **error)
{
	g_autofree char *head = run_head(r->o, overlaps(r));
	r->exact = device_record_stages(r->devices[r->first]);
	if (!r->exact && device_info(r->devices[r->first])->launcher_cores)
		tell(r, "without CUPTI the trace has the times of events, in which waits between the kernels of a stage count as work: "
		        "LD_LIBRARY_PATH needs the folder of libcupti.so.13");
	r->folder = folder_new(r->o->trace, r->sc, head, r->first, r->end, error);
	return r->folder && together_all(r->ranks, &r->exact, error);
}

static bool run_open(struct run *r, GError **error)
{
	const struct network *n = r->sc->network;
	if (!open_data(r, error) || (r->o->save && !r->first && !checkpoint_prepare(r->o->save, error)))
		return false;
	r->schedule = schedule_new(r->sc, NULL, error);
	if (!r->schedule || !open_devices(r, error) || !open_host(r, error))
		return false;
	if (!resume(r, error) || !together_same_step(r->ranks, r->step, r->o->resume, error) || (r->o->trace && !open_folder(r, error)))
		return false;
	for (int i = 0; i < n->layers; i++)
		r->tokens += (size_t)schedule_microbatches(r->schedule) * (size_t)r->sc->machine->gpus * (size_t)n->layer[i].experts;
	r->record = record_new(r->sc, schedule_microbatches(r->schedule), r->o->trace_steps);
	return true;
}

/* Every stage, not only the last of each stream that the next step hangs on: what is recorded has ended. */
static bool wait_for(struct run *r, const struct begun *b, GError **error)
{
	for (stage_id id = b->first; id < b->end; id++)
		if (!backend_wait(r->backend, id, error))
			return false;
	return true;
}

static uint32_t *step_loads(const struct run *r)
{
	const struct network *n = r->sc->network;
	uint32_t *tokens = g_new(uint32_t, MAX(r->tokens, 1)), *next = tokens;
	for (int mb = 0; mb < schedule_microbatches(r->schedule); mb++)
		for (int layer = 0; layer < n->layers; layer++) {
			if (!n->layer[layer].experts)
				continue;
			engine_loads(r->engine, layer, mb, next);
			next += r->sc->machine->gpus * n->layer[layer].experts;
		}
	return tokens;
}

static void measure(struct run *r, const GArray *spans, struct round *round)
{
	for (int g = r->first; g < r->end; g++) {
		round->hbm_bytes[g] = device_used_bytes(r->devices[g]);
		round->loss[g] = engine_loss_of(r->engine, r->step, g);
	}
	if (r->folder) {
		round_used(round, r->ssd);
		round->pinned_bytes = engine_pinned_bytes(r->engine);
		round->pageable_bytes = engine_pageable_bytes(r->engine);
	}
	round->signal = signals_taken(r->signals);
	busiest_find(r->sc->machine, spans, round);
}

static bool note(struct run *r, const struct run_step *s, const struct round *round, GError **error)
{
	const struct run_memory m = {round->hbm_bytes, round->host_bytes, round->ssd_bytes, round->pinned_bytes, round->pageable_bytes};
	return !r->folder || folder_step(r->folder, s, &m, error);
}

static struct run_step step_of(const struct run *r, const struct round *round)
{
	const struct scenario *sc = r->sc;
	const double seconds = (double)round->step_ns / NSEC_PER_SEC;
	struct run_step s = {.step = r->step, .step_ms = seconds * 1e3, .bound_by = busiest_name(round->busiest)};
	for (int g = 0; g < sc->machine->gpus; g++)
		s.loss += (double)round->loss[g];
	s.tokens_per_s = (double)sc->machine->gpus * sc->sequences * sc->seq_len / seconds;
	return s;
}

/* Its time is that from the end of the step before, or from its own beginning where that had ended by then. */
static void take_spans(struct run *r, const struct begun *b, GArray *spans, struct round *round)
{
	nsec_t start_ns = MAX(b->start_ns, r->last_end_ns), end_ns = start_ns;
	exec_spans(r->backend, b->first, b->end, spans);
	for (guint i = 0; i < spans->len; i++)
		end_ns = MAX(end_ns, g_array_index(spans, struct span, i).end_ns);
	r->last_end_ns = end_ns;
	round->step_ns = end_ns - start_ns;
}

/* Devices are asked for exact times when nothing runs; until then the backend keeps the spans. */
static bool settle_spans(struct run *r, const struct begun *b, GError **error)
{
	g_autoptr(trace) trace = trace_new();
	if (r->exact && b->end < r->backend->n_launched)
		return true;
	exec_trace(r->backend, b->end, trace);
	if (!r->exact)
		return true;
	if (!round_align(trace->spans, r->ranks, error))
		return false;
	record_exact(r->record, trace->spans);
	return true;
}

/* If the run comes to its end. */
static uint64_t first_recorded(const struct run *r)
{
	return r->o->steps - MIN((uint64_t)r->o->trace_steps, r->o->steps);
}

static bool step_end(struct run *r, GError **error)
{
	const int gpus = r->sc->machine->gpus;
	struct begun *b = &r->begun[r->step & 1];
	autoclear(round) round;
	g_autoptr(GArray) spans = g_array_new(FALSE, FALSE, sizeof(struct span));
	round_init(&round, gpus);
	if (!wait_for(r, b, error))
		return false;
	if (!b->tokens)
		b->tokens = step_loads(r);
	take_spans(r, b, spans, &round);
	if (r->step <= first_recorded(r))
		host_memory_step(r->memory, spans, first_recorded(r) - r->step);
	if (!round_align(spans, r->ranks, error))
		return false;
	measure(r, spans, &round);
	if (!round_meet(&round, r->ranks, gpus, r->first, r->end, error))
		return false;
	const struct run_step s = step_of(r, &round);
	record_step(r->record, &(struct recorded_step){.first = b->first,
	                                               .start_ns = r->last_end_ns - round.step_ns,
	                                               .end_ns = r->last_end_ns,
	                                               .spans = g_steal_pointer(&spans),
	                                               .tokens = g_steal_pointer(&b->tokens),
	                                               .hbm_bytes = g_memdup2(round.hbm_bytes, sizeof(*round.hbm_bytes) * (size_t)gpus),
	                                               .places = g_steal_pointer(&b->places)});
	if (!settle_spans(r, b, error))
		return false;
	r->step++;
	r->taken = r->ranks ? round.signal : signals_taken(r->signals);
	if (!note(r, &s, &round, error))
		return false;
	if (!r->first)
		r->o->report(&s, r->o->user);
	return !r->o->save || r->step == r->o->steps || r->step % r->o->save_every || save(r, error);
}

/* Between two steps, whether CPU Adam is looked at: those that are recorded, if the run comes to its end, begin with the next. */
static bool looks_here(const struct run *r)
{
	return host_memory_wants_looks(r->memory) && r->n_begun == first_recorded(r);
}

/* A step that cannot begin does not take the one before with it; of several processes the others go on to begin theirs. */
static bool step_begin(struct run *r, GError **error)
{
	struct begun *b = &r->begun[r->n_begun & 1];
	if (looks_here(r))
		host_memory_look(r->memory);
	*b = (struct begun){.first = r->backend->n_launched, .start_ns = exec_now_ns()};
	engine_begin(r->engine, r->n_begun);
	if (engine_unread(r->engine) && !r->ranks && r->step < r->n_begun && !step_end(r, error))
		return false;
	b->places = g_new(struct expert_place, schedule_places(r->schedule, NULL) + 1);
	schedule_places(r->schedule, b->places);
	if (!schedule_step(r->schedule, r->backend, error))
		return false;
	b->end = r->backend->n_launched;
	if (schedule_asks_gates(r->schedule)) /* all have answered, and the next step's will not wait for this one's end */
		b->tokens = step_loads(r);
	r->n_begun++;
	return true;
}

/* Whether the steps begun so far have to end before the next: a checkpoint follows them, exact times are due, or CPU Adam is looked at. */
static bool stands(const struct run *r)
{
	const struct run_options *o = r->o;
	return !overlaps(r) || looks_here(r) || (o->save && r->n_begun % o->save_every == 0) ||
	       (r->exact && r->n_begun % (uint64_t)o->trace_steps == 0);
}

static bool advance(struct run *r, GError **error)
{
	bool more = r->n_begun < r->o->steps && !r->taken;
	if (more && (r->step == r->n_begun || !stands(r)) && !step_begin(r, error))
		return false;
	more = r->n_begun < r->o->steps && !r->taken;
	return (more && !stands(r) && r->n_begun - r->step < 2) || step_end(r, error);
}

/* A run that fails leaves the trace of its steps before; why it failed matters more than why they could not be written. */
static void keep_trace(struct run *r)
{
	if (r->folder && record_steps(r->record) && !folder_finish(r->folder, r->record, NULL))
		return;
}

static bool train(struct run *r, GError **error)
{
	if (!run_open(r, error))
		return false;
	while (r->step < r->n_begun || (r->n_begun < r->o->steps && !r->taken))
		if (!advance(r, error))
			return false;
	if (host_memory_wants_looks(r->memory))
		host_memory_look(r->memory);
	host_memory_settle(r->memory);
	/* launchers send a signal more than once: until the files are whole, the next ones change nothing */
	if ((r->o->save && !save(r, error)) || (r->folder && !folder_finish(r->folder, r->record, error)))
		return false;
	return !r->ranks || ranks_leave(r->ranks, error);
}

bool run_train(const struct scenario *sc, const struct run_options *o, GError **error)
{
	autoclear(run) r = {.sc = sc, .o = o, .signals = signals_new()};
	GError *own = NULL;
	struct together with;
	bool joined = together_join(sc, o, &with, &own);
	r.ranks = with.ranks;
	r.first = with.first;
	r.end = with.end;
	if (!joined || !train(&r, &own)) {
		together_fail(r.ranks, &own);
		keep_trace(&r);
		g_propagate_error(error, own);
		return false;
	}
	if (r.taken)
		g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_SIGNAL + r.taken, "interrupted after step %" G_GUINT64_FORMAT " of %" G_GUINT64_FORMAT,
		            r.step, o->steps);
	return !r.taken;
}
