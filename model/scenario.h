/* A scenario: everything a prediction or a run depends on, resolved and checked. Options parse into one, const ever after. */
#pragma once

#include "autoptr.h"
#include "machine.h"
#include "network.h"
#include "policy.h"
#include "routing.h"

/* Training: steps of forward, backward and update. Inference: a batch of prompts is read (prefill) and continued token by token (decode). */
enum workload { WORKLOAD_TRAINING, WORKLOAD_INFERENCE };

struct scenario_options {
	const char *model, *machine, *policy;                       /* preset names or paths */
	int gpus, experts, top_k, sequences, seq_len, microbatches; /* 0: as the files say */
	const char *workload;                                       /* "training", "inference"; NULL: training */
	int generate;                                               /* 0: as the files say */
	const char *routing;                                        /* NULL: the machine's */
	uint64_t seed;
	const char *const *set; /* "section.key=value", NULL-terminated; may be NULL */
};

struct scenario {
	struct network *network;
	struct machine *machine; /* gpus already as asked: the last node may be partly filled, or whole nodes added */
	struct policy *policy;
	struct routing *routing;
	char *routing_spec;
	uint64_t seed;
	int workload;     /* enum workload */
	int sequences;    /* a GPU and step; of inference: the batch */
	int seq_len;      /* of inference: the context, tokens that are there before the first is generated */
	int generate;     /* inference: tokens generated of each sequence: the prefill brings the first, each decode step one more */
	int microbatches; /* 0: chosen so that each is the largest that fits */
};

/* Loads, applies the options, rejects --set keys that no file has (naming the nearest). NULL on error. Owned by the caller. */
struct scenario *scenario_new(const struct scenario_options *o, GError **error) G_GNUC_WARN_UNUSED_RESULT;
void scenario_free(struct scenario *s);
AUTOPTR(scenario)

/* The same on a host whose CPU Adam has so many times the speed that its updates are planned with. Borrows everything but the machine, which it
 * copies to *machine. */
struct scenario scenario_with_adam(const struct scenario *s, double speed, struct machine *machine);

/* The whole scenario as one .ini (network, machine, policy and [scenario] sections), and back: what traces and run.ini carry. `routing`: instead of
 * the text's, which may be a file that is not here; NULL: the text's. Owned by the caller. */
char *scenario_ini(const struct scenario *s);
struct scenario *scenario_from_ini(const char *text, const char *file, const char *routing, GError **error) G_GNUC_WARN_UNUSED_RESULT;
