/* What calls about processes, signals, futexes and scheduling answer at their edges. */
#include "check.h"
#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <linux/futex.h>
#include <linux/sched.h>
#include <linux/securebits.h>
#include <mqueue.h>
#include <pthread.h>
#include <sched.h>
#include <sys/auxv.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/shm.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/timerfd.h>
#include <sys/uio.h>

static char stack[65536] __attribute__((aligned(16)));
static int end(void *arg) { (void)arg; return 5; }

/* The fields of siginfo are written even when waitid fails. */
static void waits(void) {
    siginfo_t info;
    memset(&info, 0xee, sizeof info);
    CHECK(waitid(P_PID, -1, &info, WEXITED) == -1 && errno == EINVAL && info.si_signo == 0 && info.si_pid == 0);
    memset(&info, 0xee, sizeof info);
    CHECK(waitid(P_ALL, 0, &info, WEXITED) == -1 && errno == ECHILD && info.si_signo == 0);
    CHECK(syscall(SYS_waitid, P_ALL, 0, 8, WEXITED, 0) == -1 && errno == EFAULT);
    pid_t child = fork();
    if (child == 0) for (;;) pause();
    int fd = syscall(SYS_pidfd_open, child, 0x800);
    CHECK(fcntl(fd, F_GETFL) == (O_RDWR | O_NONBLOCK));
    CHECK(waitid(3 /* P_PIDFD */, fd, &info, WEXITED) == -1 && errno == EAGAIN);
    kill(child, SIGSTOP);
    for (int i = 0; i < 2; i++) CHECK(waitid(P_PID, child, &info, WSTOPPED | WNOWAIT) == 0 && info.si_status == SIGSTOP);
    CHECK(waitid(P_PGID, 0, &info, WSTOPPED) == 0 && info.si_code == CLD_STOPPED);
    CHECK(waitid(P_PID, child, &info, WSTOPPED | WNOHANG) == 0 && info.si_pid == 0);
    kill(child, SIGCONT);
    CHECK(waitid(P_PID, child, &info, WCONTINUED) == 0 && info.si_status == SIGCONT);
    kill(child, SIGKILL);
    CHECK(waitid(P_PID, child, &info, WEXITED) == 0 && info.si_code == CLD_KILLED);
    close(fd);
}

/* The kinds of file systems by number, one by its device, names for files, and namespaces that are none. */
static void file_systems(void) {
    int count = syscall(SYS_sysfs, 3), proc = syscall(SYS_sysfs, 1, "proc");
    char name[64] = "", text[64];
    CHECK(proc >= 0 && proc < count);
    CHECK(syscall(SYS_sysfs, 2, proc, name) == 0 && strcmp(name, "proc") == 0);
    CHECK(syscall(SYS_sysfs, 1, "none") == -1 && errno == EINVAL);
    CHECK(syscall(SYS_sysfs, 2, count, name) == -1 && errno == EINVAL);
    CHECK(syscall(SYS_sysfs, 1, 8) == -1 && errno == EFAULT);
    struct stat status;
    CHECK(stat("/proc", &status) == 0);
    CHECK(syscall(SYS_ustat, (unsigned)status.st_dev, text) == 0);
    CHECK(syscall(SYS_ustat, (unsigned)status.st_dev, 8) == -1 && errno == EFAULT);
    CHECK(syscall(SYS_ustat, -1, text) == -1 && errno == EINVAL);
    struct { unsigned room; int type; char bytes[128]; } handle = {.room = sizeof handle.bytes};
    int mount, fid = 0x200, file = open("/proc/self/ns/uts", O_RDONLY);
    /* Linux 6.5 and newer. */
    if (syscall(SYS_name_to_handle_at, -1, ".", 0, 0, fid) == -1 && errno == EBADF) {
        CHECK(syscall(SYS_name_to_handle_at, AT_FDCWD, "/proc/filesystems", &handle, &mount, fid) == 0);
        handle.room = 0;
        CHECK(syscall(SYS_name_to_handle_at, AT_FDCWD, "/proc/filesystems", &handle, &mount, fid) == -1 && errno == EOVERFLOW && handle.room > 0);
    }
    CHECK(setns(-1, 0) == -1 && errno == EBADF);
    CHECK(setns(0, 0) == -1 && errno == EINVAL);
    CHECK(setns(file, CLONE_NEWIPC) == -1 && errno == EINVAL);
    close(file);
}

