/* A stage is measured where it will run, in a training step with its caches as they are then, but without company:
 *
 *     computation   one GPU, experts at home: only the compute stream works, long enough for the GPU to be as hot as it gets
 *     Adam          one GPU, experts in DRAM, and only when the backward has ended; how the clock follows work and rest: in some of these runs the
 *                   GPU waits for each expert, in others for Adam alone
 *     exchanges     two GPUs, experts at home: both compute streams wait meanwhile
 *     company       one GPU, experts in DRAM, Adam all along: what copies cost computation, and Adam the host
 *     the others    copies, counts: outside a run, because in one they have company
 *
 * What the host's memory decides - Adam, and rates of copies against it - is measured in turns spread over the whole calibration: memory that other
 * machines use, too, is faster and slower for seconds and minutes at a time. How fast Adam is alone right before and after the steps that
 * count says which of them a run had (run.c). probes.c has the runs. */
#include "calibrate.h"

#include "adam_speed.h"
#include "beside.h"
#include "claim.h"
#include "engine.h"
#include "model/error.h"
#include "model/plan.h"
#include "one_way.h"
#include "rates.h"
#include "readings.h"
#include "run.h"
#include "samples.h"
#include "streamed.h"
#include "traces/kineto.h"
#include "traces/temporary.h"
#include "warmth.h"

#include <math.h>
#include <string.h>
#include <sys/utsname.h>

#define WORK "traces and files of experts"
#define POOLS ((uint64_t)8 << 30) /* measure.c has two sets at most, adam_speed.c one */

enum {
	WARMUP = 2,
	TURNS = 7,      /* of the host's memory */
	ALONE_MS = 200, /* Adam */
	HEATING_LEAST = 4
};

#define APART (SERVES_HOST | SERVES_EXCHANGES | SERVES_ONE_WAY)

struct calibration {
	const struct scenario_options *o;
	const struct calibrate_options *how;
	struct machine *m;
	struct measured *tables;
	struct probes probes;
	GArray *runs; /* struct probe_run */
	struct rate_rounds *rounds;
	struct readings readings;
	uint32_t tokens; /* of a step of the scenario's size */
	int heating;     /* steps until a GPU is as hot as it gets */
	int done, total;
};

static void advance(struct calibration *c, const char *what)
{
	c->how->progress(++c->done, c->total, what, c->how->user);
}

/* A run's steps before those that count: fewer of those that take longer. */
static int heating_of(const struct calibration *c, const struct probe *p)
{
	if (p->serves & SERVES_HOST)
		return 0;
	return CLAMP(c->heating * c->probes.layers / probes_layers(&c->probes, p), MIN(c->heating, HEATING_LEAST), c->heating);
}

static void say_nothing(const struct run_step *step, void *user) {}

static struct trace *run(const struct calibration *c, const struct probe *p, const struct scenario *sc, GError **error)
{
	g_autofree char *folder = temporary_folder(WORK, error);
	if (!folder)
		return NULL;
	const struct run_options o = {.device = c->how->device,
	                              .steps = (uint64_t)(WARMUP + heating_of(c, p) + c->how->steps),
	                              .lr = 1e-3f,
	                              .balance = 1e-2f,
	                              .z = 1e-3f,
	                              .trace = folder,
	                              .trace_steps = c->how->steps,
	                              .looks = true,
	                              .apart = !c->probes.real || (p->serves & APART && !(p->serves & SERVES_COPIES)),
	                              .save_every = 1,
	                              .impose = p->routing != NULL,
	                              .command = "esmoe calibrate",
	                              .report = say_nothing};
	const char *const paths[] = {folder, NULL};
	struct trace *trace = run_train(sc, &o, error) ? kineto_read(paths, error) : NULL;
	temporary_folder_remove(folder);
	return trace;
}

static bool measure_probe(struct calibration *c, const struct probe *p, GError **error)
{
	g_autoptr(scenario) sc = probes_scenario(&c->probes, p, error);
	struct trace *trace = sc ? run(c, p, sc, error) : NULL;
	if (!trace)
		return false;
	struct probe_run done = {*p, g_steal_pointer(&sc), trace};
	g_array_append_val(c->runs, done);
	return true;
}

