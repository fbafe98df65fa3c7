/* Seconds for a sweep of 1000 small configurations on two threads: 12 layers, up to 8 GPUs, up to 64 experts, through the door as a user would run
 * it. */
#include <glib.h>
#include <glib/gstdio.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>

/* 2 policies x 5 GPU counts x 100 expert counts; the experts repeat within 8..64 so that no row is larger than "small". */
static char *expert_list(void)
{
	GString *list = g_string_new(NULL);
	for (int i = 0; i < 100; i++)
		g_string_append_printf(list, "%s%d", i ? "," : "", 8 + i * 56 / 99);
	return g_string_free(list, FALSE);
}

int main(void)
{
	enum { ROWS = 1000 };
	const char *esmoe = g_getenv("ESMOE");
	g_autofree char *experts = expert_list(), *folder = g_dir_make_tmp("esmoe-XXXXXX", NULL), *path = g_build_filename(folder, "grid.csv", NULL);
	const char *argv[] = {esmoe,       "sweep", "-m",        "gpt-moe-s", "-M", "a100-40g-x4", "-p", "es-moe,tutel", "--gpus", "1,2,4,6,8",
	                      "--experts", experts, "--threads", "2",         "-o", path,          NULL};
	g_autoptr(GError) error = NULL;
	int status = -1;
	gint64 start_us = g_get_monotonic_time();
	if (!esmoe || !g_spawn_sync(NULL, (char **)argv, NULL, G_SPAWN_DEFAULT, NULL, NULL, NULL, NULL, &status, &error) || status) {
		fprintf(stderr, "bench_sweep: %s\n", error ? error->message : "esmoe sweep failed");
		return EXIT_FAILURE;
	}
	struct rusage used;
	getrusage(RUSAGE_CHILDREN, &used);
	double cpu_s =
	    (double)(used.ru_utime.tv_sec + used.ru_stime.tv_sec) + (double)(used.ru_utime.tv_usec + used.ru_stime.tv_usec) / G_USEC_PER_SEC;
	double seconds = (double)(g_get_monotonic_time() - start_us) / G_USEC_PER_SEC;
	g_unlink(path);
	g_rmdir(folder);
	printf("%d configurations on two threads in %.2f s (asked: 10 s), of which the processors worked %.2f s\n", ROWS, seconds, cpu_s);
	return EXIT_SUCCESS;
}