/* PIDFD_GET_INFO (Linux 6.13): ids while there is a process, its status (6.15) when it has been waited for. */
static void descriptors_of_processes(void) {
    struct { uint64_t mask, group; uint32_t pid, tgid, parent, ids[8], status; } info = {.mask = 8};
    unsigned long request = 0xc000ff0b | sizeof info << 16;
    pid_t child = fork();
    if (child == 0) for (;;) pause();
    int fd = syscall(SYS_pidfd_open, child, 0);
    int answer = ioctl(fd, request, &info), known = answer == 0;
    CHECK(known || errno == ENOTTY || errno == EINVAL);
    if (known) CHECK((info.mask & 3) == 3 && info.pid == (uint32_t)child && info.parent == (uint32_t)getpid() && info.ids[0] == getuid());
    if (known) CHECK(ioctl(fd, request, 0) == -1 && (errno == EINVAL || errno == ENOTTY));
    kill(child, SIGKILL);
    CHECK(waitpid(child, 0, 0) == child);
    info.mask = 0;
    if (known) CHECK(ioctl(fd, request, &info) == -1 && errno == ESRCH);
    info.mask = 8;
    if (known && ioctl(fd, request, &info) == 0) CHECK((info.mask & 8) && info.status == SIGKILL);
    close(fd);
}

static void clones(void) {
    /* Any number is taken for the signal; beyond the last there is none. */
    int status;
    pid_t child = clone(end, stack + sizeof stack, CLONE_VM | 200, 0);
    CHECK(child > 0 && waitpid(child, &status, 0) == -1 && errno == ECHILD);
    CHECK(waitpid(child, &status, __WCLONE) == child && status == 0x500);
    struct clone_args arguments = {.exit_signal = SIGCHLD, .stack = (uintptr_t)stack, .stack_size = ~0ull};
    CHECK(syscall(SYS_clone3, &arguments, sizeof arguments) == -1 && errno == EINVAL);
    pid_t ids[33] = {77777};
    arguments = (struct clone_args){.exit_signal = SIGCHLD, .set_tid = (uintptr_t)ids, .set_tid_size = 33};
    CHECK(syscall(SYS_clone3, &arguments, sizeof arguments) == -1 && errno == EINVAL);
}

/* The signal of a parent's death comes from the parent. */
static void parents(void) {
    int ends[2];
    CHECK(pipe(ends) == 0);
    pid_t child = fork();
    if (child == 0) {
        if (fork() == 0) {
            sigset_t set;
            sigemptyset(&set);
            sigaddset(&set, SIGUSR1);
            sigprocmask(SIG_BLOCK, &set, 0);
            prctl(PR_SET_PDEATHSIG, SIGUSR1);
            write(ends[1], "r", 1);
            siginfo_t info;
            sigwaitinfo(&set, &info);
            pid_t told[2] = {info.si_code, info.si_pid};
            write(ends[1], told, sizeof told);
            _exit(0);
        }
        char ready;
        read(ends[0], &ready, 1);
        _exit(0);
    }
    CHECK(waitpid(child, 0, 0) == child);
    pid_t told[2];
    CHECK(read(ends[0], told, sizeof told) == sizeof told && told[0] == SI_USER && told[1] == child);
    close(ends[0]);
    close(ends[1]);
}

static void queue_limits(void) {
    struct rlimit limit = {5, 5};
    setrlimit(RLIMIT_SIGPENDING, &limit);
    sigset_t all;
    sigfillset(&all);
    sigprocmask(SIG_BLOCK, &all, 0);
    int queued = 0;
    while (queued < 100 && sigqueue(getpid(), 40, (union sigval){.sival_int = 1}) == 0) queued++;
    CHECK(queued < 100 && errno == EAGAIN);
    CHECK(kill(getpid(), 41) == 0); /* its information is lost, not the signal */
    CHECK(syscall(SYS_tgkill, getpid(), syscall(SYS_gettid), 42) == -1 && errno == EAGAIN);
    sigset_t pending;
    sigpending(&pending);
    CHECK(sigismember(&pending, 41) && !sigismember(&pending, 42));
}

/* Flags that the kernel knows stay, so that a program can ask for them. */
static void actions(void) {
    struct { void *handler; unsigned long flags; void *restorer; unsigned long mask; } set = {SIG_IGN, 0x04000000 | 0x800 | 0x400, 0, ~0ul}, got;
    CHECK(syscall(SYS_rt_sigaction, SIGUSR2, &set, 0, 8) == 0 && syscall(SYS_rt_sigaction, SIGUSR2, 0, &got, 8) == 0);
    CHECK(got.flags == (0x04000000 | 0x800));
}

