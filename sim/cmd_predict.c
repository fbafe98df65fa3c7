/* esmoe predict: one configuration in full. What does not fit is this command's error; compare and sweep make a row of it. */
#include "elastic.h"
#include "figure.h"
#include "grid.h"
#include "model/command.h"
#include "model/error.h"
#include "model/measured.h"
#include "report.h"
#include "traces/kineto.h"
#include "traces/outfile.h"

#include <stdio.h>
#include <string.h>

struct options {
	struct whatif whatif;
	struct how how;
	char *format, *trace, *plot, *memory, *tasks;
};

static void options_clear(struct options *o)
{
	whatif_clear(&o->whatif);
	how_clear(&o->how);
	g_free(o->format);
	g_free(o->trace);
	g_free(o->plot);
	g_free(o->memory);
	g_free(o->tasks);
}

static bool parse(struct options *o, int argc, char **argv, GError **error)
{
	const GOptionEntry entries[] = {
	    {"format", 0, 0, G_OPTION_ARG_STRING, &o->format, "table, csv or json", "WORD"},
	    {"trace", 0, 0, G_OPTION_ARG_FILENAME, &o->trace, "write all steps: PREFIX.rank<N>.json, .host.json", "PREFIX"},
	    {"plot", 0, 0, G_OPTION_ARG_FILENAME, &o->plot, "draw the last step's timeline, .png, .svg or .pdf", "FILE"},
	    {"tasks", 0, 0, G_OPTION_ARG_STRING, &o->tasks, "sequences of tasks that share the GPUs and each step", "N,N,..."},
	    {"memory", 0, 0, G_OPTION_ARG_FILENAME, &o->memory, "write the bytes of each tier and class as CSV", "FILE"},
	    {NULL},
	};
	g_autoptr(GOptionContext) context = g_option_context_new(NULL);
	whatif_add(&o->whatif, context);
	how_add(&o->how, context);
	g_option_context_add_main_entries(context, entries, NULL);
	g_option_context_set_summary(context, "Predicts one configuration: tokens/s, what bounds it, and its memory.");
	g_option_context_set_description(context, "Example:\n  esmoe predict -m gpt-moe-l -M a100-40g-x4 -p es-moe --plot step.png");
	return whatif_parse(context, argc, argv, error) && how_check(&o->how, &o->whatif, error);
}

static void append_memory(GString *out, const struct memory *m)
{
	g_string_append_printf(out, "\n%-17s", "memory GiB");
	for (int tier = 0; tier < N_TIERS; tier++)
		g_string_append_printf(out, " %12s", memory_tier_name(tier));
	for (int class = 0; class < N_CLASSES; class ++) {
		if (class == CLASS_KV_CACHE && !m->bytes[TIER_HBM][class]) /* training has none */
			continue;
		g_string_append_printf(out, "\n  %-15s", memory_class_name(class));
		for (int tier = 0; tier < N_TIERS; tier++)
			g_string_append_printf(out, " %12.2f", (double)m->bytes[tier][class] / GIB);
	}
	g_string_append_printf(out, "\n  %-15s", "all");
	for (int tier = 0; tier < N_TIERS; tier++)
		g_string_append_printf(out, " %12.2f", (double)memory_total(m, tier) / GIB);
	g_string_append_printf(out, "\n  %-15s", "room");
	for (int tier = 0; tier < N_TIERS; tier++)
		g_string_append_printf(out, " %12.2f", (double)m->room[tier] / GIB);
	g_string_append_c(out, '\n');
}

/* The kinds of stages whose costs have one of the bases, or nothing. */
static void append_kinds(GString *out, const struct prediction *p, int basis, const char *title)
{
	const char *between = "";
	for (int kind = 0; kind < N_STAGE_KINDS; kind++)
		for (int pass = 0; pass < N_STAGE_PASSES; pass++) {
			bool by_pass = measured_pass(kind, PASS_BACKWARD) == PASS_BACKWARD;
			if (!(p->basis[kind][pass] & basis))
				continue;
			if (!*between)
				g_string_append_printf(out, "  %-15s ", title);
			g_string_append_printf(out, "%s%s%s%s", between, stage_kind_name(kind), by_pass ? " " : "",
			                       by_pass ? stage_pass_name(pass) : "");
			between = ", ";
		}
	if (*between)
		g_string_append_c(out, '\n');
}

