/* Files of our own say everything about a span; a foreign file's GPU events are sorted into our streams by what they are called, since its stream
 * numbers mean nothing to us. Every number is checked before it is narrowed, so that no later reader needs to. */
#include "kineto_event.h"

#include "kineto_form.h"
#include "model/error.h"

#include <math.h>
#include <string.h>

static const char *const key_names[N_KEYS] = {
    [KEY_PID] = "pid",
    [KEY_TID] = "tid",
    [KEY_TS] = "ts",
    [KEY_DUR] = "dur",
    [KEY_DEVICE] = "device",
    [KEY_CORRELATION] = "correlation",
    [KEY_STAGE] = "stage",
    [KEY_STEP] = "step",
    [KEY_LAYER] = "layer",
    [KEY_MICROBATCH] = "microbatch",
    [KEY_EXPERT] = "expert",
    [KEY_RANK] = "rank",
    [KEY_TOKENS] = "tokens",
    [KEY_BYTES] = "bytes",
    [KEY_UNKNOWN] = "unknown",
    [KEY_PH] = "ph",
    [KEY_CAT] = "cat",
    [KEY_NAME] = "name",
    [KEY_KIND] = "kind",
    [KEY_PASS] = "pass",
    [KEY_ARGS] = "args",
    [KEY_PREDS] = "preds",
    [KEY_EVENTS] = "traceEvents",
    [KEY_DEVICES] = "deviceProperties",
    [KEY_DISTRIBUTED] = "distributedInfo",
    [KEY_WORLD] = "world_size",
    [KEY_BASE] = "baseTimeNanoseconds",
    [KEY_GPUS_PER_NODE] = "gpus_per_node",
    [KEY_DESCRIPTION] = "description",
    [KEY_HBM] = "totalGlobalMem",
    [KEY_SMS] = "numSms",
};

const char *kineto_key_name(enum key key)
{
	return key_names[key];
}

struct reading {
	struct kineto_file *file;
	const struct event *event;
	GError **error;
};

static bool complain(struct reading *r, const char *format, ...) G_GNUC_PRINTF(2, 3);
static bool complain(struct reading *r, const char *format, ...)
{
	va_list args;

	va_start(args, format);
	g_propagate_error(r->error, g_error_new_valist(ESMOE_ERROR, ESMOE_ERROR_INPUT, format, args));
	va_end(args);
	return false;
}

static bool seen(const struct event *e, enum key key)
{
	return e->seen >> key & 1;
}

static int64_t number(const struct event *e, enum key key, int64_t absent)
{
	return seen(e, key) ? e->number[key] : absent;
}

static const char *word(const struct event *e, enum key key)
{
	return seen(e, key) ? e->word[key - KEY_PH].text : "";
}

static bool in_range(struct reading *r, enum key key, int64_t absent, int64_t min, int64_t max, int64_t *out)
{
	*out = number(r->event, key, absent);
	if (*out >= min && *out <= max)
		return true;
	return complain(r, "\"%s\": %" G_GINT64_FORMAT " is not between %" G_GINT64_FORMAT " and %" G_GINT64_FORMAT, key_names[key], *out, min, max);
}

static bool event_times(struct reading *r, nsec_t *start, nsec_t *end)
{
	int64_t most = r->file->own ? KINETO_MOST_NS : KINETO_MOST_FOREIGN_NS, duration;

	if (!in_range(r, KEY_TS, 0, -most, most, start) || !in_range(r, KEY_DUR, 0, 0, KINETO_MOST_NS, &duration))
		return false;
	*end = *start + duration;
	return true;
}

/* Stream of an event of our own by its row, STAGE_NONE when there is none. */
static stream_id own_stream(const struct kineto_file *f, int64_t pid, int64_t tid)
{
	int64_t nodes = (f->gpus + f->gpus_per_node - 1) / f->gpus_per_node;

	if (pid >= 0 && pid < f->gpus && tid >= 1 && tid <= GPU_STREAMS)
		return stream_of_gpu((int)pid, (enum gpu_stream)(tid - 1));
	pid -= KINETO_NODE_PID;
	if (pid >= 0 && pid < nodes && tid >= 1 && tid <= NODE_STREAMS)
		return (stream_id)(f->gpus * GPU_STREAMS + pid * NODE_STREAMS + tid - 1);
	return STAGE_NONE;
}

