/* Expert state in DRAM and on the SSD: what is put in comes back, wherever it went in between; and what cannot be is said. */
#include "exec/adam.h"
#include "exec/impl.h"
#include "exec/store.h"
#include "exec/store_file.h"
#include "model/error.h"
#include "model/policy.h"

#include <criterion/criterion.h>
#include <glib/gstdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* Odd sizes: no block ends with a page. */
static const struct store_layer layers[] = {{5, 1531}, {3, 3079}};
enum { N_LAYERS = 2, MOST_PARAMS = 3079 };

struct bed {
	struct device *device;
	struct device_group *group;
	char *folder;
	struct store *store;
};

static struct bed bed_new(int home, int element_bytes, uint64_t cache_bytes)
{
	struct bed b = {.folder = g_dir_make_tmp("esmoe-XXXXXX", NULL)};
	GError *error = NULL;
	cr_assert(device_open("host", 1, 1 << 20, &b.device, &b.group, &error));
	struct store_options o = {
	    .home = home, .element_bytes = element_bytes, .gradient_bytes = element_bytes, .ssd_folder = b.folder, .cache_bytes = cache_bytes};
	b.store = store_new(b.device, layers, N_LAYERS, &o, &error);
	cr_assert(b.store, "%s", error ? error->message : "");
	return b;
}

static void bed_clear(struct bed *b)
{
	store_free(b->store);
	device_close(&b->device, 1, b->group);
	cr_assert_eq(g_rmdir(b->folder), 0, "something was left in %s", b->folder);
	g_free(b->folder);
}

static float value(int layer, int e, int part, size_t i)
{
	return (float)(layer * 100000 + e * 10000 + part * 1000) + (float)(i % 997) / 8;
}

static void load_all(struct store *s)
{
	g_autofree float *x = g_new(float, 3 * MOST_PARAMS);
	for (int l = 0; l < N_LAYERS; l++)
		for (int e = 0; e < layers[l].experts; e++) {
			for (int part = 0; part < 3; part++)
				for (size_t i = 0; i < layers[l].params; i++)
					x[part * MOST_PARAMS + i] = value(l, e, part, i);
			cr_assert(store_load(s, l, e, x, x + MOST_PARAMS, x + 2 * MOST_PARAMS, NULL));
		}
}

static void expect_saved(struct store *s, int l, int e, float added)
{
	g_autofree float *x = g_new(float, 3 * MOST_PARAMS);
	cr_assert(store_save(s, l, e, x, x + MOST_PARAMS, x + 2 * MOST_PARAMS, NULL));
	for (int part = 0; part < 3; part++)
		for (size_t i = 0; i < layers[l].params; i++)
			cr_assert_eq(x[part * MOST_PARAMS + i], value(l, e, part, i) + added, "layer %d expert %d part %d [%zu]", l, e, part, i);
}

static void read_ok(struct store *s, int l, int e, bool state)
{
	GError *error = NULL;
	cr_assert(store_read(s, l, e, state, false, &error), "%s", error ? error->message : "");
}

static void drop_ok(struct store *s, int l, int e, bool state)
{
	GError *error = NULL;
	cr_assert(store_write(s, l, e, state, true, &error), "%s", error ? error->message : "");
}

/* What Adam does to a block, as far as a store can tell. */
static void add_to_state(struct store *s, int l, int e, float added)
{
	struct store_loan loan;
	store_lend(s, l, e, &loan);
	cr_assert(loan.master && loan.m && loan.v);
	for (size_t i = 0; i < layers[l].params; i++) {
		loan.master[i] += added;
		loan.m[i] += added;
		loan.v[i] += added;
	}
	if (loan.params)
		memcpy(loan.params, loan.master, sizeof(float) * layers[l].params);
	store_return(s, l, e);
}

static void expect_params(struct store *s, int l, int e, float added)
{
	const float *p = store_params(s, l, e);
	for (size_t i = 0; i < layers[l].params; i++)
		cr_assert_eq(p[i], value(l, e, 0, i) + added, "layer %d expert %d [%zu]", l, e, i);
}

