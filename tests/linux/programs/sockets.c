/* What socket calls answer in every state of a socket, one line each; urgent data, SO_PEEK_OFF, locks
 * on pipes and sockets, the edges of pipes, TIOCSTI. The lines are the same natively and in the
 * enclave; what must hold on any Linux is checked besides. */
#include "check.h"
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <termios.h>

#ifndef SO_PEEK_OFF
#define SO_PEEK_OFF 42
#endif

static const char *about;

#define SHOW(label, ...)                                                     \
    do {                                                                     \
        errno = 0;                                                           \
        long answer_ = (long)(__VA_ARGS__);                                  \
        printf("%s %s: %ld/%d\n", about, label, answer_, answer_ < 0 ? errno : 0); \
    } while (0)

static socklen_t some_address(int family, int number, struct sockaddr_storage *to) {
    memset(to, 0, sizeof *to);
    to->ss_family = family;
    if (family == AF_INET) {
        ((struct sockaddr_in *)to)->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        return sizeof(struct sockaddr_in);
    }
    if (family == AF_INET6) {
        ((struct sockaddr_in6 *)to)->sin6_addr = in6addr_loopback;
        return sizeof(struct sockaddr_in6);
    }
    struct sockaddr_un *un = (void *)to;
    snprintf(un->sun_path, sizeof un->sun_path, "/tmp/sockets-%d-%d", (int)getpid(), number);
    unlink(un->sun_path);
    return sizeof *un;
}

static void forget_paths(void) {
    struct sockaddr_storage gone;
    for (int number = 0; number < 16; number++)
        some_address(AF_UNIX, number, &gone);
}

static int peer_of(int fd) {
    struct sockaddr_storage peer;
    socklen_t len = sizeof peer;
    return getpeername(fd, (void *)&peer, &len);
}

static void fresh(int family, int kind) {
    char bytes[64];
    struct sockaddr_storage address;
    struct sockaddr nothing = {.sa_family = AF_UNSPEC}, odd = {.sa_family = 77};
    socklen_t len = some_address(family, 1, &address);
    int fd = socket(family, kind, 0);
    SHOW("send, fresh", send(fd, "x", 1, MSG_NOSIGNAL));
    SHOW("write, fresh", write(fd, "x", 1));
    SHOW("recv, fresh", recv(fd, bytes, 1, MSG_DONTWAIT));
    SHOW("getpeername, fresh", peer_of(fd));
    SHOW("shutdown, fresh", shutdown(fd, SHUT_RD));
    SHOW("shutdown, fresh", shutdown(fd, SHUT_WR));
    close(fd);
    fd = socket(family, kind, 0);
    SHOW("accept, unbound", accept4(fd, NULL, NULL, SOCK_NONBLOCK));
    SHOW("connect to nothing", connect(fd, &nothing, sizeof nothing));
    SHOW("connect to another family", connect(fd, &odd, sizeof odd));
    SHOW("connect, one byte", connect(fd, (void *)&address, 1));
    SHOW("connect, no bytes", connect(fd, (void *)&address, 0));
    SHOW("bind, one byte", bind(fd, (void *)&address, 1));
    SHOW("bind, no bytes", bind(fd, (void *)&address, 0));
    SHOW("bind, two bytes", bind(fd, (void *)&address, 2));
    SHOW("bind to nothing", bind(fd, &nothing, sizeof nothing));
    SHOW("bind to another family", bind(fd, &odd, sizeof odd));
    close(fd);
    fd = socket(family, kind, 0);
    SHOW("listen, unbound", listen(fd, 3));
    SHOW("connect, listening", connect(fd, (void *)&address, len));
    close(fd);
    fd = socket(family, kind, 0);
    SHOW("connect to nobody", connect(fd, (void *)&address, len));
    SHOW("recv after that", recv(fd, bytes, 1, MSG_DONTWAIT));
    close(fd);
}

