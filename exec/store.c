/* At home in DRAM every expert has its place, filled from the start:
 *
 *     [parameters | gradient]   [master | m | v]        the latter three, in the same order, are its place in a file on the SSD
 *
 * Over the SSD the same lies in pinned frames (frames.h) for as long as the schedule's cache holds the block: one a vector of the state, one or two
 * for parameters and gradient. Which frames is settled when stages are launched, in launch order (store_launch.c); each stage takes along where it
 * finds what it uses, so that it does not matter how far the launching thread has gone when it runs. A gradient lands in the parameters' block; when
 * that leaves before Adam has used it, its frames stay behind until it has. */
#include "adam.h"
#include "model/error.h"
#include "model/footprint_blocks.h"
#include "model/policy.h"
#include "pages.h"
#include "store_inside.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#define BOUNCE_ELEMENTS (1 << 18)

static uint64_t offset_of(const struct layer_store *l, int e)
{
	return l->offset + (uint64_t)(e - l->shape.first) * 3 * l->vector_bytes;
}

static int element_format(const struct store *s)
{
	return s->o.element_bytes == 2 ? ADAM_BF16 : ADAM_FP32;
}

/* ---- life ---- */

static char *states_new(size_t bytes, GError **error)
{
	char *p = pages_new(bytes);
	if (!p)
		g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_FIT, "dram: %.3f GiB for experts: %s", (double)bytes / GIB, g_strerror(errno));
	return p;
}

bool store_place(const struct store *s, int layer, int expert, struct store_places *at)
{
	const struct expert *x = store_expert(s, layer, expert);
	if (s->o.home != HOME_DRAM)
		return false;
	*at = (struct store_places){
	    .params = x->params_at,
	    .gradient = x->gradient_at,
	    .master = (float *)(void *)x->vector[0],
	    .m = (float *)(void *)x->vector[1],
	    .v = (float *)(void *)x->vector[2],
	};
	return true;
}

static size_t copies_bytes(const struct layer_store *l)
{
	return (size_t)l->shape.experts * l->copies_stride;
}

static size_t states_bytes(const struct layer_store *l)
{
	return (size_t)l->shape.experts * l->states_stride;
}

static bool layer_open(struct store *s, struct layer_store *l, GError **error)
{
	if (!(l->copies = pinned_alloc(s->device, copies_bytes(l), error)))
		return false;
	if (!(l->states = states_new(states_bytes(l), error)))
		return false;
	for (int e = 0; e < l->shape.experts; e++) {
		struct expert *x = &l->expert[e];
		x->params_at = l->copies + (size_t)e * l->copies_stride;
		x->gradient_at = x->params_at + l->params_bytes;
		for (int i = 0; i < 3; i++)
			x->vector[i] = l->states + (size_t)e * l->states_stride + (size_t)i * l->vector_bytes;
		x->params = x->state = true;
	}
	return true;
}

static void layer_close(struct store *s, struct layer_store *l)
{
	if (l->copies)
		pinned_free(s->device, l->copies);
	if (l->states)
		pages_free(l->states, states_bytes(l));
	for (int e = 0; e < l->shape.experts; e++) {
		pthread_mutex_destroy(&l->expert[e].lock);
		g_free(l->expert[e].sum);
	}
	g_free(l->expert);
}

/* No more than all blocks ever take. */
static bool frames_open(struct store *s, uint64_t frames, GError **error)
{
	size_t widest = 0;
	uint64_t all = 0;
	for (int i = 0; i < s->n_layers; i++) {
		widest = MAX(widest, s->layer[i].shape.params);
		all += (uint64_t)s->layer[i].shape.experts * (uint64_t)(s->copy_frames + FOOTPRINT_STATE_FRAMES);
	}
	s->frame_bytes = footprint_frame(widest);
	s->frames = frames_new(s->device, s->frame_bytes, MIN(frames, all), error);
	return s->frames != NULL;
}

