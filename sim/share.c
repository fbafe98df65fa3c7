/* Running stages as fluids. Each asks for a share of some resources when it runs at rate 1; a resource whose users together ask for more than it
 * has is crowded. Only crowded resources matter:
 *
 *   nobody crowded (the usual case)      start and stop are a few integer additions, the rate is 1
 *   a crowded resource gains or loses    gather what is connected to it through crowded resources, and fill that part alone:
 *
 *       rate                             all rates rise together like water; where a resource is full (r1), its users stay;
 *        |   ___________ c (r2 full)     the others rise on, up to their cap
 *        |  / _______ a, b (r1 full)
 *        |_/_/____________ water level
 *
 * What a flow holds is taken before the water rises, and does not stop it; who asks for what is held entirely waits. Loads are kept as integers (ROOM
 * is the whole resource), so that adding and removing leaves no dust and the order of events cannot matter. Under the measured rule a user of host
 * DRAM has a cap below 1 that depends on who else uses that DRAM (contention.h); it stands in for the capacity of the DRAM. A flow that stops and
 * starts again at one instant, as in a queue of uploads, changes nothing for anybody and costs nothing. */
#include "share.h"
#include "contention.h"

#include <math.h>

#define ROOM (INT64_C(1) << 40)
#define FULL (ROOM + ROOM / 1000000000) /* rounding of demands must not crowd a resource */
#define LEAST_RATE 1e-6                 /* a table that says 0, and what is held entirely, must not stop time */

/* A profile's demands as shares of the capacities. */
struct ask {
	uint32_t n, class, node;
	double threads, solo; /* Adam: GB/s of DRAM alone, by the table */
	struct part {
		int64_t load;
		double share;
		uint32_t pool;
		bool held;
	} part[PROFILE_DEMANDS];
};

struct user {
	uint32_t flow, demand;
};

/* A resource and those who use it. */
struct pool {
	int64_t load; /* of all users at their caps */
	struct user *users;
	uint32_t n, room;
	uint32_t gathered, basin; /* the last gathering that met it, and its place there */
	bool dirty;
};

struct flow {
	double rate, cap, told;
	uint32_t profile;
	uint32_t seat[PROFILE_DEMANDS + 1]; /* its place among the users; the last one among the node's users of DRAM */
	uint32_t gathered, riser;           /* as a pool */
	bool running, leaving, fresh, listed;
};

/* A pool while the water rises: taken by users that stay or hold, asked per rate by users that rise. */
struct basin {
	double taken, rising;
	uint32_t n_rising, pool;
};

/* A flow while the water rises, and what it asks of crowded pools. */
struct riser {
	double cap;
	uint32_t flow, n;
	bool rising;
	uint32_t basin[PROFILE_DEMANDS];
	double share[PROFILE_DEMANDS];
};

/* Users of one node's DRAM, under the measured rule. */
struct dram {
	struct pool users;
	double threads, solo;
	int n[4];      /* by flow_class */
	double cap[4]; /* by flow_class */
	bool dirty;
};

struct list {
	uint32_t *v, n, room;
};

struct share {
	struct ask *asks;
	struct pool *pools;
	struct dram *drams;
	struct contention_rule *contention; /* NULL: max-min alone */
	struct flow *flows;
	uint32_t n_flows, n_pools, n_drams, n_profiles, gathering;
	double copy_solo[4]; /* by flow_class: GB/s alone, by the table */
	struct list leaving, dirty_pools, dirty_drams, candidates, changed;
	/* the part of the machine that is being filled */
	struct basin *basins;
	double *full_at;      /* (basins) the level at which each is full */
	struct riser *risers; /* room for all flows */
	uint32_t n_basins, n_risers, n_rising;
};

static inline void list_add(struct list *list, uint32_t value)
{
	if (list->n == list->room) {
		list->room = MAX(16, list->room * 2);
		list->v = g_renew(uint32_t, list->v, list->room);
	}
	list->v[list->n++] = value;
}