static void states(int family, int kind) {
    char name[32], bytes[64];
    snprintf(name, sizeof name, "family %d type %d:", family, kind);
    about = name;
    fresh(family, kind);
    struct sockaddr_storage address, other;
    struct sockaddr nothing = {.sa_family = AF_UNSPEC}, odd = {.sa_family = 77};
    socklen_t len = some_address(family, 1, &address), other_len = some_address(family, 3, &other);
    int listener = socket(family, kind, 0);
    SHOW("bind", bind(listener, (void *)&address, len));
    SHOW("bind again to the same", bind(listener, (void *)&address, len));
    SHOW("bind again", bind(listener, (void *)&other, other_len));
    int fd = socket(family, kind, 0);
    socklen_t room = sizeof address;
    CHECK(getsockname(listener, (void *)&address, &room) == 0);
    len = room;
    SHOW("bind to a taken one", bind(fd, (void *)&address, len));
    SHOW("connect, nobody listens", connect(fd, (void *)&address, len));
    SHOW("and again", connect(fd, (void *)&address, len));
    close(fd);
    SHOW("listen", listen(listener, 3));
    SHOW("listen again", listen(listener, 5));
    SHOW("bind, listening", bind(listener, (void *)&other, other_len));
    SHOW("connect, listening", connect(listener, (void *)&address, len));
    SHOW("recv, listening", recv(listener, bytes, 1, MSG_DONTWAIT));
    SHOW("send, listening", send(listener, "x", 1, MSG_NOSIGNAL));
    SHOW("getpeername, listening", peer_of(listener));
    fd = socket(family, kind, 0);
    SHOW("connect", connect(fd, (void *)&address, len));
    SHOW("connect again", connect(fd, (void *)&address, len));
    SHOW("bind, connected", bind(fd, (void *)&other, other_len));
    SHOW("listen, connected", listen(fd, 3));
    SHOW("accept, connected", accept4(fd, NULL, NULL, SOCK_NONBLOCK));
    SHOW("sendto", sendto(fd, "x", 1, MSG_NOSIGNAL, (void *)&address, len));
    SHOW("sendto another family", sendto(fd, "x", 1, MSG_NOSIGNAL, &odd, sizeof odd));
    SHOW("sendto nothing", sendto(fd, "x", 1, MSG_NOSIGNAL, &nothing, sizeof nothing));
    int peer = kind == SOCK_DGRAM ? dup(listener) : accept(listener, NULL, NULL);
    SHOW("send", send(fd, "abc", 3, 0));
    SHOW("send no bytes", send(fd, "", 0, 0));
    SHOW("send back", send(peer, "x", 1, MSG_NOSIGNAL | MSG_DONTWAIT));
    SHOW("peek", recv(peer, bytes, 64, MSG_DONTWAIT | MSG_PEEK));
    SHOW("peek with MSG_TRUNC", recv(peer, bytes, 1, MSG_DONTWAIT | MSG_TRUNC | MSG_PEEK));
    SHOW("urgent, none", recv(peer, bytes, 1, MSG_DONTWAIT | MSG_OOB));
    SHOW("from the error queue", recv(peer, bytes, 1, MSG_DONTWAIT | MSG_ERRQUEUE));
    int mark = -1;
    SHOW("at mark", ioctl(peer, SIOCATMARK, &mark));
    SHOW("shutdown, no such way", shutdown(fd, 3));
    SHOW("shutdown of writing", shutdown(fd, SHUT_WR));
    SHOW("send after that", send(fd, "x", 1, MSG_NOSIGNAL));
    SHOW("send no bytes after that", send(fd, "", 0, MSG_NOSIGNAL));
    SHOW("shutdown of writing again", shutdown(fd, SHUT_WR));
    for (int at = 0; at < 4; at++)
        SHOW("recv", recv(peer, bytes, 64, MSG_DONTWAIT));
    SHOW("shutdown of reading", shutdown(fd, SHUT_RD));
    SHOW("recv after that", recv(fd, bytes, 1, MSG_DONTWAIT));
    SHOW("shutdown of both", shutdown(fd, SHUT_RDWR));
    SHOW("connect after that", connect(fd, (void *)&address, len));
    close(fd);
    close(peer);
    SHOW("shutdown of a listener", shutdown(listener, SHUT_RDWR));
    SHOW("accept after that", accept4(listener, NULL, NULL, SOCK_NONBLOCK));
    SHOW("listen after that", listen(listener, 2));
    close(listener);
    forget_paths();
}

