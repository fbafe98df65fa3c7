/* The what-if options of every command that predicts or runs: what is asked of which model, machine and policy. */
#pragma once

#include "autoptr.h"
#include "ini.h"
#include "scenario.h"

struct whatif {
	char *model, *machine, *policy; /* as given: one, or several with commas between */
	char *gpus, *experts;           /* as given: a number, or a list (whatif_counts) */
	char *top_k, *sequences, *seq_len, *microbatches, *routing, *seed;
	char *workload, *batch, *context, *generate;
	char **set;
};

/* Adds the options to a command's context; `w` must live as long as the context. */
void whatif_add(struct whatif *w, GOptionContext *context);
void whatif_clear(struct whatif *w);

/* The options as a scenario's: model, machine and policy must be there; numbers are checked, gpus and experts must be single ones. Borrows from `w`.
 */
bool whatif_scenario(const struct whatif *w, struct scenario_options *o, GError **error) G_GNUC_WARN_UNUSED_RESULT;

/* The same without model, machine, policy, gpus and experts, for commands that take lists of them. */
bool whatif_rest(const struct whatif *w, struct scenario_options *o, GError **error) G_GNUC_WARN_UNUSED_RESULT;

/* Parses the list of `option`: numbers, and ranges FIRST:LAST, FIRST:LAST:+STEP or FIRST:LAST:xFACTOR, commas between: "1,2,4", "8:512:x2". NULL
 * gives an empty list. list->v is owned by the caller. */
bool whatif_counts(const char *option, const char *text, struct ini_ints *list, GError **error) G_GNUC_WARN_UNUSED_RESULT;

/* Parses one number of `option` from min to max; leaves *value alone when text is NULL. */
bool whatif_count(const char *option, const char *text, int min, int max, int *value, GError **error) G_GNUC_WARN_UNUSED_RESULT;

/* Splits the names of `option` at commas. NULL on error (none given, an empty or repeated name). Free with g_strfreev. */
char **whatif_names(const char *option, const char *text, GError **error) G_GNUC_WARN_UNUSED_RESULT;

/* Parses the options; false also when words are left over. *argv keeps what GOption leaves. */
bool whatif_parse(GOptionContext *context, int argc, char **argv, GError **error) G_GNUC_WARN_UNUSED_RESULT;
