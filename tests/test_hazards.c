/* Hazards of a schedule: two stages that touch the same memory, one of them writing, must be ordered by streams, predecessors and groups, whatever
 * the time they take; and what an expert computes with is what was uploaded last. Checked by vector clocks, one entry a stream, over random policies.
 */
#include "steps.h"

/* Memory that stages share. Slots of a GPU in HBM: parameters and gradients of experts; blocks of an expert in DRAM: parameters, gradient, state. */
enum memory_kind { SLOT, GRADIENT_SLOT, PARAMETERS, GRADIENT, STATE, FILE_PLACE, MEMORY_KINDS };
enum { OWNERS = 512, PLACES = 64 };

struct place {
	stage_id writer;       /* the last one */
	stage_id reader[64];   /* since, the last of each stream */
	int32_t layer, expert; /* what a slot holds */
};

struct hazards {
	const struct steps *t;
	int streams;
	uint32_t *clock;  /* (stages, streams): of each stream, how many stages have ended before this one starts */
	uint32_t *number; /* (stages): on its stream, from 1 */
	struct place *place;
};

static uint32_t *clock_of(const struct hazards *h, stage_id id)
{
	return h->clock + (size_t)id * (size_t)h->streams;
}

static void join(const struct hazards *h, uint32_t *clock, const struct stage *before)
{
	const uint32_t *other = clock_of(h, before->id);
	for (int i = 0; i < h->streams; i++)
		clock[i] = MAX(clock[i], other[i]);
	clock[before->stream] = MAX(clock[before->stream], h->number[before->id]);
}

/* Members of a group start together: behind the predecessors of all. They come one after another. */
static void run_clocks(struct hazards *h)
{
	g_autofree stage_id *last = g_new(stage_id, h->streams);
	memset(last, 0xff, sizeof(stage_id) * (size_t)h->streams);
	for (stage_id id = 0; id < h->t->stages->len; id++) {
		const struct stage *st = stage_at(h->t, id);
		uint32_t *clock = clock_of(h, id);
		h->number[id] = last[st->stream] == STAGE_NONE ? 1 : h->number[last[st->stream]] + 1;
		if (last[st->stream] != STAGE_NONE)
			join(h, clock, stage_at(h->t, last[st->stream]));
		for (int i = 0; i < st->n_preds; i++)
			join(h, clock, stage_at(h->t, st->preds[i]));
		last[st->stream] = id;
		if (!st->group || st->group_size < 2 || (id + 1 < h->t->stages->len && stage_at(h->t, id + 1)->group == st->group))
			continue;
		stage_id first = id + 1 - st->group_size;
		for (stage_id member = first; member < id; member++)
			for (int i = 0; i < h->streams; i++)
				clock[i] = MAX(clock[i], clock_of(h, member)[i]);
		for (stage_id member = first; member < id; member++)
			memcpy(clock_of(h, member), clock, sizeof(uint32_t) * (size_t)h->streams);
	}
}

static void check_before(const struct hazards *h, stage_id a, const struct stage *b, const char *what)
{
	if (a == STAGE_NONE)
		return;
	const struct stage *st = stage_at(h->t, a);
	cr_assert(clock_of(h, b->id)[st->stream] >= h->number[a],
	          "%s: stage %u (%s %s of layer %d expert %d on stream %u) may run beside %u (%s %s of layer %d expert %d on stream %u)", what, b->id,
	          stage_pass_name(b->pass), stage_kind_name(b->kind), b->layer, b->expert, b->stream, a, stage_pass_name(st->pass),
	          stage_kind_name(st->kind), st->layer, st->expert, st->stream);
}

static struct place *place_at(const struct hazards *h, enum memory_kind kind, int owner, int i)
{
	cr_assert(owner < OWNERS && i < PLACES);
	return &h->place[((size_t)kind * OWNERS + (size_t)owner) * PLACES + (size_t)i];
}

static void reads(const struct hazards *h, struct place *p, const struct stage *st, const char *what)
{
	check_before(h, p->writer, st, what);
	p->reader[st->stream] = st->id;
}

static void writes(const struct hazards *h, struct place *p, const struct stage *st, const char *what)
{
	check_before(h, p->writer, st, what);
	for (int i = 0; i < h->streams; i++)
		check_before(h, p->reader[i], st, what);
	memset(p->reader, 0xff, sizeof p->reader);
	p->writer = st->id;
	p->layer = st->layer;
	p->expert = st->expert;
}

