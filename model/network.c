/* A file states a network in a few rules (an MoE in every n-th layer, the first ones dense, attention in every n-th layer); this module checks them
 * and writes them out layer by layer, so that nobody else knows the rules:
 *
 *   layer        0     1     2     3     4     5          moe_every 2, dense_first 2, attention_every 3
 *   mixer      mamba mamba attn  mamba mamba attn         the last of each group, unless an offset is stated
 *   FFN        dense dense dense MoE   dense MoE
 *
 * The two stacks of an encoder-decoder follow each other, each with the rules from its own layer 0. Every layer sees the same number of tokens. */
#include "network.h"

#include "ini.h"

#include <math.h>

#define PARAMS_MAX 1e15 /* bytes of every kind of state stay far inside 64 bits */
enum { LAYERS_MAX = 4096, HEADS_MAX = 65536, EXPERTS_MAX = 65536, WIDTH_MAX = 1 << 20, TOKENS_MAX = 1 << 24, ASSIGNMENTS_MAX = INT32_MAX };

struct network_keys {
	int layers, d_model, heads, kv_heads, d_head, vocab, seq_len, sequences;
	bool tied, dropout, encoder_decoder;
	int activation, d_ff;
	int experts, top_k, d_expert, shared, d_shared, moe_every, moe_offset, dense_first;
	struct ini_doubles pyramid;
	bool parallel_dense;
	int attention_every, attention_offset, mamba_state, mamba_conv, mamba_expand;
	double params_b, params_active_b;
};

static const char *const activations[] = {"relu", "gelu", "geglu", "swiglu", NULL};

#define KEY(type, field, fallback, min, max, choices, help)                                                                                          \
	{                                                                                                                                            \
		"network", #field, type, offsetof(struct network_keys, field), fallback, min, max, choices, help                                     \
	}
#define WHOLE(field, fallback, min, max, help) KEY(INI_INT, field, fallback, min, max, NULL, help)

static const struct ini_key key_table[] = {
    WHOLE(layers, NULL, 1, LAYERS_MAX, "transformer layers; of an encoder-decoder, in each of the two stacks"),
    WHOLE(d_model, NULL, 1, WIDTH_MAX, "width of the residual stream"),
    WHOLE(heads, NULL, 1, HEADS_MAX, "query heads"),
    WHOLE(kv_heads, "0", 0, HEADS_MAX, "key and value heads; 0: as many as query heads"),
    WHOLE(d_head, "0", 0, WIDTH_MAX, "width of a head; 0: d_model / heads"),
    WHOLE(vocab, "32000", 1, TOKENS_MAX, "entries of the embedding"),
    WHOLE(seq_len, "2048", 1, TOKENS_MAX, "tokens a sequence"),
    WHOLE(sequences, "8", 1, TOKENS_MAX, "sequences a GPU and step"),
    KEY(INI_BOOL, tied, "false", 0, 0, NULL, "the head shares the embedding's matrix"),
    KEY(INI_BOOL, dropout, "true", 0, 0, NULL, "activations are dropped in training: passes over HBM where each operator is a kernel"),
    KEY(INI_BOOL, encoder_decoder, "false", 0, 0, NULL, "a second stack of as many layers, with cross-attention, follows the first"),
    KEY(INI_CHOICE, activation, "gelu", 0, 0, activations, "relu and gelu: two matrices an FFN; geglu and swiglu: three"),
    WHOLE(d_ff, "0", 0, WIDTH_MAX, "inner size of a dense FFN; 0: 4 x d_model"),
    WHOLE(experts, NULL, 0, EXPERTS_MAX, "routed experts of an MoE layer; 0: a dense network"),
    WHOLE(top_k, "1", 1, EXPERTS_MAX, "routed experts a token"),
    WHOLE(d_expert, "0", 0, WIDTH_MAX, "inner size of a routed expert; 0: d_ff"),
    WHOLE(shared, "0", 0, 1024, "shared experts of an MoE layer, beside the routed ones; every token meets them"),
    WHOLE(d_shared, "0", 0, WIDTH_MAX, "inner size of a shared expert; 0: d_expert"),
    WHOLE(moe_every, "1", 1, LAYERS_MAX, "layers of a group with one MoE; 1: MoE in every layer"),
    WHOLE(moe_offset, "-1", -1, LAYERS_MAX - 1, "place of the MoE in its group, from 0; -1: the last"),
    WHOLE(dense_first, "0", 0, LAYERS_MAX, "first layers that are dense whatever their place"),
    KEY(INI_DOUBLE_LIST, pyramid, "1", 1.0 / 1024, 1024, NULL,
        "multiples of `experts`, first MoE layers first; each entry holds for an equal share of the MoE layers"),
    KEY(INI_BOOL, parallel_dense, "false", 0, 0, NULL, "a dense FFN of d_ff beside every MoE"),
    WHOLE(attention_every, "1", 1, LAYERS_MAX, "layers of a group with one attention, the others are Mamba; 1: attention in every layer"),
    WHOLE(attention_offset, "-1", -1, LAYERS_MAX - 1, "place of the attention in its group, from 0; -1: the last"),
    WHOLE(mamba_state, "16", 1, 65536, "Mamba: state size"),
    WHOLE(mamba_conv, "4", 1, 65536, "Mamba: width of the convolution"),
    WHOLE(mamba_expand, "2", 1, 1024, "Mamba: inner size over d_model"),
    KEY(INI_DOUBLE, params_b, "0", 0, PARAMS_MAX / 1e9, NULL, "parameters as printed by the authors, billions; 0: not printed"),
    KEY(INI_DOUBLE, params_active_b, "0", 0, PARAMS_MAX / 1e9, NULL,
        "parameters met by one token as printed by the authors, billions; 0: not printed"),
};

