/* A stage is measured where it will run, in a training step with its caches as they are then, but without company:
 *
 *     computation   one GPU, experts at home: only the compute stream works, long enough for the GPU to be as hot as it gets
 *     Adam          one GPU, experts in DRAM, and only when the backward has ended
 *     exchanges     two GPUs, experts at home: both compute streams wait meanwhile
 *     the others    copies, counts, all-reduces: outside a run, because in one they have company
 *
 * Runs differ in tokens, experts and the experts' inner size, so that each kind is seen over a range of sizes; where experts are measured, a rule
 * takes the gate's place (skewed where they run one by one, even where they are grouped), so that there are tokens for all of them. Runs have a few
 * of the network's layers: what a stage takes does not depend on their number. */
#include "calibrate.h"

#include "engine.h"
#include "model/backend_null.h"
#include "model/error.h"
#include "model/schedule.h"
#include "rates.h"
#include "run.h"
#include "samples.h"
#include "traces/kineto.h"
#include "waits.h"

#include <glib/gstdio.h>
#include <math.h>
#include <string.h>
#include <sys/utsname.h>

enum {
	WARMUP = 2,
	LAYERS_LEAST = 4,
	HOT_LAYERS = 12 /* steps long beside what lies between them, and more state than caches of any kind hold */
};

enum serves {
	SERVES_COMPUTE = 1,
	SERVES_HOST = 2,
	SERVES_EXCHANGES = 4,
	SERVES_OVERHEADS = 8,
	SERVES_CORES = 16,
	SERVES_GROUPED = 32,
	SERVES_EXPERTS = 64,
	SERVES_ADAM = 128,
	SERVES_SUMS = 256
};

struct probe {
	int serves;
	int gpus, sequences, experts, microbatches, d_expert;
	const char *routing; /* in the gate's place; NULL: it decides */
};

/* Loads of a rule: sizes an octave and more apart in one run; and the same for all. */
#define SKEWED "zipf:2"
#define EVEN "uniform"

struct calibration {
	const struct scenario_options *o;
	const struct calibrate_options *how;
	struct machine *m;
	struct measured *tables;
	GArray *probes;    /* struct probe */
	GArray *samples;   /* struct timing */
	GArray *launch_us; /* double */
	struct waits waits;
	GArray *mixer_us[2]; /* double: backward of one GPU alone, and beside another */
	GArray *heat_us[2];  /* double: the same on a busy GPU, and on one that mostly waits */
	int layers;          /* of a run */
	int d_expert;        /* of the network */
	size_t expert;       /* parameters of one */
	uint32_t heat_tokens;
	int heating;    /* steps until a GPU is as hot as it gets */
	uint32_t steps; /* recorded so far */
	int done, total;
};

static void advance(struct calibration *c, const char *what)
{
	c->how->progress(++c->done, c->total, what, c->how->user);
}

/* For whoever waits. */
static char *probe_name(const struct probe *p)
{
	static const struct {
		int serves;
		const char *what;
	} names[] = {{SERVES_HOST, "Adam"},
	             {SERVES_EXCHANGES, "exchanges"},
	             {SERVES_GROUPED, "grouped experts"},
	             {SERVES_EXPERTS, "experts"},
	             {SERVES_COMPUTE, "computation"}};
	const char *what = "";
	for (size_t i = 0; i < G_N_ELEMENTS(names) && !*what; i++)
		what = p->serves & names[i].serves ? names[i].what : "";
	return g_strdup_printf("%s, %d sequences, %d experts, inner size %d", what, p->sequences, p->experts, p->d_expert);
}

static void add_probe(struct calibration *c, struct probe p)
{
	g_array_append_val(c->probes, p);
}

