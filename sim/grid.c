/* The grid's rows are independent simulations, so threads take the next row by a shared counter and results go through a queue to the calling thread,
 * which puts them back in order: what is delivered does not depend on the number of threads.
 *
 *     counter --> threads: predict row i --> queue --> calling thread: in order --> deliver
 *
 * Signals are looked at by the calling thread while it waits for the next result. */
#include "grid.h"

#include "model/error.h"
#include "traces/progress.h"
#include "traces/signals.h"

#include <string.h>

enum { STEPS = 2, STEPS_MOST = 1000, THREADS_MOST = 1024, ROWS_MOST = 1 << 20, POLL_USEC = 50000 };

struct grid {
	char **models, **machines, **policies;
	char **model_labels, **machine_labels, **policy_labels;
	int *model_experts, *machine_gpus; /* as the files say */
	struct ini_ints gpus, experts;     /* at least one each; 0: as the files say */
	struct scenario_options rest;
	const struct how *how;
	int rows;
};

const char *status_name(int status)
{
	static const char *const names[N_STATUSES] = {"ok", "oom_hbm", "oom_dram", "oom_ssd", "invalid"};
	g_assert(status >= 0 && status < N_STATUSES);
	return names[status];
}

void row_clear(struct row *row)
{
	g_clear_pointer(&row->why, g_free);
}

void how_add(struct how *how, GOptionContext *context)
{
	const GOptionEntry entries[] = {
	    {"steps", 0, 0, G_OPTION_ARG_STRING, &how->steps_given, "steps to simulate, the last one counts (2)", "N"},
	    {"threads", 0, 0, G_OPTION_ARG_STRING, &how->threads_given, "simulations at a time (all cores)", "N"},
	    {"no-launch", 0, 0, G_OPTION_ARG_NONE, &how->no_launch, "what if launching a kernel cost the host nothing", NULL},
	    {"no-sync", 0, 0, G_OPTION_ARG_NONE, &how->no_sync, "what if the host waited for the gate for free", NULL},
	    {"no-event", 0, 0, G_OPTION_ARG_NONE, &how->no_event, "what if streams waited for each other for free", NULL},
	    {"no-sharing", 0, 0, G_OPTION_ARG_NONE, &how->no_sharing, "what if every stage had its resources alone", NULL},
	    {NULL},
	};
	g_option_context_add_main_entries(context, entries, NULL);
}

bool how_check(struct how *how, const struct whatif *w, GError **error)
{
	if (how->steps_given && w->workload && g_str_equal(w->workload, "inference")) {
		g_set_error_literal(error, ESMOE_ERROR, ESMOE_ERROR_USAGE,
		                    "--steps are of training: --generate says how many tokens inference makes");
		return false;
	}
	how->steps = STEPS;
	how->threads = (int)g_get_num_processors();
	return whatif_count("steps", how->steps_given, 1, STEPS_MOST, &how->steps, error) &&
	       whatif_count("threads", how->threads_given, 1, THREADS_MOST, &how->threads, error);
}

void how_clear(struct how *how)
{
	g_clear_pointer(&how->steps_given, g_free);
	g_clear_pointer(&how->threads_given, g_free);
}

/* Of the loads when they come from a file. */
static char *routing_digest(const char *spec)
{
	g_autofree char *text = NULL;
	gsize length;
	if (!g_file_get_contents(spec, &text, &length, NULL))
		return g_strdup("");
	return g_compute_checksum_for_data(G_CHECKSUM_SHA256, (const guchar *)text, length);
}

/* Everything a prediction depends on, in one short word: a resumed sweep compares it, so a changed preset, option or loads file never mixes into old
 * rows. */
static void fill_digest(const struct scenario *s, const struct how *how, char *digest)
{
	g_autofree char *ini = scenario_ini(s), *loads = routing_digest(s->routing_spec);
	g_autofree char *text = g_strdup_printf("%s\n%s\n%s\n%d %d%d%d%d", ESMOE_VERSION, ini, loads, how->steps, how->no_launch, how->no_sync,
	                                        how->no_event, how->no_sharing);
	g_autofree char *sum = g_compute_checksum_for_string(G_CHECKSUM_SHA256, text, -1);
	g_strlcpy(digest, sum, DIGEST_CHARS + 1);
}

static int status_of_error(const GError *error, int oom_tier)
{
	if (!g_error_matches(error, ESMOE_ERROR, ESMOE_ERROR_FIT))
		return STATUS_INVALID;
	return oom_tier == TIER_HBM ? STATUS_OOM_HBM : oom_tier == TIER_SSD ? STATUS_OOM_SSD : STATUS_OOM_DRAM;
}

