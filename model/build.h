/* Inside of the schedule, shared by its files: the state a step is built from, and how a stage is put together and launched. */
#pragma once

#include "cache.h"
#include "cost.h"
#include "plan.h"
#include "schedule.h"

#define MAX_PREFETCH 8 /* experts uploaded before their layer is routed */

/* What one expert of one layer carries from stage to stage. */
struct expert_state {
	stage_id updated;   /* its parameters in DRAM are those of the last update */
	stage_id refreshed; /* its pinned copy in HBM is */
	stage_id written;   /* its state left DRAM for the SSD */
	stage_id uploaded;  /* its last upload has left DRAM */
	stage_id aside; /* reads them beside the way of its gradient: an upload of a pinned copy or before its layer was routed, until a GPU computes
	                 * with it; or its parameters leave DRAM */
	stage_id added[2]; /* by parity of the micro-batch: its last gradient has been added to the sum */
	int pinned;        /* GPU that keeps it in HBM, -1 */
	int pinned_slot;   /* there */
	int last;          /* GPU that computed it last, -1 */
	bool put_off;      /* next-forward: its last update waited for the end of the backward */
	bool fresh;        /* its pinned copy has come up since */
	uint32_t tokens;   /* of the step so far */
};

/* GPUs in groups of one shape: the ranks of the one that reaches farthest, and the profile of GPU 0, as resources_collective adds them. */
struct group {
	struct ranks ranks;
	uint32_t profile;
};

struct moe_layer {
	int experts;
	struct group *replicas; /* (W / E + 1) by slices: GPUs that hold the same slice of an expert; NULL where the split does not adapt */
	struct group copies;    /* GPUs that hold the same experts in HBM; of one: nothing to reduce */
	uint64_t params;        /* of one expert */
	nsec_t upload_ns;       /* of one expert */
	nsec_t travel_ns;       /* of one expert to all GPUs */
	nsec_t pause_ns;        /* computation without a gradient of an expert, from this layer's to those of the next one down */
	struct expert_bytes bytes;
	int first_pinned_slot;
	int pinned_slots;            /* experts a GPU keeps in HBM */
	int first_id;                /* of its experts over all layers, for the cache */
	struct expert_state *expert; /* (E) */
	struct block *block;         /* (micro-batches) */
};

struct ring_expert {
	int layer, expert;
};

/* A GPU's experts in the order of its layers, which go round its slots (infer.c). */
struct ring {
	struct ring_expert *expert; /* (n) */
	int n;
	uint64_t loaded, passed; /* uploads launched; experts whose turn is over */
};

struct gpu_state {
	stage_id *slot_user;   /* (slots) last stage that read the slot */
	stage_id *slot_upload; /* (slots) of a ring: the upload that filled it */
	struct ring ring;
	int slot_next;
	stage_id gradient_user[GRADIENT_SLOTS]; /* downloads that free a gradient slot */
	int gradient_next;
	stage_id last_compute;
	stage_id pinned_user;    /* last computation that may have used a pinned copy of before */
	stage_id awaited;        /* a collective or an upload that the next computation waits for */
	stage_id gather_awaited; /* and a gather of its layer's parameters, on a stream that may be another */
	stage_id brought;        /* last download of its part of the non-expert gradients */
	/* uploads of the next layer's first experts, before it was routed */
	int n_prefetched, prefetched_expert[MAX_PREFETCH], prefetched_slot[MAX_PREFETCH];
	stage_id prefetched[MAX_PREFETCH];
};

/* An update, which may wait for the layer's or the step's backward to end. */
struct late {
	int layer, expert, gpu;
	uint64_t params;
	stage_id gradient;
};

