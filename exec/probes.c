/* Runs differ in tokens, experts and the experts' inner size, so that each kind is seen over a range of sizes; where experts are measured, a rule
 * takes the gate's place (skewed where they run one by one, even where they are grouped), so that there are tokens for all of them. Most runs have a
 * few of the network's layers. Those of the scenario's size have them all: a GPU's clock follows what it works on within tens of milliseconds, and
 * what is far from the step's ends is slower. */
#include "probes.h"

enum {
	LAYERS_LEAST = 4,
	HOST_LAYERS = 6, /* more state than caches of any kind hold */
	HOT_LAYERS = 12, /* steps long beside what lies between them */
	HASTE = 130      /* %: as fast as that is Adam taken to be where it shall have no pause in a backward */
};

/* Loads of a rule: sizes an octave and more apart in one run; and the same for all. */
#define SKEWED "zipf:2"
#define EVEN "uniform"

char *probe_name(const struct probe *p)
{
	static const struct {
		int serves;
		const char *what;
	} names[] = {{SERVES_COPIES, "computation beside copies"},
	             {SERVES_HOST, "Adam"},
	             {SERVES_EXCHANGES, "exchanges"},
	             {SERVES_ONE_WAY, "exchanges with unequal loads"},
	             {SERVES_GROUPED, "grouped experts"},
	             {SERVES_EXPERTS, "experts"},
	             {SERVES_COMPUTE, "computation"}};
	const char *what = "";
	for (size_t i = 0; i < G_N_ELEMENTS(names) && !*what; i++)
		what = p->serves & names[i].serves ? names[i].what : "";
	return g_strdup_printf("%s, %d sequences, %d experts, inner size %d", what, p->sequences, p->experts, p->d_expert);
}

static void add_probe(struct probes *p, struct probe probe)
{
	g_array_append_val(probe.serves & SERVES_HOST ? p->host : p->list, probe);
}

/* At most one a turn. Where no copy is beside the computation they have experts, too, of as many tokens as even loads give them: what those take
 * rises in steps of the GPU's waves. Copies are beside experts of two sizes. How fast a clock falls is told by steps that compute for long and then
 * wait for long: all layers, and few experts. */
static void list_host_probes(struct probes *p, int s, int e, int k, int d)
{
	add_probe(p, (struct probe){SERVES_HOST | SERVES_ADAM | SERVES_OVERHEADS | SERVES_EXPERTS, 1, s, e, 1, d, EVEN});
	add_probe(p, (struct probe){SERVES_HOST | SERVES_ADAM, 1, s, e, 1, MAX(d / 4, 1), EVEN});
	if (p->real)
		add_probe(p, (struct probe){SERVES_HOST | SERVES_COPIES, 1, s, e, 1, d, EVEN});
	add_probe(p, (struct probe){SERVES_HOST | SERVES_SUMS | SERVES_EXPERTS, 1, s + s % 2, e, 2, d, EVEN});
	if (p->real)
		add_probe(p, (struct probe){SERVES_HOST | SERVES_ADAM | SERVES_HEAT | SERVES_WHOLE, 1, s, MAX(e / 4, k), 1, d, EVEN});
	add_probe(p, (struct probe){SERVES_HOST | SERVES_ADAM, 1, s, MAX(e / 2, k), 1, 2 * d, EVEN});
	if (p->real)
		add_probe(p, (struct probe){SERVES_HOST | SERVES_COPIES, 1, s, MAX(e / 2, k), 1, d, EVEN});
}

static void list_probes(struct probes *p, const struct scenario *base)
{
	const int s = base->sequences, gpus = p->m->gpus_per_node;
	int e = network_experts(base->network), d = 0, k = 1;
	for (int i = 0; i < base->network->layers; i++) {
		const struct layer *l = &base->network->layer[i];
		d = l->experts ? l->d_expert : d;
		k = MAX(k, l->top_k);
	}
	p->d_expert = d;
	p->expert = (size_t)activation_matrices(base->network->activation) * (size_t)base->network->d_model * (size_t)d;
	for (int n = 1; n < s; n *= 2)
		add_probe(p, (struct probe){SERVES_COMPUTE | (2 * n >= s ? SERVES_WHOLE : 0), 1, n, e, 1, d});
	add_probe(p, (struct probe){SERVES_COMPUTE | SERVES_WHOLE | SERVES_STEPS | (p->real ? 0 : SERVES_OVERHEADS), 1, s, e, 1, d});
	add_probe(p, (struct probe){SERVES_COMPUTE, 1, 2 * s, e, 1, d});
	add_probe(p, (struct probe){SERVES_COMPUTE, 1, s, MAX(e / 4, k), 1, d});
	add_probe(p, (struct probe){SERVES_COMPUTE, 1, s, e * 4, 1, d});
	add_probe(p, (struct probe){SERVES_COMPUTE, 1, s + s % 2, e, 2, d});
	for (int n = MAX(s / 16, 1); n < 2 * s; n *= 4)
		add_probe(p, (struct probe){SERVES_EXPERTS, 1, n, e, 1, d, SKEWED});
	add_probe(p, (struct probe){SERVES_EXPERTS, 1, 2 * s, e, 1, d, SKEWED});
	for (int n = s; n >= MAX(s / 16, 1); n /= 4)
		for (int of = 1; of <= 4; of *= 2)
			add_probe(p, (struct probe){SERVES_GROUPED | (n == s && of == 2 ? SERVES_WHOLE : 0), 1, n, MAX(e * of / 2, k), 1, d, EVEN});
	add_probe(p, (struct probe){SERVES_GROUPED, 1, s, k, 1, d, EVEN});
	list_host_probes(p, s, e, k, d);
	if (gpus < 2)
		return;
	e = MAX(e, 4); /* two on each, as the costs of exchanges want it (model/cost.c) */
	for (int n = MAX(s / 16, 1); n < s; n *= 4)
		add_probe(p, (struct probe){SERVES_EXCHANGES, 2, n, e, 1, d, EVEN});
	add_probe(p, (struct probe){SERVES_EXCHANGES | SERVES_STEPS, 2, s, e, 1, d, EVEN});
	add_probe(p, (struct probe){SERVES_EXCHANGES, 2, 2 * s, e, 1, d, EVEN});
	if (p->real)
		add_probe(p, (struct probe){SERVES_ONE_WAY, 2, s, 2 * k, 1, d, SKEWED});
}

