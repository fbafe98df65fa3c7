/* Tasks that wait for each other: GPUs by load against the best of all shares, and the step against predictions made one by one. */
#include "model/error.h"
#include "sim/elastic.h"

#include <criterion/criterion.h>

static const struct how how = {.steps = 1};

static void shared(const int *sequences, int n, int gpus, struct task *tasks)
{
	for (int i = 0; i < n; i++)
		tasks[i] = (struct task){.sequences = sequences[i]};
	elastic_share(SHARE_BY_LOAD, gpus, tasks, n);
}

Test(elastic, the_papers_tasks_get_the_papers_gpus)
{
	const int sequences[] = {512, 256, 128, 128}, gpus[] = {4, 2, 1, 1};
	struct task tasks[4];
	shared(sequences, 4, 8, tasks);
	for (int i = 0; i < 4; i++)
		cr_assert_eq(tasks[i].gpus, gpus[i]);
	elastic_share(SHARE_EQUAL, 10, tasks, 4);
	for (int i = 0; i < 4; i++)
		cr_assert_eq(tasks[i].gpus, i < 2 ? 3 : 2);
}

/* The least of the most sequences a GPU over all ways to share. */
static double best(const int *sequences, int n, int gpus)
{
	double least = G_MAXDOUBLE;
	if (n == 1)
		return (double)sequences[0] / gpus;
	for (int own = 1; own <= gpus - (n - 1); own++) {
		double rest = best(sequences + 1, n - 1, gpus - own), most = (double)sequences[0] / own;
		least = MIN(least, MAX(most, rest));
	}
	return least;
}

Test(elastic, no_share_has_a_less_loaded_gpu_at_its_fullest)
{
	g_autoptr(GRand) random = g_rand_new_with_seed(1);
	for (int round = 0; round < 200; round++) {
		int sequences[5] = {0}, n = g_rand_int_range(random, 1, 6), gpus = g_rand_int_range(random, n, 17), given = 0;
		struct task tasks[5];
		double most = 0;
		for (int i = 0; i < n; i++)
			sequences[i] = g_rand_int_range(random, 1, 600);
		shared(sequences, n, gpus, tasks);
		for (int i = 0; i < n; i++) {
			most = MAX(most, (double)sequences[i] / tasks[i].gpus);
			given += tasks[i].gpus;
		}
		cr_assert_eq(given, gpus);
		cr_assert_float_eq(most, best(sequences, n, gpus), 1e-9);
	}
}

static double alone_ms(int gpus, int sequences)
{
	struct row row = {0};
	g_autoptr(GError) error = NULL;
	const struct scenario_options o = {.model = "gpt-moe-s", .machine = "a100-80g-x8", .policy = "se-moe", .gpus = gpus, .sequences = sequences};
	g_autoptr(scenario) s = scenario_new(&o, &error);
	cr_assert(s && row_predict(&row, s, &how, NULL, &error), "%s", error ? error->message : "");
	return row.prediction.step_ms;
}

/* Of what all tasks share, on 7 GPUs of a node: a ring at 75 % of 300 GB/s, 22 us. MoE-S: twelve layers of attention with its biases and norms, and
 * one embedding. */
static double reduced_ms(void)
{
	g_autoptr(GError) error = NULL;
	g_autoptr(network) n = network_load("gpt-moe-s", NULL, &error);
	double params = (double)network_embedding_params(n);
	for (int i = 0; i < n->layers; i++)
		params += (double)network_dense_params(n, &n->layer[i]);
	return 0.022 + 2.0 * 6 / 7 * 2 * params / (0.75 * 300e9) * 1e3;
}

/* Behind it, what they share is reduced. */
Test(elastic, the_slowest_task_sets_the_step)
{
	g_autoptr(GError) error = NULL;
	const struct scenario_options o = {.model = "gpt-moe-s", .machine = "a100-80g-x8", .policy = "se-moe"};
	struct task tasks[] = {{.sequences = 7, .gpus = 2}, {.sequences = 24, .gpus = 4}, {.sequences = 1, .gpus = 1}};
	double step_ms;
	cr_assert(elastic_predict(&o, &how, tasks, 3, &step_ms, &error), "%s", error ? error->message : "");
	cr_assert_eq(tasks[0].step_ms, alone_ms(2, 4));
	cr_assert_eq(tasks[1].step_ms, alone_ms(4, 6));
	cr_assert_eq(tasks[2].step_ms, alone_ms(1, 1));
	cr_assert_float_eq(step_ms, tasks[1].step_ms + reduced_ms(), 1e-3);
	cr_assert(elastic_predict(&o, &how, tasks + 1, 1, &step_ms, &error), "%s", error ? error->message : "");
	cr_assert_eq(step_ms, tasks[1].step_ms);
}

Test(elastic, equal_tasks_gain_nothing)
{
	g_autoptr(GError) error = NULL;
	g_autoptr(GString) out = g_string_new(NULL);
	int v[] = {16, 16, 16, 16};
	const struct ini_ints sequences = {v, 4};
	const struct scenario_options o = {.model = "gpt-moe-s", .machine = "a100-80g-x8", .policy = "se-moe", .gpus = 8};
	cr_assert(elastic_report(&o, &how, &sequences, false, out, &error), "%s", error ? error->message : "");
	cr_assert(strstr(out->str, "by load: +0.0 %"), "%s", out->str);
	const struct scenario_options few = {.model = "gpt-moe-s", .machine = "a100-80g-x8", .policy = "se-moe", .gpus = 3};
	cr_assert_not(elastic_report(&few, &how, &sequences, false, out, &error));
	cr_assert(g_error_matches(error, ESMOE_ERROR, ESMOE_ERROR_USAGE));
}
