/* Which system is best where: a map over GPUs and experts, a panel a model and machine. */
#pragma once

#include "csv.h"

#define BEST_TIE 0.05     /* the next within this share of the best: a tie */
#define BEST_DROPPED 0.01 /* who drops more tokens does not do the same work: the map says so */

struct best;

/* One place of the map: the fastest policy, and how it stands to the next. */
struct best_cell {
	const char *policy; /* NULL: none ran */
	const char *next;   /* the one after it, NULL: no other ran */
	double tokens_per_s, next_tokens_per_s;
	double dropped; /* share of its routed tokens that no expert sees */
	bool there;     /* the rows have this place */
	bool invalid;   /* none ran, and not one for want of memory */
};

/* Of rows as sweep and compare write them. Two rows for one policy and place are an error, as are more panels or places than a page holds. NULL on
 * error. Owned by the caller; the names in it are borrowed from the files. */
struct best *best_new(struct csv *const *files, int n_files, GError **error) G_GNUC_WARN_UNUSED_RESULT;
void best_free(struct best *best);
AUTOPTR(best)

/* The cell of a panel (in order of first appearance) at the i-th number of GPUs and the j-th of experts, both rising. */
struct best_cell best_at(const struct best *best, int panel, int i, int j);

/* Draws them into the file `out` (see figure_write): each place in its policy's colour, paler where the next comes within BEST_TIE, with the policy's
 * name (and the share of tokens it drops, from BEST_DROPPED on), its tokens/s and their ratio to the next policy's, or, in a tie, that one's name. */
bool plot_best(struct csv *const *files, int n_files, const char *out, GError **error) G_GNUC_WARN_UNUSED_RESULT;
