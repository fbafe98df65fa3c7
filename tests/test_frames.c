/* Frames and the blocks in them, driven by random launches and run in random orders that streams, predecessors and waits allow: against a model that
 * knows of every frame what was put there last. */
#include "exec/store.h"
#include "exec/store_file.h"
#include "model/footprint.h"
#include "steps.h"

#include <glib/gstdio.h>

struct bed {
	struct device *device;
	struct device_group *group;
};

static struct bed bed_new(void)
{
	struct bed b;
	cr_assert(device_open("host", 1, 1 << 20, &b.device, &b.group, NULL));
	return b;
}

static bool has(const struct frames_waits *w, stage_id id)
{
	for (int i = 0; i < w->n; i++)
		if (w->stage[i] == id)
			return true;
	return false;
}

Test(frames, are_apart_and_zeroed_on_whole_pages)
{
	enum { N = 9 };
	struct bed b = bed_new();
	g_autoptr(frames) f = frames_new(b.device, 2 * STORE_PAGE, N, NULL);
	char *frame[N];
	struct frames_waits w = {0};
	for (int i = 0; i < N; i += 3)
		cr_assert(frames_claim(f, 3, frame + i, &w, NULL));
	cr_assert_eq(w.n, 0, "nobody has used them");
	for (int i = 0; i < N; i++) {
		cr_assert_eq((uintptr_t)frame[i] % STORE_PAGE, 0);
		for (int j = 0; j < 2 * STORE_PAGE; j++)
			cr_assert_eq(frame[i][j], 0, "frame %d [%d]", i, j);
		memset(frame[i], 1 + i, 2 * STORE_PAGE);
	}
	for (int i = 0; i < N; i++)
		cr_assert(frame[i][0] == 1 + i && frame[i][2 * STORE_PAGE - 1] == 1 + i);
	cr_assert(frames_bytes(f) == N * 2 * STORE_PAGE && frames_used_bytes(f) == frames_bytes(f));
	frames_free(g_steal_pointer(&f));
	device_close(&b.device, 1, b.group);
}

Test(frames, whoever_claims_one_waits_for_its_last_users)
{
	struct bed b = bed_new();
	g_autoptr(frames) f = frames_new(b.device, STORE_PAGE, 3, NULL);
	char *a[3], *c[3];
	struct frames_waits w = {0};
	g_autoptr(GError) error = NULL;
	cr_assert(frames_claim(f, 3, a, &w, NULL));
	frames_release(f, a[2], (stage_id[]){7, 5});
	frames_release(f, a[0], (stage_id[]){8, STAGE_NONE});
	cr_assert_not(frames_claim(f, 3, c, &w, &error));
	cr_assert(w.n == 0 && strstr(error->message, "needs 3 frames") && strstr(error->message, "2 of the 3"), "%s", error->message);
	cr_assert(frames_claim(f, 1, c, &w, NULL));
	cr_assert(c[0] == a[2] && w.n == 2 && has(&w, 7) && has(&w, 5), "the one released first");
	cr_assert(frames_claim(f, 1, c, &w, NULL));
	cr_assert(c[0] == a[0] && w.n == 3 && has(&w, 8));
	frames_free(g_steal_pointer(&f));
	device_close(&b.device, 1, b.group);
}

/* ---- a store by brute force ---- */

enum { EXPERTS = 6, LAUNCHES = 3000, STREAMS = 5, ROOM = 9, SPARE = 2 };
enum stream { READS, WRITES, UPLOADS, DOWNLOADS, UPDATES };

/* What a launched stage has to find, as a schedule without frames would have it. */
struct step {
	struct stage stage;
	enum stream stream;
	struct store_places at;
	stage_id after[4];
	int n_after;
	bool ended;
};

struct model {
	struct store *store;
	GRand *random;
	struct step *step; /* (LAUNCHES) */
	stage_id n;
	stage_id update[EXPERTS], upload[EXPERTS], aside[EXPERTS], down[EXPERTS], cast[EXPERTS]; /* last of each, or STAGE_NONE */
	stage_id got[EXPERTS][2], put[EXPERTS];
	bool params[EXPERTS], state[EXPERTS], coming[EXPERTS];
	GHashTable *owner; /* address to a number that says whose data it holds */
	int in_use;
};

