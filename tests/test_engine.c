/* The engine against a twin in plain fp64: losses, gradients by central differences, what is dropped; and its edges. */
#include "bench.h"
#include "model/error.h"
#include "twin.h"

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