static void ask_init(struct ask *ask, const struct share *share, const struct resources *r, const struct profile *profile,
                     uint32_t first_node_resource)
{
	bool by_table = share->contention && profile->flow_class != FLOW_OTHER;
	ask->class = by_table ? (uint32_t)profile->flow_class : FLOW_OTHER;
	ask->node = (uint32_t)profile->node;
	ask->threads = profile->flow_class == FLOW_ADAM ? MAX(profile->threads, 1) : 0;
	if (share->contention)
		ask->solo = contention_rates(share->contention, ask->threads, 0, 0).adam;
	for (int i = 0; i < profile->n_demands; i++) {
		uint32_t pool = profile->demand[i].resource;
		g_assert(r->capacity[pool] > 0);
		double part = profile->demand[i].amount / r->capacity[pool];
		bool dram = pool >= first_node_resource && (pool - first_node_resource) % NODE_RESOURCES == RES_DRAM;
		if (part <= 0 || (by_table && dram))
			continue;
		ask->part[ask->n++] = (struct part){.load = llround(part * ROOM), .share = part, .pool = pool, .held = profile->demand[i].held};
	}
}

struct share *share_new(const struct machine *m, const struct resources *r)
{
	struct share *share = g_new0(struct share, 1);
	share->contention = contention_new(m);
	share->n_pools = (uint32_t)r->n_resources;
	share->n_drams = (uint32_t)machine_nodes(m);
	share->n_profiles = (uint32_t)r->n_profiles;
	share->pools = g_new0(struct pool, share->n_pools);
	share->drams = g_new0(struct dram, share->n_drams);
	share->asks = g_new0(struct ask, share->n_profiles);
	share->basins = g_new(struct basin, share->n_pools);
	share->full_at = g_new(double, share->n_pools);
	if (share->contention) {
		share->copy_solo[FLOW_UP] = contention_rates(share->contention, 0, 1, 0).up;
		share->copy_solo[FLOW_DOWN] = contention_rates(share->contention, 0, 0, 1).down;
	}
	for (uint32_t i = 0; i < share->n_drams; i++)
		for (int class = 0; class < 4; class ++)
			share->drams[i].cap[class] = 1;
	uint32_t first_node_resource = share->n_pools - share->n_drams * NODE_RESOURCES;
	for (uint32_t i = 0; i < share->n_profiles; i++)
		ask_init(&share->asks[i], share, r, &r->profile[i], first_node_resource);
	return share;
}

void share_free(struct share *share)
{
	if (!share)
		return;
	for (uint32_t i = 0; i < share->n_pools; i++)
		g_free(share->pools[i].users);
	for (uint32_t i = 0; i < share->n_drams; i++)
		g_free(share->drams[i].users.users);
	struct list *lists[] = {&share->leaving, &share->dirty_pools, &share->dirty_drams, &share->candidates, &share->changed};
	for (size_t i = 0; i < G_N_ELEMENTS(lists); i++)
		g_free(lists[i]->v);
	contention_free(share->contention);
	g_free(share->asks);
	g_free(share->pools);
	g_free(share->drams);
	g_free(share->flows);
	g_free(share->basins);
	g_free(share->full_at);
	g_free(share->risers);
	g_free(share);
}

static inline int64_t load_of(const struct ask *ask, uint32_t demand, double cap)
{
	return cap == 1 || ask->part[demand].held ? ask->part[demand].load : (int64_t)(cap * (double)ask->part[demand].load);
}

/* A pool whose users must be looked at again is dirty: it is crowded, or it just ceased to be. */
static inline void pool_load(struct share *share, uint32_t i, int64_t more)
{
	struct pool *pool = &share->pools[i];
	bool crowded = pool->load > FULL;
	pool->load += more;
	if ((crowded || pool->load > FULL) && !pool->dirty) {
		pool->dirty = true;
		list_add(&share->dirty_pools, i);
	}
}

