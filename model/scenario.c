/* A scenario is put together from four readers over one list of overrides: every what-if option is the override of a key, so a file, --set and an
 * option can never mean different things.
 *
 *     options --> overrides --+--> [scenario] --> sequences, routing, seed
 *                             +--> network, machine, policy
 *
 * Written out, the four texts follow each other in one .ini, which each reader takes back by its own sections. */
#include "scenario.h"

#include "error.h"
#include "measured.h"

#include <string.h>

/* The [scenario] section. */
struct fields {
	char *model, *machine, *policy, *routing, *seed;
	int sequences, seq_len, microbatches, workload, generate;
};

static const char *const workload_words[] = {[WORKLOAD_TRAINING] = "training", [WORKLOAD_INFERENCE] = "inference", NULL};

static const struct ini_key keys[] = {
    {"scenario", "model", INI_STRING, offsetof(struct fields, model), "", 0, 0, NULL, "name of the network"},
    {"scenario", "machine", INI_STRING, offsetof(struct fields, machine), "", 0, 0, NULL, "name of the machine"},
    {"scenario", "policy", INI_STRING, offsetof(struct fields, policy), "", 0, 0, NULL, "name of the policy"},
    {"scenario", "sequences", INI_INT, offsetof(struct fields, sequences), "0", 0, 1 << 20, NULL, "sequences a GPU and step; 0: as the network says"},
    {"scenario", "seq_len", INI_INT, offsetof(struct fields, seq_len), "0", 0, 1 << 20, NULL, "tokens a sequence; 0: as the network says"},
    {"scenario", "microbatches", INI_INT, offsetof(struct fields, microbatches), "0", 0, 1 << 20, NULL,
     "micro-batches a step; 0: the fewest that fit"},
    {"scenario", "workload", INI_CHOICE, offsetof(struct fields, workload), "training", 0, 0, workload_words,
     "training, or inference: a batch of prompts is read and continued"},
    {"scenario", "generate", INI_INT, offsetof(struct fields, generate), "32", 1, 1 << 20, NULL, "inference: tokens generated of each sequence"},
    {"scenario", "routing", INI_STRING, offsetof(struct fields, routing), "", 0, 0, NULL,
     "uniform, zipf:S, zipf:S:DRIFT, expert-choice, hash, or the path of a CSV of loads"},
    {"scenario", "seed", INI_STRING, offsetof(struct fields, seed), "0", 0, 0, NULL, "seed of the routing, from 0 to 2^64-1"},
};

static void fields_clear(struct fields *f)
{
	ini_clear(keys, G_N_ELEMENTS(keys), f);
}

/* Names and the routing stand in messages and tables, each a line. */
static bool check_lines(const struct fields *f, GError **error)
{
	for (size_t i = 0; i < G_N_ELEMENTS(keys); i++) {
		const char *c = keys[i].type == INI_STRING ? *(char *const *)(const void *)((const char *)f + keys[i].offset) : "";
		while (*c && !g_ascii_iscntrl(*c))
			c++;
		if (*c) {
			g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_INPUT, "scenario.%s: control character 0x%02x; expected one line of text",
			            keys[i].key, (guchar)*c);
			return false;
		}
	}
	return true;
}

static const char *const sections[] = {"network", "machine", "gpu",      "pcie",       "nvlink", "nic",      "host",
                                       "fabric",  "ssd",     "software", "contention", "policy", "scenario", NULL};

/* Each reader checks the keys of its own sections and leaves other sections alone; a section that nobody reads is caught here. */
static bool check_sections(const char *const *set, GError **error)
{
	for (; set && *set; set++) {
		g_autofree char *section = g_strndup(*set, strcspn(*set, ".="));
		if (g_strv_contains(sections, section) || measured_section(section))
			continue;
		const char *nearest = nearest_word(section, sections);
		g_autofree char *all = g_strjoinv(", ", (char **)sections);
		g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_USAGE, "--set '%s': no section '%s'; %s%s", *set, section,
		            nearest ? "did you mean " : "sections are ", nearest ? nearest : all);
		return false;
	}
	return true;
}

