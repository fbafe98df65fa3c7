/* One file of a known size, whose blocks are claimed when it is made: a disk that is too small says so before the first step and not in the middle of
 * one. Blocks are much larger than a request of the disk, and the schedule keeps reads and writes in their own queues, so plain pread and pwrite with
 * O_DIRECT keep it busy. File systems that refuse direct access are used through the page cache. */
#define _GNU_SOURCE /* O_DIRECT */
#include "store_file.h"

#include "model/error.h"
#include "model/units.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#define MOST_BYTES (1 << 30) /* of one call: the kernel takes no more than 2 GiB */

struct store_file {
	char *path;
	int fd;
};

static int code_of(int reason)
{
	return reason == ENOSPC || reason == EDQUOT || reason == EFBIG ? ESMOE_ERROR_FIT : ESMOE_ERROR_INPUT;
}

static uint64_t free_bytes(int fd)
{
	struct statvfs v;
	return fstatvfs(fd, &v) == 0 ? (uint64_t)v.f_bavail * v.f_frsize : UINT64_MAX;
}

/* Whether the file system keeps its word about direct access: some take the flag and refuse the first access. */
static bool accepts(int fd)
{
	void *page = NULL;
	if (posix_memalign(&page, STORE_PAGE, STORE_PAGE) != 0)
		return false;
	memset(page, 0, STORE_PAGE);
	bool ok = pwrite(fd, page, STORE_PAGE, 0) >= 0 || errno != EINVAL;
	free(page);
	return ok;
}

static int open_file(const char *path)
{
	int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_DIRECT, 0600);
	if (fd < 0 && errno == EINVAL)
		fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	return fd;
}

/* Claims the blocks of an empty file; 0 or the reason. Asks first: the attempt would take all that is left from everybody else. */
static int claim(int fd, uint64_t bytes)
{
	if (ftruncate(fd, 0) != 0)
		return errno;
	if (!accepts(fd) && fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) & ~O_DIRECT) != 0)
		return errno;
	if (bytes > free_bytes(fd))
		return ENOSPC;
	return bytes ? posix_fallocate(fd, 0, (off_t)bytes) : 0;
}

struct store_file *store_file_new(const char *folder, uint64_t bytes, GError **error)
{
	g_autofree char *path = g_build_filename(folder, "experts.bin", NULL);
	int fd = open_file(path);
	if (fd < 0) {
		g_set_error(error, ESMOE_ERROR, code_of(errno), "ssd: %s: %s", path, g_strerror(errno));
		return NULL;
	}
	if (flock(fd, LOCK_EX | LOCK_NB) != 0) {
		g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_INPUT, "ssd: %s: in use by another run", path);
		close(fd);
		return NULL;
	}
	int reason = claim(fd, bytes);
	if (reason) {
		g_set_error(error, ESMOE_ERROR, code_of(reason), "ssd: %s: needs %.3f GiB, %.3f GiB are free: %s", path, (double)bytes / GIB,
		            (double)free_bytes(fd) / GIB, g_strerror(reason));
		(void)unlink(path);
		close(fd);
		return NULL;
	}
	struct store_file *f = g_new(struct store_file, 1);
	*f = (struct store_file){.path = g_steal_pointer(&path), .fd = fd};
	return f;
}

void store_file_free(struct store_file *f)
{
	if (!f)
		return;
	(void)unlink(f->path);
	close(f->fd);
	g_free(f->path);
	g_free(f);
}

static bool transfer(const struct store_file *f, bool write, uint64_t offset, char *p, size_t bytes, GError **error)
{
	g_assert(offset % STORE_PAGE == 0 && bytes % STORE_PAGE == 0 && (uintptr_t)p % STORE_PAGE == 0);
	const char *verb = write ? "write" : "read";
	for (size_t done = 0; done < bytes;) {
		size_t most = MIN(bytes - done, MOST_BYTES);
		ssize_t n = write ? pwrite(f->fd, p + done, most, (off_t)(offset + done)) : pread(f->fd, p + done, most, (off_t)(offset + done));
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0) {
			g_set_error(error, ESMOE_ERROR, errno == ENOSPC ? ESMOE_ERROR_FIT : ESMOE_ERROR_DEVICE,
			            "ssd: %s: %s of %zu bytes at %" G_GUINT64_FORMAT ": %s", f->path, verb, bytes, offset, g_strerror(errno));
			return false;
		}
		if (n == 0) {
			g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_DEVICE, "ssd: %s: %s of %zu bytes at %" G_GUINT64_FORMAT " ended after %zu",
			            f->path, verb, bytes, offset, done);
			return false;
		}
		done += (size_t)n;
	}
	return true;
}

bool store_file_read(const struct store_file *f, uint64_t offset, void *p, size_t bytes, GError **error)
{
	return transfer(f, false, offset, p, bytes, error);
}

bool store_file_write(const struct store_file *f, uint64_t offset, const void *p, size_t bytes, GError **error)
{
	return transfer(f, true, offset, (char *)(uintptr_t)p, bytes, error);
}
