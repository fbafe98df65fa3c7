#include "exec/exec.h"
#include "model/error.h"
#include "twin.h"

#include <criterion/criterion.h>
#include <glib/gstdio.h>

#define SETS(...) ((const char *const[]){__VA_ARGS__, NULL})
enum { STREAMS_MOST = 4 * GPU_STREAMS, LAYERS_MOST = 4 };

/* A run whose stages are issued one at a time, members of a collective together. */
struct bench {
	struct backend base;
	struct scenario *sc;
	struct schedule *schedule;
	struct device *device[4];
	struct device_group *group;
	struct device_stream *stream[STREAMS_MOST];
	struct device_event *event[STREAMS_MOST];
	struct data *data;
	struct engine *engine;
	char *folder;
	uint32_t waiting, loads[LAYERS_MOST][4 * 64];
};

static bool bench_launch(struct backend *b, const struct stage *st, GError **error)
{
	struct bench *x = (struct bench *)b;
	bool on_gpu = st->stream < (stream_id)x->sc->machine->gpus * GPU_STREAMS;
	if (!engine_issue(x->engine, st, on_gpu ? x->stream[st->stream] : NULL, error))
		return false;
	if (!on_gpu)
		return true;
	device_event_record(x->stream[st->stream], x->event[st->stream]);
	if (st->group && ++x->waiting < st->group_size)
		return true;
	int first = st->group ? st->rank - (int)st->group_size + 1 : st->rank;
	for (int g = first; g <= st->rank; g++)
		if (!device_event_wait(x->event[stream_of_gpu(g, st->stream % GPU_STREAMS)], error))
			return false;
	x->waiting = 0;
	return true;
}

static bool bench_wait(struct backend *b, stage_id id, GError **error)
{
	return true;
}

static bool bench_loads(struct backend *b, const struct gate *gate, uint32_t *tokens, GError **error)
{
	struct bench *x = (struct bench *)b;
	engine_loads(x->engine, gate->layer, gate->microbatch, tokens);
	memcpy(x->loads[gate->layer], tokens, sizeof(uint32_t) * (size_t)(x->sc->machine->gpus * gate->experts));
	return true;
}

static const struct backend_impl bench_impl = {.name = "bench", .launch = bench_launch, .wait = bench_wait, .loads = bench_loads};

#define TINY "[network]\nlayers = 2\nd_model = 8\nheads = 2\nvocab = 19\nseq_len = 6\nsequences = 4\nd_ff = 12\nexperts = 4\ntop_k = 2\n"
#define SHARED "shared = 1\nactivation = swiglu\ntied = true\n"
#define PARALLEL "parallel_dense = true\nkv_heads = 1\n"
#define MIXED "moe_every = 2\nshared = 2\n"
#define ES_MOE "[policy]\nexpert_home = dram\nplacement = lpt\noptimizer = cpu-expert\ngradient_bytes = 4\n"
#define STATIC "[policy]\nexpert_home = hbm\nexpert_compute = grouped\n"

struct asked {
	const char *model, *policy;
	int gpus, sequences, microbatches, seq_len;
	struct engine_options o;
	const char *const *set;
};

