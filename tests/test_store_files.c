/* Expert state in DRAM and on the SSD: what is put in comes back, wherever it went in between; blocks have their frames in the order of launches,
 * whenever they run; and what cannot be is said. */
#include "exec/adam.h"
#include "exec/impl.h"
#include "exec/store.h"
#include "exec/store_file.h"
#include "model/error.h"
#include "model/policy.h"

#include <criterion/criterion.h>
#include <glib/gstdio.h>
#include <string.h>

/* Odd sizes: no block ends with a page. */
static const struct store_layer layers[] = {{5, 1531}, {3, 3079}};
enum { N_LAYERS = 2, MOST_PARAMS = 3079 };

struct bed {
	struct device *device;
	struct device_group *group;
	char *folder;
	struct store *store;
};

static stage_id launched; /* of the test's stages; Criterion runs each test in a process of its own */

enum { MANY = 100 };

static struct bed bed_new(int home, int element_bytes, uint64_t frames)
{
	struct bed b = {.folder = g_dir_make_tmp("esmoe-XXXXXX", NULL)};
	GError *error = NULL;
	cr_assert(device_open("host", 1, 1 << 20, &b.device, &b.group, &error));
	struct store_options o = {
	    .home = home, .element_bytes = element_bytes, .gradient_bytes = element_bytes, .ssd_folder = b.folder, .frames = frames};
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

static bool launch(struct store *s, int kind, int l, int e, int part, struct store_places *at, GError **error)
{
	const struct stage st = {.id = launched++, .kind = (uint8_t)kind, .expert = e, .part = part};
	return store_launch(s, l, &st, at, error);
}

static struct store_places launch_ok(struct store *s, int kind, int l, int e, int part)
{
	GError *error = NULL;
	struct store_places at;
	cr_assert(launch(s, kind, l, e, part, &at, &error), "%s", error ? error->message : "");
	return at;
}

static struct store_places read_ok(struct store *s, int l, int e, bool state)
{
	GError *error = NULL;
	struct store_places at = launch_ok(s, STAGE_SSD_READ, l, e, state);
	cr_assert(store_read(s, l, e, state, &at, &error), "%s", error ? error->message : "");
	return at;
}

static void drop_ok(struct store *s, int l, int e, bool state)
{
	GError *error = NULL;
	struct store_places at = launch_ok(s, STAGE_SSD_WRITE, l, e, state);
	cr_assert(store_write(s, l, e, state, &at, &error), "%s", error ? error->message : "");
}

/* What Adam does to a block, as far as a store can tell. */
static void add_to_state(struct store *s, int l, int e, float added)
{
	struct store_places at = launch_ok(s, STAGE_ADAM, l, e, 0);
	cr_assert(at.master && at.m && at.v);
	for (size_t i = 0; i < layers[l].params; i++) {
		at.master[i] += added;
		at.m[i] += added;
		at.v[i] += added;
	}
	if (at.params)
		memcpy(at.params, at.master, sizeof(float) * layers[l].params);
}

static void expect_params(struct store *s, int l, int e, float added)
{
	const float *p = launch_ok(s, STAGE_UPLOAD, l, e, 0).params;
	for (size_t i = 0; i < layers[l].params; i++)
		cr_assert_eq(p[i], value(l, e, 0, i) + added, "layer %d expert %d [%zu]", l, e, i);
}

Test(store_files, what_is_loaded_is_saved_from_either_home)
{
	static const int homes[] = {HOME_DRAM, HOME_SSD};
	for (size_t h = 0; h < G_N_ELEMENTS(homes); h++) {
		struct bed b = bed_new(homes[h], 4, MANY);
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
			cr_assert(store_holds(b.store, l, e, false) && store_holds(b.store, l, e, true));
			cr_assert_eq(launch_ok(b.store, STAGE_ADAM, l, e, 0).m[7], value(l, e, 1, 7));
			expect_params(b.store, l, e, 0);
			struct store_places down = launch_ok(b.store, STAGE_DOWNLOAD, l, e, 0), up = launch_ok(b.store, STAGE_UPLOAD, l, e, 0);
			memset(down.gradient, 1, layers[l].params * 4);
			cr_assert_eq((char *)down.gradient, (char *)up.params + store_pages(layers[l].params * 4));
			cr_assert_eq(launch_ok(b.store, STAGE_ADAM, l, e, 1).gradient, down.gradient);
		}
	add_to_state(b.store, 1, 2, 0.5f);
	expect_params(b.store, 1, 2, 0.5f);
	expect_saved(b.store, 1, 2, 0.5f);
	expect_saved(b.store, 1, 1, 0);
	bed_clear(&b);
}

Test(store_files, changed_state_goes_to_the_file_and_comes_back)
{
	struct bed b = bed_new(HOME_SSD, 4, MANY);
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
	const guint16 *p = launch_ok(s, STAGE_UPLOAD, l, e, 0).params;
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
		struct bed b = bed_new(HOME_SSD, element, MANY);
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

static uint64_t pins, unpins;

static void *count_pin(struct device *d, size_t bytes, GError **error)
{
	void *p = NULL;
	pins++;
	return posix_memalign(&p, STORE_PAGE, bytes) == 0 ? memset(p, 0, bytes) : NULL;
}

static void count_unpin(struct device *d, void *p)
{
	unpins++;
	free(p);
}

/* Whoever pins while a GPU waits for what comes after it waits for ever. */
Test(store_files, memory_is_pinned_in_the_beginning_and_let_go_in_the_end)
{
	struct bed b = bed_new(HOME_SSD, 4, MANY);
	const struct device_impl *own = b.device->impl;
	struct device_core core = *own->core;
	struct device_impl impl = *own;
	const struct store_options o = {.home = HOME_SSD, .element_bytes = 4, .ssd_folder = b.folder, .frames = 2 * (3 + 2)};
	core.pinned_alloc = count_pin;
	core.pinned_free = count_unpin;
	impl.core = &core;
	store_free(g_steal_pointer(&b.store));
	b.device->impl = &impl;
	struct store *s = store_new(b.device, layers, N_LAYERS, &o, NULL);
	cr_assert(s);
	uint64_t before = pins;
	cr_assert(before == 1 && store_pinned_bytes(s) == 10 * 16384); /* 3079 numbers in whole pages */
	load_all(s);
	for (int round = 0; round < 3; round++)
		for (int l = 0; l < N_LAYERS; l++)
			for (int e = 0; e < layers[l].experts; e++) {
				read_ok(s, l, e, false);
				expect_params(s, l, e, (float)round);
				launch_ok(s, STAGE_DOWNLOAD, l, e, 0);
				drop_ok(s, l, e, false);
				read_ok(s, l, e, true);
				read_ok(s, l, e, false);
				launch_ok(s, STAGE_ACCUMULATE, l, e, 1);
				add_to_state(s, l, e, 1);
				drop_ok(s, l, e, false);
				drop_ok(s, l, e, true);
				expect_saved(s, l, e, (float)(round + 1));
			}
	cr_assert(pins == before && unpins == 0 && store_used_bytes(s) == 0);
	store_free(s);
	cr_assert_eq(unpins, before);
	b.device->impl = own;
	bed_clear(&b);
}

/* The launching thread is ahead of the SSD and of the copies: what is queued late finds the block that was its own at its launch. */
Test(store_files, a_stage_keeps_what_was_its_own_when_it_was_launched)
{
	struct bed b = bed_new(HOME_SSD, 4, 3 * 2);
	load_all(b.store);
	struct store_places read = launch_ok(b.store, STAGE_SSD_READ, 0, 1, 0), up = launch_ok(b.store, STAGE_UPLOAD, 0, 1, 0);
	launch_ok(b.store, STAGE_SSD_WRITE, 0, 1, 0);
	launch_ok(b.store, STAGE_SSD_READ, 0, 2, 0);
	struct store_places again = launch_ok(b.store, STAGE_SSD_READ, 0, 1, 0), up_again = launch_ok(b.store, STAGE_UPLOAD, 0, 1, 0);
	cr_assert(up.params == read.params && up_again.params == again.params && up.params != up_again.params);
	cr_assert(store_read(b.store, 0, 1, false, &read, NULL));
	cr_assert_eq(((float *)up.params)[5], value(0, 1, 0, 5));
	bed_clear(&b);
}

/* Large enough for huge pages. */
Test(store_files, bf16_is_cast_from_the_file_piece_by_piece)
{
	const struct store_layer large = {2, 11 * (1 << 18) + 77};
	struct device *device;
	struct device_group *group;
	g_autofree char *folder = g_dir_make_tmp("esmoe-XXXXXX", NULL);
	struct store_options o = {.home = HOME_SSD, .element_bytes = 2, .ssd_folder = folder, .frames = MANY};
	cr_assert(device_open("host", 1, 1 << 20, &device, &group, NULL));
	struct store *s = store_new(device, &large, 1, &o, NULL);
	g_autofree float *x = g_new(float, large.params);
	for (size_t i = 0; i < large.params; i++)
		x[i] = (float)(i % 251); /* exact in bf16 */
	cr_assert(store_load(s, 0, 1, x, NULL, NULL, NULL));
	const guint16 *p = read_ok(s, 0, 1, false).params;
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

enum { FRAME = 16384 }; /* 3079 numbers in whole pages */

Test(store_files, room_is_counted_in_frames_as_the_schedule_counts)
{
	struct bed b = bed_new(HOME_SSD, 4, 2 + 3 + 2);
	struct store_places at;
	load_all(b.store);
	read_ok(b.store, 0, 0, false);
	cr_assert_eq(store_used_bytes(b.store), 2 * FRAME);
	read_ok(b.store, 0, 0, true);
	cr_assert_eq(store_used_bytes(b.store), 5 * FRAME);
	read_ok(b.store, 1, 0, false); /* the last two */
	g_autoptr(GError) error = NULL;
	cr_assert_not(launch(b.store, STAGE_SSD_READ, 0, 1, 0, &at, &error));
	cr_assert(g_error_matches(error, ESMOE_ERROR, ESMOE_ERROR_FIT));
	cr_assert(strstr(error->message, "expert 1 of MoE layer 0") && strstr(error->message, "needs 2 frames") &&
	              strstr(error->message, "0 of the 7"),
	          "%s", error->message);
	drop_ok(b.store, 1, 0, false);
	read_ok(b.store, 0, 1, false);
	bed_clear(&b);
}

/* Short parameters and gradients share a frame; and no more frames are taken than all blocks fill: (5 + 3) (1 + 3). */
Test(store_files, bf16_gradients_share_a_frame_with_their_parameters)
{
	struct bed b = bed_new(HOME_SSD, 2, 1000);
	cr_assert_eq(store_pinned_bytes(b.store), 32 * FRAME);
	load_all(b.store);
	struct store_places read = read_ok(b.store, 1, 1, false), down = launch_ok(b.store, STAGE_DOWNLOAD, 1, 1, 0);
	cr_assert_eq(store_used_bytes(b.store), FRAME);
	cr_assert_geq((char *)down.gradient - (char *)read.params, (ptrdiff_t)(3079 * sizeof(guint16)));
	cr_assert_leq((char *)down.gradient + 3079 * sizeof(guint16), (char *)read.params + FRAME);
	memset(down.gradient, 0xff, 3079 * sizeof(guint16));
	expect_bf16(b.store, 1, 1, 0);
	bed_clear(&b);
}

Test(store_files, blocks_that_are_there_or_are_not_are_errors_of_the_schedule)
{
	struct bed b = bed_new(HOME_SSD, 4, MANY);
	struct store_places at;
	g_autoptr(GError) upload = NULL;
	cr_assert_not(launch(b.store, STAGE_UPLOAD, 0, 3, 0, &at, &upload));
	cr_assert(strstr(upload->message, "parameters are not in DRAM"), "%s", upload->message);
	cr_assert_null(launch_ok(b.store, STAGE_ADAM, 0, 3, 1).master);
	cr_assert_null(launch_ok(b.store, STAGE_ADAM, 0, 3, 1).gradient);
	for (int state = 0; state < 2; state++) {
		g_autoptr(GError) absent = NULL, twice = NULL;
		cr_assert_not(launch(b.store, STAGE_SSD_WRITE, 0, 3, state, &at, &absent));
		cr_assert(strstr(absent->message, "MoE layer 0, expert 3") && strstr(absent->message, "not in DRAM"), "%s", absent->message);
		read_ok(b.store, 0, 3, state);
		cr_assert_not(launch(b.store, STAGE_SSD_READ, 0, 3, state, &at, &twice));
		cr_assert(strstr(twice->message, "already in DRAM"), "%s", twice->message);
	}
	bed_clear(&b);
}

static bool waits_for(const struct store_places *at, stage_id id)
{
	for (int i = 0; i < at->waits.n; i++)
		if (at->waits.stage[i] == id)
			return true;
	return false;
}

Test(store_files, gradient_on_its_way_outlives_its_block)
{
	struct bed b = bed_new(HOME_SSD, 4, 2 + 3);
	load_all(b.store);
	read_ok(b.store, 0, 1, false);
	float *gradient = launch_ok(b.store, STAGE_DOWNLOAD, 0, 1, 0).gradient;
	gradient[0] = 42;
	drop_ok(b.store, 0, 1, false);
	stage_id left = launched - 1;
	cr_assert_eq(store_used_bytes(b.store), 2 * FRAME);
	read_ok(b.store, 0, 1, true);
	struct store_places at = launch_ok(b.store, STAGE_ADAM, 0, 1, 1);
	stage_id used = launched - 1;
	cr_assert(!at.params && at.master && at.gradient == gradient && *gradient == 42);
	cr_assert_eq(store_used_bytes(b.store), 3 * FRAME);
	cr_assert_null(launch_ok(b.store, STAGE_ADAM, 0, 1, 1).gradient);
	/* whoever has its frames next waits for both; its own gradient, whose parameters have left, too */
	at = launch_ok(b.store, STAGE_DOWNLOAD, 0, 2, 0);
	cr_assert_eq(at.gradient, gradient);
	cr_assert(at.waits.n == 2 && waits_for(&at, left) && waits_for(&at, used));
	bed_clear(&b);
}

Test(store_files, a_block_that_comes_again_before_its_gradient_was_used_is_the_same)
{
	struct bed b = bed_new(HOME_SSD, 4, 2);
	load_all(b.store);
	struct store_places first = read_ok(b.store, 0, 1, false), down = launch_ok(b.store, STAGE_DOWNLOAD, 0, 1, 0);
	launch_ok(b.store, STAGE_DOWNLOAD, 0, 1, 0); /* another GPU's share */
	drop_ok(b.store, 0, 1, false);
	stage_id left = launched - 1;
	struct store_places again = read_ok(b.store, 0, 1, false);
	cr_assert(again.params == first.params && waits_for(&again, left));
	launch_ok(b.store, STAGE_ACCUMULATE, 0, 1, 1);
	drop_ok(b.store, 0, 1, false);
	cr_assert_eq(store_used_bytes(b.store), 2 * FRAME);
	cr_assert_eq(launch_ok(b.store, STAGE_ACCUMULATE, 0, 1, 1).gradient, down.gradient);
	cr_assert_eq(store_used_bytes(b.store), 0);
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
	struct store_options o = {.home = HOME_SSD, .element_bytes = 4, .ssd_folder = folder, .frames = MANY};
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

/* Blocks of different experts are brought and sent side by side, once each was launched. */
struct shuttle {
	struct store *store;
	int first, step;
	struct store_places *at; /* (experts) */
};

static gpointer shuttle(gpointer user)
{
	const struct shuttle *t = user;
	for (int round = 0; round < 20; round++)
		for (int e = t->first; e < layers[0].experts; e += t->step) {
			cr_assert(store_read(t->store, 0, e, true, &t->at[e], NULL));
			for (size_t i = 0; i < layers[0].params; i++)
				t->at[e].master[i] += 1;
			cr_assert(store_write(t->store, 0, e, true, &t->at[e], NULL));
		}
	return NULL;
}

Test(store_files, experts_move_side_by_side)
{
	struct bed b = bed_new(HOME_SSD, 4, MANY);
	struct store_places at[5];
	struct shuttle t[] = {{b.store, 0, 2, at}, {b.store, 1, 2, at}};
	g_autofree float *x = g_new(float, 3 * MOST_PARAMS);
	load_all(b.store);
	for (int e = 0; e < layers[0].experts; e++)
		at[e] = launch_ok(b.store, STAGE_SSD_READ, 0, e, true);
	GThread *other = g_thread_new("other", shuttle, &t[1]);
	shuttle(&t[0]);
	g_thread_join(other);
	for (int e = 0; e < layers[0].experts; e++) {
		drop_ok(b.store, 0, e, true);
		cr_assert(store_save(b.store, 0, e, x, x + MOST_PARAMS, x + 2 * MOST_PARAMS, NULL));
		cr_assert(x[7] == value(0, e, 0, 7) + 20 && x[MOST_PARAMS + 7] == value(0, e, 1, 7));
	}
	cr_assert_eq(store_used_bytes(b.store), 0);
	bed_clear(&b);
}