/* Up to the second MoE layer at least, so that each kind of layer is there. */
static int few_layers(const struct network *n, int least)
{
	int layers = 0, moe = 0;
	while (layers < n->layers && (moe < 2 || layers < least))
		moe += n->layer[layers++].experts > 0;
	return layers;
}

void probes_init(struct probes *p, const struct scenario_options *o, const struct scenario *base, const struct machine *m, bool real, bool hot)
{
	*p = (struct probes){.o = o, .m = m, .real = real};
	p->list = g_array_new(FALSE, FALSE, sizeof(struct probe));
	p->host = g_array_new(FALSE, FALSE, sizeof(struct probe));
	p->layers = few_layers(base->network, hot ? HOT_LAYERS : LAYERS_LEAST);
	p->all_layers = hot ? base->network->layers : p->layers;
	p->host_layers = MIN(p->layers, few_layers(base->network, HOST_LAYERS));
	list_probes(p, base);
}

void probes_clear(struct probes *p)
{
	g_array_unref(p->list);
	g_array_unref(p->host);
}

int probes_layers(const struct probes *p, const struct probe *probe)
{
	if (probe->serves & SERVES_WHOLE)
		return p->all_layers;
	if (probe->d_expert > p->d_expert)
		return MAX(1, p->layers * p->d_expert / probe->d_expert);
	if (probe->serves & SERVES_COPIES)
		return (p->host_layers + p->layers) / 2;
	return probe->serves & SERVES_HOST ? p->host_layers : p->layers;
}

/* Beside copies a quarter stays, whose backwards have downloads beside them and no uploads. */
static const char *pinned_of(const struct probe *probe)
{
	return probe->serves & SERVES_HEAT     ? "policy.pinned_share=1"
	       : probe->serves & SERVES_COPIES ? "policy.pinned_share=0.25"
	                                       : "policy.pinned_share=0";
}

/* Updates are planned by what a backward is assumed to take, which nobody has measured yet, and which is less: beside copies that would leave Adam
 * nothing to do from layer to layer. A run finds that Adam is so much faster than usual, and gives it more. */
static double usual_of(const struct probes *p, const struct probe *probe)
{
	return probe->serves & SERVES_COPIES ? p->alone * 100 / HASTE : p->alone;
}

struct scenario *probes_scenario(const struct probes *p, const struct probe *probe, GError **error)
{
	bool copies = probe->serves & SERVES_HOST;
	bool grouped = probe->serves & SERVES_GROUPED || (p->real && probe->serves & SERVES_COMPUTE); /* as experts at home run */
	g_autoptr(GStrvBuilder) set = g_strv_builder_new();
	g_autofree char *inner = g_strdup_printf("network.d_expert=%d", probe->d_expert),
	                *threads = g_strdup_printf("policy.adam_threads=%d", p->m->adam_threads),
	                *layers = g_strdup_printf("network.layers=%d", probes_layers(p, probe)),
	                *alone = g_strdup_printf("host.adam_alone_gparams_per_s=%.9g", usual_of(p, probe));
	struct scenario_options o = *p->o;
	if (o.set)
		g_strv_builder_addv(set, (const char **)o.set);
	g_strv_builder_add_many(set, inner, threads, layers, grouped ? "policy.expert_compute=grouped" : "policy.expert_compute=sequential",
	                        "contention.rule=max-min", alone, NULL);
	if (copies)
		g_strv_builder_add_many(set, "policy.expert_home=dram", pinned_of(probe),
		                        probe->serves & SERVES_COPIES ? "policy.optimizer=cpu-expert" : "policy.optimizer=cpu-step",
		                        probe->serves & SERVES_COPIES ? "policy.update_order=next-forward" : "policy.update_order=arrival", NULL);
	if (copies && !(probe->serves & SERVES_COPIES))
		g_strv_builder_add_many(set, "policy.upload_ahead=0", "policy.upload_scope=layer", NULL);
	g_auto(GStrv) words = g_strv_builder_end(set);
	o.set = (const char *const *)words;
	o.policy = copies ? "es-moe" : "static";
	o.gpus = probe->gpus;
	o.sequences = probe->sequences;
	o.experts = probe->experts;
	o.microbatches = probe->microbatches;
	o.routing = probe->routing;
	return scenario_new(&o, error);
}
