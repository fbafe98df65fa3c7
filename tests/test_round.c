/* What processes tell each other at the end of a step. */
#include "crew.h"
#include "exec/round.h"
#include "traces/trace.h"

enum { TOTAL = 5 };
static const int first_of[] = {0, 2, 4, TOTAL}; /* GPUs of the ranks: two, two, one */

/* Ranks 0, 1, 2 have two, two and one GPUs; rank r's figures are r + 1, its GPU g's g. */
static void meet_at_the_end(struct hand *h)
{
	const int own = ranks_own(h->ranks), first = first_of[own], end = first_of[own + 1];
	const uint64_t n = (uint64_t)own + 1;
	autoclear(round) r;
	round_init(&r, TOTAL);
	r.host_bytes = n;
	r.ssd_bytes = 10 * n;
	r.pinned_bytes = 100 * n;
	r.pageable_bytes = 1000 * n;
	r.step_ns = 50 - own;
	r.busy_ns = own == 1 ? 40 : 30;
	r.busiest = 7 + own;
	r.signal = own == 2 ? 15 : 0;
	for (int g = first; g < end; g++) {
		r.loss[g] = (float)g / 4;
		r.hbm_bytes[g] = (uint64_t)g;
	}
	h->ok = round_meet(&r, h->ranks, TOTAL, first, end, &h->error);
	h->ok &= r.host_bytes == 6 && r.ssd_bytes == 60 && r.pinned_bytes == 600 && r.pageable_bytes == 6000;
	h->ok &= r.step_ns == 50 && r.busy_ns == 40 && r.busiest == 8 && r.signal == 15;
	for (int g = 0; g < TOTAL; g++)
		h->ok &= r.loss[g] == (float)g / 4 && r.hbm_bytes[g] == (uint64_t)g;
	h->ok &= ranks_leave(h->ranks, &h->error);
}

Test(ranks, at_the_end_of_a_step_everyone_knows_everything)
{
	struct crew c;
	crew_init(&c, 3);
	crew_run(&c, meet_at_the_end);
	all_ok(&c);
	crew_clear(&c);
}

/* Five collectives, 1000 ns apart, which all end 500 ns into their time on rank 0's clock; rank r comes 100 r ns later in the odd ones and that much
 * earlier in the even ones, and its clock is 7000 r ns ahead. Beside them each GPU computes. */
static void align(struct hand *h)
{
	const int own = ranks_own(h->ranks);
	g_autoptr(GArray) spans = g_array_new(FALSE, FALSE, sizeof(struct span));
	for (int k = 0; k < 5; k++) {
		const nsec_t begin_ns = 1000 * k + 7000 * own;
		struct span s = {.id = (stage_id)(10 * k + own), .kind = STAGE_EXPERT, .rank = own, .start_ns = begin_ns, .end_ns = begin_ns + 90};
		g_array_append_val(spans, s);
		s.id += 3;
		s.kind = STAGE_ALL_TO_ALL;
		s.start_ns = begin_ns + 250 + (k % 2 ? 100 : -100) * own;
		s.end_ns = begin_ns + 500;
		g_array_append_val(spans, s);
	}
	h->ok = round_align(spans, h->ranks, &h->error);
	for (int k = 0; k < 5; k++) {
		const struct span *beside = &g_array_index(spans, struct span, 2 * k), *s = &g_array_index(spans, struct span, 2 * k + 1);
		const nsec_t begin_ns = 1000 * k + 7000 * own;
		h->ok &= beside->start_ns == begin_ns && beside->end_ns == begin_ns + 90;
		h->ok &= s->start_ns == begin_ns + 250 + (k % 2 ? 200 : 0) && s->end_ns == begin_ns + 500;
	}
	h->ok &= ranks_leave(h->ranks, &h->error);
}

Test(ranks, a_collective_begins_when_the_last_process_has_come)
{
	struct crew c;
	crew_init(&c, 3);
	crew_run(&c, align);
	all_ok(&c);
	crew_clear(&c);
}
