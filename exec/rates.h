/* Rates of a machine, measured outside of any run: copies and CPU Adam alone and against each other, collectives, the SSD. */
#pragma once

#include "model/machine.h"
#include "model/measured.h"

struct machine_rates {
	const char *device;
	const char *ssd;                            /* a folder on it */
	struct machine *m;                          /* filled */
	size_t expert;                              /* parameters of one */
	struct measured *tables;                    /* of copies, collectives, reads and writes: filled, and what the device is */
	void (*part)(const char *what, void *user); /* one of rates_parts is done */
	void *user;
};

int rates_parts(void);
bool rates_measure(const struct machine_rates *r, GError **error) G_GNUC_WARN_UNUSED_RESULT;
