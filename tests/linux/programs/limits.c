/* Resource limits and exhaustion: what runs out ends in the error that Linux gives, and what is given
 * back can be used again. */
#include "check.h"
#include <fcntl.h>
#include <linux/capability.h>
#include <mqueue.h>
#include <pthread.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/sem.h>
#include <sys/socket.h>
#include <netinet/in.h>

static void limit(int resource, rlim_t soft) {
    struct rlimit r;
    getrlimit(resource, &r);
    r.rlim_cur = soft;
    CHECK(setrlimit(resource, &r) == 0);
}

/* As containers have it: no CAP_IPC_LOCK, CAP_SYS_RESOURCE, CAP_SYS_ADMIN. */
static void drop_privileges(void) {
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct data[2];
    CHECK(syscall(SYS_capget, &header, data) == 0);
    uint32_t mask = ~(1u << 14 | 1u << 21 | 1u << 24);
    data[0].effective &= mask;
    data[0].permitted &= mask;
    CHECK(syscall(SYS_capset, &header, data) == 0);
}

static void descriptors(void) {
    close_range(3, ~0u, 0);
    limit(RLIMIT_NOFILE, 64);
    int count = 0, fd;
    while ((fd = dup(0)) >= 0)
        count++;
    CHECK(errno == EMFILE && count == 61);
    int pair[2];
    CHECK(open("/", O_RDONLY) == -1 && errno == EMFILE);
    CHECK(pipe(pair) == -1 && errno == EMFILE);
    CHECK(socket(AF_UNIX, SOCK_STREAM, 0) == -1 && errno == EMFILE);
    CHECK(socket(AF_INET, SOCK_STREAM, 0) == -1 && errno == EMFILE);
    CHECK(epoll_create1(0) == -1 && errno == EMFILE);
    CHECK(eventfd(0, 0) == -1 && errno == EMFILE);
    CHECK(fcntl(0, F_DUPFD, 10) == -1 && errno == EMFILE);
    CHECK(fcntl(0, F_DUPFD, 64) == -1 && errno == EINVAL);
    CHECK(dup2(0, 64) == -1 && errno == EBADF);
    close(63);
    /* One is not enough for two. */
    CHECK(pipe(pair) == -1 && errno == EMFILE);
    CHECK(dup(0) == 63);
}

static void sockets(void) {
    enum { MOST = 10000 };
    close_range(3, ~0u, 0);
    limit(RLIMIT_NOFILE, MOST);
    int count = 3, fd = 0;
    /* Half of them inside, half of the network. */
    while (count < MOST && fd >= 0) {
        fd = socket(count % 2 ? AF_UNIX : AF_INET, SOCK_DGRAM, 0);
        count += fd >= 0;
    }
    CHECK(count == MOST);
    CHECK(socket(AF_INET, SOCK_STREAM, 0) == -1 && errno == EMFILE);
    CHECK(close(MOST - 1) == 0);
    CHECK(socket(AF_INET, SOCK_STREAM, 0) == MOST - 1);
}

static void *wait_here(void *gate) {
    pthread_mutex_lock(gate);
    pthread_mutex_unlock(gate);
    return 0;
}

static void threads(void) {
    enum { MOST = 3000 };
    static pthread_t ids[MOST];
    pthread_mutex_t gate = PTHREAD_MUTEX_INITIALIZER;
    pthread_attr_t small;
    pthread_attr_init(&small);
    pthread_attr_setstacksize(&small, 16384);
    for (int round = 0; round < 2; round++) {
        pthread_mutex_lock(&gate);
        int count = 0, error = 0;
        while (count < MOST && !(error = pthread_create(&ids[count], &small, wait_here, &gate)))
            count++;
        CHECK(count >= 500 && (count == MOST || error == EAGAIN));
        pthread_mutex_unlock(&gate);
        for (int i = 0; i < count; i++)
            CHECK(pthread_join(ids[i], 0) == 0);
    }
}

