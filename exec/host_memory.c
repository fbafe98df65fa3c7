/* A prediction of CPU Adam hangs on the memory that a run got: it takes the nearest that it finds, and then sees how fast that is. */
#include "host_memory.h"

#include "engine.h"
#include "model/units.h"
#include "pages.h"

#define MUCH ((uint64_t)1 << 30)
#define BESIDES ((uint64_t)64 << 30) /* looked at for what is nearer: some seconds */

static void tell(const struct run_options *o, char *line)
{
	if (o->note)
		o->note(line, o->user);
	g_free(line);
}

struct far *host_memory_near(const struct memory *planned, const struct run_options *o)
{
	const uint64_t needed = memory_total(planned, TIER_PINNED) + memory_total(planned, TIER_DRAM);
	struct far_found f;
	struct far *far = needed >= MUCH ? far_new(needed, BESIDES, &f) : NULL;
	if (far)
		tell(o, g_strdup_printf("host memory: the nearest %.1f of %.1f GiB, %.0f ns a line; the others, %.0f ns, are left",
		                        (double)f.kept_bytes / GIB, (double)(f.kept_bytes + f.far_bytes) / GIB, f.kept_ns, f.far_ns));
	return far;
}

void host_memory_pace(const struct engine *engine, const struct run_options *o, bool real, struct adam_pace *out)
{
	engine_adam_pace(engine, out);
	if (out->experts && real)
		tell(o, g_strdup_printf(
		            "CPU Adam alone, on the memory of this run: %.2f billion parameters/s (experts: %.2f to %.2f; %.1f GiB in huge pages)",
		            out->whole, out->least, out->most, (double)pages_huge() / GIB));
}
