/* Any bytes as training data: opened, or refused with an error; what was opened gives tokens of the vocabulary. The first byte chooses a text or a
 * token file and the vocabulary. */
#include "exec/data.h"
#include "fuzz.h"

#include <unistd.h>

#include <glib/gstdio.h>

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
	static const int vocabularies[] = {1, 100, 256, 70000};
	enum { SEQUENCES = 3, LENGTH = 5 };
	int32_t tokens[SEQUENCES * LENGTH], targets[SEQUENCES * LENGTH];
	g_autoptr(GError) error = NULL, lacking = NULL;
	if (size < 1)
		return 0;
	int vocab = vocabularies[bytes[0] / 2 % G_N_ELEMENTS(vocabularies)];
	g_autofree char *path = g_strdup_printf("%s/esmoe-fuzz-%d%s", g_get_tmp_dir(), (int)getpid(), bytes[0] % 2 ? ".bin" : ".txt");
	g_assert(g_file_set_contents_full(path, (const char *)bytes + 1, (gssize)size - 1, G_FILE_SET_CONTENTS_NONE, 0600, NULL));
	g_autoptr(data) d = data_open(path, vocab, 1, &error);
	g_unlink(path);
	g_assert((d == NULL) == (error != NULL));
	if (!d)
		return 0;
	const bool enough = data_batch(d, 0, 0, SEQUENCES, LENGTH, tokens, targets, &lacking);
	g_assert(enough == (lacking == NULL));
	for (int i = 0; enough && i < SEQUENCES * LENGTH; i++)
		g_assert(tokens[i] >= 0 && tokens[i] < vocab && targets[i] >= 0 && targets[i] < vocab);
	return 0;
}