static void list_probes(struct calibration *c, const struct scenario *base)
{
	const int s = base->sequences, e = network_experts(base->network), gpus = c->m->gpus_per_node;
	int d = 0, k = 1;
	for (int i = 0; i < base->network->layers; i++) {
		const struct layer *l = &base->network->layer[i];
		d = l->experts ? l->d_expert : d;
		k = MAX(k, l->top_k);
	}
	c->d_expert = d;
	c->expert = (size_t)activation_matrices(base->network->activation) * (size_t)base->network->d_model * (size_t)d;
	for (int n = 1; n < s; n *= 2)
		add_probe(c, (struct probe){SERVES_COMPUTE, 1, n, e, 1, d});
	add_probe(c, (struct probe){SERVES_COMPUTE | SERVES_OVERHEADS | SERVES_CORES, 1, s, e, 1, d});
	add_probe(c, (struct probe){SERVES_COMPUTE, 1, 2 * s, e, 1, d});
	add_probe(c, (struct probe){SERVES_COMPUTE, 1, s, MAX(e / 4, k), 1, d});
	add_probe(c, (struct probe){SERVES_COMPUTE, 1, s, e * 4, 1, d});
	add_probe(c, (struct probe){SERVES_COMPUTE, 1, s + s % 2, e, 2, d});
	for (int n = MAX(s / 16, 1); n < 2 * s; n *= 4)
		add_probe(c, (struct probe){SERVES_EXPERTS, 1, n, e, 1, d, SKEWED});
	add_probe(c, (struct probe){SERVES_EXPERTS, 1, 2 * s, e, 1, d, SKEWED});
	for (int n = s; n >= MAX(s / 16, 1); n /= 4)
		for (int of = 1; of <= 4; of *= 2)
			add_probe(c, (struct probe){SERVES_GROUPED, 1, n, MAX(e * of / 2, k), 1, d, EVEN});
	add_probe(c, (struct probe){SERVES_GROUPED, 1, s, k, 1, d, EVEN});
	add_probe(c, (struct probe){SERVES_HOST | SERVES_ADAM, 1, s, e, 1, MAX(d / 4, 1), EVEN});
	add_probe(c, (struct probe){SERVES_HOST | SERVES_ADAM | SERVES_OVERHEADS, 1, s, e, 1, d, EVEN});
	add_probe(c, (struct probe){SERVES_HOST | SERVES_SUMS, 1, s + s % 2, e, 2, d, EVEN});
	add_probe(c, (struct probe){SERVES_HOST | SERVES_ADAM, 1, s, e, 1, 4 * d, EVEN});
	if (gpus < 2)
		return;
	for (int n = MAX(s / 16, 1); n < s; n *= 4)
		add_probe(c, (struct probe){SERVES_EXCHANGES, 2, n, MAX(e, 2), 1, d, EVEN});
	add_probe(c, (struct probe){SERVES_EXCHANGES | SERVES_CORES, 2, s, MAX(e, 2), 1, d, EVEN});
	add_probe(c, (struct probe){SERVES_EXCHANGES, 2, 2 * s, MAX(e, 2), 1, d, EVEN});
}

static struct scenario *scenario_of(const struct calibration *c, const struct probe *p, GError **error)
{
	bool copies = p->serves & SERVES_HOST;
	g_autoptr(GStrvBuilder) set = g_strv_builder_new();
	g_autofree char *inner = g_strdup_printf("network.d_expert=%d", p->d_expert),
	                *layers = g_strdup_printf("network.layers=%d",
	                                          MAX(1, p->d_expert > c->d_expert ? c->layers * c->d_expert / p->d_expert : c->layers));
	struct scenario_options o = *c->o;
	if (o.set)
		g_strv_builder_addv(set, (const char **)o.set);
	g_strv_builder_add_many(set, inner, layers, p->serves & SERVES_GROUPED ? "policy.expert_compute=grouped" : "policy.expert_compute=sequential",
	                        "contention.rule=max-min", NULL);
	if (copies)
		g_strv_builder_add_many(set, "policy.expert_home=dram", "policy.pinned_share=0", "policy.upload_ahead=0", "policy.upload_scope=layer",
		                        "policy.optimizer=cpu-step", NULL);
	g_auto(GStrv) words = g_strv_builder_end(set);
	o.set = (const char *const *)words;
	o.policy = copies ? "es-moe" : "static";
	o.gpus = p->gpus;
	o.sequences = p->sequences;
	o.experts = p->experts;
	o.microbatches = p->microbatches;
	o.routing = p->routing;
	return scenario_new(&o, error);
}

static void remove_folder(const char *folder)
{
	g_autoptr(GDir) dir = g_dir_open(folder, 0, NULL);
	for (const char *name; dir && (name = g_dir_read_name(dir));) {
		g_autofree char *path = g_build_filename(folder, name, NULL);
		g_unlink(path);
	}
	g_rmdir(folder);
}

