/* A figure: texts, boxes and lines placed in points from the lower left corner, panels with axes drawn by a gnuplot script, and the file it ends in.
 */
#pragma once

#include "model/autoptr.h"

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

#define FIGURE_WIDTH 720.0 /* points: a page's text width at 9 point letters when scaled to 7 inches */
#define FIGURE_MARGIN 8.0
#define FIGURE_TICK_MARGIN 20.0 /* right of a panel: half the number of a tick that stands at its end */
#define TEXT_SIZE 9.0
#define TEXT_SMALL 7.5

enum text_align { TEXT_LEFT, TEXT_CENTRE, TEXT_RIGHT };

struct figure;

/* Both in points. Owned by the caller. */
struct figure *figure_new(double width, double height);
void figure_free(struct figure *f);
AUTOPTR(figure)

/* Text with its middle at height y. */
void figure_text(struct figure *f, double x, double y, enum text_align align, double size, uint32_t rgb, const char *text);
void figure_box(struct figure *f, double x, double y, double width, double height, uint32_t rgb);
#define FIGURE_CROSS 2 /* gnuplot's point type */
#define FIGURE_NO_POINT (-1)
/* A point of gnuplot's type `marker` on a line of that width around (x, y), as in a legend. */
void figure_marker(struct figure *f, double x, double y, double width, int marker, uint32_t rgb);

/* What the script reads: numbers, strings, arrays of numbers and a block of data rows (tab-separated; two empty lines start the next index). */
void figure_number(struct figure *f, const char *name, double value);
void figure_string(struct figure *f, const char *name, const char *value);
void figure_array(struct figure *f, const char *name, const double *values, int n);
void figure_strings(struct figure *f, const char *name, char *const *values, int n);
void figure_data(struct figure *f, const char *name, const char *rows);

/* The panels' edges as shares of the canvas, as arrays left, right, bottom, top that every script reads, and their number. */
struct panel_place {
	double left, right, bottom, top;
}; /* points */
void figure_panels(struct figure *f, const struct panel_place *places, int n);

/* Runs the script of plots/NAME.gp through gnuplot and puts the result at `out`, whose ending says the form: .png, .svg or .pdf. The file appears
 * whole or not at all; the same figure gives the same bytes, but for the date in a .pdf where Cairo (from 1.18) packs it. ESMOE_ERROR_USAGE: another
 * ending. ESMOE_ERROR_DEVICE: no gnuplot. ESMOE_ERROR_INPUT: cannot write. */
bool figure_write(struct figure *f, const char *script, const char *out, GError **error) G_GNUC_WARN_UNUSED_RESULT;
/* Fails as figure_write would for the name, before any work is done. */
bool figure_name_check(const char *out, GError **error) G_GNUC_WARN_UNUSED_RESULT;

/* Width in points of UTF-8 text in DejaVu Sans, from the font's own advances, slightly more for letters outside ASCII. */
double text_width(const char *text, double size);
/* The text, or its two ends around an ellipsis when it is wider than `width`. Owned by the caller. */
char *text_fit(const char *text, double size, double width);
/* 1, 2 or 5 times a power of ten: the distance of at most about n ticks from 0 to `most`. */
double tick_step(double most, int n);
/* Appends text as one quoted field of a data row. */
void text_field(GString *rows, const char *text);
