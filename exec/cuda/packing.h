/* One message for each other member of an exchange, however many segments it has (packing.c). Rows are counted, not touched. */
#pragma once

#include "exec/device.h"

/* `rows` rows from row `from` of one buffer to row `to` of another. */
struct row_run {
	int from, to, rows;
};

/* What goes to another member, or comes from it: its rows lie together from row `at`, in the exchange's own buffer or, packed, in staging. */
struct parcel {
	int rows, at; /* rows 0: no message */
	bool packed;
};

enum parcel_way { PARCEL_OUT, PARCEL_IN, N_PARCEL_WAYS };

struct packing {
	int members;
	struct parcel *parcel[N_PARCEL_WAYS]; /* (members); the own one is empty */
	GArray *runs[N_PARCEL_WAYS];          /* struct row_run: from what is sent to staging before, from staging to where it belongs after */
	GArray *own;                          /* struct row_run: from what is sent to where it belongs */
};

void packing_init(struct packing *p, int members);
void packing_clear(struct packing *p);
/* Of `member`'s part of an exchange; what was listed before is gone. Rows of all packed parcels of a way lie in its staging one after another. */
void packing_list(struct packing *p, const struct traffic *t, int member);
