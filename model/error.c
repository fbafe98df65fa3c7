/* Errors that reach the user, and the suggestion that goes with a misspelt word: the known word with the smallest Levenshtein distance, upper and
 * lower case taken as equal, as long as about two letters in three are right; failing that, a known word that begins
 * with it. */
#include "error.h"

#include <string.h>

enum {
	WORD_LONGEST = 64,   /* anything longer is no misspelling of ours */
	PREFIX_SHORTEST = 3, /* letters of an unfinished word */
};

GQuark esmoe_error_quark(void)
{
	return g_quark_from_static_string("esmoe-error");
}

/* Two rows of the dynamic programme are enough: row i holds the distances of the first i letters of a to every prefix of b. */
static size_t edit_distance(const char *a, const char *b)
{
	size_t row[WORD_LONGEST + 1];
	size_t n = strlen(b);

	for (size_t j = 0; j <= n; j++)
		row[j] = j;
	for (size_t i = 0; a[i]; i++) {
		size_t diagonal = row[0];

		row[0] = i + 1;
		for (size_t j = 0; j < n; j++) {
			size_t replaced = diagonal + (g_ascii_tolower(a[i]) != g_ascii_tolower(b[j]));

			diagonal = row[j + 1];
			row[j + 1] = MIN(replaced, MIN(row[j], diagonal) + 1);
		}
	}
	return row[n];
}

const char *nearest_word(const char *word, const char *const *known)
{
	const char *nearest = NULL;
	size_t length = strlen(word);
	size_t least = 2 + length / 3; /* one past the farthest accepted */

	if (length > WORD_LONGEST)
		return NULL;
	for (const char *const *k = known; *k; k++) {
		size_t distance = strlen(*k) > WORD_LONGEST ? least : edit_distance(word, *k);

		if (distance < least) {
			least = distance;
			nearest = *k;
		}
	}
	for (; *known && !nearest && length >= PREFIX_SHORTEST; known++)
		if (g_ascii_strncasecmp(word, *known, length) == 0)
			nearest = *known;
	return nearest;
}
