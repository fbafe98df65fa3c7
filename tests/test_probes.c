/* The runs of a calibration: there is one for each thing that is measured, and each makes a scenario. */
#include "exec/probes.h"

#include <criterion/criterion.h>

#define ALONE 6.5

enum { TURNS = 7 /* of a calibration: it makes one run whose Adam matters in each */ };

struct asked {
	struct scenario *base;
	struct scenario_options o;
	struct probes probes;
};

static void ask(struct asked *a, const char *model, const char *machine, bool real)
{
	g_autoptr(GError) error = NULL;
	a->o = (struct scenario_options){.model = model, .machine = machine, .policy = "static", .experts = 8, .sequences = 32};
	a->base = scenario_new(&a->o, &error);
	cr_assert(a->base, "%s", error ? error->message : "");
	probes_init(&a->probes, &a->o, a->base, a->base->machine, real, real);
	a->probes.alone = ALONE;
}

static void asked_clear(struct asked *a)
{
	probes_clear(&a->probes);
	scenario_free(a->base);
}

static const struct probe *probe_at(const struct probes *p, guint i)
{
	return i < p->list->len ? &g_array_index(p->list, struct probe, i) : &g_array_index(p->host, struct probe, i - p->list->len);
}

static int served(const struct probes *p)
{
	int all = 0;
	for (guint i = 0; i < p->list->len + p->host->len; i++)
		all |= probe_at(p, i)->serves;
	return all;
}

Test(probes, all_is_served_on_two_gpus)
{
	struct asked a;
	ask(&a, "gpt-moe-m", "h200-x2", true);
	cr_expect_eq(served(&a.probes), 2 * SERVES_WHOLE - 1, "%x", (unsigned)served(&a.probes));
	cr_expect_leq(a.probes.host->len, TURNS);
	asked_clear(&a);
}

Test(probes, one_gpu_exchanges_nothing_and_virtual_ones_have_no_clock)
{
	struct asked a;
	ask(&a, "gpt-moe-m", "h200-x1", true);
	cr_expect_eq(served(&a.probes) & (SERVES_EXCHANGES | SERVES_ONE_WAY), 0);
	asked_clear(&a);
	ask(&a, "tiny-moe", "host", false);
	cr_expect_eq(served(&a.probes) & (SERVES_HEAT | SERVES_COPIES | SERVES_ONE_WAY), 0);
	asked_clear(&a);
}

Test(probes, each_makes_a_scenario)
{
	struct asked a;
	ask(&a, "gpt-moe-m", "h200-x2", true);
	for (guint i = 0; i < a.probes.list->len + a.probes.host->len; i++) {
		g_autoptr(GError) error = NULL;
		const struct probe *p = probe_at(&a.probes, i);
		g_autofree char *name = probe_name(p);
		g_autoptr(scenario) s = probes_scenario(&a.probes, p, &error);
		cr_assert(s, "%s: %s", name, error ? error->message : "");
		cr_expect_eq(s->network->layers, probes_layers(&a.probes, p), "%s", name);
		cr_expect_eq(p->serves & SERVES_WHOLE && s->network->layers != a.base->network->layers, false, "%s", name);
		cr_expect_eq(network_experts(s->network), p->experts, "%s", name);
		cr_expect_eq(s->policy->expert_home == HOME_DRAM, (p->serves & SERVES_HOST) != 0, "%s", name);
	}
	asked_clear(&a);
}

/* Beside copies Adam shall have no pause in a backward: it is planned as if it were faster than it is. */
Test(probes, adam_is_given_more_beside_copies)
{
	struct asked a;
	ask(&a, "gpt-moe-m", "h200-x1", true);
	for (guint i = 0; i < a.probes.host->len; i++) {
		const struct probe *p = &g_array_index(a.probes.host, struct probe, i);
		g_autoptr(scenario) s = probes_scenario(&a.probes, p, NULL);
		const bool copies = p->serves & SERVES_COPIES;
		cr_expect_eq(s->policy->update_order == UPDATE_NEXT_FORWARD, copies);
		cr_expect_eq(s->machine->adam_alone_gparams_per_s < ALONE, copies, "%g", s->machine->adam_alone_gparams_per_s);
	}
	asked_clear(&a);
}
