/* Finishing and committing are two steps, so that a set of files can be finished one by one and committed together: a full disk found while writing
 * the last leaves none of them. */
#include "outfile.h"

#include "model/error.h"

#include <errno.h>
#include <fcntl.h>
#include <glib/gstdio.h>
#include <unistd.h>

struct outfile {
	char *path, *temporary; /* temporary is NULL when written in place */
	GOutputStream *stream;
	bool committed;
};

static bool failed(const struct outfile *f, GError *cause, GError **error)
{
	g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_INPUT, "%s: cannot be written: %s", f->path, cause->message);
	g_error_free(cause);
	return false;
}

/* Makes the temporary file, empty. GLib's reason would name it; nobody asked for a file of that name. */
static bool make_temporary(const struct outfile *f, GError **error)
{
	/* a leftover of a killed process with our number is in nobody's way */
	g_unlink(f->temporary);
	int fd = g_open(f->temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
	if (fd < 0) {
		g_set_error_literal(error, ESMOE_ERROR, ESMOE_ERROR_INPUT, g_strerror(errno));
		return false;
	}
	close(fd);
	return true;
}

static GOutputStream *open_stream(struct outfile *f, GError **error)
{
	g_autoptr(GFile) file = g_file_new_for_path(f->temporary ? f->temporary : f->path);

	if (f->temporary && !make_temporary(f, error))
		return NULL;
	return G_OUTPUT_STREAM(g_file_append_to(file, G_FILE_CREATE_NONE, NULL, error));
}

struct outfile *outfile_new(const char *path, bool gzip, GError **error)
{
	g_autoptr(outfile) f = g_new0(struct outfile, 1);
	GError *cause = NULL;

	f->path = g_strdup(path);
	if (!g_file_test(path, G_FILE_TEST_EXISTS) || g_file_test(path, G_FILE_TEST_IS_REGULAR))
		f->temporary = g_strdup_printf("%s.%d.tmp", path, (int)getpid());
	f->stream = open_stream(f, &cause);
	if (!f->stream) {
		failed(f, cause, error);
		return NULL;
	}
	if (gzip) {
		g_autoptr(GZlibCompressor) compressor = g_zlib_compressor_new(G_ZLIB_COMPRESSOR_FORMAT_GZIP, 1);
		GOutputStream *plain = f->stream;

		f->stream = g_converter_output_stream_new(plain, G_CONVERTER(compressor));
		g_object_unref(plain);
	}
	return g_steal_pointer(&f);
}

void outfile_free(struct outfile *f)
{
	if (!f)
		return;
	g_clear_object(&f->stream);
	if (f->temporary && !f->committed)
		g_unlink(f->temporary);
	g_free(f->temporary);
	g_free(f->path);
	g_free(f);
}

bool outfile_write(struct outfile *f, const void *bytes, gsize n_bytes, GError **error)
{
	GError *cause = NULL;

	return g_output_stream_write_all(f->stream, bytes, n_bytes, NULL, NULL, &cause) || failed(f, cause, error);
}

bool outfile_finish(struct outfile *f, GError **error)
{
	GError *cause = NULL;

	return g_output_stream_close(f->stream, NULL, &cause) || failed(f, cause, error);
}

bool outfile_commit(struct outfile *f, GError **error)
{
	if (f->temporary && g_rename(f->temporary, f->path) != 0) {
		g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_INPUT, "%s: cannot be written: %s", f->path, g_strerror(errno));
		return false;
	}
	f->committed = true;
	return true;
}
