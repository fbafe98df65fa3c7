/* Runs a fuzz target over the files of a folder, so that its seeds are an ordinary test with any compiler. */
#include "fuzz.h"

#include <stdio.h>

int main(int argc, char **argv)
{
	g_autoptr(GError) error = NULL;
	g_autoptr(GDir) folder = argc == 2 ? g_dir_open(argv[1], 0, &error) : NULL;
	if (!folder) {
		fprintf(stderr, "%s\n", error ? error->message : "usage: replay FOLDER");
		return 1;
	}
	int n = 0;
	for (const char *name = g_dir_read_name(folder); name; name = g_dir_read_name(folder), n++) {
		g_autofree char *path = g_build_filename(argv[1], name, NULL), *content = NULL;
		size_t length;
		if (!g_file_get_contents(path, &content, &length, &error)) {
			fprintf(stderr, "%s\n", error->message);
			return 1;
		}
		/* Truncated too, unless that takes long; copies of the exact size: reading past the end is then a fault that a sanitizer sees. */
		for (size_t size = length > 4096 ? length : 0; size <= length; size++) {
			g_autofree uint8_t *data = g_memdup2(content, size);
			LLVMFuzzerTestOneInput(data, size);
		}
	}
	printf("%d files\n", n);
	return n > 0 ? 0 : 1;
}
