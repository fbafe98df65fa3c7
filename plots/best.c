/* A map: GPUs to the right, experts upwards, each place in the colour of the policy that trains fastest there. Only policies that are best somewhere
 * take a colour, so a sweep over many stays legible. Where nothing fits the place is grey; where the sweep has no row it is left white.
 *
 *     experts |  es-moe   | es-moe    | tutel     |
 *        64   | 9.1k 2.3x | 21k  1.7x | 48k  1.1x |
 *             |-----------+-----------+-----------|
 *         8   |  static   | static    | static    |
 *             +----- 1 ---+---- 2 ----+---- 4 ----+ GPUs */
#include "best.h"
#include "legend.h"
#include "model/error.h"
#include "palette.h"
#include "sweep_row.h"

#include <string.h>

#define MOST_PANELS 12
#define MOST_COLUMNS 16
#define MOST_ROWS 32
#define CELL_HEIGHT 26.0
#define CELL_GAP 0.8
#define LINE_PITCH 10.0 /* of the two lines in a cell */
#define AXIS_LEFT 46.0
#define AXIS_BELOW 34.0
#define TITLE_HEIGHT 22.0
#define TICK_GAP 6.0
#define TIE_SHADE 0.55
#define NOTHING 0xDDDDDDu

struct best {
	GPtrArray *panels, *policies; /* names; of panels owned, of policies those that are best somewhere, owned */
	GArray *gpus, *experts;       /* int, rising */
	struct best_cell *cell;       /* (panels, gpus, experts) */
};

static int compare_ints(gconstpointer a, gconstpointer b)
{
	return *(const int *)a - *(const int *)b;
}

static GArray *counts_of(const GArray *rows, bool gpus)
{
	GArray *counts = g_array_new(FALSE, FALSE, sizeof(int));

	for (guint i = 0; i < rows->len; i++) {
		const struct sweep_row *r = &g_array_index(rows, struct sweep_row, i);
		int n = (int)(gpus ? r->gpus : r->experts);

		g_array_append_val(counts, n);
	}
	g_array_sort(counts, compare_ints);
	for (guint i = counts->len; i-- > 1;)
		if (g_array_index(counts, int, i) == g_array_index(counts, int, i - 1))
			g_array_remove_index(counts, i);
	return counts;
}

static int index_of(const GArray *counts, int n)
{
	int i = 0;

	while (g_array_index(counts, int, i) != n)
		i++;
	return i;
}

static struct best_cell *cell_at(const struct best *b, int panel, int i, int j)
{
	return &b->cell[((size_t)panel * b->gpus->len + (size_t)i) * b->experts->len + (size_t)j];
}

struct best_cell best_at(const struct best *best, int panel, int i, int j)
{
	return *cell_at(best, panel, i, j);
}

static void enter(struct best_cell *cell, const struct sweep_row *r)
{
	if (!cell->there)
		cell->invalid = true;
	cell->there = true;
	cell->invalid = cell->invalid && r->status == SWEEP_INVALID;
	if (r->status != SWEEP_OK)
		return;
	if (!cell->policy || r->tokens_per_s > cell->tokens_per_s) {
		cell->next = cell->policy;
		cell->next_tokens_per_s = cell->tokens_per_s;
		cell->policy = r->policy;
		cell->tokens_per_s = r->tokens_per_s;
		cell->dropped = r->dropped;
	} else if (!cell->next || r->tokens_per_s > cell->next_tokens_per_s) {
		cell->next = r->policy;
		cell->next_tokens_per_s = r->tokens_per_s;
	}
}

static bool same_place(const struct sweep_row *a, const struct sweep_row *b)
{
	return a->gpus == b->gpus && a->experts == b->experts && !strcmp(a->policy, b->policy) && !strcmp(a->model, b->model) &&
	       !strcmp(a->machine, b->machine);
}

static guint place_hash(gconstpointer row)
{
	const struct sweep_row *r = row;

	return g_str_hash(r->policy) ^ 31 * g_str_hash(r->model) ^ 961 * g_str_hash(r->machine) ^ (guint)(r->gpus * 65599 + r->experts);
}

static gboolean place_equal(gconstpointer a, gconstpointer b)
{
	return same_place(a, b);
}

/* Only asked whether a place was there before: its order never matters. */
static bool places_check(const GArray *rows, GError **error)
{
	g_autoptr(GHashTable) seen = g_hash_table_new(place_hash, place_equal);

	for (guint i = 0; i < rows->len; i++) {
		struct sweep_row *r = &g_array_index(rows, struct sweep_row, i);

		if (g_hash_table_add(seen, r))
			continue;
		g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_INPUT, "two rows for policy '%s', %s on %s, %d GPUs, %d experts: a figure shows one",
		            r->policy, r->model, r->machine, (int)r->gpus, (int)r->experts);
		return false;
	}
	return true;
}

