/* Files that grow are written a row at a time, so that whoever looks while a run goes on, or after it was killed, sees whole rows; the others appear
 * whole at the end. */
#include "folder.h"

#include "model/error.h"
#include "traces/kineto.h"
#include "traces/outfile.h"

#include <errno.h>
#include <fcntl.h>
#include <glib/gstdio.h>
#include <string.h>
#include <unistd.h>

struct folder {
	char *path, *head;
	const struct scenario *sc;
	int gpus, first, end;
	int losses, memory; /* descriptors */
};

static bool failed(const char *path, const char *name, GError **error)
{
	int reason = errno;
	g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_INPUT, "%s%s%s: cannot be written: %s", path, name ? "/" : "", name ? name : "",
	            g_strerror(reason));
	return false;
}

static bool write_rows(const struct folder *f, int fd, const char *name, const GString *rows, GError **error)
{
	for (gsize done = 0; done < rows->len;) {
		ssize_t n = write(fd, rows->str + done, rows->len - done);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return failed(f->path, name, error);
		done += (gsize)n;
	}
	return true;
}

static bool begin_rows(const struct folder *f, const char *name, const char *header, int *fd, GError **error)
{
	g_autofree char *path = g_build_filename(f->path, name, NULL);
	g_autoptr(GString) row = g_string_new(header);
	*fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
	if (*fd < 0)
		return failed(f->path, name, error);
	return write_rows(f, *fd, name, row, error);
}

static bool write_whole(const struct folder *f, const char *name, const char *text, GError **error)
{
	g_autofree char *path = g_build_filename(f->path, name, NULL);
	g_autoptr(outfile) file = outfile_new(path, false, error);
	return file && outfile_write(file, text, strlen(text), error) && outfile_finish(file, error) && outfile_commit(file, error);
}

/* Files of an earlier run in the same folder would be taken for this one's until the end. */
static void remove_earlier(const struct folder *f)
{
	g_autoptr(GDir) dir = g_dir_open(f->path, 0, NULL);
	for (const char *name; dir && (name = g_dir_read_name(dir));)
		if ((g_str_has_prefix(name, "trace.") && g_str_has_suffix(name, ".json")) || g_str_equal(name, "loads.csv") ||
		    g_str_equal(name, "places.csv")) {
			g_autofree char *path = g_build_filename(f->path, name, NULL);
			g_unlink(path);
		}
}

static bool write_ini(const struct folder *f, GError **error)
{
	g_autofree char *scenario = scenario_ini(f->sc), *ini = g_strconcat(f->head, scenario, NULL);
	return write_whole(f, "run.ini", ini, error);
}

static bool begin_files(struct folder *f, GError **error)
{
	return write_ini(f, error) && begin_rows(f, "losses.csv", "step,loss,tokens_per_s,step_ms\n", &f->losses, error) &&
	       begin_rows(f, "memory.csv", "step,gpu,hbm_bytes,host_bytes,ssd_bytes,pinned_bytes,pageable_bytes\n", &f->memory, error);
}

struct folder *folder_new(const char *path, const struct scenario *sc, const char *head, int first, int end, GError **error)
{
	g_autoptr(folder) f = g_new0(struct folder, 1);
	*f = (struct folder){.path = g_strdup(path),
	                     .head = g_strdup(head),
	                     .sc = sc,
	                     .gpus = sc->machine->gpus,
	                     .first = first,
	                     .end = end,
	                     .losses = -1,
	                     .memory = -1};
	if (g_mkdir_with_parents(path, 0777) != 0) {
		failed(path, NULL, error);
		return NULL;
	}
	remove_earlier(f);
	if (first == 0 && !begin_files(f, error))
		return NULL;
	return g_steal_pointer(&f);
}

void folder_free(struct folder *f)
{
	if (!f)
		return;
	if (f->losses >= 0)
		close(f->losses);
	if (f->memory >= 0)
		close(f->memory);
	g_free(f->path);
	g_free(f->head);
	g_free(f);
}

bool folder_step(struct folder *f, const struct run_step *s, const struct run_memory *m, GError **error)
{
	if (f->first)
		return true;
	g_autoptr(GString) losses = g_string_new(NULL), memory = g_string_new(NULL);
	g_string_append_printf(losses, "%" G_GUINT64_FORMAT ",%.9g,%.6g,%.6g\n", s->step, s->loss, s->tokens_per_s, s->step_ms);
	for (int g = 0; g < f->gpus; g++)
		g_string_append_printf(memory,
		                       "%" G_GUINT64_FORMAT ",%d,%" G_GUINT64_FORMAT ",%" G_GUINT64_FORMAT ",%" G_GUINT64_FORMAT ",%" G_GUINT64_FORMAT
		                       ",%" G_GUINT64_FORMAT "\n",
		                       s->step, g, m->hbm_bytes[g], m->host_bytes, m->ssd_bytes, m->pinned_bytes, m->pageable_bytes);
	return write_rows(f, f->losses, "losses.csv", losses, error) && write_rows(f, f->memory, "memory.csv", memory, error);
}

bool folder_finish(struct folder *f, const struct record *r, GError **error)
{
	g_autoptr(trace) trace = record_trace(r);
	g_autoptr(GString) loads = g_string_new(NULL), places = g_string_new(NULL);
	g_autofree char *prefix = g_build_filename(f->path, "trace", NULL);
	if (f->first == 0)
		record_loads(r, loads);
	if (f->first == 0 && record_places(r, places) && !write_whole(f, "places.csv", places->str, error))
		return false;
	return (f->first || (write_ini(f, error) && write_whole(f, "loads.csv", loads->str, error))) &&
	       kineto_write_part(trace, prefix, false, f->first, f->end, error);
}