bool row_predict(struct row *row, const struct scenario *s, const struct how *how, struct trace *trace, GError **error)
{
	const struct sim_options o = {.no_launch = how->no_launch,
	                              .no_sync = how->no_sync,
	                              .no_event = how->no_event,
	                              .no_sharing = how->no_sharing,
	                              .record_counters = trace != NULL};
	g_autoptr(GError) failure = NULL;
	fill_digest(s, how, row->digest);
	row->prediction.oom_tier = -1;
	if (!predict(s, &o, how->steps - 1, &row->prediction, trace, &failure)) {
		row->status = status_of_error(failure, row->prediction.oom_tier);
		g_propagate_error(error, g_steal_pointer(&failure));
		return false;
	}
	row->status = STATUS_OK;
	if (trace && !trace->description)
		trace->description = scenario_ini(s);
	return true;
}

/* "mine/box.ini" is called "box". */
static char **labels_of(char **sources)
{
	char **labels = g_strdupv(sources);
	for (char **label = labels; *label; label++) {
		char *base = g_path_get_basename(*label);
		if (g_str_has_suffix(base, ".ini"))
			base[strlen(base) - strlen(".ini")] = '\0';
		g_free(*label);
		*label = g_strdelimit(base, "\"\n\r", '_'); /* it stands in a CSV */
	}
	return labels;
}

struct point {
	int model, machine, gpus, experts, policy;
};

static struct point point_of(const struct grid *g, int row)
{
	struct point p;
	p.policy = row % grid_policies(g);
	row /= grid_policies(g);
	p.experts = row % g->experts.n;
	row /= g->experts.n;
	p.gpus = row % g->gpus.n;
	row /= g->gpus.n;
	p.machine = row % (int)g_strv_length(g->machines);
	p.model = row / (int)g_strv_length(g->machines);
	return p;
}

static struct scenario *scenario_of(const struct grid *g, const struct point *p, GError **error)
{
	struct scenario_options o = g->rest;
	o.model = g->models[p->model];
	o.machine = g->machines[p->machine];
	o.policy = g->policies[p->policy];
	o.gpus = g->gpus.v[p->gpus];
	o.experts = g->experts.v[p->experts];
	return scenario_new(&o, error);
}

/* The row's scenario, or NULL and a row that is invalid. Owned by the caller. */
static struct scenario *identify(const struct grid *g, int i, struct row *row)
{
	struct point p = point_of(g, i);
	g_autoptr(GError) error = NULL;
	*row = (struct row){.policy = g->policy_labels[p.policy], .model = g->model_labels[p.model], .machine = g->machine_labels[p.machine]};
	row->gpus = g->gpus.v[p.gpus] ? g->gpus.v[p.gpus] : g->machine_gpus[p.machine];
	row->experts = g->experts.v[p.experts] ? g->experts.v[p.experts] : g->model_experts[p.model];
	struct scenario *s = scenario_of(g, &p, &error);
	if (s) {
		fill_digest(s, g->how, row->digest);
	} else {
		row->status = STATUS_INVALID;
		row->why = g_strdup(error->message);
	}
	return s;
}

void grid_identify(const struct grid *g, int i, struct row *row)
{
	scenario_free(identify(g, i, row));
}

/* A combination of files is wrong when none of its points makes a scenario: then the first error is the user's. */
static bool check_combination(struct grid *g, struct point p, GError **error)
{
	g_autoptr(GError) first = NULL;
	for (p.gpus = 0; p.gpus < g->gpus.n; p.gpus++)
		for (p.experts = 0; p.experts < g->experts.n; p.experts++) {
			g_autoptr(GError) failure = NULL;
			g_autoptr(scenario) s = scenario_of(g, &p, &failure);
			if (s) {
				g->model_experts[p.model] = network_experts(s->network);
				g->machine_gpus[p.machine] = s->machine->gpus;
				return true;
			}
			if (!first)
				first = g_steal_pointer(&failure);
		}
	g_propagate_error(error, g_steal_pointer(&first));
	return false;
}

static bool check_all(struct grid *g, GError **error)
{
	struct point p = {0};
	for (p.model = 0; g->models[p.model]; p.model++)
		for (p.machine = 0; g->machines[p.machine]; p.machine++)
			for (p.policy = 0; g->policies[p.policy]; p.policy++)
				if (!check_combination(g, p, error))
					return false;
	return true;
}

/* An option that is absent spans one point: what the files say. */
static bool counts_or_files(const char *option, const char *text, struct ini_ints *list, GError **error)
{
	if (!whatif_counts(option, text, list, error))
		return false;
	if (!list->n) {
		list->v = g_renew(int, list->v, 1);
		list->v[list->n++] = 0;
	}
	return true;
}

static bool parse(struct grid *g, const struct whatif *w, GError **error)
{
	return whatif_rest(w, &g->rest, error) && (g->models = whatif_names("-m MODEL", w->model, error)) &&
	       (g->machines = whatif_names("-M MACHINE", w->machine, error)) && (g->policies = whatif_names("-p POLICY", w->policy, error)) &&
	       counts_or_files("gpus", w->gpus, &g->gpus, error) && counts_or_files("experts", w->experts, &g->experts, error);
}

