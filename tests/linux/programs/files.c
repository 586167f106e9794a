/* What descriptors of every kind say of themselves, places without a file behind them, reads that
   may not wait, what a truncating open tells its watchers. */
#include "check.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/inotify.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/vfs.h>
#include <sys/xattr.h>

#define LARGE 0100000 /* O_LARGEFILE, which the C library hides. */

static char name[] = "/tmp/files-XXXXXX";

static void kinds(void) {
    int pipes[2], sockets[2];
    struct statfs statistics;
    CHECK(pipe2(pipes, O_NONBLOCK) == 0 && socketpair(AF_UNIX, SOCK_STREAM, 0, sockets) == 0);
    int event = eventfd(0, 0), file = open(name, O_RDWR), place = open(name, O_PATH);
    CHECK(fcntl(pipes[0], F_GETFL) == O_NONBLOCK);
    CHECK(fcntl(sockets[0], F_GETFL) == O_RDWR);
    CHECK(fcntl(event, F_GETFL) == O_RDWR);
    CHECK(fcntl(file, F_GETFL) == (O_RDWR | LARGE));
    CHECK(fcntl(place, F_GETFL) == O_PATH);
    CHECK(fstatfs(pipes[0], &statistics) == 0 && statistics.f_type == 0x50495045);
    CHECK(fstatfs(sockets[0], &statistics) == 0 && statistics.f_type == 0x534f434b);
    CHECK(fstatfs(event, &statistics) == 0 && statistics.f_type == 0x09041934);
    struct pollfd wait[2] = {{.fd = place, .events = POLLIN}, {.fd = file, .events = POLLIN}};
    CHECK(poll(wait, 2, 0) == 2 && wait[0].revents == POLLNVAL && wait[1].revents == POLLIN);
    CHECK(syscall(SYS_utimensat, file, NULL, NULL, AT_SYMLINK_NOFOLLOW) == -1 && errno == EINVAL);
    CHECK(syscall(SYS_utimensat, file, NULL, NULL, 0) == 0);

    /* A read that may not wait does not, and takes what is there. */
    char byte;
    struct iovec vector = {&byte, 1};
    int blocking[2];
    CHECK(pipe(blocking) == 0);
    CHECK(preadv2(blocking[0], &vector, 1, -1, RWF_NOWAIT) == -1 && errno == EAGAIN);
    CHECK(write(blocking[1], "x", 1) == 1);
    CHECK(preadv2(blocking[0], &vector, 1, -1, RWF_NOWAIT) == 1 && byte == 'x');
    close(blocking[1]);
    CHECK(preadv2(blocking[0], &vector, 1, -1, RWF_NOWAIT) == 0);

    /* An append without an offset leaves the position at the end. */
    struct iovec text = {"abc", 3};
    CHECK(write(file, "12345", 5) == 5 && lseek(file, 1, SEEK_SET) == 1);
    CHECK(pwritev2(file, &text, 1, -1, RWF_APPEND) == 3 && lseek(file, 0, SEEK_CUR) == 8);
    CHECK(lseek(file, 1, SEEK_SET) == 1);
    CHECK(pwritev2(file, &text, 1, 0, RWF_APPEND) == 3 && lseek(file, 0, SEEK_CUR) == 1);
}

static unsigned events(int watcher) {
    char buffer[4096] __attribute__((aligned(8)));
    unsigned all = 0;
    ssize_t len = read(watcher, buffer, sizeof buffer);
    for (ssize_t at = 0; at < len;) {
        struct inotify_event *event = (void *)(buffer + at);
        all |= event->mask;
        at += sizeof *event + event->len;
    }
    return all;
}

static void watched(void) {
    int watcher = inotify_init1(IN_NONBLOCK);
    CHECK(inotify_add_watch(watcher, name, IN_MODIFY) > 0);
    close(open(name, O_RDWR));
    CHECK(events(watcher) == 0);
    close(open(name, O_RDWR | O_TRUNC));
    CHECK(events(watcher) == IN_MODIFY);
    char directory[] = "/tmp/files-XXXXXX", entries[512];
    CHECK(mkdtemp(directory) != NULL);
    CHECK(inotify_add_watch(watcher, directory, IN_ACCESS) > 0);
    int opened = open(directory, O_RDONLY);
    CHECK(syscall(SYS_getdents64, opened, entries, sizeof entries) > 0);
    CHECK(events(watcher) == (IN_ACCESS | IN_ISDIR));
    close(opened);
    rmdir(directory);
}