static void visit(const struct hazards *h, const struct stage *st, int experts)
{
	const int block = st->layer * experts + st->expert;
	const bool sharded = schedule_plan(h->t->schedule)->expert_parallel == 1;
	const int shard = sharded ? st->rank : 0;
	struct place *p;
	switch (st->kind) {
	case STAGE_UPLOAD:
		reads(h, place_at(h, PARAMETERS, block, 0), st, "parameters in DRAM");
		writes(h, place_at(h, SLOT, st->rank, st->slot), st, "slot");
		break;
	case STAGE_EXPERT:
		p = place_at(h, SLOT, st->rank, st->slot);
		reads(h, p, st, "slot");
		cr_assert(p->layer == st->layer && p->expert == st->expert, "stage %u computes expert %d of layer %d with expert %d of layer %d",
		          st->id, st->expert, st->layer, p->expert, p->layer);
		if (st->pass == PASS_BACKWARD)
			writes(h, place_at(h, GRADIENT_SLOT, st->rank, st->part), st, "gradient slot");
		break;
	case STAGE_REDUCE_SCATTER:
		writes(h, place_at(h, GRADIENT_SLOT, st->rank, st->part), st, "gradient slot");
		break;
	case STAGE_DOWNLOAD:
		reads(h, place_at(h, GRADIENT_SLOT, st->rank, st->slot), st, "gradient slot");
		writes(h, place_at(h, GRADIENT, block, shard), st, "gradient in DRAM");
		break;
	case STAGE_ACCUMULATE:
		reads(h, place_at(h, GRADIENT, block, shard), st, "gradient in DRAM");
		break;
	case STAGE_ADAM:
		reads(h, place_at(h, GRADIENT, block, shard), st, "gradient in DRAM");
		writes(h, place_at(h, PARAMETERS, block, 0), st, "parameters in DRAM");
		writes(h, place_at(h, STATE, block, 0), st, "state");
		break;
	case STAGE_SSD_READ: /* parameters without bytes are cast from the state in DRAM */
		if (st->part || st->bytes)
			reads(h, place_at(h, FILE_PLACE, block, 0), st, "file");
		else
			reads(h, place_at(h, STATE, block, 0), st, "state");
		writes(h, place_at(h, st->part ? STATE : PARAMETERS, block, 0), st, st->part ? "state" : "parameters in DRAM");
		break;
	case STAGE_SSD_WRITE: /* the block leaves DRAM */
		if (st->part)
			writes(h, place_at(h, FILE_PLACE, block, 0), st, "file");
		writes(h, place_at(h, st->part ? STATE : PARAMETERS, block, 0), st, st->part ? "state" : "parameters in DRAM");
		break;
	default:
		break;
	}
}

static void check_policy(const struct scenario_options *o)
{
	struct steps t;
	steps_record(&t, o, 3);
	struct hazards h = {.t = &t, .streams = stream_count(t.s->machine)};
	h.clock = g_new0(uint32_t, (size_t)t.stages->len * (size_t)h.streams);
	h.number = g_new0(uint32_t, t.stages->len);
	h.place = g_new(struct place, MEMORY_KINDS * OWNERS * PLACES);
	memset(h.place, 0xff, sizeof(struct place) * MEMORY_KINDS * OWNERS * PLACES);
	run_clocks(&h);
	for (stage_id id = 0; id < t.stages->len; id++)
		visit(&h, stage_at(&t, id), t.s->network->layer[t.s->network->layers - 1].experts);
	g_free(h.clock);
	g_free(h.number);
	g_free(h.place);
	steps_clear(&t);
}

#define PICK(random, ...)                                                                                                                            \
	((const char *const[]){__VA_ARGS__})[g_rand_int_range(random, 0, (gint32)G_N_ELEMENTS(((const char *const[]){__VA_ARGS__})))]