static void say_nothing(const struct run_step *step, void *user) {}

static char *make_folder(GError **error)
{
	g_autoptr(GError) cause = NULL;
	char *folder = g_dir_make_tmp("esmoe-calibrate-XXXXXX", &cause);
	if (!folder)
		g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_INPUT, "no folder for traces and files of experts: %s", cause->message);
	return folder;
}

static struct trace *run(const struct calibration *c, const struct probe *p, const struct scenario *sc, GError **error)
{
	g_autofree char *folder = make_folder(error);
	if (!folder)
		return NULL;
	const struct run_options o = {.device = c->how->device,
	                              .steps = (uint64_t)(WARMUP + (p->serves & SERVES_HOST ? 0 : c->heating) + c->how->steps),
	                              .lr = 1e-3f,
	                              .balance = 1e-2f,
	                              .z = 1e-3f,
	                              .trace = folder,
	                              .trace_steps = c->how->steps,
	                              .apart = true,
	                              .save_every = 1,
	                              .impose = p->routing != NULL,
	                              .command = "esmoe calibrate",
	                              .report = say_nothing};
	const char *const paths[] = {folder, NULL};
	struct trace *trace = run_train(sc, &o, error) ? kineto_read(paths, error) : NULL;
	remove_folder(folder);
	return trace;
}

/* In the unit of the kind's table. */
static double size_of(const struct calibration *c, const struct scenario *sc, const struct span *s)
{
	const char *unit = measured_unit(s->kind, s->pass);
	const struct layer *l = &sc->network->layer[s->layer];
	if (g_str_equal(unit, "bytes"))
		return (double)s->bytes;
	if (g_str_equal(unit, "parameters")) {
		double each = s->kind == STAGE_ADAM_GPU || s->kind == STAGE_ACCUMULATE_GPU ? 28
		              : s->kind == STAGE_ADAM                                      ? sc->machine->adam_bytes_per_param
		                                                                           : 10;
		return (double)s->bytes / each;
	}
	return measured_size(&c->tables->table[s->kind][s->pass], s->kind, l, s->tokens);
}

static bool serves_kind(int serves, int kind)
{
	switch (kind) {
	case STAGE_ADAM:
		return serves & SERVES_ADAM;
	case STAGE_ACCUMULATE:
		return serves & SERVES_SUMS;
	case STAGE_ALL_TO_ALL:
		return serves & SERVES_EXCHANGES;
	case STAGE_UPLOAD:
	case STAGE_DOWNLOAD:
	case STAGE_COUNTS:
	case STAGE_ALL_REDUCE:
	case STAGE_REDUCE_SCATTER:
	case STAGE_ALL_GATHER:
	case STAGE_SSD_READ:
	case STAGE_SSD_WRITE:
		return false;
	case STAGE_EXPERT:
		return serves & SERVES_EXPERTS;
	default:
		return serves & SERVES_COMPUTE;
	}
}

/* A grouped launch: one expert of it with the mean of their tokens. */
static void take_group(struct calibration *c, const struct scenario *sc, const struct span *s)
{
	double experts = sc->network->layer[s->layer].experts, us = (double)(s->end_ns - s->start_ns) / 1e3;
	struct timing sample = {MEASURED_GROUPED, s->pass, s->tokens / experts, us / experts, s->tokens, experts, c->steps + s->step};
	if (s->kind == STAGE_EXPERT && s->expert < 0 && s->tokens)
		g_array_append_val(c->samples, sample);
}

static void take_samples(struct calibration *c, const struct probe *p, const struct scenario *sc, const struct trace *trace)
{
	for (guint i = 0; i < trace->spans->len; i++) {
		const struct span *s = &g_array_index(trace->spans, struct span, i);
		double us = (double)(s->end_ns - s->start_ns) / 1e3;
		if (s->kind == STAGE_MIXER && s->pass == PASS_BACKWARD && p->serves & SERVES_CORES)
			g_array_append_val(c->mixer_us[p->gpus - 1], us);
		if (s->kind == STAGE_MIXER && s->pass == PASS_BACKWARD && p->gpus == 1 && s->tokens == c->heat_tokens)
			g_array_append_val(c->heat_us[p->serves & SERVES_HOST ? 1 : 0], us);
		if (p->serves & SERVES_GROUPED)
			take_group(c, sc, s);
		if (!measured_unit(s->kind, s->pass) || !serves_kind(p->serves, s->kind))
			continue;
		struct timing sample = {s->kind,   measured_pass(s->kind, s->pass),      size_of(c, sc, s), us,
		                        s->tokens, sc->network->layer[s->layer].experts, c->steps + s->step};
		if (sample.size > 0)
			g_array_append_val(c->samples, sample);
	}
}

