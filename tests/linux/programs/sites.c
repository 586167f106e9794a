#include "check.h"
#include <fcntl.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <ucontext.h>

/*
 * System-call sites that several threads meet for the first time at once: one waits on a futex
 * there, one starts a thread there, one is interrupted there by signals whose handler calls it too,
 * one sleeps there. In the enclave one of them finds the site first and has it rewritten under the
 * others. Nobody may notice: results are right, and no program counter that a program can see is
 * anywhere but in its own code.
 */
#define SITES 48
#define FUTEX_WAIT_PRIVATE 128
#define FUTEX_WAKE_PRIVATE 129
#define CLONE_THREAD_FLAGS 0x50f00 /* VM FS FILES SIGHAND THREAD SYSVSEM */

/* Each kind of site in a copy of its own, 64 bytes apart. */
__asm__(".text\n .balign 4096\n"
        /* The instruction after the call moves (After). */
        ".globl after_sites\n after_sites:\n .rept 48\n .balign 64\n"
        "mov %rdi, %rax\n mov %rsi, %rdi\n mov %rdx, %rsi\n mov %rcx, %rdx\n mov %r8, %r10\n"
        "mov %r9, %r8\n xor %r9d, %r9d\n syscall\n cmp $-4095, %rax\n ret\n .endr\n"
        /* A move to or from the stack before the call moves, as in musl (Before). */
        ".balign 64\n .globl before_sites\n before_sites:\n .rept 48\n .balign 64\n"
        "mov %rdi, %rax\n mov %rsi, %rdi\n mov %rdx, %rsi\n mov %rcx, %rdx\n mov %r8, %r10\n"
        "mov %r9, %r8\n mov %r8, -16(%rsp)\n syscall\n ret\n .endr\n"
        /* The number is loaded before the call (Number): getppid. */
        ".balign 64\n .globl number_sites\n number_sites:\n .rept 48\n .balign 64\n"
        "mov $110, %eax\n syscall\n ret\n .endr\n .balign 4096\n .globl sites_end\n sites_end:\n");
extern char after_sites[], before_sites[], number_sites[], sites_end[];

typedef long site(long number, long a, long b, long c, long d, long e);

static site *current, *numbered;
static pthread_barrier_t barrier;
static int word, ready;
static volatile int started, handled, bad_counters;
static pid_t parent;

static volatile unsigned long seen[4096];
static volatile unsigned seen_count;

static void handler(int signal, siginfo_t *info, void *context) {
    (void)signal, (void)info;
    unsigned at = __sync_fetch_and_add(&seen_count, 1);
    seen[at % 4096] = (unsigned long)((ucontext_t *)context)->uc_mcontext.gregs[REG_RIP];
    handled++;
    site *s = current;
    if (s && s(SYS_getppid, 0, 0, 0, 0, 0) != parent) bad_counters++;
}

/* Trampolines are in no mapping that a program can see. */
static void check_seen(void) {
    static unsigned long starts[512], ends[512];
    int mappings = 0;
    char line[512];
    FILE *maps = fopen("/proc/self/maps", "r");
    while (maps && mappings < 512 && fgets(line, sizeof line, maps))
        if (sscanf(line, "%lx-%lx", &starts[mappings], &ends[mappings]) == 2) mappings++;
    CHECK(maps && mappings > 3);
    if (maps) fclose(maps);
    for (unsigned i = 0; i < seen_count && i < 4096; i++) {
        int found = 0;
        for (int m = 0; m < mappings; m++) found |= seen[i] >= starts[m] && seen[i] < ends[m];
        if (!found) printf("FAIL: interrupted at %#lx, which is nowhere\n", seen[i]), failures++;
    }
}

/* A thread made with a bare clone: it has no thread-local storage of its own, so it only counts. */
static char child_stacks[SITES][16384] __attribute__((aligned(16)));
__asm__(".text\n .globl child_entry\n child_entry:\n lock incl started_by_clone(%rip)\n"
        "xor %edi, %edi\n mov $60, %eax\n syscall\n");
extern char child_entry[];
volatile int started_by_clone __attribute__((visibility("hidden")));

