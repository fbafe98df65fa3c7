/* The .ini reader: what it accepts, and for each refusal that the message names the place, the value and what would be accepted. */
#include "model/ini.h"

#include "model/error.h"

#include <criterion/criterion.h>
#include <glib/gstdio.h>
#include <string.h>

struct thing {
	char *text;
	int whole, choice;
	double number, required;
	bool flag;
	struct ini_ints wholes;
	struct ini_doubles numbers;
};

static const char *const colours[] = {"red", "green", NULL};
static const char *const auto_word[] = {"auto", NULL};

static const struct ini_key keys[] = {
    {"gpu", "text", INI_STRING, offsetof(struct thing, text), "none", 0, 0, NULL, "a text"},
    {"gpu", "whole", INI_INT, offsetof(struct thing, whole), "auto", 0, 100, auto_word, "a count"},
    {"gpu", "colour", INI_CHOICE, offsetof(struct thing, choice), "red", 0, 0, colours, "a colour"},
    {"gpu", "number", INI_DOUBLE, offsetof(struct thing, number), "1.5", -10, 10, NULL, "a number"},
    {"host", "required_gib", INI_DOUBLE, offsetof(struct thing, required), NULL, 0.5, 1e6, NULL, "memory, GiB"},
    {"host", "flag", INI_BOOL, offsetof(struct thing, flag), "false", 0, 0, NULL, "a flag"},
    {"host", "wholes", INI_INT_LIST, offsetof(struct thing, wholes), "", -5, 5, NULL, "a list"},
    {"host", "numbers", INI_DOUBLE_LIST, offsetof(struct thing, numbers), "1, 2", 0, 5, NULL, "a list"},
};

static bool read_with(struct thing *t, const char *source, const char *const *overrides, GError **error)
{
	return ini_read("machines", source, keys, G_N_ELEMENTS(keys), overrides, t, NULL, error);
}

static void clear(struct thing *t)
{
	ini_clear(keys, G_N_ELEMENTS(keys), t);
}

/* Reads a text that must be refused with exactly this message. */
static void refused_with(const char *text, const char *const *overrides, int code, const char *message)
{
	g_autoptr(GError) error = NULL;
	struct thing t;

	cr_assert_not(read_with(&t, text, overrides, &error), "accepted: %s", text);
	cr_assert(g_error_matches(error, ESMOE_ERROR, code), "code of: %s", error->message);
	cr_assert_str_eq(error->message, message);
	cr_assert_null(t.text);
	cr_assert_null(t.numbers.v);
}

static void refused(const char *text, const char *message)
{
	refused_with(text, NULL, ESMOE_ERROR_INPUT, message);
}

Test(ini, absent_keys_take_their_fallbacks)
{
	struct thing t;

	cr_assert(read_with(&t, "[host]\nrequired_gib = 2\n", NULL, NULL));
	cr_assert_str_eq(t.text, "none");
	cr_assert_eq(t.whole, 0);
	cr_assert_eq(t.choice, 0);
	cr_assert_eq(t.number, 1.5);
	cr_assert_eq(t.required, 2);
	cr_assert_not(t.flag);
	cr_assert_eq(t.wholes.n, 0);
	cr_assert_eq(t.numbers.n, 2);
	cr_assert_eq(t.numbers.v[1], 2);
	clear(&t);
}

Test(ini, every_type_is_read)
{
	struct thing t;

	cr_assert(read_with(&t,
	                    "# comment\n\n  [gpu]\n text = two words \nwhole=7\ncolour = green\nnumber = -2.5e-1\n"
	                    "[host]\r\nrequired_gib = 1e3\r\nflag = true\nwholes = -5, 0;5\nnumbers = 0.5",
	                    NULL, NULL));
	cr_assert_str_eq(t.text, "two words");
	cr_assert_eq(t.whole, 7);
	cr_assert_eq(t.choice, 1);
	cr_assert_eq(t.number, -0.25);
	cr_assert_eq(t.required, 1000);
	cr_assert(t.flag);
	cr_assert_eq(t.wholes.n, 3);
	cr_assert_eq(t.wholes.v[0], -5);
	cr_assert_eq(t.wholes.v[2], 5);
	cr_assert_eq(t.numbers.n, 1);
	clear(&t);
}

Test(ini, sections_of_other_readers_are_passed_over)
{
	struct thing t;

	cr_assert(read_with(&t, "[network]\nlayers = 1\nlayers = x\n[host]\nrequired_gib = 1\n[policy]\nwhatever = 3\n", NULL, NULL));
	clear(&t);
}

