/* Collectives between all GPUs there are, at least two, against plain loops: random segments, many of them, some side by side, sizes that no number
 * of GPUs divides, nothing at all, and many in a row. `cuda_group DEVICE COUNT` checks those of another device. A line a check, exit code 0 all
 * right, 1 not, 77 too few GPUs here. */
#include "exec/device.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MOST = 8, ROWS = 700, WIDTH = 24, FLOATS = 100003, COUNTS = 65, ROUNDS = 40, MOST_SEGMENTS = ROWS };
#define ARENA ((uint64_t)64 << 20)

struct member {
	struct bed *bed;
	int rank;
	struct device_stream *stream;
	struct device_event *done;
	char *send, *receive;         /* on the device: (ROWS, WIDTH) twice */
	uint32_t *gathered;           /* on the device: (MOST, COUNTS) */
	char *packed_out, *packed_in; /* the same: (ROWS, WIDTH) */
	float *x;                     /* on the device: (FLOATS) */
	char *pinned;                 /* what goes up and comes down */
	char *sent, *want, *all;      /* on the host: what is sent, what should arrive; pinned: everyone's counts */
	float *added;                 /* (FLOATS) */
	struct segment segment[MOST_SEGMENTS], arriving[MOST * MOST_SEGMENTS];
	int segments, arrivals;
};

struct bed {
	int gpus;
	size_t element;
	struct device *device[MOST];
	struct device_group *group;
	struct member member[MOST];
	GRand *random;
	int checks, failures;
	/* of the round */
	void (*work)(struct member *m);
	size_t n;
};

static void die(const GError *error)
{
	fprintf(stderr, "%s\n", error ? error->message : "failed");
	exit(1);
}

static void finish(struct member *m)
{
	GError *error = NULL;
	device_event_record(m->stream, m->done);
	if (!device_event_wait(m->done, &error))
		die(error);
}

static size_t bytes_of(const struct bed *b)
{
	return (size_t)ROWS * WIDTH * b->element;
}

static gpointer run_member(gpointer data)
{
	struct member *m = data;
	m->bed->work(m);
	finish(m);
	return NULL;
}

/* Members queue their parts at once, as launchers do. */
static void together(struct bed *b, void (*work)(struct member *m))
{
	GThread *threads[MOST];
	b->work = work;
	for (int i = 0; i < b->gpus; i++)
		threads[i] = g_thread_new("member", run_member, &b->member[i]);
	for (int i = 0; i < b->gpus; i++)
		g_thread_join(threads[i]);
}

static void report(struct bed *b, bool ok, const char *what)
{
	b->checks++;
	b->failures += !ok;
	printf("%s %d %s\n", ok ? "ok" : "not ok", b->checks, what);
}

/* ---- all-to-all ---- */

/* Pieces of random length, `longest` at most (0: none), to random peers or to one after the other, each at the next free row of both. */
struct draw {
	int longest;
	bool in_turn;
	const char *what;
};
static void draw_segments(struct bed *b, const struct draw *d)
{
	int next[MOST] = {0};
	for (int g = 0; g < b->gpus; g++) {
		struct member *m = &b->member[g];
		m->segments = 0;
		for (int from = 0; d->longest && m->segments < MOST_SEGMENTS;) {
			int peer = d->in_turn ? from * b->gpus / ROWS : g_rand_int_range(b->random, 0, b->gpus);
			int rows = g_rand_int_range(b->random, 1, d->longest + 1);
			if (from + rows > ROWS || next[peer] + rows > ROWS)
				break;
			m->segment[m->segments++] = (struct segment){.peer = peer, .from = from, .to = next[peer], .rows = rows};
			from += rows;
			next[peer] += rows;
		}
	}
}

/* What each is sent, in the order in which its peers send it. */
static void list_arrivals(struct bed *b)
{
	for (int g = 0; g < b->gpus; g++)
		b->member[g].arrivals = 0;
	for (int g = 0; g < b->gpus; g++)
		for (int i = 0; i < b->member[g].segments; i++) {
			struct segment s = b->member[g].segment[i];
			struct member *to = &b->member[s.peer];
			s.peer = g;
			to->arriving[to->arrivals++] = s;
		}
}

