#include "check.h"
#include <cpuid.h>
#include <pthread.h>
#include <sys/time.h>
#include <ucontext.h>

/*
 * AVX-512's registers, zmm0 to zmm31 and k0 to k7, over what interrupts a program: system calls,
 * signals whose handlers use them or change the interrupted program's in the frame, preemption,
 * fork. Skipped where the CPU has none.
 */
struct wide {
    uint64_t zmm[32][8] __attribute__((aligned(64)));
    uint64_t k[8];
};

#define ALL8(op, a) op(a, 0) op(a, 1) op(a, 2) op(a, 3) op(a, 4) op(a, 5) op(a, 6) op(a, 7)
#define ALL32(op, a) ALL8(op, a) op(a, 8) op(a, 9) op(a, 10) op(a, 11) op(a, 12) op(a, 13)          \
    op(a, 14) op(a, 15) op(a, 16) op(a, 17) op(a, 18) op(a, 19) op(a, 20) op(a, 21) op(a, 22)       \
    op(a, 23) op(a, 24) op(a, 25) op(a, 26) op(a, 27) op(a, 28) op(a, 29) op(a, 30) op(a, 31)
#define LOAD_ZMM(at, n) "vmovdqa64 64 * " #n "(" at "), %%zmm" #n "\n"
#define STORE_ZMM(at, n) "vmovdqa64 %%zmm" #n ", 64 * " #n "(" at ")\n"
#define LOAD_K(at, n) "kmovq 2048 + 8 * " #n "(" at "), %%k" #n "\n"
#define STORE_K(at, n) "kmovq %%k" #n ", 2048 + 8 * " #n "(" at ")\n"

#define WIDE static __attribute__((noinline, target("avx512bw")))

/* A system call with full registers. */
WIDE long call(const struct wide *in, struct wide *out, long number, long a, long b) {
    register const struct wide *r12 __asm__("r12") = in;
    register struct wide *r13 __asm__("r13") = out;
    long result;
    __asm__ volatile(ALL32(LOAD_ZMM, "%%r12") ALL8(LOAD_K, "%%r12") "syscall\n"
                     ALL32(STORE_ZMM, "%%r13") ALL8(STORE_K, "%%r13") "vzeroupper"
                     : "=a"(result)
                     : "a"(number), "D"(a), "S"(b), "r"(r12), "r"(r13)
                     : "rcx", "r11", "memory");
    return result;
}

/* Turns of a loop with full registers, so that what interrupts it finds them. */
WIDE void spin(const struct wide *in, struct wide *out, long turns) {
    register const struct wide *r12 __asm__("r12") = in;
    register struct wide *r13 __asm__("r13") = out;
    __asm__ volatile(ALL32(LOAD_ZMM, "%%r12") ALL8(LOAD_K, "%%r12")
                     "1: pause\n dec %[turns]\n jne 1b\n"
                     ALL32(STORE_ZMM, "%%r13") ALL8(STORE_K, "%%r13") "vzeroupper"
                     : [turns] "+r"(turns) : "r"(r12), "r"(r13) : "cc", "memory");
}

WIDE void load(const struct wide *in) {
    register const struct wide *r12 __asm__("r12") = in;
    __asm__ volatile(ALL32(LOAD_ZMM, "%%r12") ALL8(LOAD_K, "%%r12") : : "r"(r12) : "memory");
}

static void fill(struct wide *all, uint64_t seed) {
    for (uint64_t n = 0; n < 32; n++)
        for (uint64_t word = 0; word < 8; word++)
            all->zmm[n][word] = seed * 0x9e3779b97f4a7c15 + n * 8 + word + 1;
    for (uint64_t n = 0; n < 8; n++) all->k[n] = seed * 0xc2b2ae3d27d4eb4f + n + 1;
}

static int same(const struct wide *one, const struct wide *other) {
    return memcmp(one->zmm, other->zmm, sizeof one->zmm) == 0 &&
           memcmp(one->k, other->k, sizeof one->k) == 0;
}

/* Where XSAVE puts a component; its size. */
static unsigned place(unsigned component, unsigned *len) {
    unsigned start, ecx, edx;
    __cpuid_count(0xd, component, *len, start, ecx, edx);
    return start;
}

enum { MAGIC1 = 464, EXTENDED_SIZE = 468, FEATURES = 472, SIZE = 480, HEADER = 512 };
#define FP_MAGIC1 0x46505853u
#define FP_MAGIC2 0x46505845u
enum edit { NONE, CHANGE, CLEAR, WITHOUT_MAGIC };
static enum edit edit;
static volatile int handled;

