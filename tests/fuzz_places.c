/* Any bytes as places.csv: read, or refused with an error, and a schedule takes it or not. */
#include "fuzz.h"
#include "sim/places.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static const char *const set[] = {"network.layers=2", "policy.expert_home=dram", NULL};
	const struct scenario_options o = {
	    .model = "tiny-moe", .machine = "host", .policy = "es-moe", .gpus = 2, .experts = 4, .sequences = 2, .set = set};
	g_autoptr(GError) error = NULL;
	g_autoptr(scenario) s = scenario_new(&o, NULL);
	g_autofree char *text = g_strndup(size ? (const char *)data : "", size);
	g_autofree struct expert_place *places = places_of(text, "fuzz.csv", s->network, &error);
	g_assert((places == NULL) == (error != NULL));
	g_autoptr(schedule) schedule = places ? schedule_new(s, NULL, NULL) : NULL;
	if (schedule && !schedule_set_places(schedule, places)) {
		g_autofree struct expert_place *before = g_new(struct expert_place, schedule_places(schedule, NULL));
		schedule_places(schedule, before);
		g_assert(before[0].last == -1 && before[0].pinned == -1);
	}
	return 0;
}
