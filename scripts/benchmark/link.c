/* A slower link on loopback: a TCP proxy that delays what passes, and limits each connection's rate.
 *
 *     link DELAY RATE WINDOW PORT DESCRIPTOR...
 *
 * DELAY: microseconds one way, so half a round trip. RATE: bytes per second that a connection gets from the
 * server, 0 = no limit. WINDOW: bytes that may be under way to a client, as its receive window would allow; a
 * connection passes no more than WINDOW in a round trip. PORT: where connections go, at the address that they
 * came to. DESCRIPTOR: listening sockets, inherited.
 *
 * A new connection costs a round trip more, as its handshake would. Nothing is lost and there is no slow start.
 * One thread; edge-triggered epoll; bytes leave at a time that is set when they arrive, so errors do not add up.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

enum { PIECES = 4096, UPWARD = 1 << 18, READ = 1 << 18, TURN = 1 << 20, EVENTS = 256 };

struct piece {
    size_t length;
    int64_t due; /* nanoseconds of CLOCK_MONOTONIC */
};

struct side {
    int descriptor;
    bool readable, writable;
    struct connection *connection;
};

/* Bytes on their way from one side to the other: a ring, and when which of them may leave. */
struct stream {
    struct side *from, *to;
    char *ring;
    size_t size, start, used;
    struct piece pieces[PIECES];
    unsigned first, count;
    int64_t clear; /* when the bytes before have left, at the rate */
    bool ended, shut;
};

struct connection {
    struct side client, server;
    struct stream up, down;
    int64_t opened;
    struct connection *next;
};

static int64_t delay, rate;
static size_t window;
static int poller, port;
static struct connection *connections;

static int64_t now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * INT64_C(1000000000) + time.tv_nsec;
}

static void fail(const char *what) {
    perror(what);
    exit(1);
}

static void watch(int descriptor, uint32_t events, void *what) {
    struct epoll_event event = {.events = events, .data.ptr = what};
    if (epoll_ctl(poller, EPOLL_CTL_ADD, descriptor, &event)) fail("epoll_ctl");
}

static void prepare(struct stream *stream, struct side *from, struct side *to, size_t size) {
    stream->from = from;
    stream->to = to;
    stream->size = size;
    stream->ring = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (stream->ring == MAP_FAILED) fail("mmap");
}

static void open_connection(int client) {
    struct sockaddr_in address;
    socklen_t length = sizeof address;
    int server = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), on = 1;
    if (server < 0 || getsockname(client, (struct sockaddr *)&address, &length)) fail("socket");
    address.sin_port = htons(port);
    if (connect(server, (struct sockaddr *)&address, length)) { /* the server has gone */
        close(client);
        close(server);
        return;
    }
    struct connection *made = calloc(1, sizeof *made);
    if (!made) fail("calloc");
    made->client = (struct side){client, false, true, made};
    made->server = (struct side){server, false, true, made};
    made->opened = now();
    prepare(&made->up, &made->client, &made->server, UPWARD);
    prepare(&made->down, &made->server, &made->client, window);
    made->next = connections;
    connections = made;
    for (int side = 0; side < 2; side++) {
        int descriptor = side ? server : client;
        setsockopt(descriptor, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        watch(descriptor, EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, side ? &made->server : &made->client);
    }
}

static void close_connection(struct connection *ended) {
    close(ended->client.descriptor);
    close(ended->server.descriptor);
    munmap(ended->up.ring, ended->up.size);
    munmap(ended->down.ring, ended->down.size);
    free(ended);
}

static void stamp(struct stream *stream, size_t length, int64_t arrived) {
    struct connection *connection = stream->from->connection;
    int64_t due = arrived + delay;
    if (stream == &connection->up && due < connection->opened + 3 * delay) due = connection->opened + 3 * delay;
    if (rate && stream == &connection->down) {
        if (due < stream->clear) due = stream->clear;
        due += (int64_t)length * 1000000000 / rate;
        stream->clear = due;
    }
    stream->pieces[(stream->first + stream->count++) % PIECES] = (struct piece){length, due};
}

/* Returns false if the connection broke. Ends when the socket is empty, the ring full or the turn over. */
static bool take(struct stream *stream) {
    size_t taken = 0, most = READ;
    if (rate && (int64_t)most > rate / 100) most = rate / 100; /* no burst longer than 10 ms */
    while (stream->from->readable && !stream->ended && stream->count < PIECES && taken < TURN) {
        size_t end = (stream->start + stream->used) % stream->size, room = stream->size - stream->used;
        if (room > stream->size - end) room = stream->size - end;
        if (room > most) room = most;
        if (!room) return true;
        ssize_t got = recv(stream->from->descriptor, stream->ring + end, room, MSG_DONTWAIT);
        if (got < 0) {
            if (errno != EAGAIN && errno != EINTR) return false;
            stream->from->readable = errno == EINTR;
        } else if (got == 0) {
            stream->ended = true;
        } else {
            stamp(stream, got, now());
            stream->used += got;
            taken += got;
        }
    }
    return true;
}