static uint64_t lay_out(struct store *s, const struct store_layer *layers)
{
	uint64_t end = 0;
	for (int i = 0; i < s->n_layers; i++) {
		struct layer_store *l = &s->layer[i];
		g_assert(layers[i].experts >= 0 && layers[i].params > 0);
		*l = (struct layer_store){
		    .shape = layers[i],
		    .params_bytes = store_pages(layers[i].params * (size_t)s->o.element_bytes),
		    .gradient_bytes = store_pages(layers[i].params * (size_t)s->o.gradient_bytes),
		    .vector_bytes = store_pages(layers[i].params * sizeof(float)),
		    .offset = end,
		    .expert = g_new0(struct expert, layers[i].experts),
		};
		for (int e = 0; e < layers[i].experts; e++) {
			pthread_mutex_init(&l->expert[e].lock, NULL);
			l->expert[e].left = l->expert[e].used = STAGE_NONE;
		}
		l->copies_stride = (size_t)footprint_stride(l->params_bytes + l->gradient_bytes);
		l->states_stride = (size_t)footprint_stride(3 * l->vector_bytes);
		end += 3 * (uint64_t)l->vector_bytes * (uint64_t)layers[i].experts;
	}
	return end;
}

struct store *store_new(struct device *d, const struct store_layer *layers, int n_layers, const struct store_options *o, GError **error)
{
	g_assert(o->home == HOME_DRAM || o->home == HOME_SSD);
	g_assert(o->element_bytes == 2 || o->element_bytes == 4);
	if (o->home == HOME_SSD && !o->ssd_folder) {
		g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_INPUT, "experts at home on the SSD need a folder there");
		return NULL;
	}
	g_autoptr(store) s = g_new0(struct store, 1);
	s->device = d;
	s->o = *o;
	s->o.gradient_bytes = o->gradient_bytes ? o->gradient_bytes : 4;
	s->o.ssd_folder = NULL; /* borrowed for this call */
	s->n_layers = n_layers;
	s->layer = g_new0(struct layer_store, n_layers);
	s->copy_frames = footprint_copy_frames(s->o.element_bytes, s->o.gradient_bytes);
	uint64_t bytes = lay_out(s, layers);
	if (o->home == HOME_SSD && (!(s->file = store_file_new(o->ssd_folder, bytes, error)) || !frames_open(s, o->frames, error)))
		return NULL;
	for (int i = 0; i < n_layers && o->home == HOME_DRAM; i++)
		if (!layer_open(s, &s->layer[i], error))
			return NULL;
	return g_steal_pointer(&s);
}

void store_free(struct store *s)
{
	if (!s)
		return;
	for (int i = 0; i < s->n_layers; i++)
		layer_close(s, &s->layer[i]);
	store_file_free(s->file);
	frames_free(s->frames);
	g_free(s->layer);
	g_free(s);
}

uint64_t store_pinned_bytes(const struct store *s)
{
	uint64_t sum = s->frames ? frames_bytes(s->frames) : 0;
	for (int i = 0; i < s->n_layers && s->o.home == HOME_DRAM; i++)
		sum += copies_bytes(&s->layer[i]);
	return sum;
}

uint64_t store_pageable_bytes(const struct store *s)
{
	uint64_t sum = 0;
	for (int i = 0; i < s->n_layers; i++) {
		const struct layer_store *l = &s->layer[i];
		sum += s->o.home == HOME_DRAM ? states_bytes(l) : 0;
		for (int e = 0; e < l->shape.experts; e++) {
			pthread_mutex_lock(&l->expert[e].lock);
			sum += l->expert[e].sum ? l->shape.params * sizeof(float) : 0;
			pthread_mutex_unlock(&l->expert[e].lock);
		}
	}
	return sum;
}

/* ---- sums ---- */

float *store_sum(struct store *s, int layer, int e)
{
	struct expert *x = store_expert(s, layer, e);
	pthread_mutex_lock(&x->lock);
	if (!x->sum)
		x->sum = g_new0(float, s->layer[layer].shape.params);
	float *sum = x->sum;
	pthread_mutex_unlock(&x->lock);
	return sum;
}

void store_sum_free(struct store *s, int layer, int e)
{
	struct expert *x = store_expert(s, layer, e);
	pthread_mutex_lock(&x->lock);
	g_clear_pointer(&x->sum, g_free);
	pthread_mutex_unlock(&x->lock);
}

/* ---- what the stages do ---- */

