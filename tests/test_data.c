/* Training data: what is in a file comes out of it at places that only seed, step and sequence decide; and every file that is not data is refused. */
#include "exec/data.h"

#include "model/error.h"

#include <criterion/criterion.h>
#include <glib/gstdio.h>
#include <math.h>
#include <string.h>
#include <unistd.h>

static char *folder;

static void make_folder(void)
{
	folder = g_dir_make_tmp("esmoe-data-XXXXXX", NULL);
	cr_assert(folder);
}

static void remove_folder(void)
{
	g_autoptr(GDir) dir = g_dir_open(folder, 0, NULL);
	for (const char *name; (name = g_dir_read_name(dir));) {
		g_autofree char *path = g_build_filename(folder, name, NULL);
		g_unlink(path);
	}
	g_rmdir(folder);
	g_free(folder);
}

TestSuite(data, .init = make_folder, .fini = remove_folder);

static char *file_of(const char *name, const void *bytes, size_t n)
{
	char *path = g_build_filename(folder, name, NULL);
	cr_assert(g_file_set_contents(path, bytes, (gssize)n, NULL));
	return path;
}

static struct data *opened(const char *path, int vocab, uint64_t seed)
{
	g_autoptr(GError) error = NULL;
	struct data *d = data_open(path, vocab, seed, &error);
	cr_assert(d, "%s", error ? error->message : "");
	return d;
}

static void batch(const struct data *d, uint64_t step, uint64_t first, int sequences, int seq_len, int32_t *tokens, int32_t *targets)
{
	g_autoptr(GError) error = NULL;
	cr_assert(data_batch(d, step, first, sequences, seq_len, tokens, targets, &error), "%s", error ? error->message : "");
}

static void refused(const char *path, int vocab, const char *const *words)
{
	g_autoptr(GError) error = NULL;
	g_autoptr(data) d = data_open(path, vocab, 1, &error);
	cr_assert_null(d);
	cr_assert(g_error_matches(error, ESMOE_ERROR, ESMOE_ERROR_INPUT));
	for (; *words; words++)
		cr_assert(strstr(error->message, *words), "'%s' lacks '%s'", error->message, *words);
}

enum { COUNT = 1000, VOCAB = 60000 };

/* Tokens 7, 16, 25, ... so that a token tells its place. */
static void fill(uint16_t *tokens)
{
	for (int i = 0; i < COUNT; i++)
		tokens[i] = GUINT16_TO_LE((uint16_t)(7 + 9 * i));
}

static void check_runs(const struct data *d, int seq_len)
{
	enum { SEQUENCES = 64 };
	g_autofree int32_t *tokens = g_new(int32_t, (size_t)SEQUENCES * (size_t)seq_len);
	g_autofree int32_t *targets = g_new(int32_t, (size_t)SEQUENCES * (size_t)seq_len);
	int32_t least = G_MAXINT32, most = 0;
	for (uint64_t step = 0; step < 40; step++) {
		batch(d, step, 0, SEQUENCES, seq_len, tokens, targets);
		for (int i = 0; i < SEQUENCES * seq_len; i++) {
			cr_assert_eq(targets[i], tokens[i] + 9);
			if (i % seq_len)
				cr_assert_eq(tokens[i], targets[i - 1]);
			least = MIN(least, tokens[i]);
			most = MAX(most, targets[i]);
		}
	}
	cr_assert_eq(least, 7, "the first token is never met");
	cr_assert_eq(most, 7 + 9 * (COUNT - 1), "the last token is never met");
}

Test(data, sequences_of_a_token_file_follow_it_and_reach_both_of_its_ends)
{
	uint16_t tokens[COUNT];
	fill(tokens);
	g_autofree char *path = file_of("plain.bin", tokens, sizeof tokens);
	g_autoptr(data) d = opened(path, VOCAB, 3);
	check_runs(d, 16);
	check_runs(d, 1);
	check_runs(d, COUNT - 1);
}

Test(data, the_header_of_llm_c_is_not_data)
{
	uint8_t bytes[1024 + 2 * COUNT] = {0};
	int32_t header[3] = {GINT32_TO_LE(20240520), GINT32_TO_LE(1), GINT32_TO_LE(COUNT)};
	uint16_t tokens[COUNT];
	fill(tokens);
	memcpy(bytes, header, sizeof header);
	memcpy(bytes + 1024, tokens, sizeof tokens);
	g_autofree char *path = file_of("llm.bin", bytes, sizeof bytes);
	g_autoptr(data) d = opened(path, VOCAB, 3);
	check_runs(d, 16);
	header[2] = GINT32_TO_LE(COUNT + 1);
	memcpy(bytes, header, sizeof header);
	g_autofree char *longer = file_of("longer.bin", bytes, sizeof bytes);
	refused(longer, VOCAB, (const char *const[]){"longer.bin", "1001 tokens", NULL});
	header[1] = GINT32_TO_LE(7);
	memcpy(bytes, header, sizeof header);
	g_autofree char *wide = file_of("wide.bin", bytes, sizeof bytes);
	refused(wide, VOCAB, (const char *const[]){"wide.bin", "version 7", "expected 1", NULL});
	g_autofree char *cut = file_of("cut.bin", bytes, 500);
	refused(cut, VOCAB, (const char *const[]){"cut.bin", NULL});
}

