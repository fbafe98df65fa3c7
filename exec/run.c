/* A run opens everything in the order in which the parts lean on each other and closes it the other way round:
 *
 *     data -> schedule (does it fit?) -> devices -> engine (tensors) -> backend (threads) -> checkpoint
 *
 * and then steps. A step is the schedule's, unchanged; around it stand the engine's batch, the wait for its end, and what is recorded of it. Of
 * several processes each does this with the GPUs of its node; they join before anything else, so that what one cannot do is told to all. */
#include "run.h"

#include "checkpoint.h"
#include "exec.h"
#include "model/error.h"
#include "model/schedule.h"
#include "ranks.h"
#include "round.h"
#include "traces/signals.h"

#include <errno.h>
#include <glib/gstdio.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { EXPLAIN_MS = 2500 };

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
	struct record *record;
	struct folder *folder;
	size_t tokens; /* counts of one step: (microbatches, MoE layers, G, E) */
	uint64_t step; /* the next one */
	int taken;     /* signal that someone was sent */
};

/* Expert files are the store's to remove; what a failed one leaves goes with the folder. */
static void remove_ssd_folder(const char *path)
{
	g_autoptr(GDir) dir = g_dir_open(path, 0, NULL);
	for (const char *name; dir && (name = g_dir_read_name(dir));) {
		g_autofree char *file = g_build_filename(path, name, NULL);
		g_unlink(file);
	}
	g_rmdir(path);
}

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
	if (r->ssd_made)
		remove_ssd_folder(r->ssd_made);
	g_free(r->ssd_made);
	ranks_free(r->ranks);
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

/* Processes may see the same folder: each has its own in it. */
static bool open_ssd(struct run *r, GError **error)
{
	g_autoptr(GError) cause = NULL;
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
	r->ssd = r->ssd_made = g_dir_make_tmp("esmoe-ssd-XXXXXX", &cause);
	if (!r->ssd)
		g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_INPUT, "no folder for expert files: %s", cause->message);
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
	r->step = state.step;
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

/* Each rank looks for the checkpoint itself. */
static bool same_step(struct run *r, GError **error)
{
	if (!r->ranks)
		return true;
	g_autoptr(GPtrArray) all = ranks_gather(r->ranks, RANKS_STEPS, &r->step, sizeof r->step, error);
	for (int i = 0; all && i < ranks_size(r->ranks); i++) {
		gsize n;
		const void *step = g_bytes_get_data(g_ptr_array_index(all, i), &n);
		if (n == sizeof r->step && memcmp(step, &r->step, n) == 0)
			continue;
		g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_INPUT,
		            "--resume %s: %s has another checkpoint than step %" G_GUINT64_FORMAT "; expected a folder that all ranks see",
		            r->o->resume, ranks_name(r->ranks, i), r->step);
		return false;
	}
	return all != NULL;
}

static bool run_open(struct run *r, GError **error)
{
	const struct network *n = r->sc->network;
	if (!open_data(r, error) || (r->o->save && !r->first && !checkpoint_prepare(r->o->save, error)))
		return false;
	r->schedule = schedule_new(r->sc, NULL, error);
	if (!r->schedule || !open_devices(r, error) || !open_engine(r, error) || !resume(r, error) || !same_step(r, error))
		return false;
	if (r->o->trace) {
		(void)device_record_stages(r->devices[r->first]);
		r->folder = folder_new(r->o->trace, r->sc, r->o->command, r->first, r->end, error);
		if (!r->folder)
			return false;
	}
	for (int i = 0; i < n->layers; i++)
		r->tokens += (size_t)schedule_microbatches(r->schedule) * (size_t)r->sc->machine->gpus * (size_t)n->layer[i].experts;
	r->record = record_new(r->sc, schedule_microbatches(r->schedule), r->o->trace_steps);
	return true;
}

