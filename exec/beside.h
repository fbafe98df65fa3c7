/* What copies cost what a GPU computes beside them: they read and write its memory. */
#pragma once

#include "warmth.h"

/* Fills copy_gemm_slowdown, copy_up_share, copy_down_share, copy_exposed_us and copy_mixer_share from the experts and mixers of runs that wait: those
 * that copies accompany, in company of CPU Adam, over their like without; a hot GPU's times by m's law (warmth_fit comes first). Keeps what no span
 * tells. */
void beside_fit(const struct warm_run *runs, int n, struct machine *m);

/* By index of span: for which share of its time copies of GPU 0 went on while it computed. Owned by the caller. */
double *beside_cover(const struct trace *trace, stream_id copies);