static bool own_span(struct reading *r)
{
	struct kineto_file *f = r->file;
	const struct event *e = r->event;
	int kind = stage_kind_parse(word(e, KEY_KIND)), pass = stage_pass_parse(word(e, KEY_PASS));
	int64_t id, step, layer, microbatch, expert, rank, tokens, bytes, pid = number(e, KEY_PID, -1);
	struct span s = {.launch_ns = -1, .launch_end_ns = -1};

	if (kind < 0 && strcmp(word(e, KEY_KIND), span_kind_name(SPAN_OTHER)) == 0)
		kind = SPAN_OTHER;
	if (kind < 0 || pass < 0)
		return complain(r, "no stage is \"%s\" in pass \"%s\"", word(e, KEY_KIND), word(e, KEY_PASS));
	s.stream = own_stream(f, pid, number(e, KEY_TID, -1));
	if (s.stream == STAGE_NONE)
		return complain(r, "pid %" G_GINT64_FORMAT " has no stream %" G_GINT64_FORMAT, pid, number(e, KEY_TID, -1));
	if (!in_range(r, KEY_STAGE, -1, 0, STAGE_NONE - 1, &id) || !in_range(r, KEY_STEP, 0, 0, UINT16_MAX, &step) ||
	    !in_range(r, KEY_LAYER, 0, 0, UINT16_MAX, &layer) || !in_range(r, KEY_MICROBATCH, 0, 0, UINT16_MAX, &microbatch) ||
	    !in_range(r, KEY_EXPERT, -1, INT32_MIN, INT32_MAX, &expert) || !in_range(r, KEY_RANK, pid, 0, f->gpus - 1, &rank) ||
	    !in_range(r, KEY_TOKENS, 0, 0, UINT32_MAX, &tokens) || !in_range(r, KEY_BYTES, 0, 0, INT64_MAX, &bytes) ||
	    !event_times(r, &s.start_ns, &s.end_ns))
		return false;
	for (int i = 0; i < e->n_preds; i++) {
		if (e->preds[i] < 0 || e->preds[i] >= id)
			return complain(r, "stage %" G_GINT64_FORMAT " cannot have predecessor %" G_GINT64_FORMAT, id, e->preds[i]);
		s.preds[i] = (stage_id)e->preds[i];
	}
	s.n_preds = (uint8_t)e->n_preds;
	s.id = (stage_id)id;
	s.kind = (uint8_t)kind;
	s.pass = (uint8_t)pass;
	s.step = (uint16_t)step;
	s.layer = (uint16_t)layer;
	s.microbatch = (uint16_t)microbatch;
	s.expert = (int32_t)expert;
	s.rank = (int32_t)rank;
	s.tokens = (uint32_t)tokens;
	s.bytes = (uint64_t)bytes;
	g_array_append_val(f->spans, s);
	return true;
}

static int foreign_kind(const char *cat, const char *name, enum gpu_stream *stream)
{
	*stream = STREAM_COMPUTE;
	if (strcmp(cat, "gpu_memcpy") == 0 && strstr(name, "HtoD")) {
		*stream = STREAM_UPLOAD;
		return STAGE_UPLOAD;
	}
	if (strcmp(cat, "gpu_memcpy") == 0 && strstr(name, "DtoH")) {
		*stream = STREAM_DOWNLOAD;
		return STAGE_DOWNLOAD;
	}
	if (!g_str_has_prefix(name, "nccl"))
		return SPAN_OTHER;
	*stream = STREAM_COLLECTIVE;
	if (strstr(name, "AllReduce"))
		return STAGE_ALL_REDUCE;
	if (strstr(name, "ReduceScatter"))
		return STAGE_REDUCE_SCATTER;
	if (strstr(name, "AllGather"))
		return STAGE_ALL_GATHER;
	return strstr(name, "SendRecv") || strstr(name, "AllToAll") ? STAGE_ALL_TO_ALL : SPAN_OTHER;
}

