/* sim and plots do not know each other: a figure is drawn by the plot command, found through the table of commands like any other, from files in the
 * form that a user would give it. What is in no file yet goes through a folder of its own that is gone afterwards. */
#include "figure.h"

#include "model/command.h"
#include "traces/kineto.h"
#include "traces/temporary.h"

static bool draw(const char *figure, const char *input, const char *out, GError **error)
{
	char *argv[] = {"plot", (char *)figure, "-o", (char *)out, (char *)input, NULL};
	return cmd_plot(G_N_ELEMENTS(argv) - 1, argv, error);
}

bool figure_timeline(const struct trace *trace, const char *out, GError **error)
{
	g_autofree char *folder = temporary_folder("what a figure is drawn from", error);
	if (!folder)
		return false;
	g_autofree char *prefix = g_build_filename(folder, "trace", NULL);
	bool ok = kineto_write(trace, prefix, false, error) && draw("timeline", prefix, out, error);
	temporary_folder_remove(folder);
	return ok;
}

bool figure_throughput(const char *csv_path, const char *out, GError **error)
{
	return draw("throughput", csv_path, out, error);
}

bool figure_throughput_text(const char *csv, const char *out, GError **error)
{
	g_autofree char *folder = temporary_folder("what a figure is drawn from", error);
	if (!folder)
		return false;
	g_autofree char *path = g_build_filename(folder, "rows.csv", NULL);
	bool ok = g_file_set_contents(path, csv, -1, error) && draw("throughput", path, out, error);
	temporary_folder_remove(folder);
	return ok;
}
