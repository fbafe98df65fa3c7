/* Opening a device by its name, and the clock that host and devices share. The host device is always there; others are looked up here, so that one
 * binary starts everywhere and says what it lacks. */
#include "device.h"
#include "host.h"
#include "model/error.h"

#include <string.h>
#include <time.h>

static nsec_t clock_ns(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * NSEC_PER_SEC + t.tv_nsec;
}

/* The one thing that all runs of a process share: when its first device was opened. */
static nsec_t clock_origin(void)
{
	static size_t origin;
	if (g_once_init_enter(&origin))
		g_once_init_leave(&origin, (size_t)clock_ns());
	return (nsec_t)origin;
}

nsec_t exec_now_ns(void)
{
	nsec_t origin = clock_origin();
	return clock_ns() - origin;
}

static bool cuda_open(int count, uint64_t arena_bytes, struct device **devices, struct device_group **group, GError **error)
{
	g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_DEVICE,
	            "device cuda: this esmoe was built without its CUDA module, which needs nvcc, cuBLAS and NCCL; the host device is there");
	return false;
}

static const struct opener {
	const char *name;
	bool (*open)(int count, uint64_t arena_bytes, struct device **devices, struct device_group **group, GError **error);
} openers[] = {{"host", host_open}, {"cuda", cuda_open}};

bool device_open(const char *name, int count, uint64_t arena_bytes, struct device **devices, struct device_group **group, GError **error)
{
	g_assert(count > 0);
	clock_origin();
	for (size_t i = 0; i < G_N_ELEMENTS(openers); i++)
		if (strcmp(openers[i].name, name) == 0)
			return openers[i].open(count, arena_bytes, devices, group, error);
	g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_DEVICE, "device '%s' is unknown: host or cuda", name);
	return false;
}
