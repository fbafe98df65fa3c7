/* A run opens everything in the order in which the parts lean on each other and closes it the other way round:
 *
 *     data -> schedule (does it fit?) -> devices -> engine (tensors) -> backend (threads) -> checkpoint
 *
 * and then steps. A step is the schedule's, unchanged; around it stand the engine's batch, the wait for its end, and what is recorded of it. */
#include "run.h"

#include "checkpoint.h"
#include "exec.h"
#include "model/error.h"
#include "model/schedule.h"
#include "traces/signals.h"

#include <errno.h>
#include <glib/gstdio.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

struct run {
	const struct scenario *sc;
	const struct run_options *o;
	struct data *data;
	struct schedule *schedule;
	struct device **devices; /* (G) */
	struct device_group *group;
	char *ssd_made; /* folder of our own for expert files */
	struct engine *engine;
	struct backend *backend;
	struct record *record;
	struct folder *folder;
	size_t tokens; /* counts of one step: (microbatches, MoE layers, G, E) */
	uint64_t step; /* the next one */
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
	backend_free(r->backend);
	engine_free(r->engine);
	if (r->devices)
		device_close(r->devices, r->sc->machine->gpus, r->group);
	g_free(r->devices);
	schedule_free(r->schedule);
	data_free(r->data);
	record_free(r->record);
	folder_free(r->folder);
	if (r->ssd_made)
		remove_ssd_folder(r->ssd_made);
	g_free(r->ssd_made);
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

static bool open_devices(struct run *r, GError **error)
{
	const struct machine *m = r->sc->machine;
	g_autofree struct device **devices = g_new0(struct device *, m->gpus);
	if (!device_open(r->o->device, m->gpus, (uint64_t)(m->hbm_gib * GIB), devices, &r->group, error))
		return false;
	r->devices = g_steal_pointer(&devices);
	int element_bytes = device_info(r->devices[0])->element_bytes;
	if (element_bytes == m->element_bytes && (element_bytes != 4 || r->sc->policy->gradient_bytes == 4))
		return true;
	g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_INPUT,
	            "software.element_bytes = %d, policy.gradient_bytes = %d: device %s computes with %d bytes and moves its gradients as they are",
	            m->element_bytes, r->sc->policy->gradient_bytes, r->o->device, element_bytes);
	return false;
}

static bool open_ssd(struct run *r, const char **folder, GError **error)
{
	g_autoptr(GError) cause = NULL;
	*folder = r->o->ssd;
	if (schedule_expert_home(r->schedule) != HOME_SSD)
		return true;
	if (r->o->ssd) {
		if (g_mkdir_with_parents(r->o->ssd, 0777) == 0)
			return true;
		g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_INPUT, "%s: cannot be made: %s", r->o->ssd, g_strerror(errno));
		return false;
	}
	*folder = r->ssd_made = g_dir_make_tmp("esmoe-ssd-XXXXXX", &cause);
	if (!r->ssd_made)
		g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_INPUT, "no folder for expert files: %s", cause->message);
	return r->ssd_made != NULL;
}

static bool open_engine(struct run *r, GError **error)
{
	struct engine_options e = {
	    .seed = r->sc->seed, .lr = r->o->lr, .balance = r->o->balance, .z = r->o->z, .imposed = r->o->impose ? r->sc->routing : NULL};
	if (!open_ssd(r, &e.ssd_folder, error))
		return false;
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
	return checkpoint_save(r->o->save, &state, &tensors, error);
}

