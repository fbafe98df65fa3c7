/* Gnuplot draws axes well and legends badly, so a figure is laid out here, in points, and gnuplot is told where everything goes:
 *
 *     +--------------------------------------------+
 *     | title                                      |   texts, boxes and markers: placed by us
 *     |  row +----- panel -----+ +---- panel ----+ |
 *     |  row |                 | |               | |   panels: gnuplot's axes and the script's plot commands, between edges we give
 *     |      +-----------------+ +---------------+ |
 *     | legend                                     |
 *     +--------------------------------------------+
 *
 * What gnuplot reads is one text: terminal, data, placed things, style.gp, the figure's script. What it prints is the file. Letters are measured with
 * the font's advances, so that nothing placed here overlaps. */
#define _GNU_SOURCE /* memmem */

#include "figure.h"
#include "model/error.h"
#include "plots.h" /* the scripts, compiled in */
#include "traces/outfile.h"

#include <gio/gio.h>
#include <math.h>
#include <string.h>

#define PNG_PIXELS_PER_POINT 2.5

struct figure {
	double width, height;
	GString *data;   /* assignments and data blocks */
	GString *placed; /* set label, set object, set arrow */
	int n_placed;
};

static const struct form {
	const char *ending, *terminal, *unit;
	double units_per_point, font_scale, line_scale, point_scale;
} forms[] = {
    /* cairo takes 9 point letters as 12 units: 3/4 makes one unit of figure a point; its lines are one pixel wide, or half a point */
    {".png", "pngcairo", "", PNG_PIXELS_PER_POINT, PNG_PIXELS_PER_POINT * 0.75, PNG_PIXELS_PER_POINT, PNG_PIXELS_PER_POINT},
    {".pdf", "pdfcairo", "in", 1 / 72.0, 0.75, 2, 1},
    {".svg", "svg", "", 1, 1, 1, 1},
};

struct figure *figure_new(double width, double height)
{
	struct figure *f = g_new0(struct figure, 1);

	f->width = width;
	f->height = height;
	f->data = g_string_new(NULL);
	f->placed = g_string_new(NULL);
	return f;
}

void figure_free(struct figure *f)
{
	if (!f)
		return;
	g_string_free(f->data, TRUE);
	g_string_free(f->placed, TRUE);
	g_free(f);
}

/* A number as gnuplot reads it, whatever the locale. */
static void number(GString *out, double value)
{
	char text[G_ASCII_DTOSTR_BUF_SIZE];

	g_string_append(out, g_ascii_formatd(text, sizeof text, "%.10g", value));
}

static void position(GString *out, const struct figure *f, double x, double y)
{
	g_string_append(out, "screen ");
	number(out, x / f->width);
	g_string_append(out, ", screen ");
	number(out, y / f->height);
}

/* Valid UTF-8 without control characters, so that no name ends a line or a field. */
static char *printable(const char *text)
{
	char *out = g_utf8_make_valid(text, -1);

	for (char *c = out; *c; c++)
		if (g_ascii_iscntrl(*c))
			*c = ' ';
	return out;
}

static void quoted(GString *out, const char *text)
{
	g_autofree char *clean = printable(text);

	g_string_append_c(out, '\'');
	for (const char *c = clean; *c; c++)
		g_string_append_printf(out, *c == '\'' ? "''" : "%c", *c);
	g_string_append_c(out, '\'');
}

void text_field(GString *rows, const char *text)
{
	g_autofree char *clean = printable(text);

	g_strdelimit(clean, "\"", '\'');
	g_string_append_printf(rows, "\"%s\"", clean);
}

void figure_text(struct figure *f, double x, double y, enum text_align align, double size, uint32_t rgb, const char *text)
{
	static const char *const words[] = {"left", "center", "right"};

	if (!*text)
		return;
	g_string_append_printf(f->placed, "set label %d ", ++f->n_placed);
	quoted(f->placed, text);
	g_string_append(f->placed, " at ");
	position(f->placed, f, x, y);
	g_string_append_printf(f->placed, " %s noenhanced front font ',", words[align]);
	number(f->placed, size);
	g_string_append_printf(f->placed, "' tc rgb '#%06X'\n", rgb);
}

void figure_box(struct figure *f, double x, double y, double width, double height, uint32_t rgb)
{
	g_string_append_printf(f->placed, "set object %d rectangle from ", ++f->n_placed);
	position(f->placed, f, x, y);
	g_string_append(f->placed, " to ");
	position(f->placed, f, x + width, y + height);
	g_string_append_printf(f->placed, " fc rgb '#%06X' fs solid noborder noclip back\n", rgb);
}

