/* From the gate's counts to work lists: which GPU computes which expert on how many tokens, and how many bytes the all-to-alls carry.
 *
 *     loads (G, E)  ->  tokens of each expert  ->  placement  ->  work of each GPU, bytes between GPUs
 *
 * With expert parallelism over P GPUs there are G / P sets; set q serves the tokens of its own GPUs. P = 1 keeps all tokens at home. A unit is a GPU,
 * or the tensor group that cuts each of its experts: its GPUs have the same tokens, and each exchanges with its peers of the other units. Where a
 * layer has fewer experts than a set has units, each expert is spread over some of them: replicas that share its tokens (EP+DP) or slices that all
 * see them (EP+MP). */
#include "build.h"
#include "placement.h"

#include <math.h>
#include <string.h>

#define STICKY_SLACK 0.1 /* how far past the mean load an expert may stay where it was */

static uint32_t widest_load(const uint32_t *loads, size_t n)
{
	uint32_t most = 0;
	for (size_t i = 0; i < n; i++)
		most = MAX(most, loads[i]);
	return most;
}

static uint32_t capacity(const struct schedule *s, const struct layer *l)
{
	if (s->p->dispatch == DISPATCH_EXACT)
		return 0;
	if (s->p->capacity_factor > 0)
		return (uint32_t)ceil(s->p->capacity_factor * l->top_k * routed(s) / l->experts);
	return MAX(1, widest_load(s->loads, (size_t)s->gpus * (size_t)l->experts));
}

/* All GPUs of a unit have the tokens of its first. */
static void share_loads(struct schedule *s, int experts)
{
	uint32_t *loads = s->loads;
	if (s->plan.unit == 1)
		return;
	for (int g = 0; g < s->gpus; g++)
		if (g % s->plan.unit)
			memcpy(loads + (size_t)g * (size_t)experts, loads + (size_t)(g - g % s->plan.unit) * (size_t)experts,
			       sizeof(uint32_t) * (size_t)experts);
}

/* Tokens of each expert in each set: totals (sets, E). */
static void add_up(struct schedule *s, int experts)
{
	memset(s->totals, 0, sizeof(uint32_t) * (size_t)experts * (size_t)(s->gpus / s->plan.expert_parallel));
	for (int g = 0; g < s->gpus; g += s->plan.unit) {
		const uint32_t *load = s->loads + (size_t)g * (size_t)experts;
		uint32_t *total = s->totals + (size_t)(g / s->plan.expert_parallel) * (size_t)experts;
		for (int e = 0; e < experts; e++)
			total[e] += load[e];
	}
}

/* ES-MoE, section 4.2: an expert takes the longer of its upload and its computation. */
static void place_dynamic(struct schedule *s, int layer)
{
	const struct layer *l = &s->n->layer[layer];
	struct moe_layer *moe = &s->moe[layer];
	int e_count = moe->experts, *last = s->last_place;
	nsec_t upload_ns = offloaded(s) ? cost_upload(s->cost, element_bytes(s) * moe->params) : 0;
	memset(s->load_ns, 0, sizeof(nsec_t) * (size_t)s->gpus);
	for (int e = 0; e < e_count; e++) {
		uint32_t kernels;
		nsec_t compute_ns = cost_compute(s->cost, STAGE_EXPERT, PASS_FORWARD, l, s->totals[e], &kernels);
		last[e] = moe->expert[e].last;
		s->place[e] = moe->expert[e].pinned;
		s->time_ns[e] = s->place[e] < 0 ? MAX(upload_ns, compute_ns) : compute_ns;
		if (s->place[e] >= 0)
			s->load_ns[s->place[e]] += compute_ns;
	}
	for (int g = 0; g < s->gpus; g++)
		for (int i = 0; i < s->gpu[g].n_prefetched; i++)
			s->place[s->gpu[g].prefetched_expert[i]] = g;
	for (int node = 0; node < s->nodes; node++) {
		int from = first_expert(s, e_count, node), to = first_expert(s, e_count, node + 1);
		int gpu = node * s->m->gpus_per_node, local = machine_node_gpus(s->m, node);
		for (int e = from; e < to; e++) {
			s->place[e] -= s->place[e] >= 0 ? gpu : 0;
			last[e] -= last[e] >= 0 ? gpu : 0;
		}
		if (s->p->placement == PLACEMENT_LPT)
			placement_lpt(to - from, s->time_ns + from, local, s->load_ns + gpu, s->place + from);
		else
			placement_sticky(to - from, s->time_ns + from, last + from, STICKY_SLACK, local, s->load_ns + gpu, s->place + from);
		for (int e = from; e < to; e++)
			s->place[e] += gpu;
	}
}

