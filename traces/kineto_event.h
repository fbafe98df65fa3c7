/* The fields of one event, gathered by key, and what becomes of them: a span, a launch, a step or a sample of its file. */
#pragma once

#include "kineto_parse.h"

#include <stdbool.h>

enum key {
	KEY_NONE,
	KEY_ITEM, /* an element of an array */
	/* numbers of an event */
	KEY_PID,
	KEY_TID,
	KEY_TS,
	KEY_DUR,
	KEY_DEVICE,
	KEY_CORRELATION,
	KEY_STAGE,
	KEY_STEP,
	KEY_LAYER,
	KEY_MICROBATCH,
	KEY_EXPERT,
	KEY_RANK,
	KEY_TOKENS,
	KEY_BYTES,
	KEY_UNKNOWN,
	N_NUMBERS,
	/* words of an event */
	KEY_PH = N_NUMBERS,
	KEY_CAT,
	KEY_NAME,
	KEY_KIND,
	KEY_PASS,
	KEY_ARGS,
	KEY_PREDS,
	/* the file */
	KEY_EVENTS,
	KEY_DEVICES,
	KEY_DISTRIBUTED,
	KEY_WORLD,
	KEY_BASE,
	KEY_GPUS_PER_NODE,
	KEY_DESCRIPTION,
	KEY_HBM,
	KEY_SMS,
	N_KEYS,
};

/* NULL for KEY_NONE and KEY_ITEM. */
const char *kineto_key_name(enum key key);

enum { WORD_BYTES = 96 };

struct word {
	char text[WORD_BYTES]; /* the beginning of longer ones */
};

struct event {
	uint64_t seen; /* bit per key */
	int64_t number[N_NUMBERS];
	struct word word[KEY_PASS + 1 - KEY_PH];
	int n_preds;
	int64_t preds[STAGE_PREDECESSORS];
	struct word unit; /* of a counter's value */
	double value;
};

/* Adds what the event says to its file; events of no interest are passed over. The error says what is wrong, not where. */
bool kineto_event_end(struct kineto_file *file, const struct event *event, GError **error) G_GNUC_WARN_UNUSED_RESULT;
