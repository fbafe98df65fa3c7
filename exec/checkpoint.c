/* One pass over the tensors writes a checkpoint through a buffer that hashes what passes; nothing is held twice in memory. The order of events is
 * what survives a kill:
 *
 *     write "step-N.checkpoint.tmp" -> fsync -> rename to "step-N.checkpoint" -> fsync of the folder -> remove older ones
 *
 * Reading goes over the file twice: the first pass only hashes, so that a damaged file is refused before a single parameter has changed. */
#include "checkpoint.h"

#include "model/error.h"

#include <errno.h>
#include <fcntl.h>
#include <glib/gstdio.h>
#include <string.h>
#include <unistd.h>

#define MAGIC "ESMOECK1"
#define NAME_PREFIX "step-"
#define NAME_SUFFIX ".checkpoint"

enum { MAGIC_BYTES = 8, BUFFER_BYTES = 1 << 20, NAME_MOST = 4096 };

G_STATIC_ASSERT(BUFFER_BYTES % sizeof(uint64_t) == 0);
G_STATIC_ASSERT(G_BYTE_ORDER == G_LITTLE_ENDIAN);

/* A file that is written or read from its start through a buffer. Only whole buffers are hashed, and the rest at the end, so the hash does not depend
 * on how the bytes were handed over. */
struct stream {
	const char *path;
	int fd;
	uint64_t hash, bytes; /* of the buffers that passed */
	size_t used, filled;  /* of the buffer: handed over; reading: there */
	uint8_t *buffer;
};

static void stream_clear(struct stream *s)
{
	if (s->fd >= 0)
		close(s->fd);
	g_free(s->buffer);
}

static bool failed(const char *path, const char *what, int reason, GError **error)
{
	g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_INPUT, "%s: %s: %s", path, what, g_strerror(reason));
	return false;
}

static bool damaged(const char *path, const char *what, GError **error)
{
	g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_INPUT, "%s: not a whole checkpoint: %s", path, what);
	return false;
}

static bool stream_open(struct stream *s, const char *path, int flags, GError **error)
{
	*s = (struct stream){.path = path, .fd = open(path, flags | O_CLOEXEC, 0666)};
	if (s->fd < 0)
		return failed(path, "cannot be opened", errno, error);
	s->buffer = g_malloc0(BUFFER_BYTES);
	return true;
}

static uint64_t hash_bytes(uint64_t hash, const uint8_t *bytes, size_t n)
{
	for (size_t i = 0; i < n; i += sizeof(uint64_t)) {
		uint64_t word = 0;
		memcpy(&word, bytes + i, MIN(sizeof word, n - i));
		hash = (hash ^ word) * UINT64_C(0x9e3779b97f4a7c15);
		hash ^= hash >> 29;
	}
	return hash;
}

/* Of all bytes so far. */
static uint64_t stream_hash(const struct stream *s)
{
	return hash_bytes(s->hash, s->buffer, s->used) ^ (s->bytes + s->used);
}

static bool stream_flush(struct stream *s, GError **error)
{
	s->hash = hash_bytes(s->hash, s->buffer, s->used);
	s->bytes += s->used;
	for (size_t done = 0; done < s->used;) {
		ssize_t n = write(s->fd, s->buffer + done, s->used - done);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return failed(s->path, "cannot be written", errno, error);
		done += (size_t)n;
	}
	s->used = 0;
	return true;
}

static bool stream_put(struct stream *s, const void *bytes, size_t n, GError **error)
{
	for (const uint8_t *from = bytes; n > 0;) {
		size_t part = MIN(n, BUFFER_BYTES - s->used);
		memcpy(s->buffer + s->used, from, part);
		s->used += part;
		from += part;
		n -= part;
		if (s->used == BUFFER_BYTES && !stream_flush(s, error))
			return false;
	}
	return true;
}

static bool stream_fill(struct stream *s, GError **error)
{
	s->hash = hash_bytes(s->hash, s->buffer, s->used);
	s->bytes += s->used;
	s->used = s->filled = 0;
	while (s->filled < BUFFER_BYTES) {
		ssize_t n = read(s->fd, s->buffer + s->filled, BUFFER_BYTES - s->filled);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return failed(s->path, "cannot be read", errno, error);
		if (n == 0)
			return s->filled > 0 || damaged(s->path, "it ends too early", error);
		s->filled += (size_t)n;
	}
	return true;
}

