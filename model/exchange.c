/* All-to-alls over several nodes: who sends how much over which link, and the hierarchical form as two stages (Tutel, arXiv 2206.03382, section 4.3).
 *
 *     linear         GPU i of node a ------------------------------------> GPU j of node b        a message to each peer
 *     hierarchical   GPU i of node a --gather--> GPU j of node a --rail--> GPU j of node b        inside nodes; then between equal places
 *
 * A gather waits for the GPUs of its node only, a rail for those of its place. Bytes are counted from the tokens that were routed, so the busiest
 * GPU, adapter and leaf switch are those of this layer and micro-batch. */
#include "build.h"

#include <string.h>

struct tally {
	bool hierarchical;           /* the policy may choose it, and each set fills its nodes with several members each */
	int adapters, leaves;        /* of all nodes */
	uint64_t *gathered, *railed; /* (2, G) sent, then received, by GPU */
	uint64_t *adapter;           /* (2, adapters) linear */
	uint64_t *leaf, *rail_leaf;  /* (2, leaves) */
	int *adapter_of, *leaf_of;   /* (G) */
	uint64_t whole;              /* the most bytes one GPU has for all, itself included */
	uint32_t gather, rail;       /* profiles of GPU 0 */
};

static bool may_be_hierarchical(const struct schedule *s)
{
	int reach = s->set.size * s->set.stride;
	return (s->p->all_to_all == ALL_TO_ALL_HIERARCHICAL || s->p->all_to_all == ALL_TO_ALL_AUTO) && reach > s->m->gpus_per_node &&
	       reach % s->m->gpus_per_node == 0 && s->m->gpus_per_node % s->set.stride == 0 && s->m->gpus_per_node > s->set.stride;
}

struct tally *tally_new(const struct schedule *s)
{
	bool hierarchical = may_be_hierarchical(s);
	struct group_shape shape;
	group_shape(s->m, &s->set, &shape);
	if (shape.nodes == 1 || (!hierarchical && s->m->nic_adapters == 1 && !s->m->fabric_leaf_nodes))
		return NULL;
	struct tally *t = g_new0(struct tally, 1);
	size_t gpus = (size_t)s->gpus;
	t->hierarchical = hierarchical;
	t->adapters = machine_nodes(s->m) * s->m->nic_adapters;
	t->leaves = machine_leaves(s->m);
	t->gathered = g_new0(uint64_t, 2 * gpus);
	t->railed = g_new0(uint64_t, 2 * gpus);
	t->adapter = g_new0(uint64_t, 2 * (size_t)t->adapters);
	t->leaf = g_new0(uint64_t, 2 * (size_t)t->leaves + 1);
	t->rail_leaf = g_new0(uint64_t, 2 * (size_t)t->leaves + 1);
	t->adapter_of = g_new(int, gpus);
	t->leaf_of = g_new(int, gpus);
	for (int g = 0; g < s->gpus; g++) {
		t->adapter_of[g] = machine_adapter(s->m, g);
		t->leaf_of[g] = machine_leaf(s->m, g);
	}
	if (hierarchical) {
		struct ranks whole = {.first = s->set.first - s->set.first % s->set.stride, .stride = 1, .size = s->set.size * s->set.stride};
		t->gather = resources_collective(s->resources, s->m, OP_ALL_TO_ALL, ALGORITHM_GATHER, &whole);
		t->rail = resources_collective(s->resources, s->m, OP_ALL_TO_ALL, ALGORITHM_RAIL, &whole);
	}
	return t;
}

void tally_free(struct tally *t)
{
	if (!t)
		return;
	uint64_t *counts[] = {t->gathered, t->railed, t->adapter, t->leaf, t->rail_leaf};
	for (size_t i = 0; i < G_N_ELEMENTS(counts); i++)
		g_free(counts[i]);
	g_free(t->adapter_of);
	g_free(t->leaf_of);
	g_free(t);
}

