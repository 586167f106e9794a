/* Every system call with bad pointers and with integers out of range, as arguments (calls.h) and
 * inside the structures that arguments point to (nested.h).
 *
 * Prints a line for each case: call, argument (or @ and the offset of a field), value, and what came
 * of it: ok, the error's number, "signal N" if the process died, "blocks" if the call did not return.
 * The test runs this natively, with the privileges of a container, and in an enclave, and compares the
 * lines.
 *
 * Each call has a process of its own. What a case leaves behind (a file, a closed descriptor) is
 * there for the next one, the same on both sides.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/futex.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/inotify.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/timerfd.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <netinet/in.h>
#include <unistd.h>

/* Descriptors that every case finds open. */
enum { FILE_FD = 100, DIR_FD, PIPE_R, PIPE_W, SOCK_A, SOCK_B, EPOLL_FD, EVENT_FD, TIMER_FD, INOTIFY_FD, UDP_FD, NULL_FD, LISTEN_FD };

enum kind {
    NONE,
    FIXED,  /* an integer that stays */
    NUMBER, /* an integer that is varied */
    BUFFER, /* a pointer that is varied, by default to `good` */
    STRING, /* a pointer that is varied, by default to a string */
    NOTHING, /* a pointer that is varied, by default null */
    HANDLE  /* what `fill` left in `handle` */
};

struct argument {
    enum kind kind;
    long value;
    const char *text;
};

/* A field of what is in `good` when the call is made. */
struct field {
    enum kind kind;
    int offset, width;
};

enum { FIELDS = 14 };

struct call {
    long number;
    const char *name;
    struct argument arguments[6];
    /* Prepares `good` for a case. */
    void (*fill)(void);
    struct field fields[FIELDS];
    /* What to do instead of a system call. */
    long (*run)(void);
};

#define V(x) {FIXED, (long)(x), 0}
#define I(x) {NUMBER, (long)(x), 0}
#define B {BUFFER, 0, 0}
/* a pointer to the part of `good` from an offset on */
#define BAT(x) {BUFFER, (x), 0}
#define S(x) {STRING, 0, x}
#define N {NOTHING, 0, 0}
#define CALL(name, ...) RAW(SYS_##name, #name, __VA_ARGS__)
#define RAW(number, name, ...) {number, name, {__VA_ARGS__}, 0, {{NONE, 0, 0}}, 0}
#define A(...) {__VA_ARGS__}
#define F(...) {__VA_ARGS__}
/* a pointer in a structure; integers of 8, 4 and 2 bytes */
#define P(offset) {BUFFER, offset, 8}
#define L(offset) {NUMBER, offset, 8}
#define W(offset) {NUMBER, offset, 4}
#define H(offset) {NUMBER, offset, 2}
#define HANDLED {HANDLE, 0, 0}
#define NESTED(number, name, fill, arguments, fields) {number, name, arguments, fill, fields, 0}
#define DONE(name, fill, run, fields) {0, name, {V(0)}, fill, fields, run}

struct value {
    const char *name;
    long value;
};

static struct value pointers[16];
static int pointer_count;
static const struct value numbers[] = {
    {"-1", -1},
    {"-2", -2},
    {"9999", 9999},
    {"int-max", 0x7fffffff},
    {"int-min", (long)(int)0x80000000},
    {"bit-32", 0x100000000},
    {"long-max", 0x7fffffffffffffff},
    {"long-min", (long)0x8000000000000000},
};
#define NUMBERS (sizeof numbers / sizeof numbers[0])

static char *good; /* 64 KiB, readable and writable, zeros */
#define GOOD_SIZE 65536
static long handle;

#include "fill.h"

static const struct call calls[] = {
#include "calls.h"
#include "nested.h"
};
#define CALLS (sizeof calls / sizeof calls[0])

/* Results, in memory that the child shares. */
enum { NOT_RUN = -1000, RUNNING = -1001 };
static volatile int *results;
#define RESULTS_MAX 256