static void bench_open(struct bench *b, const struct asked *a)
{
	g_autoptr(GError) error = NULL;
	struct engine_options o = a->o;
	*b = (struct bench){.base.impl = &bench_impl};
	b->sc = scenario_new(&(struct scenario_options){.model = a->model,
	                                                .machine = "host",
	                                                .policy = a->policy,
	                                                .gpus = a->gpus,
	                                                .sequences = a->sequences,
	                                                .microbatches = a->microbatches,
	                                                .seq_len = a->seq_len,
	                                                .set = a->set},
	                     &error);
	cr_assert(b->sc, "%s", error->message);
	b->schedule = schedule_new(b->sc, NULL, &error);
	cr_assert(b->schedule, "%s", error->message);
	cr_assert(device_open("host", a->gpus, (uint64_t)1 << 26, b->device, &b->group, &error), "%s", error ? error->message : "");
	for (int i = 0; i < a->gpus * GPU_STREAMS; i++) {
		b->stream[i] = device_stream_new(b->device[i / GPU_STREAMS], "stream", &error);
		b->event[i] = device_event_new(b->device[i / GPU_STREAMS]);
	}
	b->data = data_open(NULL, b->sc->network->vocab, 7, &error);
	cr_assert(b->data, "%s", error ? error->message : "");
	b->folder = g_dir_make_tmp("esmoe-test-XXXXXX", NULL);
	o.ssd_folder = b->folder;
	o.seed = 5;
	b->engine = engine_new(b->device, b->group, b->sc, b->schedule, b->data, &o, &error);
	cr_assert(b->engine, "%s", error ? error->message : "");
}

static void bench_close(struct bench *b)
{
	engine_free(b->engine);
	for (int i = 0; i < b->sc->machine->gpus * GPU_STREAMS; i++) {
		device_stream_free(b->stream[i]);
		device_event_free(b->event[i]);
	}
	device_close(b->device, b->sc->machine->gpus, b->group);
	data_free(b->data);
	schedule_free(b->schedule);
	scenario_free(b->sc);
	cr_assert_eq(g_rmdir(b->folder), 0, "the folder holds files that nobody removed");
	g_free(b->folder);
}

static double bench_step(struct bench *b, uint64_t step)
{
	g_autoptr(GError) error = NULL;
	engine_begin(b->engine, step);
	cr_assert(schedule_step(b->schedule, &b->base, &error), "%s", error ? error->message : "");
	return engine_loss(b->engine);
}

enum { STEPS = 20 };

static void losses_of(const struct asked *a, double *loss)
{
	struct bench b;
	bench_open(&b, a);
	for (int i = 0; i < STEPS; i++)
		loss[i] = bench_step(&b, (uint64_t)i);
	bench_close(&b);
}

/* ---- against the twin ---- */

struct kept {
	struct twin *twin;
	GHashTable *gradients; /* name -> double array, as its tensor */
	GPtrArray *names;
	GArray *sizes; /* size_t */
};

static double *widened(const float *x, size_t n)
{
	double *y = g_new(double, n);
	for (size_t i = 0; i < n; i++)
		y[i] = (double)x[i];
	return y;
}

static bool keep(const char *name, size_t n, float *master, float *m, float *v, float *gradient, void *user, GError **error)
{
	struct kept *k = user;
	g_hash_table_insert(k->twin->tensors, g_strdup(name), widened(master, n));
	if (gradient)
		g_hash_table_insert(k->gradients, g_strdup(name), widened(gradient, n));
	g_ptr_array_add(k->names, g_strdup(name));
	g_array_append_val(k->sizes, n);
	return true;
}

/* The initial parameters are small and the norms' plain: larger and uneven ones show more. */
static bool stir(const char *name, size_t n, float *master, float *m, float *v, float *gradient, void *user, GError **error)
{
	uint32_t x = g_str_hash(name);
	for (size_t i = 0; i < n; i++) {
		x = x * 1664525 + 1013904223;
		master[i] += 0.5f * ((float)(x >> 8) / (float)(1 << 24) - 0.5f);
	}
	return true;
}

static void kept_init(struct kept *k, struct twin *t, struct bench *b, const struct asked *a)
{
	g_autoptr(GError) error = NULL;
	*t = (struct twin){.n = b->sc->network, .T = b->sc->seq_len, .balance = (double)a->o.balance, .z = (double)a->o.z};
	t->tensors = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, g_free);
	*k = (struct kept){t, g_hash_table_new_full(g_str_hash, g_str_equal, g_free, g_free), g_ptr_array_new_with_free_func(g_free),
	                   g_array_new(FALSE, FALSE, sizeof(size_t))};
	cr_assert(engine_each(b->engine, false, keep, k, &error));
}

