/* What was measured on a machine: how long each kind of stage takes there alone, by size, on which network, with what and when. */
#pragma once

#include "autoptr.h"
#include "ini.h"
#include "network.h"
#include "stage.h"

/* Medians over the samples of a size; spread: half the distance of the quartiles over the median. Sizes ascend. */
struct measured_table {
	struct ini_doubles sizes, median_us, spread_percent, samples;
	double extra_experts; /* gates: what a token costs whatever the experts, in experts */
};

/* Experts in one grouped launch have tables of their own: the time of one of them by its tokens. And so has what an all-reduce takes longer than
 * alone when the backward of a layer begins together with it, by the elements of that layer's rows; and how much later than it takes alone an
 * all-to-all ends after its launch, when that is what it waits for, by a GPU's tokens. */
enum { MEASURED_GROUPED = N_STAGE_KINDS, MEASURED_UNDER, MEASURED_LATE, MEASURED_KINDS };

struct measured {
	char *network; /* measured_network of what was run; tables of computation hold for it alone */
	char *device, *driver, *date;
	int gpus; /* that took part in the collectives */
	struct measured_table table[MEASURED_KINDS][N_STAGE_PASSES];
};

/* Reads the [measured...] sections; *out stays NULL when the source has none. `overrides` as in ini_read. *out is owned by the caller. */
bool measured_read(const char *source, const char *const *overrides, struct measured **out, GError **error) G_GNUC_WARN_UNUSED_RESULT;
bool measured_section(const char *name); /* whether it is one of them */
struct measured *measured_new(void);
void measured_free(struct measured *m);
AUTOPTR(measured)
/* The sections as text; tables without sizes are left out. Owned by the caller. */
char *measured_ini(const struct measured *m);

/* Everything of a network that the time of a stage depends on beside its size: neither layers nor experts. Owned by the caller. */
char *measured_network(const struct network *n);

/* What a stage's size counts: "tokens", "tokens x experts" (with the table's extra ones), "tokens x top_k", "tokens x d_model", "bytes" or
 * "parameters"; NULL: kind and pass have no table. Copies, collectives, optimizer and SSD have one table for all passes, under PASS_FORWARD:
 * measured_pass. */
const char *measured_unit(int kind, int pass);
int measured_pass(int kind, int pass);

/* The size of a stage of the compute stream on so many tokens, in the unit of its table; `l` is NULL for embedding and head. */
double measured_size(const struct measured_table *t, int kind, const struct layer *l, double tokens);

/* Where a size lies: inside the table, or past its ends, where the nearest segment is continued. */
enum measured_range { MEASURED_INSIDE, MEASURED_BELOW, MEASURED_ABOVE, MEASURED_NONE };

/* Nanoseconds at a size, on the straight line between two points; MEASURED_NONE: the table is empty, *ns untouched. Past the ends the nearest line
 * goes on, but less work takes no longer, and more work no longer than in proportion. */
enum measured_range measured_ns(const struct measured_table *t, double size, double *ns);

void measured_table_clear(struct measured_table *t);
/* Adds a size with its samples, in microseconds, which are sorted. Sizes must come ascending. */
void measured_add(struct measured_table *t, double size, double *samples_us, int n);
