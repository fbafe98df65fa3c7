/* exec/cuda/gate.cu and route.cu against plain loops. */
#include "cuda_bed.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define COUNT(array) (sizeof(array) / sizeof(*(array)))

static const int rows_of[] = {0, 1, 3, 127, 1000}, experts_of[] = {1, 3, 8, 40, 64, 100, 200, 300, 1000, 1500}, choices_of[] = {1, 2, 8};

static void free_all(void **p, size_t n)
{
	for (size_t i = 0; i < n; i++)
		free(p[i]);
}

/* ---- gate ---- */

/* prob, and the log-sum-exp, of a row of logits. */
static double soften(double *prob, const bf16 *logits, size_t E)
{
	double most = -INFINITY, sum = 0;
	for (size_t e = 0; e < E; e++)
		most = fmax(most, (double)bed_widen(logits[e]));
	for (size_t e = 0; e < E; e++)
		sum += prob[e] = exp((double)bed_widen(logits[e]) - most);
	for (size_t e = 0; e < E; e++)
		prob[e] /= sum;
	return most + log(sum);
}

/* The choices must be right for the probabilities that the GPU found: in double two may differ that are equal there. */
static void check_choices(struct bed *b, const float *prob, const int32_t *index, uint32_t *counts, size_t N, size_t E, int k)
{
	for (size_t n = 0; n < N; n++)
		for (int i = 0; i < k; i++) {
			int32_t best = -1;
			for (size_t e = 0; e < E; e++) {
				bool taken = false;
				for (int j = 0; j < i; j++)
					taken = taken || index[n * (size_t)k + (size_t)j] == (int32_t)e;
				if (!taken && (best < 0 || prob[n * E + e] > prob[n * E + (size_t)best]))
					best = (int32_t)e;
			}
			if (index[n * (size_t)k + (size_t)i] != best)
				bed_fail(b, "choice %d of token %zu is %d, not %d", i, n, index[n * (size_t)k + (size_t)i], best);
			counts[best]++;
		}
}

/* `tied`: few different logits, so that most choices are between equals. */
static void check_gate_forward(int N, int E, int k, bool tied)
{
	struct bed b = {0};
	size_t n = (size_t)N, x = (size_t)E, pairs = n * (size_t)k;
	bf16 *logits0 = tied ? bed_eighths(n * x) : bed_bf16s(n * x, 5);
	double *prob_want = bed_zeros(n * x * sizeof(double)), *mass = bed_zeros(x * sizeof(double)), aux_want[2] = {0};
	uint32_t *counts_want = bed_zeros(x * sizeof(uint32_t));
	for (size_t i = 0; i < n; i++) {
		aux_want[0] += pow(soften(prob_want + i * x, logits0 + i * x, x), 2);
		for (size_t e = 0; e < x; e++)
			mass[e] += prob_want[i * x + e];
	}
	float *prob = bed_block(&b, "prob", NULL, n * x * sizeof(float)), *aux = bed_block(&b, "aux", NULL, 2 * sizeof(float));
	int32_t *index = bed_block(&b, "index", NULL, pairs * sizeof(int32_t));
	uint32_t *counts = bed_block(&b, "counts", NULL, x * sizeof(uint32_t));
	const bf16 *logits = bed_block(&b, "logits", logits0, n * x * sizeof(bf16));
	float *scratch = bed_block(&b, "(scratch)", NULL, cuda_gate_scratch_floats(N, E) * sizeof(float));
	while (bed_run(&b))
		cuda_gate(NULL, prob, index, counts, aux, logits, scratch, N, E, k);
	check_choices(&b, bed_result(&b, prob), bed_result(&b, index), counts_want, n, x, k);
	for (size_t e = 0; N && e < x; e++)
		aux_want[1] += E * (counts_want[e] / (double)pairs) * (mass[e] / N);
	bed_close_float(&b, prob, prob_want, n * x, 1e-5, 0);
	bed_equal(&b, counts, counts_want, x * sizeof(uint32_t));
	bed_close_float(&b, aux, aux_want, 2, 1e-5, 0);
	bed_end(&b, "gate, N = %d, E = %d, k = %d%s", N, E, k, tied ? ", ties" : "");
	free_all((void *[]){logits0, prob_want, mass, counts_want}, 4);
}

