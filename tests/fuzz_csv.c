/* Any bytes as CSV: read, or refused with an error; and what was read is asked for as numbers, as a figure of throughput and as memory. With clang,
 *
 *     CC=clang meson setup build-fuzz -Dfuzz=true -Db_sanitize=address,undefined -Db_lundef=false
 *     meson compile -C build-fuzz && mkdir corpus && build-fuzz/tests/fuzz_csv -max_total_time=600 corpus tests/seeds/csv */
#include "fuzz.h"
#include "plots/memory.h"
#include "plots/throughput.h"

#include <math.h>
#include <string.h>

static void ask_for_numbers(const struct csv *csv, int column)
{
	for (int row = 0; row < csv_rows(csv); row++) {
		g_autoptr(GError) no_number = NULL, no_whole = NULL;
		guint64 whole;
		double number;

		if (csv_number(csv, row, column, 0, 1e9, &number, &no_number))
			g_assert(isfinite(number) && number >= 0 && number <= 1e9);
		else
			g_assert(no_number && !strchr(no_number->message, '\n'));
		if (csv_whole(csv, row, column, 1, 64, &whole, &no_whole))
			g_assert(whole >= 1 && whole <= 64);
		else
			g_assert(no_whole);
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	g_autoptr(GError) error = NULL, no_figure = NULL, no_memory = NULL;
	g_autoptr(csv) csv = csv_parse((const char *)data, size, "fuzz.csv", &error);
	g_autoptr(throughput) chart = NULL;
	struct memory memory;

	g_assert((csv == NULL) == (error != NULL));
	if (!csv)
		return 0;
	ask_for_numbers(csv, 0);
	chart = throughput_new(&csv, 1, THROUGHPUT_X_AUTO, &no_figure);
	g_assert((chart == NULL) == (no_figure != NULL));
	g_assert(memory_read(csv, &memory, &no_memory) == (no_memory == NULL));
	return 0;
}
