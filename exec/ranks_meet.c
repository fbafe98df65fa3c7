/* How the ranks find each other. Rank 0 listens; the others try, again and again, where it may be:
 *
 *     rank 1   hello: version, job, rank, size, host, terms -->  rank 0
 *              <-- held                                          ... until all have come
 *              <-- welcome: all hosts, or refused: why
 *
 * Who answers otherwise is somebody else's server. A file of addresses is written whole and removed when all have come; one that an earlier run left
 * leads nowhere, and is read again before each try. */
#include "model/error.h"
#include "ranks_inside.h"

#include <arpa/inet.h>
#include <errno.h>
#include <glib/gstdio.h>
#include <ifaddrs.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <string.h>

#define FILE_HEAD "esmoe ranks"
#define HELLO_MOST ((uint64_t)16 << 20)
enum { CONNECT_S = 3, ANSWER_S = 5, RETRY_US = 50000, LOOK_S = 1 };

/* ---- messages ---- */

void message_timeout(GSocketConnection *c, int seconds)
{
	g_socket_set_timeout(g_socket_connection_get_socket(c), (guint)seconds);
}

bool message_send(GSocketConnection *c, enum message kind, int channel, const void *data, size_t bytes, GError **error)
{
	GOutputStream *out = g_io_stream_get_output_stream(G_IO_STREAM(c));
	const struct head head = {(uint32_t)kind, (uint32_t)channel, bytes};
	return g_output_stream_write_all(out, &head, sizeof head, NULL, NULL, error) &&
	       (!bytes || g_output_stream_write_all(out, data, bytes, NULL, NULL, error));
}

static bool read_all(GInputStream *in, void *to, size_t bytes, GError **error)
{
	size_t n = 0;
	if (!g_input_stream_read_all(in, to, bytes, &n, NULL, error))
		return false;
	if (n < bytes)
		g_set_error(error, G_IO_ERROR, G_IO_ERROR_CLOSED, "its connection ended");
	return n == bytes;
}

GBytes *message_receive(GSocketConnection *c, struct head *head, uint64_t most, GError **error)
{
	GInputStream *in = g_io_stream_get_input_stream(G_IO_STREAM(c));
	if (!read_all(in, head, sizeof *head, error))
		return NULL;
	if (head->kind < MESSAGE_HELLO || head->kind > MESSAGE_BYE || head->bytes > most) {
		g_set_error(error, G_IO_ERROR, G_IO_ERROR_INVALID_DATA, "no message of esmoe");
		return NULL;
	}
	g_autofree char *data = g_try_malloc(MAX(head->bytes, 1));
	if (!data) {
		g_set_error(error, G_IO_ERROR, G_IO_ERROR_NO_SPACE, "no memory for a message of %" G_GUINT64_FORMAT " bytes", head->bytes);
		return NULL;
	}
	if (!read_all(in, data, head->bytes, error))
		return NULL;
	return g_bytes_new_take(g_steal_pointer(&data), head->bytes);
}

static char *text_of(GBytes *bytes)
{
	gsize n;
	const char *data = g_bytes_get_data(bytes, &n);
	return n ? g_strndup(data, n) : g_strdup("");
}

/* Small messages must not wait for each other's acknowledgement. */
static void hurry(GSocketConnection *c)
{
	(void)g_socket_set_option(g_socket_connection_get_socket(c), IPPROTO_TCP, TCP_NODELAY, 1, NULL);
}

/* ---- addresses ---- */

struct place {
	char *host;
	int port;
};

static void place_free(void *p)
{
	g_free(((struct place *)p)->host);
	g_free(p);
}

static void add_place(GPtrArray *places, const char *host, int port)
{
	struct place *p = g_new(struct place, 1);
	*p = (struct place){g_strdup(host), port};
	g_ptr_array_add(places, p);
}

/* HOST:PORT, the host perhaps in brackets; false: a file's name. */
static bool split_address(const char *address, char **host, int *port)
{
	const char *colon = strrchr(address, ':');
	guint64 n;
	if (!colon || colon == address || strchr(colon, '/') || strchr(address, '/') ||
	    !g_ascii_string_to_unsigned(colon + 1, 10, 1, 65535, &n, NULL))
		return false;
	bool brackets = address[0] == '[' && colon[-1] == ']';
	*host = brackets ? g_strndup(address + 1, (gsize)(colon - address) - 2) : g_strndup(address, (gsize)(colon - address));
	*port = (int)n;
	return true;
}