Test(ini, unknown_names_are_refused_with_the_nearest)
{
	refused("[host]\nrequired_gb = 1\n", "line 2: unknown key 'required_gb' in [host]; did you mean 'required_gib'?");
	refused("[gpus]\nwhole = 1\n", "line 1: unknown section 'gpus'; did you mean 'gpu'?");
	refused("[gpu]\nbandwidth = 1\n", "line 2: unknown key 'bandwidth' in [gpu]; known: text, whole, colour, number");
	refused("[gpu]\nwhole[de] = 1\n", "line 2: unknown key 'whole[de]' in [gpu]; did you mean 'whole'?");
}

Test(ini, missing_required_key_is_named_with_its_help)
{
	refused("[gpu]\nwhole = 1\n", "host.required_gib is missing: memory, GiB");
	refused("[gpu]\n\n[host]\n", "line 3: host.required_gib is missing: memory, GiB");
}

Test(ini, repeated_keys_and_sections_are_refused)
{
	refused("[host]\nrequired_gib = 1\nrequired_gib = 2\n", "line 3: host.required_gib again, first on line 2; one value is accepted");
	refused("[host]\nrequired_gib = 1\n[gpu]\n[host]\n", "line 4: section [host] again, first on line 1; one section of a name is accepted");
}

Test(ini, numbers_must_be_finite_and_in_range)
{
	const char *const bad[] = {"nan", "inf", "-inf", "1e400",    "0x10", "1,5", "10.5", "abc",   "1 2",  "1e",
	                           "--1", "+-1", "",     "1 # note", "-11",  "1e9", "٣",    "1.5.2", "1e+e", NULL};

	for (const char *const *b = bad; *b; b++) {
		g_autofree char *text = g_strdup_printf("[gpu]\nnumber = %s\n", *b);
		g_autofree char *message = g_strdup_printf("line 2: gpu.number = '%s'; expected a number from -10 to 10", *b);

		refused(text, message);
	}
}

Test(ini, whole_numbers_must_be_whole_and_in_range)
{
	const char *const bad[] = {"1.0", "1e1", "-1", "101", "99999999999999999999", "4294967297", "automatic", "", NULL};

	for (const char *const *b = bad; *b; b++) {
		g_autofree char *text = g_strdup_printf("[gpu]\nwhole = %s\n", *b);
		g_autofree char *message = g_strdup_printf("line 2: gpu.whole = '%s'; expected auto | a whole number from 0 to 100", *b);

		refused(text, message);
	}
}

Test(ini, other_types_say_what_they_accept)
{
	refused("[gpu]\ncolour = blue\n", "line 2: gpu.colour = 'blue'; expected red | green");
	refused("[host]\nrequired_gib = 1\nflag = yes\n", "line 3: host.flag = 'yes'; expected true | false");
	refused("[host]\nrequired_gib = 1\nwholes = 1, 6\n", "line 3: host.wholes = '1, 6'; expected whole numbers from -5 to 5 with commas between");
	refused("[host]\nrequired_gib = 1\nnumbers = 1,,2\n", "line 3: host.numbers = '1,,2'; expected numbers from 0 to 5 with commas between");
	refused("[gpu]\ntext = a\\qb\n[host]\nrequired_gib=1\n",
	        "line 2: gpu.text: unknown escape after a backslash; \\s \\n \\t \\r \\\\ are accepted");
}

Test(ini, lines_of_no_form_are_refused)
{
	refused("[host]\nrequired_gib 1\n", "line 2: 'required_gib 1' is not a [section], a 'key = value' or a # comment");
	refused("[host]\n= 1\n", "line 2: '= 1' is not a [section], a 'key = value' or a # comment");
	refused("required_gib = 1\n", "line 1: 'required_gib = 1' stands before the first [section]");
	refused("[host\nrequired_gib = 1\n", "line 1: '[host' does not end with ]");
	refused("[\n", "line 1: '[' does not end with ]");
}

Test(ini, long_and_unprintable_values_stay_on_one_short_line)
{
	g_autofree char *digits = g_strnfill(100000, '9'), *text = g_strdup_printf("[gpu]\nnumber = %s\n", digits), *shown = g_strnfill(60, '9');
	g_autofree char *message = g_strdup_printf("line 2: gpu.number = '%s...'; expected a number from -10 to 10", shown);

	refused(text, message);
	refused("[gpu]\nnumber = a\rb\x1b[0m\n", "line 2: gpu.number = 'a?b?[0m'; expected a number from -10 to 10");
}

