/* A stream does one thing at a time: it waits for an instant to start, or for the end of what runs. So what is queued are streams rather than stages,
 * as few as the machine has whatever the length of the schedule, and each can have a fixed place in a tournament: four streams a match, the least
 * instant goes on.
 *
 *                 20                 A later instant is mostly lost at the first match, so putting one costs next to nothing; taking the winner
 *        .------.--'---.------.      replays the matches on its way. No branch depends on the instants but the one that stops.
 *       20     35     41    never
 *     .-'-.   ...
 *    20 90 . .
 *
 * The root is node 3 and node i has the children 4 i - 8 .. 4 i - 5: the four of a match share a cache line, and i ^ 1, i ^ 2 and i ^ 3 are the
 * rivals of i. A match is replayed from the rivals and what comes up, which is still in a register; reading back what was just stored would make each
 * match wait for the one below. */
#include "events.h"

#define NEVER INT64_MAX

enum { ROOT = 3, LINE_BYTES = 64, MOST_MATCHES = 16 };

struct events {
	nsec_t *least;       /* of the subtree */
	uint32_t first_leaf; /* the node of stream 0 */
};

static inline uint32_t parent(uint32_t i)
{
	return i / 4 + 2;
}

struct events *events_new(uint32_t n_streams)
{
	struct events *events = g_new0(struct events, 1);
	uint32_t leaves = 1, matches = 0;
	for (events->first_leaf = ROOT; leaves < n_streams; leaves *= 4, matches++)
		events->first_leaf = 4 * events->first_leaf - 8;
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
	nsec_t a = events->least[i ^ 1], b = events->least[i ^ 2], c = events->least[i ^ 3];
	a = MIN(a, b);
	return MIN(a, c);
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
		const nsec_t *four = &events->least[4 * i - 8];
		i = 4 * i - 8 + (four[0] != ns) * (1 + (four[1] != ns) * (1 + (four[2] != ns)));
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
