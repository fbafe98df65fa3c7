/* Strict: a row that is not understood is an error, because a figure that leaves it out would lie. */
#include "sweep_row.h"

#include <string.h>

static bool status_read(const struct csv *csv, int row, int column, enum sweep_status *status, GError **error)
{
	static const struct {
		const char *word;
		enum sweep_status status;
	} words[] = {{"ok", SWEEP_OK}, {"oom_hbm", SWEEP_OOM}, {"oom_dram", SWEEP_OOM}, {"oom_ssd", SWEEP_OOM}, {"invalid", SWEEP_INVALID}};

	for (size_t i = 0; i < G_N_ELEMENTS(words); i++)
		if (!strcmp(csv_text(csv, row, column), words[i].word)) {
			*status = words[i].status;
			return true;
		}
	return csv_complain(csv, row, column, "ok, oom_hbm, oom_dram, oom_ssd or invalid is expected", error);
}

bool sweep_rows_read(const struct csv *csv, GArray *rows, GError **error)
{
	static const char *const names[] = {"policy", "model", "machine", "gpus", "experts", "tokens_per_s", "status"};
	int column[G_N_ELEMENTS(names)];

	for (size_t i = 0; i < G_N_ELEMENTS(names); i++) {
		column[i] = csv_column(csv, names[i], error);
		if (column[i] < 0)
			return false;
	}
	int dropped = csv_column(csv, "dropped_share", NULL);
	for (int row = 0; row < csv_rows(csv); row++) {
		struct sweep_row r = {0};

		r.policy = csv_text(csv, row, column[0]);
		r.model = csv_text(csv, row, column[1]);
		r.machine = csv_text(csv, row, column[2]);
		for (int i = 0; i < 3; i++)
			if (!*csv_text(csv, row, column[i]))
				return csv_complain(csv, row, column[i], "a name is expected", error);
		if (!csv_whole(csv, row, column[3], 1, G_MAXINT32, &r.gpus, error) ||
		    !csv_whole(csv, row, column[4], 1, G_MAXINT32, &r.experts, error) || !status_read(csv, row, column[6], &r.status, error))
			return false;
		if (r.status == SWEEP_OK && !csv_number(csv, row, column[5], 0, 1e15, &r.tokens_per_s, error))
			return false;
		if (r.status == SWEEP_OK && dropped >= 0 && !csv_number(csv, row, dropped, 0, 1, &r.dropped, error))
			return false;
		g_array_append_val(rows, r);
	}
	return true;
}

int name_index(GPtrArray *names, const char *name)
{
	for (guint i = 0; i < names->len; i++)
		if (!strcmp(g_ptr_array_index(names, i), name))
			return (int)i;
	g_ptr_array_add(names, g_strdup(name));
	return (int)names->len - 1;
}