static void datagrams(int family) {
    char name[32], bytes[64];
    snprintf(name, sizeof name, "datagrams of %d:", family);
    about = name;
    struct sockaddr_storage address;
    struct sockaddr nothing = {.sa_family = AF_UNSPEC};
    socklen_t len = some_address(family, 7, &address);
    int to = socket(family, SOCK_DGRAM, 0), from = socket(family, SOCK_DGRAM, 0);
    CHECK(bind(to, (void *)&address, len) == 0);
    len = sizeof address;
    CHECK(getsockname(to, (void *)&address, &len) == 0);
    SHOW("connect", connect(from, (void *)&address, len));
    SHOW("send no bytes", send(from, "", 0, 0));
    SHOW("recv no bytes", recv(to, bytes, 1, 0));
    SHOW("recv nothing", recv(to, bytes, 1, MSG_DONTWAIT));
    SHOW("disconnect", connect(from, &nothing, sizeof nothing));
    SHOW("send, disconnected", send(from, "x", 1, 0));
    SHOW("sendto", sendto(from, "xyz", 3, 0, (void *)&address, len));
    SHOW("recv with MSG_TRUNC", recv(to, bytes, 1, MSG_TRUNC));
    close(to);
    SHOW("sendto nobody", sendto(from, "x", 1, 0, (void *)&address, len));
    SHOW("connect to nobody", connect(from, (void *)&address, len));
    forget_paths();
    close(from);
}

static volatile sig_atomic_t urgent_signals;

static void on_urgent(int number) {
    (void)number;
    urgent_signals++;
}

static void show_bytes(const char *label, int fd, int flags) {
    char bytes[16] = "";
    errno = 0;
    int got = recv(fd, bytes, 10, flags | MSG_DONTWAIT);
    printf("%s %s: %d/%d [%s]\n", about, label, got, got < 0 ? errno : 0, bytes);
}

static void show_state(const char *label, int fd) {
    struct pollfd poll_fd = {.fd = fd, .events = POLLIN | POLLPRI | POLLRDBAND};
    int mark = -1;
    poll(&poll_fd, 1, 0);
    ioctl(fd, SIOCATMARK, &mark);
    printf("%s %s: events %x, mark %d\n", about, label, poll_fd.revents, mark);
}

