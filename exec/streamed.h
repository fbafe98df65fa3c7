/* What kernels that stream through HBM cost all-to-alls beside them, from runs of several GPUs with equal loads. */
#pragma once

#include "traces/trace.h"

/* An exchange: the shorter of its members' times, and the share of it beside which such kernels ran. */
struct streamed {
	double bytes, us, cover;
};

/* By index of span: of a collective, the share of its time in which its GPU permuted, combined or embedded rows; 0 for all else. Owned by the caller.
 */
double *streamed_cover(const struct trace *trace);
/* Adds the exchanges of a trace of two GPUs that waited neither for a launch nor for the other member (struct streamed). */
void streamed_add(const struct trace *trace, const double *cover, GArray *exchanges);
/* nvlink.stream_share: what an exchange loses of its speed beside such kernels, by the middle one; 0 when none was beside any, or all were. */
double streamed_share(const GArray *exchanges);
bool streamed_alone(double cover); /* so little of it that it tells what a collective takes alone */
