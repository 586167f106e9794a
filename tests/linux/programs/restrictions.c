/* seccomp filters, core files, what checkpointing asks for, guard pages, seals, pagemap. */
#include "check.h"
#include <elf.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <net/if.h>
#include <pthread.h>
#include <stddef.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/msg.h>
#include <sys/prctl.h>
#include <sys/procfs.h>
#include <sys/resource.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <sys/stat.h>

#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102
#define MADV_GUARD_REMOVE 103
#endif

/* Answers `action` to one call and allows the others. */
static int forbid(int number, unsigned action, int flags) {
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, AUDIT_ARCH_X86_64, 1, 0),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, number, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, action),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {sizeof code / sizeof code[0], code};
    return syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &program);
}

static volatile siginfo_t trapped;
static void on_sigsys(int s, siginfo_t *info, void *context) {
    (void)s; (void)context;
    trapped = *info;
}

static void *same_filter(void *result) {
    *(int *)result = syscall(SYS_getppid) == -1 ? errno : 0;
    return 0;
}

static void filters(void) {
    CHECK(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
    CHECK(prctl(PR_GET_SECCOMP) == 0);
    CHECK(forbid(SYS_getppid, SECCOMP_RET_ERRNO | EBADMSG, 0) == 0);
    CHECK(prctl(PR_GET_SECCOMP) == 2);
    CHECK(syscall(SYS_getppid) == -1 && errno == EBADMSG);
    CHECK(getpid() > 0);
    struct sigaction action = {.sa_sigaction = on_sigsys, .sa_flags = SA_SIGINFO};
    sigaction(SIGSYS, &action, 0);
    CHECK(forbid(SYS_getpgid, SECCOMP_RET_TRAP | 77, 0) == 0);
    syscall(SYS_getpgid, 0);
    CHECK(trapped.si_signo == SIGSYS && trapped.si_code == 1 && trapped.si_errno == 77);
    CHECK(trapped.si_syscall == SYS_getpgid && trapped.si_arch == AUDIT_ARCH_X86_64 && trapped.si_call_addr);
    CHECK(forbid(SYS_getsid, SECCOMP_RET_TRACE, 0) == 0);
    CHECK(syscall(SYS_getsid, 0) == -1 && errno == ENOSYS);
    /* Inherited, by threads and by processes. */
    int result = -1;
    pthread_t thread;
    CHECK(pthread_create(&thread, 0, same_filter, &result) == 0);
    CHECK(pthread_join(thread, 0) == 0 && result == EBADMSG);
    pid_t child = fork();
    if (child == 0)
        _exit(syscall(SYS_getppid) == -1 && errno == EBADMSG ? 0 : 1);
    int status;
    CHECK(waitpid(child, &status, 0) == child && status == 0);
    /* A kill of one thread only. */
    child = fork();
    if (child == 0) {
        forbid(SYS_getuid, SECCOMP_RET_KILL_PROCESS, 0);
        syscall(SYS_getuid);
        _exit(1);
    }
    CHECK(waitpid(child, &status, 0) == child && WIFSIGNALED(status) && WTERMSIG(status) == SIGSYS);
    unsigned wanted = SECCOMP_RET_ERRNO;
    CHECK(syscall(SYS_seccomp, SECCOMP_GET_ACTION_AVAIL, 0, &wanted) == 0);
    wanted = 0x12340000;
    CHECK(syscall(SYS_seccomp, SECCOMP_GET_ACTION_AVAIL, 0, &wanted) == -1 && errno == EOPNOTSUPP);
    CHECK(syscall(SYS_seccomp, SECCOMP_SET_MODE_STRICT, 0, 0) == -1 && errno == EINVAL);
}

static pthread_barrier_t barrier;
static void *later(void *result) {
    pthread_barrier_wait(&barrier);
    pthread_barrier_wait(&barrier);
    return same_filter(result);
}

static void all_threads(void) {
    int result = -1;
    pthread_t thread;
    pthread_barrier_init(&barrier, 0, 2);
    CHECK(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
    CHECK(pthread_create(&thread, 0, later, &result) == 0);
    pthread_barrier_wait(&barrier);
    CHECK(forbid(SYS_getppid, SECCOMP_RET_ERRNO | EDOM, SECCOMP_FILTER_FLAG_TSYNC) == 0);
    pthread_barrier_wait(&barrier);
    CHECK(pthread_join(thread, 0) == 0 && result == EDOM);
}

static void strict(void) {
    CHECK(prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT) == 0);
    if (write(1, "", 0) == 0)
        syscall(SYS_exit, 0);
    syscall(SYS_exit, 1);
}

static void strict_killed(void) {
    prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT);
    syscall(SYS_getpid);
    syscall(SYS_exit, 1);
}

