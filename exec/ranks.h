/* The processes of a run, connected: rank 0 has a connection to each other rank, which stays for the life of the run.
 *
 * A rank that ends without having said goodbye, that says nothing for RANKS_SILENT_S, or that tells of an error fails all: whoever waits here is let
 * go, `failed` (ranks_watch) is called, and every call returns the same error, ESMOE_ERROR_DEVICE, which names the rank and its host. All calls but
 * join, leave and free are thread-safe. */
#pragma once

#include "model/autoptr.h"

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

enum {
	RANKS_SILENT_S = 15,
	RANKS_END_S = 28, /* a process that has not ended by itself so long after it last heard of a rank that failed is ended */
};

struct launched;
struct ranks;

/* Connects all ranks: returns when every one has come. `terms`, lines of "key = value", must be the same on every rank; `version`, too.
 * ESMOE_ERROR_DEVICE after timeout_s: names who is missing, or where rank 0 was looked for. ESMOE_ERROR_INPUT: other terms, names the first; or the
 * address cannot be used. Owned by the caller. */
struct ranks *ranks_join(const struct launched *l, const char *version, const char *terms, int timeout_s, GError **error) G_GNUC_WARN_UNUSED_RESULT;
/* Waits until all ranks leave; from here on the end of one is no failure. */
bool ranks_leave(struct ranks *r, GError **error) G_GNUC_WARN_UNUSED_RESULT;
void ranks_free(struct ranks *r);
AUTOPTR(ranks)

int ranks_own(const struct ranks *r);
int ranks_size(const struct ranks *r);
/* Which one of its host's ranks this one is. */
int ranks_local(const struct ranks *r);
/* "rank 2 (nodeB)". Borrowed. */
const char *ranks_name(const struct ranks *r, int rank);

/* Calls of one channel are made in the same order on every rank, and one at a time. */
enum ranks_channel { RANKS_STEPS, RANKS_COLLECTIVES, RANKS_CHANNELS };

/* What each rank brings, to everyone: all (size), each of the length its rank gave. Owned by the caller; NULL on error. */
GPtrArray *ranks_gather(struct ranks *r, enum ranks_channel channel, const void *own, size_t bytes,
                        GError **error) G_GNUC_WARN_UNUSED_RESULT; /* GBytes */
/* Rank 0's bytes to everyone, in place. */
bool ranks_share(struct ranks *r, enum ranks_channel channel, void *data, size_t bytes, GError **error) G_GNUC_WARN_UNUSED_RESULT;
/* Bytes of rank `from` to rank 0, in place; the others do nothing. */
bool ranks_hand_in(struct ranks *r, enum ranks_channel channel, int from, void *data, size_t bytes, GError **error) G_GNUC_WARN_UNUSED_RESULT;

/* This rank failed: tells the others why, unless they failed before. */
void ranks_fail(struct ranks *r, const GError *error);
bool ranks_check(struct ranks *r, GError **error);
/* An error of our own may be the first sign of another rank's end: waits up to `wait_ms` for word of it, which then takes the error's place. False:
 * no word. */
bool ranks_explain(struct ranks *r, int wait_ms, GError **error);
/* Called once, from another thread, when another rank has failed; at once when it has already. NULL: no more, and none under way. */
void ranks_watch(struct ranks *r, void (*failed)(const GError *error, void *user), void *user);
