/* GEMMs by cuBLASLt. Row-major c (m, n) = a b is column-major c^T = b^T a^T: operands change places. To ask cuBLAS for its best algorithm takes
 * hundreds of microseconds for a shape it has not seen, and the tokens of an expert make a new shape each time. So sizes that follow tokens are
 * rounded up to eighths of an octave, the answer for the rounded shape is kept, and serves all shapes that round to it:
 *
 *     m    1024   1100   1150 | 1160        one answer each for (1024, 1152], (1152, 1280], ..
 */
#include "gpu.h"

#define WORKSPACE_BYTES ((size_t)FOOTPRINT_GEMM_BF16)
#define ALIGNED_MOST 16 /* of what kernels use of an address's alignment */

/* What an answer depends on. */
struct shape {
	int32_t m, n, k, lda, ldb, ldc;
	uint8_t turned_a, turned_b, bytes, aligned;
};

struct answer {
	struct shape shape;
	cublasLtMatmulAlgo_t algorithm;
};

struct cuda_gemms {
	cublasLtHandle_t blas;
	cublasLtMatmulPreference_t preference;
	GHashTable *answers; /* struct answer, by its shape */
};

static guint shape_hash(gconstpointer key)
{
	const uint8_t *x = key;
	guint hash = 2166136261u;
	for (size_t i = 0; i < sizeof(struct shape); i++)
		hash = (hash ^ x[i]) * 16777619u;
	return hash;
}

static gboolean shape_equal(gconstpointer a, gconstpointer b)
{
	return memcmp(a, b, sizeof(struct shape)) == 0;
}

void cuda_gemms_free(struct cuda_gemms *g)
{
	if (!g)
		return;
	if (g->preference)
		cublasLtMatmulPreferenceDestroy(g->preference);
	if (g->blas)
		cublasLtDestroy(g->blas);
	g_hash_table_unref(g->answers);
	g_free(g);
}

static struct cuda_gemms *gemms_of(struct cuda_stream *s)
{
	const size_t workspace = WORKSPACE_BYTES;
	if (s->gemms)
		return s->gemms;
	struct cuda_gemms *g = s->gemms = g_new0(struct cuda_gemms, 1);
	g->answers = g_hash_table_new_full(shape_hash, shape_equal, NULL, g_free);
	bool ok =
	    cuda_blas_ok(s->device, cublasLtCreate(&g->blas), "cuBLAS") &&
	    cuda_blas_ok(s->device, cublasLtMatmulPreferenceCreate(&g->preference), "cuBLAS") &&
	    cuda_blas_ok(s->device,
	                 cublasLtMatmulPreferenceSetAttribute(g->preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace, sizeof(workspace)),
	                 "cuBLAS");
	return ok ? g : NULL;
}

/* ---- lanes ---- */

/* What a lane needs, when it is first used. */
static bool open_lane(struct cuda_stream *s, struct cuda_lane *lane)
{
	g_autoptr(GError) error = NULL;
	if ((!lane->stream && !cuda_ok(s->device, cudaStreamCreateWithFlags(&lane->stream, cudaStreamNonBlocking), "a lane")) ||
	    !cuda_ok(s->device, cudaEventCreateWithFlags(&lane->done, cudaEventDisableTiming), "a lane"))
		return false;
	lane->workspace = cuda_alloc_on(s->device, lane->stream, WORKSPACE_BYTES, "cuBLAS's workspace", &error);
	if (!lane->workspace)
		cuda_group_fail(s->device->group, error);
	return lane->workspace != NULL;
}

static struct cuda_lane *lane_of(struct cuda_stream *s, int i)
{
	struct cuda_lane *lane = &s->lane[i % CUDA_LANES];
	if (!cuda_ready(s) || (!lane->workspace && !open_lane(s, lane)))
		return NULL;
	return lane;
}

void cuda_spread(struct cuda_stream *s, int n)
{
	struct cuda_lane *first = lane_of(s, 0);
	if (n < 2 || !first || !cuda_ok(s->device, cudaEventRecord(first->done, s->stream), "lanes"))
		return;
	for (int i = 1; i < MIN(n, CUDA_LANES); i++) {
		struct cuda_lane *lane = lane_of(s, i);
		if (!lane || !cuda_ok(s->device, cudaStreamWaitEvent(lane->stream, first->done, 0), "lanes"))
			return;
	}
}

void cuda_collect(struct cuda_stream *s, int n)
{
	for (int i = 1; i < MIN(n, CUDA_LANES); i++) {
		struct cuda_lane *lane = lane_of(s, i);
		if (!lane || !cuda_ok(s->device, cudaEventRecord(lane->done, lane->stream), "lanes") ||
		    !cuda_ok(s->device, cudaStreamWaitEvent(s->stream, lane->done, 0), "lanes"))
			return;
	}
}

/* ---- one GEMM ---- */

/* Up to the next eighth of an octave. */
static int rounded(int x)
{
	int step = 1;
	while (step * 16 <= x)
		step *= 2;
	return (x + step - 1) / step * step;
}