/* What /proc/self/fdinfo tells of descriptors. */
static int tells(int fd, const char *wanted) {
    char path[64], text[4096];
    snprintf(path, sizeof path, "/proc/self/fdinfo/%d", fd);
    int info = open(path, O_RDONLY);
    ssize_t len = info < 0 ? -1 : read(info, text, sizeof text - 1);
    close(info);
    if (len < 0) return 0;
    text[len] = 0;
    return strstr(text, wanted) != 0;
}

static void descriptors(void) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    int fds[] = {eventfd(3, 0), timerfd_create(CLOCK_MONOTONIC, 0), signalfd(-1, &set, 0), epoll_create1(0)};
    for (int i = 0; i < 4; i++) {
        /* No position, and no complaint; O_LARGEFILE is for what was opened by a path. */
        CHECK(fcntl(fds[i], F_GETFL) == O_RDWR && lseek(fds[i], 5, SEEK_SET) == 0);
    }
    int ends[2];
    CHECK(pipe(ends) == 0 && fcntl(ends[0], F_GETFL) == 0 && fcntl(ends[1], F_GETFL) == O_WRONLY);
    int file = open("/tmp", O_RDONLY | O_DIRECTORY), place = open("/tmp", O_PATH);
    CHECK(fcntl(file, F_GETFL) == (0100000 | O_DIRECTORY) && fcntl(place, F_GETFL) == O_PATH);
    CHECK(tells(fds[0], "eventfd-count:                3\n") && tells(fds[1], "clockid: 1\n"));
    CHECK(tells(fds[2], "sigmask:\t0000000000000200\n"));
    int process = syscall(SYS_pidfd_open, getpid(), 0);
    char line[32];
    snprintf(line, sizeof line, "Pid:\t%d\n", getpid());
    CHECK(tells(process, line));
    mqd_t queue = mq_open("/bulla-edges", O_CREAT | O_RDWR, 0600, 0);
    CHECK(queue >= 0 && fcntl(queue, F_GETFD) == FD_CLOEXEC);
    mq_unlink("/bulla-edges");
    for (int fd = 3; fd < 20; fd++) close(fd);
}

static uint32_t first, second;
static long futex(uint32_t *word, int operation, long value, void *timeout, void *other, long last) {
    return syscall(SYS_futex, word, operation, value, timeout, other, last);
}
static void *waiter(void *limit) {
    return (void *)futex(&first, FUTEX_WAIT, 0, limit, 0, 0);
}

static void futexes(void) {
    struct timespec brief = {0, 10000000}, limit = {20, 0};
    CHECK(futex(&first, FUTEX_WAIT | FUTEX_CLOCK_REALTIME, 0, &brief, 0, 0) == -1 && errno == ENOSYS);
    pthread_t thread;
    void *result;
    pthread_create(&thread, 0, waiter, &limit);
    /* The number moved counts, for FUTEX_REQUEUE too. */
    while (futex(&first, FUTEX_REQUEUE, 0, (void *)1, &second, 0) != 1) sched_yield();
    CHECK(futex(&first, FUTEX_WAKE, 1, 0, 0, 0) == 0 && futex(&second, FUTEX_WAKE, 1, 0, 0, 0) == 1);
    pthread_join(thread, &result);
    CHECK(result == 0);
    CHECK(futex(&first, FUTEX_CMP_REQUEUE_PI, 1, (void *)1, &first, 0) == -1 && errno == EINVAL);
    CHECK(futex(&first, FUTEX_WAIT_REQUEUE_PI, 0, &brief, &first, 0) == -1 && errno == EINVAL);
    CHECK(futex(&first, FUTEX_WAIT_REQUEUE_PI, 0, &brief, (void *)8, 0) == -1 && errno == EFAULT);
    first = 999999; /* nobody */
    CHECK(futex(&first, FUTEX_TRYLOCK_PI, 0, 0, 0, 0) == -1 && errno == ESRCH);
    CHECK(futex(&first, FUTEX_LOCK_PI, 0, 0, 0, 0) == -1 && errno == ESRCH);
    first = 0;
}

static void barriers(void) {
    CHECK(syscall(SYS_membarrier, 0, 0, 0) & 1 << 9); /* GET_REGISTRATIONS */
    CHECK(syscall(SYS_membarrier, 1 << 4, 0, 0) == 0 && syscall(SYS_membarrier, 1 << 9, 0, 0) & 1 << 4);
}

