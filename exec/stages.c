/* What each stage queues, by kind and pass. Activations of a layer:
 *
 *     x ------------+--> h ------------------------+--> x of the next layer
 *     norm1, attention   norm2 -> u -> FFN, experts
 *
 * Backward, one buffer d goes the way back: it comes in as the gradient of the next layer's x, which is also h's along the residual, and leaves as
 * that of x. The mixer's stage also has both norms; du collects what the FFNs, the experts and the gate return.
 *
 * The GEMMs of the backward add to the gradients of all micro-batches that came before, so that the stage of that addition has nothing left to do on
 * a device with fp32 gradients. */
#include "tensors.h"

#include "model/error.h"

struct adam_step adam_step_of(const struct engine *e, const struct stage *st)
{
	return (struct adam_step){.lr = e->o.lr, .beta1 = 0.9f, .beta2 = 0.95f, .eps = 1e-8f, .decay = 0, .t = (int)e->step_of[st->step_parity] + 1};
}

static int qkv_width(const struct network *n)
{
	return (n->heads + 2 * n->kv_heads) * n->d_head;
}

static int32_t *tokens_of_step(const struct issue *i, int which)
{
	size_t at = ((size_t)i->st->step_parity * (size_t)i->e->microbatches + i->st->microbatch) * 2 + (size_t)which;
	return i->g->tokens_of_step + at * (size_t)i->e->N;
}

static bool issue_embed(const struct issue *i)
{
	const struct engine *e = i->e;
	struct gpu *g = i->g;
	if (e->unread[i->st->step_parity]) {
		g_propagate_error(i->error, g_error_copy(e->unread[i->st->step_parity]));
		return false;
	}
	if (i->st->microbatch == 0) {
		device_zero(i->s, g->w.loss, sizeof(float));
		if (e->o.grad_check)
			device_zero(i->s, g->gradient, e->resident * sizeof(float));
		if (e->o.imposed)
			device_upload(i->s, g->wanted, imposed_of(e, i->gpu, i->st->step_parity, 0, 0), imposed_bytes(e));
	}
	device_upload(i->s, g->tokens, tokens_of_step(i, 0), (size_t)e->N * sizeof(int32_t));
	device_upload(i->s, g->targets, tokens_of_step(i, 1), (size_t)e->N * sizeof(int32_t));
	op_embed(i->s, g->x[0], g->tokens, param_at(e, i->gpu, e->wte), param_at(e, i->gpu, e->wpe), e->B, e->sc->seq_len, e->n->d_model);
	return true;
}

static bool issue_embed_backward(const struct issue *i)
{
	const struct engine *e = i->e;
	op_embed_backward(i->s, i->g->gradient + e->wte, i->g->gradient + e->wpe, i->g->w.d, i->g->tokens, e->B, e->sc->seq_len, e->n->d_model);
	return true;
}

static bool issue_mixer(const struct issue *i)
{
	const struct engine *e = i->e;
	const struct network *n = e->n;
	const struct layer_place *at = i->at;
	struct activations *a = i->a;
	int D = n->d_model, N = e->N, gpu = i->gpu;
	size_t bytes = (size_t)N * (size_t)D * e->element;
	elem *x = i->g->x[i->st->layer];
	op_norm(i->s, a->n1, a->mean1, a->rstd1, x, param_at(e, gpu, at->norm1_gain), param_at(e, gpu, at->norm1_bias), N, D);
	op_linear(i->s, a->qkv, a->n1, param_at(e, gpu, at->qkv), NULL, N, D, qkv_width(n));
	op_attention(i->s, a->o, a->lse, a->qkv, e->B, e->sc->seq_len, n->heads, n->kv_heads, n->d_head);
	op_linear(i->s, a->h, a->o, param_at(e, gpu, at->out), x, N, n->heads * n->d_head, D);
	op_norm(i->s, a->u, a->mean2, a->rstd2, a->h, param_at(e, gpu, at->norm2_gain), param_at(e, gpu, at->norm2_bias), N, D);
	if (i->st->pass == PASS_FORWARD)
		device_copy(i->s, i->g->x[i->st->layer + 1], a->h, bytes);
	return true;
}

static bool issue_mixer_backward(const struct issue *i)
{
	const struct engine *e = i->e;
	const struct network *n = e->n;
	const struct layer_place *at = i->at;
	const struct activations *a = i->a;
	const struct workspace *w = &i->g->w;
	float *gradient = i->g->gradient;
	int D = n->d_model, N = e->N, gpu = i->gpu;
	op_norm_backward(i->s, w->d, gradient + at->norm2_gain, gradient + at->norm2_bias, w->du, a->h, param_at(e, gpu, at->norm2_gain), a->mean2,
	                 a->rstd2, N, D);
	op_linear_backward(i->s, w->d_o, gradient + at->out, w->d, a->o, param_at(e, gpu, at->out), N, n->heads * n->d_head, D, false);
	op_attention_backward(i->s, w->dqkv, w->d_o, a->qkv, a->o, a->lse, e->B, e->sc->seq_len, n->heads, n->kv_heads, n->d_head);
	op_linear_backward(i->s, w->dn1, gradient + at->qkv, w->dqkv, a->n1, param_at(e, gpu, at->qkv), N, D, qkv_width(n), false);
	op_norm_backward(i->s, w->d, gradient + at->norm1_gain, gradient + at->norm1_bias, w->dn1, i->g->x[i->st->layer],
	                 param_at(e, gpu, at->norm1_gain), a->mean1, a->rstd1, N, D);
	return true;
}

