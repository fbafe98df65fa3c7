/* Checkpoints: a folder with one file a checkpoint, "step-<N>.checkpoint", written aside, synced and renamed: what has this name is whole. */
#pragma once

#include "engine.h"

/* Little-endian, in this order: "ESMOECK1"; uint64 step (the next to run) and seed; then each tensor: uint32 length of its name, the name, uint64 n,
 * and n fp32 each of master, m, v; then uint32 0 and uint64, a hash of all bytes before it. */
struct checkpoint_state {
	uint64_t step, seed;
};

/* Where the tensors are: engine_each, or a test's. */
struct checkpoint_tensors {
	void *owner;
	bool (*each)(void *owner, bool write_back, engine_tensor_fn fn, void *user, GError **error);
};

/* Makes the folder when it is missing; fails at once where nothing can be written. */
bool checkpoint_prepare(const char *folder, GError **error) G_GNUC_WARN_UNUSED_RESULT;

/* Writes a checkpoint and then removes older ones. Killed or failed at any moment, the one before is still there and whole. */
bool checkpoint_save(const char *folder, const struct checkpoint_state *state, const struct checkpoint_tensors *tensors,
                     GError **error) G_GNUC_WARN_UNUSED_RESULT;

/* The file of the newest checkpoint of a folder, or `path` itself when it is a file. NULL on error. Owned by the caller. */
char *checkpoint_find(const char *path, GError **error) G_GNUC_WARN_UNUSED_RESULT;

/* Checks the whole file, then fills the tensors from it. ESMOE_ERROR_INPUT: no checkpoint, damaged, or of other tensors (names the first). */
bool checkpoint_load(const char *file, struct checkpoint_state *state, const struct checkpoint_tensors *tensors,
                     GError **error) G_GNUC_WARN_UNUSED_RESULT;
