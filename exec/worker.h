/* A host thread that runs tasks in order: CPU optimizer, SSD, and the streams of the host device. */
#pragma once

#include "model/autoptr.h"
#include "model/units.h"

#include <stdbool.h>
#include <stddef.h>

struct worker;
typedef void (*task_fn)(void *args);

struct worker *worker_new(const char *name);
void worker_free(struct worker *w); /* after what was queued has run */
AUTOPTR(worker)
/* For how long the thread looks for the next task before it sleeps; 0 at first. */
void worker_set_patience(struct worker *w, nsec_t patience_ns);
/* Queues fn(args) with a copy of the args (at most WORKER_ARGS bytes). Never waits. */
#define WORKER_ARGS 256
void worker_push(struct worker *w, task_fn fn, const void *args, size_t bytes);
void worker_drain(struct worker *w);