/* What a file says, nothing where it says nothing yet. */
static void read_places(const char *file, const char *job, GPtrArray *places)
{
	g_autofree char *text = NULL;
	if (!g_file_get_contents(file, &text, NULL, NULL))
		return;
	g_auto(GStrv) lines = g_strsplit(text, "\n", 0);
	if (g_strv_length(lines) < 3 || !g_str_equal(lines[0], FILE_HEAD) || !g_str_equal(lines[1], job))
		return;
	for (int i = 2; lines[i]; i++) {
		const char *space = strchr(lines[i], ' ');
		guint64 port;
		if (!space || !g_ascii_string_to_unsigned(space + 1, 10, 1, 65535, &port, NULL))
			continue;
		g_autofree char *host = g_strndup(lines[i], (gsize)(space - lines[i]));
		if (g_str_equal(host, g_get_host_name()))
			add_place(places, "127.0.0.1", (int)port);
		add_place(places, host, (int)port);
	}
}

static GPtrArray *places_of(const struct launched *l)
{
	GPtrArray *places = g_ptr_array_new_with_free_func(place_free);
	g_autofree char *host = NULL;
	int port;
	if (!split_address(l->address, &host, &port))
		read_places(l->address, l->job, places);
	for (int i = 0; host && i < l->ports; i++)
		add_place(places, host, port + i);
	return places;
}

/* The host's name and, where others cannot resolve it, its addresses. */
static bool write_places(const struct launched *l, int port, GError **error)
{
	g_autoptr(GString) text = g_string_new(NULL);
	g_autoptr(GError) cause = NULL;
	struct ifaddrs *all = NULL;
	g_string_printf(text, FILE_HEAD "\n%s\n%s %d\n", l->job, g_get_host_name(), port);
	if (getifaddrs(&all) == 0) {
		for (const struct ifaddrs *i = all; i; i = i->ifa_next) {
			char name[INET_ADDRSTRLEN];
			if (!i->ifa_addr || i->ifa_addr->sa_family != AF_INET)
				continue;
			const struct sockaddr_in *in = (const struct sockaddr_in *)(const void *)i->ifa_addr;
			if (ntohl(in->sin_addr.s_addr) >> 24 != 127 && inet_ntop(AF_INET, &in->sin_addr, name, sizeof name))
				g_string_append_printf(text, "%s %d\n", name, port);
		}
		freeifaddrs(all);
	}
	if (g_file_set_contents(l->address, text->str, (gssize)text->len, &cause))
		return true;
	g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_INPUT,
	            "--rendezvous %s: cannot be written: %s; expected a file in a folder that all ranks see, or HOST:PORT", l->address,
	            cause->message);
	return false;
}

/* ---- rank 0 ---- */

void meeting_clear(struct meeting *m)
{
	g_clear_pointer(&m->connection, g_ptr_array_unref);
	g_clear_pointer(&m->host, g_ptr_array_unref);
}

static void unref_connection(void *c)
{
	if (c)
		g_object_unref(c);
}

static GSocket *bind_to(int port, GError **error)
{
	static const GSocketFamily families[] = {G_SOCKET_FAMILY_IPV6, G_SOCKET_FAMILY_IPV4}; /* the first one speaks both */
	for (size_t i = 0; i < G_N_ELEMENTS(families); i++) {
		g_clear_error(error);
		g_autoptr(GSocket) s = g_socket_new(families[i], G_SOCKET_TYPE_STREAM, G_SOCKET_PROTOCOL_TCP, error);
		g_autoptr(GInetAddress) any = g_inet_address_new_any(families[i]);
		g_autoptr(GSocketAddress) address = g_inet_socket_address_new(any, (guint16)port);
		if (s && families[i] == G_SOCKET_FAMILY_IPV6)
			(void)g_socket_set_option(s, IPPROTO_IPV6, IPV6_V6ONLY, 0, NULL);
		if (!s || !g_socket_bind(s, address, TRUE, error) || !g_socket_listen(s, error))
			continue;
		g_socket_set_timeout(s, LOOK_S);
		return g_steal_pointer(&s);
	}
	return NULL;
}

