/* Messages of an exchange (exec/cuda/packing.c): what a list becomes, by hand; and whole groups that pack, send and unpack rows of numbers, against
 * the segments themselves. */
#include "exec/cuda/packing.h"

#include <criterion/criterion.h>

static void runs_are(const GArray *runs, const struct row_run *expected, guint n)
{
	cr_assert_eq(runs->len, n, "%u runs, expected %u", runs->len, n);
	for (guint i = 0; i < n; i++) {
		const struct row_run *x = &g_array_index(runs, struct row_run, i);
		cr_assert(x->from == expected[i].from && x->to == expected[i].to && x->rows == expected[i].rows, "run %u: %d rows from %d to %d", i,
		          x->rows, x->from, x->to);
	}
}

static void parcel_is(const struct parcel *p, int rows, int at, bool packed)
{
	cr_assert(p->rows == rows && (!rows || (p->at == at && p->packed == packed)), "%d rows at %d, packed %d", p->rows, p->at, p->packed);
}

/* GPU 0 of two with experts 0 and 1 of four: 5 and 3 rows of its own for them, 2 and 4 for the other's; 1 and 6 rows come from there. */
static const struct segment there[] = {{0, 0, 0, 5}, {0, 5, 6, 3}, {1, 8, 0, 2}, {1, 10, 9, 4}},
                            here[] = {{0, 0, 0, 5}, {1, 0, 5, 1}, {0, 5, 6, 3}, {1, 1, 9, 6}};

Test(packing, rows_for_experts_go_straight_and_arrive_apart)
{
	struct packing p;
	packing_init(&p, 2);
	packing_list(&p, &(struct traffic){.sends = there, .receives = here, .n_sends = 4, .n_receives = 4}, 0);
	parcel_is(&p.parcel[PARCEL_OUT][0], 0, 0, false);
	parcel_is(&p.parcel[PARCEL_IN][0], 0, 0, false);
	parcel_is(&p.parcel[PARCEL_OUT][1], 6, 8, false);
	parcel_is(&p.parcel[PARCEL_IN][1], 7, 0, true);
	runs_are(p.runs[PARCEL_OUT], NULL, 0);
	runs_are(p.runs[PARCEL_IN], (const struct row_run[]){{0, 5, 1}, {1, 9, 6}}, 2);
	runs_are(p.own, (const struct row_run[]){{0, 0, 5}, {5, 6, 3}}, 2);
	packing_clear(&p);
}

/* The same rows on their way back, and nothing is left of the way there. */
Test(packing, rows_of_experts_go_packed_and_arrive_together)
{
	struct segment back[4], home[4];
	struct packing p;
	for (int i = 0; i < 4; i++) {
		back[i] = (struct segment){here[i].peer, here[i].to, here[i].from, here[i].rows};
		home[i] = (struct segment){there[i].peer, there[i].to, there[i].from, there[i].rows};
	}
	packing_init(&p, 2);
	packing_list(&p, &(struct traffic){.sends = there, .receives = here, .n_sends = 4, .n_receives = 4}, 0);
	packing_list(&p, &(struct traffic){.sends = back, .receives = home, .n_sends = 4, .n_receives = 4}, 0);
	parcel_is(&p.parcel[PARCEL_OUT][1], 7, 0, true);
	parcel_is(&p.parcel[PARCEL_IN][1], 6, 8, false);
	runs_are(p.runs[PARCEL_OUT], (const struct row_run[]){{5, 0, 1}, {9, 1, 6}}, 2);
	runs_are(p.runs[PARCEL_IN], NULL, 0);
	runs_are(p.own, (const struct row_run[]){{0, 0, 5}, {6, 5, 3}}, 2);
	packing_clear(&p);
}

/* Segments of no rows, wherever they point, part nothing; neighbours at both ends are one run; packed parcels lie one after another. */
Test(packing, what_goes_on_at_both_ends_is_one_run)
{
	const struct segment sends[] = {{2, 20, 0, 4}, {2, 90, 90, 0}, {2, 24, 0, 2}, {0, 3, 8, 1},  {0, 7, 7, 0},  {0, 4, 9, 2},
	                                {3, 50, 0, 0}, {1, 40, 0, 3},  {1, 43, 0, 1}, {1, 30, 0, 2}, {1, 46, 0, 1}, {2, 60, 0, 5}};
	struct packing p;
	packing_init(&p, 4);
	packing_list(&p, &(struct traffic){.sends = sends, .n_sends = G_N_ELEMENTS(sends)}, 0);
	parcel_is(&p.parcel[PARCEL_OUT][1], 7, 0, true); /* though the last lies where it would after neighbours */
	parcel_is(&p.parcel[PARCEL_OUT][2], 11, 7, true);
	parcel_is(&p.parcel[PARCEL_OUT][3], 0, 0, false);
	runs_are(p.runs[PARCEL_OUT], (const struct row_run[]){{20, 7, 6}, {40, 0, 4}, {30, 4, 2}, {46, 6, 1}, {60, 13, 5}}, 5);
	runs_are(p.own, (const struct row_run[]){{3, 8, 3}}, 1);
	for (int i = 0; i < 4; i++)
		parcel_is(&p.parcel[PARCEL_IN][i], 0, 0, false);
	packing_list(&p, &(struct traffic){0}, 0);
	for (int way = 0; way < N_PARCEL_WAYS; way++)
		for (int i = 0; i < 4; i++)
			cr_assert(!p.runs[way]->len && !p.own->len && !p.parcel[way][i].rows);
	packing_clear(&p);
}

