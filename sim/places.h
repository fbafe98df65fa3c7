/* Where a recorded run's experts were before the first of its recorded steps. */
#pragma once

#include "model/schedule.h"

/* Of all experts of the network, as schedule_places gives them, from `csv` (places.csv, named `file` in errors): "layer,expert,last,pinned", a row an
 * expert in their order. ESMOE_ERROR_INPUT names the line. Owned by the caller (g_free). */
struct expert_place *places_of(const char *csv, const char *file, const struct network *n, GError **error) G_GNUC_WARN_UNUSED_RESULT;
