/* A file arrives as JSON tokens from yajl and is never held as a tree: a million spans are half a gigabyte of text. Where a token stands is known
 * from its depth and the keys above it; the fields of one event are gathered by key and become a span, a launch, a step or a sample when its map
 * closes. Numbers are kept as integers read from their digits, so that a time in microseconds with three decimals is exact in nanoseconds. */
#include "kineto_parse.h"

#include "kineto_event.h"
#include "kineto_form.h"
#include "model/error.h"

#include <string.h>
#include <yajl/yajl_parse.h>

enum { SLOTS = 128, DEEPEST = 5, CHUNK_BYTES = 1 << 18 };

struct parser {
	struct kineto_file *file;
	uint8_t slot[SLOTS]; /* keys by hash, open addressing */
	int depth;
	uint8_t path[DEEPEST + 1]; /* the key in force at each depth */
	bool has_events, in_first_device;
	struct event event;
	GError *error;
};

static bool complain(struct parser *p, const char *format, ...) G_GNUC_PRINTF(2, 3);
static bool complain(struct parser *p, const char *format, ...)
{
	va_list args;

	va_start(args, format);
	if (!p->error)
		p->error = g_error_new_valist(ESMOE_ERROR, ESMOE_ERROR_INPUT, format, args);
	va_end(args);
	return false;
}

static unsigned slot_of(const char *name, size_t n)
{
	return n ? ((unsigned)n * 31 + (unsigned char)name[0] * 7 + (unsigned char)name[n - 1] * 3) % SLOTS : 0;
}

static void make_slots(struct parser *p)
{
	for (int k = KEY_NONE; k < N_KEYS; k++) {
		unsigned at;

		if (!kineto_key_name(k))
			continue;
		for (at = slot_of(kineto_key_name(k), strlen(kineto_key_name(k))); p->slot[at]; at = (at + 1) % SLOTS)
			;
		p->slot[at] = (uint8_t)k;
	}
}

static enum key find_key(const struct parser *p, const char *name, size_t n)
{
	for (unsigned at = slot_of(name, n); p->slot[at]; at = (at + 1) % SLOTS) {
		const char *known = kineto_key_name(p->slot[at]);

		if (strlen(known) == n && memcmp(known, name, n) == 0)
			return p->slot[at];
	}
	return KEY_NONE;
}

/* Tokens are not terminated. */
static double parse_double(const char *text, size_t n)
{
	char terminated[64] = {0};

	memcpy(terminated, text, MIN(n, sizeof(terminated) - 1));
	return g_ascii_strtod(terminated, NULL);
}

/* The number times 10^decimals, further decimals cut off. False when it does not fit. */
static bool parse_fixed(const char *text, size_t n, int decimals, int64_t *out)
{
	bool negative = n > 0 && text[0] == '-';
	int64_t v = 0;
	int left = -1; /* decimals still to read, -1: before the point */

	for (size_t i = negative; i < n; i++) {
		if (text[i] == '.' && left < 0) {
			left = decimals;
		} else if (g_ascii_isdigit(text[i])) {
			if (left == 0)
				continue;
			if (__builtin_mul_overflow(v, 10, &v) || __builtin_add_overflow(v, text[i] - '0', &v))
				return false;
			left -= left > 0;
		} else {
			double d = parse_double(text, n);

			for (int k = 0; k < decimals; k++)
				d *= 10;
			if (!(d > -9e18 && d < 9e18))
				return false;
			*out = (int64_t)d;
			return true;
		}
	}
	for (left = left < 0 ? decimals : left; left > 0; left--)
		if (__builtin_mul_overflow(v, 10, &v))
			return false;
	*out = negative ? -v : v;
	return true;
}

static bool file_number(struct parser *p, enum key key, const char *text, size_t n, int64_t min, int64_t max, int64_t *out)
{
	if (parse_fixed(text, n, 0, out) && *out >= min && *out <= max)
		return true;
	return complain(p, "\"%s\": %.*s is not between %" G_GINT64_FORMAT " and %" G_GINT64_FORMAT, kineto_key_name(key), (int)MIN(n, 40), text, min,
	                max);
}

static bool file_value(struct parser *p, enum key key, const char *text, size_t n)
{
	struct kineto_file *f = p->file;

	/* What the events were read by does not change behind them. */
	if (f->own)
		return true;
	switch (key) {
	case KEY_RANK:
		return file_number(p, key, text, n, 0, KINETO_MOST_GPUS, &f->rank);
	case KEY_WORLD:
		return file_number(p, key, text, n, 1, KINETO_MOST_GPUS, &f->gpus);
	case KEY_GPUS_PER_NODE:
		return file_number(p, key, text, n, 1, KINETO_MOST_GPUS, &f->gpus_per_node);
	case KEY_BASE:
		return file_number(p, key, text, n, 0, KINETO_MOST_FOREIGN_NS, &f->base_ns);
	case KEY_HBM:
		return file_number(p, key, text, n, 0, INT64_MAX, &f->hbm_bytes);
	case KEY_SMS:
		return file_number(p, key, text, n, 0, INT32_MAX, &f->sms);
	default:
		return true;
	}
}