static void policies(void) {
    struct sched_param none = {0};
    CHECK(sched_setscheduler(0, SCHED_BATCH, &none) == 0 && sched_getscheduler(0) == SCHED_BATCH);
    pid_t child = fork();
    if (child == 0) _exit(sched_getscheduler(0));
    int status;
    CHECK(waitpid(child, &status, 0) == child && WEXITSTATUS(status) == SCHED_BATCH);
    struct { uint32_t size, policy; uint64_t flags; int32_t nice; uint32_t priority; uint64_t more[9]; } attributes;
    memset(&attributes, 0, sizeof attributes);
    CHECK(syscall(SYS_sched_getattr, 0, &attributes, 48, 0) == 0 && attributes.size == 48 && attributes.policy == SCHED_BATCH);
    attributes.size = 40;
    CHECK(syscall(SYS_sched_setattr, 0, &attributes, 0) == -1 && errno == E2BIG && attributes.size >= 48);
    attributes.size = sizeof attributes;
    attributes.more[8] = 1;
    CHECK(syscall(SYS_sched_setattr, 0, &attributes, 0) == -1 && errno == E2BIG);
    attributes.more[8] = 0;
    attributes.size = 48;
    attributes.flags = 1 << 30;
    CHECK(syscall(SYS_sched_setattr, 0, &attributes, 0) == -1 && errno == EINVAL);
    CHECK(sched_setscheduler(0, SCHED_IDLE | SCHED_RESET_ON_FORK, &none) == 0);
    CHECK(sched_getscheduler(0) == (SCHED_IDLE | SCHED_RESET_ON_FORK));
    attributes.flags = 0;
    CHECK(syscall(SYS_sched_getattr, 0, &attributes, 48, 0) == 0 && attributes.policy == SCHED_IDLE && attributes.flags == 1);
}

/* As root in a container: a machine's root may do more (CAP_SYS_PTRACE). */
static void drop_to_a_container(void) {
    for (int capability = 0; capability <= 40; capability++) {
        if (!(0xa80425fbull >> capability & 1)) prctl(PR_CAPBSET_DROP, capability);
    }
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct data[2];
    syscall(SYS_capget, &header, data);
    data[0].effective &= 0xa80425fb;
    data[0].permitted &= 0xa80425fb;
    data[1].effective = data[1].permitted = 0;
    CHECK(syscall(SYS_capset, &header, data) == 0);
}
/* Who may look into whom: ids, capabilities and dumpability count, not being root. */
static int opens(pid_t process, const char *name) {
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/%s", process, name);
    int fd = open(path, O_RDONLY);
    if (fd >= 0) close(fd);
    return fd >= 0 ? 0 : errno;
}

static void rights(void) {
    drop_to_a_container();
    int ends[2];
    char ready;
    CHECK(pipe(ends) == 0);
    pid_t user = fork();
    if (user == 0) {
        setgid(1000);
        setuid(1000);
        write(ends[1], "r", 1);
        for (;;) pause();
    }
    read(ends[0], &ready, 1);
    CHECK(opens(user, "maps") == EACCES && opens(user, "environ") == EACCES && opens(user, "status") == 0);
    /* It changed its ids and may hold secrets of before: not even its own user may look. */
    pid_t other = fork();
    if (other == 0) {
        setgid(1000);
        setuid(1000);
        char byte;
        struct iovec here = {&byte, 1}, there = {stack, 1};
        int good = opens(user, "maps") == EACCES && process_vm_readv(user, &here, 1, &there, 1, 0) == -1 && errno == EPERM;
        good &= opens(getpid(), "maps") == 0;
        _exit(good ? 7 : 8);
    }
    int status;
    CHECK(waitpid(other, &status, 0) == other && status == 0x700);
    kill(user, SIGKILL);
    waitpid(user, 0, 0);
    gid_t groups[3] = {3, 1, 2};
    CHECK(setgroups(3, groups) == 0 && getgroups(3, groups) == 3 && groups[0] == 1 && groups[2] == 3);
    CHECK(prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0) == 0 && prctl(PR_GET_THP_DISABLE, 0, 0, 0, 0) == 1);
}

static uint32_t effective(void) {
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct data[2];
    return syscall(SYS_capget, &header, data) == 0 ? data[0].effective : 0;
}

/* What user 0 is worth, and the locks on it. */
static void secure_bits(void) {
    CHECK(prctl(PR_SET_SECUREBITS, 1 << 20) == -1 && errno == EPERM);
    CHECK(prctl(PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP | SECBIT_KEEP_CAPS | SECBIT_KEEP_CAPS_LOCKED) == 0);
    CHECK(prctl(PR_GET_KEEPCAPS) == 1 && prctl(PR_SET_KEEPCAPS, 0) == -1 && errno == EPERM);
    CHECK(prctl(PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP) == -1 && errno == EPERM);
    uint32_t before = effective();
    CHECK(setuid(1000) == 0 && effective() == before);
}

