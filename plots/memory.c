/* One panel a tier under each other, each with its own scale, because the tiers differ a hundredfold:
 *
 *     HBM         es-moe  [parameters|activations|buffers]    |        31.2 of 40 GiB
 *     host DRAM   es-moe  [parameters|optimizer          ]         |   380 of 500 GiB
 */
#include "memory.h"
#include "model/error.h"
#include "model/schedule.h"
#include "palette.h"

#include <string.h>

#define PITCH 16.0
#define AXIS_HEIGHT 30.0
#define LAST_AXIS_HEIGHT 40.0 /* with the axis' name */
#define TITLE_HEIGHT 18.0
#define NAME_MOST 200.0
#define NAME_GAP 5.0
#define SUM_GAP 8.0
#define PAGEABLE_SHADE 0.5
#define MOST_BARS 64

struct tier_panel {
	const char *title;
	int tiers[2], n_tiers;
};

static const struct tier_panel panels[] = {
    {"HBM of the fullest GPU", {TIER_HBM}, 1}, {"DRAM of the fullest node", {TIER_PINNED, TIER_DRAM}, 2}, {"SSD of the fullest node", {TIER_SSD}, 1}};

static int name_parse(const char *word, const char *(*name)(int), int n)
{
	for (int i = 0; i < n; i++)
		if (!g_ascii_strcasecmp(word, name(i)))
			return i;
	return -1;
}

static bool name_read(const struct csv *csv, int row, int column, const char *(*name)(int), int n, int *value, GError **error)
{
	g_autoptr(GString) accepted = g_string_new(NULL);

	*value = name_parse(csv_text(csv, row, column), name, n);
	if (*value >= 0)
		return true;
	for (int i = 0; i < n; i++)
		g_string_append_printf(accepted, "%s%s", i == 0 ? "" : i + 1 < n ? ", " : " or ", name(i));
	g_string_append(accepted, " is expected");
	return csv_complain(csv, row, column, accepted->str, error);
}

bool memory_read(const struct csv *csv, struct memory *memory, GError **error)
{
	static const char *const names[] = {"tier", "class", "bytes", "room"};
	bool seen[N_TIERS][N_CLASSES] = {{false}}, room_seen[N_TIERS] = {false};
	int column[G_N_ELEMENTS(names)];

	memset(memory, 0, sizeof *memory);
	for (size_t i = 0; i < G_N_ELEMENTS(names); i++) {
		column[i] = csv_column(csv, names[i], error);
		if (column[i] < 0)
			return false;
	}
	for (int row = 0; row < csv_rows(csv); row++) {
		int tier, class;
		guint64 bytes, room;

		if (!name_read(csv, row, column[0], memory_tier_name, N_TIERS, &tier, error) ||
		    !name_read(csv, row, column[1], memory_class_name, N_CLASSES, &class, error) ||
		    !csv_whole(csv, row, column[2], 0, G_MAXINT64, &bytes, error) || !csv_whole(csv, row, column[3], 0, G_MAXINT64, &room, error))
			return false;
		if (seen[tier][class])
			return csv_complain(csv, row, column[1], "this tier has a row of that class already", error);
		if (room_seen[tier] && memory->room[tier] != room)
			return csv_complain(csv, row, column[3], "this tier's other rows have another room", error);
		seen[tier][class] = room_seen[tier] = true;
		memory->bytes[tier][class] = bytes;
		memory->room[tier] = room;
	}
	return true;
}

bool memory_of_trace(const struct trace *trace, const char *file, struct memory *memory, GError **error)
{
	g_autoptr(scenario) scenario = NULL;
	g_autoptr(schedule) schedule = NULL;

	if (!trace->description || !*trace->description) {
		g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_INPUT, "%s: the trace does not describe its run, so its memory is unknown", file);
		return false;
	}
	scenario = scenario_from_ini(trace->description, file, "uniform", error);
	if (!scenario)
		return false;
	schedule = schedule_new(scenario, NULL, error);
	if (!schedule)
		return false;
	*memory = *schedule_memory(schedule);
	return true;
}

