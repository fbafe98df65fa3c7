/* A stream does one thing at a time: it waits for an instant to start, or for the end of what runs. So what is queued are streams rather than stages,
 * as few as the machine has whatever the length of the schedule, and each can have a fixed place in a tournament: four streams a match, the least
 * instant goes on.
 *
 *                 20                 A later instant is mostly lost at the first match, so putting one costs next to nothing; taking the winner
 *        .------.--'---.------.      replays the matches on its way. No branch depends on the instants but the one that stops.
 *       20     35     41    never
 *     .-'-.   ...
 *    20 90 . .                  */
#include "events.h"

#define NEVER INT64_MAX

struct events {
	nsec_t *least;       /* of the subtree; node i has the children 4 i + 1 .. 4 i + 4 */
	uint32_t first_leaf; /* the node of stream 0 */
};

struct events *events_new(uint32_t n_streams)
{
	struct events *events = g_new0(struct events, 1);
	uint32_t leaves = 1;
	for (; leaves < n_streams; leaves *= 4)
		events->first_leaf += leaves;
	events->least = g_new(nsec_t, events->first_leaf + leaves);
	for (uint32_t i = 0; i < events->first_leaf + leaves; i++)
		events->least[i] = NEVER;
	return events;
}

void events_free(struct events *events)
{
	if (!events)
		return;
	g_free(events->least);
	g_free(events);
}

static inline nsec_t least_of(const nsec_t *four)
{
	nsec_t a = MIN(four[0], four[1]), b = MIN(four[2], four[3]);
	return MIN(a, b);
}

static void replay(struct events *events, uint32_t i)
{
	while (i) {
		i = (i - 1) / 4;
		nsec_t least = least_of(&events->least[4 * i + 1]);
		if (least == events->least[i])
			return;
		events->least[i] = least;
	}
}

void events_put(struct events *events, stream_id stream, nsec_t ns)
{
	events->least[events->first_leaf + stream] = ns;
	replay(events, events->first_leaf + stream);
}

nsec_t events_next_ns(const struct events *events)
{
	return events->least[0] == NEVER ? -1 : events->least[0];
}

stream_id events_take(struct events *events)
{
	nsec_t ns = events->least[0];
	uint32_t i = 0;
	g_assert(ns != NEVER);
	while (i < events->first_leaf) {
		const nsec_t *four = &events->least[4 * i + 1];
		uint32_t winner = (four[0] != ns) * (1 + (four[1] != ns) * (1 + (four[2] != ns)));
		i = 4 * i + 1 + winner;
	}
	events->least[i] = NEVER;
	replay(events, i);
	return i - events->first_leaf;
}