static bool foreign_span(struct reading *r)
{
	const struct event *e = r->event;
	enum gpu_stream stream;
	int64_t bytes, device, correlation = number(e, KEY_CORRELATION, -1);
	struct span s = {.expert = -1, .launch_ns = -1, .launch_end_ns = -1};

	if (!in_range(r, KEY_DEVICE, 0, 0, KINETO_MOST_GPUS - 1, &device) || !in_range(r, KEY_BYTES, 0, 0, INT64_MAX, &bytes) ||
	    !event_times(r, &s.start_ns, &s.end_ns))
		return false;
	s.kind = (uint8_t)foreign_kind(word(e, KEY_CAT), word(e, KEY_NAME), &stream);
	s.stream = stream;
	s.id = r->file->spans->len;
	s.rank = (int32_t)device;
	s.bytes = (uint64_t)bytes;
	g_array_append_val(r->file->spans, s);
	g_array_append_val(r->file->correlations, correlation);
	return true;
}

static bool add_interval(struct reading *r, GArray *to, int64_t key)
{
	struct kineto_interval i = {.key = key};

	if (!event_times(r, &i.start_ns, &i.end_ns))
		return false;
	g_array_append_val(to, i);
	return true;
}

static struct counter *find_counter(struct kineto_file *f, const char *name, int gpu, int node)
{
	struct counter *counter;

	/* Samples of one counter come together, so that the last is nearly always the one. */
	for (guint i = f->counters->len; i > 0; i--) {
		counter = g_ptr_array_index(f->counters, i - 1);
		if (counter->gpu == gpu && counter->node == node && strcmp(counter->name, name) == 0)
			return counter;
	}
	counter = counter_new(name, gpu, node);
	g_ptr_array_add(f->counters, counter);
	return counter;
}

static bool add_sample(struct reading *r)
{
	struct kineto_file *f = r->file;
	const struct event *e = r->event;
	int64_t pid = number(e, KEY_PID, -1), nodes = (f->gpus + f->gpus_per_node - 1) / f->gpus_per_node;
	int gpu = pid >= 0 && pid < f->gpus ? (int)pid : -1;
	int node = pid >= KINETO_NODE_PID && pid - KINETO_NODE_PID < nodes ? (int)(pid - KINETO_NODE_PID) : -1;
	g_autofree char *name = g_strconcat(word(e, KEY_NAME), e->unit.text[0] ? " " : "", e->unit.text, NULL);
	struct sample sample = {.value = e->value};
	struct counter *counter;
	nsec_t end;

	if (gpu < 0 && node < 0)
		return complain(r, "a counter of pid %" G_GINT64_FORMAT ", which is no GPU or node", pid);
	if (!isfinite(e->value))
		return complain(r, "counter \"%s\" is not finite", name);
	if (!event_times(r, &sample.ns, &end))
		return false;
	counter = find_counter(f, name, gpu, node);
	if (counter->samples->len > 0 && g_array_index(counter->samples, struct sample, counter->samples->len - 1).ns > sample.ns)
		return complain(r, "counter \"%s\" goes back in time", name);
	g_array_append_val(counter->samples, sample);
	return true;
}

bool kineto_event_end(struct kineto_file *f, const struct event *e, GError **error)
{
	struct reading reading = {f, e, error}, *r = &reading;
	const char *ph = word(e, KEY_PH), *cat = word(e, KEY_CAT), *name = word(e, KEY_NAME);

	if (f->own && strcmp(ph, "C") == 0)
		return add_sample(r);
	if (strcmp(ph, "X") != 0)
		return true;
	if (f->own && seen(e, KEY_STAGE)) {
		if (seen(e, KEY_KIND))
			return own_span(r);
		return seen(e, KEY_UNKNOWN) || add_interval(r, f->launches, e->number[KEY_STAGE]);
	}
	if (strcmp(cat, "user_annotation") == 0 && g_str_has_prefix(name, KINETO_STEP_NAME))
		return add_interval(r, f->steps, g_ascii_strtoll(name + strlen(KINETO_STEP_NAME), NULL, 10));
	if (f->own)
		return true;
	if (strcmp(cat, "kernel") == 0 || strcmp(cat, "gpu_memcpy") == 0 || strcmp(cat, "gpu_memset") == 0)
		return foreign_span(r);
	if ((strcmp(cat, "cuda_runtime") == 0 || strcmp(cat, "cuda_driver") == 0) && seen(e, KEY_CORRELATION))
		return add_interval(r, f->launches, e->number[KEY_CORRELATION]);
	return true;
}
