/* Measuring a machine: short real runs in which each kind of stage has its stream's resources to itself, then copies, Adam and collectives outside of
 * any run. */
#pragma once

#include "model/scenario.h"

struct calibrate_options {
	const char *device;                                                  /* "host" */
	const char *ssd;                                                     /* a folder on it; NULL: a temporary one */
	int steps;                                                           /* measured in each run, after two more */
	void (*progress)(int done, int total, const char *what, void *user); /* `what` is done */
	void *user;
};

/* Fills `m` (the base machine, which keeps what is not measured) with tables, rates, overheads and identity. The network and policies' sizes are
 * those of `o`: model, machine, sequences, experts; its policy is not used. */
bool calibrate(const struct scenario_options *o, const struct calibrate_options *how, struct machine *m, GError **error) G_GNUC_WARN_UNUSED_RESULT;
