/* Large blocks of host memory. */
#pragma once

#include <stddef.h>
#include <stdint.h>

/* Zeroed huge pages that have memory already, of the process's claim (claim.h) or from the system, brought by all cores: fresh ones come a few GB/s
 * to a thread. Huge ones spare Adam the walks through page tables. NULL: the system has no address space. */
void *pages_new(size_t bytes);
void pages_free(void *p, size_t bytes);

/* The address space alone, from the start of a huge page; and its memory, zeroed. */
char *pages_map(size_t bytes);
void pages_touch(char *p, size_t bytes);

/* What the system, and the control group that this process is in, would still give; 0: unknown. */
uint64_t pages_available(void);
