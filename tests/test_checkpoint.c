/* Checkpoints: what was saved comes back bit for bit; what is damaged or foreign changes nothing; whoever is killed at any moment leaves the last
 * whole one. */
#include "exec/checkpoint.h"

#include "model/error.h"

#include <criterion/criterion.h>
#include <glib/gstdio.h>
#include <signal.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static char *folder;

static void make_folder(void)
{
	folder = g_dir_make_tmp("esmoe-checkpoint-XXXXXX", NULL);
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

TestSuite(checkpoint, .init = make_folder, .fini = remove_folder);

/* Some tensors of odd sizes, the last past the buffer of one write. */
enum { TENSORS = 4 };
static const size_t sizes[TENSORS] = {1, 7, 1000, 300001};

struct store {
	const char *names[TENSORS];
	float *values[TENSORS]; /* (3, sizes[i]): master, m, v */
	int n;
};

static void store_init(struct store *s, uint32_t seed)
{
	static const char *const names[TENSORS] = {"wte", "layer0.norm1.gain", "layer0.expert3.w1", "head"};
	s->n = TENSORS;
	for (int i = 0; i < TENSORS; i++) {
		s->names[i] = names[i];
		s->values[i] = g_new(float, 3 * sizes[i]);
		for (size_t j = 0; j < 3 * sizes[i]; j++) {
			seed = seed * 1664525 + 1013904223;
			s->values[i][j] = (float)seed / 65536;
		}
	}
}

static void store_clear(struct store *s)
{
	for (int i = 0; i < TENSORS; i++)
		g_free(s->values[i]);
}

static bool store_each(void *owner, bool write_back, engine_tensor_fn fn, void *user, GError **error)
{
	struct store *s = owner;
	for (int i = 0; i < s->n; i++) {
		float *v = s->values[i];
		if (!fn(s->names[i], sizes[i], v, v + sizes[i], v + 2 * sizes[i], NULL, user, error))
			return false;
	}
	return true;
}

static bool same(const struct store *a, const struct store *b)
{
	for (int i = 0; i < TENSORS; i++)
		if (memcmp(a->values[i], b->values[i], 3 * sizes[i] * sizeof(float)) != 0)
			return false;
	return true;
}

static void save(struct store *s, uint64_t step)
{
	const struct checkpoint_tensors tensors = {s, store_each};
	const struct checkpoint_state state = {step, 42};
	g_autoptr(GError) error = NULL;
	cr_assert(checkpoint_save(folder, &state, &tensors, &error), "%s", error ? error->message : "");
}

static uint64_t load(struct store *s)
{
	const struct checkpoint_tensors tensors = {s, store_each};
	struct checkpoint_state state;
	g_autoptr(GError) error = NULL;
	g_autofree char *file = checkpoint_find(folder, &error);
	cr_assert(file, "%s", error ? error->message : "");
	cr_assert(checkpoint_load(file, &state, &tensors, &error), "%s", error ? error->message : "");
	cr_assert_eq(state.seed, 42);
	return state.step;
}

static void refused(struct store *s, const char *file, const char *word)
{
	const struct checkpoint_tensors tensors = {s, store_each};
	struct checkpoint_state state;
	g_autoptr(GError) error = NULL;
	cr_assert_not(checkpoint_load(file, &state, &tensors, &error));
	cr_assert(g_error_matches(error, ESMOE_ERROR, ESMOE_ERROR_INPUT));
	cr_assert(strstr(error->message, word), "'%s' lacks '%s'", error->message, word);
}

Test(checkpoint, comes_back_bit_for_bit_and_older_ones_go)
{
	struct store a, b;
	store_init(&a, 1);
	store_init(&b, 2);
	save(&b, 9);
	save(&a, 10);
	cr_assert_not(same(&a, &b));
	cr_assert_eq(load(&b), 10);
	cr_assert(same(&a, &b));
	g_autoptr(GDir) dir = g_dir_open(folder, 0, NULL);
	int files = 0;
	while (g_dir_read_name(dir))
		files++;
	cr_assert_eq(files, 1);
	store_clear(&a);
	store_clear(&b);
}

Test(checkpoint, any_byte_cut_or_changed_is_seen_before_anything_is_read_from_it)
{
	struct store a, b, before;
	store_init(&a, 1);
	store_init(&b, 2);
	store_init(&before, 2);
	save(&a, 3);
	g_autofree char *file = checkpoint_find(folder, NULL), *bytes = NULL, *damaged = g_build_filename(folder, "damaged", NULL);
	size_t n;
	cr_assert(g_file_get_contents(file, &bytes, &n, NULL));
	for (size_t i = 0; i < 60; i++) {
		size_t at = i < 40 ? i : n - 1 - (i - 40) * (n / 20 - 1);
		bytes[at] ^= 0x10;
		cr_assert(g_file_set_contents(damaged, bytes, (gssize)n, NULL));
		refused(&b, damaged, damaged);
		bytes[at] ^= 0x10;
		cr_assert(g_file_set_contents(damaged, bytes, (gssize)at, NULL));
		refused(&b, damaged, damaged);
	}
	cr_assert(same(&b, &before));
	store_clear(&a);
	store_clear(&b);
	store_clear(&before);
}

Test(checkpoint, of_another_network_is_refused_with_the_first_tensor_that_differs)
{
	struct store a, b;
	store_init(&a, 1);
	store_init(&b, 2);
	save(&a, 3);
	g_autofree char *file = checkpoint_find(folder, NULL);
	b.names[2] = "layer0.expert3.w2";
	refused(&b, file, "layer0.expert3.w1");
	b.names[2] = a.names[2];
	b.n = TENSORS - 1;
	refused(&b, file, "head");
	store_clear(&a);
	store_clear(&b);
}

Test(checkpoint, a_folder_without_one_and_one_that_cannot_be_written_say_so)
{
	g_autoptr(GError) error = NULL, second = NULL, third = NULL;
	g_autofree char *none = checkpoint_find(folder, &error);
	cr_assert_null(none);
	cr_assert(strstr(error->message, folder) && strstr(error->message, "step-"));
	cr_assert_not(checkpoint_prepare("/proc/nowhere", &second));
	cr_assert(strstr(second->message, "/proc/nowhere"));
	g_autofree char *missing = g_build_filename(folder, "missing", NULL);
	struct store a;
	store_init(&a, 1);
	refused(&a, missing, "No such file");
	cr_assert_not(checkpoint_save(missing, &(struct checkpoint_state){1, 2}, &(struct checkpoint_tensors){&a, store_each}, &third));
	store_clear(&a);
}

/* A child saves as fast as it can and is killed; the tensors of step s are those of seed s, so a whole checkpoint is known by its step. */
Test(checkpoint, killed_at_any_moment_leaves_a_whole_one, .timeout = 120)
{
	struct store first;
	store_init(&first, 1);
	save(&first, 1);
	store_clear(&first);
	for (int round = 0; round < 20; round++) {
		pid_t child = fork();
		if (child == 0) {
			for (uint64_t step = (uint64_t)round * 100000 + 2;; step++) {
				struct store s;
				store_init(&s, (uint32_t)step);
				save(&s, step);
				store_clear(&s);
			}
		}
		g_usleep((gulong)(20000 + round * 7919 % 31 * 1000));
		kill(child, SIGKILL);
		cr_assert_eq(waitpid(child, NULL, 0), child);
		struct store read, wanted;
		store_init(&read, 0);
		store_init(&wanted, (uint32_t)load(&read));
		cr_assert(same(&read, &wanted), "round %d", round);
		store_clear(&read);
		store_clear(&wanted);
	}
}
