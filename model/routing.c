/* Loads as a pure function of the seed and the arguments: random numbers are hashes of what they are for (splitmix64 finaliser), never draws from a
 * state.
 *
 * Skewed counts are made in two steps. First each expert's share of a row in fixed point, `popularity * total`, where what is above one row's tokens
 * spills over to the next experts. Then every GPU rounds the running sum of the shares with an own offset u:
 *
 *     shares  |----2.6----|-1.2-|---1.9--|.3|        count = floor(end + u) - floor(start + u)
 *     u = 0   |  2        | 1   |  2     | 1|        each count is its share rounded up or down, each row sums to the total exactly,
 *     u = 0.5 |    3      | 1   |  2     | 0|        and offsets spread evenly over the GPUs keep each expert's total within one of its due. */
#include "routing.h"

#include "error.h"
#include "loads.h"

#include <math.h>
#include <string.h>

enum { FRACTION_BITS = 20 }; /* of a share; totals of a row stay below 2^44 */

struct shape {
	int gpus, experts, top_k;
	uint32_t tokens_per_gpu;
}; /* of the counts asked for */
struct place {
	int step, microbatch, layer;
};

struct routing {
	bool (*fill)(const struct routing *r, struct place at, struct shape s, uint32_t *tokens, GError **error);
	uint64_t seed;
	double skew, drift;   /* zipf */
	struct loads *loads;  /* file */
	int replayed, offset; /* file: its micro-batches a step, 0: the same in every step; and the step it begins with */
};

enum purpose { ORDER, SWAP, ROUNDING, TOKEN }; /* keeps the random numbers of different uses apart */