static uint8_t aligned(const struct cuda_operand *a, const struct cuda_operand *b, const void *c, const void *add)
{
	uintptr_t all = (uintptr_t)a->at | (uintptr_t)b->at | (uintptr_t)c | (uintptr_t)add | ALIGNED_MOST;
	return (uint8_t)(all & -all);
}

/* Layouts of the turned problem: its a is our b. */
struct problem {
	cublasLtMatmulDescOpaque_t product;
	cublasLtMatrixLayoutOpaque_t a, b, c;
};

static cublasStatus_t describe(struct problem *p, const struct shape *x)
{
	const cublasOperation_t turned = CUBLAS_OP_T;
	const cudaDataType_t type = x->bytes == 4 ? CUDA_R_32F : CUDA_R_16BF;
	const uint64_t m = (uint64_t)x->m, n = (uint64_t)x->n, k = (uint64_t)x->k;
	cublasStatus_t status = cublasLtMatmulDescInit(&p->product, CUBLAS_COMPUTE_32F, CUDA_R_32F);
	if (status == CUBLAS_STATUS_SUCCESS && x->turned_b)
		status = cublasLtMatmulDescSetAttribute(&p->product, CUBLASLT_MATMUL_DESC_TRANSA, &turned, sizeof(turned));
	if (status == CUBLAS_STATUS_SUCCESS && x->turned_a)
		status = cublasLtMatmulDescSetAttribute(&p->product, CUBLASLT_MATMUL_DESC_TRANSB, &turned, sizeof(turned));
	if (status == CUBLAS_STATUS_SUCCESS)
		status = cublasLtMatrixLayoutInit(&p->a, CUDA_R_16BF, x->turned_b ? k : n, x->turned_b ? n : k, x->ldb);
	if (status == CUBLAS_STATUS_SUCCESS)
		status = cublasLtMatrixLayoutInit(&p->b, CUDA_R_16BF, x->turned_a ? m : k, x->turned_a ? k : m, x->lda);
	if (status == CUBLAS_STATUS_SUCCESS)
		status = cublasLtMatrixLayoutInit(&p->c, type, n, m, x->ldc);
	return status;
}

static const cublasLtMatmulAlgo_t *ask(struct cuda_stream *s, struct cuda_gemms *g, const struct shape *shape)
{
	static const cublasLtMatmulPreferenceAttributes_t alignments[] = {
	    CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
	    CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES};
	struct answer *answer = g_hash_table_lookup(g->answers, shape);
	cublasLtMatmulHeuristicResult_t found;
	struct problem p;
	const uint32_t bytes = shape->aligned;
	int n = 0;
	if (answer)
		return &answer->algorithm;
	for (size_t i = 0; i < G_N_ELEMENTS(alignments); i++)
		if (!cuda_blas_ok(s->device, cublasLtMatmulPreferenceSetAttribute(g->preference, alignments[i], &bytes, sizeof(bytes)), "a GEMM"))
			return NULL;
	if (!cuda_blas_ok(s->device, describe(&p, shape), "a GEMM") ||
	    !cuda_blas_ok(s->device, cublasLtMatmulAlgoGetHeuristic(g->blas, &p.product, &p.a, &p.b, &p.c, &p.c, g->preference, 1, &found, &n),
	                  "looking for a GEMM's algorithm"))
		return NULL;
	if (!n) {
		cuda_blas_ok(s->device, CUBLAS_STATUS_NOT_SUPPORTED, "a GEMM");
		return NULL;
	}
	answer = g_new(struct answer, 1);
	*answer = (struct answer){*shape, found.algo};
	g_hash_table_insert(g->answers, &answer->shape, answer);
	return &answer->algorithm;
}

void cuda_gemm(struct cuda_stream *s, int nth, int m, int n, int k, struct cuda_operand a, struct cuda_operand b, void *c, int ldc, int bytes,
               const void *add)
{
	const float one = 1, beta = add ? 1 : 0;
	struct cuda_lane *lane = m && n ? lane_of(s, nth) : NULL;
	struct cuda_gemms *g = lane ? gemms_of(s) : NULL;
	struct shape shape = {m, n, k, a.ld, b.ld, ldc, a.turned, b.turned, (uint8_t)bytes, aligned(&a, &b, c, add)};
	struct shape asked = shape;
	struct problem p;
	/* tokens are the rows, or what a gradient of parameters sums over */
	asked.m = a.turned ? m : rounded(m);
	asked.k = a.turned ? rounded(k) : k;
	const cublasLtMatmulAlgo_t *algorithm = g ? ask(s, g, &asked) : NULL;
	if (!algorithm || !cuda_blas_ok(s->device, describe(&p, &shape), "a GEMM"))
		return;
	cuda_blas_ok(s->device,
	             cublasLtMatmul(g->blas, &p.product, &one, b.at, &p.a, a.at, &p.b, &beta, add ? add : c, &p.c, c, &p.c, algorithm,
	                            lane->workspace, WORKSPACE_BYTES, lane->stream),
	             "a GEMM");
}
