/* Which GPUs a process has; connected ones are the business of test_ranks.c and test_processes.sh. */
#include "exec/launched.h"
#include "exec/together.h"
#include "model/error.h"

#include <criterion/criterion.h>
#include <string.h>

static struct scenario *four_gpus(void)
{
	static const char *const set[] = {"machine.gpus_per_node=2", "pcie.gpus_per_root=1", NULL};
	const struct scenario_options o = {.model = "tiny-moe", .machine = "host", .policy = "es-moe", .gpus = 4, .set = set};
	g_autoptr(GError) error = NULL;
	struct scenario *s = scenario_new(&o, &error);
	cr_assert(s, "%s", error ? error->message : "");
	return s;
}

Test(together, one_process_has_all_gpus_and_asks_nobody)
{
	g_autoptr(scenario) s = four_gpus();
	const struct launched alone = {.size = 1};
	const struct launched *const of[] = {NULL, &alone};
	for (size_t i = 0; i < G_N_ELEMENTS(of); i++) {
		struct together t;
		bool flag = true;
		cr_assert(together_join(s, &(struct run_options){.launched = of[i]}, &t, NULL));
		cr_expect(!t.ranks && t.first == 0 && t.end == 4);
		cr_expect(together_all(NULL, &flag, NULL) && flag);
		cr_expect(together_same_step(NULL, 7, "x", NULL));
	}
}

Test(together, there_is_a_process_a_node)
{
	g_autoptr(scenario) s = four_gpus();
	const struct launched three = {.by = "srun", .rank = 1, .size = 3};
	g_autoptr(GError) error = NULL;
	struct together t;
	cr_assert_not(together_join(s, &(struct run_options){.launched = &three}, &t, &error));
	cr_expect(g_error_matches(error, ESMOE_ERROR, ESMOE_ERROR_USAGE) && strstr(error->message, "srun started 3 processes") &&
	              strstr(error->message, "are 2 nodes"),
	          "%s", error->message);
	cr_expect_null(t.ranks);
}