static bool give(struct stream *stream, int64_t time) {
    while (stream->to->writable && stream->count && stream->pieces[stream->first].due <= time) {
        struct piece *piece = &stream->pieces[stream->first];
        size_t length = piece->length;
        for (unsigned next = 1; next < stream->count; next++) { /* as many as are due, in one call */
            struct piece *other = &stream->pieces[(stream->first + next) % PIECES];
            if (other->due > time) break;
            length += other->length;
        }
        if (length > stream->size - stream->start) length = stream->size - stream->start;
        ssize_t sent =
            send(stream->to->descriptor, stream->ring + stream->start, length, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (sent < 0) {
            if (errno != EAGAIN && errno != EINTR) return false;
            stream->to->writable = errno == EINTR;
            continue;
        }
        stream->start = (stream->start + sent) % stream->size;
        stream->used -= sent;
        while (sent) {
            piece = &stream->pieces[stream->first];
            size_t part = (size_t)sent < piece->length ? (size_t)sent : piece->length;
            piece->length -= part;
            sent -= part;
            if (piece->length) break;
            stream->first = (stream->first + 1) % PIECES;
            stream->count--;
        }
    }
    if (stream->ended && !stream->count && !stream->shut) {
        stream->shut = true;
        shutdown(stream->to->descriptor, SHUT_WR);
    }
    return true;
}

static bool can_take(struct stream *stream) {
    return stream->from->readable && !stream->ended && stream->count < PIECES && stream->used < stream->size;
}

/* Moves what can be moved now. Returns when there is more to do, 0 for at once, -1 if the connection is over. */
static int64_t move(struct connection *connection) {
    struct stream *streams[] = {&connection->up, &connection->down};
    int64_t next = INT64_MAX;
    for (int each = 0; each < 2; each++) {
        struct stream *stream = streams[each];
        if (!take(stream) || !give(stream, now())) return -1;
        if (can_take(stream)) next = 0;
        if (stream->count && stream->to->writable && stream->pieces[stream->first].due < next)
            next = stream->pieces[stream->first].due;
    }
    if (connection->up.shut && connection->down.shut) return -1;
    return next;
}

static int64_t move_all(void) {
    int64_t next = INT64_MAX;
    for (struct connection **link = &connections; *link;) {
        struct connection *connection = *link;
        int64_t then = move(connection);
        if (then < 0) {
            *link = connection->next;
            close_connection(connection);
            continue;
        }
        if (then < next) next = then;
        link = &connection->next;
    }
    return next;
}

static void set_timer(int timer, int64_t next) {
    struct itimerspec at = {.it_value = {next / 1000000000, next % 1000000000}};
    if (next == INT64_MAX) at.it_value = (struct timespec){0, 0};
    if (timerfd_settime(timer, TFD_TIMER_ABSTIME, &at, NULL)) fail("timerfd_settime");
}

int main(int count, char **arguments) {
    if (count < 6) {
        fprintf(stderr, "usage: link DELAY RATE WINDOW PORT DESCRIPTOR...\n");
        return 2;
    }
    delay = atoll(arguments[1]) * 1000;
    rate = atoll(arguments[2]);
    window = (size_t)atoll(arguments[3]) / 2; /* half of it is acknowledgements on their way back */
    port = atoi(arguments[4]);
    signal(SIGPIPE, SIG_IGN);
    poller = epoll_create1(EPOLL_CLOEXEC);
    int timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    if (poller < 0 || timer < 0) fail("epoll");
    static struct side listeners[16], clock_side;
    clock_side.descriptor = timer;
    watch(timer, EPOLLIN, &clock_side);
    for (int each = 5; each < count && each < 21; each++) {
        listeners[each - 5].descriptor = atoi(arguments[each]);
        watch(listeners[each - 5].descriptor, EPOLLIN, &listeners[each - 5]);
    }
    struct epoll_event events[EVENTS];
    for (int64_t next = INT64_MAX;;) {
        int ready = epoll_wait(poller, events, EVENTS, next ? -1 : 0);
        if (ready < 0 && errno != EINTR) fail("epoll_wait");
        for (int each = 0; each < ready; each++) {
            struct side *side = events[each].data.ptr;
            if (side == &clock_side) {
                uint64_t expirations;
                if (read(timer, &expirations, sizeof expirations) < 0 && errno != EAGAIN) fail("read");
            } else if (!side->connection) {
                int client = accept4(side->descriptor, NULL, NULL, SOCK_CLOEXEC);
                if (client >= 0) open_connection(client);
            } else {
                if (events[each].events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR)) side->readable = true;
                if (events[each].events & (EPOLLOUT | EPOLLHUP | EPOLLERR)) side->writable = true;
            }
        }
        next = move_all();
        if (next) set_timer(timer, next);
    }
}
