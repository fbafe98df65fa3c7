/* Each process sends its figures, then those of each of its GPUs; everyone puts them together in the order of the GPUs, so that sums are the same
 * everywhere, and the same as one process has. */
#include "round.h"

#include "claim.h"
#include "model/error.h"
#include "ranks.h"
#include "traces/trace.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

struct figures {
	uint64_t host_bytes, ssd_bytes, pinned_bytes, pageable_bytes;
	nsec_t step_ns, busy_ns;
	int32_t busiest, signal, first, end;
};

/* Resident bytes of the process, 0 where the system does not tell. */
static uint64_t process_bytes(void)
{
	g_autofree char *text = NULL;
	unsigned long pages;
	if (!g_file_get_contents("/proc/self/statm", &text, NULL, NULL) || sscanf(text, "%*u %lu", &pages) != 1)
		return 0;
	return (uint64_t)pages * (uint64_t)sysconf(_SC_PAGESIZE);
}

static uint64_t folder_bytes(const char *path)
{
	g_autoptr(GDir) dir = path ? g_dir_open(path, 0, NULL) : NULL;
	uint64_t sum = 0;
	for (const char *name; dir && (name = g_dir_read_name(dir));) {
		g_autofree char *file = g_build_filename(path, name, NULL);
		struct stat st;
		if (stat(file, &st) == 0)
			sum += (uint64_t)st.st_blocks * 512;
	}
	return sum;
}

/* Claimed pages that nothing uses are the system's for the asking. */
void round_used(struct round *r, const char *ssd)
{
	const uint64_t bytes = process_bytes();
	r->host_bytes = bytes - MIN(bytes, claim_spare_bytes());
	r->ssd_bytes = folder_bytes(ssd);
}

void round_init(struct round *r, int gpus)
{
	*r = (struct round){.loss = g_new0(float, gpus), .hbm_bytes = g_new0(uint64_t, gpus)};
}

void round_clear(struct round *r)
{
	g_free(r->loss);
	g_free(r->hbm_bytes);
}

static void add(struct round *r, const struct figures *f)
{
	r->host_bytes += f->host_bytes;
	r->ssd_bytes += f->ssd_bytes;
	r->pinned_bytes += f->pinned_bytes;
	r->pageable_bytes += f->pageable_bytes;
	r->step_ns = MAX(r->step_ns, f->step_ns);
	r->signal = MAX(r->signal, f->signal);
	if (f->busy_ns > r->busy_ns) {
		r->busy_ns = f->busy_ns;
		r->busiest = f->busiest;
	}
}

static bool take(struct round *r, GBytes *part, int gpus)
{
	struct figures f;
	gsize n;
	const char *data = g_bytes_get_data(part, &n);
	if (n < sizeof f)
		return false;
	memcpy(&f, data, sizeof f);
	const size_t here = (size_t)(f.end - f.first);
	if (f.first < 0 || f.first > f.end || f.end > gpus || n != sizeof f + here * (sizeof(float) + sizeof(uint64_t)))
		return false;
	memcpy(r->loss + f.first, data + sizeof f, here * sizeof(float));
	memcpy(r->hbm_bytes + f.first, data + sizeof f + here * sizeof(float), here * sizeof(uint64_t));
	add(r, &f);
	return true;
}

bool round_meet(struct round *r, struct ranks *ranks, int gpus, int first, int end, GError **error)
{
	const struct figures own = {r->host_bytes, r->ssd_bytes, r->pinned_bytes, r->pageable_bytes, r->step_ns, r->busy_ns, r->busiest, r->signal,
	                            first,         end};
	const size_t here = (size_t)(end - first);
	if (!ranks)
		return true;
	g_autoptr(GString) text = g_string_new_len((const char *)&own, sizeof own);
	g_string_append_len(text, (const char *)(r->loss + first), (gssize)(here * sizeof(float)));
	g_string_append_len(text, (const char *)(r->hbm_bytes + first), (gssize)(here * sizeof(uint64_t)));
	g_autoptr(GPtrArray) all = ranks_gather(ranks, RANKS_STEPS, text->str, text->len, error);
	if (!all)
		return false;
	r->host_bytes = r->ssd_bytes = r->pinned_bytes = r->pageable_bytes = 0;
	r->busy_ns = -1;
	for (int i = 0; i < ranks_size(ranks); i++)
		if (!take(r, g_ptr_array_index(all, i), gpus)) {
			g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_DEVICE, "%s is not at the end of this step", ranks_name(ranks, i));
			return false;
		}
	return true;
}

