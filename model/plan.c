/* Chooses the cheapest home that fits (HBM before DRAM before SSD), and in it the fewest micro-batches, that is the largest that fit. Everything
 * is monotone in the number of experts, so the most that fit is found by bisection over scaled copies of the network. */
#include "plan.h"

#include "error.h"

#include <string.h>

#define MOST_EXPERTS 65536
#define COUNTS_MOST (1 << 28) /* token counts of all GPUs and experts, 4 bytes each: 1 GiB */

/* Of one tensor group: those of its GPUs. */
static int sequences(const struct scenario *s)
{
	return s->sequences * policy_tensor_parallel(s->policy, s->machine->gpus);
}

/* The sequences of a micro-batch may be limited by the policy, by the options, or by what the testbed's padded systems ran with. */
static int smallest_count(const struct scenario *s)
{
	const struct machine *m = s->machine;
	const struct policy *p = s->policy;
	if (s->microbatches)
		return s->microbatches;
	int all = sequences(s), most = p->microbatch ? MIN(p->microbatch, all) : all, limit = 0;
	if (p->dispatch != DISPATCH_EXACT && !p->microbatch && s->workload == WORKLOAD_TRAINING)
		limit = p->expert_home == HOME_HBM ? m->baseline_microbatch : m->offload_microbatch;
	if (limit)
		most = MIN(most, limit);
	return (all + most - 1) / most;
}

/* Tutel, section 4.1: replicas pay an all-reduce of their gradients once a step, slices pay r times the all-to-all bytes in each of five passes. */
static int split(const struct scenario *s, const struct plan *plan)
{
	bool chosen = s->policy->expert_split != SPLIT_ADAPTIVE || s->workload == WORKLOAD_TRAINING;
	if (s->policy->expert_split != SPLIT_AUTO && chosen)
		return s->policy->expert_split;
	double tokens = (double)s->sequences * s->seq_len;
	for (int i = 0; i < s->network->layers; i++) {
		const struct layer *l = &s->network->layer[i];
		int units = plan->expert_parallel / plan->unit;
		if (!l->experts || l->experts >= units)
			continue;
		double r = units / l->experts;
		double replicas = 2 * (r - 1) / r * 2.0 * (double)network_expert_params(s->network, l);
		double slices = 5 * (r - 1) * tokens * l->top_k * s->network->d_model * 2;
		return replicas <= slices ? SPLIT_DATA : SPLIT_MODEL;
	}
	return SPLIT_DATA;
}

static void try_share(const struct scenario *s, const struct network *n, double share, struct plan *out)
{
	struct memory_case k = {.home = out->home,
	                        .expert_parallel = out->expert_parallel,
	                        .split = out->split,
	                        .sequences = out->microbatch,
	                        .seq_len = s->seq_len,
	                        .pinned_share = share,
	                        .together = s->policy->microbatch_order == ORDER_VERTICAL ? out->microbatches : 1,
	                        .shadowed = out->shadowed,
	                        .microbatches = out->microbatches};
	if (s->workload == WORKLOAD_INFERENCE) {
		k.batch = sequences(s);
		k.cached = s->seq_len + s->generate - 1; /* the last token generated is read by nobody */
		memory_plan_inference(n, s->machine, s->policy, &k, &out->memory);
	} else {
		memory_plan(n, s->machine, s->policy, &k, &out->memory);
	}
	out->slots = memory_slots(n, s->machine, s->policy, &k);
	out->overflow = memory_overflow(&out->memory);
	out->pinned_share = share;
}

/* Pinned experts yield to activations: a larger micro-batch saves an upload of every expert, a pinned one only its own. */
static void try(const struct scenario *s, const struct network *n, int home, int count, struct plan *out)
{
	double wanted = home == HOME_HBM ? 0 : s->policy->pinned_share;
	out->home = home;
	out->microbatches = count;
	out->microbatch = sequences(s) / count;
	out->tokens = (uint32_t)(out->microbatch * s->seq_len);
	out->routed = out->tokens / (uint32_t)(out->tensor_parallel / out->unit);
	for (out->shadowed = home == HOME_HBM ? s->policy->shadowed_experts : 0; out->shadowed > 0; out->shadowed--) {
		try_share(s, n, 0, out);
		if (out->overflow != TIER_HBM)
			return;
	}
	for (int eighths = 8; eighths >= 0; eighths--) {
		try_share(s, n, wanted * eighths / 8, out);
		if (out->overflow != TIER_HBM || wanted == 0)
			return;
	}
}

