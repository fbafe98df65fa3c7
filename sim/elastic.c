/* A prediction for each task: its GPUs are the first of a machine like the one asked for, the fullest GPU has ceil(sequences / GPUs). Behind the
 * slowest, one collective over all GPUs: nobody hides what it waits for. */
#include "elastic.h"

#include "model/cost.h"
#include "model/error.h"

#include <string.h>

void elastic_share(enum elastic_share share, int gpus, struct task *tasks, int n)
{
	g_assert(n > 0 && gpus >= n);
	for (int i = 0; i < n; i++)
		tasks[i].gpus = share == SHARE_EQUAL ? gpus / n + (i < gpus % n) : 1;
	for (int given = n; share == SHARE_BY_LOAD && given < gpus; given++) {
		int fullest = 0;
		for (int i = 1; i < n; i++) /* sequences a GPU, without dividing */
			if ((int64_t)tasks[i].sequences * tasks[fullest].gpus > (int64_t)tasks[fullest].sequences * tasks[i].gpus)
				fullest = i;
		tasks[fullest].gpus++;
	}
}

/* Every GPU has its share of what each token meets; experts are each task's own. */
static double shared_bytes(const struct scenario *s, int tensor)
{
	const struct network *n = s->network;
	uint64_t params = network_embedding_params(n) / (uint64_t)tensor;
	for (int i = 0; i < n->layers; i++)
		params += network_dense_share(n, &n->layer[i], tensor);
	return (double)params * s->machine->element_bytes;
}

static bool reduction_ms(const struct scenario_options *o, int gpus, double *ms, GError **error)
{
	struct scenario_options all = *o;
	all.gpus = gpus;
	g_autoptr(scenario) s = scenario_new(&all, error);
	if (!s)
		return false;
	int tensor = policy_tensor_parallel(s->policy, gpus);
	struct ranks copies = {.stride = tensor, .size = gpus / tensor};
	*ms = collective_ns(s->machine, OP_ALL_REDUCE, &copies, shared_bytes(s, tensor)) / 1e6;
	return true;
}

bool elastic_predict(const struct scenario_options *o, const struct how *how, struct task *tasks, int n, double *step_ms, GError **error)
{
	int gpus = 0;
	double reduce_ms = 0;
	*step_ms = 0;
	for (int i = 0; i < n; i++) {
		gpus += tasks[i].gpus;
		autoclear(row) row = {0};
		struct scenario_options own = *o;
		own.gpus = tasks[i].gpus;
		own.sequences = (tasks[i].sequences + own.gpus - 1) / own.gpus;
		g_autoptr(scenario) s = scenario_new(&own, error);
		if (!s || !row_predict(&row, s, how, NULL, error)) {
			g_prefix_error(error, "task %d of %d sequences on %d GPUs: ", i + 1, tasks[i].sequences, own.gpus);
			return false;
		}
		tasks[i].step_ms = row.prediction.step_ms;
		*step_ms = MAX(*step_ms, tasks[i].step_ms);
	}
	if (n > 1 && !reduction_ms(o, gpus, &reduce_ms, error))
		return false;
	*step_ms += reduce_ms;
	return true;
}

static double tokens_per_s_gpu(const struct ini_ints *sequences, int seq_len, int gpus, double step_ms)
{
	double tokens = 0;
	for (int i = 0; i < sequences->n; i++)
		tokens += (double)sequences->v[i] * seq_len;
	return tokens / gpus / (step_ms / 1e3);
}

static void append_share(GString *out, const char *name, const struct task *tasks, int n, double step_ms, double rate, bool csv)
{
	for (int i = 0; i < n; i++)
		g_string_append_printf(out, csv ? "%s,%d,%d,%d,%.6f,%.6f,%.2f\n" : "%-8s %5d %10d %5d %10.2f %14.2f %17.1f\n", name, i + 1,
		                       tasks[i].sequences, tasks[i].gpus, tasks[i].step_ms, step_ms, rate);
}

/* GPUs and the length of a sequence as the machine and the network say, unless asked for. */
static bool resolve(const struct scenario_options *o, int *gpus, int *seq_len, GError **error)
{
	g_autoptr(scenario) s = scenario_new(o, error);
	if (!s)
		return false;
	*gpus = s->machine->gpus;
	*seq_len = s->seq_len;
	return true;
}

bool elastic_report(const struct scenario_options *o, const struct how *how, const struct ini_ints *sequences, bool csv, GString *out, GError **error)
{
	static const char *const names[] = {[SHARE_EQUAL] = "equal", [SHARE_BY_LOAD] = "by load"};
	struct task tasks[TASKS_MOST];
	double rate[N_SHARES];
	int gpus, seq_len, n = sequences->n;
	if (!resolve(o, &gpus, &seq_len, error))
		return false;
	if (n > TASKS_MOST || n > gpus) {
		g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_USAGE, "--tasks: %d tasks; expected at most one a GPU, %d, and %d in all", n, gpus,
		            TASKS_MOST);
		return false;
	}
	g_string_append_printf(out, csv ? "%s,%s,%s,%s,%s,%s,%s\n" : "%-8s %5s %10s %5s %10s %14s %17s\n", "share", "task", "sequences", "gpus",
	                       "step_ms", "step_of_all_ms", "tokens_per_s_gpu");
	for (int share = 0; share < N_SHARES; share++) {
		double step_ms;
		for (int i = 0; i < n; i++)
			tasks[i] = (struct task){.sequences = sequences->v[i]};
		elastic_share(share, gpus, tasks, n);
		if (!elastic_predict(o, how, tasks, n, &step_ms, error))
			return false;
		rate[share] = tokens_per_s_gpu(sequences, seq_len, gpus, step_ms);
		append_share(out, names[share], tasks, n, step_ms, rate[share], csv);
	}
	if (!csv)
		g_string_append_printf(out, "\nby load: %+.1f %% tokens/s a GPU\n", 100 * (rate[SHARE_BY_LOAD] / rate[SHARE_EQUAL] - 1));
	return true;
}
