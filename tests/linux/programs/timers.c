#include "check.h"
#include <poll.h>
#include <sys/epoll.h>
#include <sys/time.h>
#include <sys/timerfd.h>

static volatile sig_atomic_t count, value;
static void handler(int s) { (void)s; count++; }
static void info(int s, siginfo_t *i, void *c) { (void)s; (void)c; count++; value = i->si_value.sival_int; }

int main(void) {
    struct timespec ts, res;
    CHECK(clock_gettime(CLOCK_REALTIME, &ts) == 0 && ts.tv_sec > 1700000000);
    CHECK(clock_getres(CLOCK_MONOTONIC, &res) == 0 && res.tv_nsec == 1);
    CHECK(clock_gettime(CLOCK_THREAD_CPUTIME_ID, &ts) == 0);
    CHECK(clock_gettime(12345, &ts) == -1 && errno == EINVAL);
    /* the C library's clock (vDSO) and the system call tell one time, which never goes back */
    int64_t last = 0;
    for (int64_t end = now_ms() + 100; now_ms() < end;) {
        CHECK(clock_gettime(CLOCK_MONOTONIC, &ts) == 0);
        int64_t one = ts.tv_sec * 1000000000LL + ts.tv_nsec;
        CHECK(syscall(SYS_clock_gettime, CLOCK_MONOTONIC, &ts) == 0);
        int64_t two = ts.tv_sec * 1000000000LL + ts.tv_nsec;
        CHECK(last <= one && one <= two && ts.tv_nsec < 1000000000);
        last = two;
    }
    struct timeval tv;
    CHECK(clock_gettime(CLOCK_REALTIME, &ts) == 0 && gettimeofday(&tv, 0) == 0 && tv.tv_usec < 1000000);
    CHECK(tv.tv_sec * 1000000LL + tv.tv_usec - (ts.tv_sec * 1000000LL + ts.tv_nsec / 1000) < 1000000);
    int64_t start = now_ms();
    usleep(30000);
    int64_t slept = now_ms() - start;
    CHECK(slept >= 30 && slept < 500);
    clock_gettime(CLOCK_MONOTONIC, &ts);
    ts.tv_nsec += 20000000;
    if (ts.tv_nsec >= 1000000000) { ts.tv_sec++; ts.tv_nsec -= 1000000000; }
    CHECK(clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &ts, 0) == 0);
    struct timespec bad = {0, 1000000000};
    CHECK(nanosleep(&bad, 0) == -1 && errno == EINVAL);

    signal(SIGALRM, handler);
    struct itimerval it = {{0, 10000}, {0, 10000}}, old;
    CHECK(setitimer(ITIMER_REAL, &it, 0) == 0);
    while (count < 3) pause();
    it = (struct itimerval){{0, 0}, {0, 0}};
    CHECK(setitimer(ITIMER_REAL, &it, &old) == 0 && old.it_interval.tv_usec == 10000);
    alarm(100);
    CHECK(alarm(0) == 100);

    timer_t timer;
    struct sigaction a = {.sa_sigaction = info, .sa_flags = SA_SIGINFO};
    sigaction(SIGRTMIN, &a, 0);
    struct sigevent e = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGRTMIN, .sigev_value.sival_int = 77};
    CHECK(timer_create(CLOCK_MONOTONIC, &e, &timer) == 0);
    struct itimerspec its = {.it_value = {0, 5000000}, .it_interval = {0, 5000000}}, cur;
    count = 0;
    CHECK(timer_settime(timer, 0, &its, 0) == 0);
    while (count < 3) pause();
    CHECK(value == 77 && timer_gettime(timer, &cur) == 0 && cur.it_interval.tv_nsec == 5000000);
    CHECK(timer_delete(timer) == 0 && timer_gettime(timer, &cur) == -1 && errno == EINVAL);

    count = 0;
    signal(SIGVTALRM, handler);
    it = (struct itimerval){{0, 0}, {0, 20000}};
    CHECK(setitimer(ITIMER_VIRTUAL, &it, 0) == 0);
    for (start = now_ms(); !count && now_ms() - start < 5000;) {}
    CHECK(count == 1);

    int fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
    /* Long enough that a busy machine reads before it has come. */
    its = (struct itimerspec){.it_value = {0, 300000000}, .it_interval = {0, 10000000}};
    uint64_t ticks;
    CHECK(fd >= 0 && timerfd_settime(fd, 0, &its, 0) == 0);
    CHECK(read(fd, &ticks, 8) == -1 && errno == EAGAIN);
    struct pollfd pf = {.fd = fd, .events = POLLIN};
    CHECK(poll(&pf, 1, 2000) == 1 && read(fd, &ticks, 8) == 8 && ticks >= 1);
    int ep = epoll_create1(0);
    struct epoll_event ev = {.events = EPOLLIN}, got;
    CHECK(epoll_ctl(ep, EPOLL_CTL_ADD, fd, &ev) == 0);
    CHECK(epoll_wait(ep, &got, 1, 2000) == 1);
    return finish("timers");
}
