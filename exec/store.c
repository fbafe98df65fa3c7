/* Every expert has its place in the address space from the start, page by page:
 *
 *     [parameters | gradient]   [master | m | v]        the same three, in the same order, are its place in the file
 *
 * so whoever queues a copy knows its address. At home in DRAM all places are filled. Over the SSD a place has memory only while the schedule's cache
 * holds the block: a read fills its pages, a drop gives them back to the system. What is used is counted in elements as the schedule's cache counts,
 * so a schedule that brings more than the room is told. A gradient lands in the parameters' block; when that leaves before Adam has used it, its
 * pages stay behind until it has. They are pinned for as long as they are there, by the SSD's worker, since a copy may be under way. */
#define _GNU_SOURCE /* MAP_ANONYMOUS */
#include "store.h"

#include "adam.h"
#include "model/error.h"
#include "model/footprint_blocks.h"
#include "model/policy.h"
#include "store_file.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define BOUNCE_ELEMENTS (1 << 18)
#define HUGE_PAGE ((size_t)2 << 20)

struct expert {
	pthread_mutex_t lock;
	bool params, state; /* in DRAM */
	bool pinned;        /* home ssd: parameters and gradient */
	int gradients;      /* announced and not returned */
	float *sum;
};

struct layer_store {
	struct store_layer shape;
	size_t params_bytes, gradient_bytes, vector_bytes; /* in whole pages; a vector is master, m or v */
	/* from one expert to the next; a huge page that two shared would come and go with either, small experts cannot afford to round that far up */
	size_t copies_stride, states_stride;
	char *copies, *states; /* (experts, params + gradient), (experts, 3 vectors) */
	uint64_t offset;       /* of the first state in the file */
	struct expert *expert; /* (experts) */
};

struct store {
	struct device *device;
	struct store_options o;
	int n_layers;
	struct layer_store *layer; /* (n_layers) */
	struct store_file *file;   /* home ssd */
	pthread_mutex_t lock;
	uint64_t used_bytes;
};

static struct layer_store *layer_at(const struct store *s, int layer)
{
	g_assert(layer >= 0 && layer < s->n_layers);
	return &s->layer[layer];
}

static struct expert *expert_at(const struct store *s, int layer, int e)
{
	const struct layer_store *l = layer_at(s, layer);
	g_assert(e >= l->shape.first && e < l->shape.first + l->shape.experts);
	return &l->expert[e - l->shape.first];
}

static char *params_of(const struct layer_store *l, int e)
{
	return l->copies + (size_t)(e - l->shape.first) * l->copies_stride;
}

static char *gradient_of(const struct layer_store *l, int e)
{
	return params_of(l, e) + l->params_bytes;
}

static float *state_of(const struct layer_store *l, int e)
{
	return (float *)(void *)(l->states + (size_t)(e - l->shape.first) * l->states_stride);
}

static uint64_t offset_of(const struct layer_store *l, int e)
{
	return l->offset + (uint64_t)(e - l->shape.first) * 3 * l->vector_bytes;
}

static size_t vector_floats(const struct layer_store *l)
{
	return l->vector_bytes / sizeof(float);
}

static int element_format(const struct store *s)
{
	return s->o.element_bytes == 2 ? ADAM_BF16 : ADAM_FP32;
}

/* ---- life ---- */

/* Address space only: pages get memory when they are touched. Reading the SSD into fresh pages is twice as fast when they are huge. */
static char *map(size_t bytes, bool huge, GError **error)
{
	void *p = mmap(NULL, bytes + HUGE_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (p == MAP_FAILED) {
		g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_FIT, "dram: %.3f GiB for experts: %s", (double)bytes / GIB, g_strerror(errno));
		return NULL;
	}
	size_t before = (size_t)(-(uintptr_t)p % HUGE_PAGE);
	char *start = (char *)p + before;
	if (before)
		munmap(p, before);
	munmap(start + bytes, HUGE_PAGE - before);
	if (huge)
		(void)madvise(start, bytes, MADV_HUGEPAGE);
	return start;
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
	bool dram = s->o.home == HOME_DRAM;
	l->copies = dram ? pinned_alloc(s->device, copies_bytes(l), error) : map(copies_bytes(l), l->copies_stride % HUGE_PAGE == 0, error);
	if (!l->copies)
		return false;
	l->states = map(states_bytes(l), l->states_stride % HUGE_PAGE == 0, error);
	if (!l->states)
		return false;
	for (int e = 0; e < l->shape.experts; e++)
		l->expert[e].params = l->expert[e].state = dram;
	return true;
}

