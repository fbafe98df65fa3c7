/* A progress bar. The time left assumes that the rest goes as fast as what was done since the start; it is drawn ten times a second at most. */
#include "progress.h"

#include <glib.h>
#include <stdio.h>
#include <unistd.h>

enum { WIDTH = 40, DRAW_USEC = 100000 };

void progress_init(struct progress *p, int done, int total)
{
	*p = (struct progress){isatty(STDERR_FILENO), done, done, total, g_get_monotonic_time(), 0};
}

double progress_seconds(const struct progress *p)
{
	return (double)(g_get_monotonic_time() - p->start_us) / G_USEC_PER_SEC;
}

void progress_step(struct progress *p)
{
	int64_t now_us = g_get_monotonic_time();
	p->done++;
	if (!p->shown || (now_us - p->drawn_us < DRAW_USEC && p->done < p->total))
		return;
	p->drawn_us = now_us;
	double left_s = (double)(now_us - p->start_us) / G_USEC_PER_SEC / (p->done - p->first) * (p->total - p->done);
	int filled = (int)((double)WIDTH * p->done / p->total), left = (int)(left_s + 0.5);
	char bar[WIDTH + 1];
	for (int i = 0; i < WIDTH; i++)
		bar[i] = i < filled ? '#' : '.';
	bar[WIDTH] = '\0';
	fprintf(stderr, "\r[%s] %d/%d  %d:%02d left \033[K", bar, p->done, p->total, left / 60, left % 60);
}

void progress_clear(struct progress *p)
{
	if (p->shown)
		fputs("\r\033[K", stderr);
}
