/* What happens after the meeting. All goes through rank 0: what everyone needs to know goes there and comes back as one piece. That is a hub's speed,
 * right for what is small (losses, counts, NCCL's id) and for tests; tensors between GPUs take NCCL's way.
 *
 *     rank 1   data a1 -->           --> a0 a1 a2
 *     rank 0               a0 a1 a2
 *     rank 2   data a2 -->           --> a0 a1 a2
 *
 * A thread for each connection reads all the time, so that nobody who writes waits for somebody who writes. Another one says every two seconds that
 * we live, and ends a process that a failure did not end. */
#include "model/error.h"
#include "ranks_inside.h"

#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { BEAT_S = 2, LINGER_S = 2 };

struct peer {
	struct ranks *ranks;
	int rank;
	GSocketConnection *connection;
	pthread_mutex_t sending;
	pthread_t reader;
	bool started;
	GQueue inbox[RANKS_CHANNELS]; /* GBytes */
	bool bye, ended;
};

struct ranks {
	int own, size, local;
	char **name;
	int n_peers;
	struct peer *peer; /* rank 0: all others by rank; the others: rank 0 */
	pthread_t beating;
	pthread_mutex_t lock;
	pthread_cond_t changed;
	GError *error; /* the first */
	gint64 end_us; /* when a process that failed is ended */
	bool leaving, freed;
	pthread_mutex_t watching; /* while `failed` runs */
	void (*failed)(const GError *error, void *user);
	void *user;
};

int ranks_own(const struct ranks *r)
{
	return r->own;
}

int ranks_size(const struct ranks *r)
{
	return r->size;
}

int ranks_local(const struct ranks *r)
{
	return r->local;
}

const char *ranks_name(const struct ranks *r, int rank)
{
	return r->name[rank];
}

/* ---- failing ---- */

static bool tell(struct peer *p, enum message kind, int channel, const void *data, size_t bytes, GError **error)
{
	pthread_mutex_lock(&p->sending);
	bool ok = message_send(p->connection, kind, channel, data, bytes, error);
	pthread_mutex_unlock(&p->sending);
	return ok;
}

static void tell_all(struct ranks *r, enum message kind, const char *text)
{
	for (int i = 0; i < r->n_peers; i++)
		if (!tell(&r->peer[i], kind, 0, text, text ? strlen(text) : 0, NULL))
			continue; /* its reader finds out */
}

/* The first failure is everyone's. False: there was one before. */
static bool note(struct ranks *r, const char *message, int silent_s)
{
	pthread_mutex_lock(&r->lock);
	bool first = !r->error && !r->leaving;
	if (first) {
		r->error = g_error_new_literal(ESMOE_ERROR, ESMOE_ERROR_DEVICE, message);
		r->end_us = g_get_monotonic_time() + (RANKS_END_S - silent_s) * G_USEC_PER_SEC;
		pthread_cond_broadcast(&r->changed);
	}
	pthread_mutex_unlock(&r->lock);
	return first;
}

static void call_watcher(struct ranks *r)
{
	pthread_mutex_lock(&r->watching);
	if (r->failed)
		r->failed(r->error, r->user);
	r->failed = NULL;
	pthread_mutex_unlock(&r->watching);
}

/* Found out by a reader: about its own peer, or told by it. */
static void others_failed(struct ranks *r, const char *message, int silent_s)
{
	if (!note(r, message, silent_s))
		return;
	if (r->own == 0)
		tell_all(r, MESSAGE_FAILED, message);
	call_watcher(r);
}

void ranks_fail(struct ranks *r, const GError *error)
{
	g_autofree char *message = g_strdup_printf("%s: %s", r->name[r->own], error->message);
	if (note(r, message, 0))
		tell_all(r, MESSAGE_FAILED, message);
}

static bool check_locked(const struct ranks *r, GError **error)
{
	if (r->error && error)
		*error = g_error_copy(r->error);
	return !r->error;
}

bool ranks_check(struct ranks *r, GError **error)
{
	pthread_mutex_lock(&r->lock);
	bool ok = check_locked(r, error);
	pthread_mutex_unlock(&r->lock);
	return ok;
}

static void wait_for_change(struct ranks *r, int ms)
{
	struct timespec until;
	clock_gettime(CLOCK_MONOTONIC, &until);
	until.tv_sec += ms / 1000 + (until.tv_nsec + ms % 1000 * 1000000L) / 1000000000L;
	until.tv_nsec = (until.tv_nsec + ms % 1000 * 1000000L) % 1000000000L;
	pthread_cond_timedwait(&r->changed, &r->lock, &until);
}

