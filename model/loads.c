/* The reader of loads.csv. All rows are kept as they are, sorted by (micro-batch, layer, GPU, expert), so memory follows the file and not the numbers
 * in it; duplicates are neighbours, gaps are jumps, and a layer is found by bisection. */
#include "loads.h"

#include "error.h"

#include <string.h>

enum column { MICROBATCH, LAYER, GPU, EXPERT, TOKENS, N_COLUMNS };

static const char header[] = "microbatch,layer,gpu,expert,tokens";
static const char *const column_names[N_COLUMNS] = {"microbatch", "layer", "gpu", "expert", "tokens"};
static const uint32_t column_max[N_COLUMNS] = {65535, 65535, 1048575, 1048575, UINT32_MAX};

struct row {
	uint32_t v[N_COLUMNS], line;
};

struct loads {
	char *file;
	GArray *rows; /* struct row, sorted */
	int n_microbatches, n_gpus;
};

struct reader {
	const char *file, *at, *end, *line_start;
	uint32_t line;
};

G_GNUC_PRINTF(3, 4) static bool fail(const struct reader *r, GError **error, const char *format, ...)
{
	va_list args;
	va_start(args, format);
	g_autofree char *what = g_strdup_vprintf(format, args);
	va_end(args);
	g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_INPUT, "%s:%u:%d: %s", r->file, r->line, (int)MIN(r->at - r->line_start + 1, G_MAXINT), what);
	return false;
}

/* What stands at the reader up to the next comma or line end, printable and not too long to show. */
static char *shown(const struct reader *r)
{
	size_t n = 0;
	while (n < 24 && r->at + n < r->end && r->at[n] != ',' && r->at[n] != '\n')
		n++;
	GString *s = g_string_new(NULL);
	for (size_t i = 0; i < n; i++) {
		const unsigned char c = (unsigned char)r->at[i];
		if (g_ascii_isprint((char)c))
			g_string_append_c(s, (char)c);
		else
			g_string_append_printf(s, "\\x%02x", c);
	}
	return g_string_free(s, FALSE);
}

static bool number_read(struct reader *r, enum column column, uint32_t *out, GError **error)
{
	uint64_t value = 0;
	const char *p = r->at;
	while (p < r->end && g_ascii_isdigit(*p) && value <= UINT32_MAX)
		value = 10 * value + (uint64_t)(*p++ - '0');
	const char after = column == TOKENS ? '\n' : ',';
	const bool ends = p == r->end || *p == ',' || *p == '\n' || *p == '\r';
	if (p == r->at || !ends || value > column_max[column]) {
		g_autofree char *text = shown(r);
		return fail(r, error, "%s: \"%s\" is not a whole number 0..%u", column_names[column], text, column_max[column]);
	}
	r->at = p;
	if (column == TOKENS && r->at < r->end && *r->at == '\r')
		r->at++;
	if (r->at == r->end)
		return fail(r, error, "the file is cut off: its last line has no end");
	if (*r->at != after)
		return fail(r, error, column == TOKENS ? "a row has five columns: %s" : "a column is missing: %s", header);
	r->at++;
	*out = (uint32_t)value;
	return true;
}

static bool header_read(struct reader *r, GError **error)
{
	const size_t n = strlen(header);
	const size_t left = (size_t)(r->end - r->at);
	const size_t stop = left > n && r->at[n] == '\r' ? n + 1 : n;
	if (left <= stop || memcmp(r->at, header, n) != 0 || r->at[stop] != '\n')
		return fail(r, error, "the first line is not \"%s\"", header);
	r->at += stop + 1;
	return true;
}

static int row_compare(const void *a, const void *b)
{
	const struct row *x = a, *y = b;
	for (int c = MICROBATCH; c < TOKENS; c++)
		if (x->v[c] != y->v[c])
			return x->v[c] < y->v[c] ? -1 : 1;
	return x->line < y->line ? -1 : x->line > y->line; /* so that the later of two is called the duplicate */
}

static const struct row *row_at(const GArray *rows, size_t i)
{
	return &((const struct row *)(const void *)rows->data)[i];
}

static bool cells_same(const struct row *a, const struct row *b, enum column last)
{
	return memcmp(a->v, b->v, ((size_t)last + 1) * sizeof a->v[0]) == 0;
}

/* One (micro-batch, layer): the GPUs that have rows are 0..n_gpus-1 and each has tokens. Returns the first row past it, or 0 on error. */
static size_t layer_check(const struct loads *loads, size_t from, GError **error)
{
	const struct row *first = row_at(loads->rows, from);
	uint32_t gpu = 0;
	size_t i = from;
	while (i < loads->rows->len && cells_same(row_at(loads->rows, i), first, LAYER)) {
		const struct row *start = row_at(loads->rows, i);
		uint64_t sum = 0;
		for (; i < loads->rows->len && cells_same(row_at(loads->rows, i), start, GPU); i++)
			sum += row_at(loads->rows, i)->v[TOKENS];
		if (start->v[GPU] != gpu || sum == 0)
			break;
		gpu++;
	}
	if (gpu == (uint32_t)loads->n_gpus)
		return i;
	g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_INPUT,
	            "%s: micro-batch %u, layer %u has no tokens from gpu %u: every GPU 0..%d has some in every layer", loads->file,
	            first->v[MICROBATCH], first->v[LAYER], gpu, loads->n_gpus - 1);
	return 0;
}

static bool lacks_layer(const struct loads *loads, uint32_t microbatch, uint32_t layer, GError **error)
{
	g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_INPUT, "%s: micro-batch %u lacks layer %u, which another has", loads->file, microbatch, layer);
	return false;
}