static double gib(uint64_t bytes)
{
	return (double)bytes / GIB;
}

static uint64_t panel_bytes(const struct tier_panel *panel, const struct memory *m)
{
	uint64_t sum = 0;

	for (int t = 0; t < panel->n_tiers; t++)
		for (int class = 0; class < N_CLASSES; class ++)
			sum += m->bytes[panel->tiers[t]][class];
	return sum;
}

/* Pinned memory shares the room of DRAM; a file may state it in either tier's rows. */
static uint64_t panel_room(const struct tier_panel *panel, const struct memory *m)
{
	uint64_t room = 0;

	for (int t = 0; t < panel->n_tiers; t++)
		room = MAX(room, m->room[panel->tiers[t]]);
	return room;
}

struct drawing {
	const struct memory_bar *bars;
	int n;
	bool used[N_CLASSES][2]; /* class; pinned or HBM or SSD, pageable */
	GString *boxes, *rooms;
};

static uint32_t class_rgb(int class, bool pageable)
{
	return palette_shade(palette_series(class), pageable ? PAGEABLE_SHADE : 0);
}

static double bar_y(const struct drawing *d, int bar)
{
	return (d->n - bar - 0.5) * PITCH;
}

static void stack_bar(struct drawing *d, const struct tier_panel *panel, int bar)
{
	const struct memory *m = &d->bars[bar].memory;
	double at = 0, y = bar_y(d, bar), half = PITCH * 0.41, room = gib(panel_room(panel, m));

	for (int class = 0; class < N_CLASSES; class ++)
		for (int t = 0; t < panel->n_tiers; t++) {
			int tier = panel->tiers[t];
			double width = gib(m->bytes[tier][class]);

			if (width <= 0)
				continue;
			g_string_append_printf(d->boxes, "%.9g\t%.9g\t%.3f\t%.3f\t%u\n", at, at + width, y - half, y + half,
			                       class_rgb(class, tier == TIER_DRAM));
			d->used[class][tier == TIER_DRAM] = true;
			at += width;
		}
	if (room > 0)
		g_string_append_printf(d->rooms, "%.9g\t%.3f\t0\t%.3f\n", room, y - PITCH / 2, PITCH);
}

static void draw_legend(const struct drawing *d, struct legend *legend)
{
	bool both = false;
	const uint32_t greys[2] = {0x777777, palette_shade(0x777777, PAGEABLE_SHADE)}, black = 0;

	for (int class = 0; class < N_CLASSES; class ++) {
		uint32_t rgb[2];
		int n = 0;

		for (int pageable = 0; pageable < 2; pageable++)
			if (d->used[class][pageable])
				rgb[n++] = class_rgb(class, pageable);
		both |= d->used[class][1];
		if (n)
			legend_add(legend, memory_class_name(class), rgb, n);
	}
	if (both)
		legend_add(legend, "any colour: pinned, pageable", greys, 2);
	legend_add_line(legend, "capacity", black);
}

/* Names left of the bars, sums right of them. */
static void label_bars(const struct drawing *d, const struct tier_panel *panel, struct figure *f, const struct panel_place *place)
{
	for (int i = 0; i < d->n; i++) {
		uint64_t need = panel_bytes(panel, &d->bars[i].memory), room = panel_room(panel, &d->bars[i].memory);
		g_autofree char *name = text_fit(d->bars[i].name, TEXT_SIZE, NAME_MOST);
		g_autofree char *sum = room ? g_strdup_printf("%.4g of %.4g GiB", gib(need), gib(room)) : g_strdup_printf("%.4g GiB", gib(need));

		figure_text(f, place->left - NAME_GAP, place->bottom + bar_y(d, i), TEXT_RIGHT, TEXT_SIZE, 0, name);
		figure_text(f, FIGURE_WIDTH - FIGURE_MARGIN, place->bottom + bar_y(d, i), TEXT_RIGHT, TEXT_SIZE, need > room && room ? 0xC00000 : 0,
		            sum);
	}
}

