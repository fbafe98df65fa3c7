/* Loads: exact totals, purity, and the shape each rule promises. */
#include "model/error.h"
#include "model/loads.h"
#include "model/routing.h"

#include <criterion/criterion.h>
#include <glib/gstdio.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static struct routing *rule(const char *spec, uint64_t seed)
{
	g_autoptr(GError) error = NULL;
	struct routing *r = routing_new(spec, seed, &error);
	cr_assert(r, "%s", error ? error->message : spec);
	return r;
}

static uint32_t *loads_of(const struct routing *r, int step, int layer, int gpus, int experts, int top_k, uint32_t tokens_per_gpu)
{
	uint32_t *tokens = g_new(uint32_t, gpus * experts); /* (G, E) */
	g_autoptr(GError) error = NULL;
	cr_assert(routing_loads(r, step, 0, layer, gpus, experts, top_k, tokens_per_gpu, tokens, &error), "%s", error ? error->message : "");
	return tokens;
}

static void check_rows(const uint32_t *tokens, int gpus, int experts, int top_k, uint32_t tokens_per_gpu)
{
	for (int g = 0; g < gpus; g++) {
		uint64_t sum = 0;
		for (int e = 0; e < experts; e++) {
			cr_assert(tokens[g * experts + e] <= tokens_per_gpu);
			sum += tokens[g * experts + e];
		}
		cr_assert(sum == (uint64_t)tokens_per_gpu * (uint64_t)top_k);
	}
}

static uint64_t total_of(const uint32_t *tokens, int gpus, int experts, int expert)
{
	uint64_t sum = 0;
	for (int g = 0; g < gpus; g++)
		sum += tokens[g * experts + expert];
	return sum;
}

Test(routing, rows_sum_to_tokens_times_top_k_and_no_entry_passes_the_tokens)
{
	static const char *const specs[] = {"uniform", "zipf:0", "zipf:1.2", "zipf:16:1", "expert-choice", "hash"};
	static const struct {
		int gpus, experts, top_k;
		uint32_t tokens;
	} shapes[] = {{1, 1, 1, 0},     {1, 1, 1, 7},   {4, 8, 1, 1000},
	              {3, 7, 2, 1001},  {2, 8, 8, 100}, {5, 16, 15, 33},
	              {4, 64, 6, 4096}, {2, 100, 3, 5}, {2, 4, 2, UINT32_MAX / 1024}};
	for (size_t i = 0; i < G_N_ELEMENTS(specs); i++) {
		g_autoptr(routing) r = rule(specs[i], 11);
		for (size_t j = 0; j < G_N_ELEMENTS(shapes); j++)
			for (int step = 0; step < 5; step++) {
				g_autofree uint32_t *tokens =
				    loads_of(r, step, step, shapes[j].gpus, shapes[j].experts, shapes[j].top_k, shapes[j].tokens);
				check_rows(tokens, shapes[j].gpus, shapes[j].experts, shapes[j].top_k, shapes[j].tokens);
			}
	}
}

Test(routing, uniform_is_equal_up_to_the_remainder_in_rows_and_totals)
{
	static const char *const specs[] = {"uniform", "expert-choice"};
	for (size_t i = 0; i < G_N_ELEMENTS(specs); i++) {
		g_autoptr(routing) r = rule(specs[i], 1);
		g_autofree uint32_t *tokens = loads_of(r, 0, 0, 6, 7, 2, 1000); /* 2000 = 7 * 285 + 5; 12000 = 7 * 1714 + 2 */
		for (int k = 0; k < 6 * 7; k++)
			cr_assert(tokens[k] == 285 || tokens[k] == 286);
		for (int e = 0; e < 7; e++) {
			const uint64_t total = total_of(tokens, 6, 7, e);
			cr_assert(total == 1714 || total == 1715);
		}
	}
}

static int falling(const void *a, const void *b)
{
	const uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
	return (x < y) - (x > y);
}

/* The expert of rank r has its share r^-S / sum of all, in each row and over all GPUs within one token. */
Test(routing, zipf_popularity_falls_as_rank_to_the_minus_s)
{
	enum { G = 5, E = 16, T = 10007 };
	g_autoptr(routing) r = rule("zipf:1.2", 3);
	g_autofree uint32_t *tokens = loads_of(r, 0, 0, G, E, 1, T);
	double sum = 0;
	for (int rank = 1; rank <= E; rank++)
		sum += pow(rank, -1.2);
	uint64_t total[E], row[E];
	for (int e = 0; e < E; e++)
		total[e] = total_of(tokens, G, E, e);
	qsort(total, E, sizeof total[0], falling);
	for (int g = 0; g < G; g++) {
		for (int e = 0; e < E; e++)
			row[e] = tokens[g * E + e];
		qsort(row, E, sizeof row[0], falling);
		for (int rank = 1; rank <= E; rank++)
			cr_assert_float_eq((double)row[rank - 1], T * pow(rank, -1.2) / sum, 1.001);
	}
	for (int rank = 1; rank <= E; rank++)
		cr_assert_float_eq((double)total[rank - 1], G * T * pow(rank, -1.2) / sum, 2.001);
}