static void processes(void) {
    enum { MOST = 600 };
    static pid_t ids[MOST];
    int gate[2];
    CHECK(pipe(gate) == 0);
    int count = 0;
    while (count < MOST) {
        pid_t child = fork();
        if (child == 0) {
            char byte;
            close(gate[1]);
            _exit(read(gate[0], &byte, 1) != 0);
        }
        if (child < 0)
            break;
        ids[count++] = child;
    }
    CHECK(count >= 100 && (count == MOST || errno == EAGAIN || errno == ENOMEM));
    close(gate[1]);
    for (int i = 0; i < count; i++) {
        int status;
        CHECK(waitpid(ids[i], &status, 0) == ids[i] && status == 0);
    }
    pid_t child = fork();
    if (child == 0)
        _exit(7);
    int status;
    CHECK(waitpid(child, &status, 0) == child && WEXITSTATUS(status) == 7);
}

static void processes_of_a_user(void) {
    limit(RLIMIT_NPROC, 0);
    CHECK(setresgid(54321, 54321, 54321) == 0 && setresuid(54321, 54321, 54321) == 0);
    CHECK(fork() == -1 && errno == EAGAIN);
}

static void address_space(void) {
    limit(RLIMIT_AS, 2ul << 30);
    CHECK(mmap(0, 4ul << 30, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) == MAP_FAILED && errno == ENOMEM);
    void *some = mmap(0, 1ul << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(some != MAP_FAILED);
    CHECK(mremap(some, 1ul << 20, 4ul << 30, MREMAP_MAYMOVE) == MAP_FAILED && errno == ENOMEM);
    limit(RLIMIT_AS, RLIM_INFINITY);
    limit(RLIMIT_DATA, 16ul << 20);
    char *end = sbrk(0);
    CHECK(sbrk(32 << 20) == (void *)-1 && errno == ENOMEM);
    CHECK(sbrk(0) == end);
    CHECK(mmap(0, 64ul << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) == MAP_FAILED && errno == ENOMEM);
}

static void locked_memory(void) {
    drop_privileges();
    char *memory = mmap(0, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    limit(RLIMIT_MEMLOCK, 64 << 10);
    CHECK(mlock(memory, 128 << 10) == -1 && errno == ENOMEM);
    CHECK(mlock(memory, 64 << 10) == 0);
    CHECK(mlock(memory + (64 << 10), 4096) == -1 && errno == ENOMEM);
    CHECK(mlock(memory, 64 << 10) == 0);
    CHECK(munlock(memory, 4096) == 0 && mlock(memory + (64 << 10), 4096) == 0);
    CHECK(munlock(memory, 1 << 20) == 0);
    CHECK(mmap(0, 128 << 10, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_LOCKED, -1, 0) == MAP_FAILED && errno == EAGAIN);
    limit(RLIMIT_MEMLOCK, 0);
    CHECK(mlock(memory, 4096) == -1 && errno == EPERM);
    CHECK(mlockall(MCL_FUTURE) == -1 && errno == EPERM);
}

static void reservations(void) {
    /* What .NET, Go, sanitizers and InnoDB reserve. */
    static const unsigned long gib[] = {1, 64, 256, 960, 8192};
    for (unsigned i = 0; i < sizeof gib / sizeof *gib; i++) {
        unsigned long size = gib[i] << 30;
        char *at = mmap(0, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        CHECK(at != MAP_FAILED);
        if (at == MAP_FAILED)
            continue;
        CHECK(mprotect(at + size / 2, 4096, PROT_READ | PROT_WRITE) == 0);
        at[size / 2] = 1;
        CHECK(munmap(at, size) == 0);
        at = mmap(0, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        CHECK(at != MAP_FAILED);
        if (at == MAP_FAILED)
            continue;
        at[0] = at[size - 1] = 1;
        CHECK(madvise(at, size, MADV_DONTNEED) == 0 && at[0] == 0);
        CHECK(munmap(at, size) == 0);
    }
    CHECK(mmap(0, 1ul << 48, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0) == MAP_FAILED && errno == ENOMEM);
    CHECK(mmap(0, -4096ul, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) == MAP_FAILED && errno == ENOMEM);
}

static void pipes(void) {
    int pair[2];
    char block[4096] = {0};
    CHECK(pipe2(pair, O_NONBLOCK) == 0);
    int total = 0, step;
    while ((step = write(pair[1], block, sizeof block)) > 0)
        total += step;
    CHECK(errno == EAGAIN && total == 65536);
    CHECK(fcntl(pair[1], F_SETPIPE_SZ, 131072) == 131072);
    CHECK(write(pair[1], block, sizeof block) == sizeof block);
    CHECK(fcntl(pair[1], F_SETPIPE_SZ, 4096) == -1 && errno == EBUSY);
    CHECK(fcntl(pair[1], F_SETPIPE_SZ, 1 << 30) == -1 && errno == EPERM);
    int fds[2];
    CHECK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, fds) == 0);
    total = 0;
    while ((step = write(fds[0], block, sizeof block)) > 0)
        total += step;
    CHECK(errno == EAGAIN && total >= 65536 && total < 4 << 20);
}

static void signals(void) {
    struct sigevent quiet = {.sigev_notify = SIGEV_NONE};
    union sigval value = {.sival_int = 1};
    timer_t id;
    sigset_t all;
    sigfillset(&all);
    sigprocmask(SIG_BLOCK, &all, 0);
    limit(RLIMIT_SIGPENDING, 50);
    int count = 0;
    while (count < 100 && sigqueue(getpid(), SIGRTMIN, value) == 0)
        count++;
    CHECK(count < 100 && errno == EAGAIN);
    /* Standard signals and those without an entry go on. */
    CHECK(kill(getpid(), SIGUSR1) == 0);
    count = 0;
    while (count < 100 && timer_create(CLOCK_MONOTONIC, &quiet, &id) == 0)
        count++;
    CHECK(count < 100 && errno == EAGAIN);
}

static void file_size(void) {
    int fd = open("/tmp", O_TMPFILE | O_RDWR, 0600);
    CHECK(fd >= 0);
    signal(SIGXFSZ, SIG_IGN);
    limit(RLIMIT_FSIZE, 1000);
    char block[600] = {0};
    CHECK(write(fd, block, 600) == 600);
    CHECK(write(fd, block, 600) == 400);
    CHECK(write(fd, block, 1) == -1 && errno == EFBIG);
    CHECK(ftruncate(fd, 2000) == -1 && errno == EFBIG);
    CHECK(fallocate(fd, 0, 0, 2000) == -1 && errno == EFBIG);
    signal(SIGXFSZ, SIG_DFL);
    write(fd, block, 1);
    CHECK(0 /* SIGXFSZ ends the process */);
}

static void cpu_time(void) {
    limit(RLIMIT_CPU, 1);
    for (;;)
        ;
}

static void queues(void) {
    drop_privileges();
    /* The limit is of a user: one that nobody else is, with names of its own. */
    CHECK(setuid(100000 + (uid_t)getpid() % 100000) == 0);
    char first[32], second[32];
    snprintf(first, sizeof first, "/limits-%d-1", (int)getpid());
    snprintf(second, sizeof second, "/limits-%d-2", (int)getpid());
    struct mq_attr attributes = {.mq_maxmsg = 10, .mq_msgsize = 8192};
    limit(RLIMIT_MSGQUEUE, 100000);
    mqd_t one = mq_open(first, O_CREAT | O_RDWR, 0600, &attributes);
    CHECK(one != -1);
    mqd_t two = mq_open(second, O_CREAT | O_RDWR, 0600, &attributes);
    CHECK(two == -1 && errno == EMFILE);
    mq_unlink(first);
    mq_close(one);
    two = mq_open(second, O_CREAT | O_RDWR, 0600, &attributes);
    CHECK(two != -1);
    mq_unlink(second);
}

static void record_locks(void) {
    int fd = open("/tmp", O_TMPFILE | O_RDWR, 0600);
    for (int i = 0; i < 2000; i++) {
        struct flock one = {.l_type = F_WRLCK, .l_start = 2 * i, .l_len = 1};
        CHECK(fcntl(fd, F_SETLK, &one) == 0);
    }
    if (fork() == 0) {
        struct flock ask = {.l_type = F_WRLCK, .l_start = 3998, .l_len = 1};
        CHECK(fcntl(fd, F_GETLK, &ask) == 0 && ask.l_type == F_WRLCK && ask.l_pid == getppid());
        ask = (struct flock){.l_type = F_WRLCK, .l_start = 3999, .l_len = 1};
        CHECK(fcntl(fd, F_SETLK, &ask) == 0);
        _exit(failures != 0);
    }
    int status;
    CHECK(wait(&status) > 0 && status == 0);
}

static void arguments(void) {
    enum { TOO_LONG = 128 << 10, MANY = 3000 };
    char *long_one = malloc(TOO_LONG + 1);
    memset(long_one, 'x', TOO_LONG);
    long_one[TOO_LONG] = 0;
    char *none[] = {0}, *one[] = {"/proc/self/exe", long_one, 0};
    CHECK(execve("/proc/self/exe", one, none) == -1 && errno == E2BIG);
    CHECK(execve("/proc/self/exe", none, one) == -1 && errno == E2BIG);
    /* In all: a quarter of the stack's limit, 2 MiB. */
    long_one[1000] = 0;
    static char *many[MANY + 1];
    for (int i = 0; i < MANY; i++)
        many[i] = long_one;
    CHECK(execve("/proc/self/exe", many, none) == -1 && errno == E2BIG);
    /* Not below 128 KiB, whatever the stack. */
    limit(RLIMIT_STACK, 256 << 10);
    many[200] = 0;
    CHECK(execve("/proc/self/exe", many, none) == -1 && errno == E2BIG);
    char *end[] = {"limits", "end", 0};
    execve("/proc/self/exe", end, none);
    CHECK(0 /* the process is another program now */);
}

static void grow(int depth) {
    volatile char frame[4096];
    frame[0] = 1;
    if (depth < 1 << 20)
        grow(depth + 1);
    frame[1] = 1;
}

static void stack(void) {
    struct rlimit none = {0, 0};
    setrlimit(RLIMIT_CORE, &none);
    grow(0);
}

static int put(const char *path, const char *text) {
    int file = open(path, O_WRONLY), written = write(file, text, strlen(text)) == (ssize_t)strlen(text);
    close(file);
    return written;
}

/* Limits under /proc/sys: they hold, and read back as written. */
static void settings(void) {
    static const char *files = "/proc/sys/fs/nr_open", *semaphores = "/proc/sys/kernel/sem";
    struct rlimit limit;
    CHECK(dup2(1, 70) == 70);
    CHECK(!put(files, "63") && errno == EINVAL);
    CHECK(put(files, "64"));
    CHECK(fork() == -1 && errno == EMFILE);
    CHECK(getrlimit(RLIMIT_NOFILE, &limit) == 0);
    limit.rlim_max = 65;
    CHECK(setrlimit(RLIMIT_NOFILE, &limit) == -1);
    CHECK(dup2(1, 64) == -1 && errno == EBADF);
    CHECK(put(files, "1048576"));
    close(70);
    char text[64] = "";
    CHECK(put(semaphores, "3 4 2 100\n"));
    int file = open(semaphores, O_RDONLY);
    CHECK(read(file, text, sizeof text) > 0 && strcmp(text, "3\t4\t2\t100\n") == 0);
    close(file);
    CHECK(semget(IPC_PRIVATE, 4, 0600) == -1 && errno == EINVAL);
    int set = semget(IPC_PRIVATE, 3, 0600);
    CHECK(set >= 0 && semget(IPC_PRIVATE, 2, 0600) == -1 && errno == ENOSPC);
    struct sembuf up[3] = {{0, 1, 0}, {1, 1, 0}, {2, 1, 0}};
    CHECK(semop(set, up, 2) == 0 && semop(set, up, 3) == -1 && errno == E2BIG);
    CHECK(semctl(set, 0, IPC_RMID) == 0);
    CHECK(put(semaphores, "32000 1024000000 500 32000"));
}

int main(int argc, char **argv) {
    if (argc > 1 && !strcmp(argv[1], "settings"))
        CHECK(apart(settings) == 0);
    if (argc > 1 && !strcmp(argv[1], "end"))
        return 0;
    struct { const char *name; void (*run)(void); } parts[] = {
        {"descriptors", descriptors}, {"sockets", sockets}, {"threads", threads},
        {"processes", processes}, {"processes of a user", processes_of_a_user},
        {"address space", address_space}, {"locked memory", locked_memory},
        {"pipes", pipes}, {"signals", signals}, {"queues", queues}, {"record locks", record_locks},
        {"arguments", arguments},
    };
    for (unsigned i = 0; i < sizeof parts / sizeof parts[0]; i++) {
        int status = apart(parts[i].run);
        if (status)
            printf("FAIL: %s (status %#x)\n", parts[i].name, status);
        failures += status != 0;
    }
    /* The static layout has 64 GiB. */
    if (argc < 2 || strcmp(argv[1], "small"))
        CHECK(apart(reservations) == 0);
    int status = apart(file_size);
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGXFSZ);
    status = apart(cpu_time);
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGXCPU);
    status = apart(stack);
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV);
    return finish("limits");
}