static void without_root(void) {
    CHECK(prctl(PR_SET_SECUREBITS, SECBIT_NOROOT) == 0);
    execl("/proc/self/exe", "edges", "--effective", (char *)0);
}

/* A program called with other ids than it has is not dumpable. */
static void borrowed(void) {
    setreuid(1000, 0);
    execl("/proc/self/exe", "edges", "--dumpable", (char *)0);
}

/* Scripts, their depth and how the last of them was called. */
static void script(const char *name, const char *line) {
    int fd = open(name, O_CREAT | O_TRUNC | O_WRONLY, 0755);
    CHECK(fd >= 0 && write(fd, line, strlen(line)) > 0 && fchmod(fd, 0755) == 0);
    close(fd);
}

static void scripts(void) {
    char directory[] = "/tmp/bulla-edges-XXXXXX", self[256] = {0}, line[300];
    CHECK(readlink("/proc/self/exe", self, sizeof self - 1) > 0 && mkdtemp(directory) && chdir(directory) == 0);
    snprintf(line, sizeof line, "#!%s --called\n", self);
    script("s1", line);
    for (int i = 2; i <= 6; i++) {
        char name[8];
        snprintf(name, sizeof name, "s%d", i);
        snprintf(line, sizeof line, "#!./s%d\n", i - 1);
        script(name, line);
    }
    int status;
    pid_t child = fork();
    if (child == 0) execl("./s5", "five", (char *)0), _exit(99);
    CHECK(waitpid(child, &status, 0) == child && status == 0);
    child = fork();
    if (child == 0) execl("./s6", "six", (char *)0), _exit(errno == ELOOP ? 6 : 7);
    CHECK(waitpid(child, &status, 0) == child && status == 0x600);
    child = fork();
    char *arguments[] = {"x", 0};
    if (child == 0) {
        int fd = open("s1", O_RDONLY | O_CLOEXEC);
        syscall(SYS_execveat, fd, "", arguments, 0, 0x1000);
        _exit(errno == ENOENT ? 6 : 7);
    }
    CHECK(waitpid(child, &status, 0) == child && status == 0x600);
    for (int i = 1; i <= 6; i++) {
        char name[8];
        snprintf(name, sizeof name, "s%d", i);
        unlink(name);
    }
    chdir("/");
    rmdir(directory);
}

/* Each attachment counts, and SHM_REMAP takes the place of what is there. */
static void segments(void) {
    struct shmid_ds state;
    int id = shmget(IPC_PRIVATE, 5000, 0600);
    char *one = shmat(id, 0, 0), *two = shmat(id, 0, 0);
    CHECK(one != two && shmctl(id, IPC_STAT, &state) == 0 && state.shm_nattch == 2);
    CHECK(shmat(id, two, 0) == (void *)-1 && errno == EINVAL);
    CHECK(shmat(id, two, SHM_REMAP) == two);
    pid_t child = fork();
    if (child == 0) {
        struct shmid_ds now;
        shmctl(id, IPC_STAT, &now);
        int both = now.shm_nattch;
        shmdt(one);
        shmctl(id, IPC_STAT, &now);
        _exit(both == 4 && now.shm_nattch == 3 ? 5 : 6);
    }
    int status;
    CHECK(waitpid(child, &status, 0) == child && status == 0x500);
    shmctl(id, IPC_RMID, 0);
    one[0] = 'a';
    CHECK(two[0] == 'a' && shmdt(one) == 0 && shmdt(two) == 0 && shmctl(id, IPC_STAT, &state) == -1);
}

static void mappings(void) {
    CHECK(mmap(0, 4096, PROT_READ, MAP_SHARED_VALIDATE | MAP_ANONYMOUS, -1, 0) == MAP_FAILED && errno == EINVAL);
}

int main(int argc, char **argv) {
    if (argc > 1 && !strcmp(argv[1], "--effective")) return effective() == 0 ? 0 : 1;
    if (argc > 1 && !strcmp(argv[1], "--dumpable")) return prctl(PR_GET_DUMPABLE) != 1 ? 0 : 1;
    if (argc > 1 && !strcmp(argv[1], "--called")) return strcmp((char *)getauxval(AT_EXECFN), "./s5") != 0;
    file_systems();
    descriptors_of_processes();
    waits();
    clones();
    parents();
    CHECK(apart(queue_limits) == 0);
    actions();
    descriptors();
    futexes();
    barriers();
    CHECK(apart(policies) == 0);
    mappings();
    CHECK(apart(rights) == 0);
    CHECK(apart(secure_bits) == 0);
    CHECK(apart(without_root) == 0);
    CHECK(apart(borrowed) == 0);
    scripts();
    segments();
    return finish("edges");
}