/* What a run that diverged does must not reach beyond its buffers: of probabilities that are no numbers the first experts are chosen. */
static void check_not_numbers(int E, int k)
{
	struct bed b = {0};
	size_t x = (size_t)E;
	bf16 *logits0 = bed_zeros(x * sizeof(bf16));
	int32_t *first = bed_zeros((size_t)k * sizeof(int32_t));
	for (size_t e = 0; e < x; e++)
		logits0[e] = 0x7fc0;
	for (int i = 0; i < k; i++)
		first[i] = i;
	float *prob = bed_block(&b, "prob", NULL, x * sizeof(float)), *aux = bed_block(&b, "aux", NULL, 2 * sizeof(float));
	int32_t *index = bed_block(&b, "index", NULL, (size_t)k * sizeof(int32_t));
	uint32_t *counts = bed_block(&b, "counts", NULL, x * sizeof(uint32_t));
	const bf16 *logits = bed_block(&b, "logits", logits0, x * sizeof(bf16));
	float *scratch = bed_block(&b, "(scratch)", NULL, cuda_gate_scratch_floats(1, E) * sizeof(float));
	while (bed_run(&b))
		cuda_gate(NULL, prob, index, counts, aux, logits, scratch, 1, E, k);
	bed_equal(&b, index, first, (size_t)k * sizeof(int32_t));
	if (!isnan(((const float *)bed_result(&b, aux))[0]))
		bed_fail(&b, "the z-loss hides it");
	bed_end(&b, "gate, logits that are no numbers, E = %d, k = %d", E, k);
	free_all((void *[]){logits0, first}, 2);
}

/* k different experts of E for each token. */
static int32_t *different(size_t N, int E, int k)
{
	int32_t *index = bed_zeros(N * (size_t)k * sizeof(*index));
	for (size_t n = 0; n < N; n++)
		for (int i = 0; i < k; i++) {
			int32_t *chosen = index + n * (size_t)k;
			bool again = true;
			while (again) {
				again = false;
				chosen[i] = bed_random_below(E);
				for (int j = 0; j < i; j++)
					again = again || chosen[j] == chosen[i];
			}
		}
	return index;
}

static void check_gate_backward(int N, int E, int k, double balance, double z)
{
	struct bed b = {0};
	size_t n = (size_t)N, x = (size_t)E, pairs = n * (size_t)k;
	int total = 4 * N;
	bf16 *logits0 = bed_bf16s(n * x, 5);
	float *dweight0 = bed_floats(pairs, 1), *prob0 = bed_zeros(n * x * sizeof(float));
	int32_t *index0 = different(n, E, k);
	uint32_t *counts0 = bed_zeros(x * sizeof(uint32_t));
	double *want = bed_zeros(n * x * sizeof(double)), *p = bed_zeros(x * sizeof(double)), *g = bed_zeros(x * sizeof(double));
	for (size_t e = 0; e < x; e++)
		counts0[e] = (uint32_t)bed_random_below(total + 1);
	for (size_t i = 0; i < n; i++) {
		double lse = soften(p, logits0 + i * x, x), along = 0;
		for (size_t e = 0; e < x; e++) {
			prob0[i * x + e] = (float)p[e];
			g[e] = balance * E * (counts0[e] / ((double)total * k)) / N;
			for (size_t j = i * (size_t)k; j < (i + 1) * (size_t)k; j++)
				g[e] += index0[j] == (int32_t)e ? (double)dweight0[j] : 0;
			along += p[e] * g[e];
		}
		for (size_t e = 0; e < x; e++)
			want[i * x + e] = p[e] * (g[e] - along) + 2 * z * lse * p[e] / N;
	}
	bf16 *dlogits = bed_block(&b, "dlogits", NULL, n * x * sizeof(bf16));
	const float *dweight = bed_block(&b, "dweight", dweight0, pairs * sizeof(float)), *prob = bed_block(&b, "prob", prob0, n * x * sizeof(float));
	const int32_t *index = bed_block(&b, "index", index0, pairs * sizeof(int32_t));
	const uint32_t *counts = bed_block(&b, "counts", counts0, x * sizeof(uint32_t));
	const bf16 *logits = bed_block(&b, "logits", logits0, n * x * sizeof(bf16));
	while (bed_run(&b))
		cuda_gate_backward(NULL, dlogits, dweight, prob, index, counts, logits, (float)balance, (float)z, N, total, E, k);
	bed_close_bf16(&b, dlogits, want, n * x, BED_BF16, 1e-6);
	bed_end(&b, "gate_backward, N = %d, E = %d, k = %d, balance %g, z %g", N, E, k, balance, z);
	free_all((void *[]){logits0, dweight0, prob0, index0, counts0, want, p, g}, 8);
}