static void fill(struct bed *b)
{
	for (int g = 0; g < b->gpus; g++) {
		struct member *m = &b->member[g];
		for (size_t i = 0; i < bytes_of(b); i++)
			m->sent[i] = (char)g_rand_int_range(b->random, 0, 256);
		memset(m->want, 0x5a, bytes_of(b));
	}
	for (int g = 0; g < b->gpus; g++)
		for (int i = 0; i < b->member[g].segments; i++) {
			const struct segment *s = &b->member[g].segment[i];
			size_t row = WIDTH * b->element;
			memcpy(b->member[s->peer].want + (size_t)s->to * row, b->member[g].sent + (size_t)s->from * row, (size_t)s->rows * row);
		}
}

static void exchange(struct member *m)
{
	size_t bytes = bytes_of(m->bed);
	memset(m->pinned + bytes, 0x5a, bytes);
	memcpy(m->pinned, m->sent, bytes);
	device_upload(m->stream, m->send, m->pinned, bytes);
	device_upload(m->stream, m->receive, m->pinned + bytes, bytes);
	const struct traffic traffic = {m->segment, m->arriving, m->segments, m->arrivals, WIDTH, m->packed_out, m->packed_in};
	group_all_to_all(m->stream, m->bed->group, m->rank, m->receive, m->send, &traffic);
	device_download(m->stream, m->pinned + bytes, m->receive, bytes);
}

static void check_all_to_all(struct bed *b, const struct draw *d)
{
	bool ok = true;
	for (int round = 0; round < ROUNDS; round++) {
		draw_segments(b, d);
		list_arrivals(b);
		fill(b);
		together(b, exchange);
		for (int g = 0; g < b->gpus; g++)
			ok = ok && memcmp(b->member[g].pinned + bytes_of(b), b->member[g].want, bytes_of(b)) == 0;
	}
	report(b, ok, d->what);
}

/* ---- sums: of whole numbers, exact in any order ---- */

static void draw_floats(struct bed *b)
{
	for (size_t i = 0; i < b->n; i++) {
		float sum = 0;
		for (int g = 0; g < b->gpus; g++)
			sum += b->member[g].added[i] = (float)g_rand_int_range(b->random, -1000, 1000);
		for (int g = 0; g < b->gpus; g++)
			((float *)(void *)b->member[g].want)[i] = sum;
	}
}

static void put_floats(struct member *m)
{
	memcpy(m->pinned, m->added, m->bed->n * sizeof(float));
	device_upload(m->stream, m->x, m->pinned, m->bed->n * sizeof(float));
}

static void reduce(struct member *m)
{
	put_floats(m);
	group_all_reduce(m->stream, m->bed->group, m->rank, m->x, m->bed->n);
	device_download(m->stream, m->pinned, m->x, m->bed->n * sizeof(float));
}

static void scatter(struct member *m)
{
	put_floats(m);
	group_reduce_scatter(m->stream, m->bed->group, m->rank, m->x, m->bed->n);
	device_download(m->stream, m->pinned, m->x, m->bed->n * sizeof(float));
}

static void check_sums(struct bed *b, void (*work)(struct member *m), bool shares, const char *what)
{
	static const size_t sizes[] = {1, 2, 7, 1024, FLOATS};
	bool ok = true;
	for (size_t i = 0; i < G_N_ELEMENTS(sizes); i++) {
		b->n = sizes[i];
		draw_floats(b);
		together(b, work);
		for (int g = 0; g < b->gpus; g++) {
			size_t from = shares ? b->n * (size_t)g / (size_t)b->gpus : 0, to = shares ? b->n * (size_t)(g + 1) / (size_t)b->gpus : b->n;
			ok = ok &&
			     memcmp((float *)(void *)b->member[g].pinned + from, (float *)(void *)b->member[g].want + from, (to - from) * 4) == 0;
		}
	}
	report(b, ok, what);
}

/* ---- counts ---- */

static void gather(struct member *m)
{
	uint32_t *own = (uint32_t *)(void *)m->pinned;
	for (uint32_t i = 0; i < COUNTS; i++)
		own[i] = 1000 * (uint32_t)m->rank + i;
	device_upload(m->stream, m->gathered + m->rank * COUNTS, own, COUNTS * sizeof(*own));
	group_gather(m->stream, m->bed->group, m->rank, m->gathered, COUNTS * sizeof(*own));
	device_download(m->stream, m->all, m->gathered, (size_t)m->bed->gpus * COUNTS * sizeof(*own));
}

