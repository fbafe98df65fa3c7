/* The CUDA kernels but attention: each launcher against a plain loop on the CPU, on fresh random inputs; made twice, the same bits; nothing written
 * beyond a buffer. Without Criterion, which machines with GPUs may not have. Lines are TAP's; exit 77 without a GPU.
 *
 *     cuda-kernels [seed [rows]]     checks, with at most `rows` rows (fewer for compute-sanitizer)
 *     cuda-kernels time              microseconds and GB/s of large sizes
 */
#include "cuda_bed.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

int main(int argc, char **argv)
{
	uint64_t seed = argc > 1 ? strtoull(argv[1], NULL, 10) : (uint64_t)time(NULL);
	int rows = argc > 2 ? atoi(argv[2]) : 1000;
	if (!bed_open(seed)) {
		printf("1..0 # skip: no GPU\n");
		return 77;
	}
	if (argc > 1 && !strcmp(argv[1], "time")) {
		time_kernels();
		return 0;
	}
	printf("# seed %" PRIu64 "\n", seed);
	check_elements(rows);
	check_rows(rows);
	check_gate(rows);
	check_routes(rows);
	printf("# %d failed\n", bed_failures());
	return bed_failures() > 0;
}