static struct step *launch(struct model *m, int kind, enum stream stream, int e, int part)
{
	GError *error = NULL;
	struct step *s = &m->step[m->n];
	*s = (struct step){.stage = {.id = m->n++, .kind = (uint8_t)kind, .expert = e, .part = part}, .stream = stream};
	cr_assert(store_launch(m->store, 0, &s->stage, &s->at, &error), "%s", error ? error->message : "");
	return s;
}

static void after(struct step *s, stage_id id)
{
	if (id != STAGE_NONE)
		s->after[s->n_after++] = id;
}

/* As model/store.c orders them. */
static void evict(struct model *m, int e, bool state)
{
	struct step *s = launch(m, STAGE_SSD_WRITE, WRITES, e, state);
	after(s, m->update[e]);
	after(s, state ? m->got[e][0] : m->upload[e]);
	after(s, state ? m->got[e][1] : m->got[e][0]);
	*(state ? &m->put[e] : &m->aside[e]) = s->stage.id;
	*(state ? &m->state[e] : &m->params[e]) = false;
	m->in_use -= state ? 3 : 2;
}

static void fetch(struct model *m, int e, bool state)
{
	int frames = state ? 3 : 2;
	if (state ? m->state[e] : m->params[e])
		return;
	while (m->in_use + frames > ROOM) {
		int other = g_rand_int_range(m->random, 0, 2 * EXPERTS);
		if (other % 2 ? m->state[other / 2] : m->params[other / 2])
			evict(m, other / 2, other % 2);
	}
	struct step *s = launch(m, STAGE_SSD_READ, READS, e, state);
	m->in_use += frames;
	after(s, m->put[e]);
	after(s, m->update[e]);
	after(s, state ? STAGE_NONE : m->upload[e]);
	cr_assert_eq(s->at.master != NULL, state || m->state[e]);
	*(state ? &m->state[e] : &m->params[e]) = true;
	m->got[e][state] = s->stage.id;
}

static void upload(struct model *m, int e)
{
	fetch(m, e, false);
	struct step *s = launch(m, STAGE_UPLOAD, UPLOADS, e, 0);
	after(s, m->got[e][0]);
	after(s, m->update[e]);
	m->upload[e] = s->stage.id;
}

static void update(struct model *m, int e, bool all)
{
	fetch(m, e, true);
	struct step *s = launch(m, all ? STAGE_ADAM : STAGE_ACCUMULATE, UPDATES, e, 1);
	after(s, m->got[e][1]);
	after(s, m->down[e]);
	after(s, m->upload[e]);
	m->coming[e] = false;
	m->update[e] = s->stage.id;
}

/* At most SPARE / 2 blocks stay behind their parameters. */
static bool may_come(const struct model *m)
{
	for (int e = 0; e < EXPERTS; e++)
		if (m->coming[e])
			return false;
	return true;
}

static void launch_something(struct model *m)
{
	int e = g_rand_int_range(m->random, 0, EXPERTS);
	if (!may_come(m) && g_rand_boolean(m->random)) {
		while (!m->coming[e])
			e = (e + 1) % EXPERTS;
		update(m, e, g_rand_boolean(m->random));
		return;
	}
	upload(m, e);
	if (!may_come(m) || g_rand_boolean(m->random))
		return;
	stage_id up = m->step[m->n - 1].stage.id;
	struct step *s = launch(m, STAGE_DOWNLOAD, DOWNLOADS, e, 0);
	after(s, up);
	m->down[e] = s->stage.id;
	m->coming[e] = true;
}

enum content { PARAMS = 1, GRADIENT, MASTER };

static void puts_in(struct model *m, const void *p, int e, enum content what)
{
	g_hash_table_insert(m->owner, (gpointer)(uintptr_t)p, GINT_TO_POINTER(4 * e + (int)what));
}

static void finds(struct model *m, const struct step *s, const void *p, enum content what)
{
	int found = GPOINTER_TO_INT(g_hash_table_lookup(m->owner, p));
	cr_assert_eq(found, 4 * s->stage.expert + (int)what, "stage %u (%s) of expert %d finds content %d of expert %d where its own should be",
	             s->stage.id, stage_kind_name(s->stage.kind), s->stage.expert, found % 4, found / 4);
}

