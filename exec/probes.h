/* The runs of a calibration: which stages they are for, and what makes each of them. */
#pragma once

#include "model/scenario.h"

/* What a run has to itself. */
enum serves {
	SERVES_COMPUTE = 1,
	SERVES_HOST = 2,
	SERVES_EXCHANGES = 4,
	SERVES_OVERHEADS = 8,
	SERVES_STEPS = 16, /* of the scenario's size and like those that will run: the host's waits, what streams ask of shared cores */
	SERVES_GROUPED = 32,
	SERVES_EXPERTS = 64,
	SERVES_ADAM = 128,
	SERVES_SUMS = 256,
	SERVES_COPIES = 512,
	SERVES_ONE_WAY = 1024,
	SERVES_HEAT = 2048,
	SERVES_WHOLE = 4096 /* all layers of the network */
};

struct probe {
	int serves;
	int gpus, sequences, experts, microbatches, d_expert;
	const char *routing; /* in the gate's place; NULL: it decides */
};

char *probe_name(const struct probe *p); /* for whoever waits */

struct probes {
	const struct scenario_options *o; /* that calibration was asked with */
	const struct machine *m;
	GArray *list, *host; /* struct probe; those whose Adam matters, at most one a turn */
	bool real;           /* GPUs have cores of their own, and a clock that follows their work */
	int layers;          /* of a run */
	int all_layers;      /* of one that has them all */
	int host_layers;     /* of one whose Adam matters */
	int d_expert;        /* of the network */
	size_t expert;       /* parameters of one */
	double alone;        /* CPU Adam at the start, billion parameters/s; 0: nobody has looked yet */
};

/* Those for base, which o describes; `hot`: on GPUs whose clock falls. Borrows o and m. */
void probes_init(struct probes *p, const struct scenario_options *o, const struct scenario *base, const struct machine *m, bool real, bool hot);
void probes_clear(struct probes *p);

int probes_layers(const struct probes *p, const struct probe *probe); /* of its run */

/* Its run. Owned by the caller. */
struct scenario *probes_scenario(const struct probes *p, const struct probe *probe, GError **error) G_GNUC_WARN_UNUSED_RESULT;
