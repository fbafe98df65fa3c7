/* Where .ini texts come from: presets compiled into the program, files, or a text at hand. */
#pragma once

#include <glib.h>

/* The text of a preset as it is in the tree, with its comments, or an error that names the nearest. Owned by the caller. */
char *preset_text(const char *kind, const char *name, GError **error) G_GNUC_WARN_UNUSED_RESULT;

/* The preset names of a kind ("networks", "machines", "policies") in alphabetical order, NULL-terminated. Free with g_strfreev. */
char **preset_names(const char *kind);

/* The text of a source as ini_read takes it, UTF-8 and at most 1 MiB: of a preset of `kind`; of a file, when it holds a slash or ends in .ini; or
 * `source` itself, when it holds a newline. *file receives what errors call it (NULL for a text), *name its base name. NULL on error. All owned by
 * the caller. */
char *source_text(const char *kind, const char *source, char **file, char **name, GError **error) G_GNUC_WARN_UNUSED_RESULT;