/* Top-2 of 4 with nearly all popularity on one: it takes every token once, the rest goes where popularity says. Shares 1, 2^-4, 3^-4, 4^-4 of 2000;
 * the first is cut at 1000, the others share 1000 as 0.0625 : 0.012346 : 0.003906. */
Test(routing, what_an_expert_cannot_take_goes_to_the_next)
{
	g_autoptr(routing) r = rule("zipf:4:0", 5);
	g_autofree uint32_t *tokens = loads_of(r, 0, 0, 1, 4, 2, 1000);
	uint64_t row[4];
	for (int e = 0; e < 4; e++)
		row[e] = tokens[e];
	qsort(row, 4, sizeof row[0], falling);
	cr_assert(row[0] == 1000);
	const double rest = pow(2, -4) + pow(3, -4) + pow(4, -4);
	for (int rank = 2; rank <= 4; rank++)
		cr_assert_float_eq((double)row[rank - 1], 1000 * pow(rank, -4) / rest, 1.001);
}

static int changed(const uint32_t *a, const uint32_t *b, int n)
{
	int count = 0;
	for (int i = 0; i < n; i++)
		count += llabs((long long)a[i] - b[i]) > 1; /* 1: rounding */
	return count;
}

Test(routing, zipf_drift_moves_the_stated_share_of_experts_each_step)
{
	enum { E = 100 };
	g_autoptr(routing) r = rule("zipf:1:0.1", 5);
	g_autofree uint32_t *before = loads_of(r, 0, 0, 1, E, 1, 10000000);
	int moved = 0;
	for (int step = 1; step <= 50; step++) {
		uint32_t *after = loads_of(r, step, 0, 1, E, 1, 10000000);
		const int n = changed(before, after, E);
		cr_assert(n <= 10); /* 5 swaps; two may share an expert */
		moved += n;
		g_free(before);
		before = after;
	}
	cr_assert(moved > 50 * 8);
	g_autoptr(routing) still = rule("zipf:1:0", 5);
	g_autofree uint32_t *first = loads_of(still, 0, 0, 1, E, 1, 10000000), *last = loads_of(still, 1000, 0, 1, E, 1, 10000000);
	cr_assert(changed(first, last, E) == 0);
}

Test(routing, zipf_order_differs_between_layers_and_seeds)
{
	enum { E = 64 };
	g_autoptr(routing) r = rule("zipf:1", 5);
	g_autoptr(routing) other = rule("zipf:1", 6);
	g_autofree uint32_t *a = loads_of(r, 0, 0, 1, E, 1, 100000), *b = loads_of(r, 0, 1, 1, E, 1, 100000),
	                    *c = loads_of(other, 0, 0, 1, E, 1, 100000);
	cr_assert(changed(a, b, E) > E / 2);
	cr_assert(changed(a, c, E) > E / 2);
}

/* A multinomial's counts: mean T / E, and chi-square near its E - 1 degrees of freedom (standard deviation sqrt(2 (E - 1))). */
Test(routing, hash_scatters_as_a_multinomial)
{
	enum { G = 40, E = 64, T = 20000 };
	g_autoptr(routing) r = rule("hash", 8);
	g_autofree uint32_t *tokens = loads_of(r, 0, 0, G, E, 1, T);
	double chi2 = 0;
	for (int i = 0; i < G * E; i++)
		chi2 += pow(tokens[i] - (double)T / E, 2) / ((double)T / E);
	cr_assert_float_eq(chi2, G * (E - 1), 4 * sqrt(2.0 * G * (E - 1)));
}

Test(routing, loads_depend_on_nothing_but_seed_and_arguments)
{
	enum { G = 3, E = 24 };
	static const char *const specs[] = {"uniform", "zipf:1.1", "hash"};
	for (size_t i = 0; i < G_N_ELEMENTS(specs); i++) {
		g_autoptr(routing) a = rule(specs[i], 9);
		g_autoptr(routing) b = rule(specs[i], 9);
		for (int step = 0; step < 20; step++)
			g_free(loads_of(a, step, 3, 2, 5, 1, 77));
		g_autofree uint32_t *x = loads_of(a, 7, 2, G, E, 2, 999), *y = loads_of(b, 7, 2, G, E, 2, 999);
		cr_assert_arr_eq(x, y, G * E * sizeof *x);
	}
}

