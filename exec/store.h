/* Expert state outside HBM: one per host. Pinned DRAM, or a file on the SSD with DRAM as its cache; the schedule's stages alone move it. Layers are
 * counted among the MoE layers. Memory is pinned by store_new and given back by store_free, at no time in between. */
#pragma once

#include "frames.h"

struct store;

/* Shapes of the MoE layers: the experts that are kept here, first .. first + experts - 1, and parameters of one. */
struct store_layer {
	int experts;
	size_t params;
	int first;
};

struct store_options {
	int home;               /* enum expert_home: dram or ssd */
	int element_bytes;      /* of the copies that are uploaded: 4, or 2 (bf16) */
	int gradient_bytes;     /* of an element of a gradient that lands: 2 or 4; 0: 4 */
	const char *ssd_folder; /* home ssd: a file "experts.bin" is made there, and removed in the end */
	uint64_t frames;        /* home ssd: of DRAM for blocks, each of footprint_frame (footprint_blocks.h) of the widest expert; more than all
	                         * blocks take are not taken */
};

/* ESMOE_ERROR_FIT when DRAM or the folder's file system has less room; ESMOE_ERROR_INPUT when the folder cannot be used. The state starts at zero. */
struct store *store_new(struct device *d, const struct store_layer *layers, int n_layers, const struct store_options *o,
                        GError **error) G_GNUC_WARN_UNUSED_RESULT;
void store_free(struct store *s);
AUTOPTR(store)

/* Where a stage finds what it uses of its expert when it runs, NULL what it does not or what is not in DRAM then; and whom it waits for. */
struct store_places {
	void *params, *gradient; /* in the device's element type, what an upload reads; the landing place of gradients, what a download writes */
	float *master, *m, *v;
	struct frames_waits waits;
};

/* One of SSD_READ, SSD_WRITE, UPLOAD, DOWNLOAD, ADAM and ACCUMULATE of an expert is launched: called for each, in launch order, by the one thread
 * that launches. Frames are claimed with reads, and with a download whose block has left; released with writes or, after them, with the last ADAM or
 * ACCUMULATE (part = 1) that uses a gradient announced by a download. ESMOE_ERROR_FIT when there are too few; ESMOE_ERROR_DEVICE when a block is
 * there already, or not at all. */
bool store_launch(struct store *s, int layer, const struct stage *st, struct store_places *at, GError **error) G_GNUC_WARN_UNUSED_RESULT;
bool store_holds(const struct store *s, int layer, int expert, bool state); /* once all stages launched so far have ended */
uint64_t store_used_bytes(const struct store *s);                           /* of frames then */

/* The stages SSD_READ and SSD_WRITE (stage.h, part: 0 parameters, 1 state) run. Blocking: called on the node's SSD workers, side by side for
 * different blocks. Parameters are cast from the state's master in DRAM, when it is there, or in the file. A write puts the state into the file;
 * parameters have no copy there. ESMOE_ERROR_DEVICE when the file fails: names file, offset and reason. */
bool store_read(const struct store *s, int layer, int expert, bool state, const struct store_places *at, GError **error) G_GNUC_WARN_UNUSED_RESULT;
bool store_write(const struct store *s, int layer, int expert, bool state, const struct store_places *at, GError **error) G_GNUC_WARN_UNUSED_RESULT;

float *store_sum(struct store *s, int layer, int expert); /* of the micro-batches' gradients: zeros on first use; any thread */
void store_sum_free(struct store *s, int layer, int expert);

/* Home dram: where an expert's block always lies. False: it has no such place. */
bool store_place(const struct store *s, int layer, int expert, struct store_places *at);

/* While nothing runs: bytes that are pinned; and those besides that are at home in DRAM, with the sums of gradients that were made so far. */
uint64_t store_pinned_bytes(const struct store *s);
uint64_t store_pageable_bytes(const struct store *s);

/* For initialisation and checkpoints, while nothing runs: the fp32 state of an expert, wherever it is. m or v NULL: zeros. */
bool store_load(struct store *s, int layer, int expert, const float *master, const float *m, const float *v,
                GError **error) G_GNUC_WARN_UNUSED_RESULT;
bool store_save(struct store *s, int layer, int expert, float *master, float *m, float *v, GError **error) G_GNUC_WARN_UNUSED_RESULT;
