/* Pre-forked servers on one listening socket: whoever is woken, each connection is served once, and
 * none waits for ever. Workers wait by poll, select and epoll, and read as their clients write. */
#include "check.h"
#include <arpa/inet.h>
#include <fcntl.h>
#include <poll.h>
#include <stdatomic.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/select.h>
#include <sys/socket.h>

enum { WORKERS = 4, ALONE = 60, TOGETHER = 12, CLIENTS = 8, MEMORY = 1 << 20 };
enum way { POLL, SELECT, EPOLL, EXCLUSIVE, EDGE, ONESHOT, WAYS };

static const char *names[WAYS] = {"poll", "select", "epoll", "exclusive", "edge", "one-shot"};
static _Atomic int *served;
static struct sockaddr_in address;

/* Once something is there, as far as anyone knows. */
static void wait_for(enum way way, int listener, int epoll) {
    struct epoll_event event = {.events = EPOLLIN | EPOLLONESHOT, .data.u32 = 7};
    struct pollfd one = {.fd = listener, .events = POLLIN};
    fd_set set;
    switch (way) {
    case POLL:
        CHECK(poll(&one, 1, -1) == 1 && one.revents == POLLIN);
        return;
    case SELECT:
        FD_ZERO(&set);
        FD_SET(listener, &set);
        CHECK(select(listener + 1, &set, NULL, NULL, NULL) == 1 && FD_ISSET(listener, &set));
        return;
    case ONESHOT:
        CHECK(epoll_ctl(epoll, EPOLL_CTL_MOD, listener, &event) == 0);
        /* fall through */
    default:
        CHECK(epoll_wait(epoll, &event, 1, -1) == 1 && event.data.u32 == 7);
    }
}

static void work(enum way way, int listener) {
    static const unsigned flags[WAYS] = {0, 0, 0, EPOLLEXCLUSIVE, EPOLLET, EPOLLONESHOT};
    struct epoll_event event = {.events = EPOLLIN | flags[way], .data.u32 = 7};
    int epoll = epoll_create1(0);
    CHECK(epoll_ctl(epoll, EPOLL_CTL_ADD, listener, &event) == 0);
    /* Something to exchange when it is another's turn. */
    char *memory = malloc(MEMORY);
    memset(memory, 1, MEMORY);
    for (int round = 0;; round++) {
        int fd = accept(listener, NULL, NULL);
        if (fd < 0) {
            CHECK(errno == EAGAIN);
            if (failures)
                _exit(1);
            wait_for(way, listener, epoll);
            continue;
        }
        char question;
        CHECK(read(fd, &question, 1) == 1);
        memset(memory, question, MEMORY);
        char answer = question + 1;
        CHECK(write(fd, &answer, 1) == 1);
        close(fd);
        atomic_fetch_add(served, 1);
    }
}

static int dial(void) {
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    CHECK(connect(fd, (struct sockaddr *)&address, sizeof address) == 0);
    return fd;
}

static void ask(int fd, char question) { CHECK(write(fd, &question, 1) == 1); }

static void hear(int fd, char question) {
    char answer = 0;
    CHECK(read(fd, &answer, 1) == 1 && answer == question + 1);
    CHECK(read(fd, &answer, 1) == 0);
    close(fd);
}

static void serve(enum way way) {
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    socklen_t length = sizeof address;
    address = (struct sockaddr_in){.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    CHECK(bind(listener, (struct sockaddr *)&address, sizeof address) == 0);
    CHECK(listen(listener, 64) == 0);
    CHECK(getsockname(listener, (struct sockaddr *)&address, &length) == 0);
    pid_t workers[WORKERS];
    for (int i = 0; i < WORKERS; i++) {
        workers[i] = fork();
        if (workers[i] == 0)
            work(way, listener);
    }
    close(listener);
    *served = 0;
    for (int i = 0; i < ALONE; i++) {
        int fd = dial();
        /* Some have been accepted, and are waited for, before they ask. */
        if (i % 4 == 0)
            usleep(300);
        ask(fd, i);
        hear(fd, i);
    }
    for (int round = 0; round < TOGETHER; round++) {
        int fds[CLIENTS];
        for (int i = 0; i < CLIENTS; i++)
            fds[i] = dial();
        for (int i = 0; i < CLIENTS; i++)
            ask(fds[i], round + i);
        for (int i = CLIENTS - 1; i >= 0; i--)
            hear(fds[i], round + i);
    }
    for (int i = 0; i < WORKERS; i++) {
        int status;
        CHECK(kill(workers[i], SIGTERM) == 0 && waitpid(workers[i], &status, 0) == workers[i]);
        CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGTERM);
    }
    CHECK(*served == ALONE + TOGETHER * CLIENTS);
    if (failures)
        printf("by %s: %d served\n", names[way], *served);
}

int main(void) {
    alarm(120);
    served = mmap(NULL, sizeof *served, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    for (enum way way = POLL; way < WAYS; way++)
        serve(way);
    return finish("herd");
}