static void kept_clear(struct kept *k)
{
	g_hash_table_unref(k->twin->tensors);
	g_hash_table_unref(k->gradients);
	g_ptr_array_unref(k->names);
	g_array_unref(k->sizes);
}

static double twin_loss(struct twin *t, const struct bench *b, uint64_t step)
{
	const struct plan *plan = schedule_plan(b->schedule);
	int parts = b->sc->machine->gpus * plan->microbatches, N = plan->microbatch * b->sc->seq_len;
	int32_t tokens[N], targets[N];
	t->ce_sum = t->aux_sum = t->z_sum = 0;
	t->dropped = 0;
	memset(t->asked, 0, sizeof(t->asked));
	memset(t->mass, 0, sizeof(t->mass));
	for (int i = 0; i < parts; i++) {
		cr_assert(data_batch(b->data, step, (uint64_t)(i * plan->microbatch), plan->microbatch, b->sc->seq_len, tokens, targets, NULL));
		t->microbatch = i % plan->microbatches;
		twin_part(t, tokens, targets, plan->microbatch);
	}
	t->ce_sum /= parts * N;
	t->aux_sum /= parts;
	t->z_sum /= parts;
	return t->ce_sum + t->balance * twin_balance(t, b->sc->machine->gpus, plan->microbatches) + t->z * t->z_sum;
}

static void check_gradients(const struct asked *asked)
{
	struct asked a = *asked;
	struct bench b;
	struct kept k;
	struct twin t;
	double balance, z, worst = 0;
	a.o = (struct engine_options){.grad_check = true, .balance = 0.3f, .z = 0.1f, .lr = 1};
	bench_open(&b, &a);
	cr_assert(engine_each(b.engine, true, stir, NULL, NULL));
	bench_step(&b, 3);
	double loss = bench_step(&b, 4); /* the first step's gradients must not stay */
	kept_init(&k, &t, &b, &a);
	twin_loss(&t, &b, 4);
	engine_aux(b.engine, &balance, &z);
	cr_assert_float_eq(loss, t.ce_sum, 1e-5, "loss %.9f, twin %.9f", loss, t.ce_sum);
	cr_assert_float_eq(balance, t.aux_sum, 1e-5, "balance %.9f, twin %.9f", balance, t.aux_sum);
	cr_assert_float_eq(z, t.z_sum, 1e-5, "z %.9f, twin %.9f", z, t.z_sum);
	for (guint i = 0; i < k.names->len; i++) {
		const char *name = g_ptr_array_index(k.names, i);
		double *x = g_hash_table_lookup(t.tensors, name), *g = g_hash_table_lookup(k.gradients, name), h = 1e-5;
		for (size_t j = 0; j < g_array_index(k.sizes, size_t, i); j += 5) {
			double kept = x[j];
			x[j] = kept + h;
			double up = twin_loss(&t, &b, 4);
			x[j] = kept - h;
			double expected = (up - twin_loss(&t, &b, 4)) / (2 * h);
			x[j] = kept;
			worst = fmax(worst, fabs(g[j] - expected));
			cr_assert_float_eq(g[j], expected, 2e-6 + 1e-4 * fabs(expected), "%s[%zu]: %.9f, central difference %.9f", name, j, g[j],
			                   expected);
		}
	}
	kept_clear(&k);
	bench_close(&b);
}

Test(engine, gradients_are_central_differences_with_experts_in_dram)
{
	check_gradients(&(struct asked){.model = TINY SHARED, .policy = ES_MOE, .gpus = 2, .sequences = 2});
}

Test(engine, gradients_are_central_differences_over_microbatches)
{
	check_gradients(&(struct asked){.model = TINY MIXED, .policy = ES_MOE, .gpus = 1, .microbatches = 2, .set = SETS("policy.placement=fixed")});
}

