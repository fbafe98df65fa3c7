/* Rows of boxes under a common time axis, one or two panels wide:
 *
 *               layer 12, forward          layer 12, backward
 *     GPU 0   compute   |==|0|1|2|3|==|    |==|3|2|1|0|===|
 *             upload    |0|1|2|3|          |3|2|1|0|
 *     host  optimizer                           |3|2|1|0|
 *                       time (ms)          time (ms)
 *
 * Boxes thinner than a hair are gathered: each stretch of a hair's width becomes one box, as wide as the time covered in it, in the colour that
 * covers most. So a step of a million spans is a picture of bounded size that neither hides nor invents busy time. */
#include "timeline.h"
#include "palette.h"

#include <math.h>

#define HAIR 0.4 /* points */
#define HAIR_COLOURS 8
#define BOX_GAP 0.5
#define LABEL_PADDING 2.0
#define TEXT_TINY 5.0 /* for many experts; of timeline.gp */
#define TINY_PADDING 0.5
#define PITCH_MOST 16.0
#define PITCH_LEAST 9.0
#define ROWS_HEIGHT 420.0
#define GROUP_GAP 6.0
#define PANEL_GAP 26.0
#define TITLE_HEIGHT 20.0
#define AXIS_HEIGHT 36.0
#define NOTE_HEIGHT 14.0
#define PANEL_LEAST 0.2 /* of the width, however short the pass */

struct hair {
	nsec_t start; /* of the stretch; INT64_MIN: none open */
	nsec_t covered[HAIR_COLOURS];
	uint32_t rgb[HAIR_COLOURS];
	int n;
};

struct panel {
	struct timeline_window window;
	struct panel_place place; /* left and right; the heights come last */
	double points_per_ns;
	nsec_t open_from, open_to; /* a run of gathered boxes of one colour that may still grow */
	uint32_t open_rgb;
	struct hair hair;
};

struct drawing {
	const struct trace *trace;
	GArray *rows; /* struct row */
	double *y;    /* middle of each row */
	double pitch, label_width;
	GString *boxes, *texts, *small_texts; /* data rows, panel after panel */
	struct panel panel[2];
	int n_panels;
	struct palette_use use;
	bool names_layers; /* some label says layer/expert */
};

static double ms(nsec_t ns)
{
	return (double)ns / (double)NSEC_PER_MSEC;
}

static void append_box(struct drawing *d, struct panel *p, guint row, double from_ms, double to_ms, uint32_t rgb)
{
	double half = d->pitch * 0.41;

	g_string_append_printf(d->boxes, "%.7f\t%.7f\t%.3f\t%.3f\t%u\n", from_ms, to_ms, d->y[row] - half, d->y[row] + half, rgb);
}

static void close_run(struct drawing *d, struct panel *p, guint row)
{
	if (p->open_to > p->open_from)
		append_box(d, p, row, ms(p->open_from), ms(p->open_to), p->open_rgb);
	p->open_from = p->open_to = 0;
}

/* Turns the open hair into a box, or into the end of the run before it. */
static void close_hair(struct drawing *d, struct panel *p, guint row)
{
	struct hair *h = &p->hair;
	nsec_t covered = 0;
	int most = 0;

	if (h->start == INT64_MIN)
		return;
	for (int i = 0; i < h->n; i++) {
		covered += h->covered[i];
		most = h->covered[i] > h->covered[most] ? i : most;
	}
	if (p->open_to <= p->open_from || p->open_rgb != h->rgb[most] || (double)(h->start - p->open_to) * p->points_per_ns > HAIR / 8) {
		close_run(d, p, row);
		p->open_from = h->start;
		p->open_rgb = h->rgb[most];
	}
	p->open_to = h->start + covered;
	h->start = INT64_MIN;
	h->n = 0;
}