static void run(struct model *m, struct step *s)
{
	int e = s->stage.expert;
	switch (s->stage.kind) {
	case STAGE_SSD_READ:
		if (s->stage.part) {
			puts_in(m, s->at.master, e, MASTER);
			puts_in(m, s->at.m, e, MASTER);
			puts_in(m, s->at.v, e, MASTER);
			break;
		}
		if (s->at.master)
			finds(m, s, s->at.master, MASTER);
		puts_in(m, s->at.params, e, PARAMS);
		break;
	case STAGE_SSD_WRITE:
		if (!s->stage.part)
			break;
		finds(m, s, s->at.master, MASTER);
		finds(m, s, s->at.m, MASTER);
		finds(m, s, s->at.v, MASTER);
		break;
	case STAGE_UPLOAD:
		finds(m, s, s->at.params, PARAMS);
		break;
	case STAGE_DOWNLOAD:
		puts_in(m, s->at.gradient, e, GRADIENT);
		break;
	default:
		finds(m, s, s->at.gradient, GRADIENT);
		finds(m, s, s->at.master, MASTER);
		if (s->at.params)
			finds(m, s, s->at.params, PARAMS);
	}
	s->ended = true;
}

static bool is_due(const struct model *m, const struct step *s)
{
	for (int i = 0; i < s->n_after; i++)
		if (!m->step[s->after[i]].ended)
			return false;
	for (int i = 0; i < s->at.waits.n; i++) {
		cr_assert_lt(s->at.waits.stage[i], s->stage.id, "a stage waits for one that is launched later");
		if (!m->step[s->at.waits.stage[i]].ended)
			return false;
	}
	return true;
}

/* Stages of a stream in order, otherwise whichever may; `lazy` goes on only when no other stream can. */
static void run_all(struct model *m, int lazy)
{
	stage_id next[STREAMS] = {0};
	for (stage_id done = 0; done < m->n;) {
		int ready[STREAMS], n = 0;
		for (int i = 0; i < STREAMS; i++) {
			while (next[i] < m->n && (m->step[next[i]].stream != (enum stream)i || m->step[next[i]].ended))
				next[i]++;
			if (next[i] < m->n && is_due(m, &m->step[next[i]]))
				ready[n++] = i;
		}
		cr_assert_gt(n, 0, "nothing can run after %u of %u stages", done, m->n);
		int pick = ready[g_rand_int_range(m->random, 0, n)];
		if (pick == lazy && n > 1)
			continue;
		run(m, &m->step[next[pick]]);
		done++;
	}
}

static void check_seed(uint32_t seed)
{
	const struct store_layer layer = {EXPERTS, 500, 0};
	struct bed b = bed_new();
	g_autofree char *folder = g_dir_make_tmp("esmoe-XXXXXX", NULL);
	const struct store_options o = {.home = HOME_SSD, .element_bytes = 4, .ssd_folder = folder, .frames = ROOM + SPARE};
	struct model m = {.random = g_rand_new_with_seed(seed), .step = g_new0(struct step, LAUNCHES + 100), .owner = g_hash_table_new(NULL, NULL)};
	memset(m.update, 0xff, sizeof(m.update));
	memset(m.upload, 0xff, sizeof(m.upload));
	memset(m.aside, 0xff, sizeof(m.aside));
	memset(m.down, 0xff, sizeof(m.down));
	memset(m.got, 0xff, sizeof(m.got));
	memset(m.put, 0xff, sizeof(m.put));
	m.store = store_new(b.device, &layer, 1, &o, NULL);
	cr_assert(m.store);
	while (m.n < LAUNCHES)
		launch_something(&m);
	run_all(&m, (int)(seed % (STREAMS + 1)));
	store_free(m.store);
	g_rand_free(m.random);
	g_free(m.step);
	g_hash_table_unref(m.owner);
	device_close(&b.device, 1, b.group);
	g_rmdir(folder);
}

Test(frames, every_stage_finds_its_own_expert_in_whatever_order_stages_run)
{
	for (uint32_t seed = 0; seed < 60; seed++)
		check_seed(seed);
}

/* ---- schedules ---- */

#define PICK(random, ...)                                                                                                                            \
	((const char *const[]){__VA_ARGS__})[g_rand_int_range(random, 0, (gint32)G_N_ELEMENTS(((const char *const[]){__VA_ARGS__})))]
#define SMALL "[network]\nlayers = 4\nd_model = 32\nheads = 2\nvocab = 99\nseq_len = 16\nsequences = 4\nd_ff = 64\nexperts = 7\n"

