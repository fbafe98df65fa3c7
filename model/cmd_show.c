/* What there is to name: lists of the presets, one line each, and a preset's own text to edit. */
#include "command.h"
#include "error.h"
#include "machine.h"
#include "network.h"
#include "policy.h"
#include "units.h"
#include "whatif.h"

#include <stdio.h>

struct part {
	const char *word, *kind; /* as the command line and as preset_names call it */
	const char *heading;
	bool (*line)(const char *name, GError **error); /* policies have a list of their own (cmd_policies.c) */
	bool (*check)(const char *source, GError **error);
};

static bool model_line(const char *name, GError **error)
{
	g_autoptr(network) n = network_load(name, NULL, error);
	if (!n)
		return false;
	printf("%-24s %6d %8d %7d %9.2f %9.2f\n", name, n->layers, n->d_model, network_experts(n), network_params(n) / 1e9,
	       network_params_active(n) / 1e9);
	return true;
}

static bool machine_line(const char *name, GError **error)
{
	g_autoptr(machine) m = machine_load(name, NULL, error);
	if (!m)
		return false;
	printf("%-12s %4d %-23.23s %8.1f %9.0f %8.0f %8s\n", name, m->gpus, m->gpu_name, m->hbm_gib, m->dram_gib, m->ssd_gb,
	       m->contention == CONTENTION_MEASURED ? "yes" : "no");
	return true;
}

/* A file is printed once its reader has taken it. */
static bool machine_check(const char *source, GError **error)
{
	g_autoptr(machine) m = machine_load(source, NULL, error);
	return m != NULL;
}

static bool network_check(const char *source, GError **error)
{
	g_autoptr(network) n = network_load(source, NULL, error);
	return n != NULL;
}

static bool policy_check(const char *source, GError **error)
{
	g_autoptr(policy) p = policy_load(source, NULL, error);
	return p != NULL;
}

static bool print_source(const struct part *part, const char *source, GError **error)
{
	g_autofree char *file = NULL, *name = NULL;
	g_autofree char *text = part->check(source, error) ? source_text(part->kind, source, &file, &name, error) : NULL;
	if (text)
		fputs(text, stdout);
	return text != NULL;
}

static const struct part parts[] = {
    {"model", "networks", "MODEL                    layers  d_model experts  params_b  active_b", model_line, network_check},
    {"machine", "machines", "MACHINE      gpus gpu                      hbm_gib  dram_gib   ssd_gb measured", machine_line, machine_check},
    {"policy", "policies", NULL, NULL, policy_check},
};

static bool list(const struct part *part, int argc, char **argv, GError **error)
{
	g_autoptr(GOptionContext) context = g_option_context_new(NULL);
	g_autofree char *example = g_strdup_printf("Example:\n  esmoe %s", argv[0]);
	g_option_context_set_summary(context, "Lists the presets of this kind.");
	g_option_context_set_description(context, example);
	if (!whatif_parse(context, argc, argv, error))
		return false;
	g_auto(GStrv) names = preset_names(part->kind);
	puts(part->heading);
	for (char **name = names; *name; name++)
		if (!part->line(*name, error))
			return false;
	return true;
}

bool cmd_models(int argc, char **argv, GError **error)
{
	return list(&parts[0], argc, argv, error);
}

bool cmd_machines(int argc, char **argv, GError **error)
{
	return list(&parts[1], argc, argv, error);
}

bool cmd_show(int argc, char **argv, GError **error)
{
	g_auto(GStrv) words = NULL;
	const GOptionEntry entries[] = {{G_OPTION_REMAINING, 0, 0, G_OPTION_ARG_FILENAME_ARRAY, &words, NULL, "model|machine|policy NAME|PATH"},
	                                {NULL}};
	g_autoptr(GOptionContext) context = g_option_context_new(NULL);
	g_option_context_add_main_entries(context, entries, NULL);
	g_option_context_set_summary(
	    context, "Prints a preset as an .ini to edit and pass back by its path. An .ini that is\ngiven by its path is checked and printed.");
	g_option_context_set_description(context, "Example:\n  esmoe show machine a100-40g-x4 > mine.ini");
	if (!whatif_parse(context, argc, argv, error))
		return false;
	if (!words || g_strv_length(words) != 2) {
		g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_USAGE, "show takes two words, such as: esmoe show machine a100-40g-x4");
		return false;
	}
	const char *known[G_N_ELEMENTS(parts) + 1] = {0};
	for (size_t i = 0; i < G_N_ELEMENTS(parts); i++) {
		known[i] = parts[i].word;
		if (!g_str_equal(words[0], parts[i].word))
			continue;
		return print_source(&parts[i], words[1], error);
	}
	const char *nearest = nearest_word(words[0], known);
	g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_USAGE, "show '%s': expected model, machine or policy%s%s", words[0],
	            nearest ? "; did you mean " : "", nearest ? nearest : "");
	return false;
}
