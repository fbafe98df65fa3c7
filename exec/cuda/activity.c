/* When the work of a stage really ran, from CUPTI: each call of CUDA between stage_begin and stage_end carries the stage's number as its external
 * correlation, each kernel, copy and fill the call's own:
 *
 *     stage 17 --- call 901 --- kernel 12.3 .. 14.1 us \
 *            \---- call 902 --- kernel 14.2 .. 19.8 us  > stage 17: 12.3 .. 19.8 us
 *
 * CUPTI's callbacks carry no argument and it records for the whole process, so this file has the module's only global state. CUPTI is opened when it
 * is asked for; without it, events' times are what there is. Ranges for Nsight Systems (NVTX) are there always, and cost nothing without it. */
#define _GNU_SOURCE
#include "gpu.h"

#include <cupti.h>
#include <dlfcn.h>
#include <nvtx3/nvToolsExt.h>
#include <stdlib.h>

#define BUFFER_BYTES ((size_t)4 << 20)

struct times {
	int64_t start_ns, end_ns;
};

/* Work whose call is not known yet. */
struct work {
	uint32_t call;
	struct times times;
};

static struct activity {
	pthread_mutex_t lock;
	bool tried, on;
	GHashTable *stage_of_call; /* correlation to external id */
	GHashTable *times_of;      /* external id to struct times */
	GArray *unknown;           /* struct work */
	CUptiResult (*push)(CUpti_ExternalCorrelationKind, uint64_t);
	CUptiResult (*pop)(CUpti_ExternalCorrelationKind, uint64_t *);
	CUptiResult (*flush)(uint32_t);
	CUptiResult (*next)(uint8_t *, size_t, CUpti_Activity **);
	CUptiResult (*enable)(CUpti_ActivityKind);
	CUptiResult (*callbacks)(CUpti_BuffersCallbackRequestFunc, CUpti_BuffersCallbackCompleteFunc);
	CUptiResult (*clock)(CUpti_TimestampCallbackFunc);
} activity = {.lock = PTHREAD_MUTEX_INITIALIZER};

/* ---- records ---- */

static void add(uint64_t stage, const struct times *t)
{
	struct times *known = g_hash_table_lookup(activity.times_of, GUINT_TO_POINTER(stage + 1));
	if (!known) {
		known = g_memdup2(t, sizeof(*t));
		g_hash_table_insert(activity.times_of, GUINT_TO_POINTER(stage + 1), known);
	}
	known->start_ns = MIN(known->start_ns, t->start_ns);
	known->end_ns = MAX(known->end_ns, t->end_ns);
}

static void note(const CUpti_Activity *record)
{
	struct work w = {0};
	switch (record->kind) {
	case CUPTI_ACTIVITY_KIND_EXTERNAL_CORRELATION: {
		const CUpti_ActivityExternalCorrelation *x = (const void *)record;
		g_hash_table_insert(activity.stage_of_call, GUINT_TO_POINTER(x->correlationId), GUINT_TO_POINTER((guint)x->externalId + 1));
		return;
	}
	case CUPTI_ACTIVITY_KIND_KERNEL:
	case CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL: {
		const CUpti_ActivityKernel10 *x = (const void *)record;
		w = (struct work){x->correlationId, {(int64_t)x->start, (int64_t)x->end}};
		break;
	}
	case CUPTI_ACTIVITY_KIND_MEMCPY: {
		const CUpti_ActivityMemcpy6 *x = (const void *)record;
		w = (struct work){x->correlationId, {(int64_t)x->start, (int64_t)x->end}};
		break;
	}
	case CUPTI_ACTIVITY_KIND_MEMSET: {
		const CUpti_ActivityMemset4 *x = (const void *)record;
		w = (struct work){x->correlationId, {(int64_t)x->start, (int64_t)x->end}};
		break;
	}
	default:
		return;
	}
	if (w.times.start_ns)
		g_array_append_val(activity.unknown, w);
}

/* Work and correlations come in any order. */
static void fold(void)
{
	guint kept = 0;
	for (guint i = 0; i < activity.unknown->len; i++) {
		struct work w = g_array_index(activity.unknown, struct work, i);
		guint stage = GPOINTER_TO_UINT(g_hash_table_lookup(activity.stage_of_call, GUINT_TO_POINTER(w.call)));
		if (stage) {
			add(stage - 1, &w.times);
			g_hash_table_remove(activity.stage_of_call, GUINT_TO_POINTER(w.call));
		} else {
			g_array_index(activity.unknown, struct work, kept++) = w;
		}
	}
	g_array_set_size(activity.unknown, kept);
}

static void CUPTIAPI buffer_requested(uint8_t **buffer, size_t *size, size_t *most)
{
	*size = BUFFER_BYTES;
	*buffer = aligned_alloc(8, BUFFER_BYTES);
	*most = 0;
}

