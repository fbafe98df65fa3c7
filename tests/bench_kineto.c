/* How fast a trace of a million spans is written and read back, on one core: the figures of the README. */
#include "made_trace.h"
#include "traces/kineto.h"

#include <glib/gstdio.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum { GPUS = 4, SPANS = 1000000 };

/* By the clock, and of the processor: they part on a busy machine. */
struct seconds {
	double wall, cpu;
};

static struct seconds now(void)
{
	return (struct seconds){(double)g_get_monotonic_time() / 1e6, (double)clock() / CLOCKS_PER_SEC};
}

static struct seconds since(struct seconds start)
{
	struct seconds end = now();

	return (struct seconds){end.wall - start.wall, end.cpu - start.cpu};
}

static double remove_files(const char *folder)
{
	g_autoptr(GDir) dir = g_dir_open(folder, 0, NULL);
	double bytes = 0;
	const char *name;

	while ((name = g_dir_read_name(dir))) {
		g_autofree char *path = g_build_filename(folder, name, NULL);
		GStatBuf status;

		if (g_stat(path, &status) == 0)
			bytes += (double)status.st_size;
		g_unlink(path);
	}
	g_rmdir(folder);
	return bytes;
}

int main(void)
{
	g_autoptr(trace) trace = made_trace(GPUS, GPUS, SPANS, 1);
	g_autoptr(trace) back = NULL;
	g_autoptr(GError) error = NULL;
	g_autofree char *folder = g_dir_make_tmp("bench_kineto_XXXXXX", &error);
	g_autofree char *prefix = folder ? g_build_filename(folder, "trace", NULL) : NULL;
	const char *const paths[] = {prefix, NULL};
	struct seconds written, readback, start = now();
	double bytes = 0;
	bool ok = folder && kineto_write(trace, prefix, false, &error);

	written = since(start);
	start = now();
	ok = ok && (back = kineto_read(paths, &error));
	readback = since(start);
	if (folder)
		bytes = remove_files(folder);
	if (!ok) {
		fprintf(stderr, "%s\n", error->message);
		return EXIT_FAILURE;
	}
	printf("%d spans, %.0f MB: written in %.2f s (processor %.2f s), read in %.2f s (processor %.2f s)\n", SPANS, bytes / 1e6, written.wall,
	       written.cpu, readback.wall, readback.cpu);
	return back->spans->len == SPANS ? EXIT_SUCCESS : EXIT_FAILURE;
}
