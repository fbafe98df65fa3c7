/* What a stage does to the blocks of its expert, in launch order. Blocks come with a read and go with a write; parameters stay for a gradient that is
 * on its way:
 *
 *     launched     read    upload    download    write      Adam      read
 *     block        claimed                       stays      released  another
 *
 * A block that comes again while it stays is the same one. Its parameters wait for the write with which they left; the schedule's own predecessors
 * keep that write behind all that used them. */
#include "model/error.h"
#include "model/policy.h"
#include "store_inside.h"

static bool is_held(const struct expert *x, bool state)
{
	return state ? x->state : x->params;
}

static bool unexpected(int layer, int e, bool state, bool held, GError **error)
{
	g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_DEVICE, "schedule: MoE layer %d, expert %d: its %s %s in DRAM", layer, e,
	            state ? "state" : "parameters", held ? "are already" : "are not");
	return false;
}

static bool claim_copies(struct store *s, struct expert *x, struct store_places *at, GError **error)
{
	char *frame[FRAMES_OF_BLOCK];
	if (!frames_claim(s->frames, s->copy_frames, frame, &at->waits, error))
		return false;
	x->params_at = frame[0];
	x->gradient_at = s->copy_frames > 1 ? frame[1] : frame[0] + s->frame_bytes / 2;
	return true;
}

/* Parameters and gradient, where neither is needed any more. */
static void settle(struct store *s, struct expert *x)
{
	const stage_id last[FRAME_USERS] = {x->left, x->used};
	if (s->o.home != HOME_SSD || x->params || x->gradients || !x->params_at)
		return;
	frames_release(s->frames, x->params_at, last);
	if (s->copy_frames > 1)
		frames_release(s->frames, x->gradient_at, last);
	x->params_at = x->gradient_at = NULL;
}

static void point(const struct expert *x, bool params, bool state, struct store_places *at)
{
	at->params = params && x->params ? x->params_at : NULL;
	at->master = state && x->state ? (float *)(void *)x->vector[0] : NULL;
	at->m = state && x->state ? (float *)(void *)x->vector[1] : NULL;
	at->v = state && x->state ? (float *)(void *)x->vector[2] : NULL;
}

static bool bring(struct store *s, struct expert *x, bool state, struct store_places *at, GError **error)
{
	if (state && !frames_claim(s->frames, FRAMES_OF_BLOCK, x->vector, &at->waits, error))
		return false;
	if (!state && !x->params_at && !claim_copies(s, x, at, error))
		return false;
	if (!state)
		frames_wait(&at->waits, x->left);
	*(state ? &x->state : &x->params) = true;
	point(x, !state, true, at); /* parameters are cast from a master that is there */
	return true;
}

static void leave(struct store *s, struct expert *x, bool state, stage_id id, struct store_places *at)
{
	const stage_id last[FRAME_USERS] = {id, STAGE_NONE};
	point(x, !state, state, at);
	for (int i = 0; state && i < 3; i++)
		frames_release(s->frames, x->vector[i], last);
	*(state ? &x->state : &x->params) = false;
	if (state)
		return;
	x->left = id;
	settle(s, x);
}

static bool land(struct store *s, struct expert *x, struct store_places *at, GError **error)
{
	if (!x->params_at && !claim_copies(s, x, at, error))
		return false;
	x->gradients++;
	at->gradient = x->gradient_at;
	return true;
}

static void use(struct store *s, struct expert *x, const struct stage *st, struct store_places *at)
{
	point(x, true, true, at);
	if (!st->part || !x->gradients)
		return;
	at->gradient = x->gradient_at;
	x->gradients--;
	x->used = st->id;
	settle(s, x);
}

bool store_launch(struct store *s, int layer, const struct stage *st, struct store_places *at, GError **error)
{
	struct expert *x = store_expert(s, layer, st->expert);
	bool reads = st->kind == STAGE_SSD_READ, state = (reads || st->kind == STAGE_SSD_WRITE) && st->part, ok = true;
	*at = (struct store_places){0};
	if (reads && is_held(x, state))
		return unexpected(layer, st->expert, state, true, error);
	if ((st->kind == STAGE_SSD_WRITE || st->kind == STAGE_UPLOAD) && !is_held(x, state))
		return unexpected(layer, st->expert, state, false, error);
	if (reads)
		ok = bring(s, x, state, at, error);
	else if (st->kind == STAGE_SSD_WRITE)
		leave(s, x, state, st->id, at);
	else if (st->kind == STAGE_UPLOAD)
		point(x, true, false, at);
	else if (st->kind == STAGE_DOWNLOAD)
		ok = land(s, x, at, error);
	else
		use(s, x, st, at);
	if (!ok)
		g_prefix_error(error, "room for expert %d of MoE layer %d: ", st->expert, layer);
	return ok;
}

bool store_holds(const struct store *s, int layer, int e, bool state)
{
	return is_held(store_expert(s, layer, e), state);
}

uint64_t store_used_bytes(const struct store *s)
{
	return s->frames ? frames_used_bytes(s->frames) : 0;
}