/* An FFN that every token meets. */
struct ffn {
	size_t up, down;
	int inner;
	elem *hidden, *active;
};

static void ffn_forward(const struct issue *i, const struct ffn *f)
{
	const struct engine *e = i->e;
	int D = e->n->d_model;
	op_linear(i->s, f->hidden, i->a->u, param_at(e, i->gpu, f->up), NULL, e->N, D, ups_of(e) * f->inner);
	op_activation(i->s, f->active, f->hidden, e->N, f->inner, (int)e->n->activation);
	if (i->st->pass == PASS_FORWARD)
		op_linear(i->s, i->g->x[i->st->layer + 1], f->active, param_at(e, i->gpu, f->down), i->g->x[i->st->layer + 1], e->N, f->inner, D);
}

static void ffn_backward(const struct issue *i, const struct ffn *f)
{
	const struct engine *e = i->e;
	const struct workspace *w = &i->g->w;
	float *gradient = i->g->gradient;
	int D = e->n->d_model;
	op_linear_backward(i->s, w->dactive, gradient + f->down, w->d, f->active, param_at(e, i->gpu, f->down), e->N, f->inner, D, false);
	op_activation_backward(i->s, w->dhidden, w->dactive, f->hidden, e->N, f->inner, (int)e->n->activation);
	/* beside experts, their combination has cleared du; alone, this is its first part */
	op_linear_backward(i->s, w->du, gradient + f->up, w->dhidden, i->a->u, param_at(e, i->gpu, f->up), e->N, D, ups_of(e) * f->inner,
	                   i->l->experts > 0);
}

static bool issue_ffn(const struct issue *i)
{
	struct ffn f = {i->at->up, i->at->down, i->l->d_ff, i->a->ffn_hidden, i->a->ffn_active};
	(i->st->pass == PASS_BACKWARD ? ffn_backward : ffn_forward)(i, &f);
	return true;
}

static bool issue_shared(const struct issue *i)
{
	const struct engine *e = i->e;
	size_t inner = (size_t)i->l->d_shared, up = (size_t)ups_of(e) * inner, d = (size_t)e->n->d_model, rows = (size_t)e->N;
	for (int j = 0; j < i->l->shared; j++) {
		size_t at = i->at->shared + (size_t)j * (tensor_room(d * up) + tensor_room(d * inner));
		struct ffn f = {at, at + tensor_room(d * up), i->l->d_shared, elem_at(e, i->a->shared_hidden, (size_t)j * rows * up),
		                elem_at(e, i->a->shared_active, (size_t)j * rows * inner)};
		(i->st->pass == PASS_BACKWARD ? ffn_backward : ffn_forward)(i, &f);
	}
	return true;
}

static bool issue_head(const struct issue *i)
{
	const struct engine *e = i->e;
	const struct network *n = e->n;
	struct gpu *g = i->g;
	const struct workspace *w = &g->w;
	int D = n->d_model, N = e->N;
	double total = (double)N * e->gpus * e->microbatches;
	elem *x = g->x[n->layers], *gain = param_at(e, i->gpu, e->norm_gain);
	op_norm(i->s, w->head_x, w->mean, w->rstd, x, gain, param_at(e, i->gpu, e->norm_bias), N, D);
	op_head(i->s, w->loss, w->head_dx, g->gradient + e->head, w->head, w->head_x, param_at(e, i->gpu, e->head), g->targets, N, D, n->vocab,
	        MIN(N, e->info->head_tokens), total, n->tied);
	device_zero(i->s, w->d, (size_t)N * (size_t)D * e->element);
	op_norm_backward(i->s, w->d, g->gradient + e->norm_gain, g->gradient + e->norm_bias, w->head_dx, x, gain, w->mean, w->rstd, N, D);
	if (i->st->microbatch == e->microbatches - 1)
		device_download(i->s, g->losses + i->st->step_parity * losses_of_step(e), w->loss, sizeof(float));
	return true;
}

static bool issue_adam_gpu(const struct issue *i)
{
	const struct engine *e = i->e;
	struct gpu *g = i->g;
	struct adam_step step = adam_step_of(e, i->st);
	if (!e->o.grad_check)
		op_adam(i->s, g->param, g->master, g->m, g->v, g->gradient, e->resident, &step);
	return true;
}

static bool issue_nothing(const struct issue *i)
{
	return true;
}