Test(ini, overrides_win_over_the_file_and_the_last_over_the_others)
{
	const char *const overrides[] = {"host.required_gib=3",   "network.layers=x",    "gpu.colour=green",
	                                 "host.required_gib = 4", "host.required_gib=5", NULL};
	const char *const only[] = {"host.required_gib=3", "gpu.text=a=b.c", NULL};
	struct thing t;

	refused_with("[host]\nrequired_gib = 2\n", overrides, ESMOE_ERROR_INPUT,
	             "--set host.required_gib : unknown key in [host]; did you mean 'required_gib'?");
	cr_assert(read_with(&t, "[host]\nflag = true\n", only, NULL));
	cr_assert_eq(t.required, 3);
	cr_assert_str_eq(t.text, "a=b.c");
	clear(&t);
	cr_assert(read_with(&t, "[host]\nrequired_gib = 2\n", (const char *const[]){"host.required_gib=3", "host.required_gib=5", NULL}, NULL));
	cr_assert_eq(t.required, 5);
	clear(&t);
}

Test(ini, errors_of_overrides_name_the_option)
{
	const char *text = "[host]\nrequired_gib = 2\n";

	refused_with(text, (const char *const[]){"gpu.number=11", NULL}, ESMOE_ERROR_INPUT,
	             "--set gpu.number: '11'; expected a number from -10 to 10");
	refused_with(text, (const char *const[]){"gpu.numbr=1", NULL}, ESMOE_ERROR_INPUT,
	             "--set gpu.numbr: unknown key in [gpu]; did you mean 'number'?");
	for (const char *const *bad = (const char *const[]){"number=1", "gpu.number", "gpu", "", "a=b.c", "gpu.text=\xff", NULL}; *bad; bad++)
		refused_with(text, (const char *const[]){*bad, NULL}, ESMOE_ERROR_USAGE,
		             "--set: expected section.key=value, for example gpu.hbm_gib=80");
}

Test(ini, writing_and_reading_back_keeps_every_digit)
{
	struct thing t, back;
	const char *const overrides[] = {"gpu.number=0.1234567890123456789", "host.numbers=0.1,0.30000000000000004,5e-324", "gpu.text=a\tb\\c", NULL};
	g_autofree char *text = NULL, *again = NULL;

	cr_assert(read_with(&t, "[host]\nrequired_gib = 333333.33333333331\nwholes=1,-2\n", overrides, NULL));
	text = ini_write(keys, G_N_ELEMENTS(keys), &t);
	cr_assert(read_with(&back, text, NULL, NULL));
	cr_assert_eq(back.number, 0.1234567890123456789);
	cr_assert_eq(back.required, 333333.33333333331);
	cr_assert_eq(back.numbers.v[1], 0.1 + 0.2);
	cr_assert_eq(back.numbers.v[2], 5e-324);
	cr_assert_eq(back.wholes.v[1], -2);
	cr_assert_str_eq(back.text, t.text);
	again = ini_write(keys, G_N_ELEMENTS(keys), &back);
	cr_assert_str_eq(again, text);
	clear(&t);
	clear(&back);
}

Test(ini, written_keys_carry_their_help)
{
	struct thing t;
	g_autofree char *text = NULL;

	cr_assert(read_with(&t, "[host]\nrequired_gib=2\n", NULL, NULL));
	text = ini_write(keys, G_N_ELEMENTS(keys), &t);
	cr_assert_not_null(strstr(text, "# memory, GiB\nrequired_gib=2\n"));
	cr_assert_not_null(strstr(text, "# a colour: red | green\ncolour=red\n"));
	cr_assert_not_null(strstr(text, "# a count; or auto\nwhole=auto\n"));
	clear(&t);
}

/* Writes a file of the given bytes in a new folder, and has it refused with the message that follows its path. */
static void file_refused(const char *bytes, gssize length, const char *message)
{
	g_autofree char *folder = g_dir_make_tmp(NULL, NULL), *path = g_build_filename(folder, "thing.ini", NULL),
	                *expected = g_strconcat(path, message, NULL);
	g_autoptr(GError) error = NULL;
	struct thing t;

	cr_assert(g_file_set_contents(path, bytes, length, NULL));
	cr_assert_not(read_with(&t, path, NULL, &error));
	cr_assert(g_error_matches(error, ESMOE_ERROR, ESMOE_ERROR_INPUT));
	cr_assert_str_eq(error->message, expected);
	g_unlink(path);
	g_rmdir(folder);
}

Test(ini, files_are_named_with_their_line)
{
	file_refused("[gpu]\n\nnumber = x\n", -1, ":3: gpu.number = 'x'; expected a number from -10 to 10");
	file_refused("", 0, ": host.required_gib is missing: memory, GiB");
}

Test(ini, binary_and_huge_files_are_refused)
{
	g_autofree char *huge = g_strnfill((1 << 20) + 1, '#');

	file_refused("[gpu]\n\0\0", 8, ":2: byte 0x00 is not UTF-8 text; expected an .ini file");
	file_refused("[gpu]\ntext = \xc3\x28\n", -1, ":2: byte 0xc3 is not UTF-8 text; expected an .ini file");
	file_refused("\x7f"
	             "ELF\x02\x01\x01\0\0",
	             9, ":1: byte 0x00 is not UTF-8 text; expected an .ini file");
	file_refused(huge, -1, ": larger than 1 MiB; expected an .ini file");
}

