#include "check.h"
#include <fcntl.h>
#include <mqueue.h>
#include <pthread.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/inotify.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/msg.h>
#include <sys/resource.h>
#include <sys/sem.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/timerfd.h>
#include <sys/un.h>
#include <sys/wait.h>

/*
 * Children that take as much as they get of one kind of thing, until a call fails. It must fail with
 * an error that the call has for that, and when the child is gone all is as it was before.
 *
 * Natively the limits are the machine's, so there a child stops after LIMIT things; in the enclave's
 * run the container is small and the kernel's memory is what ends.
 */
static long limit;

/* A call failed as it may. */
static void ended(const char *what, long count) {
    int ok = errno == ENOMEM || errno == EMFILE || errno == ENFILE || errno == ENOSPC ||
             errno == EAGAIN || errno == ENOBUFS || errno == E2BIG;
    if (!ok) printf("FAIL %s: errno %d after %ld\n", what, errno, count);
    fflush(stdout);
    _exit(ok ? 0 : 1);
}
#define TAKE(call) do { if ((call) < 0) ended(#call, i); } while (0)

static void pipes(long i) {
    int p[2];
    static char full[60000];
    if (pipe(p) < 0) ended("pipe", i);
    TAKE(write(p[1], full, sizeof full));
}
static void sockets(long i) {
    int p[2];
    static char full[60000];
    TAKE(socketpair(AF_UNIX, i % 2 ? SOCK_STREAM : SOCK_DGRAM, 0, p));
    TAKE(send(p[0], full, sizeof full, MSG_DONTWAIT));
}
static void events(long i) { TAKE(eventfd(0, 0)); TAKE(timerfd_create(CLOCK_MONOTONIC, 0)); }
static void polls(long i) {
    int event = eventfd(0, 0);
    if (event < 0) ended("eventfd", i);
    int e = epoll_create1(0);
    if (e < 0) ended("epoll_create1", i);
    struct epoll_event ev = {.events = EPOLLIN};
    TAKE(epoll_ctl(e, EPOLL_CTL_ADD, event, &ev));
}
static void timers(long i) { timer_t t; TAKE(timer_create(CLOCK_MONOTONIC, 0, &t)); }
static void files(long i) {
    char name[32];
    sprintf(name, "/tmp/exhaust-%ld", i);
    int fd = open(name, O_CREAT | O_WRONLY, 0600);
    if (fd < 0) ended("open", i);
    unlink(name);
    static char full[64 << 10];
    TAKE(write(fd, full, sizeof full));
}
static void names(long i) {
    char name[64];
    sprintf(name, "/tmp/exhaust-names-%d/%ld", getppid(), i);
    int fd = open(name, O_CREAT | O_WRONLY, 0600);
    if (fd < 0) ended("open", i);
    close(fd);
}
static void mappings(long i) {
    /* Alternating protection, so that they do not become one. */
    if (mmap(0, 4096, i % 2 ? PROT_READ : PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0) ==
        MAP_FAILED) ended("mmap", i);
}
static void memory(long i) {
    /* Mappings go on when there is no memory to fill them with: not until all addresses are taken. */
    if (i == 20000) _exit(0);
    char *m = mmap(0, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    if (m == MAP_FAILED) ended("mmap", i);
}
static void messages(long i) {
    static char text[8 + 4096] = {1};
    /* They outlive processes, so none is left: only that many one after another. */
    if (i == 3000) _exit(0);
    int q = msgget(IPC_PRIVATE, 0600);
    if (q < 0) ended("msgget", i);
    long failed = msgsnd(q, text, 4096, IPC_NOWAIT), why = errno;
    msgctl(q, IPC_RMID, 0);
    errno = (int)why;
    TAKE(failed);
}
static void *sleeps(void *arg) { (void)arg; pause(); return 0; }
static void threads(long i) {
    pthread_t t;
    pthread_attr_t a;
    pthread_attr_init(&a);
    pthread_attr_setstacksize(&a, 16384);
    int e = pthread_create(&t, &a, sleeps, 0);
    if (e) { errno = e; ended("pthread_create", i); }
}
static void children(long i) {
    pid_t p = fork();
    if (p < 0) ended("fork", i);
    if (p == 0) { pause(); _exit(0); }
}
static void signals(long i) {
    sigset_t set;
    sigfillset(&set);
    sigprocmask(SIG_BLOCK, &set, 0);
    union sigval value = {.sival_int = (int)i};
    TAKE(sigqueue(getpid(), SIGRTMIN, value));
}
static void locks(long i) {
    static int fd = -1;
    if (fd < 0) { fd = open("/tmp/exhaust-lock", O_CREAT | O_RDWR, 0600); unlink("/tmp/exhaust-lock"); }
    struct flock l = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = i * 2, .l_len = 1};
    if (fcntl(fd, F_SETLK, &l) < 0) {
        if (errno == ENOLCK) errno = ENOMEM;
        ended("fcntl", i);
    }
}
static void watches(long i) {
    /* All watch one directory, which takes longer with each. */
    if (i == 5000) _exit(0);
    int n = inotify_init1(0);
    if (n < 0) ended("inotify_init1", i);
    TAKE(inotify_add_watch(n, i % 2 ? "/tmp" : "/", IN_CREATE));
}
static void passed(long i) {
    /* Descriptors in flight, which nobody receives. */
    static int p[2], other;
    if (i % 60 == 0) {
        if (socketpair(AF_UNIX, SOCK_STREAM, 0, p) < 0) ended("socketpair", i);
        other = eventfd(0, 0);
        if (other < 0) ended("eventfd", i);
    }
    char byte = 0, control[CMSG_SPACE(sizeof(int))] = {0};
    struct iovec v = {&byte, 1};
    struct msghdr m = {.msg_iov = &v, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    struct cmsghdr *c = CMSG_FIRSTHDR(&m);
    c->cmsg_level = SOL_SOCKET, c->cmsg_type = SCM_RIGHTS, c->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(c), &other, sizeof(int));
    if (sendmsg(p[0], &m, MSG_DONTWAIT) < 0) {
        if (errno == ETOOMANYREFS) errno = EMFILE;
        ended("sendmsg", i);
    }
}

