/* A store's file, with the calls of a run: around the page cache where the file system lets it, into memory that has no pages yet (a block that comes
 * gets some) and out of memory that then gives its pages back, as one does that leaves. The file is written before it is read, because blocks that
 * were only claimed are never fetched. */
#define _GNU_SOURCE /* MAP_ANONYMOUS */
#include "device.h"
#include "measure.h"
#include "model/error.h"
#include "store_file.h"

#include <errno.h>
#include <math.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/statvfs.h>
#include <time.h>

enum { MIB = 1 << 20, FILE_BYTES = 128 * MIB, MOST_BYTES = 16 * MIB, MIXED_BYTES = 1 * MIB, MIXED_MS = 100, EACH_BYTES = 64 * MIB, LEAST = 5 };

struct ssd {
	struct store_file *file;
	char *block[2]; /* MOST_BYTES each: read into, written from */
	uint64_t draws;
	double busy_us, taken_us; /* CPU time of all accesses, and their time */
};

static void ssd_clear(struct ssd *s)
{
	store_file_free(s->file);
	for (int i = 0; i < 2; i++)
		if (s->block[i])
			munmap(s->block[i], MOST_BYTES);
}

static bool ssd_open(struct ssd *s, const char *folder, GError **error)
{
	if (!(s->file = store_file_new(folder, FILE_BYTES, error)))
		return false;
	for (int i = 0; i < 2; i++) {
		void *p = mmap(NULL, MOST_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		if (p == MAP_FAILED) {
			g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_FIT, "dram: %d bytes to read and write: %s", MOST_BYTES, g_strerror(errno));
			return false;
		}
		s->block[i] = p;
	}
	memset(s->block[1], 1, MOST_BYTES);
	for (uint64_t at = 0; at < FILE_BYTES; at += MOST_BYTES)
		if (!store_file_write(s->file, at, s->block[1], MOST_BYTES, error))
			return false;
	return true;
}

/* An offset that a block fits behind, in an order without a pattern (splitmix64). */
static uint64_t somewhere(uint64_t *draws, size_t bytes)
{
	uint64_t z = *draws += UINT64_C(0x9E3779B97F4A7C15);
	z = (z ^ (z >> 30)) * UINT64_C(0xBF58476D1CE4E5B9);
	z = (z ^ (z >> 27)) * UINT64_C(0x94D049BB133111EB);
	return (z ^ (z >> 31)) % (FILE_BYTES / bytes) * bytes;
}

static nsec_t cpu_ns(void)
{
	struct timespec t;
	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
	return t.tv_sec * NSEC_PER_SEC + t.tv_nsec;
}

/* One access as a run makes it. Its block has pages afterwards or has none, whatever it is for the next one. */
static bool transfer(const struct ssd *s, bool write, uint64_t at, size_t bytes, double *us, double *busy_us, GError **error)
{
	char *block = s->block[write];
	if (write)
		memset(block, 1, bytes);
	const nsec_t start = exec_now_ns(), busy = cpu_ns();
	if (!(write ? store_file_write(s->file, at, block, bytes, error) : store_file_read(s->file, at, block, bytes, error)))
		return false;
	if (write)
		(void)madvise(block, bytes, MADV_DONTNEED);
	*us = (double)(exec_now_ns() - start) / 1e3;
	*busy_us = (double)(cpu_ns() - busy) / 1e3;
	if (!write)
		(void)madvise(block, bytes, MADV_DONTNEED);
	return true;
}

static bool fill_table(struct ssd *s, bool write, int repeats, struct measured_table *table, GError **error)
{
	g_autofree double *us = g_new(double, repeats);
	for (size_t bytes = STORE_PAGE; bytes <= MOST_BYTES; bytes *= 4) {
		/* not more than a disk takes that was promised a rate and lends some beforehand */
		const int n = MIN(repeats, MAX(LEAST, (int)(EACH_BYTES / bytes)));
		for (int i = 0; i < n; i++) {
			double busy_us;
			if (!transfer(s, write, somewhere(&s->draws, bytes), bytes, &us[i], &busy_us, error))
				return false;
			s->taken_us += us[i];
			s->busy_us += busy_us;
		}
		measured_add(table, (double)bytes, us, n);
	}
	return true;
}

struct side {
	struct ssd *ssd;
	bool write;
	int *stop; /* atomic */
	double gbps;
	GError *error;
};

static gpointer keep_going(gpointer data)
{
	struct side *side = data;
	uint64_t draws = side->write, bytes = 0;
	double all_us = 0, us, busy_us;
	while (!g_atomic_int_get(side->stop) && !side->error)
		if (transfer(side->ssd, side->write, somewhere(&draws, MIXED_BYTES), MIXED_BYTES, &us, &busy_us, &side->error)) {
			bytes += MIXED_BYTES;
			all_us += us;
		}
	side->gbps = all_us > 0 ? (double)bytes / all_us / 1e3 : 0;
	return NULL;
}

static bool measure_mixed(struct ssd *s, double *gbps, GError **error)
{
	int stop = 0;
	struct side sides[] = {{s, false, &stop, 0, NULL}, {s, true, &stop, 0, NULL}};
	GThread *writer = g_thread_new("measure", keep_going, &sides[1]);
	GThread *reader = g_thread_new("measure", keep_going, &sides[0]);
	g_usleep(MIXED_MS * 1000);
	g_atomic_int_set(&stop, 1);
	g_thread_join(reader);
	g_thread_join(writer);
	*gbps = sides[0].gbps + sides[1].gbps;
	GError *first = sides[0].error ? sides[0].error : sides[1].error;
	if (first != sides[1].error)
		g_clear_error(&sides[1].error);
	if (first)
		g_propagate_error(error, first);
	return !first;
}

static double largest_gbps(const struct measured_table *t)
{
	const int last = t->sizes.n - 1;
	return t->sizes.v[last] / t->median_us.v[last] / 1e3;
}

bool measure_ssd(const char *folder, int repeats, struct measured_table *read, struct measured_table *write, struct ssd_rates *out, GError **error)
{
	autoclear(ssd) s = {0};
	struct statvfs v;
	if (!ssd_open(&s, folder, error) || !fill_table(&s, true, repeats, write, error) || !fill_table(&s, false, repeats, read, error) ||
	    !measure_mixed(&s, &out->mixed_gbps, error))
		return false;
	out->gb = statvfs(folder, &v) == 0 ? ((double)v.f_bavail * (double)v.f_frsize + FILE_BYTES) / GB : 0;
	out->read_gbps = largest_gbps(read);
	out->write_gbps = largest_gbps(write);
	out->cores = s.busy_us / s.taken_us;
	out->latency_us = fmax(read->median_us.v[0] - read->sizes.v[0] / out->read_gbps / 1e3, 0);
	return true;
}
