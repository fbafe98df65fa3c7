/* Tables in a machine's file: one section a kind and pass of stages, four lists of one length in it.
 *
 *     time |            . '     between two points as a start and a rate, which is what most stages are made of: 34 MB between two H200
 *          |       x--x'        take 188 us and 8 MB 63, so 17 MB 105 (measured: 101), where the power law between the two says 109;
 *          |  . x'              past the ends the nearest segment goes on, kept from constant to in proportion
 *          |____________ size
 *
 * A machine without them is read without looking for their keys. */
#include "measured.h"

#include "error.h"
#include "quantile.h"

#include <math.h>
#include <string.h>

struct section {
	const char *name;
	int kind, pass;
	const char *unit;
};

#define MOST_SPREAD 1e6 /* per cent, where a median is next to nothing */

#define EACH(kind) "measured_" kind
static const struct section sections[] = {
    {EACH("embed_forward"), STAGE_EMBED, PASS_FORWARD, "tokens"},
    {EACH("embed_backward"), STAGE_EMBED, PASS_BACKWARD, "tokens"},
    {EACH("mixer_forward"), STAGE_MIXER, PASS_FORWARD, "tokens"},
    {EACH("mixer_recompute"), STAGE_MIXER, PASS_RECOMPUTE, "tokens"},
    {EACH("mixer_backward"), STAGE_MIXER, PASS_BACKWARD, "tokens"},
    {EACH("gate_forward"), STAGE_GATE, PASS_FORWARD, "tokens x experts"},
    {EACH("gate_recompute"), STAGE_GATE, PASS_RECOMPUTE, "tokens x experts"},
    {EACH("gate_backward"), STAGE_GATE, PASS_BACKWARD, "tokens x experts"},
    {EACH("permute_forward"), STAGE_PERMUTE, PASS_FORWARD, "tokens x top_k"},
    {EACH("permute_recompute"), STAGE_PERMUTE, PASS_RECOMPUTE, "tokens x top_k"},
    {EACH("permute_backward"), STAGE_PERMUTE, PASS_BACKWARD, "tokens x top_k"},
    {EACH("expert_forward"), STAGE_EXPERT, PASS_FORWARD, "tokens"},
    {EACH("expert_backward"), STAGE_EXPERT, PASS_BACKWARD, "tokens"},
    {EACH("experts_forward"), MEASURED_GROUPED, PASS_FORWARD, "tokens"},
    {EACH("experts_backward"), MEASURED_GROUPED, PASS_BACKWARD, "tokens"},
    {EACH("combine_forward"), STAGE_COMBINE, PASS_FORWARD, "tokens x top_k"},
    {EACH("combine_backward"), STAGE_COMBINE, PASS_BACKWARD, "tokens x top_k"},
    {EACH("ffn_forward"), STAGE_FFN, PASS_FORWARD, "tokens"},
    {EACH("ffn_recompute"), STAGE_FFN, PASS_RECOMPUTE, "tokens"},
    {EACH("ffn_backward"), STAGE_FFN, PASS_BACKWARD, "tokens"},
    {EACH("shared_forward"), STAGE_SHARED, PASS_FORWARD, "tokens"},
    {EACH("shared_recompute"), STAGE_SHARED, PASS_RECOMPUTE, "tokens"},
    {EACH("shared_backward"), STAGE_SHARED, PASS_BACKWARD, "tokens"},
    {EACH("head_forward"), STAGE_HEAD, PASS_FORWARD, "tokens"},
    {EACH("adam_gpu"), STAGE_ADAM_GPU, -1, "parameters"},
    {EACH("accumulate_gpu"), STAGE_ACCUMULATE_GPU, -1, "parameters"},
    {EACH("counts"), STAGE_COUNTS, -1, "bytes"},
    {EACH("all_to_all"), STAGE_ALL_TO_ALL, -1, "bytes"},
    {EACH("all_to_all_late"), MEASURED_LATE, -1, "tokens"},
    {EACH("all_reduce"), STAGE_ALL_REDUCE, -1, "bytes"},
    {EACH("all_reduce_under"), MEASURED_UNDER, -1, "tokens x d_model"},
    {EACH("reduce_scatter"), STAGE_REDUCE_SCATTER, -1, "bytes"},
    {EACH("upload"), STAGE_UPLOAD, -1, "bytes"},
    {EACH("download"), STAGE_DOWNLOAD, -1, "bytes"},
    {EACH("adam"), STAGE_ADAM, -1, "parameters"},
    {EACH("accumulate"), STAGE_ACCUMULATE, -1, "parameters"},
    {EACH("ssd_read"), STAGE_SSD_READ, -1, "bytes"},
    {EACH("ssd_write"), STAGE_SSD_WRITE, -1, "bytes"},
};

