/* Which calls a handled signal ends, and which go on after it (SA_RESTART, signal(7)); and what
 * siginfo says of each kind of sender. */
#include "check.h"
#include <aio.h>
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <linux/futex.h>
#include <mqueue.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/msg.h>
#include <sys/select.h>
#include <sys/sem.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <netinet/in.h>

/* A call is restarted if this many signals come and it has not returned. */
enum { SIGNALS = 20 };

static volatile int signals_seen;
static sigjmp_buf goes_on;

static void on_alarm(int s) {
    (void)s;
    if (++signals_seen == SIGNALS)
        siglongjmp(goes_on, 1);
}

/* What a call blocks on; made before the signals start. */
static int pair[2], full[2], sockets[2], full_sockets[2], listener, file, epoll, event, queue, semaphores;
static mqd_t mq, full_mq;
static unsigned word;
static char block[65536];

static void prepare(void) {
    struct sockaddr_in any = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct mq_attr attributes = {.mq_maxmsg = 1, .mq_msgsize = 8};
    CHECK(pipe(pair) == 0 && pipe2(full, O_NONBLOCK) == 0);
    while (write(full[1], block, sizeof block) > 0)
        ;
    fcntl(full[1], F_SETFL, 0);
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, sockets) == 0);
    CHECK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, full_sockets) == 0);
    while (write(full_sockets[0], block, sizeof block) > 0)
        ;
    fcntl(full_sockets[0], F_SETFL, 0);
    listener = socket(AF_INET, SOCK_STREAM, 0);
    CHECK(bind(listener, (struct sockaddr *)&any, sizeof any) == 0 && listen(listener, 1) == 0);
    file = open("/tmp", O_TMPFILE | O_RDWR, 0600);
    CHECK(file >= 0);
    epoll = epoll_create1(0);
    event = eventfd(0, 0);
    queue = msgget(IPC_PRIVATE, IPC_CREAT | 0600);
    semaphores = semget(IPC_PRIVATE, 1, IPC_CREAT | 0600);
    mq = mq_open("/bulla-restart", O_CREAT | O_RDWR, 0600, &attributes);
    mq_unlink("/bulla-restart");
    full_mq = mq_open("/bulla-restart-full", O_CREAT | O_RDWR, 0600, &attributes);
    mq_unlink("/bulla-restart-full");
    CHECK(mq != -1 && full_mq != -1 && mq_send(full_mq, "x", 1, 0) == 0);
}

#define CALL(name, expression) static long name(void) { char byte[65536]; (void)byte; return expression; }
CALL(read_pipe, read(pair[0], byte, 1))
CALL(write_pipe, write(full[1], block, 1))
CALL(read_event, read(event, byte, 8))
CALL(read_socket, read(sockets[0], byte, 1))
CALL(receive, recv(sockets[0], byte, 1, 0))
CALL(send_full, send(full_sockets[0], block, sizeof block, 0))
CALL(accept_one, accept(listener, 0, 0))
CALL(child_ends, wait4(-1, 0, 0, 0))
CALL(child_ends_id, waitid(P_ALL, 0, 0, WEXITED))
CALL(futex_wait, syscall(SYS_futex, &word, FUTEX_WAIT, 0, 0, 0, 0))
CALL(mq_take, mq_receive(mq, byte, 8, 0))
CALL(mq_put, mq_send(full_mq, "y", 1, 0))
CALL(poll_wait, poll(&(struct pollfd){pair[0], POLLIN, 0}, 1, -1))
CALL(ppoll_wait, ppoll(&(struct pollfd){pair[0], POLLIN, 0}, 1, 0, 0))
CALL(select_wait, select(0, 0, 0, 0, 0))
CALL(pselect_wait, pselect(0, 0, 0, 0, 0, 0))
CALL(epoll_once, epoll_wait(epoll, (struct epoll_event *)byte, 1, -1))
CALL(sleep_long, nanosleep(&(struct timespec){100, 0}, 0))
CALL(sleep_clock, -(errno = clock_nanosleep(CLOCK_MONOTONIC, 0, &(struct timespec){100, 0}, 0), errno != 0))
CALL(wait_signal, syscall(SYS_rt_sigtimedwait, &(sigset_t){{0}}, 0, 0, 8))
CALL(pauses, pause())
CALL(suspends, sigsuspend(&(sigset_t){{0}}))
CALL(semaphore, semop(semaphores, &(struct sembuf){0, -1, 0}, 1))
CALL(message, msgrcv(queue, byte, 8, 0, 0))
static long lock_file(void) { return flock(open("/proc/self/exe", O_RDONLY), LOCK_SH) ? -1 : flock(file, LOCK_EX); }
static long lock_record(void) {
    struct flock all = {.l_type = F_WRLCK};
    return fcntl(file, F_SETLKW, &all);
}
static long timed_receive(void) {
    char byte;
    struct timeval long_time = {.tv_sec = 100};
    setsockopt(sockets[0], SOL_SOCKET, SO_RCVTIMEO, &long_time, sizeof long_time);
    return recv(sockets[0], &byte, 1, 0);
}