/* `bytes` NULL: passes over them. */
static bool stream_get(struct stream *s, void *bytes, size_t n, GError **error)
{
	for (uint8_t *to = bytes; n > 0;) {
		if (s->used == s->filled && !stream_fill(s, error))
			return false;
		size_t part = MIN(n, s->filled - s->used);
		if (to) {
			memcpy(to, s->buffer + s->used, part);
			to += part;
		}
		s->used += part;
		n -= part;
	}
	return true;
}

static bool put_tensor(const char *name, size_t n, float *master, float *m, float *v, float *gradient, void *user, GError **error)
{
	struct stream *s = user;
	uint32_t length = (uint32_t)strlen(name);
	uint64_t count = n;
	g_assert(length > 0 && length <= NAME_MOST);
	return stream_put(s, &length, sizeof length, error) && stream_put(s, name, length, error) && stream_put(s, &count, sizeof count, error) &&
	       stream_put(s, master, n * sizeof(float), error) && stream_put(s, m, n * sizeof(float), error) &&
	       stream_put(s, v, n * sizeof(float), error);
}

static bool write_all(struct stream *s, const struct checkpoint_state *state, const struct checkpoint_tensors *tensors, GError **error)
{
	const uint32_t end = 0;
	if (!stream_put(s, MAGIC, MAGIC_BYTES, error) || !stream_put(s, &state->step, sizeof state->step, error) ||
	    !stream_put(s, &state->seed, sizeof state->seed, error) || !tensors->each(tensors->owner, false, put_tensor, s, error) ||
	    !stream_put(s, &end, sizeof end, error))
		return false;
	uint64_t hash = stream_hash(s);
	if (!stream_put(s, &hash, sizeof hash, error) || !stream_flush(s, error))
		return false;
	return fsync(s->fd) == 0 || failed(s->path, "cannot be written", errno, error);
}

static bool sync_folder(const char *folder, GError **error)
{
	int fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	bool ok = fd >= 0 && fsync(fd) == 0;
	int reason = errno;
	if (fd >= 0)
		close(fd);
	return ok || failed(folder, "cannot be written", reason, error);
}

/* The step of a checkpoint's file name. */
static bool step_of(const char *name, uint64_t *step)
{
	if (!g_str_has_prefix(name, NAME_PREFIX) || !g_str_has_suffix(name, NAME_SUFFIX))
		return false;
	const char *digits = name + strlen(NAME_PREFIX);
	g_autofree char *number = g_strndup(digits, strlen(digits) - strlen(NAME_SUFFIX));
	guint64 value;
	if (!g_ascii_string_to_unsigned(number, 10, 0, G_MAXUINT64, &value, NULL))
		return false;
	*step = value;
	return true;
}

/* Others than that of `step`, and what killed runs left; a file that cannot be removed harms nobody. */
static void remove_others(const char *folder, uint64_t step)
{
	g_autoptr(GDir) dir = g_dir_open(folder, 0, NULL);
	for (const char *name; dir && (name = g_dir_read_name(dir));) {
		g_autofree char *path = g_build_filename(folder, name, NULL);
		uint64_t other;
		if (step_of(name, &other) ? other != step : g_str_has_prefix(name, NAME_PREFIX) && g_str_has_suffix(name, NAME_SUFFIX ".tmp"))
			g_unlink(path);
	}
}

bool checkpoint_prepare(const char *folder, GError **error)
{
	if (g_mkdir_with_parents(folder, 0777) != 0)
		return failed(folder, "cannot be made", errno, error);
	return access(folder, W_OK | X_OK) == 0 || failed(folder, "cannot be written", errno, error);
}

bool checkpoint_save(const char *folder, const struct checkpoint_state *state, const struct checkpoint_tensors *tensors, GError **error)
{
	g_autofree char *path = g_strdup_printf("%s/" NAME_PREFIX "%" G_GUINT64_FORMAT NAME_SUFFIX, folder, state->step);
	g_autofree char *temporary = g_strconcat(path, ".tmp", NULL);
	autoclear(stream) s = {.fd = -1};
	if (!stream_open(&s, temporary, O_WRONLY | O_CREAT | O_TRUNC, error))
		return false;
	if (!write_all(&s, state, tensors, error)) {
		g_unlink(temporary);
		return false;
	}
	if (g_rename(temporary, path) != 0)
		return failed(path, "cannot be written", errno, error);
	if (!sync_folder(folder, error))
		return false;
	remove_others(folder, state->step);
	return true;
}

