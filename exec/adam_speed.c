#include "adam_speed.h"

#include "model/units.h"
#include "pages.h"

#include <glib.h>

#define MIB ((size_t)1 << 20)

enum {
	MATRICES = 5, /* of a state */
	UPDATES = 3,  /* in flight: later than two of them hardly any core is */
	PIECES = 16
};

struct adam_speed {
	struct adam_work work;
	struct adam_pool *pool;
};

struct adam_work adam_work_of(const struct device_info *info, size_t piece)
{
	struct adam_work w = {.params = 128 * MIB, .format = ADAM_BF16};
	if (info->element_bytes == sizeof(float))
		w = (struct adam_work){.params = 4 * MIB, .format = ADAM_FP32};
	w.piece = MIN(piece, w.params);
	return w;
}

size_t adam_work_bytes(const struct adam_work *w)
{
	return MATRICES * w->params * sizeof(float);
}

/* Begins: parameters at..at + piece. */
static adam_ticket update_piece(const struct adam_work *w, struct adam_pool *pool, size_t at)
{
	float *s = w->state + at;
	const struct adam_args a = {.master = s,
	                            .m = s + w->params,
	                            .v = s + 2 * w->params,
	                            .gradient = s + 3 * w->params,
	                            .out = s + 4 * w->params,
	                            .n = w->piece,
	                            .scale = 1,
	                            .gradient_format = w->format,
	                            .out_format = w->format,
	                            .step = {.lr = 1e-3f, .beta1 = 0.9f, .beta2 = 0.999f, .eps = 1e-8f, .t = 1}};
	return adam_update_start(pool, &a);
}

/* The next begins while the last parts of one are still worked on. Counted are those between the ends of the first and of the last: neither how the
 * threads come to work nor the last of them to end is a run's speed. */
double adam_work_until(const struct adam_work *w, struct adam_pool *pool, nsec_t until_ns)
{
	const size_t pieces = w->params / w->piece, ahead = MIN(pieces, UPDATES);
	nsec_t first_ns = -1, last_ns = 0;
	double params = 0;
	adam_ticket begun[UPDATES] = {0};
	for (size_t turn = 0; !params || exec_now_ns() < until_ns; turn++) {
		adam_wait(pool, begun[turn % ahead]);
		if (turn >= ahead) {
			last_ns = exec_now_ns();
			params += first_ns < 0 ? 0 : (double)w->piece;
			first_ns = first_ns < 0 ? last_ns : first_ns;
		}
		begun[turn % ahead] = update_piece(w, pool, turn % pieces * w->piece);
	}
	for (size_t i = 0; i < ahead; i++)
		adam_wait(pool, begun[i]);
	return params / (double)(last_ns - first_ns);
}

struct adam_speed *adam_speed_new(const struct device_info *info, int threads)
{
	struct adam_work w = adam_work_of(info, 1);
	w.piece = w.params / PIECES;
	w.state = pages_new(adam_work_bytes(&w));
	if (!w.state)
		return NULL;
	struct adam_speed *s = g_new0(struct adam_speed, 1);
	s->work = w;
	s->pool = adam_pool_new(threads);
	adam_pool_set_patience(s->pool, info->adam_patience_ns);
	return s;
}

void adam_speed_free(struct adam_speed *s)
{
	if (!s)
		return;
	adam_pool_free(s->pool);
	pages_free(s->work.state, adam_work_bytes(&s->work));
	g_free(s);
}

double adam_speed_now(const struct adam_speed *s, int ms)
{
	return adam_work_until(&s->work, s->pool, exec_now_ns() + ms * NSEC_PER_MSEC);
}
