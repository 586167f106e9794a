/* ptrace: what a tracer sees and may change, how it begins and ends. */
#include "check.h"
#include <elf.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stddef.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/uio.h>
#include <sys/user.h>

/* glibc has it as an enumerator in some versions only. */
#define GET_SYSCALL_INFO 0x420e

struct call_info {
    uint8_t op, pad[3];
    uint32_t arch;
    uint64_t ip, sp;
    union {
        struct { uint64_t nr, args[6]; } entry;
        struct { int64_t value; uint8_t is_error; } exit;
    };
};

static long request(long what, pid_t pid, unsigned long address, unsigned long data) {
    return syscall(SYS_ptrace, what, pid, address, data);
}

#define EVENT(status) ((status) >> 16)

/* Waits for one process; its status. */
static int next(pid_t pid) {
    int status = -1;
    CHECK(waitpid(pid, &status, __WALL) == pid);
    return status;
}

static void expect_stop(pid_t pid, int signal, int event) {
    int status = next(pid);
    if (!WIFSTOPPED(status) || WSTOPSIG(status) != signal || EVENT(status) != event)
        printf("status %#x for a stop by %d, event %d\n", status, signal, event);
    CHECK(WIFSTOPPED(status) && WSTOPSIG(status) == signal && EVENT(status) == event);
}

static void expect_exit(pid_t pid, int code) {
    int status = next(pid);
    if (status != code << 8)
        printf("status %#x for exit %d\n", status, code);
    CHECK(status == code << 8);
}

static void go(long what, pid_t pid, int signal) {
    CHECK(request(what, pid, 0, signal) == 0);
}

/* A child that is traced from its first stop on. */
static pid_t traced(void (*body)(void)) {
    fflush(stdout);
    pid_t pid = fork();
    if (pid == 0) {
        /* A group that is not orphaned, so that SIGTSTP stops it. */
        setpgid(0, 0);
        CHECK(request(PTRACE_TRACEME, 0, 0, 0) == 0);
        raise(SIGSTOP);
        body();
        _exit(99);
    }
    expect_stop(pid, SIGSTOP, 0);
    return pid;
}

static struct user_regs_struct registers_of(pid_t pid) {
    struct user_regs_struct registers = {0};
    CHECK(request(PTRACE_GETREGS, pid, 0, (unsigned long)&registers) == 0);
    return registers;
}

static void set_registers(pid_t pid, struct user_regs_struct registers) {
    CHECK(request(PTRACE_SETREGS, pid, 0, (unsigned long)&registers) == 0);
}

static struct call_info call_of(pid_t pid, int op, long size) {
    struct call_info info = {0};
    long got = request(GET_SYSCALL_INFO, pid, sizeof info, (unsigned long)&info);
    CHECK(got == size && info.op == op && info.arch == 0xc000003e);
    return info;
}

/* ---- system calls ------------------------------------------------------------------------- */

static volatile long word = 1234;

static void calls(void) {
    long own = getuid();
    long result = syscall(SYS_getppid);
    if (result != 4711)
        _exit(1);
    /* The tracer makes this getuid, with another result; and the next one nothing. */
    if (syscall(SYS_getppid, 1, 2, 3, 4, 5, 6) != own)
        _exit(2);
    errno = 0;
    if (syscall(SYS_getppid) != -1 || errno != EXDEV)
        _exit(3);
    _exit(word == 77 ? 42 : 4);
}