static void gather(struct drawing *d, struct panel *p, guint row, nsec_t from, nsec_t to, uint32_t rgb)
{
	struct hair *h = &p->hair;
	nsec_t width = MAX(1, (nsec_t)(HAIR / p->points_per_ns)), start = p->window.from_ns + (from - p->window.from_ns) / width * width;
	int i = 0;

	if (h->start != start) {
		close_hair(d, p, row);
		h->start = start;
	}
	while (i < h->n && h->rgb[i] != rgb)
		i++;
	if (i == HAIR_COLOURS)
		i = 0; /* more colours than a hair can show: the first takes the time, so that the covered share stays right */
	if (i == h->n) {
		h->rgb[h->n] = rgb;
		h->covered[h->n++] = 0;
	}
	h->covered[i] += to - from;
}

/* The longest text that fits: an expert's number, with its layer when that is not the panel's, or the stage's name. */
static void append_label(struct drawing *d, struct panel *p, guint row, const struct span *span, nsec_t from, nsec_t to)
{
	double room = (double)(to - from) * p->points_per_ns - BOX_GAP;
	bool elsewhere = span->layer != p->window.layer && span->kind != STAGE_EMBED && span->kind != STAGE_HEAD;
	g_autofree char *kind = palette_kind_label(span->kind), *text = NULL;
	GString *rows;

	if (span->expert >= 0)
		text = elsewhere ? g_strdup_printf("%d/%d", span->layer, span->expert) : g_strdup_printf("%d", span->expert);
	else
		text = elsewhere ? g_strdup_printf("%s %d", kind, span->layer) : g_strdup(kind);
	if (text_width(text, TEXT_TINY) + TINY_PADDING > room)
		return;
	rows = text_width(text, TEXT_SMALL) + LABEL_PADDING > room ? d->small_texts : d->texts;
	d->names_layers |= elsewhere && span->expert >= 0;
	g_string_append_printf(rows, "%.7f\t%.3f\t", (ms(from) + ms(to)) / 2, d->y[row]);
	text_field(rows, text);
	g_string_append_printf(rows, "\t%u\n", palette_ink(palette_stage(span->kind, span->pass)));
}

static void draw_span(struct drawing *d, struct panel *p, guint row, const struct span *span, nsec_t start, nsec_t end)
{
	nsec_t from = MAX(start, p->window.from_ns), to = MIN(end, p->window.to_ns);
	uint32_t rgb = palette_stage(span->kind, span->pass);
	double points = (double)(to - from) * p->points_per_ns, gap = points > 4 * BOX_GAP ? BOX_GAP / p->points_per_ns : 0;

	d->use.stage[span->kind][span->pass] = true;
	if (points < HAIR) {
		gather(d, p, row, from, to, rgb);
		return;
	}
	close_hair(d, p, row);
	close_run(d, p, row);
	append_box(d, p, row, ms(from), ((double)to - gap) / (double)NSEC_PER_MSEC, rgb);
	append_label(d, p, row, span, from, to);
}

struct piece {
	nsec_t start, end;
	const struct span *span;
};

static int compare_pieces(gconstpointer a, gconstpointer b)
{
	const struct piece *x = a, *y = b;

	if (x->start != y->start)
		return x->start < y->start ? -1 : 1;
	return (x->span->id > y->span->id) - (x->span->id < y->span->id);
}

/* What of a row lies in a window, in order of time. */
static GArray *pieces_of(const struct trace *trace, const struct row *row, const struct timeline_window *window)
{
	GArray *pieces = g_array_new(FALSE, FALSE, sizeof(struct piece));

	for (guint i = 0; i < trace->spans->len; i++) {
		struct piece piece = {.span = &g_array_index(trace->spans, struct span, i)};

		if (row_holds(row, piece.span, &piece.start, &piece.end) && piece.end > piece.start && piece.end > window->from_ns &&
		    piece.start < window->to_ns)
			g_array_append_val(pieces, piece);
	}
	g_array_sort(pieces, compare_pieces);
	return pieces;
}