Test(engine, gradients_are_central_differences_with_experts_at_home)
{
	check_gradients(&(struct asked){.model = TINY PARALLEL, .policy = STATIC, .gpus = 2, .sequences = 2, .microbatches = 2});
}

Test(engine, gradients_are_central_differences_when_all_gpus_share_each_update)
{
	check_gradients(&(struct asked){.model = TINY,
	                                .policy = ES_MOE,
	                                .gpus = 2,
	                                .sequences = 2,
	                                .microbatches = 2,
	                                .set = SETS("policy.expert_parallel=1", "policy.placement=fixed", "policy.optimizer=cpu-step")});
}

Test(engine, dropped_tokens_are_exactly_the_overflow)
{
	/* 12 tokens of 2 choices on 4 experts: 6 a piece, capacity 4 */
	for (int gpus = 1; gpus <= 2; gpus++) {
		const struct asked a = {.model = TINY,
		                        .policy = STATIC,
		                        .gpus = gpus,
		                        .sequences = 2,
		                        .set = SETS("policy.dispatch=padded", "policy.capacity_factor=0.66")};
		struct bench b;
		struct kept k;
		struct twin t;
		bench_open(&b, &a);
		cr_assert(engine_each(b.engine, true, stir, NULL, NULL));
		kept_init(&k, &t, &b, &a);
		t.capacity = 4;
		double loss = bench_step(&b, 0);
		twin_loss(&t, &b, 0);
		cr_assert_gt(t.dropped, 0);
		cr_assert_float_eq(loss, t.ce_sum, 1e-5, "loss %.9f, twin %.9f", loss, t.ce_sum);
		kept_clear(&k);
		bench_close(&b);
	}
}

/* ---- one policy against another ---- */

#define LARGER                                                                                                                                       \
	"[network]\nlayers = 3\nd_model = 16\nheads = 2\nvocab = 64\nseq_len = 32\nsequences = 8\nd_ff = 40\nexperts = 8\ntop_k = 2\nshared = 1\n"   \
	"dense_first = 1\n"
#define RATE                                                                                                                                         \
	{                                                                                                                                            \
		.lr = 3e-3f, .balance = 0.01f, .z = 1e-3f                                                                                            \
	}

static void check_same(const struct asked *a, const struct asked *b, double tolerance)
{
	double x[STEPS], y[STEPS];
	losses_of(a, x);
	losses_of(b, y);
	for (int i = 0; i < STEPS; i++)
		cr_assert(fabs(x[i] - y[i]) <= tolerance * fabs(x[i]), "step %d: %.9f and %.9f with %s %s %s", i, x[i], y[i], b->policy,
		          b->set ? b->set[0] : "", b->set && b->set[0] ? b->set[1] : "");
	cr_assert_lt(x[STEPS - 1], x[0], "nothing was learned");
}

static void check_same_bits(int gpus, int microbatches)
{
	const char *const *sets[] = {
	    SETS("policy.pinned_share=0"),
	    SETS("policy.pinned_share=0.5"),
	    SETS("policy.pinned_share=0.25", "policy.placement=sticky", "policy.upload_scope=next-layer", "policy.upload_ahead=3"),
	    SETS("policy.optimizer=cpu-step", "policy.upload_ahead=0"),
	    SETS("policy.optimizer=cpu-layer", "policy.placement=fixed"),
	    SETS("policy.expert_home=ssd"),
	    SETS("policy.expert_home=ssd", "policy.pinned_share=0.5", "host.dram_gib=4.00012"),
	    SETS("machine.gpus_per_node=1", "pcie.gpus_per_root=1", "policy.pinned_share=0.5"),
	    SETS("machine.gpus_per_node=1", "pcie.gpus_per_root=1", "policy.expert_home=ssd", "host.dram_gib=4.00012"),
	};
	struct asked base = {.model = LARGER, .policy = STATIC, .gpus = gpus, .sequences = 8 / gpus, .microbatches = microbatches, .o = RATE};
	struct asked other = base;
	other.set = SETS("policy.expert_compute=sequential");
	check_same(&base, &other, 0);
	other.policy = ES_MOE;
	for (size_t i = 0; i < G_N_ELEMENTS(sets); i++) {
		other.set = sets[i];
		check_same(&base, &other, 0);
	}
}