static void see_calls(void) {
    pid_t pid = traced(calls);
    CHECK(request(PTRACE_SETOPTIONS, pid, 0, PTRACE_O_TRACESYSGOOD) == 0);
    /* getuid */
    go(PTRACE_SYSCALL, pid, 0);
    expect_stop(pid, SIGTRAP | 0x80, 0);
    go(PTRACE_SYSCALL, pid, 0);
    expect_stop(pid, SIGTRAP | 0x80, 0);
    go(PTRACE_SYSCALL, pid, 0);
    expect_stop(pid, SIGTRAP | 0x80, 0);
    struct user_regs_struct r = registers_of(pid);
    CHECK(r.orig_rax == SYS_getppid && r.rax == -ENOSYS && r.cs == 0x33 && r.ss == 0x2b);
    CHECK(r.rcx == r.rip);
    struct call_info info = call_of(pid, 1, 80);
    CHECK(info.entry.nr == SYS_getppid && info.ip == r.rip && info.sp == r.rsp);
    siginfo_t about;
    CHECK(request(PTRACE_GETSIGINFO, pid, 0, (unsigned long)&about) == 0);
    CHECK(about.si_signo == SIGTRAP && about.si_code == (SIGTRAP | 0x80));
    /* The text around is what the file has. */
    long text;
    CHECK(request(PTRACE_PEEKTEXT, pid, r.rip - 2, (unsigned long)&text) == 0);
    CHECK((text & 0xffff) == 0x050f);
    unsigned char call[3] = {0};
    struct iovec here[2] = {{call, 1}, {call + 1, 1}};
    struct iovec there[2] = {{(char *)r.rip - 2, 1}, {(char *)r.rip - 1, 1}};
    CHECK(process_vm_readv(pid, here, 2, there, 2, 0) == 2 && memcmp(call, "\x0f\x05", 3) == 0);
    go(PTRACE_SYSCALL, pid, 0);
    expect_stop(pid, SIGTRAP | 0x80, 0);
    r = registers_of(pid);
    CHECK(r.orig_rax == SYS_getppid && r.rax == (unsigned long)getpid());
    info = call_of(pid, 2, 33);
    CHECK(info.exit.value == getpid() && info.exit.is_error == 0);
    r.rax = 4711;
    set_registers(pid, r);
    /* Another call in its place. */
    go(PTRACE_SYSCALL, pid, 0);
    expect_stop(pid, SIGTRAP | 0x80, 0);
    info = call_of(pid, 1, 80);
    for (int i = 0; i < 6; i++)
        CHECK(info.entry.args[i] == (uint64_t)i + 1);
    CHECK(request(PTRACE_POKEUSER, pid, offsetof(struct user, regs.orig_rax), SYS_getuid) == 0);
    go(PTRACE_SYSCALL, pid, 0);
    expect_stop(pid, SIGTRAP | 0x80, 0);
    /* None in its place. */
    go(PTRACE_SYSCALL, pid, 0);
    expect_stop(pid, SIGTRAP | 0x80, 0);
    CHECK(request(PTRACE_POKEUSER, pid, offsetof(struct user, regs.orig_rax), -1) == 0);
    go(PTRACE_SYSCALL, pid, 0);
    expect_stop(pid, SIGTRAP | 0x80, 0);
    CHECK(registers_of(pid).rax == -ENOSYS);
    CHECK(request(PTRACE_POKEUSER, pid, offsetof(struct user, regs.rax), -EXDEV) == 0);
    long old;
    CHECK(request(PTRACE_PEEKDATA, pid, (unsigned long)&word, (unsigned long)&old) == 0);
    CHECK(old == 1234);
    CHECK(request(PTRACE_POKEDATA, pid, (unsigned long)&word, 77) == 0);
    go(PTRACE_CONT, pid, 0);
    expect_exit(pid, 42);
}

static void emulated(void) {
    if (syscall(SYS_getppid) != 4711)
        _exit(1);
    _exit(7);
}

static void emulate(void) {
    pid_t pid = traced(emulated);
    go(PTRACE_SYSEMU, pid, 0);
    expect_stop(pid, SIGTRAP, 0);
    CHECK(request(PTRACE_POKEUSER, pid, offsetof(struct user, regs.rax), 4711) == 0);
    go(PTRACE_CONT, pid, 0);
    expect_exit(pid, 7);
}

/* ---- errors ------------------------------------------------------------------------------- */

static void idle(void) {
    for (;;)
        pause();
}

static void errors(void) {
    long value;
    unsigned long to = (unsigned long)&value;
    CHECK(request(PTRACE_PEEKDATA, 1 << 21, to, to) == -1 && errno == ESRCH);
    CHECK(request(PTRACE_ATTACH, 1 << 21, 0, 0) == -1 && errno == ESRCH);
    CHECK(request(PTRACE_ATTACH, getpid(), 0, 0) == -1 && errno == EPERM);
    pid_t pid = traced(idle);
    CHECK(request(PTRACE_ATTACH, pid, 0, 0) == -1 && errno == EPERM);
    CHECK(request(PTRACE_PEEKDATA, pid, 0, to) == -1 && errno == EIO);
    CHECK(request(PTRACE_PEEKDATA, pid, to, 0) == -1 && errno == EFAULT);
    CHECK(request(PTRACE_POKEDATA, pid, 0, 1) == -1 && errno == EIO);
    CHECK(request(PTRACE_POKEDATA, pid, -1, 1) == -1 && errno == EIO);
    CHECK(request(PTRACE_PEEKUSER, pid, 3, to) == -1 && errno == EIO);
    CHECK(request(PTRACE_PEEKUSER, pid, 4096, to) == -1 && errno == EIO);
    CHECK(request(PTRACE_PEEKUSER, pid, -8, to) == -1 && errno == EIO);
    CHECK(request(PTRACE_POKEUSER, pid, 4096, 0) == -1 && errno == EIO);
    CHECK(request(PTRACE_POKEUSER, pid, offsetof(struct user, regs.cs), 0x10) == -1 && errno == EIO);
    CHECK(request(PTRACE_POKEUSER, pid, offsetof(struct user, regs.fs_base), 1ul << 63) == -1 &&
          errno == EIO);
    CHECK(request(PTRACE_CONT, pid, 0, 65) == -1 && errno == EIO);
    CHECK(request(PTRACE_DETACH, pid, 0, 65) == -1 && errno == EIO);
    CHECK(request(PTRACE_SETOPTIONS, pid, 0, 1 << 30) == -1 && errno == EINVAL);
    CHECK(request(PTRACE_INTERRUPT, pid, 0, 0) == -1 && errno == EIO);
    CHECK(request(PTRACE_LISTEN, pid, 0, 0) == -1 && errno == EIO);
    CHECK(request(PTRACE_GETREGS, pid, 0, 0) == -1 && errno == EFAULT);
    CHECK(request(12345, pid, 0, 0) == -1 && errno == EIO);
    struct iovec vector = {&value, sizeof value};
    CHECK(request(PTRACE_GETREGSET, pid, 999, (unsigned long)&vector) == -1 && errno == EINVAL);
    go(PTRACE_CONT, pid, 0);
    CHECK(request(PTRACE_PEEKDATA, pid, to, to) == -1 && errno == ESRCH);
    CHECK(request(PTRACE_CONT, pid, 0, 0) == -1 && errno == ESRCH);
    CHECK(request(PTRACE_KILL, pid, 0, 0) == 0);
    CHECK(next(pid) == SIGKILL);
}