/* The first of the units, counted within their set, whose slices of expert e serve tokens of GPU g. */
static int host_of(const struct schedule *s, const struct block *b, int experts, int e, int g)
{
	int spread = spread_of(s, experts), replicas = spread / b->slices;
	if (s->shadow[e])
		return g;
	if (spread == 1)
		return s->place[e];
	return e * spread + g / s->plan.unit % replicas * b->slices;
}

/* Fills the work lists by counting: first[] holds the number of entries, then their positions. */
static void list_work(struct schedule *s, struct block *b, const struct layer *l)
{
	int e_count = l->experts, set = s->plan.expert_parallel, sets = s->gpus / set, spread = spread_of(s, e_count), n = 0;
	int unit = s->plan.unit, replicas = MAX(1, spread / b->slices);
	uint32_t padded = b->capacity * (uint32_t)(set / unit);
	memset(b->first, 0, sizeof(int) * (size_t)(s->gpus + 1));
	for (int q = 0; q < sets; q++) {
		for (int e = 0; e < e_count; e++) {
			if (s->shadow[e])
				continue;
			uint32_t tokens = b->capacity ? padded : s->totals[(size_t)q * (size_t)e_count + (size_t)e];
			for (int r = 0; r < spread; r++) {
				int gpu = q * set + (spread == 1 ? s->place[e] : e * spread + r) * unit;
				uint32_t replica = (uint32_t)(r / b->slices), share = tokens / (uint32_t)replicas;
				share += replica < tokens % (uint32_t)replicas;
				for (int to = gpu; to < gpu + unit; to++) {
					s->place_of[n] = to;
					s->work[n++] = (struct expert_work){.expert = e, .tokens = share};
					b->first[to + 1]++;
				}
			}
		}
	}
	for (int e = 0; b->shadows && e < e_count; e++)
		for (int g = 0; s->shadow[e] && g < s->gpus; g++) {
			s->place_of[n] = g;
			s->work[n++] = (struct expert_work){.expert = e, .tokens = s->loads[(size_t)g * (size_t)e_count + (size_t)e]};
			b->first[g + 1]++;
		}
	for (int g = 0; g < s->gpus; g++)
		b->first[g + 1] += b->first[g];
	memcpy(s->cursor, b->first, sizeof(int) * (size_t)s->gpus);
	for (int i = 0; i < n; i++)
		b->work[s->cursor[s->place_of[i]]++] = s->work[i];
}

enum turn { TURN_PINNED, TURN_PREFETCHED, TURN_UPLOADED, N_TURNS };

static enum turn turn_of(const struct schedule *s, const struct moe_layer *moe, int gpu, int e)
{
	const struct gpu_state *g = &s->gpu[gpu];
	if (moe->expert[e].pinned == gpu)
		return TURN_PINNED;
	for (int i = 0; i < g->n_prefetched; i++)
		if (g->prefetched_expert[i] == e)
			return TURN_PREFETCHED;
	return TURN_UPLOADED;
}

/* Pinned experts first: their computation hides the upload of the first that is not. Then those that wait in their slots, which the others need. */
static void take_turns(struct schedule *s, struct block *b, const struct moe_layer *moe)
{
	for (int g = 0; g < s->gpus; g++) {
		int n = 0, from = b->first[g], to = b->first[g + 1];
		for (int turn = 0; turn < N_TURNS; turn++)
			for (int i = from; i < to; i++)
				if ((int)turn_of(s, moe, g, b->work[i].expert) == turn)
					s->work[n++] = b->work[i];
		memcpy(b->work + from, s->work, sizeof(struct expert_work) * (size_t)n);
	}
}

/* Rows that GPU g has for each unit of its set: rows (set / unit). */
static void count_rows(const struct schedule *s, const struct block *b, int experts, int g, uint64_t *rows)
{
	int units = s->plan.expert_parallel / s->plan.unit;
	const uint32_t *load = s->loads + (size_t)g * (size_t)experts;
	memset(rows, 0, sizeof(uint64_t) * (size_t)units);
	if (spread_of(s, experts) == 1 && !b->capacity && !b->shadows) { /* the usual case, and each pair of GPU and expert comes by */
		for (int e = 0; e < experts; e++)
			rows[s->place[e]] += load[e];
		return;
	}
	for (int e = 0; e < experts; e++) {
		int host = host_of(s, b, experts, e, g);
		for (int slice = 0; slice < b->slices; slice++)
			rows[host + slice] += b->capacity ? b->capacity : load[e];
	}
}

