/* Calls with arguments that Linux refuses, and how. */
#include "check.h"
#include <fcntl.h>
#include <linux/random.h>
#include <linux/securebits.h>
#include <netinet/in.h>
#include <sched.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>

static void prctls(void) {
    CHECK(prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0) == 0 || errno == EPERM);
    CHECK(prctl(PR_SET_THP_DISABLE, 0, 0, 0, 0) == 0);
    CHECK(prctl(PR_SET_THP_DISABLE, 0, 1L << 40, 0, 0) == -1 && errno == EINVAL);
    CHECK(prctl(PR_GET_THP_DISABLE, 0, 0, 0, 0) == 0);
    CHECK(prctl(PR_GET_THP_DISABLE, 1, 1, 0, 0) == -1 && errno == EINVAL);
    CHECK(prctl(PR_GET_SPECULATION_CTRL, 0, ~0L, 0, 0) == -1 && errno == EINVAL);
    CHECK(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) == 0);
    CHECK(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 1, 0, 0) == -1 && errno == EINVAL);
    CHECK(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 1, 0) == -1 && errno == EINVAL);
}

/* With the secure bit no capability becomes ambient, whatever is inheritable. */
static void ambient(void) {
    CHECK(prctl(PR_SET_SECUREBITS, SECBIT_NO_CAP_AMBIENT_RAISE) == 0);
    CHECK(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, 0, 0, 0) == -1 && errno == EPERM);
}

static void pairs(void) {
    struct {
        int family, type, protocol, error;
    } refused[] = {
        {AF_INET, SOCK_STREAM, IPPROTO_TCP, EOPNOTSUPP},
        {AF_INET, SOCK_DGRAM, IPPROTO_UDP, EOPNOTSUPP},
        {AF_INET, SOCK_DGRAM, IPPROTO_TCP, EPROTONOSUPPORT},
        {AF_INET, SOCK_STREAM, IPPROTO_ICMP, EPROTONOSUPPORT},
        {AF_INET, SOCK_RAW, 0, EPROTONOSUPPORT},
        {AF_UNIX, SOCK_STREAM, 99, EPROTONOSUPPORT},
        {0, SOCK_STREAM, 0, EAFNOSUPPORT},
    };
    int pair[2];
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++) {
        int result = socketpair(refused[i].family, refused[i].type, refused[i].protocol, pair);
        CHECK(result == -1 && errno == refused[i].error);
    }
}

/* Only the owner, and who has CAP_SYS_NICE, may say how a process is scheduled. */
static void others(void) {
    struct sched_param param = {0};
    pid_t parent = getppid();
    CHECK(sched_setparam(parent, &param) == 0);
    CHECK(setresuid(4711, 4711, 4711) == 0);
    CHECK(sched_setparam(0, &param) == 0);
    CHECK(sched_setparam(parent, &param) == -1 && errno == EPERM);
    CHECK(sched_setscheduler(parent, SCHED_OTHER, &param) == -1 && errno == EPERM);
}

/* Devices that nothing can be waited for on, and the one that tells how much entropy it has. */
static void devices(void) {
    const char *ready[] = {"/dev/null", "/dev/zero", "/dev/full"};
    int epoll = epoll_create1(0), count = 0;
    struct epoll_event event = {.events = EPOLLIN};
    for (int i = 0; i < 3; i++) {
        int fd = open(ready[i], O_RDWR);
        CHECK(fd >= 0 && epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) == -1 && errno == EPERM);
        CHECK(ioctl(fd, RNDGETENTCNT, &count) == -1 && errno == ENOTTY);
        close(fd);
    }
    int random = open("/dev/random", O_RDONLY);
    CHECK(epoll_ctl(epoll, EPOLL_CTL_ADD, random, &event) == 0);
    CHECK(ioctl(random, RNDGETENTCNT, &count) == 0 && count == 256);
    CHECK(ioctl(random, RNDGETENTCNT, 0) == -1 && errno == EFAULT);
    close(random);
    close(epoll);
}

int main(void) {
    prctls();
    CHECK(apart(ambient) == 0);
    pairs();
    devices();
    CHECK(apart(others) == 0);
    return finish("arguments");
}