static const char pattern[] = "in the core file, once";
static pid_t *others; /* threads that are there when the process dies */
static void *waits(void *at) {
    *(pid_t *)at = syscall(SYS_gettid);
    pause();
    return 0;
}

static void dies(void) {
    pthread_t thread;
    for (int i = 0; i < 2; i++) {
        pthread_create(&thread, 0, waits, &others[i]);
        while (*(volatile pid_t *)&others[i] == 0) usleep(1000);
    }
    char *memory = mmap(0, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    char *secret = mmap(0, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    madvise(secret, 8192, MADV_DONTDUMP);
    for (unsigned i = 0; i < sizeof pattern; i++) {
        memory[i] = pattern[i];
        secret[i] = pattern[i] ^ 0x20;
    }
    raise(SIGABRT);
}

static int contains(const char *bytes, size_t len, int with) {
    char wanted[sizeof pattern];
    for (unsigned i = 0; i < sizeof pattern; i++)
        wanted[i] = pattern[i] ^ with;
    return memmem(bytes, len, wanted, sizeof pattern - 1) != 0;
}

/* Whether the notes tell of a thread that waits in a system call. */
static int tells_of(const char *notes, size_t len, pid_t thread) {
    for (size_t at = 0; at + sizeof(Elf64_Nhdr) <= len;) {
        Elf64_Nhdr *note = (void *)(notes + at);
        const struct elf_prstatus *status = (void *)(notes + at + sizeof *note + 8);
        if (note->n_type == NT_PRSTATUS && status->pr_pid == thread)
            return status->pr_reg[15] == SYS_pause && status->pr_reg[19] != 0;
        at += sizeof *note + 8 + (note->n_descsz + 3) / 4 * 4;
    }
    return 0;
}

static void core(void) {
    others = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    char directory[] = "/tmp/coreXXXXXX", text[64] = "";
    CHECK(mkdtemp(directory) && chdir(directory) == 0);
    int fd = open("/proc/sys/kernel/core_pattern", O_RDONLY);
    CHECK(fd >= 0 && read(fd, text, sizeof text - 1) > 0);
    close(fd);
    struct rlimit limit = {0, 0};
    getrlimit(RLIMIT_CORE, &limit);
    limit.rlim_cur = 0;
    setrlimit(RLIMIT_CORE, &limit);
    int status = apart(dies);
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT && !WCOREDUMP(status));
    if (strcmp(text, "core\n") || limit.rlim_max != RLIM_INFINITY)
        return; /* this machine's core files go elsewhere */
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_CORE, &limit);
    memset(others, 0, 4096);
    status = apart(dies);
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT && WCOREDUMP(status));
    struct stat stat;
    fd = open("core", O_RDONLY);
    if (fd < 0)
        fd = open("core.1", O_RDONLY);
    if (fd < 0)
        return; /* core_uses_pid */
    CHECK(fstat(fd, &stat) == 0 && stat.st_size > 65536 && (stat.st_mode & 0777) == 0600);
    char *bytes = mmap(0, stat.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
    Elf64_Ehdr *header = (void *)bytes;
    CHECK(header->e_type == ET_CORE && header->e_machine == EM_X86_64 && header->e_phnum > 2);
    Elf64_Phdr *entry = (void *)(bytes + header->e_phoff);
    CHECK(entry->p_type == PT_NOTE && entry[1].p_type == PT_LOAD);
    for (int i = 0; i < 2; i++)
        CHECK(tells_of(bytes + entry->p_offset, entry->p_filesz, others[i]));
    int found = 0, secret = 0;
    for (int i = 0; i < header->e_phnum; i++)
        if (entry[i].p_type == PT_LOAD && entry[i].p_filesz) {
            CHECK(entry[i].p_offset + entry[i].p_filesz <= (size_t)stat.st_size);
            found |= contains(bytes + entry[i].p_offset, entry[i].p_filesz, 0);
            secret |= contains(bytes + entry[i].p_offset, entry[i].p_filesz, 0x20);
        }
    CHECK(found && !secret);
    unlink("core");
    rmdir(directory);
}

