/* Entries flow like words: as many as fit on a row, then the next row. A name that no row could hold is shortened. */
#include "legend.h"

#define SWATCH 9.0
#define SWATCH_GAP 1.0
#define MARKER_WIDTH 22.0
#define NAME_GAP 4.0
#define ENTRY_GAP 16.0
#define ROW_HEIGHT 14.0

struct entry {
	char *name;
	uint32_t rgb[LEGEND_SWATCHES];
	int n, marker; /* marker 0: swatches */
	bool lone;     /* the marker has no line */
};

struct legend {
	GArray *entries;
};

static void entry_clear(void *entry)
{
	g_free(((struct entry *)entry)->name);
}

struct legend *legend_new(void)
{
	struct legend *legend = g_new0(struct legend, 1);

	legend->entries = g_array_new(FALSE, TRUE, sizeof(struct entry));
	g_array_set_clear_func(legend->entries, entry_clear);
	return legend;
}

void legend_free(struct legend *legend)
{
	if (!legend)
		return;
	g_array_unref(legend->entries);
	g_free(legend);
}

void legend_add(struct legend *legend, const char *name, const uint32_t *rgb, int n)
{
	struct entry entry = {.name = g_strdup(name), .n = n};

	g_assert(n >= 1 && n <= LEGEND_SWATCHES);
	for (int i = 0; i < n; i++)
		entry.rgb[i] = rgb[i];
	g_array_append_val(legend->entries, entry);
}

void legend_add_marker(struct legend *legend, const char *name, int marker, uint32_t rgb)
{
	struct entry entry = {.name = g_strdup(name), .n = 1, .marker = marker, .rgb = {rgb}};

	g_array_append_val(legend->entries, entry);
}

void legend_add_cross(struct legend *legend, const char *name, uint32_t rgb)
{
	struct entry entry = {.name = g_strdup(name), .n = 1, .marker = FIGURE_CROSS, .lone = true, .rgb = {rgb}};

	g_array_append_val(legend->entries, entry);
}

void legend_add_line(struct legend *legend, const char *name, uint32_t rgb)
{
	struct entry entry = {.name = g_strdup(name), .n = 1, .marker = FIGURE_NO_POINT, .rgb = {rgb}};

	g_array_append_val(legend->entries, entry);
}

static double swatches_width(const struct entry *entry)
{
	return entry->marker ? MARKER_WIDTH : entry->n * (SWATCH + SWATCH_GAP) - SWATCH_GAP;
}

static double entry_width(const struct entry *entry)
{
	return swatches_width(entry) + NAME_GAP + text_width(entry->name, TEXT_SIZE) + ENTRY_GAP;
}

static void entry_draw(const struct entry *entry, struct figure *f, double x, double y, double room)
{
	double left = swatches_width(entry) + NAME_GAP;
	g_autofree char *name = text_fit(entry->name, TEXT_SIZE, room - left);

	if (entry->marker)
		figure_marker(f, x + MARKER_WIDTH / 2, y, entry->lone ? 0 : MARKER_WIDTH, entry->marker, entry->rgb[0]);
	else
		for (int i = 0; i < entry->n; i++)
			figure_box(f, x + i * (SWATCH + SWATCH_GAP), y - SWATCH / 2, SWATCH, SWATCH, entry->rgb[i]);
	figure_text(f, x + left, y, TEXT_LEFT, TEXT_SIZE, 0, name);
}

/* Walks the entries through the rows; draws them when there is a figure. Returns the number of rows. */
static int flow(const struct legend *legend, struct figure *f, double x0, double top, double width)
{
	double x = 0;
	int row = 0;

	for (guint i = 0; i < legend->entries->len; i++) {
		const struct entry *entry = &g_array_index(legend->entries, struct entry, i);
		double w = entry_width(entry);

		if (x > 0 && x + w - ENTRY_GAP > width) {
			x = 0;
			row++;
		}
		if (f)
			entry_draw(entry, f, x0 + x, top - (row + 0.5) * ROW_HEIGHT, width - x);
		x += w;
	}
	return legend->entries->len ? row + 1 : 0;
}

double legend_height(const struct legend *legend, double width)
{
	return flow(legend, NULL, 0, 0, width) * ROW_HEIGHT;
}

void legend_draw(const struct legend *legend, struct figure *f, double x, double top, double width)
{
	flow(legend, f, x, top, width);
}