/* Every stage, not only the last of each stream that the next step hangs on: what is recorded has ended. */
static bool wait_for_all(struct run *r, stage_id first, GError **error)
{
	for (stage_id id = first; id < r->backend->n_launched; id++)
		if (!backend_wait(r->backend, id, error))
			return false;
	return schedule_wait(r->schedule, r->backend, error);
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

static const char *const busy_names[] = {"compute",   "upload",   "download",  "collective", "reduction",
                                         "optimizer", "ssd_read", "ssd_write", "host_launch"};
enum { BUSY_LAUNCH = GPU_STREAMS + NODE_STREAMS };
G_STATIC_ASSERT(G_N_ELEMENTS(busy_names) == BUSY_LAUNCH + 1);

/* The busiest stream; a launcher thread counts as one. */
static void find_busiest(const struct machine *m, const GArray *spans, struct round *round)
{
	int streams = stream_count(m), of_gpus = m->gpus * GPU_STREAMS, busiest = 0, launcher = 0;
	g_autofree nsec_t *busy = g_new0(nsec_t, streams), *launch = g_new0(nsec_t, m->gpus);
	for (guint i = 0; i < spans->len; i++) {
		const struct span *span = &g_array_index(spans, struct span, i);
		busy[span->stream] += span->end_ns - span->start_ns;
		if (span->launch_ns != -1)
			launch[span->rank] += span->launch_end_ns - span->launch_ns;
	}
	for (int i = 1; i < streams; i++)
		if (busy[i] > busy[busiest])
			busiest = i;
	for (int i = 1; i < m->gpus; i++)
		if (launch[i] > launch[launcher])
			launcher = i;
	round->busy_ns = MAX(launch[launcher], busy[busiest]);
	round->busiest = busiest < of_gpus ? busiest % GPU_STREAMS : GPU_STREAMS + (busiest - of_gpus) % NODE_STREAMS;
	if (launch[launcher] > busy[busiest])
		round->busiest = BUSY_LAUNCH;
}

/* Resident bytes of the process, 0 where the system does not tell. */
static uint64_t process_bytes(void)
{
	g_autofree char *text = NULL;
	unsigned long pages;
	if (!g_file_get_contents("/proc/self/statm", &text, NULL, NULL) || sscanf(text, "%*u %lu", &pages) != 1)
		return 0;
	return (uint64_t)pages * (uint64_t)sysconf(_SC_PAGESIZE);
}

static uint64_t folder_bytes(const char *path)
{
	g_autoptr(GDir) dir = path ? g_dir_open(path, 0, NULL) : NULL;
	uint64_t sum = 0;
	for (const char *name; dir && (name = g_dir_read_name(dir));) {
		g_autofree char *file = g_build_filename(path, name, NULL);
		struct stat st;
		if (stat(file, &st) == 0)
			sum += (uint64_t)st.st_blocks * 512;
	}
	return sum;
}

static void measure(struct run *r, const GArray *spans, struct round *round)
{
	for (int g = r->first; g < r->end; g++) {
		round->hbm_bytes[g] = device_used_bytes(r->devices[g]);
		round->loss[g] = engine_loss_of(r->engine, g);
	}
	if (r->folder) {
		round->host_bytes = process_bytes();
		round->ssd_bytes = folder_bytes(r->ssd);
		round->pinned_bytes = engine_pinned_bytes(r->engine);
		round->pageable_bytes = engine_pageable_bytes(r->engine);
	}
	round->signal = signals_taken(r->signals);
	find_busiest(r->sc->machine, spans, round);
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
	struct run_step s = {.step = r->step, .step_ms = seconds * 1e3, .bound_by = busy_names[round->busiest]};
	for (int g = 0; g < sc->machine->gpus; g++)
		s.loss += (double)round->loss[g];
	s.tokens_per_s = (double)sc->machine->gpus * sc->sequences * sc->seq_len / seconds;
	return s;
}

static bool step(struct run *r, GError **error)
{
	const int gpus = r->sc->machine->gpus;
	stage_id first = r->backend->n_launched;
	autoclear(round) round;
	g_autoptr(trace) trace = trace_new();
	nsec_t start_ns = exec_now_ns();
	round_init(&round, gpus);
	engine_begin(r->engine, r->step);
	if (!schedule_step(r->schedule, r->backend, error) || !wait_for_all(r, first, error))
		return false;
	round.step_ns = exec_now_ns() - start_ns;
	exec_trace(r->backend, trace);
	if (!round_align(trace->spans, r->ranks, error))
		return false;
	measure(r, trace->spans, &round);
	if (!round_meet(&round, r->ranks, gpus, r->first, r->end, error))
		return false;
	const struct run_step s = step_of(r, &round);
	record_step(r->record, first, start_ns, start_ns + round.step_ns, g_array_ref(trace->spans), step_loads(r),
	            g_memdup2(round.hbm_bytes, sizeof(*round.hbm_bytes) * (size_t)gpus));
	r->step++;
	r->taken = round.signal;
	if (!note(r, &s, &round, error))
		return false;
	if (!r->first)
		r->o->report(&s, r->o->user);
	return !r->o->save || r->step == r->o->steps || r->step % r->o->save_every || save(r, error);
}

/* A run that fails leaves the trace of its steps before; why it failed matters more than why they could not be written. */
static void keep_trace(struct run *r)
{
	if (r->folder && record_steps(r->record) && !folder_finish(r->folder, r->record, NULL))
		return;
}

/* ---- with others ---- */

/* Lines "section.key = value" of the scenario, and the options that all have to agree on. */
static char *terms_of(const struct run *r)
{
	const struct run_options *o = r->o;
	g_autofree char *ini = scenario_ini(r->sc), *section = g_strdup("");
	g_auto(GStrv) lines = g_strsplit(ini, "\n", 0);
	GString *terms = g_string_new(NULL);
	for (int i = 0; lines[i]; i++) {
		size_t n = strlen(lines[i]);
		if (n > 2 && lines[i][0] == '[') {
			g_free(section);
			section = g_strndup(lines[i] + 1, n - 2);
		} else if (n && lines[i][0] != '#') {
			g_string_append_printf(terms, "%s.%s\n", section, lines[i]);
		}
	}
	g_string_append_printf(terms, "--device %s\n--data %s\n--steps %" G_GUINT64_FORMAT "\n--lr %.9g\n--balance %.9g\n--z %.9g\n", o->device,
	                       o->data ? o->data : "none", o->steps, (double)o->lr, (double)o->balance, (double)o->z);
	g_string_append_printf(terms, "--trace %s\n--trace-steps %d\n--save %s\n--save-every %" G_GUINT64_FORMAT "\n--resume %s",
	                       o->trace ? o->trace : "none", o->trace_steps, o->save ? o->save : "none", o->save_every,
	                       o->resume ? o->resume : "none");
	return g_string_free(terms, FALSE);
}

static bool join(struct run *r, GError **error)
{
	const struct machine *m = r->sc->machine;
	const struct launched *l = r->o->launched;
	const int nodes = machine_nodes(m);
	r->end = m->gpus;
	if (!l || l->size == 1)
		return true;
	if (l->size != nodes) {
		g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_USAGE,
		            "%s started %d processes, but %d GPUs in nodes of machine.gpus_per_node = %d are %d nodes; expected a process a node",
		            l->by, l->size, m->gpus, m->gpus_per_node, nodes);
		return false;
	}
	g_autofree char *terms = terms_of(r);
	r->ranks = ranks_join(l, ESMOE_VERSION, terms, r->o->rendezvous_s, error);
	r->first = l->rank * m->gpus_per_node;
	r->end = r->first + machine_node_gpus(m, l->rank);
	return r->ranks != NULL;
}