/* ---- signals ------------------------------------------------------------------------------ */

static volatile sig_atomic_t got[65], code_of[65], value_of[65];

static void note(int signal, siginfo_t *info, void *context) {
    (void)context;
    got[signal]++;
    code_of[signal] = info->si_code;
    value_of[signal] = info->si_value.sival_int;
}

static void catching(void) {
    struct sigaction action = {.sa_sigaction = note, .sa_flags = SA_SIGINFO};
    sigaction(SIGUSR1, &action, NULL);
    sigaction(SIGUSR2, &action, NULL);
    signal(SIGHUP, SIG_IGN);
    raise(SIGUSR1); /* suppressed */
    if (got[SIGUSR1] || got[SIGUSR2])
        _exit(1);
    raise(SIGUSR1); /* becomes SIGUSR2 */
    if (got[SIGUSR1] || got[SIGUSR2] != 1 || code_of[SIGUSR2] != SI_USER)
        _exit(2);
    raise(SIGUSR1); /* delivered, with other information */
    if (got[SIGUSR1] != 1 || code_of[SIGUSR1] != SI_QUEUE || value_of[SIGUSR1] != 5)
        _exit(3);
    raise(SIGHUP); /* seen by the tracer although it is ignored */
    sigset_t set;
    sigprocmask(SIG_SETMASK, NULL, &set);
    _exit(sigismember(&set, SIGTERM) ? 55 : 4);
}

static void signals(void) {
    pid_t pid = traced(catching);
    go(PTRACE_CONT, pid, 0);
    expect_stop(pid, SIGUSR1, 0);
    siginfo_t info;
    CHECK(request(PTRACE_GETSIGINFO, pid, 0, (unsigned long)&info) == 0);
    CHECK(info.si_signo == SIGUSR1 && info.si_code == SI_TKILL && info.si_pid == pid);
    go(PTRACE_CONT, pid, 0);
    expect_stop(pid, SIGUSR1, 0);
    go(PTRACE_CONT, pid, SIGUSR2);
    expect_stop(pid, SIGUSR1, 0);
    CHECK(request(PTRACE_GETSIGINFO, pid, 0, (unsigned long)&info) == 0);
    info.si_code = SI_QUEUE;
    info.si_value.sival_int = 5;
    CHECK(request(PTRACE_SETSIGINFO, pid, 0, (unsigned long)&info) == 0);
    go(PTRACE_CONT, pid, SIGUSR1);
    expect_stop(pid, SIGHUP, 0);
    uint64_t mask = 1;
    CHECK(request(PTRACE_GETSIGMASK, pid, 4, (unsigned long)&mask) == -1 && errno == EINVAL);
    CHECK(request(PTRACE_GETSIGMASK, pid, 8, (unsigned long)&mask) == 0);
    mask |= 1ul << (SIGTERM - 1);
    CHECK(request(PTRACE_SETSIGMASK, pid, 8, (unsigned long)&mask) == 0);
    /* Blocked: it stays pending, and can be looked at. */
    CHECK(kill(pid, SIGTERM) == 0);
    struct { uint64_t offset; uint32_t flags; int32_t count; } peek = {0, 1, 4};
    siginfo_t queued[4];
    CHECK(request(PTRACE_PEEKSIGINFO, pid, (unsigned long)&peek, (unsigned long)queued) == 1);
    CHECK(queued[0].si_signo == SIGTERM && queued[0].si_pid == getpid());
    go(PTRACE_CONT, pid, SIGHUP);
    expect_exit(pid, 55);
}

/* A call that waits restarts after a stop that no handler follows. */
static int ends[2];

static void reading(void) {
    char byte;
    ssize_t got = read(ends[0], &byte, 1);
    _exit(got == 1 && byte == 'x' ? 33 : 1);
}

static void restarts(void) {
    CHECK(pipe(ends) == 0);
    pid_t pid = traced(reading);
    go(PTRACE_CONT, pid, 0);
    usleep(20000);
    kill(pid, SIGUSR1);
    expect_stop(pid, SIGUSR1, 0);
    struct user_regs_struct r = registers_of(pid);
    CHECK(r.orig_rax == SYS_read && (long)r.rax == -512);
    go(PTRACE_CONT, pid, 0);
    usleep(20000);
    CHECK(write(ends[1], "x", 1) == 1);
    expect_exit(pid, 33);
}

/* ---- registers ---------------------------------------------------------------------------- */

static void vectors(void) {
    double out = 0;
    unsigned long r12 = 0;
    __asm__ volatile("movq %2, %%xmm5; mov $1234, %%r12; int3; movq %%xmm5, %0; mov %%r12, %1"
                     : "=m"(out), "=r"(r12)
                     : "r"(0x4000000000000000ul)
                     : "xmm5", "r12", "memory");
    _exit(out == 8.0 && r12 == 5678 ? 21 : 1);
}