/* All micro-batches have the layers of the first. */
static bool grid_check(const struct loads *loads, GError **error)
{
	const GArray *rows = loads->rows;
	g_autoptr(GArray) layers = g_array_new(FALSE, FALSE, sizeof(uint32_t)); /* of micro-batch 0 */
	for (size_t i = 0; i < rows->len;) {
		const uint32_t microbatch = row_at(rows, i)->v[MICROBATCH];
		guint nth = 0;
		for (; i < rows->len && row_at(rows, i)->v[MICROBATCH] == microbatch; nth++) {
			const uint32_t layer = row_at(rows, i)->v[LAYER];
			if (microbatch == 0)
				g_array_append_val(layers, layer);
			if (nth == layers->len || layer < g_array_index(layers, uint32_t, nth))
				return lacks_layer(loads, 0, layer, error);
			if (layer > g_array_index(layers, uint32_t, nth))
				break;
			i = layer_check(loads, i, error);
			if (i == 0)
				return false;
		}
		if (nth < layers->len)
			return lacks_layer(loads, microbatch, g_array_index(layers, uint32_t, nth), error);
	}
	return true;
}

static bool rows_check(struct loads *loads, GError **error)
{
	const GArray *rows = loads->rows;
	uint32_t max_gpu = 0;
	for (size_t i = 0; i < rows->len; i++) {
		const struct row *row = row_at(rows, i);
		const uint32_t before = i > 0 ? row_at(rows, i - 1)->v[MICROBATCH] : UINT32_MAX;
		if (i > 0 && cells_same(row, row_at(rows, i - 1), EXPERT)) {
			g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_INPUT, "%s:%u:1: the count of line %u a second time", loads->file, row->line,
			            row_at(rows, i - 1)->line);
			return false;
		}
		if (row->v[MICROBATCH] != before && row->v[MICROBATCH] != before + 1) {
			g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_INPUT, "%s:%u:1: micro-batch %u without a micro-batch %u", loads->file, row->line,
			            row->v[MICROBATCH], row->v[MICROBATCH] - 1);
			return false;
		}
		max_gpu = MAX(max_gpu, row->v[GPU]);
	}
	loads->n_gpus = (int)max_gpu + 1;
	loads->n_microbatches = (int)row_at(rows, rows->len - 1)->v[MICROBATCH] + 1;
	return grid_check(loads, error);
}

struct loads *loads_parse(const char *csv, size_t length, const char *file, GError **error)
{
	struct reader r = {file, csv, csv + length, csv, 1};
	g_autoptr(loads) loads = g_new0(struct loads, 1);
	loads->file = g_strdup(file);
	loads->rows = g_array_new(FALSE, FALSE, sizeof(struct row));
	if (!header_read(&r, error))
		return NULL;
	while (r.at < r.end) {
		r.line_start = r.at;
		struct row row = {.line = ++r.line};
		for (int c = MICROBATCH; c < N_COLUMNS; c++)
			if (!number_read(&r, (enum column)c, &row.v[c], error))
				return NULL;
		g_array_append_val(loads->rows, row);
	}
	if (loads->rows->len == 0) {
		fail(&r, error, "no rows");
		return NULL;
	}
	g_array_sort(loads->rows, row_compare);
	if (!rows_check(loads, error))
		return NULL;
	return g_steal_pointer(&loads);
}

struct loads *loads_read(const char *path, GError **error)
{
	g_autofree char *csv = NULL;
	size_t length;
	g_autoptr(GError) unread = NULL;
	if (!g_file_get_contents(path, &csv, &length, &unread)) {
		g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_INPUT, "%s: %s", path, unread->message);
		return NULL;
	}
	return loads_parse(csv, length, path, error);
}

void loads_free(struct loads *loads)
{
	if (!loads)
		return;
	g_array_unref(loads->rows);
	g_free(loads->file);
	g_free(loads);
}

int loads_gpus(const struct loads *loads)
{
	return loads->n_gpus;
}

bool loads_layer(const struct loads *loads, int microbatch, int layer, int experts, uint32_t *tokens, GError **error)
{
	const struct row key = {.v = {(uint32_t)(microbatch % loads->n_microbatches), (uint32_t)layer}};
	size_t low = 0, high = loads->rows->len;
	while (low < high) {
		const size_t middle = low + (high - low) / 2;
		if (row_compare(row_at(loads->rows, middle), &key) < 0)
			low = middle + 1;
		else
			high = middle;
	}
	if (low == loads->rows->len || !cells_same(row_at(loads->rows, low), &key, LAYER)) {
		g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_INPUT, "%s: no loads of layer %d", loads->file, layer);
		return false;
	}
	memset(tokens, 0, (size_t)loads->n_gpus * (size_t)experts * sizeof *tokens);
	uint32_t max_expert = 0;
	for (size_t i = low; i < loads->rows->len && cells_same(row_at(loads->rows, i), &key, LAYER); i++) {
		const struct row *row = row_at(loads->rows, i);
		max_expert = MAX(max_expert, row->v[EXPERT]);
		if (row->v[EXPERT] < (uint32_t)experts)
			tokens[(size_t)row->v[GPU] * (size_t)experts + row->v[EXPERT]] = row->v[TOKENS];
	}
	if (max_expert + 1 != (uint32_t)experts) {
		g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_INPUT, "%s: layer %d has experts 0..%u, the network has %d there", loads->file, layer,
		            max_expert, experts);
		return false;
	}
	return true;
}
