/* The simulator on random schedules: against two naive ones that know nothing of its tricks, and what its traces must add up to. */
#include "bed.h"

#include <math.h>

/* A random step on `m`: mostly pairs of predecessors among the last 40 stages, now and then a collective of all GPUs. */
static GArray *random_stages(GRand *rand, const struct machine *m, int n)
{
	GArray *stages = g_array_new(FALSE, FALSE, sizeof(struct stage));
	uint32_t groups = 0;
	while ((int)stages->len < n) {
		bool group = g_rand_int_range(rand, 0, 8) == 0;
		int gpu = g_rand_int_range(rand, 0, m->gpus), members = group ? m->gpus : 1;
		groups += group;
		stage_id first = stages->len;
		for (int i = 0; i < members; i++) {
			stage_id preds[2];
			for (int p = 0; p < 2; p++)
				preds[p] = first && g_rand_boolean(rand) ? first - 1 - (stage_id)g_rand_int_range(rand, 0, (gint32)MIN(first, 40))
				                                         : STAGE_NONE;
			nsec_t cost_ns = g_rand_int_range(rand, 0, 2000);
			struct stage stage =
			    on_gpu(group ? i : gpu, group ? STREAM_COLLECTIVE : g_rand_int_range(rand, 0, 3), cost_ns, preds[0], preds[1]);
			if (!group && g_rand_int_range(rand, 0, 6) == 0)
				stage = adam_on(m, gpu / m->gpus_per_node, gpu, cost_ns, preds[0]);
			else
				stage.n_kernels = (uint32_t)g_rand_int_range(rand, 1, 4);
			stage.group = group ? groups : 0;
			stage.group_size = group ? (uint32_t)members : 0;
			stage.id = stages->len;
			g_array_append_val(stages, stage);
		}
	}
	return stages;
}

/* Without sharing, start and end are the least solution of a few inequalities: repeat all until nothing moves. */
static void naive_solo(const struct machine *m, const GArray *stages, nsec_t *start, nsec_t *end)
{
	const struct stage *s = (const struct stage *)stages->data;
	nsec_t launch = (nsec_t)(m->launch_us * 1000), event = (nsec_t)(m->event_us * 1000), floor_ns[stages->len], host[8] = {0};
	for (guint i = 0; i < stages->len; i++) {
		start[i] = host[s[i].rank] + (s[i].n_kernels ? launch : 0);
		host[s[i].rank] += s[i].n_kernels * launch;
		floor_ns[i] = s[i].n_kernels ? host[s[i].rank] + s[i].cost_ns / s[i].n_kernels : 0;
		end[i] = 0;
	}
	for (bool moved = true; moved;) {
		moved = false;
		for (guint i = 0; i < stages->len; i++) {
			nsec_t first = start[i], last;
			for (guint j = 0; j < i; j++)
				first = s[j].stream == s[i].stream ? MAX(first, end[j]) : first;
			for (int p = 0; p < s[i].n_preds; p++)
				first = MAX(first, end[s[i].preds[p]] + (s[s[i].preds[p]].stream == s[i].stream ? 0 : event));
			last = MAX(MAX(first + s[i].cost_ns, floor_ns[i]), end[i]);
			for (guint j = 0; s[i].group && j < stages->len; j++)
				if (s[j].group == s[i].group) {
					first = MAX(first, start[j]);
					last = MAX(last, end[j]);
				}
			moved |= first != start[i] || last != end[i];
			start[i] = first;
			end[i] = last;
		}
	}
}

Test(sim_random, a_thousand_random_schedules_equal_the_naive_solution_without_sharing)
{
	GRand *rand = g_rand_new_with_seed(2);
	for (int round = 0; round < 1000; round++) {
		struct bed bed;
		struct machine m = machine_by_hand(g_rand_int_range(rand, 1, 5), 2, 0, 200);
		m.launch_us = 0.1 * g_rand_int_range(rand, 0, 8);
		m.launch_us = round % 2 ? m.launch_us : 1;
		m.event_us = round % 3;
		bed_init(&bed, m, &(struct sim_options){.no_sharing = true});
		GArray *stages = random_stages(rand, &m, 60);
		nsec_t start[stages->len], end[stages->len];
		naive_solo(&m, stages, start, end);
		for (guint i = 0; i < stages->len; i++)
			add(&bed, g_array_index(stages, struct stage, i));
		for (guint i = 0; i < stages->len; i++)
			await(&bed, i);
		for (guint i = 0; i < stages->len; i++)
			spans(&bed, i, start[i], end[i]);
		g_array_unref(stages);
		bed_clear(&bed);
	}
	g_rand_free(rand);
}