/* Whether rows of one message that lie apart are packed, and unpacked, and those that stay are moved with the first of both (exec/cuda/packing.c). */
static bool packs(const struct schedule *s, const struct block *b, int experts)
{
	return machine_move_ns(s->m) > 0 && spread_of(s, experts) == 1 && !b->shadows;
}

static uint32_t rows_of(const struct schedule *s, const struct block *b, int experts, int g, int e)
{
	return b->capacity ? b->capacity : s->loads[(size_t)g * (size_t)experts + (size_t)e];
}

/* The next of GPU g's rows in their order are for, or from, member `other`: whether these lie in several stretches now. */
static void add_stretch(struct schedule *s, int other, int *last)
{
	if (other != *last)
		s->stretches[other] = (uint8_t)MIN(s->stretches[other] + 1, 2);
	*last = other;
}

/* Of the rows that GPU g has for others, in the order of experts, those that lie in several stretches. */
static uint64_t packed_rows(struct schedule *s, const struct block *b, int experts, int g)
{
	int set = s->plan.expert_parallel, unit = s->plan.unit, own = g % set / unit, last = -1;
	uint64_t rows = 0;
	memset(s->stretches, 0, (size_t)(set / unit));
	for (int e = 0; e < experts; e++)
		if (rows_of(s, b, experts, g, e))
			add_stretch(s, s->place[e], &last);
	for (int to = 0; to < set / unit; to++)
		rows += to != own && s->stretches[to] > 1 ? s->rows[to] : 0;
	return rows;
}

/* Of those that come to it, in the order of its experts and, of each, of the GPUs that they come from. Those of one expert are a stretch. */
static uint64_t unpacked_rows(struct schedule *s, const struct block *b, int experts, int g)
{
	int set = s->plan.expert_parallel, unit = s->plan.unit, own = g % set / unit, first = g - own * unit, last = -1, hosted = 0;
	uint64_t rows = 0;
	for (int e = 0; e < experts; e++)
		hosted += s->place[e] == own;
	if (hosted < 2)
		return 0;
	memset(s->stretches, 0, (size_t)(set / unit));
	memset(s->rows, 0, sizeof(uint64_t) * (size_t)(set / unit));
	for (int e = 0; e < experts; e++)
		for (int from = 0; from < set / unit && s->place[e] == own; from++) {
			uint32_t n = rows_of(s, b, experts, first + from * unit, e);
			if (n)
				add_stretch(s, from, &last);
			s->rows[from] += n;
		}
	for (int from = 0; from < set / unit; from++)
		rows += from != own && s->stretches[from] > 1 ? s->rows[from] : 0;
	return rows;
}

void count_bytes(struct schedule *s, struct block *b, const struct layer *l)
{
	int set = s->plan.expert_parallel, unit = s->plan.unit;
	uint64_t row = (uint64_t)s->n->d_model * element_bytes(s);
	struct exchange x = {0};
	const bool packing = packs(s, b, l->experts);
	uint64_t before = 0, behind = 0;            /* rows that are moved before and after what is sent */
	if (s->p->all_to_all == ALL_TO_ALL_DROPPED) /* each GPU of a unit sends its share of what all of them have */
		row /= (uint64_t)unit;
	if (s->tally)
		tally_begin(s, s->tally);
	memset(s->received, 0, sizeof(uint64_t) * (size_t)s->gpus);
	memset(s->node_bytes, 0, sizeof(uint64_t) * (size_t)s->nodes * 2);
	for (int g = 0; g < s->gpus; g++) {
		uint64_t near = 0, far = 0;
		int base = g / set * set, node = s->node_of[g];
		count_rows(s, b, l->experts, g, s->rows);
		for (int to = base + g % unit; to < base + set; to += unit) {
			uint64_t bytes = to == g ? 0 : row * s->rows[(to - base) / unit];
			if (s->node_of[to] == node) {
				near += bytes;
				s->received[to] += bytes;
			} else {
				far += bytes;
				s->node_bytes[s->nodes + s->node_of[to]] += bytes;
			}
		}
		if (s->tally)
			tally_add(s, s->tally, g, row, s->rows);
		if (packing) {
			uint64_t stay = s->rows[g % set / unit], out = packed_rows(s, b, l->experts, g), in = unpacked_rows(s, b, l->experts, g);
			before = MAX(before, out ? out + stay : 0);
			behind = MAX(behind, in + (out ? 0 : stay));
		}
		b->sent[g] = near + far;
		s->node_bytes[node] += far;
		s->sent_near[g] = near;
	}
	for (int g = 0; g < s->gpus; g++) {
		uint64_t most = MAX(s->sent_near[g], s->received[g]), least = MIN(s->sent_near[g], s->received[g]);
		x.intra_bytes = MAX(x.intra_bytes, least + (uint64_t)((double)(most - least) * s->m->nvlink_one_way));
	}
	for (int i = 0; i < 2 * s->nodes; i++)
		x.inter_bytes = MAX(x.inter_bytes, s->node_bytes[i]);
	x.moved_bytes = row * (before + behind);
	x.moves = packing;
	b->exchange = x;
	if (s->tally)
		tally_end(s, s->tally, b);
}

