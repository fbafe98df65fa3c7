/* What happens next: one pending instant a stream. Ties go to the lower stream, so the order never depends on history. */
#pragma once

#include "model/stage.h"

#include <glib.h>

struct events;

/* For streams 0..n_streams-1. Owned by the caller. */
struct events *events_new(uint32_t n_streams);
void events_free(struct events *events);

/* Sets or moves the stream's instant. */
void events_put(struct events *events, stream_id stream, nsec_t ns);

/* The earliest instant, or -1 when nothing is pending; and the stream it belongs to, which is taken out. */
nsec_t events_next_ns(const struct events *events);
stream_id events_take(struct events *events);