/* Urgent data on a UNIX stream. */
static void urgent(void) {
    about = "urgent:";
    int fds[2], on = 1, off = 0, owner = 0;
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, fds) == 0);
    signal(SIGURG, on_urgent);
    CHECK(fcntl(fds[1], F_SETOWN, getpid()) == 0 && fcntl(fds[1], F_GETOWN) == getpid());
    CHECK(ioctl(fds[1], SIOCGPGRP, &owner) == 0 && owner == getpid());
    CHECK(send(fds[0], "ab", 2, 0) == 2);
    SHOW("nothing", send(fds[0], "", 0, MSG_OOB));
    CHECK(send(fds[0], "c", 1, MSG_OOB) == 1);
    CHECK(send(fds[0], "de", 2, 0) == 2);
    CHECK(urgent_signals == 1);
    show_state("sent", fds[1]);
    CHECK(ioctl(fds[1], FIONREAD, &owner) == 0 && owner == 5);
    show_bytes("before the mark", fds[1], 0);
    show_state("at the mark", fds[1]);
    show_bytes("look at it", fds[1], MSG_OOB | MSG_PEEK);
    show_bytes("take it", fds[1], MSG_OOB);
    show_bytes("take it again", fds[1], MSG_OOB);
    show_state("taken", fds[1]);
    show_bytes("the rest", fds[1], 0);
    show_state("empty", fds[1]);
    /* One that nobody takes is left out. */
    CHECK(send(fds[0], "f", 1, MSG_OOB) == 1 && send(fds[0], "g", 1, 0) == 1);
    show_bytes("look past it", fds[1], MSG_PEEK);
    show_bytes("past it", fds[1], 0);
    show_state("empty", fds[1]);
    /* Among the others. */
    CHECK(setsockopt(fds[1], SOL_SOCKET, SO_OOBINLINE, &on, sizeof on) == 0);
    CHECK(send(fds[0], "xy", 2, MSG_OOB) == 2 && send(fds[0], "z", 1, 0) == 1);
    show_state("inline", fds[1]);
    show_bytes("not apart", fds[1], MSG_OOB);
    show_bytes("before", fds[1], 0);
    show_state("mark", fds[1]);
    show_bytes("from the mark", fds[1], 0);
    CHECK(setsockopt(fds[1], SOL_SOCKET, SO_OOBINLINE, &off, sizeof off) == 0);
    /* There is one at most: an older one becomes an ordinary byte. */
    CHECK(send(fds[0], "1", 1, MSG_OOB) == 1 && send(fds[0], "2", 1, MSG_OOB) == 1);
    show_bytes("the newer", fds[1], MSG_OOB);
    show_bytes("the older", fds[1], 0);
    CHECK(urgent_signals == 5);
    owner = 0;
    CHECK(ioctl(fds[1], SIOCSPGRP, &owner) == 0 && fcntl(fds[1], F_GETOWN) == 0);
    CHECK(send(fds[0], "3", 1, MSG_OOB) == 1 && urgent_signals == 5);
    close(fds[0]);
    close(fds[1]);
    /* TCP: the signal comes when the byte has come. */
    struct sockaddr_storage address;
    socklen_t len = some_address(AF_INET, 0, &address);
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    CHECK(bind(listener, (void *)&address, len) == 0 && listen(listener, 1) == 0);
    CHECK(getsockname(listener, (void *)&address, &len) == 0);
    fds[0] = socket(AF_INET, SOCK_STREAM, 0);
    CHECK(connect(fds[0], (void *)&address, len) == 0);
    fds[1] = accept(listener, NULL, NULL);
    CHECK(fcntl(fds[1], F_SETOWN, getpid()) == 0);
    urgent_signals = 0;
    sigset_t urgent_only, before;
    sigemptyset(&urgent_only);
    sigaddset(&urgent_only, SIGURG);
    CHECK(sigprocmask(SIG_BLOCK, &urgent_only, &before) == 0);
    CHECK(send(fds[0], "ab", 2, 0) == 2 && send(fds[0], "c", 1, MSG_OOB) == 1);
    struct timespec limit = {.tv_sec = 20};
    CHECK(sigtimedwait(&urgent_only, NULL, &limit) == SIGURG);
    CHECK(sigprocmask(SIG_SETMASK, &before, NULL) == 0);
    show_state("TCP", fds[1]);
    show_bytes("TCP", fds[1], 0);
    show_state("TCP at the mark", fds[1]);
    show_bytes("TCP", fds[1], MSG_OOB);
    close(fds[0]);
    close(fds[1]);
    close(listener);
    static const int others[] = {SOCK_DGRAM, SOCK_SEQPACKET};
    for (int at = 0; at < 2; at++) {
        CHECK(socketpair(AF_UNIX, others[at], 0, fds) == 0);
        SHOW("other types", send(fds[0], "x", 1, MSG_OOB));
        SHOW("other types", recv(fds[1], &owner, 1, MSG_OOB | MSG_DONTWAIT));
        close(fds[0]);
        close(fds[1]);
    }
}