/* Reads the master in the file and casts it: at once when the elements are fp32, else piece by piece. */
static bool cast_file(const struct store *s, const struct layer_store *l, int e, char *params, GError **error)
{
	if (element_format(s) == ADAM_FP32)
		return store_file_read(s->file, offset_of(l, e), params, l->vector_bytes, error);
	void *bounce = NULL;
	int failed = posix_memalign(&bounce, STORE_PAGE, BOUNCE_ELEMENTS * sizeof(float));
	g_assert(!failed);
	bool ok = true;
	for (size_t i = 0; ok && i < l->shape.params; i += BOUNCE_ELEMENTS) {
		size_t n = MIN(BOUNCE_ELEMENTS, l->shape.params - i);
		ok = store_file_read(s->file, offset_of(l, e) + i * sizeof(float), bounce, store_pages(n * sizeof(float)), error);
		if (ok)
			adam_cast(NULL, params + i * (size_t)s->o.element_bytes, element_format(s), bounce, n);
	}
	free(bounce);
	return ok;
}

static bool move_state(const struct store *s, const struct layer_store *l, int e, bool write, void *const *vector, GError **error)
{
	for (int i = 0; i < 3; i++) {
		uint64_t offset = offset_of(l, e) + (uint64_t)i * l->vector_bytes;
		if (!(write ? store_file_write(s->file, offset, vector[i], l->vector_bytes, error)
		            : store_file_read(s->file, offset, vector[i], l->vector_bytes, error)))
			return false;
	}
	return true;
}

bool store_read(const struct store *s, int layer, int e, bool state, const struct store_places *at, GError **error)
{
	const struct layer_store *l = store_layer_at(s, layer);
	bool ok = true;
	g_assert(s->o.home == HOME_SSD);
	if (state)
		ok = move_state(s, l, e, false, (void *[]){at->master, at->m, at->v}, error);
	else if (at->master)
		adam_cast(NULL, at->params, element_format(s), at->master, l->shape.params);
	else
		ok = cast_file(s, l, e, at->params, error);
	if (!ok)
		g_prefix_error(error, "bringing expert %d of MoE layer %d: ", e, layer);
	return ok;
}

bool store_write(const struct store *s, int layer, int e, bool state, const struct store_places *at, GError **error)
{
	const struct layer_store *l = store_layer_at(s, layer);
	g_assert(s->o.home == HOME_SSD);
	bool ok = !state || move_state(s, l, e, true, (void *[]){at->master, at->m, at->v}, error);
	if (!ok)
		g_prefix_error(error, "sending expert %d of MoE layer %d away: ", e, layer);
	return ok;
}

/* ---- checkpoints ---- */

/* The vectors of a state, or room for what is in the file, which the caller frees. */
struct whereabouts {
	void *vector[3], *room;
};

static struct whereabouts state_of(const struct layer_store *l, const struct expert *x)
{
	struct whereabouts w = {0};
	int failed = x->state ? 0 : posix_memalign(&w.room, STORE_PAGE, 3 * l->vector_bytes);
	g_assert(!failed);
	for (int i = 0; i < 3; i++)
		w.vector[i] = x->state ? x->vector[i] : (char *)w.room + (size_t)i * l->vector_bytes;
	return w;
}

/* To the end of its pages. */
static void fill(const struct layer_store *l, void *to, const float *from)
{
	size_t bytes = from ? l->shape.params * sizeof(float) : 0;
	if (from)
		memcpy(to, from, bytes);
	memset((char *)to + bytes, 0, l->vector_bytes - bytes);
}

bool store_load(struct store *s, int layer, int e, const float *master, const float *m, const float *v, GError **error)
{
	const struct layer_store *l = store_layer_at(s, layer);
	const struct expert *x = store_expert(s, layer, e);
	const float *from[3] = {master, m, v};
	struct whereabouts w = state_of(l, x);
	for (int i = 0; i < 3; i++)
		fill(l, w.vector[i], from[i]);
	bool ok = x->state || move_state(s, l, e, true, w.vector, error);
	if (x->params)
		adam_cast(NULL, x->params_at, element_format(s), w.vector[0], l->shape.params);
	free(w.room);
	return ok;
}

bool store_save(struct store *s, int layer, int e, float *master, float *m, float *v, GError **error)
{
	const struct layer_store *l = store_layer_at(s, layer);
	const struct expert *x = store_expert(s, layer, e);
	float *to[3] = {master, m, v};
	struct whereabouts w = state_of(l, x);
	bool ok = x->state || move_state(s, l, e, false, w.vector, error);
	for (int i = 0; ok && i < 3; i++)
		memcpy(to[i], w.vector[i], l->shape.params * sizeof(float));
	free(w.room);
	return ok;
}