static const struct ini_key identity[] = {
    {"measured", "network", INI_STRING, offsetof(struct measured, network), "", 0, 0, NULL, "shape of the network that was run"},
    {"measured", "device", INI_STRING, offsetof(struct measured, device), "", 0, 0, NULL, "what it ran on"},
    {"measured", "driver", INI_STRING, offsetof(struct measured, driver), "", 0, 0, NULL, "libraries and system under it"},
    {"measured", "date", INI_STRING, offsetof(struct measured, date), "", 0, 0, NULL, "when"},
    {"measured", "gpus", INI_INT, offsetof(struct measured, gpus), "1", 1, 16384, NULL, "GPUs that took part in the collectives"},
};

static size_t place_of(const struct section *s)
{
	return offsetof(struct measured, table) + sizeof(struct measured_table) * ((size_t)s->kind * N_STAGE_PASSES + (size_t)MAX(0, s->pass));
}

static struct measured_table *table_of(struct measured *m, const struct section *s)
{
	return &m->table[s->kind][MAX(0, s->pass)];
}

static const char *what_of(int kind)
{
	switch (kind) {
	case MEASURED_UNDER:
		return "longer than alone under a backward of so many, us; medians";
	case MEASURED_LATE:
		return "from its launch to its end, longer than alone, us; medians";
	default:
		return "time alone, us; medians";
	}
}

/* Keys of the identity and of all tables, or of those with sizes in `only`. */
static GArray *keys_of(struct measured *only)
{
	GArray *keys = g_array_new(FALSE, FALSE, sizeof(struct ini_key));
	g_array_append_vals(keys, identity, G_N_ELEMENTS(identity));
	for (size_t i = 0; i < G_N_ELEMENTS(sections); i++) {
		const struct section *s = &sections[i];
		size_t at = place_of(s);
		const struct ini_key four[] = {
		    {s->name, "sizes", INI_DOUBLE_LIST, at + offsetof(struct measured_table, sizes), "", 0, 1e18, NULL, s->unit},
		    {s->name, "median_us", INI_DOUBLE_LIST, at + offsetof(struct measured_table, median_us), "", 0, 1e12, NULL, what_of(s->kind)},
		    {s->name, "spread_percent", INI_DOUBLE_LIST, at + offsetof(struct measured_table, spread_percent), "", 0, MOST_SPREAD, NULL,
		     "half the distance of the quartiles over the median, %"},
		    {s->name, "samples", INI_DOUBLE_LIST, at + offsetof(struct measured_table, samples), "", 1, 1e9, NULL, "spans measured"},
		};
		const struct ini_key extra = {s->name,
		                              "extra_experts",
		                              INI_DOUBLE,
		                              at + offsetof(struct measured_table, extra_experts),
		                              "0",
		                              0,
		                              1e6,
		                              NULL,
		                              "what a token costs whatever the experts, in experts"};
		if (only && !table_of(only, s)->sizes.n)
			continue;
		g_array_append_vals(keys, four, G_N_ELEMENTS(four));
		if (s->kind == STAGE_GATE)
			g_array_append_val(keys, extra);
	}
	return keys;
}

static bool check(struct measured *m, const char *source, const char *const *overrides, GError **error)
{
	for (size_t i = 0; i < G_N_ELEMENTS(sections); i++) {
		const struct measured_table *t = table_of(m, &sections[i]);
		const struct ini_doubles *lists[] = {&t->median_us, &t->spread_percent, &t->samples};
		static const char *const names[] = {"median_us", "spread_percent", "samples"};
		for (size_t j = 0; j < G_N_ELEMENTS(lists); j++)
			if (lists[j]->n != t->sizes.n)
				return ini_refuse("machines", source, overrides, sections[i].name, names[j], error,
				                  "%d values; expected %d, one for each of sizes", lists[j]->n, t->sizes.n);
		for (int j = 0; j < t->sizes.n; j++) {
			if (t->sizes.v[j] <= (j ? t->sizes.v[j - 1] : 0))
				return ini_refuse("machines", source, overrides, sections[i].name, "sizes", error,
				                  "%g in place %d; expected ascending numbers above 0", t->sizes.v[j], j + 1);
			if (t->median_us.v[j] <= 0)
				return ini_refuse("machines", source, overrides, sections[i].name, "median_us", error,
				                  "%g in place %d; expected more than 0", t->median_us.v[j], j + 1);
		}
	}
	return true;
}

static bool has_any(const char *text, const char *const *overrides)
{
	for (const char *const *o = overrides; o && *o; o++)
		if (g_str_has_prefix(*o, "measured"))
			return true;
	return g_str_has_prefix(text, "[measured") || strstr(text, "\n[measured");
}

bool measured_read(const char *source, const char *const *overrides, struct measured **out, GError **error)
{
	g_autofree char *file = NULL, *name = NULL, *text = source_text("machines", source, &file, &name, error);
	*out = NULL;
	if (!text)
		return false;
	if (!has_any(text, overrides))
		return true;
	g_autofree struct measured *read = g_new0(struct measured, 1);
	g_autoptr(GArray) keys = keys_of(NULL);
	if (!ini_read("machines", source, (const struct ini_key *)(void *)keys->data, keys->len, overrides, read, NULL, error))
		return false;
	g_autoptr(measured) m = g_steal_pointer(&read);
	if (!check(m, source, overrides, error))
		return false;
	*out = g_steal_pointer(&m);
	return true;
}