static bool fit_home(const struct scenario *s, const struct network *n, int home, struct plan *out)
{
	int count = smallest_count(s);
	for (; count <= sequences(s); count++) {
		if (sequences(s) % count)
			continue;
		try(s, n, home, count, out);
		if (out->overflow != TIER_HBM || s->microbatches || s->policy->microbatch)
			break;
	}
	return out->overflow < 0;
}

static bool fit(const struct scenario *s, const struct network *n, struct plan *out)
{
	int wanted = s->policy->expert_home;
	if (wanted != HOME_AUTO)
		return fit_home(s, n, wanted, out);
	for (int home = HOME_HBM; home <= HOME_SSD; home++) {
		if (home == HOME_SSD && s->machine->ssd_gb <= 0)
			break;
		if (fit_home(s, n, home, out))
			return true;
	}
	return false;
}

static struct plan groups(const struct scenario *s)
{
	int tensor = policy_tensor_parallel(s->policy, s->machine->gpus);
	return (struct plan){.overflow = -1,
	                     .expert_parallel = policy_expert_parallel(s->policy, s->machine->gpus),
	                     .tensor_parallel = tensor,
	                     .unit = s->policy->tensor_experts == TENSOR_EXPERTS_CUT ? tensor : 1};
}

static bool fits_with(const struct scenario *s, int experts)
{
	int most = network_experts(s->network);
	struct network n = *s->network;
	g_autofree struct layer *layer = g_memdup2(n.layer, sizeof(struct layer) * (size_t)n.layers);
	struct plan plan = groups(s);
	plan.split = split(s, &plan);
	n.layer = layer;
	for (int i = 0; i < n.layers; i++)
		if (layer[i].experts)
			layer[i].experts = MAX(1, (int)((int64_t)layer[i].experts * experts / most));
	return fit(s, &n, &plan);
}

int plan_most_experts(const struct scenario *s)
{
	int low = 0, high = MOST_EXPERTS;
	if (network_experts(s->network) == 0)
		return 0;
	while (low < high) {
		int middle = low + (high - low + 1) / 2;
		if (fits_with(s, middle))
			low = middle;
		else
			high = middle - 1;
	}
	return low;
}

static const char *wrong_for_inference(const struct scenario *s)
{
	const struct policy *p = s->policy;
	for (int i = 0; i < s->network->layers; i++)
		if (s->network->layer[i].cross)
			return "scenario.workload = inference is not modelled for an encoder-decoder (network.encoder_decoder)";
	if (p->microbatch_order == ORDER_VERTICAL)
		return "scenario.workload = inference needs policy.microbatch_order = horizontal";
	if (p->zero_stage == 3)
		return "scenario.workload = inference is not modelled with policy.zero_stage = 3";
	if (p->upload_scope == UPLOAD_NEXT_LAYER && p->placement != PLACEMENT_FIXED)
		return "scenario.workload = inference with policy.upload_scope = next-layer needs policy.placement = fixed: uploads go round the "
		       "same experts";
	return NULL;
}

/* What a tensor group cannot cut, or NULL. */
static const char *check_tensor(const struct network *n, int tensor, bool experts)
{
	if (n->heads % tensor || (n->kv_heads % tensor && tensor % n->kv_heads))
		return "policy.tensor_parallel must divide network.heads, and divide network.kv_heads or be a multiple of them";
	for (int i = 0; i < n->layers; i++) {
		const struct layer *l = &n->layer[i];
		if (l->d_ff % tensor || l->d_shared % tensor || (experts && l->experts && l->d_expert % tensor))
			return "policy.tensor_parallel must divide the inner sizes of all FFNs, network.d_ff, d_expert and d_shared";
		if (l->mixer == MIXER_MAMBA && n->mamba_expand * n->d_model % tensor)
			return "policy.tensor_parallel must divide the inner size of Mamba, network.mamba_expand x d_model";
	}
	return NULL;
}