static void *waits(void *arg) {
    (void)arg;
    pthread_barrier_wait(&barrier);
    long r;
    while (__atomic_load_n(&word, __ATOMIC_SEQ_CST) == 0) {
        __atomic_store_n(&ready, 1, __ATOMIC_SEQ_CST);
        r = current(SYS_futex, (long)&word, FUTEX_WAIT_PRIVATE, 0, 0, 0);
        CHECK(r == 0 || r == -EAGAIN || r == -EINTR);
    }
    return 0;
}
static void *clones(void *arg) {
    long index = (long)arg;
    /* What the child returns to. */
    void **top = (void **)(child_stacks[index] + sizeof child_stacks[index] - 64);
    *top = child_entry;
    pthread_barrier_wait(&barrier);
    long r = current(SYS_clone, CLONE_THREAD_FLAGS, (long)top, 0, 0, 0);
    CHECK(r > 0);
    return 0;
}
static void *calls(void *arg) {
    (void)arg;
    pthread_barrier_wait(&barrier);
    for (int i = 0; i < 200; i++) {
        CHECK(current(SYS_getppid, 0, 0, 0, 0, 0) == parent);
        CHECK(numbered(0, 0, 0, 0, 0, 0) == parent);
    }
    return 0;
}
static void *sleeps(void *arg) {
    (void)arg;
    pthread_barrier_wait(&barrier);
    for (int i = 0; i < 3; i++) {
        struct timespec t = {0, 50000};
        long r = current(SYS_nanosleep, (long)&t, 0, 0, 0, 0);
        CHECK(r == 0 || r == -EINTR);
    }
    while (!__atomic_load_n(&ready, __ATOMIC_SEQ_CST)) sched_yield();
    __atomic_store_n(&word, 1, __ATOMIC_SEQ_CST);
    long r = current(SYS_futex, (long)&word, FUTEX_WAKE_PRIVATE, 1000, 0, 0);
    CHECK(r >= 0 && r <= 1);
    return 0;
}

static void one(long index, site *at, site *with_number) {
    current = at, numbered = with_number;
    word = ready = 0;
    int before = started_by_clone;
    pthread_t threads[4];
    pthread_barrier_init(&barrier, 0, 5);
    void *(*bodies[4])(void *) = {waits, clones, calls, sleeps};
    for (long i = 0; i < 4; i++) CHECK(pthread_create(&threads[i], 0, bodies[i], (void *)index) == 0);
    pthread_barrier_wait(&barrier);
    for (int i = 0; i < 8; i++) {
        for (int t = 0; t < 4; t += i % 2 ? 1 : 2) pthread_kill(threads[t], SIGUSR1);
        sched_yield();
    }
    for (int i = 0; i < 4; i++) CHECK(pthread_join(threads[i], 0) == 0);
    int64_t end = now_ms() + 10000;
    while (started_by_clone == before && now_ms() < end) sched_yield();
    CHECK(started_by_clone == before + 1);
    /* A child that is forked at the site returns from there twice. */
    pid_t child = (pid_t)at(SYS_fork, 0, 0, 0, 0, 0);
    if (child == 0) _exit(at(SYS_getpid, 0, 0, 0, 0, 0) == getpid() ? 7 : 8);
    int status = 0;
    CHECK(child > 0 && waitpid(child, &status, 0) == child && WEXITSTATUS(status) == 7);
    pthread_barrier_destroy(&barrier);
}

/* The same from a file that has just been written: nobody can have listed its sites. */
static void from_a_copy(void) {
    char name[64];
    static char buffer[1 << 16];
    mkdir("/tmp", 01777);
    sprintf(name, "/tmp/sites-%d", getpid());
    int from = open("/proc/self/exe", O_RDONLY), to = open(name, O_CREAT | O_EXCL | O_WRONLY, 0700);
    long n;
    while ((n = read(from, buffer, sizeof buffer)) > 0) CHECK(write(to, buffer, (size_t)n) == n);
    CHECK(n == 0);
    close(from), close(to);
    if (!failures) execl(name, name, name, (char *)0);
    CHECK(!"the copy runs");
}

int main(int argc, char **argv) {
    if (argc > 1) unlink(argv[1]);
    parent = getppid();
    struct sigaction action = {.sa_sigaction = handler, .sa_flags = SA_SIGINFO | SA_RESTART};
    sigaction(SIGUSR1, &action, 0);
    for (long i = 0; i < SITES; i++) {
        site *with_number = (site *)(void *)(number_sites + 64 * i);
        one(i, (site *)(void *)(after_sites + 64 * i), with_number);
        one(i, (site *)(void *)(before_sites + 64 * i), with_number);
    }
    CHECK(handled > SITES && bad_counters == 0);
    check_seen();
    /* What the program reads of its own code is what it was: the bytes of a site, or a jump. */
    CHECK(memcmp(number_sites + 5, "\x0f\x05", 2) == 0);
    if (argc == 1 && !failures) from_a_copy();
    return finish("sites");
}