static double panel_to(const struct drawing *d, const struct tier_panel *panel)
{
	double to = 0;

	for (int i = 0; i < d->n; i++)
		to = MAX(to, MAX(gib(panel_bytes(panel, &d->bars[i].memory)), gib(panel_room(panel, &d->bars[i].memory))));
	return to > 0 ? to * 1.03 : 1;
}

static bool panel_used(const struct drawing *d, const struct tier_panel *panel)
{
	for (int i = 0; i < d->n; i++)
		if (panel_bytes(panel, &d->bars[i].memory) > 0)
			return true;
	return panel == &panels[0];
}

/* The widths that names and sums need on either side. */
static void measure_sides(const struct drawing *d, double *left, double *right)
{
	*left = 0;
	for (int i = 0; i < d->n; i++)
		*left = MAX(*left, MIN(NAME_MOST, text_width(d->bars[i].name, TEXT_SIZE)));
	*left += FIGURE_MARGIN + NAME_GAP;
	*right = FIGURE_WIDTH - FIGURE_MARGIN - SUM_GAP - text_width("88888 of 88888 GiB", TEXT_SIZE);
}

static bool draw(struct drawing *d, const char *out, GError **error)
{
	double left, right, width = FIGURE_WIDTH - 2 * FIGURE_MARGIN, pitch = TITLE_HEIGHT + d->n * PITCH + AXIS_HEIGHT, key,
	                    to[G_N_ELEMENTS(panels)];
	const struct tier_panel *shown[G_N_ELEMENTS(panels)];
	struct panel_place places[G_N_ELEMENTS(panels)];
	g_autoptr(legend) legend = legend_new();
	g_autoptr(figure) f = NULL;
	int n = 0;

	measure_sides(d, &left, &right);
	for (size_t i = 0; i < G_N_ELEMENTS(panels); i++)
		if (panel_used(d, &panels[i]))
			shown[n++] = &panels[i];
	for (int i = 0; i < n; i++) {
		to[i] = panel_to(d, shown[i]);
		g_string_append(d->boxes, "0\t0\t0\t0\t0\n"); /* gnuplot refuses an index without rows */
		g_string_append(d->rooms, "-1\t0\t0\t0\n");
		for (int bar = 0; bar < d->n; bar++)
			stack_bar(d, shown[i], bar);
		g_string_append(d->boxes, "\n\n");
		g_string_append(d->rooms, "\n\n");
	}
	draw_legend(d, legend);
	key = FIGURE_MARGIN + legend_height(legend, width) + LAST_AXIS_HEIGHT - AXIS_HEIGHT;
	f = figure_new(FIGURE_WIDTH, key + n * pitch);
	for (int i = 0; i < n; i++) {
		double bottom = key + (n - 1 - i) * pitch + AXIS_HEIGHT;

		places[i] = (struct panel_place){.left = left, .right = right, .bottom = bottom, .top = bottom + d->n * PITCH};
		figure_text(f, left, places[i].top + TITLE_HEIGHT / 2, TEXT_LEFT, TEXT_SIZE, 0, shown[i]->title);
		label_bars(d, shown[i], f, &places[i]);
	}
	figure_panels(f, places, n);
	figure_array(f, "to", to, n);
	figure_number(f, "height", d->n * PITCH);
	figure_data(f, "boxes", d->boxes->str);
	figure_data(f, "rooms", d->rooms->str);
	legend_draw(legend, f, FIGURE_MARGIN, FIGURE_MARGIN + legend_height(legend, width), width);
	return figure_write(f, "memory", out, error);
}

bool plot_memory(const struct memory_bar *bars, int n, const char *out, GError **error)
{
	struct drawing d = {.bars = bars, .n = n};
	bool ok;

	if (!figure_name_check(out, error))
		return false;
	if (n < 1 || n > MOST_BARS) {
		g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_USAGE, "%d inputs: a memory figure shows 1 to %d", n, MOST_BARS);
		return false;
	}
	d.boxes = g_string_new(NULL);
	d.rooms = g_string_new(NULL);
	ok = draw(&d, out, error);
	g_string_free(d.boxes, TRUE);
	g_string_free(d.rooms, TRUE);
	return ok;
}