Test(data, a_text_is_its_bytes)
{
	const char text[] = "\xff\x80 abc";
	g_autofree char *path = file_of("text.txt", text, 6);
	g_autoptr(data) d = opened(path, 256, 3);
	int32_t tokens[5], targets[5];
	batch(d, 0, 0, 1, 5, tokens, targets);
	cr_assert_eq(tokens[0], 0xff);
	cr_assert_eq(tokens[1], 0x80);
	cr_assert_eq(targets[4], 'c');
}

Test(data, a_batch_is_a_pure_function_whoever_asks_for_which_part_of_it)
{
	uint16_t words[COUNT];
	fill(words);
	g_autofree char *path = file_of("plain.bin", words, sizeof words);
	const char *const paths[] = {path, NULL};
	for (size_t i = 0; i < G_N_ELEMENTS(paths); i++) {
		g_autoptr(data) d = opened(paths[i], VOCAB, 3), again = opened(paths[i], VOCAB, 3), other = opened(paths[i], VOCAB, 4);
		int32_t whole[8 * 32], targets[8 * 32], part[2 * 32], ignored[8 * 32], others[8 * 32];
		batch(d, 5, 0, 8, 32, whole, targets);
		for (int first = 6; first >= 0; first -= 2) {
			batch(again, 5, (uint64_t)first, 2, 32, part, ignored);
			cr_assert_arr_eq(part, whole + first * 32, sizeof part);
			cr_assert_arr_eq(ignored, targets + first * 32, sizeof part);
		}
		batch(d, 6, 0, 8, 32, others, ignored);
		cr_assert_arr_neq(others, whole, sizeof whole);
		batch(other, 5, 0, 8, 32, others, ignored);
		cr_assert_arr_neq(others, whole, sizeof whole);
	}
}

/* Entropy of 1/2, 1/4, 1/8, 1/8: 1.75 bits; of two successors that happen to be one token, less. */
Test(data, synthetic_tokens_have_four_successors_with_the_chances_of_the_chain)
{
	enum { WORDS = 32, LENGTH = 512, SEQUENCES = 256 };
	g_autoptr(data) d = opened(NULL, WORDS, 9);
	g_autofree int32_t *tokens = g_new(int32_t, LENGTH * SEQUENCES), *targets = g_new(int32_t, LENGTH * SEQUENCES);
	double count[WORDS][WORDS] = {0}, sum[WORDS] = {0}, entropy = 0;
	batch(d, 0, 0, SEQUENCES, LENGTH, tokens, targets);
	for (int i = 0; i < LENGTH * SEQUENCES; i++) {
		cr_assert(tokens[i] >= 0 && tokens[i] < WORDS && targets[i] >= 0 && targets[i] < WORDS);
		count[tokens[i]][targets[i]]++;
		sum[tokens[i]]++;
	}
	for (int i = 0; i < WORDS; i++) {
		int successors = 0;
		for (int j = 0; j < WORDS; j++) {
			successors += count[i][j] > 0;
			if (count[i][j] > 0)
				entropy -= count[i][j] / (LENGTH * SEQUENCES) * log2(count[i][j] / sum[i]);
		}
		cr_assert(successors <= 4);
	}
	cr_assert(entropy <= 1.75 + 0.01 && entropy > 1.2, "%g bits", entropy);
}

Test(data, what_is_no_data_is_refused_by_name)
{
	const uint16_t words[] = {GUINT16_TO_LE(5), GUINT16_TO_LE(300), GUINT16_TO_LE(6)};
	g_autofree char *missing = g_build_filename(folder, "missing", NULL);
	refused(missing, 256, (const char *const[]){"missing", "No such file", NULL});
	refused(folder, 256, (const char *const[]){folder, "not a regular file", NULL});
	g_autofree char *empty = file_of("empty.txt", "", 0);
	refused(empty, 256, (const char *const[]){"empty.txt", "0 tokens", NULL});
	g_autofree char *odd = file_of("odd.bin", "abcde", 5);
	refused(odd, 256, (const char *const[]){"odd.bin", "5 bytes", "uint16", NULL});
	g_autofree char *wrong = file_of("wrong.bin", words, sizeof words);
	refused(wrong, 256, (const char *const[]){"wrong.bin", "byte 2", "token 300", "0 to 255", NULL});
	g_autofree char *text = file_of("text.txt", "aaaz", 4);
	refused(text, 'b', (const char *const[]){"text.txt", "byte 3", "token 122", NULL});
}

Test(data, a_file_too_short_for_the_sequence_and_one_that_shrinks_are_errors_of_the_batch)
{
	g_autofree char *path = file_of("short.txt", "abcdefgh", 8);
	g_autoptr(data) d = opened(path, 256, 1);
	int32_t tokens[8], targets[8];
	g_autoptr(GError) error = NULL, second = NULL;
	batch(d, 0, 0, 1, 7, tokens, targets);
	cr_assert_not(data_batch(d, 0, 0, 1, 8, tokens, targets, &error));
	cr_assert(strstr(error->message, "short.txt") && strstr(error->message, "8 tokens") && strstr(error->message, "9"));
	cr_assert_eq(truncate(path, 4), 0);
	cr_assert_not(data_batch(d, 0, 0, 1, 7, tokens, targets, &second));
	cr_assert(strstr(second->message, "byte 4"), "%s", second->message);
}