Test(store_files, what_is_loaded_is_saved_from_either_home)
{
	static const int homes[] = {HOME_DRAM, HOME_SSD};
	for (size_t h = 0; h < G_N_ELEMENTS(homes); h++) {
		struct bed b = bed_new(homes[h], 4, 1 << 20);
		load_all(b.store);
		for (int l = 0; l < N_LAYERS; l++)
			for (int e = 0; e < layers[l].experts; e++)
				expect_saved(b.store, l, e, 0);
		bed_clear(&b);
	}
}

Test(store_files, everything_is_at_home_in_dram)
{
	struct bed b = bed_new(HOME_DRAM, 4, 0);
	load_all(b.store);
	for (int l = 0; l < N_LAYERS; l++)
		for (int e = 0; e < layers[l].experts; e++) {
			float *master, *m, *v;
			cr_assert(store_holds(b.store, l, e, false) && store_state(b.store, l, e, &master, &m, &v));
			cr_assert_eq(m[7], value(l, e, 1, 7));
			expect_params(b.store, l, e, 0);
			memset(store_gradient(b.store, l, e), 1, layers[l].params * 4);
		}
	add_to_state(b.store, 1, 2, 0.5f);
	expect_params(b.store, 1, 2, 0.5f);
	expect_saved(b.store, 1, 2, 0.5f);
	expect_saved(b.store, 1, 1, 0);
	bed_clear(&b);
}

Test(store_files, changed_state_goes_to_the_file_and_comes_back)
{
	struct bed b = bed_new(HOME_SSD, 4, 1 << 20);
	load_all(b.store);
	for (int round = 1; round <= 3; round++)
		for (int l = 0; l < N_LAYERS; l++)
			for (int e = 0; e < layers[l].experts; e++) {
				read_ok(b.store, l, e, true);
				add_to_state(b.store, l, e, 1);
				drop_ok(b.store, l, e, true);
				cr_assert_not(store_holds(b.store, l, e, true));
				expect_saved(b.store, l, e, (float)round);
			}
	cr_assert_eq(store_used_bytes(b.store), 0);
	bed_clear(&b);
}

/* bf16 of small integers and eighths is exact up to 8 bits: compare with the cast of what was loaded. */
static void expect_bf16(struct store *s, int l, int e, float added)
{
	const guint16 *p = store_params(s, l, e);
	for (size_t i = 0; i < layers[l].params; i++) {
		float x = value(l, e, 0, i) + added;
		guint16 expected;
		adam_cast(NULL, &expected, ADAM_BF16, &x, 1);
		cr_assert_eq(p[i], expected);
	}
}

Test(store_files, parameters_are_cast_from_the_newest_master)
{
	for (int element = 2; element <= 4; element += 2) {
		void (*expect)(struct store *, int, int, float) = element == 2 ? expect_bf16 : expect_params;
		struct bed b = bed_new(HOME_SSD, element, 1 << 20);
		load_all(b.store);
		read_ok(b.store, 1, 2, false); /* from the file */
		expect(b.store, 1, 2, 0);
		drop_ok(b.store, 1, 2, false);
		read_ok(b.store, 1, 2, true);
		add_to_state(b.store, 1, 2, 3);
		read_ok(b.store, 1, 2, false); /* from DRAM, newer than the file */
		expect(b.store, 1, 2, 3);
		drop_ok(b.store, 1, 2, false);
		drop_ok(b.store, 1, 2, true);
		read_ok(b.store, 1, 2, false); /* the file has it now */
		expect(b.store, 1, 2, 3);
		bed_clear(&b);
	}
}

/* What is pinned: address to bytes. */
static GHashTable *pins;

static bool note_pin(struct device *d, void *p, size_t bytes, GError **error)
{
	return g_hash_table_insert(pins, p, GSIZE_TO_POINTER(bytes));
}

static void note_unpin(struct device *d, void *p)
{
	cr_assert(g_hash_table_remove(pins, p));
}

