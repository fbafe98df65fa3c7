/* JSON text put together by hand in a buffer before a file: for files of hundreds of megabytes. Room is asked for once, then filled with the put
 * functions, each of which returns where the next goes; the last result is stored in `at`. */
#pragma once

#include "outfile.h"

#include <stdint.h>
#include <string.h>

enum { JSON_OUT_BYTES = 1 << 18 };

struct json_out {
	struct outfile *file;
	char *at;
	char buffer[JSON_OUT_BYTES];
	GError *error; /* the first; nothing is written after it */
};

void json_flush(struct json_out *j);

/* Where the next n bytes may be put; n at most JSON_OUT_BYTES. */
char *json_room(struct json_out *j, size_t n);

void json_text(struct json_out *j, const char *s, size_t n);
void json_print(struct json_out *j, const char *format, ...) G_GNUC_PRINTF(2, 3);

/* A JSON string with its quotes. Bytes past ASCII go through as they are: the file is UTF-8. Owned by the caller. */
char *json_quote(const char *s);

#define PUT(p, literal) put((p), (literal), sizeof(literal) - 1)

static inline char *put(char *p, const char *text, size_t n)
{
	memcpy(p, text, n);
	return p + n;
}

static inline char *put_unsigned(char *p, uint64_t v)
{
	char digits[20];
	char *d = digits + sizeof(digits);

	do {
		*--d = (char)('0' + v % 10);
		v /= 10;
	} while (v);
	return put(p, d, (size_t)(digits + sizeof(digits) - d));
}

static inline char *put_signed(char *p, int64_t v)
{
	if (v < 0)
		*p++ = '-';
	return put_unsigned(p, v < 0 ? -(uint64_t)v : (uint64_t)v);
}

/* Thousandths with three decimals: nanoseconds as microseconds. */
static inline char *put_milli(char *p, int64_t v)
{
	uint64_t u = v < 0 ? -(uint64_t)v : (uint64_t)v;
	unsigned rest = (unsigned)(u % 1000);

	if (v < 0)
		*p++ = '-';
	p = put_unsigned(p, u / 1000);
	*p++ = '.';
	*p++ = (char)('0' + rest / 100);
	*p++ = (char)('0' + rest / 10 % 10);
	*p++ = (char)('0' + rest % 10);
	return p;
}
