/* Pinned DRAM in frames of one size, all taken at the start: to pin or unpin waits for devices, which may wait for whoever asked. Frames are claimed
 * and released by the one thread that launches stages, in launch order, long before those stages run. */
#pragma once

#include "device.h"
#include "model/stage.h"

struct frames;

/* Stages that a stage has to wait for, beside its predecessors and whatever its schedule thinks, before it touches what it claimed. */
enum { FRAMES_OF_BLOCK = 3, FRAME_USERS = 2, FRAMES_WAITS = FRAMES_OF_BLOCK * FRAME_USERS };
struct frames_waits {
	stage_id stage[FRAMES_WAITS];
	int n;
};
void frames_wait(struct frames_waits *w, stage_id stage); /* STAGE_NONE: for nobody */

/* n frames of whole pages (store_file.h), zeroed, in a few allocations. ESMOE_ERROR_FIT when DRAM has less. */
struct frames *frames_new(struct device *d, size_t frame_bytes, uint64_t n, GError **error) G_GNUC_WARN_UNUSED_RESULT;
void frames_free(struct frames *f);
AUTOPTR(frames)
uint64_t frames_bytes(const struct frames *f);      /* all that is pinned */
uint64_t frames_used_bytes(const struct frames *f); /* claimed and not released */

/* Claims n <= FRAMES_OF_BLOCK frames, those that were released first, and adds their last users to the waits; false, and nothing changes, when fewer
 * are free: ESMOE_ERROR_FIT. */
bool frames_claim(struct frames *f, int n, char **frame, struct frames_waits *w, GError **error) G_GNUC_WARN_UNUSED_RESULT;
/* Nobody launched from here on uses the frame. `last` (FRAME_USERS): whoever was launched before and used it has ended when those have. */
void frames_release(struct frames *f, char *frame, const stage_id *last);
