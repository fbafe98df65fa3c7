/* Rates of a machine, measured outside of any run: copies and CPU Adam alone and against each other, collectives, the SSD. */
#pragma once

#include "model/autoptr.h"
#include "model/machine.h"
#include "model/measured.h"

struct machine_rates {
	const char *device;
	const char *ssd;                            /* a folder on it */
	struct machine *m;                          /* filled */
	size_t expert;                              /* parameters of one */
	struct measured *tables;                    /* of copies, collectives, reads and writes: filled, and what the device is */
	void (*part)(const char *what, void *user); /* one of rates_parts, or a round, is done */
	void *user;
};

/* The disk, copies and collectives: rates_parts of them. */
int rates_parts(void);
bool rates_measure(const struct machine_rates *r, GError **error) G_GNUC_WARN_UNUSED_RESULT;

/* Goes once through the table of copies against Adam. A machine whose memory others use, too, is for seconds or minutes at a time another one, and
 * rates that were measured one after the other contradict each other: the more rounds, and the further apart, the better is the middle of them. */
struct rate_rounds *rate_rounds_new(void);
void rate_rounds_free(struct rate_rounds *rounds);
AUTOPTR(rate_rounds)
bool rate_rounds_add(struct rate_rounds *rounds, const struct machine_rates *r, GError **error) G_GNUC_WARN_UNUSED_RESULT;
/* The middle of each rate of one or more rounds, into the machine they were made for. */
void rate_rounds_fill(const struct rate_rounds *rounds, struct machine *m);