struct schedule {
	const struct scenario *sc;
	const struct network *n;
	const struct machine *m;
	const struct policy *p;
	struct plan plan;
	struct cost *cost;
	struct resources *resources;
	int gpus, nodes, slots, collective_kernels, copy_kernels;
	uint32_t tokens;                  /* of one GPU in the micro-batch that is built */
	int cached;                       /* decode: tokens that one token's mixer looks at; 0 otherwise */
	struct group all, tensor, copies; /* of all GPUs; that cut matrices among them; that hold the same non-expert parameters */
	uint32_t exchanging;              /* profile of GPU 0 in an all-to-all of its set */
	struct ranks set;                 /* of GPUs that exchange tokens, one that reaches farthest */
	struct tally *tally;              /* NULL: sets of one node, or adapters in a pool and no hierarchical exchange */
	struct moe_layer *moe;            /* (L), experts 0 where dense */
	struct gpu_state *gpu;            /* (G) */
	struct cache **cache;             /* (nodes) over the SSD, NULL elsewhere */
	stage_id *block_read;             /* (nodes, blocks) reads that brought them to DRAM, NULL without SSD */
	int *evicted, *layer_of_block, n_blocks;
	stage_id *round, *returned, *reduced; /* (G) members of the last round, return of results, reduction */
	stage_id *counted;                    /* (micro-batches) gathers of the gates' counts */
	stage_id *gathered;                   /* (2, G) gathers of a layer's parameters, by parity of the layer */
	uint8_t *chosen;                      /* (E) */
	stage_id *dispatched;                 /* (micro-batches, chunks, G) all-to-alls that bring tokens */
	stage_id *adam_last;                  /* (nodes) */
	struct expert_work *work;             /* scratch of list_work, with the GPU of each entry and where the next one of each GPU goes */
	size_t entries;                       /* of place_of and work */
	int *place_of, *cursor;
	uint8_t *shadow;                      /* (E) of the layer that is routed: copied to every GPU */
	stage_id *arrived;                    /* (G) the copies of the layer under way are there */
	stage_id *fetched, *slot_user, *sums; /* (slots, G), (slots, G), (GRADIENT_SLOTS, G) of experts that travel */
	uint64_t pending;                     /* bytes of gradients that wait for their bucket */
	stage_id *begun;                      /* (G) first stage of the step */
	int travel_slot;                      /* next to be filled */
	int ahead_layer, ahead_pass, n_ahead; /* experts fetched before their turn */
	uint32_t *loads;                      /* (G, E) */
	uint32_t *totals;                     /* (G / P, E) tokens of each expert in each set */
	int *place, *last_place;              /* (E) */
	nsec_t *time_ns;                      /* (E) */
	nsec_t *load_ns;                      /* (G) */
	uint64_t *rows;                       /* (P) of one GPU, for each of its set */
	uint64_t *received, *sent_near;       /* (G) */
	uint8_t *stretches;                   /* (G) */
	uint64_t *node_bytes;                 /* (2, nodes) */
	int *node_of;                         /* (G) */
	GArray *late;                         /* struct late */
	bool updating;                        /* next-forward: the step's first gradient of an expert has come */
	nsec_t *since;                        /* (streams) stream_ns then */
	nsec_t *adam_until;                   /* (nodes) what Adam was given so far lasts until then */

	struct backend *backend;
	GError **error;
	bool failed;
	stage_id next;
	uint32_t group;
	int step;
	stage_id *last_of; /* (streams) last stage of each */
	/* work of the step so far, at solo speed, for its speed of light */
	nsec_t *stream_ns;  /* (streams) */
	nsec_t *profile_ns; /* (profiles) */
	uint64_t *launches; /* (G) */
};

/* Micro-batches that go through a layer together, from..to - 1: one, or all of them (vertical order, experts not in HBM). */
struct batches {
	int from, to;
};

/* A stage of the schedule before it is launched; `after` adds a predecessor. */
struct stage stage_on_gpu(const struct schedule *s, int kind, int pass, int layer, int microbatch, int gpu, enum gpu_stream stream,
                          enum gpu_profile profile);
struct stage stage_on_node(const struct schedule *s, int kind, int pass, int layer, int microbatch, int gpu, enum node_stream stream,
                           enum node_profile profile);
void after(struct stage *stage, stage_id predecessor);

/* What the GPU's next computation waits for, beside its own predecessors. */
static inline void after_awaited(struct schedule *s, struct stage *stage)
{
	struct gpu_state *g = &s->gpu[stage->rank];
	after(stage, g->awaited);
	after(stage, g->gather_awaited);
	g->awaited = g->gather_awaited = STAGE_NONE;
}

/* Gives the stage its id and launches it. After a failure nothing is launched any more and ids are STAGE_NONE. */
stage_id emit(struct schedule *s, struct stage *stage);

/* A layer's forward (schedule.c). */
void forward_layer(struct schedule *s, int layer, struct batches of);

/* A compute stage of the whole micro-batch on each GPU; preds (G) may be NULL. */
void compute_everywhere(struct schedule *s, int kind, int pass, int layer, int microbatch, const stage_id *preds);

/* A compute stage of the whole micro-batch on one GPU. */
stage_id emit_compute(struct schedule *s, int kind, int pass, int layer, int microbatch, int gpu, stage_id predecessor);

/* Routes and places a micro-batch of a layer once the gate's counts are known (route.c). */
void route(struct schedule *s, int layer, int microbatch, stage_id counts);

/* Experts that DRAM lacks (store.c): the stage that brought a block of one from the SSD to the GPU's node, the optimizer's state or the parameters,
 * now or when DRAM last lacked it, or STAGE_NONE; and what the coming step will ask for, told to the caches. */
stage_id store_fetch(struct schedule *s, int pass, int layer, int e, bool state, int gpu);
void store_foresee(struct schedule *s);
void store_send_back(struct schedule *s, int layer, int e, int gpu); /* an updated state that DRAM does not keep */

