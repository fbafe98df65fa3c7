/* A legend outside the panels: entries of one to three swatches or a marker and a name, filled into rows of the figure's width. */
#pragma once

#include "figure.h"

#define LEGEND_SWATCHES 4

struct legend;

struct legend *legend_new(void);
void legend_free(struct legend *legend);
AUTOPTR(legend)

/* An entry with n swatches side by side, 1..LEGEND_SWATCHES. */
void legend_add(struct legend *legend, const char *name, const uint32_t *rgb, int n);
/* An entry with a line and gnuplot's point type `marker`. */
void legend_add_marker(struct legend *legend, const char *name, int marker, uint32_t rgb);

/* An entry with FIGURE_CROSS alone. */
void legend_add_cross(struct legend *legend, const char *name, uint32_t rgb);

/* An entry with a line alone. */
void legend_add_line(struct legend *legend, const char *name, uint32_t rgb);

/* Points it takes when its rows are `width` wide. */
double legend_height(const struct legend *legend, double width);
/* Draws it from x on, its upper edge at `top`. */
void legend_draw(const struct legend *legend, struct figure *f, double x, double top, double width);