Test(routing, unknown_words_and_numbers_are_input_errors)
{
	static const char *const bad[] = {"",        "unifrom",  "zipf",    "zipf:",        "zipf:x",  "zipf:-1", "zipf:nan", "zipf:inf",
	                                  "zipf:17", "zipf:1:2", "zipf:1:", "zipf:1:0.1:3", "zipf: 1", "zipf:1e", "hash:3",   "/nowhere/loads.csv"};
	for (size_t i = 0; i < G_N_ELEMENTS(bad); i++) {
		g_autoptr(GError) error = NULL;
		cr_assert(!routing_new(bad[i], 0, &error), "%s", bad[i]);
		cr_assert(error && error->domain == ESMOE_ERROR && error->code == ESMOE_ERROR_INPUT);
		cr_assert(*bad[i] == '\0' || strstr(error->message, bad[i]), "%s", error->message);
	}
	g_autoptr(GError) error = NULL;
	cr_assert(!routing_new("unifrom", 0, &error));
	cr_assert(strstr(error->message, "\"uniform\""));
}

#define HEADER "microbatch,layer,gpu,expert,tokens\n"

static struct routing *from_csv(const char *text)
{
	char path[] = "loads-XXXXXX.csv";
	const int fd = g_mkstemp(path);
	cr_assert(fd >= 0);
	g_close(fd, NULL);
	cr_assert(g_file_set_contents(path, text, -1, NULL));
	struct routing *r = rule(path, 0);
	g_remove(path);
	return r;
}

Test(routing, file_of_the_asked_shape_is_taken_as_it_is)
{
	g_autoptr(routing) r = from_csv(HEADER "1,3,0,0,5\n1,3,0,1,1\n1,3,1,1,6\n0,3,1,0,2\n0,3,1,1,4\n0,3,0,1,3\n0,3,0,0,3\n");
	uint32_t tokens[4];
	const uint32_t first[] = {3, 3, 2, 4}, second[] = {5, 1, 0, 6};
	cr_assert(routing_loads(r, 0, 0, 3, 2, 2, 1, 6, tokens, NULL));
	cr_assert_arr_eq(tokens, first, sizeof first);
	cr_assert(routing_loads(r, 0, 1, 3, 2, 2, 1, 6, tokens, NULL));
	cr_assert_arr_eq(tokens, second, sizeof second);
	cr_assert(routing_loads(r, 4, 2, 3, 2, 2, 1, 6, tokens, NULL)); /* past the file: wraps around */
	cr_assert_arr_eq(tokens, first, sizeof first);
}

Test(routing, file_is_scaled_to_other_totals_and_gpus)
{
	g_autoptr(routing) r = from_csv(HEADER "0,0,0,0,1\n0,0,0,1,2\n0,0,0,2,0\n0,0,1,0,0\n0,0,1,1,1\n0,0,1,2,2\n");
	g_autofree uint32_t *twice = loads_of(r, 0, 0, 2, 3, 1, 6);
	const uint32_t expected[] = {2, 4, 0, 0, 2, 4};
	cr_assert_arr_eq(twice, expected, sizeof expected);
	g_autofree uint32_t *three = loads_of(r, 0, 0, 3, 3, 1, 600); /* the file's sums 1 : 3 : 2 */
	for (int g = 0; g < 3; g++)
		cr_assert(three[3 * g] == 100 && three[3 * g + 1] == 300 && three[3 * g + 2] == 200);
	g_autofree uint32_t *odd = loads_of(r, 0, 0, 6, 3, 1, 1); /* each row one token, over the six rows 1 : 3 : 2 */
	check_rows(odd, 6, 3, 1, 1);
	cr_assert(total_of(odd, 6, 3, 0) == 1 && total_of(odd, 6, 3, 1) == 3 && total_of(odd, 6, 3, 2) == 2);
	g_autofree uint32_t *full = loads_of(r, 0, 0, 2, 3, 3, 4); /* no entry past the tokens, even where the file has 0 */
	for (int i = 0; i < 6; i++)
		cr_assert(full[i] == 4);
}

Test(routing, file_without_the_layer_or_with_other_experts_fails)
{
	g_autoptr(routing) r = from_csv(HEADER "0,2,0,0,1\n0,2,0,3,2\n");
	uint32_t tokens[8];
	g_autoptr(GError) layer = NULL;
	cr_assert(!routing_loads(r, 0, 0, 1, 1, 4, 1, 3, tokens, &layer));
	cr_assert(layer->code == ESMOE_ERROR_INPUT && strstr(layer->message, "layer 1"));
	for (int experts = 2; experts <= 8; experts += 6) {
		g_autoptr(GError) error = NULL;
		cr_assert(!routing_loads(r, 0, 0, 2, 1, experts, 1, 3, tokens, &error));
		cr_assert(error->code == ESMOE_ERROR_INPUT && strstr(error->message, "experts 0..3"));
	}
	cr_assert(routing_loads(r, 0, 0, 2, 1, 4, 1, 3, tokens, NULL));
}