static void check_seed(uint32_t seed)
{
	g_autoptr(GRand) r = g_rand_new_with_seed(seed);
	const int gpus = 1 << g_rand_int_range(r, 0, 3), microbatches = g_rand_int_range(r, 1, 4);
	const bool alone = g_rand_int_range(r, 0, 4) == 0, ssd = g_rand_boolean(r);
	const char *placement = alone ? "fixed" : PICK(r, "fixed", "lpt", "sticky");
	const char *optimizer = PICK(r, "cpu-step", "cpu-layer", "cpu-expert", "cpu-expert");
	const char *order = g_str_equal(optimizer, "cpu-expert") ? PICK(r, "arrival", "next-forward") : "arrival";
	const char *scope = g_str_equal(placement, "lpt") ? "layer" : PICK(r, "layer", "next-layer");
	g_autofree char *policy = g_strdup_printf(
	    "[policy]\nexpert_home = %s\nexpert_parallel = %d\nplacement = %s\nupload_scope = %s\nupload_ahead = %s\n"
	    "pinned_share = %s\noptimizer = %s\nupdate_order = %s\nssd_cache = %s\ncheckpoint = %s\nmicrobatch_order = %s\nreduction_stream = %s\n"
	    "cache_threshold = %s\ncache_decay_steps = %s\n",
	    ssd ? "ssd" : "dram", alone ? 1 : 0, placement, scope, PICK(r, "0", "1", "2", "4"), PICK(r, "0", "0.3", "0.6"), optimizer, order,
	    PICK(r, "lru", "lfu-decay", "belady"), PICK(r, "full", "none", "layer"), PICK(r, "horizontal", "vertical"), PICK(r, "shared", "own"),
	    PICK(r, "0", "1.5", "3"), PICK(r, "auto", "1"));
	const struct scenario_options o = {
	    .model = ROUND_NETWORK,
	    .machine = ROUND_MACHINE,
	    .policy = policy,
	    .gpus = gpus,
	    .sequences = microbatches,
	    .microbatches = microbatches,
	    .routing = PICK(r, "uniform", "zipf:1", "zipf:2:0.3"),
	    .seed = seed,
	    .set = SETS("network.layers=4", "network.experts=13", "network.seq_len=8", ssd ? "host.dram_gib=4" : "host.dram_gib=4000")};
	check_policy(&o);
}

/* Pinned experts only on demand: a ring's are in HBM before the first stage. */
static void check_inference(uint32_t seed)
{
	g_autoptr(GRand) r = g_rand_new_with_seed(seed);
	const int gpus = 1 << g_rand_int_range(r, 0, 3), microbatches = g_rand_int_range(r, 1, 4);
	const bool alone = g_rand_int_range(r, 0, 4) == 0, ssd = g_rand_boolean(r), ring = g_rand_boolean(r);
	g_autofree char *policy = g_strdup_printf("[policy]\nexpert_home = %s\nexpert_parallel = %d\nplacement = %s\nupload_scope = %s\n"
	                                          "upload_ahead = %s\nupload_ahead_layers = %s\npinned_share = %s\nssd_cache = %s\n",
	                                          ssd ? "ssd" : "dram", alone ? 1 : 0, alone || ring ? "fixed" : PICK(r, "fixed", "lpt", "sticky"),
	                                          ring ? "next-layer" : "layer", PICK(r, "0", "1", "2", "4"), PICK(r, "0", "1", "2", "9"),
	                                          ring ? "0" : PICK(r, "0", "0.3", "0.6"), PICK(r, "lru", "lfu-decay", "belady"));
	const struct scenario_options o = {
	    .model = ROUND_NETWORK,
	    .machine = ROUND_MACHINE,
	    .policy = policy,
	    .workload = "inference",
	    .generate = 3,
	    .gpus = gpus,
	    .sequences = microbatches,
	    .microbatches = microbatches,
	    .routing = PICK(r, "uniform", "zipf:1", "zipf:2:0.3"),
	    .seed = seed,
	    .set = SETS("network.layers=4", "network.experts=13", "network.seq_len=8", ssd ? "host.dram_gib=1" : "host.dram_gib=4000")};
	check_policy(&o);
}

Test(hazards, stages_of_an_inference_that_share_memory_are_ordered)
{
	for (uint32_t seed = 0; seed < 300; seed++)
		check_inference(seed);
}

Test(hazards, stages_that_share_memory_are_ordered)
{
	for (uint32_t seed = 0; seed < 300; seed++)
		check_seed(seed);
}