/* Groups of GPUs that have no meaning together, or NULL. */
static const char *check_groups(const struct scenario *s)
{
	const struct policy *p = s->policy;
	int gpus = s->machine->gpus, tensor = policy_tensor_parallel(p, gpus), copies = gpus / tensor;
	bool cut = p->tensor_experts == TENSOR_EXPERTS_CUT;
	if (p->microbatch_order == ORDER_VERTICAL && (p->exchange != EXCHANGE_TOKENS || p->shadowed_experts))
		return "policy.microbatch_order = vertical needs policy.exchange = tokens and policy.shadowed_experts = 0";
	if (gpus % tensor)
		return "policy.tensor_parallel must divide the number of GPUs";
	if (p->data_parallel && MIN(p->data_parallel, gpus) * tensor != gpus)
		return "policy.data_parallel times policy.tensor_parallel must be the number of GPUs, or one of them be 0";
	if (p->dense_optimizer == DENSE_OPTIMIZER_CPU && !p->zero_stage && copies > 1)
		return "policy.dense_optimizer = cpu needs policy.zero_stage = 1, 2 or 3: each copy brings its part down to the host";
	if (p->dense_optimizer == DENSE_OPTIMIZER_CPU && (p->gradient_bucket_mib || p->embedding == EMBEDDING_CUT))
		return "policy.gradient_bucket_mib and policy.embedding = cut need policy.dense_optimizer = gpu";
	if (p->embedding == EMBEDDING_CUT && s->workload == WORKLOAD_INFERENCE)
		return "--workload inference needs policy.embedding = copied";
	if (tensor == 1)
		return NULL;
	if (cut && policy_expert_parallel(s->policy, s->machine->gpus) % tensor)
		return "policy.expert_parallel must be a multiple of policy.tensor_parallel, or policy.tensor_experts = whole";
	if (cut && p->expert_home != HOME_HBM)
		return "policy.tensor_parallel with policy.expert_home other than hbm needs policy.tensor_experts = whole: one GPU updates an expert";
	if (!cut && p->all_to_all == ALL_TO_ALL_DROPPED)
		return "policy.all_to_all = dropped needs policy.tensor_experts = cut: each token goes to whole experts once anyway";
	if (!cut && s->seq_len % tensor)
		return "policy.tensor_experts = whole needs policy.tensor_parallel to divide scenario.seq_len: each GPU sends its share of the "
		       "tokens";
	return check_tensor(s->network, tensor, cut);
}

static bool check(const struct scenario *s, GError **error)
{
	const struct policy *p = s->policy;
	const struct machine *m = s->machine;
	const char *wrong = NULL;
	if (s->microbatches && sequences(s) % s->microbatches) {
		g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_INPUT, "%d micro-batches do not divide %d sequences: choose a divisor", s->microbatches,
		            sequences(s));
		return false;
	}
	if (p->expert_parallel && m->gpus % MIN(p->expert_parallel, m->gpus))
		wrong = "policy.expert_parallel must divide the number of GPUs, or be 0";
	else if (p->expert_home != HOME_HBM && p->expert_parallel > 1 && p->expert_parallel < m->gpus)
		wrong = "policy.expert_parallel between 1 and the number of GPUs needs policy.expert_home = hbm: beyond HBM there is one copy of "
		        "each expert, or all GPUs share its update";
	else if (p->placement != PLACEMENT_FIXED && p->expert_parallel && p->expert_parallel < m->gpus)
		wrong = "policy.placement = lpt or sticky needs policy.expert_parallel = 0: placement moves experts between all GPUs";
	else if (p->dispatch != DISPATCH_EXACT && p->placement != PLACEMENT_FIXED)
		wrong = "policy.placement = lpt or sticky needs policy.dispatch = exact: padded loads are equal";
	else if (p->dispatch == DISPATCH_EXACT && p->capacity_factor > 0)
		wrong = "policy.capacity_factor needs policy.dispatch = padded or mask";
	else if (p->upload_scope == UPLOAD_NEXT_LAYER && p->placement == PLACEMENT_LPT)
		wrong = "policy.upload_scope = next-layer needs policy.placement = fixed or sticky";
	else if (p->expert_home == HOME_SSD && m->ssd_gb <= 0)
		wrong = "policy.expert_home = ssd needs a machine with an SSD (ssd.ssd_gb)";
	else if (p->pipeline_degree > 1 && p->expert_home != HOME_HBM)
		wrong = "policy.pipeline_degree needs policy.expert_home = hbm";
	else
		wrong = check_groups(s);
	if (!wrong && s->workload == WORKLOAD_INFERENCE)
		wrong = wrong_for_inference(s);
	if (!wrong)
		wrong = travel_refusal(s);
	if (!wrong)
		return true;
	g_set_error_literal(error, ESMOE_ERROR, ESMOE_ERROR_INPUT, wrong);
	return false;
}