/* Each broken file and what its error must say: where, and why. */
static const struct {
	const char *csv, *where, *why;
} broken[] = {
    {"", "f.csv:1:1:", HEADER},
    {"microbatch,layer,gpu,expert\n0,0,0,0\n", "f.csv:1:1:", "first line"},
    {"microbatch,layer,gpu,expert,tokens", "f.csv:1:1:", "first line"},
    {HEADER, "f.csv", "no rows"},
    {HEADER "0,0,0,0,-4\n", "f.csv:2:9:", "tokens: \"-4\""},
    {HEADER "0,0,0,0,4294967296\n", "f.csv:2:9:", "0..4294967295"},
    {HEADER "0,0,0,0,99999999999999999999999999\n", "f.csv:2:9:", "tokens"},
    {HEADER "0,0,0,0,1\n0,65536,0,0,1\n", "f.csv:3:3:", "layer: \"65536\""},
    {HEADER "0,0,0,0,1.5\n", "f.csv:2:9:", "\"1.5\""},
    {HEADER "0,0,0,0,\n", "f.csv:2:9:", "tokens"},
    {HEADER "0,0, 0,0,1\n", "f.csv:2:5:", "gpu: \" 0\""},
    {HEADER "0,0,0,1\n", "f.csv:2:8:", "column is missing"},
    {HEADER "0,0,0,0,1,2\n", "f.csv:2:10:", "five columns"},
    {HEADER "0,0,0,0,1\n\n", "f.csv:3:1:", "microbatch"},
    {HEADER "0,0,0,0,1\n0,0,0,1,12", "f.csv:3:11:", "cut off"},
    {HEADER "0,0,0,0,1\n0,0", "f.csv:3:4:", "cut off"},
    {HEADER "0,0,0,0,1\n0,0,0,1,5\n0,0,0,0,1\n", "f.csv:4:1:", "line 2"},
    {HEADER "0,0,0,0,\x01\xff\n", "f.csv:2:9:", "\\x01\\xff"},
    {HEADER "0,0,1,0,1\n", "f.csv", "gpu 0"},
    {HEADER "0,0,0,0,1\n0,0,1,0,0\n", "f.csv", "gpu 1"},
    {HEADER "0,0,0,0,1\n0,0,1,0,1\n0,1,0,0,1\n", "f.csv", "layer 1"},
    {HEADER "1,0,0,0,1\n", "f.csv:2:1:", "micro-batch 1 without a micro-batch 0"},
    {HEADER "0,0,0,0,1\n2,0,0,0,1\n", "f.csv:3:1:", "without a micro-batch 1"},
    {HEADER "0,0,0,0,1\n0,1,0,0,1\n1,0,0,0,1\n", "f.csv", "micro-batch 1 lacks layer 1"},
    {HEADER "0,0,0,0,1\n1,0,0,0,1\n1,1,0,0,1\n", "f.csv", "micro-batch 0 lacks layer 1"},
};

Test(loads, broken_files_name_line_and_column)
{
	for (size_t i = 0; i < G_N_ELEMENTS(broken); i++) {
		g_autoptr(GError) error = NULL;
		cr_assert(!loads_parse(broken[i].csv, strlen(broken[i].csv), "f.csv", &error), "%zu", i);
		cr_assert(error->domain == ESMOE_ERROR && error->code == ESMOE_ERROR_INPUT);
		cr_assert(g_str_has_prefix(error->message, broken[i].where), "%zu: %s", i, error->message);
		g_autofree char *why = g_strchomp(g_strdup(broken[i].why));
		cr_assert(strstr(error->message, why), "%zu: %s", i, error->message);
	}
}

Test(loads, a_zero_byte_is_no_end_of_file)
{
	static const char csv[] = HEADER "0,0,0,0,1\0"
	                                 "5\n";
	g_autoptr(GError) error = NULL;
	cr_assert(!loads_parse(csv, sizeof csv - 1, "f.csv", &error));
	cr_assert(strstr(error->message, "\"1\\x005\""), "%s", error->message);
}

Test(loads, windows_line_ends_are_read)
{
	static const char csv[] = "microbatch,layer,gpu,expert,tokens\r\n0,0,0,0,7\r\n";
	uint32_t tokens;
	g_autoptr(loads) loads = loads_parse(csv, sizeof csv - 1, "f.csv", NULL);
	cr_assert(loads && loads_gpus(loads) == 1 && loads_layer(loads, 0, 0, 1, &tokens, NULL) && tokens == 7);
}