/* From when the parameters come until neither they nor a gradient are needed: a copy may be under way all that time. */
Test(store_files, blocks_over_the_ssd_are_pinned_while_copies_may_reach_them)
{
	struct bed b = bed_new(HOME_SSD, 4, 1 << 20);
	const struct device_impl *own = b.device->impl;
	struct device_core core = *own->core;
	struct device_impl impl = *own;
	struct store_loan loan;
	core.pin = note_pin;
	core.unpin = note_unpin;
	impl.core = &core;
	b.device->impl = &impl;
	pins = g_hash_table_new(NULL, NULL);
	load_all(b.store);
	read_ok(b.store, 0, 1, true);
	cr_assert_eq(g_hash_table_size(pins), 0);
	read_ok(b.store, 0, 1, false);
	read_ok(b.store, 0, 2, false);
	cr_assert_eq(g_hash_table_size(pins), 2);
	char *params = store_params(b.store, 0, 1), *gradient = store_gradient(b.store, 0, 1);
	cr_assert_geq(GPOINTER_TO_SIZE(g_hash_table_lookup(pins, params)), (size_t)(gradient - params) + layers[0].params * sizeof(float));
	drop_ok(b.store, 0, 1, false);
	cr_assert(g_hash_table_contains(pins, params));
	/* it comes again before its gradient has been used */
	read_ok(b.store, 0, 1, false);
	drop_ok(b.store, 0, 1, false);
	store_lend(b.store, 0, 1, &loan);
	store_return(b.store, 0, 1);
	cr_assert_not(g_hash_table_contains(pins, params));
	cr_assert_eq(g_hash_table_size(pins), 1);
	store_free(g_steal_pointer(&b.store));
	cr_assert_eq(g_hash_table_size(pins), 0);
	b.device->impl = own;
	g_hash_table_unref(pins);
	bed_clear(&b);
}

/* Large enough for huge pages. */
Test(store_files, bf16_is_cast_from_the_file_piece_by_piece)
{
	const struct store_layer large = {2, 11 * (1 << 18) + 77};
	struct device *device;
	struct device_group *group;
	g_autofree char *folder = g_dir_make_tmp("esmoe-XXXXXX", NULL);
	struct store_options o = {.home = HOME_SSD, .element_bytes = 2, .ssd_folder = folder, .cache_bytes = 1 << 30};
	cr_assert(device_open("host", 1, 1 << 20, &device, &group, NULL));
	struct store *s = store_new(device, &large, 1, &o, NULL);
	g_autofree float *x = g_new(float, large.params);
	for (size_t i = 0; i < large.params; i++)
		x[i] = (float)(i % 251); /* exact in bf16 */
	cr_assert(store_load(s, 0, 1, x, NULL, NULL, NULL));
	cr_assert(store_read(s, 0, 1, false, false, NULL));
	const guint16 *p = store_params(s, 0, 1);
	for (size_t i = 0; i < large.params; i++) {
		guint32 bits = (guint32)p[i] << 16;
		float got;
		memcpy(&got, &bits, sizeof(got));
		cr_assert_eq(got, x[i], "[%zu]", i);
	}
	store_free(s);
	device_close(&device, 1, group);
	g_rmdir(folder);
}

Test(store_files, room_is_counted_in_elements_as_the_schedule_counts)
{
	struct bed b = bed_new(HOME_SSD, 4, 1531 * (8 + 12) + 3079 * 8);
	load_all(b.store);
	read_ok(b.store, 0, 0, false);
	cr_assert_eq(store_used_bytes(b.store), 1531 * 8);
	read_ok(b.store, 0, 0, true);
	cr_assert_eq(store_used_bytes(b.store), 1531 * 20);
	read_ok(b.store, 1, 0, false); /* to the last byte */
	g_autoptr(GError) error = NULL;
	cr_assert_not(store_read(b.store, 0, 1, false, false, &error));
	cr_assert(g_error_matches(error, ESMOE_ERROR, ESMOE_ERROR_FIT));
	cr_assert(strstr(error->message, "expert 1 of MoE layer 0") && strstr(error->message, "0.000000 GiB of the"), "%s", error->message);
	drop_ok(b.store, 1, 0, false);
	read_ok(b.store, 0, 1, false);
	bed_clear(&b);
}

