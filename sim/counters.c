/* Sums of what runs, kept as steps. Changes at one instant become one sample, and none when they cancel. */
#include "counters.h"

#include <math.h>

#define DUST 1e-6 /* GB/s left by rounding when everything stopped */

struct series {
	double value;
	GArray *samples; /* struct sample */
};

struct counters {
	int gpus, nodes;
	struct series *series; /* (2 * gpus + nodes) */
};

struct counters *counters_new(int gpus, int nodes)
{
	struct counters *counters = g_new0(struct counters, 1);
	counters->gpus = gpus;
	counters->nodes = nodes;
	counters->series = g_new0(struct series, 2 * (size_t)gpus + (size_t)nodes);
	for (int i = 0; i < 2 * gpus + nodes; i++) {
		struct sample zero = {0, 0};
		counters->series[i].samples = g_array_new(FALSE, FALSE, sizeof(struct sample));
		g_array_append_val(counters->series[i].samples, zero);
	}
	return counters;
}

void counters_free(struct counters *counters)
{
	if (!counters)
		return;
	for (int i = 0; i < 2 * counters->gpus + counters->nodes; i++)
		g_array_unref(counters->series[i].samples);
	g_free(counters->series);
	g_free(counters);
}

void counters_add(struct counters *counters, int counter, nsec_t ns, double gbps)
{
	struct series *series = &counters->series[counter];
	GArray *samples = series->samples;
	series->value += gbps;
	if (fabs(series->value) < DUST)
		series->value = 0;
	struct sample sample = {ns, series->value};
	if (g_array_index(samples, struct sample, samples->len - 1).ns == ns)
		g_array_set_size(samples, samples->len - 1);
	if (!samples->len || g_array_index(samples, struct sample, samples->len - 1).value != sample.value)
		g_array_append_val(samples, sample);
}

void counters_copy(const struct counters *counters, struct trace *trace)
{
	for (int i = 0; i < 2 * counters->gpus + counters->nodes; i++) {
		bool pcie = i < 2 * counters->gpus;
		struct counter *counter = g_new0(struct counter, 1);
		counter->name = g_strdup(!pcie ? "DRAM GB/s" : i % 2 ? "PCIe down GB/s" : "PCIe up GB/s");
		counter->gpu = pcie ? i / 2 : -1;
		counter->node = pcie ? -1 : i - 2 * counters->gpus;
		counter->samples = g_array_copy(counters->series[i].samples);
		g_ptr_array_add(trace->counters, counter);
	}
}