static void append_costs(GString *out, const struct machine *m, const struct prediction *p)
{
	const char *contention = m->contention == CONTENTION_MEASURED ? "measured" : "max-min fair, not measured";
	if (!m->measured) {
		g_string_append_printf(out, "%-17s roofline, DRAM contention %s\n", "costs", contention);
		return;
	}
	g_string_append_printf(out, "%-17s measured, DRAM contention %s\n", "costs", contention);
	g_string_append_printf(out, "  %-15s %s, %s\n", "on", m->measured->date, m->measured->device);
	append_kinds(out, p, COST_BELOW, "below range");
	append_kinds(out, p, COST_ABOVE, "above range");
	append_kinds(out, p, COST_ROOFLINE, "by roofline");
}

/* A step with CPU Adam as in the slowest and the fastest of calibration's rounds; the same twice where they are not known, or where it has no part.
 */
struct range {
	double slowest_ms, fastest_ms;
};

static bool predict_range(const struct scenario *s, const struct how *how, struct range *out, GError **error)
{
	const double speed[] = {s->machine->adam_slowest, s->machine->adam_fastest};
	double *to[] = {&out->slowest_ms, &out->fastest_ms};
	for (int i = 0; i < 2; i++) {
		struct machine machine;
		const struct scenario with = scenario_with_adam(s, speed[i], &machine);
		autoclear(row) row = {0};
		if (!row_predict(&row, &with, how, NULL, error))
			return false;
		*to[i] = row.prediction.step_ms;
	}
	return true;
}

static void append_range(GString *out, const struct range *r, double ms)
{
	if (r->slowest_ms != ms || r->fastest_ms != ms)
		g_string_append_printf(out, "%-17s %.2f to %.2f ms, as calibration saw host memory vary\n", "", r->fastest_ms, r->slowest_ms);
}

static void append_training(GString *out, const struct scenario *s, const struct row *row, const struct range *range)
{
	const struct prediction *p = &row->prediction;
	g_string_append_printf(out, "%s trains %s on %s\n", row->policy, row->model, row->machine);
	g_string_append_printf(out, "%d GPUs, %d experts a layer, %d sequences of %d tokens a GPU, routing %s\n\n", row->gpus, row->experts,
	                       s->sequences, s->seq_len, s->routing_spec);
	g_string_append_printf(out, "%-17s %.0f tokens/s, %.2f ms a step\n", "speed", p->tokens_per_s, p->step_ms);
	append_range(out, range, p->step_ms);
	g_string_append_printf(out, "%-17s %.2f ms a step: %.0f %% of it reached\n", "speed of light", p->speed_of_light_ms,
	                       100 * p->speed_of_light_ms / p->step_ms);
	g_string_append_printf(out, "%-17s %s\n", "bound by", p->bound_by);
}

static void append_inference(GString *out, const struct scenario *s, const struct row *row)
{
	const struct prediction *p = &row->prediction;
	g_string_append_printf(out, "%s generates with %s on %s\n", row->policy, row->model, row->machine);
	g_string_append_printf(out, "%d GPUs, %d experts a layer, routing %s\n", row->gpus, row->experts, s->routing_spec);
	g_string_append_printf(out, "%d sequences a GPU: %d tokens of context, %d generated\n\n", s->sequences, s->seq_len, s->generate);
	g_string_append_printf(out, "%-17s %.0f tokens/s generated, prefill included\n", "speed", p->tokens_per_s);
	g_string_append_printf(out, "%-17s %.2f ms, bound by %s\n", "first token", p->prefill_ms, p->prefill_bound_by);
	if (s->generate > 1)
		g_string_append_printf(out, "%-17s %.2f ms each, bound by %s\n", "further tokens", p->decode_ms, p->decode_bound_by);
	g_string_append_printf(out, "%-17s %.2f ms a token, prefill included: %.0f %% of it reached\n", "speed of light", p->speed_of_light_ms,
	                       100 * p->speed_of_light_ms / p->step_ms);
}

/* What the policy leaves open and each load decides. */
static void append_choices(GString *out, const struct scenario *s, const struct choices *c)
{
	const struct policy *p = s->policy;
	const char *between = "";
	if (!p->pipeline_degree && c->layers > c->travel) {
		g_string_append_printf(out, "%-17s ", "pipeline degree");
		for (int i = 1; i <= MAX_CHUNKS; i++)
			if (c->degree[i]) {
				g_string_append_printf(out, "%s%d in %d", between, i, c->degree[i]);
				between = ", ";
			}
		g_string_append_printf(out, " of %d routed layers\n", c->layers);
	}
	if (p->all_to_all == ALL_TO_ALL_AUTO && c->layers > c->travel)
		g_string_append_printf(out, "%-17s hierarchical in %d of %d routed layers\n", "all-to-all", c->hierarchical, c->layers);
	if (p->expert_split == SPLIT_ADAPTIVE && c->most_slices && network_experts(s->network) < s->machine->gpus)
		g_string_append_printf(out, "%-17s %d to %d slices\n", "each expert in", c->least_slices, c->most_slices);
	if (c->travel)
		g_string_append_printf(out, "%-17s in %d of %d routed layers\n", "experts travel", c->travel, c->layers);
	if (p->shadowed_experts && c->layers)
		g_string_append_printf(out, "%-17s %.1f of a layer's\n", "experts shadowed", (double)c->shadows / c->layers);
}

