/* A file is continued only when each of its lines is the row that the grid has in its place: it begins with the names and counts of the point and
 * ends with the digest of its inputs. The numbers between follow from those inputs and are not read. A last line without its end was torn by a crash.
 */
#include "resume.h"

#include "model/error.h"
#include "report.h"

#include <string.h>

static bool differs(const char *path, int line, GError **error)
{
	g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_INPUT, "%s:%d: not a row of this sweep with these inputs: take another -o or remove the file",
	            path, line);
	return false;
}

static bool is_row_of(const char *line, gsize length, const struct grid *grid, int i)
{
	autoclear(row) row = {0};
	grid_identify(grid, i, &row);
	g_autofree char *begin = g_strdup_printf("%s,%s,%s,%d,%d,", row.policy, row.model, row.machine, row.gpus, row.experts);
	g_autofree char *end = g_strdup_printf(",%s", row.digest);
	gsize n_begin = strlen(begin), n_end = strlen(end);
	return length >= n_begin + n_end && memcmp(line, begin, n_begin) == 0 && memcmp(line + length - n_end, end, n_end) == 0;
}

bool resume_rows(const char *path, const char *text, gsize length, const struct grid *grid, int *rows, gsize *whole_bytes, GError **error)
{
	const char *header = report_csv_header();
	gsize n_header = strlen(header), begin = n_header;
	*rows = 0;
	*whole_bytes = 0;
	/* A header that is torn is a prefix of ours; anything else is not our file. */
	if (length && memcmp(text, header, MIN(length, n_header)) != 0)
		return differs(path, 1, error);
	if (length < n_header)
		return true;
	for (const char *stop; begin < length && (stop = memchr(text + begin, '\n', length - begin)); ++*rows) {
		gsize end = (gsize)(stop - text);
		if (*rows >= grid_rows(grid) || !is_row_of(text + begin, end - begin, grid, *rows))
			return differs(path, *rows + 2, error);
		begin = end + 1;
	}
	*whole_bytes = begin;
	return true;
}