static void registers(void) {
    pid_t pid = traced(vectors);
    go(PTRACE_CONT, pid, 0);
    expect_stop(pid, SIGTRAP, 0);
    siginfo_t info;
    CHECK(request(PTRACE_GETSIGINFO, pid, 0, (unsigned long)&info) == 0);
    CHECK(info.si_code == SI_KERNEL);
    struct user_regs_struct r = registers_of(pid), again;
    CHECK(r.r12 == 1234 && (long)r.orig_rax == -1 && r.fs_base != 0);
    long text;
    CHECK(request(PTRACE_PEEKTEXT, pid, r.rip - 1, (unsigned long)&text) == 0);
    CHECK((text & 0xff) == 0xcc);
    struct iovec vector = {&again, sizeof again};
    CHECK(request(PTRACE_GETREGSET, pid, NT_PRSTATUS, (unsigned long)&vector) == 0);
    CHECK(vector.iov_len == sizeof again && memcmp(&r, &again, sizeof r) == 0);
    r.r12 = 5678;
    vector.iov_base = &r;
    CHECK(request(PTRACE_SETREGSET, pid, NT_PRSTATUS, (unsigned long)&vector) == 0);
    struct user_fpregs_struct fp;
    CHECK(request(PTRACE_GETFPREGS, pid, 0, (unsigned long)&fp) == 0);
    uint64_t xmm5;
    memcpy(&xmm5, &fp.xmm_space[20], 8);
    CHECK(xmm5 == 0x4000000000000000ul);
    static char state[16384];
    vector.iov_base = state;
    vector.iov_len = sizeof state;
    CHECK(request(PTRACE_GETREGSET, pid, NT_X86_XSTATE, (unsigned long)&vector) == 0);
    CHECK(vector.iov_len >= 576 && memcmp(state + 160 + 80, &xmm5, 8) == 0);
    CHECK(state[464] & 3);
    double eight = 8;
    memcpy(state + 160 + 80, &eight, 8);
    CHECK(request(PTRACE_SETREGSET, pid, NT_X86_XSTATE, (unsigned long)&vector) == 0);
    go(PTRACE_CONT, pid, 0);
    expect_exit(pid, 21);
}

/* ---- breakpoints -------------------------------------------------------------------------- */

__attribute__((noinline)) static int target(int value) {
    __asm__ volatile("" ::: "memory");
    return value * 2 + 1;
}

static void break_here(void) {
    int total = 0;
    for (int i = 0; i < 3; i++)
        total += target(i);
    _exit(total);
}

static void breakpoints(void) {
    pid_t pid = traced(break_here);
    unsigned long at = (unsigned long)target;
    long original;
    CHECK(request(PTRACE_PEEKTEXT, pid, at, (unsigned long)&original) == 0);
    CHECK(memcmp(&original, (void *)target, 8) == 0);
    CHECK(request(PTRACE_POKETEXT, pid, at, (original & ~0xfful) | 0xcc) == 0);
    CHECK(*(unsigned char *)target == (original & 0xff));
    for (int i = 0; i < 3; i++) {
        go(PTRACE_CONT, pid, 0);
        expect_stop(pid, SIGTRAP, 0);
        struct user_regs_struct r = registers_of(pid);
        CHECK(r.rip == at + 1 && r.rdi == (unsigned long)i);
        /* Over it, by a step. */
        CHECK(request(PTRACE_POKETEXT, pid, at, original) == 0);
        r.rip = at;
        r.rdi = 10 + i;
        set_registers(pid, r);
        go(PTRACE_SINGLESTEP, pid, 0);
        expect_stop(pid, SIGTRAP, 0);
        CHECK(registers_of(pid).rip != at);
        CHECK(request(PTRACE_POKETEXT, pid, at, (original & ~0xfful) | 0xcc) == 0);
    }
    go(PTRACE_CONT, pid, 0);
    expect_exit(pid, 21 + 23 + 25);
}

/* A breakpoint on the instruction after a system call, where libraries are rewritten. */
static void call_again(void) {
    for (int i = 0; i < 5; i++)
        syscall(SYS_getppid);
    for (int i = 0; i < 3; i++)
        syscall(SYS_getppid);
    _exit(11);
}

static void after_calls(void) {
    pid_t pid = traced(call_again);
    unsigned long after = 0;
    /* The sites are known by now, if they ever are. */
    for (int i = 0; i < 10; i++) {
        go(PTRACE_SYSCALL, pid, 0);
        expect_stop(pid, SIGTRAP, 0);
        after = registers_of(pid).rip;
    }
    long original;
    CHECK(request(PTRACE_PEEKTEXT, pid, after, (unsigned long)&original) == 0);
    CHECK(memcmp(&original, (void *)after, 8) == 0 || original != 0);
    CHECK(request(PTRACE_POKETEXT, pid, after, (original & ~0xfful) | 0xcc) == 0);
    /* The present call first, which ends where the breakpoint is. */
    for (int i = 0; i < 4; i++) {
        go(PTRACE_CONT, pid, 0);
        expect_stop(pid, SIGTRAP, 0);
        struct user_regs_struct r = registers_of(pid);
        CHECK(r.rip == after + 1);
        if (r.rip != after + 1)
            break;
        r.rip = after;
        CHECK(request(PTRACE_POKETEXT, pid, after, original) == 0);
        set_registers(pid, r);
        go(PTRACE_SINGLESTEP, pid, 0);
        expect_stop(pid, SIGTRAP, 0);
        CHECK(request(PTRACE_POKETEXT, pid, after, (original & ~0xfful) | 0xcc) == 0);
    }
    CHECK(request(PTRACE_POKETEXT, pid, after, original) == 0);
    go(PTRACE_CONT, pid, 0);
    expect_exit(pid, 11);
}

