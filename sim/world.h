/* Inside a simulation: what its files share. Not for others. */
#pragma once

#include "counters.h"
#include "events.h"
#include "share.h"
#include "sim.h"

/* A stage as the loop sees it: one cache line. */
struct task {
	nsec_t cost_ns;
	nsec_t start_ns; /* the earliest known so far, until it starts */
	nsec_t end_ns;   /* the floor under it, until it ended */
	stage_id preds[STAGE_PREDECESSORS];
	stage_id next; /* on its stream */
	stream_id stream;
	uint32_t profile;
	uint32_t group;   /* index, 0: none */
	uint32_t waiters; /* 1 + the first stream that waits for its end */
	uint8_t n_preds, n_met, products;
	bool ended;
};
G_STATIC_ASSERT(sizeof(struct task) == 64);

/* What only traces need. */
struct note {
	nsec_t launch_ns, launch_end_ns;
	uint64_t bytes;
	int32_t expert, rank;
	uint32_t tokens;
	uint16_t step, layer, microbatch;
	uint8_t kind, pass;
};

enum phase { PHASE_IDLE, PHASE_BLOCKED, PHASE_STARTING, PHASE_GATHERED, PHASE_FLOWING, PHASE_ALONE, PHASE_FLOORED, PHASE_DONE };

struct stream {
	stage_id head, tail;    /* STAGE_NONE: empty */
	uint32_t next_waiter;   /* 1 + the next stream that waits for the same stage */
	uint32_t next_member;   /* 1 + the next stream in its group */
	nsec_t since_ns;        /* rate and remaining are as of then; between stages: the next one starts no earlier */
	double remaining, rate; /* of the flow at since_ns */
	double exposed;         /* share of what copies beside it take from its like that they take from it */
	enum phase phase;
};

struct group {
	uint32_t id, size, launched, arrived, running;
	uint32_t members; /* 1 + the first stream that arrived */
};

struct sim {
	struct backend base;
	const struct machine *m;
	const struct resources *r;
	const struct routing *routing;
	nsec_t launch_ns, first_ns, sync_ns, sync_all_ns;                     /* of the host, while CPU Adam is at rest */
	nsec_t launch_adam_ns, first_adam_ns, sync_adam_ns, sync_all_adam_ns; /* and at work */
	nsec_t event_ns, wake_ns, next_ns;
	nsec_t now_ns;
	nsec_t *host_ns; /* (gpus): the launchers' clocks */
	bool *waited;    /* (gpus): they have launched nothing since the last wait */
	struct task *tasks;
	struct note *notes;
	uint32_t room;
	struct stream *streams;
	uint32_t n_streams;
	GArray *groups;          /* struct group; 0 is no group */
	GHashTable *open_groups; /* id to index, of groups that miss members */
	uint32_t group_at;       /* index of the group met last */
	uint16_t step;           /* of the stage launched last */
	uint8_t parity;
	struct share *share;
	struct events *events;
	struct counters *counters;
	struct heat *heat; /* NULL: none */
};

static inline struct group *group_at(const struct sim *sim, uint32_t i)
{
	return &g_array_index(sim->groups, struct group, i);
}

/* The first stage of a stream, when its predecessors allow: when it may start. -1 when there is none, or it now hangs on a predecessor. */
nsec_t sim_head_ready_ns(struct sim *sim, stream_id s);

/* Lets everything happen that happens at the next instant. Something must be pending. */
void sim_instant(struct sim *sim);

/* Why a stage never ends although nothing is pending, as an error. Returns false. */
bool sim_deadlock(const struct sim *sim, stage_id id, GError **error);