void tally_begin(const struct schedule *s, struct tally *t)
{
	memset(t->gathered, 0, sizeof(uint64_t) * 2 * (size_t)s->gpus);
	memset(t->railed, 0, sizeof(uint64_t) * 2 * (size_t)s->gpus);
	memset(t->adapter, 0, sizeof(uint64_t) * 2 * (size_t)t->adapters);
	memset(t->leaf, 0, sizeof(uint64_t) * 2 * (size_t)t->leaves);
	memset(t->rail_leaf, 0, sizeof(uint64_t) * 2 * (size_t)t->leaves);
	t->whole = 0;
}

static void add_leaves(const struct tally *t, uint64_t *leaf, int from, int to, uint64_t bytes)
{
	if (t->leaf_of[from] == t->leaf_of[to])
		return;
	leaf[t->leaf_of[from]] += bytes;
	leaf[t->leaves + t->leaf_of[to]] += bytes;
}

/* What GPU g sends straight to the members of its set on another node, of which the first is `to`; rows of each. */
static void add_straight(const struct schedule *s, struct tally *t, int g, int to, int members, uint64_t row, const uint64_t *rows)
{
	uint64_t *sent = &t->adapter[t->adapter_of[g]], *received = t->adapter + t->adapters;
	for (int i = 0; i < members; i++, to += s->set.stride) {
		uint64_t bytes = row * rows[i];
		*sent += bytes;
		received[t->adapter_of[to]] += bytes;
		if (t->leaves)
			add_leaves(t, t->leaf, g, to, bytes);
	}
}

/* The same on any node, by way of the GPUs of its own node that have the members' places: `from` gathers for the first. All nodes are full. */
static void add_halves(const struct schedule *s, struct tally *t, int g, int to, int members, uint64_t row, const uint64_t *rows)
{
	int stride = s->set.stride, gpn = s->m->gpus_per_node, from = s->node_of[g] * gpn + to % gpn;
	bool far = s->node_of[g] != s->node_of[to];
	uint64_t gathered = 0, *received = t->gathered + s->gpus, *railed = t->railed + s->gpus;
	for (int i = 0; i < members; i++, to += stride, from += stride) {
		uint64_t bytes = row * rows[i];
		if (from != g) {
			gathered += bytes;
			received[from] += bytes;
		}
		if (!far)
			continue;
		t->railed[from] += bytes;
		railed[to] += bytes;
		if (t->leaves)
			add_leaves(t, t->rail_leaf, from, to, bytes);
	}
	t->gathered[g] += gathered;
}

void tally_add(const struct schedule *s, struct tally *t, int g, uint64_t row, const uint64_t *rows)
{
	int stride = s->set.stride, reach = s->set.size * stride, first = g / reach * reach + g % stride, gpn = s->m->gpus_per_node;
	uint64_t whole = 0;
	for (int i = 0; i < s->set.size; i++)
		whole += row * rows[i];
	t->whole = MAX(t->whole, whole);
	for (int i = 0; i < s->set.size;) {
		int to = first + i * stride, members = stride < gpn ? (gpn - to % gpn + stride - 1) / stride : 1;
		members = MIN(members, s->set.size - i);
		if (s->node_of[g] != s->node_of[to])
			add_straight(s, t, g, to, members, row, rows + i);
		if (t->hierarchical)
			add_halves(s, t, g, to, members, row, rows + i);
		i += members;
	}
}

static uint64_t most(const uint64_t *counts, size_t n)
{
	uint64_t largest = 0;
	for (size_t i = 0; i < n; i++)
		largest = MAX(largest, counts[i]);
	return largest;
}

/* Each place of a node sends and receives over its own adapter in a rail. */
static uint64_t most_railed(const struct schedule *s, const struct tally *t)
{
	uint64_t largest = 0;
	for (int way = 0; way < 2; way++) {
		uint64_t sum = 0;
		for (int g = 0; g < s->gpus; g++) {
			bool next = g == 0 || t->adapter_of[g] != t->adapter_of[g - 1];
			sum = (next ? 0 : sum) + t->railed[way * s->gpus + g];
			largest = MAX(largest, sum);
		}
	}
	return largest;
}

