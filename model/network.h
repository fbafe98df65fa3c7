/* A network: its layers, shapes and parameter counts. Letters: L layers, D d_model, F the FFN's inner size, E experts, K experts a token, V
 * vocabulary. */
#pragma once

#include "autoptr.h"

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

enum activation { ACTIVATION_RELU, ACTIVATION_GELU, ACTIVATION_GEGLU, ACTIVATION_SWIGLU };
enum mixer { MIXER_ATTENTION, MIXER_MAMBA };

/* One transformer layer. A layer has a dense FFN (d_ff > 0), an MoE (experts > 0), or both side by side. */
struct layer {
	enum mixer mixer;
	bool cross;   /* decoder layer of an encoder-decoder: a second attention, over the encoder's output */
	int experts;  /* routed experts; 0: no MoE */
	int top_k;    /* routed experts a token */
	int d_expert; /* inner size of one routed expert */
	int shared;   /* shared experts, every token goes through all of them */
	int d_shared; /* inner size of one shared expert */
	int d_ff;     /* inner size of the dense FFN; 0: none */
};

struct network_keys;

struct network {
	char *name;
	int layers, d_model, heads, kv_heads, d_head, vocab;
	int seq_len;   /* tokens a sequence, default of the what-if options */
	int sequences; /* sequences a GPU and step, default of the what-if options */
	bool tied;     /* the head shares the embedding's matrix */
	bool dropout;  /* activations are dropped in training: passes over HBM where each operator is a kernel */
	enum activation activation;
	int mamba_state, mamba_conv, mamba_expand; /* Mamba layers: state size, convolution width, inner size over D */
	double params_b, params_active_b;          /* as printed by the authors, billions; 0: not printed */
	struct layer *layer;                       /* (L) */
	struct network_keys *keys;                 /* what the file says, for network_ini; everything above follows from it */
};

/* Reads a preset, a file or a text; `overrides` as in ini_read. The file's rules become one struct layer a layer: MoE in the last of every
 * `moe_every` layers, and so on. "network.experts=64" sets the experts of every MoE layer; entries of `pyramid` are multiples of it. NULL on error.
 * Owned by the caller. */
struct network *network_load(const char *source, const char *const *overrides, GError **error) G_GNUC_WARN_UNUSED_RESULT;
void network_free(struct network *network);
AUTOPTR(network)

/* The network as an .ini that network_load takes back. Owned by the caller. */
char *network_ini(const struct network *network);

/* Matrices of one FFN or expert: 2, or 3 with a gated linear unit. */
int activation_matrices(enum activation activation);
const char *activation_name(enum activation activation);

/* Parameter counts, biases and norms left out (under 0.1 % of any preset). */
uint64_t network_expert_params(const struct network *n, const struct layer *l); /* one routed expert */
uint64_t network_mixer_params(const struct network *n, const struct layer *l);  /* attention or Mamba of one layer */
uint64_t network_dense_params(const struct network *n, const struct layer *l);  /* what every token meets: mixer, gate, dense FFN, shared experts */
uint64_t network_dense_share(const struct network *n, const struct layer *l,
                             int tensor);                   /* what one of `tensor` GPUs holds of them: all of the gate */
uint64_t network_embedding_params(const struct network *n); /* embedding, and the head unless tied */
uint64_t network_params(const struct network *n);           /* total */
uint64_t network_params_active(const struct network *n);    /* met by one token: K experts of E */

/* The largest expert count over the layers, 0 for a dense network; and the number of MoE layers. */
int network_experts(const struct network *n);
int network_moe_layers(const struct network *n);