/* Every instruction of some code, one by one. */
__attribute__((noinline)) static long crooked(long n) {
    long sum = 0;
    for (long i = 0; i < n; i++)
        sum += i % 3 ? target(i) : syscall(SYS_getppid) != 0;
    return sum;
}

static void walk(void) {
    __asm__ volatile("int3");
    long sum = crooked(6);
    _exit(sum);
}

static void steps(void) {
    pid_t pid = traced(walk);
    go(PTRACE_CONT, pid, 0);
    expect_stop(pid, SIGTRAP, 0);
    int count = 0, status, inside = 0;
    unsigned long last = registers_of(pid).rip;
    for (;;) {
        go(PTRACE_SINGLESTEP, pid, 0);
        status = next(pid);
        if (!WIFSTOPPED(status))
            break;
        CHECK(WSTOPSIG(status) == SIGTRAP);
        unsigned long now = registers_of(pid).rip;
        CHECK(now != last);
        last = now;
        inside += now == (unsigned long)target;
        if (++count > 5000 || WSTOPSIG(status) != SIGTRAP)
            break;
    }
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 2 + 3 + 5 + 9 + 11);
    CHECK(inside == 4 && count > 60);
}

static volatile int stepped_over;

static void count_up(int signal) {
    (void)signal;
    stepped_over++;
}

static void with_handler(void) {
    signal(SIGUSR1, count_up);
    raise(SIGUSR1);
    _exit(stepped_over == 1 ? 5 : 1);
}

static void step_into_handler(void) {
    pid_t pid = traced(with_handler);
    go(PTRACE_CONT, pid, 0);
    expect_stop(pid, SIGUSR1, 0);
    go(PTRACE_SINGLESTEP, pid, SIGUSR1);
    expect_stop(pid, SIGTRAP, 0);
    CHECK(registers_of(pid).rip == (unsigned long)count_up);
    go(PTRACE_SINGLESTEP, pid, 0);
    expect_stop(pid, SIGTRAP, 0);
    go(PTRACE_CONT, pid, 0);
    expect_exit(pid, 5);
}

/* ---- events ------------------------------------------------------------------------------- */

static void family(void) {
    pid_t child = fork();
    if (child == 0)
        _exit(3);
    int status;
    waitpid(child, &status, 0);
    child = vfork();
    if (child == 0)
        _exit(4);
    waitpid(child, &status, 0);
    _exit(status == 4 << 8 ? 5 : 1);
}

static void events(void) {
    pid_t pid = traced(family);
    unsigned long child, message;
    int options = PTRACE_O_TRACEFORK | PTRACE_O_TRACEVFORK | PTRACE_O_TRACEVFORKDONE | PTRACE_O_TRACEEXIT;
    CHECK(request(PTRACE_SETOPTIONS, pid, 0, options) == 0);
    go(PTRACE_CONT, pid, 0);
    expect_stop(pid, SIGTRAP, PTRACE_EVENT_FORK);
    CHECK(request(PTRACE_GETEVENTMSG, pid, 0, (unsigned long)&child) == 0);
    CHECK((pid_t)child > 0 && (pid_t)child != pid);
    CHECK(registers_of(pid).rax == -ENOSYS);
    expect_stop(child, SIGSTOP, 0);
    go(PTRACE_CONT, child, 0);
    expect_stop(child, SIGTRAP, PTRACE_EVENT_EXIT);
    CHECK(request(PTRACE_GETEVENTMSG, child, 0, (unsigned long)&message) == 0);
    CHECK(message == 3 << 8);
    /* It still has registers and memory. */
    CHECK(registers_of(child).orig_rax == SYS_exit_group);
    go(PTRACE_CONT, child, 0);
    /* The tracer first, then the parent. */
    expect_exit(child, 3);
    go(PTRACE_CONT, pid, 0);
    int status = next(pid);
    if (WIFSTOPPED(status) && WSTOPSIG(status) == SIGCHLD) {
        go(PTRACE_CONT, pid, SIGCHLD);
        status = next(pid);
    }
    CHECK(status >> 8 == (SIGTRAP | PTRACE_EVENT_VFORK << 8));
    CHECK(request(PTRACE_GETEVENTMSG, pid, 0, (unsigned long)&child) == 0);
    expect_stop(child, SIGSTOP, 0);
    CHECK(request(PTRACE_DETACH, child, 0, 0) == 0);
    go(PTRACE_CONT, pid, 0);
    status = next(pid);
    if (WIFSTOPPED(status) && WSTOPSIG(status) == SIGCHLD) {
        go(PTRACE_CONT, pid, SIGCHLD);
        status = next(pid);
    }
    CHECK(status >> 8 == (SIGTRAP | PTRACE_EVENT_VFORK_DONE << 8));
    go(PTRACE_CONT, pid, 0);
    status = next(pid);
    if (WIFSTOPPED(status) && WSTOPSIG(status) == SIGCHLD) {
        go(PTRACE_CONT, pid, SIGCHLD);
        status = next(pid);
    }
    CHECK(status >> 8 == (SIGTRAP | PTRACE_EVENT_EXIT << 8));
    go(PTRACE_CONT, pid, 0);
    expect_exit(pid, 5);
}

