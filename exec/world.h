/* Inside of the executor: what its files share. Not for others, but for tests that put something else in the engine's place. */
#pragma once

#include "exec.h"
#include "worker.h"

#include <pthread.h>

/* What a backend asks of the one who knows the tensors. */
struct issuer {
	void *user;
	/* As engine_launch: every stage of this process by the caller in launch order, before all else. NULL: nothing to choose. */
	bool (*launch)(void *user, const struct stage *stage, struct store_places *at, GError **error);
	/* As engine_issue: a GPU's stages by its launcher in launch order; a node's by the stream's worker in launch order, stream NULL. */
	bool (*stage)(void *user, const struct stage *stage, const struct store_places *at, struct device_stream *stream, uint64_t *pending,
	              GError **error);
	/* As engine_settle. NULL: nothing is left pending. */
	void (*settle)(void *user, const struct stage *stage, uint64_t pending);
	/* As engine_loads: all members of the gate's group have ended. */
	bool (*loads)(void *user, const struct gate *gate, uint32_t *tokens, GError **error);
};

/* exec_new with another in the engine's place; `issue` is copied, its user borrowed. */
struct backend *exec_new_issuing(struct device **devices, int count, const struct issuer *issue, const struct machine *m,
                                 GError **error) G_GNUC_WARN_UNUSED_RESULT;

enum verdict { OPEN, RUN, SKIP };

/* Members of a rendezvous. */
struct group {
	uint32_t id, size, launched;
	uint32_t holders; /* records and spans that name it */
	enum verdict verdict;
	nsec_t start_ns; /* the last member's */
	stage_id member[];
};

struct record {
	struct stage stage;
	struct device_event *start, *end; /* start NULL: a node's stage; both: another process's */
	struct group *group;
	struct store_places at;
	struct record *after[STAGE_PREDECESSORS + FRAMES_WAITS]; /* those that may not have ended when it was launched */
	int n_after;
	gint users;
	stage_id before; /* on its stream */
	uint16_t step;
	bool issued; /* under the lock */
	bool ended;  /* and the times are known */
	bool noted;  /* in a span */
	nsec_t launch_ns, launch_end_ns, start_ns, end_ns;
};

struct exec {
	struct backend base;
	const struct machine *m;
	struct issuer issue;
	struct device **devices; /* (gpus), NULL where another process has it */
	int first, end;          /* GPUs of this process: first .. end - 1 */
	int n_streams;
	struct worker **launcher;      /* (gpus) */
	struct device_stream **stream; /* (gpus * GPU_STREAMS) */
	struct worker **node;          /* (nodes * NODE_STREAMS) */
	struct worker **settler;       /* (nodes * NODE_STREAMS), NULL where nothing is left pending */
	nsec_t *settled_ns;            /* (nodes * NODE_STREAMS), the settler's own: when the last stage had ended */
	GPtrArray **spare;             /* (gpus) struct device_event * */
	stage_id *last;                /* (streams) launched */
	struct record **live;          /* ring by id: oldest .. launched */
	stage_id oldest, ring;         /* ring: its size, a power of two */
	GHashTable *open_groups;       /* id to struct group, of those that miss members */
	GArray *waited;                /* stage_id: have ended, and exec_note has yet to follow them back */
	GArray *unfolding;             /* stage_id, scratch of note_ended */
	GArray *spans;                 /* struct traced */
	nsec_t traced_end_ns;
	uint16_t step, traced_step;
	uint8_t parity;

	pthread_mutex_t lock; /* not GLib's, which the thread sanitizer does not see */
	pthread_cond_t changed;
	GError *error; /* the first of any thread */
	bool stopping;
};

/* What is pushed to a worker. */
struct errand {
	struct exec *x;
	struct record *r;
	uint64_t pending;
};

static inline struct exec *exec_of(struct backend *b)
{
	return (struct exec *)b;
}

static inline bool on_gpu(const struct exec *x, stream_id stream)
{
	return stream < (stream_id)x->m->gpus * GPU_STREAMS;
}

/* Among the nodes' streams. */
static inline int node_stream(const struct exec *x, stream_id stream)
{
	return (int)(stream - (stream_id)x->m->gpus * GPU_STREAMS);
}

static inline bool is_here(const struct exec *x, int gpu)
{
	return gpu >= x->first && gpu < x->end;
}

/* Tasks of the launchers and of the nodes' workers; args is a struct errand. */
void launcher_run(void *args);
void node_run(void *args);
/* Until the stage's events have been queued. */
void launcher_wait_issued(struct exec *x, const struct record *r);

/* The first error of any thread stays; the devices let everyone go on who waits for what will not come. Takes the error. */
void exec_fail(struct exec *x, GError *error);
bool exec_failed(struct exec *x, GError **error); /* a copy of it */

/* Takes the times of all that has ended as far as the caller's waits tell, and retires what nobody needs any more. */
void exec_note(struct exec *x);

/* Gives back one of the group's holders; NULL is fine. */
void group_unref(struct group *g);

void spans_init(struct exec *x);
void spans_clear(struct exec *x);
void spans_add(struct exec *x, struct record *r); /* that has ended, once; takes its hold on the group */