static inline void dram_touch(struct share *share, uint32_t node)
{
	if (!share->drams[node].dirty) {
		share->drams[node].dirty = true;
		list_add(&share->dirty_drams, node);
	}
}

static inline void candidate(struct share *share, uint32_t flow)
{
	if (!share->flows[flow].listed) {
		share->flows[flow].listed = true;
		list_add(&share->candidates, flow);
	}
}

static inline uint32_t pool_enter(struct pool *pool, uint32_t flow, uint32_t demand)
{
	if (pool->n == pool->room) {
		pool->room = MAX(4, pool->room * 2);
		pool->users = g_renew(struct user, pool->users, pool->room);
	}
	pool->users[pool->n] = (struct user){flow, demand};
	return pool->n++;
}

static inline void pool_leave(struct share *share, struct pool *pool, uint32_t seat)
{
	struct user last = pool->users[--pool->n];
	pool->users[seat] = last;
	share->flows[last.flow].seat[last.demand] = seat;
}

static void dram_count(struct share *share, const struct ask *ask, int sign)
{
	struct dram *dram = &share->drams[ask->node];
	dram->n[ask->class] += sign;
	if (ask->class == FLOW_ADAM) {
		dram->threads += sign * ask->threads;
		dram->solo = dram->n[FLOW_ADAM] ? dram->solo + sign * ask->solo : 0;
	}
	dram_touch(share, ask->node);
}

static void enter(struct share *share, uint32_t id)
{
	struct flow *flow = &share->flows[id];
	const struct ask *ask = &share->asks[flow->profile];
	flow->cap = 1;
	if (ask->class != FLOW_OTHER) {
		flow->cap = share->drams[ask->node].cap[ask->class];
		flow->seat[PROFILE_DEMANDS] = pool_enter(&share->drams[ask->node].users, id, PROFILE_DEMANDS);
		dram_count(share, ask, 1);
	}
	for (uint32_t i = 0; i < ask->n; i++) {
		pool_load(share, ask->part[i].pool, load_of(ask, i, flow->cap));
		flow->seat[i] = pool_enter(&share->pools[ask->part[i].pool], id, i);
	}
	flow->rate = flow->cap;
	flow->running = true;
}

static void leave(struct share *share, uint32_t id)
{
	struct flow *flow = &share->flows[id];
	const struct ask *ask = &share->asks[flow->profile];
	for (uint32_t i = 0; i < ask->n; i++) {
		pool_load(share, ask->part[i].pool, -load_of(ask, i, flow->cap));
		pool_leave(share, &share->pools[ask->part[i].pool], flow->seat[i]);
	}
	if (ask->class != FLOW_OTHER) {
		pool_leave(share, &share->drams[ask->node].users, flow->seat[PROFILE_DEMANDS]);
		dram_count(share, ask, -1);
	}
	flow->running = flow->leaving = false;
}

void share_start(struct share *share, uint32_t id, uint32_t profile)
{
	g_assert(profile < share->n_profiles);
	if (id >= share->n_flows) {
		uint32_t n = MAX(id + 1, share->n_flows * 2);
		share->flows = g_renew(struct flow, share->flows, n);
		share->risers = g_renew(struct riser, share->risers, n);
		memset(share->flows + share->n_flows, 0, sizeof(struct flow) * (n - share->n_flows));
		share->n_flows = n;
	}
	struct flow *flow = &share->flows[id];
	g_assert(!flow->running || flow->leaving);
	flow->fresh = true;
	candidate(share, id);
	if (flow->leaving && flow->profile == profile) {
		flow->leaving = false;
		return;
	}
	if (flow->leaving)
		leave(share, id);
	flow->profile = profile;
	enter(share, id);
}

void share_stop(struct share *share, uint32_t id)
{
	struct flow *flow = &share->flows[id];
	g_assert(flow->running && !flow->leaving);
	flow->leaving = true;
	list_add(&share->leaving, id);
}

