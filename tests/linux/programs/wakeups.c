/* No wake-up is lost between looking and sleeping, when most wake-ups find nothing. */
#include "check.h"
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

#define ROUNDS 20000

static int noise, signal_fd, answers, network, use_poll;

/* Waits for `signal_fd` beside a socket of the host and a descriptor that is readable only for an instant. */
static void *waiter(void *arg) {
    int epoll = epoll_create1(0), fds[] = {network, noise, signal_fd};
    (void)arg;
    for (int i = 0; i < 3; i++) {
        struct epoll_event event = {.events = EPOLLIN, .data.fd = fds[i]};
        CHECK(epoll_ctl(epoll, EPOLL_CTL_ADD, fds[i], &event) == 0);
    }
    for (int round = 0; round < ROUNDS;) {
        if (use_poll) {
            struct pollfd list[] = {{network, POLLIN, 0}, {noise, POLLIN, 0}, {signal_fd, POLLIN, 0}};
            CHECK(poll(list, 3, -1) > 0);
        } else {
            struct epoll_event events[3];
            CHECK(epoll_wait(epoll, events, 3, -1) > 0);
        }
        uint64_t value;
        if (read(signal_fd, &value, 8) == 8) {
            round++;
            CHECK(value == 1);
            CHECK(write(answers, &value, 8) == 8);
        }
    }
    close(epoll);
    return 0;
}

int main(void) {
    network = socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK, 0);
    noise = eventfd(0, EFD_NONBLOCK);
    signal_fd = eventfd(0, EFD_NONBLOCK);
    answers = eventfd(0, 0);
    CHECK(network >= 0 && noise >= 0 && signal_fd >= 0 && answers >= 0);
    for (use_poll = 0; use_poll < 2; use_poll++) {
        pthread_t thread;
        CHECK(pthread_create(&thread, 0, waiter, 0) == 0);
        for (int round = 0; round < ROUNDS; round++) {
            uint64_t value = 1;
            CHECK(write(noise, &value, 8) == 8);
            CHECK(read(noise, &value, 8) == 8);
            for (volatile int spin = round % 997 * 8; spin > 0; spin--) {}
            value = 1;
            CHECK(write(signal_fd, &value, 8) == 8);
            /* A lost wake-up never ends: the test's limit tells. */
            CHECK(read(answers, &value, 8) == 8);
        }
        pthread_join(thread, 0);
    }
    return finish("wakeups");
}