/* What ended this process ends the others; what ended them is this one's error. */
static void fail_together(struct run *r, GError **error)
{
	if (!r->ranks || ((*error)->code == ESMOE_ERROR_DEVICE && ranks_explain(r->ranks, EXPLAIN_MS, error)))
		return;
	ranks_fail(r->ranks, *error);
	g_prefix_error(error, "%s: ", ranks_name(r->ranks, ranks_own(r->ranks)));
}

static bool train(struct run *r, GError **error)
{
	if (!run_open(r, error))
		return false;
	while (r->step < r->o->steps && !r->taken) {
		if (!step(r, error))
			return false;
		r->taken = r->ranks ? r->taken : signals_taken(r->signals);
	}
	/* launchers send a signal more than once: until the files are whole, the next ones change nothing */
	if ((r->o->save && !save(r, error)) || (r->folder && !folder_finish(r->folder, r->record, error)))
		return false;
	return !r->ranks || ranks_leave(r->ranks, error);
}

bool run_train(const struct scenario *sc, const struct run_options *o, GError **error)
{
	autoclear(run) r = {.sc = sc, .o = o, .signals = signals_new()};
	GError *own = NULL;
	bool joined = join(&r, &own);
	if (!joined || !train(&r, &own)) {
		fail_together(&r, &own);
		keep_trace(&r);
		g_propagate_error(error, own);
		return false;
	}
	if (r.taken)
		g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_SIGNAL + r.taken, "interrupted after step %" G_GUINT64_FORMAT " of %" G_GUINT64_FORMAT,
		            r.step, o->steps);
	return !r.taken;
}