int activation_matrices(enum activation activation)
{
	return activation == ACTIVATION_GEGLU || activation == ACTIVATION_SWIGLU ? 3 : 2;
}

const char *activation_name(enum activation activation)
{
	g_assert(activation <= ACTIVATION_SWIGLU);
	return activations[activation];
}

/* Where a network is read from, for errors that name the line. */
struct origin {
	const char *source;
	const char *const *overrides;
	GError **error;
};

#define refuse(origin, key, ...) ini_refuse("networks", (origin)->source, (origin)->overrides, "network", key, (origin)->error, __VA_ARGS__)

static bool is_moe(const struct network_keys *k, int i)
{
	int offset = k->moe_offset < 0 ? k->moe_every - 1 : k->moe_offset;
	return k->experts > 0 && i >= k->dense_first && i % k->moe_every == offset;
}

static int count_moe(const struct network_keys *k)
{
	int count = 0;
	for (int i = 0; i < k->layers; i++)
		count += is_moe(k, i);
	return count;
}

static bool check_mixers(const struct network_keys *k, const struct origin *o)
{
	if (k->d_head == 0 && k->d_model % k->heads != 0)
		return refuse(o, "heads", "%d; expected a divisor of d_model = %d, or d_head stated", k->heads, k->d_model);
	if (k->kv_heads > 0 && k->heads % k->kv_heads != 0)
		return refuse(o, "kv_heads", "%d; expected a divisor of heads = %d", k->kv_heads, k->heads);
	if (k->encoder_decoder && k->layers > LAYERS_MAX / 2)
		return refuse(o, "layers", "%d; expected at most %d in each of two stacks", k->layers, LAYERS_MAX / 2);
	if (k->attention_every > k->layers)
		return refuse(o, "attention_every", "%d; expected 1 to layers = %d", k->attention_every, k->layers);
	if (k->attention_offset >= k->attention_every)
		return refuse(o, "attention_offset", "%d; expected -1 to attention_every - 1 = %d", k->attention_offset, k->attention_every - 1);
	return true;
}

static bool check_pyramid(const struct network_keys *k, int moe_layers, const struct origin *o)
{
	if (k->pyramid.n == 0 || moe_layers % k->pyramid.n != 0)
		return refuse(o, "pyramid", "%d entries; expected a number of entries that divides the %d MoE layers", k->pyramid.n, moe_layers);
	for (int i = 0; i < k->pyramid.n; i++) {
		double experts = round(k->experts * k->pyramid.v[i]);

		if (experts > EXPERTS_MAX)
			return refuse(o, "pyramid", "%g times experts = %d; expected at most %d experts a layer", k->pyramid.v[i], k->experts,
			              EXPERTS_MAX);
		if (k->top_k > experts)
			return refuse(o, "top_k", "%d; expected 1 to the experts of the smallest MoE layer, %.0f", k->top_k, experts);
	}
	return true;
}