static GSocket *listen_for(const struct launched *l, GError **error)
{
	g_autoptr(GError) cause = NULL;
	g_autofree char *host = NULL;
	int port = 0;
	bool file = !split_address(l->address, &host, &port);
	for (int i = 0; i < l->ports; i++) {
		g_autoptr(GSocket) s = bind_to(file ? 0 : port + i, &cause);
		if (!s)
			continue;
		g_autoptr(GSocketAddress) bound = file ? g_socket_get_local_address(s, NULL) : NULL;
		if (bound && !write_places(l, g_inet_socket_address_get_port(G_INET_SOCKET_ADDRESS(bound)), error))
			return NULL;
		return g_steal_pointer(&s);
	}
	g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_INPUT, "rank 0 cannot listen at %s: %s", l->address, cause ? cause->message : "no port is free");
	return NULL;
}

struct hello {
	char **part; /* version, job, rank, size, host, terms */
};
enum { HELLO_VERSION, HELLO_JOB, HELLO_RANK, HELLO_SIZE, HELLO_HOST, HELLO_TERMS, HELLO_PARTS };

static char *hello_of(const struct launched *l, const char *version, const char *terms)
{
	return g_strdup_printf("%s\n%s\n%d\n%d\n%s\n%s", version, l->job, l->rank, l->size, g_get_host_name(), terms);
}

/* The first line that is not the same on both sides. */
static bool same_terms(const char *own, const char *other, const char *who, GError **error)
{
	g_auto(GStrv) a = g_strsplit(own, "\n", 0), b = g_strsplit(other, "\n", 0);
	guint i = 0;
	while (a[i] && b[i] && g_str_equal(a[i], b[i]))
		i++;
	if (!a[i] && !b[i])
		return true;
	g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_INPUT, "%s was started with other options than rank 0: '%s', where rank 0 has '%s'", who,
	            b[i] ? b[i] : "nothing", a[i] ? a[i] : "nothing");
	return false;
}

/* Whether who said hello may join; false without an error: it is none of ours. */
static bool admit(const struct launched *l, const char *version, const char *terms, char **hello, const struct meeting *m, int *rank, GError **error)
{
	guint64 n, size;
	if (g_strv_length(hello) < HELLO_PARTS || !g_str_equal(hello[HELLO_JOB], l->job) ||
	    !g_ascii_string_to_unsigned(hello[HELLO_RANK], 10, 1, G_MAXINT, &n, NULL) ||
	    !g_ascii_string_to_unsigned(hello[HELLO_SIZE], 10, 1, G_MAXINT, &size, NULL))
		return false;
	g_autofree char *who = g_strdup_printf("rank %" G_GUINT64_FORMAT " (%s)", n, hello[HELLO_HOST]);
	*rank = (int)n;
	if (!g_str_equal(hello[HELLO_VERSION], version))
		g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_INPUT, "%s runs esmoe %s; expected %s, as rank 0", who, hello[HELLO_VERSION], version);
	else if (size != (guint64)l->size)
		g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_INPUT, "%s is one of %" G_GUINT64_FORMAT " ranks; expected %d, as rank 0 has them", who,
		            size, l->size);
	else if (g_ptr_array_index(m->connection, n))
		g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_INPUT, "%s came twice, first from %s; expected each rank once", who,
		            (const char *)g_ptr_array_index(m->host, n));
	else
		return same_terms(terms, hello[HELLO_TERMS], who, error);
	return false;
}

static void refuse(GSocketConnection *c, const GError *why)
{
	g_autofree char *text = g_strdup_printf("%d %s", why->code, why->message);
	if (!message_send(c, MESSAGE_REFUSED, 0, text, strlen(text), NULL))
		return;
	(void)g_socket_shutdown(g_socket_connection_get_socket(c), FALSE, TRUE, NULL);
}