static void draw_rows(struct drawing *d, struct panel *p)
{
	p->hair.start = INT64_MIN;
	for (guint row = 0; row < d->rows->len; row++) {
		g_autoptr(GArray) pieces = pieces_of(d->trace, &g_array_index(d->rows, struct row, row), &p->window);

		for (guint i = 0; i < pieces->len; i++) {
			const struct piece *piece = &g_array_index(pieces, struct piece, i);

			draw_span(d, p, row, piece->span, piece->start, piece->end);
		}
		close_hair(d, p, row);
		close_run(d, p, row);
	}
	/* gnuplot refuses an index without rows: one box of no width and one empty text */
	g_string_append_printf(d->boxes, "%.7f\t%.7f\t0\t0\t0\n\n\n", ms(p->window.from_ns), ms(p->window.from_ns));
	g_string_append_printf(d->texts, "%.7f\t0\t\"\"\t0\n\n\n", ms(p->window.from_ns));
	g_string_append_printf(d->small_texts, "%.7f\t0\t\"\"\t0\n\n\n", ms(p->window.from_ns));
}

/* Rows in which nothing happens are left out, except where the GPU computes: its idleness is news. */
static void drop_empty_rows(struct drawing *d, const struct timeline_window *window, int n)
{
	for (guint i = d->rows->len; i-- > 0;) {
		const struct row *row = &g_array_index(d->rows, struct row, i);
		bool used = row->gpu >= 0 && row->launcher < 0 && row->stream % GPU_STREAMS == STREAM_COMPUTE;

		for (int w = 0; w < n && !used; w++) {
			g_autoptr(GArray) pieces = pieces_of(d->trace, row, &window[w]);

			used = pieces->len > 0;
		}
		if (!used)
			g_array_remove_index(d->rows, i);
	}
}

static char *window_title(const struct timeline_window *window)
{
	if (window->layer < 0)
		return g_strdup("");
	return g_strdup_printf("layer %d, %s", window->layer, stage_pass_name(window->pass));
}

/* Panels side by side, as wide as they are long, so that a millisecond is the same length in both. */
static void scale_panels(struct drawing *d, double left)
{
	double room = FIGURE_WIDTH - FIGURE_TICK_MARGIN - left - (d->n_panels - 1) * PANEL_GAP, total = 0;

	for (int i = 0; i < d->n_panels; i++)
		total += ms(d->panel[i].window.to_ns - d->panel[i].window.from_ns);
	for (int i = 0; i < d->n_panels; i++) {
		struct panel *p = &d->panel[i];
		nsec_t length = p->window.to_ns - p->window.from_ns;
		double share = ms(length) / total;

		if (d->n_panels > 1)
			share = CLAMP(share, PANEL_LEAST, 1 - PANEL_LEAST);
		p->place.left = i ? d->panel[i - 1].place.right + PANEL_GAP : left;
		p->place.right = p->place.left + room * share;
		p->points_per_ns = room * share / (double)length;
	}
}

static void place_panels(const struct drawing *d, struct figure *f, double bottom, double height)
{
	struct panel_place places[2];
	double from[2], to[2];

	for (int i = 0; i < d->n_panels; i++) {
		const struct panel *p = &d->panel[i];
		g_autofree char *title = window_title(&p->window);

		places[i] = p->place;
		places[i].bottom = bottom;
		places[i].top = bottom + height;
		from[i] = ms(p->window.from_ns);
		to[i] = ms(p->window.to_ns);
		figure_text(f, (p->place.left + p->place.right) / 2, bottom + height + TITLE_HEIGHT / 2, TEXT_CENTRE, TEXT_SIZE, 0, title);
		rows_bands(d->rows, f, places[i].left, places[i].right, bottom, d->pitch, d->y);
	}
	figure_panels(f, places, d->n_panels);
	figure_array(f, "from", from, d->n_panels);
	figure_array(f, "to", to, d->n_panels);
	figure_number(f, "height", height);
}