static void check_sum_counts(int G, int E)
{
	struct bed b = {0};
	size_t g = (size_t)G, x = (size_t)E;
	uint32_t *counts0 = bed_zeros(g * x * sizeof(uint32_t)), *want = bed_zeros(x * sizeof(uint32_t));
	for (size_t i = 0; i < g * x; i++)
		want[i % x] += counts0[i] = (uint32_t)bed_random_below(100000);
	uint32_t *sum = bed_block(&b, "sum", NULL, x * sizeof(uint32_t));
	const uint32_t *counts = bed_block(&b, "counts", counts0, g * x * sizeof(uint32_t));
	while (bed_run(&b))
		cuda_sum_counts(NULL, sum, counts, G, E);
	bed_equal(&b, sum, want, x * sizeof(uint32_t));
	bed_end(&b, "sum_counts, G = %d, E = %d", G, E);
	free_all((void *[]){counts0, want}, 2);
}

/* What a plain loop deals out. */
static void check_assign(int N, int E, int k, int stride)
{
	struct bed b = {0};
	size_t pairs = (size_t)N * (size_t)k;
	uint32_t *counts0 = bed_zeros((size_t)E * sizeof(uint32_t));
	int32_t *want = bed_zeros((pairs + 1) * sizeof(int32_t));
	for (int left = (int)pairs; left;) {
		int e = bed_random_below(E), room = N - (int)counts0[e], most = room < left ? room : left, n = most ? 1 + bed_random_below(most) : 0;
		counts0[e] += (uint32_t)n;
		left -= n;
	}
	for (size_t e = 0, place = 0; e < (size_t)E; e++)
		for (uint32_t i = 0; i < counts0[e]; i++, place++)
			for (size_t n = 0; n < (size_t)N; n++)
				if (n * (size_t)stride % (size_t)N == place % (size_t)N)
					want[n * (size_t)k + place / (size_t)N] = (int32_t)e;
	int32_t *index = bed_block(&b, "index", NULL, pairs * sizeof(int32_t));
	const uint32_t *counts = bed_block(&b, "counts", counts0, (size_t)E * sizeof(uint32_t));
	while (bed_run(&b))
		cuda_assign(NULL, index, counts, N, E, k, stride);
	bed_equal(&b, index, want, pairs * sizeof(int32_t));
	bed_end(&b, "assign, N = %d, E = %d, k = %d", N, E, k);
	free_all((void *[]){counts0, want}, 2);
}

void check_gate(int rows)
{
	for (size_t i = 0; i < COUNT(rows_of) && rows_of[i] <= rows; i++)
		for (size_t j = 0; j < COUNT(experts_of); j++)
			for (size_t l = 0; l < COUNT(choices_of) && choices_of[l] <= experts_of[j]; l++) {
				check_gate_forward(rows_of[i], experts_of[j], choices_of[l], l == 1);
				check_gate_backward(rows_of[i], experts_of[j], choices_of[l], l ? 0.01 : 0, i % 2 ? 0.001 : 0);
			}
	if (rows >= 1000) {
		check_gate_forward(20011, 8, 2, false); /* more tokens than blocks that stay take at once */
		check_gate_forward(20011, 64, 2, false);
	}
	for (size_t j = 0; j < COUNT(experts_of); j++)
		check_not_numbers(experts_of[j], experts_of[j] < 8 ? 1 : 8);
	check_assign(0, 3, 1, 1);
	check_assign(1, 4, 2, 1);
	check_assign(997, 64, 6, 616);
	check_assign(1000, 3, 3, 617);
	check_sum_counts(1, 3);
	check_sum_counts(8, 300);
}

/* ---- routes ---- */

/* order and row by a plain counting sort; `room` of order. */
static void sort(int32_t *order, int32_t *row, const int32_t *index, size_t pairs, int E, int capacity)
{
	size_t at = 0;
	for (int e = 0; e < E; e++) {
		int here = 0;
		if (capacity)
			at = (size_t)e * (size_t)capacity;
		for (size_t pair = 0; pair < pairs; pair++) {
			if (index[pair] != e)
				continue;
			bool fits = !capacity || here++ < capacity;
			row[pair] = fits ? (int32_t)at : -1;
			if (fits)
				order[at++] = (int32_t)pair;
		}
	}
}