Test(store_files, blocks_that_are_there_or_are_not_are_errors_of_the_schedule)
{
	struct bed b = bed_new(HOME_SSD, 4, 1 << 20);
	float *master, *m, *v;
	cr_assert_not(store_state(b.store, 0, 3, &master, &m, &v));
	for (int state = 0; state < 2; state++) {
		g_autoptr(GError) absent = NULL, twice = NULL;
		cr_assert_not(store_write(b.store, 0, 3, state, true, &absent));
		cr_assert(strstr(absent->message, "MoE layer 0, expert 3") && strstr(absent->message, "not in DRAM"), "%s", absent->message);
		read_ok(b.store, 0, 3, state);
		cr_assert_not(store_read(b.store, 0, 3, state, false, &twice));
		cr_assert(strstr(twice->message, "already in DRAM"), "%s", twice->message);
	}
	bed_clear(&b);
}

Test(store_files, gradient_on_its_way_outlives_its_block)
{
	struct bed b = bed_new(HOME_SSD, 4, 1 << 20);
	struct store_loan loan;
	load_all(b.store);
	read_ok(b.store, 0, 1, false);
	float *gradient = store_gradient(b.store, 0, 1);
	gradient[0] = 42;
	drop_ok(b.store, 0, 1, false);
	read_ok(b.store, 0, 1, true);
	store_lend(b.store, 0, 1, &loan);
	cr_assert(!loan.params && loan.master && loan.gradient == gradient && *gradient == 42);
	store_return(b.store, 0, 1);
	store_lend(b.store, 0, 1, &loan);
	cr_assert_null(loan.gradient);
	store_return(b.store, 0, 1);
	bed_clear(&b);
}

Test(store_files, sums_begin_at_zero)
{
	struct bed b = bed_new(HOME_DRAM, 4, 0);
	for (int round = 0; round < 2; round++) {
		float *sum = store_sum(b.store, 1, 1);
		cr_assert(sum[0] == 0 && sum[3078] == 0);
		sum[0] = 1;
		cr_assert_eq(store_sum(b.store, 1, 1), sum);
		store_sum_free(b.store, 1, 1);
	}
	store_sum(b.store, 0, 0);
	bed_clear(&b);
}

static struct store *try_folder(const char *folder, const struct store_layer *l, GError **error)
{
	struct device *device;
	struct device_group *group;
	struct store_options o = {.home = HOME_SSD, .element_bytes = 4, .ssd_folder = folder, .cache_bytes = 1 << 20};
	cr_assert(device_open("host", 1, 1 << 20, &device, &group, NULL));
	struct store *s = store_new(device, l, 1, &o, error);
	device_close(&device, 1, group);
	return s;
}

Test(store_files, no_folder_is_an_error_that_names_it)
{
	g_autoptr(GError) error = NULL, missing = NULL;
	cr_assert_null(try_folder("/no/such/folder", layers, &error));
	cr_assert(g_error_matches(error, ESMOE_ERROR, ESMOE_ERROR_INPUT) && strstr(error->message, "/no/such/folder/experts.bin"));
	cr_assert_null(try_folder(NULL, layers, &missing));
	cr_assert(g_error_matches(missing, ESMOE_ERROR, ESMOE_ERROR_INPUT));
}

/* More than any disk has: refused at the start, and nothing is left behind. */
Test(store_files, full_disk_is_said_before_anything_runs)
{
	g_autofree char *folder = g_dir_make_tmp("esmoe-XXXXXX", NULL);
	const struct store_layer huge = {1 << 10, (size_t)1 << 30}; /* 12 TiB */
	g_autoptr(GError) error = NULL;
	cr_assert_null(try_folder(folder, &huge, &error));
	cr_assert(g_error_matches(error, ESMOE_ERROR, ESMOE_ERROR_FIT), "%s", error->message);
	cr_assert(strstr(error->message, "experts.bin") && strstr(error->message, "12288.000 GiB"), "%s", error->message);
	cr_assert_eq(g_rmdir(folder), 0);
}