static void override_int(GPtrArray *overrides, const char *key, int value)
{
	if (value)
		g_ptr_array_add(overrides, g_strdup_printf("%s=%d", key, value));
}

static bool check(const struct scenario *s, GError **error)
{
	uint64_t tensor = (uint64_t)policy_tensor_parallel(s->policy, s->machine->gpus); /* a group has the sequences of all its GPUs */
	uint64_t tokens = (uint64_t)s->sequences * (uint64_t)s->seq_len * tensor, kept = (uint64_t)(s->seq_len + s->generate);
	if (s->workload == WORKLOAD_INFERENCE && (uint64_t)s->sequences * kept * tensor > G_MAXINT32) {
		g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_INPUT,
		            "scenario.sequences %d x (scenario.seq_len %d + scenario.generate %d): a GPU keeps at most %d tokens", s->sequences,
		            s->seq_len, s->generate, G_MAXINT32);
		return false;
	}
	for (int i = 0; i < s->network->layers; i++)
		if (tokens * (uint64_t)MAX(1, s->network->layer[i].top_k) > G_MAXINT32) {
			g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_INPUT,
			            "scenario.sequences %d x scenario.seq_len %d x top_k %d: a GPU routes at most %d tokens a step", s->sequences,
			            s->seq_len, s->network->layer[i].top_k, G_MAXINT32);
			return false;
		}
	if ((uint64_t)s->microbatches > (uint64_t)s->sequences * tensor) {
		g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_INPUT, "scenario.microbatches = %d: expected 1 to %d, the sequences a GPU and step",
		            s->microbatches, s->sequences * (int)tensor);
		return false;
	}
	return true;
}

/* `overrides` is closed by a NULL, which comes off while more are added. */
static void add_network_defaults(GPtrArray *overrides, const struct fields *f)
{
	g_ptr_array_remove_index(overrides, overrides->len - 1);
	override_int(overrides, "network.sequences", f->sequences);
	override_int(overrides, "network.seq_len", f->seq_len);
	g_ptr_array_add(overrides, NULL);
}

/* Exactly equal counts are what many tokens come near to. The few of a decode step leave experts out, and who uploads on demand lives on that. */
static const char *usual_routing(const struct scenario *s)
{
	bool few = s->workload == WORKLOAD_INFERENCE && g_str_equal(s->machine->routing, "uniform");
	return few ? "hash" : s->machine->routing;
}

/* Reads [scenario] from `text` and the three parts from their sources. */
static struct scenario *assemble(const char *text, const struct scenario_options *o, GPtrArray *overrides, GError **error)
{
	g_autoptr(scenario) s = g_new0(struct scenario, 1);
	autoclear(fields) f = {0};
	const char *const *set = (const char *const *)overrides->pdata;
	guint64 seed;

	if (!ini_read("scenario", text, keys, G_N_ELEMENTS(keys), set, &f, NULL, error))
		return NULL;
	add_network_defaults(overrides, &f);
	set = (const char *const *)overrides->pdata;
	s->network = network_load(o->model, set, error);
	s->machine = s->network ? machine_load(o->machine, set, error) : NULL;
	s->policy = s->machine ? policy_load(o->policy, set, error) : NULL;
	if (!s->policy)
		return NULL;
	if (s->machine->runtime == RUNTIME_ESMOE && !s->policy->adam_threads) /* what a recorded run then says of itself */
		s->policy->adam_threads = machine_spare_adam_threads(s->machine);
	s->sequences = s->network->sequences;
	s->seq_len = s->network->seq_len;
	s->microbatches = f.microbatches;
	s->workload = f.workload;
	s->generate = f.workload == WORKLOAD_INFERENCE ? f.generate : 0;
	if (!*f.routing)
		f.routing = (g_free(f.routing), g_strdup(usual_routing(s)));
	if (!check_lines(&f, error))
		return NULL;
	if (!g_ascii_string_to_unsigned(f.seed, 10, 0, G_MAXUINT64, &seed, NULL)) {
		g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_INPUT, "scenario.seed '%s': expected a whole number from 0 to %" G_GUINT64_FORMAT, f.seed,
		            G_MAXUINT64);
		return NULL;
	}
	s->seed = seed;
	s->routing = routing_new(f.routing, s->seed, error);
	if (!s->routing || !check(s, error))
		return NULL;
	s->routing_spec = g_steal_pointer(&f.routing);
	/* A part that came from a text has no name of its own. */
	char **names[] = {&s->network->name, &s->machine->name, &s->policy->name};
	const char *given[] = {f.model, f.machine, f.policy};
	for (size_t i = 0; i < G_N_ELEMENTS(names); i++)
		if (*given[i]) {
			g_free(*names[i]);
			*names[i] = g_strdup(given[i]);
		}
	return g_steal_pointer(&s);
}