/* Host time of one launch: what the launchers took for a step over the launches a schedule counts. */
static bool take_launches(struct calibration *c, struct scenario *sc, const struct trace *trace, GError **error)
{
	sc->machine->launch_us = 1;
	g_autoptr(schedule) schedule = schedule_new(sc, NULL, error);
	if (!schedule)
		return false;
	g_autoptr(backend) b = backend_null_new(sc->routing, sc->machine->gpus);
	if (!schedule_step(schedule, b, error))
		return false;
	double launches = (double)schedule_launch_ns(schedule) / 1e3;
	for (guint step = 0; step < trace->step_end_ns->len; step++) {
		nsec_t sum = 0;
		for (guint i = 0; i < trace->spans->len; i++) {
			const struct span *s = &g_array_index(trace->spans, struct span, i);
			sum += s->step == step && s->rank == 0 && s->launch_ns >= 0 ? s->launch_end_ns - s->launch_ns : 0;
		}
		double us = (double)sum / 1e3 / launches;
		g_array_append_val(c->launch_us, us);
	}
	return true;
}

static bool measure_probe(struct calibration *c, const struct probe *p, GError **error)
{
	g_autoptr(scenario) sc = scenario_of(c, p, error);
	g_autoptr(trace) trace = sc ? run(c, p, sc, error) : NULL;
	if (!trace)
		return false;
	take_samples(c, p, sc, trace);
	c->steps += trace->step_end_ns->len;
	if (p->serves & SERVES_OVERHEADS)
		waits_add(&c->waits, trace);
	return !(p->serves & SERVES_OVERHEADS) || take_launches(c, sc, trace, error);
}

static double median(GArray *values, double otherwise)
{
	autoclear(measured_table) t = {0};
	if (!values->len)
		return otherwise;
	measured_add(&t, 1, (double *)(void *)values->data, (int)values->len);
	return t.median_us.v[0];
}

/* Two streams that compute at once on the cores there are: how much slower each gets tells what one asks for. */
static void fill_cores(struct calibration *c)
{
	double alone = median(c->mixer_us[0], 1), beside = median(c->mixer_us[1], alone);
	c->m->stream_cores = fmax(1, beside / alone * fmin(c->m->cores, 2) / 2);
}

static void set_text(char **field, char *owned)
{
	g_free(*field);
	*field = owned;
}

static void fill_identity(struct calibration *c, const struct scenario *base)
{
	struct utsname system;
	g_autoptr(GDateTime) now = g_date_time_new_now_utc();
	uname(&system);
	set_text(&c->tables->network, measured_network(base->network));
	set_text(&c->tables->device, g_strdup_printf("%s, %d cores of %s", c->tables->device, c->m->cores, system.machine));
	set_text(&c->tables->driver, g_strdup_printf("esmoe %s, %s %s", ESMOE_VERSION, system.sysname, system.release));
	set_text(&c->tables->date, g_date_time_format(now, "%Y-%m-%dT%H:%MZ"));
	c->tables->gpus = MIN(c->m->gpus_per_node, 2);
}

static void rates_advance(const char *what, void *calibration)
{
	advance(calibration, what);
}

static bool measure_rates(struct calibration *c, GError **error)
{
	g_autofree char *made = c->how->ssd ? NULL : make_folder(error);
	const char *ssd = c->how->ssd ? c->how->ssd : made;
	const struct machine_rates r = {c->how->device, ssd, c->m, c->expert, c->tables, rates_advance, c};
	bool ok = ssd && rates_measure(&r, error);
	if (made)
		remove_folder(made);
	return ok;
}

