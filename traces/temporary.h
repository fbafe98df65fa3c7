/* Folders that nobody sees when their user has gone. */
#pragma once

#include <glib.h>

/* A new one where the system has such folders; `what` it is for, in the error (ESMOE_ERROR_INPUT). Owned by the caller, who removes it. */
char *temporary_folder(const char *what, GError **error);
/* With the files in it. NULL is fine. */
void temporary_folder_remove(const char *path);