/* Owned by the caller. */
static char *gib_text(uint64_t bytes)
{
	double gib = (double)bytes / GIB;
	return g_strdup_printf(gib < 1 ? "%.3g GiB" : "%.1f GiB", gib);
}

/* Of one MoE layer beside its mixer, all GPUs and micro-batches. */
static double moe_stages(const struct scenario *s, const struct plan *plan, int experts)
{
	const struct policy *p = s->policy;
	double gpus = s->machine->gpus, set = plan->expert_parallel, chunks = MAX(1, p->pipeline_degree), entries = gpus / set * experts * plan->unit;
	int again = p->checkpoint != CHECKPOINT_NONE, whole = p->checkpoint == CHECKPOINT_LAYER,
	    out_again = p->checkpoint == CHECKPOINT_FULL || whole;
	double each = 6 + again + out_again + whole + (gpus > 1); /* gate, permute, combine; the counts */
	if (set > plan->unit)
		each += (4 + out_again + whole) * chunks *
		        (p->all_to_all != ALL_TO_ALL_LINEAR && p->all_to_all != ALL_TO_ALL_DROPPED && set > s->machine->gpus_per_node
		             ? 2
		             : 1);     /* all-to-alls */
	if (plan->tensor_parallel > 1) /* sums or gathers on the way back, gathers on the way out */
		each +=
		    ((2 + whole) * (1 + (p->all_to_all == ALL_TO_ALL_DROPPED)) + (p->all_to_all == ALL_TO_ALL_DROPPED) * (2 + out_again)) * chunks;
	double computed = p->expert_compute == EXPERTS_GROUPED ? gpus : MAX(entries, gpus);
	double expert = plan->home == HOME_HBM ? (2 + whole) * chunks * computed : ((set == 1 && gpus > 1 ? 7 : 6) + 2 * whole) * entries;
	if (plan->home != HOME_HBM && p->microbatch_order == ORDER_VERTICAL) /* uploads and gradients are those of one micro-batch */
		expert -= (2 + whole + 2 + (set == 1 && gpus > 1)) * entries * (plan->microbatches - 1) / plan->microbatches;
	expert += 2 * (plan->shadowed > 0) * gpus + 2 * chunks * plan->shadowed * gpus;
	if (p->exchange == EXCHANGE_EXPERTS && gpus > 1) /* fetched and computed twice, and reduced */
		expert = 5.0 * experts * gpus;
	return plan->microbatches * (each * gpus + expert);
}

/* All of a batch: every micro-batch's prefill, then a step for each token but the first. */
static double inference_stages(const struct scenario *s, const struct plan *plan)
{
	double gpus = s->machine->gpus, forwards = plan->microbatches + s->generate - 1, stages = 2 * gpus;
	for (int i = 0; i < s->network->layers; i++) {
		const struct layer *l = &s->network->layer[i];
		double entries = gpus / plan->expert_parallel * l->experts, chunks = MAX(1, s->policy->pipeline_degree);
		if (plan->tensor_parallel > 1)
			stages += (2 + (l->shared > 0) + (l->experts ? 1 : 0)) * gpus;
		stages += (1 + (l->d_ff > 0) + (l->shared > 0)) * gpus;
		if (!l->experts)
			continue;
		stages += (3 + (gpus > 1) + (plan->expert_parallel > 1 ? 2 * chunks : 0)) * gpus;
		stages += plan->home != HOME_HBM ? 2 * entries : chunks * (s->policy->expert_compute == EXPERTS_GROUPED ? gpus : MAX(entries, gpus));
	}
	return forwards * stages;
}