/* Order, the weights and both ways of the rows, as one layer uses them. */
static void check_route(int N, int E, int k, int capacity, int D)
{
	struct bed b = {0};
	size_t n = (size_t)N, pairs = n * (size_t)k, R = capacity ? (size_t)E * (size_t)capacity : pairs, d = (size_t)D, W = d + 8;
	int32_t *index0 = different(n, E, k), *order_want = memset(bed_zeros(R * sizeof(int32_t)), 0xff, R * sizeof(int32_t)),
	        *row_want = bed_zeros(pairs * sizeof(int32_t));
	bf16 *x0 = bed_bf16s(n * d, 2), *rows_want = bed_zeros(R * W * sizeof(bf16)), *plain_want = bed_zeros(R * d * sizeof(bf16)),
	     *y0 = bed_bf16s(n * d, 2);
	float *prob0 = bed_floats(n * (size_t)E, 1), *weight_want = bed_zeros(pairs * sizeof(float)), *column_want = bed_zeros(pairs * sizeof(float));
	double *y_want = bed_zeros(n * d * sizeof(double)), *once_want = bed_zeros(n * d * sizeof(double));
	sort(order_want, row_want, index0, pairs, E, capacity);
	for (size_t i = 0; i < n * d; i++)
		once_want[i] = y_want[i] = (double)bed_widen(y0[i]);
	for (size_t pair = 0; pair < pairs; pair++) {
		size_t token = pair / (size_t)k, r = (size_t)row_want[pair];
		weight_want[pair] = prob0[token * (size_t)E + (size_t)index0[pair]];
		if (row_want[pair] < 0)
			continue;
		column_want[pair] = weight_want[pair];
		memcpy(rows_want + r * W, x0 + token * d, d * sizeof(bf16));
		memcpy(rows_want + r * W + weight_at(D), &weight_want[pair], sizeof(float));
		memcpy(plain_want + r * d, x0 + token * d, d * sizeof(bf16));
		for (size_t i = 0; i < d; i++) {
			y_want[token * d + i] += (double)weight_want[pair] * (double)bed_widen(x0[token * d + i]);
			once_want[token * d + i] += (double)bed_widen(x0[token * d + i]);
		}
	}
	const int32_t *index = bed_block(&b, "index", index0, pairs * sizeof(int32_t));
	int32_t *order = bed_block(&b, "order", NULL, R * sizeof(int32_t)), *row = bed_block(&b, "row", NULL, pairs * sizeof(int32_t));
	int32_t *scratch = bed_block(&b, "(scratch)", NULL, cuda_route_scratch_ints(N, E, k) * sizeof(int32_t));
	const float *prob = bed_block(&b, "prob", prob0, n * (size_t)E * sizeof(float));
	float *weight = bed_block(&b, "weight", NULL, pairs * sizeof(float)), *dweight = bed_block(&b, "dweight", NULL, pairs * sizeof(float));
	const bf16 *x = bed_block(&b, "x", x0, n * d * sizeof(bf16));
	bf16 *rows = bed_block(&b, "rows", NULL, R * W * sizeof(bf16)), *plain = bed_block(&b, "rows without weights", NULL, R * d * sizeof(bf16));
	bf16 *y = bed_block(&b, "y", y0, n * d * sizeof(bf16)), *once = bed_block(&b, "y without weights", y0, n * d * sizeof(bf16));
	while (bed_run(&b)) {
		cuda_route(NULL, order, row, index, scratch, N, E, k, (uint32_t)capacity);
		cuda_pick(NULL, weight, prob, index, N, E, k);
		cuda_gather(NULL, rows, x, order, weight, (int)R, D, k, (int)W);
		cuda_gather(NULL, plain, x, order, NULL, (int)R, D, k, D);
		cuda_column(NULL, dweight, rows, row, (int)pairs, D, (int)W);
		cuda_scatter(NULL, y, plain, row, weight, N, D, k, D);
		cuda_scatter(NULL, once, rows, row, NULL, N, D, k, (int)W);
	}
	bed_equal(&b, order, order_want, R * sizeof(int32_t));
	bed_equal(&b, row, row_want, pairs * sizeof(int32_t));
	bed_equal(&b, weight, weight_want, pairs * sizeof(float));
	bed_equal(&b, rows, rows_want, R * W * sizeof(bf16));
	bed_equal(&b, plain, plain_want, R * d * sizeof(bf16));
	bed_equal(&b, dweight, column_want, pairs * sizeof(float));
	bed_close_bf16(&b, y, y_want, n * d, BED_BF16, 1e-5);
	bed_close_bf16(&b, once, once_want, n * d, BED_BF16, 1e-5);
	bed_end(&b, "route, pick, gather, column, scatter, N = %d, E = %d, k = %d, capacity %d, D = %d", N, E, k, capacity, D);
	free_all((void *[]){index0, order_want, row_want, x0, rows_want, plain_want, y0, prob0, weight_want, column_want, y_want, once_want}, 12);
}