static void keep_text(char **to, const char *text, size_t n)
{
	g_free(*to);
	*to = g_utf8_make_valid(text, (gssize)n);
}

static int on_number(void *data, const char *text, size_t n)
{
	struct parser *p = data;
	struct event *e = &p->event;
	enum key key = p->depth <= DEEPEST ? p->path[p->depth] : KEY_NONE;
	bool in_events = p->path[1] == KEY_EVENTS && p->path[2] == KEY_ITEM;

	if (p->depth == 1 || (p->depth == 2 && p->path[1] == KEY_DISTRIBUTED) || (p->depth == 3 && p->in_first_device))
		return file_value(p, key, text, n);
	if (!in_events || p->depth < 3)
		return true;
	if (p->depth == 3 || (p->depth == 4 && p->path[3] == KEY_ARGS)) {
		if (key == KEY_NONE && p->depth == 4 && e->word[0].text[0] == 'C')
			e->value = parse_double(text, n);
		if (key <= KEY_ITEM || key >= N_NUMBERS)
			return true;
		if (!parse_fixed(text, n, key == KEY_TS || key == KEY_DUR ? 3 : 0, &e->number[key]))
			return complain(p, "\"%s\": %.*s is out of range", kineto_key_name(key), (int)MIN(n, 40), text);
		e->seen |= UINT64_C(1) << key;
	} else if (p->depth == 5 && p->path[3] == KEY_ARGS && p->path[4] == KEY_PREDS && key == KEY_ITEM && p->file->own) {
		if (e->n_preds == STAGE_PREDECESSORS || !parse_fixed(text, n, 0, &e->preds[e->n_preds]))
			return complain(p, "\"preds\": at most %d stages", STAGE_PREDECESSORS);
		e->n_preds++;
	}
	return true;
}

static int on_string(void *data, const unsigned char *bytes, size_t n)
{
	struct parser *p = data;
	const char *text = (const char *)bytes;
	enum key key = p->depth <= DEEPEST ? p->path[p->depth] : KEY_NONE;

	if (p->depth == 1 && key == KEY_DESCRIPTION)
		keep_text(&p->file->description, text, n);
	if (p->depth == 3 && p->in_first_device && key == KEY_NAME)
		keep_text(&p->file->gpu_name, text, n);
	if (p->path[1] != KEY_EVENTS || p->path[2] != KEY_ITEM || key < KEY_PH || key > KEY_PASS)
		return true;
	/* Only ours put words into args; a foreign "name" there is somebody else's. */
	if (p->depth == 3 || (p->depth == 4 && p->path[3] == KEY_ARGS && key >= KEY_KIND)) {
		char *to = p->event.word[key - KEY_PH].text;
		size_t kept = MIN(n, (size_t)WORD_BYTES - 1);

		memcpy(to, text, kept);
		to[kept] = '\0';
		p->event.seen |= UINT64_C(1) << key;
	}
	return true;
}

static int on_key(void *data, const unsigned char *name, size_t n)
{
	struct parser *p = data;
	struct event *e = &p->event;

	if (p->depth > DEEPEST)
		return true;
	p->path[p->depth] = (uint8_t)find_key(p, (const char *)name, n);
	if (p->depth == 4 && p->path[1] == KEY_EVENTS && e->word[0].text[0] == 'C' && p->path[3] == KEY_ARGS) {
		size_t kept = MIN(n, (size_t)WORD_BYTES - 1);

		memcpy(e->unit.text, name, kept);
		e->unit.text[kept] = '\0';
		p->path[4] = KEY_NONE;
	}
	return true;
}

static int on_start(struct parser *p, enum key first)
{
	p->depth++;
	if (p->depth <= DEEPEST)
		p->path[p->depth] = (uint8_t)first;
	return true;
}

static int on_start_map(void *data)
{
	struct parser *p = data;

	if (p->depth == 2 && p->path[1] == KEY_EVENTS && p->path[2] == KEY_ITEM) {
		p->event.seen = 0;
		p->event.n_preds = 0;
		p->event.word[0].text[0] = '\0';
	}
	on_start(p, KEY_NONE);
	p->in_first_device |= p->depth == 3 && p->path[1] == KEY_DEVICES && p->path[2] == KEY_ITEM && !p->file->gpu_name;
	return true;
}

static int on_end_map(void *data)
{
	struct parser *p = data;

	p->depth--;
	if (p->depth == 2)
		p->in_first_device = false;
	if (p->depth == 2 && p->path[1] == KEY_EVENTS && p->path[2] == KEY_ITEM)
		return kineto_event_end(p->file, &p->event, &p->error);
	return true;
}

static int on_start_array(void *data)
{
	struct parser *p = data;

	if (p->depth == 1 && p->path[1] == KEY_EVENTS) {
		if (p->has_events)
			return complain(p, "a second \"traceEvents\"");
		p->has_events = true;
		p->file->own = p->file->gpus_per_node > 0;
		if (p->file->own && p->file->gpus < 0)
			return complain(p, "\"world_size\" is missing before \"traceEvents\"");
	}
	return on_start(p, KEY_ITEM);
}

