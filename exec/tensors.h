/* Inside of the engine, shared by its files: where every tensor of a run is. Letters as in device.h; G GPUs, L layers, M micro-batches, P parameters
 * of an expert (up, then down). */
#pragma once

#include "adam.h"
#include "engine.h"
#include "model/footprint_blocks.h"
#include "start.h"

/* Parameters at home in HBM lie side by side in four flat arrays (parameters, gradients, both moments), the same on every GPU but for its own
 * experts. A tensor is a range of them. */
struct tensor {
	char *name;
	size_t at, n; /* elements */
	int start;    /* enum tensor_start */
};

/* Elements that a tensor of n takes: it begins at 16 bytes of bf16. */
static inline size_t tensor_room(size_t n)
{
	return (n + 7) / 8 * 8;
}

/* Where the tensors of a layer are, in elements; `to` is the end of what all GPUs share. */
struct layer_place {
	size_t from, norm1_gain, norm1_bias, qkv, out, norm2_gain, norm2_bias, gate, up, down, shared, to;
	size_t experts; /* of the first expert that is at home on a GPU, the others follow */
	int moe;        /* counted among the MoE layers, -1: dense */
	int first_slot; /* of its pinned experts */
};

/* What a layer's backward needs of its forward. Layers share one set unless their activations are kept. */
struct activations {
	elem *n1, *qkv, *o, *h, *u;           /* (N, D), (N, (H + 2 K) C), (N, H C), (N, D), (N, D) */
	float *lse;                           /* (B, H, T) */
	float *mean1, *rstd1, *mean2, *rstd2; /* (N) */
	elem *ffn_hidden, *ffn_active;        /* (N, F or 2 F), (N, F) */
	elem *shared_hidden, *shared_active;  /* of each shared expert */
	elem *logits;                         /* (N, E) */
	float *prob, *weight;                 /* (N, E), (N, k) */
	int32_t *index, *order, *row;         /* (N, k), (rows), (N, k) */
	uint32_t *counts;                     /* (E) */
	elem *sent, *arrived;                 /* rows of width D: as the gate's GPU sends them, as the experts' GPU has them */
};

/* Of a GPU's share of an expert, with the CPU optimizer. */
struct due {
	bool summed;        /* an earlier micro-batch's gradient of this step is in the store's sum */
	adam_ticket update; /* begun last */
};

/* Buffers of the compute stream, none of which outlives a layer. */
struct workspace {
	elem *d, *du;                  /* (N, D) gradients of the residual stream and of u */
	elem *d_o, *dqkv, *dn1;        /* of the mixer */
	elem *hidden, *active;         /* (N, F or 2 F), (N, F) of an expert */
	elem *dhidden, *dactive;       /* their gradients */
	elem *dlogits;                 /* (N, E) */
	float *dweight, *aux, *loss;   /* (N, k), (2), (1) */
	uint32_t *sum_counts;          /* (E): of all GPUs */
	float *gradient;               /* (P) of one micro-batch of an expert at home */
	elem *head_x, *head_dx, *head; /* (N, D), (N, D), (chunk, V) */
	float *mean, *rstd;            /* (N) */
	elem *sent, *arrived;          /* rows with their weights: gradients on their way; in the forward, results of width D */
	/* as wide: messages to and from other GPUs, of the collective stream; NULL where the device packs no exchanges */
	elem *packed_sent, *packed_arrived;
};

/* The rows of a routed layer as they lie on their owners, worked out by the first stage that needs to know: in ascending order of the experts, then
 * of the sources. */
struct rows {
	struct rows_of {
		int step_parity, pass, layer, microbatch; /* pass: counted from 1, 0: none yet */
	} of;
	int *owner; /* (E) GPU that computes it */
	int *at;    /* (E) first row there */
	int *sent;  /* (E) first row where this GPU sends from */
	int *total; /* (E) rows */
	int n_sent;
	int exchanged;                    /* all-to-alls since then */
	struct segment *sends, *receives; /* (E G) scratch of an all-to-all */
};