/* The law of the GPU's clock first: what stages take, and what copies cost them, is told for a hot one. */
static bool read_runs(struct calibration *c, GError **error)
{
	g_autoptr(GArray) warm = g_array_new(FALSE, FALSE, sizeof(struct warm_run));
	for (guint i = 0; i < c->runs->len; i++) {
		const struct probe_run *r = &g_array_index(c->runs, struct probe_run, i);
		const struct scenario *sc = r->scenario;
		g_autoptr(cost) cost = cost_new(sc->network, sc->machine, sc->policy, sc->seq_len, 0);
		const struct warm_run w = {.trace = r->trace,
		                           .waits = r->probe.serves & SERVES_HOST,
		                           .company = r->probe.serves & SERVES_COPIES,
		                           .d_expert = r->probe.d_expert,
		                           .products = {cost_expert_products(cost, PASS_FORWARD), cost_expert_products(cost, PASS_BACKWARD)}};
		if (r->probe.gpus == 1)
			g_array_append_val(warm, w);
	}
	const struct warm_run *runs = (const struct warm_run *)(const void *)warm->data;
	c->m->cool_speedup = 1;
	if (c->probes.real) {
		warmth_fit(runs, (int)warm->len, c->tokens, c->m);
		beside_fit(runs, (int)warm->len, c->m);
	}
	for (guint i = 0; i < c->runs->len; i++)
		if (!readings_take(&c->readings, &g_array_index(c->runs, struct probe_run, i), c->tables, c->m, error))
			return false;
	return true;
}

/* Two streams that compute at once on the cores there are: how much slower each gets tells what one asks for. */
static void fill_cores(struct calibration *c)
{
	double alone = readings_median(c->readings.mixer_us[0], 1), beside = readings_median(c->readings.mixer_us[1], alone);
	c->m->stream_cores = c->probes.real ? 0 : fmax(1, beside / alone * fmin(c->m->cores, 2) / 2);
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

static struct machine_rates rates_of(struct calibration *c, const char *ssd)
{
	return (struct machine_rates){c->how->device, ssd, c->m, c->probes.expert, c->tables, rates_advance, c};
}

static bool measure_rates(struct calibration *c, GError **error)
{
	g_autofree char *made = c->how->ssd ? NULL : temporary_folder(WORK, error);
	const char *ssd = c->how->ssd ? c->how->ssd : made;
	const struct machine_rates r = rates_of(c, ssd);
	bool ok = ssd && rates_measure(&r, error);
	temporary_folder_remove(made);
	return ok;
}

/* Bytes of DRAM, at most, that a run takes. */
static uint64_t needed_bytes(const struct calibration *c, const GArray *probes)
{
	uint64_t most = 0;
	for (guint i = 0; i < probes->len; i++) {
		g_autoptr(scenario) sc = probes_scenario(&c->probes, &g_array_index(probes, struct probe, i), NULL);
		struct plan plan;
		if (sc && plan_make(sc, &plan, NULL))
			most = MAX(most, memory_total(&plan.memory, TIER_PINNED) + memory_total(&plan.memory, TIER_DRAM));
	}
	return most;
}

/* Runs will claim their memory, and those of a calibration have a claim together: the memory of one is the next one's, and is not freed between
 * them. */
static void settle_memory(struct calibration *c)
{
	struct claim_found found;
	bool claimed = claim_open(POOLS + MAX(needed_bytes(c, c->probes.list), needed_bytes(c, c->probes.host)), CLAIM_BESIDES, &found);
	g_autofree char *what = claimed ? claim_describe(&found) : NULL;
	advance(c, claimed ? what : "host memory");
}

/* What is too large for this machine is what its runs cannot need either; where all layers are, a few may do. */
static bool measure_if_it_fits(struct calibration *c, struct probe p, GError **error)
{
	g_autoptr(GError) cause = NULL;
	g_autofree char *name = probe_name(&p);
	bool done = measure_probe(c, &p, &cause);
	if (!done && p.serves & SERVES_WHOLE && g_error_matches(cause, ESMOE_ERROR, ESMOE_ERROR_FIT)) {
		p.serves &= ~SERVES_WHOLE;
		g_clear_error(&cause);
		done = measure_probe(c, &p, &cause);
	}
	if (!done && !g_error_matches(cause, ESMOE_ERROR, ESMOE_ERROR_FIT)) {
		g_propagate_error(error, g_steal_pointer(&cause));
		return false;
	}
	advance(c, name);
	return true;
}

/* A round of rates, a run whose Adam matters, and this turn's share of the others. */
static bool take_turn(struct calibration *c, guint turn, GError **error)
{
	const struct machine_rates r = rates_of(c, NULL);
	const guint n = c->probes.list->len;
	if (!rate_rounds_add(c->rounds, &r, error))
		return false;
	if (turn < c->probes.host->len && !measure_if_it_fits(c, g_array_index(c->probes.host, struct probe, turn), error))
		return false;
	for (guint i = n * turn / TURNS; i < n * (turn + 1) / TURNS; i++)
		if (!measure_if_it_fits(c, g_array_index(c->probes.list, struct probe, i), error))
			return false;
	return true;
}

/* Once, so that runs have something to compare with. */
static bool look_at_adam(struct calibration *c, GError **error)
{
	g_autoptr(adam_speed) speed = adam_speed_new(device_find(c->how->device, NULL), c->m->adam_threads);
	if (speed)
		c->probes.alone = adam_speed_now(speed, ALONE_MS);
	else
		g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_FIT, "no memory for a block of CPU Adam's state");
	return speed != NULL;
}

