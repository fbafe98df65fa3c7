/* A file is never mapped: a disk that fails or a file cut short while a run reads it is then an error of one read, not a fault. Each sequence is one
 * positioned read of seq_len + 1 tokens, of which the first seq_len are the inputs and the last seq_len the targets:
 *
 *     place     t0 t1 t2 ... t(n-1) tn
 *     tokens    t0 t1 t2 ... t(n-1)
 *     targets      t1 t2 ... t(n-1) tn
 *
 * Places are a hash of seed, step and the sequence's number in the global batch, so nobody keeps a position and nothing has to be saved to resume. */
#include "data.h"

#include "model/error.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* llm.c's header: 256 int32, of which these are read. */
enum { HEADER_MAGIC = 20240520, HEADER_VERSION_16 = 1, HEADER_BYTES = 1024 };

enum { SCAN_BYTES = 1 << 20, BRANCHES = 4 };

struct data {
	char *path; /* NULL: synthetic */
	int fd, vocab;
	int width;       /* bytes of a token in the file */
	uint64_t start;  /* byte of the first token */
	uint64_t tokens; /* in the file */
	uint64_t seed;
};

/* splitmix64 (Steele, Lea, Flood, OOPSLA 2014). */
static uint64_t mix(uint64_t x)
{
	x += UINT64_C(0x9e3779b97f4a7c15);
	x = (x ^ (x >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
	x = (x ^ (x >> 27)) * UINT64_C(0x94d049bb133111eb);
	return x ^ (x >> 31);
}

static bool refuse(const struct data *d, GError **error, const char *format, ...) G_GNUC_PRINTF(3, 4);
static bool refuse(const struct data *d, GError **error, const char *format, ...)
{
	va_list args;
	va_start(args, format);
	g_autofree char *what = g_strdup_vprintf(format, args);
	va_end(args);
	g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_INPUT, "%s: %s", d->path, what);
	return false;
}

static bool read_at(const struct data *d, uint64_t offset, void *bytes, size_t n, GError **error)
{
	for (size_t done = 0; done < n;) {
		ssize_t got = pread(d->fd, (char *)bytes + done, n - done, (off_t)(offset + done));
		if (got < 0 && errno == EINTR)
			continue;
		if (got < 0)
			return refuse(d, error, "cannot be read at byte %" G_GUINT64_FORMAT ": %s", offset + done, g_strerror(errno));
		if (got == 0)
			return refuse(d, error, "ends at byte %" G_GUINT64_FORMAT ": it became shorter while it was read", offset + done);
		done += (size_t)got;
	}
	return true;
}

/* Token i of `bytes`, little-endian. */
static int32_t token_at(const struct data *d, const uint8_t *bytes, size_t i)
{
	return d->width == 1 ? bytes[i] : bytes[2 * i] | bytes[2 * i + 1] << 8;
}

/* `offset`: of bytes[0] in the file. */
static bool check_tokens(const struct data *d, uint64_t offset, const uint8_t *bytes, size_t n, GError **error)
{
	for (size_t i = 0; i < n; i++)
		if (token_at(d, bytes, i) >= d->vocab)
			return refuse(d, error, "byte %" G_GUINT64_FORMAT ": token %d; expected 0 to %d, the network's vocabulary%s",
			              offset + i * (size_t)d->width, token_at(d, bytes, i), d->vocab - 1,
			              d->width == 1 ? "" : ", as uint16 little-endian");
	return true;
}

/* The whole file, so that a wrong token is found now and not after hours of training. */
static bool scan(const struct data *d, GError **error)
{
	g_autofree uint8_t *bytes = g_malloc(SCAN_BYTES);
	uint64_t end = d->start + d->tokens * (uint64_t)d->width;
	if (d->vocab > (d->width == 1 ? G_MAXUINT8 : G_MAXUINT16))
		return true;
	for (uint64_t at = d->start; at < end;) {
		size_t n = (size_t)MIN((uint64_t)SCAN_BYTES, end - at);
		if (!read_at(d, at, bytes, n, error) || !check_tokens(d, at, bytes, n / (size_t)d->width, error))
			return false;
		at += n;
	}
	return true;
}

/* A .bin file: llm.c's when it starts with its magic number, plain uint16 otherwise. */
static bool read_header(struct data *d, uint64_t size, GError **error)
{
	int32_t header[3];
	d->width = 2;
	if (size >= sizeof header) {
		if (!read_at(d, 0, header, sizeof header, error))
			return false;
		for (size_t i = 0; i < G_N_ELEMENTS(header); i++)
			header[i] = GINT32_FROM_LE(header[i]);
		if (header[0] == HEADER_MAGIC) {
			if (header[1] != HEADER_VERSION_16)
				return refuse(d, error, "llm.c token file of version %d; expected %d, uint16 tokens", header[1], HEADER_VERSION_16);
			d->start = HEADER_BYTES;
			if (size < HEADER_BYTES || header[2] < 0 || size - HEADER_BYTES != 2 * (uint64_t)header[2])
				return refuse(d, error, "its header promises %d tokens; %" G_GUINT64_FORMAT " bytes do not hold them", header[2],
				              size);
		}
	}
	if ((size - d->start) % 2)
		return refuse(d, error, "%" G_GUINT64_FORMAT " bytes; expected uint16 tokens, an even number", size);
	return true;
}

static bool open_file(struct data *d, GError **error)
{
	struct stat st;
	do
		d->fd = open(d->path, O_RDONLY | O_CLOEXEC);
	while (d->fd < 0 && errno == EINTR);
	if (d->fd < 0)
		return refuse(d, error, "cannot be opened: %s", g_strerror(errno));
	if (fstat(d->fd, &st) != 0)
		return refuse(d, error, "cannot be read: %s", g_strerror(errno));
	if (!S_ISREG(st.st_mode))
		return refuse(d, error, "is not a regular file; expected a text or a .bin of uint16 tokens");
	d->width = 1;
	if (g_str_has_suffix(d->path, ".bin") && !read_header(d, (uint64_t)st.st_size, error))
		return false;
	d->tokens = ((uint64_t)st.st_size - d->start) / (uint64_t)d->width;
	if (d->tokens < 2)
		return refuse(d, error, "%" G_GUINT64_FORMAT " tokens; expected one sequence and one more token at least", d->tokens);
	return scan(d, error);
}

struct data *data_open(const char *path, int vocab, uint64_t seed, GError **error)
{
	g_autoptr(data) d = g_new0(struct data, 1);
	g_assert(vocab > 0);
	*d = (struct data){.path = g_strdup(path), .fd = -1, .vocab = vocab, .seed = seed};
	if (path && !open_file(d, error))
		return NULL;
	return g_steal_pointer(&d);
}

void data_free(struct data *d)
{
	if (!d)
		return;
	if (d->fd >= 0)
		close(d->fd);
	g_free(d->path);
	g_free(d);
}

/* The chain: each token has four successors drawn from the seed, with probabilities 1/2, 1/4, 1/8, 1/8. */
static void draw_chain(const struct data *d, uint64_t key, int n, int32_t *tokens, int32_t *targets)
{
	int32_t token = (int32_t)(mix(key) % (uint64_t)d->vocab);
	for (int i = 0; i < n; i++) {
		uint64_t draw = mix(key + (uint64_t)i + 1);
		uint64_t branch = MIN((uint64_t)__builtin_ctzll(draw | 1 << (BRANCHES - 1)), BRANCHES - 1);
		tokens[i] = token;
		token = (int32_t)(mix(mix(d->seed) ^ ((uint64_t)token * BRANCHES + branch)) % (uint64_t)d->vocab);
		targets[i] = token;
	}
}

bool data_batch(const struct data *d, uint64_t step, uint64_t first, int sequences, int seq_len, int32_t *tokens, int32_t *targets, GError **error)
{
	size_t n = (size_t)seq_len + 1, width = (size_t)d->width;
	g_autofree uint8_t *bytes = d->path ? g_malloc(n * width) : NULL;
	if (d->path && d->tokens < n)
		return refuse(d, error, "%" G_GUINT64_FORMAT " tokens; expected one sequence and one more token, %zu, at least", d->tokens, n);
	for (int i = 0; i < sequences; i++) {
		uint64_t key = mix(mix(mix(d->seed) ^ step) ^ (first + (uint64_t)i));
		int32_t *in = tokens + (size_t)i * (size_t)seq_len, *out = targets + (size_t)i * (size_t)seq_len;
		if (!d->path) {
			draw_chain(d, key, seq_len, in, out);
			continue;
		}
		uint64_t offset = d->start + key % (d->tokens - n + 1) * width;
		if (!read_at(d, offset, bytes, n * width, error) || !check_tokens(d, offset, bytes, n, error))
			return false;
		for (size_t j = 0; j + 1 < n; j++) {
			in[j] = token_at(d, bytes, j);
			out[j] = token_at(d, bytes, j + 1);
		}
	}
	return true;
}
