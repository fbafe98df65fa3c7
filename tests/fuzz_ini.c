/* Fuzzes the .ini readers with text as a user's file would hold it: a machine, a network, a policy, and a table with every type of key. Whatever is
 * accepted must be written to a text that reads back to the same text. */
#include "fuzz.h"
#include "model/ini.h"
#include "model/machine.h"
#include "model/network.h"
#include "model/policy.h"

#include <string.h>

struct every {
	char *text;
	int whole, choice;
	double number;
	bool flag;
	struct ini_ints wholes;
	struct ini_doubles numbers;
};

static const char *const choices[] = {"one", "two", NULL};

static const struct ini_key keys[] = {
    {"scenario", "text", INI_STRING, offsetof(struct every, text), "", 0, 0, NULL, "text"},
    {"scenario", "whole", INI_INT, offsetof(struct every, whole), "0", 0, 100, choices, "whole"},
    {"scenario", "choice", INI_CHOICE, offsetof(struct every, choice), "one", 0, 0, choices, "choice"},
    {"scenario", "number", INI_DOUBLE, offsetof(struct every, number), "0", -1e9, 1e9, NULL, "number"},
    {"scenario", "flag", INI_BOOL, offsetof(struct every, flag), "true", 0, 0, NULL, "flag"},
    {"scenario", "wholes", INI_INT_LIST, offsetof(struct every, wholes), "", -100, 100, NULL, "wholes"},
    {"scenario", "numbers", INI_DOUBLE_LIST, offsetof(struct every, numbers), "", -1e300, 1e300, NULL, "numbers"},
};

/* Each reader takes a text and gives the text it would write, or NULL with an error. Owned by the caller. */
static char *machine_again(const char *text, GError **error)
{
	g_autoptr(machine) m = machine_load(text, NULL, error);

	return m ? machine_ini(m) : NULL;
}

static char *network_again(const char *text, GError **error)
{
	g_autoptr(network) n = network_load(text, NULL, error);

	return n ? network_ini(n) : NULL;
}

static char *policy_again(const char *text, GError **error)
{
	g_autoptr(policy) p = policy_load(text, NULL, error);

	return p ? policy_ini(p) : NULL;
}

static char *every_again(const char *text, GError **error)
{
	struct every e;
	char *again;

	if (!ini_read("machines", text, keys, G_N_ELEMENTS(keys), NULL, &e, NULL, error))
		return NULL;
	again = ini_write(keys, G_N_ELEMENTS(keys), &e);
	ini_clear(keys, G_N_ELEMENTS(keys), &e);
	return again;
}

static void check(char *(*again)(const char *, GError **), const char *text)
{
	g_autoptr(GError) error = NULL;
	g_autofree char *once = again(text, &error), *twice = NULL;

	g_assert_true(!once == !!error);
	if (error) {
		g_assert_true(*error->message && !strpbrk(error->message, "\r\n") && g_utf8_validate(error->message, -1, NULL));
		return;
	}
	twice = again(once, &error);
	g_assert_no_error(error);
	g_assert_cmpstr(once, ==, twice);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	g_autofree char *bytes = g_strndup(size ? (const char *)data : "", size), *text = g_strconcat(bytes, "\n", NULL);

	check(machine_again, text);
	check(network_again, text);
	check(policy_again, text);
	check(every_again, text);
	return 0;
}