static void write_notes(const struct drawing *d, struct figure *f, double x, double y)
{
	g_autoptr(GString) note = g_string_new(NULL);
	int shown = 0;

	for (guint i = 0; i < d->rows->len; i++)
		shown += g_array_index(d->rows, struct row, i).gpu >= 0 &&
		         (i == 0 || g_array_index(d->rows, struct row, i).gpu != g_array_index(d->rows, struct row, i - 1).gpu);
	if (d->panel[0].window.layer >= 0)
		g_string_append(note, d->names_layers ? "17: expert 17 of this layer; 3/17: expert 17 of layer 3" : "numbers: expert of this layer");
	else if (d->names_layers)
		g_string_append(note, "3/17: expert 17 of layer 3");
	if (shown < d->trace->gpus)
		g_string_append_printf(note, "%s%d of %d GPUs shown", note->len ? "; " : "", shown, d->trace->gpus);
	figure_text(f, x, y, TEXT_LEFT, TEXT_SMALL, PALETTE_FAINT, note->str);
}

static bool write_figure(struct drawing *d, double height, const char *out, GError **error)
{
	double left = FIGURE_MARGIN + d->label_width, width = FIGURE_WIDTH - 2 * FIGURE_MARGIN, bottom;
	g_autoptr(legend) legend = legend_new();
	g_autoptr(figure) f = NULL;

	palette_legend(&d->use, legend);
	bottom = FIGURE_MARGIN + NOTE_HEIGHT + legend_height(legend, width) + AXIS_HEIGHT;
	f = figure_new(FIGURE_WIDTH, bottom + height + TITLE_HEIGHT);
	place_panels(d, f, bottom, height);
	rows_label(d->rows, f, left, bottom, d->y);
	legend_draw(legend, f, FIGURE_MARGIN, bottom - AXIS_HEIGHT, width);
	write_notes(d, f, FIGURE_MARGIN, FIGURE_MARGIN + NOTE_HEIGHT / 2);
	figure_data(f, "boxes", d->boxes->str);
	figure_data(f, "texts", d->texts->str);
	figure_data(f, "small_texts", d->small_texts->str);
	return figure_write(f, "timeline", out, error);
}

bool plot_timeline(const struct trace *trace, const struct timeline_options *options, const char *out, GError **error)
{
	struct drawing d = {.trace = trace};
	struct timeline_window windows[2];
	double height, left;
	bool ok;

	if (!figure_name_check(out, error))
		return false;
	d.rows = rows_new(trace, &options->gpus, error);
	if (!d.rows)
		return false;
	d.label_width = rows_label_width(d.rows);
	left = FIGURE_MARGIN + d.label_width;
	if (!timeline_windows(trace, options, FIGURE_WIDTH - FIGURE_TICK_MARGIN - left - PANEL_GAP, windows, &d.n_panels, error)) {
		g_array_unref(d.rows);
		return false;
	}
	drop_empty_rows(&d, windows, d.n_panels);
	d.y = g_new(double, d.rows->len);
	d.pitch = CLAMP(ROWS_HEIGHT / d.rows->len, PITCH_LEAST, PITCH_MOST);
	height = rows_layout(d.rows, d.pitch, GROUP_GAP, d.y);
	d.boxes = g_string_new(NULL);
	d.texts = g_string_new(NULL);
	d.small_texts = g_string_new(NULL);
	for (int i = 0; i < d.n_panels; i++)
		d.panel[i].window = windows[i];
	scale_panels(&d, left);
	for (int i = 0; i < d.n_panels; i++)
		draw_rows(&d, &d.panel[i]);
	ok = write_figure(&d, height, out, error);
	g_string_free(d.boxes, TRUE);
	g_string_free(d.texts, TRUE);
	g_string_free(d.small_texts, TRUE);
	g_free(d.y);
	g_array_unref(d.rows);
	return ok;
}