/* Rates first: it takes them no time to find out that a device or a folder is not there. */
static bool measure_all(struct calibration *c, GError **error)
{
	if (!measure_rates(c, error))
		return false;
	for (guint i = 0; i < c->probes->len; i++) {
		g_autoptr(GError) cause = NULL;
		g_autofree char *name = probe_name(&g_array_index(c->probes, struct probe, i));
		/* what is too large for this machine is what its runs cannot need either */
		if (!measure_probe(c, &g_array_index(c->probes, struct probe, i), &cause) && !g_error_matches(cause, ESMOE_ERROR, ESMOE_ERROR_FIT)) {
			g_propagate_error(error, g_steal_pointer(&cause));
			return false;
		}
		advance(c, name);
	}
	if (!c->samples->len) {
		g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_FIT, "%s: not even the smallest run fits this machine", c->o->model);
		return false;
	}
	return true;
}

static void calibration_clear(struct calibration *c)
{
	GArray *arrays[] = {c->probes,        c->samples,     c->launch_us,   c->waits.sync_us, c->waits.event_us,
	                    c->waits.wake_us, c->mixer_us[0], c->mixer_us[1], c->heat_us[0],    c->heat_us[1]};
	for (size_t i = 0; i < G_N_ELEMENTS(arrays); i++)
		g_array_unref(arrays[i]);
	measured_free(c->tables);
}

/* Up to the second MoE layer at least, so that each kind of layer is there. */
static int few_layers(const struct network *n, int least)
{
	int layers = 0, moe = 0;
	while (layers < n->layers && (moe < 2 || layers < least))
		moe += n->layer[layers++].experts > 0;
	return layers;
}

static GArray *doubles(void)
{
	return g_array_new(FALSE, FALSE, sizeof(double));
}

/* Launchers and the thread that builds the schedule. A core that one of them shares with Adam is taken from that for a scheduler's slice, some
 * milliseconds, each time a gate answers; and an update ends with the last of its threads. */
static int cores_of_others(const struct device_info *info, const struct machine *m)
{
	return info->launcher_cores ? info->launcher_cores * m->gpus_per_node + 1 : 0;
}

bool calibrate(const struct scenario_options *o, const struct calibrate_options *how, struct machine *m, GError **error)
{
	struct scenario_options plain = *o;
	plain.policy = "static";
	g_autoptr(scenario) base = scenario_new(&plain, error);
	if (!base || !engine_knows(base, error))
		return false;
	if (!network_experts(base->network)) {
		g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_INPUT, "%s has no experts: expected a network with some", base->network->name);
		return false;
	}
	const struct device_info *info = device_find(how->device, error);
	if (!info)
		return false;
	autoclear(calibration) c = {.o = o, .how = how, .m = m, .tables = measured_new()};
	c.probes = g_array_new(FALSE, FALSE, sizeof(struct probe));
	c.samples = g_array_new(FALSE, FALSE, sizeof(struct timing));
	c.launch_us = doubles();
	c.waits = (struct waits){doubles(), doubles(), doubles()};
	c.mixer_us[0] = doubles();
	c.mixer_us[1] = doubles();
	c.heat_us[0] = doubles();
	c.heat_us[1] = doubles();
	c.heat_tokens = (uint32_t)(base->sequences * base->seq_len);
	c.heating = info->hot_after_steps;
	m->cores = (int)g_get_num_processors();
	m->adam_threads = MAX(1, MIN(m->adam_threads, m->cores - cores_of_others(info, m)));
	c.layers = few_layers(base->network, c.heating ? HOT_LAYERS : LAYERS_LEAST);
	list_probes(&c, base);
	c.total = (int)c.probes->len + rates_parts(m);
	if (!measure_all(&c, error))
		return false;
	samples_to_tables(c.samples, c.tables);
	fill_cores(&c);
	fill_identity(&c, base);
	m->cool_speedup = c.heating ? fmin(fmax(1, median(c.heat_us[0], 1) / median(c.heat_us[1], median(c.heat_us[0], 1))), 2) : 1;
	m->launch_us = median(c.launch_us, m->launch_us);
	m->sync_us = median(c.waits.sync_us, m->sync_us);
	m->event_us = median(c.waits.event_us, m->event_us);
	m->wake_us = median(c.waits.wake_us, m->wake_us);
	measured_free(m->measured);
	m->measured = g_steal_pointer(&c.tables);
	return true;
}
