/* Inside of the ranks, shared by the meeting (ranks_meet.c) and what follows (ranks.c): messages, and what came of the meeting. */
#pragma once

#include "launched.h"
#include "ranks.h"

#include <gio/gio.h>

enum message {
	MESSAGE_HELLO = 0x6d6f6531, /* version, job, rank, size, host, terms */
	MESSAGE_HELD,               /* rank 0 has it, others are missing */
	MESSAGE_WELCOME,            /* all are there: their hosts */
	MESSAGE_REFUSED,            /* a code and the reason */
	MESSAGE_DATA,
	MESSAGE_BEAT,
	MESSAGE_FAILED, /* the reason */
	MESSAGE_BYE,
};

struct head {
	uint32_t kind, channel;
	uint64_t bytes;
};

bool message_send(GSocketConnection *c, enum message kind, int channel, const void *data, size_t bytes, GError **error) G_GNUC_WARN_UNUSED_RESULT;
/* NULL: no message, or one of more than `most` bytes. */
GBytes *message_receive(GSocketConnection *c, struct head *head, uint64_t most, GError **error) G_GNUC_WARN_UNUSED_RESULT;
/* Reads and writes that take longer fail. */
void message_timeout(GSocketConnection *c, int seconds);

/* Who met: connections (size) by rank, NULL where there is none; hosts (size). */
struct meeting {
	GPtrArray *connection, *host;
};
void meeting_clear(struct meeting *m);
bool meeting_hold(const struct launched *l, const char *version, const char *terms, int timeout_s, struct meeting *out,
                  GError **error) G_GNUC_WARN_UNUSED_RESULT;
