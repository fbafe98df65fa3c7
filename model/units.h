/* Scalars with units. Time is integer nanoseconds everywhere; a rate in GB/s is the same number in bytes per nanosecond. */
#pragma once

#include <stdint.h>

typedef int64_t nsec_t;

#define NSEC_PER_USEC INT64_C(1000)
#define NSEC_PER_MSEC INT64_C(1000000)
#define NSEC_PER_SEC INT64_C(1000000000)
#define GB 1e9
#define GIB 1073741824.0