Test(ini, a_file_of_just_one_mebibyte_is_read)
{
	g_autofree char *folder = g_dir_make_tmp(NULL, NULL), *path = g_build_filename(folder, "big.ini", NULL), *text = g_strnfill(1 << 20, '#');
	g_autofree char *name = NULL;
	struct thing t;

	memcpy(text, "[host]\nrequired_gib=2\n", strlen("[host]\nrequired_gib=2\n"));
	cr_assert(g_file_set_contents(path, text, -1, NULL));
	cr_assert(ini_read("machines", path, keys, G_N_ELEMENTS(keys), NULL, &t, &name, NULL));
	cr_assert_str_eq(name, "big");
	clear(&t);
	g_unlink(path);
	g_rmdir(folder);
}

Test(ini, folders_and_missing_files_are_refused)
{
	g_autofree char *folder = g_dir_make_tmp(NULL, NULL), *missing = g_build_filename(folder, "no.ini", NULL);
	const char *const sources[] = {folder, missing, NULL}, *const why[] = {"Is a directory", "No such file or directory"};

	for (int i = 0; sources[i]; i++) {
		g_autofree char *expected = g_strdup_printf("%s: %s; expected a readable .ini file", sources[i], why[i]);
		g_autoptr(GError) error = NULL;
		struct thing t;

		cr_assert_not(read_with(&t, sources[i], NULL, &error));
		cr_assert(g_error_matches(error, ESMOE_ERROR, ESMOE_ERROR_INPUT));
		cr_assert_str_eq(error->message, expected);
	}
	g_rmdir(folder);
}

Test(ini, unknown_presets_are_refused_with_the_nearest)
{
	g_autoptr(GError) error = NULL, far = NULL;

	cr_assert_null(preset_text("machines", "A100-40G-x5", &error));
	cr_assert_str_eq(error->message, "'A100-40G-x5': no such preset among the machines; did you mean 'a100-40g-x4'?");
	cr_assert_null(preset_text("machines", "abacus", &far));
	cr_assert(g_str_has_prefix(far->message, "'abacus': no such preset among the machines; known: a100-40g-x4, "));
}

Test(ini, presets_are_listed_in_order_and_kept_with_their_comments)
{
	g_auto(GStrv) names = preset_names("machines"), none = preset_names("nothing");

	cr_assert_eq(g_strv_length(none), 0);
	cr_assert_geq(g_strv_length(names), 9);
	for (int i = 0; names[i]; i++) {
		g_autofree char *text = preset_text("machines", names[i], NULL);

		cr_assert(g_str_has_prefix(text, "# "));
		cr_assert(!i || strcmp(names[i - 1], names[i]) < 0);
	}
}

Test(ini, refusal_across_keys_names_the_line_or_the_override)
{
	g_autoptr(GError) of_file = NULL, of_option = NULL, of_fallback = NULL;
	const char *text = "[gpu]\n# number = 3\nnumber=4\n[host]\nrequired_gib = 1\n";

	cr_assert_not(ini_refuse("machines", text, NULL, "gpu", "number", &of_file, "%d; expected odd", 4));
	cr_assert_str_eq(of_file->message, "line 3: gpu.number: 4; expected odd");
	cr_assert_not(ini_refuse("machines", text, (const char *const[]){"gpu.number=8", NULL}, "gpu", "number", &of_option, "8; expected odd"));
	cr_assert_str_eq(of_option->message, "--set gpu.number: 8; expected odd");
	cr_assert_not(ini_refuse("machines", text, NULL, "gpu", "whole", &of_fallback, "0; expected more"));
	cr_assert_str_eq(of_fallback->message, "gpu.whole: 0; expected more");
}

Test(error, nearest_word_takes_typing_slips_and_nothing_far)
{
	const char *const known[] = {"upload", "download", "optimizer", NULL};

	cr_assert_str_eq(nearest_word("uplaod", known), "upload");
	cr_assert_str_eq(nearest_word("Optimiser", known), "optimizer");
	cr_assert_str_eq(nearest_word("dwnload", known), "download");
	cr_assert_str_eq(nearest_word("opt", known), "optimizer");
	cr_assert_null(nearest_word("op", known));
	cr_assert_null(nearest_word("gpu", known));
	cr_assert_null(nearest_word("", known));
}

Test(error, nearest_word_stands_long_garbage)
{
	g_autofree char *long_word = g_strnfill(1 << 20, 'x');

	cr_assert_null(nearest_word(long_word, (const char *const[]){"upload", long_word, NULL}));
	cr_assert_null(nearest_word("upload", (const char *const[]){long_word, NULL}));
}
