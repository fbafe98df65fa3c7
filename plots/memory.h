/* Memory: per tier against its capacity, and the HBM of a trace over time. */
#pragma once

#include "csv.h"
#include "model/memory.h"
#include "rows.h"

/* One bar in each panel: what it is called and the peak bytes. */
struct memory_bar {
	char *name;
	struct memory memory;
};

/* Reads rows tier,class,bytes,room - names as memory_tier_name and memory_class_name give them, in either case; a tier's room is the same in all its
 * rows - into bytes and room of *memory. What the file does not name is 0. */
bool memory_read(const struct csv *csv, struct memory *memory, GError **error) G_GNUC_WARN_UNUSED_RESULT;

/* The peak bytes of the run that a trace describes; `file` is what errors call it. ESMOE_ERROR_INPUT: it describes none. */
bool memory_of_trace(const struct trace *trace, const char *file, struct memory *memory, GError **error) G_GNUC_WARN_UNUSED_RESULT;

/* Draws a panel for HBM, for host DRAM (pinned and pageable together) and, when any bar uses it, for SSD: bytes stacked by class, a line at the room.
 */
bool plot_memory(const struct memory_bar *bars, int n, const char *out, GError **error) G_GNUC_WARN_UNUSED_RESULT;

/* Draws the trace's counters "HBM bytes" over its last step, a panel for each chosen GPU, with the GPU's capacity. ESMOE_ERROR_INPUT: it has none.
 * ESMOE_ERROR_USAGE: a GPU that the trace has not. */
bool plot_memory_over_time(const struct trace *trace, const struct gpu_choice *choice, const char *out, GError **error) G_GNUC_WARN_UNUSED_RESULT;