Test(store_files, two_runs_cannot_share_a_file)
{
	g_autofree char *folder = g_dir_make_tmp("esmoe-XXXXXX", NULL);
	g_autoptr(GError) error = NULL;
	struct store_file *first = store_file_new(folder, 8192, NULL);
	cr_assert(first);
	cr_assert_null(store_file_new(folder, 8192, &error));
	cr_assert(strstr(error->message, "in use by another run"), "%s", error->message);
	store_file_free(first);
	struct store_file *second = store_file_new(folder, 8192, NULL);
	cr_assert(second);
	store_file_free(second);
	g_rmdir(folder);
}

Test(store_files, file_cut_short_behind_our_back_is_an_error_with_its_offset)
{
	g_autofree char *folder = g_dir_make_tmp("esmoe-XXXXXX", NULL), *path = g_build_filename(folder, "experts.bin", NULL);
	g_autoptr(GError) error = NULL;
	g_autoptr(store_file) f = store_file_new(folder, 5 * STORE_PAGE, NULL);
	struct stat st;
	cr_assert(f && stat(path, &st) == 0 && st.st_size == 5 * STORE_PAGE && st.st_blocks >= 5 * STORE_PAGE / 512);
	void *p = NULL;
	cr_assert_eq(posix_memalign(&p, STORE_PAGE, 2 * STORE_PAGE), 0);
	memset(p, 7, 2 * STORE_PAGE);
	cr_assert(store_file_write(f, 3 * STORE_PAGE, p, 2 * STORE_PAGE, NULL));
	cr_assert_eq(truncate(path, 4 * STORE_PAGE), 0);
	cr_assert_not(store_file_read(f, 3 * STORE_PAGE, p, 2 * STORE_PAGE, &error));
	cr_assert(g_error_matches(error, ESMOE_ERROR, ESMOE_ERROR_DEVICE) && strstr(error->message, path) && strstr(error->message, "12288") &&
	              strstr(error->message, "after 4096"),
	          "%s", error->message);
	free(p);
	store_file_free(g_steal_pointer(&f));
	g_rmdir(folder);
}

/* A file system without direct access, where the system has one to try. */
Test(store_files, works_through_the_page_cache_too)
{
	g_autofree char *folder = g_strdup("/dev/shm/esmoe-XXXXXX");
	if (!g_mkdtemp(folder))
		cr_skip_test("no /dev/shm");
	g_autoptr(store_file) f = store_file_new(folder, 4 * STORE_PAGE, NULL);
	cr_assert(f);
	char *p = NULL;
	cr_assert_eq(posix_memalign((void **)&p, STORE_PAGE, STORE_PAGE), 0);
	memset(p, 9, STORE_PAGE);
	cr_assert(store_file_write(f, STORE_PAGE, p, STORE_PAGE, NULL));
	cr_assert(store_file_read(f, 0, p, STORE_PAGE, NULL) && p[0] == 0);
	cr_assert(store_file_read(f, STORE_PAGE, p, STORE_PAGE, NULL) && p[0] == 9 && p[STORE_PAGE - 1] == 9);
	free(p);
	store_file_free(g_steal_pointer(&f));
	g_rmdir(folder);
}

/* One worker brings and sends blocks while another updates what is there, as the node's streams do. */
struct shuttle {
	struct store *store;
	int first, step;
};

static gpointer shuttle(gpointer user)
{
	const struct shuttle *t = user;
	for (int round = 0; round < 20; round++)
		for (int e = t->first; e < layers[0].experts; e += t->step) {
			read_ok(t->store, 0, e, true);
			read_ok(t->store, 0, e, false);
			add_to_state(t->store, 0, e, 1);
			drop_ok(t->store, 0, e, false);
			drop_ok(t->store, 0, e, true);
		}
	return NULL;
}

Test(store_files, experts_move_side_by_side)
{
	struct bed b = bed_new(HOME_SSD, 4, 1 << 20);
	struct shuttle t[] = {{b.store, 0, 2}, {b.store, 1, 2}};
	load_all(b.store);
	GThread *other = g_thread_new("other", shuttle, &t[1]);
	shuttle(&t[0]);
	g_thread_join(other);
	for (int e = 0; e < layers[0].experts; e++)
		expect_saved(b.store, 0, e, 20);
	cr_assert_eq(store_used_bytes(b.store), 0);
	bed_clear(&b);
}