/* One that came. False: it must not be there, and nobody goes on. */
static bool receive_one(const struct launched *l, const char *version, const char *terms, GSocket *came, struct meeting *m, GError **error)
{
	g_autoptr(GSocketConnection) c = g_socket_connection_factory_create_connection(came);
	g_autoptr(GError) why = NULL;
	struct head head;
	int rank = 0;
	message_timeout(c, ANSWER_S);
	hurry(c);
	g_autoptr(GBytes) said = message_receive(c, &head, HELLO_MOST, NULL);
	if (!said || head.kind != MESSAGE_HELLO)
		return true;
	g_autofree char *text = text_of(said);
	g_auto(GStrv) hello = g_strsplit(text, "\n", HELLO_PARTS);
	if (admit(l, version, terms, hello, m, &rank, &why) && message_send(c, MESSAGE_HELD, 0, NULL, 0, NULL)) {
		m->connection->pdata[rank] = g_steal_pointer(&c);
		g_free(m->host->pdata[rank]);
		m->host->pdata[rank] = g_strdup(hello[HELLO_HOST]);
		return true;
	}
	if (!why)
		return true;
	refuse(c, why);
	g_propagate_error(error, g_steal_pointer(&why));
	return false;
}

static char *missing(const struct meeting *m)
{
	g_autoptr(GString) names = g_string_new(NULL);
	for (guint i = 1; i < m->connection->len; i++)
		if (!g_ptr_array_index(m->connection, i))
			g_string_append_printf(names, "%s%u", names->len ? ", " : "", i);
	return g_strdup(names->str);
}

static bool all_there(const struct meeting *m)
{
	for (guint i = 1; i < m->connection->len; i++)
		if (!g_ptr_array_index(m->connection, i))
			return false;
	return true;
}

static bool receive_all(const struct launched *l, const char *version, const char *terms, GSocket *s, int timeout_s, struct meeting *m,
                        GError **error)
{
	const gint64 until = g_get_monotonic_time() + timeout_s * G_USEC_PER_SEC;
	while (!all_there(m)) {
		g_autoptr(GSocket) came = g_socket_accept(s, NULL, NULL);
		if (came && !receive_one(l, version, terms, came, m, error))
			return false;
		if (g_get_monotonic_time() > until && !all_there(m)) {
			g_autofree char *names = missing(m);
			g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_DEVICE, "rank %s of %d has not come to %s, where rank 0 (%s) waited %d s", names,
			            l->size, l->address, g_get_host_name(), timeout_s);
			return false;
		}
	}
	return true;
}

static bool welcome_all(const struct meeting *m, GError **error)
{
	g_autoptr(GString) hosts = g_string_new(g_ptr_array_index(m->host, 0));
	for (guint i = 1; i < m->host->len; i++)
		g_string_append_printf(hosts, "\n%s", (const char *)g_ptr_array_index(m->host, i));
	for (guint i = 1; i < m->connection->len; i++)
		if (!message_send(g_ptr_array_index(m->connection, i), MESSAGE_WELCOME, 0, hosts->str, hosts->len, NULL)) {
			g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_DEVICE, "rank %u (%s) died before all ranks had come", i,
			            (const char *)g_ptr_array_index(m->host, i));
			return false;
		}
	return true;
}

static bool hold_open(const struct launched *l, const char *version, const char *terms, int timeout_s, struct meeting *m, GError **error)
{
	g_autoptr(GError) why = NULL;
	g_autofree char *host = NULL;
	int port;
	g_autoptr(GSocket) s = listen_for(l, error);
	if (!s)
		return false;
	bool ok = receive_all(l, version, terms, s, timeout_s, m, &why) && welcome_all(m, &why);
	if (!split_address(l->address, &host, &port))
		g_unlink(l->address);
	if (ok)
		return true;
	for (int i = 1; i < l->size; i++)
		if (g_ptr_array_index(m->connection, i))
			refuse(g_ptr_array_index(m->connection, i), why);
	g_propagate_error(error, g_steal_pointer(&why));
	return false;
}

/* ---- the others ---- */