static void execute(void) {
    char *arguments[] = {"tracing", "child", NULL};
    char *environment[] = {NULL};
    execve("/proc/self/exe", arguments, environment);
    _exit(1);
}

static void executes(void) {
    /* A SIGTRAP, where no event is asked for. */
    pid_t pid = traced(execute);
    go(PTRACE_CONT, pid, 0);
    expect_stop(pid, SIGTRAP, 0);
    siginfo_t info;
    CHECK(request(PTRACE_GETSIGINFO, pid, 0, (unsigned long)&info) == 0);
    CHECK(info.si_code == SI_USER);
    go(PTRACE_CONT, pid, 0);
    expect_exit(pid, 17);
    pid = traced(execute);
    CHECK(request(PTRACE_SETOPTIONS, pid, 0, PTRACE_O_TRACEEXEC | PTRACE_O_TRACESYSGOOD) == 0);
    go(PTRACE_SYSCALL, pid, 0);
    expect_stop(pid, SIGTRAP | 0x80, 0);
    go(PTRACE_SYSCALL, pid, 0);
    expect_stop(pid, SIGTRAP, PTRACE_EVENT_EXEC);
    unsigned long old;
    CHECK(request(PTRACE_GETEVENTMSG, pid, 0, (unsigned long)&old) == 0 && (pid_t)old == pid);
    CHECK(registers_of(pid).orig_rax == SYS_execve && registers_of(pid).rax == -ENOSYS);
    go(PTRACE_SYSCALL, pid, 0);
    expect_stop(pid, SIGTRAP | 0x80, 0);
    struct user_regs_struct r = registers_of(pid);
    CHECK(r.orig_rax == SYS_execve && r.rax == 0);
    go(PTRACE_CONT, pid, 0);
    expect_exit(pid, 17);
}

/* ---- filters ------------------------------------------------------------------------------- */

static void filtered(void) {
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_getppid, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRACE | 77),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {4, code};
    long own = getpid();
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) != 0)
        _exit(1);
    /* Another call, then another result, then nobody to ask. */
    if (syscall(SYS_getppid) != own)
        _exit(2);
    if (syscall(SYS_getppid) != 4711)
        _exit(3);
    _exit(syscall(SYS_getppid) == -1 && errno == ENOSYS ? 12 : 4);
}

static void filters(void) {
    pid_t pid = traced(filtered);
    unsigned long message;
    CHECK(request(PTRACE_SETOPTIONS, pid, 0, PTRACE_O_TRACESECCOMP) == 0);
    go(PTRACE_CONT, pid, 0);
    expect_stop(pid, SIGTRAP, PTRACE_EVENT_SECCOMP);
    CHECK(request(PTRACE_GETEVENTMSG, pid, 0, (unsigned long)&message) == 0 && message == 77);
    CHECK(registers_of(pid).orig_rax == SYS_getppid);
    CHECK(request(PTRACE_POKEUSER, pid, offsetof(struct user, regs.orig_rax), SYS_getpid) == 0);
    go(PTRACE_CONT, pid, 0);
    expect_stop(pid, SIGTRAP, PTRACE_EVENT_SECCOMP);
    CHECK(request(PTRACE_POKEUSER, pid, offsetof(struct user, regs.orig_rax), -1) == 0);
    CHECK(request(PTRACE_POKEUSER, pid, offsetof(struct user, regs.rax), 4711) == 0);
    CHECK(request(PTRACE_SETOPTIONS, pid, 0, 0) == 0);
    go(PTRACE_CONT, pid, 0);
    expect_exit(pid, 12);
}

/* ---- attaching ---------------------------------------------------------------------------- */

static char state_of(pid_t pid, int *tracer) {
    char path[64], line[256], state = 0;
    snprintf(path, sizeof path, "/proc/%d/status", pid);
    FILE *file = fopen(path, "r");
    CHECK(file != NULL);
    while (file && fgets(line, sizeof line, file)) {
        sscanf(line, "State: %c", &state);
        sscanf(line, "TracerPid: %d", tracer);
    }
    if (file) fclose(file);
    return state;
}

static pid_t running(void (*body)(void)) {
    fflush(stdout);
    pid_t pid = fork();
    if (pid == 0) {
        setpgid(0, 0);
        body();
        _exit(99);
    }
    usleep(20000);
    return pid;
}

static void spin(void) {
    for (;;)
        __asm__ volatile("pause");
}

