/* Reading .ini files into structs by a table of keys. Every error names file, line, key, value and what would be accepted. */
#pragma once

#include "preset.h"

#include <glib.h>
#include <stdbool.h>
#include <stddef.h>

enum ini_type {
	INI_STRING,      /* char *, owned */
	INI_INT,         /* int */
	INI_DOUBLE,      /* double */
	INI_BOOL,        /* bool: true or false */
	INI_CHOICE,      /* int: the index of the word in `choices` */
	INI_INT_LIST,    /* struct ini_ints: 1, 2, 3 */
	INI_DOUBLE_LIST, /* struct ini_doubles */
};

struct ini_ints {
	int *v;
	int n;
}; /* owned */
struct ini_doubles {
	double *v;
	int n;
}; /* owned */

struct ini_key {
	const char *section, *key;
	enum ini_type type;
	size_t offset;              /* of the field in the struct that is filled */
	const char *fallback;       /* text used when the key is absent; NULL: the key is required */
	double min, max;            /* accepted range of numbers and of each list element, inclusive */
	const char *const *choices; /* NULL-terminated; INI_INT: words for min, min + 1, ..., may be NULL */
	const char *help;           /* one line, with the unit */
};

/* Fills *out from `source`: a preset name of folder `kind` ("networks", "machines" or "policies"); a path, when it holds a slash or ends in .ini; or
 * the text itself, when it holds a newline. `overrides` (NULL-terminated "section.key=value", may be NULL): those whose section occurs in `keys`
 * replace the file's values, the last one wins, others are left to the other readers. Unknown sections and keys, repeated ones, missing keys, numbers
 * that are not finite or out of range are errors; sections of the project's other readers are passed over. *name, if not NULL, receives the preset's
 * or file's base name (owned by the caller; "unnamed" for a text). On error nothing in *out is owned. Thread-safe. */
bool ini_read(const char *kind, const char *source, const struct ini_key *keys, size_t n_keys, const char *const *overrides, void *out, char **name,
              GError **error) G_GNUC_WARN_UNUSED_RESULT;

/* For checks across keys after ini_read with the same arguments: sets an error that says where section.key has its value, then the printf-like text,
 * which should hold the value and what would be accepted. Always false. */
bool ini_refuse(const char *kind, const char *source, const char *const *overrides, const char *section, const char *key, GError **error,
                const char *format, ...) G_GNUC_PRINTF(7, 8);

/* Writes every key with its value, section by section, each with its help as a comment: an .ini that ini_read takes back. Owned by the caller. */
char *ini_write(const struct ini_key *keys, size_t n_keys, const void *in);

/* The value of one key as ini_write writes it. Owned by the caller. */
char *ini_text(const struct ini_key *key, const void *in);

/* Frees what ini_read allocated in *out. */
void ini_clear(const struct ini_key *keys, size_t n_keys, void *out);
