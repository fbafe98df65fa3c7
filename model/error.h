/* Errors that reach the user. A GError of ESMOE_ERROR carries as its code the exit status that main returns. */
#pragma once

#include <glib.h>

#define ESMOE_ERROR (esmoe_error_quark())
GQuark esmoe_error_quark(void);

enum esmoe_error {
	ESMOE_ERROR_USAGE = 2,    /* wrong command line */
	ESMOE_ERROR_INPUT = 3,    /* unreadable or inconsistent input: file, line, key, value, and what would be accepted */
	ESMOE_ERROR_FIT = 4,      /* does not fit in memory: tier, need, room, the largest that would fit */
	ESMOE_ERROR_DEVICE = 5,   /* device missing or failed */
	ESMOE_ERROR_SIGNAL = 128, /* plus the signal that interrupted the work */
};

/* The entry of `known` (NULL-terminated) nearest to `word` by edit distance, or NULL when none is near. Borrowed. */
const char *nearest_word(const char *word, const char *const *known);
