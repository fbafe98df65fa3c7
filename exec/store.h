/* Expert state outside HBM: one per host. Pinned DRAM, or a file on the SSD with DRAM as its cache; the schedule's stages alone move it. Layers are
 * counted among the MoE layers. All calls are thread-safe for different experts. */
#pragma once

#include "device.h"

struct store;

/* Shapes of the MoE layers: experts and parameters of one expert. */
struct store_layer {
	int experts;
	size_t params;
};

struct store_options {
	int home;               /* enum expert_home: dram or ssd */
	int element_bytes;      /* of the copies that are uploaded */
	const char *ssd_folder; /* home ssd: a file "experts.bin" is made there */
	uint64_t cache_bytes;   /* home ssd: DRAM for blocks */
};

struct store *store_new(struct device *d, const struct store_layer *layers, int n_layers, const struct store_options *o,
                        GError **error) G_GNUC_WARN_UNUSED_RESULT;
void store_free(struct store *s);
AUTOPTR(store)

/* Pinned parameters of an expert in the device's element type (what an upload reads), its landing place for gradients (what a download writes, fp32
 * or the device's element), and its fp32 state: master, m, v. NULL when the block is not in DRAM: an error of the schedule. */
void *store_params(struct store *s, int layer, int expert);
void *store_gradient(struct store *s, int layer, int expert);
bool store_state(struct store *s, int layer, int expert, float **master, float **m, float **v);
float *store_sum(struct store *s, int layer, int expert); /* of the micro-batches' gradients, made on first use */

/* The stages STAGE_SSD_READ and STAGE_SSD_WRITE (stage.h, part: 0 parameters, 1 state; bytes 0: cast from the state in DRAM, or just leave).
 * Blocking: called on the node's SSD workers. Errors name file, offset and reason (full disk, short read). */
bool store_read(struct store *s, int layer, int expert, bool state, bool from_dram, GError **error) G_GNUC_WARN_UNUSED_RESULT;
bool store_write(struct store *s, int layer, int expert, bool state, bool drop, GError **error) G_GNUC_WARN_UNUSED_RESULT;

/* For initialisation and checkpoints, while nothing runs: the fp32 state of an expert, wherever it is. */
bool store_load(struct store *s, int layer, int expert, const float *master, const float *m, const float *v,
                GError **error) G_GNUC_WARN_UNUSED_RESULT;
bool store_save(struct store *s, int layer, int expert, float *master, float *m, float *v, GError **error) G_GNUC_WARN_UNUSED_RESULT;