static bool sizes_check(const struct best *b, GError **error)
{
	if (b->panels->len <= MOST_PANELS && b->gpus->len <= MOST_COLUMNS && b->experts->len <= MOST_ROWS)
		return true;
	g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_INPUT,
	            "%u panels (a model on a machine), %u numbers of GPUs, %u of experts: a map has at most %d, %d and %d; draw a part of the rows",
	            b->panels->len, b->gpus->len, b->experts->len, MOST_PANELS, MOST_COLUMNS, MOST_ROWS);
	return false;
}

static char *panel_of(const struct sweep_row *r)
{
	return g_strdup_printf("%s on %s", r->model, r->machine);
}

static bool fill(struct best *b, const GArray *rows, GError **error)
{
	if (!rows->len) {
		g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_INPUT, "there are no rows to draw");
		return false;
	}
	for (guint i = 0; i < rows->len; i++) {
		g_autofree char *panel = panel_of(&g_array_index(rows, struct sweep_row, i));

		name_index(b->panels, panel);
	}
	b->gpus = counts_of(rows, true);
	b->experts = counts_of(rows, false);
	if (!sizes_check(b, error) || !places_check(rows, error))
		return false;
	b->cell = g_new0(struct best_cell, (gsize)b->panels->len * b->gpus->len * b->experts->len);
	for (guint i = 0; i < rows->len; i++) {
		const struct sweep_row *r = &g_array_index(rows, struct sweep_row, i);
		g_autofree char *panel = panel_of(r);

		enter(cell_at(b, name_index(b->panels, panel), index_of(b->gpus, (int)r->gpus), index_of(b->experts, (int)r->experts)), r);
	}
	for (guint i = 0; i < b->panels->len * b->gpus->len * b->experts->len; i++)
		if (b->cell[i].policy)
			name_index(b->policies, b->cell[i].policy);
	return true;
}

struct best *best_new(struct csv *const *files, int n_files, GError **error)
{
	g_autoptr(GArray) rows = g_array_new(FALSE, FALSE, sizeof(struct sweep_row));
	g_autoptr(best) b = g_new0(struct best, 1);

	b->panels = g_ptr_array_new_with_free_func(g_free);
	b->policies = g_ptr_array_new_with_free_func(g_free);
	for (int i = 0; i < n_files; i++)
		if (!sweep_rows_read(files[i], rows, error))
			return NULL;
	return fill(b, rows, error) ? g_steal_pointer(&b) : NULL;
}

void best_free(struct best *best)
{
	if (!best)
		return;
	g_ptr_array_unref(best->panels);
	g_ptr_array_unref(best->policies);
	if (best->gpus)
		g_array_unref(best->gpus);
	if (best->experts)
		g_array_unref(best->experts);
	g_free(best->cell);
	g_free(best);
}

static bool is_tie(const struct best_cell *cell)
{
	return cell->next && cell->next_tokens_per_s >= (1 - BEST_TIE) * cell->tokens_per_s;
}

/* Two digits at least: 940, 9.4k, 94k, 0.94M. */
static char *speed_text(double tokens_per_s)
{
	double k = tokens_per_s / 1e3;

	if (k < 1)
		return g_strdup_printf("%.0f", tokens_per_s);
	return k >= 1e3 ? g_strdup_printf("%.1fM", k / 1e3) : g_strdup_printf(k < 9.95 ? "%.1fk" : "%.0fk", k);
}

struct drawing {
	const struct best *best;
	struct figure *figure;
};

/* Tokens/s and how far the next is behind: its name in a tie, otherwise the ratio. Owned by the caller. */
static char *second_line(const struct best_cell *cell, double width)
{
	g_autofree char *speed = speed_text(cell->tokens_per_s), *more = NULL;

	if (is_tie(cell))
		more = g_strdup_printf("%s ≈ %s", speed, cell->next);
	else if (cell->next)
		more = g_strdup_printf(cell->tokens_per_s < 9.95 * cell->next_tokens_per_s ? "%s  %.1f×" : "%s  %.0f×", speed,
		                       cell->tokens_per_s / cell->next_tokens_per_s);
	if (more && text_width(more, TEXT_SMALL) <= width)
		return g_steal_pointer(&more);
	return text_width(speed, TEXT_SMALL) <= width ? g_steal_pointer(&speed) : g_strdup("");
}

static void draw_text(struct drawing *d, const struct best_cell *cell, double x, double y, double width, uint32_t ink)
{
	g_autofree char *drops = cell->dropped >= BEST_DROPPED ? g_strdup_printf(" −%.0f %%", 100 * cell->dropped) : g_strdup("");
	g_autofree char *policy = text_fit(cell->policy, TEXT_SMALL, width - 4 - text_width(drops, TEXT_SMALL));
	g_autofree char *name = g_strconcat(policy, drops, NULL), *second = second_line(cell, width - 4);

	figure_text(d->figure, x, y + LINE_PITCH / 2, TEXT_CENTRE, TEXT_SMALL, ink, name);
	figure_text(d->figure, x, y - LINE_PITCH / 2, TEXT_CENTRE, TEXT_SMALL, ink, second);
}