static const struct { const char *name; long (*call)(void); int restarts; } table[] = {
    {"read of a pipe", read_pipe, 1}, {"write to a pipe", write_pipe, 1}, {"read of an eventfd", read_event, 1},
    {"read of a socket", read_socket, 1}, {"recv", receive, 1}, {"send", send_full, 1}, {"accept", accept_one, 1},
    {"wait4", child_ends, 1}, {"waitid", child_ends_id, 1}, {"futex", futex_wait, 1}, {"mq_receive", mq_take, 1},
    {"mq_send", mq_put, 1}, {"fcntl F_SETLKW", lock_record, 1}, {"flock", lock_file, 1},
    {"poll", poll_wait, 0}, {"ppoll", ppoll_wait, 0}, {"select", select_wait, 0}, {"pselect", pselect_wait, 0},
    {"epoll_wait", epoll_once, 0}, {"nanosleep", sleep_long, 0}, {"clock_nanosleep", sleep_clock, 0},
    {"sigtimedwait", wait_signal, 0}, {"pause", pauses, 0}, {"sigsuspend", suspends, 0}, {"semop", semaphore, 0},
    {"msgrcv", message, 0}, {"recv with a timeout", timed_receive, 0},
};

/* 1: goes on; 0: EINTR; another number is the error. */
static int outcome(long (*call)(void), int flags) {
    struct sigaction action = {.sa_handler = on_alarm, .sa_flags = flags};
    struct itimerval often = {{0, 10000}, {0, 10000}}, never = {{0, 0}, {0, 0}};
    sigaction(SIGALRM, &action, 0);
    signals_seen = 0;
    int result = 1;
    if (sigsetjmp(goes_on, 1) == 0) {
        setitimer(ITIMER_REAL, &often, 0);
        errno = 0;
        long answer = call();
        int error = errno;
        setitimer(ITIMER_REAL, &never, 0);
        result = answer == -1 && error == EINTR ? 0 : error ? error : 999;
    }
    setitimer(ITIMER_REAL, &never, 0);
    return result;
}

static void restarts(void) {
    /* Holds the locks, and is what wait waits for. */
    int ready[2], end[2];
    CHECK(pipe(ready) == 0 && pipe(end) == 0);
    pid_t holder = fork();
    if (holder == 0) {
        char byte;
        struct flock all = {.l_type = F_WRLCK};
        int own = open("/proc/self/fd/0", O_RDONLY);
        (void)own;
        fcntl(file, F_SETLK, &all);
        char path[32];
        sprintf(path, "/proc/self/fd/%d", file);
        int again = open(path, O_RDWR);
        flock(again, LOCK_EX);
        close(end[1]);
        if (write(ready[1], "r", 1) != 1 || read(end[0], &byte, 1) != 0)
            _exit(1);
        _exit(0);
    }
    char byte;
    close(end[0]);
    CHECK(read(ready[0], &byte, 1) == 1);
    for (unsigned i = 0; i < sizeof table / sizeof table[0]; i++) {
        int with = outcome(table[i].call, SA_RESTART), without = outcome(table[i].call, 0);
        if (with != table[i].restarts || without != 0) {
            printf("FAIL %s: %d with SA_RESTART, %d without\n", table[i].name, with, without);
            failures++;
        }
    }
    close(end[1]);
    int status;
    CHECK(waitpid(holder, &status, 0) == holder && status == 0);
}

