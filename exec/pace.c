/* Updates with a gradient of zero, no decay and a learning rate of zero: as many bytes as any other, and the numbers stay what they are. The
 * parameters' copy stands in for the gradient, which is garbage before the first step: it is scaled by zero, and takes as long to read. */
#include "pace.h"

#include "adam.h"
#include "model/quantile.h"
#include "tensors.h"

static const struct adam_step nothing = {.beta1 = 0.9f, .beta2 = 0.999f, .eps = 1e-8f, .t = 1};

static double update_rate(struct adam_pool *pool, const struct store_places *at, size_t n, int format)
{
	const struct adam_args a = {.master = at->master,
	                            .m = at->m,
	                            .v = at->v,
	                            .gradient = at->params,
	                            .out = at->params,
	                            .n = n,
	                            .gradient_format = format,
	                            .out_format = format,
	                            .step = nothing};
	nsec_t start = exec_now_ns();
	adam_update(pool, &a);
	return (double)n / (double)MAX(exec_now_ns() - start, 1);
}

/* The pool of the process's first node: all are alike. */
static struct adam_pool *any_pool(const struct engine *e)
{
	return e->pool[e->first / e->sc->machine->gpus_per_node];
}

void engine_adam_pace(const struct engine *e, struct adam_pace *out)
{
	const int format = e->element == sizeof(float) ? ADAM_FP32 : ADAM_BF16;
	g_autoptr(GArray) rates = g_array_new(FALSE, FALSE, sizeof(double));
	struct store_places at;
	for (int i = 0, moe = 0; e->store && i < e->n->layers; i++) {
		const struct layer *l = &e->n->layer[i];
		for (int x = 0; x < l->experts; x++) {
			if (network_expert_params(e->n, l) != e->widest || !expert_stored(e, i, x) || !store_place(e->store, moe, x, &at))
				continue;
			double rate = update_rate(any_pool(e), &at, e->widest, format);
			g_array_append_val(rates, rate);
		}
		moe += l->experts > 0;
	}
	double *all = (double *)(void *)rates->data;
	double time = 0;
	*out = (struct adam_pace){.experts = (int)rates->len};
	if (!out->experts)
		return;
	for (int i = 0; i < out->experts; i++)
		time += 1 / all[i];
	out->whole = out->experts / time;
	quantile_sort(all, out->experts);
	for (int q = 0; q < 3; q++)
		out->quartile[q] = quantile(all, out->experts, 0.25 * (q + 1));
	out->least = all[0];
	out->most = all[out->experts - 1];
}
