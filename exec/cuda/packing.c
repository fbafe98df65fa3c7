/* A member's segments of an exchange, by the member at the other end:
 *
 *     segments of member 1     +--A--+           +-B-+  +--C--+        apart: through staging, as  A B C  one after another
 *     segments of member 2           +--D--+--E--+                     side by side: straight from, or to, where they lie
 *     segments of the member itself                              +-F-+ neither: moved to their place
 *
 * Both ends list what is between them in the same order, so A B C at one end is A B C at the other, packed there or not. */
#include "packing.h"

#include <string.h>

void packing_init(struct packing *p, int members)
{
	p->members = members;
	for (int way = 0; way < N_PARCEL_WAYS; way++) {
		p->parcel[way] = g_new0(struct parcel, members);
		p->runs[way] = g_array_new(FALSE, FALSE, sizeof(struct row_run));
	}
	p->own = g_array_new(FALSE, FALSE, sizeof(struct row_run));
}

void packing_clear(struct packing *p)
{
	for (int way = 0; way < N_PARCEL_WAYS; way++) {
		g_free(p->parcel[way]);
		g_array_unref(p->runs[way]);
	}
	g_array_unref(p->own);
}

/* A run that goes on where the last one ended is one with it. */
static void add_run(GArray *runs, int from, int to, int rows)
{
	struct row_run *last = runs->len ? &g_array_index(runs, struct row_run, runs->len - 1) : NULL;
	const struct row_run run = {from, to, rows};
	if (last && last->from + last->rows == from && last->to + last->rows == to)
		last->rows += rows;
	else
		g_array_append_val(runs, run);
}

static int place_of(const struct segment *s, enum parcel_way way)
{
	return way == PARCEL_OUT ? s->from : s->to;
}

static void list_parcels(struct packing *p, enum parcel_way way, const struct segment *segments, int n, int member)
{
	struct parcel *parcels = p->parcel[way];
	int staged = 0;
	memset(parcels, 0, sizeof(*parcels) * (size_t)p->members);
	for (int i = 0; i < n; i++) {
		struct parcel *x = &parcels[segments[i].peer];
		int at = place_of(&segments[i], way);
		if (segments[i].peer == member || !segments[i].rows)
			continue;
		x->at = x->rows ? x->at : at;
		x->packed = x->packed || at != x->at + x->rows;
		x->rows += segments[i].rows;
	}
	for (int i = 0; i < p->members; i++)
		if (parcels[i].packed) {
			parcels[i].at = staged;
			staged += parcels[i].rows;
		}
}

static void list_runs(struct packing *p, enum parcel_way way, const struct segment *segments, int n)
{
	int *filled = g_newa0(int, p->members);
	g_array_set_size(p->runs[way], 0);
	for (int i = 0; i < n; i++) {
		const struct parcel *x = &p->parcel[way][segments[i].peer];
		int at = place_of(&segments[i], way), staged = x->at + filled[segments[i].peer];
		if (!x->packed || !segments[i].rows)
			continue;
		add_run(p->runs[way], way == PARCEL_OUT ? at : staged, way == PARCEL_OUT ? staged : at, segments[i].rows);
		filled[segments[i].peer] += segments[i].rows;
	}
}

void packing_list(struct packing *p, const struct traffic *t, int member)
{
	list_parcels(p, PARCEL_OUT, t->sends, t->n_sends, member);
	list_runs(p, PARCEL_OUT, t->sends, t->n_sends);
	list_parcels(p, PARCEL_IN, t->receives, t->n_receives, member);
	list_runs(p, PARCEL_IN, t->receives, t->n_receives);
	g_array_set_size(p->own, 0);
	for (int i = 0; i < t->n_sends; i++)
		if (t->sends[i].peer == member && t->sends[i].rows)
			add_run(p->own, t->sends[i].from, t->sends[i].to, t->sends[i].rows);
}