static volatile siginfo_t last;
static void note(int s, siginfo_t *info, void *context) {
    (void)s; (void)context;
    last = *info;
}

static void *in_thread(void *argument) {
    sigset_t one;
    sigemptyset(&one);
    sigaddset(&one, SIGRTMIN + 3);
    *(pid_t *)argument = syscall(SYS_gettid);
    siginfo_t info;
    CHECK(sigwaitinfo(&one, &info) == SIGRTMIN + 3 && info.si_code == SI_TIMER && info.si_value.sival_int == 33);
    return 0;
}

static void senders(void) {
    struct sigaction action = {.sa_sigaction = note, .sa_flags = SA_SIGINFO};
    sigaction(SIGUSR1, &action, 0);
    sigaction(SIGRTMIN, &action, 0);
    kill(getpid(), SIGUSR1);
    CHECK(last.si_code == SI_USER && last.si_pid == getpid() && last.si_uid == getuid());
    raise(SIGUSR1);
    CHECK(last.si_code == SI_TKILL && last.si_pid == getpid());
    sigqueue(getpid(), SIGRTMIN, (union sigval){.sival_int = 77});
    CHECK(last.si_code == SI_QUEUE && last.si_value.sival_int == 77 && last.si_pid == getpid());
    /* A message queue, an open file, a child. */
    struct sigevent event_ = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGUSR1, .sigev_value.sival_int = 5};
    CHECK(mq_notify(mq, &event_) == 0 && mq_send(mq, "x", 1, 0) == 0);
    CHECK(last.si_code == SI_MESGQ && last.si_value.sival_int == 5 && last.si_pid == getpid());
    int ends[2];
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, ends) == 0);
    CHECK(fcntl(ends[0], F_SETOWN, getpid()) == 0 && fcntl(ends[0], F_SETSIG, SIGRTMIN) == 0);
    CHECK(fcntl(ends[0], F_SETFL, O_ASYNC) == 0 && write(ends[1], "x", 1) == 1);
    CHECK(last.si_code == POLL_IN && last.si_fd == ends[0] && (last.si_band & POLLIN));
    close(ends[0]);
    close(ends[1]);
    /* Overruns of a timer whose signal is held back; a timer for one thread. */
    sigset_t one, old;
    sigemptyset(&one);
    sigaddset(&one, SIGRTMIN);
    sigaddset(&one, SIGRTMIN + 3);
    sigprocmask(SIG_BLOCK, &one, &old);
    event_.sigev_signo = SIGRTMIN;
    timer_t timer;
    struct itimerspec often = {{0, 1000000}, {0, 1000000}}, never = {{0, 0}, {0, 0}}, soon = {{0, 0}, {0, 1000000}};
    CHECK(timer_create(CLOCK_MONOTONIC, &event_, &timer) == 0 && timer_settime(timer, 0, &often, 0) == 0);
    nanosleep(&(struct timespec){0, 50000000}, 0);
    siginfo_t info;
    CHECK(sigwaitinfo(&one, &info) == SIGRTMIN && info.si_code == SI_TIMER && info.si_value.sival_int == 5);
    CHECK(info.si_overrun > 10 && timer_getoverrun(timer) >= info.si_overrun);
    timer_settime(timer, 0, &never, 0);
    CHECK(timer_delete(timer) == 0 && timer_delete(timer) == -1 && errno == EINVAL);
    while (sigtimedwait(&one, &info, &(struct timespec){0, 0}) > 0)
        ;
    pthread_t thread;
    volatile pid_t tid = 0;
    CHECK(pthread_create(&thread, 0, in_thread, (void *)&tid) == 0);
    while (!tid)
        usleep(1000);
    struct sigevent to = {.sigev_notify = SIGEV_THREAD_ID, .sigev_signo = SIGRTMIN + 3, .sigev_value.sival_int = 33};
    to._sigev_un._tid = tid;
    CHECK(timer_create(CLOCK_MONOTONIC, &to, &timer) == 0 && timer_settime(timer, 0, &soon, 0) == 0);
    CHECK(pthread_join(thread, 0) == 0);
    to._sigev_un._tid = 1 << 21;
    CHECK(timer_create(CLOCK_MONOTONIC, &to, &timer) == -1 && errno == EINVAL);
    /* signalfd tells the same. */
    int fd = signalfd(-1, &one, SFD_NONBLOCK);
    struct signalfd_siginfo told;
    CHECK(read(fd, &told, sizeof told) == -1 && errno == EAGAIN);
    sigqueue(getpid(), SIGRTMIN, (union sigval){.sival_int = 9});
    CHECK(read(fd, &told, sizeof told) == sizeof told && told.ssi_signo == (unsigned)SIGRTMIN);
    CHECK(told.ssi_code == SI_QUEUE && told.ssi_int == 9 && told.ssi_pid == (unsigned)getpid());
    CHECK(read(fd, &told, sizeof told - 1) == -1 && errno == EINVAL);
    close(fd);
    sigprocmask(SIG_SETMASK, &old, 0);
}

