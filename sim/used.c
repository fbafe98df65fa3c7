/* Rows of memory.csv are read by the names of their columns: runs of earlier versions have fewer. */
#include "used.h"

#include "model/error.h"

#include <string.h>

static const struct {
	int tier;
	const char *column;
	bool of_process;
} columns[] = {
    {TIER_HBM, "hbm_bytes", false}, {TIER_PINNED, "pinned_bytes", true}, {TIER_DRAM, "pageable_bytes", true}, {TIER_SSD, "ssd_bytes", true}};

static int column_of(char *const *names, const char *name)
{
	for (int i = 0; names[i]; i++)
		if (!strcmp(names[i], name))
			return i;
	return -1;
}

static bool most_of(char *const *lines, int column, const char *file, uint64_t *most, GError **error)
{
	*most = 0;
	for (int i = 1; lines[i] && *lines[i]; i++) {
		g_auto(GStrv) cells = g_strsplit(lines[i], ",", 0);
		guint64 value = 0;
		if (column >= (int)g_strv_length(cells) || !g_ascii_string_to_unsigned(cells[column], 10, 0, G_MAXUINT64, &value, NULL)) {
			g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_INPUT, "%s:%d: a number of bytes is expected in column %d", file, i + 1,
			            column + 1);
			return false;
		}
		*most = MAX(*most, value);
	}
	return true;
}

GArray *used_of(const char *csv, const char *file, const struct memory *plan, int nodes, GError **error)
{
	g_auto(GStrv) lines = g_strsplit(csv, "\n", 0), names = g_strsplit(*lines ? *lines : "", ",", 0);
	g_autoptr(GArray) rows = g_array_new(FALSE, FALSE, sizeof(struct used));
	for (size_t i = 0; i < G_N_ELEMENTS(columns); i++) {
		struct used u = {.tier = columns[i].tier, .predicted_bytes = memory_total(plan, columns[i].tier)};
		int column = column_of(names, columns[i].column);
		if (column < 0 || (columns[i].of_process && nodes > 1))
			continue;
		if (!most_of(lines, column, file, &u.measured_bytes, error))
			return NULL;
		if (u.measured_bytes + u.predicted_bytes > 0)
			g_array_append_val(rows, u);
	}
	return g_steal_pointer(&rows);
}

double used_error(const struct used *u)
{
	return u->measured_bytes ? (double)u->predicted_bytes / (double)u->measured_bytes - 1 : 0;
}
