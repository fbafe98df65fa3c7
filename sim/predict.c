/* A prediction runs a few steps one behind the other, as training does, and measures the last: pinning, the cache over the SSD and placements have
 * then settled, and what one step leaves to the next (optimizer tails) is counted where it is paid. Where updates run under the next forward by
 * intent one more step follows: what they share with it is part of what steps are like. An inference is run as a whole. */
#include "predict.h"

#include "model/error.h"
#include "model/measured.h"
#include "occupancy.h"

#include <math.h>
#include <string.h>

static const char *const gpu_streams[GPU_STREAMS] = {"compute", "upload", "download", "collective", "reduction"};
static const char *const node_streams[NODE_STREAMS] = {"optimizer", "ssd_read", "ssd_write"};

static const char *stream_kind(const struct machine *m, int stream)
{
	int gpu_count = m->gpus * GPU_STREAMS;
	return stream < gpu_count ? gpu_streams[stream % GPU_STREAMS] : node_streams[(stream - gpu_count) % NODE_STREAMS];
}

static nsec_t end_of(const struct backend *b, stage_id from, stage_id to)
{
	nsec_t end = 0;
	for (stage_id id = from; id < to; id++)
		end = MAX(end, sim_end_ns(b, id));
	return end;
}

/* The busiest stream, unless launching keeps a host thread busy for longer. */
static void name_bound(const struct scenario *s, const struct backend *b, nsec_t launch_ns, nsec_t from, nsec_t to, char name[48])
{
	int streams = stream_count(s->machine), busiest = 0;
	g_autofree nsec_t *busy = g_new0(nsec_t, streams);
	sim_busy(b, from, to, busy);
	for (int i = 1; i < streams; i++)
		if (busy[i] > busy[busiest])
			busiest = i;
	g_strlcpy(name, launch_ns > busy[busiest] ? "host_launch" : stream_kind(s->machine, busiest), 48);
}

/* Tokens past a fixed capacity, over those routed; the schedule itself never asks for them. */
static bool count_dropped(const struct scenario *s, int step, const struct plan *plan, double *share, GError **error)
{
	const struct network *n = s->network;
	uint32_t per_gpu = plan->routed;
	uint64_t dropped = 0, routed = 0;
	int gpus = s->machine->gpus;
	*share = 0;
	if (s->policy->capacity_factor <= 0)
		return true;
	g_autofree uint32_t *loads = g_new(uint32_t, (size_t)gpus * (size_t)MAX(1, network_experts(n)));
	for (int layer = 0; layer < n->layers; layer++) {
		const struct layer *l = &n->layer[layer];
		if (!l->experts)
			continue;
		uint32_t capacity = (uint32_t)ceil(s->policy->capacity_factor * l->top_k * per_gpu / l->experts);
		for (int mb = 0; mb < plan->microbatches; mb++) {
			if (!routing_loads(s->routing, step, mb, layer, gpus, l->experts, l->top_k, per_gpu, loads, error))
				return false;
			for (size_t i = 0; i < (size_t)gpus * (size_t)l->experts; i++) {
				routed += loads[i];
				dropped += loads[i] > capacity ? loads[i] - capacity : 0;
			}
		}
	}
	*share = routed ? (double)dropped / (double)routed : 0;
	return true;
}

static void fill_memory(const struct schedule *schedule, struct prediction *out)
{
	out->memory = *schedule_memory(schedule);
	out->hbm_gib = (double)memory_need(&out->memory, TIER_HBM) / GIB;
	out->dram_gib = (double)memory_need(&out->memory, TIER_DRAM) / GIB;
	out->ssd_gib = (double)memory_need(&out->memory, TIER_SSD) / GIB;
	out->microbatches = schedule_microbatches(schedule);
	out->expert_home = schedule_expert_home(schedule);
}

static void fill_trace(const struct scenario *s, const struct backend *b, const nsec_t *ends, int steps, struct trace *trace)
{
	trace->description = scenario_ini(s);
	sim_trace(b, true, trace);
	g_array_set_size(trace->step_end_ns, 0);
	g_array_append_vals(trace->step_end_ns, ends, (guint)steps);
}

static void fill_basis(const struct schedule *schedule, struct prediction *out)
{
	for (int kind = 0; kind < N_STAGE_KINDS; kind++)
		for (int pass = 0; pass < N_STAGE_PASSES; pass++)
			if (measured_pass(kind, pass) == pass)
				out->basis[kind][pass] = (uint8_t)cost_basis(schedule_cost(schedule), kind, pass);
}

/* All steps stay in memory until the end. */
static bool check_stages(const struct scenario *s, const struct schedule *schedule, int steps, GError **error)
{
	double stages = plan_stages(s, schedule_plan(schedule));
	bool inference = s->workload == WORKLOAD_INFERENCE; /* its stages were all counted by the plan */
	if (inference || stages * steps <= STAGES_MOST)
		return true;
	g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_INPUT,
	            "%d steps of about %.1f million stages: at most %d million can be simulated; take fewer --steps", steps, stages / 1e6,
	            STAGES_MOST / 1000000);
	return false;
}

/* Whether updates are put off into the next step. */
static bool runs_on(const struct scenario *s, const struct schedule *schedule)
{
	bool beyond = schedule_expert_home(schedule) != HOME_HBM && network_experts(s->network) > 0;
	return s->workload == WORKLOAD_TRAINING && s->policy->update_order == UPDATE_NEXT_FORWARD && beyond;
}