static uint64_t mix(uint64_t x)
{
	x += UINT64_C(0x9e3779b97f4a7c15);
	x = (x ^ (x >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
	x = (x ^ (x >> 27)) * UINT64_C(0x94d049bb133111eb);
	return x ^ (x >> 31);
}

static uint64_t key(const struct routing *r, enum purpose purpose, struct place at)
{
	return mix(mix(mix(mix(r->seed + (uint64_t)purpose) + (uint64_t)at.step) + (uint64_t)at.microbatch) + (uint64_t)at.layer);
}

/* A number 0..n-1 from the upper half of a hash; uneven by n / 2^32 at most. */
static int below(uint64_t hash, int n)
{
	return (int)(((hash >> 32) * (uint64_t)n) >> 32);
}

static uint64_t row_total(struct shape s)
{
	return (uint64_t)s.tokens_per_gpu * (uint64_t)s.top_k;
}

/* Rows of equal counts; the remainder of one row goes on around the ring of experts where the row before stopped, from a place drawn for the layer
 * and step: the one token of a decode step must not meet the same experts every time. */
static bool even_fill(const struct routing *r, struct place at, struct shape s, uint32_t *tokens, GError **error)
{
	const uint64_t total = row_total(s), experts = (uint64_t)s.experts;
	const uint64_t each = total / experts, rest = total % experts, start = (uint64_t)below(key(r, ROUNDING, at), s.experts);
	for (uint64_t g = 0; g < (uint64_t)s.gpus; g++) {
		uint32_t *row = tokens + g * experts; /* (E) */
		for (uint64_t e = 0; e < experts; e++)
			row[e] = (uint32_t)each;
		for (uint64_t i = 0; i < rest; i++)
			row[(start + g * rest + i) % experts]++;
	}
	return true;
}

/* Experts by popularity: a shuffle for the layer, then all swaps of the steps until now. Replayed from step 0 to stay a function of the step. */
static void order_draw(const struct routing *r, struct place at, int experts, int *order)
{
	const uint64_t shuffle = key(r, ORDER, (struct place){0, 0, at.layer});
	for (int e = 0; e < experts; e++)
		order[e] = e;
	for (int e = experts - 1; e > 0; e--) {
		const int other = below(mix(shuffle + (uint64_t)e), e + 1), moved = order[e];
		order[e] = order[other];
		order[other] = moved;
	}
	const uint64_t swap = key(r, SWAP, (struct place){0, 0, at.layer});
	const uint64_t n_swaps = experts > 1 ? (uint64_t)(at.step * r->drift * experts / 2) : 0; /* a swap moves two */
	for (uint64_t i = 0; i < n_swaps; i++) {
		const int a = below(mix(swap + 2 * i), experts);
		const int b = (a + 1 + below(mix(swap + 2 * i + 1), experts - 1)) % experts, moved = order[a];
		order[a] = order[b];
		order[b] = moved;
	}
}

/* Fills share (E), fixed point, in proportion to weight (E) but at most one row's tokens each; what is above goes to the next experts. `order` lists
 * the experts by falling weight, so that whoever comes after an uncapped expert is uncapped too. */
static void shares_cut(const double *weight, const int *order, struct shape s, uint64_t *share)
{
	const uint64_t cap = (uint64_t)s.tokens_per_gpu << FRACTION_BITS;
	uint64_t left = row_total(s) << FRACTION_BITS;
	g_autofree double *tail = g_new(double, (size_t)s.experts + 1); /* weight of this expert and all after it */
	tail[s.experts] = 0;
	for (int i = s.experts - 1; i >= 0; i--)
		tail[i] = tail[i + 1] + weight[order[i]];
	for (int i = 0; i < s.experts; i++) {
		const double due = tail[i] > 0 ? round((double)left * (weight[order[i]] / tail[i])) : 0;
		const uint64_t after = (uint64_t)(s.experts - 1 - i) * cap; /* what the others can take at most */
		uint64_t take = MIN(MIN((uint64_t)due, cap), left);
		if (left > after)
			take = MAX(take, left - after);
		share[order[i]] = take;
		left -= take;
	}
}

/* Rounds the shares to the counts of one row: see the top of the file. */
static void row_round(const uint64_t *share, int experts, uint64_t offset, uint32_t *row)
{
	uint64_t sum = offset, before = 0;
	for (int e = 0; e < experts; e++) {
		sum += share[e];
		row[e] = (uint32_t)((sum >> FRACTION_BITS) - before);
		before = sum >> FRACTION_BITS;
	}
}

/* The rounding offset of a GPU: a common start drawn for the place, then even steps around the unit circle. */
static uint64_t offset_draw(uint64_t start, int gpu, int gpus)
{
	const uint64_t one = UINT64_C(1) << FRACTION_BITS;
	return (start + (uint64_t)gpu * one / (uint64_t)gpus) & (one - 1);
}

static bool zipf_fill(const struct routing *r, struct place at, struct shape s, uint32_t *tokens, GError **error)
{
	g_autofree int *order = g_new(int, s.experts);
	g_autofree double *weight = g_new(double, s.experts);
	g_autofree uint64_t *share = g_new(uint64_t, s.experts);
	order_draw(r, at, s.experts, order);
	for (int rank = 0; rank < s.experts; rank++)
		weight[order[rank]] = pow(rank + 1, -r->skew);
	shares_cut(weight, order, s, share);
	const uint64_t start = key(r, ROUNDING, at);
	for (int g = 0; g < s.gpus; g++)
		row_round(share, s.experts, offset_draw(start, g, s.gpus), tokens + (size_t)g * (size_t)s.experts);
	return true;
}

/* Each token's experts by hash; an expert that has all of the GPU's tokens already passes the next on. */
static bool hash_fill(const struct routing *r, struct place at, struct shape s, uint32_t *tokens, GError **error)
{
	const uint64_t start = key(r, TOKEN, at);
	memset(tokens, 0, (size_t)s.gpus * (size_t)s.experts * sizeof *tokens);
	for (int g = 0; g < s.gpus; g++) {
		uint32_t *row = tokens + (size_t)g * (size_t)s.experts; /* (E) */
		const uint64_t gpu_start = mix(start + (uint64_t)g);
		for (uint64_t i = 0; i < row_total(s); i++) {
			int e = below(mix(gpu_start + i), s.experts);
			while (row[e] == s.tokens_per_gpu)
				e = e + 1 < s.experts ? e + 1 : 0;
			row[e]++;
		}
	}
	return true;
}

static int heavier(const void *a, const void *b, void *weight)
{
	const int x = *(const int *)a, y = *(const int *)b;
	const double *w = weight;
	return w[x] != w[y] ? (w[x] > w[y] ? -1 : 1) : (x > y) - (x < y);
}

/* Whether the file's rows can be taken as they are. */
static bool row_fits(const uint32_t *row, struct shape s)
{
	uint64_t sum = 0;
	for (int e = 0; e < s.experts; e++) {
		if (row[e] > s.tokens_per_gpu)
			return false;
		sum += row[e];
	}
	return sum == row_total(s);
}

/* Counts of a file. Rows of another total are scaled; for another number of GPUs each row is a scaled copy of the file's sum over its GPUs. */
static bool file_fill(const struct routing *r, struct place at, struct shape s, uint32_t *tokens, GError **error)
{
	const int n_rows = loads_gpus(r->loads);
	const size_t n_experts = (size_t)s.experts;
	g_autofree uint32_t *file = g_new(uint32_t, (size_t)n_rows * n_experts); /* (file's G, E) */
	int microbatch = at.microbatch + (at.step + r->offset) * r->replayed;
	if (!loads_layer(r->loads, microbatch, at.layer, s.experts, file, error))
		return false;
	g_autofree int *order = g_new(int, n_experts);
	g_autofree double *weight = g_new0(double, n_experts);
	g_autofree uint64_t *share = g_new(uint64_t, n_experts);
	const uint64_t start = key(r, ROUNDING, (struct place){0, at.microbatch, at.layer});
	if (n_rows != s.gpus)
		for (size_t i = 0; i < (size_t)n_rows * n_experts; i++)
			weight[i % n_experts] += file[i];
	for (int g = 0; g < s.gpus; g++) {
		const uint32_t *own = n_rows == s.gpus ? file + (size_t)g * n_experts : NULL; /* (E) */
		uint32_t *row = tokens + (size_t)g * n_experts;
		if (own && row_fits(own, s)) {
			memcpy(row, own, n_experts * sizeof *row);
			continue;
		}
		for (size_t e = 0; own && e < n_experts; e++)
			weight[e] = own[e];
		if (own || g == 0) {
			for (int e = 0; e < s.experts; e++)
				order[e] = e;
			g_qsort_with_data(order, s.experts, sizeof *order, heavier, weight);
			shares_cut(weight, order, s, share);
		}
		row_round(share, s.experts, offset_draw(start, g, s.gpus), row);
	}
	return true;
}

/* "S" or "S:DRIFT". */
static bool zipf_parse(struct routing *r, const char *numbers, GError **error)
{
	g_auto(GStrv) word = g_strsplit(numbers, ":", 3);
	double value[2] = {0, 0.02};
	static const double most[2] = {16, 1};
	const guint n_words = g_strv_length(word);
	bool good = n_words == 1 || n_words == 2;
	for (guint i = 0; good && i < n_words; i++) {
		char *end;
		value[i] = g_ascii_strtod(word[i], &end);
		good = g_ascii_isdigit(word[i][0]) && *end == '\0' && value[i] >= 0 && value[i] <= most[i];
	}
	if (!good) {
		g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_INPUT, "routing \"zipf:%s\": expected zipf:S or zipf:S:DRIFT with S 0..16 and DRIFT 0..1",
		            numbers);
		return false;
	}
	r->fill = zipf_fill;
	r->skew = value[0];
	r->drift = value[1];
	return true;
}

static bool even_parse(struct routing *r, const char *rest, GError **error)
{
	r->fill = even_fill;
	return true;
}

static bool hash_parse(struct routing *r, const char *rest, GError **error)
{
	r->fill = hash_fill;
	return true;
}

/* Expert choice takes the same number of tokens for every expert, which in counts is uniform routing. */
static const struct rule {
	const char *name;
	bool (*parse)(struct routing *r, const char *rest, GError **error);
} rules[] = {{"uniform", even_parse}, {"expert-choice", even_parse}, {"hash", hash_parse}, {"zipf:", zipf_parse}};

static bool spec_is_path(const char *spec)
{
	return strchr(spec, '/') || g_str_has_suffix(spec, ".csv") || g_file_test(spec, G_FILE_TEST_EXISTS);
}

static bool spec_parse(struct routing *r, const char *spec, GError **error)
{
	for (size_t i = 0; i < G_N_ELEMENTS(rules); i++) {
		const size_t n = strlen(rules[i].name);
		const bool takes_more = rules[i].name[n - 1] == ':';
		if (takes_more ? g_str_has_prefix(spec, rules[i].name) : strcmp(spec, rules[i].name) == 0)
			return rules[i].parse(r, spec + n, error);
	}
	if (spec_is_path(spec)) {
		r->fill = file_fill;
		r->loads = loads_read(spec, error);
		return r->loads != NULL;
	}
	static const char *const known[] = {"uniform", "expert-choice", "hash", "zipf:1", NULL};
	const char *near = nearest_word(spec, known);
	g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_INPUT,
	            "unknown routing \"%s\"%s%s%s: expected uniform, zipf:S, zipf:S:DRIFT, expert-choice, hash or the path of a .csv of loads", spec,
	            near ? ", did you mean \"" : "", near ? near : "", near ? "\"" : "");
	return false;
}

struct routing *routing_new(const char *spec, uint64_t seed, GError **error)
{
	g_autoptr(routing) r = g_new0(struct routing, 1);
	r->seed = seed;
	return spec_parse(r, spec, error) ? g_steal_pointer(&r) : NULL;
}

void routing_free(struct routing *r)
{
	if (!r)
		return;
	loads_free(r->loads);
	g_free(r);
}

void routing_replay(struct routing *r, int microbatches, int offset)
{
	g_assert(microbatches > 0 && offset >= 0);
	r->replayed = microbatches;
	r->offset = offset;
}

bool routing_loads(const struct routing *r, int step, int microbatch, int layer, int gpus, int experts, int top_k, uint32_t tokens_per_gpu,
                   uint32_t *tokens, GError **error)
{
	g_assert(step >= 0 && microbatch >= 0 && layer >= 0 && gpus > 0);
	g_assert(top_k > 0 && top_k <= experts);
	const struct shape s = {gpus, experts, top_k, tokens_per_gpu};
	g_assert(row_total(s) < UINT64_C(1) << (64 - FRACTION_BITS));
	return r->fill(r, (struct place){step, microbatch, layer}, s, tokens, error);
}
