/* The commands behind the door. Each lives in the room that does its work and has one shape: argv[0] is its name; results go to stdout, notes to
 * stderr; false with an error, whose code the door turns into the exit status (error.h; G_OPTION_ERROR: wrong usage). */
#pragma once

#include <glib.h>
#include <stdbool.h>

bool cmd_models(int argc, char **argv, GError **error) G_GNUC_WARN_UNUSED_RESULT;
bool cmd_machines(int argc, char **argv, GError **error) G_GNUC_WARN_UNUSED_RESULT;
bool cmd_policies(int argc, char **argv, GError **error) G_GNUC_WARN_UNUSED_RESULT;
bool cmd_show(int argc, char **argv, GError **error) G_GNUC_WARN_UNUSED_RESULT;
bool cmd_predict(int argc, char **argv, GError **error) G_GNUC_WARN_UNUSED_RESULT;
bool cmd_compare(int argc, char **argv, GError **error) G_GNUC_WARN_UNUSED_RESULT;
bool cmd_sweep(int argc, char **argv, GError **error) G_GNUC_WARN_UNUSED_RESULT;
bool cmd_run(int argc, char **argv, GError **error) G_GNUC_WARN_UNUSED_RESULT;
bool cmd_calibrate(int argc, char **argv, GError **error) G_GNUC_WARN_UNUSED_RESULT;
bool cmd_validate(int argc, char **argv, GError **error) G_GNUC_WARN_UNUSED_RESULT;
bool cmd_trace(int argc, char **argv, GError **error) G_GNUC_WARN_UNUSED_RESULT;
bool cmd_plot(int argc, char **argv, GError **error) G_GNUC_WARN_UNUSED_RESULT;
