/* List scheduling of independent jobs on identical machines. Graham's longest processing time first takes the experts from the longest to the
 * shortest and gives each to the least loaded GPU: a stable merge sort, then a binary heap of GPUs,
 *
 *     experts by time   9 7 5 4 2        GPU 0: 9 . . 2      O(E log E + E log G)
 *     to the top of the heap             GPU 1: 7 . 4
 *                                        GPU 2: 5
 *
 * Small layers (64 experts, 4 GPUs) are placed without touching the allocator, once per layer and micro-batch. */
#include "placement.h"

#include <glib.h>
#include <stdbool.h>
#include <string.h>

struct job {
	int64_t weight;
	int id;
}; /* an expert and its time, or a GPU and its load */

enum { STACK_JOBS = 2048, RUN = 8 };

void placement_fixed(int experts, int gpus, int *gpu)
{
	for (int e = 0; e < experts; e++)
		gpu[e] = (int)((int64_t)e * gpus / experts);
}

/* Heaviest first, equal weights in the order they came. */
static void run_sort(struct job *job, int n)
{
	for (int i = 1; i < n; i++) {
		const struct job moving = job[i];
		int j = i;
		for (; j > 0 && job[j - 1].weight < moving.weight; j--)
			job[j] = job[j - 1];
		job[j] = moving;
	}
}

static void runs_merge(const struct job *a, int n_a, const struct job *b, int n_b, struct job *out)
{
	const struct job *a_end = a + n_a, *b_end = b + n_b;
	while (a < a_end && b < b_end) {
		/* Arithmetic instead of a branch: which side is next is a coin toss that no predictor learns. */
		const bool from_b = b->weight > a->weight;
		*out++ = *(from_b ? b : a);
		b += from_b;
		a += !from_b;
	}
	memcpy(out, a, (size_t)(a_end - a) * sizeof *a);
	memcpy(out + (a_end - a), b, (size_t)(b_end - b) * sizeof *b);
}

/* Sorts job (n) with other (n) as second half of the work; returns the one that holds the result. */
static struct job *jobs_sort(struct job *job, struct job *other, int n)
{
	for (int i = 0; i < n; i += RUN)
		run_sort(job + i, MIN(RUN, n - i));
	for (int width = RUN; width < n; width *= 2) {
		for (int i = 0; i < n; i += 2 * width) {
			const int n_a = MIN(width, n - i);
			runs_merge(job + i, n_a, job + i + n_a, MIN(width, n - i - n_a), other + i);
		}
		struct job *sorted = other;
		other = job;
		job = sorted;
	}
	return job;
}

static bool lighter(const struct job *a, const struct job *b)
{
	return a->weight < b->weight || (a->weight == b->weight && a->id < b->id);
}

static void heap_sink(struct job *heap, int n, int at)
{
	const struct job sinking = heap[at];
	for (int child = 2 * at + 1; child < n; child = 2 * at + 1) {
		if (child + 1 < n && lighter(&heap[child + 1], &heap[child]))
			child++;
		if (!lighter(&heap[child], &sinking))
			break;
		heap[at] = heap[child];
		at = child;
	}
	heap[at] = sinking;
}

/* Gives the jobs in their order to the least loaded GPU each; those already placed are passed over. heap has room for `gpus`. */
static void list_schedule(const struct job *job, int n, int gpus, struct job *heap, nsec_t *load_ns, int *gpu)
{
	for (int g = 0; g < gpus; g++)
		heap[g] = (struct job){load_ns[g], g};
	for (int i = gpus / 2 - 1; i >= 0; i--)
		heap_sink(heap, gpus, i);
	for (int i = 0; i < n; i++) {
		if (gpu[job[i].id] >= 0)
			continue;
		gpu[job[i].id] = heap[0].id;
		heap[0].weight += job[i].weight;
		heap_sink(heap, gpus, 0);
	}
	for (int g = 0; g < gpus; g++)
		load_ns[heap[g].id] = heap[g].weight;
}

/* Leaves each job on its last GPU as long as that GPU stays under the limit. An idle GPU is as good as any for a job that is over the limit by
 * itself. */
static void stay(const struct job *job, int n, const int *last, double limit_ns, nsec_t *load_ns, int *gpu)
{
	for (int i = 0; i < n; i++) {
		const int at = last[job[i].id];
		if (at >= 0 && (load_ns[at] == 0 || (double)(load_ns[at] + job[i].weight) <= limit_ns)) {
			gpu[job[i].id] = at;
			load_ns[at] += job[i].weight;
		}
	}
}

static void place(int experts, const nsec_t *time_ns, const int *last, double slack, int gpus, nsec_t *load_ns, int *gpu)
{
	g_assert(experts >= 0 && gpus > 0);
	struct job stack[STACK_JOBS];
	const size_t n_scratch = 2 * (size_t)experts + (size_t)gpus;
	g_autofree struct job *heap_scratch = n_scratch > STACK_JOBS ? g_new(struct job, n_scratch) : NULL;
	struct job *scratch = heap_scratch ? heap_scratch : stack;
	int n = 0;
	nsec_t total_ns = 0;
	for (int e = 0; e < experts; e++) {
		if (gpu[e] >= 0)
			continue;
		g_assert(time_ns[e] >= 0);
		scratch[n++] = (struct job){time_ns[e], e};
		total_ns += time_ns[e];
	}
	const struct job *job = jobs_sort(scratch, scratch + experts, n);
	if (last) {
		for (int g = 0; g < gpus; g++)
			total_ns += load_ns[g];
		stay(job, n, last, (1 + slack) * (double)total_ns / gpus, load_ns, gpu);
	}
	list_schedule(job, n, gpus, scratch + 2 * (size_t)experts, load_ns, gpu);
}

void placement_lpt(int experts, const nsec_t *time_ns, int gpus, nsec_t *load_ns, int *gpu)
{
	place(experts, time_ns, NULL, 0, gpus, load_ns, gpu);
}

void placement_sticky(int experts, const nsec_t *time_ns, const int *last, double slack, int gpus, nsec_t *load_ns, int *gpu)
{
	place(experts, time_ns, last, slack, gpus, load_ns, gpu);
}

void placement_busiest(int experts, const uint32_t *tokens, int n, uint8_t *pinned)
{
	g_assert(experts >= 0 && n >= 0);
	g_autofree struct job *scratch = g_new(struct job, 2 * (size_t)experts);
	for (int e = 0; e < experts; e++)
		scratch[e] = (struct job){tokens[e], e};
	const struct job *job = jobs_sort(scratch, scratch + experts, experts);
	memset(pinned, 0, (size_t)experts);
	for (int i = 0; i < MIN(n, experts); i++)
		pinned[job[i].id] = 1;
}
