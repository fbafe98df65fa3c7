/* Heat is the share of the last moments in which the GPU computed or was in a collective, an exponential mean:
 *
 *     work   ####____####____          heat follows it within gpu.heat_ms; at gpu.cool_share and below the GPU runs at its full clock,
 *     heat  1 ''-.__.-'-.__            at 1 at that of the tables, in between in proportion
 *
 * What a power limit acts on is the mean power of a moment, and at full clock that grows with the share of work. Rest never pays: a GPU that works
 * for the share in which it stays cool gets no more done than one that never pauses, so that share is 1 / gpu.cool_speedup at most. */
#include "heat.h"

#include <math.h>

struct heat {
	double gain; /* of a cool GPU, of the time */
	double head_share;
	double cool_share, tau_ns;
	struct {
		double share;
		nsec_t at_ns;
	} gpu[];
};

struct heat *heat_new(const struct machine *m)
{
	if (m->cool_speedup <= 1)
		return NULL;
	struct heat *h = g_malloc0(sizeof(*h) + sizeof(h->gpu[0]) * (size_t)m->gpus);
	h->gain = 1 - 1 / m->cool_speedup;
	h->head_share = m->cool_head_share;
	h->cool_share = fmin(m->cool_share, 1 / m->cool_speedup);
	h->tau_ns = m->heat_ms * (double)NSEC_PER_MSEC;
	for (int i = 0; i < m->gpus; i++)
		h->gpu[i].share = 1;
	return h;
}

void heat_free(struct heat *h)
{
	g_free(h);
}

/* The mean goes towards `to` until then. */
static void pass(struct heat *h, int gpu, nsec_t until_ns, double to)
{
	nsec_t since = until_ns - h->gpu[gpu].at_ns;
	if (since <= 0)
		return;
	h->gpu[gpu].share = to + (h->gpu[gpu].share - to) * exp(-(double)since / h->tau_ns);
	h->gpu[gpu].at_ns = until_ns;
}

double heat_cool(struct heat *h, int gpu, nsec_t now_ns, nsec_t for_ns)
{
	double x = (double)for_ns / h->tau_ns;
	pass(h, gpu, now_ns, 0);
	return fmin((1 - h->gpu[gpu].share) * (for_ns > 0 ? -expm1(-x) / x : 1) / (1 - h->cool_share), 1);
}

nsec_t heat_cost_ns(struct heat *h, int gpu, nsec_t now_ns, nsec_t cost_ns, int kind)
{
	const double gain = kind == STAGE_HEAD ? h->head_share * h->gain : h->gain;
	return (nsec_t)ceil((double)cost_ns * (1 - gain * heat_cool(h, gpu, now_ns, cost_ns)));
}

void heat_ran(struct heat *h, int gpu, nsec_t start_ns, nsec_t end_ns)
{
	pass(h, gpu, start_ns, 0);
	pass(h, gpu, end_ns, 1);
}

void heat_worked(struct heat *h, int gpu, nsec_t now_ns, double share)
{
	h->gpu[gpu].at_ns = now_ns;
	h->gpu[gpu].share = share;
}