static bool run_open(struct run *r, GError **error)
{
	const struct network *n = r->sc->network;
	if (!open_data(r, error) || (r->o->save && !checkpoint_prepare(r->o->save, error)))
		return false;
	r->schedule = schedule_new(r->sc, NULL, error);
	if (!r->schedule || !open_devices(r, error) || !open_engine(r, error) || !resume(r, error))
		return false;
	if (r->o->trace) {
		(void)device_record_stages(r->devices[0]);
		r->folder = folder_new(r->o->trace, r->sc, r->o->command, error);
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

/* The busiest stream; a launcher thread counts as one. */
static const char *bound_by(const struct machine *m, const GArray *spans)
{
	static const char *const gpu_streams[GPU_STREAMS] = {"compute", "upload", "download", "collective", "reduction"};
	static const char *const node_streams[NODE_STREAMS] = {"optimizer", "ssd_read", "ssd_write"};
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
	if (launch[launcher] > busy[busiest])
		return "host_launch";
	return busiest < of_gpus ? gpu_streams[busiest % GPU_STREAMS] : node_streams[(busiest - of_gpus) % NODE_STREAMS];
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

static uint64_t *used_hbm(const struct run *r)
{
	uint64_t *hbm = g_new(uint64_t, r->sc->machine->gpus);
	for (int g = 0; g < r->sc->machine->gpus; g++)
		hbm[g] = device_used_bytes(r->devices[g]);
	return hbm;
}

static bool note(struct run *r, const struct run_step *s, GError **error)
{
	g_autofree uint64_t *hbm = used_hbm(r);
	if (!r->folder)
		return true;
	const struct run_memory m = {hbm, process_bytes(), folder_bytes(r->ssd_made ? r->ssd_made : r->o->ssd), engine_pinned_bytes(r->engine),
	                             engine_pageable_bytes(r->engine)};
	return folder_step(r->folder, s, &m, error);
}

static bool step(struct run *r, GError **error)
{
	const struct scenario *sc = r->sc;
	stage_id first = r->backend->n_launched;
	g_autoptr(trace) trace = trace_new();
	nsec_t start_ns = exec_now_ns();
	engine_begin(r->engine, r->step);
	if (!schedule_step(r->schedule, r->backend, error) || !wait_for_all(r, first, error))
		return false;
	nsec_t end_ns = exec_now_ns();
	double seconds = (double)(end_ns - start_ns) / NSEC_PER_SEC;
	exec_trace(r->backend, trace);
	struct run_step s = {.step = r->step, .loss = engine_loss(r->engine), .step_ms = seconds * 1e3};
	s.tokens_per_s = (double)sc->machine->gpus * sc->sequences * sc->seq_len / seconds;
	s.bound_by = bound_by(sc->machine, trace->spans);
	record_step(r->record, start_ns, end_ns, g_array_ref(trace->spans), step_loads(r), used_hbm(r));
	r->step++;
	if (!note(r, &s, error))
		return false;
	r->o->report(&s, r->o->user);
	return !r->o->save || r->step == r->o->steps || r->step % r->o->save_every || save(r, error);
}

/* A run that fails leaves the trace of its steps before; why it failed matters more than why they could not be written. */
static void keep_trace(struct run *r)
{
	if (r->folder && record_steps(r->record) && !folder_finish(r->folder, r->record, NULL))
		return;
}

static bool train(struct run *r, GError **error)
{
	g_autoptr(signals) signals = signals_new();
	int taken = 0;
	if (!run_open(r, error))
		return false;
	while (r->step < r->o->steps && !taken) {
		if (!step(r, error)) {
			keep_trace(r);
			return false;
		}
		taken = signals_taken(signals);
	}
	/* launchers send a signal more than once: until the files are whole, the next ones change nothing */
	if ((r->o->save && !save(r, error)) || (r->folder && !folder_finish(r->folder, r->record, error)))
		return false;
	if (taken)
		g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_SIGNAL + taken, "interrupted after step %" G_GUINT64_FORMAT " of %" G_GUINT64_FORMAT,
		            r->step, r->o->steps);
	return !taken;
}

bool run_train(const struct scenario *sc, const struct run_options *o, GError **error)
{
	autoclear(run) r = {.sc = sc, .o = o};
	return train(&r, error);
}
