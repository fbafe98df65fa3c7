/* Integers are written backwards by the digit and strings copied; a full buffer goes to the file in one piece. */
#include "json_out.h"

void json_flush(struct json_out *j)
{
	if (!j->error)
		(void)!outfile_write(j->file, j->buffer, (gsize)(j->at - j->buffer), &j->error);
	j->at = j->buffer;
}

char *json_room(struct json_out *j, size_t n)
{
	g_assert(n <= JSON_OUT_BYTES);
	if ((size_t)(j->buffer + JSON_OUT_BYTES - j->at) < n)
		json_flush(j);
	return j->at;
}

void json_text(struct json_out *j, const char *s, size_t n)
{
	while (n > 0) {
		size_t part = MIN(n, (size_t)JSON_OUT_BYTES);

		j->at = put(json_room(j, part), s, part);
		s += part;
		n -= part;
	}
}

void json_print(struct json_out *j, const char *format, ...)
{
	va_list args;

	va_start(args, format);
	g_autofree char *s = g_strdup_vprintf(format, args);
	va_end(args);
	json_text(j, s, strlen(s));
}

char *json_quote(const char *s)
{
	GString *q = g_string_new("\"");

	for (; *s; s++) {
		if (*s == '"' || *s == '\\')
			g_string_append_printf(q, "\\%c", *s);
		else if (*s == '\n')
			g_string_append(q, "\\n");
		else if ((unsigned char)*s < 0x20)
			g_string_append_printf(q, "\\u%04x", (unsigned)*s);
		else
			g_string_append_c(q, *s);
	}
	g_string_append_c(q, '"');
	return g_string_free(q, FALSE);
}