/* New caps for the users of one node's DRAM. */
static void recap(struct share *share, uint32_t node)
{
	struct dram *dram = &share->drams[node];
	struct dram_rates rates = contention_rates(share->contention, dram->threads, dram->n[FLOW_UP], dram->n[FLOW_DOWN]);
	double measured[4] = {1, rates.adam, rates.up, rates.down},
	       alone[4] = {1, dram->solo, share->copy_solo[FLOW_UP], share->copy_solo[FLOW_DOWN]};
	bool same = true;
	dram->dirty = false;
	for (int class = FLOW_ADAM; class <= FLOW_DOWN; class ++) {
		double cap = dram->n[class] && alone[class] > 0 ? CLAMP(measured[class] / alone[class], LEAST_RATE, 1) : 1;
		same &= cap == dram->cap[class];
		dram->cap[class] = cap;
	}
	for (uint32_t u = 0; u < dram->users.n && !same; u++) {
		uint32_t id = dram->users.users[u].flow;
		struct flow *flow = &share->flows[id];
		const struct ask *ask = &share->asks[flow->profile];
		double cap = dram->cap[ask->class];
		if (cap == flow->cap)
			continue;
		for (uint32_t i = 0; i < ask->n; i++)
			pool_load(share, ask->part[i].pool, load_of(ask, i, cap) - load_of(ask, i, flow->cap));
		flow->cap = flow->rate = cap;
		candidate(share, id);
	}
}

static void basin_add(struct share *share, uint32_t i)
{
	struct pool *pool = &share->pools[i];
	pool->gathered = share->gathering;
	pool->basin = share->n_basins++;
	share->basins[pool->basin] = (struct basin){.pool = i};
}

static void riser_add(struct share *share, uint32_t id)
{
	struct flow *flow = &share->flows[id];
	const struct ask *ask = &share->asks[flow->profile];
	flow->gathered = share->gathering;
	flow->riser = share->n_risers++;
	struct riser *riser = &share->risers[flow->riser];
	riser->flow = id;
	riser->cap = flow->cap;
	riser->rising = true;
	riser->n = 0;
	for (uint32_t i = 0; i < ask->n; i++) {
		const struct pool *pool = &share->pools[ask->part[i].pool];
		if (pool->load <= FULL)
			continue;
		if (pool->gathered != share->gathering)
			basin_add(share, ask->part[i].pool);
		struct basin *basin = &share->basins[pool->basin];
		if (ask->part[i].held) {
			basin->taken += ask->part[i].share;
			continue;
		}
		basin->n_rising++;
		basin->rising += ask->part[i].share;
		riser->basin[riser->n] = pool->basin;
		riser->share[riser->n++] = ask->part[i].share;
	}
}

/* The part of the machine that a dirty pool reaches through crowded pools. */
static void gather(struct share *share, uint32_t seed)
{
	share->n_basins = share->n_risers = 0;
	basin_add(share, seed);
	for (uint32_t next = 0; next < share->n_basins; next++) {
		const struct pool *pool = &share->pools[share->basins[next].pool];
		for (uint32_t u = 0; u < pool->n; u++)
			if (share->flows[pool->users[u].flow].gathered != share->gathering)
				riser_add(share, pool->users[u].flow);
	}
}

static inline double full_level(const struct basin *basin)
{
	return basin->n_rising ? (1 - basin->taken) / basin->rising : INFINITY;
}

static void settle_riser(struct share *share, struct riser *riser, double rate)
{
	riser->rising = false;
	share->n_rising--;
	share->flows[riser->flow].rate = rate;
	for (uint32_t i = 0; i < riser->n; i++) {
		struct basin *basin = &share->basins[riser->basin[i]];
		basin->n_rising--;
		basin->rising -= riser->share[i];
		basin->taken += riser->share[i] * rate;
		share->full_at[riser->basin[i]] = full_level(basin);
	}
}

