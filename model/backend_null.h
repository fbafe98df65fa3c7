/* The do-nothing backend: every stage ends the moment it is launched. It makes tests of a schedule instant. */
#pragma once

#include "backend.h"
#include "routing.h"

/* Its gates answer from `routing` for `gpus` GPUs. `routing` is borrowed and must outlive the backend; NULL when no loads are asked for. */
struct backend *backend_null_new(const struct routing *routing, int gpus);

/* Every stage launched from now on is appended to `stages` (GArray of struct stage), which is borrowed. */
void backend_null_record(struct backend *b, GArray *stages);
