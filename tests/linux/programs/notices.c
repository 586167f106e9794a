/* What one process does and another hears of: record locks that end with their owner, leases,
 * signals about files, POSIX message queues; and calls about oneself that must not wait for
 * oneself. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <mqueue.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static int failures;
#define CHECK(condition) \
    do { \
        if (!(condition)) { \
            printf("line %d: %s (errno %d)\n", __LINE__, #condition, errno); \
            failures++; \
        } \
    } while (0)

static void record_locks_end_with_their_owner(void)
{
    int fd = open("/tmp/notices-lock", O_RDWR | O_CREAT, 0600), ready[2];
    struct flock lock = {.l_type = F_WRLCK, .l_start = 10, .l_len = 5};
    char byte;
    CHECK(fd >= 0 && pipe(ready) == 0);
    pid_t child = fork();
    if (child == 0) {
        if (fcntl(fd, F_SETLK, &lock) != 0) _exit(1);
        if (write(ready[1], "x", 1) != 1) _exit(2);
        usleep(100000);
        _exit(0);
    }
    CHECK(read(ready[0], &byte, 1) == 1);
    CHECK(fcntl(fd, F_SETLK, &lock) == -1 && (errno == EAGAIN || errno == EACCES));
    CHECK(fcntl(fd, F_SETLKW, &lock) == 0);
    int status;
    CHECK(waitpid(child, &status, 0) == child && status == 0);
    close(fd);
    unlink("/tmp/notices-lock");
}

static void a_lease_holder_is_told(void)
{
    int fd = open("/tmp/notices-lease", O_RDONLY | O_CREAT, 0600);
    sigset_t set;
    struct timespec limit = {.tv_sec = 20};
    sigemptyset(&set);
    sigaddset(&set, SIGIO);
    sigprocmask(SIG_BLOCK, &set, NULL);
    if (fcntl(fd, F_SETLEASE, F_RDLCK) != 0) {
        /* Some file systems have no leases: the tests' native side may run on one. */
        printf("no leases here (errno %d)\n", errno);
        return;
    }
    CHECK(fcntl(fd, F_GETLEASE) == F_RDLCK);
    CHECK(open("/tmp/notices-lease", O_WRONLY | O_NONBLOCK) == -1 && errno == EWOULDBLOCK);
    CHECK(sigtimedwait(&set, NULL, &limit) == SIGIO);
    CHECK(fcntl(fd, F_SETLEASE, F_UNLCK) == 0);
    int writer = open("/tmp/notices-lease", O_WRONLY | O_NONBLOCK);
    CHECK(writer >= 0);
    CHECK(fcntl(fd, F_SETLEASE, F_RDLCK) == -1 && errno == EAGAIN);
    close(writer);
    close(fd);
    unlink("/tmp/notices-lease");
}

static void pipes_tell_their_owner(void)
{
    int ends[2];
    sigset_t set;
    struct timespec limit = {.tv_sec = 20};
    siginfo_t info;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    sigprocmask(SIG_BLOCK, &set, NULL);
    CHECK(pipe(ends) == 0);
    CHECK(fcntl(ends[0], F_SETOWN, getpid()) == 0 && fcntl(ends[0], F_GETOWN) == getpid());
    CHECK(fcntl(ends[0], F_SETSIG, SIGUSR1) == 0 && fcntl(ends[0], F_GETSIG) == SIGUSR1);
    CHECK(fcntl(ends[0], F_SETFL, O_ASYNC) == 0);
    CHECK(write(ends[1], "x", 1) == 1);
    CHECK(sigtimedwait(&set, &info, &limit) == SIGUSR1);
    CHECK(info.si_fd == ends[0] && info.si_code == POLL_IN);
    CHECK(fcntl(ends[0], F_SETOWN, 1 << 28) == -1 && errno == ESRCH);
}

static void queues_keep_order_and_limits(void)
{
    struct mq_attr size = {.mq_maxmsg = 2, .mq_msgsize = 16}, now;
    char text[16];
    unsigned priority;
    struct timespec past = {0};
    mq_unlink("/notices");
    mqd_t queue = mq_open("/notices", O_RDWR | O_CREAT | O_EXCL, 0600, &size);
    CHECK(queue >= 0);
    CHECK(mq_open("/notices", O_RDWR | O_CREAT | O_EXCL, 0600, &size) == -1 && errno == EEXIST);
    CHECK(mq_send(queue, "low", 4, 1) == 0 && mq_send(queue, "high", 5, 9) == 0);
    CHECK(mq_timedsend(queue, "late", 5, 0, &past) == -1 && errno == ETIMEDOUT);
    CHECK(mq_getattr(queue, &now) == 0 && now.mq_curmsgs == 2);
    CHECK(mq_receive(queue, text, 16, &priority) == 5 && priority == 9 && !strcmp(text, "high"));
    CHECK(mq_receive(queue, text, 16, &priority) == 4 && priority == 1 && !strcmp(text, "low"));
    CHECK(mq_receive(queue, text, 15, NULL) == -1 && errno == EMSGSIZE);
    CHECK(mq_unlink("/notices") == 0 && mq_unlink("/notices") == -1 && errno == ENOENT);
    mq_close(queue);
}

static void cpu_time_has_a_limit(void)
{
    int status;
    pid_t child = fork();
    if (child == 0) {
        struct rlimit limit = {.rlim_cur = 1, .rlim_max = 3};
        if (setrlimit(RLIMIT_CPU, &limit) != 0) _exit(1);
        for (;;) {}
    }
    CHECK(waitpid(child, &status, 0) == child);
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGXCPU);
}

static void calls_about_oneself(void)
{
    int nice_before = getpriority(PRIO_PROCESS, 0);
    CHECK(setpriority(PRIO_PROCESS, 0, nice_before + 1) == 0);
    CHECK(getpriority(PRIO_PROCESS, 0) == nice_before + 1);
    int self = open("/proc/self", O_DIRECTORY | O_RDONLY);
    CHECK(syscall(SYS_pidfd_send_signal, self, 0, NULL, 0) == 0);
    /* A program that runs is not written to. */
    CHECK(open("/proc/self/exe", O_WRONLY) == -1 && errno == ETXTBSY);
}

int main(void)
{
    /* The container has nothing but the program. */
    mkdir("/tmp", 01777);
    record_locks_end_with_their_owner();
    a_lease_holder_is_told();
    pipes_tell_their_owner();
    queues_keep_order_and_limits();
    cpu_time_has_a_limit();
    calls_about_oneself();
    if (failures == 0) printf("notices: ok\n");
    return failures != 0;
}