static void handler(int signal, siginfo_t *info, void *context) {
    (void)signal, (void)info;
    struct wide other;
    uint8_t *state = (uint8_t *)((ucontext_t *)context)->uc_mcontext.fpregs;
    uint32_t magic, size;
    uint64_t features, present;
    memcpy(&magic, state + MAGIC1, 4);
    memcpy(&size, state + SIZE, 4);
    memcpy(&features, state + FEATURES, 8);
    CHECK(magic == FP_MAGIC1 && (features & 0xe7) == 0xe7);
    memcpy(&magic, state + size, 4);
    CHECK(magic == FP_MAGIC2);
    memcpy(&present, state + HEADER, 8);
    unsigned opmask_len, upper_len, high_len;
    unsigned opmask = place(5, &opmask_len), upper = place(6, &upper_len), high = place(7, &high_len);
    CHECK(opmask_len == 64 && upper_len == 512 && high_len == 1024);
    CHECK(opmask + 64 <= size && upper + 512 <= size && high + 1024 <= size);
    const uint64_t value = 0x7777777777777777;
    switch (edit) {
    case CHANGE:
        CHECK((present & 0xe0) == 0xe0);
        memcpy(state + high + 64 * 15 + 8, &value, 8);  /* zmm31 */
        memcpy(state + upper + 32 * 9 + 24, &value, 8); /* zmm9 */
        memcpy(state + opmask + 8 * 5, &value, 8);      /* k5 */
        break;
    case CLEAR:
        present &= ~0xa0ull;
        memcpy(state + HEADER, &present, 8);
        break;
    case WITHOUT_MAGIC:
        memset(state + MAGIC1, 0, 4);
        break;
    case NONE:
        break;
    }
    fill(&other, 99);
    load(&other);
    __asm__ volatile("vzeroupper");
    handled++;
}

static void signals(void) {
    struct wide in, out, expected;
    struct sigaction action = {.sa_sigaction = handler, .sa_flags = SA_SIGINFO};
    CHECK(sigaction(SIGUSR1, &action, 0) == 0);
    for (uint64_t round = 1; round < 20; round++) {
        fill(&in, round);
        expected = in;
        edit = round % 4;
        if (edit == CHANGE)
            expected.zmm[31][1] = expected.zmm[9][7] = expected.k[5] = 0x7777777777777777;
        if (edit == CLEAR || edit == WITHOUT_MAGIC) {
            memset(expected.k, 0, sizeof expected.k);
            memset(expected.zmm[16], 0, sizeof expected.zmm[16] * 16);
        }
        if (edit == WITHOUT_MAGIC)
            for (int n = 0; n < 16; n++) memset(&expected.zmm[n][2], 0, 48);
        CHECK(call(&in, &out, SYS_tkill, syscall(SYS_gettid), SIGUSR1) == 0);
        CHECK(same(&expected, &out));
    }
    edit = NONE;
    CHECK(handled == 19);
}

static void calls(void) {
    struct wide in, out;
    struct timespec soon = {0, 100000};
    for (uint64_t round = 1; round < 20; round++) {
        fill(&in, round);
        CHECK(call(&in, &out, SYS_getppid, 0, 0) == getppid());
        CHECK(same(&in, &out));
        CHECK(call(&in, &out, SYS_nanosleep, (long)&soon, 0) == 0);
        CHECK(same(&in, &out));
        CHECK(call(&in, &out, SYS_sched_yield, 0, 0) == 0);
        CHECK(same(&in, &out));
    }
}

static volatile int ended;

static void *busy(void *seed) {
    struct wide in, out;
    struct timespec soon = {0, 50000};
    fill(&in, (uint64_t)seed);
    while (!ended) {
        spin(&in, &out, 2000);
        CHECK(same(&in, &out));
        call(&in, &out, SYS_nanosleep, (long)&soon, 0);
        CHECK(same(&in, &out));
        if (failures > 10) break;
    }
    return 0;
}

/* Threads with registers of their own, kicked by a timer. */
static void preemption(void) {
    pthread_t threads[6];
    struct sigaction action = {.sa_sigaction = handler, .sa_flags = SA_SIGINFO | SA_RESTART};
    CHECK(sigaction(SIGALRM, &action, 0) == 0);
    struct itimerval often = {{0, 500}, {0, 500}}, never = {{0, 0}, {0, 0}};
    CHECK(setitimer(ITIMER_REAL, &often, 0) == 0);
    for (long t = 0; t < 6; t++) CHECK(pthread_create(&threads[t], 0, busy, (void *)(t + 1)) == 0);
    int64_t end = now_ms() + 20000;
    int before = handled;
    struct wide in, out;
    fill(&in, 77);
    while (handled < before + 200 && now_ms() < end) {
        spin(&in, &out, 500);
        CHECK(same(&in, &out));
    }
    CHECK(setitimer(ITIMER_REAL, &never, 0) == 0);
    ended = 1;
    for (int t = 0; t < 6; t++) CHECK(pthread_join(threads[t], 0) == 0);
    CHECK(handled > before);
}

/* The child goes on with its parent's registers. */
static void forks(void) {
    struct wide in, out;
    for (uint64_t round = 1; round < 5; round++) {
        fill(&in, round);
        long child = call(&in, &out, SYS_fork, 0, 0);
        if (child == 0) _exit(same(&in, &out) ? 42 : 1);
        int status;
        CHECK(same(&in, &out));
        CHECK(child > 0 && waitpid((pid_t)child, &status, 0) == child);
        CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 42);
    }
}

int main(void) {
    if (!has_feature("avx512bw")) return finish("vectors");
    calls();
    signals();
    preemption();
    forks();
    return finish("vectors");
}
