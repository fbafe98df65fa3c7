/* What is not a GEMM, as passes over HBM. Two tables say how many bytes and launches each stage has: one for fused kernels, one for a framework that
 * runs one kernel an operator (eager; counted from FairSeq's modules: fp32 softmax and GELU with their casts, separate dropout, bias, residual). The
 * eager one is that of GELU and dropout; other activations take its place, and without dropout its passes go.
 *
 *     ReLU                 in 2, out 2                                      gradient: in, out's gradient, out 6
 *     GELU                 cast 6, in fp32 8, cast 6                        30
 *     gated by GELU        the same, product 6                              30 + 10
 *     gated by SiLU        in, out 4, product 6                             6 + 10
 */
#include "cost_inside.h"

/* [kernels][kind][backward] */
static const struct traffic tables[2][N_STAGE_KINDS][2] =
    {
        [KERNELS_FUSED] =
            {
                [STAGE_EMBED] = {{.d = 4, .kernels = 1}, {.d = 8, .kernels = 1}},
                [STAGE_MIXER] = {{.d = 24, .kernels = 6}, {.d = 48, .kernels = 12}},
                [STAGE_GATE] = {{.d = 4, .kernels = 2}, {.d = 8, .kernels = 4}},
                [STAGE_PERMUTE] = {{.d = 4, .kernels = 1}, {.d = 4, .kernels = 1}},
                [STAGE_EXPERT] = {{.f = 4, .kernels = 3}, {.f = 8, .kernels = 6}},
                [STAGE_COMBINE] = {{.d = 8, .kernels = 1}, {.d = 8, .kernels = 1}},
                [STAGE_FFN] = {{.d = 10, .f = 4, .kernels = 4}, {.d = 20, .f = 8, .kernels = 8}},
                [STAGE_SHARED] = {{.f = 4, .kernels = 3}, {.f = 8, .kernels = 6}},
                [STAGE_HEAD] = {{.d = 4, .logit = 12, .kernels = 24}, {0}},
            },
        [KERNELS_EAGER] =
            {
                /* mixer: layer norm 4, q scaling and head transposes 16, dropout 10, residual 6, biases 12, values 10. Scores: QK' 2, mask 4, fp32
                 * softmax 6, cast 6, dropout 5, PV 2 forward; the same chain backward 35. */
                [STAGE_EMBED] = {{.d = 14, .kernels = 5}, {.d = 16, .kernels = 6}},
                [STAGE_MIXER] = {{.d = 58, .score = 25, .kernels = 20}, {.d = 90, .score = 35, .kernels = 40}},
                [STAGE_GATE] = {{.d = 14, .kernels = 22}, {.d = 20, .kernels = 30}},
                [STAGE_PERMUTE] = {{.d = 8, .kernels = 5}, {.d = 8, .kernels = 5}},
                /* expert: GELU in fp32 between two casts 20, dropout 5 of the inner size and 10 behind it */
                [STAGE_EXPERT] = {{.d = 10, .f = 25, .kernels = 7}, {.d = 10, .f = 35, .kernels = 14}},
                [STAGE_COMBINE] = {{.d = 20, .kernels = 5}, {.d = 24, .kernels = 8}},
                [STAGE_FFN] = {{.d = 24, .f = 25, .kernels = 10}, {.d = 36, .f = 35, .kernels = 20}},
                [STAGE_SHARED] = {{.d = 10, .f = 25, .kernels = 7}, {.d = 10, .f = 35, .kernels = 14}},
                /* head: logits 2, fp32 copy 6, log-softmax 8 and its gradient 12, cast 6, two GEMMs read it 4 */
                [STAGE_HEAD] = {{.d = 12, .logit = 38, .kernels = 20}, {0}},
            },
};

/* [activation][backward], of the inner size; backward a kernel for each of the forward's */
static const struct traffic activations[][2] = {[ACTIVATION_RELU] = {{.f = 4, .kernels = 1}, {.f = 6, .kernels = 1}},
                                                [ACTIVATION_GELU] = {{.f = 20, .kernels = 3}, {.f = 30, .kernels = 3}},
                                                [ACTIVATION_GEGLU] = {{.f = 26, .kernels = 4}, {.f = 40, .kernels = 4}},
                                                [ACTIVATION_SWIGLU] = {{.f = 10, .kernels = 2}, {.f = 16, .kernels = 2}}};

/* [kind], forward and backward alike: of the inner size or the scores, and behind the output */
static const struct traffic dropouts[N_STAGE_KINDS] = {[STAGE_MIXER] = {.d = 10, .score = 5, .kernels = 2},
                                                       [STAGE_EXPERT] = {.d = 10, .f = 5, .kernels = 2},
                                                       [STAGE_FFN] = {.d = 10, .f = 5, .kernels = 2},
                                                       [STAGE_SHARED] = {.d = 10, .f = 5, .kernels = 2}};

static void add(struct traffic *t, const struct traffic *other, int times)
{
	t->d += times * other->d;
	t->f += times * other->f;
	t->score += times * other->score;
	t->kernels += times * other->kernels;
}

void cost_traffic(const struct network *n, const struct machine *m, struct traffic traffic[N_STAGE_KINDS][2])
{
	for (int kind = 0; kind < N_STAGE_KINDS; kind++)
		for (int backward = 0; backward < 2; backward++) {
			struct traffic *t = &traffic[kind][backward];
			*t = tables[m->kernels][kind][backward];
			if (m->kernels != KERNELS_EAGER)
				continue;
			if (t->f > 0) {
				add(t, &activations[ACTIVATION_GELU][backward], -1);
				add(t, &activations[n->activation][backward], 1);
			}
			if (!n->dropout)
				add(t, &dropouts[kind], -1);
		}
}
