/* What the kernel copies is the same afterwards, wherever in a page it begins: through a pipe, a file and a socket. */
#include "check.h"
#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <netinet/in.h>

#define ROOM (64 << 10)

static char *source, *target;
static int pipes[2], file, sockets[2];

/* Two ends of a TCP connection: its bytes pass the host. */
static void connection(void) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof address;
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    CHECK(bind(listener, (void *)&address, len) == 0 && listen(listener, 1) == 0);
    CHECK(getsockname(listener, (void *)&address, &len) == 0);
    sockets[0] = socket(AF_INET, SOCK_STREAM, 0);
    CHECK(connect(sockets[0], (void *)&address, len) == 0);
    sockets[1] = accept(listener, 0, 0);
    CHECK(sockets[1] >= 0);
    close(listener);
}

static void pass(int to, int from, size_t offset, size_t back, size_t len) {
    CHECK(write(to, source + offset, len) == (ssize_t)len);
    memset(target + back - 1, 0x55, len + 2);
    for (size_t done = 0; done < len;) {
        ssize_t got = read(from, target + back + done, len - done);
        CHECK(got > 0);
        if (got <= 0) return;
        done += got;
    }
    CHECK(!memcmp(source + offset, target + back, len));
    CHECK(target[back - 1] == 0x55 && target[back + len] == 0x55);
}

static int socket_of(int type) {
    int made = socket(AF_UNIX, type, 0);
    CHECK(made >= 0);
    return made;
}

/* What cannot take the bytes says so before anyone waits for them. */
static void splices_into_nothing(void) {
    int empty[2], event = eventfd(0, 0), epoll = epoll_create1(0);
    CHECK(pipe(empty) == 0 && event >= 0 && epoll >= 0);
    CHECK(splice(empty[0], 0, event, 0, 1, 0) == -1 && errno == EINVAL);
    CHECK(splice(empty[0], 0, epoll, 0, 1, 0) == -1 && (errno == EINVAL || errno == EBADF));
    /* Nor does anyone wait who says so. */
    char byte;
    struct iovec one = {&byte, 1};
    CHECK(preadv2(empty[0], &one, 1, -1, RWF_NOWAIT) == -1 && (errno == EAGAIN || errno == EOPNOTSUPP));
    CHECK(pwritev2(empty[1], &one, 1, -1, RWF_NOWAIT) == 1);
    CHECK(read(empty[0], &byte, 1) == 1);
    /* Nor who has no bytes to give. */
    int full[2], socket = -1;
    CHECK(pipe(full) == 0 && splice(event, 0, full[1], 0, 1, 0) == -1 && errno == EINVAL);
    socket = socket_of(SOCK_STREAM);
    CHECK(read(socket, full, 1) == -1 && errno == EINVAL);
    CHECK(splice(socket, 0, full[1], 0, 1, 0) == -1 && errno == EINVAL);
    close(socket);
    socket = socket_of(SOCK_SEQPACKET);
    CHECK(read(socket, full, 1) == -1 && errno == ENOTCONN);
    close(socket);
    close(event);
    close(epoll);
}

int main(void) {
    size_t lens[] = {1, 15, 33, 383, 384, 385, 511, 512, 513, 575, 576, 577, 640, 4095, 4096, 4097, 10007, 20000};
    source = mmap(0, ROOM, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    target = mmap(0, ROOM, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    file = memfd_create("copies", 0);
    CHECK(source != MAP_FAILED && target != MAP_FAILED && file >= 0 && pipe(pipes) == 0);
    CHECK(fcntl(pipes[1], F_SETPIPE_SZ, ROOM) >= ROOM);
    connection();
    splices_into_nothing();
    for (size_t i = 0; i < ROOM; i++) source[i] = (char)(i * 131 + (i >> 8));
    for (size_t l = 0; l < sizeof lens / sizeof *lens; l++)
        for (size_t offset = 0; offset < 4096; offset += offset < 66 || offset > 4029 ? 1 : 61) {
            size_t len = lens[l], back = 1 + (offset * 7 + l) % 4096;
            pass(pipes[1], pipes[0], offset, back, len);
            if (offset % 3 == 0) pass(sockets[0], sockets[1], offset, back, len);
            CHECK(pwrite(file, source + offset, len, offset) == (ssize_t)len);
            memset(target + back, 0, len);
            CHECK(pread(file, target + back, len, offset) == (ssize_t)len);
            CHECK(!memcmp(source + offset, target + back, len));
        }
    return finish("copies");
}
