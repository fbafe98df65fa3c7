/* Free frames queue in the order of their release, each with the stages that used it last:
 *
 *     launch order   ... write e (releases A) ... Adam of e ... read f (claims A) ...
 *     run            read f waits for the write and for Adam of e, then fills A
 *
 * Why that is safe: a frame's users launched before its release have ended when its last users have, which whoever claims it waits for, so it has
 * one owner at a time when stages run, too, as it has when they are launched. Why nothing hangs: all who are waited for were launched before, and the
 * earliest launched stage that has not ended waits for nobody. */
#include "frames.h"

#include "model/error.h"
#include "store_file.h"

#include <string.h>

#define CHUNK_BYTES ((size_t)8 << 30)

struct free_frame {
	char *frame;
	stage_id last[FRAME_USERS];
};

struct frames {
	struct device *device;
	size_t frame_bytes;
	uint64_t n;
	GPtrArray *chunks;
	struct free_frame *queue; /* (n) ring: head .. head + n_free - 1 */
	uint64_t head, n_free;
};

void frames_wait(struct frames_waits *w, stage_id stage)
{
	for (int i = 0; i < w->n; i++)
		if (w->stage[i] == stage)
			return;
	if (stage == STAGE_NONE)
		return;
	g_assert(w->n < FRAMES_WAITS);
	w->stage[w->n++] = stage;
}

struct frames *frames_new(struct device *d, size_t frame_bytes, uint64_t n, GError **error)
{
	static const stage_id nobody[FRAME_USERS] = {STAGE_NONE, STAGE_NONE};
	g_assert(frame_bytes && frame_bytes % STORE_PAGE == 0);
	g_autoptr(frames) f = g_new0(struct frames, 1);
	*f = (struct frames){.device = d, .frame_bytes = frame_bytes, .n = n, .chunks = g_ptr_array_new(), .queue = g_new(struct free_frame, n)};
	uint64_t each = MAX(1, CHUNK_BYTES / frame_bytes);
	for (uint64_t from = 0; from < n; from += each) {
		uint64_t count = MIN(each, n - from);
		char *chunk = pinned_alloc(d, count * frame_bytes, error);
		if (!chunk) {
			g_prefix_error(error, "%" G_GUINT64_FORMAT " frames for experts over the SSD: ", n);
			return NULL;
		}
		g_assert((uintptr_t)chunk % STORE_PAGE == 0);
		g_ptr_array_add(f->chunks, chunk);
		for (uint64_t i = 0; i < count; i++)
			frames_release(f, chunk + i * frame_bytes, nobody);
	}
	return g_steal_pointer(&f);
}

void frames_free(struct frames *f)
{
	if (!f)
		return;
	for (guint i = 0; i < f->chunks->len; i++)
		pinned_free(f->device, g_ptr_array_index(f->chunks, i));
	g_ptr_array_unref(f->chunks);
	g_free(f->queue);
	g_free(f);
}

uint64_t frames_bytes(const struct frames *f)
{
	return f->n * f->frame_bytes;
}

uint64_t frames_used_bytes(const struct frames *f)
{
	return (f->n - f->n_free) * f->frame_bytes;
}

bool frames_claim(struct frames *f, int n, char **frame, struct frames_waits *w, GError **error)
{
	g_assert(n <= FRAMES_OF_BLOCK);
	if ((uint64_t)n > f->n_free) {
		g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_FIT,
		            "dram: a block needs %d frames of %.6f GiB, %" G_GUINT64_FORMAT " of the %" G_GUINT64_FORMAT " over the SSD are free", n,
		            (double)f->frame_bytes / GIB, f->n_free, f->n);
		return false;
	}
	for (int i = 0; i < n; i++) {
		const struct free_frame *x = &f->queue[f->head];
		frame[i] = x->frame;
		for (int user = 0; user < FRAME_USERS; user++)
			frames_wait(w, x->last[user]);
		f->head = (f->head + 1) % f->n;
		f->n_free--;
	}
	return true;
}

void frames_release(struct frames *f, char *frame, const stage_id *last)
{
	g_assert(f->n_free < f->n);
	struct free_frame *x = &f->queue[(f->head + f->n_free++) % f->n];
	x->frame = frame;
	memcpy(x->last, last, sizeof(x->last));
}
