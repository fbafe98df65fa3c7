/* Training: the schedule of a scenario on real devices, step by step. */
#pragma once

#include "folder.h"
#include "launched.h"
#include "model/scenario.h"

struct run_options {
	const char *device;              /* "host" */
	const char *data;                /* NULL: synthetic tokens */
	uint64_t steps;                  /* in all, with those before the checkpoint that is resumed */
	float lr, balance, z;            /* learning rate; weights of the load-balancing and the z-loss */
	const char *trace;               /* folder of the run (folder.h); NULL: none */
	int trace_steps;                 /* the last steps of which spans and loads are kept; where a device knows exact times, it is asked for them
	                                  * every so many steps, between two that do not overlap */
	const char *save;                /* folder of checkpoints; NULL: none */
	uint64_t save_every;             /* steps; one more is made at the end */
	const char *resume;              /* folder or file; NULL: from the start */
	bool impose;                     /* the scenario's routing decides where tokens go, not the gate */
	const char *ssd;                 /* folder of expert files; NULL: a temporary one */
	const struct launched *launched; /* one of several processes, each with the GPUs of one node; NULL, or of size 1: alone */
	bool looks;                      /* CPU Adam is looked at alone around the recorded steps (host_memory.h) */
	bool apart;                      /* each step ends before the next begins: no stage runs in the company of another step's */
	int rendezvous_s;                /* for how long ranks wait for each other at the start */
	const char *command;             /* for run.ini */
	void (*report)(const struct run_step *step, void *user); /* after each step; on rank 0 */
	void (*note)(const char *line, void *user);              /* what the user should know about this run; NULL: nobody listens */
	void *user;
};

/* Trains. A step is reported when it has ended; by then the next one has begun, but not the one after that. SIGINT and SIGTERM end it after the steps
 * under way, with checkpoint and trace written, as ESMOE_ERROR_SIGNAL + the signal; a second signal kills. ESMOE_ERROR_FIT: does not fit;
 * ESMOE_ERROR_DEVICE: no such device, or it failed, or another process did; ESMOE_ERROR_INPUT: data, checkpoint or disk. What one process cannot do
 * ends all, with one error that names it. A signal to one ends all after the same step. */
bool run_train(const struct scenario *sc, const struct run_options *o, GError **error) G_GNUC_WARN_UNUSED_RESULT;