bool ranks_explain(struct ranks *r, int wait_ms, GError **error)
{
	const gint64 until = g_get_monotonic_time() + (gint64)wait_ms * 1000;
	pthread_mutex_lock(&r->lock);
	for (gint64 now; !r->error && (now = g_get_monotonic_time()) < until;)
		wait_for_change(r, (int)((until - now) / 1000) + 1);
	bool explained = r->error != NULL;
	if (explained) {
		g_clear_error(error);
		(void)check_locked(r, error);
	}
	pthread_mutex_unlock(&r->lock);
	return explained;
}

void ranks_watch(struct ranks *r, void (*failed)(const GError *error, void *user), void *user)
{
	pthread_mutex_lock(&r->watching);
	r->failed = failed;
	r->user = user;
	pthread_mutex_unlock(&r->watching);
	if (failed && !ranks_check(r, NULL))
		call_watcher(r);
}

/* ---- threads ---- */

/* False: the connection is of no use any more. */
static bool take_message(struct peer *p)
{
	struct ranks *r = p->ranks;
	g_autoptr(GError) cause = NULL;
	g_autofree char *message = NULL;
	struct head head;
	g_autoptr(GBytes) data = message_receive(p->connection, &head, G_MAXINT64, &cause);
	gsize n = 0;
	const char *text = data ? g_bytes_get_data(data, &n) : NULL;
	if (data && head.kind == MESSAGE_FAILED) {
		message = g_strndup(n ? text : "", n);
		others_failed(r, message, 0);
		return true;
	}
	if (data) {
		pthread_mutex_lock(&r->lock);
		p->bye |= head.kind == MESSAGE_BYE;
		if (head.kind == MESSAGE_DATA && head.channel < RANKS_CHANNELS)
			g_queue_push_tail(&p->inbox[head.channel], g_steal_pointer(&data));
		pthread_cond_broadcast(&r->changed);
		pthread_mutex_unlock(&r->lock);
		return true;
	}
	bool silent = g_error_matches(cause, G_IO_ERROR, G_IO_ERROR_TIMED_OUT);
	message = silent ? g_strdup_printf("%s died or cannot be reached: nothing was heard of it for %d s", r->name[p->rank], RANKS_SILENT_S)
	                 : g_strdup_printf("%s died: %s", r->name[p->rank], cause->message);
	if (!p->bye)
		others_failed(r, message, silent ? RANKS_SILENT_S : 0);
	return false;
}

static void *read_on(void *peer)
{
	struct peer *p = peer;
	while (take_message(p))
		;
	pthread_mutex_lock(&p->ranks->lock);
	p->ended = true;
	pthread_cond_broadcast(&p->ranks->changed);
	pthread_mutex_unlock(&p->ranks->lock);
	return NULL;
}

/* The last resort where something that we call does not come back: nobody may wait for this process, and its error is told. */
static void end(const struct ranks *r)
{
	fprintf(stderr, "esmoe: %s\n", r->error->message);
	_exit(ESMOE_ERROR_DEVICE);
}

static void *beat(void *ranks)
{
	struct ranks *r = ranks;
	pthread_mutex_lock(&r->lock);
	for (gint64 next_us = 0; !r->freed;) {
		const gint64 now_us = g_get_monotonic_time();
		if (r->error && now_us > r->end_us)
			end(r);
		if (now_us >= next_us) {
			pthread_mutex_unlock(&r->lock);
			tell_all(r, MESSAGE_BEAT, NULL);
			pthread_mutex_lock(&r->lock);
			next_us = now_us + BEAT_S * G_USEC_PER_SEC;
			continue;
		}
		wait_for_change(r, (int)((next_us - now_us) / 1000) + 1);
	}
	pthread_mutex_unlock(&r->lock);
	return NULL;
}

/* ---- life ---- */

/* How many ranks before this one are on its host. */
static int count_local(const struct meeting *m, int own)
{
	int n = 0;
	for (int i = 0; i < own; i++)
		n += g_str_equal(g_ptr_array_index(m->host, i), g_ptr_array_index(m->host, own));
	return n;
}