/* Sums in tensor groups beside those of experts, gathers and host updates of what copies hold. */
static double group_stages(const struct scenario *s, const struct plan *plan)
{
	const struct policy *p = s->policy;
	double gpus = s->machine->gpus, layers = s->network->layers, visits = gpus * plan->microbatches, stages = 0;
	bool host = p->dense_optimizer == DENSE_OPTIMIZER_CPU, again = p->checkpoint == CHECKPOINT_FULL || p->checkpoint == CHECKPOINT_LAYER;
	for (int i = 0; i < s->network->layers && plan->tensor_parallel > 1; i++) {
		const struct layer *l = &s->network->layer[i];
		stages += (2 + again + ((l->d_ff > 0) + (l->shared > 0)) * (2 + (p->checkpoint == CHECKPOINT_LAYER))) * visits;
	}
	stages += 2 * visits * (plan->tensor_parallel > 1); /* embedding and head */
	stages += (2 * layers + 1) * visits * (p->zero_stage >= 3);
	stages += (layers + 1) * (visits - gpus) * (p->zero_stage >= 2);
	return stages + 2 * (layers + 1) * visits * host;
}

double plan_stages(const struct scenario *s, const struct plan *plan)
{
	if (s->workload == WORKLOAD_INFERENCE)
		return inference_stages(s, plan);

	const struct network *n = s->network;
	double gpus = s->machine->gpus, visits = gpus * plan->microbatches;
	int passes = 2 + (s->policy->checkpoint != CHECKPOINT_NONE);
	double stages = 3 * visits + 2 * gpus; /* embedding twice and head; reduction and update of what lives in HBM */
	for (int i = 0; i < n->layers; i++) {
		const struct layer *l = &n->layer[i];
		stages += passes * (1 + (l->d_ff > 0) + (l->shared > 0)) * visits + gpus;
		if (l->experts)
			stages += moe_stages(s, plan, l->experts);
	}
	return stages + group_stages(s, plan);
}

static bool check_size(const struct scenario *s, const struct plan *plan, GError **error)
{
	double stages = plan_stages(s, plan), counts = (double)s->machine->gpus * network_experts(s->network);
	if (stages <= STAGES_MOST && counts <= COUNTS_MOST && plan->microbatches <= G_MAXUINT16)
		return true;
	g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_INPUT,
	            "%d GPUs, %d experts a layer and %d micro-batches make a step of about %.0f million stages with policy %s: at most %d million "
	            "stages, %d million pairs of GPU and expert and %d micro-batches can be built",
	            s->machine->gpus, network_experts(s->network), plan->microbatches, stages / 1e6, s->policy->name, STAGES_MOST / 1000000,
	            COUNTS_MOST / 1000000, G_MAXUINT16);
	return false;
}

bool plan_make(const struct scenario *s, struct plan *out, GError **error)
{
	*out = groups(s);
	if (!check(s, error))
		return false;
	out->split = split(s, out);
	if (fit(s, s->network, out))
		return check_size(s, out, error);
	int most = plan_most_experts(s), tier = out->overflow;
	g_autofree char *advice = most ? g_strdup_printf("at most %d experts a layer fit", most) : g_strdup("not even one expert a layer fits");
	g_autofree char *need = gib_text(memory_need(&out->memory, tier)), *room = gib_text(out->memory.room[tier]);
	g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_FIT, "%s with %d experts a layer does not fit policy %s on %s: %s needs %s of %s; %s",
	            s->network->name, network_experts(s->network), s->policy->name, s->machine->name, memory_tier_name(tier), need, room, advice);
	return false;
}