struct scenario scenario_with_adam(const struct scenario *s, double speed, struct machine *machine)
{
	struct scenario with = *s;
	*machine = *s->machine;
	machine->adam_pace *= speed;
	with.machine = machine;
	return with;
}

struct scenario *scenario_new(const struct scenario_options *o, GError **error)
{
	g_autoptr(GPtrArray) overrides = g_ptr_array_new_with_free_func(g_free);
	if (!check_sections(o->set, error))
		return NULL;
	for (const char *const *set = o->set; set && *set; set++)
		g_ptr_array_add(overrides, g_strdup(*set));
	override_int(overrides, "machine.gpus", o->gpus);
	override_int(overrides, "network.experts", o->experts);
	override_int(overrides, "network.top_k", o->top_k);
	override_int(overrides, "scenario.sequences", o->sequences);
	override_int(overrides, "scenario.seq_len", o->seq_len);
	override_int(overrides, "scenario.microbatches", o->microbatches);
	override_int(overrides, "scenario.generate", o->generate);
	if (o->workload)
		g_ptr_array_add(overrides, g_strdup_printf("scenario.workload=%s", o->workload));
	if (o->routing)
		g_ptr_array_add(overrides, g_strdup_printf("scenario.routing=%s", o->routing));
	if (o->seed)
		g_ptr_array_add(overrides, g_strdup_printf("scenario.seed=%" G_GUINT64_FORMAT, (guint64)o->seed));
	g_ptr_array_add(overrides, NULL);
	return assemble("[scenario]\n", o, overrides, error);
}

struct scenario *scenario_from_ini(const char *text, const char *file, const char *routing, GError **error)
{
	g_autoptr(GPtrArray) overrides = g_ptr_array_new_with_free_func(g_free);
	/* The line break makes any text a text, never the name of a file. */
	g_autofree char *source = g_strconcat(text, "\n", NULL);
	const struct scenario_options o = {.model = source, .machine = source, .policy = source};
	if (routing)
		g_ptr_array_add(overrides, g_strdup_printf("scenario.routing=%s", routing));
	g_ptr_array_add(overrides, NULL);
	struct scenario *s = assemble(source, &o, overrides, error);
	if (!s)
		g_prefix_error(error, "%s: ", file);
	return s;
}

char *scenario_ini(const struct scenario *s)
{
	g_autofree char *network = network_ini(s->network), *machine = machine_ini(s->machine), *policy = policy_ini(s->policy);
	g_autofree char *seed = g_strdup_printf("%" G_GUINT64_FORMAT, (guint64)s->seed);
	const struct fields f = {s->network->name, s->machine->name, s->policy->name, s->routing_spec, seed,
	                         s->sequences,     s->seq_len,       s->microbatches, s->workload,     MAX(1, s->generate)};
	g_autofree char *scenario = ini_write(keys, G_N_ELEMENTS(keys), &f);
	return g_strjoin("\n", scenario, network, machine, policy, NULL);
}

void scenario_free(struct scenario *s)
{
	if (!s)
		return;
	network_free(s->network);
	machine_free(s->machine);
	policy_free(s->policy);
	routing_free(s->routing);
	g_free(s->routing_spec);
	g_free(s);
}