static nsec_t pipeline_ns(struct schedule *s, const struct block *b, const struct layer *l, int chunks)
{
	struct exchange_times times;
	nsec_t each_ns = exchange_ns(s, b, chunks, &times), most = 0;
	uint32_t kernels;
	for (int g = 0; g < s->gpus; g++) {
		nsec_t ns = 0;
		for (int i = b->first[g]; i < b->first[g + 1]; i++)
			ns += cost_compute(s->cost, STAGE_EXPERT, PASS_FORWARD, l, b->work[i].tokens / (uint32_t)chunks, &kernels) / b->slices;
		most = MAX(most, ns);
	}
	/* dispatch and combine share the collective stream: chunk after chunk, the longer of the two streams, plus what cannot overlap */
	return each_ns + MAX(chunks * most + each_ns, most + (2 * chunks - 1) * each_ns);
}

static int best_chunks(struct schedule *s, const struct block *b, const struct layer *l)
{
	int best = 1;
	if (s->p->pipeline_degree || offloaded(s) || !exchanges(s))
		return MAX(1, s->p->pipeline_degree);
	for (int d = 2; d <= MAX_CHUNKS; d *= 2)
		if (pipeline_ns(s, b, l, d) < pipeline_ns(s, b, l, best))
			best = d;
	return best;
}

static void route_one(struct schedule *s, int layer, int microbatch)
{
	const struct layer *l = &s->n->layer[layer];
	struct block *b = &s->moe[layer].block[microbatch];
	b->capacity = capacity(s, l);
	travel_choose(s, layer, b);
	if (b->travels) {
		travel_list(s, layer, b);
		return;
	}
	list_work(s, b, l);
	if (offloaded(s) && (s->plan.pinned_share > 0 || s->p->upload_scope == UPLOAD_NEXT_LAYER))
		take_turns(s, b, &s->moe[layer]);
	for (int i = 0; i < b->first[s->gpus]; i++)
		s->moe[layer].expert[b->work[i].expert].tokens += b->work[i].tokens;
	count_bytes(s, b, l);
	b->chunks = best_chunks(s, b, l);
	exchange_ns(s, b, b->chunks, &b->times);
}

/* In vertical order all micro-batches of a layer are placed as the first is, so that one upload serves all. */
static void place(struct schedule *s, int layer, int microbatch)
{
	bool moves = s->p->placement != PLACEMENT_FIXED && offloaded(s);
	if (!moves)
		placement_fixed(s->n->layer[layer].experts, s->plan.expert_parallel / s->plan.unit, s->place);
	else if (!vertical(s) || microbatch == 0)
		place_dynamic(s, layer);
}

void route(struct schedule *s, int layer, int microbatch, stage_id counts)
{
	const struct layer *l = &s->n->layer[layer];
	struct gate gate = {.counts = counts,
	                    .step = s->step,
	                    .microbatch = microbatch,
	                    .layer = layer,
	                    .experts = l->experts,
	                    .top_k = l->top_k,
	                    .tokens_per_gpu = routed(s)};
	/* the host runs on, past stages that still look at the block, which stays as it is */
	bool waits = asks_gates(s);
	if (s->failed || (!waits && s->moe[layer].block[microbatch].capacity))
		return;
	if (waits && !backend_loads(s->backend, &gate, s->loads, s->error)) {
		s->failed = true;
		return;
	}
	share_loads(s, l->experts);
	if (s->p->dispatch == DISPATCH_EXACT)
		add_up(s, l->experts);
	place(s, layer, microbatch);
	route_one(s, layer, microbatch);
}