struct gpu {
	struct device *device;
	struct device_stream *side; /* for what no stage does: initial parameters, checkpoints */
	struct device_event *done;
	struct device_event *gathered; /* the counts of the last gate */
	elem *param;
	float *master, *m, *v, *gradient;    /* (resident) */
	elem **slot;                         /* uploaded experts */
	int *slot_layer, *slot_expert;       /* what was uploaded there last, -1 */
	void *slot_gradient[GRADIENT_SLOTS]; /* (P) in gradient_bytes */
	elem **x;                            /* (L + 1) of (N, D): the input of each layer, and of the head */
	struct activations *layer;           /* (L) */
	struct workspace w;
	struct rows rows;
	int32_t *tokens, *targets; /* (N) of the micro-batch that runs */
	int32_t *tokens_of_step;   /* pinned: (2 steps, M, tokens and targets, N) */
	uint32_t *loads;           /* pinned: (L, M, G, E) */
	uint32_t *imposed;         /* pinned: (2 steps, L, M, E): what a routing rule wants instead of the gate */
	float *losses;             /* pinned: (2 steps, 1 + 2 L M): cross entropy; z and balance of each layer and micro-batch */
	uint32_t *all_counts;      /* (L, M, G, E) of the gates of all GPUs */
	uint32_t *wanted;          /* (L, M, E): what is imposed on the step that runs */
	float *staging;            /* pinned, of the side stream */
};

struct engine {
	const struct scenario *sc;
	const struct network *n;
	const struct policy *p;
	const struct plan *plan;
	const struct data *data;
	struct engine_options o;
	struct device_group *group;
	int gpus, microbatches, experts; /* experts: the most of a layer */
	int first, end;                  /* GPUs of this process: first .. end - 1 */
	int B, N;                        /* sequences and tokens of one GPU's micro-batch */
	int slots;                       /* for uploaded experts */
	const struct device_info *info;
	size_t element;                 /* bytes */
	int gradient_bytes;             /* of an element of an uploaded expert's gradient */
	size_t rows_sent, rows_arrived; /* of an all-to-all at most; those that arrive are of all GPUs, of each as many */
	bool offloaded, exchanges;
	uint64_t begun;      /* steps */
	uint64_t step_of[2]; /* number of the steps under way, by parity */
	struct gpu *gpu;     /* (G), those of this process filled */
	GArray *tensors;     /* struct tensor, those that all GPUs share */
	size_t wte, wpe, norm_gain, norm_bias, head;
	size_t shared_from, shared_to, resident;
	struct layer_place *layer; /* (L) */
	size_t widest;             /* parameters of the largest expert */
	GError *unread[2];         /* why the tokens of a step could not be read, by parity */
	struct store *store;       /* NULL: experts at home in HBM */
	struct adam_pool **pool;   /* (nodes), those of this process */
	struct due **due;          /* (L) of (E, G) */
};

enum { STAGING_FLOATS = FOOTPRINT_STAGING };

/* Gives every tensor its place. */
void tensors_place(struct engine *e);
void tensors_clear(struct engine *e);
/* Allocates all that is in HBM or pinned, for tensors that have their places; false names what did not fit. */
bool arena_init(struct engine *e, GError **error) G_GNUC_WARN_UNUSED_RESULT;
void arena_clear(struct engine *e);
/* Bytes that arena_init would take of each arena. */
uint64_t arena_bytes(struct engine *e);
/* Pinned bytes that it takes beside each arena. */
uint64_t arena_pinned_bytes(const struct engine *e);
/* Initial parameters: N(0, 0.02) from a counter keyed by seed and name, residual outputs smaller by sqrt(2 L), gains 1, biases 0. */
bool tensors_start(struct engine *e, GError **error) G_GNUC_WARN_UNUSED_RESULT;
/* Elements of one resident tensor's state to or from GPU g through host memory (NULL: not asked for); the call waits. */
struct tensor_state {
	float *master, *m, *v, *gradient;
};
bool tensors_read(struct engine *e, int g, size_t at, size_t n, const struct tensor_state *to, GError **error) G_GNUC_WARN_UNUSED_RESULT;
bool tensors_write(struct engine *e, int g, size_t at, size_t n, const struct tensor_state *from, GError **error) G_GNUC_WARN_UNUSED_RESULT;
/* Puts fp32 parameters (P) where an expert's uploaded copy is. */
bool tensors_refresh_slot(struct engine *e, int g, int slot, const float *master, size_t n, GError **error) G_GNUC_WARN_UNUSED_RESULT;