void tally_end(const struct schedule *s, const struct tally *t, struct block *b)
{
	struct exchange *x = &b->exchange;
	x->inter_bytes = most(t->adapter, 2 * (size_t)t->adapters);
	x->leaf_bytes = most(t->leaf, 2 * (size_t)t->leaves);
	if (!t->hierarchical)
		return;
	x->whole_bytes = t->whole;
	x->gather_bytes = most(t->gathered, 2 * (size_t)s->gpus);
	x->rail_bytes = most_railed(s, t);
	x->rail_leaf_bytes = most(t->rail_leaf, 2 * (size_t)t->leaves);
	memcpy(b->gathered, t->gathered, sizeof(uint64_t) * (size_t)s->gpus);
	memcpy(b->railed, t->railed, sizeof(uint64_t) * (size_t)s->gpus);
}

static struct exchange chunk_of(const struct exchange *x, uint64_t chunks)
{
	return (struct exchange){.intra_bytes = x->intra_bytes / chunks,
	                         .inter_bytes = x->inter_bytes / chunks,
	                         .leaf_bytes = x->leaf_bytes / chunks,
	                         .moved_bytes = x->moved_bytes / chunks,
	                         .moves = x->moves,
	                         .whole_bytes = x->whole_bytes / chunks,
	                         .gather_bytes = x->gather_bytes / chunks,
	                         .rail_bytes = x->rail_bytes / chunks,
	                         .rail_leaf_bytes = x->rail_leaf_bytes / chunks};
}

nsec_t exchange_ns(const struct schedule *s, const struct block *b, int chunks, struct exchange_times *out)
{
	struct exchange x = chunk_of(&b->exchange, (uint64_t)chunks);
	bool chosen = s->tally && s->tally->hierarchical;
	*out = (struct exchange_times){.linear_ns = cost_exchange(s->cost, &x, &s->set, ALGORITHM_PAIRWISE)};
	if (!chosen)
		return out->linear_ns;
	out->gather_ns = cost_exchange(s->cost, &x, &s->set, ALGORITHM_GATHER);
	out->rail_ns = cost_exchange(s->cost, &x, &s->set, ALGORITHM_RAIL);
	out->hierarchical = s->p->all_to_all == ALL_TO_ALL_HIERARCHICAL || out->gather_ns + out->rail_ns < out->linear_ns;
	return out->hierarchical ? out->gather_ns + out->rail_ns : out->linear_ns;
}

static stage_id emit_half(struct schedule *s, const struct stage *stage, int g, bool rail, int members)
{
	const struct block *b = stage->block;
	struct stage st = *stage;
	st.rank = g;
	st.stream = stream_of_gpu(g, STREAM_COLLECTIVE);
	st.profile = (rail ? s->tally->rail : s->tally->gather) + (uint32_t)g;
	st.group = s->group;
	st.group_size = (uint32_t)members;
	st.bytes = (rail ? b->railed[g] : b->gathered[g]) / (uint64_t)b->chunks;
	st.cost_ns = rail ? b->times.rail_ns : b->times.gather_ns;
	if (!rail)
		after(&st, s->gpu[g].last_compute);
	return emit(s, &st);
}

/* Of each set, the members of each node; then the members of each place, which follow on their streams. */
void emit_hierarchical(struct schedule *s, const struct stage *stage, stage_id *out)
{
	int gpn = s->m->gpus_per_node, stride = s->set.stride, reach = s->set.size * stride;
	for (int node = 0; node < s->nodes; node++)
		for (int offset = 0; offset < stride; offset++) {
			s->group++;
			for (int g = node * gpn + offset; g < (node + 1) * gpn; g += stride)
				emit_half(s, stage, g, false, gpn / stride);
		}
	for (int base = 0; base < s->gpus; base += reach)
		for (int place = 0; place < gpn; place++) {
			s->group++;
			for (int g = base + place; g < base + reach; g += gpn) {
				s->returned[g] = emit_half(s, stage, g, true, reach / gpn);
				if (out)
					out[g] = s->returned[g];
			}
		}
}