static void append_table(GString *out, const struct scenario *s, const struct row *row, const struct range *range)
{
	static const char *const homes[] = {"GPU memory", "host DRAM", "SSD, with host DRAM as its cache"};
	const struct prediction *p = &row->prediction;
	bool inference = s->workload == WORKLOAD_INFERENCE;
	if (inference)
		append_inference(out, s, row);
	else
		append_training(out, s, row, range);
	g_string_append_printf(out, "%-17s %s\n", "idle experts in", homes[p->expert_home]);
	g_string_append_printf(out, "%-17s %d %s\n", "micro-batches", p->microbatches, inference ? "in the prefill" : "a step");
	g_string_append_printf(out, "%-17s %.2f %%\n", "dropped tokens", 100 * p->dropped_share);
	if (s->machine->gpus > 1)
		append_choices(out, s, &p->choices);
	append_costs(out, s->machine, p);
	append_memory(out, &p->memory);
}

static bool write_file(const char *path, const char *text, GError **error)
{
	g_autoptr(outfile) file = outfile_new(path, false, error);
	return file && outfile_write(file, text, strlen(text), error) && outfile_finish(file, error) && outfile_commit(file, error);
}

static bool write_files(const struct options *o, const struct row *row, const struct trace *trace, GError **error)
{
	g_autoptr(GString) memory = g_string_new(NULL);
	report_memory_csv(memory, &row->prediction.memory);
	return (!o->memory || write_file(o->memory, memory->str, error)) && (!o->trace || kineto_write(trace, o->trace, false, error)) &&
	       (!o->plot || figure_timeline(trace, o->plot, error));
}

static void print(enum format format, const struct scenario *s, const struct row *row, const struct range *range)
{
	g_autoptr(GString) out = g_string_new(NULL);
	switch (format) {
	case FORMAT_TABLE:
		append_table(out, s, row, range);
		break;
	case FORMAT_CSV:
		g_string_append(out, report_csv_header());
		report_csv(out, row);
		break;
	case FORMAT_JSON:
		report_json(out, row);
		g_string_append_c(out, '\n');
		break;
	}
	fputs(out->str, stdout);
}

/* Several tasks side by side, their GPUs shared equally and by load. */
static bool predict_tasks(const struct options *o, const struct scenario_options *asked, enum format format, GError **error)
{
	g_autoptr(GString) out = g_string_new(NULL);
	struct ini_ints sequences = {0};
	const char *wrong = asked->sequences ? "--sequences" : o->trace ? "--trace" : o->plot ? "--plot" : o->memory ? "--memory" : NULL;
	if (wrong || format == FORMAT_JSON) {
		g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_USAGE, "--tasks does not go with %s: it prints a table or CSV of all tasks",
		            wrong ? wrong : "--format json");
		return false;
	}
	bool ok = whatif_counts("tasks", o->tasks, &sequences, error) && elastic_report(asked, &o->how, &sequences, format == FORMAT_CSV, out, error);
	g_free(sequences.v);
	if (ok)
		fputs(out->str, stdout);
	return ok;
}

bool cmd_predict(int argc, char **argv, GError **error)
{
	autoclear(options) o = {0};
	autoclear(row) row = {0};
	struct scenario_options asked;
	enum format format;
	if (!parse(&o, argc, argv, error) || !format_parse(o.format, &format, error) || !whatif_scenario(&o.whatif, &asked, error))
		return false;
	if (o.tasks)
		return predict_tasks(&o, &asked, format, error);
	g_autoptr(scenario) s = scenario_new(&asked, error);
	if (!s)
		return false;
	g_autoptr(trace) trace = o.trace || o.plot ? trace_new() : NULL;
	row = (struct row){.policy = s->policy->name, .model = s->network->name, .machine = s->machine->name, .gpus = s->machine->gpus};
	row.experts = network_experts(s->network);
	if (!row_predict(&row, s, &o.how, trace, error) || !write_files(&o, &row, trace, error))
		return false;
	struct range range = {row.prediction.step_ms, row.prediction.step_ms};
	const bool varies = s->workload == WORKLOAD_TRAINING && s->machine->adam_slowest < s->machine->adam_fastest;
	if (format == FORMAT_TABLE && varies && !predict_range(s, &o.how, &range, error))
		return false;
	print(format, s, &row, &range);
	return true;
}
