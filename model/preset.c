/* Presets are compiled into the program as a GResource, a folder a kind, so that one binary works anywhere and `show` can print them with their
 * comments. A source that is no preset is a file, read whole with a bound, or already the text. */
#include "preset.h"

#include "error.h"
#include "presets.h"

#include <errno.h>
#include <gio/gio.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { TEXT_MOST_BYTES = 1 << 20 };

static int by_name(const void *a, const void *b)
{
	return strcmp(*(char *const *)a, *(char *const *)b);
}

char **preset_names(const char *kind)
{
	g_autofree char *folder = g_strconcat("/esmoe/", kind, NULL);
	char **names = g_resource_enumerate_children(presets_get_resource(), folder, G_RESOURCE_LOOKUP_FLAGS_NONE, NULL);

	if (!names)
		return g_new0(char *, 1);
	for (char **n = names; *n; n++)
		if (g_str_has_suffix(*n, ".ini"))
			(*n)[strlen(*n) - strlen(".ini")] = '\0';
	qsort(names, g_strv_length(names), sizeof *names, by_name);
	return names;
}

static void refuse_unknown(const char *kind, const char *name, GError **error)
{
	g_auto(GStrv) known = preset_names(kind);
	const char *nearest = nearest_word(name, (const char *const *)known);
	g_autofree char *list = g_strjoinv(", ", known);

	g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_INPUT, "'%s': no such preset among the %s; %s%s%s", name, kind,
	            nearest ? "did you mean '" : "known: ", nearest ? nearest : list, nearest ? "'?" : "; or the path of an .ini");
}

char *preset_text(const char *kind, const char *name, GError **error)
{
	g_autofree char *path = g_strdup_printf("/esmoe/%s/%s.ini", kind, name);
	g_autoptr(GBytes) bytes = g_resource_lookup_data(presets_get_resource(), path, G_RESOURCE_LOOKUP_FLAGS_NONE, NULL);

	if (bytes)
		return g_strndup(g_bytes_get_data(bytes, NULL), g_bytes_get_size(bytes));
	refuse_unknown(kind, name, error);
	return NULL;
}

/* Reads to the end or one byte past the most that is accepted, so that endless files end too. */
static char *read_file(const char *path, gsize *length, GError **error)
{
	FILE *f = fopen(path, "rb");
	g_autofree char *text = g_malloc(TEXT_MOST_BYTES + 2);
	int status = errno;

	if (f) {
		*length = fread(text, 1, TEXT_MOST_BYTES + 1, f);
		status = ferror(f) ? errno : 0;
		fclose(f);
	}
	if (!f || status) {
		g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_INPUT, "%s: %s; expected a readable .ini file", path, g_strerror(status));
		return NULL;
	}
	text[*length] = '\0';
	return g_steal_pointer(&text);
}

static char *file_text(const char *path, GError **error)
{
	gsize length = 0;
	g_autofree char *text = read_file(path, &length, error);
	const char *end;

	if (!text)
		return NULL;
	if (length > TEXT_MOST_BYTES) {
		g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_INPUT, "%s: larger than 1 MiB; expected an .ini file", path);
		return NULL;
	}
	if (!g_utf8_validate(text, length, &end)) {
		int line = 1;

		for (const char *p = text; p < end; p++)
			line += *p == '\n';
		g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_INPUT, "%s:%d: byte 0x%02x is not UTF-8 text; expected an .ini file", path, line,
		            (guchar)*end);
		return NULL;
	}
	return g_steal_pointer(&text);
}

char *source_text(const char *kind, const char *source, char **file, char **name, GError **error)
{
	char *text;

	if (strchr(source, '\n')) {
		if (!g_utf8_validate(source, -1, NULL)) {
			g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_INPUT, "not UTF-8 text; expected the text of an .ini file");
			return NULL;
		}
		*file = NULL;
		*name = g_strdup("unnamed");
		return g_strdup(source);
	}
	text = strchr(source, '/') || g_str_has_suffix(source, ".ini") ? file_text(source, error) : preset_text(kind, source, error);
	if (!text)
		return NULL;
	*file = g_strdup(source);
	*name = g_path_get_basename(source);
	if (g_str_has_suffix(*name, ".ini"))
		(*name)[strlen(*name) - strlen(".ini")] = '\0';
	return text;
}
