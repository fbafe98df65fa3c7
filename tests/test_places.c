/* places.csv: what is read, and what is refused with its line. */
#include "model/error.h"
#include "sim/places.h"

#include <criterion/criterion.h>
#include <string.h>

static struct scenario *two_layers(void)
{
	static const char *const set[] = {"network.layers=2", NULL};
	const struct scenario_options o = {.model = "tiny-moe", .machine = "host", .policy = "es-moe", .experts = 2, .set = set};
	g_autoptr(GError) error = NULL;
	struct scenario *s = scenario_new(&o, &error);
	cr_assert(s, "%s", error ? error->message : "");
	return s;
}

Test(places, are_read_layer_by_layer)
{
	g_autoptr(scenario) s = two_layers();
	static const char text[] = "layer,expert,last,pinned\n0,0,1,-1\n0,1,0,0\n1,0,-1,-1\n1,1,3,2\n";
	static const struct expert_place want[] = {{1, -1}, {0, 0}, {-1, -1}, {3, 2}};
	g_autoptr(GError) error = NULL;
	g_autofree struct expert_place *got = places_of(text, "places.csv", s->network, &error);
	cr_assert(got, "%s", error ? error->message : "");
	cr_expect_eq(memcmp(got, want, sizeof want), 0);
}

Test(places, what_is_wrong_is_named_with_its_line)
{
	g_autoptr(scenario) s = two_layers();
	static const struct {
		const char *text, *line;
	} bad[] = {{"", "p:1:"},
	           {"layer,expert\n", "p:1:"},
	           {"layer,expert,last,pinned\n0,0,1,-1\n", "p:3:"},
	           {"layer,expert,last,pinned\n0,1,1,-1\n", "p:2:"},
	           {"layer,expert,last,pinned\n0,0,1\n", "p:2:"},
	           {"layer,expert,last,pinned\n0,0,1,-2\n", "p:2:"},
	           {"layer,expert,last,pinned\n0,0,1,x\n", "p:2:"},
	           {"layer,expert,last,pinned\n0,0,99999999999,0\n", "p:2:"},
	           {"layer,expert,last,pinned\n0,0,0,0\n0,1,0,0\n1,0,0,0\n1,1,0,0\n1,2,0,0\n", "p:6:"}};
	for (size_t i = 0; i < G_N_ELEMENTS(bad); i++) {
		g_autoptr(GError) error = NULL;
		cr_assert_null(places_of(bad[i].text, "p", s->network, &error), "%zu", i);
		cr_expect(g_error_matches(error, ESMOE_ERROR, ESMOE_ERROR_INPUT) && g_str_has_prefix(error->message, bad[i].line), "%zu: %s", i,
		          error->message);
	}
}