static volatile siginfo_t of_child;
static void note_child(int s, siginfo_t *info, void *context) {
    (void)s; (void)context;
    of_child = *info;
}

static void children(void) {
    sigset_t one, old, none;
    sigemptyset(&one);
    sigemptyset(&none);
    sigaddset(&one, SIGCHLD);
    sigprocmask(SIG_BLOCK, &one, &old);
    struct sigaction action = {.sa_sigaction = note_child, .sa_flags = SA_SIGINFO};
    sigaction(SIGCHLD, &action, 0);
    pid_t child = fork();
    if (child == 0)
        for (;;)
            pause();
    static const struct { int signal, code, status; } steps[] = {
        {SIGSTOP, CLD_STOPPED, SIGSTOP}, {SIGCONT, CLD_CONTINUED, SIGCONT}, {SIGTERM, CLD_KILLED, SIGTERM}};
    for (int i = 0; i < 3; i++) {
        kill(child, steps[i].signal);
        of_child.si_pid = 0;
        while (of_child.si_pid != child)
            sigsuspend(&none);
        CHECK(of_child.si_code == steps[i].code && of_child.si_status == steps[i].status && of_child.si_signo == SIGCHLD);
    }
    int status;
    CHECK(waitpid(child, &status, 0) == child);
    child = fork();
    if (child == 0)
        _exit(41);
    of_child.si_pid = 0;
    while (of_child.si_pid != child)
        sigsuspend(&none);
    CHECK(of_child.si_code == CLD_EXITED && of_child.si_status == 41);
    CHECK(waitpid(child, &status, 0) == child);
    /* To a whole group. */
    int ready[2];
    char byte;
    CHECK(pipe(ready) == 0);
    pid_t leader = fork();
    if (leader == 0) {
        setpgid(0, 0);
        sigprocmask(SIG_SETMASK, &none, 0);
        if (fork() >= 0 && write(ready[1], "r", 1) == 1)
            for (;;)
                pause();
    }
    CHECK(read(ready[0], &byte, 1) == 1 && read(ready[0], &byte, 1) == 1);
    CHECK(kill(-leader, SIGTERM) == 0 && waitpid(leader, &status, 0) == leader && WTERMSIG(status) == SIGTERM);
    close(ready[1]);
    CHECK(read(ready[0], &byte, 1) == 0); /* the other one has gone too */
    signal(SIGCHLD, SIG_DFL);
    sigprocmask(SIG_SETMASK, &old, 0);
}

/* An alternate stack that overflows into its guard page is a fatal fault, not a loop. */
static void deep(int s) {
    volatile char frame[1024];
    frame[0] = s;
    if (s)
        deep(s + 1);
    frame[1] = 0;
}

static void guard(void) {
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        char *area = mmap(0, 65536, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        mprotect(area, 4096, PROT_NONE);
        stack_t stack = {.ss_sp = area + 4096, .ss_size = 65536 - 4096};
        sigaltstack(&stack, 0);
        struct sigaction action = {.sa_handler = deep, .sa_flags = SA_ONSTACK};
        sigaction(SIGSEGV, &action, 0);
        *(volatile char *)16 = 1;
        _exit(0);
    }
    int status;
    CHECK(waitpid(child, &status, 0) == child && WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV);
}

int main(void) {
    prepare();
    restarts();
    senders();
    children();
    guard();
    msgctl(queue, IPC_RMID, 0);
    semctl(semaphores, 0, IPC_RMID);
    return finish("restarts");
}
