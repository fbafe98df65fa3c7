#include "temporary.h"

#include "model/error.h"

#include <glib/gstdio.h>

char *temporary_folder(const char *what, GError **error)
{
	g_autoptr(GError) cause = NULL;
	char *path = g_dir_make_tmp("esmoe-XXXXXX", &cause);
	if (!path)
		g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_INPUT, "no folder for %s: %s", what, cause->message);
	return path;
}

void temporary_folder_remove(const char *path)
{
	g_autoptr(GDir) dir = path ? g_dir_open(path, 0, NULL) : NULL;
	for (const char *name; dir && (name = g_dir_read_name(dir));) {
		g_autofree char *file = g_build_filename(path, name, NULL);
		g_unlink(file);
	}
	if (path)
		g_rmdir(path);
}