static int on_end_array(void *data)
{
	struct parser *p = data;

	p->depth--;
	return true;
}

static const yajl_callbacks callbacks = {
    .yajl_number = on_number,
    .yajl_string = on_string,
    .yajl_map_key = on_key,
    .yajl_start_map = on_start_map,
    .yajl_end_map = on_end_map,
    .yajl_start_array = on_start_array,
    .yajl_end_array = on_end_array,
};

/* Where the parser stopped, and why: our own word if we stopped it, else yajl's first line. */
static bool stopped(struct parser *p, yajl_handle yajl, int64_t at, GError **error)
{
	unsigned char *said = yajl_get_error(yajl, 0, NULL, 0);
	g_autofree char *why = g_utf8_make_valid(p->error ? p->error->message : g_strchomp((char *)said), -1);

	g_strdelimit(why, "\n\r", ' ');
	g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_INPUT, "%s: byte %" G_GINT64_FORMAT ": %s", p->file->name, at, why);
	yajl_free_error(yajl, said);
	g_clear_error(&p->error);
	return false;
}

static bool parse_stream(struct parser *p, yajl_handle yajl, GInputStream *in, GError **error)
{
	g_autofree unsigned char *chunk = g_malloc(CHUNK_BYTES);
	int64_t before = 0;
	GError *cause = NULL;
	gssize n;

	while ((n = g_input_stream_read(in, chunk, CHUNK_BYTES, NULL, &cause)) > 0) {
		if (yajl_parse(yajl, chunk, (size_t)n) != yajl_status_ok)
			return stopped(p, yajl, before + (int64_t)yajl_get_bytes_consumed(yajl), error);
		before += n;
	}
	if (n < 0) {
		g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_INPUT, "%s: byte %" G_GINT64_FORMAT ": cannot be read: %s", p->file->name, before,
		            cause->message);
		g_error_free(cause);
		return false;
	}
	if (yajl_complete_parse(yajl) != yajl_status_ok)
		return stopped(p, yajl, before, error);
	if (!p->has_events) {
		g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_INPUT, "%s: not a trace: no \"traceEvents\" array", p->file->name);
		return false;
	}
	return true;
}

/* The stream itself, or its decompressed content. */
static GInputStream *unpacked(GInputStream *in)
{
	g_autoptr(GInputStream) buffered = g_buffered_input_stream_new(in);
	gsize n;
	const unsigned char *magic;

	/* A failure to read shows again at the first real read. */
	(void)!g_buffered_input_stream_fill(G_BUFFERED_INPUT_STREAM(buffered), 2, NULL, NULL);
	magic = g_buffered_input_stream_peek_buffer(G_BUFFERED_INPUT_STREAM(buffered), &n);
	if (n >= 2 && magic[0] == 0x1f && magic[1] == 0x8b) {
		g_autoptr(GZlibDecompressor) gzip = g_zlib_decompressor_new(G_ZLIB_COMPRESSOR_FORMAT_GZIP);

		return g_converter_input_stream_new(buffered, G_CONVERTER(gzip));
	}
	return g_steal_pointer(&buffered);
}

static struct kineto_file *file_new(const char *name)
{
	struct kineto_file *f = g_new0(struct kineto_file, 1);

	f->name = g_strdup(name);
	f->rank = f->gpus = f->gpus_per_node = -1;
	f->spans = g_array_new(FALSE, FALSE, sizeof(struct span));
	f->correlations = g_array_new(FALSE, FALSE, sizeof(int64_t));
	f->launches = g_array_new(FALSE, FALSE, sizeof(struct kineto_interval));
	f->steps = g_array_new(FALSE, FALSE, sizeof(struct kineto_interval));
	f->counters = g_ptr_array_new_with_free_func((GDestroyNotify)counter_free);
	return f;
}

void kineto_file_free(struct kineto_file *f)
{
	if (!f)
		return;
	g_free(f->name);
	g_free(f->gpu_name);
	g_free(f->description);
	g_array_unref(f->spans);
	g_array_unref(f->correlations);
	g_array_unref(f->launches);
	g_array_unref(f->steps);
	g_ptr_array_unref(f->counters);
	g_free(f);
}

struct kineto_file *kineto_parse(const char *name, GInputStream *in, GError **error)
{
	g_autoptr(kineto_file) f = file_new(name);
	g_autoptr(GInputStream) json = unpacked(in);
	g_autofree struct parser *p = g_new0(struct parser, 1);
	yajl_handle yajl = yajl_alloc(&callbacks, NULL, p);
	bool ok;

	p->file = f;
	make_slots(p);
	/* Words are compared with ours and texts made valid where they are kept. */
	yajl_config(yajl, yajl_dont_validate_strings, 1);
	ok = parse_stream(p, yajl, json, error);
	yajl_free(yajl);
	return ok ? g_steal_pointer(&f) : NULL;
}