/* All that still rise end at one rate: nobody asks the basins any more. */
static void settle_rest(struct share *share, double rate)
{
	for (uint32_t i = 0; i < share->n_risers; i++)
		if (share->risers[i].rising)
			share->flows[share->risers[i].flow].rate = rate;
}

/* The basin that is full first; *level receives where, infinity: never. In two loops without a branch to guess. */
static const struct basin *first_full(const struct share *share, double *level)
{
	double least = INFINITY;
	uint32_t first = 0;
	for (uint32_t i = 0; i < share->n_basins; i++)
		least = share->full_at[i] < least ? share->full_at[i] : least;
	while (share->full_at[first] != least)
		first++;
	*level = least;
	return &share->basins[first];
}

static double least_cap(const struct share *share)
{
	double cap = 1;
	for (uint32_t i = 0; share->contention && i < share->n_risers; i++)
		if (share->risers[i].rising)
			cap = MIN(cap, share->risers[i].cap);
	return cap;
}

/* Raises the rates of the gathered part until each flow meets its cap or a full pool. Each round settles at least one pool or cap. */
static void fill(struct share *share)
{
	double level = LEAST_RATE, full;
	for (uint32_t i = 0; i < share->n_basins; i++)
		share->full_at[i] = full_level(&share->basins[i]);
	for (share->n_rising = share->n_risers; share->n_rising;) {
		const struct basin *first = first_full(share, &full);
		double cap = least_cap(share);
		level = MAX(level, MIN(cap, full)); /* rounding must not let the water fall */
		if (cap == 1 && cap <= full)
			return settle_rest(share, 1);
		if (cap > full && first->n_rising == share->n_rising)
			return settle_rest(share, level);
		for (uint32_t i = 0; i < share->n_risers && cap <= full; i++)
			if (share->risers[i].rising && share->risers[i].cap <= level)
				settle_riser(share, &share->risers[i], share->risers[i].cap);
		const struct pool *pool = &share->pools[first->pool];
		for (uint32_t u = 0; u < pool->n && cap > full; u++) {
			const struct flow *flow = &share->flows[pool->users[u].flow];
			if (share->risers[flow->riser].rising && !share->asks[flow->profile].part[pool->users[u].demand].held)
				settle_riser(share, &share->risers[flow->riser], level);
		}
	}
}

const uint32_t *share_settle(struct share *share, uint32_t *n)
{
	for (uint32_t i = 0; i < share->leaving.n; i++)
		if (share->flows[share->leaving.v[i]].leaving)
			leave(share, share->leaving.v[i]);
	for (uint32_t i = 0; i < share->dirty_drams.n; i++)
		recap(share, share->dirty_drams.v[i]);
	if (share->dirty_pools.n)
		share->gathering++;
	for (uint32_t i = 0; i < share->dirty_pools.n; i++) {
		uint32_t seed = share->dirty_pools.v[i];
		share->pools[seed].dirty = false;
		if (share->pools[seed].gathered == share->gathering)
			continue;
		gather(share, seed);
		fill(share);
		for (uint32_t f = 0; f < share->n_risers; f++)
			candidate(share, share->risers[f].flow);
	}
	share->leaving.n = share->dirty_drams.n = share->dirty_pools.n = share->changed.n = 0;
	for (uint32_t i = 0; i < share->candidates.n; i++) {
		struct flow *flow = &share->flows[share->candidates.v[i]];
		if (flow->running && (flow->fresh || flow->rate != flow->told))
			list_add(&share->changed, share->candidates.v[i]);
		flow->told = flow->rate;
		flow->fresh = flow->listed = false;
	}
	share->candidates.n = 0;
	*n = share->changed.n;
	return share->changed.v;
}

double share_rate(const struct share *share, uint32_t flow)
{
	return share->flows[flow].rate;
}
