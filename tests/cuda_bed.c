#include "cuda_bed.h"

#include <cuda_runtime_api.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define GUARD 512 /* bytes behind a block that nobody may touch */
#define GUARD_BYTE 0xa7

static int failures, checks;
static uint64_t state;

bool bed_open(uint64_t seed)
{
	int n = 0;
	state = seed;
	return cudaGetDeviceCount(&n) == cudaSuccess && n > 0;
}

int bed_failures(void)
{
	return failures;
}

/* ---- numbers ---- */

uint64_t bed_random(void)
{
	uint64_t x = state += UINT64_C(0x9e3779b97f4a7c15);
	x = (x ^ (x >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
	x = (x ^ (x >> 27)) * UINT64_C(0x94d049bb133111eb);
	return x ^ (x >> 31);
}

int bed_random_below(int n)
{
	return (int)(bed_random() % (uint64_t)n);
}

double bed_random_between(double from, double to)
{
	return from + (to - from) * (double)(bed_random() >> 11) * 0x1p-53;
}

float bed_widen(bf16 x)
{
	uint32_t bits = (uint32_t)x << 16;
	float f;
	memcpy(&f, &bits, sizeof(f));
	return f;
}

bf16 bed_narrow(float x)
{
	uint32_t bits;
	memcpy(&bits, &x, sizeof(bits));
	return (bf16)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

void *bed_zeros(size_t bytes)
{
	void *p = calloc(bytes + 16, 1);
	if (!p)
		abort();
	return p;
}

bf16 *bed_bf16s(size_t n, double limit)
{
	bf16 *x = bed_zeros(n * sizeof(*x));
	for (size_t i = 0; i < n; i++)
		x[i] = bed_narrow((float)bed_random_between(-limit, limit));
	return x;
}

bf16 *bed_eighths(size_t n)
{
	bf16 *x = bed_zeros(n * sizeof(*x));
	for (size_t i = 0; i < n; i++)
		x[i] = bed_narrow((float)(bed_random_below(65) - 32) / 8);
	return x;
}

float *bed_floats(size_t n, double limit)
{
	float *x = bed_zeros(n * sizeof(*x));
	for (size_t i = 0; i < n; i++)
		x[i] = (float)bed_random_between(-limit, limit);
	return x;
}

/* ---- blocks ---- */

static void must(struct bed *b, cudaError_t status, const char *what)
{
	if (status != cudaSuccess)
		bed_fail(b, "%s: %s", what, cudaGetErrorString(status));
}

void *bed_block_skewed(struct bed *b, const char *name, const void *data, size_t bytes, size_t skip)
{
	struct bed_block *x = &b->block[b->blocks++];
	void *p = NULL;
	if (b->blocks > BED_BLOCKS)
		abort();
	must(b, cudaMalloc(&p, skip + bytes + GUARD), "cudaMalloc");
	*x = (struct bed_block){name, data, bytes, (unsigned char *)p + skip, {bed_zeros(bytes + GUARD), bed_zeros(bytes + GUARD)}};
	x->device = (unsigned char *)p + skip;
	return x->device;
}

void *bed_block(struct bed *b, const char *name, const void *data, size_t bytes)
{
	return bed_block_skewed(b, name, data, bytes, 0);
}

static void prepare(struct bed *b)
{
	for (int i = 0; i < b->blocks; i++) {
		struct bed_block *x = &b->block[i];
		if (x->initial)
			must(b, cudaMemcpy(x->device, x->initial, x->bytes, cudaMemcpyHostToDevice), "an upload");
		else
			must(b, cudaMemset(x->device, b->passes ? 0x5b : 0xff, x->bytes), "poison");
		must(b, cudaMemset(x->device + x->bytes, GUARD_BYTE, GUARD), "a guard");
	}
	must(b, cudaDeviceSynchronize(), "preparing");
}

static void collect(struct bed *b, int pass)
{
	must(b, cudaGetLastError(), "a launch");
	must(b, cudaDeviceSynchronize(), "a kernel");
	for (int i = 0; i < b->blocks; i++) {
		struct bed_block *x = &b->block[i];
		must(b, cudaMemcpy(x->result[pass], x->device, x->bytes + GUARD, cudaMemcpyDeviceToHost), "a download");
		for (size_t j = 0; j < GUARD; j++)
			if (x->result[pass][x->bytes + j] != GUARD_BYTE) {
				bed_fail(b, "%s is written beyond its end (byte %zu)", x->name, j);
				break;
			}
		if (pass && x->name[0] != '(' && memcmp(x->result[0], x->result[1], x->bytes))
			bed_fail(b, "%s differs between two runs", x->name);
	}
}

bool bed_run(struct bed *b)
{
	if (b->passes)
		collect(b, b->passes - 1);
	if (b->passes == 2)
		return false;
	prepare(b);
	b->passes++;
	return true;
}

const void *bed_result(const struct bed *b, const void *device)
{
	for (int i = 0; i < b->blocks; i++)
		if (b->block[i].device == device)
			return b->block[i].result[0];
	abort();
}

void bed_fail(struct bed *b, const char *format, ...)
{
	va_list args;
	if (b->failure[0])
		return;
	va_start(args, format);
	vsnprintf(b->failure, sizeof(b->failure), format, args);
	va_end(args);
}

void bed_end(struct bed *b, const char *format, ...)
{
	va_list args;
	va_start(args, format);
	printf("%s %d - ", b->failure[0] ? "not ok" : "ok", ++checks);
	vprintf(format, args);
	printf(b->failure[0] ? ": %s\n" : "%s\n", b->failure);
	va_end(args);
	failures += b->failure[0] != 0;
	for (int i = 0; i < b->blocks; i++) {
		struct bed_block *x = &b->block[i];
		cudaFree((void *)((uintptr_t)x->device / 256 * 256));
		free(x->result[0]);
		free(x->result[1]);
	}
	*b = (struct bed){0};
}

/* ---- comparisons ---- */

static const char *name_of(const struct bed *b, const void *device)
{
	for (int i = 0; i < b->blocks; i++)
		if (b->block[i].device == device)
			return b->block[i].name;
	return "?";
}

static bool close_to(struct bed *b, const void *device, size_t i, double got, double want, double relative, double absolute)
{
	bool ok = fabs(got - want) <= absolute + relative * fabs(want);
	if (!ok)
		bed_fail(b, "%s[%zu] = %.9g, not %.9g", name_of(b, device), i, got, want);
	return ok;
}

void bed_close_bf16(struct bed *b, const bf16 *device, const double *want, size_t n, double relative, double absolute)
{
	const bf16 *got = bed_result(b, device);
	for (size_t i = 0; i < n && close_to(b, device, i, (double)bed_widen(got[i]), want[i], relative, absolute); i++)
		continue;
}

void bed_close_float(struct bed *b, const float *device, const double *want, size_t n, double relative, double absolute)
{
	const float *got = bed_result(b, device);
	for (size_t i = 0; i < n && close_to(b, device, i, (double)got[i], want[i], relative, absolute); i++)
		continue;
}

void bed_equal(struct bed *b, const void *device, const void *want, size_t bytes)
{
	const unsigned char *got = bed_result(b, device), *w = want;
	for (size_t i = 0; i < bytes; i++)
		if (got[i] != w[i]) {
			bed_fail(b, "%s differs at byte %zu", name_of(b, device), i);
			return;
		}
}