static void attributes(void) {
    if (setxattr(name, "user.a", "1", 1, 0) == -1 && errno == EOPNOTSUPP)
        return;
    CHECK(setxattr(name, "user.", "1", 1, 0) == -1 && errno == EINVAL);
    char capability[20] = {[3] = 2};
    CHECK(setxattr(name, "security.capability", "no", 2, 0) == -1 && errno == EINVAL);
    CHECK(setxattr(name, "security.capability", capability, 20, 0) == 0);
    CHECK(getxattr(name, "security.capability", capability, 20) == 20);
}

static void passed(void) {
    union {
        char bytes[CMSG_SPACE(sizeof(struct ucred)) + 16];
        struct cmsghdr header;
    } control = {.header = {.cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS, .cmsg_len = CMSG_LEN(4)}};
    char byte = 'x';
    struct iovec vector = {&byte, 1};
    struct msghdr message = {.msg_iov = &vector, .msg_iovlen = 1, .msg_control = control.bytes,
                             .msg_controllen = CMSG_SPACE(4)};
    int sockets[2], on = 1, given = 0;
    CHECK(socketpair(AF_UNIX, SOCK_DGRAM, 0, sockets) == 0);
    memcpy(CMSG_DATA(&control.header), &given, 4);
    CHECK(sendmsg(sockets[0], &message, 0) == 1);
    /* The flag that was asked for is shown. */
    CHECK(recvmsg(sockets[1], &message, MSG_CMSG_CLOEXEC) == 1);
    CHECK(message.msg_flags == MSG_CMSG_CLOEXEC);
    memcpy(&given, CMSG_DATA(&control.header), 4);
    CHECK(fcntl(given, F_GETFD) == FD_CLOEXEC);
    /* Credentials have one size. */
    CHECK(setsockopt(sockets[1], SOL_SOCKET, SO_PASSCRED, &on, sizeof on) == 0);
    control.header.cmsg_type = SCM_CREDENTIALS;
    struct ucred own = {getpid(), getuid(), getgid()};
    memcpy(CMSG_DATA(&control.header), &own, sizeof own);
    message.msg_controllen = sizeof control.bytes;
    control.header.cmsg_len = CMSG_LEN(sizeof own + 1);
    CHECK(sendmsg(sockets[0], &message, 0) == -1 && errno == EINVAL);
    control.header.cmsg_len = CMSG_LEN(sizeof own);
    message.msg_controllen = CMSG_SPACE(sizeof own);
    CHECK(sendmsg(sockets[0], &message, 0) == 1);
}

/* What does nothing on a UNIX socket is kept all the same. */
static void options(void) {
    int names[] = {SO_REUSEADDR, SO_DONTROUTE, SO_BROADCAST, SO_KEEPALIVE, SO_OOBINLINE};
    int sockets[2], value;
    socklen_t len = sizeof value;
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, sockets) == 0);
    for (unsigned i = 0; i < sizeof names / sizeof *names; i++) {
        value = 7;
        CHECK(setsockopt(sockets[0], SOL_SOCKET, names[i], &value, sizeof value) == 0);
        CHECK(getsockopt(sockets[0], SOL_SOCKET, names[i], &value, &len) == 0 && value == 1);
        CHECK(setsockopt(sockets[0], SOL_SOCKET, names[i], &value, 1) == -1 && errno == EINVAL);
    }
    value = 3;
    CHECK(setsockopt(sockets[0], SOL_SOCKET, SO_PRIORITY, &value, sizeof value) == 0);
    CHECK(getsockopt(sockets[0], SOL_SOCKET, SO_PRIORITY, &value, &len) == 0 && value == 3);
    value = 20000;
    CHECK(setsockopt(sockets[0], SOL_SOCKET, SO_RCVBUF, &value, sizeof value) == 0);
    CHECK(getsockopt(sockets[0], SOL_SOCKET, SO_RCVBUF, &value, &len) == 0 && value == 40000);
    struct linger linger = {5, 9};
    len = sizeof linger;
    CHECK(setsockopt(sockets[0], SOL_SOCKET, SO_LINGER, &linger, sizeof linger) == 0);
    CHECK(getsockopt(sockets[0], SOL_SOCKET, SO_LINGER, &linger, &len) == 0);
    CHECK(linger.l_onoff == 1 && linger.l_linger == 9);
}

int main(void) {
    alarm(60);
    int file = mkstemp(name);
    CHECK(file >= 0);
    close(file);
    kinds();
    watched();
    attributes();
    passed();
    options();
    unlink(name);
    return finish("files");
}