static void open_peers(struct ranks *r, struct meeting *m)
{
	r->n_peers = r->own ? 1 : r->size - 1;
	r->peer = g_new0(struct peer, r->n_peers);
	for (int i = 0; i < r->n_peers; i++) {
		struct peer *p = &r->peer[i];
		*p = (struct peer){.ranks = r, .rank = r->own ? 0 : i + 1};
		p->connection = g_steal_pointer(&m->connection->pdata[p->rank]);
		message_timeout(p->connection, RANKS_SILENT_S);
		pthread_mutex_init(&p->sending, NULL);
		for (int c = 0; c < RANKS_CHANNELS; c++)
			g_queue_init(&p->inbox[c]);
	}
	for (int i = 0; i < r->n_peers; i++)
		r->peer[i].started = pthread_create(&r->peer[i].reader, NULL, read_on, &r->peer[i]) == 0;
}

struct ranks *ranks_join(const struct launched *l, const char *version, const char *terms, int timeout_s, GError **error)
{
	autoclear(meeting) m = {0};
	if (!meeting_hold(l, version, terms, timeout_s, &m, error))
		return NULL;
	struct ranks *r = g_new0(struct ranks, 1);
	pthread_condattr_t monotonic;
	*r = (struct ranks){.own = l->rank, .size = l->size, .local = l->local >= 0 ? l->local : count_local(&m, l->rank)};
	r->name = g_new0(char *, r->size + 1);
	for (int i = 0; i < r->size; i++)
		r->name[i] = g_strdup_printf("rank %d (%s)", i, (const char *)g_ptr_array_index(m.host, i));
	pthread_mutex_init(&r->lock, NULL);
	pthread_mutex_init(&r->watching, NULL);
	pthread_condattr_init(&monotonic);
	pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
	pthread_cond_init(&r->changed, &monotonic);
	pthread_condattr_destroy(&monotonic);
	open_peers(r, &m);
	bool started = pthread_create(&r->beating, NULL, beat, r) == 0;
	g_assert(started);
	return r;
}

/* Each says goodbye when all have come here; only then may connections end. */
bool ranks_leave(struct ranks *r, GError **error)
{
	g_autoptr(GPtrArray) all = ranks_gather(r, RANKS_STEPS, NULL, 0, error);
	if (!all)
		return false;
	pthread_mutex_lock(&r->lock);
	r->leaving = true;
	pthread_mutex_unlock(&r->lock);
	tell_all(r, MESSAGE_BYE, NULL);
	return true;
}

/* What was said last must arrive: the other side closes first, or has a while to. */
static void close_peer(struct ranks *r, struct peer *p, gint64 until)
{
	GSocket *s = g_socket_connection_get_socket(p->connection);
	(void)g_socket_shutdown(s, FALSE, TRUE, NULL);
	pthread_mutex_lock(&r->lock);
	for (gint64 now; p->started && !p->ended && (now = g_get_monotonic_time()) < until;)
		wait_for_change(r, (int)((until - now) / 1000) + 1);
	pthread_mutex_unlock(&r->lock);
	(void)g_socket_shutdown(s, TRUE, TRUE, NULL);
	if (p->started)
		pthread_join(p->reader, NULL);
	for (int c = 0; c < RANKS_CHANNELS; c++)
		g_queue_clear_full(&p->inbox[c], (GDestroyNotify)g_bytes_unref);
	pthread_mutex_destroy(&p->sending);
	g_object_unref(p->connection);
}

void ranks_free(struct ranks *r)
{
	if (!r)
		return;
	pthread_mutex_lock(&r->lock);
	r->leaving = r->freed = true;
	pthread_cond_broadcast(&r->changed);
	pthread_mutex_unlock(&r->lock);
	pthread_join(r->beating, NULL);
	const gint64 until = g_get_monotonic_time() + LINGER_S * G_USEC_PER_SEC;
	for (int i = 0; i < r->n_peers; i++)
		(void)g_socket_shutdown(g_socket_connection_get_socket(r->peer[i].connection), FALSE, TRUE, NULL);
	for (int i = 0; i < r->n_peers; i++)
		close_peer(r, &r->peer[i], until);
	pthread_cond_destroy(&r->changed);
	pthread_mutex_destroy(&r->lock);
	pthread_mutex_destroy(&r->watching);
	g_clear_error(&r->error);
	g_strfreev(r->name);
	g_free(r->peer);
	g_free(r);
}

/* ---- passing bytes on ---- */

static GBytes *take(struct peer *p, enum ranks_channel channel, GError **error)
{
	struct ranks *r = p->ranks;
	GQueue *inbox = &p->inbox[channel];
	pthread_mutex_lock(&r->lock);
	while (!inbox->length && !r->error)
		pthread_cond_wait(&r->changed, &r->lock);
	GBytes *data = g_queue_pop_head(inbox); /* what came before a failure is good */
	if (!data)
		(void)check_locked(r, error);
	pthread_mutex_unlock(&r->lock);
	return data;
}