static bool check_moe(const struct network_keys *k, const struct origin *o)
{
	int moe_layers = count_moe(k);

	if (k->experts == 0)
		return true;
	if (k->moe_every > k->layers)
		return refuse(o, "moe_every", "%d; expected 1 to layers = %d", k->moe_every, k->layers);
	if (k->moe_offset >= k->moe_every)
		return refuse(o, "moe_offset", "%d; expected -1 to moe_every - 1 = %d", k->moe_offset, k->moe_every - 1);
	if (moe_layers == 0)
		return refuse(o, "dense_first", "%d; expected a number that leaves one of %d layers its MoE, or experts = 0", k->dense_first,
		              k->layers);
	return check_pyramid(k, moe_layers, o);
}

/* In double, because the exact products are what might not fit. */
static bool check_size(const struct network *n, const struct origin *o)
{
	double assignments = (double)n->seq_len * n->sequences * n->keys->top_k;
	double params = 0;

	if (assignments > ASSIGNMENTS_MAX)
		return refuse(o, "sequences", "%d; expected sequences x seq_len x top_k of at most %d, here %.0f", n->sequences, ASSIGNMENTS_MAX,
		              assignments);
	for (int i = 0; i < n->layers; i++)
		params +=
		    (double)network_dense_params(n, &n->layer[i]) + (double)n->layer[i].experts * (double)network_expert_params(n, &n->layer[i]);
	if (params > PARAMS_MAX)
		return refuse(o, "layers", "%d; expected layers, widths and experts of at most %g parameters together, here %.3g", n->keys->layers,
		              PARAMS_MAX, params);
	return true;
}

static int or_else(int value, int fallback)
{
	return value > 0 ? value : fallback;
}

static struct layer layer_of(const struct network_keys *k, int i, int experts)
{
	int attention = k->attention_offset < 0 ? k->attention_every - 1 : k->attention_offset;
	int d_ff = or_else(k->d_ff, 4 * k->d_model);
	struct layer l = {.mixer = i % k->attention_every == attention ? MIXER_ATTENTION : MIXER_MAMBA};
	if (!is_moe(k, i)) {
		l.d_ff = d_ff;
		return l;
	}
	l.experts = experts;
	l.top_k = k->top_k;
	l.d_expert = or_else(k->d_expert, d_ff);
	l.shared = k->shared;
	l.d_shared = k->shared > 0 ? or_else(k->d_shared, l.d_expert) : 0;
	l.d_ff = k->parallel_dense ? d_ff : 0;
	return l;
}

static void resolve(struct network *n)
{
	const struct network_keys *k = n->keys;
	n->layers = k->encoder_decoder ? 2 * k->layers : k->layers;
	n->d_model = k->d_model;
	n->heads = k->heads;
	n->kv_heads = or_else(k->kv_heads, k->heads);
	n->d_head = or_else(k->d_head, k->d_model / k->heads);
	n->vocab = k->vocab;
	n->seq_len = k->seq_len;
	n->sequences = k->sequences;
	n->tied = k->tied;
	n->dropout = k->dropout;
	n->activation = (enum activation)k->activation;
	n->mamba_state = k->mamba_state;
	n->mamba_conv = k->mamba_conv;
	n->mamba_expand = k->mamba_expand;
	n->params_b = k->params_b;
	n->params_active_b = k->params_active_b;
	n->layer = g_new0(struct layer, n->layers);
	int moe_layers = count_moe(k);
	for (int i = 0, moe = 0; i < k->layers; i++) {
		int experts = 0;
		if (is_moe(k, i))
			experts = (int)round(k->experts * k->pyramid.v[moe++ * k->pyramid.n / moe_layers]);
		n->layer[i] = layer_of(k, i, experts);
	}
	for (int i = k->layers; i < n->layers; i++) {
		n->layer[i] = n->layer[i - k->layers];
		n->layer[i].cross = true;
	}
}

