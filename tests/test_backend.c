/* The contract on the do-nothing backend and on the simulator, and what the wrappers refuse. */
#include "contract.h"
#include "model/backend_null.h"
#include "model/error.h"
#include "sim/sim.h"

#include <signal.h>

static struct backend *null_make(const struct ground *ground)
{
	return backend_null_new(ground->routing, ground->machine.gpus);
}

/* Time does not pass there. */
static void null_times(struct backend *b, stage_id id, nsec_t *start_ns, nsec_t *end_ns)
{
	*start_ns = *end_ns = 0;
}

Test(backend, null_keeps_the_contract)
{
	contract_check(&(struct world){"null", null_make, null_times});
}

static struct backend *sim_make(const struct ground *ground)
{
	static const struct sim_options everything;
	return sim_new(&ground->machine, ground->resources, ground->routing, &everything);
}

static struct backend *sim_make_bare(const struct ground *ground)
{
	static const struct sim_options bare = {.no_launch = true, .no_sync = true, .no_event = true, .no_sharing = true};
	return sim_new(&ground->machine, ground->resources, ground->routing, &bare);
}

static void sim_times(struct backend *b, stage_id id, nsec_t *start_ns, nsec_t *end_ns)
{
	*start_ns = sim_start_ns(b, id);
	*end_ns = sim_end_ns(b, id);
}

Test(backend, sim_keeps_the_contract)
{
	contract_check(&(struct world){"sim", sim_make, sim_times});
	contract_check(&(struct world){"bare sim", sim_make_bare, sim_times});
}

Test(backend, null_records_the_stages_it_was_given)
{
	g_autoptr(GArray) record = g_array_new(FALSE, FALSE, sizeof(struct stage));
	g_autoptr(backend) b = backend_null_new(NULL, 1);
	const struct stage first = {.kind = STAGE_GATE, .expert = -1, .cost_ns = 5},
	                   second = {.id = 1, .kind = STAGE_EXPERT, .expert = 3, .n_preds = 1};
	cr_assert(backend_launch(b, &first, NULL));
	backend_null_record(b, record);
	cr_assert(backend_launch(b, &second, NULL));
	cr_assert(record->len == 1 && b->n_launched == 2);
	cr_assert(g_array_index(record, struct stage, 0).id == 1 && g_array_index(record, struct stage, 0).expert == 3);
}

static bool broken_launch(struct backend *b, const struct stage *stage, GError **error)
{
	g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_DEVICE, "the device is gone");
	return false;
}

static bool broken_wait(struct backend *b, stage_id id, GError **error)
{
	return broken_launch(b, NULL, error);
}

static bool broken_loads(struct backend *b, const struct gate *gate, uint32_t *tokens, GError **error)
{
	return broken_launch(b, NULL, error);
}

static const struct backend_impl broken = {"broken", broken_launch, broken_wait, broken_loads, NULL};

Test(backend, a_failed_launch_is_reported_and_not_counted)
{
	g_autoptr(GError) error = NULL;
	struct backend b = {&broken, 0, false};
	cr_assert(!backend_launch(&b, &(struct stage){0}, &error));
	cr_assert(error->code == ESMOE_ERROR_DEVICE && b.failed && b.n_launched == 0);
}

Test(backend, after_a_failed_wait_nothing_is_launched, .signal = SIGABRT)
{
	struct backend b = {&broken, 1, false};
	if (!backend_wait(&b, 0, NULL))
		(void)!backend_launch(&b, &(struct stage){.id = 1}, NULL);
}

Test(backend, after_failed_loads_nothing_is_waited_for, .signal = SIGABRT)
{
	struct backend b = {&broken, 1, false};
	uint32_t tokens[1];
	if (!backend_loads(&b, &(struct gate){.experts = 1, .top_k = 1}, tokens, NULL))
		(void)!backend_wait(&b, 0, NULL);
}

static void launch_second(struct stage second)
{
	g_autoptr(backend) b = backend_null_new(NULL, 1);
	(void)!backend_launch(b, &(struct stage){0}, NULL);
	(void)!backend_launch(b, &second, NULL);
}

Test(backend, ids_are_dense, .signal = SIGABRT)
{
	launch_second((struct stage){.id = 2});
}

Test(backend, ids_do_not_repeat, .signal = SIGABRT)
{
	launch_second((struct stage){.id = 0});
}

Test(backend, predecessors_are_earlier, .signal = SIGABRT)
{
	launch_second((struct stage){.id = 1, .n_preds = 2, .preds = {0, 1}});
}

Test(backend, predecessors_are_few, .signal = SIGABRT)
{
	launch_second((struct stage){.id = 1, .n_preds = STAGE_PREDECESSORS + 1});
}

Test(backend, kinds_are_known, .signal = SIGABRT)
{
	launch_second((struct stage){.id = 1, .kind = N_STAGE_KINDS});
}

Test(backend, passes_are_known, .signal = SIGABRT)
{
	launch_second((struct stage){.id = 1, .pass = N_STAGE_PASSES});
}

Test(backend, groups_have_members, .signal = SIGABRT)
{
	launch_second((struct stage){.id = 1, .group = 1});
}

Test(backend, costs_are_not_negative, .signal = SIGABRT)
{
	launch_second((struct stage){.id = 1, .cost_ns = -1});
}

Test(backend, only_launched_stages_are_waited_for, .signal = SIGABRT)
{
	g_autoptr(backend) b = backend_null_new(NULL, 1);
	(void)!backend_wait(b, 0, NULL);
}
