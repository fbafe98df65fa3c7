/* A file that appears whole or not at all: written under a temporary name beside its place, renamed when complete. */
#pragma once

#include "model/autoptr.h"

#include <gio/gio.h>
#include <stdbool.h>

struct outfile;

/* Begins `path`; gzip-compressed if asked. An existing path that is no regular file (a terminal, a pipe, /dev/null) is written in place. NULL when it
 * cannot be created. Owned by the caller. */
struct outfile *outfile_new(const char *path, bool gzip, GError **error) G_GNUC_WARN_UNUSED_RESULT;
/* Removes what was not committed. */
void outfile_free(struct outfile *f);
AUTOPTR(outfile)

/* Every error is ESMOE_ERROR_INPUT and names the file and the reason. Finish after the last byte, then commit gives the file its name. */
bool outfile_write(struct outfile *f, const void *bytes, gsize n_bytes, GError **error) G_GNUC_WARN_UNUSED_RESULT;
bool outfile_finish(struct outfile *f, GError **error) G_GNUC_WARN_UNUSED_RESULT;
bool outfile_commit(struct outfile *f, GError **error) G_GNUC_WARN_UNUSED_RESULT;