struct grid *grid_new(const struct whatif *w, const struct how *how, GError **error)
{
	g_autoptr(grid) g = g_new0(struct grid, 1);
	g->how = how;
	if (!parse(g, w, error))
		return NULL;
	double rows = (double)g_strv_length(g->models) * g_strv_length(g->machines) * g_strv_length(g->policies) * g->gpus.n * g->experts.n;
	if (rows > ROWS_MOST) {
		g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_USAGE, "%.0f configurations: at most %d in one grid", rows, ROWS_MOST);
		return NULL;
	}
	g->rows = (int)rows;
	g->model_labels = labels_of(g->models);
	g->machine_labels = labels_of(g->machines);
	g->policy_labels = labels_of(g->policies);
	g->model_experts = g_new0(int, g_strv_length(g->models));
	g->machine_gpus = g_new0(int, g_strv_length(g->machines));
	return check_all(g, error) ? g_steal_pointer(&g) : NULL;
}

void grid_free(struct grid *g)
{
	if (!g)
		return;
	char **lists[] = {g->models, g->machines, g->policies, g->model_labels, g->machine_labels, g->policy_labels};
	for (size_t i = 0; i < G_N_ELEMENTS(lists); i++)
		g_strfreev(lists[i]);
	g_free(g->model_experts);
	g_free(g->machine_gpus);
	g_free(g->gpus.v);
	g_free(g->experts.v);
	g_free(g);
}

int grid_rows(const struct grid *g)
{
	return g->rows;
}

int grid_policies(const struct grid *g)
{
	return (int)g_strv_length(g->policies);
}

struct numbered_row {
	int number;
	struct row row;
};

static void numbered_row_free(struct numbered_row *r)
{
	if (r)
		row_clear(&r->row);
	g_free(r);
}

struct work {
	const struct grid *grid;
	GAsyncQueue *done; /* struct numbered_row *, as they are ready */
	int next, stop;    /* atomic */
};

static gpointer predict_rows(gpointer data)
{
	struct work *work = data;
	while (!g_atomic_int_get(&work->stop)) {
		int i = g_atomic_int_add(&work->next, 1);
		if (i >= work->grid->rows)
			break;
		struct numbered_row *r = g_new0(struct numbered_row, 1);
		g_autoptr(scenario) s = identify(work->grid, i, &r->row);
		g_autoptr(GError) error = NULL;
		r->number = i;
		if (s && !row_predict(&r->row, s, work->grid->how, NULL, &error))
			r->row.why = g_strdup(error->message);
		g_async_queue_push(work->done, r);
	}
	return NULL;
}

/* Rows that have arrived wait here for those before them. */
struct delivery {
	struct numbered_row **arrived; /* (rows) */
	int next, rows;
	bool (*deliver)(struct row *row, void *user, GError **error);
	void *user;
};

static bool deliver_ready(struct delivery *d, GError **error)
{
	for (; d->next < d->rows && d->arrived[d->next]; d->next++) {
		bool ok = d->deliver(&d->arrived[d->next]->row, d->user, error);
		g_clear_pointer(&d->arrived[d->next], numbered_row_free);
		if (!ok)
			return false;
	}
	return true;
}

static void delivery_clear(struct delivery *d)
{
	for (int i = 0; i < d->rows; i++)
		numbered_row_free(d->arrived[i]);
	g_free(d->arrived);
}

/* Takes results until all rows are delivered, a delivery fails or a signal comes: then *signal. */
static bool collect(struct work *work, struct delivery *d, struct signals *signals, int *signal, GError **error)
{
	autoclear(progress) progress = {0};
	progress_init(&progress, d->next, d->rows);
	while (d->next < d->rows) {
		*signal = signals_taken(signals);
		if (*signal)
			return true;
		struct numbered_row *r = g_async_queue_timeout_pop(work->done, POLL_USEC);
		if (!r)
			continue;
		d->arrived[r->number] = r;
		progress_step(&progress);
		if (!deliver_ready(d, error))
			return false;
	}
	return true;
}

bool grid_run(const struct grid *g, int first, bool (*deliver)(struct row *, void *, GError **), void *user, GError **error)
{
	struct work work = {g, g_async_queue_new(), first, 0};
	autoclear(delivery) delivery = {g_new0(struct numbered_row *, g->rows), first, g->rows, deliver, user};
	int n_threads = MIN(g->how->threads, g->rows - first), signal = 0;
	g_autofree GThread **threads = g_new0(GThread *, MAX(n_threads, 1));
	g_autoptr(signals) signals = signals_new();
	for (int i = 0; i < n_threads; i++)
		threads[i] = g_thread_new("predict", predict_rows, &work);
	bool ok = collect(&work, &delivery, signals, &signal, error);
	g_clear_pointer(&signals, signals_free);
	g_atomic_int_set(&work.stop, 1);
	for (int i = 0; i < n_threads; i++)
		g_thread_join(threads[i]);
	for (struct numbered_row *r; (r = g_async_queue_try_pop(work.done));)
		delivery.arrived[r->number] = r;
	g_async_queue_unref(work.done);
	if (!ok || !signal)
		return ok;
	if (deliver_ready(&delivery, error))
		g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_SIGNAL + signal, "interrupted after %d of %d rows", delivery.next, g->rows);
	return false;
}