static const struct { const char *name; void (*one)(long); } kinds[] = {
    {"pipes", pipes}, {"sockets", sockets}, {"events", events}, {"polls", polls},
    {"timers", timers}, {"files", files}, {"names", names}, {"mappings", mappings},
    {"memory", memory}, {"messages", messages}, {"threads", threads}, {"children", children},
    {"signals", signals}, {"locks", locks}, {"watches", watches}, {"passed", passed},
};

/* One program with everything that it may have, forked and gone. */
static void try(const char *name, void (*one)(long)) {
    fflush(stdout);
    pid_t p = fork();
    CHECK(p >= 0);
    if (p == 0) {
        setpgid(0, 0);
        struct rlimit all;
        getrlimit(RLIMIT_NOFILE, &all);
        all.rlim_cur = all.rlim_max;
        setrlimit(RLIMIT_NOFILE, &all);
        for (long i = 0; i < limit; i++) one(i);
        _exit(0);
    }
    int status = 0;
    CHECK(waitpid(p, &status, 0) == p);
    kill(-p, SIGKILL);
    while (waitpid(-1, 0, WNOHANG) > 0) {}
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) {
        printf("FAIL %s: status %#x\n", name, status);
        failures++;
    }
    /* The rest of the system works, at once and to the full. */
    int q[2];
    char byte = 1;
    CHECK(pipe(q) == 0 && write(q[1], &byte, 1) == 1 && read(q[0], &byte, 1) == 1);
    close(q[0]), close(q[1]);
    void *m = mmap(0, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(m != MAP_FAILED);
    if (m != MAP_FAILED) memset(m, 1, 1 << 20), munmap(m, 1 << 20);
}

static void large_arguments(const char *self) {
    /* Each string fits; together they are more than there is. */
    size_t each = 100 << 10, count = 4000;
    char *text = malloc(each + 1);
    memset(text, 'x', each);
    text[each] = 0;
    char **strings = malloc((count + 1) * sizeof *strings);
    for (size_t i = 0; i < count; i++) strings[i] = text;
    strings[count] = 0;
    char *argv[] = {(char *)self, "--done", 0};
    CHECK(execve(self, argv, strings) == -1 && errno == E2BIG);
    CHECK(execve(self, strings, argv) == -1 && errno == E2BIG);
    /* One string that is too long. */
    size_t long_one = 256 << 10;
    char *longer = malloc(long_one + 1);
    memset(longer, 'x', long_one);
    longer[long_one] = 0;
    char *single[] = {longer, 0};
    CHECK(execve(self, argv, single) == -1 && errno == E2BIG);
    free(longer), free(strings), free(text);
}

int main(int argc, char **argv) {
    if (argc > 1 && strcmp(argv[1], "--done") == 0) return 0;
    limit = argc > 1 ? atol(argv[1]) : 2000;
    const char *only = argc > 2 ? argv[2] : 0;
    mkdir("/tmp", 01777);
    char directory[64];
    sprintf(directory, "/tmp/exhaust-names-%d", getpid());
    mkdir(directory, 0700);
    for (unsigned i = 0; i < sizeof kinds / sizeof *kinds; i++)
        if (!only || strcmp(only, kinds[i].name) == 0) {
            int64_t start = now_ms();
            try(kinds[i].name, kinds[i].one);
            /* The names fill the file system, which others want to use. */
            char name[64];
            for (long n = 0; strcmp(kinds[i].name, "names") == 0; n++) {
                sprintf(name, "%s/%ld", directory, n);
                if (unlink(name) < 0) break;
            }
            if (getenv("TIMES")) printf("%s: %ld ms\n", kinds[i].name, (long)(now_ms() - start));
        }
    rmdir(directory);
    large_arguments(argv[0]);
    return finish("exhaust");
}