/* Fluid in small steps of time: each nanosecond, who may run runs, and everyone's rate is found anew by raising all in steps of 1/1000. */
static void naive_fluid(const struct resources *r, const GArray *stages, double *end)
{
	const struct stage *s = (const struct stage *)stages->data;
	guint n = stages->len, left = n;
	double done[n];
	memset(done, 0, sizeof done);
	for (guint i = 0; i < n; i++)
		end[i] = -1;
	for (double now = 0; left; now++) {
		guint runs[n], n_runs = 0;
		bool settled = false;
		while (!settled) { /* stages of no cost end at once and let others in */
			settled = true;
			n_runs = 0;
			for (guint i = 0; i < n; i++) {
				bool ready = end[i] < 0;
				for (guint j = 0; j < i; j++)
					ready &= s[j].stream != s[i].stream || end[j] >= 0;
				for (int p = 0; p < s[i].n_preds; p++)
					ready &= end[s[i].preds[p]] >= 0;
				if (ready && done[i] >= (double)s[i].cost_ns - 1e-6) {
					end[i] = now;
					left--;
					settled = false;
				} else if (ready) {
					runs[n_runs++] = i;
				}
			}
		}
		double rate[n];
		bool stopped[n];
		for (guint k = 0; k < n_runs; k++) {
			rate[k] = 0;
			stopped[k] = false;
		}
		for (int step = 0; step < 1000; step++)
			for (guint k = 0; k < n_runs; k++) {
				const struct profile *p = &r->profile[s[runs[k]].profile];
				for (int d = 0; d < p->n_demands; d++) {
					double used = 0;
					for (guint j = 0; j < n_runs; j++)
						for (int e = 0; e < r->profile[s[runs[j]].profile].n_demands; e++)
							if (r->profile[s[runs[j]].profile].demand[e].resource == p->demand[d].resource)
								used += rate[j] * r->profile[s[runs[j]].profile].demand[e].amount;
					stopped[k] |= used + p->demand[d].amount / 1000 > r->capacity[p->demand[d].resource] + 1e-9;
				}
				rate[k] += stopped[k] ? 0 : 0.001;
			}
		for (guint k = 0; k < n_runs; k++)
			done[runs[k]] += rate[k];
	}
}

Test(sim_random, small_random_schedules_follow_a_naive_fluid_within_a_percent)
{
	GRand *rand = g_rand_new_with_seed(3);
	for (int round = 0; round < 20; round++) {
		struct bed bed;
		bed_init(&bed, machine_by_hand(2, 2, 40, g_rand_int_range(rand, 60, 140)), &bare);
		GArray *stages = g_array_new(FALSE, FALSE, sizeof(struct stage));
		for (stage_id i = 0; i < 10; i++) {
			nsec_t cost_ns = g_rand_int_range(rand, 0, 400);
			int gpu = g_rand_int_range(rand, 0, 2);
			stage_id pred = i && g_rand_boolean(rand) ? (stage_id)g_rand_int_range(rand, 0, (gint32)i) : STAGE_NONE;
			struct stage stage = i % 4 == 3 ? adam_on(&bed.m, 0, gpu, cost_ns, pred)
			                                : on_gpu(gpu, g_rand_int_range(rand, 0, 3), cost_ns, pred, STAGE_NONE);
			stage.id = i;
			g_array_append_val(stages, stage);
		}
		double end[10];
		naive_fluid(bed.r, stages, end);
		for (stage_id i = 0; i < 10; i++)
			add(&bed, g_array_index(stages, struct stage, i));
		for (stage_id i = 0; i < 10; i++) {
			await(&bed, i);
			double got = (double)sim_end_ns(bed.b, i);
			cr_assert(fabs(got - end[i]) <= 0.01 * end[i] + 12, "round %d stage %u: %g, naive %g", round, i, got, end[i]);
		}
		g_array_unref(stages);
		bed_clear(&bed);
	}
	g_rand_free(rand);
}