Test(engine, one_gpu_has_the_same_bits_wherever_experts_live)
{
	check_same_bits(1, 1);
}

Test(engine, two_gpus_have_the_same_bits_wherever_experts_live)
{
	check_same_bits(2, 1);
}

Test(engine, microbatches_have_the_same_bits_wherever_experts_live)
{
	check_same_bits(2, 2);
}

Test(engine, losses_do_not_depend_on_gpus_microbatches_and_exchanges)
{
	const char *const *const sets[] = {
	    SETS("policy.pipeline_degree=4"),
	    SETS("policy.dispatch=padded", "policy.pipeline_degree=2"),
	    SETS("policy.dispatch=mask"),
	    SETS("policy.checkpoint=none"),
	    SETS("policy.checkpoint=keep-collectives"),
	    SETS("policy.expert_parallel=1"),
	    SETS("policy.expert_parallel=1", "policy.expert_home=dram", "policy.gradient_bytes=4"),
	};
	/* the balance is that of each micro-batch, so that it depends on their number by intent */
	struct asked one = {.model = LARGER, .policy = STATIC, .gpus = 1, .sequences = 8, .microbatches = 1, .o = {.lr = 3e-3f}}, other = one;
	for (int gpus = 1; gpus <= 4; gpus *= 2) {
		other.gpus = gpus;
		other.sequences = 8 / gpus;
		other.microbatches = gpus == 4 ? 1 : 2;
		other.set = NULL;
		check_same(&one, &other, 1e-5);
		for (size_t i = 0; gpus > 1 && i < G_N_ELEMENTS(sets); i++) {
			other.set = sets[i];
			/* sums in another order: a last bit may decide a token's expert, and the losses part a little */
			check_same(&one, &other, 1e-4);
		}
	}
}

Test(engine, experts_are_balanced_over_the_tokens_of_all_gpus)
{
	struct asked one = {
	    .model = LARGER, .policy = STATIC, .gpus = 1, .sequences = 8, .microbatches = 1, .o = {.lr = 3e-3f, .balance = 0.01f, .z = 1e-3f}};
	struct asked other = one;
	for (int gpus = 2; gpus <= 4; gpus *= 2) {
		other.gpus = gpus;
		other.sequences = 8 / gpus;
		check_same(&one, &other, 1e-5);
	}
}

/* Launchers, streams and workers at the same time, a step running into the next: what the stages' order leaves open must not matter. */
static void check_threads(const struct asked *a)
{
	double expected[STEPS];
	struct bench b;
	g_autoptr(GError) error = NULL;
	losses_of(a, expected);
	bench_open(&b, a);
	g_autoptr(backend) exec = exec_new(b.device, a->gpus, b.engine, b.sc->machine, &error);
	cr_assert(exec, "%s", error ? error->message : "");
	for (int i = 0; i < STEPS; i++) {
		engine_begin(b.engine, (uint64_t)i);
		cr_assert(schedule_step(b.schedule, exec, &error), "%s", error ? error->message : "");
		if (i % 2 == 0)
			continue;
		cr_assert(schedule_wait(b.schedule, exec, &error), "%s", error ? error->message : "");
		cr_assert_eq(engine_loss(b.engine), expected[i], "step %d: %.9f, one stage at a time %.9f", i, engine_loss(b.engine), expected[i]);
	}
	g_clear_pointer(&exec, backend_free);
	bench_close(&b);
}