struct network *network_load(const char *source, const char *const *overrides, GError **error)
{
	const struct origin origin = {source, overrides, error};
	g_autoptr(network) n = g_new0(struct network, 1);

	n->keys = g_new0(struct network_keys, 1);
	if (!ini_read("networks", source, key_table, G_N_ELEMENTS(key_table), overrides, n->keys, &n->name, error))
		return NULL;
	if (!check_mixers(n->keys, &origin) || !check_moe(n->keys, &origin))
		return NULL;
	resolve(n);
	return check_size(n, &origin) ? g_steal_pointer(&n) : NULL;
}

void network_free(struct network *network)
{
	if (!network)
		return;
	ini_clear(key_table, G_N_ELEMENTS(key_table), network->keys);
	g_free(network->keys);
	g_free(network->layer);
	g_free(network->name);
	g_free(network);
}

char *network_ini(const struct network *network)
{
	return ini_write(key_table, G_N_ELEMENTS(key_table), network->keys);
}

static uint64_t ffn_params(const struct network *n, int d_inner)
{
	return (uint64_t)activation_matrices(n->activation) * (uint64_t)n->d_model * (uint64_t)d_inner;
}

uint64_t network_expert_params(const struct network *n, const struct layer *l)
{
	return l->experts > 0 ? ffn_params(n, l->d_expert) : 0;
}

static uint64_t attention_params(const struct network *n)
{
	return 2 * (uint64_t)n->d_model * (uint64_t)n->d_head * (uint64_t)(n->heads + n->kv_heads);
}

/* Mamba-1 (arXiv 2312.00752, section 3.4): input and gate, convolution, projection to step, B and C, step, A, output. The step's rank is D / 16. */
static uint64_t mamba_params(const struct network *n)
{
	uint64_t d = (uint64_t)n->d_model, inner = d * (uint64_t)n->mamba_expand, state = (uint64_t)n->mamba_state, rank = (d + 15) / 16;
	return d * 2 * inner + inner * (uint64_t)n->mamba_conv + inner * (rank + 2 * state) + rank * inner + inner * state + inner * d;
}

uint64_t network_mixer_params(const struct network *n, const struct layer *l)
{
	uint64_t params = l->mixer == MIXER_MAMBA ? mamba_params(n) : attention_params(n);
	return l->cross ? params + attention_params(n) : params;
}

uint64_t network_dense_params(const struct network *n, const struct layer *l)
{
	uint64_t gate = (uint64_t)n->d_model * (uint64_t)l->experts;
	return network_mixer_params(n, l) + gate + ffn_params(n, l->d_ff) + (uint64_t)l->shared * ffn_params(n, l->d_shared);
}

uint64_t network_dense_share(const struct network *n, const struct layer *l, int tensor)
{
	uint64_t gate = (uint64_t)n->d_model * (uint64_t)l->experts;
	return (network_dense_params(n, l) - gate) / (uint64_t)tensor + gate;
}

uint64_t network_embedding_params(const struct network *n)
{
	return (n->tied ? 1 : 2) * (uint64_t)n->vocab * (uint64_t)n->d_model;
}

uint64_t network_params(const struct network *n)
{
	uint64_t params = network_embedding_params(n);
	for (int i = 0; i < n->layers; i++)
		params += network_dense_params(n, &n->layer[i]) + (uint64_t)n->layer[i].experts * network_expert_params(n, &n->layer[i]);
	return params;
}

uint64_t network_params_active(const struct network *n)
{
	uint64_t params = network_embedding_params(n);
	for (int i = 0; i < n->layers; i++)
		params += network_dense_params(n, &n->layer[i]) + (uint64_t)n->layer[i].top_k * network_expert_params(n, &n->layer[i]);
	return params;
}

int network_experts(const struct network *n)
{
	int most = 0;
	for (int i = 0; i < n->layers; i++)
		most = MAX(most, n->layer[i].experts);
	return most;
}

int network_moe_layers(const struct network *n)
{
	int count = 0;
	for (int i = 0; i < n->layers; i++)
		count += n->layer[i].experts > 0;
	return count;
}