/* ---- runs of rows ---- */

/* n runs of up to `rows` rows, every fifth of none, from where others may come from too; a row at least between those that are written. The buffers
 * begin so many bytes off a boundary. */
static void check_moves(int n, int rows, int width, size_t from_skew, size_t to_skew)
{
	struct bed b = {0};
	size_t w = (size_t)width, there = (size_t)(2 * rows) * w, here = (size_t)(n * (rows + 1)) * w;
	struct cuda_rows *runs = bed_zeros((size_t)n * sizeof(*runs));
	bf16 *from0 = bed_bf16s(there, 2), *to0 = bed_bf16s(here, 2), *want = bed_zeros(here * sizeof(bf16));
	const bf16 *from = bed_block_skewed(&b, "from", from0, there * sizeof(bf16), from_skew);
	bf16 *to = bed_block_skewed(&b, "to", to0, here * sizeof(bf16), to_skew);
	memcpy(want, to0, here * sizeof(bf16));
	for (int i = 0; i < n; i++) {
		size_t source = (size_t)bed_random_below(rows) * w, target = (size_t)(i * (rows + 1)) * w;
		runs[i] = (struct cuda_rows){from + source, to + target, i % 5 == 1 ? 0 : 1 + bed_random_below(rows)};
		memcpy(want + target, from0 + source, (size_t)runs[i].rows * w * sizeof(bf16));
	}
	while (bed_run(&b))
		cuda_move_rows(NULL, runs, n, width);
	bed_equal(&b, to, want, here * sizeof(bf16));
	bed_end(&b, "move_rows, %d runs of up to %d rows, %d wide, %zu and %zu bytes off", n, rows, width, from_skew, to_skew);
	free_all((void *[]){runs, from0, to0, want}, 4);
}

static void check_all_moves(int rows)
{
	static const int runs[] = {0, 1, 3, 160, 161, 500}, widths[] = {1, 7, 8, 768, 1023, 1032};
	for (size_t i = 0; i < COUNT(runs); i++)
		for (size_t j = 0; j < COUNT(widths); j++) {
			check_moves(runs[i], rows < 12 ? rows : 12, widths[j], 0, 0);
			check_moves(runs[i], 2, widths[j], j % 2 ? 2 : 16, 0);
			check_moves(runs[i], 2, widths[j], 0, j % 2 ? 16 : 2);
		}
	if (rows < 1000)
		return;
	check_moves(3, 20000, 1024, 0, 0); /* more than there are warps at once */
	check_moves(3, 3000, 1023, 0, 0);
}

void check_routes(int rows)
{
	static const int widths[] = {8, 40, 768, 1000, 1023, 1100};
	int nth = 0;
	for (size_t i = 0; i < COUNT(rows_of) && rows_of[i] <= rows; i++)
		for (size_t j = 0; j < COUNT(experts_of); j++)
			for (size_t l = 0; l < COUNT(choices_of) && choices_of[l] <= experts_of[j]; l++)
				for (int some = 0; some < 2; some++)
					check_route(rows_of[i], experts_of[j], choices_of[l],
					            some ? 1 + rows_of[i] * choices_of[l] / experts_of[j] / 2 : 0,
					            widths[nth++ % (int)COUNT(widths)]);
	check_route(50, 9000, 2, 0, 8); /* more experts than a block counts in shared memory */
	check_route(50, 9000, 2, 1, 8);
	check_all_moves(rows);
	if (rows >= 1000)
		check_route(20011, 64, 2, 0, 8); /* more tiles than a warp has lanes */
}