void figure_marker(struct figure *f, double x, double y, double width, int marker, uint32_t rgb)
{
	g_string_append_printf(f->placed, "set arrow %d from ", ++f->n_placed);
	position(f->placed, f, x - width / 2, y);
	g_string_append(f->placed, " to ");
	position(f->placed, f, x + width / 2, y);
	g_string_append_printf(f->placed, " nohead lw 1.6 lc rgb '#%06X'\n", rgb);
	if (marker == FIGURE_NO_POINT)
		return;
	g_string_append_printf(f->placed, "set label %d '' at ", f->n_placed);
	position(f->placed, f, x, y);
	g_string_append_printf(f->placed, " point pt %d ps 0.6 lc rgb '#%06X'\n", marker, rgb);
}

void figure_number(struct figure *f, const char *name, double value)
{
	g_string_append_printf(f->data, "%s = ", name);
	number(f->data, value);
	g_string_append(f->data, "\n");
}

void figure_string(struct figure *f, const char *name, const char *value)
{
	g_string_append_printf(f->data, "%s = ", name);
	quoted(f->data, value);
	g_string_append(f->data, "\n");
}

void figure_array(struct figure *f, const char *name, const double *values, int n)
{
	g_string_append_printf(f->data, "array %s[%d] = [", name, n);
	for (int i = 0; i < n; i++) {
		g_string_append(f->data, i ? ", " : "");
		number(f->data, values[i]);
	}
	g_string_append(f->data, "]\n");
}

void figure_strings(struct figure *f, const char *name, char *const *values, int n)
{
	g_string_append_printf(f->data, "array %s[%d] = [", name, n);
	for (int i = 0; i < n; i++) {
		g_string_append(f->data, i ? ", " : "");
		quoted(f->data, values[i]);
	}
	g_string_append(f->data, "]\n");
}

void figure_data(struct figure *f, const char *name, const char *rows)
{
	g_string_append_printf(f->data, "$%s << END_OF_ROWS\n%s\nEND_OF_ROWS\n", name, rows);
}

void figure_panels(struct figure *f, const struct panel_place *places, int n)
{
	g_autofree double *left = g_new(double, n), *right = g_new(double, n), *bottom = g_new(double, n), *top = g_new(double, n);

	for (int i = 0; i < n; i++) {
		left[i] = places[i].left / f->width;
		right[i] = places[i].right / f->width;
		bottom[i] = places[i].bottom / f->height;
		top[i] = places[i].top / f->height;
	}
	figure_number(f, "panels", n);
	figure_array(f, "left", left, n);
	figure_array(f, "right", right, n);
	figure_array(f, "bottom", bottom, n);
	figure_array(f, "top", top, n);
}

static const struct form *form_of(const char *out, GError **error)
{
	for (size_t i = 0; i < G_N_ELEMENTS(forms); i++)
		if (g_str_has_suffix(out, forms[i].ending))
			return &forms[i];
	g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_USAGE, "%s: a figure's name ends in .png, .svg or .pdf", out);
	return NULL;
}

bool figure_name_check(const char *out, GError **error)
{
	return form_of(out, error);
}

static char *resource_text(const char *name)
{
	g_autofree char *path = g_strdup_printf("/esmoe/plots/%s.gp", name);
	g_autoptr(GBytes) bytes = g_resource_lookup_data(plots_get_resource(), path, G_RESOURCE_LOOKUP_FLAGS_NONE, NULL);

	g_assert(bytes);
	return g_strndup(g_bytes_get_data(bytes, NULL), g_bytes_get_size(bytes));
}

static char *whole_script(const struct figure *f, const char *script, const struct form *form)
{
	g_autofree char *style = resource_text("style"), *body = resource_text(script);
	GString *text = g_string_new("set encoding utf8\nset terminal ");

	g_string_append_printf(text, "%s size ", form->terminal);
	number(text, f->width * form->units_per_point);
	g_string_append_printf(text, "%s, ", form->unit);
	number(text, f->height * form->units_per_point);
	g_string_append_printf(text, "%s noenhanced font 'DejaVu Sans,%g' fontscale ", form->unit, TEXT_SIZE);
	number(text, form->font_scale);
	g_string_append(text, " linewidth ");
	number(text, form->line_scale);
	if (form->point_scale != 1) {
		g_string_append(text, " pointscale ");
		number(text, form->point_scale);
	}
	g_string_append_printf(text, " background rgb 'white'\n%s%s%s%s", f->data->str, f->placed->str, style, body);
	return g_string_free(text, FALSE);
}

/* Cairo stamps a PDF with the time of day; any other digits of the same length keep its table of offsets right. */
static GBytes *without_date(GBytes *bytes)
{
	static const char mark[] = "/CreationDate (D:", fixed[] = "20000101000000";
	gsize size;
	char *data = g_bytes_unref_to_data(bytes, &size);
	char *at = memmem(data, size, mark, strlen(mark));

	if (at && (gsize)(at - data) + strlen(mark) + strlen(fixed) <= size)
		memcpy(at + strlen(mark), fixed, strlen(fixed));
	return g_bytes_new_take(data, size);
}