/* Whatever a schedule evicts and puts off, the frames of its plan are enough: cached blocks, and those that stay for their gradient. */
static void launch_schedule(uint32_t seed)
{
	static const bool stored[N_STAGE_KINDS] = {[STAGE_UPLOAD] = true,     [STAGE_DOWNLOAD] = true, [STAGE_ADAM] = true,
	                                           [STAGE_ACCUMULATE] = true, [STAGE_SSD_READ] = true, [STAGE_SSD_WRITE] = true};
	g_autoptr(GRand) r = g_rand_new_with_seed(seed);
	const bool alone = g_rand_int_range(r, 0, 3) == 0;
	const char *optimizer = PICK(r, "cpu-step", "cpu-layer", "cpu-expert", "cpu-expert"), *gradient = PICK(r, "2", "4");
	const char *order = g_str_equal(optimizer, "cpu-expert") ? PICK(r, "arrival", "next-forward") : "arrival";
	const char *placement = alone ? "fixed" : PICK(r, "fixed", "lpt", "sticky");
	const char *scope = g_str_equal(placement, "lpt") ? "layer" : PICK(r, "layer", "next-layer");
	g_autofree char *policy =
	    g_strdup_printf("[policy]\nexpert_home = ssd\nexpert_parallel = %d\nplacement = %s\nupload_scope = %s\npinned_share = %s\n"
	                    "optimizer = %s\nupdate_order = %s\nssd_cache = %s\ngradient_bytes = %s\n",
	                    alone, placement, scope, PICK(r, "0", "0.4"), optimizer, order, PICK(r, "lru", "lfu-decay", "belady"), gradient);
	g_autofree char *element = g_strdup_printf("software.element_bytes=%s", PICK(r, "2", "4"));
	/* what four GPUs, sums of micro-batches and, where updates are put off, all gradients take, and little more */
	const bool late = !g_str_equal(optimizer, "cpu-expert") || !g_str_equal(order, "arrival");
	g_autofree char *room = g_strdup_printf("host.dram_gib=%.6f", 4 + g_rand_double_range(r, 0.0016, 0.0022) + (late ? 0.0009 : 0));
	g_autofree char *folder = g_dir_make_tmp("esmoe-XXXXXX", NULL);
	const struct scenario_options o = {.model = SMALL,
	                                   .machine = "host",
	                                   .policy = policy,
	                                   .gpus = 1 << g_rand_int_range(r, 0, 3),
	                                   .microbatches = 1 << g_rand_int_range(r, 0, 2),
	                                   .routing = PICK(r, "uniform", "zipf:1", "zipf:2:0.3"),
	                                   .seed = seed,
	                                   .set = SETS(element, room, "host.adam_gparams_per_s=0.001")};
	struct bed b = bed_new();
	struct steps t;
	steps_record(&t, &o, 4);
	const struct plan *plan = schedule_plan(t.schedule);
	const struct memory_case k = {.home = plan->home, .expert_parallel = plan->expert_parallel};
	const struct network *n = t.s->network;
	const struct machine *m = t.s->machine;
	struct store_layer layers[4];
	for (int l = 0; l < n->layers; l++)
		layers[l] = (struct store_layer){n->layer[l].experts, network_expert_params(n, &n->layer[l]), 0};
	const struct store_options so = {.home = HOME_SSD,
	                                 .element_bytes = m->element_bytes,
	                                 .gradient_bytes = m->element_bytes == 4 ? 4 : atoi(gradient),
	                                 .ssd_folder = folder,
	                                 .frames = footprint_cached_frames(n, m, t.s->policy, plan->memory.cache_bytes) +
	                                           footprint_frames(n, m, t.s->policy, &k).behind};
	struct store *store = store_new(b.device, layers, n->layers, &so, NULL);
	cr_assert(store);
	for (stage_id id = 0; id < t.stages->len; id++) {
		const struct stage *st = &g_array_index(t.stages, struct stage, id);
		GError *error = NULL;
		struct store_places at;
		if (stored[st->kind])
			cr_assert(store_launch(store, st->layer, st, &at, &error), "seed %u, stage %u of %u: %s\n%s", seed, id, t.stages->len,
			          error ? error->message : "", policy);
	}
	store_free(store);
	steps_clear(&t);
	device_close(&b.device, 1, b.group);
	g_rmdir(folder);
}

Test(frames, those_of_the_plan_are_enough_for_its_schedule)
{
	for (uint32_t seed = 0; seed < 300; seed++)
		launch_schedule(seed);
}