/* A connection to rank 0 that holds us; NULL: not here, not now. */
static GSocketConnection *try_place(const struct place *p, const char *hello, char **last)
{
	g_autoptr(GSocketClient) client = g_socket_client_new();
	g_autoptr(GError) cause = NULL;
	struct head head;
	g_socket_client_set_timeout(client, CONNECT_S);
	g_socket_client_set_enable_proxy(client, FALSE);
	g_autoptr(GSocketConnection) c = g_socket_client_connect_to_host(client, p->host, (guint16)p->port, NULL, &cause);
	g_autoptr(GBytes) answer = NULL;
	if (c) {
		message_timeout(c, ANSWER_S);
		hurry(c);
		if (message_send(c, MESSAGE_HELLO, 0, hello, strlen(hello), &cause))
			answer = message_receive(c, &head, HELLO_MOST, &cause);
	}
	if (answer && head.kind == MESSAGE_HELD)
		return g_steal_pointer(&c);
	g_free(*last);
	*last =
	    answer && head.kind == MESSAGE_REFUSED ? text_of(answer) : g_strdup_printf("0 %s", cause ? cause->message : "another server answered");
	return NULL;
}

/* "CODE reason", as rank 0 refuses; code 0: no refusal. */
static bool refused(const char *text, GError **error)
{
	int code = text ? atoi(text) : 0;
	if (!code)
		return false;
	g_set_error_literal(error, ESMOE_ERROR, code, strchr(text, ' ') + 1);
	return true;
}

static GSocketConnection *find_first(const struct launched *l, const char *hello, gint64 until, int timeout_s, GError **error)
{
	g_autofree char *last = NULL;
	do {
		g_autoptr(GPtrArray) places = places_of(l);
		for (guint i = 0; i < places->len; i++) {
			GSocketConnection *c = try_place(g_ptr_array_index(places, i), hello, &last);
			if (c || refused(last, error))
				return c;
		}
		g_usleep(RETRY_US);
	} while (g_get_monotonic_time() < until);
	g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_DEVICE, "rank 0 was not found at %s within %d s by rank %d (%s)%s%s", l->address, timeout_s,
	            l->rank, g_get_host_name(), last ? ": " : "", last ? strchr(last, ' ') + 1 : "");
	return NULL;
}

static bool come(const struct launched *l, const char *version, const char *terms, int timeout_s, struct meeting *m, GError **error)
{
	const gint64 until = g_get_monotonic_time() + timeout_s * G_USEC_PER_SEC;
	g_autofree char *hello = hello_of(l, version, terms);
	g_autoptr(GError) cause = NULL;
	struct head head;
	g_autoptr(GSocketConnection) c = find_first(l, hello, until, timeout_s, error);
	if (!c)
		return false;
	message_timeout(c, timeout_s + ANSWER_S);
	g_autoptr(GBytes) answer = message_receive(c, &head, HELLO_MOST, &cause);
	g_autofree char *text = answer ? text_of(answer) : NULL;
	if (text && head.kind == MESSAGE_REFUSED && refused(text, error))
		return false;
	g_auto(GStrv) hosts = text && head.kind == MESSAGE_WELCOME ? g_strsplit(text, "\n", 0) : NULL;
	if (!hosts || g_strv_length(hosts) != (guint)l->size) {
		g_set_error(error, ESMOE_ERROR, ESMOE_ERROR_DEVICE, "rank 0 died before all ranks had come: %s",
		            cause ? cause->message : "it did not say who they are");
		return false;
	}
	for (int i = 0; i < l->size; i++) {
		g_free(m->host->pdata[i]);
		m->host->pdata[i] = g_strdup(hosts[i]);
	}
	m->connection->pdata[0] = g_steal_pointer(&c);
	return true;
}

bool meeting_hold(const struct launched *l, const char *version, const char *terms, int timeout_s, struct meeting *out, GError **error)
{
	*out = (struct meeting){g_ptr_array_new_with_free_func(unref_connection), g_ptr_array_new_with_free_func(g_free)};
	g_ptr_array_set_size(out->connection, l->size);
	for (int i = 0; i < l->size; i++)
		g_ptr_array_add(out->host, g_strdup(i == l->rank ? g_get_host_name() : "?"));
	if ((l->rank ? come : hold_open)(l, version, terms, timeout_s, out, error))
		return true;
	meeting_clear(out);
	return false;
}
