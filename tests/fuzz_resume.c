/* Any bytes as the CSV that an interrupted sweep left: refused with one line, or cut at the end of a line after some of the grid's rows; and what is
 * kept is kept again. In the bytes "@3" stands for the digest of row 3, which no seed could hold for long. */
#include "fuzz.h"
#include "sim/resume.h"

#include <string.h>

static const struct how how = {.steps = 2, .threads = 1};

/* One for all calls: it never changes, and is most of the work. */
static const struct grid *the_grid(void)
{
	static struct grid *grid;
	struct whatif w = {.model = "gpt-moe-s", .machine = "a100-40g-x4", .policy = "es-moe,static", .gpus = "1,2", .experts = "8"};
	g_autoptr(GError) error = NULL;

	if (!grid)
		grid = grid_new(&w, &how, &error);
	g_assert_no_error(error);
	return grid;
}

static GString *with_digests(const struct grid *grid, const char *data, size_t size)
{
	GString *text = g_string_new(NULL);

	for (size_t i = 0; i < size; i++) {
		autoclear(row) row = {0};
		int number = data[i] == '@' && i + 1 < size ? g_ascii_digit_value(data[i + 1]) : -1;

		if (number < 0 || number >= grid_rows(grid)) {
			g_string_append_c(text, data[i]);
			continue;
		}
		grid_identify(grid, number, &row);
		g_string_append(text, row.digest);
		i++;
	}
	return text;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	const struct grid *grid = the_grid();
	g_autoptr(GString) text = with_digests(grid, (const char *)data, size);
	g_autoptr(GError) error = NULL;
	gsize whole_bytes, again_bytes;
	int rows, again;

	if (!resume_rows("fuzz.csv", text->str, text->len, grid, &rows, &whole_bytes, &error)) {
		g_assert_true(g_str_has_prefix(error->message, "fuzz.csv:") && !strchr(error->message, '\n'));
		return 0;
	}
	g_assert_no_error(error);
	g_assert_true(rows >= 0 && rows <= grid_rows(grid) && whole_bytes <= text->len);
	g_assert_true(whole_bytes == 0 ? rows == 0 : text->str[whole_bytes - 1] == '\n');
	g_assert_true(whole_bytes == 0 || !memchr(text->str + whole_bytes, '\n', text->len - whole_bytes));
	g_assert_true(resume_rows("fuzz.csv", text->str, whole_bytes, grid, &again, &again_bytes, &error));
	g_assert_true(again == rows && again_bytes == whole_bytes);
	return 0;
}
