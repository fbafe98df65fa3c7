/* Expert state outside HBM: one per host. Pinned DRAM, or a file on the SSD with DRAM as its cache; the schedule's stages alone move it. Layers are
 * counted among the MoE layers. All calls are thread-safe, those on different experts do not wait for each other. */
#pragma once

#include "device.h"

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
	uint64_t cache_bytes;   /* home ssd: DRAM for blocks */
};

/* ESMOE_ERROR_FIT when DRAM or the folder's file system has less room; ESMOE_ERROR_INPUT when the folder cannot be used. The state starts at zero. */
struct store *store_new(struct device *d, const struct store_layer *layers, int n_layers, const struct store_options *o,
                        GError **error) G_GNUC_WARN_UNUSED_RESULT;
void store_free(struct store *s);
AUTOPTR(store)

/* Parameters of an expert in the device's element type (what an upload reads) and its landing place for gradients (what a download writes). The
 * addresses never change, so copies may be queued before the stages that bring a block have ended; what is there is the expert only once they have.
 * Asking for the landing place announces a gradient: it stays, even when the parameters leave DRAM, until one store_return for each time asked. */
void *store_params(struct store *s, int layer, int expert);
void *store_gradient(struct store *s, int layer, int expert);
/* Its fp32 state; false when the block is not in DRAM: an error of the schedule. */
bool store_state(struct store *s, int layer, int expert, float **master, float **m, float **v);
float *store_sum(struct store *s, int layer, int expert); /* of the micro-batches' gradients: zeros on first use */
void store_sum_free(struct store *s, int layer, int expert);
bool store_holds(struct store *s, int layer, int expert, bool state); /* whether the block is in DRAM now */

/* For Adam and accumulation: what of an expert is in DRAM, NULL what is not, held there until the same thread returns it. */
struct store_loan {
	void *params, *gradient;
	float *master, *m, *v;
};
void store_lend(struct store *s, int layer, int expert, struct store_loan *loan);
void store_return(struct store *s, int layer, int expert);

/* The stages STAGE_SSD_READ and STAGE_SSD_WRITE (stage.h, part: 0 parameters, 1 state). Blocking: called on the node's SSD workers. Parameters are
 * cast from the state's master in DRAM or, when it is not or no longer there, in the file. A write puts the state into the file; parameters have no
 * copy there. `drop`: the block then leaves DRAM. ESMOE_ERROR_FIT when the blocks exceed the cache, ESMOE_ERROR_DEVICE when the block is there
 * already or not at all, or the file fails: names file, offset and reason. */
bool store_read(struct store *s, int layer, int expert, bool state, bool from_dram, GError **error) G_GNUC_WARN_UNUSED_RESULT;
bool store_write(struct store *s, int layer, int expert, bool state, bool drop, GError **error) G_GNUC_WARN_UNUSED_RESULT;
/* Bytes of blocks in DRAM, as the schedule's cache counts them: elements, without gradients on loan after their block has left. */
uint64_t store_used_bytes(struct store *s);

/* While nothing runs: bytes that are pinned; and those besides that are at home in DRAM, with the sums of gradients that were made so far. */
uint64_t store_pinned_bytes(const struct store *s);
uint64_t store_pageable_bytes(const struct store *s);

/* For initialisation and checkpoints, while nothing runs: the fp32 state of an expert, wherever it is. m or v NULL: zeros. */
bool store_load(struct store *s, int layer, int expert, const float *master, const float *m, const float *v,
                GError **error) G_GNUC_WARN_UNUSED_RESULT;
bool store_save(struct store *s, int layer, int expert, float *master, float *m, float *v, GError **error) G_GNUC_WARN_UNUSED_RESULT;