static void attaching(void) {
    void (*bodies[])(void) = {idle, spin};
    for (int i = 0; i < 2; i++) {
        pid_t pid = running(bodies[i]);
        int tracer = -1;
        CHECK(request(PTRACE_ATTACH, pid, 0, 0) == 0);
        expect_stop(pid, SIGSTOP, 0);
        CHECK(state_of(pid, &tracer) == 't' && tracer == getpid());
        CHECK(registers_of(pid).rip != 0);
        CHECK(request(PTRACE_DETACH, pid, 0, 0) == 0);
        char state = state_of(pid, &tracer);
        CHECK(state != 't' && state != 'T' && tracer == 0);
        CHECK(request(PTRACE_PEEKUSER, pid, 0, (unsigned long)&tracer) == -1 && errno == ESRCH);
        /* Detaching with a signal. */
        CHECK(request(PTRACE_ATTACH, pid, 0, 0) == 0);
        expect_stop(pid, SIGSTOP, 0);
        CHECK(request(PTRACE_DETACH, pid, 0, SIGTERM) == 0);
        CHECK(next(pid) == SIGTERM);
    }
}

static void seizing(void) {
    pid_t pid = running(idle);
    CHECK(request(PTRACE_SEIZE, pid, 1, 0) == -1 && errno == EIO);
    CHECK(request(PTRACE_SEIZE, pid, 0, 1 << 30) == -1 && errno == EIO);
    CHECK(request(PTRACE_SEIZE, pid, 0, PTRACE_O_TRACESYSGOOD) == 0);
    int status;
    CHECK(waitpid(pid, &status, WNOHANG | __WALL) == 0);
    CHECK(request(PTRACE_INTERRUPT, pid, 0, 0) == 0);
    expect_stop(pid, SIGTRAP, PTRACE_EVENT_STOP);
    siginfo_t info;
    CHECK(request(PTRACE_GETSIGINFO, pid, 0, (unsigned long)&info) == 0);
    CHECK(info.si_signo == SIGTRAP && info.si_code == (SIGTRAP | PTRACE_EVENT_STOP << 8));
    go(PTRACE_CONT, pid, 0);
    /* Job control: the signal, then the stop of the group, then its end. */
    CHECK(kill(pid, SIGTSTP) == 0);
    expect_stop(pid, SIGTSTP, 0);
    go(PTRACE_CONT, pid, SIGTSTP);
    expect_stop(pid, SIGTSTP, PTRACE_EVENT_STOP);
    CHECK(request(PTRACE_LISTEN, pid, 0, 0) == 0);
    CHECK(waitpid(pid, &status, WNOHANG | __WALL) == 0);
    CHECK(request(PTRACE_GETREGS, pid, 0, (unsigned long)&info) == -1 && errno == ESRCH);
    CHECK(kill(pid, SIGCONT) == 0);
    expect_stop(pid, SIGTRAP, PTRACE_EVENT_STOP);
    go(PTRACE_CONT, pid, 0);
    expect_stop(pid, SIGCONT, 0);
    go(PTRACE_CONT, pid, SIGCONT);
    CHECK(kill(pid, SIGKILL) == 0);
    CHECK(next(pid) == SIGKILL);
}

/* By PTRACE_ATTACH, with job control. */
static void stopping(void) {
    pid_t pid = traced(idle);
    go(PTRACE_CONT, pid, 0);
    CHECK(kill(pid, SIGTSTP) == 0);
    expect_stop(pid, SIGTSTP, 0);
    go(PTRACE_CONT, pid, SIGTSTP);
    expect_stop(pid, SIGTSTP, 0);
    siginfo_t info;
    CHECK(request(PTRACE_GETSIGINFO, pid, 0, (unsigned long)&info) == -1 && errno == EINVAL);
    CHECK(request(PTRACE_DETACH, pid, 0, 0) == 0);
    int status, tracer;
    /* It stays stopped, for its parent. */
    CHECK(waitpid(pid, &status, WUNTRACED) == pid && WIFSTOPPED(status));
    usleep(20000);
    CHECK(state_of(pid, &tracer) == 'T');
    /* Attaching to one that is stopped. */
    CHECK(request(PTRACE_ATTACH, pid, 0, 0) == 0);
    status = next(pid);
    CHECK(WIFSTOPPED(status));
    CHECK(kill(pid, SIGKILL) == 0);
    CHECK(next(pid) == SIGKILL);
}

/* ---- another's child ---------------------------------------------------------------------- */

static void ending(void) {
    usleep(100000);
    _exit(6);
}

static void in_between(void) {
    CHECK(pipe(ends) == 0);
    pid_t pid = running(ending);
    /* A tracer that is not the parent, and reaps first. */
    pid_t tracer = fork();
    if (tracer == 0) {
        CHECK(request(PTRACE_SEIZE, pid, 0, 0) == 0);
        CHECK(write(ends[1], "x", 1) == 1);
        usleep(200000);
        expect_exit(pid, 6);
        int status;
        CHECK(waitpid(pid, &status, __WALL) == -1 && errno == ECHILD);
        fflush(stdout);
        _exit(failures != 0);
    }
    char byte;
    CHECK(read(ends[0], &byte, 1) == 1);
    int status;
    usleep(150000);
    CHECK(waitpid(pid, &status, WNOHANG) == 0);
    expect_exit(pid, 6);
    expect_exit(tracer, 0);
}

