/* Figures as SVG, where gnuplot says in numbers what it drew: texts with the space they take, boxes with their corners. A folder for each test. */
#pragma once

#include "plots/figure.h"

#include <criterion/criterion.h>
#include <glib/gstdio.h>
#include <math.h>
#include <string.h>

static char *folder;

static inline void enter_folder(void)
{
	g_autofree char *gnuplot = g_find_program_in_path("gnuplot");

	if (!gnuplot)
		cr_skip_test("gnuplot is not installed");
	folder = g_dir_make_tmp("esmoe-plots-XXXXXX", NULL);
	cr_assert_not_null(folder);
}

static inline void leave_folder(void)
{
	g_autoptr(GDir) dir = g_dir_open(folder, 0, NULL);
	const char *name;

	while (dir && (name = g_dir_read_name(dir))) {
		g_autofree char *path = g_build_filename(folder, name, NULL);

		g_unlink(path);
	}
	g_rmdir(folder);
	g_free(folder);
}

static inline char *in_folder(const char *name)
{
	return g_build_filename(folder, name, NULL);
}

struct word {
	double x, y, width, height;
	char *text;
};

static inline void word_clear(void *word)
{
	g_free(((struct word *)word)->text);
}

/* The texts of an SVG with the space they take. */
static inline GArray *words_of(const char *svg)
{
	g_autoptr(GRegex) regex =
	    g_regex_new("translate\\(([-0-9.]+),([-0-9.]+)\\)( rotate\\([-0-9.]+\\))?\"[^>]*font-size=\"([0-9.]+)\"\\s+text-anchor=\"(\\w+)\">\\s*"
	                "<text[^>]*>([^<]*)</text>",
	                0, 0, NULL);
	g_autoptr(GMatchInfo) match = NULL;
	GArray *words = g_array_new(FALSE, FALSE, sizeof(struct word));

	g_array_set_clear_func(words, word_clear);
	g_regex_match(regex, svg, 0, &match);
	for (; g_match_info_matches(match); g_match_info_next(match, NULL)) {
		g_autofree char *x = g_match_info_fetch(match, 1), *y = g_match_info_fetch(match, 2), *turn = g_match_info_fetch(match, 3);
		g_autofree char *size = g_match_info_fetch(match, 4), *anchor = g_match_info_fetch(match, 5);
		struct word w = {.text = g_strstrip(g_match_info_fetch(match, 6))};
		double points = g_ascii_strtod(size, NULL), width = text_width(w.text, points);

		w.x = g_ascii_strtod(x, NULL);
		w.y = g_ascii_strtod(y, NULL) - 0.72 * points; /* capitals stand on the base line */
		w.width = width;
		w.height = 0.72 * points;
		w.x -= !strcmp(anchor, "middle") ? width / 2 : !strcmp(anchor, "end") ? width : 0;
		if (*turn) /* turned by a quarter around its middle */
			w = (struct word){w.x + width / 2 - w.height, w.y + w.height - width / 2, w.height, width, w.text};
		if (*w.text)
			g_array_append_val(words, w);
		else
			g_free(w.text);
	}
	return words;
}

static inline bool says(const GArray *words, const char *text)
{
	for (guint i = 0; i < words->len; i++)
		if (!strcmp(g_array_index(words, struct word, i).text, text))
			return true;
	return false;
}

static inline void check_no_overlap(const GArray *words, const char *figure)
{
	cr_assert_gt(words->len, 3);
	for (guint i = 0; i < words->len; i++)
		for (guint j = 0; j < i; j++) {
			const struct word *a = &g_array_index(words, struct word, i), *b = &g_array_index(words, struct word, j);
			bool apart = a->x + a->width <= b->x + 0.5 || b->x + b->width <= a->x + 0.5 || a->y + a->height <= b->y + 0.5 ||
			             b->y + b->height <= a->y + 0.5;

			cr_expect(apart, "%s: '%s' covers '%s'", figure, a->text, b->text);
		}
	for (guint i = 0; i < words->len; i++) {
		const struct word *w = &g_array_index(words, struct word, i);

		cr_expect(w->x >= 0 && w->x + w->width <= FIGURE_WIDTH, "%s: '%s' leaves the canvas", figure, w->text);
	}
}

static inline char *contents(const char *path)
{
	char *text = NULL;

	cr_assert(g_file_get_contents(path, &text, NULL, NULL), "%s is missing", path);
	return text;
}

/* The x of the left and right edges of the n-th box of a colour. */
static inline bool box_edges(const char *svg, uint32_t rgb, int n, double *left, double *right)
{
	g_autofree char *fill = g_strdup_printf("<polygon fill = 'rgb(%3u, %3u, %3u)' points = '", rgb >> 16, rgb >> 8 & 255, rgb & 255);
	const char *at = svg;

	for (int i = 0; i <= n; i++) {
		at = strstr(at, fill);
		if (!at)
			return false;
		at += strlen(fill);
	}
	*left = HUGE_VAL;
	*right = -HUGE_VAL;
	for (int corner = 0; corner < 4; corner++) {
		char *rest;
		double x = g_ascii_strtod(at, &rest);

		*left = fmin(*left, x);
		*right = fmax(*right, x);
		at = strchr(rest, ' ') + 1;
	}
	return true;
}

static inline double middle_of(const GArray *words, const char *text)
{
	for (guint i = 0; i < words->len; i++) {
		const struct word *w = &g_array_index(words, struct word, i);

		if (!strcmp(w->text, text))
			return w->x + w->width / 2;
	}
	cr_assert_fail("no text '%s'", text);
	return NAN;
}