Test(engine, threads_have_the_same_bits_as_one_stage_at_a_time)
{
	struct asked a = {.model = LARGER, .policy = STATIC, .gpus = 2, .sequences = 4, .microbatches = 2, .o = RATE};
	check_threads(&a);
	a.set = SETS("policy.pipeline_degree=4", "policy.expert_compute=sequential");
	check_threads(&a);
	a.set = SETS("policy.dispatch=padded", "policy.capacity_factor=1.25", "policy.expert_parallel=1");
	check_threads(&a);
	a.set = SETS("policy.checkpoint=keep-collectives");
	check_threads(&a);
	a.policy = ES_MOE;
	a.set = SETS("policy.pinned_share=0.25", "policy.upload_ahead=2");
	check_threads(&a);
	a.set = SETS("policy.expert_home=ssd", "policy.pinned_share=0.5", "host.dram_gib=4.00012");
	check_threads(&a);
	a.set = SETS("policy.expert_parallel=1", "policy.placement=fixed", "policy.optimizer=cpu-step");
	check_threads(&a);
	a.microbatches = 1;
	a.set = SETS("policy.placement=sticky", "policy.upload_scope=next-layer", "policy.upload_ahead=3", "policy.optimizer=cpu-layer");
	check_threads(&a);
}

/* ---- edges ---- */

/* u keeps a bias of one, of which only the given expert's column makes anything. */
static bool send_all(const char *name, size_t n, float *master, float *m, float *v, float *gradient, void *user, GError **error)
{
	if (strstr(name, "norm2.bias"))
		for (size_t i = 0; i < n; i++)
			master[i] = 1;
	if (strstr(name, ".gate"))
		for (size_t i = 0; i < n; i++)
			master[i] = i % 4 == 2 ? 4 : 0;
	return true;
}

static void all_to_one(const char *policy, const char *const *set, double *loss)
{
	const struct asked a = {.model = TINY, .policy = policy, .gpus = 2, .sequences = 2, .microbatches = 1, .o = {.lr = 1e-3f}, .set = set};
	struct bench b;
	bench_open(&b, &a);
	cr_assert(engine_each(b.engine, true, send_all, NULL, NULL));
	for (int i = 0; i < STEPS; i++)
		loss[i] = bench_step(&b, (uint64_t)i);
	for (int g = 0; g < 2; g++)
		for (int e = 0; e < 4; e++)
			cr_assert_eq(b.loads[0][g * 4 + e], e == 2 ? 12 : 0, "GPU %d, expert %d: %u tokens", g, e, b.loads[0][g * 4 + e]);
	bench_close(&b);
}

Test(engine, one_expert_may_take_every_token)
{
	const char *const *top_1[] = {SETS("network.top_k=1"), SETS("network.top_k=1", "policy.pipeline_degree=2"),
	                              SETS("network.top_k=1", "policy.expert_parallel=1")};
	double first[STEPS], loss[STEPS];
	all_to_one(STATIC, top_1[0], first);
	all_to_one(ES_MOE, top_1[0], loss);
	cr_assert_arr_eq(first, loss, sizeof(first));
	for (int i = 1; i < 3; i++) {
		all_to_one(STATIC, top_1[i], loss);
		for (int s = 0; s < STEPS; s++)
			cr_assert_float_eq(loss[s], first[s], 1e-5 * first[s]);
	}
}

Test(engine, a_sequence_may_be_one_token)
{
	struct asked a = {.model = TINY, .policy = STATIC, .gpus = 2, .sequences = 1, .seq_len = 1, .o = RATE}, b = a;
	double x[STEPS], y[STEPS];
	b.policy = ES_MOE;
	losses_of(&a, x);
	losses_of(&b, y);
	cr_assert_arr_eq(x, y, sizeof(x));
}