static int offset_of(int fd) {
    int offset = -7;
    socklen_t len = sizeof offset;
    CHECK(getsockopt(fd, SOL_SOCKET, SO_PEEK_OFF, &offset, &len) == 0);
    return offset;
}

static void peek_from(int fd, int room, int flags) {
    char bytes[64] = "";
    errno = 0;
    int got = recv(fd, bytes, room, flags | MSG_DONTWAIT);
    printf("%s %d/%d [%s] offset %d\n", about, got, got < 0 ? errno : 0, bytes, offset_of(fd));
}

static void peek_offset(int kind) {
    char name[32];
    snprintf(name, sizeof name, "peek offset, type %d:", kind);
    about = name;
    int fds[2], offset = 0;
    CHECK(socketpair(AF_UNIX, kind, 0, fds) == 0);
    CHECK(offset_of(fds[1]) == -1);
    CHECK(setsockopt(fds[1], SOL_SOCKET, SO_PEEK_OFF, &offset, sizeof offset) == 0);
    CHECK(send(fds[0], "abcdef", 6, 0) == 6 && send(fds[0], "ghijkl", 6, 0) == 6);
    for (int at = 0; at < 6; at++)
        peek_from(fds[1], 4, MSG_PEEK);
    peek_from(fds[1], 3, 0);
    offset = 2;
    CHECK(setsockopt(fds[1], SOL_SOCKET, SO_PEEK_OFF, &offset, sizeof offset) == 0);
    peek_from(fds[1], 60, MSG_PEEK);
    peek_from(fds[1], 60, MSG_PEEK | MSG_TRUNC);
    offset = -1;
    CHECK(setsockopt(fds[1], SOL_SOCKET, SO_PEEK_OFF, &offset, sizeof offset) == 0);
    peek_from(fds[1], 60, MSG_PEEK);
    peek_from(fds[1], 60, 0);
    close(fds[0]);
    close(fds[1]);
}

static void edge(const char *label, int epoll, int writer) {
    struct epoll_event events[4];
    int count = epoll_wait(epoll, events, 4, 0);
    printf("%s %s:", about, label);
    for (int at = 0; at < count; at++)
        printf(" %s %x", events[at].data.fd == writer ? "writer" : "reader", events[at].events);
    printf("\n");
}

/* A writer that waits for edges hears of room only where there was none. */
static void edges(void) {
    about = "edges:";
    static char bytes[65536];
    int fds[2], epoll = epoll_create1(0);
    CHECK(pipe2(fds, O_NONBLOCK) == 0);
    struct epoll_event event = {.events = EPOLLOUT | EPOLLET, .data.fd = fds[1]};
    CHECK(epoll_ctl(epoll, EPOLL_CTL_ADD, fds[1], &event) == 0);
    event = (struct epoll_event){.events = EPOLLIN | EPOLLET, .data.fd = fds[0]};
    CHECK(epoll_ctl(epoll, EPOLL_CTL_ADD, fds[0], &event) == 0);
#define AFTER(what) ((void)(what), edge(#what, epoll, fds[1]))
    AFTER(0);
    AFTER(0);
    AFTER(write(fds[1], "x", 1));
    AFTER(write(fds[1], "y", 1));
    AFTER(read(fds[0], bytes, 1));
    AFTER(read(fds[0], bytes, 1));
    while (write(fds[1], bytes, 4096) > 0)
        ;
    AFTER(0);
    AFTER(read(fds[0], bytes, 1));
    AFTER(read(fds[0], bytes, 4095));
    AFTER(read(fds[0], bytes, 4096));
    while (write(fds[1], bytes, 4096) > 0)
        ;
    AFTER(0);
    AFTER(read(fds[0], bytes, 65536));
    AFTER(write(fds[1], "x", 1));
    AFTER(read(fds[0], bytes, 4096));
    AFTER(close(fds[0]));
    close(fds[1]);
    close(epoll);
}

