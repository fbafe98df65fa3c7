/* The file under the store: as large as it will ever be from the start, read and written in whole pages around the page cache. */
#pragma once

#include "model/autoptr.h"

#include <glib.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define STORE_PAGE 4096 /* memory, offsets and lengths are multiples of it */

static inline size_t store_pages(size_t bytes)
{
	return (bytes + STORE_PAGE - 1) / STORE_PAGE * STORE_PAGE;
}

/* Makes `folder`/experts.bin, zeroed; what a killed run left there goes. ESMOE_ERROR_FIT when the file system has less room, ESMOE_ERROR_INPUT when
 * there is no such folder or another run has the file. */
struct store_file;
struct store_file *store_file_new(const char *folder, uint64_t bytes, GError **error) G_GNUC_WARN_UNUSED_RESULT;
void store_file_free(struct store_file *f); /* and removes it */
AUTOPTR(store_file)

/* All the bytes or an error that names file, offset and reason. Any thread, any number of them at a time. */
bool store_file_read(const struct store_file *f, uint64_t offset, void *p, size_t bytes, GError **error) G_GNUC_WARN_UNUSED_RESULT;
bool store_file_write(const struct store_file *f, uint64_t offset, const void *p, size_t bytes, GError **error) G_GNUC_WARN_UNUSED_RESULT;