Test(engine, every_token_is_counted_once_a_choice)
{
	struct bench b;
	bench_open(&b, &(struct asked){.model = TINY, .policy = ES_MOE, .gpus = 2, .sequences = 2, .o = RATE});
	bench_step(&b, 0);
	for (int layer = 0; layer < 2; layer++)
		for (int g = 0; g < 2; g++) {
			uint32_t sum = 0;
			for (int e = 0; e < 4; e++)
				sum += b.loads[layer][g * 4 + e];
			cr_assert_eq(sum, 2 * 6 * 2);
		}
	bench_close(&b);
}

Test(engine, what_it_takes_is_known_before)
{
	const char *const policies[] = {STATIC,
	                                ES_MOE,
	                                STATIC "checkpoint = none\n",
	                                STATIC "checkpoint = keep-collectives\n",
	                                STATIC "expert_parallel = 1\n",
	                                STATIC "dispatch = padded\n",
	                                ES_MOE "pinned_share = 0.5\n"};
	for (size_t i = 0; i < G_N_ELEMENTS(policies); i++) {
		struct bench b;
		bench_open(&b, &(struct asked){.model = LARGER, .policy = policies[i], .gpus = 2, .sequences = 4, .microbatches = 2});
		uint64_t bytes = engine_bytes(device_info(b.device[0]), b.sc, b.schedule), used = device_used_bytes(b.device[1]);
		cr_assert_eq(bytes, used, "%s: %lu bytes said, %lu taken", policies[i], bytes, used);
		bench_close(&b);
	}
}

static void refused(const char *model, const char *policy, int gpus, int code, const char *word)
{
	g_autoptr(GError) error = NULL;
	struct device *devices[4];
	struct device_group *group;
	g_autoptr(scenario) sc = scenario_new(&(struct scenario_options){.model = model, .machine = "host", .policy = policy, .gpus = gpus}, &error);
	cr_assert(sc, "%s", error ? error->message : "");
	g_autoptr(schedule) s = schedule_new(sc, NULL, &error);
	cr_assert(s, "%s", error ? error->message : "");
	cr_assert(device_open("host", gpus, code == ESMOE_ERROR_FIT ? 4096 : 1 << 26, devices, &group, &error));
	cr_assert_null(engine_new(devices, group, sc, s, NULL, &(struct engine_options){0}, &error));
	cr_assert(g_error_matches(error, ESMOE_ERROR, code) && strstr(error->message, word), "%s", error->message);
	device_close(devices, gpus, group);
}

Test(engine, what_cannot_be_run_is_refused)
{
	refused(TINY "attention_every = 2\n", STATIC, 1, ESMOE_ERROR_INPUT, "Mamba");
	refused(TINY "encoder_decoder = true\n", STATIC, 1, ESMOE_ERROR_INPUT, "encoder");
	refused(TINY, STATIC "expert_parallel = 2\n", 4, ESMOE_ERROR_INPUT, "expert_parallel");
	refused("[network]\nlayers = 2\nd_model = 8\nheads = 2\nvocab = 19\nexperts = 2\n", STATIC, 4, ESMOE_ERROR_INPUT, "fewer experts");
	refused(TINY, STATIC "tensor_parallel = 2\n", 4, ESMOE_ERROR_INPUT, "policy.tensor_parallel");
	refused(TINY, STATIC "zero_stage = 1\n", 4, ESMOE_ERROR_INPUT, "policy.zero_stage");
	refused(TINY, STATIC "microbatch_order = vertical\n", 1, ESMOE_ERROR_INPUT, "policy.microbatch_order");
	refused(TINY, STATIC "dense_optimizer = cpu\n", 1, ESMOE_ERROR_INPUT, "policy.dense_optimizer");
	refused(TINY, STATIC "gradient_cast = tiled\n", 1, ESMOE_ERROR_INPUT, "policy.gradient_cast");
	refused(TINY, STATIC "checkpoint = layer\n", 1, ESMOE_ERROR_INPUT, "policy.checkpoint");
	refused(TINY, STATIC, 1, ESMOE_ERROR_FIT, "parameters");
}