/* ---- starts of collectives ---- */

/* What a process saw of one collective. */
struct seen {
	nsec_t start_ns, end_ns;
};

static bool is_collective(const struct span *s)
{
	return s->kind >= STAGE_COUNTS && s->kind <= STAGE_ALL_GATHER;
}

/* Members of a collective are launched one after another, GPU 0's first: its number is the same for all. */
static stage_id collective_of(const struct span *s)
{
	return s->id - (stage_id)s->rank;
}

static GArray *all_seen(const GArray *spans)
{
	GArray *seen = g_array_new(FALSE, FALSE, sizeof(struct seen));
	const struct span *last = NULL;
	for (guint i = 0; i < spans->len; i++) {
		const struct span *s = &g_array_index(spans, struct span, i);
		if (!is_collective(s))
			continue;
		const struct seen first = {s->start_ns, s->end_ns};
		if (!last || collective_of(last) != collective_of(s))
			g_array_append_val(seen, first);
		struct seen *x = &g_array_index(seen, struct seen, seen->len - 1);
		x->start_ns = MAX(x->start_ns, s->start_ns);
		x->end_ns = MAX(x->end_ns, s->end_ns);
		last = s;
	}
	return seen;
}

static int by_time(gconstpointer a, gconstpointer b)
{
	nsec_t x = *(const nsec_t *)a, y = *(const nsec_t *)b;
	return (x > y) - (x < y);
}

/* How far another process's clock is ahead of ours: the median over the ends. */
static nsec_t ahead_ns(const struct seen *theirs, const struct seen *ours, guint n)
{
	g_autofree nsec_t *by_ns = g_new(nsec_t, n);
	for (guint i = 0; i < n; i++)
		by_ns[i] = theirs[i].end_ns - ours[i].end_ns;
	qsort(by_ns, n, sizeof(*by_ns), by_time);
	return by_ns[n / 2];
}

static void begin_later(GArray *spans, const struct seen *begun)
{
	const struct span *last = NULL;
	for (guint i = 0; i < spans->len; i++) {
		struct span *s = &g_array_index(spans, struct span, i);
		if (!is_collective(s))
			continue;
		begun += last && collective_of(last) != collective_of(s);
		s->start_ns = MIN(begun->start_ns, s->end_ns);
		last = s;
	}
}

bool round_align(GArray *spans, struct ranks *ranks, GError **error)
{
	if (!ranks)
		return true;
	g_autoptr(GArray) own = all_seen(spans), begun = g_array_copy(own);
	const size_t bytes = own->len * sizeof(struct seen);
	const struct seen *ours = (const struct seen *)(void *)own->data;
	g_autoptr(GPtrArray) all = ranks_gather(ranks, RANKS_STEPS, own->data, bytes, error);
	if (!all)
		return false;
	for (int r = 0; r < ranks_size(ranks) && own->len; r++) {
		if (g_bytes_get_size(g_ptr_array_index(all, r)) != bytes) {
			g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_DEVICE, "%s made other collectives in this step", ranks_name(ranks, r));
			return false;
		}
		g_autofree struct seen *theirs = g_memdup2(g_bytes_get_data(g_ptr_array_index(all, r), NULL), bytes);
		const nsec_t by_ns = ahead_ns(theirs, ours, own->len);
		for (guint i = 0; i < own->len; i++) {
			struct seen *x = &g_array_index(begun, struct seen, i);
			x->start_ns = MAX(x->start_ns, theirs[i].start_ns - by_ns);
		}
	}
	begin_later(spans, (const struct seen *)(void *)begun->data);
	return true;
}