/* Rates first: it takes them no time to find out that a device or a folder is not there. */
static bool measure_all(struct calibration *c, GError **error)
{
	if (c->probes.real)
		settle_memory(c);
	if (!measure_rates(c, error) || !look_at_adam(c, error))
		return false;
	for (guint turn = 0; turn < TURNS; turn++)
		if (!take_turn(c, turn, error))
			return false;
	rate_rounds_fill(c->rounds, c->m);
	probe_runs_fill_alone(c->runs, c->m);
	if (!c->runs->len) {
		g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_FIT, "%s: not even the smallest run fits this machine", c->o->model);
		return false;
	}
	return read_runs(c, error);
}

static void calibration_clear(struct calibration *c)
{
	claim_close();
	probes_clear(&c->probes);
	g_array_unref(c->runs);
	rate_rounds_free(c->rounds);
	readings_clear(&c->readings);
	measured_free(c->tables);
}

/* Beside a GPU's launcher the host that waits for counts is late now and then, and a step has all of that; where streams share the cores, lateness is
 * theirs and told by what they ask for. */
static double lateness(const struct calibration *c, GArray *waits, double otherwise)
{
	return c->probes.real ? readings_mean(waits, otherwise) : readings_median(waits, otherwise);
}

static void fill_overheads(struct calibration *c)
{
	const struct waits *w = &c->readings.waits;
	struct machine *m = c->m;
	m->launch_us = readings_median(c->readings.launch_us, m->launch_us);
	m->launch_adam_us = m->launch_us * waits_adam_slowdown(w);
	m->sync_us = lateness(c, w->sync_us, m->sync_us);
	m->sync_adam_us = lateness(c, w->sync_adam_us, 0);
	m->first_us = fmax(lateness(c, w->first_us, 0), 0);
	m->first_adam_us = fmax(lateness(c, w->first_adam_us, 0), 0);
	m->sync_all_us = lateness(c, w->sync_all_us, 0);
	m->event_us = readings_median(w->event_us, m->event_us);
	m->wake_us = readings_median(w->wake_us, m->wake_us);
	m->next_us = readings_median(w->next_us, m->next_us);
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
	c.rounds = rate_rounds_new();
	c.runs = g_array_new(FALSE, FALSE, sizeof(struct probe_run));
	g_array_set_clear_func(c.runs, (GDestroyNotify)probe_run_clear);
	readings_init(&c.readings);
	const bool real = info->launcher_cores > 0;
	c.tokens = (uint32_t)(base->sequences * base->seq_len);
	c.heating = info->hot_after_steps;
	m->cores = (int)g_get_num_processors();
	m->stream_cores = real ? 0 : m->stream_cores;
	m->adam_threads = real ? machine_spare_adam_threads(m) : MIN(m->adam_threads, m->cores);
	probes_init(&c.probes, o, base, m, real, c.heating > 0);
	c.total = real + rates_parts() + TURNS + (int)(c.probes.list->len + c.probes.host->len);
	if (!measure_all(&c, error))
		return false;
	samples_to_tables(c.readings.samples, c.tables);
	m->nvlink_stream_share = streamed_share(c.readings.streamed);
	m->nvlink_one_way =
	    one_way_share(c.readings.unequal, &c.tables->table[STAGE_ALL_TO_ALL][PASS_FORWARD], machine_move_ns(m), m->nvlink_one_way);
	fill_cores(&c);
	fill_identity(&c, base);
	fill_overheads(&c);
	measured_free(m->measured);
	m->measured = g_steal_pointer(&c.tables);
	return true;
}
