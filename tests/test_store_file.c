/* The file under the store: one run's alone, read and written in whole pages, and what goes wrong with it is said. */
#include "exec/store_file.h"
#include "model/error.h"

#include <criterion/criterion.h>
#include <glib/gstdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

Test(store_file, two_runs_cannot_share_a_file)
{
	g_autofree char *folder = g_dir_make_tmp("esmoe-XXXXXX", NULL);
	g_autoptr(GError) error = NULL;
	struct store_file *first = store_file_new(folder, 8192, NULL);
	cr_assert(first);
	cr_assert_null(store_file_new(folder, 8192, &error));
	cr_assert(strstr(error->message, "in use by another run"), "%s", error->message);
	store_file_free(first);
	struct store_file *second = store_file_new(folder, 8192, NULL);
	cr_assert(second);
	store_file_free(second);
	g_rmdir(folder);
}

Test(store_file, file_cut_short_behind_our_back_is_an_error_with_its_offset)
{
	g_autofree char *folder = g_dir_make_tmp("esmoe-XXXXXX", NULL), *path = g_build_filename(folder, "experts.bin", NULL);
	g_autoptr(GError) error = NULL;
	g_autoptr(store_file) f = store_file_new(folder, 5 * STORE_PAGE, NULL);
	struct stat st;
	cr_assert(f && stat(path, &st) == 0 && st.st_size == 5 * STORE_PAGE && st.st_blocks >= 5 * STORE_PAGE / 512);
	void *p = NULL;
	cr_assert_eq(posix_memalign(&p, STORE_PAGE, 2 * STORE_PAGE), 0);
	memset(p, 7, 2 * STORE_PAGE);
	cr_assert(store_file_write(f, 3 * STORE_PAGE, p, 2 * STORE_PAGE, NULL));
	cr_assert_eq(truncate(path, 4 * STORE_PAGE), 0);
	cr_assert_not(store_file_read(f, 3 * STORE_PAGE, p, 2 * STORE_PAGE, &error));
	cr_assert(g_error_matches(error, ESMOE_ERROR, ESMOE_ERROR_DEVICE) && strstr(error->message, path) && strstr(error->message, "12288") &&
	              strstr(error->message, "after 4096"),
	          "%s", error->message);
	free(p);
	store_file_free(g_steal_pointer(&f));
	g_rmdir(folder);
}

/* A file system without direct access, where the system has one to try. */
Test(store_file, works_through_the_page_cache_too)
{
	g_autofree char *folder = g_strdup("/dev/shm/esmoe-XXXXXX");
	if (!g_mkdtemp(folder))
		cr_skip_test("no /dev/shm");
	g_autoptr(store_file) f = store_file_new(folder, 4 * STORE_PAGE, NULL);
	cr_assert(f);
	char *p = NULL;
	cr_assert_eq(posix_memalign((void **)&p, STORE_PAGE, STORE_PAGE), 0);
	memset(p, 9, STORE_PAGE);
	cr_assert(store_file_write(f, STORE_PAGE, p, STORE_PAGE, NULL));
	cr_assert(store_file_read(f, 0, p, STORE_PAGE, NULL) && p[0] == 0);
	cr_assert(store_file_read(f, STORE_PAGE, p, STORE_PAGE, NULL) && p[0] == 9 && p[STORE_PAGE - 1] == 9);
	free(p);
	store_file_free(g_steal_pointer(&f));
	g_rmdir(folder);
}