static void layer_close(struct store *s, struct layer_store *l)
{
	for (int e = 0; e < l->shape.experts; e++)
		if (l->expert[e].pinned)
			memory_unpin(s->device, params_of(l, e));
	if (l->copies && s->o.home == HOME_DRAM)
		pinned_free(s->device, l->copies);
	else if (l->copies)
		munmap(l->copies, copies_bytes(l));
	if (l->states)
		munmap(l->states, states_bytes(l));
	for (int e = 0; e < l->shape.experts; e++) {
		pthread_mutex_destroy(&l->expert[e].lock);
		g_free(l->expert[e].sum);
	}
	g_free(l->expert);
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
		for (int e = 0; e < layers[i].experts; e++)
			pthread_mutex_init(&l->expert[e].lock, NULL);
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
	pthread_mutex_init(&s->lock, NULL);
	uint64_t bytes = lay_out(s, layers);
	if (o->home == HOME_SSD && !(s->file = store_file_new(o->ssd_folder, bytes, error)))
		return NULL;
	for (int i = 0; i < n_layers; i++)
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
	pthread_mutex_destroy(&s->lock);
	g_free(s->layer);
	g_free(s);
}

uint64_t store_pinned_bytes(const struct store *s)
{
	uint64_t sum = 0;
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

/* ---- where things are ---- */

void *store_params(struct store *s, int layer, int e)
{
	(void)expert_at(s, layer, e);
	return params_of(&s->layer[layer], e);
}

void *store_gradient(struct store *s, int layer, int e)
{
	struct expert *x = expert_at(s, layer, e);
	pthread_mutex_lock(&x->lock);
	x->gradients++;
	pthread_mutex_unlock(&x->lock);
	return gradient_of(&s->layer[layer], e);
}

bool store_holds(struct store *s, int layer, int e, bool state)
{
	struct expert *x = expert_at(s, layer, e);
	pthread_mutex_lock(&x->lock);
	bool held = state ? x->state : x->params;
	pthread_mutex_unlock(&x->lock);
	return held;
}

bool store_state(struct store *s, int layer, int e, float **master, float **m, float **v)
{
	const struct layer_store *l = layer_at(s, layer);
	if (!store_holds(s, layer, e, true))
		return false;
	*master = state_of(l, e);
	*m = *master + vector_floats(l);
	*v = *m + vector_floats(l);
	return true;
}

float *store_sum(struct store *s, int layer, int e)
{
	struct expert *x = expert_at(s, layer, e);
	pthread_mutex_lock(&x->lock);
	if (!x->sum)
		x->sum = g_new0(float, s->layer[layer].shape.params);
	float *sum = x->sum;
	pthread_mutex_unlock(&x->lock);
	return sum;
}

void store_sum_free(struct store *s, int layer, int e)
{
	struct expert *x = expert_at(s, layer, e);
	pthread_mutex_lock(&x->lock);
	g_clear_pointer(&x->sum, g_free);
	pthread_mutex_unlock(&x->lock);
}

void store_lend(struct store *s, int layer, int e, struct store_loan *loan)
{
	const struct layer_store *l = layer_at(s, layer);
	struct expert *x = expert_at(s, layer, e);
	pthread_mutex_lock(&x->lock);
	*loan = (struct store_loan){0};
	if (x->params)
		loan->params = params_of(l, e);
	if (x->params || x->gradients)
		loan->gradient = gradient_of(l, e);
	if (!x->state)
		return;
	loan->master = state_of(l, e);
	loan->m = loan->master + vector_floats(l);
	loan->v = loan->m + vector_floats(l);
}

static bool pin(const struct store *s, const struct layer_store *l, struct expert *x, int e, GError **error)
{
	x->pinned = x->pinned || memory_pin(s->device, params_of(l, e), l->params_bytes + l->gradient_bytes, error);
	return x->pinned;
}

/* Memory that a place does not need goes back to the system; the place reads as zeros. */
static void give_back(void *p, size_t bytes)
{
	int failed = madvise(p, bytes, MADV_DONTNEED);
	g_assert(!failed);
}

/* Parameters and gradient, where neither is needed any more. */
static void leave_copies(const struct store *s, const struct layer_store *l, struct expert *x, int e)
{
	if (x->gradients || x->params)
		return;
	if (x->pinned)
		memory_unpin(s->device, params_of(l, e));
	x->pinned = false;
	give_back(params_of(l, e), l->params_bytes + l->gradient_bytes);
}

void store_return(struct store *s, int layer, int e)
{
	const struct layer_store *l = layer_at(s, layer);
	struct expert *x = expert_at(s, layer, e);
	if (x->gradients)
		x->gradients--;
	leave_copies(s, l, x, e);
	pthread_mutex_unlock(&x->lock);
}

/* ---- what the stages do ---- */

static uint64_t block_bytes(const struct store *s, const struct layer_store *l, bool state)
{
	return (uint64_t)l->shape.params * (uint64_t)(state ? 12 : s->o.element_bytes + s->o.gradient_bytes);
}

static bool take_room(struct store *s, uint64_t bytes, GError **error)
{
	pthread_mutex_lock(&s->lock);
	uint64_t left = s->o.cache_bytes - s->used_bytes;
	if (bytes <= left)
		s->used_bytes += bytes;
	pthread_mutex_unlock(&s->lock);
	if (bytes > left)
		g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_FIT, "dram: a block needs %.6f GiB, %.6f GiB of the %.6f GiB over the SSD are left",
		            (double)bytes / GIB, (double)left / GIB, (double)s->o.cache_bytes / GIB);
	return bytes <= left;
}

