/* A stream does one thing at a time: it waits for an instant to start, or for the end of what runs. So what is queued are streams rather than stages,
 * as few as the machine has whatever the length of the schedule, and each can have a fixed place in a tournament: eight streams a match, the least
 * instant goes on.
 *
 *                 20                 A later instant is mostly lost at the first match, so putting one costs next to nothing; taking the winner
 *       .-----.---'-.-----.          replays the matches on its way. No branch depends on the instants but the one that stops.
 *      20    35 ...41   never
 *     .-'-.  ...
 *    20 90 ...
 *
 * The root is node 7 and node i has the children 8 (i - 6) .. 8 (i - 6) + 7: the eight of a match are a cache line, and the rivals of i are i ^ 1 to
 * i ^ 7. A match is replayed from the rivals and what comes up, which is still in a register; reading back what was just stored would make each match
 * wait for the one below. */
#include "events.h"

#define NEVER INT64_MAX

enum { ROOT = 7, LINE_BYTES = 64, MOST_MATCHES = 16 };

struct events {
	nsec_t *least;       /* of the subtree */
	uint32_t first_leaf; /* the node of stream 0 */
};

static inline uint32_t parent(uint32_t i)
{
	return i / 8 + 6;
}

struct events *events_new(uint32_t n_streams)
{
	struct events *events = g_new0(struct events, 1);
	uint32_t leaves = 1, matches = 0;
	for (events->first_leaf = ROOT; leaves < n_streams; leaves *= 8, matches++)
		events->first_leaf = 8 * (events->first_leaf - 6);
	g_assert(matches <= MOST_MATCHES);
	uint32_t n = events->first_leaf + leaves;
	events->least = g_aligned_alloc(n, sizeof(nsec_t), LINE_BYTES);
	for (uint32_t i = 0; i < n; i++)
		events->least[i] = NEVER;
	return events;
}

void events_free(struct events *events)
{
	if (!events)
		return;
	g_aligned_free(events->least);
	g_free(events);
}

static inline nsec_t least_rival(const struct events *events, uint32_t i)
{
	const nsec_t *v = events->least;
	nsec_t a = v[i ^ 1], b = v[i ^ 2], c = v[i ^ 3], d = v[i ^ 4], e = v[i ^ 5], f = v[i ^ 6], g = v[i ^ 7];
	a = MIN(a, b);
	c = MIN(c, d);
	e = MIN(e, f);
	a = MIN(a, g);
	c = MIN(c, e);
	return MIN(a, c);
}

/* The first of eight that is ns. */
static inline uint32_t first_equal(const nsec_t *v, nsec_t ns)
{
	uint32_t equal = 0;
	for (uint32_t k = 0; k < 8; k++)
		equal |= (uint32_t)(v[k] == ns) << k;
	return (uint32_t)__builtin_ctz(equal);
}

void events_put(struct events *events, stream_id stream, nsec_t ns)
{
	uint32_t i = events->first_leaf + stream;
	nsec_t least = ns;
	events->least[i] = ns;
	while (i != ROOT) {
		nsec_t rival = least_rival(events, i);
		i = parent(i);
		least = MIN(least, rival);
		if (least == events->least[i])
			return;
		events->least[i] = least;
	}
}

nsec_t events_next_ns(const struct events *events)
{
	return events->least[ROOT] == NEVER ? -1 : events->least[ROOT];
}

stream_id events_take(struct events *events)
{
	nsec_t ns = events->least[ROOT], rival[MOST_MATCHES], least = NEVER;
	uint32_t i = ROOT, match = 0;
	g_assert(ns != NEVER);
	while (i < events->first_leaf) {
		i = 8 * (i - 6);
		i += first_equal(&events->least[i], ns);
		rival[match++] = least_rival(events, i);
	}
	stream_id stream = i - events->first_leaf;
	events->least[i] = NEVER;
	while (match--) {
		i = parent(i);
		least = MIN(least, rival[match]);
		events->least[i] = least;
	}
	return stream;
}