static void guards(void) {
    char *memory = mmap(0, 3 * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    memset(memory, 'a', 3 * 4096);
    if (madvise(memory + 4096, 4096, MADV_GUARD_INSTALL) == -1 && errno == EINVAL)
        return; /* before Linux 6.13 */
    CHECK(memory[4095] == 'a' && memory[2 * 4096] == 'a');
    int pair[2];
    CHECK(pipe(pair) == 0);
    CHECK(write(pair[1], memory + 4096, 1) == -1 && errno == EFAULT);
    CHECK(mprotect(memory, 3 * 4096, PROT_READ) == 0 && mprotect(memory, 3 * 4096, PROT_READ | PROT_WRITE) == 0);
    CHECK(write(pair[1], memory + 4096, 1) == -1 && errno == EFAULT);
    if (fork() == 0) {
        signal(SIGSEGV, SIG_DFL);
        memory[4096] = 1;
        _exit(1);
    }
    int status;
    CHECK(wait(&status) > 0 && WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV);
    CHECK(madvise(memory, 3 * 4096, MADV_GUARD_REMOVE) == 0);
    CHECK(memory[4096] == 0 && memory[4095] == 'a');
    memory[4096] = 1;
    CHECK(munmap(memory, 3 * 4096) == 0);
}

static void seals(void) {
    int fd = memfd_create("sealed", MFD_ALLOW_SEALING);
    CHECK(ftruncate(fd, 8192) == 0);
    char *view = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    CHECK(fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE) == -1 && errno == EBUSY);
    CHECK(fcntl(fd, F_ADD_SEALS, F_SEAL_GROW) == 0);
    CHECK(munmap(view, 4096) == 0);
    view = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
    CHECK(fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE) == 0);
    view[0] = 1;
    CHECK(write(fd, "x", 1) == -1 && errno == EPERM);
    CHECK(mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) == MAP_FAILED && errno == EPERM);
}

static void presence(void) {
    char *memory = mmap(0, 4 * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    memory[0] = memory[2 * 4096] = 1;
    CHECK(madvise(memory + 4096, 4096, MADV_DONTNEED) == 0);
    uint64_t words[4];
    int fd = open("/proc/self/pagemap", O_RDONLY);
    CHECK(fd >= 0 && pread(fd, words, sizeof words, (uintptr_t)memory / 4096 * 8) == sizeof words);
    CHECK(words[0] >> 63 == 1 && words[1] >> 63 == 0 && words[2] >> 63 == 1);
    CHECK(pread(fd, words, 3, 0) == -1 && errno == EINVAL);
    close(fd);
}

static void interfaces(void) {
    struct ifreq list[8];
    struct ifconf conf = {.ifc_len = sizeof list, .ifc_req = list};
    int fd = socket(AF_INET, SOCK_DGRAM, 0);
    CHECK(ioctl(fd, SIOCGIFCONF, &conf) == 0 && conf.ifc_len % (int)sizeof list[0] == 0);
    int all = conf.ifc_len;
    if (all) {
        CHECK(ioctl(fd, SIOCGIFFLAGS, &list[0]) == 0 && (list[0].ifr_flags & IFF_UP));
        conf.ifc_len = sizeof list[0];
        CHECK(ioctl(fd, SIOCGIFCONF, &conf) == 0 && conf.ifc_len == sizeof list[0]);
    }
    conf.ifc_req = 0;
    CHECK(ioctl(fd, SIOCGIFCONF, &conf) == 0 && conf.ifc_len >= all);
    conf.ifc_len = sizeof list;
    conf.ifc_req = (void *)8;
    CHECK(!all || (ioctl(fd, SIOCGIFCONF, &conf) == -1 && errno == EFAULT));
}

int main(void) {
    CHECK(apart(filters) == 0);
    CHECK(apart(all_threads) == 0);
    CHECK(apart(strict) == 0);
    int status = apart(strict_killed);
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
    CHECK(apart(core) == 0);
    CHECK(apart(guards) == 0);
    CHECK(apart(seals) == 0);
    CHECK(apart(presence) == 0);
    CHECK(apart(interfaces) == 0);
    return finish("restrictions");
}