static void bad(const char *name, void *address) {
    pointers[pointer_count++] = (struct value){name, (long)address};
}

static void prepare_memory(void) {
    const size_t page = 4096;
    good = mmap(0, GOOD_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    char *gone = mmap(0, 4 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    char *none = mmap(0, 16 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    char *read_only = mmap(0, GOOD_SIZE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    char *edge = mmap(0, 2 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    munmap(gone, 4 * page);
    munmap(edge + page, page);
    bad("null", 0);
    bad("one", (void *)1);
    bad("unmapped", gone);
    bad("no-access", none);
    bad("read-only", read_only);
    bad("edge", edge + page - 1);
    bad("edge-3", edge + page - 3);
    bad("minus-one", (void *)-1);
    bad("minus-page", (void *)-4096);
    bad("kernel", (void *)0xffff888000000000);
    bad("hole", (void *)0x8000000000000000);
    bad("top", (void *)0x7ffffffff000);
    bad("above-range", (void *)0xfffffff000);
    bad("low", (void *)0x8000);
}

static void keep(int fd, int as) {
    dup2(fd, as);
    if (fd != as)
        close(fd);
}

static void prepare_files(void) {
    struct sockaddr_in any = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int pair[2];
    int file = open("file", O_RDWR | O_CREAT | O_TRUNC, 0644);
    if (write(file, good, 8192) != 8192)
        exit(99);
    lseek(file, 0, SEEK_SET);
    /* Numbers whose lower half is 0 mean this one. */
    dup2(file, 0);
    keep(file, FILE_FD);
    mkdir("dir", 0755);
    keep(open("dir", O_RDONLY | O_DIRECTORY), DIR_FD);
    if (pipe2(pair, O_NONBLOCK))
        exit(99);
    keep(pair[0], PIPE_R);
    keep(pair[1], PIPE_W);
    if (write(PIPE_W, "pipe content", 12) != 12)
        exit(99);
    socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, pair);
    keep(pair[0], SOCK_A);
    keep(pair[1], SOCK_B);
    if (write(SOCK_B, "socket content", 14) != 14)
        exit(99);
    keep(epoll_create1(0), EPOLL_FD);
    keep(eventfd(1, EFD_NONBLOCK), EVENT_FD);
    keep(timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK), TIMER_FD);
    keep(inotify_init1(IN_NONBLOCK), INOTIFY_FD);
    keep(socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK, 0), UDP_FD);
    bind(UDP_FD, (struct sockaddr *)&any, sizeof any);
    keep(open("/dev/null", O_RDWR), NULL_FD);
    keep(socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), LISTEN_FD);
    bind(LISTEN_FD, (struct sockaddr *)&any, sizeof any);
    listen(LISTEN_FD, 1);
}

/* What Docker leaves to a container's root; and nothing may be gained by a mistake natively. */
static void drop_privileges(void) {
    static const int kept[] = {0, 1, 3, 4, 5, 6, 7, 8, 10, 13, 18, 27, 29, 31};
    uint64_t mask = 0;
    for (unsigned i = 0; i < sizeof kept / sizeof kept[0]; i++)
        mask |= 1ull << kept[i];
    for (int cap = 0; cap <= 40; cap++)
        if (!(mask >> cap & 1))
            prctl(PR_CAPBSET_DROP, cap, 0, 0, 0);
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct data[2] = {
        {(uint32_t)mask, (uint32_t)mask, 0},
        {(uint32_t)(mask >> 32), (uint32_t)(mask >> 32), 0},
    };
    syscall(SYS_capset, &header, data);
    struct rlimit none = {0, 0};
    setrlimit(RLIMIT_CORE, &none);
}

static long argument(const struct argument *a) {
    switch (a->kind) {
    case BUFFER:
        return (long)(good + a->value);
    case STRING:
        return (long)a->text;
    case HANDLE:
        return handle;
    default:
        return a->value;
    }
}

/* The cases of a call: calls `each` with the number of the case, the argument and the value. */
static int cases(const struct call *call, void (*each)(const struct call *, int, int, const struct value *)) {
    int at = 0;
    for (int index = 0; index < 6 + FIELDS; index++) {
        enum kind kind = index < 6 ? call->arguments[index].kind : call->fields[index - 6].kind;
        int is_pointer = kind >= BUFFER && kind != HANDLE;
        int count = is_pointer ? pointer_count : kind == NUMBER ? (int)NUMBERS : 0;
        for (int i = 0; i < count; i++, at++)
            if (each)
                each(call, at, index, is_pointer ? &pointers[i] : &numbers[i]);
    }
    return at;
}

static void run_case(const struct call *call, int at, int index, const struct value *value) {
    if (results[at] != NOT_RUN)
        return;
    long a[6 + FIELDS];
    if (call->fill)
        call->fill();
    for (int i = 0; i < 6; i++)
        a[i] = argument(&call->arguments[i]);
    a[index] = value->value;
    if (index >= 6)
        memcpy(good + call->fields[index - 6].offset, &value->value, call->fields[index - 6].width);
    struct itimerval soon = {.it_value = {.tv_sec = 2}};
    setitimer(ITIMER_REAL, &soon, 0);
    results[at] = RUNNING;
    errno = 0;
    pid_t own = getpid();
    long answer = call->run ? call->run() : syscall(call->number, a[0], a[1], a[2], a[3], a[4], a[5]);
    if (getpid() != own)
        _exit(0); /* clone3 made a copy */
    results[at] = answer == -1 ? errno : 0;
    memset(good, 0, GOOD_SIZE);
}

static void print_case(const struct call *call, int at, int index, const struct value *value) {
    char text[32];
    int result = results[at];
    if (result == 0)
        strcpy(text, "ok");
    else if (result <= -2000)
        sprintf(text, "signal %d", -2000 - result);
    else if (result == -1999)
        strcpy(text, "blocks");
    else
        sprintf(text, "%d", result);
    if (index < 6)
        printf("%s %d %s: %s\n", call->name, index + 1, value->name, text);
    else
        printf("%s @%d %s: %s\n", call->name, call->fields[index - 6].offset, value->name, text);
}

int main(void) {
    char directory[] = "/tmp/sweepXXXXXX";
    if (!mkdtemp(directory) || chdir(directory))
        return 1;
    results = mmap(0, RESULTS_MAX * sizeof(int), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    prepare_memory();
    /* As in a container: the primary group is one of the supplementary ones. */
    gid_t root = 0;
    if (syscall(SYS_setgroups, 1, &root))
        return 1;
    drop_privileges();
    for (unsigned c = 0; c < CALLS; c++) {
        int count = cases(&calls[c], 0);
        for (int i = 0; i < count; i++)
            results[i] = NOT_RUN;
        for (int before = count + 1, left = count; left > 0 && left < before;) {
            /* Where no case was begun the setup fails, and would again. */
            before = left;
            fflush(stdout);
            pid_t child = fork();
            if (child == 0) {
                setpgid(0, 0);
                signal(SIGPIPE, SIG_IGN);
                prepare_files();
                cases(&calls[c], run_case);
                _exit(0);
            }
            int status = 0;
            while (waitpid(child, &status, 0) < 0 && errno == EINTR)
                ;
            left = 0;
            for (int i = 0; i < count; i++) {
                if (results[i] == RUNNING) {
                    int number = WIFSIGNALED(status) ? WTERMSIG(status) : 0;
                    results[i] = number == SIGALRM ? -1999 : -2000 - number;
                }
                left += results[i] == NOT_RUN;
            }
        }
        cases(&calls[c], print_case);
    }
    printf("sweep: ok\n");
    return 0;
}