char *checkpoint_find(const char *path, GError **error)
{
	if (!g_file_test(path, G_FILE_TEST_IS_DIR))
		return g_strdup(path);
	g_autoptr(GError) cause = NULL;
	g_autoptr(GDir) dir = g_dir_open(path, 0, &cause);
	g_autofree char *newest = NULL;
	uint64_t most = 0, step;
	if (!dir) {
		g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_INPUT, "%s: %s", path, cause->message);
		return NULL;
	}
	for (const char *name; (name = g_dir_read_name(dir));)
		if (step_of(name, &step) && (!newest || step > most)) {
			g_free(newest);
			newest = g_build_filename(path, name, NULL);
			most = step;
		}
	if (!newest)
		g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_INPUT, "%s: no checkpoint there; expected a file " NAME_PREFIX "<N>" NAME_SUFFIX, path);
	return g_steal_pointer(&newest);
}

static bool get_head(struct stream *s, struct checkpoint_state *state, GError **error)
{
	char magic[MAGIC_BYTES];
	if (!stream_get(s, magic, sizeof magic, error))
		return false;
	if (memcmp(magic, MAGIC, MAGIC_BYTES) != 0)
		return damaged(s->path, "it does not begin with " MAGIC, error);
	return stream_get(s, &state->step, sizeof state->step, error) && stream_get(s, &state->seed, sizeof state->seed, error);
}

/* Name (owned by the caller) and size of the next tensor; *name is NULL behind the last. */
static bool get_tensor_head(struct stream *s, char **name, uint64_t *n, GError **error)
{
	uint32_t length;
	*name = NULL;
	if (!stream_get(s, &length, sizeof length, error))
		return false;
	if (length == 0)
		return true;
	if (length > NAME_MOST)
		return damaged(s->path, "a tensor's name is too long", error);
	g_autofree char *read = g_malloc0((size_t)length + 1);
	if (!stream_get(s, read, length, error) || !stream_get(s, n, sizeof *n, error))
		return false;
	if (*n > G_MAXSIZE / (3 * sizeof(float)))
		return damaged(s->path, "a tensor is too large", error);
	*name = g_steal_pointer(&read);
	return true;
}

static bool verify(const char *path, GError **error)
{
	autoclear(stream) s = {.fd = -1};
	struct checkpoint_state state;
	if (!stream_open(&s, path, O_RDONLY, error) || !get_head(&s, &state, error))
		return false;
	for (;;) {
		g_autofree char *name = NULL;
		uint64_t n, hash, stored;
		if (!get_tensor_head(&s, &name, &n, error))
			return false;
		if (name && !stream_get(&s, NULL, (size_t)n * 3 * sizeof(float), error))
			return false;
		if (name)
			continue;
		hash = stream_hash(&s);
		if (!stream_get(&s, &stored, sizeof stored, error))
			return false;
		return hash == stored || damaged(path, "its hash does not agree with its bytes", error);
	}
}

static bool get_tensor(const char *name, size_t n, float *master, float *m, float *v, float *gradient, void *user, GError **error)
{
	struct stream *s = user;
	g_autofree char *stored = NULL;
	uint64_t count = 0;
	if (!get_tensor_head(s, &stored, &count, error))
		return false;
	if (!stored || !g_str_equal(stored, name) || count != n) {
		g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_INPUT,
		            "%s: of another network: it has %s of %" G_GUINT64_FORMAT " parameters where this one has %s of %zu", s->path,
		            stored ? stored : "no tensor", count, name, n);
		return false;
	}
	return stream_get(s, master, n * sizeof(float), error) && stream_get(s, m, n * sizeof(float), error) &&
	       stream_get(s, v, n * sizeof(float), error);
}

bool checkpoint_load(const char *file, struct checkpoint_state *state, const struct checkpoint_tensors *tensors, GError **error)
{
	autoclear(stream) s = {.fd = -1};
	g_autofree char *more = NULL;
	uint64_t n;
	if (!verify(file, error) || !stream_open(&s, file, O_RDONLY, error) || !get_head(&s, state, error) ||
	    !tensors->each(tensors->owner, true, get_tensor, &s, error) || !get_tensor_head(&s, &more, &n, error))
		return false;
	if (more)
		g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_INPUT, "%s: of another network: it has %s, which this one has not", file, more);
	return !more;
}
