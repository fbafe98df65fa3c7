/* Any text as a scenario, as traces and run.ini carry it: refused with one line, or a scenario whose text reads back to the same text and which can
 * be planned. Seeds hold no path: a path in `routing` would be opened. */
#include "fuzz.h"
#include "model/plan.h"

#include <string.h>

static void check_error(const GError *error)
{
	g_assert_true(*error->message && !strpbrk(error->message, "\r\n") && g_utf8_validate(error->message, -1, NULL));
}

/* Whatever its sizes, whether it fits is answered. */
static void plan(const struct scenario *s)
{
	g_autoptr(GError) error = NULL;
	struct plan plan;

	if (plan_make(s, &plan, &error))
		g_assert_true(plan.overflow < 0 && plan.microbatches >= 1 && plan.microbatches <= s->sequences);
	else
		check_error(error);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	g_autofree char *text = g_strndup(size ? (const char *)data : "", size), *once = NULL, *twice = NULL;
	g_autoptr(GError) error = NULL;
	g_autoptr(scenario) s = strchr(text, '/') ? NULL : scenario_from_ini(text, "fuzz.ini", NULL, &error);
	g_autoptr(scenario) again = NULL;

	if (!s) {
		if (error)
			check_error(error);
		return 0;
	}
	once = scenario_ini(s);
	again = scenario_from_ini(once, "again.ini", NULL, &error);
	g_assert_no_error(error);
	twice = scenario_ini(again);
	g_assert_cmpstr(once, ==, twice);
	plan(s);
	return 0;
}