/* Launches and waits a random schedule with everything on, and returns its trace. */
static struct trace *random_trace(struct bed *bed, guint32 seed, bool counters)
{
	GRand *rand = g_rand_new_with_seed(seed);
	struct machine m = machine_by_hand(4, 2, 30, 120);
	m.launch_us = 1;
	m.event_us = 0.5;
	m.sync_us = 3;
	bed_init(bed, m, &(struct sim_options){.record_counters = counters});
	GArray *stages = random_stages(rand, &m, 400);
	for (guint i = 0; i < stages->len; i++) {
		struct stage stage = g_array_index(stages, struct stage, i);
		stage.step_parity = i >= 150 && i < 300;
		stage.bytes = (uint64_t)stage.cost_ns * 25;
		add(bed, stage);
		if (i % 50 == 49)
			await(bed, stage.id - 10);
	}
	for (stage_id id = 0; id < bed->b->n_launched; id++)
		await(bed, id);
	struct trace *trace = trace_new();
	sim_trace(bed->b, counters, trace);
	g_array_unref(stages);
	g_rand_free(rand);
	return trace;
}

Test(sim_random, every_promise_holds_in_a_trace_with_everything_on)
{
	struct bed bed;
	struct trace *trace = random_trace(&bed, 4, false);
	nsec_t free_ns[32] = {0}, busy_ns[32], want_ns[32] = {0}, last_ns = 0;
	cr_assert_eq(trace->spans->len, bed.b->n_launched);
	for (guint i = 0; i < trace->spans->len; i++) {
		const struct span *span = &g_array_index(trace->spans, struct span, i);
		cr_assert_eq(span->id, i);
		cr_assert_geq(span->start_ns, free_ns[span->stream]);
		cr_assert_geq(span->start_ns, span->launch_ns);
		cr_assert_geq(span->end_ns, span->launch_end_ns);
		for (int p = 0; p < span->n_preds; p++)
			cr_assert_geq(span->start_ns, g_array_index(trace->spans, struct span, span->preds[p]).end_ns);
		free_ns[span->stream] = span->end_ns;
		want_ns[span->stream] += span->end_ns - span->start_ns;
		last_ns = MAX(last_ns, span->end_ns);
		cr_assert_eq(span->step, i < 150 ? 0 : i < 300 ? 1 : 2);
	}
	sim_busy(bed.b, -1, last_ns, busy_ns);
	for (int stream = 0; stream < stream_count(&bed.m); stream++) {
		cr_assert_eq(busy_ns[stream], want_ns[stream]);
		cr_assert_leq(busy_ns[stream], last_ns);
	}
	cr_assert_eq(trace->step_end_ns->len, 3);
	cr_assert_eq(g_array_index(trace->step_end_ns, nsec_t, 2), last_ns);
	trace_free(trace);
	bed_clear(&bed);
}

Test(sim_random, the_same_schedule_gives_the_same_spans)
{
	struct bed one, two;
	struct trace *a = random_trace(&one, 5, true), *b = random_trace(&two, 5, false);
	cr_assert_eq(a->spans->len, b->spans->len);
	for (guint i = 0; i < a->spans->len; i++) {
		const struct span *x = &g_array_index(a->spans, struct span, i), *y = &g_array_index(b->spans, struct span, i);
		cr_assert(x->launch_ns == y->launch_ns && x->start_ns == y->start_ns && x->end_ns == y->end_ns, "span %u", i);
	}
	trace_free(a);
	trace_free(b);
	bed_clear(&one);
	bed_clear(&two);
}

/* The area under a counter is what went over the link: bytes of all copies of that GPU and direction. */
Test(sim_random, counters_integrate_to_the_bytes_moved)
{
	struct bed bed;
	struct trace *trace = random_trace(&bed, 6, true);
	cr_assert_eq(trace->counters->len, 4 * 2 + 2);
	for (guint c = 0; c < 8; c++) {
		const struct counter *counter = g_ptr_array_index(trace->counters, c);
		double area = 0, bytes = 0;
		for (guint i = 0; i + 1 < counter->samples->len; i++) {
			const struct sample *at = &g_array_index(counter->samples, struct sample, i);
			cr_assert_lt(at->ns, at[1].ns);
			cr_assert_leq(at->value, 25 + 1e-6);
			area += at->value * (double)(at[1].ns - at->ns);
		}
		for (guint i = 0; i < trace->spans->len; i++) {
			const struct span *span = &g_array_index(trace->spans, struct span, i);
			if (span->stream == stream_of_gpu(counter->gpu, c % 2 ? STREAM_DOWNLOAD : STREAM_UPLOAD))
				bytes += (double)span->bytes;
		}
		cr_assert(bytes > 0 && fabs(area - bytes) < 0.002 * bytes, "counter %u: %g, bytes %g", c, area, bytes);
	}
	trace_free(trace);
	bed_clear(&bed);
}
