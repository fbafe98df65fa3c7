/* AdamW on the host device: the CPU optimizer's own loop, on the stream's thread, so that a parameter gets the same bits wherever it lives. */
#include "adam.h"
#include "host.h"

#include <string.h>

struct adam {
	float *param, *master, *m, *v, *gradient;
	size_t n;
	struct adam_step step;
};

static void run_adam(struct host_stream *s, const void *args)
{
	const struct adam *c = args;
	float *master = c->master ? c->master : c->param;
	struct adam_args a = {.master = master,
	                      .m = c->m,
	                      .v = c->v,
	                      .gradient = c->gradient,
	                      .out = c->param,
	                      .n = c->n,
	                      .scale = 1,
	                      .gradient_format = ADAM_FP32,
	                      .out_format = ADAM_FP32,
	                      .step = c->step};
	adam_update(NULL, &a);
	memset(c->gradient, 0, sizeof(float) * c->n);
}

void host_adam(struct device_stream *s, elem *param, float *master, float *m, float *v, float *gradient, size_t n, const struct adam_step *a)
{
	struct adam c = {param, master, m, v, gradient, n, *a};
	if (n)
		host_push(s, run_adam, &c, sizeof(c));
}
