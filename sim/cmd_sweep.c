/* esmoe sweep: a grid to a CSV that grows row by row, in grid order. A file it left is continued: its rows must be those of this grid with these very
 * inputs, and a last line that a crash tore is dropped. So at any moment the file is a valid prefix of the whole. */
#include "figure.h"
#include "grid.h"
#include "model/command.h"
#include "model/error.h"
#include "report.h"
#include "resume.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

struct options {
	struct whatif whatif;
	struct how how;
	char *out, *plot;
};

static void options_clear(struct options *o)
{
	whatif_clear(&o->whatif);
	how_clear(&o->how);
	g_free(o->out);
	g_free(o->plot);
}

/* The CSV under way. */
struct table {
	const char *path;
	int fd;
	bool regular; /* can be continued, and cut back to whole rows */
	off_t whole_bytes;
	int n_invalid;
	char *first_invalid;
};

static void table_clear(struct table *t)
{
	if (t->fd > 0)
		close(t->fd);
	g_free(t->first_invalid);
}

static bool parse(struct options *o, int argc, char **argv, GError **error)
{
	const GOptionEntry entries[] = {
	    {"output", 'o', 0, G_OPTION_ARG_FILENAME, &o->out, "the CSV; one that is there is continued", "FILE"},
	    {"plot", 0, 0, G_OPTION_ARG_FILENAME, &o->plot, "draw the throughput, .png, .svg or .pdf", "FILE"},
	    {NULL},
	};
	g_autoptr(GOptionContext) context = g_option_context_new(NULL);
	whatif_add(&o->whatif, context);
	how_add(&o->how, context);
	g_option_context_add_main_entries(context, entries, NULL);
	g_option_context_set_summary(context, "Predicts a grid on all cores. -m, -M and -p take several names with commas\n"
	                                      "between, --gpus and --experts lists and ranges: 1,2,4 or 8:512:x2 or 8:64:+8.\n"
	                                      "Interrupted, the same command goes on where it was.");
	g_option_context_set_description(
	    context, "Example:\n  esmoe sweep -m gpt-moe-m -M a100-40g-x4 -p es-moe,tutel --gpus 1,2,4,8 \\\n    --experts 8:512:x2 -o grid.csv");
	if (!whatif_parse(context, argc, argv, error) || !how_check(&o->how, &o->whatif, error))
		return false;
	if (!o->out)
		g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_USAGE, "-o FILE.csv is missing: see --help");
	return o->out;
}

static bool fail(const struct table *t, const char *what, GError **error)
{
	int reason = errno;
	g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_INPUT, "%s: %s: %s", t->path, what, g_strerror(reason));
	return false;
}

/* Appends whole lines; what a full disk tears is cut off again. */
static bool append(struct table *t, const GString *lines, GError **error)
{
	for (gsize done = 0; done < lines->len;) {
		ssize_t n = write(t->fd, lines->str + done, lines->len - done);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0) {
			fail(t, "cannot be written", error);
			if (t->regular && ftruncate(t->fd, t->whole_bytes) != 0)
				g_prefix_error(error, "%s: the last line is torn: ", t->path);
			return false;
		}
		done += (gsize)n;
	}
	t->whole_bytes += (off_t)lines->len;
	return true;
}

static bool deliver(struct row *row, void *user, GError **error)
{
	struct table *t = user;
	g_autoptr(GString) line = g_string_new(NULL);
	report_csv(line, row);
	if (row->status == STATUS_INVALID && ++t->n_invalid == 1)
		t->first_invalid = g_strdup(row->why);
	return append(t, line, error);
}

/* The file takes its lock before it is looked at, so two sweeps never write one file. */
static bool table_open(struct table *t, GError **error)
{
	struct stat status;
	t->fd = open(t->path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
	if (t->fd < 0 && (errno == EACCES || errno == EPERM || errno == ENXIO))
		t->fd = open(t->path, O_WRONLY | O_CLOEXEC); /* a pipe or a device */
	if (t->fd < 0 || fstat(t->fd, &status) != 0)
		return fail(t, "cannot be written", error);
	t->regular = S_ISREG(status.st_mode);
	if (t->regular && flock(t->fd, LOCK_EX | LOCK_NB) != 0)
		return fail(t, "another sweep writes it", error);
	return true;
}

/* How many rows of the grid the file holds, in *rows; the torn rest is cut off. */
static bool table_resume(struct table *t, const struct grid *grid, int *rows, GError **error)
{
	g_autofree char *text = NULL;
	gsize length = 0, begin = 0;
	if (t->regular && !g_file_get_contents(t->path, &text, &length, error))
		return false;
	if (!resume_rows(t->path, text, length, grid, rows, &begin, error))
		return false;
	t->whole_bytes = (off_t)begin;
	if (t->regular && (ftruncate(t->fd, t->whole_bytes) != 0 || lseek(t->fd, t->whole_bytes, SEEK_SET) < 0))
		return fail(t, "cannot be continued", error);
	g_autoptr(GString) first = g_string_new(begin ? "" : report_csv_header());
	return append(t, first, error);
}

static void print_summary(const struct table *t, int resumed)
{
	if (resumed)
		fprintf(stderr, "%s: %d rows were there\n", t->path, resumed);
	if (t->first_invalid)
		fprintf(stderr, "%s: %d rows are invalid; the first because: %s\n", t->path, t->n_invalid, t->first_invalid);
}

bool cmd_sweep(int argc, char **argv, GError **error)
{
	autoclear(options) o = {0};
	autoclear(table) table = {.fd = -1};
	int rows = 0;
	if (!parse(&o, argc, argv, error))
		return false;
	g_autoptr(grid) grid = grid_new(&o.whatif, &o.how, error);
	if (!grid)
		return false;
	table.path = o.out;
	if (!table_open(&table, error) || !table_resume(&table, grid, &rows, error))
		return false;
	int resumed = rows;
	if (!grid_run(grid, rows, deliver, &table, error)) {
		g_prefix_error(error, "%s holds whole rows and can be continued: ", o.out);
		return false;
	}
	if (table.regular && fsync(table.fd) != 0)
		return fail(&table, "cannot be written", error);
	print_summary(&table, resumed);
	return !o.plot || figure_throughput(o.out, o.plot, error);
}