bool measured_section(const char *name)
{
	for (size_t i = 0; i < G_N_ELEMENTS(sections); i++)
		if (g_str_equal(name, sections[i].name))
			return true;
	return g_str_equal(name, "measured");
}

struct measured *measured_new(void)
{
	struct measured *m = g_new0(struct measured, 1);
	m->gpus = 1;
	m->network = g_strdup("");
	m->device = g_strdup("");
	m->driver = g_strdup("");
	m->date = g_strdup("");
	return m;
}

void measured_free(struct measured *m)
{
	if (!m)
		return;
	g_autoptr(GArray) keys = keys_of(NULL);
	ini_clear((const struct ini_key *)(void *)keys->data, keys->len, m);
	g_free(m);
}

char *measured_ini(const struct measured *m)
{
	g_autoptr(GArray) keys = keys_of((struct measured *)m);
	return ini_write((const struct ini_key *)(void *)keys->data, keys->len, m);
}

char *measured_network(const struct network *n)
{
	const struct layer *expert = NULL, *dense = NULL, *shared = NULL;
	for (int i = 0; i < n->layers; i++) {
		const struct layer *l = &n->layer[i];
		expert = !expert && l->experts ? l : expert;
		dense = !dense && l->d_ff ? l : dense;
		shared = !shared && l->shared ? l : shared;
	}
	return g_strdup_printf("d_model %d, heads %d, kv_heads %d, d_head %d, vocab %d, seq_len %d, %s, d_expert %d, d_ff %d, d_shared %d",
	                       n->d_model, n->heads, n->kv_heads, n->d_head, n->vocab, n->seq_len, activation_name(n->activation),
	                       expert ? expert->d_expert : 0, dense ? dense->d_ff : 0, shared ? shared->shared * shared->d_shared : 0);
}

static const struct section *find(int kind, int pass)
{
	for (size_t i = 0; i < G_N_ELEMENTS(sections); i++)
		if (sections[i].kind == kind && (sections[i].pass < 0 || sections[i].pass == pass))
			return &sections[i];
	return NULL;
}

const char *measured_unit(int kind, int pass)
{
	const struct section *s = find(kind, pass);
	return s ? s->unit : NULL;
}

int measured_pass(int kind, int pass)
{
	const struct section *s = find(kind, pass);
	return s ? MAX(0, s->pass) : pass;
}

double measured_size(const struct measured_table *t, int kind, const struct layer *l, double tokens)
{
	if (kind == STAGE_GATE)
		return tokens * (l->experts + t->extra_experts);
	return kind == STAGE_PERMUTE || kind == STAGE_COMBINE ? tokens * l->top_k : tokens;
}

enum measured_range measured_ns(const struct measured_table *t, double size, double *ns)
{
	int n = t->sizes.n, high = 1;
	const double *x = t->sizes.v, *y = t->median_us.v;
	if (!n)
		return MEASURED_NONE;
	size = fmax(size, 1);
	enum measured_range range = size < x[0] ? MEASURED_BELOW : size > x[n - 1] ? MEASURED_ABOVE : MEASURED_INSIDE;
	while (high < n - 1 && x[high] < size)
		high++;
	/* one point alone: in proportion above it, constant below */
	const int from = n > 1 && range != MEASURED_ABOVE ? high - 1 : n - 1;
	double slope = n > 1 ? (y[high] - y[high - 1]) / (x[high] - x[high - 1]) : size > x[0] ? y[0] / x[0] : 0;
	if (range != MEASURED_INSIDE)
		slope = fmin(fmax(slope, 0), y[from] / x[from]);
	*ns = 1e3 * (y[from] + slope * (size - x[from]));
	return range;
}

void measured_table_clear(struct measured_table *t)
{
	g_free(t->sizes.v);
	g_free(t->median_us.v);
	g_free(t->spread_percent.v);
	g_free(t->samples.v);
	*t = (struct measured_table){0};
}

static void append(struct ini_doubles *list, double v)
{
	list->v = g_renew(double, list->v, list->n + 1);
	list->v[list->n++] = v;
}

void measured_add(struct measured_table *t, double size, double *samples_us, int n)
{
	g_assert(n > 0 && size > (t->sizes.n ? t->sizes.v[t->sizes.n - 1] : 0));
	quantile_sort(samples_us, n);
	/* a clock of nanoseconds may show nothing: such a stage still took some */
	double median = fmax(quantile(samples_us, n, 0.5), 0.001);
	append(&t->sizes, size);
	append(&t->median_us, median);
	append(&t->spread_percent, fmin(50 * (quantile(samples_us, n, 0.75) - quantile(samples_us, n, 0.25)) / median, MOST_SPREAD));
	append(&t->samples, n);
}