static void draw_cell(struct drawing *d, const struct best_cell *cell, double left, double bottom, double width)
{
	uint32_t rgb = NOTHING;

	if (!cell->there)
		return;
	if (cell->policy) {
		rgb = palette_series(name_index(d->best->policies, cell->policy));
		rgb = is_tie(cell) ? palette_shade(rgb, TIE_SHADE) : rgb;
	}
	figure_box(d->figure, left + CELL_GAP / 2, bottom + CELL_GAP / 2, width - CELL_GAP, CELL_HEIGHT - CELL_GAP, rgb);
	if (cell->policy)
		draw_text(d, cell, left + width / 2, bottom + CELL_HEIGHT / 2, width, palette_ink(rgb));
	else
		figure_text(d->figure, left + width / 2, bottom + CELL_HEIGHT / 2, TEXT_CENTRE, TEXT_SMALL, PALETTE_FAINT,
		            cell->invalid ? "–" : "OOM");
}

static void draw_panel(struct drawing *d, int panel, double left, double bottom, double width)
{
	const struct best *b = d->best;
	int columns = (int)b->gpus->len, rows = (int)b->experts->len;
	double cell = width / columns, top = bottom + rows * CELL_HEIGHT;
	g_autofree char *title = text_fit(g_ptr_array_index(b->panels, panel), TEXT_SIZE, width);

	figure_text(d->figure, left, top + TITLE_HEIGHT / 2 - 1, TEXT_LEFT, TEXT_SIZE, 0, title);
	for (int i = 0; i < columns; i++) {
		int gpus = g_array_index(b->gpus, int, i);
		g_autofree char *tick = g_strdup_printf("%d GPU%s", gpus, gpus > 1 ? "s" : "");

		for (int j = 0; j < rows; j++)
			draw_cell(d, cell_at(b, panel, i, j), left + i * cell, bottom + j * CELL_HEIGHT, cell);
		figure_text(d->figure, left + (i + 0.5) * cell, bottom - TICK_GAP - 3, TEXT_CENTRE, TEXT_SMALL, 0, tick);
	}
	for (int j = 0; j < rows; j++) {
		g_autofree char *tick = g_strdup_printf("%d", g_array_index(b->experts, int, j));

		figure_text(d->figure, left - TICK_GAP, bottom + (j + 0.5) * CELL_HEIGHT, TEXT_RIGHT, TEXT_SMALL, 0, tick);
	}
	figure_text(d->figure, left - TICK_GAP, top + TITLE_HEIGHT / 2 - 1, TEXT_RIGHT, TEXT_SMALL, PALETTE_FAINT, "experts");
}

static struct legend *legend_of(const struct best *b)
{
	struct legend *legend = legend_new();
	uint32_t rgb, grey[2] = {0x777777, palette_shade(0x777777, TIE_SHADE)};

	for (guint i = 0; i < b->policies->len; i++) {
		rgb = palette_series((int)i);
		legend_add(legend, g_ptr_array_index(b->policies, i), &rgb, 1);
	}
	legend_add(legend, "any colour: ahead by more than 5 %, or less", grey, 2);
	rgb = NOTHING;
	bool drops = false;

	for (guint i = 0; i < b->panels->len * b->gpus->len * b->experts->len; i++)
		drops |= b->cell[i].dropped >= BEST_DROPPED;
	rgb = NOTHING;
	legend_add(legend,
	           drops ? "OOM: fits no system; –: has no meaning in any; −7 %: drops 7 % of its tokens"
	                 : "OOM: fits no system; –: has no meaning in any",
	           &rgb, 1);
	return legend;
}

bool plot_best(struct csv *const *files, int n_files, const char *out, GError **error)
{
	g_autoptr(best) b = figure_name_check(out, error) ? best_new(files, n_files, error) : NULL;

	if (!b)
		return false;
	g_autoptr(legend) legend = legend_of(b);
	double width = FIGURE_WIDTH - 2 * FIGURE_MARGIN, key = FIGURE_MARGIN + legend_height(legend, width);
	double pitch = TITLE_HEIGHT + b->experts->len * CELL_HEIGHT + AXIS_BELOW, left = FIGURE_MARGIN + AXIS_LEFT;
	g_autoptr(figure) f = figure_new(FIGURE_WIDTH, key + b->panels->len * pitch);
	struct drawing d = {.best = b, .figure = f};

	for (int panel = 0; panel < (int)b->panels->len; panel++)
		draw_panel(&d, panel, left, key + ((int)b->panels->len - 1 - panel) * pitch + AXIS_BELOW, FIGURE_WIDTH - FIGURE_MARGIN - left);
	legend_draw(legend, f, FIGURE_MARGIN, key, width);
	return figure_write(f, "best", out, error);
}
