/* A row's first two cells say whose it is, so that a file of another network is found out. */
#include "places.h"

#include "model/error.h"

#include <string.h>

#define HEADER "layer,expert,last,pinned"

enum { LAYER, EXPERT, LAST, PINNED, CELLS };

static bool cells_of(const char *line, gint64 cells[CELLS])
{
	g_auto(GStrv) words = g_strsplit(line, ",", 0);
	bool ok = g_strv_length(words) == CELLS;
	for (int i = 0; ok && i < CELLS; i++)
		ok = g_ascii_string_to_signed(words[i], 10, -1, G_MAXINT, &cells[i], NULL);
	return ok;
}

struct expert_place *places_of(const char *csv, const char *file, const struct network *n, GError **error)
{
	g_auto(GStrv) lines = g_strsplit(csv, "\n", 0);
	g_autoptr(GArray) places = g_array_new(FALSE, TRUE, sizeof(struct expert_place));
	char *const *line = lines;
	if (!*line || strcmp(*line++, HEADER)) {
		g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_INPUT, "%s:1: expected %s", file, HEADER);
		return NULL;
	}
	for (int layer = 0; layer < n->layers; layer++)
		for (int e = 0; e < n->layer[layer].experts; e++, line += *line != NULL) {
			gint64 cells[CELLS];
			if (!*line || !cells_of(*line, cells) || cells[LAYER] != layer || cells[EXPERT] != e) {
				g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_INPUT,
				            "%s:%d: expected layer %d, expert %d, the GPU that computed it last and the one that keeps it, or -1",
				            file, (int)(line - lines) + 1, layer, e);
				return NULL;
			}
			const struct expert_place place = {(int)cells[LAST], (int)cells[PINNED]};
			g_array_append_val(places, place);
		}
	if (*line && **line) {
		g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_INPUT, "%s:%d: the network of run.ini has fewer experts", file, (int)(line - lines) + 1);
		return NULL;
	}
	return (struct expert_place *)(void *)g_array_free(g_steal_pointer(&places), FALSE);
}
