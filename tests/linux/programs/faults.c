/* Synchronous faults: signal, si_code, si_addr, on the normal and the alternate stack, as a JVM, a
 * Go program and a collector use them. */
#include "check.h"
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <ucontext.h>

static __thread sigjmp_buf back;
static __thread siginfo_t seen;
static volatile long resumed, fixed;
static char *region;
static const long PAGE = 4096;

static void jump(int s, siginfo_t *i, void *c) { (void)s; (void)c; seen = *i; siglongjmp(back, 1); }

static void catch_all(void (*f)(int, siginfo_t *, void *), int flags) {
    int all[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP};
    struct sigaction a = {.sa_sigaction = f, .sa_flags = SA_SIGINFO | flags};
    for (unsigned i = 0; i < sizeof all / sizeof *all; i++) sigaction(all[i], &a, 0);
}

#define FAULT(signal, code, address, ...)                                             \
    do {                                                                              \
        if (sigsetjmp(back, 1) == 0) { __VA_ARGS__; CHECK(!"no fault: " #__VA_ARGS__); } \
        else {                                                                        \
            CHECK(seen.si_signo == (signal)); CHECK(seen.si_code == (code));          \
            CHECK((uintptr_t)seen.si_addr == (uintptr_t)(address));                   \
        }                                                                             \
    } while (0)

static void store(volatile char *p) { *p = 1; }
static char load(volatile char *p) { return *p; }

/* A collector's barrier: the handler makes the page accessible and the instruction runs again. */
static void barrier(int s, siginfo_t *i, void *c) {
    (void)s; (void)c;
    char *page = (char *)((uintptr_t)i->si_addr & ~(PAGE - 1));
    if (mprotect(page, PAGE, PROT_READ | PROT_WRITE) == 0) fixed++;
}

/* A breakpoint is a trap: its handler sees what comes after it, and returns there (SBCL, .NET). */
extern char behind_breakpoint[];
static volatile int traps;
static void trapped(int s, siginfo_t *i, void *c) {
    (void)s; (void)i;
    ucontext_t *u = c;
    CHECK(u->uc_mcontext.gregs[REG_RIP] == (long)behind_breakpoint);
    CHECK(u->uc_mcontext.gregs[REG_TRAPNO] == 3);
    if (++traps > 3) _exit(1);
}
__attribute__((noinline)) static void breakpoint(void) {
    catch_all(trapped, 0);
    for (int i = 1; i <= 3; i++) {
        __asm__ volatile("int3\n\t.globl behind_breakpoint\n\tbehind_breakpoint: nop");
        CHECK(traps == i);
    }
    catch_all(jump, 0);
}

/* A JVM's implicit null check: the handler continues elsewhere. */
extern char skip_from[], skip_to[];
static void skip(int s, siginfo_t *i, void *c) {
    (void)s; (void)i;
    ucontext_t *u = c;
    if (u->uc_mcontext.gregs[REG_RIP] == (long)skip_from) {
        u->uc_mcontext.gregs[REG_RIP] = (long)skip_to;
        u->uc_mcontext.gregs[REG_RBX] = 4711;
        resumed++;
    }
}
__attribute__((noinline)) static long null_check(long *p) {
    long result = 1;
    __asm__ volatile("mov %1, %%rax\n\t.globl skip_from\n\tskip_from: mov 16(%%rax), %%rbx\n\t"
                     ".globl skip_to\n\tskip_to: mov %%rbx, %0"
                     : "=r"(result) : "r"(p) : "rax", "rbx", "memory");
    return result;
}

static void *overflow(void *arg);
static volatile int sink;
__attribute__((noinline)) static int deep(int n) { volatile char b[512]; b[0] = n; sink += b[0]; return deep(n + 1) + b[0]; }
static void *overflow(void *arg) {
    char *stack = arg;
    stack_t alt = {.ss_sp = stack, .ss_size = 64 << 10};
    CHECK(sigaltstack(&alt, 0) == 0);
    if (sigsetjmp(back, 1) == 0) deep(0);
    CHECK(seen.si_signo == SIGSEGV && seen.si_code == SEGV_ACCERR);
    stack_t now;
    CHECK(sigaltstack(0, &now) == 0 && !(now.ss_flags & SS_ONSTACK));
    return 0;
}

static void *touch(void *arg) {
    for (int i = 0; i < 64; i++) region[(i * 8 + (long)arg) % 64 * PAGE] += 1;
    return 0;
}

static int child_status(void (*f)(void)) {
    int status;
    pid_t pid = fork();
    if (pid == 0) { signal(SIGSEGV, SIG_DFL); signal(SIGFPE, SIG_IGN); f(); _exit(0); }
    waitpid(pid, &status, 0);
    return status;
}
static void wild(void) { store((char *)0x10); }
static void blocked(void) {
    sigset_t all;
    sigfillset(&all);
    sigprocmask(SIG_BLOCK, &all, 0);
    store((char *)0x10);
}
static volatile int zero;
static void divide(void) { sink = 4711 / zero; }

int main(void) {
    catch_all(jump, 0);
    region = mmap(0, 64 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    FAULT(SIGSEGV, SEGV_MAPERR, 8, load((char *)8));
    FAULT(SIGSEGV, SEGV_MAPERR, 0xfff8, store((char *)0xfff8));
    CHECK(mprotect(region + PAGE, PAGE, PROT_READ) == 0 && mprotect(region + 2 * PAGE, PAGE, PROT_NONE) == 0);
    FAULT(SIGSEGV, SEGV_ACCERR, region + PAGE + 5, store(region + PAGE + 5));
    CHECK(load(region + PAGE + 5) == 0);
    FAULT(SIGSEGV, SEGV_ACCERR, region + 2 * PAGE + 9, load(region + 2 * PAGE + 9));
    FAULT(SIGSEGV, SEGV_ACCERR, (char *)main + 1, store((char *)main + 1));
    FAULT(SIGSEGV, SEGV_ACCERR, region + 3 * PAGE, ((void (*)(void))(region + 3 * PAGE))());
    CHECK(munmap(region + 4 * PAGE, PAGE) == 0);
    FAULT(SIGSEGV, SEGV_MAPERR, region + 4 * PAGE, load(region + 4 * PAGE));
    /* An address that is not canonical is a general protection fault: no address. */
    FAULT(SIGSEGV, SI_KERNEL, 0, load((char *)0x8000000000000000));
    FAULT(SIGSEGV, SI_KERNEL, 0, __asm__ volatile("hlt"));
    /* Port I/O, which an enclave does not have at all. */
    FAULT(SIGSEGV, SI_KERNEL, 0, __asm__ volatile("in %%dx, %%eax" ::"d"(0x5658) : "eax"));
    FAULT(SIGSEGV, SI_KERNEL, 0, __asm__ volatile("outw %%ax, %%dx" ::"d"(0x80), "a"(0)));

    /* A file that ends before the mapping does */
    char name[] = "/tmp/faultsXXXXXX";
    mkdir("/tmp", 0777);
    int fd = mkstemp(name);
    CHECK(fd >= 0 && ftruncate(fd, 100) == 0);
    for (int shared = 0; shared < 2; shared++) {
        char *map = mmap(0, 3 * PAGE, PROT_READ | PROT_WRITE, shared ? MAP_SHARED : MAP_PRIVATE, fd, 0);
        CHECK(map != MAP_FAILED && load(map + 4000) == 0);
        FAULT(SIGBUS, BUS_ADRERR, map + PAGE, load(map + PAGE));
        FAULT(SIGBUS, BUS_ADRERR, map + 2 * PAGE + 3, store(map + 2 * PAGE + 3));
        munmap(map, 3 * PAGE);
    }
    unlink(name);

    FAULT(SIGFPE, FPE_INTDIV, seen.si_addr, sink = 4711 / zero);
    CHECK((char *)seen.si_addr > (char *)main - (1 << 20) && (char *)seen.si_addr < (char *)main + (1 << 20));
    FAULT(SIGILL, ILL_ILLOPN, seen.si_addr, __asm__ volatile("ud2"));
    if (sigsetjmp(back, 1) == 0) { __asm__ volatile("int3"); CHECK(!"no trap"); }
    CHECK(seen.si_signo == SIGTRAP && seen.si_code == SI_KERNEL);
    breakpoint();

    /* Handlers that return */
    catch_all(barrier, 0);
    region = mmap(0, 64 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    for (int i = 0; i < 64; i++) store(region + i * PAGE + i);
    CHECK(fixed == 64);
    /* … in several threads at once, on the same pages */
    CHECK(mprotect(region, 64 * PAGE, PROT_NONE) == 0);
    pthread_t threads[4];
    for (long i = 0; i < 4; i++) CHECK(pthread_create(&threads[i], 0, touch, (void *)i) == 0);
    for (int i = 0; i < 4; i++) pthread_join(threads[i], 0);
    long sum = 0;
    for (int i = 0; i < 64; i++) sum += region[i * PAGE];
    CHECK(sum > 64 && fixed >= 128);

    catch_all(skip, 0);
    long there[3] = {0, 0, 42};
    CHECK(null_check(there) == 42);
    for (int i = 0; i < 1000; i++) CHECK(null_check(0) == 4711);
    CHECK(resumed == 1000);

    /* A stack that runs into its guard page, on the alternate stack, in threads */
    catch_all(jump, SA_ONSTACK);
    for (int i = 0; i < 3; i++) {
        char *alt = malloc(64 << 10);
        pthread_attr_t attributes;
        pthread_attr_init(&attributes);
        pthread_attr_setstacksize(&attributes, 256 << 10);
        CHECK(pthread_create(&threads[0], &attributes, overflow, alt) == 0);
        pthread_join(threads[0], 0);
        free(alt);
    }

    /* Defaults: a fault cannot be blocked or ignored */
    int status = child_status(wild);
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV);
    status = child_status(blocked);
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV);
    status = child_status(divide);
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGFPE);
    return finish("faults");
}