static void CUPTIAPI buffer_completed(CUcontext context, uint32_t stream, uint8_t *buffer, size_t size, size_t valid)
{
	CUpti_Activity *record = NULL;
	pthread_mutex_lock(&activity.lock);
	while (valid && activity.next(buffer, valid, &record) == CUPTI_SUCCESS)
		note(record);
	pthread_mutex_unlock(&activity.lock);
	free(buffer);
}

static uint64_t CUPTIAPI now(void)
{
	return (uint64_t)exec_now_ns();
}

/* ---- what the device offers ---- */

static bool open_cupti(void)
{
	static const char *const names[] = {"libcupti.so.13", "libcupti.so.12", "libcupti.so"};
	void *library = NULL;
	for (size_t i = 0; !library && i < G_N_ELEMENTS(names); i++)
		library = dlopen(names[i], RTLD_NOW | RTLD_LOCAL);
	const struct {
		const char *name;
		void **at;
	} symbols[] = {
	    {"cuptiActivityPushExternalCorrelationId", (void **)&activity.push},
	    {"cuptiActivityPopExternalCorrelationId", (void **)&activity.pop},
	    {"cuptiActivityFlushAll", (void **)&activity.flush},
	    {"cuptiActivityGetNextRecord", (void **)&activity.next},
	    {"cuptiActivityEnable", (void **)&activity.enable},
	    {"cuptiActivityRegisterCallbacks", (void **)&activity.callbacks},
	    {"cuptiActivityRegisterTimestampCallback", (void **)&activity.clock},
	};
	for (size_t i = 0; library && i < G_N_ELEMENTS(symbols); i++)
		if (!(*symbols[i].at = dlsym(library, symbols[i].name)))
			return false;
	return library != NULL;
}

static bool switch_on(void)
{
	static const CUpti_ActivityKind kinds[] = {CUPTI_ACTIVITY_KIND_EXTERNAL_CORRELATION, CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL,
	                                           CUPTI_ACTIVITY_KIND_MEMCPY, CUPTI_ACTIVITY_KIND_MEMSET};
	if (!open_cupti() || activity.clock(now) != CUPTI_SUCCESS || activity.callbacks(buffer_requested, buffer_completed) != CUPTI_SUCCESS)
		return false;
	for (size_t i = 0; i < G_N_ELEMENTS(kinds); i++)
		if (activity.enable(kinds[i]) != CUPTI_SUCCESS)
			return false;
	activity.stage_of_call = g_hash_table_new(NULL, NULL);
	activity.times_of = g_hash_table_new_full(NULL, NULL, NULL, g_free);
	activity.unknown = g_array_new(FALSE, FALSE, sizeof(struct work));
	return true;
}

bool cuda_record_stages(struct device *d)
{
	pthread_mutex_lock(&activity.lock);
	if (!activity.tried)
		activity.on = switch_on();
	activity.tried = true;
	bool on = activity.on;
	pthread_mutex_unlock(&activity.lock);
	return on;
}

void cuda_stage_begin(struct device_stream *s, uint32_t id, const char *kind)
{
	nvtxRangePushA(kind);
	if (activity.on)
		activity.push(CUPTI_EXTERNAL_CORRELATION_KIND_CUSTOM0, id);
}

void cuda_stage_end(struct device_stream *s)
{
	uint64_t id;
	if (activity.on)
		activity.pop(CUPTI_EXTERNAL_CORRELATION_KIND_CUSTOM0, &id);
	nvtxRangePop();
}

static bool take(uint32_t id, nsec_t *start_ns, nsec_t *end_ns)
{
	pthread_mutex_lock(&activity.lock);
	const struct times *t = g_hash_table_lookup(activity.times_of, GUINT_TO_POINTER(id + 1));
	bool known = t != NULL;
	if (known) {
		*start_ns = t->start_ns;
		*end_ns = t->end_ns;
		g_hash_table_remove(activity.times_of, GUINT_TO_POINTER(id + 1));
	}
	pthread_mutex_unlock(&activity.lock);
	return known;
}

/* Records come in buffers: what is not there yet comes with all the rest when they are asked for. */
void cuda_stages_ended(struct device *d)
{
	if (!activity.on)
		return;
	activity.flush(1);
	pthread_mutex_lock(&activity.lock);
	fold();
	g_array_set_size(activity.unknown, 0);
	g_hash_table_remove_all(activity.stage_of_call);
	pthread_mutex_unlock(&activity.lock);
}

bool cuda_stage_times(struct device *d, uint32_t id, nsec_t *start_ns, nsec_t *end_ns)
{
	return activity.on && take(id, start_ns, end_ns);
}
