/* GLib's mutexes and conditions as the thread sanitizer can see them. It follows those of pthreads, and takes GLib's, which are futexes inside an
 * uninstrumented library, for none at all. Builds with that sanitizer rename the calls of this room (meson.build), and what they find instead is
 * here: a pthread lock on the heap behind the GLib lock's own pointer. */
#include <glib.h>
#include <pthread.h>

void g_mutex_init(GMutex *mutex)
{
	pthread_mutex_t *m = g_new(pthread_mutex_t, 1);
	pthread_mutex_init(m, NULL);
	mutex->p = m;
}

void g_mutex_clear(GMutex *mutex)
{
	pthread_mutex_destroy(mutex->p);
	g_free(mutex->p);
}

void g_mutex_lock(GMutex *mutex)
{
	pthread_mutex_lock(mutex->p);
}

void g_mutex_unlock(GMutex *mutex)
{
	pthread_mutex_unlock(mutex->p);
}

void g_cond_init(GCond *cond)
{
	pthread_cond_t *c = g_new(pthread_cond_t, 1);
	pthread_cond_init(c, NULL);
	cond->p = c;
}

void g_cond_clear(GCond *cond)
{
	pthread_cond_destroy(cond->p);
	g_free(cond->p);
}

void g_cond_wait(GCond *cond, GMutex *mutex)
{
	pthread_cond_wait(cond->p, mutex->p);
}

void g_cond_signal(GCond *cond)
{
	pthread_cond_signal(cond->p);
}

void g_cond_broadcast(GCond *cond)
{
	pthread_cond_broadcast(cond->p);
}
