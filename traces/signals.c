/* Blocking signals would not do: libraries start threads of their own before main, which a signal would reach and kill. GLib's handler hands them to
 * a source, which is asked without waiting. */
#include "signals.h"

#include <glib-unix.h>
#include <signal.h>
#include <stdbool.h>

enum { INTERRUPT, TERMINATE, N_SIGNALS };

struct signals {
	GMainContext *context;
	GSource *source[N_SIGNALS];
	bool came[N_SIGNALS];
};

static const int numbers[N_SIGNALS] = {[INTERRUPT] = SIGINT, [TERMINATE] = SIGTERM};

static gboolean take(gpointer came)
{
	*(bool *)came = true;
	return G_SOURCE_CONTINUE;
}

struct signals *signals_new(void)
{
	struct signals *s = g_new0(struct signals, 1);
	s->context = g_main_context_new();
	for (int i = 0; i < N_SIGNALS; i++) {
		s->source[i] = g_unix_signal_source_new(numbers[i]);
		g_source_set_callback(s->source[i], take, &s->came[i], NULL);
		g_source_attach(s->source[i], s->context);
	}
	return s;
}

void signals_free(struct signals *s)
{
	if (!s)
		return;
	for (int i = 0; i < N_SIGNALS; i++) {
		g_source_destroy(s->source[i]);
		g_source_unref(s->source[i]);
	}
	g_main_context_unref(s->context);
	g_free(s);
}

int signals_taken(struct signals *s)
{
	while (g_main_context_iteration(s->context, FALSE))
		;
	for (int i = N_SIGNALS - 1; i >= 0; i--)
		if (s->came[i])
			return numbers[i];
	return 0;
}
