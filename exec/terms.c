#include "terms.h"

#include <string.h>

char *run_terms(const struct scenario *sc, const struct run_options *o)
{
	g_autofree char *ini = scenario_ini(sc), *section = g_strdup("");
	g_auto(GStrv) lines = g_strsplit(ini, "\n", 0);
	GString *terms = g_string_new(NULL);
	for (int i = 0; lines[i]; i++) {
		size_t n = strlen(lines[i]);
		if (n > 2 && lines[i][0] == '[') {
			g_free(section);
			section = g_strndup(lines[i] + 1, n - 2);
		} else if (n && lines[i][0] != '#') {
			g_string_append_printf(terms, "%s.%s\n", section, lines[i]);
		}
	}
	g_string_append_printf(terms, "--device %s\n--data %s\n--steps %" G_GUINT64_FORMAT "\n--lr %.9g\n--balance %.9g\n--z %.9g\n", o->device,
	                       o->data ? o->data : "none", o->steps, (double)o->lr, (double)o->balance, (double)o->z);
	g_string_append_printf(terms,
	                       "--trace %s\n--trace-steps %d\n--save %s\n--save-every %" G_GUINT64_FORMAT "\n--resume %s\n--apart %s\n--routing %s",
	                       o->trace ? o->trace : "none", o->trace_steps, o->save ? o->save : "none", o->save_every,
	                       o->resume ? o->resume : "none", o->apart ? "yes" : "no", o->impose ? "imposed" : "the gate's");
	return g_string_free(terms, FALSE);
}

char *run_head(const struct run_options *o, bool overlap)
{
	GString *head = g_string_new(NULL);
	g_string_printf(head, "# %s\n\n[run]\n# a step begins before the one before it has ended\noverlap = %s\n", o->command,
	                overlap ? "true" : "false");
	g_string_append_c(head, '\n');
	return g_string_free(head, FALSE);
}