/* Experts at home in HBM: whether GPU g has expert i of the layer, and at which element. */
bool expert_at_home(const struct engine *e, int g, int layer, int expert, size_t *at);
/* Experts beyond HBM: whether this process keeps the expert. */
bool expert_stored(const struct engine *e, int layer, int expert);

/* The first expert of a layer that placement gives to GPU g of `set`, as model/route.c places them; for g = set, how many there are. */
static inline int first_expert(int experts, int set, int g)
{
	return (int)(((int64_t)g * experts + set - 1) / set);
}

/* Experts of a layer that have room on each GPU when they are at home in HBM. */
static inline int experts_at_home(const struct engine *e, int experts)
{
	return (experts + e->plan->expert_parallel - 1) / e->plan->expert_parallel;
}

static inline elem *elem_at(const struct engine *e, const elem *p, size_t n)
{
	return (char *)p + n * e->element;
}
/* Matrices of an FFN's first linear layer, side by side. */
static inline int ups_of(const struct engine *e)
{
	return activation_matrices(e->n->activation) - 1;
}
/* Elements of a row that travels with its combine weight. */
static inline int weighted_width(const struct engine *e)
{
	return e->n->d_model + e->info->weight_elements;
}
static inline size_t losses_of_step(const struct engine *e)
{
	return 1 + 2 * (size_t)e->n->layers * (size_t)e->microbatches;
}
static inline elem *param_at(const struct engine *e, int g, size_t at)
{
	return elem_at(e, e->gpu[g].param, at);
}

/* Of a step of this parity: the counts (E) that a routing rule wants of GPU g. */
static inline uint32_t *imposed_of(const struct engine *e, int g, int parity, int layer, int microbatch)
{
	size_t visit = ((size_t)parity * (size_t)e->n->layers + (size_t)layer) * (size_t)e->microbatches + (size_t)microbatch;
	return e->gpu[g].imposed + visit * (size_t)MAX(1, e->experts);
}
/* Those of a step. */
static inline size_t imposed_bytes(const struct engine *e)
{
	return (size_t)e->n->layers * (size_t)e->microbatches * (size_t)e->experts * sizeof(uint32_t);
}

struct adam_step adam_step_of(const struct engine *e, const struct stage *st);

/* What a stage does, by kind and pass: stages.c, and those of MoE layers in moe.c. */
struct issue {
	struct engine *e;
	const struct stage *st;
	struct gpu *g;
	int gpu;
	const struct layer *l;
	const struct layer_place *at;
	struct activations *a;
	const struct store_places *stored; /* of its expert, beyond HBM */
	struct device_stream *s;
	adam_ticket *pending; /* the update that it began */
	GError **error;
};
typedef bool (*issue_fn)(const struct issue *i);

bool issue_gate(const struct issue *i);
bool issue_gate_backward(const struct issue *i);
bool issue_counts(const struct issue *i);
bool issue_permute(const struct issue *i);
bool issue_permute_backward(const struct issue *i);
bool issue_all_to_all(const struct issue *i);
bool issue_expert(const struct issue *i);
bool issue_combine(const struct issue *i);
bool issue_combine_backward(const struct issue *i);
bool issue_upload(const struct issue *i);
bool issue_download(const struct issue *i);
bool issue_reduce_scatter(const struct issue *i);
bool issue_adam(const struct issue *i);
bool issue_accumulate(const struct issue *i);
bool issue_ssd(const struct issue *i);