static void leave_room(struct store *s, uint64_t bytes)
{
	pthread_mutex_lock(&s->lock);
	s->used_bytes -= bytes;
	pthread_mutex_unlock(&s->lock);
}

uint64_t store_used_bytes(struct store *s)
{
	pthread_mutex_lock(&s->lock);
	uint64_t used = s->used_bytes;
	pthread_mutex_unlock(&s->lock);
	return used;
}

/* Reads the master in the file and casts it: at once when the elements are fp32, else piece by piece. */
static bool cast_file(const struct store *s, const struct layer_store *l, int e, GError **error)
{
	if (element_format(s) == ADAM_FP32)
		return store_file_read(s->file, offset_of(l, e), params_of(l, e), l->vector_bytes, error);
	void *bounce = NULL;
	int failed = posix_memalign(&bounce, STORE_PAGE, BOUNCE_ELEMENTS * sizeof(float));
	g_assert(!failed);
	bool ok = true;
	for (size_t i = 0; ok && i < l->shape.params; i += BOUNCE_ELEMENTS) {
		size_t n = MIN(BOUNCE_ELEMENTS, l->shape.params - i);
		ok = store_file_read(s->file, offset_of(l, e) + i * sizeof(float), bounce, store_pages(n * sizeof(float)), error);
		if (ok)
			adam_cast(NULL, params_of(l, e) + i * (size_t)s->o.element_bytes, element_format(s), bounce, n);
	}
	free(bounce);
	return ok;
}

static bool read_block(struct store *s, const struct layer_store *l, const struct expert *x, int e, bool state, GError **error)
{
	if (state)
		return store_file_read(s->file, offset_of(l, e), state_of(l, e), 3 * l->vector_bytes, error);
	if (!x->state)
		return cast_file(s, l, e, error);
	adam_cast(NULL, params_of(l, e), element_format(s), state_of(l, e), l->shape.params);
	return true;
}