/* The experts of a layer with the all-to-alls that return their results (experts.c). */
void experts_forward(struct schedule *s, int pass, int layer, struct batches of); /* PASS_FORWARD or PASS_RECOMPUTE */
void experts_backward(struct schedule *s, int layer, struct batches of);
void experts_return(struct schedule *s, int pass, int layer, int microbatch); /* of one micro-batch, where experts are not in HBM */
void experts_settle(struct schedule *s, int layer, int microbatch);           /* what follows a layer's last gradient */
void experts_prefetch(struct schedule *s, int layer);                         /* uploads the first experts of a layer that has not been routed yet */
void experts_pin(struct schedule *s, int layer);                              /* chooses them: the busiest of the step so far */

/* Updates of experts beyond HBM, and additions to their gradients before (expert_updates.c): one whose gradient is complete, made now or put off as
 * the policy says; those put off so far; pinned copies brought up to date, all of them or, with next-forward, a layer's: those of updates that the
 * backward hid when the layer below has begun its own, the others when the next forward comes to it. */
void updates_init(struct schedule *s);
stage_id updates_accumulate(struct schedule *s, const struct late *u, int microbatch);
void updates_add(struct schedule *s, const struct late *u);
void updates_late(struct schedule *s);
void updates_refresh(struct schedule *s);
void updates_refresh_layer(struct schedule *s, int layer);
void updates_refresh_hidden(struct schedule *s, int layer);
void updates_layer_ends(struct schedule *s); /* its backward: what is pinned in its slots from now on may come */

/* Uploads expert e into the next slot of the GPU; *slot receives which. */
stage_id experts_upload(struct schedule *s, int pass, int layer, int microbatch, int e, int gpu, int *slot);

/* Exchanges over several nodes (exchange.c): a tally of bytes by link, of the rows that each GPU g sends to each member of its set; the time of one
 * of so many chunks with the faster or the asked for algorithm; and both halves of a hierarchical one, as copies of `stage`. */
struct tally *tally_new(const struct schedule *s);
void tally_free(struct tally *t);
void tally_begin(const struct schedule *s, struct tally *t);
void tally_add(const struct schedule *s, struct tally *t, int g, uint64_t row, const uint64_t *rows);
void tally_end(const struct schedule *s, const struct tally *t, struct block *b);
nsec_t exchange_ns(const struct schedule *s, const struct block *b, int chunks, struct exchange_times *out);
void emit_hierarchical(struct schedule *s, const struct stage *stage, stage_id *out);

/* Copies for GPU-local tokens (travel.c): whether experts or tokens travel, and which experts are copied to all GPUs, chosen once the loads and
 * places of a layer are known; experts that travel one by one, those of a layer ahead of its gate; and the copies of a layer's shadowed experts. */
nsec_t travel_tokens_ns(struct schedule *s, const struct layer *l, struct block *b); /* when tokens travel: experts and exchanges */
void travel_choose(struct schedule *s, int layer, struct block *b);
void travel_list(struct schedule *s, int layer, struct block *b);
void travel_experts(struct schedule *s, int pass, int layer, int microbatch);
void travel_prefetch(struct schedule *s, int pass, int from_layer, bool last);
void shadows_fetch(struct schedule *s, int layer, int microbatch);
void shadows_reduce(struct schedule *s, int layer, int microbatch);

/* One expert's computation on one GPU (experts.c), with its parameters in `slot` and its gradient slot or chunk of tokens `part`. */
struct at {
	int slot, part;
};
stage_id expert_compute(struct schedule *s, int pass, int layer, int microbatch, int e, int gpu, uint32_t tokens, struct at at, const stage_id *preds,
                        int n_preds);

/* Experts cut into slices and replicated (slices.c): whether a layer's split adapts; the slices of a routed layer's experts, with the time of its
 * experts and exchanges where they were chosen; and what replicas of a slice gather and add up for it. */
bool slices_adapt(const struct schedule *s, int experts);
void slices_init(struct schedule *s);
nsec_t slices_choose(struct schedule *s, int layer, struct block *b);
void slices_gather(struct schedule *s, int pass, int layer, int microbatch);
void slices_reduce(struct schedule *s, int layer, int microbatch);

/* GPUs in groups of `size`, `stride` apart (build.c). */
struct group group_of(const struct schedule *s, int stride, int size);

/* Makes room for n entries in a block's work list and in the scratch it is sorted in (build.c). */
void block_room(struct schedule *s, struct block *b, size_t n);

/* Bytes of a routed layer's all-to-all as placed, into b->exchange and b->sent (route.c). */
void count_bytes(struct schedule *s, struct block *b, const struct layer *l);

/* One chunk's all-to-all of a routed layer; out (G), or NULL, receives the members' ids. */
void emit_all_to_all(struct schedule *s, int pass, int layer, int microbatch, int chunk, stage_id *out);

