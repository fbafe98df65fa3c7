#include "together.h"

#include "model/error.h"
#include "terms.h"

#include <string.h>

enum { EXPLAIN_MS = 2500 };

bool together_join(const struct scenario *sc, const struct run_options *o, struct together *out, GError **error)
{
	const struct machine *m = sc->machine;
	const struct launched *l = o->launched;
	const int nodes = machine_nodes(m);
	*out = (struct together){.end = m->gpus};
	if (!l || l->size == 1)
		return true;
	if (l->size != nodes) {
		g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_USAGE,
		            "%s started %d processes, but %d GPUs in nodes of machine.gpus_per_node = %d are %d nodes; expected a process a node",
		            l->by, l->size, m->gpus, m->gpus_per_node, nodes);
		return false;
	}
	g_autofree char *terms = run_terms(sc, o);
	out->ranks = ranks_join(l, ESMOE_VERSION, terms, o->rendezvous_s, error);
	out->first = l->rank * m->gpus_per_node;
	out->end = out->first + machine_node_gpus(m, l->rank);
	return out->ranks != NULL;
}

bool together_all(struct ranks *ranks, bool *flag, GError **error)
{
	const uint8_t own = *flag;
	if (!ranks)
		return true;
	g_autoptr(GPtrArray) all = ranks_gather(ranks, RANKS_STEPS, &own, sizeof own, error);
	for (int i = 0; all && i < ranks_size(ranks); i++) {
		gsize n;
		const uint8_t *theirs = g_bytes_get_data(g_ptr_array_index(all, i), &n);
		*flag &= n == 1 && *theirs;
	}
	return all != NULL;
}

bool together_same_step(struct ranks *ranks, uint64_t step, const char *resume, GError **error)
{
	if (!ranks)
		return true;
	g_autoptr(GPtrArray) all = ranks_gather(ranks, RANKS_STEPS, &step, sizeof step, error);
	for (int i = 0; all && i < ranks_size(ranks); i++) {
		gsize n;
		const void *theirs = g_bytes_get_data(g_ptr_array_index(all, i), &n);
		if (n == sizeof step && memcmp(theirs, &step, n) == 0)
			continue;
		g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_INPUT,
		            "--resume %s: %s has another checkpoint than step %" G_GUINT64_FORMAT "; expected a folder that all ranks see", resume,
		            ranks_name(ranks, i), step);
		return false;
	}
	return all != NULL;
}

void together_fail(struct ranks *ranks, GError **error)
{
	if (!ranks || ((*error)->code == ESMOE_ERROR_DEVICE && ranks_explain(ranks, EXPLAIN_MS, error)))
		return;
	ranks_fail(ranks, *error);
	g_prefix_error(error, "%s: ", ranks_name(ranks, ranks_own(ranks)));
}