static bool unexpected(int layer, int e, bool state, bool held, GError **error)
{
	g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_DEVICE, "schedule: MoE layer %d, expert %d: its %s %s in DRAM", layer, e,
	            state ? "state" : "parameters", held ? "are already" : "are not");
	return false;
}

bool store_read(struct store *s, int layer, int e, bool state, bool from_dram, GError **error)
{
	const struct layer_store *l = layer_at(s, layer);
	struct expert *x = expert_at(s, layer, e);
	bool *held = state ? &x->state : &x->params;
	uint64_t bytes = block_bytes(s, l, state);
	g_assert(s->o.home == HOME_SSD);
	pthread_mutex_lock(&x->lock);
	bool ok = !*held || unexpected(layer, e, state, true, error);
	ok = ok && take_room(s, bytes, error);
	if (ok && (!read_block(s, l, x, e, state, error) || (!state && !pin(s, l, x, e, error)))) {
		leave_room(s, bytes);
		ok = false;
	}
	*held = *held || ok;
	pthread_mutex_unlock(&x->lock);
	if (!ok)
		g_prefix_error(error, "bringing expert %d of MoE layer %d: ", e, layer);
	return ok;
}

static void drop(struct store *s, const struct layer_store *l, struct expert *x, int e, bool state)
{
	if (state) {
		give_back(state_of(l, e), 3 * l->vector_bytes);
		x->state = false;
	} else {
		x->params = false;
		leave_copies(s, l, x, e);
	}
	leave_room(s, block_bytes(s, l, state));
}

bool store_write(struct store *s, int layer, int e, bool state, bool leave, GError **error)
{
	const struct layer_store *l = layer_at(s, layer);
	struct expert *x = expert_at(s, layer, e);
	g_assert(s->o.home == HOME_SSD);
	pthread_mutex_lock(&x->lock);
	bool ok = (state ? x->state : x->params) || unexpected(layer, e, state, false, error);
	if (ok && state)
		ok = store_file_write(s->file, offset_of(l, e), state_of(l, e), 3 * l->vector_bytes, error);
	if (ok && leave)
		drop(s, l, x, e, state);
	pthread_mutex_unlock(&x->lock);
	if (!ok)
		g_prefix_error(error, "sending expert %d of MoE layer %d away: ", e, layer);
	return ok;
}

/* ---- checkpoints ---- */

static void copy_state(const struct layer_store *l, float *to, const float *from)
{
	if (from)
		memcpy(to, from, l->shape.params * sizeof(float));
	else
		memset(to, 0, l->shape.params * sizeof(float));
}

bool store_load(struct store *s, int layer, int e, const float *master, const float *m, const float *v, GError **error)
{
	const struct layer_store *l = layer_at(s, layer);
	struct expert *x = expert_at(s, layer, e);
	float *state = state_of(l, e);
	pthread_mutex_lock(&x->lock);
	copy_state(l, state, master);
	copy_state(l, state + vector_floats(l), m);
	copy_state(l, state + 2 * vector_floats(l), v);
	bool ok = x->state || store_file_write(s->file, offset_of(l, e), state, 3 * l->vector_bytes, error);
	if (x->params)
		adam_cast(NULL, params_of(l, e), element_format(s), state, l->shape.params);
	if (!x->state)
		give_back(state, 3 * l->vector_bytes);
	pthread_mutex_unlock(&x->lock);
	return ok;
}

bool store_save(struct store *s, int layer, int e, float *master, float *m, float *v, GError **error)
{
	const struct layer_store *l = layer_at(s, layer);
	struct expert *x = expert_at(s, layer, e);
	float *state = state_of(l, e);
	pthread_mutex_lock(&x->lock);
	bool ok = x->state || store_file_read(s->file, offset_of(l, e), state, 3 * l->vector_bytes, error);
	if (ok) {
		copy_state(l, master, state);
		copy_state(l, m, state + vector_floats(l));
		copy_state(l, v, state + 2 * vector_floats(l));
	}
	if (!x->state)
		give_back(state, 3 * l->vector_bytes);
	pthread_mutex_unlock(&x->lock);
	return ok;
}