/* A collective in every group of a shape (NULL: of all GPUs); preds (G) may be NULL (each after its GPU's last computation), as may
 * out (G), which receives the members' ids. */
struct collective {
	int kind, pass, layer, microbatch, expert, part;
	const struct group *group;
	bool of_copies; /* for what data-parallel copies hold: on the stream of the policy's choice */
	uint64_t bytes;
	nsec_t cost_ns;
	nsec_t under_ns;          /* of it, what kernels that begin with it cost the first message */
	int messages;             /* one behind the other in cost_ns; 0: 1 */
	const uint64_t *bytes_of; /* (G) where groups differ, instead of bytes and cost_ns; or NULL */
	const nsec_t *cost_of;
	const stage_id *also; /* (G) more predecessors, or NULL */
};
void emit_collective(struct schedule *s, const struct collective *c, const stage_id *preds, stage_id *out);

/* Exchanges inside the tensor groups (tensor.c): sums of partial results; tokens on their way to the experts, dispatched_ids (G) receives after what
 * they are there; and the way back with what the experts' GPUs still have to add up or to gather. */
void tensor_reduce(struct schedule *s, int pass, int layer, int microbatch, bool awaited);
void tensor_dispatch(struct schedule *s, int pass, int layer, int microbatch, int chunk, stage_id *dispatched_ids);
void tensor_return(struct schedule *s, int pass, int layer, int microbatch, int chunk);

/* What data-parallel copies do for their parameters (update.c): parameters of a layer (-1: the embedding) gathered ahead and waited for where ZeRO
 * cuts them; gradients of a layer that has been differentiated; the end of a micro-batch; the step's updates of all that lives in HBM or is not an
 * expert. */
void params_gather(struct schedule *s, int pass, int layer, int microbatch);
void params_await(struct schedule *s, int layer);
void embedding_exchange(struct schedule *s, int pass, int microbatch); /* where it is cut: rows looked up for others, or their gradients */
void embedding_gather(struct schedule *s, int microbatch);             /* and whole for the head */
void gradients_ready(struct schedule *s, int layer, int microbatch);
void gradients_end(struct schedule *s, int microbatch);
void update_resident(struct schedule *s);

/* Bytes of one element of parameters and activations on the device. */
static inline uint64_t element_bytes(const struct schedule *s)
{
	return (uint64_t)s->m->element_bytes;
}

static inline bool inference(const struct schedule *s)
{
	return s->sc->workload == WORKLOAD_INFERENCE;
}

static inline bool vertical(const struct schedule *s)
{
	return s->p->microbatch_order == ORDER_VERTICAL;
}

/* Whether the experts live outside HBM, and whether every GPU computes every expert on its own tokens. */
static inline bool offloaded(const struct schedule *s)
{
	return s->plan.home != HOME_HBM;
}
/* Whether the host asks for the counts of every gate: a fixed capacity needs none. */
static inline bool asks_gates(const struct schedule *s)
{
	return s->p->dispatch == DISPATCH_EXACT || s->p->capacity_factor <= 0 || offloaded(s);
}
/* Whether experts come to HBM through a ring of slots, ahead of the gate. */
static inline bool ring_of_slots(const struct schedule *s)
{
	return inference(s) && offloaded(s) && s->p->upload_scope == UPLOAD_NEXT_LAYER;
}
static inline bool expert_data_parallel(const struct schedule *s)
{
	return s->plan.expert_parallel == 1 && s->gpus > 1;
}
static inline bool exchanges(const struct schedule *s)
{
	return s->plan.expert_parallel > s->plan.unit;
}
/* Whether a collective brings the experts' results back. */
static inline bool returns(const struct schedule *s)
{
	return exchanges(s) || s->plan.tensor_parallel > 1;
}

/* Tokens of one GPU's micro-batch that it sends to experts: all, or its share of its tensor group's. */
static inline uint32_t routed(const struct schedule *s)
{
	return s->tokens / (uint32_t)(s->plan.tensor_parallel / s->plan.unit);
}

/* Units of GPUs that each expert of a layer is spread over, as replicas or slices, where the layer has fewer experts than a set has GPUs. One that is
 * uploaded goes to a single GPU: there is one gradient and one update. */
static inline int spread_of(const struct schedule *s, int experts)
{
	return offloaded(s) ? 1 : MAX(1, s->plan.expert_parallel / s->plan.unit / experts);
}
/* The first expert of a layer that a node holds when each is placed on one GPU; for the number of nodes, how many there are. */
static inline int first_expert(const struct schedule *s, int experts, int node)
{
	int64_t gpu = MIN(node * s->m->gpus_per_node, s->gpus);
	return (int)((experts * gpu + s->gpus - 1) / s->gpus);
}
