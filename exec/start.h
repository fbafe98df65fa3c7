/* Initial parameters: each value is a function of the seed, the tensor's name and the element's number, so it is the same wherever the tensor lives.
 */
#pragma once

#include <math.h>
#include <stddef.h>
#include <stdint.h>

enum tensor_start { START_WEIGHT, START_OUTPUT, START_GAIN, START_BIAS };

struct start {
	uint64_t key;
	double deviation;
	int start; /* enum tensor_start */
};

/* splitmix64 (Steele, Lea, Flood, OOPSLA 2014): a counter in, 64 random bits out. */
static inline uint64_t start_mix(uint64_t x)
{
	x += UINT64_C(0x9e3779b97f4a7c15);
	x = (x ^ (x >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
	x = (x ^ (x >> 27)) * UINT64_C(0x94d049bb133111eb);
	return x ^ (x >> 31);
}

static inline double start_uniform(uint64_t bits)
{
	return ((double)(bits >> 11) + 0.5) * 0x1p-53;
}

/* Element i; normal by Box and Muller. */
static inline float start_value(const struct start *s, uint64_t i)
{
	if (s->start == START_GAIN || s->start == START_BIAS)
		return s->start == START_GAIN;
	uint64_t bits = start_mix(s->key + i);
	return (float)(s->deviation * sqrt(-2 * log(start_uniform(bits))) *
	               cos(2 * 3.14159265358979323846 * start_uniform(start_mix(bits ^ s->key))));
}