static void leave(int options, int stop) {
    pid_t pid = running(idle);
    pid_t tracer = fork();
    if (tracer == 0) {
        CHECK(request(PTRACE_SEIZE, pid, 0, options) == 0);
        if (stop) {
            CHECK(request(PTRACE_INTERRUPT, pid, 0, 0) == 0);
            expect_stop(pid, SIGTRAP, PTRACE_EVENT_STOP);
        }
        _exit(0);
    }
    expect_exit(tracer, 0);
    int with = 0;
    if (options == 0) {
        usleep(20000);
        CHECK(state_of(pid, &with) == 'S' && with == 0);
        CHECK(kill(pid, SIGTERM) == 0);
        CHECK(next(pid) == SIGTERM);
    } else {
        CHECK(next(pid) == SIGKILL);
    }
}

static void tracers_end(void) {
    leave(0, 0);
    leave(0, 1);
    leave(PTRACE_O_EXITKILL, 0);
    leave(PTRACE_O_EXITKILL, 1);
}

/* ---- threads ------------------------------------------------------------------------------ */

static _Atomic int seen;

static void *second(void *argument) {
    (void)argument;
    seen = 1;
    syscall(SYS_getppid);
    return NULL;
}

static void with_thread(void) {
    pthread_t thread;
    pthread_create(&thread, NULL, second, NULL);
    pthread_join(thread, NULL);
    _exit(seen ? 8 : 1);
}

static void threads(void) {
    pid_t pid = traced(with_thread);
    CHECK(request(PTRACE_SETOPTIONS, pid, 0, PTRACE_O_TRACECLONE) == 0);
    go(PTRACE_CONT, pid, 0);
    expect_stop(pid, SIGTRAP, PTRACE_EVENT_CLONE);
    unsigned long tid;
    CHECK(request(PTRACE_GETEVENTMSG, pid, 0, (unsigned long)&tid) == 0);
    expect_stop(tid, SIGSTOP, 0);
    go(PTRACE_CONT, pid, 0);
    go(PTRACE_SYSCALL, tid, 0);
    int status, calls = 0;
    for (;;) {
        status = next(tid);
        if (!WIFSTOPPED(status))
            break;
        calls += WSTOPSIG(status) == SIGTRAP;
        go(PTRACE_SYSCALL, tid, 0);
    }
    /* It may be told of after the process has ended, and has its status then. */
    CHECK((status == 0 || status == 8 << 8) && calls >= 3);
    expect_exit(pid, 8);
}

/* ---- /proc/<pid>/mem, and what may not be looked at ------------------------------------------ */

static void memory(void) {
    pid_t pid = traced(break_here);
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/mem", pid);
    int file = open(path, O_RDWR);
    CHECK(file >= 0);
    unsigned char byte = 0, trap = 0xcc;
    CHECK(pread(file, &byte, 1, (off_t)target) == 1 && byte == *(unsigned char *)target);
    CHECK(pwrite(file, &trap, 1, (off_t)target) == 1);
    go(PTRACE_CONT, pid, 0);
    expect_stop(pid, SIGTRAP, 0);
    CHECK(registers_of(pid).rip == (unsigned long)target + 1);
    close(file);
    go(PTRACE_KILL, pid, 0);
    CHECK(next(pid) == SIGKILL);
}

static void closed(void) {
    prctl(PR_SET_DUMPABLE, 0);
    idle();
}

/* Not by root with CAP_SYS_PTRACE, who may look at everything. */
static void forbidden(void) {
    if (getuid() == 0 && setresuid(1000, 1000, 1000) != 0)
        return;
    prctl(PR_SET_DUMPABLE, 1);
    pid_t pid = running(closed);
    CHECK(request(PTRACE_ATTACH, pid, 0, 0) == -1 && errno == EPERM);
    CHECK(request(PTRACE_SEIZE, pid, 0, 0) == -1 && errno == EPERM);
    CHECK(request(PTRACE_ATTACH, 1, 0, 0) == -1 && (errno == EPERM || errno == ESRCH));
    kill(pid, SIGKILL);
    next(pid);
    /* Closed while it is traced: memory is out of reach. */
    pid = traced(closed);
    go(PTRACE_CONT, pid, 0);
    usleep(50000);
    kill(pid, SIGUSR1);
    expect_stop(pid, SIGUSR1, 0);
    long value;
    CHECK(request(PTRACE_PEEKDATA, pid, (unsigned long)&word, (unsigned long)&value) == -1 &&
          errno == EIO);
    registers_of(pid);
    kill(pid, SIGKILL);
    next(pid);
}

int main(int argc, char **argv) {
    if (argc > 1 && strcmp(argv[1], "child") == 0)
        return 17;
    setvbuf(stdout, NULL, _IONBF, 0);
    static const struct {
        const char *name;
        void (*run)(void);
    } parts[] = {
        {"calls", see_calls}, {"emulate", emulate}, {"errors", errors}, {"signals", signals},
        {"restarts", restarts}, {"registers", registers}, {"breakpoints", breakpoints},
        {"after calls", after_calls}, {"steps", steps}, {"handler", step_into_handler},
        {"events", events}, {"filters", filters}, {"executes", executes}, {"attaching", attaching},
        {"seizing", seizing}, {"stopping", stopping}, {"in between", in_between},
        {"tracers end", tracers_end}, {"threads", threads}, {"memory", memory},
        {"forbidden", forbidden},
    };
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        if (argc > 1 && strcmp(argv[1], parts[i].name) != 0)
            continue;
        if (argc > 1)
            printf("%s\n", parts[i].name);
        parts[i].run();
    }
    return finish("tracing");
}