static GBytes *run_gnuplot(const char *text, GError **error)
{
	g_autoptr(GSubprocessLauncher) launcher =
	    g_subprocess_launcher_new(G_SUBPROCESS_FLAGS_STDIN_PIPE | G_SUBPROCESS_FLAGS_STDOUT_PIPE | G_SUBPROCESS_FLAGS_STDERR_PIPE);
	g_autoptr(GBytes) in = g_bytes_new_static(text, strlen(text)), out = NULL, complaints = NULL;
	g_autoptr(GSubprocess) process = NULL;
	g_autoptr(GError) cause = NULL;
	g_autofree char *said = NULL;

	g_subprocess_launcher_setenv(launcher, "LC_ALL", "C.UTF-8", TRUE);
	g_subprocess_launcher_setenv(launcher, "SOURCE_DATE_EPOCH", "946684800", TRUE);
	g_subprocess_launcher_unsetenv(launcher, "GNUTERM");
	process = g_subprocess_launcher_spawn(launcher, &cause, "gnuplot", "-d", "-", NULL);
	if (!process) {
		g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_DEVICE,
		            "figures need gnuplot, which did not start (%s): install it, for example with apt install gnuplot-nox", cause->message);
		return NULL;
	}
	if (!g_subprocess_communicate(process, in, NULL, &out, &complaints, &cause)) {
		g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_DEVICE, "gnuplot could not be talked to: %s", cause->message);
		return NULL;
	}
	if (g_subprocess_get_if_exited(process) && g_subprocess_get_exit_status(process) == 0 && g_bytes_get_size(out) > 0)
		return g_steal_pointer(&out);
	said = g_strndup(g_bytes_get_data(complaints, NULL), g_bytes_get_size(complaints));
	g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_DEVICE, "gnuplot failed: %s", g_strdelimit(g_strstrip(said), "\n\r\t", ' '));
	return NULL;
}

bool figure_write(struct figure *f, const char *script, const char *out, GError **error)
{
	const struct form *form = form_of(out, error);
	g_autofree char *text = NULL;
	g_autoptr(GBytes) picture = NULL;
	g_autoptr(outfile) file = NULL;

	if (!form)
		return false;
	text = whole_script(f, script, form);
	picture = run_gnuplot(text, error);
	if (!picture)
		return false;
	picture = without_date(g_steal_pointer(&picture));
	file = outfile_new(out, false, error);
	return file && outfile_write(file, g_bytes_get_data(picture, NULL), g_bytes_get_size(picture), error) && outfile_finish(file, error) &&
	       outfile_commit(file, error);
}

double text_width(const char *text, double size)
{
	/* DejaVu Sans, thousandths of the letter size, from space to tilde */
	static const uint16_t advance[95] = {
	    318, 401, 460, 838, 636, 950, 780, 275, 390,  390, 500, 838, 318, 361, 318, 337, 636, 636, 636, 636, 636, 636, 636, 636,
	    636, 636, 337, 337, 838, 838, 838, 531, 1000, 684, 686, 698, 770, 632, 575, 775, 752, 295, 295, 656, 557, 863, 748, 787,
	    603, 787, 695, 635, 611, 732, 684, 989, 685,  611, 685, 390, 337, 390, 838, 500, 500, 613, 635, 550, 635, 615, 352, 635,
	    634, 278, 278, 579, 278, 974, 634, 612, 635,  635, 411, 521, 392, 634, 592, 818, 592, 592, 525, 636, 337, 636, 838,
	};
	double thousandths = 0;

	for (const unsigned char *c = (const unsigned char *)text; *c; c++)
		if (*c >= 32 && *c < 127)
			thousandths += advance[*c - 32];
		else if ((*c & 0xC0) != 0x80) /* the first byte of a letter outside ASCII */
			thousandths += 1000;
	return thousandths * size / 1000;
}

char *text_fit(const char *text, double size, double width)
{
	g_autofree char *clean = printable(text);
	glong n = g_utf8_strlen(clean, -1);

	if (text_width(clean, size) <= width)
		return g_steal_pointer(&clean);
	for (glong keep = n - 1; keep > 1; keep--) {
		g_autofree char *head = g_utf8_substring(clean, 0, (keep + 1) / 2), *tail = g_utf8_substring(clean, n - keep / 2, n);
		g_autofree char *shorter = g_strconcat(head, "…", tail, NULL);

		if (text_width(shorter, size) <= width)
			return g_steal_pointer(&shorter);
	}
	return g_strdup("…");
}

double tick_step(double most, int n)
{
	double rough = most / n, power = pow(10, floor(log10(rough)));

	return rough > 5 * power ? 10 * power : rough > 2 * power ? 5 * power : rough > power ? 2 * power : power;
}
