/* Learning curves: which rows are a curve, and that every run is in the figure under its name. */
#include "plots/losses.h"

#include "model/error.h"
#include "svg.h"

TestSuite(losses, .init = enter_folder, .fini = leave_folder);

static struct csv *csv_of(const char *text)
{
	g_autoptr(GError) error = NULL;
	struct csv *csv = csv_parse(text, strlen(text), "losses.csv", &error);
	cr_assert(csv, "%s", error ? error->message : "");
	return csv;
}

Test(losses, what_is_no_curve_is_refused_with_its_place)
{
	static const struct {
		const char *rows, *says;
	} bad[] = {
	    {"step,loss\n", "no steps"},
	    {"step,tokens_per_s\n1,2\n", "loss"},
	    {"step,loss\n1,2\n1,3\n", "losses.csv:3"},
	    {"step,loss\n2,2\n1,3\n", "losses.csv:3"},
	    {"step,loss\n1,nan\n", "losses.csv:2"},
	    {"step,loss\n1,-1\n", "losses.csv:2"},
	};
	for (size_t i = 0; i < G_N_ELEMENTS(bad); i++) {
		g_autoptr(csv) csv = csv_of(bad[i].rows);
		g_autoptr(GError) error = NULL;
		const struct losses_input run = {"a", csv};
		g_autofree char *path = in_folder("bad.svg");
		cr_assert_not(plot_losses(&run, 1, path, &error), "%s", bad[i].rows);
		cr_assert(g_error_matches(error, ESMOE_ERROR, ESMOE_ERROR_INPUT));
		cr_assert(strstr(error->message, bad[i].says), "'%s' lacks '%s'", error->message, bad[i].says);
		cr_assert_not(g_file_test(path, G_FILE_TEST_EXISTS));
	}
}

Test(losses, runs_on_top_of_each_other_are_both_named_and_the_later_is_the_narrower)
{
	g_autoptr(csv) csv = csv_of("step,loss,step_ms\n10,4,1\n11,3,1\n12,2.5,1\n");
	const struct losses_input runs[] = {{"es-moe", csv}, {"static", csv}};
	g_autoptr(GError) error = NULL;
	g_autofree char *path = in_folder("losses.svg");
	cr_assert(plot_losses(runs, 2, path, &error), "%s", error ? error->message : "");
	g_autofree char *svg = contents(path);
	cr_assert(strstr(svg, "es-moe") && strstr(svg, "static") && strstr(svg, "loss (nats)"));
	cr_assert(strstr(svg, "stroke-width=\"3.80\"") && strstr(svg, "stroke-width=\"1.40\""));
}