/* ---- groups ---- */

enum { MOST = 6, SEGMENTS = 120, ROWS = 1000, NOTHING = -1 };

struct member {
	struct segment sends[SEGMENTS], receives[SEGMENTS];
	int n_sends, n_receives, used, filled;
	int send[ROWS], receive[ROWS], want[ROWS], out[ROWS], in[ROWS];
	struct packing packing;
};

/* Members of odd number send from their last rows to their first; gaps now and then. */
static void draw(GRand *random, struct member *m, int members, int longest)
{
	for (int g = 0; g < members; g++) {
		m[g].n_sends = m[g].n_receives = m[g].used = m[g].filled = 0;
		for (int i = 0; i < ROWS; i++) {
			m[g].send[i] = g * ROWS + i;
			m[g].receive[i] = m[g].want[i] = m[g].out[i] = m[g].in[i] = NOTHING;
		}
	}
	for (int i = 0; i < SEGMENTS; i++) {
		int sender = g_rand_int_range(random, 0, members), receiver = g_rand_int_range(random, 0, members);
		struct member *a = &m[sender], *b = &m[receiver];
		int rows = g_rand_int_range(random, 0, longest + 1), skipped = g_rand_int_range(random, 0, 4) ? 0 : 1;
		if (a->used + skipped + rows > ROWS || b->filled + skipped + rows > ROWS)
			continue;
		int from = sender % 2 ? ROWS - a->used - rows : a->used + skipped, to = b->filled + skipped;
		a->sends[a->n_sends++] = (struct segment){receiver, from, to, rows};
		b->receives[b->n_receives++] = (struct segment){sender, from, to, rows};
		a->used += skipped + rows;
		b->filled += skipped + rows;
		for (int row = 0; row < rows; row++)
			b->want[to + row] = a->send[from + row];
	}
}

static void move(const GArray *runs, int *to, const int *from)
{
	for (guint i = 0; i < runs->len; i++) {
		const struct row_run *x = &g_array_index(runs, struct row_run, i);
		for (int row = 0; row < x->rows; row++) {
			cr_assert_eq(to[x->to + row], NOTHING, "a row is written twice");
			to[x->to + row] = from[x->from + row];
		}
	}
}

static void send_parcels(struct member *m, int members)
{
	for (int g = 0; g < members; g++)
		for (int p = 0; p < members; p++) {
			const struct parcel *out = &m[g].packing.parcel[PARCEL_OUT][p], *in = &m[p].packing.parcel[PARCEL_IN][g];
			cr_assert_eq(out->rows, in->rows, "%d sends %d rows, %d expects %d", g, out->rows, p, in->rows);
			cr_assert(g != p || !out->rows);
			for (int row = 0; row < out->rows; row++)
				(in->packed ? m[p].in : m[p].receive)[in->at + row] = (out->packed ? m[g].out : m[g].send)[out->at + row];
		}
}

/* Whether the rows that are between `member` and `peer` lie in one piece and in order, row by row. */
static bool side_by_side(const struct segment *s, int n, int peer, bool arrive)
{
	int next = NOTHING;
	for (int i = 0; i < n; i++)
		for (int row = 0; s[i].peer == peer && row < s[i].rows; row++) {
			int at = (arrive ? s[i].to : s[i].from) + row;
			if (next != NOTHING && at != next)
				return false;
			next = at + 1;
		}
	return true;
}

static void packed_where_needed(const struct member *m, int members, int own)
{
	for (int p = 0; p < members; p++) {
		const struct parcel *out = &m->packing.parcel[PARCEL_OUT][p], *in = &m->packing.parcel[PARCEL_IN][p];
		cr_assert_eq(out->packed, p != own && !side_by_side(m->sends, m->n_sends, p, false));
		cr_assert_eq(in->packed, p != own && !side_by_side(m->receives, m->n_receives, p, true));
	}
}

Test(packing, every_row_of_a_group_comes_to_its_place)
{
	guint32 seed = g_random_int();
	g_autoptr(GRand) random = g_rand_new_with_seed(seed);
	g_autofree struct member *m = g_new0(struct member, MOST);
	cr_log_info("seed %u\n", seed);
	for (int members = 1; members <= MOST; members++) {
		for (int g = 0; g < members; g++)
			packing_init(&m[g].packing, members);
		for (int round = 0; round < 200; round++) {
			draw(random, m, members, round % 40);
			for (int g = 0; g < members; g++) {
				const struct traffic t = {
				    .sends = m[g].sends, .receives = m[g].receives, .n_sends = m[g].n_sends, .n_receives = m[g].n_receives};
				packing_list(&m[g].packing, &t, g);
				packed_where_needed(&m[g], members, g);
				move(m[g].packing.runs[PARCEL_OUT], m[g].out, m[g].send);
				move(m[g].packing.own, m[g].receive, m[g].send);
			}
			send_parcels(m, members);
			for (int g = 0; g < members; g++) {
				move(m[g].packing.runs[PARCEL_IN], m[g].receive, m[g].in);
				cr_assert_arr_eq(m[g].receive, m[g].want, sizeof(m[g].want), "member %d of %d, seed %u", g, members, seed);
			}
		}
		for (int g = 0; g < members; g++)
			packing_clear(&m[g].packing);
	}
}
