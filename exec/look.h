/* How near pages of host memory are to the cores, and how fast. Huge pages, of LOOK_PAGE bytes; whatever is in them is lost. */
#pragma once

#include <stdbool.h>
#include <stddef.h>

#define LOOK_PAGE ((size_t)2 << 20)

extern const bool look_possible; /* a core can be made to wait for its memory */

/* ns[pages] that a line takes, means over the cores that the process may use. */
bool look_at_pages(char *from, size_t pages, float *ns);
/* All cores read and write page[0..n). */
double look_gbps(char *from, const size_t *page, size_t n);