/* A connection that cannot be written to: its reader knows why, or will. */
static bool give(struct peer *p, enum ranks_channel channel, const void *data, size_t bytes, GError **error)
{
	g_autoptr(GError) cause = NULL;
	if (!ranks_check(p->ranks, error))
		return false;
	if (tell(p, MESSAGE_DATA, channel, data, bytes, &cause))
		return true;
	g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_DEVICE, "%s cannot be reached: %s", p->ranks->name[p->rank], cause->message);
	(void)ranks_explain(p->ranks, 1000, error);
	return false;
}

/* Parts (size): their lengths, then the parts themselves. */
static GBytes *pack(const struct ranks *r, GPtrArray *parts)
{
	GString *all = g_string_new(NULL);
	for (int i = 0; i < r->size; i++) {
		uint64_t n = g_bytes_get_size(g_ptr_array_index(parts, i));
		g_string_append_len(all, (const char *)&n, sizeof n);
	}
	for (int i = 0; i < r->size; i++) {
		gsize n;
		const char *data = g_bytes_get_data(g_ptr_array_index(parts, i), &n);
		if (n)
			g_string_append_len(all, data, (gssize)n);
	}
	return g_string_free_to_bytes(all);
}

static bool unpack(const struct ranks *r, GBytes *all, GPtrArray *parts)
{
	gsize n, at = (gsize)r->size * sizeof(uint64_t);
	const char *data = g_bytes_get_data(all, &n);
	for (int i = 0; i < r->size && at <= n; i++) {
		uint64_t part;
		memcpy(&part, data + (size_t)i * sizeof part, sizeof part);
		if (part > n - at)
			return false;
		g_ptr_array_add(parts, g_bytes_new_from_bytes(all, at, part));
		at += part;
	}
	return at == n;
}

static void bytes_free(void *bytes)
{
	g_bytes_unref(bytes);
}

static bool gather_here(struct ranks *r, enum ranks_channel channel, GPtrArray *parts, GError **error)
{
	for (int i = 0; i < r->n_peers; i++) {
		GBytes *part = take(&r->peer[i], channel, error);
		if (!part)
			return false;
		g_ptr_array_add(parts, part);
	}
	g_autoptr(GBytes) all = pack(r, parts);
	gsize n;
	const void *data = g_bytes_get_data(all, &n);
	for (int i = 0; i < r->n_peers; i++)
		if (!give(&r->peer[i], channel, data, n, error))
			return false;
	return true;
}

GPtrArray *ranks_gather(struct ranks *r, enum ranks_channel channel, const void *own, size_t bytes, GError **error)
{
	g_autoptr(GPtrArray) parts = g_ptr_array_new_with_free_func(bytes_free);
	if (r->own == 0) {
		g_ptr_array_add(parts, g_bytes_new(own, bytes));
		return gather_here(r, channel, parts, error) ? g_steal_pointer(&parts) : NULL;
	}
	g_autoptr(GBytes) all = give(r->peer, channel, own, bytes, error) ? take(r->peer, channel, error) : NULL;
	if (!all)
		return NULL;
	if (unpack(r, all, parts))
		return g_steal_pointer(&parts);
	g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_DEVICE, "%s sent a message that does not add up", r->name[0]);
	return NULL;
}

/* Bytes that came, into their place. */
static bool fill(struct peer *p, enum ranks_channel channel, void *to, size_t bytes, GError **error)
{
	g_autoptr(GBytes) data = take(p, channel, error);
	gsize n = 0;
	const void *from = data ? g_bytes_get_data(data, &n) : NULL;
	if (data && n != bytes)
		g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_DEVICE, "%s sent %zu bytes; expected %zu", p->ranks->name[p->rank], n, bytes);
	if (!data || n != bytes)
		return false;
	if (n)
		memcpy(to, from, n);
	return true;
}

bool ranks_share(struct ranks *r, enum ranks_channel channel, void *data, size_t bytes, GError **error)
{
	if (r->own)
		return fill(r->peer, channel, data, bytes, error);
	for (int i = 0; i < r->n_peers; i++)
		if (!give(&r->peer[i], channel, data, bytes, error))
			return false;
	return true;
}

bool ranks_hand_in(struct ranks *r, enum ranks_channel channel, int from, void *data, size_t bytes, GError **error)
{
	if (from == 0 || (r->own && r->own != from))
		return true;
	return r->own ? give(r->peer, channel, data, bytes, error) : fill(&r->peer[from - 1], channel, data, bytes, error);
}
