/* Any bytes as a CSV of loads: read, or refused with an error, and what was read can be asked for. With clang,
 *
 *     CC=clang meson setup build-fuzz -Db_sanitize=address,undefined -Db_lundef=false -Dc_args=-fsanitize=fuzzer-no-link
 *     meson compile -C build-fuzz && mkdir corpus && build-fuzz/tests/fuzz_loads -max_total_time=600 corpus tests/seeds/loads */
#include "fuzz.h"
#include "model/loads.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	g_autoptr(GError) error = NULL;
	g_autoptr(loads) loads = loads_parse((const char *)data, size, "fuzz.csv", &error);
	g_assert((loads == NULL) == (error != NULL));
	if (!loads)
		return 0;
	enum { EXPERTS = 5 };
	g_autofree uint32_t *tokens = g_new(uint32_t, (size_t)loads_gpus(loads) * EXPERTS);
	for (int layer = 0; layer < 4; layer++)
		for (int experts = 1; experts <= EXPERTS; experts++) {
			g_autoptr(GError) lacking = NULL;
			const bool found = loads_layer(loads, layer + 7 * experts, layer, experts, tokens, &lacking);
			g_assert(found == (lacking == NULL));
		}
	return 0;
}
