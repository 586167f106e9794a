#include "check.h"
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <spawn.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>

extern char **environ;
static int global = 1;
static char stack[65536];
static int child_fn(void *arg) { *(int *)arg = 99; return 5; }

static void *exec_thread(void *arg) { char *argv[] = {arg, "--pid", 0}; execv(arg, argv); return 0; }

/* All threads of a process do the same at once; one does it for all. */
static pthread_barrier_t barrier;
static void *exec_at_once(void *arg) { pthread_barrier_wait(&barrier); return exec_thread(arg); }
static void *crash_at_once(void *arg) {
    pthread_barrier_wait(&barrier);
    raise(SIGABRT);
    return arg;
}

static int at_once(void *(*body)(void *), void *arg) {
    pid_t p = fork();
    if (p == 0) {
        struct rlimit core = {RLIM_INFINITY, RLIM_INFINITY};
        pthread_t t;
        setrlimit(RLIMIT_CORE, &core);
        if (chdir("/tmp")) _exit(1);
        pthread_barrier_init(&barrier, 0, 5);
        for (int i = 0; i < 4; i++) pthread_create(&t, 0, body, arg);
        body(arg);
        pause();
    }
    int status = -1;
    CHECK(waitpid(p, &status, 0) == p);
    char name[32];
    snprintf(name, sizeof name, "/tmp/core.%d", p);
    unlink("/tmp/core");
    unlink(name);
    return status;
}

/* Memory of all kinds: what a process leaves in it, its successor must not find. */
static char zeros[300 << 10];
static char ones[300 << 10] = {1};
enum { AREA = 600 << 10 };