static void locks(void) {
    about = "locks:";
    int fds[2], pair[2], epoll = epoll_create1(0);
    CHECK(pipe(fds) == 0 && socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    SHOW("a pipe's write end", fcntl(fds[1], F_SETLK, &lock));
    lock.l_type = F_RDLCK;
    SHOW("read lock on its read end", fcntl(fds[0], F_SETLK, &lock));
    lock.l_type = F_WRLCK;
    SHOW("write lock on its read end", fcntl(fds[0], F_SETLK, &lock));
    SHOW("by open file", fcntl(fds[1], F_OFD_SETLK, &lock));
    SHOW("flock", flock(fds[0], LOCK_EX | LOCK_NB));
    SHOW("flock of the other end", flock(fds[1], LOCK_EX | LOCK_NB));
    lock.l_whence = SEEK_END;
    SHOW("from the end", fcntl(fds[1], F_SETLK, &lock));
    lock.l_whence = SEEK_SET;
    SHOW("a socket", fcntl(pair[0], F_SETLK, &lock));
    SHOW("the other end is another", flock(pair[0], LOCK_EX | LOCK_NB));
    SHOW("the other end is another", flock(pair[1], LOCK_EX | LOCK_NB));
    SHOW("an epoll instance", fcntl(epoll, F_SETLK, &lock));
    fflush(stdout);
    if (fork() == 0) {
        struct flock other = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
        SHOW("another process", fcntl(fds[1], F_SETLK, &other));
        SHOW("who has it", fcntl(fds[1], F_GETLK, &other));
        printf("%s the parent: %d\n", about, other.l_pid == getppid());
        fflush(stdout);
        _exit(0);
    }
    wait(NULL);
    close(fds[0]);
    close(fds[1]);
    close(pair[0]);
    close(pair[1]);
    close(epoll);
}

/* Typing into a terminal: one's own, nobody else's. */
static void typing(void) {
    int master = posix_openpt(O_RDWR | O_NOCTTY);
    CHECK(grantpt(master) == 0 && unlockpt(master) == 0);
    int slave = open(ptsname(master), O_RDWR | O_NOCTTY);
    CHECK(slave >= 0);
    fflush(stdout);
    if (fork() == 0) {
        failures = 0;
        struct termios raw;
        CHECK(setresuid(65534, 65534, 65534) == 0);
        CHECK(ioctl(slave, TIOCSTI, "x") == -1 && errno == EPERM);
        CHECK(ioctl(master, TIOCSTI, "x") == -1 && errno == EPERM);
        CHECK(setsid() > 0 && ioctl(slave, TIOCSCTTY, 0) == 0);
        CHECK(tcgetattr(slave, &raw) == 0);
        cfmakeraw(&raw);
        CHECK(tcsetattr(slave, TCSANOW, &raw) == 0);
        /* A kernel may have it switched off (dev.tty.legacy_tiocsti). */
        int typed = ioctl(slave, TIOCSTI, "x");
        char byte = 0;
        CHECK(typed == -1 ? errno == EIO : read(slave, &byte, 1) == 1 && byte == 'x');
        CHECK(typed == -1 || (ioctl(slave, TIOCSTI, (void *)8) == -1 && errno == EFAULT));
        fflush(stdout);
        _exit(failures != 0);
    }
    int status = -1;
    CHECK(wait(&status) > 0 && status == 0);
    close(slave);
    close(master);
}

int main(void) {
    setvbuf(stdout, NULL, _IOLBF, 0);
    signal(SIGPIPE, SIG_IGN);
    static const int families[] = {AF_INET, AF_INET6, AF_UNIX};
    for (int at = 0; at < 3; at++) {
        states(families[at], SOCK_STREAM);
        states(families[at], SOCK_DGRAM);
        datagrams(families[at]);
    }
    states(AF_UNIX, SOCK_SEQPACKET);
    urgent();
    peek_offset(SOCK_STREAM);
    peek_offset(SOCK_DGRAM);
    peek_offset(SOCK_SEQPACKET);
    edges();
    locks();
    typing();
    return finish("sockets");
}
