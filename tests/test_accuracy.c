/* The accuracy figures: which rows are points, and that both timelines of a run stand in one figure. */
#include "plots/accuracy.h"

#include "made_trace.h"
#include "model/error.h"
#include "svg.h"

TestSuite(accuracy, .init = enter_folder, .fini = leave_folder);

static struct csv *csv_of(const char *text)
{
	g_autoptr(GError) error = NULL;
	struct csv *csv = csv_parse(text, strlen(text), "validated.csv", &error);
	cr_assert(csv, "%s", error ? error->message : "");
	return csv;
}

Test(accuracy, what_validate_does_not_print_is_refused_with_its_place)
{
	static const struct {
		const char *rows, *says;
	} bad[] = {
	    {"of,name,measured_ms,predicted_ms\n", "no times"},
	    {"of,name,measured_ms,predicted_ms\nstage,a,0,1\n", "no times"},
	    {"of,name,measured_ms\nstep,step,1\n", "predicted_ms"},
	    {"of,name,measured_ms,predicted_ms\nleg,step,1,1\n", "validated.csv:2"},
	    {"of,name,measured_ms,predicted_ms\nstep,step,1,-1\n", "validated.csv:2"},
	};
	for (size_t i = 0; i < G_N_ELEMENTS(bad); i++) {
		g_autoptr(csv) csv = csv_of(bad[i].rows);
		g_autoptr(GError) error = NULL;
		g_autofree char *path = in_folder("bad.svg");
		cr_assert_not(plot_accuracy(&csv, 1, path, &error), "%s", bad[i].rows);
		cr_assert(g_error_matches(error, ESMOE_ERROR, ESMOE_ERROR_INPUT));
		cr_assert(strstr(error->message, bad[i].says), "'%s' lacks '%s'", error->message, bad[i].says);
	}
}

Test(accuracy, classes_that_occur_are_named_on_axes_of_whole_decades)
{
	g_autoptr(csv) csv = csv_of("run,of,name,measured_ms,predicted_ms\na,step,step,20,21\na,stage,expert forward,0.5,0.4\n");
	g_autoptr(GError) error = NULL;
	g_autofree char *path = in_folder("accuracy.svg");
	cr_assert(plot_accuracy(&csv, 1, path, &error), "%s", error ? error->message : "");
	g_autofree char *svg = contents(path);
	g_autoptr(GArray) words = words_of(svg);
	cr_assert(says(words, "steps") && says(words, "kinds of stages") && says(words, "within 5 %"));
	cr_assert_not(says(words, "streams"));
	cr_assert(says(words, "0.1") && says(words, "100"));
	check_no_overlap(words, "accuracy");
}

Test(accuracy, a_run_and_its_prediction_stand_above_each_other)
{
	g_autoptr(trace) a = made_trace(2, 2, 300, 1), b = made_trace(2, 2, 300, 2), other = made_trace(1, 1, 10, 1);
	g_autoptr(GError) error = NULL;
	g_autofree char *path = in_folder("both.svg"), *bad = in_folder("bad.svg");
	cr_assert(plot_accuracy_timelines(a, b, path, &error), "%s", error ? error->message : "");
	g_autofree char *svg = contents(path);
	g_autoptr(GArray) words = words_of(svg);
	cr_assert(says(words, "measured") && says(words, "predicted"));
	check_no_overlap(words, "timelines");
	cr_assert_not(plot_accuracy_timelines(a, other, bad, &error));
	cr_assert(g_error_matches(error, ESMOE_ERROR, ESMOE_ERROR_INPUT));
}