static bool issue_all_reduce(const struct issue *i)
{
	const struct engine *e = i->e;
	size_t params = network_expert_params(e->n, i->l), own = (size_t)experts_at_home(e, i->l->experts);
	size_t from[] = {[REDUCED_DENSE] = i->at->from, [REDUCED_EXPERTS] = i->at->experts, [REDUCED_EMBEDDING] = e->shared_from};
	size_t n[] = {
	    [REDUCED_DENSE] = i->at->to - i->at->from, [REDUCED_EXPERTS] = params * own, [REDUCED_EMBEDDING] = e->shared_to - e->shared_from};
	group_all_reduce(i->s, e->group, i->gpu, i->g->gradient + from[i->st->part], n[i->st->part]);
	return true;
}

static const issue_fn issues[N_STAGE_KINDS][N_STAGE_PASSES] = {
    [STAGE_EMBED] = {[PASS_FORWARD] = issue_embed, [PASS_BACKWARD] = issue_embed_backward},
    [STAGE_MIXER] = {[PASS_FORWARD] = issue_mixer, [PASS_RECOMPUTE] = issue_mixer, [PASS_BACKWARD] = issue_mixer_backward},
    [STAGE_GATE] = {[PASS_FORWARD] = issue_gate, [PASS_RECOMPUTE] = issue_gate, [PASS_BACKWARD] = issue_gate_backward},
    [STAGE_PERMUTE] = {[PASS_FORWARD] = issue_permute, [PASS_RECOMPUTE] = issue_permute, [PASS_BACKWARD] = issue_permute_backward},
    [STAGE_EXPERT] = {[PASS_FORWARD] = issue_expert, [PASS_BACKWARD] = issue_expert},
    [STAGE_COMBINE] = {[PASS_FORWARD] = issue_combine, [PASS_BACKWARD] = issue_combine_backward},
    [STAGE_FFN] = {[PASS_FORWARD] = issue_ffn, [PASS_RECOMPUTE] = issue_ffn, [PASS_BACKWARD] = issue_ffn},
    [STAGE_SHARED] = {[PASS_FORWARD] = issue_shared, [PASS_RECOMPUTE] = issue_shared, [PASS_BACKWARD] = issue_shared},
    [STAGE_HEAD] = {[PASS_FORWARD] = issue_head},
    [STAGE_ADAM_GPU] = {[PASS_UPDATE] = issue_adam_gpu},
    [STAGE_ACCUMULATE_GPU] = {[PASS_BACKWARD] = issue_nothing},
    [STAGE_COUNTS] = {[PASS_FORWARD] = issue_counts},
    [STAGE_ALL_TO_ALL] = {[PASS_FORWARD] = issue_all_to_all, [PASS_RECOMPUTE] = issue_all_to_all, [PASS_BACKWARD] = issue_all_to_all},
    [STAGE_ALL_REDUCE] = {[PASS_BACKWARD] = issue_all_reduce},
    [STAGE_REDUCE_SCATTER] = {[PASS_BACKWARD] = issue_reduce_scatter},
    [STAGE_UPLOAD] = {[PASS_FORWARD] = issue_upload, [PASS_BACKWARD] = issue_upload, [PASS_UPDATE] = issue_upload},
    [STAGE_DOWNLOAD] = {[PASS_BACKWARD] = issue_download},
    [STAGE_ADAM] = {[PASS_UPDATE] = issue_adam},
    [STAGE_ACCUMULATE] = {[PASS_BACKWARD] = issue_accumulate},
    [STAGE_SSD_READ] = {[PASS_FORWARD] = issue_ssd, [PASS_BACKWARD] = issue_ssd, [PASS_UPDATE] = issue_ssd},
    [STAGE_SSD_WRITE] = {[PASS_UPDATE] = issue_ssd},
};

bool engine_launch(struct engine *e, const struct stage *st, struct store_places *at, GError **error)
{
	static const bool stored[N_STAGE_KINDS] = {[STAGE_UPLOAD] = true,     [STAGE_DOWNLOAD] = true, [STAGE_ADAM] = true,
	                                           [STAGE_ACCUMULATE] = true, [STAGE_SSD_READ] = true, [STAGE_SSD_WRITE] = true};
	return !stored[st->kind] || store_launch(e->store, e->layer[st->layer].moe, st, at, error);
}

bool engine_issue(struct engine *e, const struct stage *st, const struct store_places *at, struct device_stream *stream, uint64_t *pending,
                  GError **error)
{
	issue_fn fn = issues[st->kind][st->pass];
	struct issue i = {.e = e,
	                  .st = st,
	                  .g = &e->gpu[st->rank],
	                  .gpu = st->rank,
	                  .l = &e->n->layer[st->layer],
	                  .at = &e->layer[st->layer],
	                  .a = &e->gpu[st->rank].layer[st->layer],
	                  .stored = at,
	                  .s = stream,
	                  .pending = pending,
	                  .error = error};
	*pending = 0;
	if (fn)
		return fn(&i);
	g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_DEVICE, "the executor has no stage %s in pass %s", stage_kind_name(st->kind),
	            stage_pass_name(st->pass));
	return false;
}

void engine_settle(struct engine *e, const struct stage *st, uint64_t pending)
{
	if (pending)
		adam_wait(e->pool[st->rank / e->sc->machine->gpus_per_node], pending);
}