/* One run of the simulator, step by step. */
struct simulation {
	struct backend *b;
	struct schedule *schedule;
	int steps, counted; /* counted: without the one that only follows */
	stage_id *first;    /* (steps + 1) */
	nsec_t *ends;       /* (steps + 1) of the steps, from ends[0] = 0 */
	nsec_t *launch_ns;  /* (steps) schedule_launch_ns after each */
	nsec_t *light_ns;   /* (steps) schedule_light_ns after each */
};

static void simulation_clear(struct simulation *r)
{
	backend_free(r->b);
	g_free(r->first);
	g_free(r->ends);
	g_free(r->launch_ns);
	g_free(r->light_ns);
}

static bool simulate(struct simulation *r, const struct scenario *s, const struct sim_options *o, GError **error)
{
	bool inference = s->workload == WORKLOAD_INFERENCE;
	r->b = sim_new(s->machine, schedule_resources(r->schedule), s->routing, o);
	r->first = g_new0(stage_id, r->steps + 1);
	r->ends = g_new0(nsec_t, r->steps + 1);
	r->launch_ns = g_new0(nsec_t, r->steps);
	r->light_ns = g_new0(nsec_t, r->steps);
	for (int i = 0; i < r->steps; i++) {
		if (!schedule_step(r->schedule, r->b, error))
			return false;
		r->first[i + 1] = r->b->n_launched;
		r->launch_ns[i] = schedule_launch_ns(r->schedule);
		r->light_ns[i] = schedule_light_ns(r->schedule);
	}
	if (!schedule_wait(r->schedule, r->b, error))
		return false;
	for (int i = 0; i < r->steps; i++) {
		/* a token is there when all heads have run; uploads for the next may still be under way */
		stage_id from = inference ? r->first[i + 1] - (stage_id)s->machine->gpus : r->first[i];
		r->ends[i + 1] = MAX(r->ends[i], end_of(r->b, from, r->first[i + 1]));
	}
	return true;
}

/* The last step, unless so much of the one before ran under it that it seems shorter than its own work: nothing comes behind the last to run under,
 * so the one before it is then what steps are like. */
static int typical_step(const struct simulation *r)
{
	int last = r->counted - 1;
	bool tail = r->ends[last + 1] - r->ends[last] < r->light_ns[last];
	return tail && last > 0 ? last - 1 : last;
}

static void fill_training(const struct simulation *r, const struct scenario *s, struct prediction *out)
{
	int step = typical_step(r);
	nsec_t from = r->ends[step], to = r->ends[step + 1];
	out->step_ms = (double)(to - from) / 1e6;
	out->tokens_per_s = (double)s->machine->gpus * s->sequences * s->seq_len / ((double)(to - from) / 1e9);
	out->speed_of_light_ms = (double)r->light_ns[step] / 1e6;
	name_bound(s, r->b, r->launch_ns[step], from, to, out->bound_by);
}

static void fill_inference(const struct simulation *r, const struct scenario *s, struct prediction *out)
{
	nsec_t prefill = r->ends[1], all = r->ends[r->steps], launch_ns = r->launch_ns[r->steps - 1];
	out->prefill_ms = (double)prefill / 1e6;
	out->decode_ms = r->steps > 1 ? (double)(all - prefill) / 1e6 / (r->steps - 1) : 0;
	out->step_ms = (double)all / 1e6 / r->steps;
	out->tokens_per_s = (double)s->machine->gpus * s->sequences * r->steps / ((double)all / 1e9);
	/* a ring's last uploads may be of experts that no token wanted, and end after the last token */
	out->speed_of_light_ms = (double)MIN(schedule_light_ns(r->schedule), all) / 1e6 / r->steps;
	name_bound(s, r->b, launch_ns, 0, all, out->bound_by);
	name_bound(s, r->b, r->launch_ns[0], 0, prefill, out->prefill_bound_by);
	if (r->steps > 1)
		name_bound(s, r->b, launch_ns - r->launch_ns[0], prefill, all, out->decode_bound_by);
}

bool predict(const struct scenario *scenario, const struct sim_options *o, int warmup, struct prediction *out, struct trace *trace, GError **error)
{
	struct sim_options options = *o;
	bool inference = scenario->workload == WORKLOAD_INFERENCE;
	int counted = inference ? scenario->generate : warmup + 1, steps;
	*out = (struct prediction){.oom_tier = -1};
	g_autoptr(schedule) schedule = schedule_new(scenario, &out->oom_tier, error);
	if (!schedule)
		return false;
	steps = counted + runs_on(scenario, schedule);
	if (!check_stages(scenario, schedule, steps, error))
		return false;
	autoclear(simulation) r = {.schedule = schedule, .steps = steps, .counted = counted};
	fill_memory(schedule, out);
	options.record_counters = trace != NULL;
	if (!simulate(&r, scenario, &options, error))
		return false;
	(inference ? fill_inference : fill_training)(&r, scenario, out);
	out->n_stages = r.b->n_launched;
	schedule_choices(schedule, &out->choices);
	fill_basis(schedule, out);
	if (trace) {
		fill_trace(scenario, r.b, r.ends + 1, steps, trace);
		occupancy_add(trace, &out->memory);
	}
	return count_dropped(scenario, inference ? 0 : warmup, schedule_plan(schedule), &out->dropped_share, error);
}
