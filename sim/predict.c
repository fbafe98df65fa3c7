/* A prediction runs a few steps one behind the other, as training does, and measures the last: pinning, the cache over the SSD and placements have
 * then settled, and what one step leaves to the next (optimizer tails) is counted where it is paid. */
#include "predict.h"

#include "model/error.h"
#include "model/measured.h"
#include "occupancy.h"

#include <math.h>
#include <string.h>

static const char *const gpu_streams[GPU_STREAMS] = {"compute", "upload", "download", "collective"};
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

static void name_bound(const struct scenario *s, const struct schedule *schedule, const struct backend *b, nsec_t from, nsec_t to,
                       struct prediction *out)
{
	int streams = stream_count(s->machine), busiest = 0;
	g_autofree nsec_t *busy = g_new0(nsec_t, streams);
	sim_busy(b, from, to, busy);
	for (int i = 1; i < streams; i++)
		if (busy[i] > busy[busiest])
			busiest = i;
	bool host = schedule_launch_ns(schedule) > busy[busiest];
	g_strlcpy(out->bound_by, host ? "host_launch" : stream_kind(s->machine, busiest), sizeof out->bound_by);
}

/* Tokens past a fixed capacity, over those routed; the schedule itself never asks for them. */
static bool count_dropped(const struct scenario *s, int step, int microbatches, double *share, GError **error)
{
	const struct network *n = s->network;
	uint32_t per_gpu = (uint32_t)(s->sequences / microbatches * s->seq_len);
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
		for (int mb = 0; mb < microbatches; mb++) {
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
	if (stages * steps <= STAGES_MOST)
		return true;
	g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_INPUT,
	            "%d steps of about %.1f million stages: at most %d million can be simulated; take fewer --steps", steps, stages / 1e6,
	            STAGES_MOST / 1000000);
	return false;
}

bool predict(const struct scenario *scenario, const struct sim_options *o, int warmup, struct prediction *out, struct trace *trace, GError **error)
{
	struct sim_options options = *o;
	int steps = warmup + 1;
	*out = (struct prediction){.oom_tier = -1};
	g_autoptr(schedule) schedule = schedule_new(scenario, &out->oom_tier, error);
	if (!schedule || !check_stages(scenario, schedule, steps, error))
		return false;
	fill_memory(schedule, out);
	options.record_counters = trace != NULL;
	g_autoptr(backend) b = sim_new(scenario->machine, schedule_resources(schedule), scenario->routing, &options);
	g_autofree stage_id *first = g_new0(stage_id, steps + 1);
	g_autofree nsec_t *ends = g_new0(nsec_t, steps + 1);
	for (int i = 0; i < steps; i++) {
		if (!schedule_step(schedule, b, error))
			return false;
		first[i + 1] = b->n_launched;
	}
	if (!schedule_wait(schedule, b, error))
		return false;
	for (int i = 0; i < steps; i++)
		ends[i + 1] = MAX(ends[i], end_of(b, first[i], first[i + 1]));
	nsec_t step_ns = ends[steps] - ends[steps - 1];
	out->step_ms = (double)step_ns / 1e6;
	out->tokens_per_s = (double)scenario->machine->gpus * scenario->sequences * scenario->seq_len / ((double)step_ns / 1e9);
	out->speed_of_light_ms = (double)schedule_light_ns(schedule) / 1e6;
	out->n_stages = b->n_launched;
	fill_basis(schedule, out);
	name_bound(scenario, schedule, b, ends[steps - 1], ends[steps], out);
	if (trace) {
		fill_trace(scenario, b, ends + 1, steps, trace);
		occupancy_add(trace, &out->memory);
	}
	return count_dropped(scenario, warmup, out->microbatches, &out->dropped_share, error);
}
