/* The loops of Adam, written once for any vector. The file that includes this says what a vector is:
 *
 *     LANES, vec, vec_set, vec_load, vec_load_bf16, vec_store, vec_store_bf16, vec_stream, vec_stream_bf16, vec_sqrt, vec_fence
 *
 * Every operation below rounds once, to nearest even, in the order written; no product is fused with a sum (-ffp-contract=off). Division and square
 * root are exact to half an ulp on every unit, so a lane gives the bits that the plain loop gives. The two bias corrections are factors of the whole
 * update, computed in double and rounded once: one division and one square root an element. */

static inline vec load_as(const void *p, int format, size_t i)
{
	return format == ADAM_BF16 ? vec_load_bf16((const uint16_t *)p + i) : vec_load((const float *)p + i);
}

static inline void store_as(void *p, int format, size_t i, vec x, bool stream)
{
	if (format == ADAM_BF16)
		stream ? vec_stream_bf16((uint16_t *)p + i, x) : vec_store_bf16((uint16_t *)p + i, x);
	else
		stream ? vec_stream((float *)p + i, x) : vec_store((float *)p + i, x);
}

/* How far ahead lines are asked for, in bytes of fp32. The unit's own prefetchers stop at the end of a page, every 1024 elements of each of the four
 * arrays: asking for them saves a tenth of the time of 14 threads, a sixth of 8, a twentieth of 14 beside copies both ways (the host of an
 * H200, 96 experts of 8 Mi parameters, this loop with 0, 512, 1024, 2048 and 4096 B in turns; 512 saves less, the others the same). */
#define ADAM_AHEAD 2048

static inline void fetch(const void *p, int format, size_t i)
{
	uintptr_t bytes = format == ADAM_BF16 ? 2 : 4;
	__builtin_prefetch((const void *)((uintptr_t)p + i * bytes + ADAM_AHEAD * bytes / 4));
}

#define ADAM_STREAM_FROM (1 << 16)

/* What is written here is not read soon: from this many elements on it would only push other data out of the caches, and a store around them saves
 * reading the line first. It needs whole vectors at their natural alignment. */
static inline bool can_stream(const void *out, int format, size_t from, size_t to)
{
	uintptr_t bytes = format == ADAM_BF16 ? 2 : 4;
	return to - from >= ADAM_STREAM_FROM && ((uintptr_t)out + from * bytes) % (LANES * bytes) == 0;
}

static void update(const struct adam_args *a, const struct adam_factors *f, size_t from, size_t to)
{
	const vec scale = vec_set(f->scale), keep_m = vec_set(f->keep_m), take_m = vec_set(f->take_m), keep_v = vec_set(f->keep_v);
	const vec take_v = vec_set(f->take_v), correct_v = vec_set(f->correct_v), eps = vec_set(f->eps), rate = vec_set(f->rate),
	          keep = vec_set(f->keep);
	float *const master = a->master, *const m = a->m, *const v = a->v;
	const void *const gradient = a->gradient;
	void *const out = a->out == master ? NULL : a->out;
	const int gradient_format = a->gradient_format, out_format = a->out_format;
	const bool stream = out && can_stream(out, out_format, from, to);
	size_t i = from;
	for (; i + LANES <= to; i += LANES) {
		vec g = vec_set(0);
		fetch(m, ADAM_FP32, i);
		fetch(v, ADAM_FP32, i);
		fetch(master, ADAM_FP32, i);
		if (gradient) {
			fetch(gradient, gradient_format, i);
			g = load_as(gradient, gradient_format, i) * scale;
		}
		vec m1 = vec_load(m + i) * keep_m + g * take_m;
		vec v1 = vec_load(v + i) * keep_v + g * g * take_v;
		vec p = vec_load(master + i) * keep - m1 / (vec_sqrt(v1) * correct_v + eps) * rate;
		vec_store(m + i, m1);
		vec_store(v + i, v1);
		vec_store(master + i, p);
		if (out)
			store_as(out, out_format, i, p, stream);
	}
	if (stream)
		vec_fence();
	if (i < to)
		adam_plain.update(a, f, i, to);
}

static void accumulate(float *sum, const void *gradient, int format, size_t from, size_t to)
{
	size_t i = from;
	for (; i + LANES <= to; i += LANES)
		vec_store(sum + i, vec_load(sum + i) + load_as(gradient, format, i));
	if (i < to)
		adam_plain.accumulate(sum, gradient, format, i, to);
}

static void cast(void *out, int format, const float *in, size_t from, size_t to)
{
	const bool stream = can_stream(out, format, from, to);
	size_t i = from;
	for (; i + LANES <= to; i += LANES)
		store_as(out, format, i, vec_load(in + i), stream);
	if (stream)
		vec_fence();
	if (i < to)
		adam_plain.cast(out, format, in, i, to);
}
