/* Inside of the store, shared by its files. */
#pragma once

#include "frames.h"
#include "store.h"
#include "store_file.h"

#include <pthread.h>

/* All but the sum belongs to the thread that launches stages: what is where once the stages launched so far have ended. */
struct expert {
	char *params_at, *gradient_at; /* home ssd: of one block, NULL while neither is needed */
	char *vector[3];               /* master, m, v */
	bool params, state;            /* in DRAM */
	int gradients;                 /* that downloads bring and no update has used */
	stage_id left, used;           /* last stages with which the parameters left, and with which a gradient was used */
	pthread_mutex_t lock;          /* of the sum */
	float *sum;
};

struct layer_store {
	struct store_layer shape;
	size_t params_bytes, gradient_bytes, vector_bytes; /* in whole pages; a vector is master, m or v */
	size_t copies_stride, states_stride;               /* home dram: from one expert to the next; large ones share no huge page */
	char *copies, *states;                             /* home dram: (experts, params + gradient), (experts, 3 vectors) */
	uint64_t offset;                                   /* of the first state in the file */
	struct expert *expert;                             /* (experts) */
};

struct store {
	struct device *device;
	struct store_options o;
	int n_layers, copy_frames;
	size_t frame_bytes;
	struct layer_store *layer; /* (n_layers) */
	struct store_file *file;   /* home ssd */
	struct frames *frames;     /* home ssd */
};

static inline struct layer_store *store_layer_at(const struct store *s, int layer)
{
	g_assert(layer >= 0 && layer < s->n_layers);
	return &s->layer[layer];
}

static inline struct expert *store_expert(const struct store *s, int layer, int e)
{
	const struct layer_store *l = store_layer_at(s, layer);
	g_assert(e >= l->shape.first && e < l->shape.first + l->shape.experts);
	return &l->expert[e - l->shape.first];
}
