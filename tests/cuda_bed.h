/* What the checks of CUDA kernels share: blocks of device memory with guards behind them, a launch that is made twice, comparisons, lines of a
 * report.
 *
 *     struct bed b = {0};
 *     bf16 *y = bed_block(&b, "y", NULL, bytes);              poisoned, otherwise than in the first run when it runs again
 *     const bf16 *x = bed_block(&b, "x", data, bytes);        the same in both
 *     while (bed_run(&b))                                     twice; then both results must be the same bits and no guard touched
 *             cuda_some_kernel(NULL, y, x, ...);
 *     bed_close_to(&b, y, want, n, ...); bed_end(&b, "some_kernel, N = %d", N);
 */
#pragma once

#include "exec/cuda/kernels.h"

#define BED_BLOCKS 16

struct bed_block {
	const char *name;
	const void *initial; /* NULL: poisoned */
	size_t bytes;
	unsigned char *device, *result[2];
};

struct bed {
	struct bed_block block[BED_BLOCKS];
	int blocks, passes;
	char failure[256]; /* the first */
};

/* Opens the GPU; false when there is none. `seed` of the random numbers. */
bool bed_open(uint64_t seed);
int bed_failures(void);

/* Device memory; `data` must live until bed_end. `skip` bytes off a 256-byte boundary. */
void *bed_block_skewed(struct bed *b, const char *name, const void *data, size_t bytes, size_t skip);
void *bed_block(struct bed *b, const char *name, const void *data, size_t bytes);
bool bed_run(struct bed *b);
/* What the first run left in a block, for its device pointer. */
const void *bed_result(const struct bed *b, const void *device);
void bed_fail(struct bed *b, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* Prints a line, frees everything. */
void bed_end(struct bed *b, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* got within `absolute` + `relative` |want| of want (n), all of them numbers. */
void bed_close_bf16(struct bed *b, const bf16 *device, const double *want, size_t n, double relative, double absolute);
void bed_close_float(struct bed *b, const float *device, const double *want, size_t n, double relative, double absolute);
void bed_equal(struct bed *b, const void *device, const void *want, size_t bytes);

/* ---- numbers ---- */
uint64_t bed_random(void);
int bed_random_below(int n);
double bed_random_between(double from, double to);
float bed_widen(bf16 x);
bf16 bed_narrow(float x); /* to nearest even */
/* n of them, from -limit to limit; free() them. */
bf16 *bed_bf16s(size_t n, double limit);
float *bed_floats(size_t n, double limit);
/* Whole numbers of eighths, at most 4: any sum of few thousands is exact in fp32. */
bf16 *bed_eighths(size_t n);
void *bed_zeros(size_t bytes);

/* Half a unit of bf16's last place, twice over: one for the result, one for what rounding the exact value may differ by. */
#define BED_BF16 0.00390625

/* ---- the checks (cuda_*.c); all of them with sizes up to `rows` rows ---- */
void check_elements(int rows);
void check_rows(int rows);
void check_gate(int rows);
void check_routes(int rows);
/* Prints microseconds and GB/s. */
void time_kernels(void);