static int leave(void) {
    char *area = mmap(0, AREA, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    memset(area, 0xab, AREA);
    mprotect(area + AREA / 2, 64 << 10, PROT_READ);
    mprotect(area + AREA / 4, 64 << 10, PROT_NONE);
    memset(zeros, 0xab, sizeof zeros);
    memset(ones, 0xab, sizeof ones);
    char *heap = sbrk(600 << 10);
    memset(heap, 0xab, 600 << 10);
    return 21;
}

static int all(const char *bytes, size_t from, size_t len, char value) {
    for (size_t i = from; i < len; i++) if (bytes[i] != value) return 0;
    return 1;
}

static int fresh(void) {
    char *area = mmap(0, AREA, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    char *read_only = mmap(0, AREA, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    char *heap = sbrk(600 << 10);
    /* the middle first: a walk would bring it in before it is read */
    int good = all(area, AREA / 2, AREA / 2 + 4096, 0) && all(area, 0, AREA, 0) && all(read_only, 0, AREA, 0) && all(heap, 0, 600 << 10, 0);
    good &= all(zeros, 0, sizeof zeros, 0) && ones[0] == 1 && all(ones, 1, sizeof ones, 0);
    return good ? 22 : 23;
}

static int spawn(char *self, char *argument) {
    char *argv[] = {self, argument, 0};
    pid_t p;
    int status;
    if (posix_spawn(&p, self, 0, 0, argv, environ) || waitpid(p, &status, 0) != p) return -1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : -2;
}

int main(int argc, char **argv) {
    if (argc > 1 && !strcmp(argv[1], "--leave")) return leave();
    if (argc > 1 && !strcmp(argv[1], "--fresh")) return fresh();
    if (argc > 1 && !strcmp(argv[1], "--exit")) return atoi(argv[2]);
    if (argc > 1 && !strcmp(argv[1], "--pid")) return syscall(SYS_gettid) == getpid() ? 17 : 18;
    int status;
    /* fork: own memory, own exit status */
    pid_t p = fork();
    if (p == 0) { global = 2; _exit(getppid() > 0 ? 7 : 8); }
    CHECK(waitpid(p, &status, 0) == p && WIFEXITED(status) && WEXITSTATUS(status) == 7 && global == 1);
    CHECK(waitpid(-1, &status, WNOHANG) == -1 && errno == ECHILD);

    /* killed, stopped, continued */
    p = fork();
    if (p == 0) for (;;) pause();
    kill(p, SIGSTOP);
    CHECK(waitpid(p, &status, WUNTRACED) == p && WIFSTOPPED(status) && WSTOPSIG(status) == SIGSTOP);
    kill(p, SIGCONT);
    CHECK(waitpid(p, &status, WCONTINUED) == p && WIFCONTINUED(status));
    siginfo_t si;
    kill(p, SIGTERM);
    CHECK(waitid(P_PID, p, &si, WEXITED | WNOWAIT) == 0 && si.si_code == CLD_KILLED && si.si_status == SIGTERM);
    CHECK(waitpid(p, &status, 0) == p && WIFSIGNALED(status) && WTERMSIG(status) == SIGTERM);

    /* vfork and posix_spawn */
    p = vfork();
    if (p == 0) { char *a[] = {argv[0], "--exit", "3", 0}; execve(argv[0], a, environ); _exit(127); }
    CHECK(waitpid(p, &status, 0) == p && WEXITSTATUS(status) == 3);
    char *a[] = {argv[0], "--exit", "4", 0};
    CHECK(posix_spawn(&p, argv[0], 0, 0, a, environ) == 0);
    CHECK(waitpid(p, &status, 0) == p && WEXITSTATUS(status) == 4);
    CHECK(posix_spawn(&p, "/no/such/file", 0, 0, a, environ) == ENOENT);

    /* exec from another thread keeps the pid */
    p = fork();
    if (p == 0) { pthread_t t; pthread_create(&t, 0, exec_thread, argv[0]); pause(); }
    CHECK(waitpid(p, &status, 0) == p && WEXITSTATUS(status) == 17);

    for (int i = 0; i < 10; i++) {
        status = at_once(exec_at_once, argv[0]);
        CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 17);
        status = at_once(crash_at_once, 0);
        CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT);
    }

    /* clone with shared memory */
    int seen = 0;
    p = clone(child_fn, stack + sizeof stack, CLONE_VM | SIGCHLD, &seen);
    CHECK(waitpid(p, &status, 0) == p && WEXITSTATUS(status) == 5 && seen == 99);

    /* pipes, close-on-exec, shared mappings over fork */
    int fd[2];
    CHECK(pipe2(fd, O_CLOEXEC) == 0);
    int *shared = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    p = fork();
    if (p == 0) { *shared = 5; write(fd[1], "hi", 2); _exit(0); }
    char buffer[4] = "";
    CHECK(read(fd[0], buffer, 2) == 2 && !strcmp(buffer, "hi"));
    CHECK(waitpid(p, 0, 0) == p && *shared == 5);

    /* orphans: the grandchild's new parent reaps */
    CHECK(prctl(PR_SET_CHILD_SUBREAPER, 1) == 0);
    p = fork();
    if (p == 0) { if (fork() == 0) { usleep(50000); _exit(42); } _exit(1); }
    CHECK(waitpid(p, &status, 0) == p);
    pid_t orphan = wait(&status);
    CHECK(orphan > 0 && orphan != p && WEXITSTATUS(status) == 42);

    /* groups and sessions */
    p = fork();
    if (p == 0) {
        int bad = 0;
        bad |= setpgid(0, 0) != 0 || getpgrp() != getpid();
        bad |= setsid() != -1 || errno != EPERM;
        _exit(bad);
    }
    CHECK(waitpid(p, &status, 0) == p && WEXITSTATUS(status) == 0);
    p = fork();
    if (p == 0) _exit(setsid() != getpid() || getsid(0) != getpid() || getpgrp() != getpid());
    CHECK(waitpid(p, &status, 0) == p && WEXITSTATUS(status) == 0);

    /* SIGCHLD ignored: no zombie */
    signal(SIGCHLD, SIG_IGN);
    p = fork();
    if (p == 0) _exit(0);
    CHECK(waitpid(p, &status, 0) == -1 && errno == ECHILD);
    signal(SIGCHLD, SIG_DFL);

    /* pidfd */
    p = fork();
    if (p == 0) { for (;;) pause(); }
    int pfd = syscall(SYS_pidfd_open, p, 0);
    struct pollfd pf = {.fd = pfd, .events = POLLIN};
    CHECK(pfd >= 0 && poll(&pf, 1, 0) == 0);
    CHECK(syscall(SYS_pidfd_send_signal, pfd, SIGKILL, 0, 0) == 0);
    CHECK(poll(&pf, 1, 5000) == 1);
    CHECK(waitid(P_PIDFD, pfd, &si, WEXITED) == 0 && si.si_pid == p && si.si_status == SIGKILL);

    /* limits, names, times */
    struct rlimit rl;
    CHECK(getrlimit(RLIMIT_NOFILE, &rl) == 0 && rl.rlim_cur > 100);
    CHECK(prctl(PR_SET_NAME, "a-long-thread-name") == 0);
    char name[16];
    CHECK(prctl(PR_GET_NAME, name) == 0 && !strcmp(name, "a-long-thread-n"));
    cpu_set_t cpus;
    CHECK(sched_getaffinity(0, sizeof cpus, &cpus) == 0 && CPU_COUNT(&cpus) >= 1);
    struct rusage ru;
    CHECK(getrusage(RUSAGE_CHILDREN, &ru) == 0);
    CHECK(kill(0x7ffffff, 0) == -1 && errno == ESRCH);

    /* many quick children */
    for (int i = 0; i < 50; i++) {
        p = fork();
        if (p == 0) _exit(i);
        CHECK(waitpid(p, &status, 0) == p && WEXITSTATUS(status) == i);
    }

    /* nothing of one process shows in the next */
    for (int i = 0; i < 4; i++) {
        CHECK(spawn(argv[0], "--leave") == 21);
        CHECK(spawn(argv[0], "--fresh") == 22);
    }
    return finish("processes");
}