static void check_gather(struct bed *b)
{
	bool ok = true;
	for (int g = 0; g < b->gpus; g++)
		memset(b->member[g].all, 0, MOST * COUNTS * sizeof(uint32_t));
	together(b, gather);
	for (int g = 0; g < b->gpus; g++)
		for (uint32_t i = 0; i < COUNTS * (uint32_t)b->gpus; i++)
			ok = ok && ((uint32_t *)(void *)b->member[g].all)[i] == 1000 * (i / COUNTS) + i % COUNTS;
	report(b, ok, "counts of all, at everyone's");
}

/* ---- life ---- */

static void member_open(struct bed *b, int rank)
{
	struct member *m = &b->member[rank];
	struct device *d = b->device[rank];
	GError *error = NULL;
	size_t bytes = bytes_of(b), floats = FLOATS * sizeof(float);
	*m = (struct member){.bed = b, .rank = rank};
	m->stream = device_stream_new(d, "test", &error);
	m->done = device_event_new(d);
	m->sent = g_malloc(bytes);
	m->want = g_malloc(MAX(bytes, floats));
	m->added = g_malloc(floats);
	if (!m->stream || !(m->send = device_alloc(d, bytes, "send", &error)) || !(m->receive = device_alloc(d, bytes, "receive", &error)) ||
	    !(m->packed_out = device_alloc(d, bytes, "packed", &error)) || !(m->packed_in = device_alloc(d, bytes, "packed", &error)) ||
	    !(m->gathered = device_alloc(d, MOST * COUNTS * 4, "counts", &error)) || !(m->x = device_alloc(d, floats, "floats", &error)) ||
	    !(m->pinned = pinned_alloc(d, MAX(2 * bytes, floats), &error)) || !(m->all = pinned_alloc(d, MOST * COUNTS * 4, &error)))
		die(error);
}

static void member_close(struct bed *b, int rank)
{
	struct member *m = &b->member[rank];
	pinned_free(b->device[rank], m->pinned);
	pinned_free(b->device[rank], m->all);
	device_stream_free(m->stream);
	device_event_free(m->done);
	g_free(m->sent);
	g_free(m->want);
	g_free(m->added);
}

int main(int argc, char **argv)
{
	const char *device = argc > 1 ? argv[1] : "cuda";
	struct bed b = {.gpus = argc > 2 ? CLAMP(atoi(argv[2]), 2, MOST) : MOST};
	guint32 seed = g_random_int();
	GError *error = NULL;
	const struct device_info *info = device_find(device, &error);
	if (!info)
		die(error);
	b.element = (size_t)info->element_bytes;
	while (!device_open(device, b.gpus, ARENA, b.device, &b.group, &error)) {
		if (--b.gpus < 2) {
			printf("1..0 # skip %s\n", error->message);
			return 77;
		}
		g_clear_error(&error);
	}
	b.random = g_rand_new_with_seed(seed);
	printf("# seed %u, %d GPUs\n", seed, b.gpus);
	for (int g = 0; g < b.gpus; g++)
		member_open(&b, g);
	check_all_to_all(&b, &(struct draw){59, false, "all-to-all moves each segment to its place and nothing else"});
	check_all_to_all(&b, &(struct draw){2, false, "all-to-all of hundreds of segments"});
	check_all_to_all(&b, &(struct draw){20, true, "all-to-all of segments that lie side by side"});
	check_all_to_all(&b, &(struct draw){0, false, "all-to-all of nothing"});
	check_sums(&b, reduce, false, "all-reduce");
	check_sums(&b, scatter, true, "reduce-scatter leaves each its share");
	check_gather(&b);
	printf("1..%d\n# %d of %d failed, %d GPUs\n", b.checks, b.failures, b.checks, b.gpus);
	for (int g = 0; g < b.gpus; g++)
		member_close(&b, g);
	device_close(b.device, b.gpus, b.group);
	g_rand_free(b.random);
	return b.failures > 0;
}
