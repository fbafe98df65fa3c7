/* A stream does one thing at a time: it waits for an instant to start, or for the end of what runs. So the queue of events is a heap of
 * streams rather than of stages, as small as the machine whatever the length of the schedule. Four children a node: half the levels of a binary heap,
 * and the four keys to compare share a cache line. */
#include "events.h"

struct event {
	nsec_t ns;
	stream_id stream;
};

struct events {
	struct event *heap; /* (n) */
	uint32_t *place;    /* (n_streams): 1 + position in the heap, 0: not pending */
	uint32_t n;
};

struct events *events_new(uint32_t n_streams)
{
	struct events *events = g_new0(struct events, 1);
	events->heap = g_new(struct event, n_streams);
	events->place = g_new0(uint32_t, n_streams);
	return events;
}

void events_free(struct events *events)
{
	if (!events)
		return;
	g_free(events->heap);
	g_free(events->place);
	g_free(events);
}

static inline bool before(struct event a, struct event b)
{
	return a.ns < b.ns || (a.ns == b.ns && a.stream < b.stream);
}

static inline void seat(struct events *events, uint32_t i, struct event event)
{
	events->heap[i] = event;
	events->place[event.stream] = i + 1;
}

static uint32_t rise(struct events *events, uint32_t i, struct event event)
{
	while (i) {
		uint32_t parent = (i - 1) / 4;
		if (!before(event, events->heap[parent]))
			break;
		seat(events, i, events->heap[parent]);
		i = parent;
	}
	seat(events, i, event);
	return i;
}

static void sink(struct events *events, uint32_t i, struct event event)
{
	for (;;) {
		uint32_t first = 4 * i + 1, last = MIN(first + 4, events->n);
		if (first >= last)
			break;
		uint32_t least = first;
		for (uint32_t child = first + 1; child < last; child++)
			if (before(events->heap[child], events->heap[least]))
				least = child;
		if (!before(events->heap[least], event))
			break;
		seat(events, i, events->heap[least]);
		i = least;
	}
	seat(events, i, event);
}

void events_put(struct events *events, stream_id stream, nsec_t ns)
{
	struct event event = {ns, stream};
	uint32_t i = events->place[stream] ? events->place[stream] - 1 : events->n++;
	if (rise(events, i, event) == i)
		sink(events, i, event);
}

nsec_t events_next_ns(const struct events *events)
{
	return events->n ? events->heap[0].ns : -1;
}

stream_id events_take(struct events *events)
{
	g_assert(events->n);
	stream_id stream = events->heap[0].stream;
	events->place[stream] = 0;
	if (--events->n)
		sink(events, 0, events->heap[events->n]);
	return stream;
}
