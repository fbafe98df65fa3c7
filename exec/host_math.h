/* exp for loops that the compiler turns into vectors: no call, no branch. */
#pragma once

#include <stdint.h>

/* Within 2e-7 of e^x, relative, from -87 to 87; beyond, the value at the end: neither it nor its inverse is denormal, which would be slow. x = n ln 2
 * + r: adding ROUND leaves n in the low bits of the sum, and e^r for |r| <= ln 2 / 2 is the polynomial of Cephes' expf. */
static inline float fast_exp(float x)
{
	const float ROUND = 12582912.0f; /* 1.5 * 2^23 */
	union {
		float f;
		uint32_t u;
	} n, power;
	x = x < -87.0f ? -87.0f : x;
	x = x > 87.0f ? 87.0f : x;
	n.f = x * 1.44269504088896341f + ROUND;
	float whole = n.f - ROUND;
	float r = x - whole * 0.693359375f + whole * 2.12194440e-4f;
	float p = 1.9875691500e-4f;
	p = p * r + 1.3981999507e-3f;
	p = p * r + 8.3334519073e-3f;
	p = p * r + 4.1665795894e-2f;
	p = p * r + 1.6666665459e-1f;
	p = p * r + 5.0000001201e-1f;
	power.u = (n.u - 0x4b400000u + 127) << 23;
	return (p * r * r + r + 1.0f) * power.f;
}
